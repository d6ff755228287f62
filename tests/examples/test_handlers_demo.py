"""The demo of handlers as a person runs it: real processes, a real SIGKILL, a link that is cut; and what it would notice."""

import signal
import socket
import threading
import time

import pytest

from examples import handlers_demo, networks
from examples.handlers_demo import Hosts, Payments, Ring, Story
from examples.kv_demo import DemoError
from tests.actors.support import until
from tests.examples.test_actors_demo import demo_of, ended, read_to
from tests.examples.test_kv_demo import processes_of

STORY = (
    "A TWO-PHASE COMMIT",
    "payment 1, of 3: ann has promised to give, and bob to take",
    "the bank has written down that payment 1 is done",
    "it tells the accounts: ann has 97, bob has 103",
    "payment 2, of 3",
    "the bank is killed with SIGKILL, before it writes anything",
    "so they wait",
    "the bank is started again",
    "so there was none: ann has 97, bob has 103",
    "the bank has written down that payment 3 is done",
    "the bank is killed with SIGKILL, before it tells anyone",
    "it has the third payment in its file: ann has 94, bob has 106",
    "A TOKEN RING",
    "five hosts start, with ",
    "they have made a token, and it goes around",
    "the link of host 3 is cut",
    "a majority has voted for another token",
    "the others know that host 3 is out of reach, and pass it over",
    "the link of host 3 is back",
    "host 3 is found again, and has the token in its turn",
    "there were ",
    "both went as they should",
)


@pytest.fixture
def namespaces():
    why_not = networks.why_no_namespaces()
    if why_not is not None:
        pytest.skip(why_not)


def tells_both_stories(tmp_path, *options):
    began = time.monotonic()
    with demo_of("handlers_demo", tmp_path, "--seconds", "0.5", *options) as running:
        status, said, complaint = ended(running, tmp_path, timeout=150)
    assert (status, complaint) == (0, ""), said
    assert time.monotonic() - began < 140
    at = 0
    for words in STORY:
        assert words in said[at:], said
        at = said.index(words, at)
    return said


@pytest.mark.slow
def test_the_stories_are_told_to_their_end_in_namespaces(tmp_path, namespaces):
    assert "no network namespaces" not in tells_both_stories(tmp_path)


@pytest.mark.slow
def test_and_with_relays_where_there_are_none(tmp_path):
    assert "no network namespaces: they are to be left out" in tells_both_stories(tmp_path, "--relays")


@pytest.mark.slow
def test_ctrl_c_ends_the_demo_with_all_its_hosts(tmp_path):
    with demo_of("handlers_demo", tmp_path, "--relays") as running:
        read_to(running, "payment 1")
        assert len(processes_of(tmp_path)) >= 1
        running.send_signal(signal.SIGINT)
        status, _, complaint = ended(running, tmp_path)
    assert (status, complaint) == (130, "")


# -- What it would notice


class Silent:
    """Hosts that are said to have done what a test says."""

    def __init__(self, tmp_path, lines=()):
        self.hosts = Hosts(tmp_path)
        for host, text in lines:
            self.hosts.said.add(host, text)

    def ring(self):
        return Ring(Story(), self.hosts, networks.Network(), 0.0)


def turn(host, number):
    return host, f"n{host} works with token {number}"


def test_a_host_that_works_while_it_is_cut_off_is_noticed(tmp_path):
    ring = Silent(tmp_path, [turn(1, 7), turn(3, 7)]).ring()
    now = time.monotonic()
    ring._check(now, now + 10)  # it ends its turn
    with pytest.raises(DemoError, match="host 3 has worked 1 times while it was cut off"):
        ring._check(now - 10, now + 10)


def test_turns_with_smaller_numbers_are_counted(tmp_path, capsys):
    ring = Silent(tmp_path, [turn(1, 7), turn(2, 8), turn(4, 7), turn(5, 8)]).ring()
    now = time.monotonic()
    ring._check(now, now)
    assert "4 turns with 2 tokens; what they work on has to refuse 1 of them" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("turns", "is_round"),
    [
        ([(1, 7), (2, 7), (4, 7), (5, 7)] * 2, True),
        ([(1, 7), (2, 7), (4, 7), (5, 7), (1, 7), (2, 7), (4, 7)], False),
        ([(1, 7), (2, 7), (4, 7), (5, 7), (1, 7), (2, 7), (5, 7), (4, 7)], False),
        ([(1, 7), (2, 7), (4, 7), (5, 7), (1, 8), (2, 8), (4, 8), (5, 8)], False),
        ([(1, 7), (2, 7), (3, 7), (5, 7)] * 2 + [(4, 7)], False),
    ],
)
def test_a_round_is_two_turns_of_each_in_one_order(tmp_path, monkeypatch, turns, is_round):
    monkeypatch.setattr(handlers_demo, "TIMEOUT_S", 0.0)
    ring = Silent(tmp_path, [turn(*each) for each in turns]).ring()
    if is_round:
        assert [host for host, _, _ in ring._wait_for_round(4)] == [1, 2, 4, 5]
    else:
        with pytest.raises(DemoError, match="the token does not go as it should"):
            ring._wait_for_round(4)


def test_an_account_that_does_not_wait_is_noticed(tmp_path, monkeypatch):
    silent = Silent(tmp_path)
    payments = Payments(Story(), silent.hosts, tmp_path, 0.0)
    silent.hosts.processes[1] = type("Killed", (), {"kill": lambda self: None})()

    def hears(seconds):
        silent.hosts.said.add(2, "ann has 97")

    monkeypatch.setattr(handlers_demo.time, "sleep", hears)
    with pytest.raises(DemoError, match="did not wait: ann has 97"):
        payments._kill("before anything")


def test_a_wrong_option_is_named(capsys):
    with pytest.raises(SystemExit) as left:
        handlers_demo.parse(["--seconds", "long"])
    assert left.value.code == 2
    assert "--seconds" in capsys.readouterr().err


# -- The networks


class Echo:
    """A server that answers with what it is told; where it listens, a host would."""

    def __init__(self, address):
        host, port = address.split(":")
        self.socket = socket.create_server((host, int(port)))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                guest, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(guest,), daemon=True).start()

    def _answer(self, guest):
        with guest:
            while data := guest.recv(1024):
                guest.sendall(data)


def call(network, to, caller):
    """A connection of one host to another, which begins with the address of the caller, as those of hosts do."""
    host, port = network.addresses[to - 1].split(":")
    connection = socket.create_connection((host, int(port)), timeout=5)
    connection.sendall(network.addresses[caller - 1].encode())
    return connection


def answers(connection, timeout=0.3):
    connection.settimeout(timeout)
    try:
        return connection.recv(1024) != b""
    except TimeoutError:
        return False


@pytest.fixture
def relays():
    with networks.Relays(3) as relays:
        echoes = [Echo(address) for address in relays.listen]
        yield relays
        for echo in echoes:
            echo.socket.close()


def test_relays_carry_all_until_a_host_is_cut_off_and_then_nothing_from_it_or_to_it(relays):
    to, of, beside = call(relays, 2, 1), call(relays, 1, 2), call(relays, 3, 1)
    assert answers(to)
    assert answers(of)
    assert answers(beside)
    relays.cut(2)
    new = call(relays, 2, 3)
    for connection in (to, of, beside):
        connection.sendall(b"more")
    assert not answers(to)
    assert not answers(of)
    assert not answers(new)
    assert answers(beside)
    relays.heal(2)
    assert answers(to, 5)
    assert answers(of, 5)
    assert answers(new, 5)
    for connection in (to, of, beside, new):
        connection.close()


def test_a_relay_ends_a_connection_that_one_end_closes(relays):
    connection = call(relays, 2, 1)
    assert answers(connection)
    connection.shutdown(socket.SHUT_WR)
    until(lambda: connection.recv(1024) == b"")
    connection.close()


def test_namespaces_are_gone_in_the_end(namespaces):
    with networks.Namespaces(2) as made:
        assert len([name for name in networks._names() if name.startswith(made._mine)]) == 3
    assert not [name for name in networks._names() if name.startswith(made._mine)]


def test_why_there_are_no_namespaces_is_said(monkeypatch):
    monkeypatch.setattr(networks.os, "geteuid", lambda: 1000)
    assert networks.why_no_namespaces() == "only root may make network namespaces"
    monkeypatch.setattr(networks.sys, "platform", "darwin")
    assert "this is darwin" in networks.why_no_namespaces()
