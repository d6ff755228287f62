"""What comes beneath TLS, and a bound of what that may cost before it brings anything.

Until a handshake is done, the other side has shown nothing, and OpenSSL takes 100 KiB of certificates from it: to search
a chain in 500 of them takes a tenth of a second. After it, records may be empty of data, as those that change keys are, or have
a byte each; all of them are work, of which the layers above see nothing.
"""

import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

import trio
from drakkar.transport.frames import HEADER_SIZE, FrameError

__all__ = ["MeasuredTls", "Records"]

HANDSHAKE_LIMIT: Final = 16 << 10
"""Maximum bytes of a handshake: a certificate has one or two KiB, and few others stand between it and the authority."""
_READ_BYTES: Final = 64 << 10
_RECORD_HEADER: Final = 5
_LENGTH_AT: Final = 3
"""Where the length stands in the header of a record, as two bytes."""
_SPARE_RECORDS: Final = 32
"""Records that may come beside those that bring data: of the handshake, and changes of keys."""
_LEAST_DATA: Final = HEADER_SIZE
"""A record of a correct host brings a frame or more, or a part of a large one."""

_measuring: Final[ContextVar["Records"]] = ContextVar("measuring")
"""Where the handshake of this task puts down what it costs."""


class MeasuredTls(ssl.SSLObject):
    """Measures the steps of a handshake. Between two of them other tasks of the loop have their turns, which do not count."""

    def do_handshake(self) -> None:
        """Do as `ssl.SSLObject` says."""
        records = _measuring.get(None)
        if records is None:
            super().do_handshake()
            return
        with records.measure():
            super().do_handshake()


class Records(trio.abc.Stream):
    """The bytes of a connection beneath TLS. For the trio loop's thread only.

    Reading raises `FrameError` where the other side sends more than a handshake or its data need.
    """

    def __init__(self, stream: trio.abc.Stream, clock: Callable[[], float] = time.thread_time) -> None:
        """`clock`: the seconds that this thread has worked."""
        self._stream, self._clock = stream, clock
        self._secured = False
        self._came = 0
        self._records = 0
        self._header = bytearray()
        """Of the record that begins, as far as it has come."""
        self._left = 0
        """Bytes of the last record that are still to come."""
        self._data = 0
        self.seconds = 0.0
        """What the handshake has cost this host so far."""

    @property
    def socket(self) -> trio.socket.SocketType:
        """The socket of the connection."""
        assert isinstance(self._stream, trio.SocketStream), "hosts have no others"
        return self._stream.socket

    def brought(self, size: int) -> None:
        """So many bytes of data came out of what was read."""
        self._data += size

    @contextmanager
    def handshake(self) -> Iterator[None]:
        """Do the handshake in this block. It is done where the block raises nothing.

        Its cost is measured where it is one of `MeasuredTls`.
        """
        before = _measuring.set(self)
        try:
            yield
            self._secured = True
        finally:
            _measuring.reset(before)

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Put down what this block costs."""
        began = self._clock()
        try:
            yield
        finally:
            self.seconds += self._clock() - began

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Do as `trio.abc.ReceiveStream` says. Raises `FrameError`."""
        if not self._secured:
            return await self._receive_handshake()
        # What is complete has been handed on: TLS asks for more only then.
        if self._records > _SPARE_RECORDS + self._data // _LEAST_DATA:
            raise FrameError(
                f"{self._records} records of TLS brought {self._data} bytes of data, and no host sends so many"
            )
        data = await self._stream.receive_some(max_bytes or _READ_BYTES)
        self._count_records(data)
        return data

    async def _receive_handshake(self) -> bytes | bytearray:
        if self._came >= HANDSHAKE_LIMIT:
            raise FrameError(f"a handshake of TLS has more than {HANDSHAKE_LIMIT} bytes")
        data = await self._stream.receive_some(HANDSHAKE_LIMIT - self._came)
        self._came += len(data)
        self._count_records(data)
        return data

    def _count_records(self, data: bytes | bytearray) -> None:
        at = 0
        while at < len(data):
            if self._left:
                skipped = min(self._left, len(data) - at)
                self._left -= skipped
                at += skipped
                continue
            missing = _RECORD_HEADER - len(self._header)
            self._header += data[at : at + missing]
            at += missing
            if len(self._header) == _RECORD_HEADER:
                self._left = int.from_bytes(self._header[_LENGTH_AT:])
                self._header.clear()
                self._records += 1

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Do as `trio.abc.SendStream` says."""
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Do as `trio.abc.SendStream` says."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Do as `trio.abc.AsyncResource` says."""
        await self._stream.aclose()
