"""What the log keeps of a replica's life: how its shard was founded, and what it may claim to remember."""

from functools import partial
from pathlib import Path

import cbor2
import pytest
from drakkar.actors.log.records import (
    Bootstrap,
    Kind,
    decode_bootstrap,
    decode_lives,
    encode_bootstrap,
    encode_lives,
)
from drakkar.actors.log.state import LogChanges
from drakkar.actors.log.store import AppendRequest
from drakkar.handlers.errors import CorruptData
from drakkar.handlers.raft.codec import encode_membership
from drakkar.handlers.raft.lives import Lives, Standing
from drakkar.handlers.raft.state import HardState, Snapshot

from tests.actors.log.support import MEMBERS, RECORD, Host, on_disk, run

NEWBORN = Lives(b"f" * 16, Standing.NEWBORN)
FOUNDER = Lives(b"f" * 16, Standing.FOUNDER, {1: 1 << 62, 3: 7})


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(lambda: on_disk(tmp_path))


def begin(host: Host, lives: Lives) -> None:
    host.ask(lambda done: host.store.begin(1, 1, RECORD, None, done, lives))


@pytest.mark.parametrize("lives", [Lives(), NEWBORN, FOUNDER], ids=str)
def test_a_life_is_read_as_it_was_written(lives: Lives) -> None:
    assert decode_lives(encode_lives(lives)) == lives


@pytest.mark.parametrize(
    "row", [[b"", 9, []], [b"", 0, [[1]]], [b"", 0, [[1, -1]]], [b"", 0], ["", 0, []], 7], ids=repr
)
def test_a_damaged_life_is_told_as_such(row: object) -> None:
    with pytest.raises(CorruptData, match="record of a life"):
        decode_lives(cbor2.dumps(row))


def test_the_generation_is_written_only_where_there_was_an_import() -> None:
    """A version before reads what it would have written itself."""
    plain = encode_bootstrap(RECORD)
    assert cbor2.loads(plain) == [encode_membership(RECORD.membership), False, "Counter"]
    assert decode_bootstrap(plain) == RECORD
    imported = Bootstrap(RECORD.membership, state_machine="Counter", generation=3)
    assert decode_bootstrap(encode_bootstrap(imported)) == imported


def test_what_a_replica_begins_with_is_durable(host: Host) -> None:
    begin(host, NEWBORN)
    assert host.log().lives == NEWBORN
    host.restart()
    assert host.log().lives == NEWBORN


def test_it_changes_together_with_the_log_or_alone(host: Host) -> None:
    begin(host, NEWBORN)
    request = partial(AppendRequest, 1, 1, HardState(2, 1, 0), [run(1, 2)], lives=FOUNDER)
    assert host.outcome(lambda done: host.store.save(request(done=done))) is None
    assert host.save(run(3, 1)) is None, "a request without one leaves it as it is"
    for _ in range(2):
        log = host.log()
        assert (log.lives, log.last_index, log.hard_state.term) == (FOUNDER, 3, 2)
        host.restart()
    host.ask(lambda done: host.store.live(1, 1, NEWBORN, done))
    host.restart()
    assert host.log().lives == NEWBORN


def test_a_directory_of_the_version_before_says_nothing_of_it(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LogChanges._store
    with monkeypatch.context() as patch:
        patch.setattr(
            LogChanges, "_store", lambda self, kind: None if kind is Kind.LIVES else store(self, kind)
        )
        begin(host, NEWBORN)
    host.restart()
    assert host.log().lives == Lives()
    host.ask(lambda done: host.store.live(1, 1, NEWBORN, done))
    host.restart()
    assert host.log().lives == NEWBORN


def test_it_outlives_the_segment_in_which_it_was_written(host: Host) -> None:
    begin(host, FOUNDER)
    host.log()  # only what is open is compacted
    for index in range(1, 400):
        assert host.save(run(index, 1, size=400)) is None
        if index % 50 == 0:
            host.compact(index - 1)
    assert host.store.status.segments < 5, "most are gone"
    host.restart()
    assert host.log().lives == FOUNDER


def test_an_import_forgets_it(host: Host) -> None:
    begin(host, FOUNDER)
    record = Bootstrap(MEMBERS, state_machine="Counter", generation=1)
    host.import_(record, Snapshot(50, 4, MEMBERS, b"file"), HardState(6, 0, 50))
    for _ in range(2):
        assert (host.log().lives, host.log().bootstrap) == (Lives(), record)
        host.restart()
