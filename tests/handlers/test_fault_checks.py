"""The checks of a simulated shard take a contradiction for a fault, but where a disk was put back from an older copy."""

from collections import Counter
from types import SimpleNamespace

import pytest
from drakkar.handlers import MessageType
from drakkar.handlers.testing.directories import Directory
from drakkar.handlers.testing.history import Violation
from drakkar.handlers.testing.invariants import check_faults
from drakkar.handlers.testing.message_checks import check_durable

from tests.handlers.raft.support import append, hear, heartbeat, of_type, replica


def contradicted(*, copied):
    """A replica whose log ends at 2, and that was told of a commit at 5; and what it asks its leader then."""
    raft = replica(terms=(1, 1), commit=1)
    (question,) = of_type(hear(raft, heartbeat(2, 1, commit=5)), MessageType.CONTRADICTION)
    directory = Directory(1001, copied=copied)
    return SimpleNamespace(id=1, raft=raft, storage=raft.log.storage, directory=directory), question


def history():
    return SimpleNamespace(happened=Counter(), sent_term={})


def test_a_replica_on_an_older_copy_of_its_disk_may_contradict_its_leader():
    observed, question = contradicted(copied=True)
    check_faults(observed)
    check_durable(history(), observed, question)


def test_no_other_replica_may_contradict_its_leader():
    observed, question = contradicted(copied=False)
    with pytest.raises(Violation, match="contradicts what is committed here"):
        check_faults(observed)
    with pytest.raises(Violation, match="INV50"):
        check_durable(history(), observed, question)


def test_a_replica_on_an_older_copy_may_find_no_other_fault():
    observed, _ = contradicted(copied=True)
    hear(observed.raft, append(2, 1, (2, 1), [2]))
    with pytest.raises(Violation, match="entries that do not follow one another"):
        check_faults(observed)
