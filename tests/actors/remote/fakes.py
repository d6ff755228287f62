"""What stands for sockets, threads and actors in the tests of calls: all of it does what a test says, when it says so."""

import queue
import threading
from collections import Counter
from itertools import count

import cbor2
import pykka
from drakkar.actors.remote.asking import Asking
from drakkar.actors.remote.deadlines import Deadlines
from drakkar.actors.remote.exports import Exports
from drakkar.actors.remote.links import Links
from drakkar.actors.remote.published import Published
from drakkar.actors.remote.records import decode, encode
from drakkar.actors.remote.replies import Replies
from drakkar.actors.remote.serving import Serving
from drakkar.actors.runtime.log_lines import HostLines
from drakkar.actors.runtime.monitor import Termination
from drakkar.handlers.errors import LoopError, TransportError
from drakkar.transport.addresses import canonical
from drakkar.transport.call_rooms import CallRooms
from drakkar.transport.liveness import HostState
from drakkar.transport.options import Options

HERE, THERE = "10.0.0.1:7000", "10.0.0.2:7000"
RUN, OTHER_RUN = 77, 78
_urns = count(1)


class Clock:
    """The time, as a test says. It stands for the module `time`."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


class Thread:
    """The loop's thread: what is to run there does so when a test says so."""

    def __init__(self):
        self.inside = True
        """The thread of the test counts as the loop's."""
        self.ended = False
        self.waiting = []
        self._test = threading.get_ident()

    def in_loop(self):
        return self.inside and threading.get_ident() == self._test

    def run_soon(self, fn, *args):
        if self.ended:
            raise LoopError("the loop has ended")
        self.waiting.append(lambda: fn(*args))

    def at_round_end(self, fn):
        assert self.in_loop()
        self.waiting.append(fn)

    def spawn(self, async_fn, *args, name):
        """A task, which a test does without."""

    def run(self):
        """Run what waits, and what comes of that."""
        inside, self.inside = self.inside, True
        while self.waiting:
            self.waiting.pop(0)()
        self.inside = inside


class Wire:
    """The transport of a host. It keeps what is sent, or takes nothing, or fails."""

    def __init__(self, thread, options=None):
        self.options = options or Options()
        self.thread = thread
        self.rooms = CallRooms(self.options)
        self.rows = []
        """What has left: the address and the record, as bytes."""
        self.ended = False
        self.error = None
        self.why_away = self.why_unreached = ""
        self.knocks = 0
        self.address, self.run, self.certified = HERE, RUN, False
        self.certificates = {}
        """By address, the names in the certificate of a host."""
        self.charged = Counter()
        self.states = {}
        self.unreachable = set()
        self.attended = []
        self.kept = frozenset()
        self.sent_as_answers = []

    def call_room(self, address):
        return self.rooms.of(address)

    def send_calls(self, address, records, *, admitted=False, now=False, answers=False):
        assert admitted, "all have their places"
        assert now, "those of a round are sent together, at its end"
        assert canonical(address) == address
        self.call_room(address).give_back(len(records), sum(map(len, records)))
        if self.error is not None:
            raise self.error
        if self.ended:
            return len(records)
        self.rows += [(address, record) for record in records]
        self.sent_as_answers.append(answers)
        return 0

    def away(self, address):
        return self.why_away

    def unreached(self, address):
        return self.why_unreached

    def knock(self, address):
        self.knocks += 1

    def take(self):
        """Run the thread, and return the records that have left since, with their hosts left out."""
        return [record for _, record in self.take_all()]

    def take_all(self):
        self.thread.run()
        rows, self.rows = self.rows, []
        return [(address, decode(cbor2.loads(record))) for address, record in rows]

    def charge_calls(self, address, number):
        self.charged[address] += number

    def is_certified_as(self, address, names):
        return bool(self.certificates.get(address, set()) & set(names))

    def host_state(self, address):
        return self.states.get(address, HostState.UNKNOWN)

    def reachable(self, address):
        return address not in self.unreachable

    def watch_host(self, address):
        self.attended.append(address)
        return self.host_state(address)

    def unwatch_host(self, address):
        self.attended.remove(address)

    def keep(self, addresses):
        self.kept = addresses


class Fake(pykka.ActorRef):
    """The reference of an actor of which there is only its inbox: a test is the actor."""

    def __init__(self, inbox=None, actor=None):
        self.actor_class = type("Keeper", (), {}) if actor is None else type(actor)
        self.actor_urn = f"urn:fake:{next(_urns)}"
        self.actor_inbox = queue.Queue() if inbox is None else inbox
        self.actor_stopped = threading.Event()
        self.termination = Termination()
        self._actor = actor
        self._actor_weakref = lambda: self._actor

    def take(self):
        """Take the next message out of the inbox, in its envelope."""
        return self.actor_inbox.get_nowait()

    @property
    def idle(self):
        return self.actor_inbox.empty()

    def end(self, reason=None):
        self.actor_stopped.set()
        self.termination.publish(reason)


class Side:
    """One host without sockets: what serves, what asks, and what both share."""

    def __init__(self, options=None):
        self.thread = Thread()
        self.wire = Wire(self.thread, options)
        self.clock = Clock()
        self.deadlines = Deadlines(self.clock.monotonic)
        self.links = Links(self.wire, self.thread, self.deadlines)
        self.watched = []
        self.published = Published(self.watched.append, self.watched.remove)
        self.exports = Exports(self.wire, self.published)
        self.counters, self.unknown_fields = Counter(), Counter()
        self.longest_value = self.wire.options.longest_call - 64
        self.asking = Asking(
            self.links,
            self.exports,
            counters=self.counters,
            unknown_fields=self.unknown_fields,
            longest_value=self.longest_value,
        )
        self.exports.caller = self.asking
        lines = HostLines("fake:1").of("drakkar.actors.remote")
        replies = Replies(self.exports, self.longest_value, self.counters, lines)
        self.serving = Serving(self.wire, self.published, self.exports, replies, self.unknown_fields)
        self.link = self.links.of(THERE)

    def hear(self, record, link=None):
        """Handle a record of the other host, as it comes from a socket; return whether it was of use."""
        again = decode(cbor2.loads(encode(record)))
        assert again == record
        handlers = {**self.asking.handlers, **self.serving.handlers}
        return handlers[type(again)](link or self.link, again)

    def lose(self, why="the connection was lost"):
        self.serving.lost(THERE)
        self.link.lost(why)


NOT_SENT = TransportError("nothing listens there")
