"""The introduction: what two hosts say about themselves before anything else, and why one may refuse the other."""

from dataclasses import dataclass
from typing import Final

import cbor2
from drakkar.handlers.checks import is_whole
from drakkar.handlers.errors import TransportError
from drakkar.transport.addresses import canonical
from drakkar.transport.frames import (
    SMALL_FRAME_LIMIT,
    FrameError,
    FrameKind,
    encode_frame,
    loads_strict,
)

__all__ = [
    "PROTOCOL_VERSION",
    "Hello",
    "Identity",
    "RefusedError",
    "decode_hello",
    "decode_reason",
    "encode_hello",
    "encode_reason",
]

PROTOCOL_VERSION: Final = (2, 0)
"""Major and minor. Hosts of the same major version understand each other, hosts of different ones do not connect.

In version 1 a refused proposal, the question of a removed replica and the request for a snapshot were flags of other
message types. In version 2 each has a message type of its own, which a host of version 1 would drop.
"""

_REASON_LIMIT: Final = SMALL_FRAME_LIMIT // 4
"""Maximum bytes of the text of a REFUSED frame."""


class RefusedError(TransportError):
    """One host refuses the other. Trying again helps only after a setting or a version was changed."""


@dataclass(frozen=True, slots=True)
class Hello:
    """How a host introduces itself: the first frame in each direction."""

    version: tuple[int, int]
    """Of the protocol: major and minor. The major numbers must be equal."""
    deployment_id: str
    address: str
    """The address that the sender advertises, where others reach it."""
    dialed: str
    """The address that was dialed, as the caller wrote it."""
    features: frozenset[str] = frozenset()
    """Names of optional features that the sender understands."""
    stream: bool = False
    """The connection carries one stream and no messages. This is the kind of the frame, not a part of its body."""


def encode_hello(hello: Hello) -> bytes:
    """Encode a HELLO or STREAM_HELLO frame. Raises `TransportError` where it is too long."""
    row = [*hello.version, hello.deployment_id, hello.address, hello.dialed, sorted(hello.features)]
    body = cbor2.dumps(row)
    if len(body) > SMALL_FRAME_LIMIT:
        raise TransportError(
            f"the introduction of {hello.address!r} takes {len(body)} bytes, and {SMALL_FRAME_LIMIT} are allowed: "
            "shorten the deployment id"
        )
    return encode_frame(FrameKind.STREAM_HELLO if hello.stream else FrameKind.HELLO, body)


def decode_hello(body: memoryview, *, stream: bool = False) -> Hello:
    """Decode the body of a HELLO, or with `stream` of a STREAM_HELLO. Raises `FrameError` where it is malformed."""
    row = loads_strict(body, 3)
    # A later minor version may append fields, which this one ignores.
    if type(row) is not list or len(row) < 6:
        raise FrameError("a HELLO is not a list of six fields")
    major, minor, deployment_id, address, dialed, features = row[:6]
    for number in (major, minor):
        if not is_whole(number, 0, 0xFFFF):
            raise FrameError(f"a HELLO has version number {number!r:.30}, and 0 to 65535 are allowed")
    for name, value in (("deployment id", deployment_id), ("address", address), ("dialed address", dialed)):
        if type(value) is not str:
            raise FrameError(f"the {name} in a HELLO is not a string")
    if type(features) is not list or not all(type(name) is str for name in features):
        raise FrameError("the features in a HELLO are not a list of strings")
    return Hello((major, minor), deployment_id, address, dialed, frozenset(features), stream)


def encode_reason(reason: str) -> bytes:
    """Encode a REFUSED frame, its text cut to the length that every host accepts."""
    return encode_frame(FrameKind.REFUSED, reason.encode(errors="replace")[:_REASON_LIMIT])


def decode_reason(body: memoryview) -> str:
    """Decode the body of a REFUSED frame into one line that is safe to log."""
    text = bytes(body[:_REASON_LIMIT]).decode(errors="replace")
    return "".join(char if char.isprintable() else "?" for char in text)


@dataclass(frozen=True, slots=True)
class Identity:
    """What this host says about itself, and which hosts it accepts."""

    address: str
    deployment_id: str
    version: tuple[int, int]
    features: frozenset[str]

    def hello(self, dialed: str, *, stream: bool = False) -> Hello:
        """Return the introduction of this host on a connection to `dialed`."""
        return Hello(self.version, self.deployment_id, self.address, dialed, self.features, stream)

    def objection_to_caller(self, caller: Hello) -> str | None:
        """Return why the host that dialed this one is refused; None where it is accepted."""
        return self._objection(caller) or _address_mismatch(caller.dialed, self.address, caller.address)

    def objection_to_callee(self, callee: Hello, dialed: str) -> str | None:
        """Return why the host that answered is refused; None where it is accepted."""
        return self._objection(callee) or _address_mismatch(dialed, callee.address, self.address)

    def _objection(self, other: Hello) -> str | None:
        if other.version[0] != self.version[0]:
            older = other.address if other.version < self.version else self.address
            return (
                f"{other.address} speaks protocol version {_dotted(other.version)}, and {self.address} speaks "
                f"{_dotted(self.version)}: the major versions must be equal; upgrade {older}"
            )
        if other.deployment_id != self.deployment_id:
            return (
                f"{other.address} belongs to deployment {other.deployment_id!r}, and {self.address} to "
                f"{self.deployment_id!r}: give all hosts of a deployment the same deployment_id"
            )
        return None


def _address_mismatch(dialed: str, found: str, caller: str) -> str | None:
    if canonical(dialed) == canonical(found):
        return None
    return (
        f"{caller} dialed {dialed}, and reached the host that advertises {found}: name each member by the address "
        "that its host advertises"
    )


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
