"""The body of a MESSAGES frame: messages as bytes, and back. Pure functions, no sockets.

A body has a control part and a bulk part:

    control length | control: CBOR, a list of rows, one per message | bulk: what belongs to the rows, joined

The bulk of a row is the lengths of its runs of entries (4 bytes each), the runs, and the payload of its snapshot.
The leader encodes a run once, for its disk and for all of its peers. These bytes are copied into the frame and out of
it, and never encoded again. Everything else is in the control part, and small. Its length is checked before it is
decoded, because a few hundred kilobytes of CBOR made for the purpose can keep a decoder busy for seconds.
"""

import struct
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import cbor2
from drakkar.handlers.checks import MAX_INDEX, MAX_SIGNED, MAX_TERM, are_whole, is_whole
from drakkar.handlers.errors import CorruptData, ProtocolViolation, TransportError
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.payloads import PAYLOAD_LIMIT, decode_payload, encode_payload
from drakkar.handlers.raft.codec import decode_membership, encode_membership
from drakkar.handlers.raft.entries import Entries, Run
from drakkar.handlers.raft.state import Snapshot
from drakkar.transport.frames import FRAME_LIMIT, FrameError, FrameKind, encode_frame, loads_strict

__all__ = [
    "CONTROL_LIMIT",
    "MAX_RUNS",
    "MESSAGES_PER_FRAME",
    "Decoded",
    "Packed",
    "batches",
    "body_of",
    "decode_messages",
    "decoding",
    "encode_messages",
    "frame_of",
    "pack",
]

CONTROL_LIMIT: Final = 64 << 10
"""Maximum bytes of the control part of a frame."""
MESSAGES_PER_FRAME: Final = 512
"""Messages that a sender puts in one frame at most: a receiver decodes so many in about three milliseconds,
in one go."""
MAX_RUNS: Final = 1 << 18
"""Runs of entries in one message, of which each takes half a kilobyte of memory. 4 MiB of entries never have more."""
RUNS_PER_STEP: Final = 128
"""Runs that are decoded in one go: about a millisecond of work."""

_CONTROL_LENGTH: Final = struct.Struct(">I")
_ONE_ROW: Final = b"\x81"
"""The head of a CBOR list of one item."""
_LIST_HEAD: Final = 5
"""Maximum bytes of the head of a CBOR list."""
_ONE_LENGTH: Final = struct.Struct(">I")
_RUN_LENGTH: Final = 4
"""Bytes of the length of a run."""
_FRAME_EXTRA: Final = _CONTROL_LENGTH.size + _LIST_HEAD
"""Maximum bytes of a body that belong to no message."""

_MAX_TYPE: Final = (1 << 16) - 1
_BOUNDS: Final = {
    "type": _MAX_TYPE,
    "to": MAX_SIGNED,
    "sender": MAX_SIGNED,
    "shard": MAX_SIGNED,
    "term": MAX_TERM,
    "log_term": MAX_TERM,
    "log_index": MAX_INDEX,
    "commit": MAX_INDEX,
    "hint": MAX_SIGNED,
    "hint_high": MAX_SIGNED,
    "runs": MAX_SIGNED,
}
"""The greatest value of each number of a row, in its order."""
_LEAST_BOUND: Final = min(MAX_INDEX, MAX_TERM)
"""Numbers up to here need no closer look; but that of the type does."""
_OLD_NAMES: Final = 1 << 63
_HEARTBEATS: Final = (int(MessageType.HEARTBEAT), int(MessageType.HEARTBEAT_RESP))


class Packed(NamedTuple):
    """One encoded message: its row of the control part, and its bulk."""

    row: bytes
    bulk: tuple[bytes, ...]
    size: int
    """Bytes of row and bulk."""


class Decoded(NamedTuple):
    """The messages of one frame, and how many were dropped for which reason."""

    messages: list[Message]
    unknown: int = 0
    """Dropped: no type of that number is defined in this process."""
    local: int = 0
    """Dropped: no peer may send that type."""
    anonymous: int = 0
    """Dropped: without a sender."""


def pack(message: Message, frame_limit: int = FRAME_LIMIT) -> Packed:
    """Encode one message, after all the checks that the receiver makes.

    A run that was encoded before is not encoded again.

    Raises `TransportError` that names the field, where the message cannot be sent.
    """
    if message.type.traits.local:
        raise TransportError(f"{message}: its type is local: a host sends it to its own replicas only")
    # In the order of the fields of `Message`.
    fields = [
        int(message.type), message.to, message.sender, message.shard, message.term, message.log_term,
        message.log_index, message.commit, message.reject, message.hint, message.hint_high,
    ]  # fmt: skip
    if type(message.reject) is not bool or not are_whole(fields[:8] + fields[9:], _LEAST_BOUND):
        objection = _objection(fields)
        if objection:
            raise TransportError(f"{message}: {objection}")
    bulk = _encode_runs(message) if message.entries else []
    if len(bulk) > MAX_RUNS:
        raise TransportError(
            f"{message}: has {len(bulk)} runs of entries, and {MAX_RUNS} are allowed: lower max_message_bytes to 4 MiB"
        )
    snapshot = message.snapshot
    row = [
        *fields,
        len(bulk),
        None if snapshot is None else _snapshot_row(message, snapshot),
        None if message.payload is None else _payload_bytes(message),
    ]
    if len(bulk) == 1:
        bulk.insert(0, _ONE_LENGTH.pack(len(bulk[0])))
    elif bulk:
        bulk.insert(0, struct.pack(f">{len(bulk)}I", *map(len, bulk)))
    if snapshot is not None:
        bulk.append(snapshot.payload)
    encoded = _encode_row(message, row)
    size = len(encoded) + sum(map(len, bulk))
    if size > frame_limit - _FRAME_EXTRA:
        raise TransportError(
            f"{message}: takes {size} bytes, and a frame may have {frame_limit}: "
            "send fewer entries at once, or raise frame_limit on all hosts"
        )
    return Packed(encoded, tuple(bulk), size)


def _objection(fields: list[Any]) -> str:
    """Say what is wrong with the first fields of a row, up to the number of runs if that is there; "" where nothing is."""
    numbers = fields[:8] + fields[9:12]
    if type(fields[8]) is not bool:
        return f"reject is {fields[8]!r:.60}, and must be True or False"
    for (name, most), value in zip(_BOUNDS.items(), numbers, strict=False):
        if not is_whole(value, 0, most) and not _is_old_name(fields[0], name, value):
            return f"{name} is {value!r:.60}, and must be a number from 0 to {most}"
    return ""


def _is_old_name(kind: Any, field: str, value: Any) -> bool:
    """Whether this is the high part of the name of a round of reads, as a leader of version 4.0 gives it."""
    return field == "hint_high" and type(value) is int and value == _OLD_NAMES and kind in _HEARTBEATS


def _encode_runs(message: Message) -> list[bytes]:
    try:
        return [run.encode() for run in Entries.of(message.entries).runs]
    except ProtocolViolation as error:
        raise TransportError(f"{message}: {error}") from error


def _encode_row(message: Message, row: list[Any]) -> bytes:
    try:
        encoded = cbor2.dumps(row)
    except cbor2.CBOREncodeError as error:
        raise TransportError(f"{message}: cannot be encoded: {error}") from error
    if len(encoded) > CONTROL_LIMIT - _LIST_HEAD:
        raise TransportError(
            f"{message}: takes {len(encoded)} bytes without its bulk, and {CONTROL_LIMIT} are allowed: "
            "name fewer members"
        )
    return encoded


def _payload_bytes(message: Message) -> bytes:
    """Encode the payload by itself, so that the receiver knows its length before decoding it."""
    try:
        return encode_payload(message.payload)
    except ValueError as error:
        raise TransportError(f"{message}: {error}") from error


def _snapshot_row(message: Message, snapshot: Snapshot) -> list[Any]:
    row = [
        snapshot.index,
        snapshot.term,
        snapshot.size,
        snapshot.witness,
        len(snapshot.payload),
        encode_membership(snapshot.membership),
    ]
    try:
        _check_snapshot(row)
        decode_membership(row[5])
    except (FrameError, CorruptData) as error:
        raise TransportError(f"{message}: its snapshot cannot be sent: {error}") from error
    return row


def frame_of(batch: Sequence[Packed]) -> bytes:
    """Return one MESSAGES frame of all of `batch`, which must be within the limits, as from `batches`."""
    return encode_frame(FrameKind.MESSAGES, *body_of(batch))


def body_of(batch: Sequence[Packed]) -> list[bytes]:
    """Return what, joined, is the body of a MESSAGES frame of all of `batch`."""
    if len(batch) == 1:
        packed = batch[0]
        return [_CONTROL_LENGTH.pack(1 + len(packed.row)), _ONE_ROW, packed.row, *packed.bulk]
    control = b"".join((_list_head(len(batch)), *(packed.row for packed in batch)))
    body = [_CONTROL_LENGTH.pack(len(control)), control]
    for packed in batch:
        body += packed.bulk
    return body


def _list_head(count: int) -> bytes:
    """Return the first bytes of a CBOR list of `count` items."""
    return bytes([0x80 | count]) if count < 24 else struct.pack(">BI", 0x9A, count)


def batches(waiting: Iterable[Packed], frame_limit: int = FRAME_LIMIT) -> Iterator[list[Packed]]:
    """Group encoded messages, in order, into batches that each fit into a frame."""
    batch: list[Packed] = []
    control, total = 0, 0
    for packed in waiting:
        control += len(packed.row)
        total += packed.size
        if batch and (
            control > CONTROL_LIMIT - _LIST_HEAD
            or total > frame_limit - _FRAME_EXTRA
            or len(batch) >= MESSAGES_PER_FRAME
        ):
            yield batch
            batch, control, total = [], len(packed.row), packed.size
        batch.append(packed)
    if batch:
        yield batch


def encode_messages(messages: Iterable[Message], frame_limit: int = FRAME_LIMIT) -> list[bytes]:
    """Encode `messages`, in order, as one frame, or as several where a limit demands it.

    Raises `TransportError` where a message cannot be sent.
    """
    return [
        frame_of(batch)
        for batch in batches((pack(message, frame_limit) for message in messages), frame_limit)
    ]


def decode_messages(body: bytes | bytearray | memoryview) -> Decoded:
    """Decode the body of a MESSAGES frame. See `decoding`."""
    steps = decoding(body)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            decoded: Decoded = end.value
            return decoded


def decoding(body: bytes | bytearray | memoryview) -> Generator[None, None, Decoded]:
    """Decode the body of a MESSAGES frame, with a break after each `RUNS_PER_STEP` runs: other work may be done in it.

    Messages of unknown or local types, and those without a sender, are dropped and counted. The type and range of
    every field of the others are checked.

    Raises `FrameError` for a body that no correct host sends.
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
        elif kind.traits.local:
            local += 1
        elif not row[2]:
            anonymous += 1
        else:
            start = end - sum(lengths)
            runs: list[Run] = []
            for length in lengths[: row[11]]:
                runs.append(_run(view[start : start + length]))
                start += length
                if not len(runs) % RUNS_PER_STEP:
                    yield
            messages.append(_message(kind, row, runs, view[start:end]))
        at = end
    if at != len(view):
        raise FrameError(f"{len(view) - at} bytes of a frame belong to no message")
    return Decoded(messages, unknown, local, anonymous)


def _control(body: memoryview) -> tuple[list[Any], int]:
    """Return the rows, and the offset at which the bulk begins."""
    if len(body) < _CONTROL_LENGTH.size:
        raise FrameError("a frame of messages has no control part")
    (length,) = _CONTROL_LENGTH.unpack_from(body)
    end = _CONTROL_LENGTH.size + length
    if length > CONTROL_LIMIT or end > len(body):
        raise FrameError(
            f"the control part of a frame has {length} bytes: {CONTROL_LIMIT} are allowed, {len(body)} came"
        )
    # Depth: the list of rows, a row, a snapshot, its membership, the list of addresses, a pair; one to spare.
    rows = loads_strict(body[_CONTROL_LENGTH.size : end], 7)
    if type(rows) is not list:
        raise FrameError("the control part of a frame is not a list")
    if len(rows) > MESSAGES_PER_FRAME:
        raise FrameError(f"a frame has {len(rows)} messages, and {MESSAGES_PER_FRAME} are allowed")
    return rows, end


def _bulk(body: memoryview, at: int, row: list[Any]) -> tuple[tuple[int, ...], int]:
    """Return the lengths of the pieces of bulk of a checked row, and the offset at which they end.

    `at` is the offset at which they begin. The last piece is the payload of the snapshot, if there is one.
    """
    _, count, snapshot, _ = row[10:]
    if count > MAX_RUNS:
        raise FrameError(f"a message has {count} runs of entries, and {MAX_RUNS} are allowed")
    start = at + _RUN_LENGTH * count
    if start <= len(body):
        lengths = struct.unpack_from(f">{count}I", body, at) if count else ()
        if snapshot is not None:
            lengths += (snapshot[4],)
        end = start + sum(lengths)
        if end <= len(body):
            return lengths, end
    raise FrameError("the bulk of a frame is shorter than its messages say")


def _check_row(row: Any) -> None:
    """Check types and bounds of all fields of a row, but not what its payload decodes to."""
    if type(row) is not list or len(row) != 14:
        raise FrameError("a message is not a list of 14 fields")
    reject, _, _, _, snapshot, payload = row[8:]
    numbers = row[:8] + row[9:12]
    if type(reject) is not bool or not are_whole(numbers, _LEAST_BOUND) or row[0] > _MAX_TYPE:
        objection = _objection(row)
        if objection:
            raise FrameError(f"a message: {objection}")
    if payload is not None and (type(payload) is not bytes or len(payload) > PAYLOAD_LIMIT):
        raise FrameError(f"the payload of a message is not a byte string of at most {PAYLOAD_LIMIT} bytes")
    if snapshot is not None:
        _check_snapshot(snapshot)


def _check_snapshot(row: Any) -> None:
    """Check all of a snapshot but its membership."""
    if type(row) is not list or len(row) != 6:
        raise FrameError("a snapshot is not a list of six fields")
    index, term, size, witness, length, _ = row
    if not (is_whole(index, 0, MAX_INDEX) and is_whole(term, 0, MAX_TERM) and are_whole((size, length))):
        raise FrameError("a number of a snapshot is out of its bounds")
    if type(witness) is not bool:
        raise FrameError("the witness mark of a snapshot is not a boolean")


def _message(kind: MessageType, row: list[Any], runs: list[Run], snapshot_payload: memoryview) -> Message:
    """Make the message of a checked row."""
    snapshot, payload = row[12:]
    to, sender, shard, term, log_term, log_index, commit, reject, hint, hint_high = row[1:11]
    return Message(
        kind, to, sender, shard, term, log_term, log_index, commit, reject, hint, hint_high,
        Entries(runs) if runs else (),
        None if snapshot is None else _snapshot(snapshot, snapshot_payload),
        None if payload is None else _payload(payload),
    )  # fmt: skip


def _run(data: memoryview) -> Run:
    try:
        return Run.decode(bytes(data))
    except CorruptData as error:
        raise FrameError(f"the entries of a message: {error}") from error


def _snapshot(row: list[Any], payload: memoryview) -> Snapshot:
    index, term, size, witness, _, columns = row
    try:
        membership = decode_membership(columns)
    except CorruptData as error:
        raise FrameError(f"the snapshot of a message: {error}") from error
    return Snapshot(index, term, membership, bytes(payload), witness, size)


def _payload(data: bytes) -> Any:
    try:
        return decode_payload(data)
    except ValueError as error:
        raise FrameError(f"the payload of a message: {error}") from error
