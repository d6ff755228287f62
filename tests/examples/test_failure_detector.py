"""The failure detector: as five programs, and under faults, after which all believe of all that they live."""

import pytest
from drakkar.handlers import HandlerTable, Message
from drakkar.handlers.testing import TableCluster, Violation

from examples import failure_detector
from examples.failure_detector import ALIVE, DEAD, OBJECTION, PERIOD, SUSPECT, State, Swim
from tests.examples.support import Five

NAMES = [f"n{number}" for number in range(1, 6)]
ROUND = 4 * PERIOD
"""Ticks in which a node pings each other once."""


def cluster_of(class_=Swim):
    return TableCluster(NAMES, HandlerTable(State).use(class_), State.ANSWERED)


def health(cluster, name):
    """What the others believe of a node."""
    running = (other for other in NAMES if other != name and cluster.nodes[other].runs)
    return {cluster[other].extension(Swim).beliefs[name][1] for other in running}


def test_as_long_as_all_answer_nothing_is_believed_of_anyone():
    cluster = cluster_of()
    cluster.tick(5 * ROUND)
    assert all(cluster[name].extension(Swim).beliefs == dict.fromkeys(NAMES, (0, ALIVE)) for name in NAMES)
    assert not any(cluster.nodes[name].events for name in NAMES)


def test_one_that_is_gone_is_suspected_and_then_dead_for_all_and_alive_when_it_is_back():
    cluster = cluster_of()
    cluster.crash("n3")
    cluster.tick(2 * ROUND)
    assert health(cluster, "n3") == {SUSPECT}
    cluster.tick((OBJECTION + 1) * PERIOD)
    assert health(cluster, "n3") == {DEAD}
    assert cluster.nodes["n1"].events == ["believes n3 suspect", "believes n3 dead"]
    cluster.restart("n3")
    cluster.tick(2 * ROUND)
    assert health(cluster, "n3") == {ALIVE}
    assert {health(cluster, name).pop() for name in NAMES} == {ALIVE}


def test_one_that_a_node_cannot_reach_itself_is_reached_through_others():
    cluster = cluster_of()
    cluster.cut("n1", "n2")
    cluster.tick((OBJECTION + 8) * PERIOD)
    assert health(cluster, "n1") == health(cluster, "n2") == {ALIVE}
    assert not any(cluster.nodes[name].events for name in NAMES)


def test_one_that_was_only_paused_objects_to_what_is_believed_of_it():
    cluster = cluster_of()
    cluster.pause("n3")
    cluster.tick(2 * ROUND)
    assert health(cluster, "n3") == {SUSPECT}
    cluster.resume("n3")
    cluster.tick(ROUND)
    assert health(cluster, "n3") == {ALIVE}
    assert {cluster[name].extension(Swim).beliefs["n3"] for name in NAMES} == {(1, ALIVE)}


def test_what_is_no_message_of_this_protocol_changes_nothing():
    cluster = cluster_of()
    beliefs = cluster["n1"].extension(Swim).beliefs
    for payload in (None, [], ["n1", "n2", {"n9": [1, 1]}], ["n1", "n2", {"n2": "x"}]):
        with pytest.raises((TypeError, ValueError, KeyError)):
            cluster.tell("n1", Message(failure_detector.PING, sender="n2", payload=payload))
    assert cluster["n1"].extension(Swim).beliefs == beliefs == dict.fromkeys(NAMES, (0, ALIVE))


def test_what_was_said_stays_as_it_was_said():
    node = cluster_of()["n1"]
    for _ in range(PERIOD):
        node.tick()
    [ping] = node.ready().messages
    node.extension(Swim).believe("n3", (0, DEAD))
    assert ping.payload[2] == {name: [0, ALIVE] for name in NAMES}


# -- under faults


class Observer:
    """Knows what each node has said of itself, and what is so."""

    def __init__(self):
        self.numbers = dict.fromkeys(NAMES, 0)

    def check(self, nodes):
        for name, node in nodes.items():
            number, health = node.extension(Swim).beliefs[name]
            self.numbers[name] = max(self.numbers[name], number)
            assert health == ALIVE, f"{name} believes that it is not alive itself"
        for name, node in nodes.items():
            for other, (number, _) in node.extension(Swim).beliefs.items():
                assert number <= self.numbers[other], f"{name} believes of {other} what that never said"

    def settled(self, nodes):
        for name, node in nodes.items():
            wrong = {other for other, (_, health) in node.extension(Swim).beliefs.items() if health != ALIVE}
            assert not wrong, f"{name} still believes that {wrong} are not alive"


def storm(class_=Swim, seeds=30):
    return cluster_of(class_).storm(range(seeds), user=Observer, calm=5 * ROUND)


def test_all_believe_in_the_end_what_is_so_whatever_happens():
    assert storm()["crash"]


class NeverObjects(Swim):
    def believe(self, name, belief):
        if name != self.node.name:
            super().believe(name, belief)


class ObjectsForOthers(Swim):
    def believe(self, name, belief):
        super().believe(name, (belief[0] + 1, ALIVE) if belief[1] == SUSPECT else belief)


class AgreesThatItIsDead(Swim):
    def believe(self, name, belief):
        if name == self.node.name:
            self.beliefs[name] = max(self.beliefs[name], belief)
        else:
            super().believe(name, belief)


@pytest.mark.parametrize(
    ("mutant", "what"),
    [
        (NeverObjects, "still believes that"),
        (AgreesThatItIsDead, "believes that it is not alive itself"),
        (ObjectsForOthers, "what that never said"),
    ],
)
def test_its_storm_catches_what_is_wrong(mutant, what):
    with pytest.raises(Violation, match=what):
        storm(mutant)


# -- five programs


@pytest.mark.slow
def test_all_learn_that_one_is_killed_and_that_it_is_back(run):
    five = Five(run, "failure_detector")
    for number in five.programs:
        five[number].wait_for("is here")
    five[3].kill()
    others = [number for number in five.programs if number != 3]
    for number in others:
        five[number].wait_for(f"n{number} believes n3 dead")
    heard = {number: len(five[number].said) for number in others}
    five.start(3)
    for number in others:
        five[number].wait_for(f"n{number} believes n3 alive", since=heard[number])
