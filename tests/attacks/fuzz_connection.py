"""Whole dialogues of a host that has proved its name and its shard's founding, and then says what it likes.

A dialogue is drawn from bytes, so that a fuzzer which changes bytes changes what is said. Most of it is nearly legal, since what is
refused at once reaches nothing. It meets a real host, by real sockets, and a shard that the two found together: so the one that
says what it likes can elect, be elected, replicate, and be replicated to.
"""

import logging
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Self

from drakkar.actors.host.host import NodeHost
from drakkar.actors.host.options import IN_MEMORY
from drakkar.actors.node.status import Status
from drakkar.handlers.errors import DrakkarError
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.confchange import Change, ChangeType, ConfigChange
from drakkar.handlers.raft.entries import Entries, EntryKind, Run
from drakkar.handlers.raft.lives import Standing, encode_settled, founding_id
from drakkar.handlers.raft.state import Membership, Snapshot
from drakkar.transport.addresses import parse_address
from drakkar.transport.frames import FrameKind, encode_frame
from drakkar.transport.hello import PROTOCOL_VERSION, Hello, encode_hello
from drakkar.transport.hello import Run as Start
from drakkar.transport.message_frames import encode_messages
from drakkar.transport.shard_frames import ShardHello, encode_shard

from tests.actors.support import InlineLedger, until
from tests.ports import free_addresses

__all__ = ["Victim"]

WIRE_TYPES = [kind for kind in MessageType if kind < 1000 and not kind.traits.local]
COMMON = [MessageType.REPLICATE, MessageType.REPLICATE_RESP, MessageType.PROPOSE, MessageType.REQUEST_VOTE]
NUMBERS = [
    0,
    1,
    2,
    3,
    4,
    5,
    7,
    1 << 20,
    (1 << 61) + 1,
    (1 << 62) - 1,
    1 << 62,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
]
SMALL = 7
"""How many of the first `NUMBERS` are those of a young shard."""
MAX_STEPS = 40
SILENCE_S = 5.0
ALLOWED = ("ProtocolViolation",)
"""A replica may stop where what it is told contradicts what it has committed; no other error may end it."""
DECODED = frozenset({EntryKind.SESSION, EntryKind.ENCODED})
"""Where a leader replicates such entries that are none, the state machine fails. A leader that lies is not defended against."""


class Draw:
    """Choices that the bytes of an input make; behind its end, all are 0."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def __bool__(self) -> bool:
        """Whether there are bytes left."""
        return self._at < len(self._data)

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def bytes(self, count: int) -> bytes:
        return bytes(self.byte() for _ in range(count))

    def one_of(self, choices: Sequence[Any]) -> Any:
        return choices[self.byte() % len(choices)]

    def number(self) -> int:
        """One of a young shard, seven times out of eight."""
        which = self.byte()
        return int(NUMBERS[which // 8 % len(NUMBERS)] if which % 8 == 7 else which % SMALL)


class Victim:
    """A host with a shard that nothing may disturb, and one shard for each dialogue. A context manager."""

    def __init__(self) -> None:
        self.address, self.peer = free_addresses(2)
        self.members = {1: self.address, 2: self.peer}
        self.host = NodeHost(self.address, data_dir=IN_MEMORY, tick_interval=0.01)
        self.innocent = self.host.start_replica(
            InlineLedger, shard_id=1, replica_id=1, members={1: self.address}
        )
        until(lambda: self.innocent.status().leader_id == 1)
        self._shard, self._allowed = 1, ALLOWED
        self.errors = Errors()
        logging.getLogger("drakkar").addHandler(self.errors)
        self.seen: Counter[str] = Counter()
        """What dialogues have brought about: else they would show nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("drakkar").removeHandler(self.errors)
        self.host.stop()

    def hear(self, data: bytes) -> None:
        """Have the dialogue of these bytes, and check that the host has taken no harm."""
        self._shard += 1
        self._allowed = ALLOWED
        replica = self.host.start_replica(
            InlineLedger, shard_id=self._shard, replica_id=1, members=self.members
        )
        draw = Draw(data)
        with suppress(OSError), self._introduced() as link:
            for frame in self._dialogue(draw, replica.status().home):
                link.sendall(frame)
            self._ping(link)
        with self._introduced() as link:
            assert self._ping(link), "the host does not answer any more"
        self._check(replica.status())
        with suppress(DrakkarError):
            replica.stop()

    def _check(self, status: Status) -> None:
        self.seen[status.state.name] += 1
        self.seen["a newer term"] += status.term > 1
        self.seen["more entries"] += status.last_index > 1
        self.seen["applied entries"] += status.applied > 1
        self.seen["ended"] += status.ended is not None
        assert status.ended is None or any(it in repr(status.ended) for it in self._allowed), status.ended
        unexpected = [text for text in self.errors.take() if not any(it in text for it in self._allowed)]
        assert not unexpected, unexpected
        assert self.innocent.propose(b"x").get(timeout=SILENCE_S)

    # ---- what is said

    def _introduced(self) -> socket.socket:
        link = socket.create_connection(parse_address(self.address), timeout=SILENCE_S)
        link.sendall(
            encode_hello(
                Hello(
                    PROTOCOL_VERSION, "default", self.peer, self.address, host_id="peer", run=Start.first(7)
                )
            )
        )
        link.recv(1 << 16)
        return link

    @staticmethod
    def _ping(link: socket.socket) -> bool:
        """Whether the host has read all and says so."""
        link.sendall(encode_frame(FrameKind.PING, b"are you there?"))
        seen, until_ = b"", time.monotonic() + SILENCE_S
        while b"are you there?" not in seen and time.monotonic() < until_:
            data = link.recv(1 << 16)
            if not data:
                return False
            seen = seen[-64:] + data
        return b"are you there?" in seen

    def _dialogue(self, draw: Draw, home: int) -> Iterator[bytes]:
        yield from self._prelude(draw.byte() % 4, home)
        for _ in range(MAX_STEPS):
            if not draw:
                return
            yield self._frame(draw)

    def _prelude(self, how: int, home: int) -> Iterator[bytes]:
        """Only the introduction; or also what makes a shard that was founded, that the host leads, or that the other one leads."""

        def say(kind: MessageType, term: int, **fields: Any) -> bytes:
            message = Message(kind, to=1, sender=2, shard=self._shard, term=term, **fields)
            return encode_messages([message])[0]

        yield self._introduction(Standing.NEWBORN)
        if how > 0:
            yield say(MessageType.NEWBORN_RESP, 1, hint=home)
            yield self._introduction(Standing.FOUNDER)
        if how > 1:
            yield say(MessageType.HEARTBEAT, 2)
        if how == 2:
            yield say(MessageType.TIMEOUT_NOW, 2)
            yield say(MessageType.REQUEST_VOTE_RESP, 3)
        if how == 3:
            entries = Entries([Run(2, 2, [b"", b"x", b"x"], bytes([EntryKind.NO_OP, 0, 0]))])
            yield say(MessageType.REPLICATE, 2, log_index=1, log_term=1, commit=3, entries=entries)

    def _frame(self, draw: Draw) -> bytes:
        which = draw.byte() % 16
        if which == 0:
            return self._introduction(
                draw.one_of(list(Standing)), 1 + draw.byte() % 3, min(draw.number(), (1 << 62) - 1)
            )
        if which == 1:
            return encode_frame(draw.byte(), draw.bytes(draw.byte() % 32))
        frames = self._messages(draw)
        if which == 2:
            changed = bytearray(frames[16:])
            for _ in range(1 + draw.byte() % 3):
                changed[draw.byte() % len(changed)] = draw.byte()
            return encode_frame(FrameKind.MESSAGES, changed)
        if which == 3:
            body = frames[16:]
            cut = draw.byte() % len(body)
            return b"".join(
                encode_frame(FrameKind.PART, struct.pack(">II", len(body), at), piece)
                for at, piece in ((0, body[:cut]), (cut, body[cut:]))
                if piece
            )
        return frames

    def _introduction(self, standing: Standing, replica: int = 2, term: int = 0) -> bytes:
        founding = founding_id(self._shard, self.members)
        said = ShardHello(self._shard, replica, founding, standing, self.members, term=term)
        return encode_frame(FrameKind.SHARD, encode_shard(said))

    def _messages(self, draw: Draw) -> bytes:
        """One frame of a message or a few. A number that cannot be sent is left as small as it may be."""
        said = [self._message(draw) for _ in range(1 + draw.byte() % 3)]
        with suppress(DrakkarError):
            return encode_messages(said)[0]
        return encode_messages([Message(draw.one_of(WIRE_TYPES), 1, 2, self._shard, 2)])[0]

    def _message(self, draw: Draw) -> Message:
        kind = draw.one_of(COMMON if draw.byte() % 2 else WIRE_TYPES)
        has = draw.byte()
        message = Message(
            kind,
            to=1,
            sender=2 if has % 8 else 3,
            shard=self._shard,
            term=draw.number(),
            log_term=draw.number(),
            log_index=draw.number(),
            commit=draw.number(),
            reject=bool(has & 16),
            hint=draw.number(),
            hint_high=draw.number(),
            entries=_entries(draw)
            if has & 32 or kind in {MessageType.PROPOSE, MessageType.REPLICATE}
            else (),
            snapshot=_snapshot(draw) if has & 64 or kind is MessageType.INSTALL_SNAPSHOT else None,
            payload=draw.one_of([0, "NO_LEADER", ["CAMPAIGNING", 1], b"", {}, -1]) if has & 128 else None,
        )
        if kind is not MessageType.REPLICATE:
            return message
        if any(DECODED.intersection(run.kinds) for run in Entries.of(message.entries).runs):
            self._allowed = (*ALLOWED, "CorruptData")
        return _following(message) if has % 4 else message


def _following(append: Message) -> Message:
    """The same entries, as they follow the entry that the append names, in its terms."""
    runs, first = [], append.log_index + 1
    for run in Entries.of(append.entries).runs:
        runs.append(run.placed(first, append.term))
        first += len(run)
    return replace(append, entries=Entries(runs))


def _entries(draw: Draw) -> Entries:
    runs, first = [], draw.number()
    for _ in range(draw.byte() % 3):
        payloads = [_payload(draw) for _ in range(1 + draw.byte() % 3)]
        kinds = bytes(draw.byte() % len(EntryKind) for _ in payloads) if draw.byte() % 2 else b""
        runs.append(Run(first, draw.number(), payloads, kinds, draw.number(), draw.number()))
        first += len(payloads)
    return Entries(runs)


def _payload(draw: Draw) -> bytes:
    which = draw.byte() % 4
    if which == 0:
        changes = tuple(
            Change(draw.one_of(list(ChangeType)), draw.number() % (1 << 63), "127.0.0.1:9")
            for _ in range(draw.byte() % 3)
        )
        return ConfigChange(changes, initialize=draw.byte() % 8 == 0).encode()
    if which == 1:
        return encode_settled(1 + draw.byte() % 3, draw.number())
    return draw.bytes(draw.byte() % 16)


def _snapshot(draw: Draw) -> Snapshot:
    members = Membership(
        {1: "a:1", 2: "b:1", 3: "c:1"} if draw.byte() % 2 else set(draw.bytes(draw.byte() % 4)) - {0},
        removed=set(draw.bytes(draw.byte() % 2)) - {0},
    )
    return Snapshot(draw.number(), draw.number(), members, witness=bool(draw.byte() % 2))


class Errors(logging.Handler):
    """What the host logs of exceptions that it did not expect."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self.said.append(f"{record.getMessage()} ({error!r})")

    def take(self) -> list[str]:
        said, self.said = self.said, []
        return said
