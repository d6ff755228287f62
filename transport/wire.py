"""Messages as bytes and back: pure functions, no sockets, nothing trusted.

A frame is a header of 16 bytes and a body:

    magic "DK" | framing version | kind | body length | body checksum | header checksum
         2             1            1         4              4                4          (big-endian)

The header has a checksum of its own, so that a flipped bit in the length is noticed at once, and not after waiting
for sixty megabytes that never come. The framing version is that of these 16 bytes alone; what hosts say to each
other has its version in `Hello`, so that hosts of different versions can still tell each other why they part.

The body of a MESSAGES frame is control part and bulk part:

    control length | control: CBOR, a list of rows, one a message | bulk: what belongs to the rows, end to end

To a row belong the lengths of its runs of entries (4 bytes each), the runs, and the payload of its snapshot. They are bytes that the leader encoded once, for its disk and for all of its peers: they are copied into the frame and out of
it, never encoded again. All else is the control part, and it is small. That is checked before it is decoded, because
a few hundred kilobytes of CBOR made for the purpose can keep a decoder busy for seconds.

What is too big for any message travels on a connection of its own, as one stream of bytes:

    STREAM_HELLO ► ◄ HELLO   STREAM_BEGIN ► STREAM_PIECE 0 ► STREAM_PIECE 1 ► … STREAM_END ► ◄ STREAM_DONE
"""

import struct
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, NamedTuple

import cbor2
from drakkar.handlers import cbor
from drakkar.handlers.errors import CorruptData, TransportError
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.entries import Entries, Run
from drakkar.handlers.raft.state import Membership, Snapshot

__all__ = [
    "CONTROL_LIMIT",
    "FIRST_FREE_KIND",
    "FRAME_LIMIT",
    "HEADER_SIZE",
    "LOCAL_TYPES",
    "PAYLOAD_LIMIT",
    "PROTOCOL_VERSION",
    "SMALL_FRAME_LIMIT",
    "STREAM_FRAME_LIMIT",
    "STREAM_HEADER_LIMIT",
    "STREAM_PIECE_LIMIT",
    "Decoded",
    "Frame",
    "FrameError",
    "FrameKind",
    "FrameReader",
    "Hello",
    "Packed",
    "batches",
    "decode_hello",
    "decode_messages",
    "decode_reason",
    "decode_stream_end",
    "decode_stream_piece",
    "encode_frame",
    "encode_hello",
    "encode_messages",
    "encode_reason",
    "encode_stream_end",
    "encode_stream_piece",
    "frame_of",
    "loads_strict",
    "pack",
]

PROTOCOL_VERSION: Final = (1, 0)
"""Hosts of the same major version understand each other."""

FRAME_LIMIT: Final = 64 << 20
"""Bytes of a frame's body, at most, unless the transport is told otherwise."""
SMALL_FRAME_LIMIT: Final = 4 << 10
"""Bytes of a frame's body, at most, as long as nobody said who he is, and for all that is no bulk."""
CONTROL_LIMIT: Final = 64 << 10
"""Bytes of the control part of a frame, at most."""
PAYLOAD_LIMIT: Final = 8 << 10
"""Bytes of one message's encoded `payload`, at most: it is for control, what is big travels as entries."""
STREAM_HEADER_LIMIT: Final = 64 << 10
"""Bytes of what a stream begins with, at most."""
STREAM_PIECE_LIMIT: Final = 1 << 20
"""Bytes of a stream that travel in one piece, at most."""

_MAGIC: Final = b"DK"
_FRAMING: Final = 1
_START: Final = struct.Struct(">2sBBII")
_CHECKSUM: Final = struct.Struct(">I")
_PIECE_NUMBER: Final = struct.Struct(">Q")
_STREAM_END: Final = struct.Struct(">QI")
FIRST_FREE_KIND: Final = 16
HEADER_SIZE: Final = _START.size + _CHECKSUM.size
STREAM_FRAME_LIMIT: Final = STREAM_PIECE_LIMIT + _PIECE_NUMBER.size
"""Bytes of a frame's body, at most, on the connection of a stream, whatever the transport was told of others."""

_LIST_HEAD: Final = 5
"""Bytes that the head of a list may take."""
_LENGTH: Final = 4
"""Bytes that the length of a run takes."""
_FRAME_EXTRA: Final = _CHECKSUM.size + _LIST_HEAD
"""Bytes of a body that belong to no message."""

_TOP: Final = 1 << 64
_TYPE_LIMIT: Final = 1 << 16
_KEY_LIMIT: Final = 1 << 31

LOCAL_TYPES: Final = frozenset(
    {
        MessageType.LOCAL_TICK,
        MessageType.ELECTION,
        MessageType.LEADER_HEARTBEAT,
        MessageType.CONFIG_CHANGE_EVENT,
        MessageType.SNAPSHOT_STATUS,
        MessageType.UNREACHABLE,
        MessageType.CHECK_QUORUM,
        MessageType.BATCHED_READ_INDEX,
        MessageType.LOG_QUERY,
    }
)
"""What a host says to its own replicas alone; from the network it is dropped."""


class FrameError(TransportError):
    """The peer's fault: bytes that no host of ours would send. The connection they came on cannot be used on."""


# ---- CBOR in a strict profile


def loads_strict(data: bytes | memoryview, max_depth: int, *, plain_keys: bool = True) -> Any:
    """`cbor.loads`, of what came from a peer. Raises `FrameError`."""
    try:
        return cbor.loads(data, max_depth, plain_keys=plain_keys)
    except ValueError as error:
        raise FrameError(str(error)) from error


_SCALARS: Final = frozenset({type(None), bool, float, str, bytes})


def _check_payload(value: Any) -> None:
    """Raise `ValueError` unless `value` is made of what CBOR has without tags."""
    kind = type(value)
    if kind in _SCALARS:
        return
    if kind is int:
        if not -_TOP <= value < _TOP:
            raise ValueError("a number has more than 64 bits")
    elif kind in {list, tuple}:
        for item in value:
            _check_payload(item)
    elif kind is dict:
        for key, item in value.items():
            if type(key) is not str and not (type(key) is int and abs(key) < _KEY_LIMIT):
                raise ValueError(f"the key {key!r:.60} is neither a string nor a small number")
            _check_payload(item)
    else:
        raise ValueError(f"{kind.__name__} is no type that crosses hosts")


# ---- frames


class FrameKind(IntEnum):
    """What a frame is for; kinds from 16 to 255 are for whoever builds on this.

    A kind that the receiver does not know is counted and dropped.
    """

    HELLO = 1
    """The first frame in each direction: who speaks, and to whom."""
    MESSAGES = 2
    PING = 3
    """Keep-alive; the body comes back in a PONG."""
    PONG = 4
    REFUSED = 5
    """The last frame: why the sender of it closes the connection."""
    STREAM_HELLO = 6
    """In place of a HELLO from whoever dials: the connection is for one stream, and for no messages.

    It is a kind of its own, not a field of the HELLO, since a host that knew no streams would pass over the field, and
    take the connection for one that replaces the one it has for messages. So it refuses.
    """
    STREAM_BEGIN = 7
    """What the stream is, in the words of whoever sends it."""
    STREAM_PIECE = 8
    """The next bytes, behind their running number, which begins at 0."""
    STREAM_END = 9
    """How many bytes that were, and the checksum of them all."""
    STREAM_DONE = 10
    """The answer to the end: the receiver has everything, and has kept it."""


class Frame(NamedTuple):
    """One frame. `kind` may be a number that is no `FrameKind`."""

    kind: int
    body: memoryview


def encode_frame(kind: int, *parts: bytes | memoryview) -> bytes:
    """One frame, whose body is `parts` end to end."""
    length = checksum = 0
    for part in parts:
        length += len(part)
        checksum = zlib.crc32(part, checksum)
    start = _START.pack(_MAGIC, _FRAMING, kind, length, checksum)
    return b"".join((start, _CHECKSUM.pack(zlib.crc32(start)), *parts))


class FrameReader:
    """Frames out of a stream of bytes that comes in pieces of any length.

    `limit` is the most bytes that a body may have; it can be changed between two calls. After a `FrameError` the
    stream cannot be read on: nobody knows where the next frame begins.
    """

    __slots__ = ("_pieces", "_there", "_wanted", "limit")

    def __init__(self, limit: int = FRAME_LIMIT) -> None:
        self.limit = limit
        self._pieces: list[bytes] = []
        self._there = 0
        # Pieces are only joined once this many bytes are there, so a big frame is copied once, not once a piece.
        self._wanted = HEADER_SIZE

    def feed(self, data: bytes) -> list[Frame]:
        """Take the next bytes, and return the frames that they complete.

        The bodies are views of what was read: copy out what has to stay.

        Raises `FrameError` for a wrong magic, framing version, length or checksum.
        """
        self._pieces.append(data)
        self._there += len(data)
        if self._there < self._wanted:
            return []
        whole = b"".join(self._pieces) if len(self._pieces) > 1 else data
        frames, used = self._split(memoryview(whole))
        self._pieces = [whole[used:]] if used < len(whole) else []
        self._there = len(whole) - used
        return frames

    def _split(self, data: memoryview) -> tuple[list[Frame], int]:
        """Return the whole frames in `data`, and how many bytes they are."""
        frames = []
        at = 0
        self._wanted = HEADER_SIZE
        while len(data) - at >= HEADER_SIZE:
            kind, length, checksum = self._header(data[at : at + HEADER_SIZE])
            end = at + HEADER_SIZE + length
            if end > len(data):
                self._wanted = HEADER_SIZE + length
                break
            body = data[at + HEADER_SIZE : end]
            if zlib.crc32(body) != checksum:
                raise FrameError(f"the body of a frame of {length} bytes does not match its checksum")
            frames.append(Frame(kind, body))
            at = end
        return frames, at

    def _header(self, header: memoryview) -> tuple[int, int, int]:
        magic, framing, kind, length, checksum = _START.unpack_from(header)
        if magic != _MAGIC:
            raise FrameError(f"a frame begins with {magic!r}, not {_MAGIC!r}: this is no Drakkar host")
        if zlib.crc32(header[: _START.size]) != _CHECKSUM.unpack_from(header, _START.size)[0]:
            raise FrameError("the header of a frame does not match its checksum")
        if framing != _FRAMING:
            raise FrameError(
                f"a frame has framing version {framing}, and {_FRAMING} is known here: upgrade the older host"
            )
        if length > self.limit:
            raise FrameError(f"a frame has {length} bytes, and {self.limit} are allowed")
        return kind, length, checksum


# ---- the handshake


@dataclass(frozen=True, slots=True)
class Hello:
    """Who opens, or accepts, a connection: the first frame in each direction."""

    version: tuple[int, int]
    """Of the protocol; the major numbers must be equal."""
    deployment_id: str
    address: str
    """Where others reach the sender: the address that it advertises."""
    dialed: str
    """The address that was dialed, as whoever dialed it wrote it."""
    features: frozenset[str] = frozenset()
    """What else the sender understands, by name."""
    stream: bool = False
    """The connection is for one stream, and not for messages. It shows in the kind of the frame, not in its body."""


def encode_hello(hello: Hello) -> bytes:
    """Encode a HELLO frame, or one that opens a stream. Raises `TransportError` if it is too long."""
    row = [*hello.version, hello.deployment_id, hello.address, hello.dialed, sorted(hello.features)]
    body = cbor2.dumps(row)
    if len(body) > SMALL_FRAME_LIMIT:
        raise TransportError(
            f"the introduction of {hello.address!r} takes {len(body)} bytes, and {SMALL_FRAME_LIMIT} are allowed: "
            "shorten the deployment id"
        )
    return encode_frame(FrameKind.STREAM_HELLO if hello.stream else FrameKind.HELLO, body)


def decode_hello(body: memoryview, *, stream: bool = False) -> Hello:
    """Decode the body of a frame that introduces its sender. Raises `FrameError` where it says nothing sensible."""
    row = loads_strict(body, 3)
    # A later minor version may append what we don't know, and need not know.
    if type(row) is not list or len(row) < 6:
        raise FrameError("a HELLO is not a list of six fields")
    major, minor, deployment_id, address, dialed, features = row[:6]
    _check_numbers((major, minor), "version", 1 << 16)
    for name, value in (("deployment id", deployment_id), ("address", address), ("dialed address", dialed)):
        if type(value) is not str:
            raise FrameError(f"the {name} in a HELLO is not a string")
    if type(features) is not list or not all(type(name) is str for name in features):
        raise FrameError("the features in a HELLO are not a list of strings")
    return Hello((major, minor), deployment_id, address, dialed, frozenset(features), stream)


def encode_reason(reason: str) -> bytes:
    """Encode a REFUSED frame with this reason, cut to a length that whoever reads it accepts."""
    return encode_frame(FrameKind.REFUSED, reason.encode(errors="replace")[: SMALL_FRAME_LIMIT // 4])


def decode_reason(body: memoryview) -> str:
    """Decode the body of a REFUSED frame into text that is fit to be logged."""
    text = bytes(body[: SMALL_FRAME_LIMIT // 4]).decode(errors="replace")
    return "".join(char if char.isprintable() else "?" for char in text)


# ---- streams


def encode_stream_piece(number: int, data: bytes | memoryview) -> bytes:
    """Encode a STREAM_PIECE frame."""
    return encode_frame(FrameKind.STREAM_PIECE, _PIECE_NUMBER.pack(number), data)


def decode_stream_piece(body: memoryview) -> tuple[int, memoryview]:
    """Decode the body of a STREAM_PIECE frame into its number and a view of its bytes. Raises `FrameError`."""
    if len(body) <= _PIECE_NUMBER.size:
        raise FrameError("a piece of a stream has no bytes")
    return _PIECE_NUMBER.unpack_from(body)[0], body[_PIECE_NUMBER.size :]


def encode_stream_end(total: int, checksum: int) -> bytes:
    """Encode a STREAM_END frame."""
    return encode_frame(FrameKind.STREAM_END, _STREAM_END.pack(total, checksum))


def decode_stream_end(body: memoryview) -> tuple[int, int]:
    """Decode the body of a STREAM_END frame into the number of bytes and their checksum. Raises `FrameError`."""
    if len(body) != _STREAM_END.size:
        raise FrameError(f"the end of a stream is told in {len(body)} bytes, and {_STREAM_END.size} are due")
    total, checksum = _STREAM_END.unpack(body)
    return total, checksum


# ---- messages


class Packed(NamedTuple):
    """One message, encoded: its row of the control part, and its bulk."""

    row: bytes
    bulk: tuple[bytes, ...]
    size: int
    """Bytes of both."""


class Decoded(NamedTuple):
    """The messages of one frame, and how many were dropped, and why."""

    messages: list[Message]
    unknown: int = 0
    """Of a type that nobody defined in this process."""
    local: int = 0
    """Of a type that no peer may send."""
    anonymous: int = 0
    """Without a sender."""


def pack(message: Message, frame_limit: int = FRAME_LIMIT) -> Packed:
    """Encode one message, checking all that the receiver will check.

    A run that was encoded before is not encoded again.

    Raises `TransportError`, naming the field, where it cannot be sent.
    """
    # In the order of the fields of `Message`.
    fields = [
        int(message.type), message.to, message.sender, message.shard, message.term, message.log_term,
        message.log_index, message.commit, message.reject, message.hint, message.hint_high,
    ]  # fmt: skip
    if min(fields) < 0 or max(fields) >= _TOP or type(message.reject) is not bool:
        raise TransportError(f"{message}: a number is not from 0 to 2**64 - 1, or `reject` is no boolean")
    bulk = [run.encode() for run in Entries.of(message.entries).runs] if message.entries else []
    snapshot = message.snapshot
    row = [
        *fields,
        len(bulk),
        None if snapshot is None else _snapshot_row(snapshot),
        None if message.payload is None else _payload_bytes(message),
    ]
    if bulk:
        bulk.insert(0, struct.pack(f">{len(bulk)}I", *map(len, bulk)))
    if snapshot is not None:
        bulk.append(snapshot.payload)
    encoded = _encode_row(message, row)
    size = len(encoded) + sum(map(len, bulk))
    if size > frame_limit - _FRAME_EXTRA:
        raise TransportError(
            f"{message}: takes {size} bytes, and frames of {frame_limit} are allowed: "
            "send fewer entries at once, or raise the limit on all hosts"
        )
    return Packed(encoded, tuple(bulk), size)


def _encode_row(message: Message, row: list[Any]) -> bytes:
    try:
        encoded = cbor2.dumps(row)
    except cbor2.CBOREncodeError as error:
        raise TransportError(f"{message}: cannot be encoded: {error}") from error
    if len(encoded) > CONTROL_LIMIT - _LIST_HEAD:
        raise TransportError(
            f"{message}: takes {len(encoded)} bytes beside its bulk, and {CONTROL_LIMIT} are allowed: "
            "name fewer members"
        )
    return encoded


def _payload_bytes(message: Message) -> bytes:
    """Encode the payload apart, so that its length is known before it is decoded."""
    try:
        _check_payload(message.payload)
        encoded = cbor2.dumps(message.payload)
    except (cbor2.CBOREncodeError, ValueError, RecursionError) as error:
        raise TransportError(
            f"{message}: its payload cannot be sent: {error}; use numbers, strings, bytes, lists and dicts"
        ) from error
    if len(encoded) > PAYLOAD_LIMIT:
        raise TransportError(
            f"{message}: its payload takes {len(encoded)} bytes, and {PAYLOAD_LIMIT} are allowed: send bulk as entries"
        )
    return encoded


def _snapshot_row(snapshot: Snapshot) -> list[Any]:
    members = snapshot.membership
    roles = [sorted(getattr(members, role)) for role in _ROLES]
    addresses = [[replica, members.addresses[replica]] for replica in sorted(members.addresses)]
    return [
        snapshot.index,
        snapshot.term,
        snapshot.size,
        snapshot.witness,
        len(snapshot.payload),
        [*roles, members.auto_leave, members.change_id, addresses],
    ]


_ROLES: Final = (
    "voters",
    "observers",
    "witnesses",
    "outgoing",
    "outgoing_witnesses",
    "next_observers",
    "removed",
)


def frame_of(batch: Sequence[Packed]) -> bytes:
    """One MESSAGES frame of all of `batch`, which the caller keeps within the limits."""
    control = b"".join((_list_head(len(batch)), *(packed.row for packed in batch)))
    bulk = [part for packed in batch for part in packed.bulk]
    return encode_frame(FrameKind.MESSAGES, _CHECKSUM.pack(len(control)), control, *bulk)


def _list_head(count: int) -> bytes:
    """Encode what a CBOR list of `count` items begins with."""
    return bytes([0x80 | count]) if count < 24 else struct.pack(">BI", 0x9A, count)


def batches(waiting: Iterable[Packed], frame_limit: int = FRAME_LIMIT) -> Iterator[list[Packed]]:
    """Cut what is waiting into batches that each fit a frame."""
    batch: list[Packed] = []
    control, total = 0, 0
    for packed in waiting:
        control += len(packed.row)
        total += packed.size
        if batch and (control > CONTROL_LIMIT - _LIST_HEAD or total > frame_limit - _FRAME_EXTRA):
            yield batch
            batch, control, total = [], len(packed.row), packed.size
        batch.append(packed)
    if batch:
        yield batch


def encode_messages(messages: Iterable[Message], frame_limit: int = FRAME_LIMIT) -> list[bytes]:
    """Encode `messages`, in order, as frames: one, unless a limit is in the way.

    Raises `TransportError` where a message cannot be sent.
    """
    return [
        frame_of(batch)
        for batch in batches((pack(message, frame_limit) for message in messages), frame_limit)
    ]


def decode_messages(body: bytes | memoryview) -> Decoded:
    """Decode the body of a MESSAGES frame.

    Every field is checked for its type and range. Messages of unknown or local types, and those without a sender, are
    left out and counted.

    Raises `FrameError` for a body that no host of ours would send.
    """
    view = memoryview(body)
    rows, at = _control(view)
    messages = []
    unknown = local = anonymous = 0
    for row in rows:
        _check_row(row)
        lengths, end = _bulk(view, at, row)
        kind = MessageType.known.get(row[0])
        if kind is None:
            unknown += 1
        elif kind in LOCAL_TYPES:
            local += 1
        elif not row[2]:
            anonymous += 1
        else:
            messages.append(_message(kind, row, lengths, view[end - sum(lengths) : end]))
        at = end
    if at != len(view):
        raise FrameError(f"{len(view) - at} bytes of a frame belong to no message")
    return Decoded(messages, unknown, local, anonymous)


def _control(body: memoryview) -> tuple[list[Any], int]:
    """Return the rows, and where the bulk begins."""
    if len(body) < _CHECKSUM.size:
        raise FrameError("a frame of messages has no control part")
    (length,) = _CHECKSUM.unpack_from(body)
    end = _CHECKSUM.size + length
    if length > CONTROL_LIMIT or end > len(body):
        raise FrameError(
            f"the control part of a frame has {length} bytes: {CONTROL_LIMIT} are allowed, {len(body)} are there"
        )
    # A list of rows, in them a snapshot, its membership, the list of addresses, a pair.
    rows = loads_strict(body[_CHECKSUM.size : end], 7)
    if type(rows) is not list:
        raise FrameError("the control part of a frame is not a list")
    return rows, end


_ONLY_INT: Final = {int}


def _check_numbers(values: Sequence[Any], name: str, limit: int = _TOP) -> None:
    """Raise `FrameError` unless all values are numbers from 0 up to, but without, `limit`."""
    if values and (set(map(type, values)) != _ONLY_INT or min(values) < 0 or max(values) >= limit):
        raise FrameError(f"a {name} is not a number from 0 to {limit - 1}")


def _bulk(body: memoryview, at: int, row: list[Any]) -> tuple[tuple[int, ...], int]:
    """Return the lengths of the pieces of bulk that belong to a checked row, which begin at `at`, and where they end.

    The last of them is the payload of the snapshot, if there is one.
    """
    _, count, snapshot, _ = row[10:]
    start = at + _LENGTH * count
    if start <= len(body):
        lengths = struct.unpack_from(f">{count}I", body, at) if count else ()
        if snapshot is not None:
            lengths += (snapshot[4],)
        end = start + sum(lengths)
        if end <= len(body):
            return lengths, end
    raise FrameError("the bulk of a frame is shorter than its messages say")


def _check_row(row: Any) -> None:
    """Check the types and bounds of all of a row but what its payload decodes to."""
    if type(row) is not list or len(row) != 14:
        raise FrameError("a message is not a list of 14 fields")
    _check_numbers(row[:8] + row[9:12], "number in a message")
    reject, _, _, _, snapshot, payload = row[8:]
    if row[0] >= _TYPE_LIMIT:
        raise FrameError(f"a message has type {row[0]}, and types end at {_TYPE_LIMIT - 1}")
    if type(reject) is not bool:
        raise FrameError("the reject of a message is not a boolean")
    if payload is not None and (type(payload) is not bytes or len(payload) > PAYLOAD_LIMIT):
        raise FrameError(f"the payload of a message is not of at most {PAYLOAD_LIMIT} bytes")
    if snapshot is not None:
        _check_snapshot(snapshot)


def _check_snapshot(row: Any) -> None:
    if type(row) is not list or len(row) != 6:
        raise FrameError("a snapshot is not a list of six fields")
    index, term, size, witness, length, members = row
    _check_numbers((index, term, size, length), "number in a snapshot")
    if type(witness) is not bool:
        raise FrameError("the witness mark of a snapshot is not a boolean")
    if type(members) is not list or len(members) != len(_ROLES) + 3:
        raise FrameError(f"a membership is not a list of {len(_ROLES) + 3} fields")
    *roles, auto_leave, change_id, addresses = members
    for name, replicas in zip(_ROLES, roles, strict=True):
        if type(replicas) is not list:
            raise FrameError(f"the {name} of a membership are not a list")
        _check_numbers(replicas, "replica id in a membership")
        _check_unlike(replicas)
    if type(auto_leave) is not bool:
        raise FrameError("the auto-leave mark of a membership is not a boolean")
    _check_numbers((change_id,), "change id of a membership")
    _check_addresses(addresses)


def _check_unlike(replicas: Collection[int]) -> None:
    if len(set(replicas)) != len(replicas):
        raise FrameError("a membership names a replica twice")


def _check_addresses(addresses: Any) -> None:
    if type(addresses) is not list:
        raise FrameError("the addresses of a membership are not a list")
    for pair in addresses:
        if type(pair) is not list or len(pair) != 2 or type(pair[1]) is not str:
            raise FrameError("an address in a membership is not a replica id and a string")
        _check_numbers(pair[:1], "replica id in a membership")
    _check_unlike([pair[0] for pair in addresses])


def _message(kind: MessageType, row: list[Any], lengths: tuple[int, ...], bulk: memoryview) -> Message:
    """Make the message of a checked row."""
    count, snapshot, payload = row[11:]
    runs: list[Run] = []
    at = 0
    for length in lengths[:count]:
        runs.append(_run(bulk[at : at + length]))
        at += length
    to, sender, shard, term, log_term, log_index, commit, reject, hint, hint_high = row[1:11]
    return Message(
        kind, to, sender, shard, term, log_term, log_index, commit, reject, hint, hint_high,
        Entries(runs) if runs else (),
        None if snapshot is None else _snapshot(snapshot, bulk[at:]),
        None if payload is None else _payload(payload),
    )  # fmt: skip


def _run(data: memoryview) -> Run:
    try:
        return Run.decode(bytes(data))
    except CorruptData as error:
        raise FrameError(f"the entries of a message: {error}") from error


def _snapshot(row: list[Any], payload: memoryview) -> Snapshot:
    index, term, size, witness, _, members = row
    *roles, auto_leave, change_id, addresses = members
    named = dict(zip(_ROLES, roles, strict=True))
    membership = Membership(**named, auto_leave=auto_leave, change_id=change_id, addresses=dict(addresses))
    return Snapshot(index, term, membership, bytes(payload), witness, size)


def _payload(data: bytes) -> Any:
    value = loads_strict(data, 16, plain_keys=False)
    try:
        _check_payload(value)
    except ValueError as error:
        raise FrameError(f"the payload of a message: {error}") from error
    return value
