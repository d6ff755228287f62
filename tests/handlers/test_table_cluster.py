"""`TableCluster`: nodes without Raft in scenarios, whose peers come and go as those of table actors do."""

from enum import IntEnum

import pytest
from drakkar.handlers import (
    LATER,
    SWALLOW,
    ConfigError,
    Extension,
    HandlerTable,
    Message,
    MessageType,
    RequestDropped,
    handles,
)
from drakkar.handlers.errors import ActorFailed
from drakkar.handlers.testing import TableCluster, Violation

SAY = MessageType.define("tables.say", 1970)
HEARD = MessageType.define("tables.heard", 1971)
ASK = MessageType.define("tables.ask", 1972)
RING = MessageType.define("tables.ring", 1973)

UP, DOWN = MessageType.PEER_UP, MessageType.PEER_DOWN


class Mood(IntEnum):
    CALM = 0
    CROSS = 1


class Gossip(Extension):
    """Tells all peers what it is told, and notes what it hears. An ask is answered when all peers have heard."""

    def __init__(self, node):
        self.node = node
        self.heard, self.news, self.rings = [], [], 0
        self.waiting = None
        node.every(2, Message(RING))

    @handles(SAY)
    def say(self, message):
        for peer in self.node.peers:
            self.node.send(Message(SAY if message.sender == 0 else HEARD, to=peer, payload=message.payload))
        if message.sender:
            self.heard.append((message.sender, message.payload))
            self.node.reply(message, HEARD, payload=message.payload)
        return "said"

    @handles(ASK, Mood.CALM, elsewhere="it is cross")
    def ask(self, message):
        self.waiting, self.missing = message, set(self.node.peers)
        for peer in self.node.peers:
            self.node.send(Message(SAY, to=peer, payload=message.payload))

    @handles(HEARD)
    def count(self, message):
        if self.waiting is not None:
            self.missing.discard(message.sender)
            if not self.missing:
                self.node.reply(self.waiting, sorted(self.node.peers))
                self.waiting = None

    @handles(UP)
    @handles(DOWN)
    def note(self, message):
        self.news.append((message.type, message.sender, message.payload))
        self.node.publish_event((message.type, message.sender))

    @handles(RING)
    def ring(self, message):
        self.rings += 1
        if self.node.state is Mood.CROSS:
            raise LookupError("it is cross")

    def check(self):
        assert ("b", "a lie") not in self.heard, "it has heard a lie"


def cluster_of(*names, **options):
    return TableCluster(names or ("a", "b", "c"), HandlerTable(Mood).use(Gossip), Mood.CALM, **options)


def gossip(cluster, name):
    return cluster[name].extension(Gossip)


def news(cluster, name):
    """What a node was told of its peers since the start."""
    return [(type_, peer) for type_, peer, _ in gossip(cluster, name).news[len(cluster[name].peers) :]]


class TestMessages:
    def test_they_are_delivered_and_their_answers_too(self):
        cluster = cluster_of("a", "b")
        cluster.tell("a", Message(SAY, payload=("hi", b"x")))
        assert gossip(cluster, "b").heard == [("a", ["hi", b"x"])]  # as it travels, with a list for the tuple
        assert [str(message.type) for message in cluster.seen] == [
            "tables.say",
            "tables.heard",
            "tables.heard",
        ]

    def test_what_a_receiver_does_to_a_message_is_seen_nowhere_else(self):
        cluster = cluster_of("a", "b")
        cluster.tell("a", Message(SAY, payload=["hi"]))
        gossip(cluster, "b").heard[0][1].append("changed")
        assert [message.payload for message in cluster.seen] == [["hi"]] * 3

    def test_what_is_told_to_a_node_directly_leaves_with_the_next_delivery(self):
        cluster = cluster_of("a", "b")
        cluster["a"].send(Message(HEARD, to="b"))
        assert cluster.deliver() == 1

    def test_an_ask_is_answered_at_once_or_later(self):
        cluster = cluster_of()
        assert cluster.ask("a", Message(SAY, payload=1)) == "said"
        assert cluster.ask("a", Message(ASK, payload=2)) == ["b", "c"]
        cluster.cut("a", "c")
        asked = Message(ASK, payload=3)
        assert cluster.ask("a", asked) is LATER
        cluster.heal()
        assert cluster.nodes["a"].answers[-1].value == ["b", "c"]
        cluster["a"].send(Message(SAY, to="c", payload=3))
        cluster.deliver()
        assert cluster.nodes["a"].answers[-1].message is asked

    def test_it_is_dropped_where_no_handler_takes_it(self):
        cluster = TableCluster(["a"], HandlerTable(Mood).use(Gossip), {"a": Mood.CROSS})
        with pytest.raises(RequestDropped, match=r"no handler took tables\.ask in CROSS: it is cross"):
            cluster.ask("a", Message(ASK))

    @pytest.mark.parametrize(("swallows", "reason"), [(False, "it is cross"), (True, "a guard swallowed it")])
    def test_the_reason_is_that_of_the_state_in_which_a_guard_leaves_the_node(self, swallows, reason):
        table = HandlerTable(Mood).use(Gossip)

        @table.guard
        def provoke(node, message):
            node.state = Mood.CROSS
            return SWALLOW if swallows else None

        with pytest.raises(RequestDropped, match=f"no handler took tables.ask in CROSS: {reason}"):
            TableCluster(["a"], table, Mood.CALM).ask("a", Message(ASK))

    @pytest.mark.parametrize("how", ["ask", "tell"])
    def test_only_what_runs_can_be_asked_and_only_of_a_type_of_ones_own(self, how):
        cluster = cluster_of()
        with pytest.raises(ConfigError, match="PEER_UP"):
            getattr(cluster, how)("a", Message(UP))
        cluster.crash("a")
        with pytest.raises(ActorFailed, match="a is down"):
            getattr(cluster, how)("a", Message(SAY))
        cluster.pause("b")
        with pytest.raises(ActorFailed, match="b is paused"):
            getattr(cluster, how)("b", Message(SAY))

    def test_those_of_one_link_keep_their_order_and_those_of_several_need_not(self):
        orders = set()
        for seed in range(20):
            cluster = cluster_of(seed=seed, auto_deliver=False)
            cluster.faults(reordering=0.7)
            for payload in range(4):
                for name in ("a", "b"):
                    cluster[name].send(Message(SAY, to="c", payload=payload))
            cluster.deliver()
            heard = gossip(cluster, "c").heard
            for name in ("a", "b"):
                assert [said for sender, said in heard if sender == name] == [0, 1, 2, 3]
            orders.add(tuple(sender for sender, _ in heard))
        assert len(orders) > 5

    def test_all_arrive_in_the_order_of_sending_where_nothing_is_overtaken(self):
        cluster = cluster_of(auto_deliver=False)
        for name in "abba":
            cluster.tell(name, Message(SAY, payload="hi"))
        cluster.deliver()
        assert [name for name, _ in gossip(cluster, "c").heard] == ["a", "b", "b", "a"]

    def test_some_are_lost(self):
        cluster = cluster_of("a", "b", seed=3, auto_deliver=False)
        cluster.faults(loss=0.5)
        for payload in range(20):
            cluster["a"].send(Message(HEARD, to="b", payload=payload))
        assert 0 < cluster.deliver() < 20
        assert len(cluster.lost) + len(cluster.seen) == 20
        cluster.heal()
        cluster.drop_next(HEARD)
        cluster["a"].send(Message(HEARD, to="b", payload=20))
        assert cluster.deliver() == 0

    def test_a_network_that_is_never_quiet_is_told(self):
        table = HandlerTable(Mood)
        table.on(SAY)(lambda node, message: node.send(Message(SAY, to=message.sender or "b")))
        cluster = TableCluster(["a", "b"], table, Mood.CALM, auto_deliver=False)
        cluster.tell("a", Message(SAY))
        with pytest.raises(AssertionError, match="not quiet after 50 messages"):
            cluster.deliver(limit=50)
        assert cluster.deliver_one()
        assert [str(message.type) for message in cluster.network] == ["tables.say"]


class TestPeers:
    def test_all_are_told_of_all_at_the_start(self):
        cluster = cluster_of()
        assert gossip(cluster, "a").news == [(UP, "b", "found"), (UP, "c", "found")]

    def test_nodes_know_those_that_they_are_given(self):
        cluster = cluster_of(peers={"a": ["b"], "b": ["a", "c"]})
        assert [cluster[name].peers for name in "abc"] == [("b",), ("a", "c"), ()]
        cluster.tell("b", Message(SAY, payload=1))
        assert [len(gossip(cluster, name).heard) for name in "abc"] == [1, 0, 0]  # c does not know b
        with pytest.raises(ConfigError, match="must be a node of this cluster: a, b, c"):
            cluster_of(peers={"a": ["d"]})

    def test_tables_and_states_may_differ(self):
        tables = {"a": HandlerTable(Mood).use(Gossip), "b": HandlerTable(Mood)}
        cluster = TableCluster(["a", "b"], tables, {"a": Mood.CALM, "b": Mood.CROSS})
        assert [cluster[name].state for name in "ab"] == [Mood.CALM, Mood.CROSS]
        cluster.tell("a", Message(SAY))
        assert cluster["b"].tally.ignored[Mood.CROSS, SAY] == 1
        assert cluster["a"].handlers is not tables["a"]  # each may change its own

    def test_one_that_crashes_is_down_some_ticks_later_and_what_is_sent_there_is_lost(self):
        cluster = cluster_of("a", "b", down_after=2)
        cluster.crash("b")
        cluster.tell("a", Message(SAY, payload=1))
        cluster.tick()
        assert news(cluster, "a") == []
        cluster.tick()
        assert gossip(cluster, "a").news[-1] == (DOWN, "b", "it was stopped")
        cluster.tick(5)
        assert news(cluster, "a") == [(DOWN, "b")]
        cluster.tell("a", Message(SAY, payload=2))
        assert [message.payload for message in cluster.lost] == [1, 2]

    def test_one_that_restarts_is_a_new_one(self):
        """Its peers are told first that the old one is down; until then they send to that."""
        cluster = cluster_of("a", "b", down_after=2)
        cluster.tell("a", Message(SAY, payload=1))
        cluster.restart("b")
        assert gossip(cluster, "b").heard == []
        cluster.tell("a", Message(SAY, payload=2))
        cluster.tick(3)
        assert news(cluster, "a") == [(DOWN, "b"), (UP, "b")]
        cluster.tell("a", Message(SAY, payload=3))
        assert gossip(cluster, "b").heard == [("a", 3)]
        assert [message.payload for message in cluster.lost] == [2]

    def test_what_an_earlier_life_has_sent_comes_to_no_later_life_of_the_receiver(self):
        cluster = cluster_of("a", "b", auto_deliver=False)
        cluster["a"].send(Message(SAY, to="b", payload=1))
        assert len(cluster.network) == 0
        cluster.tick(1, "a")
        for name in "ab":
            cluster.restart(name)
        cluster.tick()
        cluster["a"].send(Message(SAY, to="b", payload=2))
        cluster.deliver()
        assert gossip(cluster, "b").heard == [("a", 2)]

    def test_what_a_node_sends_before_it_has_found_a_peer_waits_and_is_lost_if_it_crashes_again(self):
        cluster = cluster_of("a", "b")
        cluster.restart("b")
        cluster.tell("b", Message(SAY, payload=1))
        assert [message.payload for message in cluster.network] == [1]
        cluster.restart("b")
        cluster.tell("b", Message(SAY, payload=2))
        cluster.tick()
        assert gossip(cluster, "a").heard == [("b", 2)]

    def test_a_peer_that_is_never_found_is_down_too(self):
        cluster = cluster_of("a", "b")
        cluster.crash("b")
        cluster.restart("a")
        cluster.tell("a", Message(SAY, payload=1))
        cluster.tick(3)
        assert gossip(cluster, "a").news == [(DOWN, "b", "it was stopped")]
        assert [message.payload for message in cluster.lost] == [1]

    @pytest.mark.parametrize("one_way", [False, True])
    def test_a_link_that_is_cut_tells_both_ends_and_so_does_its_repair(self, one_way):
        cluster = cluster_of("a", "b")
        (cluster.cut_one_way if one_way else cluster.cut)("a", "b")
        cluster.tell("b", Message(SAY, payload=1))
        assert len(gossip(cluster, "a").heard) == one_way
        cluster.tick(3)
        assert [news(cluster, name) for name in "ab"] == [[(DOWN, "b")], [(DOWN, "a")]]
        cluster.heal()
        cluster.tick()
        assert [news(cluster, name)[-1] for name in "ab"] == [(UP, "b"), (UP, "a")]

    def test_a_link_that_is_repaired_in_time_tells_nobody(self):
        cluster = cluster_of("a", "b")
        for _ in range(2):
            cluster.isolate("a")
            cluster.tick(2)
            cluster.heal()
            cluster.tick()
        assert news(cluster, "a") == []

    def test_a_node_that_stands_still_is_thought_to_be_gone(self):
        cluster = cluster_of("a", "b")
        cluster.pause("b")
        cluster.tell("a", Message(SAY, payload=1))
        rings = gossip(cluster, "b").rings
        cluster.tick(2)
        assert gossip(cluster, "b").rings == rings
        cluster.resume("b")
        assert gossip(cluster, "b").heard == [("a", 1)]  # it went on in time
        cluster.pause("b")
        cluster.tell("a", Message(SAY, payload=2))
        cluster.tick(3)
        cluster.resume("b")
        assert gossip(cluster, "b").heard == [("a", 1)]
        assert gossip(cluster, "a").news[-1] == (DOWN, "b", "out of reach")

    def test_news_may_be_wrong(self):
        cluster = cluster_of()
        cluster.report_down("b", "a")
        assert [news(cluster, name) for name in "ac"] == [[(DOWN, "b")], []]
        cluster.tick()
        assert news(cluster, "a") == [(DOWN, "b"), (UP, "b")]

    def test_each_node_is_told_by_its_own_ticks(self):
        cluster = cluster_of()
        cluster.crash("b")
        cluster.tick(5, "a")
        assert [news(cluster, name) for name in "ac"] == [[(DOWN, "b")], []]


class TestHandlers:
    def test_what_they_ask_for_is_kept_over_all_lives(self):
        cluster = cluster_of("a", "b")
        cluster.restart("a")
        cluster.tick()
        assert cluster.nodes["a"].events == [(UP, "b"), (UP, "b")]

    def test_timers_are_due_by_the_ticks_of_their_node(self):
        cluster = cluster_of("a", "b")
        cluster.tick(5, "a")
        assert [gossip(cluster, name).rings for name in "ab"] == [2, 0]

    def test_the_error_of_a_timers_handler_is_raised_at_once(self):
        cluster = cluster_of("a", "b")
        cluster["a"].state = Mood.CROSS
        with pytest.raises(LookupError, match="it is cross"):
            cluster.tick(2)

    def test_invariants_of_ones_own_are_checked_after_each_step(self):
        cluster = cluster_of("a", "b")
        with pytest.raises(Violation, match=r"Gossip\.check: it has heard a lie"):
            cluster.tell("b", Message(SAY, payload="a lie"))

    def test_they_are_checked_after_an_ask_too(self):
        class Proud(Gossip):
            name = "proud"

            def check(self):
                assert self.waiting is None, "it waits"

        cluster = TableCluster(["a", "b"], HandlerTable(Mood).use(Proud), Mood.CALM)
        cluster.cut("a", "b")
        with pytest.raises(Violation, match="it waits"):
            cluster.ask("a", Message(ASK))
