"""`TableNode`: a node without Raft, whose states, peers and types are a user's own."""

from enum import IntEnum

import pytest
from drakkar.handlers import (
    LATER,
    ConfigError,
    EntryKind,
    Extension,
    HandlerTable,
    HandlerTableError,
    Message,
    MessageType,
    TableNode,
    delivers,
    handles,
)
from drakkar.handlers.cells import EMPTY
from drakkar.handlers.effects import MAX_EFFECTS, Answer, Told
from drakkar.handlers.errors import SystemBusy

PRESS = MessageType.define("node.press", 1740)
WAKE = MessageType.define("node.wake", 1741)
MARK = EntryKind.define("node.mark", 240)


class Light(IntEnum):
    RED = 0
    GREEN = 1


def node_of(handler=lambda node, message: None, *, peers=("b", "c")):
    table = HandlerTable(Light)
    table.on(PRESS)(handler)
    return TableNode("a", table, Light.RED, peers)


def pressed(handler, **fields):
    """What a node hands out after one message."""
    node = node_of(handler)
    node.step(Message(PRESS, **fields))
    return node.ready()


class TestWhatItHandsOut:
    def test_messages_go_to_peers_by_name_and_say_who_sent_them(self):
        ready = pressed(lambda node, message: node.send(Message(WAKE, to="c", payload="hello")))
        assert [(m.type, m.to, m.sender, m.payload) for m in ready.messages] == [(WAKE, "c", "a", "hello")]
        assert str(ready.messages[0]) == "a->c node.wake payload='hello'"

    def test_a_payload_is_sent_as_it_was_when_it_was_sent(self):
        """Though it is state of the sender that changes before the host takes the message."""

        def send(node, message):
            view = {"c": ["up"]}
            node.send(Message(WAKE, to="b", payload=view))
            view["c"].append("down")
            node.send(Message(WAKE, to="c", payload=view))

        assert [m.payload for m in pressed(send).messages] == [{"c": ["up"]}, {"c": ["up", "down"]}]

    def test_a_reply_to_a_peer_is_a_message(self):
        ready = pressed(lambda node, message: node.reply(message, WAKE, hint=7), sender="b")
        assert [(m.type, m.to, m.hint) for m in ready.messages] == [(WAKE, "b", 7)]
        assert ready.answers == []

    @pytest.mark.parametrize("sender", [0, "a"])
    def test_a_reply_to_what_was_asked_here_is_a_value(self, sender):
        asked = Message(PRESS, sender=sender)
        node = node_of(lambda node, message: node.reply(message, {"seen": 3}))
        node.step(asked)
        ready = node.ready()
        assert ready.answers == [Answer(asked, {"seen": 3})]
        assert ready.answers[0].message is asked
        assert ready.messages == []

    def test_effects_are_data(self):
        def handler(node, message):
            node.tell("a reference", "news")
            node.publish_event({"pressed": 1})

        ready = pressed(handler)
        assert (ready.tells, ready.events) == ([Told("a reference", "news")], [{"pressed": 1}])

    def test_each_piece_is_handed_out_once(self):
        node = node_of(lambda node, message: (node.send(Message(WAKE, to="b")), node.tell(1, 2)))
        assert not node.has_ready
        node.step(Message(PRESS))
        assert node.has_ready
        node.ready()
        assert not node.has_ready
        ready = node.ready()
        assert [ready.messages, ready.tells, ready.events, ready.answers, ready.failures] == [[]] * 5

    @pytest.mark.parametrize("call", [lambda node: node.tell(1, 2), lambda node: node.publish_event(1)])
    def test_they_are_bounded(self, call):
        node = node_of()
        for _ in range(MAX_EFFECTS):
            call(node)
        with pytest.raises(SystemBusy, match=r"10000 .* wait already for the end of this batch"):
            call(node)
        node.ready()
        call(node)


class TestTime:
    def test_timers_step_messages_to_the_node(self):
        table = HandlerTable(Light)
        seen = []
        table.on(WAKE)(lambda node, message: seen.append((node.tick_count, message.sender, message.hint)))
        node = TableNode("a", table, Light.RED)
        node.after(2, Message(WAKE, hint=1))
        timer = node.every(2, Message(WAKE, hint=2))
        for _ in range(4):
            node.tick()
        timer.cancel()
        for _ in range(4):
            node.tick()
        assert seen == [(2, "a", 1), (2, "a", 2), (4, "a", 2)]

    def test_a_mistake_in_a_handler_of_ones_own_is_reported_and_others_are_stepped(self):
        table = HandlerTable(Light)
        seen = []

        @table.on(WAKE)
        def wake(node, message):
            if message.hint == 1:
                raise KeyError("x")
            seen.append(message.hint)

        node = TableNode("a", table, Light.RED)
        for hint in (1, 2):
            node.after(1, Message(WAKE, hint=hint))
        node.tick()
        [failure] = node.ready().failures
        assert (failure.message.hint, repr(failure.error)) == (1, "KeyError('x')")
        assert seen == [2]
        assert node.tally.failed == {(Light.RED, WAKE): 1}

    def test_a_fatal_one_is_raised(self):
        table = HandlerTable(Light)

        @table.on(WAKE, fatal=True)
        def wake(node, message):
            raise KeyError("x")

        node = TableNode("a", table, Light.RED)
        node.after(1, Message(WAKE))
        with pytest.raises(KeyError):
            node.tick()
        assert not node.ready().failures

    def test_an_extension_sets_timers_when_it_is_made(self):
        class Clock(Extension):
            def __init__(self, node):
                self.woken = 0
                node.every(1, Message(WAKE))

            @handles(WAKE)
            def wake(self, message):
                self.woken += 1

        table = HandlerTable(Light)
        table.use(Clock)
        node = TableNode("a", table, Light.RED)
        node.tick()
        node.tick()
        assert node.extension(Clock).woken == 2


class TestPeers:
    def test_news_of_them_is_a_message_that_a_table_may_have_a_row_for(self):
        table = HandlerTable(Light)
        table.on(MessageType.PEER_DOWN)(lambda node, message: (message.sender, message.payload))
        node = TableNode("a", table, Light.RED, ["b"])
        assert node.step(Message(MessageType.PEER_DOWN, sender="b", payload="its host is gone")) == (
            "b",
            "its host is gone",
        )
        assert isinstance(node.step(Message(MessageType.PEER_UP, sender="b")), EMPTY)
        assert node.tally.ignored == {(Light.RED, MessageType.PEER_UP): 1}


class TestMistakes:
    @pytest.mark.parametrize(
        ("message", "named"),
        [
            pytest.param(Message(WAKE, to="d"), "to='d': must be the name of a peer: b, c", id="no peer"),
            pytest.param(Message(WAKE, to="a"), "to='a': must be the name of a peer", id="itself"),
            pytest.param(Message(WAKE), "to=0: must be the name of a peer", id="nobody"),
            pytest.param(
                Message(MessageType.PING, to="b"),
                r"message=PING\(5\): nodes send types of your own",
                id="Raft's",
            ),
            pytest.param(
                Message(WAKE, to="b", payload=bytes(9000)),
                "node.wake.*9003 bytes, and 8192 are allowed",
                id="large",
            ),
            pytest.param(Message(WAKE, to="b", payload={1, 2}), "set cannot be sent", id="no plain value"),
            pytest.param(Message(WAKE, to="b", hint=-1), "hint=-1", id="a negative number"),
        ],
    )
    def test_what_cannot_be_sent_is_named(self, message, named):
        node = node_of()
        with pytest.raises(ConfigError, match=named):
            node.send(message)
        assert not node.has_ready

    def test_a_node_without_peers_says_so(self):
        with pytest.raises(ConfigError, match="there is none"):
            node_of(peers=()).send(Message(WAKE, to="b"))

    def test_a_value_is_no_reply_to_a_peer(self):
        with pytest.raises(ConfigError, match=r"reply=.*came from node b, so the answer is a MessageType"):
            pressed(lambda node, message: node.reply(message, {"seen": 3}), sender="b")

    def test_a_value_has_no_fields(self):
        with pytest.raises(ConfigError, match=r"reply='hint': node.press was asked in this process"):
            pressed(lambda node, message: node.reply(message, 3, hint=7))

    @pytest.mark.parametrize(
        ("name", "peers", "named"),
        [
            pytest.param("", ["b"], "name='': must be a string that is not empty", id="no name"),
            pytest.param(1, ["b"], "name=1", id="a number"),
            pytest.param("a", ["b", 2], "name=2", id="a number as peer"),
            pytest.param("a", ["b", "a"], "peers=.*other nodes than a, each once", id="itself"),
            pytest.param("a", ["b", "b"], "peers=", id="one twice"),
        ],
    )
    def test_names_tell_nodes_apart(self, name, peers, named):
        with pytest.raises(ConfigError, match=named):
            TableNode(name, HandlerTable(Light), Light.RED, peers)

    def test_a_state_of_another_table_is_refused(self):
        with pytest.raises(ConfigError, match="state='off': must be one of the table's states, RED, GREEN"):
            TableNode("a", HandlerTable(Light), "off")

    def test_a_table_with_a_hole_is_refused(self):
        table = HandlerTable(Light)
        table.on(PRESS, Light.RED)(lambda node, message: None)
        with pytest.raises(HandlerTableError, match=r"node.press in GREEN is undeclared"):
            TableNode("a", table, Light.RED)
        with pytest.raises(HandlerTableError, match="is no HandlerTable"):
            TableNode("a", {}, Light.RED)

    def test_an_extension_that_wants_records_is_refused_as_there_is_no_log(self):
        class Marks(Extension):
            @delivers(MARK)
            def mark(self, entry):
                pass

        table = HandlerTable(Light)
        table.use(Marks)
        with pytest.raises(HandlerTableError, match=r"node.mark.*a node without Raft has no log"):
            TableNode("a", table, Light.RED)


def test_an_answer_may_come_later():
    class Slow(Extension):
        def __init__(self, node):
            self.node = node
            self.asked = []

        @handles(PRESS)
        def press(self, message):
            self.asked.append(message)
            self.node.after(1, Message(WAKE))

        @handles(WAKE)
        def wake(self, message):
            for asked in self.asked:
                self.node.reply(asked, "at last")

    table = HandlerTable(Light)
    table.use(Slow)
    node = TableNode("a", table, Light.RED)
    asked = Message(PRESS)
    assert node.step(asked) is LATER
    assert not node.ready().answers
    node.tick()
    assert node.ready().answers == [Answer(asked, "at last")]
