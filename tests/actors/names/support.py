"""Hosts of one process whose actors reach each other, in place of `actors.remote`; and shards that do what a test says."""

import itertools
import threading

import cbor2
import pykka
from drakkar.actors.names.directory import Owner
from drakkar.actors.names.registered import Names
from drakkar.actors.remote.errors import NameTaken, UnknownName
from drakkar.actors.remote.from_host import FromHost, is_told_of_hosts
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.handlers.errors import ConfigError, TransportError


class Network:
    """Which actors are published on which hosts, and which hosts are cut off."""

    def __init__(self):
        self.published = {}
        self.places = {}
        self.cut_off, self.silent = set(), set()
        self.numbers = itertools.count(1)
        self.lock = threading.Lock()

    def of(self, address):
        return Calls(self, address)


class FromRef:
    """An actor as another host asks it."""

    def __init__(self, ref, address):
        self.ref, self.address = ref, address

    def ask(self, message, **options):
        return self.ref.ask(FromHost(self.address, message), **options)


class Calls:
    """What one host has of it."""

    def __init__(self, network, address):
        self.network, self.address = network, address

    def publish(self, name, ref, *, proxy=False, acl=None):
        before = self.network.published.get((self.address, name))
        if before is not None and before.is_alive():
            raise NameTaken(name, str(before), "unpublish it first")
        self.network.published[self.address, name] = ref

    def unpublish(self, name, ref=None):
        there = self.network.published.get((self.address, name))
        if there is None or (ref is not None and there.actor_urn != ref.actor_urn):
            return False
        del self.network.published[self.address, name]
        return True

    def remote(self, address, name, *, timeout, block):
        assert not block
        found = ActorFuture()
        ref = self.network.published.get((address, name))
        if address in self.network.silent:
            pass  # it never answers
        elif {address, self.address} & self.network.cut_off and address != self.address:
            found.fail(TransportError(f"{address} is gone"))
        elif ref is None or not ref.is_alive():
            found.fail(UnknownName(name))
        else:
            found.set(FromRef(ref, self.address) if is_told_of_hosts(ref) else ref)
        return found

    def place_of(self, ref):
        with self.network.lock:
            number, home = self.network.places.setdefault(
                ref.actor_urn, (next(self.network.numbers), self.address)
            )
            self.network.places[number] = ref
        if home != self.address:
            raise ConfigError("ref", str(ref), "is an actor of another host: register it there")
        return number, cbor2.dumps([self.address, number])

    def ref_of(self, place, timeout):
        assert 0 < timeout <= 60
        found = ActorFuture()
        found.set(self.network.places[cbor2.loads(place)[1]])
        return found


def names_of(host, network, *, count=1, nonce=7, host_id=None):
    """The names of a host of the tests, as the run `count` of it. Without an id it has no data directory."""
    return Names(
        address=lambda: host.address,
        owner=lambda: Owner(host_id or host.address, count, nonce),
        calls=network.of(host.address),
        loop=host.loop,
        lines=host.loop.lines,
    )


class Echo(pykka.ThreadingActor):
    """An actor of an application."""

    use_daemon_thread = True

    def __init__(self, answer=None):
        super().__init__()
        self._answer = answer

    def on_receive(self, message):
        return self._answer if message is None else message


class Home:
    """A host, as the names room uses it."""

    def __init__(self, host):
        self._host = host
        self.subscribe = host.subscribe
        self.replica = host.replica

    @property
    def address(self):
        return self._host.address

    @property
    def tick_interval(self):
        return self._host.tick_interval

    def config(self, shard_id):
        self._host.replica(shard_id)
        return self._host._registry.nodes[shard_id].raft.config
