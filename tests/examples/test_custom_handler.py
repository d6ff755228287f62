"""Tickets: given on a real host, and under faults never the same one twice."""

import re
from pathlib import Path

import pytest
from drakkar.handlers import Message, RequestDropped, handles, raft_handlers
from drakkar.handlers.testing import Cluster, Violation

from examples import custom_handler
from examples.custom_handler import TICKET, State, Tickets


def test_it_is_the_smallest():
    assert len(Path(custom_handler.__file__).read_text(encoding="utf-8").splitlines()) <= 30


def test_a_real_host_gives_tickets(run):
    program = run("custom_handler")
    status, complaints = program.end()
    assert (status, complaints) == (0, "")
    assert re.fullmatch(r"\((\d+), 1\) \(\1, 2\)", program.said[0])


def test_only_the_leader_gives_tickets():
    cluster = Cluster(3, handlers=custom_handler.table)
    cluster.elect(1)
    assert [cluster.ask(1, Message(TICKET)) for _ in range(2)] == [(1, 1), (1, 2)]
    with pytest.raises(RequestDropped, match="only the leader gives tickets"):
        cluster.ask(2, Message(TICKET))
    cluster.elect(2)
    assert cluster.ask(2, Message(TICKET)) == (2, 1)


class Clients:
    """Take tickets at all replicas."""

    def __init__(self):
        self.tickets = []

    def traffic(self, raft, random):
        self.tickets += [ticket for _ in range(3) if (ticket := raft.step(Message(TICKET)))]

    def check(self, rafts):
        assert len(self.tickets) == len(set(self.tickets)), f"a ticket was given twice: {self.tickets[-1]}"


def test_no_two_tickets_are_alike_whatever_happens():
    Cluster(3, handlers=custom_handler.table).storm(range(10), user=Clients)


class WithoutTerm(Tickets):
    def give(self, _):
        self.given += 1
        return self.given


class FromAll(Tickets):
    @handles(TICKET, *State)
    def give(self, _):
        self.given += 1
        return self.node.term, self.given


@pytest.mark.parametrize("mutant", [WithoutTerm, FromAll])
def test_its_storm_catches_what_is_wrong(mutant):
    with pytest.raises(Violation, match="a ticket was given twice"):
        Cluster(3, handlers=raft_handlers().use(mutant)).storm(range(10), user=Clients)
