"""Good inputs for each decoder, which a fuzzer changes: from random bytes alone it would hardly ever find one."""

import struct
from collections.abc import Callable

import cbor2
from drakkar.actors.log import records
from drakkar.actors.remote import records as calls
from drakkar.actors.remote.failures import encode_failure
from drakkar.actors.remote.values import pack
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.codec import encode_membership
from drakkar.handlers.raft.confchange import Change, ChangeType, ConfigChange
from drakkar.handlers.raft.entries import Entries, EntryKind, Run
from drakkar.handlers.raft.lives import Lives, Standing, encode_settled
from drakkar.handlers.raft.state import HardState, Membership, Snapshot
from drakkar.transport.call_frames import calls_body
from drakkar.transport.frames import HEADER_SIZE, FrameKind, encode_frame
from drakkar.transport.hello import Hello, encode_hello, encode_reason
from drakkar.transport.hello import Run as Start
from drakkar.transport.message_frames import encode_messages
from drakkar.transport.shard_frames import ShardHello, encode_shard
from drakkar.transport.stream_frames import encode_stream_end, encode_stream_piece

from tests.actors.remote.support import REFS, Deposit, Note, Nothing, Ref
from tests.attacks import fuzz_calls

__all__ = ["SEEDS"]

_RUN = Run(7, 3, [b"one", b"", b"three"], bytes([0, EntryKind.NO_OP, 0]), 9, 4)
_MEMBERS = Membership(
    {1: "a:1", 2: "b:2"}, {3}, {4}, {1, 2, 5}, {5}, {6}, True, {7}, 8, {3: "c:3"}, {1: 77, 2: 0}
)
_SNAPSHOT = Snapshot(6, 3, _MEMBERS, b"content", False, 7)
_MESSAGES = [
    Message(MessageType.REPLICATE, 2, 1, 1, 3, 3, 6, 5, False, 1, 0, Entries([_RUN])),
    Message(MessageType.HEARTBEAT, 2, 1, 1, 3, hint=5, hint_high=1 << 62),
    Message(MessageType.INSTALL_SNAPSHOT, 2, 1, 1, 3, snapshot=_SNAPSHOT),
    Message(MessageType.PROPOSE_REFUSED, 2, 1, 1, 3, payload=["NO_LEADER", 1, {"a": 1.5, 2: None}]),
]
_HELLO = Hello((4, 1), "default", "a:1", "b:2", frozenset({"x"}), False, "host", Start(3, (5, 4)))
_SHARD = ShardHello(1, 2, b"f" * 16, Standing.SETTLED, {1: "a:1", 2: "b:2"}, 3, 5)
_BODIES = [
    data[HEADER_SIZE:]
    for each in (_MESSAGES, *([one] for one in _MESSAGES))
    for data in encode_messages(each)
]
_CHANGE = ConfigChange((Change(ChangeType.ADD_VOTER, 4, "d:4"), Change(ChangeType.REMOVE, 1)), change_id=3)
_CALLS = calls_body(
    [
        cbor2.dumps([1, [7, 3], {"a": 1.5, "b": [None, b"bytes"]}]),
        cbor2.dumps([2, 9, [7, 3], 3000, "text"]),
        cbor2.dumps([15]),
    ]
)
_PART = struct.pack(">II", 6, 0) + b"abc"
_VALUES = [
    [None, True, -1, 1.5, "a", b"b", [], {}, {"@": 1}, {"a": {"b": []}}],
    Deposit("ann", Note("why", [Nothing(), Ref(7)])),
]
_HERE = calls.Target(5, 7)
_LOST = encode_failure(ValueError("no", 1), REFS)
_RECORDS: list[calls.Record] = [
    calls.Tell(_HERE, b"m"),
    calls.Ask(9, _HERE, 3000, b"m"),
    calls.Call(9, _HERE, 3000, ("account", "balance"), b"\x80", b"\xa0"),
    calls.Set(9, _HERE, 3000, ("limit",), b"\x01"),
    calls.Answer(9, b"\x01"),
    calls.Failed(9, calls.FailKind.RAISED, _LOST),
    calls.Lookup(9, "ledger"),
    calls.Names(9),
    calls.Watch(9, _HERE),
    calls.Died(9, None),
    calls.Died(9, _LOST),
    calls.Describe(9, _HERE),
]


def _framed() -> list[bytes]:
    return [
        *encode_messages(_MESSAGES),
        encode_hello(_HELLO) + encode_frame(FrameKind.SHARD, encode_shard(_SHARD)),
        encode_reason("no") + encode_frame(FrameKind.PING, b"1") + encode_frame(77, b""),
        encode_stream_piece(1, b"bytes") + encode_stream_end(5, 77),
        encode_frame(FrameKind.CALLS, _CALLS),
    ]


SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "frames": _framed,
    "messages": lambda: _BODIES,
    "calls": lambda: [_CALLS],
    "credit": lambda: [struct.pack(">QQ", 2, 70)],
    "control": lambda: [body[4 : 4 + int.from_bytes(body[:4])] for body in _BODIES],
    "hello": lambda: [encode_hello(_HELLO)[HEADER_SIZE:]],
    "shard": lambda: [encode_shard(_SHARD)],
    "reason": lambda: [b"a host that is refused\n"],
    "parts": lambda: [bytes([len(_PART)]) + _PART + b"\x0b" + struct.pack(">II", 6, 3) + b"def"],
    "streams": lambda: [
        encode_stream_piece(1, b"bytes")[HEADER_SIZE:],
        encode_stream_end(5, 7)[HEADER_SIZE:],
    ],
    "value": lambda: [pack(value, REFS) for value in _VALUES],
    "record": lambda: [calls.encode(record) for record in _RECORDS],
    "found": lambda: [
        calls.encode_found(calls.Found(_HERE, "Ledger", {"balance": True, "book": {"title": False}})),
        calls.encode_names(["ledger", "scheduler"]),
    ],
    "called": fuzz_calls.seeds,
    "run": lambda: [_RUN.encode(), Run(0, 0, [b"x"]).encode()],
    "membership": lambda: [cbor2.dumps(encode_membership(_MEMBERS))],
    "change": lambda: [_CHANGE.encode(), ConfigChange(initialize=True).encode()],
    "settled": lambda: [encode_settled(3, 1 << 40)],
    "disk": lambda: [
        records.encode_hard_state(HardState(3, 1, 9)),
        records.encode_marker((9, 3)),
        records.encode_snapshot(_SNAPSHOT),
        records.encode_bootstrap(records.Bootstrap(_MEMBERS, False, "Total", 5)),
        records.encode_lives(Lives(b"f" * 16, Standing.FOUNDER, {1: 5})),
    ],
}
"""By the name of the decoder."""
