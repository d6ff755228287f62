"""A state machine that waits for its own shard is told so at once; one that waits for another shard gets its answer."""

import threading

import pytest
from drakkar.actors import (
    IN_MEMORY,
    ActorFuture,
    ConcurrentStateMachine,
    DeadlockError,
    NodeHost,
    OutcomeUnknown,
    Session,
    StateMachine,
)

from tests.actors.support import TICK, TIMEOUT_S, settled, until
from tests.ports import free_addresses


class Shard:
    """One replica, whose state machine calls what it is told to, where it is told to, and notes what comes of it."""

    def __init__(self, host, shard_id=1, *, base=StateMachine):
        self.host = host
        self.calls = {}
        """By method of the state machine: what it calls, with this shard."""
        self.outcomes = []
        self.noted = threading.Condition()
        shard = self

        class Calling(base):
            def apply(self, command):
                shard.call("apply" if command == b"call" else "")
                return command

            def query(self, query):
                shard.call("query" if query == "call" else "")
                return query

            def save(self, sink):
                shard.call("save")
                sink.write(b"x")

            def load(self, source):
                shard.call("load")

            def capture(self):
                shard.call("capture")
                return self.write

            def write(self, sink):
                shard.call("write")
                sink.write(b"x")

        if base is ConcurrentStateMachine:
            Calling.save = ConcurrentStateMachine.save
        self.kind = Calling
        self.replica = host.start_replica(
            Calling, shard_id=shard_id, replica_id=1, members={1: host.address}, config={"election_ticks": 10}
        )

    def call(self, where):
        call = self.calls.get(where)
        if call is None:
            return
        try:
            outcome = call(self)
        except Exception as error:  # noqa: BLE001  # it is what the test asks for
            outcome = error
        with self.noted:
            self.outcomes.append(outcome)
            self.noted.notify_all()

    def wait_for(self, count=1):
        with self.noted:
            assert self.noted.wait_for(lambda: len(self.outcomes) >= count, TIMEOUT_S)
        return self.outcomes


@pytest.fixture
def host():
    (address,) = free_addresses(1)
    with NodeHost(address, IN_MEMORY, tick_interval=TICK, workers=3) as host:
        yield host


ANSWERS = {
    "propose": lambda replica: replica.propose(b"a"),
    "propose_many": lambda replica: replica.propose_many([b"a", b"b"]),
    "read": lambda replica: replica.read(None),
    "stale_read": lambda replica: replica.stale_read(None),
    "session": lambda replica: replica.session(),
    "snapshot": lambda replica: replica.snapshot(),
    "when_applied": lambda replica: replica.when_applied(1 << 20),
}


@pytest.mark.parametrize("where", ["apply", "query"])
@pytest.mark.parametrize("ask", ANSWERS.values(), ids=ANSWERS)
def test_no_answer_of_ones_own_shard_is_waited_for(host, ask, where):
    shard = Shard(host)
    shard.calls[where] = lambda shard: ask(shard.replica).get(timeout=TIMEOUT_S)
    if where == "apply":
        assert settled(shard.replica.propose(b"call")) == b"call"
    else:
        assert settled(shard.replica.read("call")) == "call"
    (outcome,) = shard.outcomes
    assert type(outcome) is DeadlockError
    assert "which is set only after the state machine of shard 1 has ended" in str(outcome)


def test_nor_on_the_loop(host):
    class Inline(StateMachine):
        blocks = False

    shard = Shard(host, base=Inline)
    shard.calls["apply"] = lambda shard: shard.replica.propose(b"a").get(timeout=TIMEOUT_S)
    assert settled(shard.replica.propose(b"call")) == b"call"
    assert type(shard.outcomes[0]) is DeadlockError


@pytest.mark.parametrize("where", ["propose", "retry", "close"])
def test_nor_one_of_a_session(host, where):
    shard = Shard(host)
    session = settled(shard.replica.session())
    # As if its first command had no answer yet.
    opened = Session(shard.replica._endpoint, session.client, 1, b"a")
    calls = {
        "propose": lambda _: session.propose(b"a").get(timeout=TIMEOUT_S),
        "retry": lambda _: opened.retry().get(timeout=TIMEOUT_S),
        "close": lambda _: session.close().get(timeout=TIMEOUT_S),
    }
    shard.calls["apply"] = calls[where]
    settled(shard.replica.propose(b"call"))
    assert [type(outcome) for outcome in shard.outcomes] == [DeadlockError]


@pytest.mark.parametrize(
    ("base", "method"),
    [
        (StateMachine, "save"),
        (ConcurrentStateMachine, "capture"),
        (ConcurrentStateMachine, "write"),
    ],
)
def test_nor_while_a_snapshot_is_written(host, base, method):
    shard = Shard(host, base=base)
    settled(shard.replica.propose(b"a"))
    shard.calls[method] = lambda shard: shard.replica.when_applied(1 << 20).get(timeout=TIMEOUT_S)
    settled(shard.replica.snapshot())
    assert type(shard.wait_for()[0]) is DeadlockError


def test_nor_while_one_is_loaded(tmp_path):
    (address,) = free_addresses(1)
    for start in (1, 2):
        with NodeHost(address, tmp_path, tick_interval=TICK) as host:
            outcomes, replicas = [], ActorFuture()

            class Kept(StateMachine):
                def apply(self, command):
                    return command

                def save(self, sink):
                    sink.write(b"x")

                def load(self, source, outcomes=outcomes, replicas=replicas):
                    replica = replicas.get(timeout=TIMEOUT_S)
                    outcomes.append(settled(replica.read(None)))

            replica = host.start_replica(
                Kept, shard_id=1, replica_id=1, members={1: address}, config={"election_ticks": 10}
            )
            replicas.set(replica)
            assert settled(replica.propose(b"a")) == b"a"
            assert settled(replica.snapshot()) > 0
            assert list(map(type, outcomes)) == [DeadlockError] * (start - 1)


def test_a_state_machine_stops_neither_its_replica_nor_its_host(host):
    shard = Shard(host)
    for stop in (lambda shard: shard.replica.stop(), lambda shard: shard.host.stop()):
        shard.calls["apply"] = stop
        assert settled(shard.replica.propose(b"call")) == b"call"
    assert [type(outcome) for outcome in shard.outcomes] == [DeadlockError] * 2


def test_another_shard_of_the_host_is_waited_for(host):
    one, other = Shard(host, 1), Shard(host, 2)
    one.calls["apply"] = lambda _: other.replica.propose(b"from the first").get(timeout=TIMEOUT_S)
    other.calls["query"] = lambda _: one.replica.propose(b"from the second").get(timeout=TIMEOUT_S)
    assert settled(one.replica.propose(b"call")) == b"call"
    assert settled(other.replica.read("call")) == "call"
    assert one.outcomes == [b"from the first"]
    assert other.outcomes == [b"from the second"]


def test_shards_that_would_wait_for_each_other_are_told_so(host):
    one, other = Shard(host, 1), Shard(host, 2)
    both = threading.Barrier(2)

    def ask(shard):
        both.wait(TIMEOUT_S)
        return shard.replica.propose(b"a", timeout=TIMEOUT_S).get(timeout=TIMEOUT_S)

    one.calls["apply"], other.calls["apply"] = lambda _: ask(other), lambda _: ask(one)
    calls = [shard.replica.propose(b"call", timeout=TIMEOUT_S) for shard in (one, other)]
    assert [settled(call) for call in calls] == [b"call"] * 2
    outcomes = [*one.outcomes, *other.outcomes]
    assert sorted(map(str, map(type, outcomes))) == [str(bytes), str(DeadlockError)]


def test_the_last_worker_waits_for_no_other_shard(host):
    shards, target = [Shard(host, number) for number in (1, 2, 3)], Shard(host, 4)
    # The last of three workers would be left with nothing to do the work that all three wait for.
    all_there = threading.Barrier(3)

    def ask(_):
        all_there.wait(TIMEOUT_S)
        return target.replica.propose(b"a", timeout=TIMEOUT_S).get(timeout=TIMEOUT_S)

    for shard in (*shards, target):
        until(lambda shard=shard: shard.replica.status().leader_id)
        shard.calls["apply"] = ask
    target.calls.clear()
    calls = [shard.replica.propose(b"call", timeout=TIMEOUT_S) for shard in shards]
    assert [settled(call) for call in calls] == [b"call"] * 3
    outcomes = [outcome for shard in shards for outcome in shard.outcomes]
    assert sorted(map(str, map(type, outcomes))) == [str(bytes), str(bytes), str(DeadlockError)]
    (refused,) = (outcome for outcome in outcomes if isinstance(outcome, DeadlockError))
    assert "all 3 workers of the host would then wait" in str(refused)


def test_a_wait_that_is_not_caught_stops_the_replica_and_says_why(host):
    class Waiting(StateMachine):
        def apply(self, command):
            return holder[0].read(None).get(timeout=TIMEOUT_S)

    holder = []
    holder.append(
        host.start_replica(
            Waiting, shard_id=1, replica_id=1, members={1: host.address}, config={"election_ticks": 10}
        )
    )
    outcome = settled(holder[0].propose(b"a"))
    assert type(outcome) is OutcomeUnknown
    assert "apply failed at entry" in str(outcome)
    assert "would wait for shard 1" in str(outcome)
