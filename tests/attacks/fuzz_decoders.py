"""Everything that decodes bytes of a peer or a disk, as functions of bytes that must not fail.

Each decodes its bytes, lets pass only the error that the decoder documents, and checks what came out: that it stays within its
bounds, and is the same after it was encoded and decoded again. What the encoder refuses was no good input for a decoder either.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import cbor2
from drakkar.actors.log import records
from drakkar.actors.remote import records as sayings
from drakkar.actors.remote.failures import decode_failure
from drakkar.actors.remote.values import ValueRefused, pack, unpack
from drakkar.handlers import cbor
from drakkar.handlers.checks import MAX_INDEX, MAX_SIGNED, MAX_TERM
from drakkar.handlers.errors import CorruptData, TransportError
from drakkar.handlers.messages import Message
from drakkar.handlers.raft.codec import decode_membership, encode_membership
from drakkar.handlers.raft.confchange import ConfigChange
from drakkar.handlers.raft.entries import Entries, Run
from drakkar.handlers.raft.lives import decode_settled, encode_settled
from drakkar.transport.call_frames import RECORDS_PER_FRAME, calls_body, check_record, decode_calls
from drakkar.transport.calls import CallWindow
from drakkar.transport.frames import FrameError, FrameKind, FrameReader, loads_strict
from drakkar.transport.hello import decode_hello, decode_reason, encode_hello
from drakkar.transport.message_frames import decode_messages, encode_messages
from drakkar.transport.parts import PartReader
from drakkar.transport.shard_frames import decode_shard, encode_shard
from drakkar.transport.stream_frames import decode_stream_end, decode_stream_piece

from tests.actors.remote.support import REFS, shape
from tests.attacks.fuzz_calls import called

__all__ = ["DECODERS"]

OLD_NAME = 1 << 63
"""The high part of the names that leaders of version 4.0 give to rounds of reads."""


# ---- from a peer


def frames(data: bytes) -> None:
    """A stream of frames, which comes in pieces; and as it comes at once, it is the same."""
    with suppress(FrameError):
        at_once = _read(data, [len(data)])
        assert at_once == _read(data, [1, 15, 16, 17, 40])
        for kind, body in at_once:
            decode = _BY_KIND.get(kind)
            if decode is not None:
                decode(body)


def _read(data: bytes, sizes: list[int]) -> list[tuple[int, bytes]]:
    reader, found, at = FrameReader(1 << 20), [], 0
    while at < len(data):
        size = sizes[min(len(found), len(sizes) - 1)]
        came = reader.feed(data[at : at + size])
        while reader.more:
            came += reader.feed(b"")
        found += [(frame.kind, bytes(frame.body)) for frame in came]
        at += size
    return found


def messages(data: bytes) -> None:
    """The body of a MESSAGES frame."""
    with suppress(FrameError):
        for message in decode_messages(data).messages:
            _check_bounds(message)
            _check_message(message)


def control(data: bytes) -> None:
    """The control part of one, with as much bulk as follows it."""
    messages(len(data).to_bytes(4) + data)


def calls(data: bytes) -> None:
    """The body of a CALLS frame. What was decoded can be sent on."""
    with suppress(FrameError):
        records = decode_calls(data)
        assert 0 < len(records) <= RECORDS_PER_FRAME
        encoded = [cbor2.dumps(record) for record in records]
        for record in encoded:
            check_record(record, 1 << 20)
        assert [cbor2.dumps(record) for record in decode_calls(calls_body(encoded))] == encoded


def credit(data: bytes) -> None:
    """The body of a CALLS frame that comes back."""
    window = CallWindow()
    window.add(3, 100)
    with suppress(FrameError):
        window.take(memoryview(data))
        assert window.fits(1, 1)


def _check_bounds(message: Message) -> None:
    assert 0 <= message.to <= MAX_SIGNED
    assert 0 < message.sender <= MAX_SIGNED
    assert 0 <= message.shard <= MAX_SIGNED
    assert max(message.term, message.log_term) <= MAX_TERM
    assert max(message.log_index, message.commit) <= MAX_INDEX
    assert message.hint <= MAX_SIGNED
    assert message.hint_high <= MAX_SIGNED or message.hint_high == OLD_NAME
    for run in Entries.of(message.entries).runs:
        assert run.term <= MAX_TERM
        assert run.last <= MAX_INDEX
        assert run.key + len(run) - 1 <= MAX_SIGNED
    if message.snapshot is not None:
        assert message.snapshot.index <= MAX_INDEX
        assert message.snapshot.term <= MAX_TERM


def _check_message(message: Message) -> None:
    try:
        encoded = encode_messages([message])[0]
    except TransportError as error:
        # A float of two bytes becomes one of eight, so a payload may have grown too long. Nothing else may be refused.
        if message.payload is None:
            raise AssertionError(f"{message} was decoded, and cannot be encoded") from error
        _check_message(replace(message, payload=None))
        return
    (frame,) = FrameReader().feed(encoded)
    (again,) = decode_messages(frame.body).messages
    assert encode_messages([again]) == [encoded]


def hello(data: bytes) -> None:
    """The body of a HELLO."""
    with suppress(FrameError):
        said = decode_hello(memoryview(data))
        if said.version[0] >= 4:
            with suppress(TransportError):
                (frame,) = FrameReader().feed(encode_hello(said))
                assert decode_hello(frame.body) == said


def shard(data: bytes) -> None:
    """The body of a SHARD."""
    with suppress(FrameError):
        said = decode_shard(data)
        assert decode_shard(encode_shard(said)) == said
        assert max(said.shard, said.replica, said.generation, *said.founders, 0) <= MAX_SIGNED
        assert said.term <= MAX_TERM


def reason(data: bytes) -> None:
    """The body of a REFUSED, which is logged."""
    assert decode_reason(memoryview(data)).isprintable()


def parts(data: bytes) -> None:
    """The bodies of PART frames: each begins with its length."""
    reader, limit = PartReader(1 << 12), 1 << 12
    with suppress(FrameError):
        while data:
            size = 1 + data[0]
            whole = reader.feed(memoryview(data[1:size]))
            assert len(whole or b"") <= limit
            assert max(reader.unfinished) <= limit
            data = data[size:]


def streams(data: bytes) -> None:
    """The bodies of the frames of a stream."""
    with suppress(FrameError):
        decode_stream_piece(memoryview(data))
    with suppress(FrameError):
        decode_stream_end(memoryview(data))


def value(data: bytes) -> None:
    """A value of users. What comes out can be sent on."""
    try:
        decoded = unpack(data, REFS)
    except ValueRefused:
        return
    assert shape(unpack(pack(decoded, REFS), REFS)) == shape(decoded)


def record(data: bytes) -> None:
    """What a host says of actors."""
    try:
        decoded = sayings.decode(loads_strict(data, sayings.RECORD_DEPTH))
    except FrameError:
        return
    if decoded is not None:
        assert sayings.decode(cbor.loads(sayings.encode(decoded), sayings.RECORD_DEPTH)) == decoded
    if isinstance(decoded, sayings.Failed):
        assert isinstance(decode_failure(decoded.failure, REFS), Exception)


def found(data: bytes) -> None:
    """What a host says of a name, and of all names."""
    with suppress(FrameError):
        decoded = sayings.decode_found(data)
        assert sayings.decode_found(sayings.encode_found(decoded)) == decoded
    with suppress(FrameError):
        names = sayings.decode_names(data)
        assert sayings.decode_names(sayings.encode_names(names)) == names


# ---- from a peer or a disk


def run(data: bytes) -> None:
    """A run of entries. What is kept of its bytes is what is stored and sent on."""
    with suppress(CorruptData):
        decoded = Run.decode(data)
        fresh = Run(decoded.first, decoded.term, decoded.payloads, decoded.kinds, decoded.origin, decoded.key)
        again = Run.decode(fresh.encode())
        assert list(Entries([again])) == list(Entries([decoded]))
        for part in decoded.parts(64):
            Run.decode(part.encode())


def membership(data: bytes) -> None:
    """The columns of a membership."""
    with suppress(ValueError, CorruptData):
        decoded = decode_membership(cbor.loads(data, 6))
        assert decode_membership(cbor2.loads(cbor2.dumps(encode_membership(decoded)))) == decoded


def change(data: bytes) -> None:
    """The payload of an entry that changes the membership, which any proposer may write."""
    with suppress(CorruptData):
        decoded = ConfigChange.decode(data)
        assert ConfigChange.decode(decoded.encode()) == decoded


def settled(data: bytes) -> None:
    """The payload of an entry that says where a replica lives."""
    with suppress(CorruptData):
        decoded = decode_settled(data)
        assert decode_settled(encode_settled(*decoded)) == decoded


def disk(data: bytes) -> None:
    """What the log stores beside the entries."""
    for decode, encode in (
        (records.decode_hard_state, records.encode_hard_state),
        (records.decode_marker, records.encode_marker),
        (records.decode_snapshot, records.encode_snapshot),
        (records.decode_bootstrap, records.encode_bootstrap),
        (records.decode_lives, records.encode_lives),
    ):
        with suppress(CorruptData):
            decoded = decode(data)
            assert decode(encode(decoded)) == decoded
    view = memoryview(data)
    records.find_record(view, 0, 1, 2)
    records.first_run(view, 0)


_BY_KIND: dict[int, Callable[[bytes], None]] = {
    FrameKind.HELLO: hello,
    FrameKind.STREAM_HELLO: hello,
    FrameKind.MESSAGES: messages,
    FrameKind.CALLS: calls,
    FrameKind.SHARD: shard,
    FrameKind.REFUSED: reason,
    FrameKind.STREAM_PIECE: streams,
    FrameKind.STREAM_END: streams,
}

DECODERS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each
    for each in (
        frames,
        messages,
        calls,
        credit,
        control,
        hello,
        shard,
        reason,
        parts,
        streams,
        value,
        record,
        found,
        called,
        run,
        membership,
        change,
        settled,
        disk,
    )
}
"""By name: a function of any bytes, which raises only where there is a bug."""
