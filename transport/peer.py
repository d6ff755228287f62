"""One other host as this one reaches it: three bounded lanes, and the one connection that this host opens to it.

Messages to a peer travel on the connection that this host opened, and messages from it on the one that the peer
opened. So each connection has one writer and one direction, two hosts never have to agree on which of two connections
to keep, and a peer that can be reached receives messages even where it cannot connect back.

A peer's task is a loop: wait until there is something to send, dial, write until the connection is lost, report that,
wait a little. Nothing is sent twice: the protocol above repeats what was lost.
"""

import logging
import math
import os
import struct
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from random import Random
from typing import Final, cast

import trio
from drakkar.handlers.backoff import Backoff
from drakkar.handlers.errors import TransportError
from drakkar.handlers.messages import Message
from drakkar.transport.addresses import peer_name
from drakkar.transport.budgets import Account, Work
from drakkar.transport.call_frames import check_record
from drakkar.transport.call_rooms import CallRoom
from drakkar.transport.calls import CallLane
from drakkar.transport.connection import Connection, NobodyListens, Place, dial, network_error, refuses
from drakkar.transport.frames import Frame, FrameError, FrameKind, encode_frame
from drakkar.transport.hello import (
    ALIVE_FEATURE,
    CALLS_FEATURE,
    FullError,
    Hello,
    Identity,
    RefusedError,
    decode_reason,
)
from drakkar.transport.known_hosts import Answer, KnownHosts
from drakkar.transport.lanes import BulkLane, ControlLane, size_of
from drakkar.transport.liveness import HostState, Liveness, RunId, decode_alive, encode_alive
from drakkar.transport.message_frames import Packed, batches, frame_of, pack
from drakkar.transport.options import Counters, Log, Options
from drakkar.transport.parts import PartTurns
from drakkar.transport.reminders import Reminders, and_others
from drakkar.transport.room import RoomQueue
from drakkar.transport.tls import Tls

__all__ = ["Peer", "PeerStatus"]

_WRITE_BYTES: Final = 128 << 10
"""Bytes that are taken out of the lanes at once. Control waits for no more than these."""
_TURN_BYTES: Final = 512 << 10
"""Bytes that are encoded and written at once where the kernel takes them all: about a millisecond of work."""
_LANE_BYTES: Final = 64 << 10
"""Bytes that bulk, or calls, may send before it is the turn of the other."""
_QUICK_ATTEMPTS: Final = 20
"""How many times a peer that is full is dialed again after the shortest wait: for most of a second."""
_REFUSAL_S: Final = 1.0
"""How long a kernel may take to refuse a connection, for that to be evidence. Until then the host is not dialed again."""
_PING: Final = struct.Struct(">d")
_QUESTION: Final = b"?"
"""The body of a PING that asks for a sign of life out of turn."""
_ANSWER_BYTES: Final = 64 << 10
"""Maximum bytes of a frame that a peer sends back on a connection that this host has opened."""
_ECHO_BYTES: Final = 64
"""Maximum bytes of a PING that come back in the PONG."""


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """The state of the connection to a peer."""

    connected: bool
    queued_messages: int
    """Messages that wait, control and bulk."""
    queued_bytes: int
    """Their bytes."""
    bulk_messages: int
    """How many of them are bulk."""
    bulk_bytes: int
    call_records: int
    """Remote calls, answers and the like that wait, those on their way to the loop included."""
    call_bytes: int
    busy_shards: int
    """Shards that wait for room for their bulk."""
    rtt: float | None
    """Round-trip time of the last PING, in seconds; None before the first PONG."""
    failures: int
    """Failed attempts to connect since the last success."""
    features: frozenset[str]
    """The features that the peer announced when it was last reached."""
    error: str
    """Why there is no connection, or why the last one was lost; empty where nothing failed yet."""
    state: HostState = HostState.UNKNOWN
    """What is known of the life of the host; always UNKNOWN of one that is no member of this host's shards, and not watched."""
    host_id: str = ""
    """Of the host that introduced itself there last; empty before the first did."""
    run: int = 0
    """Which start of that host it was."""


class Peer:
    """Another host, as this one reaches it: a `Link` while it is connected. For the trio loop's thread only."""

    wanted = False
    """It is dialed though nothing waits, and its connection is kept though nothing is sent: heartbeats are, or it will be answered."""
    called = False
    """This host has called it of its own accord, and not only answered."""
    unreached = ""
    """Why the last attempt to reach it failed, or it takes no calls; empty where none has, and once one succeeds. From any thread."""
    _knocked = False
    """An attempt to reach it is to be made, though nothing waits."""

    def __init__(
        self,
        address: str,
        *,
        identity: Callable[[], Identity],
        options: Options,
        counters: Counters,
        log: Log,
        unreachable: Callable[[str], None],
        drained: Callable[[str, Sequence[int]], None],
        handed_back: Callable[[str, list[Message]], None] | None,
        calls_handed_back: Callable[[str, list[bytes], TransportError], None],
        call_room: CallRoom,
        at_once: bool,
        tls: Tls | None,
        known: KnownHosts,
        liveness: Liveness,
        work: Work,
        introduction: Callable[[int], bytes | None],
        random: Random,
        reminders: Callable[[str], Reminders | None] = lambda _: None,
    ) -> None:
        """`introduction` returns the body of the SHARD frame of a shard, None for one that needs none now.

        `reminders` returns those that the peer at a canonical address shares with others; None where it has its own.
        """
        self.address = address
        self._name = peer_name(address)
        self._identity, self._options, self._counters, self._log = identity, options, counters, log
        self._unreachable, self._tls, self._known, self._work = unreachable, tls, known, work
        self._liveness = liveness
        self._heartbeat_waits = False
        self._run = RunId("", 0, 0)
        """Which run of the host was reached last."""
        self._place: Place | None = None
        """Where the last connection led to."""
        self._reminders, self._shared_reminders = Reminders(), reminders
        self.life = trio.CancelScope()
        """Of its task."""
        self._introduction = introduction
        self._introduced: set[int] = set()
        """The shards whose introduction was queued, for this connection or the next."""
        self._answer = Answer()
        self._drained, self._handed_back, self._at_once = drained, handed_back, at_once
        self._calls_handed_back = calls_handed_back
        self.write_is_due = False
        """`push` will be called at the end of this round."""
        self._backoff = Backoff(options.backoff_first, options.backoff_last, random)
        self._times_full = 0
        """How many times the peer had no place since it had one."""
        self._control = ControlLane(options.control_bytes, options.queue_messages)
        part_turns = PartTurns()
        self._bulk = BulkLane(options.queue_bytes, options.queue_messages, part_turns)
        self._calls = CallLane(call_room, part_turns)
        self._calls_lead = 0
        """Bytes that calls have sent more than bulk, while both had something to send."""
        self._room = RoomQueue(self._bulk.share)
        self._rest: bytes | memoryview = b""  # of a write that the kernel took in part
        self._wake = trio.Event()  # there is something to send
        self._revived = trio.Event()  # the next attempt need not wait any longer
        self._used_at = trio.current_time()
        self._ready_fd = -1  # the socket, while `_push` may write to it
        self._lost: TransportError | None = None  # why the connection is over
        self._connected = False
        self._scope = trio.CancelScope()  # of the connection
        self._ping = b""
        self._rtt: float | None = None
        self._features: frozenset[str] = frozenset()
        self._error = ""
        self._news_until = 0.0
        """When `unreached` is no news any more; 0 while no attempt is waited for."""

    # ---- what the transport calls

    def offer(self, messages: Iterable[Message]) -> int:
        """Queue messages, and write them at once where the socket is idle; return how many were dropped."""
        dropped = 0
        unsent: list[Message] = []
        for message in messages:
            bulk = message.type.traits.bulk
            shard = message.shard
            introduced = shard in self._introduced or self.introduce(shard)
            if bulk and (self._bulk.full or not introduced):
                unsent.append(message)
                if message.type.traits.from_leader:  # its leader will wait for room
                    self._room.refuse(shard)
            elif not introduced or (packed := self._pack(message)) is None:
                dropped += 1
            elif bulk:
                self._bulk.put(packed, message)
                self._room.used(shard, packed.size)
            else:
                dropped += not self._control.put(packed)
        if self._at_once:
            self.push()
        if unsent:
            self._wake.set()
            dropped += self._hand_back(unsent)
        self._counters.dropped += dropped
        return dropped

    def recall(self, message: Message) -> int:
        """Drop what equals a message, which is not bulk, where it still waits; return how many were dropped."""
        packed = self._pack(message)
        recalled = 0 if packed is None else self._control.recall(packed)
        self._counters.recalled += recalled
        return recalled

    def introduce(self, shard: int) -> bool:
        """Queue what this host says of its replica of a shard, unless the peer has it; return False where there is no room.

        It is in the control lane, so it leaves before all messages that are queued from now on.
        """
        if shard in self._introduced:
            return True
        body = self._introduction(shard)
        if body is None:
            return True
        if not self._control.put(encode_frame(FrameKind.SHARD, body)):
            return False
        self._introduced.add(shard)
        return True

    def reintroduce(self, shard: int) -> None:
        """Introduce the replica of a shard anew, before its next message."""
        self._introduced.discard(shard)

    def offer_frame(self, frame: bytes) -> bool:
        """Queue a complete frame of any kind; return whether there was room for it."""
        queued = self._control.put(frame)
        if self._at_once:
            self.push()
        self._counters.dropped += not queued
        return queued

    def offer_calls(self, records: Sequence[bytes], *, admitted: bool) -> int:
        """Queue records, and write them at once where the socket is idle; return how many found no room.

        See `TcpTransport.send_calls`.
        """
        room = self._calls.room
        sizes = list(map(len, records))
        try:
            self._check_calls(() if admitted else records)
        except TransportError:
            if admitted:
                room.give_back(len(records), sum(sizes))
            raise
        count = len(records) if admitted else room.take(sizes)
        self._calls.put(records[:count])
        self._used_at = trio.current_time()
        if self.unreached and not self.away:
            self.redial()
        if self._at_once:
            self.push()
        return len(records) - count

    def _check_calls(self, records: Iterable[bytes]) -> None:
        """Raise `TransportError` where the peer takes no calls, or not one of these."""
        if self._connected and CALLS_FEATURE not in self._features:
            raise self._takes_no_calls()
        for record in records:
            check_record(record, self._options.longest_call)

    def _takes_no_calls(self) -> TransportError:
        return TransportError(
            f"the host at {self.address} takes no remote calls: upgrade it to the version of this one"
        )

    def room(self, shard: int, least: int) -> int:
        """Return how many bytes of bulk of a shard may be offered: `least` or more, or 0; then `drained` will tell of it."""
        bulk = self._bulk
        if self._connected and not bulk.full:
            room = self._room.ask(shard, bulk.room(), least=least, reserve=bulk.reserve(shard))
        else:
            room = self._room.refuse(shard)
        if not room:
            self._used_at = trio.current_time()
            self._counters.busy += self._connected
            self._wake.set()
        return room

    def waiting(self, shard: int) -> int:
        """Return how many bulk messages of a shard wait here."""
        return self._bulk.waiting(shard)

    def beat(self, heartbeat: bytes) -> None:
        """Send a heartbeat, unless the last one still waits. Without a connection, dial."""
        if not self._connected:
            self._wake.set()
        elif ALIVE_FEATURE in self._features and not self._heartbeat_waits:
            self._heartbeat_waits = self._control.put(heartbeat)
            if self._at_once:
                self.push()

    def redial(self) -> None:
        """Make the next attempt now, and not after the wait that is under way."""
        self._revived.set()

    def knock(self) -> None:
        """See whether it can be reached now, though there is nothing to send."""
        self._knocked = True
        self._used_at = trio.current_time()
        self._wake.set()
        if not self.away:
            self.redial()

    def revive(self) -> None:
        """Forget past failures and dial without further waiting: the peer has just shown that it is alive."""
        self._backoff.reset()
        self._times_full = 0
        self._revived.set()

    @property
    def name(self) -> str:
        """Its address in canonical spelling."""
        return self._name

    @property
    def used_at(self) -> float:
        """When something was sent to it last, by trio's clock."""
        return self._used_at

    def end(self) -> None:
        """Drop what waits, report that, and close the connection soon: it will not be used any more."""
        self._clear(TransportError(f"{self.address} had to make room for other hosts that are dialed"))
        self.life.cancel()
        self._unreachable(self.address)

    def hand_back_calls(self, why: TransportError) -> None:
        """Give the calls back that have not left: they surely have no effect."""
        records = self._calls.clear()
        if records:
            self._counters.calls_handed_back += len(records)
            self._calls_handed_back(self.address, records, why)

    @property
    def away(self) -> str:
        """Why it could not be reached, while that is news; empty at all other times: calls will tell.

        A refusal costs next to nothing, and is over once the process of the host is started again. So it is news for the shortest wait
        alone. Calls for the host after that need not wait for the next attempt: they have it dialed at once.
        """
        return self.unreached if trio.current_time() < self._news_until else ""

    @property
    def reachable(self) -> bool:
        """Whether it is connected, or nothing has failed yet."""
        return self._connected or not self._error

    def status(self) -> PeerStatus:
        """Return the state of the connection to this peer."""
        life = self._liveness.life(self._name)
        return PeerStatus(
            connected=self._connected,
            queued_messages=len(self._control.items) + self._bulk.count,
            queued_bytes=self._control.bytes + self._bulk.bytes,
            bulk_messages=self._bulk.count,
            bulk_bytes=self._bulk.bytes,
            call_records=self._calls.room.records,
            call_bytes=self._calls.room.bytes,
            busy_shards=len(self._room),
            rtt=self._rtt,
            failures=self._backoff.failures,
            features=self._features,
            error=self._error,
            state=life.state,
            host_id=life.host_id,
            run=life.run,
        )

    async def answers(self, within: float) -> bool:
        """See `Link`."""
        self.offer_frame(encode_frame(FrameKind.PING, _QUESTION))
        self.push()
        return await self._answer.wait(within)

    def give_up(self) -> None:
        """See `Link`."""
        self._lost = self._lost or TransportError("another run of the host has taken its place")
        self._scope.cancel()

    # ---- the lanes

    def _pack(self, message: Message) -> Packed | None:
        try:
            return pack(message, self._options.frame_limit)
        except TransportError as error:
            # The text names the message and the remedy.
            self._log.error("not sent to %s: %s", self.address, error)
            return None

    def _hand_back(self, unsent: list[Message]) -> int:
        """Give messages back that were not sent; return how many were dropped instead."""
        if self._handed_back is None:
            return len(unsent)
        self._counters.handed_back += len(unsent)
        self._handed_back(self.address, unsent)
        return 0

    def _clear(self, why: TransportError) -> None:
        """Drop what waits for a peer that is away. By the time it is back, the protocol has newer messages."""
        self._room.clear()
        self._introduced.clear()
        self._heartbeat_waits = False
        dropped, unsent = self._bulk.clear()
        self._counters.dropped += dropped + self._control.clear()
        if unsent:
            self._counters.dropped += self._hand_back(unsent)
        self.hand_back_calls(why)

    def _tell_drained(self) -> bool:
        """Tell the shards of the room that they waited for; return whether there was any."""
        shards = self._room.tell(self._bulk.drained())
        if shards:
            self._drained(self.address, shards)
        return bool(shards)

    def _take(self) -> bytes:
        """Take about `_WRITE_BYTES`, and at least one item, out of the lanes, as frames."""
        control, bulk, calls = self._control, self._bulk, self._calls
        waited, size, records = len(control.items) + bulk.count, control.bytes, calls.count
        items = control.take(_WRITE_BYTES) if control.items else []
        self._heartbeat_waits = self._heartbeat_waits and bool(control.items)
        free = _WRITE_BYTES - (size - control.bytes)
        if calls.ready:
            self._take_in_turn(items, free)
        elif free > 0:
            items += bulk.take(free)
        self._counters.sent += waited - len(control.items) - bulk.count
        self._counters.calls_sent += records - calls.count
        return _frames_of(items, self._options.frame_limit)

    def _take_in_turn(self, items: list[Packed | bytes], free: int) -> None:
        """Add bulk and calls, 64 KiB of each in turn, until these have so many bytes or more."""
        while free > 0 and (taken := self._take_next(min(free, _LANE_BYTES))):
            items += taken
            free -= sum(map(size_of, taken))

    def _take_next(self, limit: int) -> Sequence[Packed | bytes]:
        """Take out of the one of the two lanes that has sent less, or out of the other where it has nothing to send."""
        lanes: list[CallLane | BulkLane] = [self._calls, self._bulk]
        if self._calls_lead > 0:
            lanes.reverse()
        for lane in lanes:
            taken: Sequence[Packed | bytes] = lane.take(limit)
            if taken:
                size = sum(map(size_of, taken))
                self._calls_lead += size if lane is self._calls else -size
                return taken
            self._calls_lead = 0  # nothing is saved up for later
        return ()

    # ---- writing

    def push(self) -> None:
        """Get what waits on its way.

        Waking the writer costs a turn of the loop. A socket that is ready takes the bytes here, and the writer is woken
        only for the rest.
        """
        self.write_is_due = False
        if not self._can_send:
            return
        self._used_at = trio.current_time()
        if self._ready_fd < 0 or self._wake.is_set():
            self._wake.set()
            return
        self._write_now(self._ready_fd)
        if self._lost is not None or self._rest or self._can_send:
            self._wake.set()

    @property
    def _can_send(self) -> bool:
        """Something waits that may leave now: of calls some wait for credit."""
        return bool(self._control.items or self._bulk.count or self._calls.ready)

    def _write_now(self, fd: int) -> None:
        """Write what waits to a socket until it takes no more, and leave the rest of a frame in `_rest`.

        After `_TURN_BYTES` other tasks and actors of the loop are to have their turn.
        """
        total = 0
        while self._can_send and total < _TURN_BYTES:
            data = self._take()
            try:
                written = os.write(fd, data)
            except BlockingIOError:
                written = 0
            except OSError as error:
                self._lost = network_error(error)
                return
            self._counters.sent_bytes += written
            if written < len(data):
                self._rest = memoryview(data)[written:]
                return
            total += written

    async def _write(self, connection: Connection) -> None:
        """Write what waits, and a PING in each keep-alive interval, until the peer is no longer used."""
        timeout = self._options.send_timeout
        ping_at = 0.0
        while self._lost is None:
            now = trio.current_time()
            if self._rest:
                rest, self._rest = self._rest, b""
                await connection.write(rest, timeout)
            elif now >= ping_at:
                ping_at = now + self._options.keepalive
                self._ping = _PING.pack(now)
                await connection.write(encode_frame(FrameKind.PING, self._ping), timeout)
            elif self._can_send:
                await self._write_some(connection)
                self._tell_drained()
            elif self._tell_drained():
                # Those that were told may fill the lane now, or leave the room to others.
                await trio.lowlevel.checkpoint()
            elif not (self.wanted or self._calls.count) and now >= self._used_at + self._options.idle_timeout:
                self._introduced.clear()  # what is queued from now on is for the next connection
                return
            else:
                await self._sleep(connection, ping_at)

    async def _write_some(self, connection: Connection) -> None:
        if connection.fd < 0:
            await connection.write(self._take(), self._options.send_timeout)
            return
        self._write_now(connection.fd)
        await trio.lowlevel.checkpoint()

    async def _sleep(self, connection: Connection, until: float) -> None:
        """Wait until there is something to write that `_push` could not write itself."""
        self._wake = trio.Event()
        self._ready_fd = connection.fd
        try:
            with trio.move_on_at(until):
                await self._wake.wait()
        finally:
            self._ready_fd = -1

    # ---- reading

    async def _read(self, connection: Connection) -> None:
        """Read the answers to PINGs. Their absence is how a peer that vanished without a word is noticed."""
        connection.limit_frames(_ANSWER_BYTES)
        account = self._work.account(self._name, _is_member)
        try:
            await connection.read_until_lost(
                self._options.keepalive + self._options.answer_timeout,
                partial(self._handle_frames, connection, account),
            )
        finally:
            account.abandon()

    async def _handle_frames(self, connection: Connection, account: Account, frames: list[Frame]) -> None:
        account.begin(connection.read_at)
        for frame in frames:
            self._handle_frame(frame, account)
        if pause := account.end(len(frames)):
            self._counters.pauses += 1
            with connection.pause():
                await trio.sleep(pause)

    def _handle_frame(self, frame: Frame, account: Account) -> None:
        if frame.kind == FrameKind.PONG and frame.body == self._ping:
            self._rtt = trio.current_time() - _PING.unpack(self._ping)[0]
            return
        if frame.kind == FrameKind.CALLS and self._calls.credit(frame.body):
            self.push()
            return
        if frame.kind == FrameKind.ALIVE:
            if not self._liveness.answered(self._name, self._run, decode_alive(frame.body)):
                account.charge(1)
            return
        # All else is seldom: more of it than that is of no use.
        account.charge(1)
        if frame.kind == FrameKind.PONG:
            if bytes(frame.body) == _QUESTION:
                self._answer.heard()
        elif frame.kind == FrameKind.PING:
            self.offer_frame(encode_frame(FrameKind.PONG, bytes(frame.body[:_ECHO_BYTES])))
            self.push()
        elif frame.kind == FrameKind.REFUSED:
            raise RefusedError(decode_reason(frame.body), "by the other host")
        elif frame.kind != FrameKind.CALLS:  # one that brings no credit
            self._counters.unknown_frames += 1
            self._log.debug("dropped a frame of kind %d from %s", frame.kind, self.address)

    # ---- the life of a peer

    async def run(self) -> None:
        """Dial, write, wait, and repeat.

        Return once nothing was sent to the peer for `idle_timeout` seconds, and it is not `wanted`.
        """
        while await self._wait_for_work():
            self._knocked = False
            try:
                connection, callee = await self._connect()
            except TransportError as error:
                self._counters.connect_failures += 1
                await self._note_refusal(error)
                await self._fail("cannot reach", error)
            else:
                await self._use(connection, callee)

    async def _note_refusal(self, error: TransportError) -> None:
        """An attempt to connect has failed: where nothing listens any more, that may show that the process has ended."""
        if not isinstance(error, NobodyListens) or not self._liveness.may_be_gone(self._name):
            return
        # The name of the host may lead elsewhere by now, where nothing listens, while the host lives on in its old place.
        if self._place is not None and await refuses(self._place, _REFUSAL_S):
            self._liveness.refused(self._name)

    async def _wait_for_work(self) -> bool:
        """Wait until there is something to send; return False where nothing comes for `idle_timeout` seconds."""
        while not self._has_work:
            self._wake = trio.Event()
            with trio.move_on_at(self._used_at + self._options.idle_timeout) as idle:
                await self._wake.wait()
            if idle.cancelled_caught and not self._has_work:
                return False
        return True

    @property
    def _has_work(self) -> bool:
        return self.wanted or self._waits or self._knocked

    @property
    def _waits(self) -> bool:
        """Whether there is something to send, or a shard that waits for room."""
        return bool(self._control.items or self._bulk.count or self._calls.count or self._room)

    async def _connect(self) -> tuple[Connection, Hello]:
        connection, callee = await dial(
            self.address,
            self._identity(),
            self._options,
            self._counters,
            tls=self._tls,
            admit=self._known.admit,
        )
        try:
            self._known.add(callee, self)
        except RefusedError:
            await connection.close()
            raise
        self._features, self._run, self._place = callee.features, RunId.of(callee), connection.place
        return connection, callee

    async def _use(self, connection: Connection, callee: Hello) -> None:
        """Write and read until the connection is lost, or the peer is no longer used."""
        self._counters.connects += 1
        self._connected, self._lost, self._error = True, None, ""
        self._times_full = 0
        since = trio.current_time()
        self._log.info("connected to %s", self.address)
        self.unreached = ""
        if CALLS_FEATURE not in self._features:
            self.unreached = str(self._takes_no_calls())
            self.hand_back_calls(self._takes_no_calls())
        self._liveness.introduced(self._name, callee)
        if self.wanted and not self._liveness.silent:
            self.beat(encode_alive(self._liveness.number))  # it need not wait for the next tick to be heard
        try:
            async with trio.open_nursery() as nursery:
                self._scope = nursery.cancel_scope
                for work in (self._read, self._write):
                    nursery.start_soon(self._until_lost, work, connection, nursery.cancel_scope)
        finally:
            self._connected, self._rest, self._rtt = False, b"", None
            self._calls.reconnect()
            self._answer.lost()
            self._known.remove(callee, self)
            self._liveness.lost(self._name)
            await connection.close()
        if self._lost is not None:
            self._counters.lost += 1
            # A connection that is lost at once counts like one that could not be opened.
            if trio.current_time() > since + self._options.backoff_last:
                self._backoff.reset()
            await self._fail("lost the connection to", self._lost, lost=True)

    async def _until_lost(
        self, work: Callable[[Connection], Awaitable[None]], connection: Connection, both: trio.CancelScope
    ) -> None:
        try:
            await work(connection)
        except TransportError as error:
            self._lost = self._lost or error
        finally:
            both.cancel()

    async def _fail(self, what: str, error: TransportError, *, lost: bool = False) -> None:
        """Drop what waits, report the failure, and wait before the next attempt. `lost`: there was a connection.

        An attempt for heartbeats alone that fails changes nothing for anybody.
        """
        matters = lost or self._waits
        self._clear(TransportError(f"{what} {self.address}: {error}"))
        wait = self._wait_after(error, lost=lost)
        self._counters.count_fault(error)
        count = self._warns_of(error)
        self._error = str(error)
        self._log.log(
            logging.WARNING if count else logging.DEBUG,
            "%s %s: %s; next attempt in %.2f s%s",
            what,
            self.address,
            error,
            wait,
            and_others(count),
        )
        self._revived = trio.Event()
        # One that is full may have a place at any moment, and a lost connection may soon be another one.
        self.unreached = "" if lost or isinstance(error, FullError) else f"{what} {self.address}: {error}"
        fresh = self._options.backoff_first if isinstance(error, NobodyListens) else math.inf
        self._news_until = trio.current_time() + fresh
        if matters:
            self._unreachable(self.address)
        with trio.move_on_after(wait):
            await self._revived.wait()
        self._news_until = 0.0

    def _wait_after(self, error: TransportError, *, lost: bool = False) -> float:
        """Return the seconds until the next attempt. `lost`: there was a connection."""
        if isinstance(error, RefusedError):
            self._backoff.failures += 1
            return self._backoff.jitter(self._options.backoff_refused)
        if isinstance(error, FullError) and self._times_full < _QUICK_ATTEMPTS:
            # A place may be free at any moment. But hosts that all dial on and on leave no time to one that is full.
            self._times_full += 1
            return self._backoff.jitter(self._options.backoff_first)
        first = not self._backoff.failures
        wait = self._backoff.next()
        # What comes of an attempt at once tells whether its process has ended.
        return 0.0 if lost and first and self.wanted and not isinstance(error, FrameError) else wait

    def _warns_of(self, error: TransportError) -> int:
        """Return how many failures like this one a warning stands for; 0: none is written.

        One warning until the reason changes, not one an attempt. Where the other host has a part in the text, it may give
        other reasons without end, so these are written once a minute.
        """
        if (shared := self._shared_reminders(self._name)) is not None:
            return shared.due(type(error).__name__)
        if isinstance(error, RefusedError):
            return self._reminders.due(error.cause)
        if isinstance(error, (FullError, FrameError)):
            return self._reminders.due(type(error).__name__)
        return int(self._error != str(error))


def _is_member() -> bool:
    """This host dials members, and replicas that have asked for an answer."""
    return True


def _frames_of(items: list[Packed | bytes], frame_limit: int) -> bytes:
    """Return encoded messages and complete frames as frames, in order."""
    if len(items) == 1:
        return items[0] if isinstance(items[0], bytes) else frame_of(cast("list[Packed]", items))
    frames: list[bytes] = []
    for complete, group in groupby(items, _is_frame):
        if complete:
            frames.extend(cast("Iterator[bytes]", group))
        else:
            frames.extend(map(frame_of, batches(cast("Iterator[Packed]", group), frame_limit)))
    return frames[0] if len(frames) == 1 else b"".join(frames)


def _is_frame(item: Packed | bytes) -> bool:
    return type(item) is bytes
