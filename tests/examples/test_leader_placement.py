"""The leader goes to where most is proposed, and nowhere else, under faults too."""

from collections import Counter

import pytest
from drakkar.handlers import (
    Entry,
    Extension,
    Membership,
    Message,
    MessageType,
    State,
    handles,
    raft_handlers,
)
from drakkar.handlers.testing import Cluster, Violation

from examples import leader_placement
from examples.leader_placement import ENOUGH, PERIOD, Placement


def test_the_leader_follows_the_clients_on_real_hosts(run):
    program = run("leader_placement")
    status, _ = program.end()
    assert status == 0
    leads = [text for text in program.said if text.endswith(" leads")]
    assert leads == ["replica 1 leads", "replica 2 leads", "replica 3 leads"]
    assert any("is to lead, which made" in text for text in program.said)


def cluster_led_by_one():
    cluster = Cluster(3, handlers=leader_placement.table)
    cluster.elect(1)
    return cluster


def propose(cluster, replica, count):
    for number in range(count):
        cluster.propose(replica, b"%d" % number)


def test_it_hands_over_to_who_proposes_most():
    cluster = cluster_led_by_one()
    propose(cluster, 1, ENOUGH)
    propose(cluster, 2, ENOUGH + 1)
    cluster.tick(PERIOD)
    assert cluster.leader.id == 2
    assert cluster.nodes[1].events == [
        f"replica 2 is to lead, which made {ENOUGH + 1} of {2 * ENOUGH + 1} proposals"
    ]


@pytest.mark.parametrize(
    ("proposals", "why"),
    [
        ({2: ENOUGH - 1}, "there are too few"),
        ({1: ENOUGH, 2: ENOUGH}, "as many are the leader's own"),
        ({1: 5, 2: 6, 3: 5}, "fewer than the rest together"),
        ({1: ENOUGH}, "it leads already"),
    ],
)
def test_it_stays_where_it_is(proposals, why):
    cluster = cluster_led_by_one()
    for replica, count in proposals.items():
        propose(cluster, replica, count)
    cluster.tick(PERIOD)
    assert cluster.leader.id == 1, why


# -- under faults


class Book(Extension):
    """The senders of the proposals that a leader has met in the period that ended last."""

    def __init__(self, node):
        super().__init__(node)
        self.met, self.past = [], []

    @handles(MessageType.PROPOSE, State.LEADER, wrap=True)
    def note(self, message, inner):
        self.met += [message.sender or self.node.id] * len(message.entries)
        inner(message)

    @handles(leader_placement.JUDGE, wrap=True)
    def turn_the_page(self, message, inner):
        self.past, self.met = self.met, []
        inner(message)


class Clients:
    """Propose most of the time at one replica, and see that orders to hand over are what the book says."""

    def __init__(self):
        self.favourite, self.moves = 0, 0

    def traffic(self, raft, random):
        self.favourite = self.favourite or raft.id
        if raft.id == self.favourite and raft.state is not State.WITNESS:
            entries = tuple(Entry(payload=b"%d" % number) for number in range(random.randrange(1, 9)))
            raft.step(Message(MessageType.PROPOSE, sender=raft.id, entries=entries))

    def effects(self, raft, ready):
        book = raft.extension(Book)
        for event in ready.events:
            self.moves += 1
            target, count, total = (int(word) for word in event.split() if word.isdigit())
            met = Counter(book.past)
            assert (count, total) == (met[target], met.total()), "others were counted than have come"
            assert 2 * count > total >= leader_placement.ENOUGH, "it has not proposed most"
            assert target in raft.voters, "it cannot lead"
            assert target != raft.id, "it leads"


MEMBERS = Membership((1, 2, 3), observers=(4,))


@pytest.fixture
def storm(monkeypatch):
    """Run storms, with periods so short that there are several in a schedule; return the number of moves in each."""
    monkeypatch.setattr(leader_placement, "PERIOD", 5)
    monkeypatch.setattr(leader_placement, "ENOUGH", 3)

    def run(placement, seeds=10):
        moves = []

        class Counting(Clients):
            def settled(self, rafts):
                moves.append(self.moves)

        Cluster(MEMBERS, handlers=raft_handlers().use(placement, Book)).storm(range(seeds), user=Counting)
        return moves

    return run


def test_it_hands_over_for_what_was_proposed_whatever_happens(storm):
    moves = storm(Placement)
    assert sum(map(bool, moves)) > len(moves) // 3, moves


class CountsMessages(Placement):
    def count(self, message, inner):
        self.proposals[message.sender or self.node.id] += 1
        inner(message)


class NeverForgets(Placement):
    def judge(self, message):
        kept = Counter(self.proposals)
        super().judge(message)
        self.proposals += kept


class PicksObservers(Placement):
    def place_for(self, proposals):
        return next(
            (replica for replica in proposals if 2 * proposals[replica] > proposals.total() >= 3),
            self.node.id,
        )


@pytest.mark.parametrize(
    ("mutant", "what"),
    [
        pytest.param(NeverForgets, "others were counted than have come", id="what is over"),
        pytest.param(
            CountsMessages, "others were counted than have come", id="messages", marks=pytest.mark.slow
        ),
        pytest.param(PicksObservers, "it cannot lead", id="observers", marks=pytest.mark.slow),
    ],
)
def test_its_storm_catches_what_is_wrong(storm, mutant, what):
    with pytest.raises(Violation, match=what):
        storm(mutant, 30)
