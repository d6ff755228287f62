"""The peers of a node without Raft: who is where, what waits for whom, and which letters are theirs.

    SOUGHT   it was never found, or was lost and has spoken since: what is sent to it waits, within bounds
    UP       it was found, and is watched: what is sent leaves at once
    DOWN     it has ended, or is out of reach: what is sent is dropped, until it speaks, or is found again

A peer is sought under its name where it is said to be, and again while it is not there, ever more seldom. The node is told when it
is found, by PEER_UP, and when it is lost, by PEER_DOWN: once for each change, behind the messages that came before.
"""

import enum
import math
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol, TypeAlias, cast, runtime_checkable

import pykka
from drakkar.actors.runtime.alarm import Alarm
from drakkar.actors.runtime.futures import ActorFuture, in_full
from drakkar.actors.runtime.inbox import Inbox
from drakkar.actors.runtime.letters import Heard, Letter, PeerNews, UnknownType
from drakkar.actors.runtime.log_lines import Lines, is_rare
from drakkar.actors.runtime.monitor import ActorDied, unwatch, watch
from drakkar.handlers.backoff import Backoff
from drakkar.handlers.errors import ConfigError, DrakkarError, TransportError
from drakkar.handlers.messages import Message, MessageType
from drakkar.transport.addresses import parse_address, same_host
from pykka._envelope import Envelope

__all__ = ["LOST", "RECEIVED", "SENT", "STRANGE", "Home", "Peers", "Phase", "Place"]

MAX_WAITING: Final = 1_000
"""Messages that wait for a peer that is not found yet."""
MAX_WAITING_BYTES: Final = 1 << 20
"""Bytes of their payloads."""
FIRST_WAIT_S: Final = 0.1
"""Seconds until a peer is sought again, for the first time; each wait is twice as long as the one before."""
LAST_WAIT_S: Final = 5.0
PATIENCE_S: Final = 10.0
"""How long messages wait for a peer that is not found. Then it counts as down."""
MAX_REASON: Final = 500
"""Characters of the reason in a PEER_DOWN."""

SENT: Final = "sent"
RECEIVED: Final = "received"
OUT_OF_REACH: Final = "dropped, out of reach"
NOT_TAKEN: Final = "dropped, not taken"
LOST: Final = (OUT_OF_REACH, NOT_TAKEN)
"""Messages to peers that were dropped: the peer is not there, or too much waits for it."""
NO_PEER: Final = "refused, of no peer"
UNKNOWN: Final = "refused, of an unknown type"
FAULTY: Final = "refused, faulty"
STRANGE: Final = (NO_PEER, UNKNOWN, FAULTY)
"""Messages that came and were dropped."""

Place: TypeAlias = "str | pykka.ActorRef[Any]"
"""Where a peer is: the address of the host that publishes it, or, in this process, its reference."""


class Phase(enum.Enum):
    """How a peer stands. See the head of this file."""

    SOUGHT = 0
    UP = 1
    DOWN = 2


@runtime_checkable
class Home(Protocol):
    """What a node uses of its host. In the thread of the node's loop, but for `enter`."""

    def check_name(self, name: str) -> None:
        """Raise `ConfigError` unless an actor may be published under this name."""

    def enter(self, actor: Any) -> None:
        """Publish an actor under its name, in the thread that starts it. Raises as `NodeHost.publish`."""

    def leave(self, actor: Any) -> None:
        """The actor has ended."""

    def find(self, address: str, name: str) -> ActorFuture[pykka.ActorRef[Any]]:
        """Ask a host for the actor that it publishes under a name. Raises `DrakkarError`."""
        ...

    def deliver(self, ref: pykka.ActorRef[Any], letter: Letter) -> None:
        """Send a letter to what `find` has found. Raises `DrakkarError` and `pykka.ActorDeadError`."""

    def charge(self, address: str) -> None:
        """A host has sent what no correct one sends."""

    def announce(self, actor: Any, event: object) -> None:
        """Tell those who subscribed to the host's events."""


class Peer:
    """One peer, as a node sees it."""

    __slots__ = (
        "alarm",
        "backoff",
        "bytes",
        "found_at",
        "missed",
        "name",
        "phase",
        "place",
        "ref",
        "until",
        "waiting",
        "watcher",
    )

    def __init__(self, name: str, place: Place, alarm: Alarm, watcher: Callable[[ActorDied], object]) -> None:
        """`alarm` rings when it is to be sought again."""
        self.name, self.place, self.alarm, self.watcher = name, place, alarm, watcher
        self.phase = Phase.SOUGHT
        self.missed = False
        """The node was told that it is down, and not yet that it is back."""
        self.ref: pykka.ActorRef[Any] | None = None
        """Who it is, while it is up."""
        self.waiting: deque[Letter] = deque()
        self.bytes = 0
        self.backoff = Backoff(FIRST_WAIT_S, LAST_WAIT_S)
        self.until = 0.0
        """When it counts as down, if it is not found."""
        self.found_at = 0.0

    def has_room(self, letter: Letter) -> bool:
        """Return whether a letter may wait for it."""
        return len(self.waiting) < MAX_WAITING and self.bytes + letter.size <= MAX_WAITING_BYTES

    def take_waiting(self) -> deque[Letter]:
        """Return what waits, which waits no more."""
        waiting, self.waiting, self.bytes = self.waiting, deque(), 0
        return waiting


class Peers:
    """The peers of one node. For the thread of its loop."""

    def __init__(
        self,
        node: str,
        home: Home | None,
        inbox: Inbox,
        alarm: Callable[[Callable[[], object]], Alarm],
        lines: Lines,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`node` is the name of the node. `alarm` makes an alarm that calls a function. `now` is the clock of alarms, in seconds."""
        self._node, self._home, self._inbox, self._alarm = node, home, inbox, alarm
        self._lines, self._now = lines, now
        self._peers: dict[str, Peer] = {}
        self._begun = False
        self.counts: Counter[str] = Counter()
        """Messages that were sent and received, and those that were dropped: see `LOST` and `STRANGE`."""

    def phases(self) -> Counter[Phase]:
        """How many peers stand how. From any thread."""
        return Counter(peer.phase for peer in list(self._peers.values()))

    def add(self, name: str, place: Place) -> None:
        """Have one more, or one in the place of a peer that `has_ended`.

        Raises `ConfigError` for a place that is none, and a name under which no actor is published.
        """
        self._check_place(name, place)
        peer = Peer(name, place, self._alarm(lambda: self._seek(peer)), partial(self._on_ended, name))
        self._peers[name] = peer
        if self._begun:
            self._begin(peer)

    def has_ended(self, name: str) -> bool:
        """Whether a peer is an actor of this process that has ended: another one may have its name, but not its reference."""
        peer = self._peers[name]
        return peer.phase is Phase.DOWN and isinstance(peer.place, pykka.ActorRef)

    def _check_place(self, name: str, place: object) -> None:
        if isinstance(place, pykka.ActorRef):
            if not hasattr(place, "place"):  # as a `RemoteRef` has, of which this room does not know
                return
            raise ConfigError(
                f"peers[{name!r}]", str(place), "lives at another host: name the address of that host"
            )
        if not isinstance(place, str):
            raise ConfigError(
                f"peers[{name!r}]",
                place,
                "must be the address of its host, or the reference of an actor of this process",
            )
        if self._home is None:
            raise ConfigError(
                f"peers[{name!r}]",
                place,
                "is at a host, and this actor has none: start it with host=…, or name a reference",
            )
        self._home.check_name(name)
        try:
            parse_address(place)
        except TransportError as error:
            raise ConfigError(f"peers[{name!r}]", place, str(error)) from error

    # ---- searching

    def begin(self) -> None:
        """Look for all of them."""
        self._begun = True
        for peer in self._peers.values():
            self._begin(peer)

    def _begin(self, peer: Peer) -> None:
        peer.until = self._now() + PATIENCE_S
        self._seek(peer)

    def _seek(self, peer: Peer) -> None:
        if isinstance(peer.place, pykka.ActorRef):
            self._report(PeerNews(peer.name, peer.place))
            return
        assert self._home is not None, "else it has a reference"
        try:
            sought = self._home.find(peer.place, peer.name)
        except DrakkarError as error:
            self._report(PeerNews(peer.name, None, error))
        else:
            sought.add_done_callback(partial(self._on_sought, peer.name))

    def _on_sought(self, name: str, sought: ActorFuture[pykka.ActorRef[Any]]) -> None:
        """In any thread."""
        ref, error = sought.outcome()
        self._report(PeerNews(name, ref, error))

    def _on_ended(self, name: str, died: ActorDied) -> None:
        """In any thread."""
        self._report(PeerNews(name, died.ref, died.reason, ended=True))

    def _report(self, news: PeerNews) -> None:
        with suppress(pykka.ActorDeadError):
            self._inbox.put(Envelope(news))

    # ---- what comes

    def take(self, news: PeerNews) -> Message | None:
        """Take note of what became of a peer; return what the node is to be told."""
        peer = self._peers[news.peer]
        if news.ended:
            return self._lose(peer, news.reason)
        if news.ref is None:
            return self._miss(peer, news.reason)
        if not news.ref.is_alive():
            return self._miss(peer, pykka.ActorDeadError(f"{news.ref} has ended"))
        try:
            watch(news.ref, peer.watcher)
        except DrakkarError as error:
            return self._miss(peer, error)
        return self._greet(peer, news.ref)

    def _greet(self, peer: Peer, ref: pykka.ActorRef[Any]) -> Message:
        peer.ref, peer.phase, peer.found_at, peer.missed = ref, Phase.UP, self._now(), False
        for letter in peer.take_waiting():
            self._deliver(peer, ref, letter)
        return self._tell_node(MessageType.PEER_UP, peer, f"found {_shown(peer.place)}")

    def _lose(self, peer: Peer, reason: BaseException | None) -> Message | None:
        if self._now() - peer.found_at > LAST_WAIT_S:
            peer.backoff.reset()  # else one that comes and goes would be sought without a break
        peer.ref = None
        return self._bury(peer, "it was stopped" if reason is None else in_full(reason))

    def _miss(self, peer: Peer, reason: BaseException | None) -> Message | None:
        gone = self._now() >= peer.until or isinstance(peer.place, pykka.ActorRef)
        if peer.phase is Phase.SOUGHT and gone:
            why = "" if reason is None else f": {in_full(reason)}"
            return self._bury(peer, f"it was not found in time{why}")
        self._seek_later(peer)
        return None

    def _bury(self, peer: Peer, why: str) -> Message | None:
        peer.phase = Phase.DOWN
        self.counts[OUT_OF_REACH] += len(peer.take_waiting())
        self._seek_later(peer)
        if peer.missed:
            return None  # it has only spoken in between
        peer.missed = True
        return self._tell_node(MessageType.PEER_DOWN, peer, why[:MAX_REASON])

    def _seek_later(self, peer: Peer) -> None:
        if not isinstance(peer.place, pykka.ActorRef):  # another actor has another reference
            peer.alarm.set(self._now() + peer.backoff.next())

    def _tell_node(self, type_: MessageType, peer: Peer, text: str) -> Message:
        self._lines.info("%s: %s of peer %s: %s", self._node, type_, peer.name, text)
        return Message(type_, to=cast("Any", self._node), sender=cast("Any", peer.name), payload=text)

    def open(self, heard: Heard) -> Message | None:
        """Return the message in a letter, if it is from a peer, and one that a peer may send."""
        letter = heard.letter
        if type(letter.sender) is not str:
            self._refuse_faulty(heard)
            return None
        peer = self._peers.get(letter.sender)
        if peer is None or not self._is_of(peer, heard.address):
            self._refuse_stranger(heard, peer)
            return None
        try:
            message = letter.open(self._node)
        except UnknownType:
            self.counts[UNKNOWN] += 1
            return None
        except ValueError:
            self._refuse_faulty(heard)
            return None
        self.counts[RECEIVED] += 1
        if peer.ref is None:
            self._expect(peer)
        return message

    def _is_of(self, peer: Peer, address: str) -> bool:
        """Return whether what comes from an address is the peer's: only its own host speaks for it."""
        if isinstance(peer.place, pykka.ActorRef):
            return not address
        return same_host(address, peer.place)

    def _refuse_stranger(self, heard: Heard, peer: Peer | None) -> None:
        # Not charged: its host may be one that others here rely on, and only differ in what it takes for a peer.
        self.counts[NO_PEER] += 1
        if is_rare(self.counts[NO_PEER]):
            known = "which is no peer" if peer is None else f"and that peer is {_shown(peer.place)}"
            self._lines.warning(
                "%s drops a message of %.60r %s, %s (%d by now): see peers=",
                self._node,
                heard.letter.sender,
                _shown(heard.address),
                known,
                self.counts[NO_PEER],
            )

    def _refuse_faulty(self, heard: Heard) -> None:
        self.counts[FAULTY] += 1
        if heard.address and self._home is not None:
            self._home.charge(heard.address)

    def _expect(self, peer: Peer) -> None:
        """It lives: do not wait long until it is sought again, and keep for it what is sent meanwhile, such as an answer."""
        if peer.phase is Phase.DOWN and isinstance(peer.place, str):
            peer.phase, peer.until = Phase.SOUGHT, self._now() + PATIENCE_S
        soon = self._now() + FIRST_WAIT_S
        if soon < peer.alarm.at < math.inf:
            peer.alarm.set(soon)

    # ---- what goes

    def send(self, message: Message) -> None:
        """Send a message to the peer named in `to`: at most once, and in order."""
        peer = self._peers[cast("Any", message.to)]
        letter = Letter.of(message)
        if peer.ref is not None:
            self._deliver(peer, peer.ref, letter)
        elif peer.phase is Phase.SOUGHT and peer.has_room(letter):
            peer.waiting.append(letter)
            peer.bytes += letter.size
        else:
            self.counts[OUT_OF_REACH] += 1

    def _deliver(self, peer: Peer, ref: pykka.ActorRef[Any], letter: Letter) -> None:
        try:
            if self._home is None or isinstance(peer.place, pykka.ActorRef):
                ref.tell(Heard(letter, ""))
            else:
                self._home.deliver(ref, letter)
        except (DrakkarError, pykka.ActorDeadError):  # that it has ended is on its way here
            self.counts[NOT_TAKEN] += 1
        else:
            self.counts[SENT] += 1

    # ---- the end

    def close(self) -> None:
        """Look for nobody any more: the node has ended."""
        for peer in self._peers.values():
            peer.alarm.cancel()
            self.counts[OUT_OF_REACH] += len(peer.take_waiting())
            if peer.ref is not None:
                with suppress(DrakkarError):
                    unwatch(peer.ref, peer.watcher)


def _shown(place: Place) -> str:
    return f"at {place}" if isinstance(place, str) and place else "in this process"
