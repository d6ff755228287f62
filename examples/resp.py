"""The Redis protocol: requests in, replies out, in RESP2, or in RESP3 where a client asks for it.

`hiredis` parses. It trusts who sends: it sets aside memory for all that the header of an array announces, 1,024 arrays deep, and reads a
line that does not end again with each byte of it. So this module lets it see arrays of strings alone.
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

MAX_DIGITS: Final = 4
"""A request has at most 9,999 parts. Eight bytes are set aside for each once they are announced: 80 MB for 1,000 clients."""

MAX_LINE: Final = 64 << 10
"""Maximum bytes of a command typed as a line, as in Redis itself."""


class Failure(str):
    """An error reply: a code in capitals, what was wrong, and what to do about it."""

    __slots__ = ()


class ProtocolError(Exception):
    """The client does not speak Redis, or sent too large a request. It gets the text, and is disconnected."""


# What may begin an item, short strings apart. hiredis does not look how a string ends, so an item may begin anywhere.
_ITEM: Final = re.compile(rb"(?!\$\d{1,2}\r\n)[-+:,_#(=!$*%~>|](?:(\d{1,20})\r\n)?")
_CUT_ITEM: Final = re.compile(rb"[-+:,_#(=!$*%~>|](?:\d{1,20}\r?)?\Z")
"""The beginning of one, where the bytes that came end within it."""
_ITEM_BYTES: Final = 23
_LINES: Final = re.compile(rb"\A(?:(?:[A-Za-z\r][^\n]*)?\n)*")
_INCOMPLETE: Final = object()

ANNOUNCED_BYTES: Final = 8
"""Bytes of memory that are set aside for a part of a request when it is announced."""

PART_OVERHEAD: Final = 64
"""Bytes of memory that a part takes beside its own once it has come."""

SHORTEST_PART: Final = len(b"$0\r\n\r\n")


class Requests:
    """Bytes in, requests out, for one connection.

    A request is an array of strings, and never more: no array in an array, no other type. Lines of text at the start of a chunk are
    requests too: a person may type them with telnet, and redis-benchmark sends one.
    """

    def __init__(self, limit: int) -> None:
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._limit = limit
        self._held = b""
        """The beginning of a line, or of an item, that is not complete."""
        self._skip = 0
        """So many bytes that come next belong to a string."""
        self._announced = 0
        """Parts of the request that is not complete; 0 between two."""
        self._received = 0
        """Bytes of that request, rounded up to whole chunks."""
        self.broken: ProtocolError | None = None
        """Why the rest of the connection cannot be parsed; None while it can."""

    @property
    def buffered(self) -> int:
        """Bytes of memory that an incomplete request takes at most."""
        came = min(self._announced, self._received // SHORTEST_PART)
        return self._received + ANNOUNCED_BYTES * self._announced + PART_OVERHEAD * came

    def feed(self, chunk: bytes) -> list[Request]:
        """Return the requests that `chunk` completes. Those before an error are returned; `broken` holds the error."""
        data, self._held = self._held + chunk, b""
        requests: list[Request] = []
        try:
            if not self._announced and not self._reader.has_data():
                data = self._lines(data, requests)
            requests.extend(self._arrays(data))
            self._measure(len(chunk), bool(requests))
        except ProtocolError as error:
            self.broken = error
        return requests

    def _measure(self, received: int, completed: bool) -> None:
        waiting = self._held or self._announced or self._reader.has_data()
        self._received = received + (0 if completed else self._received) if waiting else 0
        if self._received > self._limit:
            raise ProtocolError(f"a request has more than {self._limit} bytes: send it in parts")

    def _lines(self, data: bytes, requests: list[Request]) -> bytes:
        """Read the lines that `data` begins with, and return the rest."""
        rest = _LINES.sub(b"", data)
        for words in map(bytes.split, data[: len(data) - len(rest)].split(b"\n")):
            # A web page must not be able to send commands through a user's browser.
            if words[:1] and words[0].upper() in {b"POST", b"HOST:"}:
                raise ProtocolError("this is a Redis server, not a web server")
            if words:
                requests.append(words)
        if not rest[:1].isalpha() and rest[:1] != b"\r":
            return rest
        if len(rest) > MAX_LINE:
            raise ProtocolError(f"a line has more than {MAX_LINE} bytes and no end: send commands as arrays")
        self._held = rest
        return b""

    def _arrays(self, data: bytes) -> Iterator[Request]:
        at, fed = self._skip, 0
        if cut := _CUT_ITEM.search(data, max(len(data) - _ITEM_BYTES, at)):
            data, self._held = data[: cut.start()], data[cut.start() :]
        while item := _ITEM.search(data, at):
            yield from self._parse(data[fed : item.start()])
            fed, at = item.start(), item.end()
            # Inside a string, these bytes are no item.
            if not self._reader.has_data():
                at += self._admit(item)
        yield from self._parse(data[fed:])
        self._skip = max(at - len(data), 0)

    def _admit(self, item: re.Match[bytes]) -> int:
        """Refuse what is no part of a request. Return the bytes that follow in a string."""
        kind, digits = item[0][:1], (item[1] or b"").decode()
        if not digits or kind != (b"$" if self._announced else b"*"):
            raise _no_request(item.string[item.start() : item.start() + _ITEM_BYTES])
        if kind == b"*":
            if len(digits) > MAX_DIGITS:
                raise ProtocolError(f"a request of {digits} parts: send at most {10**MAX_DIGITS - 1}")
            self._announced = int(digits)
            return 0
        if int(digits) > self._limit:
            raise ProtocolError(
                f"a string with a length of {digits} bytes, and a request may not have more than {self._limit} bytes: "
                "send it in parts"
            )
        return int(digits)

    def _parse(self, data: bytes) -> Iterator[Request]:
        self._reader.feed(data)
        try:
            while (request := self._reader.gets()) is not _INCOMPLETE:
                self._announced = 0
                if not isinstance(request, list):
                    raise _no_request(b"$%d" % len(request))
                if request:
                    yield request
        except hiredis.ProtocolError as error:
            raise ProtocolError(f"{error}: send commands as arrays of bulk strings") from None


def _no_request(found: bytes) -> ProtocolError:
    return ProtocolError(f"a request is an array of bulk strings, and {found!r} is no part of one")


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
