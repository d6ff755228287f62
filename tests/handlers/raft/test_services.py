"""What a replica offers to handlers of one's own: timers, answers, effects, and errors where they send what cannot be sent."""

from contextlib import suppress

import pytest
from drakkar.handlers import (
    LATER,
    ConfigError,
    Extension,
    HandlerTableError,
    Message,
    MessageType,
    Ready,
    State,
    handles,
    raft_handlers,
)
from drakkar.handlers.cells import SWALLOWED
from drakkar.handlers.effects import Answer, Told
from drakkar.handlers.testing import drain

from tests.handlers.raft.support import cluster, replica, tick

ASK = MessageType.define("services.ask", 1770)
WAKE = MessageType.define("services.wake", 1771, wakes=False)
QUIET = MessageType.define("services.member", 1772, from_members=True)
DURABLE = MessageType.define("services.durable", 1773, after_write=True)


def table_of(*handlers):
    """A table in which these functions handle `ASK`, `WAKE` …, by their order."""
    table = raft_handlers()
    for type_, handler in zip((ASK, WAKE), handlers, strict=False):
        table.on(type_)(handler)
    return table


class TestTimers:
    def test_its_ticks_are_those_of_the_replica_and_it_is_stepped_after_the_tick(self):
        seen = []
        raft = replica(
            handlers=table_of(print, lambda raft, message: seen.append((raft.timers.ticks, message.hint)))
        )
        raft.after(2, Message(WAKE, hint=1))
        timer = raft.every(3, Message(WAKE, hint=2))
        tick(raft, 7)
        timer.cancel()
        tick(raft, 7)
        assert seen == [(2, 1), (3, 2), (6, 2)]

    def test_the_sender_is_the_replica_so_guards_let_it_pass(self):
        table = raft_handlers()
        seen = []
        table.on(QUIET)(lambda raft, message: seen.append(message.sender))
        raft = replica(handlers=table)
        raft.after(1, Message(QUIET))
        raft.tick()
        assert seen == [1]

    def test_what_its_own_host_asks_passes_as_well_and_what_a_stranger_says_does_not(self):
        table = raft_handlers()
        table.on(QUIET)(lambda raft, message: "heard")
        raft = replica(handlers=table, term=1, leader=2)
        heard = [raft.step(Message(QUIET, sender=sender)) for sender in (0, 1, 2, 9)]
        assert heard == ["heard"] * 3 + [SWALLOWED]

    def test_a_mistake_is_reported_and_ends_nobody(self):
        def fail(raft, message):
            raise KeyError("x")

        raft = replica(handlers=table_of(print, fail))
        raft.after(1, Message(WAKE, hint=5))
        raft.tick()
        [failure] = drain(raft).failures
        assert (failure.message.hint, repr(failure.error)) == (5, "KeyError('x')")
        assert raft.tally.failed == {(State.FOLLOWER, WAKE): 1}
        assert raft.tally.broken is None

    def test_a_mistake_in_a_built_in_handler_that_it_calls_is_raised(self):
        table = table_of(
            print, lambda raft, message: raft.step(Message(MessageType.ELECTION, sender=raft.id))
        )

        @table.on(MessageType.ELECTION, State.FOLLOWER, replace=True)
        def fail(raft, message):
            raise KeyError("x")

        raft = replica(handlers=table)
        raft.after(1, Message(WAKE))
        with pytest.raises(KeyError):
            raft.tick()
        assert raft.tally.broken is not None

    def test_it_runs_on_while_the_shard_sleeps_and_wakes_it_only_if_its_type_says_so(self):
        seen = []
        handlers = table_of(*[lambda raft, message: seen.append(message.type)] * 2)
        shard = cluster(3, handlers=handlers, quiesce=True)
        shard.elect(1)
        shard[1].every(1, Message(WAKE))
        shard.tick(250)
        assert shard[1].quiesce.quiesced
        assert seen == [WAKE] * 250
        shard[1].after(1, Message(ASK))
        shard.tick()
        assert seen[-1] is ASK
        assert not shard[1].quiesce.quiesced

    def test_no_timer_costs_no_tick(self):
        raft = replica()
        tick(raft, 3)
        raft.after(2, Message(WAKE))
        assert raft.message_timers.waiting[0][0] == 2


class TestAnswers:
    @pytest.mark.parametrize("sender", [0, 1])
    def test_to_what_was_asked_in_this_process_it_is_a_value(self, sender):
        asked = Message(ASK, sender=sender)
        raft = replica(handlers=table_of(lambda raft, message: raft.reply(message, {"seen": 3})))
        raft.step(asked)
        out = drain(raft)
        assert (out.answers, list(out)) == ([Answer(asked, {"seen": 3})], [])

    def test_no_message_of_raft_was_asked_though_it_may_name_no_sender(self):
        """A peer at fault may send such a one; an answer with fields is no mistake of a handler's then."""
        raft = replica()
        raft.step(Message(MessageType.REQUEST_PRE_VOTE, sender=0, term=9, log_term=9, log_index=9))
        out = drain(raft)
        assert out.answers == []
        assert [(m.type, m.to) for m in out] == [(MessageType.REQUEST_PRE_VOTE_RESP, 0)]

    def test_to_another_replica_it_is_a_message(self):
        raft = replica(
            handlers=table_of(lambda raft, message: raft.reply(message, WAKE, payload={"seen": 3}))
        )
        raft.step(Message(ASK, sender=2))
        out = drain(raft)
        assert [(m.type, m.to, m.payload) for m in out] == [(WAKE, 2, {"seen": 3})]
        assert out.answers == []

    def test_one_may_come_later_by_a_message_of_a_peer(self):
        class Relay(Extension):
            """Asks the leader what it was asked."""

            def __init__(self, node):
                self.node = node
                self.asked = None

            @handles(ASK)
            def ask(self, message):
                if self.node.state is State.LEADER:
                    self.node.reply(message, WAKE, hint=42)
                else:
                    self.asked = message
                    self.node.send(Message(ASK, to=self.node.leader_id))

            @handles(WAKE)
            def answer(self, message):
                self.node.reply(self.asked, message.hint)

        table = raft_handlers()
        table.use(Relay)
        leader = replica(state=State.LEADER, terms=(1,), handlers=table)
        follower = replica(2, term=leader.term, leader=1, handlers=table)
        asked = Message(ASK)
        assert follower.step(asked) is LATER
        [question] = drain(follower)
        assert leader.step(question) is LATER
        [answer] = drain(leader)
        follower.step(answer)
        assert drain(follower).answers == [Answer(asked, 42)]

    @pytest.mark.parametrize("fields", [{}, {"payload": 1}], ids=["value", "value and payload"])
    def test_a_value_is_no_answer_to_another_replica(self, fields):
        raft = replica(handlers=table_of(lambda raft, message: raft.reply(message, {"seen": 3}, **fields)))
        with pytest.raises(
            ConfigError, match=r"reply=.*services.ask came from node 2, so the answer is a MessageType"
        ):
            raft.step(Message(ASK, sender=2))


class TestEffects:
    def test_they_are_handed_out_once_as_data(self):
        def handler(raft, message):
            raft.tell("a reference", "news")
            raft.publish_event({"asked": 1})

        raft = replica(handlers=table_of(handler))
        drain(raft)
        raft.step(Message(ASK))
        assert raft.has_ready
        ready = raft.ready()
        assert ready
        assert (ready.tells, ready.events) == ([Told("a reference", "news")], [{"asked": 1}])
        assert not raft.has_ready
        assert not raft.ready()

    @pytest.mark.parametrize("name", ["tells", "events", "answers", "failures"])
    def test_any_of_them_is_work(self, name):
        assert Ready(**{name: [1]})

    def test_most_have_none(self):
        ready = Ready()
        assert not (*ready.tells, *ready.events, *ready.answers, *ready.failures)


class TestSending:
    @pytest.mark.parametrize(
        ("payload", "named"),
        [
            pytest.param(bytes(9000), r"services.ask.*9003 bytes, and 8192 are allowed", id="too large"),
            pytest.param({1, 2}, "set cannot be sent", id="no plain value"),
            pytest.param(1 << 64, "more than 64 bits", id="a large number"),
        ],
    )
    def test_what_cannot_be_sent_is_an_error_of_its_sender(self, payload, named):
        raft = replica()
        drain(raft)
        with pytest.raises(ConfigError, match=named):
            raft.send(Message(ASK, to=2, payload=payload))
        assert not raft.has_ready

    def test_a_payload_is_sent_as_it_was_when_it_was_sent(self):
        raft, view = replica(), {"2": ["up"]}
        drain(raft)
        raft.send(Message(ASK, to=2, payload=view))
        view["2"].append("down")
        assert [m.payload for m in drain(raft)] == [{"2": ["up"]}]

    def test_a_type_says_whether_it_leaves_before_the_write(self):
        raft = replica(state=State.LEADER, terms=(1,))
        raft.step(Message(MessageType.PROPOSE, sender=1))
        raft.send(Message(ASK, to=2))
        raft.send(Message(DURABLE, to=2))
        ready = raft.ready()
        assert [m.type for m in ready.messages if m.type >= 1000] == [ASK]
        assert [m.type for m in ready.messages_after_save if m.type >= 1000] == [DURABLE]


class TestTheStart:
    def test_an_extension_that_cannot_be_made_is_named(self):
        class Fails(Extension):
            def __init__(self, node):
                raise OSError("no such thing")

            @handles(ASK)
            def ask(self, message):
                pass

        table = raft_handlers()
        table.use(Fails)
        with pytest.raises(
            HandlerTableError, match=r"Fails .* cannot be made: its __init__ raised OSError"
        ) as caught:
            replica(handlers=table)
        assert isinstance(caught.value.__cause__, OSError)

    def test_it_may_look_at_its_replica_and_set_timers(self):
        class Clock(Extension):
            def __init__(self, node):
                self.started_at = node.log.last_index
                self.timer = node.every(1, Message(WAKE))
                self.woken = 0

            @handles(WAKE)
            def wake(self, message):
                self.woken += 1

        table = raft_handlers()
        table.use(Clock)
        raft = replica(terms=(1, 1), handlers=table)
        tick(raft, 3)
        clock = raft.extension(Clock)
        assert (clock.started_at, clock.woken) == (2, 3)


def test_a_wrapper_around_a_hot_handler_may_fail_without_half_done_work_unnoticed():
    """An exception inside `inner` ends the replica, though the wrapper catches it."""

    class Quiet(Extension):
        @handles(MessageType.REPLICATE, State.FOLLOWER, wrap=True)
        def around(self, message, inner):
            with suppress(ZeroDivisionError):
                inner(message)

    table = raft_handlers()
    table.on(MessageType.REPLICATE, State.FOLLOWER, replace=True)(lambda raft, message: 1 / 0)
    table.use(Quiet)
    raft = replica(2, term=1, leader=1, handlers=table)
    raft.step(Message(MessageType.REPLICATE, sender=1, term=1))
    assert isinstance(raft.tally.broken, ZeroDivisionError)
