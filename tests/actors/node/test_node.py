"""One node by itself, between a host, a store and peers that a test plays: what it does when one of them fails."""

import logging
import threading
from collections import Counter
from contextlib import suppress
from types import SimpleNamespace
from typing import get_args

import pykka
import pytest
from drakkar.actors.host.replica import Replica
from drakkar.actors.machine.state_machine import StateMachine
from drakkar.actors.node import completions
from drakkar.actors.node.actor import LOCAL_HANDLERS, NodeActor
from drakkar.actors.node.clients import REQUEST_HANDLERS
from drakkar.actors.node.completions import EntriesApplied
from drakkar.actors.node.events import LeaderChanged, MembershipChanged, ReplicaRemoved
from drakkar.actors.node.inbox import ProposalsTaken, RequestsTaken
from drakkar.actors.node.reads import ReadRequests
from drakkar.actors.node.requests import ClientRequest, ReadRequest
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.actors.runtime.monitor import watch
from drakkar.actors.runtime.workers import WorkerPool
from drakkar.actors.snapshots.store import MemorySnapshots
from drakkar.handlers.errors import (
    ActorFailed,
    ConfigError,
    DrakkarError,
    MembershipRejected,
    NotLeader,
    OutcomeUnknown,
    ProtocolViolation,
    ReplicaStopped,
    RequestDropped,
    StorageFailed,
    SystemBusy,
    TransferInProgress,
    TransportError,
)
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.confchange import Change, ChangeType, ConfigChange
from drakkar.handlers.raft.config import RaftConfig
from drakkar.handlers.raft.entries import Entries, EntryKind, Run
from drakkar.handlers.raft.matrix import raft_handlers
from drakkar.handlers.raft.memory_log import MemoryLog
from drakkar.handlers.raft.ready import ReadReady
from drakkar.handlers.raft.state import Membership, Snapshot, State
from pykka.messages import ProxyGetAttr

from tests.actors.support import (
    TIMEOUT_S,
    Failing,
    Gated,
    InlineFailing,
    InlineLedger,
    Ledger,
    settled,
    until,
)

M = MessageType
T = 10
ORIGIN = 1234567
CHANGE = bytes([EntryKind.CONFIG_CHANGE])
ALONE = {1: "one:1"}
THREE = {1: "one:1", 2: "two:2", 3: "three:3"}


class Services:
    """The host, as the node sees it: what is sent is kept, what is saved is durable when the test says so."""

    def __init__(self):
        self.sent = []
        self.saves = []
        self.events = []
        self.full = False
        self.hangs = False
        self.failure = None
        self.recorded, self.compacted, self.streamed = [], [], []

    def send(self, address, messages):
        self.sent += [(address, message) for message in messages]

    def save(self, save):
        if self.full:
            raise SystemBusy("the store is full")
        self.saves.append(save)
        if not self.hangs:
            self._finish(save, self.failure)

    def record_snapshot(self, shard, replica, snapshot, done=None):
        self.recorded.append(snapshot)
        done(None)

    def compact(self, shard, replica, index):
        self.compacted.append(index)

    def send_snapshot(self, address, message, *, temporary):
        self.streamed.append((address, message, temporary))

    def announce(self, event):
        self.events.append(event)

    def write_on(self):
        """The disk wakes up, and finishes what it was asked for."""
        self.hangs = False
        for save in list(self.saves):
            self._finish(save, None)

    def _finish(self, save, error):
        """A write is done once."""
        done, save.done = save.done, lambda _: None
        done(error)

    def messages(self, type_):
        return [message for _, message in self.sent if message.type is type_]


class Node:
    """A node under test, with the host's and the client's handle on it."""

    def __init__(self, loop, pool, machine, members, max_reads, handlers, role, config):
        self.loop = loop
        self.services = Services()
        voters = {} if role else members
        self.actor = NodeActor.start_actor(
            RaftConfig(
                replica_id=1,
                election_ticks=T,
                min_election_ticks=T,
                max_election_ticks=T + 1,
                is_observer=role is State.OBSERVER,
                is_witness=role is State.WITNESS,
                **config,
            ),
            MemoryLog(membership=Membership(voters=voters)),
            machine,
            services=self.services,
            pool=pool,
            background=pool,
            snapshots=MemorySnapshots().of(1, 1),
            origin=ORIGIN,
            max_waiting_commands=100,
            max_waiting_bytes=1 << 20,
            max_waiting_reads=max_reads,
            handlers=handlers,
            loop=loop,
        )
        self.ref = self.actor.actor_ref
        self.replica = Replica(self.ref, self.actor, max_command_bytes=1 << 20)
        self.died = ActorFuture()
        watch(self.ref, self.died.set)

    def settle(self):
        """Let it finish what it was told so far."""
        with suppress(pykka.ActorDeadError):
            self.ref.ask(ProxyGetAttr(["actor_urn"]), timeout=TIMEOUT_S)
        self.loop.call(lambda: None, timeout=TIMEOUT_S)

    def tell(self, type_, **fields):
        with suppress(pykka.ActorDeadError):
            self.ref.tell(Message(type_, **fields))
        self.settle()

    def tick(self, count=1):
        for _ in range(count):
            self.tell(M.LOCAL_TICK)

    def lead(self):
        """Let it campaign and be elected, by itself or by the others."""
        self.tick(T)
        term = self.replica.status().term + 1
        for sender in set(THREE) & set(self.replica.status().voters) - {1}:
            self.tell(M.REQUEST_PRE_VOTE_RESP, sender=sender, term=term)
            self.tell(M.REQUEST_VOTE_RESP, sender=sender, term=term)
        assert self.replica.status().state is State.LEADER
        return self

    def acknowledge(self, *senders):
        """Let followers hold all that the leader has."""
        status = self.replica.status()
        for sender in senders:
            self.tell(M.REPLICATE_RESP, sender=sender, term=status.term, log_index=status.last_index)

    def follow(self, leader=2, term=5):
        """Let it hear of a leader."""
        self.tell(M.HEARTBEAT, sender=leader, term=term)
        assert self.replica.status().leader_id == leader
        return self

    def reason(self):
        return self.died.get(timeout=TIMEOUT_S).reason


@pytest.fixture
def loop():
    with TrioLoop() as loop:
        yield loop


@pytest.fixture
def pool():
    pool = WorkerPool(2)
    yield pool
    pool.stop()


@pytest.fixture
def node(loop, pool):
    """Make a node: `node(machine, members=…, option=…)`."""

    def make(machine=None, *, members=ALONE, max_reads=100, handlers=None, role=None, **config):
        return Node(loop, pool, machine or InlineLedger(), members, max_reads, handlers, role, config)

    return make


# -- Proposals


def test_a_proposal_is_answered_once_it_is_durable_and_applied(node):
    one = node().lead()
    assert settled(one.replica.propose(b"a")) == 1
    assert settled(one.replica.propose_many([b"b", b"c"])) == [2, 3]
    assert settled(one.replica.propose_many([])) == []
    assert settled(one.replica.read(None)) == [b"a", b"b", b"c"]


def test_a_proposal_is_not_answered_before_it_is_durable(node):
    one = node().lead()
    one.services.hangs = True
    future = one.replica.propose(b"a")
    one.tick()
    assert not future.done
    one.services.write_on()
    assert settled(future) == 1


@pytest.mark.parametrize(
    ("command", "error", "text"),
    [
        pytest.param("text", ConfigError, "command='str': a command is bytes", id="a text"),
        pytest.param(bytearray(b"x"), ConfigError, "command='bytearray'", id="bytes that may change yet"),
        pytest.param(None, ConfigError, "command='NoneType'", id="nothing"),
        pytest.param(
            bytes((1 << 20) + 1), RequestDropped, "1048577 bytes is larger than 1048576", id="too large"
        ),
    ],
)
def test_a_command_that_is_none_is_refused_before_it_reaches_the_log(node, command, error, text):
    one = node().lead()
    for future in (one.replica.propose(command), one.replica.propose_many([b"fine", command])):
        outcome = settled(future)
        assert type(outcome) is error
        assert text in str(outcome)
    assert settled(one.replica.read(None)) == []


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_timeout_that_is_none_is_refused(node, timeout):
    one = node().lead()
    for call in (
        lambda: one.replica.propose(b"a", timeout=timeout),
        lambda: one.replica.propose_many([b"a"], timeout=timeout),
        lambda: one.replica.read(None, timeout=timeout),
        lambda: one.replica.stale_read(None, timeout=timeout),
        lambda: one.replica.transfer_leadership(1, timeout=timeout),
        lambda: one.replica.remove_replica(1, timeout=timeout),
    ):
        with pytest.raises(ConfigError, match=r"timeout=.*seconds"):
            call()


@pytest.mark.parametrize(
    "ask", [lambda r: r.propose(b"a", timeout=0.01), lambda r: r.read(None, timeout=0.01)]
)
def test_without_a_leader_a_request_waits_for_one_until_its_deadline(node, ask):
    one = node(members=THREE)
    future = ask(one.replica)
    one.settle()
    assert not future.done

    def expired():
        one.tick()
        return future.done

    until(expired)
    outcome = settled(future)
    assert type(outcome) is NotLeader
    assert outcome.outcome_known
    assert "no leader was known" in str(outcome)


def test_what_waited_for_a_leader_goes_to_it_once_it_is_known(node):
    one = node(members=THREE)
    waiting = one.replica.propose(b"a")
    reading = one.replica.read(None)
    one.settle()
    assert not one.services.sent
    one.follow(leader=2, term=5)
    one.settle()
    assert {M.PROPOSE, M.READ_INDEX} <= {message.type for _, message in one.services.sent}
    assert not waiting.done
    assert not reading.done


def test_a_follower_sends_proposals_on_and_applies_what_comes_back(node):
    one = node(members=THREE).follow(leader=2, term=5)
    many = one.replica.propose_many([b"a", b"b"])
    one.settle()
    (address, forwarded) = next(each for each in one.services.sent if each[1].type is M.PROPOSE)
    assert (address, forwarded.to) == ("two:2", 2)
    (run,) = forwarded.entries.runs
    assert not many.done
    placed = Entries([run.placed(1, 5)])
    one.tell(M.REPLICATE, sender=2, term=5, entries=placed, commit=2)
    assert settled(many) == [1, 2]


def test_what_went_to_a_leader_that_was_replaced_is_given_up_when_the_next_ones_entries_are_applied(node):
    one = node(members=THREE).follow(leader=2, term=5)
    kept, lost = one.replica.propose(b"kept"), None
    one.settle()
    lost = one.replica.propose(b"lost")
    change = one.replica.remove_replica(2)
    one.settle()
    runs = [message.entries.runs[0] for message in one.services.messages(M.PROPOSE)]
    assert [each for run in runs for each in run.payloads][:2] == [b"kept", b"lost"]
    changes = next(run for run in runs if run.kinds)
    at = changes.kinds.index(EntryKind.CONFIG_CHANGE)
    logged = [
        runs[0].slice(0, 1).placed(1, 5),
        Run(2, 5, [changes.payloads[at]], CHANGE, ORIGIN, changes.key + at),
        Run(3, 6, [b""], bytes([EntryKind.NO_OP])),
    ]
    one.tell(M.REPLICATE, sender=3, term=6, entries=Entries(logged), commit=3)
    one.settle()
    assert settled(kept) == 1
    assert type(settled(lost)) is OutcomeUnknown
    assert "was replaced" in str(lost.outcome()[1])
    assert settled(change).voters == {1, 3}


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        ("NO_LEADER", NotLeader),
        ("CAMPAIGNING", NotLeader),
        ("TRANSFERRING", TransferInProgress),
        ("TOO_MANY_UNCOMMITTED", SystemBusy),
        ("NOT_A_MEMBER", RequestDropped),
        ("of a later version", NotLeader),
    ],
)
def test_what_the_leader_refuses_is_told_to_the_client_that_proposed_it_at_a_follower(node, reason, error):
    one = node(members=THREE).follow(leader=2, term=5)
    refused, other = one.replica.propose_many([b"a", b"b"]), None
    one.settle()
    other = one.replica.propose(b"c")
    one.settle()
    (run,) = one.services.messages(M.PROPOSE)[0].entries.runs
    one.tell(
        M.PROPOSE_REFUSED,
        sender=2,
        hint=run.origin,
        hint_high=run.key,
        log_index=len(run),
        payload=reason,
    )
    assert type(settled(refused)) is error
    assert not other.done


def test_a_refused_membership_change_tells_why(node):
    one = node(members=THREE).lead()
    one.acknowledge(2, 3)
    first = one.replica.remove_replica(3)
    second = one.replica.remove_replica(2)
    outcome = settled(second)
    assert type(outcome) is MembershipRejected
    assert "not yet applied" in str(outcome)
    one.acknowledge(2)
    assert settled(first).voters == {1, 2}


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (Change(ChangeType.ADD_VOTER, 0, "four:4"), ConfigError, "replica_id=0"),
        (Change(ChangeType.ADD_VOTER, "4", "four:4"), ConfigError, "replica_id='4'"),
        (Change(ChangeType.ADD_VOTER, 4, "nowhere"), TransportError, "'nowhere'"),
        (Change(ChangeType.ADD_OBSERVER, 4, None), ConfigError, "address=None"),
        (Change(ChangeType.ADD_WITNESS, 4), ConfigError, "name the host of the new replica 4"),
        (Change(ChangeType.REMOVE, 0), ConfigError, "replica_id=0"),
    ],
)
def test_a_membership_change_that_is_none_never_reaches_the_log(node, change, error, text):
    one = node().lead()
    last = one.replica.status().last_index
    outcome = settled(one.replica.change_membership([change]))
    assert type(outcome) is error
    assert text in str(outcome)
    one.settle()
    assert one.replica.status().last_index == last


def test_the_outcome_of_a_proposal_without_an_answer_is_unknown_at_its_deadline(node):
    one = node(members=THREE).lead()
    short, long_ = one.replica.propose(b"a", timeout=0.0001), one.replica.propose(b"b", timeout=60)
    one.settle()
    assert isinstance(settled(one.replica.propose(b"c", timeout=0)), RequestDropped)

    def expired():
        one.tick()
        return short.done

    until(expired)
    # What came too late to be taken was not logged; what was logged may still be committed.
    assert isinstance(settled(short), OutcomeUnknown | RequestDropped)
    assert not long_.done
    one.acknowledge(2)
    assert settled(long_) in {1, 2}


def test_a_leader_that_lost_its_followers_leaves_the_outcome_unknown_and_not_refused(node):
    one = node(members=THREE).lead()
    future = one.replica.propose(b"a", timeout=0.05)
    one.settle()
    assert one.replica.status().last_index == 2, "it is in the log"

    def expired():
        one.tick()
        return future.done

    until(expired)
    outcome = settled(future)
    assert type(outcome) is OutcomeUnknown
    assert not outcome.outcome_known


def test_a_full_queue_refuses_at_once(node):
    entered, leave = threading.Event(), threading.Event()
    one = node().lead()
    one.loop.run_soon(lambda: (entered.set(), leave.wait(TIMEOUT_S)))
    assert entered.wait(TIMEOUT_S)
    waiting = one.replica.propose_many([b"x"] * 100)
    outcome = settled(one.replica.propose(b"y"))
    leave.set()
    assert type(outcome) is SystemBusy
    assert "100 commands" in str(outcome)
    assert len(settled(waiting)) == 100


def test_too_many_commands_on_their_way_are_refused(node, monkeypatch):
    monkeypatch.setattr("drakkar.actors.node.refusals.MAX_PENDING", 3)
    one = node(members=THREE).lead()
    futures = [one.replica.propose_many([b"x"] * 3)]
    one.settle()
    outcome = settled(one.replica.propose(b"y"))
    assert type(outcome) is SystemBusy
    assert "3 commands are on their way" in str(outcome)
    one.acknowledge(2)
    assert settled(futures[0]) == [1, 2, 3]
    assert one.replica.status().pending_proposals == 0


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        pytest.param(lambda r: r.propose(b"a"), RequestDropped, id="a proposal"),
        pytest.param(lambda r: r.read(None), RequestDropped, id="a read"),
        pytest.param(lambda r: r.stale_read(None), RequestDropped, id="a stale read"),
        pytest.param(lambda r: r.transfer_leadership(2), NotLeader, id="a transfer"),
        pytest.param(lambda r: r.snapshot(), RequestDropped, id="a snapshot"),
    ],
)
def test_a_witness_refuses_what_its_column_of_the_table_has_no_handler_for(node, ask, error):
    one = node(role=State.WITNESS)
    outcome = settled(ask(one.replica))
    assert type(outcome) is error
    assert "replica 1 of shard 1 is a witness: " in str(outcome)
    assert "ask another replica" in str(outcome)


def test_an_observer_refuses_a_transfer_with_the_reason_of_its_cell(node):
    one = node(role=State.OBSERVER)
    one.loop.call(one.actor.router.learn, 2, "two:2")
    one.follow(leader=2)
    outcome = settled(one.replica.transfer_leadership(2))
    assert type(outcome) is NotLeader
    assert outcome.leader == 2, "so a client knows whom to ask"
    assert "is an observer: only a voter transfers the leadership; ask another replica" in str(outcome)
    assert one.actor.tally.ignored == {}, "it was not even asked"


def test_a_cell_of_ones_own_decides_what_a_replica_takes(node):
    table = raft_handlers()
    table.ignore(M.READ_INDEX, State.LEADER, because="this shard is only written", replace=True)
    one = node(handlers=table).lead()
    outcome = settled(one.replica.read(None))
    assert type(outcome) is RequestDropped
    assert "is a leader: this shard is only written; ask another replica" in str(outcome)
    assert settled(one.replica.propose(b"a")) == 1


# -- Reads


def read_rounds(one):
    """The names of the rounds that it asked its leader for."""
    return [(message.hint, message.hint_high) for message in one.services.messages(M.READ_INDEX)]


def test_reads_of_one_moment_share_a_round_and_see_what_was_committed_before(node):
    one = node(members=THREE).follow(term=5)
    reads = [one.replica.read(None) for _ in range(5)]
    one.settle()
    answered = 0
    # Reads that came late, while others were under way, share a round of their own.
    while answered < len(rounds := read_rounds(one)):
        hint, hint_high = rounds[answered]
        one.tell(M.READ_INDEX_RESP, sender=2, term=5, log_index=1, hint=hint, hint_high=hint_high)
        answered += 1
    assert answered <= 5
    assert not any(read.done for read in reads), "entry 1 is not applied yet"
    one.tell(M.REPLICATE, sender=2, term=5, entries=Entries([Run(1, 5, [b"a"])]), commit=1)
    assert [settled(read) for read in reads] == [[b"a"]] * 5
    assert one.replica.status().pending_reads == 0


def test_a_read_whose_round_is_lost_is_asked_again_under_a_new_name(node):
    one = node(members=THREE).follow(term=5)
    read = one.replica.read(None)
    one.settle()
    (lost,) = read_rounds(one)
    for _ in range(T + 1):
        one.tick()
        one.tell(M.HEARTBEAT, sender=2, term=5)
    (_, again) = read_rounds(one)
    assert again != lost
    one.tell(M.READ_INDEX_RESP, sender=2, term=5, hint=lost[0], hint_high=lost[1])
    assert not read.done, "the late answer to the first round says nothing of now"
    one.tell(M.READ_INDEX_RESP, sender=2, term=5, hint=again[0], hint_high=again[1])
    assert settled(read) == []


def test_a_read_without_an_answer_fails_by_its_deadline(node):
    one = node(members=THREE).follow(term=5)
    read = one.replica.read(None, timeout=0.01)

    def expired():
        one.tick()
        return read.done

    until(expired)
    assert isinstance(settled(read), RequestDropped)
    assert one.replica.status().pending_reads == 0


@pytest.mark.parametrize("kind", ["read", "stale_read"])
def test_a_read_fails_by_its_deadline_though_the_state_machine_hangs(node, kind):
    machine = Gated(query_waits=True)
    one = node(machine).lead()
    held, waiting = (getattr(one.replica, kind)(None, timeout=0.2) for _ in range(2))
    try:
        assert machine.arrived.wait(TIMEOUT_S)

        def expired():
            one.tick()
            return held.done and waiting.done

        until(expired)
        for read in (held, waiting):
            assert isinstance(settled(read), RequestDropped)
    finally:
        machine.gate.set()


@pytest.mark.parametrize("kind", ["read", "stale_read"])
def test_only_so_many_reads_wait_behind_a_slow_state_machine(node, kind):
    machine = Gated(query_waits=True)
    one = node(machine, max_reads=3).lead()
    reads = []
    try:
        for _ in range(3):
            reads.append(getattr(one.replica, kind)(None))
            one.settle()
        assert machine.arrived.wait(TIMEOUT_S)
        outcome = settled(getattr(one.replica, kind)(None))
        assert type(outcome) is SystemBusy
        assert "3 reads wait" in str(outcome)
    finally:
        machine.gate.set()
    assert [settled(read) for read in reads] == [[], [], []]
    # Those that are answered make room.
    assert until(lambda: settled(getattr(one.replica, kind)(None)) == [])


def test_the_queue_of_reads_is_bounded_before_the_loop_takes_them(node):
    entered, leave = threading.Event(), threading.Event()
    one = node(max_reads=2).lead()
    one.loop.run_soon(lambda: (entered.set(), leave.wait(TIMEOUT_S)))
    assert entered.wait(TIMEOUT_S)
    reads = [one.replica.read(None) for _ in range(3)]
    assert type(settled(reads[2])) is SystemBusy
    leave.set()
    assert [settled(read) for read in reads[:2]] == [[], []]


@pytest.mark.parametrize("make", [Failing, InlineFailing])
@pytest.mark.parametrize("error", [ZeroDivisionError("wrong question"), SystemExit(3)])
def test_an_exception_in_query_goes_to_the_asker_alone(node, make, error):
    one = node(make("query", error)).lead()
    for future in (one.replica.read(None), one.replica.stale_read(None)):
        outcome = settled(future)
        if isinstance(error, Exception):
            assert outcome is error
        else:
            assert type(outcome) is ActorFailed
            assert outcome.__cause__ is error
    assert settled(one.replica.propose(b"a")) == 1


def test_rounds_on_their_way_are_few_and_what_comes_meanwhile_shares_the_next():
    asked = []
    reads = ReadRequests(ORIGIN, timeout_ticks=10, ask=lambda *name: asked.append(name))
    for _ in range(10):
        reads.add(ReadRequest(None, ActorFuture(), 99.0))
        reads.start(0)
    assert len(asked) == 4
    reads.confirmed(ReadReady(7, asked[0]))
    reads.start(0)
    assert len(asked) == 5
    assert (len(reads.due(6)), len(reads.due(7))) == (0, 1)
    reads.confirmed(ReadReady(7, (asked[4][0], 1)))
    assert reads.due(7) == [], "a round of another replica"
    reads.confirmed(ReadReady(7, asked[4]))
    assert len(reads.due(7)) == 6
    assert len(reads) == 3


# -- Transfers


def test_a_transfer_is_done_when_the_target_is_seen_to_lead(node):
    one = node(members=THREE).lead()
    one.acknowledge(2, 3)
    future = one.replica.transfer_leadership(2)
    one.settle()
    assert [message.to for message in one.services.messages(M.TIMEOUT_NOW)] == [2]
    assert type(settled(one.replica.propose(b"a"))) is TransferInProgress
    assert not future.done
    one.tell(M.HEARTBEAT, sender=2, term=2)
    assert settled(future) == 2


def test_a_transfer_that_is_not_seen_by_its_deadline_has_an_unknown_outcome(node):
    one = node(members=THREE).lead()
    future = one.replica.transfer_leadership(2, timeout=0.01)

    def expired():
        one.tick()
        return future.done

    until(expired)
    assert type(settled(future)) is OutcomeUnknown


@pytest.mark.parametrize(
    ("target", "error"), [(9, RequestDropped), (0, ConfigError), ("2", ConfigError), (True, ConfigError)]
)
def test_a_transfer_to_a_replica_that_is_none_is_refused(node, target, error):
    one = node(members=THREE).lead()
    assert type(settled(one.replica.transfer_leadership(target))) is error


def test_a_transfer_that_takes_too_long_fails_long_before_its_deadline(node):
    one = node(members=THREE).lead()
    one.acknowledge(3)
    future = one.replica.transfer_leadership(2, timeout=1000.0)
    one.settle()
    one.tick(T - 1)
    assert not future.done
    one.tell(M.HEARTBEAT_RESP, sender=3, term=1)
    one.tick()
    outcome = settled(future)
    assert type(outcome) is OutcomeUnknown
    assert "did not take over within an election timeout; it may still be elected" in str(outcome)
    assert one.replica.status().state is State.LEADER


def test_a_transfer_that_another_one_replaces_fails_at_once(node):
    one = node(members=THREE).lead()
    replaced = one.replica.transfer_leadership(2, timeout=1000.0)
    one.settle()
    called_off = one.replica.transfer_leadership(3, timeout=1000.0)
    one.settle()
    assert "a transfer to another target took its place" in str(settled(replaced))
    assert settled(one.replica.transfer_leadership(1)) == 1
    assert "the transfer was called off" in str(settled(called_off))


def test_a_transfer_that_the_leader_elsewhere_refuses_fails_at_once(node):
    one = node(members=THREE).follow(leader=2)
    future, other = (one.replica.transfer_leadership(target, timeout=1000.0) for target in (9, 3))
    one.settle()
    assert [message.hint for message in one.services.messages(M.LEADER_TRANSFER)] == [9, 3]
    one.tell(M.TRANSFER_REFUSED, sender=2, hint_high=9, log_index=1, payload="BAD_TARGET")
    outcome = settled(future)
    assert type(outcome) is RequestDropped
    assert "no voter" in str(outcome)
    assert not other.done


@pytest.mark.parametrize("leads", [True, False])
def test_a_transfer_fails_when_another_replica_is_elected(node, leads):
    one = node(members=THREE)
    if leads:
        one.lead()
        one.acknowledge(2, 3)
    else:
        one.follow(leader=3, term=1)
    future = one.replica.transfer_leadership(2, timeout=1000.0)
    one.settle()
    one.tell(M.NO_OP, sender=2, term=2)
    assert not future.done, "2 may still win this term"
    one.tell(M.HEARTBEAT, sender=3, term=2)
    assert "replica 3 was elected instead" in str(settled(future))


def test_a_transfer_to_the_present_leader_is_done(node):
    one = node().lead()
    assert settled(one.replica.transfer_leadership(1)) == 1


def test_a_transfer_is_refused_without_a_leader_and_during_an_election(node):
    one = node(members=THREE)
    assert type(settled(one.replica.transfer_leadership(2))) is NotLeader
    one.tick(T)
    assert one.replica.status().state is State.PRE_CANDIDATE
    outcome = settled(one.replica.transfer_leadership(2))
    assert type(outcome) is NotLeader
    assert "election" in str(outcome)


# -- Its end


def fail_apply(one):
    return one.replica.propose(b"fail")


def lose_the_disk(one):
    one.services.failure = StorageFailed("the disk is broken")
    one.tell(M.HEARTBEAT, sender=2, term=99)  # whose term has to be remembered


def break_an_invariant(one):
    one.tell(M.HEARTBEAT, sender=2, term=99, commit=1000)


ENDS = [
    pytest.param(Failing("apply", ZeroDivisionError("a bug")), fail_apply, ActorFailed, id="apply fails"),
    pytest.param(Failing("apply", SystemExit(3)), fail_apply, ActorFailed, id="apply exits"),
    pytest.param(
        InlineFailing("apply", ZeroDivisionError("a bug")), fail_apply, ActorFailed, id="apply fails inline"
    ),
    pytest.param(InlineFailing("apply", SystemExit(3)), fail_apply, ActorFailed, id="apply exits inline"),
    pytest.param(InlineLedger(), lose_the_disk, ActorFailed, id="the disk fails"),
    pytest.param(InlineLedger(), break_an_invariant, ProtocolViolation, id="an invariant breaks"),
    pytest.param(InlineLedger(), lambda one: one.ref.stop(block=False), type(None), id="it is stopped"),
]


@pytest.mark.parametrize(("machine", "end", "reason"), ENDS)
def test_when_a_node_ends_its_futures_do_and_later_ones_fail_at_once(node, machine, end, reason):
    one = node(machine, members={1: "one:1", 2: "two:2"}).lead()
    one.acknowledge(2)
    # None of these can be answered: the other replica is silent from now on.
    on_their_way = [one.replica.propose(b"a"), one.replica.propose_many([b"b"])]
    reads = [one.replica.read(None)]
    transfer = one.replica.transfer_leadership(2)
    wait = one.replica.when_applied(1 << 40)
    one.settle()
    if end is fail_apply:
        one.tell(M.HEARTBEAT_RESP, sender=2, term=1)
        one.tell(M.LEADER_TRANSFER, hint=1)
        end(one)
        one.settle()
        one.acknowledge(2)
    else:
        end(one)
    assert isinstance(one.reason(), reason)
    for future in on_their_way:
        outcome = settled(future)
        assert type(outcome) is OutcomeUnknown or not isinstance(outcome, Exception), outcome
    assert all(isinstance(settled(read), ReplicaStopped | NotLeader) for read in reads)
    assert isinstance(settled(transfer), ReplicaStopped | RequestDropped) or settled(transfer) == 2
    assert type(settled(wait)) is ReplicaStopped
    for late in (
        one.replica.propose(b"late"),
        one.replica.propose_many([b"late"]),
        one.replica.read(None),
        one.replica.stale_read(None),
        one.replica.transfer_leadership(2),
        one.replica.remove_replica(2),
        one.replica.snapshot(),
        one.replica.snapshot(export_to="/nowhere/at/all"),
        one.replica.when_applied(1),
        one.replica.query_log(1, 2),
        one.replica.forget_leader(),
        one.replica.assign_groups({1: 1}),
        one.replica.groups_consistent(),
    ):
        assert type(settled(late)) is ReplicaStopped
    assert one.replica.status().replica_id == 1, "what it was can still be seen"


class Holding(InlineLedger):
    """On the loop, but for its snapshots, which wait at a gate."""

    def __init__(self):
        super().__init__()
        self.saving, self.gate = threading.Event(), threading.Event()

    def save(self, sink):
        self.saving.set()
        assert self.gate.wait(TIMEOUT_S)
        sink.write(b"all")


def fill_the_store(one):
    """From now on nothing is handed out, so that all that the core is asked waits."""
    one.services.full = True
    one.replica.propose(b"stalled", timeout=60)
    one.settle()


@pytest.mark.parametrize(
    "end",
    [pytest.param(lambda one: one.ref.stop(), id="a stop"), pytest.param(break_an_invariant, id="a bug")],
)
def test_what_operators_wait_for_ends_with_the_node(node, tmp_path, end):
    machine = Holding()
    one = node(machine).lead()
    settled(one.replica.propose(b"a"))
    exports = [one.replica.snapshot(export_to=tmp_path / name) for name in ("one", "two")]
    assert machine.saving.wait(TIMEOUT_S)
    fill_the_store(one)
    waiting = [
        *exports,
        one.replica.snapshot(),
        *(one.replica.query_log(1, 2) for _ in range(2)),
        one.replica.when_applied(1 << 40),
    ]
    one.settle()
    assert not any(future.done for future in waiting)
    end(one)
    assert [type(settled(future)) for future in waiting] == [ReplicaStopped] * len(waiting)
    machine.gate.set()


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        pytest.param(lambda r: r.transfer_leadership(2), "2 transfers are waited for", id="transfers"),
        pytest.param(
            lambda r: r.when_applied(1 << 40), "2 wait for the state machine", id="waits for an index"
        ),
        pytest.param(lambda r: r.snapshot(), "2 snapshots are waited for", id="snapshots"),
        pytest.param(lambda r: r.snapshot(export_to="/nowhere"), "2 snapshots are waited for", id="exports"),
        pytest.param(lambda r: r.stale_read(None), "2 reads wait for an answer", id="stale reads"),
        pytest.param(lambda r: r.read(None), "2 reads wait for an answer", id="reads"),
        pytest.param(lambda r: r.query_log(1, 2), "2 log queries wait", id="log queries"),
    ],
)
def test_each_bound_on_what_clients_wait_for_refuses_at_once(node, monkeypatch, ask, text):
    monkeypatch.setattr("drakkar.actors.node.transfers.MAX_TRANSFERS", 2)
    monkeypatch.setattr("drakkar.actors.node.snapshots.MAX_REQUESTS", 2)
    monkeypatch.setattr("drakkar.actors.node.operators.MAX_LOG_QUERIES", 2)
    checked = threading.Event()
    monkeypatch.setattr("drakkar.actors.node.exports.check_free", lambda path: checked.wait(TIMEOUT_S))
    machine = Gated(query_waits=True)
    one = node(machine, members={1: "one:1", 2: "two:2"}, max_reads=2).lead()
    one.acknowledge(2)
    fill_the_store(one)
    waiting = []
    for _ in range(2):
        waiting.append(ask(one.replica))
        one.settle()
    refused = settled(ask(one.replica))
    assert type(refused) is SystemBusy
    assert text in str(refused)
    assert not any(future.done for future in waiting)
    machine.gate.set()
    checked.set()


@pytest.mark.parametrize("blocks", [True, False])
def test_a_state_machine_that_does_not_answer_each_command_ends_the_replica(node, blocks):
    class Silent(StateMachine):
        def apply_many(self, commands):
            return []

    Silent.blocks = blocks
    one = node(Silent()).lead()
    outcome = settled(one.replica.propose(b"a"))
    assert type(outcome) is OutcomeUnknown
    assert "0 results for 1 commands" in str(one.reason())


def test_a_handler_of_ones_own_that_fails_ends_this_node_loudly_and_no_other(node, caplog):
    ping = M.define("test_node.ping", 40_001)
    table = raft_handlers()

    @table.on(ping)
    def fail(_raft, _message):
        raise ZeroDivisionError("a bug in a handler")

    one, other = node(handlers=table), node()
    one.lead()
    other.lead()
    with caplog.at_level(logging.ERROR):
        one.ref.tell(Message(ping, sender=2))
        read = one.replica.read(None)
        assert isinstance(one.reason(), ZeroDivisionError)
    assert isinstance(settled(read), ReplicaStopped) or settled(read) == []
    assert "a bug in a handler" in caplog.text
    assert settled(other.replica.propose(b"a")) == 1


def test_an_asker_of_a_step_that_breaks_an_invariant_is_told_and_the_node_ends(node):
    one = node(members=THREE)
    with pytest.raises(ProtocolViolation):
        one.ref.ask(Message(M.HEARTBEAT, sender=2, term=99, commit=1000), timeout=TIMEOUT_S)
    assert isinstance(one.reason().__cause__, ProtocolViolation)
    assert one.services.sent == []
    assert type(settled(one.replica.propose(b"a"))) is ReplicaStopped


def test_every_future_resolves_when_threads_ask_while_the_node_stops(node):
    for _ in range(5):
        one = node(Ledger()).lead()
        futures, start = [], threading.Barrier(5)

        def ask(one=one, futures=futures, start=start):
            start.wait(TIMEOUT_S)
            for number in range(200):
                futures.append(one.replica.propose(b"%d" % number))
                futures.append(one.replica.read(None))
                futures.append(one.replica.stale_read(None))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        start.wait(TIMEOUT_S)
        one.replica.stop()
        for thread in threads:
            thread.join(TIMEOUT_S)
        outcomes = Counter(type(settled(future)) for future in futures)
        assert sum(outcomes.values()) == 4 * 600
        assert set(outcomes) <= {int, list, ReplicaStopped, OutcomeUnknown, SystemBusy}


# -- The inbox


class Held:
    """Holds the loop up until told to go on, so that a test can fill lanes at leisure."""

    def __init__(self, one):
        self.one, self.entered, self.leave = one, threading.Event(), threading.Event()

    def __enter__(self):
        self.one.loop.run_soon(lambda: (self.entered.set(), self.leave.wait(TIMEOUT_S)))
        assert self.entered.wait(TIMEOUT_S)

    def __exit__(self, *trouble):
        self.leave.set()


def traced(one):
    """The types of all that enters a node from now on, in order."""
    types, receive = [], one.actor.on_receive

    def note(message):
        types.append(str(getattr(message, "type", type(message).__name__)))
        return receive(message)

    one.actor.on_receive = note
    return types


def test_all_that_enters_a_node_is_seen_in_one_place(node):
    one = node(Ledger()).lead()
    settled(one.replica.propose(b"warm up"))
    one.settle()
    types = traced(one)
    assert settled(one.replica.propose(b"a")) == 2
    assert settled(one.replica.read(None)) == [b"warm up", b"a"]
    one.tick()
    one.settle()
    assert types == ["PROPOSALS_TAKEN", "SAVED", "ENTRIES_APPLIED", "REQUESTS_TAKEN", "LOCAL_TICK"]


def test_completions_have_types_of_their_own_each_in_one_row_of_the_nodes_table():
    # By name, since a class with slots is made twice, and the first one stays among the subclasses.
    bases = completions.Completion, completions.Written
    classes = {each.__name__: each for base in bases for each in base.__subclasses__()}
    del classes["Written"]
    local = {*classes.values(), ProposalsTaken, RequestsTaken}
    assert local == set(LOCAL_HANDLERS), "the table has a row for each, and no other"
    types = [each.type for each in local]
    assert len(set(types)) == len(types)
    assert all(200 <= each < 220 and each.traits.local for each in types)


def test_each_kind_of_request_has_a_row_and_no_other():
    assert set(get_args(ClientRequest)) == set(REQUEST_HANDLERS)


def test_a_message_that_claims_to_be_a_completion_completes_nothing(node):
    """The transport drops it. Should it come all the same, it is a message of a type that the table does not know."""
    one = node().lead()
    one.services.hangs = True
    future = one.replica.propose(b"a")
    one.settle()
    one.tell(completions.Saved.type, sender=2, log_index=99)
    assert not future.done
    assert one.actor.tally.ignored[State.LEADER, completions.Saved.type] == 1


def test_a_completion_is_heard_though_the_inbox_is_full(node, monkeypatch):
    monkeypatch.setattr(NodeActor, "inbox_capacity", 2)
    one = node().lead()
    one.services.hangs = True
    future = one.replica.propose(b"a")
    one.settle()
    with Held(one):
        for _ in range(2):
            one.ref.tell(Message(M.NO_OP, sender=2))
        with pytest.raises(SystemBusy):
            one.ref.tell(Message(M.NO_OP, sender=2))
        one.services.write_on()
    assert settled(future) == 1
    assert one.actor.actor_inbox.refusals == {"messages": 1, "proposals": 0, "requests": 0}


def test_each_lane_counts_what_it_refused(node):
    one = node(max_reads=2).lead()
    with Held(one):
        refused = [one.replica.propose_many([b"x"] * 100), *(one.replica.propose(b"y") for _ in range(3))][1:]
        refused += [one.replica.read(None) for _ in range(4)][2:]
    assert [type(settled(future)) for future in refused] == [SystemBusy] * 5
    assert one.actor.actor_inbox.refusals == {"messages": 0, "proposals": 3, "requests": 2}


def test_a_write_that_is_done_is_heard_before_the_tick_that_judges_the_disk(node):
    """Else a host that was held up for a moment would take its disk for hung, and a leader step down."""
    one = node(members=THREE).lead()
    one.acknowledge(2, 3)
    one.services.hangs = True
    one.replica.propose(b"a")
    one.tick(T)
    for sender in (2, 3):
        one.tell(M.HEARTBEAT_RESP, sender=sender, term=1)
    with Held(one):
        for _ in range(3):
            one.ref.tell(Message(M.LOCAL_TICK))
        one.services.write_on()
    one.settle()
    assert not one.actor.disk.hangs
    assert one.replica.status().state is State.LEADER


def test_what_a_handler_returns_is_the_answer_to_the_asker_and_messages_are_counted(node):
    ask, odd = M.define("test_node.ask", 40_002), M.define("test_node.odd", 40_003)
    table = raft_handlers()

    @table.on(ask)
    def answer(raft, message):
        return raft.state.name, message.payload

    table.impossible(odd, because="there is none in this test")
    one = node(handlers=table).lead()
    assert one.ref.ask(Message(ask, sender=2, payload=7), timeout=TIMEOUT_S) == ("LEADER", 7)
    assert one.ref.ask(Message(odd, sender=2), timeout=TIMEOUT_S) is None
    assert one.ref.ask(Message(M.PING, sender=2), timeout=TIMEOUT_S) is None
    tally = one.actor.tally
    assert tally is one.actor.raft.tally
    assert tally.handled[State.LEADER, ask] == 1
    assert tally.impossible[State.LEADER, odd] == 1
    assert tally.ignored[State.LEADER, M.PING] == 1


@pytest.mark.parametrize("store_full", [False, True])
def test_a_log_query_of_a_users_handler_is_not_taken_for_a_clients(node, store_full):
    """The core answers one at a time, and drops another. The result of either must not answer the other."""
    look = M.define("test_node.look", 40_004)
    table = raft_handlers()
    table.on(look)(lambda raft, _: raft.step(Message(M.LOG_QUERY, sender=2, to=3, hint=1 << 20)))
    one = node(handlers=table).lead()
    settled(one.replica.propose_many([b"a", b"b"]))
    one.settle()
    one.services.full = store_full
    with Held(one):
        proposal = one.replica.propose(b"c")
        one.ref.tell(Message(look))
        query = one.replica.query_log(3, 4)
    one.settle()
    again = one.replica.query_log(1, 2)
    one.settle()
    one.services.full = False
    one.tick()
    assert [entry.index for entry in settled(query)] == [3]
    assert [entry.index for entry in settled(again)] == [1]
    assert settled(proposal) == 3
    assert len(one.actor.clients.log_queries) == 0


def test_a_long_log_is_applied_in_portions_over_several_turns_which_nothing_else_gives(node):
    machine = InlineLedger()
    one = node(machine, members=THREE, max_apply_bytes=1).follow(leader=2, term=5)
    entries = Entries([Run(1, 5, [b"%d" % number for number in range(10)])])
    one.ref.tell(Message(M.REPLICATE, sender=2, term=5, entries=entries, commit=10))
    until(lambda: len(machine.commands) == 10)


def test_entries_are_not_applied_on_the_loop_while_it_has_not_heard_of_those_that_a_worker_applied(node):
    """Else results are reported out of order, and a later term would end proposals of which the result is on its way."""
    go_on, machine = M.define("test_node.go_on", 40_005), Holding()
    table, applied = raft_handlers(), []

    @table.on(go_on)
    def commit_the_rest_meanwhile(raft, message):
        machine.gate.set()
        until(lambda: any(isinstance(done, EntriesApplied) for done in one.actor.actor_inbox.completions))
        until(lambda: not one.actor._applier._busy)
        threading.Event().wait(0.1)  # longer than a turn may take: it ends before the completion is taken
        raft.step(Message(M.REPLICATE_RESP, sender=2, term=raft.term, log_index=raft.log.last_index))

    one = node(machine, members={1: "one:1", 2: "two:2"}, handlers=table).lead()
    one.acknowledge(2)
    receive = one.actor.on_receive

    def note(message):
        if isinstance(message, EntriesApplied):
            applied.append(message.outcome[0])
        return receive(message)

    one.actor.on_receive = note
    one.replica.snapshot()
    assert machine.saving.wait(TIMEOUT_S)
    futures = [one.replica.propose(b"a")]
    one.settle()
    one.acknowledge(2)
    futures.append(one.replica.propose(b"b"))
    one.settle()
    one.tell(go_on)
    assert [settled(future) for future in futures] == [1, 2]
    assert applied == [2, 3]


def test_a_change_that_is_applied_with_an_entry_of_a_later_term_has_its_result(node):
    """The core reports the change with one `Ready` more: until then, it is not known what became of old proposals."""
    one = node(members=THREE, max_apply_bytes=64).lead()
    one.acknowledge(2, 3)
    command, change = one.replica.propose(b"x" * 64), one.replica.remove_replica(3)
    one.settle()
    one.follow(leader=2, term=5)
    later = Entries([Run(4, 5, [b""], bytes([EntryKind.NO_OP]))])
    one.tell(M.REPLICATE, sender=2, term=5, log_index=3, log_term=1, entries=later, commit=1)
    one.tell(M.HEARTBEAT, sender=2, term=5, commit=4)
    assert settled(command) == 1
    assert settled(change).voters == {1, 2}


# -- The disk


def test_a_full_store_holds_everything_up_and_loses_nothing(node):
    one = node().lead()
    one.services.full = True
    futures = [one.replica.propose(b"%d" % number) for number in range(5)]
    one.tick(3)
    assert not any(future.done for future in futures)
    one.services.full = False
    one.tick()
    assert [settled(future) for future in futures] == [1, 2, 3, 4, 5]
    firsts = [run.first for save in one.services.saves for run in save.runs]
    assert firsts == sorted(firsts)


@pytest.mark.parametrize("trouble", ["hangs", "full"])
def test_a_leader_whose_disk_hangs_steps_down_and_is_silent_until_it_writes_again(node, trouble, caplog):
    one = node(members=THREE).lead()
    one.acknowledge(2, 3)
    assert one.replica.status().commit == 1
    setattr(one.services, trouble, True)
    lost = one.replica.propose(b"a", timeout=60)
    for _ in range(2 * T):
        one.tick()
        one.tell(M.HEARTBEAT_RESP, sender=2, term=1)
        if one.replica.status().state is State.FOLLOWER:
            break
    assert one.replica.status().state is State.FOLLOWER
    assert "has not finished a write" in caplog.text
    sent = len(one.services.sent)
    for future in (one.replica.propose(b"b"), one.replica.read(None), one.replica.stale_read(None)):
        outcome = settled(future)
        assert type(outcome) is SystemBusy
        assert "hangs" in str(outcome)
    # It neither answers nor campaigns, and what others say is not kept either.
    one.tell(M.REQUEST_VOTE, sender=3, term=7, log_index=9, log_term=1)
    one.tick(5 * T)
    assert (one.replica.status().term, len(one.services.sent)) == (1, sent)
    setattr(one.services, trouble, False)
    one.services.write_on()
    one.tick(2)
    one.follow(leader=3, term=8)
    assert one.services.sent[-1][0] == "three:3"
    entries = Entries([Run(2, 1, [b"a"], b"", ORIGIN, 1), Run(3, 8, [b""], bytes([EntryKind.NO_OP]))])
    one.tell(M.REPLICATE, sender=3, term=8, log_index=1, log_term=1, entries=entries, commit=3)
    assert settled(lost) == 1, "what it had logged was committed by the next leader"


def test_a_disk_that_is_slow_but_finishes_within_an_election_timeout_costs_no_leader(node):
    one = node(members=THREE).lead()
    one.acknowledge(2, 3)
    for _ in range(5):
        one.services.hangs = True
        future = one.replica.propose(b"a")
        for _ in range(T):
            one.tick()
            one.tell(M.HEARTBEAT_RESP, sender=2, term=1)
        one.services.write_on()
        one.settle()
        one.acknowledge(2)
        assert isinstance(settled(future), int)
    assert one.replica.status().state is State.LEADER


def test_what_is_known_to_be_committed_goes_with_the_next_write_and_with_a_stop(node):
    """So a replica that holds a membership change knows, after a crash too, that the one before it is committed."""
    one = node(members=THREE).follow(leader=2, term=5)
    one.tell(M.REPLICATE, sender=2, term=5, entries=Entries([Run(1, 5, [b"a"])]))
    one.tell(M.REPLICATE, sender=2, term=5, log_index=1, log_term=5, commit=1)
    assert one.replica.status().commit == 1
    assert one.services.saves[-1].hard_state is None or one.services.saves[-1].hard_state.commit == 0
    one.tell(
        M.REPLICATE, sender=2, term=5, log_index=1, log_term=5, entries=Entries([Run(2, 5, [b"b"])]), commit=1
    )
    assert one.services.saves[-1].runs[0].first == 2
    assert one.services.saves[-1].hard_state.commit == 1
    one.tell(M.REPLICATE, sender=2, term=5, log_index=2, log_term=5, commit=2)
    one.replica.stop()
    assert one.services.saves[-1].hard_state.commit == 2


def test_messages_that_rest_on_a_write_leave_after_it(node):
    one = node(members=THREE)
    one.services.hangs = True
    one.tell(M.REQUEST_VOTE, sender=2, term=3, log_index=9, log_term=2)
    assert one.services.messages(M.REQUEST_VOTE_RESP) == []
    one.services.write_on()
    one.settle()
    (vote,) = one.services.messages(M.REQUEST_VOTE_RESP)
    assert (vote.to, vote.reject, one.services.saves[0].hard_state.vote) == (2, False, 2)


# -- Who is where


def test_one_that_joins_answers_a_leader_that_its_membership_does_not_list(node):
    one = node(role=State.OBSERVER)
    one.tell(M.HEARTBEAT, sender=2, term=5)
    assert one.services.sent == []
    assert one.actor.router.undeliverable == 1
    one.loop.call(one.actor.router.learn, 2, "two:2")
    one.tell(M.HEARTBEAT, sender=2, term=5)
    assert [(address, message.type) for address, message in one.services.sent] == [
        ("two:2", M.HEARTBEAT_RESP)
    ]


def test_learned_addresses_do_not_pile_up(node):
    one = node(role=State.OBSERVER)
    for replica in range(2, 1000):
        one.loop.call(one.actor.router.learn, replica, "somewhere:1")
    assert len(one.actor.router.learned_addresses) == 100


def test_leaders_and_memberships_are_announced(node):
    one = node(members=THREE).lead()
    one.acknowledge(2, 3)
    future = one.replica.remove_replica(3)
    one.settle()
    one.acknowledge(2)
    settled(future)
    one.tell(M.HEARTBEAT, sender=2, term=9)
    leaders = [event.leader for event in one.services.events if isinstance(event, LeaderChanged)]
    assert leaders == [0, 1, 2]
    (changed,) = [event for event in one.services.events if isinstance(event, MembershipChanged)]
    assert (changed.shard, changed.replica, changed.membership.voters) == (1, 1, {1, 2})


@pytest.mark.parametrize(
    "foreign",
    [
        pytest.param({"what": "is this"}, id="a dict"),
        pytest.param(SimpleNamespace(type=[]), id="a type that has no hash"),
        pytest.param(SimpleNamespace(type=200), id="the number of a completion's type"),
        pytest.param(SimpleNamespace(type=completions.Saved.type), id="a completion's type"),
    ],
)
def test_what_is_no_message_is_logged_and_ends_nothing(node, caplog, foreign):
    one = node().lead()
    one.ref.tell(foreign)
    one.settle()
    assert "unexpected message" in caplog.text
    assert settled(one.replica.propose(b"a")) == 1


def test_the_status_may_be_asked_by_any_thread_at_any_time(node):
    one = node(Ledger(), max_reads=10_000).lead()
    stop = threading.Event()
    failures = []

    def look():
        while not stop.is_set():
            try:
                status = one.replica.status()
                assert status.applied <= status.commit
            except Exception as error:  # noqa: BLE001  # the test wants to know of any
                failures.append(error)
                return

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    futures = []
    for number in range(1500):
        futures.append(one.replica.propose(b"%d" % number))
        futures.append(one.replica.read(0))
        if number % 50 == 0:
            one.tick()
    for future in futures:
        settled(future)
    stop.set()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert failures == []


def test_errors_of_the_library_are_what_clients_get(node):
    """A client can tell by the class of an error whether it may propose again."""
    one = node(members=THREE)
    outcome = settled(one.replica.propose(bytes(100 << 20)))
    assert isinstance(outcome, DrakkarError)
    assert outcome.outcome_known


# -- Files that come too late


class Files:
    """The files of snapshots, of which the test wants to know which are let go."""

    def __init__(self, files):
        self.files, self.discarded, self.unpinned = files, [], []

    def discard(self, name):
        self.discarded.append(name)

    def unpin(self, name):
        self.unpinned.append(name)

    def __getattr__(self, name):
        return getattr(self.files, name)


LATE = Snapshot(7, 1, Membership(voters=ALONE), b"late")


@pytest.mark.parametrize(
    "late",
    [
        pytest.param(completions.SnapshotWritten(LATE), id="a snapshot"),
        pytest.param(completions.ExportWritten(LATE), id="an export"),
        pytest.param(
            completions.PeerSnapshotWritten("two:2", Message(M.INSTALL_SNAPSHOT), LATE), id="one for a peer"
        ),
    ],
)
def test_a_snapshot_that_is_written_when_the_node_has_ended_is_deleted(node, late):
    one = node().lead()
    inbox = one.actor.actor_inbox
    files = inbox._files = Files(inbox._files)
    one.replica.stop()
    inbox.complete(late)
    until(lambda: files.discarded == ["late"])


def test_a_leaders_snapshot_that_is_lost_as_the_node_ends_is_pinned_no_more(node):
    one = node().lead()
    inbox = one.actor.actor_inbox
    files = inbox._files = Files(inbox._files)
    with Held(one):
        one.ref.stop(block=False)
        one.ref.tell(Message(M.INSTALL_SNAPSHOT, sender=2, term=1, snapshot=LATE))
    until(lambda: (files.discarded, files.unpinned) == (["late"], ["late"]))


class Saving(InlineLedger):
    def save(self, sink):
        sink.write(b"all")


def test_a_snapshot_that_could_not_be_recorded_is_deleted_as_the_node_ends(node):
    one = node(Saving()).lead()
    files = one.actor.snapshots.files = Files(one.actor.snapshots.files)

    def full(*_):
        raise SystemBusy("the store is full")

    one.services.record_snapshot = full
    settled(one.replica.propose(b"a"))
    one.replica.snapshot()
    until(lambda: one.actor.snapshots._unrecorded is not None)
    name = one.actor.snapshots._unrecorded.payload.decode()
    one.replica.stop()
    until(lambda: files.discarded == [name])


# -- Removed


def tell_of_its_removal(one):
    """As a leader does that is asked by a replica that was cut off."""
    membership = Membership(voters={2: "b:2", 3: "c:3"}, removed=frozenset({1}))
    news = Snapshot(60, 5, membership, witness=True)
    one.tell(M.INSTALL_SNAPSHOT, sender=2, term=5, snapshot=news)


def test_the_news_of_its_removal_does_not_answer_reads_from_a_state_that_it_was_not_sent(node):
    """The news is a snapshot without content: the core is up to date then, and the state machine is not."""
    one = node(members=THREE).follow()
    asked = [one.replica.read(None), one.replica.read(None)]
    one.settle()
    for name in read_rounds(one):
        one.tell(M.READ_INDEX_RESP, sender=2, term=5, log_index=50, hint=name[0], hint_high=name[1])
    tell_of_its_removal(one)
    assert one.replica.status().applied == 60
    for future in asked:
        error = settled(future)
        assert isinstance(error, ReplicaStopped), error
    assert any(isinstance(event, ReplicaRemoved) for event in one.services.events)
    one.tick(10 * T)
    assert one.reason() is None


def removals(one):
    return [event for event in one.services.events if isinstance(event, ReplicaRemoved)]


@pytest.mark.parametrize("trouble", ["hangs", "full"])
def test_a_removed_replica_ends_though_the_disk_hangs_that_shall_keep_the_news(node, trouble):
    one = node(members=THREE).follow()
    setattr(one.services, trouble, True)
    tell_of_its_removal(one)
    one.tick(T)
    assert not removals(one), "the disk may be through with it any moment"
    one.tick(2)
    assert len(removals(one)) == 1
    assert isinstance(settled(one.replica.read(None)), ReplicaStopped)
    one.tick(5 * T)
    assert one.reason() is None


def test_a_removed_replica_ends_though_the_disk_hangs_that_shall_keep_what_comes_next(node):
    machine = Gated(apply_waits=True)
    one = node(machine, members=THREE).follow()
    removal = ConfigChange((Change(ChangeType.REMOVE, 1),)).encode()
    logged = [Run(1, 5, [b"a"]), Run(2, 5, [removal], CHANGE)]
    one.tell(M.REPLICATE, sender=2, term=5, entries=Entries(logged), commit=2)
    assert machine.arrived.wait(TIMEOUT_S)
    one.services.full = True
    more = Entries([Run(3, 5, [b"b"])])
    one.tell(M.REPLICATE, sender=2, term=5, log_index=2, log_term=5, entries=more, commit=2)
    machine.gate.set()
    until(lambda: 1 not in one.replica.status().voters)
    assert not removals(one)
    one.tick(T + 2)
    assert len(removals(one)) == 1
    one.tick(5 * T)
    assert one.reason() is None
