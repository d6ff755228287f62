"""One node by itself, between a host, a store and peers that a test plays: what it does when one of them fails."""

import logging
import struct
import threading
import time
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import get_args

import pytest
from drakkar.actors.machine import compression
from drakkar.actors.machine.sessions import encode_request
from drakkar.actors.machine.state_machine import StateMachine
from drakkar.actors.node import completions
from drakkar.actors.node.actor import LOCAL_HANDLERS, NodeActor
from drakkar.actors.node.clients import REQUEST_HANDLERS
from drakkar.actors.node.completions import EntriesApplied
from drakkar.actors.node.departure import Leave
from drakkar.actors.node.events import LeaderChanged, MembershipChanged, ReplicaRemoved
from drakkar.actors.node.inbox import OwnMessagesTaken, ProposalsTaken, RequestsTaken
from drakkar.actors.node.introductions import Introduced
from drakkar.actors.node.proposed import MAX_COMMAND_BYTES, MAX_WAITING, MAX_WORK_HERE
from drakkar.actors.node.reads import ReadRequests
from drakkar.actors.node.requests import ClientRequest, ReadRequest
from drakkar.actors.runtime.futures import ActorFuture, this_thread
from drakkar.actors.runtime.scheduler import SlowTurn
from drakkar.handlers.errors import (
    ActorFailed,
    ConfigError,
    DiskFull,
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
from drakkar.handlers.messages import Message
from drakkar.handlers.raft.confchange import Change, ChangeType, ConfigChange
from drakkar.handlers.raft.entries import Entries, EntryKind, Run
from drakkar.handlers.raft.lanes import UNLIMITED, not_sent
from drakkar.handlers.raft.lives import encode_settled, home_number
from drakkar.handlers.raft.log import EntriesNotLoaded
from drakkar.handlers.raft.matrix import raft_handlers
from drakkar.handlers.raft.ready import ReadReady, Ready
from drakkar.handlers.raft.state import Membership, Snapshot, State
from drakkar.transport.shard_frames import ShardHello

from tests.actors.node.support import ALONE, CHANGE, ORIGIN, THREE, Held, M, T
from tests.actors.support import (
    TIMEOUT_S,
    Failing,
    Gated,
    Hosts,
    InlineFailing,
    InlineLedger,
    Ledger,
    settled,
    until,
)

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

    outcome = expired(one, future)
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


def test_a_membership_change_that_the_leader_takes_for_early_is_proposed_again(node):
    """This replica may have applied the change before, and told its client, when the leader has not."""
    one = node(members=THREE).follow(leader=2, term=5)
    change = one.replica.remove_replica(3)
    one.settle()
    (run,) = one.services.messages(M.PROPOSE)[0].entries.runs
    refusal = {
        "sender": 2,
        "hint": run.origin,
        "hint_high": run.key,
        "log_index": 1,
        "payload": "CHANGE_PENDING",
    }
    one.tell(M.PROPOSE_REFUSED, **refusal)
    one.settle()
    one.tick()
    one.settle()
    assert not change.done
    (again,) = one.services.messages(M.PROPOSE)[1].entries.runs
    assert (again.payloads, again.kinds, again.origin, again.key) == (
        run.payloads,
        run.kinds,
        run.origin,
        run.key,
    )
    one.tell(M.REPLICATE, sender=2, term=5, entries=Entries([again.placed(1, 5)]), commit=1)
    assert settled(change).voters == {1, 2}


def test_a_change_whose_quorum_is_not_heard_is_tried_for_an_election_timeout_and_says_what_to_do(node):
    one = node(members=THREE, strict_membership_changes=True).lead()
    one.acknowledge(2)
    change = one.replica.add_replica(4, "four:4")
    for _ in range(one.actor.raft.config.election_ticks):
        one.acknowledge(2)
        assert not change.done
        one.tick()
    outcome = settled(change)
    assert type(outcome) is MembershipRejected
    for words in ("does not hear replicas 3, 4", "as an observer first", "force=True"):
        assert words in str(outcome)
    one.tick(3)
    assert one.actor.clients._postponed._tries == {}


def test_a_change_that_waits_for_its_quorum_surely_fails_at_its_deadline(node):
    one = node(members=THREE, strict_membership_changes=True).lead()
    one.acknowledge(2)
    change = one.replica.add_replica(4, "four:4", timeout=1)
    late = time.monotonic() + 1
    until(lambda: time.monotonic() > late)
    assert not change.done
    one.tick()
    outcome = settled(change)
    assert type(outcome) is MembershipRejected
    assert "does not hear replicas 3, 4" in str(outcome)
    one.tick(3)
    assert one.actor.clients._postponed._tries == {}


def refusal_of(change_run, *named):
    return {
        "sender": 2,
        "hint": change_run.origin,
        "hint_high": change_run.key,
        "log_index": 1,
        "payload": list(named),
    }


def test_a_change_waits_a_while_for_a_voter_that_was_added_and_says_for_which(node):
    one = node(members=THREE).follow(leader=2, term=5)
    change = one.replica.remove_replica(3)
    one.settle()
    tries = 5 * one.actor.raft.config.election_ticks
    (run,) = one.services.messages(M.PROPOSE)[0].entries.runs
    for number in range(1, tries + 2):
        assert not change.done
        assert len(one.services.messages(M.PROPOSE)) == number
        one.tell(M.PROPOSE_REFUSED, **refusal_of(run, "VOTER_UNSETTLED", 4, 7))
        one.tell(M.HEARTBEAT, sender=2, term=5)
        one.tick()
        one.settle()
    outcome = settled(change)
    assert type(outcome) is MembershipRejected
    for words in ("replicas 4, 7", "Start them", "remove them first"):
        assert words in str(outcome)


def test_a_change_is_made_when_its_voters_are_heard_a_moment_later(node):
    one = node(members=THREE, strict_membership_changes=True).lead()
    one.acknowledge(2)
    change = one.replica.remove_replica(2)
    one.settle()
    assert not change.done
    one.acknowledge(3)
    one.tick()
    one.acknowledge(3)
    assert settled(change).voters == {1, 3}


def test_a_forced_change_is_made_at_once(node):
    one = node(members=THREE, strict_membership_changes=True).lead()
    one.acknowledge(2)
    change = one.replica.add_replica(4, "four:4", force=True)
    one.settle()
    one.acknowledge(2, 3)
    assert settled(change).voters == {1, 2, 3, 4}


@pytest.mark.parametrize(
    "change",
    [
        lambda replica: replica.add_replica(4, "four:4", force=1),
        lambda replica: replica.add_witness(4, "four:4", force="yes"),
        lambda replica: replica.remove_replica(3, force=None),
        lambda replica: replica.change_membership([Change(ChangeType.REMOVE, 3)], force=0),
    ],
)
def test_what_is_no_switch_forces_nothing(node, change):
    one = node(members=THREE).lead()
    outcome = settled(change(one.replica))
    assert type(outcome) is ConfigError
    assert "force=" in str(outcome)


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


def test_a_read_that_is_lost_with_its_leader_is_asked_of_the_next_one_without_a_tick(node):
    one = node(members=THREE).follow(term=5)
    read = one.replica.read(None)
    one.settle()
    (lost,) = read_rounds(one)
    one.tell(M.LEADER_GONE, sender=2)
    assert read_rounds(one) == [lost], "there is none to ask"
    one.tell(M.HEARTBEAT, sender=3, term=6)
    assert [message.to for message in one.services.messages(M.READ_INDEX)] == [2, 3]
    (_, again) = read_rounds(one)
    one.tell(M.READ_INDEX_RESP, sender=3, term=6, hint=again[0], hint_high=again[1])
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


def expired(one, future, *, leader=0):
    """What becomes of a future that only its deadline ends; a leader sends heartbeats all the time."""

    def ticked():
        if leader:
            one.follow(leader=leader)
        one.tick()
        return future.done

    until(ticked)
    return settled(future)


LAG = "this replica's state machine had applied 1 of 2 committed entries"


@pytest.mark.parametrize(
    ("ask", "error", "text"),
    [
        pytest.param(
            lambda r: r.propose(b"b", timeout=0.05), OutcomeUnknown, "had applied 1 of", id="propose"
        ),
        pytest.param(
            lambda r: r.read(None, timeout=0.05),
            RequestDropped,
            f"the read needs the state at entry 2, and by its deadline {LAG}",
            id="read",
        ),
        pytest.param(
            lambda r: r.stale_read(None, timeout=0.05),
            RequestDropped,
            "the state machine did not answer the read by its deadline",
            id="stale read",
        ),
        pytest.param(
            lambda r: r.when_applied(2, timeout=0.05),
            RequestDropped,
            f"entry 2 was not applied by the deadline, by when {LAG}",
            id="what is committed",
        ),
        pytest.param(
            lambda r: r.when_applied(3, timeout=0.05),
            RequestDropped,
            "entry 3 was not applied by the deadline, by when this replica knew entries up to 2 to be committed",
            id="what is not",
        ),
    ],
)
def test_a_deadline_that_a_slow_state_machine_missed_names_it(node, ask, error, text):
    machine = Gated(apply_waits=True)
    one = node(machine).lead()
    try:
        first = one.replica.propose(b"a", timeout=TIMEOUT_S)
        assert machine.arrived.wait(TIMEOUT_S)
        outcome = expired(one, ask(one.replica))
        assert type(outcome) is error
        assert text in str(outcome)
    finally:
        machine.gate.set()
    assert settled(first) == 1


@pytest.mark.parametrize(
    ("ask", "error", "text"),
    [
        (lambda r: r.propose(b"b", timeout=0.05), OutcomeUnknown, "it was not known here to be committed"),
        (lambda r: r.read(None, timeout=0.05), RequestDropped, "the leader did not confirm the read"),
    ],
)
def test_a_deadline_that_a_silent_leader_missed_names_that(node, ask, error, text):
    one = node(members=THREE).follow(leader=2, term=5)
    outcome = expired(one, ask(one.replica), leader=2)
    assert type(outcome) is error
    assert text in str(outcome)


@pytest.mark.parametrize(("ended", "told"), [(0.0, True), (60.0, False)])
def test_where_a_turn_has_kept_the_loop_that_is_why_no_leader_was_heard(node, ended, told):
    one = node(members=THREE)
    one.loop._scheduler.slow_turn = SlowTurn("replica 7 of shard 7", 4.0, time.monotonic() - ended)
    outcome = expired(one, one.replica.propose(b"a", timeout=0.01))
    assert type(outcome) is NotLeader
    assert ("replica 7 of shard 7 had kept the loop of this host for 4.0 s" in str(outcome)) is told


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
        reads.start(0, (1, 2))
    assert len(asked) == 4
    reads.confirmed(ReadReady(7, asked[0]))
    reads.start(0, (1, 2))
    assert len(asked) == 5
    assert (len(reads.due(6)), len(reads.due(7))) == (0, 1)
    reads.confirmed(ReadReady(7, (asked[4][0], 1)))
    assert reads.due(7) == [], "a round of another replica"
    reads.confirmed(ReadReady(7, asked[4]))
    assert len(reads.due(7)) == 6
    assert len(reads) == 3


@pytest.mark.parametrize("next_leader", [(2, 3), (2, 2)], ids=["another one", "the same one in a new term"])
def test_what_was_asked_of_a_leader_is_asked_of_the_next_one_in_its_order(next_leader):
    asked = []
    reads = ReadRequests(ORIGIN, timeout_ticks=10, ask=lambda *name: asked.append(name))
    for query in range(6):
        reads.add(ReadRequest(query, ActorFuture(), 99.0))
        reads.start(0, (1, 2))
    reads.confirmed(ReadReady(7, asked[0]))
    reads.start(1, next_leader)
    assert len(asked) == len(set(asked)) == 4 + 1, "all as one batch"
    reads.start(2, next_leader)
    assert len(asked) == 5, "once"
    reads.confirmed(ReadReady(7, asked[1]))
    assert [read.query for read in reads.due(7)] == [0], "a late answer of the last leader counts no more"
    reads.confirmed(ReadReady(7, asked[4]))
    assert [read.query for read in reads.due(7)] == [1, 2, 3, 4, 5]
    assert len(reads) == 0


# -- The end of a leader's process


def test_the_news_that_a_leader_is_gone_comes_behind_all_that_it_had_sent_though_the_inbox_is_full(node):
    one = node(members=THREE).follow(term=5)

    def fill_and_tell():
        for _ in range(one.actor.actor_inbox.capacity):
            one.ref.tell(Message(M.HEARTBEAT, sender=2, term=5))
        with pytest.raises(SystemBusy):
            one.ref.tell(Message(M.HEARTBEAT, sender=2, term=5))
        one.actor.hear_last(Message(M.LEADER_GONE, sender=2))

    one.loop.call(fill_and_tell, timeout=TIMEOUT_S)
    one.settle()
    assert one.replica.status().leader_id == 0


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


def test_the_order_of_a_transfer_that_is_given_up_is_recalled(node):
    one = node(members=THREE).lead()
    one.acknowledge(2, 3)
    future = one.replica.transfer_leadership(2)
    one.settle()
    (order,) = one.services.messages(M.TIMEOUT_NOW)
    one.tick(T - 1)
    one.acknowledge(2, 3)
    assert one.services.recalled == []
    one.tick()
    assert type(settled(future)) is OutcomeUnknown
    assert one.services.recalled == [(THREE[2], order)]


def test_an_order_that_is_given_anew_while_the_store_is_full_is_sent_when_it_has_room(node):
    """The turn is repeated then; it recalls the order that was given before, and not this one."""
    one = node(members=THREE).lead()
    order = Message(M.TIMEOUT_NOW, to=2, sender=1, term=one.replica.status().term)
    ready = Ready(1000, must_save=True, recalled=[order], messages=[replace(order)])
    one.services.full = True
    assert not one.loop.call(one.actor._do, ready)
    one.services.full = False
    assert one.loop.call(one.actor._do, ready)
    assert one.services.messages(M.TIMEOUT_NOW) == [order]


@pytest.mark.parametrize(("waited", "obeyed"), [(0.0, True), (0.99, True), (1.01, False)])
def test_an_order_that_waited_in_the_inbox_for_an_election_timeout_is_dropped(node, waited, obeyed):
    one = node(members=THREE).follow(term=5)
    inbox = one.actor.actor_inbox
    inbox._max_age, inbox._now = 1.0, iter([7.0, 7.0 + waited]).__next__
    one.tell(M.TIMEOUT_NOW, sender=2, term=5)
    assert (one.replica.status().state is State.CANDIDATE) is obeyed
    assert one.replica.counters["messages that waited for too long"] == (not obeyed)
    assert not inbox._arrivals


def test_a_host_says_how_long_an_order_may_wait():
    with Hosts(1, tick_interval=0.5) as hosts:
        replica = hosts.run(config={"election_ticks": 20})[1]
        assert replica._node.actor_inbox._max_age == 10.0


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


def confirmed(number):
    """A leader says again that it has committed what this log lacks; this ends the replica."""
    return Message(M.CONTRADICTION_RESP, sender=2, term=99, log_index=1000, log_term=99, hint=number)


def contradict(one):
    """Say once that it lacks what is committed; return the confirmation of that."""
    one.tell(M.HEARTBEAT, sender=2, term=99, commit=1000)
    until(lambda: one.services.messages(M.CONTRADICTION))
    return confirmed(one.services.messages(M.CONTRADICTION)[-1].hint)


def fail_in_a_handler(one):
    one.ref.tell(Message(M.HEARTBEAT, sender=2, term=99, commit="many"))


def break_an_invariant(one):
    one.ref.tell(contradict(one))


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
    [pytest.param(lambda one: one.ref.stop(), id="a stop"), pytest.param(fail_in_a_handler, id="a bug")],
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


PING = M.define("test_node.ping", 40_001)


def a_table(handler, **options):
    table = raft_handlers()
    table.on(PING, **options)(handler)
    return table


def fail(_raft, _message):
    raise ZeroDivisionError("a bug in a handler")


def test_a_handler_of_ones_own_type_that_fails_is_told_of_and_ends_nothing(node, caplog):
    one = node(handlers=a_table(fail)).lead()
    with caplog.at_level(logging.ERROR):
        one.ref.tell(Message(PING, sender=2))
        with pytest.raises(ZeroDivisionError, match="a bug in a handler"):
            one.ref.ask(Message(PING, sender=2), timeout=TIMEOUT_S)
        for _ in range(3):
            one.ref.tell(Message(PING, sender=2))
        assert settled(one.replica.propose(b"a")) == 1
    assert one.replica.counters["failed test_node.ping in LEADER"] == 5
    told = [record.getMessage() for record in caplog.records]
    assert [text.partition("(")[2] for text in told] == [f"{n} times by now)" for n in (1, 2, 4)]
    assert all("goes on, though its handler of test_node.ping has failed" in text for text in told)
    assert "a bug in a handler" in caplog.text


def test_what_a_handler_did_before_it_failed_stands(node):
    def send_and_fail(raft, message):
        raft.send(Message(PING, to=2))
        raise ZeroDivisionError

    one = node(members=THREE, handlers=a_table(send_and_fail)).follow(leader=3, term=5)
    one.ref.tell(Message(PING, sender=2))
    until(lambda: [message for _, message in one.services.sent if message.type is PING])


def in_a_built_in_handler(raft, message):
    raft.step(Message(M.HEARTBEAT, sender=2, term=99, commit=1000))
    raft.step(confirmed(raft.heard.doubt.number))


def in_a_built_in_handler_quietly(raft, message):
    with suppress(ProtocolViolation):
        in_a_built_in_handler(raft, message)


def in_a_guard(table):
    @table.guard
    def fail_in_a_guard(_raft, message):
        if message.type is PING:
            raise ZeroDivisionError

    return table


def in_a_wrapper(table, *, caught):
    @table.wrap(M.CONTRADICTION_RESP)
    def around(raft, message, inner):
        with suppress(*([ProtocolViolation] if caught else [])):
            inner(raft, message)

    return table


def exits(_raft, _message):
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("make", "type_"),
    [
        pytest.param(lambda: a_table(fail, fatal=True), PING, id="the table says so"),
        pytest.param(lambda: a_table(exits), PING, id="it wants to exit"),
        pytest.param(lambda: a_table(in_a_built_in_handler), PING, id="in a handler that it calls"),
        pytest.param(lambda: a_table(in_a_built_in_handler_quietly), PING, id="likewise, and caught"),
        pytest.param(lambda: in_a_guard(a_table(fail)), PING, id="in a guard"),
        pytest.param(lambda: in_a_wrapper(raft_handlers(), caught=False), None, id="inside a wrapper"),
        pytest.param(lambda: in_a_wrapper(raft_handlers(), caught=True), None, id="that catches it"),
    ],
)
@pytest.mark.parametrize("asks", [True, False])
def test_a_failure_that_may_leave_half_of_raft_done_ends_this_node_and_no_other(node, make, type_, asks):
    one, other = node(members=THREE, handlers=make()), node().lead()
    fatal = contradict(one) if type_ is None else Message(type_, sender=2)
    if asks:
        one.ref.ask(fatal, block=False)
    else:
        one.ref.tell(fatal)
    assert isinstance(one.reason(), BaseException)
    assert isinstance(settled(one.replica.read(None)), ReplicaStopped)
    assert settled(other.replica.propose(b"a")) == 1


def test_an_asker_of_a_step_that_breaks_an_invariant_is_told_and_the_node_ends(node):
    one = node(members=THREE)
    fatal = contradict(one)
    sent = list(one.services.sent)
    with pytest.raises(ProtocolViolation):
        one.ref.ask(fatal, timeout=TIMEOUT_S)
    assert isinstance(one.reason().__cause__, ProtocolViolation)
    assert one.services.sent == sent
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
    local = {*classes.values(), Introduced, ProposalsTaken, RequestsTaken, OwnMessagesTaken, Leave}
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
    assert +Counter(one.actor.actor_inbox.refusals) == {"messages": 1}


def test_entries_of_other_replicas_wait_up_to_a_bound_in_bytes_and_one_large_message_alone(node):
    """A leader that is refused hears nothing, and finds out by its next heartbeat. Control passes in any case."""
    one = node(members=THREE).follow()
    large = Entries([Run(1, 5, [bytes(2 << 20)])])
    half = Entries([Run(1, 5, [bytes(600_000)])])
    for first, second in ((large, half), (half, half)):
        with Held(one):
            one.ref.tell(Message(M.REPLICATE, sender=2, term=5, entries=first))
            with pytest.raises(SystemBusy, match="bytes of entries wait"):
                one.ref.tell(Message(M.REPLICATE, sender=2, term=5, entries=second))
            one.ref.tell(Message(M.HEARTBEAT, sender=2, term=5))
        one.settle()
        assert one.actor.actor_inbox.entry_bytes == 0
    assert one.actor.actor_inbox.refusals["messages"] == 2
    assert one.replica.status().last_index == 1


def test_each_lane_counts_what_it_refused(node):
    one = node(max_reads=2).lead()
    with Held(one):
        refused = [one.replica.propose_many([b"x"] * 100), *(one.replica.propose(b"y") for _ in range(3))][1:]
        refused += [one.replica.read(None) for _ in range(4)][2:]
    assert [type(settled(future)) for future in refused] == [SystemBusy] * 5
    assert +Counter(one.actor.actor_inbox.refusals) == {"proposals": 3, "requests": 2}


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


def read_old_entries(one):
    """The store has read old entries that the loop did not wait for."""
    one.loop.call(one.actor.entries_loaded, timeout=TIMEOUT_S)
    one.settle()


def test_that_old_entries_were_read_is_heard_though_the_disk_hangs(node):
    """What other replicas say is dropped meanwhile, as they say it again. This is said once."""
    one = node(members=THREE).lead()
    one.acknowledge(2, 3)
    one.services.hangs = True
    one.replica.propose(b"a")
    one.tick(T + 2)
    assert one.actor.disk.hangs
    one.tell(M.HEARTBEAT, sender=2, term=9)
    read_old_entries(one)
    assert one.replica.counters["messages while the disk hung"] == 1
    assert one.replica.counters["handled ENTRIES_LOADED in FOLLOWER"] == 1


@pytest.mark.parametrize("trouble", ["its inbox is full", "its disk hangs"])
def test_news_of_a_connection_is_heard_though(node, trouble):
    """Each is told once: a leader that missed that a lane has drained would send nothing for ever."""
    one = node(members=THREE).follow()
    future = one.replica.propose(b"a", timeout=TIMEOUT_S)
    one.settle()
    (proposal,) = one.services.messages(M.PROPOSE)
    if trouble == "its disk hangs":
        one.services.hangs = True
        one.tell(M.REPLICATE, sender=2, term=5, entries=Entries([Run(1, 5, [b"x"])]))
        one.tick(T + 2)
        assert one.actor.disk.hangs

    def tell():
        inbox = one.actor.actor_inbox
        inbox.capacity = len(inbox) if trouble == "its inbox is full" else inbox.capacity
        one.actor.hear(Message(M.UNREACHABLE, sender=2))
        one.actor.hear(Message(M.LANE_DRAINED, sender=2))
        one.actor.hear(not_sent(proposal))
        inbox.capacity = NodeActor.inbox_capacity

    one.loop.call(tell, timeout=TIMEOUT_S)
    assert isinstance(settled(future), RequestDropped)
    met = one.actor.tally.ignored + one.actor.tally.impossible
    assert {told for _, told in met} >= {M.UNREACHABLE, M.LANE_DRAINED}


def test_a_leader_sends_only_what_its_lane_has_room_for_and_goes_on_when_it_has_drained(node):
    one = node(members=THREE).lead()
    one.acknowledge(2, 3)
    one.services.lane = 0
    one.replica.propose(b"a")
    one.settle()
    before = len(one.services.messages(M.REPLICATE))
    one.services.lane = UNLIMITED
    one.loop.call(one.actor.hear, Message(M.LANE_DRAINED, sender=2), timeout=TIMEOUT_S)
    one.settle()
    (sent,) = one.services.messages(M.REPLICATE)[before:]
    assert (sent.to, [entry.payload for entry in sent.entries]) == (2, [b"a"])


@pytest.mark.parametrize("expired", [False, True])
def test_a_log_query_whose_entries_are_on_the_disk_is_answered_when_they_are_read(node, monkeypatch, expired):
    """The next one waits for its turn. One that has passed its deadline by then takes no answer from another."""
    one = node().lead()
    settled(one.replica.propose_many([b"a", b"b"]))
    log = one.actor.raft.log
    entries = log.entries

    def absent(*_):
        raise EntriesNotLoaded

    with monkeypatch.context() as patch:
        patch.setattr(log, "entries", absent)
        first, second = (one.replica.query_log(at, at + 1, timeout=TIMEOUT_S) for at in (2, 3))
        one.settle()
        read_old_entries(one)
        assert not first.done
        assert not second.done
    if expired:
        one.actor.clients.log_queries._asked.future.try_fail(RequestDropped("too late"))
    read_old_entries(one)
    assert isinstance(settled(first), RequestDropped) if expired else settled(first) == entries(2, 3)
    assert settled(second) == entries(3, 4)


def test_what_a_handler_returns_is_the_answer_to_the_asker_and_messages_are_counted(node):
    ask, odd = M.define("test_node.ask", 40_002), M.define("test_node.odd", 40_003)
    table = raft_handlers()

    @table.on(ask)
    def answer(raft, message):
        return raft.state.name, message.payload

    table.impossible(odd, because="there is none in this test")
    one = node(handlers=table).lead()
    assert one.ref.ask(Message(ask, sender=2, payload=7), timeout=TIMEOUT_S) == ("LEADER", 7)
    with pytest.raises(RequestDropped, match="there is none in this test"):
        one.ref.ask(Message(odd, sender=2), timeout=TIMEOUT_S)
    one.tell(M.PING, sender=2)
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


def test_a_leader_on_a_full_disk_refuses_proposals_serves_reads_and_goes_on_when_there_is_room(node, caplog):
    one = node().lead()
    assert settled(one.replica.propose(b"a")) == 1
    one.services.space = 100
    outcome = settled(one.replica.propose(b"x" * 100))
    assert (type(outcome), outcome.outcome_known) == (DiskFull, True)
    assert "nothing was logged" in str(outcome)
    assert "replica 1" in str(outcome)
    assert settled(one.replica.read(None)) == [b"a"]
    assert one.replica.status().disk_full
    assert type(settled(one.replica.propose(b"b"))) is DiskFull
    one.tick()
    assert type(settled(one.replica.propose(b"b"))) is DiskFull
    one.services.space = None
    one.tick()
    assert settled(one.replica.propose(b"c")) == 2
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [text.split(": ")[0] for text in told] == ["replica 1 of shard 1"] * 2
    assert ["the disk of one:1 is full" in told[0], "the disk of one:1 has room again" in told[1]] == [
        True,
        True,
    ]
    assert not one.replica.status().disk_full
    assert one.replica.counters["proposals refused by a full disk"] == 3


def test_the_messages_of_one_turn_are_judged_together(node):
    """What was let through and is not saved yet takes room too."""
    one = node(members=THREE).lead()
    one.services.space = 100

    def three():
        for key in range(1, 4):
            proposal = Entries([Run(0, 0, [b"x" * 44], b"", 77, key)])
            one.ref.tell(Message(M.PROPOSE, sender=2, entries=proposal))

    one.loop.call(three)
    one.settle()
    assert [refused.hint_high for refused in one.services.messages(M.PROPOSE_REFUSED)] == [2, 3]
    assert [run.key for save in one.services.saves for run in save.runs if run.origin == 77] == [1]


def test_a_follower_on_a_full_disk_saves_no_entries_and_says_so(node):
    one = node(members=THREE).follow(leader=2, term=5)
    one.services.space = 20
    before = len(one.services.saves)
    entries = Entries([Run(1, 5, [b"x" * 50])])
    one.tell(M.REPLICATE, sender=2, term=5, entries=entries, commit=0)
    [answer] = one.services.messages(M.LOG_FULL)
    assert (answer.to, answer.log_index) == (2, 0)
    assert not any(save.runs for save in one.services.saves[before:])
    assert one.replica.counters["entries dropped by a full disk"] == 1
    one.services.space = None
    one.tick()
    one.tell(M.REPLICATE, sender=2, term=5, entries=entries, commit=0)
    assert one.services.messages(M.REPLICATE_RESP)[-1].log_index == 1


def test_a_leader_tells_which_peers_are_full(node):
    one = node(members=THREE).lead()
    one.tell(M.LOG_FULL, sender=3, term=1, log_index=0)
    assert one.replica.status().full_peers == (3,)


def test_a_leader_tells_which_peers_contradict_its_log(node, caplog):
    one = node(members=THREE).lead()
    one.acknowledge(2, 3)
    one.tell(M.CONTRADICTION, sender=3, term=1, log_index=1, hint=9)
    assert list(one.replica.status().frozen_peers) == [3]
    assert "replica 3 is not counted" in caplog.text


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


def confirm_its_removal(one):
    """As a leader does once a quorum knows it."""
    membership = Membership(voters={2: "b:2", 3: "c:3"}, removed=frozenset({1}))
    one.tell(M.REMOVED, sender=2, term=5, log_index=60, snapshot=Snapshot(60, 5, membership, witness=True))


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
    assert one.replica.status().ended is None, "others may need its vote"
    confirm_its_removal(one)
    one.tick()
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


# -- what its messages cost


def introduced(replica, address, founding=b""):
    return Introduced(ShardHello(1, replica, founding), home_number(address), address)


def test_the_host_that_brings_useless_messages_is_charged_for_them(node):
    one = node(members=THREE)
    one.ref.tell(introduced(2, "two:2"))
    one.ref.tell(introduced(3, "three:3"))
    one.follow(term=5)
    one.tell(M.REPLICATE, sender=2, term=5)
    assert one.services.charged == {}
    one.tell(M.HEARTBEAT, sender=3, term=4)
    one.tell(M.REPLICATE, sender=3, to=9, term=5)
    one.tell(M.REPLICATE_RESP, sender=2, term=5)
    assert one.services.charged == {"two:2": 1, "three:3": 2}


def test_what_its_own_host_tells_and_what_lets_a_shard_sleep_are_not_charged(node):
    one = node(members=THREE, quiesce=True)
    one.ref.tell(introduced(2, "two:2"))
    one.follow()
    for type_ in (M.UNREACHABLE, M.LANE_DRAINED, M.QUIESCE):
        one.tell(type_, sender=2)
    assert one.services.charged == {}


def test_strangers_are_charged_for_what_they_may_say_unless_they_lead(node):
    one = node(members=THREE)
    one.ref.tell(introduced(9, "nine:9"))
    one.ref.tell(introduced(2, "two:2"))
    for type_ in (M.REQUEST_PRE_VOTE, M.NEWBORN, M.REMOVAL_QUERY):
        one.tell(type_, sender=9, term=0 if type_ is M.NEWBORN else 1)
    one.tell(M.REQUEST_PRE_VOTE, sender=2, term=1)
    assert one.services.charged == {"nine:9": 3}
    one.tell(M.HEARTBEAT, sender=9, term=5)  # members that it has not heard of have elected it
    assert one.services.charged == {"nine:9": 3}


def test_messages_of_a_replica_that_is_refused_are_charged(node):
    one = node(members=THREE)
    one.ref.tell(introduced(1, "one:9"))
    one.tell(M.HEARTBEAT, sender=1, term=5)
    assert one.services.charged == {"one:9": 1}


# -- What another replica proposes

TEXT = b"a command that is compressed, " * 9
(ENCODED,), _ = compression.encode([TEXT])
BOMB = struct.pack(">BI", 1, MAX_COMMAND_BYTES + 1) + ENCODED[5:]
REQUEST = encode_request(5, 1, 0, b"x")
POISON = {
    "an encoded command that is none": (EntryKind.ENCODED, b"no zlib"),
    "one that is damaged": (EntryKind.ENCODED, ENCODED[:-1] + b"\0"),
    "one that says that it is too large": (EntryKind.ENCODED, BOMB),
    "one of an encoding to come": (EntryKind.ENCODED, b"\x02" + ENCODED[1:]),
    "a session's request that is none": (EntryKind.SESSION, REQUEST[:24]),
    "one whose command is none": (EntryKind.SESSION, b"\x01" + REQUEST[1:]),
    "an entry of a leader's own": (EntryKind.NO_OP, b""),
    "one that says where a replica lives": (EntryKind.SETTLED, encode_settled(1, 7)),
}


@pytest.mark.parametrize(("kind", "payload"), POISON.values(), ids=POISON)
def test_what_no_replica_could_apply_is_not_logged(node, kind, payload):
    """It would end every replica, and again at each start. What stands beside it in a message is not logged either."""
    machine = InlineLedger()
    one = node(machine, members=THREE).lead()
    before = one.replica.status().last_index
    kinds = bytes([EntryKind.COMMAND, kind])
    one.tell(M.PROPOSE, sender=2, entries=Entries([Run(0, 0, [b"a", payload], kinds, 7, 1)]))
    # What announces much is examined by a worker.
    until(lambda: one.actor.counters().get("faulty: proposed what no replica could apply") == 1)
    assert one.replica.status().last_index == before
    sound = Run(0, 0, [b"a", ENCODED, REQUEST], bytes([0, EntryKind.ENCODED, EntryKind.SESSION]), 7, 1)
    one.tell(M.PROPOSE, sender=2, entries=Entries([sound]))
    one.acknowledge(2, 3)
    until(lambda: machine.commands == [b"a", TEXT])
    assert one.replica.status().last_index == before + 3


MIB = 1 << 20


def encoded(*sizes, key=1):
    """A proposal of compressed commands, of so many bytes each."""
    payloads = [struct.pack(">BI", 1, size) + zlib.compress(bytes(size)) for size in sizes]
    return Entries([Run(0, 0, payloads, bytes([EntryKind.ENCODED] * len(sizes)), 7, key)])


def plain(command, key=1):
    return Entries([Run(0, 0, [command], b"", 7, key)])


class Examinations:
    """Counts the bytes that are decoded to examine proposals, on the loop and elsewhere."""

    def __init__(self, monkeypatch):
        self.here = self.elsewhere = 0
        monkeypatch.setattr(compression, "check", self._check)

    def _check(self, payload):
        if this_thread.loop is None:
            self.elsewhere += compression.announced(payload)
        else:
            self.here += compression.announced(payload)


@pytest.fixture
def examinations(monkeypatch):
    return Examinations(monkeypatch)


@pytest.fixture
def busy(pool):
    """No worker is free until the event is set."""
    free = threading.Event()
    for _ in range(pool.size):
        pool.submit(partial(free.wait, TIMEOUT_S))
    yield free
    free.set()


def logged(one):
    return one.replica.status().last_index


def test_what_takes_long_to_decode_is_examined_by_a_worker_and_not_on_the_loop(node, examinations):
    """1.6 MB of a message may be 1.6 GB of commands: seconds of the loop, for all shards of the host."""
    one = node(members=THREE).lead()
    before = logged(one)
    one.tell(M.PROPOSE, sender=2, entries=encoded(*[MIB] * 20))
    until(lambda: logged(one) == before + 20)
    assert (examinations.here, examinations.elsewhere) == (0, 20 * MIB)
    one.tell(M.PROPOSE, sender=2, entries=encoded(1000))
    assert logged(one) == before + 21
    assert 0 < examinations.here <= MAX_WORK_HERE


def test_many_small_commands_take_long_too(node, examinations):
    one = node(members=THREE).lead()
    one.tell(M.PROPOSE, sender=2, entries=encoded(*[1] * 1000))
    until(lambda: examinations.elsewhere == 1000)
    assert examinations.here == 0


@pytest.mark.parametrize(
    ("entries", "fault"),
    [
        pytest.param(encoded(2 * MIB + 1), False, id="one command is larger than this host takes"),
        pytest.param(plain(bytes(2 * MIB + 1)), False, id="likewise, as it is"),
        pytest.param(encoded(*[MIB] * 9), False, id="all of a message are larger together"),
        pytest.param(encoded(MAX_COMMAND_BYTES + 1), True, id="no host takes such a command"),
    ],
)
def test_what_announces_too_much_is_refused_before_anything_is_decoded(node, examinations, entries, fault):
    one = node(members=THREE, max_command_bytes=2 * MIB, max_message_bytes=4 * MIB).lead()
    before = logged(one)
    one.tell(M.PROPOSE, sender=2, entries=entries)
    until(lambda: not one.actor.proposed._waiting)
    one.settle()
    assert logged(one) == before
    assert (examinations.here, examinations.elsewhere) == (0, 0)
    refused = [message.payload for message in one.services.messages(M.PROPOSE_REFUSED)]
    assert refused == ([] if fault else ["TOO_LARGE"])
    assert one.actor.counters().get("faulty: proposed what no replica could apply", 0) == fault


def test_what_a_sender_proposes_stays_in_order_while_a_worker_examines(node, busy):
    one = node(members=THREE).lead()
    before = logged(one)
    one.tell(M.PROPOSE, sender=2, entries=encoded(MIB))
    one.tell(M.PROPOSE, sender=2, entries=plain(b"small", key=2))
    assert logged(one) == before
    assert one.actor.actor_inbox.entry_bytes > 0, "they count as waiting"
    one.tell(M.PROPOSE, sender=3, entries=plain(b"of another"))
    assert logged(one) == before + 1
    busy.set()
    until(lambda: logged(one) == before + 3)
    entries = one.loop.call(lambda: one.actor.raft.log.runs(before + 1, before + 4))
    kinds = [run.kinds or bytes(len(run)) for run in entries]
    assert b"".join(kinds) == bytes([0, EntryKind.ENCODED, 0])
    assert one.actor.actor_inbox.entry_bytes == 0


def test_senders_take_turns_and_each_may_have_so_many_waiting(node, busy):
    one = node(members=THREE).lead()
    before = logged(one)
    for key in range(MAX_WAITING + 2):
        one.ref.tell(Message(M.PROPOSE, sender=2, entries=encoded(2 * MAX_WORK_HERE, key=key + 1)))
    one.settle()
    assert [m.payload for m in one.services.messages(M.PROPOSE_REFUSED)] == ["TOO_MANY_UNCOMMITTED"] * 2
    one.tell(M.PROPOSE, sender=3, entries=encoded(2 * MAX_WORK_HERE, 2 * MAX_WORK_HERE, key=1))
    busy.set()
    until(lambda: logged(one) == before + MAX_WAITING + 2)
    first = one.loop.call(lambda: one.actor.raft.log.runs(before + 1, before + 4))
    assert [len(run) for run in first] == [1, 2], "that of the other sender came second"


def test_what_waits_for_a_worker_leaves_half_of_the_inbox_to_other_messages(node, busy):
    one = node(members=THREE).lead()
    before = logged(one)
    inbox = one.actor.actor_inbox
    for key in range(4):
        one.tell(M.PROPOSE, sender=2, entries=encoded(MIB, key=key + 1))
        if key == 0:  # three have room
            inbox._max_bytes = 7 * inbox.entry_bytes
    refused = one.services.messages(M.PROPOSE_REFUSED)
    assert [(m.to, m.payload, m.hint_high) for m in refused] == [(2, "TOO_MANY_UNCOMMITTED", 4)]
    one.tell(M.PROPOSE, sender=3, entries=encoded(MIB))  # the first one of another sender
    one.tell(M.PROPOSE, sender=1, entries=plain(b"small"))
    assert logged(one) == before + 1
    assert one.services.messages(M.PROPOSE_REFUSED) == refused
    busy.set()
    until(lambda: logged(one) == before + 5)
    assert (inbox.entry_bytes, one.actor.proposed._bytes) == (0, 0)
    one.tell(M.PROPOSE, sender=2, entries=encoded(MIB))
    until(lambda: logged(one) == before + 6)


def test_a_proposal_that_the_inbox_cannot_take_is_refused_unless_nothing_can_be_sent(node):
    one = node(members=THREE).lead()
    ask = Message(M.PROPOSE, sender=2, entries=plain(b"a", key=5))
    one.loop.call(lambda: one.actor.refuse_untaken(ask))
    until(lambda: one.services.messages(M.PROPOSE_REFUSED))
    (refusal,) = one.services.messages(M.PROPOSE_REFUSED)
    assert (refusal.to, refusal.hint, refusal.hint_high, refusal.log_index) == (2, 7, 5, 1)
    one.loop.call(lambda: one.actor.refuse_untaken(Message(M.HEARTBEAT, sender=2)))
    one.actor.disk.hangs = True
    one.loop.call(lambda: one.actor.refuse_untaken(ask))
    assert not one.actor.raft.has_ready


def test_a_replica_counts_as_a_member_where_it_has_introduced_itself(node):
    one = node(members=THREE)
    for replica, address in ((2, "two:2"), (9, "nine:9")):
        one.ref.tell(introduced(replica, address))
        one.tell(M.REQUEST_PRE_VOTE, sender=replica, term=1)
    known = one.actor.introductions
    assert known.is_members(2, "two:2")
    assert not known.is_members(2, "nine:9")
    assert not known.is_members(9, "nine:9")
    assert not known.is_members(3, "three:3")


def test_what_waits_for_a_worker_is_refused_once_the_leader_is_none(node, busy):
    one = node(members=THREE).lead()
    before = logged(one)
    for key in (1, 2):
        one.tell(M.PROPOSE, sender=2, entries=encoded(MIB, key=key))
    one.tell(M.PROPOSE, sender=3, entries=encoded(MIB))
    one.follow(leader=2, term=9)
    busy.set()
    until(lambda: len(one.services.messages(M.PROPOSE_REFUSED)) == 3)
    assert logged(one) == before
    assert one.actor.actor_inbox.entry_bytes == 0
    assert not one.actor.proposed._waiting


def test_a_proposal_that_a_worker_fails_to_examine_holds_up_no_others(node, monkeypatch, caplog):
    failures = [MemoryError("none is left")]

    def check(_payload):
        if failures:
            raise failures.pop()

    monkeypatch.setattr(compression, "check", check)
    one = node(members=THREE).lead()
    before = logged(one)
    one.tell(M.PROPOSE, sender=2, entries=encoded(MIB))
    one.tell(M.PROPOSE, sender=3, entries=encoded(MIB))
    until(lambda: logged(one) == before + 1)
    assert [m.payload for m in one.services.messages(M.PROPOSE_REFUSED)] == ["TOO_MANY_UNCOMMITTED"]
    assert "none is left" in caplog.text


def test_poison_is_charged_by_what_was_decoded_to_find_it(node):
    one = node(members=THREE)
    one.ref.tell(introduced(2, "two:2"))
    one.lead()
    (run,) = encoded(8 * MIB).runs
    one.tell(M.PROPOSE, sender=2, entries=Entries([Run(0, 0, [run.payloads[0] + b"more"], run.kinds, 7, 1)]))
    until(lambda: one.services.charged["two:2"] > 1000)


def test_a_node_that_stops_while_a_worker_examines_lets_go_of_it(node, busy):
    one = node(members=THREE).lead()
    one.tell(M.PROPOSE, sender=2, entries=encoded(MIB))
    assert one.ref.stop(timeout=TIMEOUT_S)
    busy.set()
    assert one.reason() is None
