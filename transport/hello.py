"""The introduction: what two hosts say about themselves before anything else, and why one may refuse the other."""

from dataclasses import dataclass
from typing import Any, Final, Self

import cbor2
from drakkar.handlers.checks import MAX_SIGNED, are_whole, is_whole
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
    "ALIVE_FEATURE",
    "CALLS_FEATURE",
    "PROTOCOL_VERSION",
    "FullError",
    "Hello",
    "Identity",
    "RefusedError",
    "Run",
    "decode_hello",
    "decode_reason",
    "encode_hello",
    "encode_reason",
]

PROTOCOL_VERSION: Final = (4, 3)
"""Major and minor. Hosts of the same major version understand each other, hosts of different ones do not connect.

In version 1 a refused proposal, the question of a removed replica and the request for a snapshot were flags of other
message types. In version 2 each has a message type of its own, which a host of version 1 would drop.
In version 3 a large message travels in parts, and a commit is told by a COMMIT, both of which a host of version 2 would
drop; and the answer to a heartbeat says which appends were heard, without which a leader would wait for ever.
In version 4 hosts say which run of which host they are, and each replica says of which shard it is and where it lives,
without which its messages are refused.
Version 4.1 brought FULL. A host of 4.0 takes it for a failed attempt, and dials again.
Version 4.2 brought CALLS and ALIVE, which only hosts with the features `CALLS_FEATURE` and `ALIVE_FEATURE` are sent.
Version 4.3 brought the kinds of entries in SHARD, which older hosts pass over. Kinds of an application's own are only logged where
all replicas that keep commands have told that they have them.
"""

CALLS_FEATURE: Final = "calls"
"""In the HELLO of a host that takes remote calls."""
ALIVE_FEATURE: Final = "alive"
"""In the HELLO of a host that answers heartbeats."""

MAX_NONCES: Final = 64
"""Nonces in an introduction: so many starts may pass unseen, and a copy is still told from the original."""
MAX_HOST_ID: Final = 64
"""Characters of a host id. Ours have 32; other hosts remember ids by the thousand, and write them."""
_FIRST_VERSION_WITH_RUNS: Final = 4

_REASON_LIMIT: Final = SMALL_FRAME_LIMIT // 4
"""Maximum bytes of the text of a REFUSED or a FULL frame."""


class RefusedError(TransportError):
    """One host refuses the other. Trying again helps only after a setting or a version was changed."""

    def __init__(self, text: str, cause: str = "other") -> None:
        """`cause` names the kind of refusal, in a word or two: warnings of one kind are counted together."""
        super().__init__(text)
        self.cause = cause


class FullError(TransportError):
    """The other host has no place for this one now, or waited too long for it. Trying again soon may help."""

    def __init__(self, text: str, cause: str = "full") -> None:
        """`cause`: see `RefusedError`."""
        super().__init__(text)
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Run:
    """One start of a host, and those before it. A copy of the host's directory shares only those before it was copied."""

    count: int
    """How many starts the directory has seen, this one too."""
    nonces: tuple[int, ...]
    """A random number of this start, and those of the starts before it, the newest first: `MAX_NONCES` of them at most."""

    @classmethod
    def first(cls, nonce: int) -> Self:
        """The first start of a host."""
        return cls(1, (nonce,))

    @property
    def start(self) -> tuple[int, int]:
        """Count and nonce of this start: what others remember."""
        return self.count, self.nonces[0]

    def follows(self, count: int, nonce: int) -> bool:
        """Return whether the start with this count and nonce may be one of these. It surely is not one of an older copy."""
        back = self.count - count
        return back >= 0 and (back >= len(self.nonces) or self.nonces[back] == nonce)


NOT_TOLD: Final = Run(0, (0,))
"""Of a host before version 4."""


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
    host_id: str = ""
    """Of the sender: made with its data directory, and kept by every copy of it."""
    run: Run = NOT_TOLD
    """Which start of that host the sender is."""


def encode_hello(hello: Hello) -> bytes:
    """Encode a HELLO or STREAM_HELLO frame. Raises `TransportError` where it is too long."""
    row = [
        *hello.version, hello.deployment_id, hello.address, hello.dialed, sorted(hello.features),
        hello.host_id, hello.run.count, list(hello.run.nonces),
    ]  # fmt: skip
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
    host_id, run = _origin(row[6:9]) if major >= _FIRST_VERSION_WITH_RUNS else ("", NOT_TOLD)
    return Hello((major, minor), deployment_id, address, dialed, frozenset(features), stream, host_id, run)


def _origin(fields: list[Any]) -> tuple[str, Run]:
    """Return which host it is, and which run of it."""
    if len(fields) != 3:
        raise FrameError("a HELLO of version 4 is not a list of nine fields")
    host_id, count, nonces = fields
    if type(host_id) is not str or not host_id or not host_id.isprintable():
        raise FrameError("the host id in a HELLO is not a string of a printable character or more")
    if len(host_id) > MAX_HOST_ID:
        raise FrameError(
            f"the host id {host_id[:12]!r}… in a HELLO has {len(host_id)} characters, and {MAX_HOST_ID} are allowed"
        )
    if not is_whole(count, 1, MAX_SIGNED):
        raise FrameError(f"the run in a HELLO is {count!r:.30}, which is no number from 1 up")
    if type(nonces) is not list or not 1 <= len(nonces) <= MAX_NONCES or not are_whole(nonces):
        raise FrameError(f"the nonces in a HELLO are not a list of 1 to {MAX_NONCES} numbers")
    return host_id, Run(count, tuple(nonces))


def encode_reason(reason: str, kind: FrameKind = FrameKind.REFUSED) -> bytes:
    """Encode a REFUSED or a FULL frame, its text cut to the length that every host accepts."""
    return encode_frame(kind, reason.encode(errors="replace")[:_REASON_LIMIT])


def decode_reason(body: memoryview) -> str:
    """Decode the body of a REFUSED or a FULL frame into one line that is safe to log."""
    text = bytes(body[:_REASON_LIMIT]).decode(errors="replace")
    return "".join(char if char.isprintable() else "?" for char in text)


@dataclass(frozen=True, slots=True)
class Identity:
    """What this host says about itself, and which hosts it accepts."""

    address: str
    deployment_id: str
    version: tuple[int, int]
    features: frozenset[str]
    host_id: str
    run: Run

    def hello(self, dialed: str, *, stream: bool = False) -> Hello:
        """Return the introduction of this host on a connection to `dialed`."""
        return Hello(
            self.version,
            self.deployment_id,
            self.address,
            dialed,
            self.features,
            stream,
            self.host_id,
            self.run,
        )

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
