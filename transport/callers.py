"""A host that has dialed this one, and what is done with its frames: turn by turn, so that others have theirs in between.

A turn ends after so many bytes, messages or milliseconds. Its messages are delivered then, all together; the calls of a
frame are handed over at once. The cost is put down: see `budgets`. Where that allows no more messages for now, the
connection is not read for a while; where it allows no more calls, they get no credit until then: see `calls`.
"""

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeAlias, TypeVar

import trio
from drakkar.handlers.errors import TransportError
from drakkar.handlers.messages import Message
from drakkar.transport.addresses import canonical
from drakkar.transport.budgets import WHOLE_BYTES, Account, MemoryReservation, Rooms, Work
from drakkar.transport.call_frames import decode_calls, is_calls, list_head
from drakkar.transport.calls import CallWindow
from drakkar.transport.connection import Connection
from drakkar.transport.frames import Frame, FrameError, FrameKind, encode_frame
from drakkar.transport.hello import Hello, RefusedError, decode_reason
from drakkar.transport.known_hosts import Answer
from drakkar.transport.liveness import Liveness, decode_alive, encode_alive
from drakkar.transport.message_frames import Decoded, decode_messages, decoding
from drakkar.transport.options import Counters, Log, Options
from drakkar.transport.parts import PART_BYTES, PartReader
from drakkar.transport.reminders import Reminders, and_others
from drakkar.transport.shard_frames import ShardHello, decode_shard

__all__ = ["Caller", "CallerFrames"]

Body: TypeAlias = memoryview | bytearray
"""The body of a MESSAGES or CALLS frame, or what the parts of one make up."""
T = TypeVar("T")

_ECHO_BYTES: Final = 64
"""Maximum bytes of a PING that come back in the PONG."""
_TURN_BYTES: Final = 64 << 10
"""Bytes of frames that are decoded before other tasks of the loop get a turn: about a millisecond of work."""
_TURN_UNITS: Final = 256
"""Messages, and frames of other kinds, that are handled before other tasks of the loop get a turn: a small one costs more than
its bytes."""
_TURN_S: Final = 0.001
"""Seconds after which other tasks of the loop get a turn."""
_MIN_PAUSE_S: Final = 0.001
"""A shorter pause is not worth a timer: the next turn makes up for it."""
_MAX_REST_S: Final = 0.5
"""Seconds for which a new connection of a member waits at most, since the last one has brought too many calls."""
_USELESS: Final = (
    "so many messages that are of no use here, as for shards that are not here or of older terms, that they would hold up "
    "all others"
)
_MANY: Final = "so many messages for one shard that they would hold up others"
_BUSY: Final = (
    "so many calls of actors, or so many that are of no use here, that they would hold up other hosts"
)


class Caller:
    """A host that dialed this one, and was admitted: a `Link`."""

    def __init__(
        self,
        connection: Connection,
        hello: Hello,
        send_timeout: float,
        *,
        account: Account,
        reservation: MemoryReservation,
        frame_limit: int,
        call_limit: int,
        at_home: bool,
        is_member: Callable[[], bool],
    ) -> None:
        self.connection, self.hello, self._timeout = connection, hello, send_timeout
        self.account, self.reservation = account, reservation
        self.parts = PartReader(frame_limit, call_limit)
        self.window = CallWindow()
        """What calls it has sent, and had credit for."""
        self.owed = False
        """Credit was kept back, and is given later."""
        self.ended = False
        """The connection is not read any more, and nothing may be written."""
        self.at_home = at_home
        """It has shown that it is at its address."""
        self.is_member = is_member
        """Whether it counts as a member's now."""
        self.scope = trio.CancelScope()
        self.answer = Answer()
        """To the questions of `answers`."""
        self.proved = True
        """It is surely alive. False where its run is taken for gone, until it has answered a question."""
        self._writing = trio.Lock()

    @property
    def is_heard(self) -> bool:
        """What it sends may be delivered: it is alive, and no other connection has taken its place."""
        return self.proved and not self.scope.cancel_called

    async def write(self, frame: bytes) -> None:
        """Write a frame. Two tasks may do so. No checkpoint where the kernel takes it at once."""
        rest = frame if self._writing.locked() else self.connection.write_now(frame)
        if rest:
            async with self._writing:
                await self.connection.write(rest, self._timeout)

    async def answers(self, within: float) -> bool:
        """See `Link`."""
        with trio.move_on_after(within), suppress(TransportError):
            await self.write(encode_frame(FrameKind.PING))
            return await self.answer.wait(within)
        return False

    def give_up(self) -> None:
        """See `Link`."""
        self.scope.cancel()

    def end(self) -> None:
        """The connection has ended."""
        self.ended = True
        self.answer.lost()
        self.account.abandon()
        self.reservation.end()


class _Turn:
    """What one turn has brought so far."""

    __slots__ = ("answers", "bytes", "calls", "messages", "units", "until")

    def __init__(self, began: float) -> None:
        self.until = began + _TURN_S
        self.messages: list[Message] = []
        """Those that are not delivered yet."""
        self.units = self.calls = 0
        self.bytes = 0
        self.answers: list[bytes] = []
        """Frames for the caller."""


class CallerFrames:
    """Handles the frames of all callers. For the trio loop's thread only. For the arguments see `TcpTransport`."""

    def __init__(
        self,
        *,
        options: Options,
        counters: Counters,
        log: Log,
        work: Work,
        deliver: Callable[[str, list[Message]], None],
        introduced: Callable[[str, ShardHello], None],
        frames: Mapping[int, Callable[[str, memoryview], None]],
        start_soon: Callable[..., None],
        called: Callable[[str, list[list[Any]]], None] | None = None,
        liveness: Liveness | None = None,
    ) -> None:
        """`start_soon`: starts a task that ends with the transport."""
        self._start_soon = start_soon
        self._options, self._counters, self._log, self._work = options, counters, log, work
        self._liveness = liveness or Liveness()
        self._deliver, self._introduced, self._frames = deliver, introduced, frames
        self._called = called
        # A PING comes in each keep-alive interval. One may be late, or lost in a busy host.
        self._silence = 2 * options.keepalive + options.answer_timeout
        self._rooms = Rooms(options.unfinished_bytes, self._silence, work.clock)
        self._accounts: dict[str, Account] = {}
        """Of connections that are open, by the address in the introduction."""
        self._reminders = Reminders()

    @property
    def unfinished_bytes(self) -> int:
        """Bytes that large frames and messages which are not complete have taken."""
        return self._rooms.taken

    def caller(
        self, connection: Connection, hello: Hello, is_member: Callable[[], bool], *, at_home: bool = False
    ) -> Caller:
        """Return the caller of a connection that was admitted.

        `is_member`: whether it counts as a member's now. `at_home`: it has shown that it is at its address; one that has
        not does not use up the account of the host that is.
        """
        options = self._options
        name = canonical(hello.address)
        return Caller(
            connection,
            hello,
            options.send_timeout,
            account=self._work.account(name if at_home else f"? {name}", is_member),
            reservation=self._rooms.reservation(is_member),
            frame_limit=options.frame_limit,
            call_limit=len(list_head(1)) + options.longest_call,
            at_home=at_home,
            is_member=is_member,
        )

    def charge(self, address: str, count: int) -> None:
        """So many messages of the host at `address` were of no use."""
        account = self._accounts.get(address)
        if account is not None:
            account.charge(count)
        self._counters.useless += count

    def charge_calls(self, address: str, count: int) -> None:
        """So many of the calls that are being handed over were of no use."""
        account = self._accounts.get(address)
        if account is not None:
            account.useless_calls += count
        self._counters.useless += count

    async def read(self, caller: Caller) -> None:
        """Handle all that comes from a caller until its connection is lost. Raises as `Connection.read_until_lost` does."""
        address = caller.hello.address
        self._accounts[address] = caller.account
        try:
            with caller.scope:
                # One that was overdrawn, or whose kind was, does not begin anew with each connection.
                if pause := caller.account.wait():
                    await self._pause(pause, caller)
                if rest := caller.account.rest():
                    await self._pause(rest, caller, _MANY)
                # A connection begins with a whole window, so one after the other would go round the credit.
                if rest := caller.account.calls_wait():
                    await self._pause(min(rest, _MAX_REST_S) if caller.is_member() else rest, caller, _BUSY)
                if not caller.proved:
                    await caller.write(encode_frame(FrameKind.PING))
                await caller.connection.read_until_lost(
                    self._silence, lambda frames: self.handle(caller, frames)
                )
        finally:
            caller.end()
            if self._accounts.get(address) is caller.account:
                del self._accounts[address]

    async def handle(self, caller: Caller, frames: Sequence[Frame]) -> None:
        """Handle the frames of one read."""
        if caller.scope.cancel_called:
            return  # another connection has taken its place: it would be taken for that
        clock = self._work.clock
        turn = _Turn(caller.account.begin(caller.connection.read_at))
        for frame in frames:
            if turn.units + turn.calls > _TURN_UNITS or turn.bytes > _TURN_BYTES or clock() > turn.until:
                if not await self._end(turn, caller):
                    await trio.lowlevel.checkpoint()
                turn = _Turn(caller.account.begin())
            if (body := self._handle(frame, turn, caller)) is None:
                continue
            large = len(body) > _TURN_BYTES
            if self._called is not None and frame.kind != FrameKind.MESSAGES and is_calls(body):
                self._take_calls(body, turn, caller)
            elif large:
                self._take(await self._in_steps(decoding(body), turn, caller), turn, caller)
            else:
                self._take(decode_messages(body), turn, caller)
            if large and (len(body) > WHOLE_BYTES or frame.kind == FrameKind.PART):
                await self._end(turn, caller, complete=True)
                turn = _Turn(caller.account.begin())
        await self._end(turn, caller)
        if not frames and (pause := caller.account.fruitless(caller.connection.read_size)):
            await self._pause(pause, caller)

    async def _in_steps(self, steps: Generator[None, None, T], turn: _Turn, caller: Caller) -> T:
        """Do what takes long, return its result, and give other tasks of the loop turns meanwhile."""
        clock, account = self._work.clock, caller.account
        while True:
            try:
                next(steps)
            except StopIteration as end:
                result: T = end.value
                return result
            if clock() > turn.until:
                self._hand_over(turn, caller)
                account.end(0, incomplete=True)
                await trio.lowlevel.checkpoint()
                turn.until = account.begin() + _TURN_S

    async def _end(self, turn: _Turn, caller: Caller, *, complete: bool = False) -> bool:
        """Deliver what the turn has brought, and put down what it cost. Return whether other tasks had a turn.

        `complete`: its last frame completed a large message, of which the turns before have brought some.
        """
        self._hand_over(turn, caller)
        size = caller.connection.unfinished[0] + caller.parts.unfinished[0]
        pause = caller.account.end(turn.units, incomplete=size > 0 and not complete)
        waits = pause >= _MIN_PAUSE_S
        if caller.window.due:
            self._give_credit(turn, caller)
        if turn.answers:
            await caller.write(b"".join(turn.answers))
        if size or caller.reservation.size:
            waits = await self._make_room(size, caller) or waits
        if pause >= _MIN_PAUSE_S:
            await self._pause(pause, caller)
        if (rest := caller.account.rest()) >= _MIN_PAUSE_S:
            await self._pause(rest, caller, _MANY)
            waits = True
        return waits

    def _give_credit(self, turn: _Turn, caller: Caller) -> None:
        """Give credit for the calls that were handed over, now or when their host is within its share again."""
        if caller.account.calls_wait() < _MIN_PAUSE_S:
            turn.answers.append(caller.window.give())
        elif not caller.owed:
            caller.owed = True
            self._note_pause(caller, _BUSY)
            self._start_soon(self._give_later, caller)

    async def _give_later(self, caller: Caller) -> None:
        # What is on its way without credit may come meanwhile.
        while (wait := caller.account.calls_wait()) >= _MIN_PAUSE_S:  # noqa: ASYNC110  # no event
            await trio.sleep(wait)
        caller.owed = False
        if caller.ended or not caller.window.due:
            return
        try:
            await caller.write(caller.window.give())
        except TransportError:
            caller.give_up()

    async def _make_room(self, size: int, caller: Caller) -> bool:
        """Have room for what is to come; return whether that was waited for."""
        reservation, connection = caller.reservation, caller.connection
        came = connection.unfinished[1] + caller.parts.unfinished[1]
        if not reservation.grows(size):
            await reservation.hold(size, came)
            return False
        with connection.pause():
            await reservation.hold(size, came)
        return True

    def _note_pause(self, caller: Caller, why: str) -> None:
        self._counters.pauses += 1
        if count := self._due(why, caller):
            address = caller.hello.address
            self._log.warning("reads from %s more slowly: it sends %s%s", address, why, and_others(count))

    async def _pause(self, seconds: float, caller: Caller, why: str = _USELESS) -> None:
        self._note_pause(caller, why)
        caller.reservation.excuse(seconds)
        with caller.connection.pause():
            await trio.sleep(seconds)

    # ---- frames

    def _handle(self, frame: Frame, turn: _Turn, caller: Caller) -> Body | None:
        """Handle one frame. Return what is to be decoded as messages or calls, if it brings or completes that."""
        turn.bytes += len(frame.body)
        kind = frame.kind
        if kind == FrameKind.MESSAGES:
            return frame.body
        if kind == FrameKind.PART:
            return caller.parts.feed(frame.body)
        if kind == FrameKind.CALLS and self._called is not None:
            return _whole_calls(frame.body)
        turn.units += 1
        if kind == FrameKind.PING:
            caller.account.charge(1)
            turn.answers.append(encode_frame(FrameKind.PONG, bytes(frame.body[:_ECHO_BYTES])))
        elif kind == FrameKind.PONG:
            caller.account.charge(1)
            self._note_answer(caller)
        elif kind == FrameKind.ALIVE:
            caller.account.charge(1)
            number = decode_alive(frame.body)
            if not self._liveness.silent:
                turn.answers.append(encode_alive(number))
        else:
            self._hand_over(turn, caller)
            self._handle_other(frame, caller)
        return None

    def _note_answer(self, caller: Caller) -> None:
        caller.answer.heard()
        if not caller.proved:
            caller.proved = True
            self._liveness.returned(caller.hello)

    def _hand_over(self, turn: _Turn, caller: Caller) -> None:
        if turn.messages:
            messages, turn.messages = turn.messages, []
            if not caller.is_heard:
                self._counters.gone_messages += len(messages)
                return
            self._counters.received += len(messages)
            self._deliver(caller.hello.address, messages)

    def _take_calls(self, body: Body, turn: _Turn, caller: Caller) -> None:
        """Hand over the records of a body, at once: its values may take long to decode."""
        self._hand_over(turn, caller)
        began = self._work.clock()
        calls = decode_calls(body)
        if not caller.window.fits(len(calls), len(body)):
            raise FrameError(f"{len(calls)} calls of {len(body)} bytes came without credit")
        caller.window.add(len(calls), len(body))
        turn.calls += len(calls)
        if not caller.is_heard:
            self._counters.gone_messages += len(calls)
        elif self._called is not None:
            self._counters.calls_received += len(calls)
            self._called(caller.hello.address, calls)
        caller.account.called(len(calls), self._work.clock() - began)

    def _take(self, decoded: Decoded, turn: _Turn, caller: Caller) -> None:
        turn.messages += decoded.messages
        caller.account.count(decoded.messages)
        turn.units += len(decoded.messages)
        if not any(decoded):
            turn.units += 1
            caller.account.charge(1)  # an empty list: no host sends one
        if decoded.unknown or decoded.local or decoded.anonymous:
            dropped = decoded.unknown + decoded.local + decoded.anonymous
            turn.units += dropped
            caller.account.charge(dropped)
            self._count_dropped(decoded, caller)

    def _count_dropped(self, decoded: Decoded, caller: Caller) -> None:
        counters = self._counters
        counters.unknown_types += decoded.unknown
        counters.local_types += decoded.local
        counters.anonymous += decoded.anonymous
        count = self._due("messages", caller)
        self._log.log(
            logging.WARNING if count else logging.DEBUG,
            "dropped messages from %s: %d of unknown type, %d of a type that no peer may send, %d without a sender%s",
            caller.hello.address,
            decoded.unknown,
            decoded.local,
            decoded.anonymous,
            and_others(count),
        )

    def _handle_other(self, frame: Frame, caller: Caller) -> None:
        """Handle a frame that is neither messages nor keep-alive."""
        address = caller.hello.address
        if frame.kind == FrameKind.REFUSED:
            raise RefusedError(decode_reason(frame.body), "by the other host")
        if frame.kind == FrameKind.SHARD:
            self._introduced(address, decode_shard(frame.body))
            return
        if not caller.is_heard:
            self._counters.gone_messages += 1
            return
        receiver = self._frames.get(frame.kind)
        if receiver is not None:
            receiver(address, frame.body)
            return
        caller.account.charge(1)
        self._counters.unknown_frames += 1
        count = self._due("frames", caller)
        self._log.log(
            logging.WARNING if count else logging.DEBUG,
            "dropped a frame of unknown kind %d from %s%s",
            frame.kind,
            address,
            and_others(count),
        )

    def _due(self, cause: str, caller: Caller) -> int:
        """Do as `Reminders.due` for each member, and for all others together, which can take any name."""
        return self._reminders.due((cause, caller.hello.address if caller.is_member() else ""))


def _whole_calls(body: memoryview) -> memoryview:
    """Return the body of a CALLS frame. Raises `FrameError` for one that is no list, or should have come in parts."""
    if not body or not is_calls(body):
        raise FrameError("a frame of calls does not begin with a list")
    if len(body) > PART_BYTES:
        raise FrameError(f"a frame of calls has {len(body)} bytes, and {PART_BYTES} are allowed in one piece")
    return body
