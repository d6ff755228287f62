"""The token ring: as five programs, and under faults, in which no number is that of two tokens."""

from itertools import count

import pytest
from drakkar.handlers import HandlerTable, Message
from drakkar.handlers.testing import TableCluster, Violation

from examples import ring
from examples.ring import PATIENCE, START, WORK, Ring, State
from tests.examples.support import Five

NAMES = [f"n{number}" for number in range(1, 6)]
LONGEST_WAIT = PATIENCE + PATIENCE * 4 // 5
ROUND = 5 * WORK


def started():
    cluster = TableCluster(NAMES, ring.table, State.NEW)
    for name in NAMES:
        cluster.tell(name, Message(START, payload=100))
    return cluster


def working(cluster):
    rings = {name: cluster[name].extension(Ring) for name in NAMES if cluster.nodes[name].runs}
    return {name: each.token for name, each in rings.items() if each.node.state is State.WORKING}


def test_one_makes_the_token_and_each_has_it_in_turn():
    cluster = started()
    cluster.tick(PATIENCE)
    assert working(cluster) == {"n1": (101, 0)}
    seen = []
    for _ in range(5):
        seen.append(working(cluster))
        cluster.tick(WORK)
    assert seen == [{name: (101, times)} for times, name in enumerate(NAMES)]
    assert working(cluster) == {"n1": (101, 5)}


def test_one_that_is_gone_is_passed_over_and_comes_back():
    cluster = started()
    cluster.tick(PATIENCE)
    cluster.crash("n3")
    cluster.tick(2 * ROUND)
    events = [event for name in NAMES for event in cluster.nodes[name].events]
    assert set(events) == {"works with token 101"}, "it was not lost with it"
    cluster.restart("n3")
    cluster.tell("n3", Message(START, payload=200))
    cluster.tick(ROUND)
    assert cluster["n3"].extension(Ring).token[0] == 101


def test_a_token_that_is_lost_with_its_holder_is_replaced_by_one_with_a_greater_number():
    cluster = started()
    cluster.tick(PATIENCE)
    [holder] = working(cluster)
    cluster.crash(holder)
    cluster.tick(LONGEST_WAIT + ROUND)
    [(number, _)] = working(cluster).values()
    assert number == 102


def test_of_five_that_are_cut_in_two_the_majority_goes_on_alone():
    cluster = started()
    cluster.tick(PATIENCE)
    cluster.isolate("n1", "n2")  # with the token
    cluster.tick(2 * LONGEST_WAIT)
    [(name, token)] = working(cluster).items()
    assert name not in {"n1", "n2"}
    cluster.heal()
    cluster.tick(2 * LONGEST_WAIT + ROUND)
    numbers = {cluster[name].extension(Ring).token[0] for name in NAMES}
    assert len(numbers) == 1
    assert numbers.pop() >= token[0]


# -- under faults


class Resource:
    """Starts nodes as their hosts do, with a number that grows as their clocks, and is what they work on."""

    def __init__(self):
        self.clock = count(1_000, 1_000)
        self.made, self.rings = {}, 0

    def check(self, nodes):
        for node in nodes.values():
            if node.state is State.NEW:
                node.step(Message(START, payload=next(self.clock)))
        rings = [node.extension(Ring) for node in nodes.values() if node.state is State.WORKING]
        numbers = [each.token[0] for each in rings]
        assert len(set(numbers)) == len(numbers), f"two work with token {numbers}"
        for each in rings:
            number, times = each.token
            if not times:
                assert self.made.setdefault(number, each) is each, f"token {number} is made twice"

    def settled(self, nodes):
        tokens = [node.extension(Ring).token for node in nodes.values()]
        assert len({number for number, _ in tokens}) == 1, f"all is repaired for long, and there are {tokens}"
        assert min(times for _, times in tokens) >= 5, (
            f"all is repaired for long, and none goes around: {tokens}"
        )


@pytest.fixture
def storm(monkeypatch):
    """Run storms of a hurried ring, in which tokens are often given up for lost; return how many were made in each."""
    monkeypatch.setattr(ring, "WORK", 1)
    monkeypatch.setattr(ring, "PATIENCE", 5)

    def run(class_=Ring, seeds=60):
        made = []

        class Counted(Resource):
            def settled(self, nodes):
                super().settled(nodes)
                made.append(len(self.made))

        cluster = TableCluster(NAMES, HandlerTable(State).use(class_), State.NEW)
        cluster.storm(range(seeds), user=Counted, ticks=100, calm=50)
        return made

    return run


def test_no_two_tokens_have_one_number_and_one_is_left_in_the_end(storm):
    made = storm()
    assert sum(made) > 5 * len(made), "tokens are lost, and made again"


class VotesTwice(Ring):
    def vote(self, claim):
        voted = self.voted
        super().vote(claim)
        self.voted = voted


class TakesTwoVotes(Ring):
    def count(self, vote):
        super().count(vote)
        if self.node.state is State.CLAIMING and len(self.votes) == 2:
            self.work(self.voted, 0)


class ForgetsItsVotes(Ring):
    def start(self, message):
        super().start(Message(START, payload=0))


class WaitsForEver(Ring):
    def become(self, state):
        super().become(state)
        if state is State.WAITING:
            self.timer.cancel()


class NeverComesBack(Ring):
    def note_up(self, news):
        pass


@pytest.mark.parametrize(
    ("mutant", "what"),
    [
        (VotesTwice, "token"),
        (TakesTwoVotes, "token"),
        (ForgetsItsVotes, "token"),
        (WaitsForEver, "none goes around"),
        (NeverComesBack, "all is repaired for long"),
    ],
)
def test_its_storm_catches_what_is_wrong(storm, mutant, what):
    with pytest.raises(Violation, match=what):
        storm(mutant)


# -- five programs


@pytest.mark.slow
def test_five_hosts_pass_the_token_and_go_on_without_the_one_that_is_killed(run):
    five = Five(run, "ring")
    for number, program in five.programs.items():
        program.wait_for(f"n{number} works with token ")
    five.programs[3].kill()
    others = [number for number in five.programs if number != 3]
    for _ in range(3):
        for number in others:
            program = five.programs[number]
            program.wait_for(f"n{number} works with token ", since=len(program.said))
    five.start(3).wait_for("n3 works with token ")
