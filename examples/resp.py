"""What Redis clients and servers write to each other: requests in, replies out (RESP2, and RESP3 for who asks).

`hiredis` parses. What it leaves to its user is done here: bounds on what a client may send, and writing replies,
which takes five rules.
"""

import re
from collections.abc import Iterator
from typing import Final, TypeAlias

import hiredis

__all__ = ["OK", "Failure", "ProtocolError", "Reply", "Request", "Requests", "integer", "pieces"]

Request: TypeAlias = list[bytes]
"""A command's name and its arguments, as they came."""

Reply: TypeAlias = "str | bytes | int | list[Reply] | dict[str, Reply] | None"
"""`str` is a status such as OK, or a `Failure`; `bytes` is a value; `None` says that there is none."""

OK: Final = "OK"

MAX_DIGITS: Final = 5
"""A request has at most 99,999 parts."""

MAX_LINE: Final = 64 << 10
"""Bytes of a command typed as a line; Redis' own bound."""


class Failure(str):
    """An error reply: a code in capitals, what was wrong, and what to do."""

    __slots__ = ()


class ProtocolError(Exception):
    """The client does not speak Redis, or asks for too much in one request: it is told so, and disconnected."""


# hiredis makes room for all elements when it reads how many they will be, so that eleven bytes could claim
# gigabytes, and hold the process up for seconds when they are given back. These find the headers that may, before hiredis sees them; the second, those that may be cut in two.
_HUGE_HEADER: Final = re.compile(rb"[*~>%%]\d{%d,}" % (MAX_DIGITS + 1))
_CUT_HEADER: Final = re.compile(rb"[*~>%%]\d{0,%d}\Z" % MAX_DIGITS)


class Requests:
    """Bytes in, requests out, for one connection.

    A line of text at the start of a chunk is a request too, as a person types it with telnet, and as
    redis-benchmark tries it.
    """

    def __init__(self, limit: int) -> None:
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._limit = limit
        self._held = b""
        self.buffered = 0
        """Bytes that wait for the rest of their request, known to a chunk."""
        self.broken: ProtocolError | None = None
        """Why nothing that follows can be understood."""

    def feed(self, chunk: bytes) -> list[Request]:
        """Return the requests that `chunk` completes, up to the point where `broken` says what is wrong."""
        data, self._held = self._held + chunk, b""
        requests: list[Request] = []
        try:
            requests.extend(self._lines(data) if self._starts_line(data) else self._frames(data))
            self._measure(len(chunk), bool(requests))
        except ProtocolError as error:
            self.broken = error
        return requests

    def _measure(self, received: int, completed: bool) -> None:
        waiting = bool(self._held) or self._reader.has_data()
        if completed:
            self.buffered = received if waiting else 0
        else:
            self.buffered += received
        if self.buffered > self._limit:
            raise ProtocolError(f"a request has more than {self._limit} bytes: send it in parts")

    def _starts_line(self, data: bytes) -> bool:
        return data[:1].isalpha() and not self._reader.has_data()

    def _lines(self, data: bytes) -> Iterator[Request]:
        complete, _, self._held = data.rpartition(b"\n")
        if len(self._held) > MAX_LINE:
            raise ProtocolError(f"a line has more than {MAX_LINE} bytes and no end: send commands as arrays")
        for words in map(bytes.split, complete.splitlines()):
            # A web page must not be able to send commands by way of somebody's browser.
            if words[:1] and words[0].upper() in {b"POST", b"HOST:"}:
                raise ProtocolError("this is a Redis server, and no web server")
            if words:
                yield words

    def _frames(self, data: bytes) -> Iterator[Request]:
        if cut := _CUT_HEADER.search(data, max(len(data) - MAX_DIGITS - 1, 0)):
            data, self._held = data[: cut.start()], data[cut.start() :]
        fed = 0
        for header in _HUGE_HEADER.finditer(data):
            yield from self._parse(data[fed : header.start()])
            fed = header.start()
            # Within a value, the same bytes mean nothing.
            if not self._reader.has_data():
                claimed = header.group()[1:].decode()
                raise ProtocolError(f"a request of {claimed} parts: send at most {10**MAX_DIGITS - 1}")
        yield from self._parse(data[fed:])

    def _parse(self, data: bytes) -> Iterator[Request]:
        self._reader.feed(data)
        try:
            while (request := self._reader.gets()) is not _INCOMPLETE:
                if request:
                    yield _checked(request)
        except hiredis.ProtocolError as error:
            raise ProtocolError(f"{error}: send commands as arrays of bulk strings") from None


_INCOMPLETE: Final = object()


def _checked(request: object) -> Request:
    """`hiredis` reads all that a server may say; of a client, only a flat array of strings is a request."""
    if type(request) is list and set(map(type, request)) == {bytes}:
        return request
    raise ProtocolError(f"a request is an array of bulk strings, not a {type(request).__name__}")


_INTEGER: Final = re.compile(rb"0|-?[1-9][0-9]{0,18}")


def integer(text: bytes) -> int | None:
    """Read a number of 64 bits, written as Redis wants it: no signs, zeros or blanks that could be left out."""
    if _INTEGER.fullmatch(text) and -(1 << 63) <= (number := int(text)) < 1 << 63:
        return number
    return None


def pieces(reply: Reply, *, resp3: bool = False) -> Iterator[bytes]:
    """`reply` as it is written, in pieces that are each no larger than the largest value in it."""
    match reply:
        case bytes():
            yield b"$%d\r\n%b\r\n" % (len(reply), reply)
        case Failure():
            yield b"-%b\r\n" % " ".join(reply.split()).encode(errors="backslashreplace")
        case str():
            yield b"+%b\r\n" % reply.encode()
        case None:
            yield b"_\r\n" if resp3 else b"$-1\r\n"
        case int():
            yield b":%d\r\n" % reply
        case list():
            yield b"*%d\r\n" % len(reply)
            for element in reply:
                yield from pieces(element, resp3=resp3)
        case dict():
            # RESP2 knows no maps, and writes one as keys and values in turn.
            yield b"%%%d\r\n" % len(reply) if resp3 else b"*%d\r\n" % (2 * len(reply))
            for key, value in reply.items():
                yield from pieces(key.encode())
                yield from pieces(value, resp3=resp3)
