"""Messages of an application's own types, told or asked from this process: each ask has an answer, and in time."""

import logging
import time

import pytest
from drakkar.actors.node import asks, inbox
from drakkar.actors.node.events import ExtensionEvent
from drakkar.actors.runtime import open_asks
from drakkar.handlers.errors import (
    ActorFailed,
    ConfigError,
    DeadlockError,
    OutcomeUnknown,
    ReplicaStopped,
    RequestDropped,
    SystemBusy,
)
from drakkar.handlers.extension import LATER, Extension, handles
from drakkar.handlers.messages import Message
from drakkar.handlers.payloads import PAYLOAD_LIMIT
from drakkar.handlers.raft.entries import Entries, Run
from drakkar.handlers.raft.matrix import raft_handlers
from drakkar.handlers.raft.state import Membership, Snapshot, State

from tests.actors.node.support import THREE, Held, M, T
from tests.actors.support import TIMEOUT_S, Notices, kept, settled, until

COUNT = M.define("test_asks.count", 40_101)
ASK = M.define("test_asks.ask", 40_102)
LET_GO = M.define("test_asks.let_go", 40_103)
NONE = M.define("test_asks.none", 40_104)
FAIL = M.define("test_asks.fail", 40_105)
FATAL = M.define("test_asks.fatal", 40_106)
EXIT = M.define("test_asks.exit", 40_107)
TELL = M.define("test_asks.tell", 40_108)
PUBLISH = M.define("test_asks.publish", 40_109)
TIMER = M.define("test_asks.timer", 40_110)
UNKNOWN = M.define("test_asks.unknown", 40_111)
SWALLOWED = M.define("test_asks.swallowed", 40_112)


class Desk(Extension):
    """Answers what is asked: at once, later, or never."""

    def __init__(self, node):
        self.node, self.told, self.waiting = node, [], []

    @handles(COUNT)
    def count(self, message):
        self.told.append(message.payload)
        return len(self.told)

    @handles(ASK)
    def take(self, message):
        self.waiting.append(message)

    @handles(LET_GO)
    def let_go(self, message):
        waiting, self.waiting = self.waiting, []
        for asked in waiting:
            self.node.reply(asked, (asked.payload, message.payload))
        return len(waiting)

    @handles(NONE, State.LEADER, elsewhere="only a leader is asked for it")
    def nothing(self, message):
        return "led"

    @handles(FAIL)
    def fail(self, message):
        raise ZeroDivisionError("a bug in a handler")

    @handles(FATAL, fatal=True)
    def half_done(self, message):
        raise ZeroDivisionError("half done")

    @handles(EXIT)
    def leave(self, message):
        raise SystemExit(7)

    @handles(TELL)
    def pass_on(self, message):
        ref, text = message.payload
        self.node.tell(ref, text)
        return "told"

    @handles(PUBLISH)
    def publish(self, message):
        self.node.publish_event(message.payload)
        return "published"

    @handles(TIMER)
    def set_timer(self, message):
        self.node.after(1, Message(FAIL))
        return "set"


def a_table():
    table = raft_handlers()
    table.use(Desk)
    table.on(SWALLOWED)(lambda _node, _message: "taken")
    table.guard(swallow)
    return table


def swallow(_node, message):
    return message.type is SWALLOWED or None


@pytest.fixture
def one(node):
    return node(handlers=a_table())


def ask(one, type_, payload=None, **options):
    return one.replica.ask(Message(type_, payload=payload), block=False, **options)


def desk(one):
    return one.actor.raft.extension(Desk)


def test_what_a_method_returns_is_the_answer_and_what_is_told_before_is_handled_before(one):
    one.replica.tell(Message(COUNT, payload="a"))
    assert one.replica.ask(Message(COUNT, payload="b")) == 2
    assert settled(ask(one, COUNT, "c")) == 3
    assert desk(one).told == ["a", "b", "c"]


def test_a_method_that_returns_nothing_answers_later(one):
    first, second = ask(one, ASK, 1), ask(one, ASK, 2)
    one.settle()
    assert not first.done
    assert not second.done
    assert settled(ask(one, LET_GO, "now")) == 2
    assert (settled(first), settled(second)) == ((1, "now"), (2, "now"))
    assert len(one.actor.asks.open) == 0


def test_the_same_message_that_is_asked_twice_has_two_answers(one):
    """A handler is given a copy, and what the asker does with its own changes nothing."""
    message = Message(ASK, payload=1)
    futures = [one.replica.ask(message, block=False) for _ in range(2)]
    one.settle()
    message.payload = 2
    settled(ask(one, LET_GO))
    assert [settled(future) for future in futures] == [(1, None), (1, None)]


def test_one_that_is_asked_by_pykkas_ask_may_be_answered_later_too(one):
    future = one.ref.ask(Message(ASK, payload=1), block=False)
    one.settle()
    assert not future.done
    one.replica.tell(Message(LET_GO, payload="now"))
    assert settled(future) == (1, "now")
    one.ref.tell(Message(ASK, payload=2))
    one.settle()
    assert len(one.actor.asks.open) == 0, "nobody waits for it"


def test_one_object_that_is_asked_twice_by_pykkas_ask_has_two_answers(one):
    message = Message(ASK, payload=1)
    futures = [one.ref.ask(message, block=False) for _ in range(2)]
    one.settle()
    assert settled(ask(one, LET_GO, "now")) == 2
    assert [settled(future) for future in futures] == [(1, "now")] * 2
    assert one.replica.counters["answers that nobody waited for"] == 0


def test_pykkas_ask_may_take_longer_than_the_default_of_others_but_not_for_ever(node):
    later = [0.0]
    one = node(handlers=a_table(), now=lambda: time.monotonic() + later[0])
    future = one.ref.ask(Message(ASK), block=False)
    one.settle()
    later[0] = open_asks.ANSWER_TIMEOUT_S - 1
    one.tick()
    assert not future.done
    later[0] = open_asks.ANSWER_TIMEOUT_S
    one.tick()
    assert type(settled(future)) is OutcomeUnknown


def test_pykkas_ask_and_tell_hear_why_no_handler_takes_it_and_keep_their_order(one):
    assert type(settled(one.ref.ask(Message(NONE), block=False))) is RequestDropped
    with Held(one):
        asked = one.ref.ask(Message(COUNT, payload="a"), block=False)
        one.ref.tell(Message(COUNT, payload="b"))
    assert settled(asked) == 1
    one.settle()
    assert desk(one).told == ["a", "b"]


def test_an_answer_that_nobody_waits_for_is_counted_and_dropped(one):
    one.replica.tell(Message(ASK))
    assert settled(ask(one, LET_GO)) == 1
    one.settle()
    assert one.replica.counters["answers that nobody waited for"] == 1


def test_an_exception_is_the_answer_and_the_replica_goes_on(one, caplog):
    for _ in range(2):
        outcome = settled(ask(one, FAIL))
        assert type(outcome) is ZeroDivisionError
    one.replica.tell(Message(FAIL))
    assert one.replica.ask(Message(COUNT)) == 1
    assert one.actor.tally.failed[one.actor.raft.state, FAIL] == 3
    assert (
        sum("goes on, though its handler of test_asks.fail" in each.getMessage() for each in caplog.records)
        == 2
    )


@pytest.mark.parametrize(
    ("type_", "why"),
    [
        pytest.param(
            NONE, "is a follower: only a leader is asked for it; ask another replica", id="elsewhere"
        ),
        pytest.param(UNKNOWN, "a message type that this table does not know", id="unknown"),
        pytest.param(SWALLOWED, "did not take test_asks.swallowed: a guard swallowed it", id="swallowed"),
    ],
)
def test_what_no_handler_takes_is_answered_with_the_reason(one, type_, why):
    outcome = settled(ask(one, type_))
    assert type(outcome) is RequestDropped
    assert why in str(outcome)
    assert outcome.outcome_known
    one.replica.tell(Message(type_))
    one.settle()


def test_the_state_of_the_moment_decides(one):
    one.lead()
    assert settled(ask(one, NONE)) == "led"


# -- deadlines and bounds


def test_a_handler_that_never_replies_is_named_by_the_deadline(node):
    later = [0.0]
    one = node(handlers=a_table(), now=lambda: time.monotonic() + later[0])
    future, other = ask(one, ASK, timeout=3), ask(one, ASK, timeout=300)
    one.tick()
    assert not future.done
    later[0] = 3.0
    one.tick()
    assert not other.done
    outcome = settled(future)
    assert type(outcome) is OutcomeUnknown
    late = "Desk.take, which replica 1 of shard 1 has for test_asks.ask, has not replied by the deadline"
    assert late in str(outcome)
    assert settled(ask(one, LET_GO, timeout=300)) == 2
    assert type(settled(other)) is tuple
    assert one.replica.counters["answers that nobody waited for"] == 1


def test_one_that_the_replica_has_not_taken_by_its_deadline_has_no_effect(one):
    with Held(one):
        future = ask(one, COUNT, timeout=0.0)
    outcome = settled(future)
    assert type(outcome) is RequestDropped
    assert "before the replica, which is busy or starts, took it" in str(outcome)
    assert desk(one).told == []


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), "3"])
def test_a_timeout_that_is_none_is_refused_at_once(one, timeout):
    with pytest.raises(ConfigError, match=r"timeout=.*seconds"):
        ask(one, COUNT, timeout=timeout)


def test_open_asks_are_bounded(one, monkeypatch):
    monkeypatch.setattr(open_asks, "MAX_ASKS", 2)
    futures = [ask(one, ASK) for _ in range(3)]
    outcome = settled(futures[2])
    assert type(outcome) is SystemBusy
    assert "2 asks that replica 1 of shard 1 has taken have no answer yet" in str(outcome)
    one.replica.tell(Message(LET_GO))
    assert [type(settled(future)) for future in futures[:2]] == [tuple, tuple], "and there is room again"
    assert settled(ask(one, COUNT)) == 1


def test_messages_that_wait_are_bounded_in_number_and_in_bytes(node, monkeypatch):
    monkeypatch.setattr(inbox, "MAX_OWN_MESSAGES", 2)
    one = node(handlers=a_table())
    with Held(one):
        one.replica.tell(Message(COUNT))
        one.replica.tell(Message(COUNT))
        with pytest.raises(SystemBusy, match="2 messages of 0 bytes wait for replica 1 of shard 1"):
            one.replica.tell(Message(COUNT))
        assert type(settled(ask(one, COUNT))) is SystemBusy
    one.settle()
    assert one.replica.counters["own messages refused"] == 2
    monkeypatch.setattr(inbox, "MAX_OWN_MESSAGES", 10_000)
    two = node(handlers=a_table())
    large = bytes(PAYLOAD_LIMIT - 10)
    with Held(two):
        for _ in range((1 << 20) // len(large)):
            two.replica.tell(Message(COUNT, payload=large))
        with pytest.raises(SystemBusy, match=r"\d+ bytes wait for"):
            two.replica.tell(Message(COUNT, payload=large))


def test_many_messages_are_taken_in_several_turns_and_in_order(one, monkeypatch):
    monkeypatch.setattr(asks, "MAX_TURN_MESSAGES", 10)
    with Held(one):
        for number in range(35):
            one.replica.tell(Message(COUNT, payload=number))
    assert settled(ask(one, COUNT, "last")) == 36
    assert desk(one).told == [*range(35), "last"]


# -- what may be told


@pytest.mark.parametrize(
    ("message", "why"),
    [
        pytest.param("text", r"message='text': must be a Message, not str", id="no message"),
        pytest.param(
            Message(M.PROPOSE), r"message=PROPOSE.* is no type of your own .* use propose\(\)", id="Raft's"
        ),
        pytest.param(Message(M.LOCAL_TICK), "is no type of your own", id="a tick"),
        pytest.param(Message(COUNT, to=2), "to=2: leave it out: this goes to replica 1", id="another's"),
        pytest.param(Message(COUNT, sender=2), "sender=2: leave it out", id="of another"),
        pytest.param(Message(COUNT, entries=Entries([Run(1, 1, [b"x"])])), "use payload", id="entries"),
        pytest.param(
            Message(COUNT, snapshot=Snapshot(1, 1, Membership({1}))), "use payload", id="a snapshot"
        ),
        pytest.param(
            Message(COUNT, payload=bytes(9000)),
            "its payload takes 9003 bytes, and 8192 are allowed",
            id="large",
        ),
        pytest.param(
            Message(COUNT, payload=[object(), bytes(9000)]),
            "its payload takes at least 9005 bytes, and 8192 are allowed",
            id="large beside an object",
        ),
    ],
)
def test_what_may_not_be_told_is_refused_at_the_sender(one, message, why):
    with pytest.raises(ConfigError, match=why):
        one.replica.tell(message)
    outcome = settled(one.replica.ask(message, block=False))
    assert type(outcome) is ConfigError
    with pytest.raises(ConfigError, match=why):
        one.replica.ask(message)
    one.settle()
    assert desk(one).told == []


def test_the_id_of_the_replica_itself_may_be_named(one):
    assert one.replica.ask(Message(COUNT, to=1)) == 1


def test_a_thread_of_the_loop_may_ask_but_not_wait(one):
    with pytest.raises(DeadlockError, match=r"ask\(\) of <Replica 1 of shard 1>"):
        one.loop.call(one.replica.ask, Message(COUNT), timeout=TIMEOUT_S)
    assert one.loop.call(lambda: one.replica.ask(Message(COUNT), block=False), timeout=TIMEOUT_S) == 1
    one.loop.call(one.replica.tell, Message(COUNT), timeout=TIMEOUT_S)
    assert settled(ask(one, COUNT)) == 3


# -- a replica that cannot, or ends


def test_all_asks_are_answered_when_the_replica_stops(one):
    taken = ask(one, ASK)
    one.settle()
    with Held(one):
        one.ref.stop(block=False)
        waiting = ask(one, COUNT)
    assert type(settled(taken)) is ReplicaStopped
    assert not settled(taken).outcome_known
    assert "it had taken what was asked" in str(settled(taken))
    assert settled(waiting) == 1, "it was there before the replica stopped"
    late = settled(ask(one, COUNT))
    assert type(late) is ReplicaStopped
    assert late.outcome_known
    with pytest.raises(ReplicaStopped, match="was stopped"):
        one.replica.tell(Message(COUNT))


def test_a_handler_that_must_do_all_or_nothing_ends_the_replica_and_all_behind_it_hear_so(one):
    taken = ask(one, ASK)
    one.settle()
    with Held(one):
        failed, behind = ask(one, FATAL), ask(one, COUNT)
        one.replica.tell(Message(COUNT))
    assert type(settled(failed)) is ZeroDivisionError
    assert type(settled(behind)) is ReplicaStopped
    assert "failed before it took the message" in str(settled(behind))
    assert type(settled(taken)) is ReplicaStopped
    assert "stops, since a handler failed: ZeroDivisionError: half done" in str(one.reason())
    assert desk(one).told == []


def test_an_exit_is_no_answer_and_ends_the_replica(one):
    outcome = settled(ask(one, EXIT))
    assert type(outcome) is ActorFailed
    assert "SystemExit: 7" in str(outcome)
    assert type(one.reason()) is SystemExit


def test_while_the_disk_hangs_nothing_is_asked(node):
    one = node(members=THREE, handlers=a_table()).lead()
    one.acknowledge(2, 3)
    one.services.hangs = True
    one.replica.propose(b"a")
    one.tick(T + 2)
    assert one.actor.disk.hangs
    outcome = settled(ask(one, COUNT))
    assert type(outcome) is SystemBusy
    assert "disk" in str(outcome)
    for _ in range(2):
        with pytest.raises(SystemBusy, match="the disk of this host hangs"):
            one.replica.tell(Message(COUNT))
    one.ref.tell(Message(COUNT))
    one.settle()
    assert desk(one).told == []
    assert one.actor.unheard, "what could not be refused at once is counted"


def test_a_replica_that_its_shard_has_removed_says_so_to_who_tells_it(node):
    one = node(members=THREE, handlers=a_table()).follow()
    one.actor.removal.reason = ReplicaStopped("it was removed from its shard")
    with pytest.raises(ReplicaStopped, match="removed from its shard"):
        one.replica.tell(Message(COUNT))
    assert type(settled(ask(one, COUNT))) is ReplicaStopped
    assert desk(one).told == []


# -- effects


def test_a_message_to_another_actor_is_told_after_the_batch(one):
    notices = Notices.start()
    try:
        assert one.replica.ask(Message(TELL, payload=(notices, "hello"))) == "told"
        kept(notices).wait_for(lambda told: told == "hello")
    finally:
        notices.stop()


def test_one_that_an_actor_cannot_take_is_counted_and_ends_nobody(one, caplog):
    notices = Notices.start()
    notices.stop()
    for _ in range(3):
        assert one.replica.ask(Message(TELL, payload=(notices, "hello"))) == "told"
    one.settle()
    assert one.replica.counters["messages to other actors dropped"] == 3
    warned = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert len([text for text in warned if "it could not tell" in text]) == 2


def test_an_event_is_published_for_the_hosts_subscribers(one):
    assert one.replica.ask(Message(PUBLISH, payload={"seen": 3})) == "published"
    one.settle()
    assert ExtensionEvent(1, 1, {"seen": 3}) in one.services.events


def test_effects_do_not_wait_for_a_store_that_is_full_and_come_once(node):
    one = node(handlers=a_table()).lead()
    one.services.full = True
    with Held(one):
        one.replica.propose(b"a")
        one.replica.tell(Message(PUBLISH, payload="with a write"))
    one.settle()
    assert one.actor.persistence.stalled is not None
    later = ask(one, ASK)
    one.replica.tell(Message(PUBLISH, payload="behind it"))
    one.replica.tell(Message(LET_GO))
    assert settled(later) == (None, None)
    for _ in range(3):
        one.settle()
    published = [ExtensionEvent(1, 1, "with a write"), ExtensionEvent(1, 1, "behind it")]
    assert [event for event in one.services.events if event in published] == published
    one.services.full = False
    one.tick()
    assert [event for event in one.services.events if event in published] == published


def test_a_handler_that_fails_at_its_timer_is_logged_and_ends_nobody(one, caplog):
    assert one.replica.ask(Message(TIMER)) == "set"
    assert len(one.actor.raft.message_timers) == 1
    one.tick()
    assert any(
        "goes on, though its handler of test_asks.fail" in each.getMessage() for each in caplog.records
    )
    assert one.replica.ask(Message(COUNT)) == 1


# -- what is seen of it


def test_the_printed_table_shows_what_each_cell_has_counted(one):
    one.replica.ask(Message(COUNT))
    settled(ask(one, FAIL))
    (row,) = [line for line in one.replica.table().splitlines() if line.startswith("test_asks.count ")]
    assert "Desk.count 1" in row
    (row,) = [line for line in one.replica.table().splitlines() if line.startswith("test_asks.fail ")]
    assert "1 failed" in row


def test_a_plain_function_may_answer_later_by_saying_so(node):
    table, kept = raft_handlers(), []
    table.on(ASK)(lambda _node, message: kept.append(message) or LATER)
    table.on(COUNT)(lambda _node, _message: None)
    one = node(handlers=table)
    later = ask(one, ASK)
    assert settled(ask(one, COUNT)) is None
    until(lambda: kept)
    assert not later.done
    one.loop.call(one.actor.raft.reply, kept[0], "at last", timeout=TIMEOUT_S)
    one.actor.actor_inbox.wake()
    assert settled(later) == "at last"
