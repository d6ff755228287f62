"""What no call between two processes that run trio can be faster than: its bytes go there, and those of its answer come back.

Nothing is encoded or decoded, and the bytes are not looked at. Questions that are on their way together travel in as few writes as
there were answers in a read.
"""

import queue
import threading
import time
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

import trio
from drakkar.actors.remote.records import Answer, Ask, Record, Target, encode
from drakkar.actors.remote.values import Refs, pack
from drakkar.transport.addresses import parse_address
from drakkar.transport.call_frames import calls_body
from drakkar.transport.frames import FrameKind, encode_frame

from tests.benchmarks.load import Figures, Load, LoadError, figures_of

_READ: Final = 64 << 10
_HEAD: Final = 8
_LONG: Final = 1 << 62
_QUESTION: Final = 1_000
"""A number as one of the first few thousand questions has it."""


class _NoRefs(Refs):
    def export(self, value: object) -> None:
        """There are no references in these messages."""


def question(message: bytes) -> bytes:
    """Return a question of Drakkar's as it travels alone."""
    target = Target(_LONG, _LONG)
    return _framed(Ask(_QUESTION, target, 30_000, pack(message, _NoRefs())))


def answer(message: bytes) -> bytes:
    """Return its answer as it travels alone."""
    return _framed(Answer(_QUESTION, pack(message, _NoRefs())))


def _framed(record: Record) -> bytes:
    return encode_frame(FrameKind.CALLS, calls_body([encode(record)]))


class Echo:
    """One end of the connection, on a trio loop in a thread of its own."""

    def __init__(self, asked: str) -> None:
        self._asked = asked
        self.address = ""
        self._started: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=trio.run, args=(self._serve,), daemon=True)

    def __enter__(self) -> Self:
        if not self._asked:
            self._thread.start()
            self.address = self._started.get(timeout=30)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return  # the thread ends with the process

    async def _serve(self) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self._started.put(f"127.0.0.1:{listeners[0].socket.getsockname()[1]}")
        await trio.serve_listeners(self._answer, listeners)

    @staticmethod
    async def _answer(stream: trio.SocketStream) -> None:
        """The first bytes say how long a question and an answer are; then each question is answered."""
        # A client whose time is over ends with answers on their way to it.
        with suppress(trio.BrokenResourceError):
            head = b""
            while len(head) < _HEAD and (data := await stream.receive_some(_HEAD - len(head))):
                head += data
            asked, answered = int.from_bytes(head[:4]), bytes(int.from_bytes(head[4:]))
            came = 0
            while asked and (data := await stream.receive_some(_READ)):
                came += len(data)
                whole, came = divmod(came, asked)
                if whole:
                    await stream.send_all(answered * whole)

    def run(self, load: Load) -> Figures:
        """Ask. Raises `LoadError` if the connection is lost."""
        return trio.run(self._ask, load)

    async def _ask(self, load: Load) -> Figures:
        host, port = parse_address(self._asked)
        asked, answered = question(load.command), len(answer(load.command))
        stream = await trio.open_tcp_stream(host, port)
        async with stream:
            await stream.send_all(len(asked).to_bytes(4) + answered.to_bytes(4))
            return await _Asking(stream, asked, answered, load).run()


class _Asking:
    """So many questions on their way; a new one for each answer."""

    def __init__(self, stream: trio.SocketStream, asked: bytes, answered: int, load: Load) -> None:
        self._stream, self._question, self._answered, self._load = stream, asked, answered, load
        self._since: deque[float] = deque()
        self._times: list[float] = []
        self._count = 0

    async def run(self) -> Figures:
        load = self._load
        now = time.perf_counter()
        begin = now + load.warm_up
        end = begin + load.seconds
        await self._send(load.in_flight, now)
        came = 0
        while now < end:
            data = await self._stream.receive_some(_READ)
            if not data:
                raise LoadError("the echo has ended the connection")
            whole, came = divmod(came + len(data), self._answered)
            now = time.perf_counter()
            self._take(whole, now, begin)
            if whole:
                await self._send(whole, now)
        return figures_of(self._times, now - begin, load, self._count)

    async def _send(self, count: int, now: float) -> None:
        self._since.extend([now] * count)
        await self._stream.send_all(self._question * count)

    def _take(self, count: int, now: float, begin: float) -> None:
        self._count += count
        for _ in range(count):
            since = self._since.popleft()
            if since >= begin:
                self._times.append(now - since)
