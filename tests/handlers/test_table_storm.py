"""`TableCluster.storm`: protocols without Raft under random faults, and what a storm says of mistakes in them."""

import re
import traceback
from collections import Counter
from dataclasses import replace
from enum import IntEnum

import pytest
from drakkar.handlers import Extension, HandlerTable, Message, MessageType, handles
from drakkar.handlers.testing import TableCluster, Violation
from drakkar.handlers.testing.plan import Event
from drakkar.handlers.testing.storm_parts import Parts
from drakkar.handlers.testing.table_storm import TablePlan, draw_table_plan, run_table_storm

TOKEN = MessageType.define("token.pass", 1980)
TAKE = MessageType.define("token.take", 1981)
ASK = MessageType.define("token.ask", 1982)
BEAT = MessageType.define("token.beat", 1983)

UP, DOWN = MessageType.PEER_UP, MessageType.PEER_DOWN
NAMES = ["a", "b", "c"]


class Hands(IntEnum):
    EMPTY = 0
    FULL = 1


class Token(Extension):
    """Passes a token on: it is with one node at most, or on its way. It is lost with its node, or with its message."""

    def __init__(self, node):
        self.node = node
        self.up, self.beats = set(), 0
        self.asked = []
        node.every(3, Message(BEAT))

    @handles(TAKE)
    def take(self, message):
        """The first token."""
        self.node.state = Hands.FULL

    @handles(TOKEN)
    def receive(self, message):
        self.node.state = Hands.FULL
        self.node.publish_event("has it")
        for asked in self.asked:
            self.node.reply(asked, "here it is")
        self.asked.clear()

    @handles(ASK)
    def ask(self, message):
        self.asked.append(message)

    @handles(BEAT, Hands.FULL, elsewhere="it has none")
    def pass_on(self, message):
        self.beats += 1
        if self.up:
            self.node.send(Message(TOKEN, to=sorted(self.up)[self.beats % len(self.up)]))
            self.let_go()

    def let_go(self):
        self.node.state = Hands.EMPTY

    @handles(UP)
    def find(self, message):
        self.up.add(message.sender)

    @handles(DOWN)
    def lose(self, message):
        self.up.discard(message.sender)


class User:
    """Begins with one token, asks for it, and sees that it is not doubled."""

    def __init__(self):
        self.begun = False
        self.asks, self.answers = [], []

    def traffic(self, node, random):
        if not self.begun:
            self.begun = True
            node.step(Message(TAKE))
        self.asks.append(Message(ASK))
        node.step(self.asks[-1])

    def effects(self, node, ready):
        for answer in ready.answers:
            assert any(answer.message is asked for asked in self.asks)
            assert node.state is Hands.FULL
            self.answers.append(answer)

    def check(self, nodes):
        full = [name for name, node in nodes.items() if node.state is Hands.FULL]
        assert len(full) <= 1, f"{full} have it"


def storm(class_, seeds=20, **options):
    return TableCluster(NAMES, HandlerTable(Hands).use(class_), Hands.EMPTY).storm(range(seeds), **options)


def found(class_, seeds=20, **options):
    with pytest.raises(Violation) as caught:
        storm(class_, seeds, **options)
    assert "the schedule, reduced:" in str(caught.value)
    return caught.value


def all_are_up(nodes):
    for name, node in nodes.items():
        others = set(NAMES) - {name}
        assert node.extension(Token).up == others, f"{name} knows {node.extension(Token).up}"


def test_a_protocol_holds_under_faults_and_recovers_when_they_are_over():
    users = []

    def user():
        users.append(User())
        return users[-1]

    happened = storm(Token, user=user, settled=all_are_up)
    assert len(users) == 20
    assert sum(len(each.answers) for each in users) > 20
    for what in ("crash", "pause", "isolate", "cut", "partition", "clock", "a message was lost"):
        assert happened[what], f"no {what}"
    assert happened["PEER_DOWN came"] > 50 < happened["PEER_UP came"]


def test_the_same_seed_gives_the_same_run():
    plan = draw_table_plan(1, NAMES, ticks=40)

    def seen():
        said = []

        class Loud(Token):
            @handles(TOKEN)
            def receive(self, message):
                said.append((self.node.name, message.sender, self.node.tick_count))
                super().receive(message)

        nodes = NAMES, HandlerTable(Hands).use(Loud), Hands.EMPTY, None
        happened = run_table_storm(plan, nodes, Parts(user=User))
        return said, happened

    assert seen() == seen()
    assert seen()[0]


def test_a_storm_leaves_the_cluster_alone():
    cluster = TableCluster(NAMES, HandlerTable(Hands).use(Token), Hands.EMPTY)
    cluster.storm(range(2), user=User)
    assert {cluster[name].tick_count for name in NAMES} == {0}


def test_the_length_can_be_given():
    ticks = Counter()

    class Counts(Token):
        @handles(BEAT, Hands.FULL, Hands.EMPTY, replace=True)
        def pass_on(self, message):
            ticks[self.node.name] = max(ticks[self.node.name], self.node.tick_count)

    plan = TablePlan(ticks=10, calm=5)
    run_table_storm(plan, (NAMES, HandlerTable(Hands).use(Counts), Hands.EMPTY, None), Parts())
    assert set(ticks.values()) == {15}
    assert replace(draw_table_plan(3, NAMES, ticks=12, calm=4), events=()).ticks == 12
    assert draw_table_plan(3, NAMES, ticks=12, calm=4).calm == 4


def run(plan, **parts):
    return run_table_storm(plan, (NAMES, HandlerTable(Hands).use(Token), Hands.EMPTY, None), Parts(**parts))


def test_messages_are_lost_by_chance_until_the_calm():
    begin = Event(0, "traffic", ("a",))
    happened = run(TablePlan(ticks=100, loss=1.0, events=(begin,)), user=User)
    assert happened["a message was lost"] == 1
    assert not run(TablePlan(ticks=100, events=(begin,)), user=User)["a message was lost"]


def test_faults_end_by_themselves():
    def others_are_up(node, random):
        assert node.extension(Token).up == set(NAMES) - {node.name}

    for kind, args in (("isolate", ("a",)), ("crash", ("a",)), ("pause", ("a",)), ("partition", (3,))):
        seen = [Event(time, "traffic", (name,)) for time in (20, 21) for name in NAMES]
        run(TablePlan(ticks=22, calm=0, events=(Event(1, kind, (*args, 8)), *seen)), traffic=others_are_up)


def test_in_the_calm_news_is_quick():
    for seed in range(10):
        crash, cut = Event(1, "crash", ("a", 50)), Event(2, "cut", ("b", "c", True, 50))
        run(TablePlan(seed, ticks=20, calm=4, news=40, events=(crash, cut)), settled=all_are_up)


class TestWhatIsFound:
    def test_a_token_that_is_kept_until_it_surely_arrived(self):
        class Keeps(Token):
            def let_go(self):
                """Not before it hears that the next one has it: but it has it then."""

        caught = found(Keeps, user=User)
        assert caught.check == "your own check"
        assert "token.pass" in str(caught)

    def test_a_token_that_is_made_again_when_a_peer_is_down(self):
        """It may only be out of reach."""

        class Makes(Token):
            @handles(DOWN)
            def lose(self, message):
                super().lose(message)
                if not self.up:
                    self.node.state = Hands.FULL

        assert found(Makes, user=User).check == "your own check"

    def test_a_peer_that_is_never_known_again(self):
        class Unforgiving(Token):
            def __init__(self, node):
                super().__init__(node)
                self.gone = set()

            @handles(DOWN)
            def lose(self, message):
                super().lose(message)
                self.gone.add(message.sender)

            @handles(UP)
            def find(self, message):
                if message.sender not in self.gone:
                    super().find(message)

        caught = found(Unforgiving, settled=lambda nodes: all_are_up_in(nodes, Unforgiving))
        assert caught.check == "your check of the end"
        assert "PEER_DOWN" in str(caught)

    def test_an_invariant_of_an_extension(self):
        class Once(Token):
            def check(self):
                assert self.beats < 2, "it has passed it on twice"

        caught = found(Once, user=User)
        assert caught.check == "Once.check"

    def test_a_handler_that_fails(self):
        class Stumbles(Token):
            @handles(TOKEN)
            def receive(self, message):
                raise LookupError("no hands")

        caught = found(Stumbles, user=User)
        assert caught.check == "LookupError"
        assert "no hands" in str(caught)

    def test_an_answer_that_is_wrong(self):
        class Answers(Token):
            @handles(ASK)
            def ask(self, message):
                self.node.reply(message, "here it is")

        assert found(Answers, user=User).check == "your check of effects"

    def test_nodes_that_answer_each_other_for_ever(self):
        class Endless(Token):
            @handles(TOKEN)
            def receive(self, message):
                self.node.reply(message, TOKEN)

        caught = found(Endless, 5, user=User)
        assert caught.check == "AssertionError"
        assert "messages were exchanged in one tick" in str(caught)

    def test_the_schedule_is_as_small_as_can_be(self):
        class Forgets(Token):
            """It does not begin anew: it holds what an earlier life has held."""

            held = set()

            def __init__(self, node):
                super().__init__(node)
                if node.name in Forgets.held:
                    node.state = Hands.FULL

            @handles(TAKE)
            def take(self, message):
                super().take(message)
                Forgets.held.add(self.node.name)

            @handles(BEAT, Hands.FULL, elsewhere="it has none", replace=True)
            def pass_on(self, message):
                super().pass_on(message)
                Forgets.held.discard(self.node.name)

        class Crashes:
            def __init__(self):
                Forgets.held.clear()

            def traffic(self, node, random):
                node.step(Message(TAKE))

            def check(self, nodes):
                restarted = [node for node in nodes.values() if node.tick_count < 3]
                assert all(node.state is Hands.EMPTY for node in restarted), "it was held before"

        faults = [Event(2, "isolate", ("b", 4)), Event(3, "traffic", ("a",)), Event(4, "crash", ("a", 1))]
        plan = TablePlan(ticks=20, calm=10, loss=0.3, delay=0.5, news=3, events=tuple(faults))
        nodes = NAMES, HandlerTable(Hands).use(Forgets), Hands.EMPTY, None
        with pytest.raises(Violation) as caught:
            run_table_storm(plan, nodes, Parts(user=Crashes))
        reduced = str(caught.value).split("the schedule, reduced:\n")[1].split("\n\n")[0]
        assert "isolate" not in reduced
        assert "loss=0.0, delay=0.0, news=1" in reduced

    def test_what_is_shown_is_all_of_the_reduced_run(self):
        def not_long(nodes):
            ticks = max(node.tick_count for node in nodes.values())
            assert ticks < 5, f"it goes on after {ticks} ticks"

        with pytest.raises(Violation) as caught:
            storm(Token, settled=not_long, ticks=30)
        told = set(re.findall("after [0-9]+ ticks", "".join(traceback.format_exception(caught.value))))
        assert len(told) == 1


def all_are_up_in(nodes, class_):
    for name, node in nodes.items():
        assert node.extension(class_).up == set(NAMES) - {name}, f"{name} knows {node.extension(class_).up}"
