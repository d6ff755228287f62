"""Impossible arguments: an error at once that names the argument, whatever the value is."""

import math

import pykka
import pytest
from drakkar.actors import (
    IN_MEMORY,
    ActorFuture,
    Change,
    ChangeType,
    ConfigError,
    DrakkarError,
    NodeHost,
    State,
    TransportError,
    TrioLoop,
)

from tests.actors.support import TICK, TIMEOUT_S, Ledger, commit, settled, until
from tests.ports import free_addresses

NO_TIMEOUT = [None, -1, -0.5, math.nan, math.inf, True, "3", [], b"3"]
"""What no request takes for a timeout."""
NO_WAIT = [math.nan, True, "3", [], b"3"]
"""What no wait of a thread takes."""
NO_NUMBER = [None, -1, math.nan, 1.5, True, "3", []]
NO_TEXT = [5, 1.5, True, [], b"x"]
NO_MAPPING = [5, 1.5, True, "x", [1], b"x"]


@pytest.fixture(scope="module")
def host():
    [address] = free_addresses(1)
    with NodeHost(address, IN_MEMORY, tick_interval=TICK) as host:
        yield host


@pytest.fixture(scope="module")
def replica(host):
    replica = host.start_replica(Ledger, shard_id=1, replica_id=1, members={1: host.address})
    commit(replica, b"1")
    return replica


def refused(call, argument):
    """Whether it is refused with an error that names the argument, which is raised, or set in a future at once."""

    def answer():
        outcome = call()
        return outcome.get(timeout=0) if isinstance(outcome, ActorFuture) else outcome

    with pytest.raises((ConfigError, TransportError)) as raised:
        answer()
    assert argument in str(raised.value).split(": ")[0]


REQUESTS = {
    "propose": (b"1",),
    "propose_many": ([b"1"],),
    "read": (None,),
    "stale_read": (None,),
    "fence": (),
    "session": (),
    "transfer_leadership": (1,),
    "add_replica": (2, "a:1"),
    "add_observer": (2, "a:1"),
    "add_witness": (2, "a:1"),
    "remove_replica": (7,),
    "change_membership": ([Change(ChangeType.REMOVE, 7)],),
    "snapshot": (),
    "query_log": (1, 2),
    "when_applied": (1,),
    "stop": (),
}


@pytest.mark.parametrize("timeout", NO_TIMEOUT, ids=repr)
@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_needs_a_deadline(name, timeout, replica):
    with pytest.raises(ConfigError, match=r"^timeout="):
        getattr(replica, name)(*REQUESTS[name], timeout=timeout)


@pytest.mark.parametrize("timeout", NO_TIMEOUT, ids=repr)
@pytest.mark.parametrize(("name", "given"), [("propose", (b"1",)), ("retry", ()), ("close", ())])
def test_a_request_of_a_session_needs_a_deadline(name, given, timeout, replica):
    session = replica.session().get(timeout=TIMEOUT_S)
    with pytest.raises(ConfigError, match=r"^timeout="):
        getattr(session, name)(*given, timeout=timeout)
    assert isinstance(session.propose(b"1").get(timeout=TIMEOUT_S), int)


def test_a_future_without_a_timeout_waits(replica):
    assert isinstance(replica.propose(b"1").get(timeout=None), int)
    assert isinstance(replica.propose(b"1").get(timeout=math.inf), int)


@pytest.mark.parametrize("timeout", NO_WAIT, ids=repr)
def test_a_wait_names_what_it_cannot_take(timeout, host):
    future = ActorFuture()
    for call in (
        lambda: future.get(timeout=timeout),
        lambda: future.map(str).get(timeout=timeout),
        lambda: host.loop.call(int, timeout=timeout),
        lambda: TrioLoop().stop(timeout=timeout),
    ):
        with pytest.raises(ConfigError, match=r"^timeout="):
            call()
    with pytest.raises(pykka.Timeout):
        future.get(timeout=-1)


@pytest.mark.parametrize("value", NO_NUMBER, ids=repr)
def test_numbers(value, host, replica):
    refused(lambda: replica.transfer_leadership(value), "target")
    refused(lambda: replica.when_applied(value), "index")
    refused(lambda: replica.query_log(value, 2), "first")
    refused(lambda: replica.query_log(1, value), "end")
    refused(lambda: replica.query_log(1, 2, max_bytes=value), "max_bytes")
    refused(lambda: replica.remove_replica(value), "replica_id")
    refused(lambda: replica.change_membership([], change_id=value), "change_id")
    refused(
        lambda: replica.change_membership([], transition=value), "transition"
    ) if value is not True else None
    refused(lambda: host.replica(value), "shard_id")
    refused(lambda: host.remove_data(value, 1), "shard_id")
    refused(lambda: host.remove_data(2, value), "replica_id")
    if value is not None:
        refused(lambda: replica.snapshot(compaction_overhead=value), "compaction_overhead")
        refused(lambda: host.metrics(value), "shard_id")
    for name in ("shard_id", "replica_id"):
        given = {"shard_id": 2, "replica_id": 1, "members": {1: host.address}, name: value}
        refused(lambda given=given: host.start_replica(Ledger, **given), name)


@pytest.mark.parametrize("value", [5, None, "x", b"x", [5], ["x"]], ids=repr)
def test_lists(value, host, replica):
    refused(lambda: replica.propose_many(value), "command")
    refused(lambda: replica.change_membership(value), "changes")
    refused(lambda: host.start_replicas(value), "specs")


@pytest.mark.parametrize("value", NO_MAPPING, ids=repr)
def test_mappings(value, host, replica):
    refused(lambda: replica.assign_groups(value), "groups")
    for name in ("members", "config", "groups"):
        given = {"members": {1: host.address}, name: value}
        refused(lambda given=given: host.start_replica(Ledger, shard_id=2, replica_id=1, **given), name)


@pytest.mark.parametrize("value", NO_TEXT, ids=repr)
def test_texts_and_paths(value, replica):
    refused(lambda: NodeHost(value, IN_MEMORY), "address")
    refused(lambda: NodeHost("127.0.0.1:7000", value), "data_dir")
    refused(lambda: NodeHost("127.0.0.1:0", IN_MEMORY, listen_address=value), "listen_address")
    refused(lambda: NodeHost("127.0.0.1:0", IN_MEMORY, deployment_id=value), "deployment_id")
    refused(lambda: replica.snapshot(export_to=value), "export_to")
    refused(lambda: replica.add_replica(2, value), "address")


def test_an_empty_path_is_no_data_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(lambda: NodeHost("127.0.0.1:7000", ""), "data_dir")
    assert not list(tmp_path.iterdir()), "an empty path would mean the current directory"


@pytest.mark.parametrize("value", [5, "x", {}], ids=repr)
def test_things(value):
    refused(lambda: NodeHost("127.0.0.1:0", IN_MEMORY, tls=value), "tls")
    refused(lambda: NodeHost("127.0.0.1:0", IN_MEMORY, transport_options=value), "transport_options")


def test_nothing_of_it_has_changed_the_shard(replica):
    assert set(replica.status().voters) == {1}
    assert not isinstance(commit(replica, b"1"), DrakkarError)


# -- No data directory


MEANS = "acknowledged writes are lost"


def warnings_of(caplog):
    return [record for record in caplog.records if MEANS in record.getMessage()]


def test_a_voter_in_memory_that_nobody_asked_for_is_one_warning(caplog):
    [address] = free_addresses(1)
    with NodeHost(address, tick_interval=TICK) as host:
        assert warnings_of(caplog) == []
        for shard in (4, 5):
            host.start_replica(Ledger, shard_id=shard, replica_id=1, members={1: address})
    [line] = warnings_of(caplog)
    assert line.levelname == "WARNING"
    assert line.getMessage().startswith(f"{address} replica 1 of shard 4: ")
    assert "data_dir=IN_MEMORY" in line.getMessage()


def test_an_observer_in_memory_is_none(caplog):
    with NodeHost("127.0.0.1:0", tick_interval=TICK) as host:
        host.start_replica(Ledger, shard_id=4, replica_id=9, join=True, role=State.OBSERVER)
        assert warnings_of(caplog) == []
        host.start_replica(Ledger, shard_id=5, replica_id=9, join=True, role=State.WITNESS)
        assert len(warnings_of(caplog)) == 1


def test_an_observer_in_memory_that_becomes_a_voter_is_one(caplog):
    one, two = free_addresses(2)
    with NodeHost(one, IN_MEMORY, tick_interval=TICK) as first, NodeHost(two, tick_interval=TICK) as second:
        leader = first.start_replica(Ledger, shard_id=4, replica_id=1, members={1: one})
        commit(leader, b"1")
        leader.add_observer(2, two).get(timeout=TIMEOUT_S)
        observer = second.start_replica(Ledger, shard_id=4, replica_id=2, join=True, role=State.OBSERVER)
        until(lambda: observer.status().applied >= 2)
        assert warnings_of(caplog) == []
        until(lambda: not isinstance(settled(leader.add_replica(2, two)), DrakkarError))
        [line] = until(lambda: warnings_of(caplog))
        assert line.getMessage().startswith(f"{two} replica 2 of shard 4: ")


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_an_explicit_choice_is_quiet(where, caplog, tmp_path):
    [address] = free_addresses(1)
    with NodeHost(address, IN_MEMORY if where == "memory" else tmp_path, tick_interval=TICK) as host:
        host.start_replica(Ledger, shard_id=4, replica_id=1, members={1: address})
    assert warnings_of(caplog) == []
    assert (repr(IN_MEMORY), host.store_status.poisoned) == ("IN_MEMORY", None)
