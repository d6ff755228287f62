"""The listeners, and the connections that have not begun to introduce themselves.

A connection costs no task and no TLS until its first frame is there, or its first record of TLS: a host sends that at once. The
kernel keeps it meanwhile, and wakes this host when it is complete. So connections that are silent, or slow, cost little more
than what the kernel does for them. A flood of them is accepted in small batches, with other work of the loop in between.

For what costs more, an introduction, each source has its turns.
"""

import errno
import select
import selectors
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from math import inf
from typing import Final, TypeAlias

import trio
from drakkar.transport.admission import Admission, PendingConnection, Stage
from drakkar.transport.frames import (
    HEADER_SIZE,
    MAGIC,
    NO_PLACE_ALERT,
    SMALL_FRAME_LIMIT,
    TLS_HANDSHAKE,
    FrameKind,
)
from drakkar.transport.hello import FullError, encode_reason
from drakkar.transport.options import Options
from drakkar.transport.sockets import track, track_selector

__all__ = ["Entrance"]

Serve: TypeAlias = Callable[[trio.SocketStream, PendingConnection, trio.CancelScope], Awaitable[None]]

_BATCH: Final = 16
"""Connections that are accepted before others are looked at: about half a millisecond of work."""
_PAUSES: Final = 20
"""The wait after a whole batch, in times of what the batch took: a flood has a twentieth of the loop's time at most, which is
enough to accept some 1,000 connections a second."""
_MIN_PAUSE_S: Final = 0.001
_MAX_PAUSE_S: Final = 0.05
_BEGIN_TIMEOUT_S: Final = 1.0
"""The time for the first frame, or the first record of TLS."""
_MIN_TURN_S: Final = 1.0
"""What is left of the time for the introduction when it begins, at least; or half of it."""
_AGAIN_S: Final = 0.05
"""The wait before a connection is looked at again that the kernel reported too early."""
_ENDED: Final = getattr(select, "POLLRDHUP", 0)
"""The event that a side has ended, though some of what it sent is not read. Where a system has none, the time runs out."""
_TLS_HEADER_BYTES: Final = 5
_MAX_TLS_RECORD: Final = 1 << 14
"""RFC 8446, section 5.1."""
_PLAIN_BEGINS_PER_S: Final = 100
_TLS_BEGINS_PER_S: Final = 50
"""Introductions that begin in a second: those from each member's IP address, and those from all others together. A TLS handshake
takes one or two milliseconds of the loop, and an introduction without TLS about half of one."""
_TIME_SHARE: Final = 0.1
"""Of the loop's time, so much may handshakes take: those that cost more than usual, as by long chains of certificates, are fewer."""
_BURST: Final = 32
"""Introductions that may begin at once, after a time with none."""
_FILES_PAUSE_S: Final = 0.1
"""The wait where this process has no file descriptors left."""
_OUT_OF_FILES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class _Pace:
    """So many a second, and some more after a pause: a token bucket."""

    __slots__ = ("_free_at", "_interval")

    def __init__(self, per_second: float) -> None:
        self._interval = 1 / per_second
        self._free_at = -inf

    def spend(self, seconds: float) -> None:
        """One of these took so many seconds: the next ones wait for longer, where that is more than its share."""
        self._free_at += max(0.0, seconds / _TIME_SHARE - self._interval)

    def take(self, now: float) -> bool:
        """Return whether one more may be now."""
        if now < self._free_at:
            return False
        self._free_at = max(self._free_at, now - _BURST * self._interval) + self._interval
        return True

    @property
    def free_at(self) -> float:
        """When the next one may be."""
        return self._free_at


class _Accepted:
    """A connection without a task."""

    __slots__ = ("pending", "socket", "wanted")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.pending: PendingConnection
        self.wanted = 0
        """So many bytes are to come before it is looked at."""

    def want(self, size: int) -> None:
        """Have the selector report it when so many bytes are there, or it has ended.

        A kernel that is short of memory, or of room for this connection, reports it earlier.
        """
        self.wanted = size
        with suppress(OSError):  # it has ended, which is reported next
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)

    def has_ended(self) -> bool:
        """Return whether no more will come than what is there."""
        poll = select.poll()
        poll.register(self.socket, _ENDED)
        return bool(poll.poll(0))


class _Turns:
    """Those that wait for their turn, of one member's source or of all others: one of each source after the other."""

    def __init__(self, pace: _Pace) -> None:
        self.pace = pace
        self._sources: dict[str, dict[_Accepted, None]] = {}

    def __bool__(self) -> bool:
        return bool(self._sources)

    def __iter__(self) -> Iterator[_Accepted]:
        return chain.from_iterable(self._sources.values())

    def put(self, accepted: _Accepted) -> None:
        self._sources.setdefault(accepted.pending.source, {})[accepted] = None

    def drop(self, accepted: _Accepted) -> None:
        source = accepted.pending.source
        there = self._sources.get(source)
        if there is not None:
            there.pop(accepted, None)
            if not there:
                del self._sources[source]

    def late(self, since: float) -> list[_Accepted]:
        """Return those that were opened at this time or before."""
        return [accepted for accepted in self if accepted.pending.since <= since]

    def next_due(self, timeout: float) -> float:
        """Return when the next one may begin, or has waited for `timeout` seconds since it was opened. There is one."""
        return min(self.pace.free_at, min(accepted.pending.since for accepted in self) + timeout)

    def take(self) -> _Accepted:
        """Take out the one whose turn it is."""
        source = next(iter(self._sources))
        there = self._sources.pop(source)
        accepted = next(iter(there))
        del there[accepted]
        if there:
            self._sources[source] = there
        return accepted


def _first_frame(header: bytearray) -> int:
    """Return how many bytes the first frame has, by its header; those of the header where it is none that may come first."""
    if header[: len(MAGIC)] != MAGIC:
        return HEADER_SIZE
    length = int.from_bytes(header[4:8])
    return HEADER_SIZE + (length if length <= SMALL_FRAME_LIMIT else 0)


def _first_record(header: bytearray) -> int:
    """Do as `_first_frame` for the first record of TLS."""
    if header[0] != TLS_HANDSHAKE:
        return _TLS_HEADER_BYTES
    length = int.from_bytes(header[3:5])
    return _TLS_HEADER_BYTES + (length if length <= _MAX_TLS_RECORD else 0)


class Entrance:
    """Accepts connections, and has them served once something came. For the trio loop's thread only."""

    def __init__(
        self,
        *,
        admission: Admission,
        options: Options,
        source_of: Callable[[str], str],
        serve: Serve,
        warn: Callable[[str, str], None],
        tls: bool,
    ) -> None:
        """Make one; `run` starts it.

        `source_of`: see `Resolver`. `serve` serves a connection, in a task of its own, and calls `Admission.leave`. Its scope
        ends when the time for the introduction is over, or the connection is evicted.

        `warn` is called with cause and text of each warning; of those with one cause, it writes few.
        """
        self._admission, self._options = admission, options
        self._source_of, self._serve, self._warn, self._tls = source_of, serve, warn, tls
        fewest = min(options.max_introducing_per_source, options.max_introducing)
        self._look_after = int(max(1, min(_BATCH, fewest / 2)))
        """So many new connections: of more, some would be evicted before they were looked at."""
        self._begin_timeout = min(_BEGIN_TIMEOUT_S, options.introduce_timeout)
        self._turn_timeout = options.introduce_timeout - min(_MIN_TURN_S, options.introduce_timeout / 2)
        self._header_size, self._first_size = (
            (_TLS_HEADER_BYTES, _first_record) if tls else (HEADER_SIZE, _first_frame)
        )
        self._peeked = bytearray(_TLS_HEADER_BYTES + _MAX_TLS_RECORD)
        self._selector = selectors.DefaultSelector()
        track_selector(self._selector)
        self._silent: dict[_Accepted, None] = {}
        """The oldest in front."""
        self._early: dict[_Accepted, float] = {}
        """Those of them that were reported too early, and when the selector has them again: the first one in front."""
        self._turns: dict[str, _Turns] = {}
        """By source, those of members; and under "" all others."""

    async def run(self, listeners: Sequence[socket.socket]) -> None:
        """Accept connections until cancelled; then close the listeners, and all that wait."""
        for listener in listeners:
            self._selector.register(listener, selectors.EVENT_READ)
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    with trio.move_on_at(self._next_due()):
                        await trio.lowlevel.wait_readable(self._selector.fileno())
                    wait = self._look(nursery)
                    if wait:
                        await trio.sleep(wait)
        finally:
            self._close(listeners)

    def _look(self, nursery: trio.Nursery) -> float:
        """Take what is there; return how long to wait before more is accepted."""
        self._look_again()
        listening = self._select()
        self._begin(nursery)
        self._reject_silent()
        return max(map(self._accept, listening), default=0.0)

    def _select(self) -> list[socket.socket]:
        """Look at the connections of which something is there; return the listeners that have new ones."""
        listening = []
        for key, _ in self._selector.select(0):
            if key.data is not None:
                self._hear(key.data)
            elif isinstance(key.fileobj, socket.socket):
                listening.append(key.fileobj)
        return listening

    def _next_due(self) -> float:
        """Return when something is due although nothing comes."""
        due = next((accepted.pending.since for accepted in self._silent), inf) + self._begin_timeout
        due = min(due, next(iter(self._early.values()), inf))
        return min(due, *(turns.next_due(self._turn_timeout) for turns in self._turns.values() if turns), inf)

    # ---- accepting

    def _accept(self, listener: socket.socket) -> float:
        """Accept a batch; return how long to wait before the next one."""
        began = trio.current_time()
        for number in range(1, _BATCH + 1):
            try:
                connection, (ip, *_rest) = listener.accept()
            except BlockingIOError:
                return 0.0
            except OSError as error:
                if error.errno in _OUT_OF_FILES:
                    self._warn(
                        "files", f"cannot accept connections: {error.strerror}; raise the limit (ulimit -n)"
                    )
                    return _FILES_PAUSE_S
                continue  # that connection has ended meanwhile
            self._enter(connection, ip)
            if number % self._look_after == 0:
                self._select()
        return min(max(_MIN_PAUSE_S, _PAUSES * (trio.current_time() - began)), _MAX_PAUSE_S)

    def _enter(self, connection: socket.socket, ip: str) -> None:
        connection.setblocking(False)
        track(connection)
        accepted = _Accepted(connection)
        accepted.pending = self._admission.enter(
            ip, self._source_of(ip), trio.current_time(), lambda: self._evict(accepted)
        )
        accepted.want(self._header_size)
        self._silent[accepted] = None
        self._selector.register(connection, selectors.EVENT_READ, accepted)

    # ---- what has come

    def _hear(self, accepted: _Accepted) -> None:
        """What was wanted of a connection is there, or it has ended, or less is there: see `_Accepted.want`."""
        wanted = accepted.wanted
        try:
            come = accepted.socket.recv_into(self._peeked, wanted, socket.MSG_PEEK)
            if come == wanted == self._header_size:
                accepted.want(self._first_size(self._peeked))
        except BlockingIOError:
            return
        except OSError:
            come = 0
        if 0 < come < wanted and not accepted.has_ended():
            self._selector.unregister(accepted.socket)  # it would be reported without end
            self._early[accepted] = trio.current_time() + _AGAIN_S
        elif come < wanted:
            self._admission.leave(accepted.pending)
            self._forget(accepted)
            accepted.socket.close()
        elif wanted == accepted.wanted:
            self._wait_for_turn(accepted)

    def _look_again(self) -> None:
        now = trio.current_time()
        while self._early and next(iter(self._early.values())) <= now:
            accepted = next(iter(self._early))
            del self._early[accepted]
            self._selector.register(accepted.socket, selectors.EVENT_READ, accepted)

    def _wait_for_turn(self, accepted: _Accepted) -> None:
        self._forget(accepted)
        self._admission.advance(accepted.pending, Stage.WAITING)
        source = accepted.pending.source
        name = source if self._admission.has_member(source) else ""
        turns = self._turns.get(name)
        if turns is None:
            turns = self._turns[name] = _Turns(_Pace(_TLS_BEGINS_PER_S if self._tls else _PLAIN_BEGINS_PER_S))
        turns.put(accepted)

    def _begin(self, nursery: trio.Nursery) -> None:
        """Have those served whose turn it is."""
        now = trio.current_time()
        for name, turns in list(self._turns.items()):
            for accepted in turns.late(now - self._turn_timeout):
                self._reject_waiting(accepted)
            while turns and turns.pace.take(now):
                self._serve_in_task(nursery, turns.take(), turns.pace)
            if not turns and name and not self._admission.has_member(name):
                del self._turns[name]

    def _serve_in_task(self, nursery: trio.Nursery, accepted: _Accepted, pace: _Pace) -> None:
        accepted.want(1)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(accepted.socket))
        scope = trio.CancelScope(deadline=accepted.pending.since + self._options.introduce_timeout)
        self._admission.begin(accepted.pending, scope.cancel, pace.spend)
        nursery.start_soon(self._serve, stream, accepted.pending, scope)

    # ---- those that are rejected

    def _forget(self, accepted: _Accepted) -> None:
        if accepted in self._silent:
            del self._silent[accepted]
            if self._early.pop(accepted, None) is None:
                self._selector.unregister(accepted.socket)
        for turns in self._turns.values():
            turns.drop(accepted)

    def _evict(self, accepted: _Accepted) -> None:
        """Another connection has got its place."""
        assert accepted.pending.evicted is not None, "it was called for that"
        self._reject(accepted, accepted.pending.evicted)

    def _reject_waiting(self, accepted: _Accepted) -> None:
        """Close one that had no turn in time. Otherwise, where many wait, all that begin would end unfinished."""
        self._admission.leave(accepted.pending)
        self._reject(
            accepted, self._admission.count_late(self._turn_timeout, "so many wait that this one had no turn")
        )

    def _reject_silent(self) -> None:
        """Close those of which too little has come for too long. For those that wait for their turn see `_begin`."""
        late_since = trio.current_time() - self._begin_timeout
        while self._silent and (accepted := next(iter(self._silent))).pending.since <= late_since:
            self._admission.leave(accepted.pending)
            self._reject(accepted, self._admission.count_late(self._begin_timeout))

    def _reject(self, accepted: _Accepted, why: FullError) -> None:
        """Close a connection, and tell the other side why, in a form that it understands before a handshake of TLS."""
        self._forget(accepted)
        begins_with = self._read_begun(accepted)
        tls = self._tls and begins_with != MAGIC[:1]
        with suppress(OSError):
            accepted.socket.send(NO_PLACE_ALERT if tls else encode_reason(str(why), FrameKind.FULL))
        accepted.socket.close()
        self._warn(why.cause, f"closed the connection from {accepted.pending.source}: {why}")

    def _read_begun(self, accepted: _Accepted) -> bytes:
        """Read what has come, since a socket that is closed with unread bytes may lose the answer. Return the first byte."""
        with suppress(OSError):
            come = accepted.socket.recv_into(self._peeked)
            return bytes(self._peeked[: min(come, 1)])
        return b""

    def _close(self, listeners: Sequence[socket.socket]) -> None:
        waiting = [*self._silent, *chain.from_iterable(self._turns.values())]
        self._silent.clear()
        self._early.clear()
        self._turns.clear()
        for accepted in waiting:
            self._admission.leave(accepted.pending)
            accepted.socket.close()
        for listener in listeners:
            listener.close()
        self._selector.close()
