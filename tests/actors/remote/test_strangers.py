"""Hosts that no one knows, over real sockets: what they are owed, and what they may cost."""

import socket

import pykka
import pytest
from drakkar.actors import HostGone, NodeHost
from drakkar.actors.remote.records import Target, Watch, encode
from drakkar.transport.call_frames import calls_body
from drakkar.transport.frames import FrameKind, encode_frame
from drakkar.transport.options import Options

from tests.actors.support import until
from tests.attacks import forge
from tests.ports import free_addresses

LOCAL = "127.0.0.1"


@pytest.fixture
def host():
    [address] = free_addresses(1)
    with NodeHost(address, tick_interval=0.05, transport_options=Options(connect_timeout=100)) as host:
        yield host


@pytest.fixture
def silent():
    """A port where connections are taken and nothing is said: whoever dials it waits."""
    with socket.create_server(("0.0.0.0", 0), backlog=1000) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def watching(host):
    """A function that connects as the host at an address, and watches an actor."""
    actor = pykka.ThreadingActor.start()
    host.publish("keeper", actor)
    target = Target(host._transport.run, host._calls._published.by_name("keeper").number)
    links = []

    def connect(address):
        link = forge.introduced(host.address, address, source=LOCAL)
        links.append(link)
        link.send(encode_frame(FrameKind.CALLS, calls_body([encode(Watch(7, target))])))
        return link

    yield connect
    for link in links:
        link.close()
    actor.stop()


def watchers(host):
    return host.metrics()["remote_watchers"]


def test_the_end_of_an_older_connection_takes_nothing_from_the_newer_one(host, watching, silent):
    """Also where the host spells its address in another way on that."""
    old = watching(f"localhost:{silent}")
    until(lambda: watchers(host) == 1)
    parted, told = [], host._calls.parted
    host._calls.parted = lambda address: (parted.append(address), told(address))
    forgotten, forget = [], host._inputs.forget
    host._inputs.forget = lambda address: (forgotten.append(address), forget(address))
    new = watching(f"LOCALHOST:{silent}")
    assert old.closed()
    until(lambda: f"localhost:{silent}" in forgotten)
    assert parted == []
    until(lambda: watchers(host) == 1)
    new.close()
    until(lambda: watchers(host) == 0)
    assert parted == [f"LOCALHOST:{silent}"]


def test_hundreds_of_hosts_are_asked_at_once(host, silent):
    asked = [
        host.remote(f"127.1.{number % 3}.{number}:{silent}", "keeper", block=False, timeout=100)
        for number in range(1, 251)
    ]
    until(lambda: len(host.peers()) == len(asked))
    ticks = host._transport._liveness.number
    until(lambda: host._transport._liveness.number > ticks + 2)
    assert not any(future.done for future in asked)


def test_a_host_that_watched_and_went_costs_nothing_more(host, watching, silent):
    for number in range(1, 20):
        with watching(f"127.1.0.{number}:{silent}"):
            until(lambda: watchers(host) == 1)
        until(lambda: watchers(host) == 0)
    until(lambda: host._transport._kept == frozenset())
    assert host._transport._liveness.tracked == frozenset()


def test_what_is_told_to_a_host_that_has_gone_fails_at_once_until_it_is_back(host):
    [address] = free_addresses(1)
    keeper = pykka.ThreadingActor.start()
    with NodeHost(address) as other:
        other.publish("keeper", keeper)
        ref = host.remote(address, "keeper")

    def fails():
        try:
            ref.tell("hello")
        except HostGone as error:
            return error.outcome_known
        return False

    until(fails)
    assert fails()
    with NodeHost(address):
        until(lambda: not fails())
    keeper.stop()
