"""Messages as bytes: what goes in comes out, and nothing else ever does."""

import struct
from typing import Any

import cbor2
import pytest
from drakkar.handlers.checks import MAX_INDEX, MAX_SIGNED, MAX_TERM
from drakkar.handlers.errors import TransportError
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.payloads import PAYLOAD_LIMIT
from drakkar.handlers.raft.entries import Entries, Entry, EntryKind, Run
from drakkar.handlers.raft.state import Membership, Snapshot
from drakkar.transport import message_frames
from drakkar.transport.frames import FRAME_LIMIT, FrameError, FrameKind, FrameReader
from drakkar.transport.message_frames import (
    CONTROL_LIMIT,
    Decoded,
    batches,
    decode_messages,
    encode_messages,
    pack,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transport.support import body, lengths, message_row

TOP = (1 << 64) - 1
NUMBERS = ("to", "sender", "shard", "term", "log_term", "log_index", "commit", "hint", "hint_high")
MOST = {
    name: MAX_TERM if "term" in name else MAX_INDEX if name in {"log_index", "commit"} else MAX_SIGNED
    for name in NUMBERS
}
AUDIT = MessageType.define("wire.audit", 61_000)
OWN_TIMER = MessageType.define("wire.own_timer", 61_001, local=True)
NETWORK_TYPES = [kind for kind in MessageType if not kind.traits.local]
LOCAL_TYPES = [kind for kind in MessageType if kind.traits.local]


def sent(*messages: Message) -> Decoded:
    """What a peer makes of these messages."""
    frames = [frame for data in encode_messages(messages) for frame in FrameReader().feed(data)]
    assert {frame.kind for frame in frames} <= {FrameKind.MESSAGES}
    parts = [decode_messages(frame.body) for frame in frames]
    dropped = (sum(part[at] for part in parts) for at in (1, 2, 3))
    return Decoded([message for part in parts for message in part.messages], *dropped)


# ---- strategies


def numbers(most: int) -> st.SearchStrategy[int]:
    return st.one_of(st.integers(0, most), st.sampled_from([0, 1, 23, 24, 255, 256, 1 << 32, most]))


ids = st.integers(1, MAX_SIGNED)
indexes = numbers(MAX_INDEX)


@st.composite
def runs(draw: st.DrawFn) -> Run:
    payloads = draw(st.lists(st.binary(max_size=40), min_size=1, max_size=6))
    kinds = draw(st.one_of(st.just(b""), st.binary(min_size=len(payloads), max_size=len(payloads))))
    known = [*EntryKind]  # also those that other tests have defined
    kinds = bytes(known[kind % len(known)] for kind in kinds)
    first, term, origin, key = (draw(st.integers(0, 1 << 40)) for _ in range(4))
    return Run(first, term, payloads, kinds, origin, key)


entries = st.one_of(
    st.just(()),
    st.lists(runs(), max_size=3).map(Entries),
    st.lists(
        st.builds(
            Entry,
            index=st.integers(1, MAX_INDEX),
            term=st.integers(1, MAX_TERM),
            payload=st.binary(max_size=9),
        ),
        max_size=3,
    ).map(tuple),
)
members = st.frozensets(ids, max_size=4)
memberships = st.builds(
    Membership,
    voters=members,
    observers=members,
    witnesses=members,
    outgoing=members,
    outgoing_witnesses=members,
    next_observers=members,
    auto_leave=st.booleans(),
    removed=members,
    change_id=indexes,
    addresses=st.dictionaries(ids, st.text(max_size=12), max_size=4),
)
snapshots = st.builds(
    Snapshot, index=indexes, term=indexes, membership=memberships, payload=st.binary(max_size=60),
    witness=st.booleans(), size=numbers(MAX_SIGNED),
)  # fmt: skip
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(1 << 64), TOP), st.floats(allow_nan=False), st.text(max_size=9),
    st.binary(max_size=9),
)  # fmt: skip
keys = st.one_of(st.text(max_size=5), st.integers(-(1 << 31) + 1, (1 << 31) - 1))
payloads = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=8,
)
messages = st.builds(
    Message,
    type=st.sampled_from(NETWORK_TYPES),
    sender=ids,
    **{name: numbers(MOST[name]) for name in NUMBERS if name != "sender"},
    reject=st.booleans(),
    entries=entries,
    snapshot=st.one_of(st.none(), snapshots),
    payload=payloads,
)


# ---- there and back


@settings(max_examples=80, deadline=None)
@given(st.lists(messages, min_size=1, max_size=4))
def test_messages_arrive_as_they_were_sent(batch: list[Message]) -> None:
    assert sent(*batch) == (batch, 0, 0, 0)


@pytest.mark.parametrize("kind", NETWORK_TYPES, ids=str)
def test_every_type_and_field_crosses(kind: MessageType) -> None:
    fields: dict[str, Any] = {name: at + 1 for at, name in enumerate(NUMBERS)}
    message = Message(
        kind,
        **fields,
        reject=True,
        entries=(Entry(5, 2, EntryKind.CONFIG_CHANGE, b"one", 9, 1), Entry(6, 2, payload=b"two")),
        snapshot=Snapshot(4, 2, Membership({1: "a:1", 2: "b:2"}, removed={3}, change_id=3), b"file", size=99),
        payload={"why": ["because", 1.5, None]},
    )
    assert sent(message).messages == [message]


def test_the_same_run_is_encoded_once_for_all_peers_and_the_disk() -> None:
    run = Run(1, 1, [b"x" * 100] * 10)
    stored = run.encode()
    parts = [
        pack(Message(MessageType.REPLICATE, to=to, sender=1, entries=Entries([run]))).bulk for to in (2, 3)
    ]
    assert all(part[1] is stored for part in parts)


def test_a_message_may_have_very_many_runs() -> None:
    """As when two followers pass on what clients propose to them, by turns."""
    many = Message(
        MessageType.REPLICATE,
        sender=1,
        entries=Entries([Run(at, 1, [bytes(20)], origin=at % 2, key=at) for at in range(1, 40_000)]),
    )
    (message,) = sent(many).messages
    assert isinstance(message.entries, Entries)
    assert [(run.first, run.key) for run in message.entries.runs] == [(at, at) for at in range(1, 40_000)]


def test_a_message_has_no_more_runs_than_its_receiver_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    many = Message(
        MessageType.REPLICATE,
        sender=1,
        entries=Entries([Run(at, 1, [b""], origin=at % 2) for at in range(1, 12)]),
    )
    (frame,) = FrameReader().feed(encode_messages([many])[0])
    monkeypatch.setattr(message_frames, "MAX_RUNS", 10)
    with pytest.raises(
        TransportError, match="has 11 runs of entries, and 10 are allowed: lower max_message_bytes"
    ):
        pack(many)
    with pytest.raises(FrameError, match="11 runs of entries, and 10 are allowed"):
        decode_messages(frame.body)


def test_a_received_run_keeps_the_bytes_in_which_it_came() -> None:
    run = Run(1, 1, [b"x" * 100] * 10)
    (message,) = sent(Message(MessageType.REPLICATE, sender=1, entries=Entries([run]))).messages
    assert isinstance(message.entries, Entries)
    assert message.entries.runs[0]._encoded == run.encode()


def test_many_messages_are_cut_into_frames_that_the_receiver_accepts() -> None:
    batch = [
        Message(MessageType.HEARTBEAT, to=at, sender=1, hint=MAX_SIGNED, hint_high=MAX_SIGNED)
        for at in range(5000)
    ]
    frames = encode_messages(batch)
    assert len(frames) > 1
    assert sent(*batch).messages == batch


def test_a_frame_holds_no_more_messages_than_a_receiver_decodes_in_one_go() -> None:
    packed = [pack(Message(MessageType.QUIESCE, to=2, sender=1))] * 1100
    assert [len(batch) for batch in batches(packed)] == [512, 512, 76]


def test_bulk_is_cut_into_frames_within_the_limit() -> None:
    limit = 1 << 17
    batch = [
        Message(MessageType.REPLICATE, to=at, sender=1, entries=(Entry(1, 1, payload=bytes(50_000)),))
        for at in range(5)
    ]
    frames = encode_messages(batch, limit)
    read = [frame for data in frames for frame in FrameReader(limit).feed(data)]
    assert len(read) == 3
    assert [m for frame in read for m in decode_messages(frame.body).messages] == batch


@pytest.mark.parametrize("kind", [MessageType.HEARTBEAT, MessageType.HEARTBEAT_RESP], ids=str)
def test_the_name_that_a_leader_of_version_4_0_gives_to_a_round_of_reads_crosses(kind: MessageType) -> None:
    """Both ways, since the answer repeats it; no other type may have it, and no other number is so large."""
    message = Message(kind, to=2, sender=1, hint=3, hint_high=1 << 63)
    assert sent(message).messages == [message]
    for wrong in (
        Message(AUDIT, sender=1, hint_high=1 << 63),
        Message(kind, sender=1, hint=1 << 63),
        Message(kind, sender=1, hint_high=(1 << 63) + 1),
    ):
        with pytest.raises(TransportError, match="must be a number"):
            encode_messages([wrong])


# ---- what cannot be sent says so where it is sent


@pytest.mark.parametrize(
    ("message", "text"),
    [
        pytest.param(Message(AUDIT, sender=1, payload={1, 2}), "set cannot be sent", id="a set"),
        pytest.param(Message(AUDIT, sender=1, payload=[object()]), "object cannot be sent", id="an object"),
        pytest.param(Message(AUDIT, sender=1, payload=1 << 64), "64 bits", id="a big number"),
        pytest.param(Message(AUDIT, sender=1, payload={(1, 2): 3}), "key", id="a tuple as key"),
        pytest.param(Message(AUDIT, sender=1, payload={1 << 40: 3}), "key", id="a big key"),
        pytest.param(Message(AUDIT, sender=1, payload={True: 3}), "key", id="a boolean as key"),
        pytest.param(
            Message(AUDIT, sender=1, payload=bytes(PAYLOAD_LIMIT)),
            "send several messages, or bulk as a command or record",
            id="too long",
        ),
        pytest.param(Message(AUDIT, sender=1, term=-1), "term is -1, and must be", id="a negative term"),
        pytest.param(Message(AUDIT, sender=1, commit=1.5), "commit is 1.5, and must be", id="a fraction"),  # type: ignore[arg-type]
        pytest.param(Message(AUDIT, sender=1, to="2"), "to is '2', and must be", id="text for a number"),  # type: ignore[arg-type]
        pytest.param(
            Message(AUDIT, sender=1, shard=True), "shard is True, and must be", id="a boolean for a number"
        ),
        pytest.param(
            Message(AUDIT, sender=1, hint=1 << 64),
            "hint is 18446744073709551616, and must be",
            id="a hint of 65 bits",
        ),
        *[
            pytest.param(
                Message(AUDIT, **{"sender": 1, name: most + 1}),
                f"{name} is {most + 1}, and must be a number from 0 to {most}",
                id=f"{name} too large",
            )
            for name, most in MOST.items()
        ],
        pytest.param(
            Message(AUDIT, sender=1, entries=(Entry(1, MAX_TERM + 1),)), "its term is", id="an entry's term"
        ),
        pytest.param(
            Message(AUDIT, sender=1, snapshot=Snapshot(MAX_INDEX + 1, 1)), "cannot be sent", id="an index"
        ),
        pytest.param(
            Message(AUDIT, sender=1, reject=1), "reject is 1, and must be", id="a number for reject"
        ),  # type: ignore[arg-type]
        pytest.param(
            Message(
                AUDIT,
                sender=1,
                snapshot=Snapshot(1, 1, Membership(removed=range(MAX_SIGNED - 9000, MAX_SIGNED))),
            ),
            "fewer members",
            id="too many members",
        ),
        pytest.param(
            Message(AUDIT, sender=1, entries=(Entry(1, 1, payload=bytes(FRAME_LIMIT)),)),
            "fewer entries",
            id="too big",
        ),
    ],
)
def test_what_cannot_be_sent_is_refused_with_a_remedy(message: Message, text: str) -> None:
    with pytest.raises(TransportError) as caught:
        encode_messages([message])
    assert text in str(caught.value)
    assert not isinstance(caught.value, FrameError)
    assert len(str(caught.value)) < 500


def test_a_payload_that_contains_itself_is_refused() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(TransportError, match="payload takes at least 8193 bytes"):
        encode_messages([Message(AUDIT, sender=1, payload=cycle)])


# ---- what is dropped


@pytest.mark.parametrize("kind", LOCAL_TYPES, ids=str)
def test_local_types_are_dropped_and_counted(kind: MessageType) -> None:
    run = Run(1, 1, [b"x"]).encode()
    decoded = decode_messages(
        body([message_row(type=int(kind), runs=1), message_row()], lengths(len(run)) + run)
    )
    assert decoded == ([Message(MessageType.HEARTBEAT, to=2, sender=1)], 0, 1, 0)


@pytest.mark.parametrize("kind", LOCAL_TYPES, ids=str)
def test_local_types_are_not_sent(kind: MessageType) -> None:
    with pytest.raises(TransportError, match=f"{kind}.*its own replicas only"):
        encode_messages([Message(kind, to=2, sender=1)])


def test_what_a_host_tells_its_own_replicas_is_local() -> None:
    """A peer that could send one of these could stop a leader, or fill a log."""
    host_only = "LOCAL_TICK ELECTION CHECK_QUORUM UNREACHABLE SNAPSHOT_STATUS CONFIG_CHANGE_EVENT LOG_QUERY"
    assert {MessageType[name] for name in host_only.split()} | {OWN_TIMER} <= set(LOCAL_TYPES)


def test_messages_without_a_sender_are_dropped_and_counted() -> None:
    kept = Message(MessageType.HEARTBEAT, sender=1)
    assert sent(Message(MessageType.HEARTBEAT), kept) == ([kept], 0, 0, 1)


def test_unknown_types_are_dropped_and_counted_and_their_entries_skipped() -> None:
    unknown, kept = message_row(type=64_999, runs=2), message_row(runs=1)
    run = Run(1, 1, [b"x"]).encode()
    decoded = decode_messages(body([unknown, kept], lengths(1, 2) + b"???" + lengths(len(run)) + run))
    assert decoded[1:] == (1, 0, 0)
    assert decoded.messages == [
        Message(MessageType.HEARTBEAT, to=2, sender=1, entries=(Entry(1, 1, payload=b"x"),))
    ]


# ---- hostile bodies


def snapshot_row(**fields: Any) -> list[Any]:
    row: dict[str, Any] = {
        "index": 1,
        "term": 1,
        "size": 0,
        "witness": False,
        "length": 0,
        "members": member_row(),
    }
    return list((row | fields).values())


def member_row(**fields: Any) -> list[Any]:
    row: dict[str, Any] = {
        "voters": [], "observers": [], "witnesses": [], "outgoing": [], "outgoing_witnesses": [], "next_observers": [],
        "auto_leave": False, "removed": [], "change_id": 0, "addresses": [],
    }  # fmt: skip
    return list((row | fields).values())


def test_the_rows_made_by_hand_are_good_where_nothing_is_changed() -> None:
    assert decode_messages(body([message_row(snapshot=snapshot_row(members=member_row()))])).messages


BAD_NUMBERS = [-1, 1.0, "1", b"1", None, True, [1], 1 << 64]
BAD_ROWS = [
    *[(name, message_row(**{name: bad})) for name in ("type", *NUMBERS) for bad in BAD_NUMBERS],
    *[(name, message_row(**{"type": int(AUDIT), name: MOST[name] + 1})) for name in NUMBERS],
    *[("type", message_row(type=bad)) for bad in (1 << 16, TOP)],
    *[("reject", message_row(reject=bad)) for bad in (0, None, "no")],
    *[("runs", message_row(runs=bad)) for bad in (*BAD_NUMBERS, 1, TOP)],
    *[("payload", message_row(payload=bad)) for bad in (1, "text", [], {}, bytes(PAYLOAD_LIMIT + 1))],
    *[("snapshot", message_row(snapshot=bad)) for bad in (1, [], snapshot_row()[:-1], [*snapshot_row(), 0])],
    *[
        (f"snapshot {name}", message_row(snapshot=snapshot_row(**{name: bad})))
        for name in ("index", "term", "size", "length")
        for bad in BAD_NUMBERS
    ],
    ("index", message_row(snapshot=snapshot_row(index=MAX_INDEX + 1))),
    ("term", message_row(snapshot=snapshot_row(term=MAX_TERM + 1))),
    *[("witness", message_row(snapshot=snapshot_row(witness=bad))) for bad in (0, None)],
    *[
        (f"membership {name}", message_row(snapshot=snapshot_row(members=member_row(**{name: bad}))))
        for name, bads in {
            "voters": (1, None, [-1], ["1"], [1, 1], [[1]]),
            "removed": ({}, [1.0], [7, 7]),
            "auto_leave": (0, None),
            "change_id": (-1, None, "0"),
            "addresses": (
                {},
                [1],
                [[1]],
                [[1, 2]],
                [["1", "a:1"]],
                [[1, "a:1"], [1, "b:1"]],
                [[1, "a:1", 0]],
            ),
        }.items()
        for bad in bads
    ],
    ("members", message_row(snapshot=snapshot_row(members=member_row()[:-1]))),
    ("too short", message_row()[:-1]),
    ("too long", [*message_row(), 0]),
    ("no list", {"type": 1}),
    ("no row", 7),
]


@pytest.mark.parametrize("row", [row for _, row in BAD_ROWS], ids=[name for name, _ in BAD_ROWS])
def test_a_field_of_wrong_type_or_range_is_malformed(row: Any) -> None:
    with pytest.raises(FrameError):
        decode_messages(body([row]))


def test_a_payload_that_is_too_long_is_not_even_decoded() -> None:
    with pytest.raises(FrameError, match="at most 8192 bytes"):
        decode_messages(body([message_row(payload=cbor2.dumps(bytes(PAYLOAD_LIMIT)))]))


def test_a_tag_in_a_payload_is_malformed() -> None:
    bignum = cbor2.dumps(1 << 70)
    with pytest.raises(FrameError, match="tags"):
        decode_messages(body([message_row(payload=bignum)]))


HOSTILE = {
    "nesting bomb": b"\x81" * 50_000 + b"\x00",
    "indefinite list": b"\x9f\x00\xff",
    "indefinite string": b"\x5f\x41a\xff",
    "list of 2**62 items": b"\x9b\x40\x00\x00\x00\x00\x00\x00\x00",
    "map of 2**62 items": b"\xbb\x40\x00\x00\x00\x00\x00\x00\x00",
    "string of 2**62 bytes": b"\x5b\x40\x00\x00\x00\x00\x00\x00\x00",
    "number as key": b"\x81\xa1\x01\x01",
    "duplicate keys": b"\x81\xa2\x61a\x01\x61a\x02",
    "undefined": b"\x81\xf7",
    "simple value": b"\x81\xf8\x63",
    "text that is no UTF-8": b"\x81\x61\xff",
    "reserved length": b"\x81\x1c",
    "a break": b"\x81\xff",
    "nothing": b"",
    "only half": b"\x82\x01",
    "no list": b"\x01",
    "a byte too many": b"\x80\x00",
}


@pytest.mark.parametrize("control", HOSTILE.values(), ids=HOSTILE)
def test_hostile_control_is_malformed(control: bytes) -> None:
    with pytest.raises(FrameError):
        decode_messages(body(control))


HOSTILE_PAYLOADS = {
    "nesting bomb": b"\x81" * 4000 + b"\x00",
    "tuple as key": b"\xa1\x82\x01\x02\x01",
    "big number as key": b"\xa1\x1b\x00\x00\x00\x01\x00\x00\x00\x00\x01",
    "float as key": b"\xa1\xf9\x3c\x00\x01",
    "bytes as key": b"\xa1\x41a\x01",
    "duplicate keys": b"\xa2\x01\x01\x01\x02",
    "undefined": b"\xf7",
    "simple value": b"\xf8\x63",
    "trailing byte": b"\x01\x01",
    "nothing": b"",
}


@pytest.mark.parametrize("payload", HOSTILE_PAYLOADS.values(), ids=HOSTILE_PAYLOADS)
def test_a_hostile_payload_is_malformed(payload: bytes) -> None:
    with pytest.raises(FrameError):
        decode_messages(body([message_row(payload=payload)]))


def test_colliding_keys_are_refused_before_they_are_decoded() -> None:
    """300 KB of them would keep the decoder busy for seconds."""
    modulus = (1 << 61) - 1
    colliding = b"\x81\xb9\x4e\x20" + b"".join(
        cbor2.dumps((at << 8) * modulus) + b"\x00" for at in range(20_000)
    )
    assert len(colliding) > 250_000
    for hostile in (body(colliding), body([message_row(payload=colliding)])):
        with pytest.raises(FrameError, match=str(CONTROL_LIMIT)):
            decode_messages(hostile)


def test_the_worst_control_parts_that_are_decoded_are_refused() -> None:
    full = (CONTROL_LIMIT - 20) // 6
    floods = {
        "maps": b"\x99" + full.to_bytes(2) + b"\xa0" * full,
        "string keys": b"\x81\xb9" + full.to_bytes(2) + b"".join(b"\x64%04x\x00" % at for at in range(full)),
        "payloads": cbor2.dumps(
            [message_row(payload=b"\xb9\x07\xd0" + b"".join(b"\x82\x01\x00\x00" for _ in range(2000)))] * 7
        ),
    }
    for control in floods.values():
        assert len(control) <= CONTROL_LIMIT
        with pytest.raises(FrameError):
            decode_messages(body(control))


def test_a_control_part_longer_than_its_frame_is_malformed() -> None:
    with pytest.raises(FrameError, match="control part"):
        decode_messages(struct.pack(">I", 100) + b"\x80")
    with pytest.raises(FrameError, match="no control part"):
        decode_messages(b"\x00\x00")


def test_bulk_that_belongs_to_no_message_is_malformed() -> None:
    with pytest.raises(FrameError, match="belong to no message"):
        decode_messages(body([message_row()], b"x"))


def test_bulk_that_is_too_short_is_malformed() -> None:
    with pytest.raises(FrameError, match="shorter"):
        decode_messages(body([message_row(runs=1)], lengths(10) + b"x" * 9))
    with pytest.raises(FrameError, match="shorter"):
        decode_messages(body([message_row(snapshot=snapshot_row(length=10))], b"x" * 9))


BAD_RUNS = {
    "no CBOR": b"\xff" * 8,
    "a map": b"\xa0",
    "five columns": cbor2.dumps([1, 1, b"", 0, 0]),
    "no payloads": cbor2.dumps([1, 1, b"", 0, 0, []]),
    "text for a payload": cbor2.dumps([1, 1, b"", 0, 0, ["x"]]),
    "a list for a payload": cbor2.dumps([1, 1, b"", 0, 0, [[]]]),
    "a negative term": cbor2.dumps([1, -1, b"", 0, 0, [b"x"]]),
    "a kind that is none": cbor2.dumps([1, 1, b"\x63", 0, 0, [b"x"]]),
    "a term above its bound": cbor2.dumps([1, MAX_TERM + 1, b"", 0, 0, [b"x"]]),
    "an index above its bound": cbor2.dumps([MAX_INDEX, 1, b"", 0, 0, [b"x", b"y"]]),
    "nesting": cbor2.dumps([1, 1, b"", 0, 0, [[[[[b"x"]]]]]]),
    "indefinite": b"\x9f\x01\x01\x40\x00\x00\x81\x41x\xff",
}


@pytest.mark.parametrize("run", BAD_RUNS.values(), ids=BAD_RUNS)
def test_a_run_that_is_none_is_malformed(run: bytes) -> None:
    with pytest.raises(FrameError, match="entries of a message"):
        decode_messages(body([message_row(runs=1)], lengths(len(run)) + run))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_malformed(data: bytes) -> None:
    for decode in (decode_messages, lambda control: decode_messages(body(control))):
        try:
            decode(data)
        except FrameError:
            continue


@settings(max_examples=100, deadline=None)
@given(messages, st.data())
def test_a_changed_body_is_decoded_or_malformed(message: Message, data: st.DataObject) -> None:
    """As if a peer that computes checksums had changed it."""
    (frame,) = FrameReader().feed(encode_messages([message])[0])
    changed = bytearray(frame.body)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_messages(bytes(changed))
    except FrameError:
        return
    for survivor in decoded.messages:
        assert decode_messages(FrameReader().feed(encode_messages([survivor])[0])[0].body).messages == [
            survivor
        ]
