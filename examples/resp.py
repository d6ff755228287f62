"""The Redis protocol: requests in, replies out, in RESP2, or in RESP3 where a client asks for it.

`hiredis` parses. This module adds limits on what a client may send, and writes replies.
"""

import re
from collections.abc import Iterator
from typing import Final, TypeAlias

import hiredis

__all__ = ["OK", "Failure", "ProtocolError", "Reply", "Request", "Requests", "integer", "pieces"]

Request: TypeAlias = list[bytes]
"""A command's name and its arguments, as the client sent them."""

Reply: TypeAlias = "str | bytes | int | list[Reply] | dict[str, Reply] | None"
"""`str` is a status such as OK, or a `Failure`; `bytes` is a value; `None` is a missing value."""

OK: Final = "OK"

MAX_DIGITS: Final = 5
"""A request has at most 99,999 parts."""

MAX_LINE: Final = 64 << 10
"""Maximum bytes of a command typed as a line, as in Redis itself."""


class Failure(str):
    """An error reply: a code in capitals, what was wrong, and what to do about it."""

    __slots__ = ()


class ProtocolError(Exception):
    """The client does not speak Redis, or sent too large a request. It gets the text, and is disconnected."""


# hiredis allocates all elements of an array when it reads their number, so eleven bytes could claim gigabytes, and block
# the process for seconds when they are freed. The first pattern finds such headers before hiredis sees them, the second
# a header that may be cut off at the end of a chunk.
_HUGE_HEADER: Final = re.compile(rb"[*~>%%]\d{%d,}" % (MAX_DIGITS + 1))
_CUT_HEADER: Final = re.compile(rb"[*~>%%]\d{0,%d}\Z" % MAX_DIGITS)


class Requests:
    """Bytes in, requests out, for one connection.

    A line of text at the start of a chunk is a request too: a person may type it with telnet, and redis-benchmark sends
    one.
    """

    def __init__(self, limit: int) -> None:
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._limit = limit
        self._held = b""
        self.buffered = 0
        """Bytes of an incomplete request, rounded up to whole chunks."""
        self.broken: ProtocolError | None = None
        """Why the rest of the connection cannot be parsed; None while it can."""

    def feed(self, chunk: bytes) -> list[Request]:
        """Return the requests that `chunk` completes. Those before an error are returned; `broken` holds the error."""
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
            # A web page must not be able to send commands through a user's browser.
            if words[:1] and words[0].upper() in {b"POST", b"HOST:"}:
                raise ProtocolError("this is a Redis server, not a web server")
            if words:
                yield words

    def _frames(self, data: bytes) -> Iterator[Request]:
        if cut := _CUT_HEADER.search(data, max(len(data) - MAX_DIGITS - 1, 0)):
            data, self._held = data[: cut.start()], data[cut.start() :]
        fed = 0
        for header in _HUGE_HEADER.finditer(data):
            yield from self._parse(data[fed : header.start()])
            fed = header.start()
            # Inside a value, these bytes are not a header.
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
    """Return `request` where it is a flat array of strings. `hiredis` accepts every type that servers send."""
    if type(request) is list and set(map(type, request)) == {bytes}:
        return request
    raise ProtocolError(f"a request is an array of bulk strings, not a {type(request).__name__}")


_INTEGER: Final = re.compile(rb"0|-?[1-9][0-9]{0,18}")


def integer(text: bytes) -> int | None:
    """Read a number of 64 bits as Redis does: no plus sign, leading zero or blank. Returns None where it is not one."""
    if _INTEGER.fullmatch(text) and -(1 << 63) <= (number := int(text)) < 1 << 63:
        return number
    return None


def pieces(reply: Reply, *, resp3: bool = False) -> Iterator[bytes]:
    """Encode `reply`, in pieces; none is much larger than the largest value in it."""
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
            # RESP2 has no maps: one is sent as an array of keys and values in turn.
            yield b"%%%d\r\n" % len(reply) if resp3 else b"*%d\r\n" % (2 * len(reply))
            for key, value in reply.items():
                yield from pieces(key.encode())
                yield from pieces(value, resp3=resp3)
