"""What another replica proposes is examined before it is logged: an entry that no replica can decode would end all of them.

They would end again at each start, since it is in their logs. So this is the last place where it can be refused.

    what the entries announce   bounded first, for each command and for a message, before anything is decoded
    little to decode            is examined at once: some tenths of a millisecond of the loop
    more                        by a worker, one message at a time. Meanwhile what else that sender proposes waits, so that it
                                stays in order; the senders take turns. What would fill more than half of the inbox is
                                refused, so that the rest of the shard's messages have room; but each sender may have one

A host cuts what its clients propose into messages that keep to the bounds.

Records of an application's own kinds are any bytes to the log. They are taken where this replica's table delivers them.
"""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Any, ClassVar, Final, NamedTuple, Self

from drakkar.actors.machine import compression
from drakkar.actors.machine.decoding import CODED, ENTRY_WORK, coded_entries, command_size, decoding_work
from drakkar.actors.machine.sessions import check_request
from drakkar.actors.node.completions import Completion, own_type
from drakkar.actors.node.inbox import NodeInbox, entry_bytes
from drakkar.actors.runtime.workers import WorkerPool
from drakkar.handlers.errors import CorruptData
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.entries import Entries, EntryKind, Run
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.state import State

__all__ = ["MAX_COMMAND_BYTES", "Bounds", "Examined", "ProposalExamined", "Proposed", "Verdict", "examine"]

MAX_COMMAND_BYTES: Final = 32 << 20
"""The largest value of a host's `max_command_bytes`."""
MAX_WORK_HERE: Final = 128 << 10
"""What a message may take to decode on the loop, in bytes: about half a millisecond."""
MAX_WAITING: Final = 256
"""Messages of one sender that may wait here; their bytes count in the inbox, of whose bound they take half."""

_PROPOSED: Final = bytes((EntryKind.COMMAND, EntryKind.CONFIG_CHANGE, EntryKind.SESSION, EntryKind.ENCODED))
"""The kinds of entries that hosts propose, beside those of an application's own. All others are a leader's own."""
_OWN: Final = bytes(range(EntryKind.FIRST_FREE, 256))
_BOUNDED: Final = frozenset({int(EntryKind.COMMAND), *CODED, *_OWN})
"""The kinds of which each entry is bounded: commands and records."""


class Verdict(Enum):
    """What becomes of a proposal."""

    SOUND = auto()
    POISON = auto()
    """No replica could apply it: no correct host proposes it."""
    TOO_LARGE = auto()
    """Its host takes larger commands than this one."""
    TOO_MANY = auto()
    """So many of its sender wait already, or it could not be examined now."""
    KIND_MISSING = auto()
    """This replica's table does not deliver records of such a kind: its hosts are not all of one version."""


class Bounds(NamedTuple):
    """Bytes of commands, as they are once they are decoded."""

    command: int
    """Of one command."""
    message: int
    """Of all commands of a message that must be decoded."""

    @classmethod
    def of(cls, max_command_bytes: int, max_message_bytes: int) -> Self:
        """Return the bounds of what hosts send that have these options; see `PendingProposals`."""
        return cls(max_command_bytes, max(max_command_bytes, 2 * max_message_bytes))


class Examined(NamedTuple):
    """What was found, and what finding it took."""

    verdict: Verdict
    work: int = 0
    """Bytes of commands that were decoded, at most."""


@dataclass(frozen=True, slots=True)
class ProposalExamined(Completion):
    """A worker has examined a proposal of another replica."""

    type: ClassVar[MessageType] = own_type("PROPOSAL_EXAMINED", 215)
    message: Message
    found: Examined


class Proposed:
    """The proposals of other replicas, on their way to the core of a leader. All methods are for the loop's thread.

    Membership changes are not looked at: the core does, and one that is none changes nothing.
    """

    def __init__(
        self,
        raft: Raft,
        bounds: Bounds,
        *,
        pool: WorkerPool,
        inbox: NodeInbox,
        judged: Callable[[Message, Examined], Any],
    ) -> None:
        """`judged` is called with each message, once: in the order in which they came from a sender."""
        self._raft, self._bounds, self._pool, self._inbox, self._judged = raft, bounds, pool, inbox, judged
        self._kinds = raft.handlers.kinds
        self._waiting: dict[int, deque[Message]] = {}
        """By sender. The first message of the first sender is being examined."""
        self._bytes = 0
        """Bytes of their entries, as the inbox counts them."""

    def __len__(self) -> int:
        """How many messages wait for a worker, or are being examined."""
        return sum(map(len, self._waiting.values()))

    def take(self, message: Message) -> Any:
        """Have a proposal of another replica judged, now or later. Return what `judged` returns, if it is called now."""
        if self._raft.state is not State.LEADER:
            return self._judged(message, Examined(Verdict.SOUND))  # the core refuses it: only a leader logs
        waiting = self._waiting.get(message.sender)
        if waiting is None:
            runs = Entries.of(message.entries).runs
            if _is_small(runs):
                return self._judged(message, examine(runs, self._bounds, self._kinds))
            waiting = self._waiting[message.sender] = deque()
        elif len(waiting) >= MAX_WAITING or self._inbox.is_half(self._bytes + entry_bytes(message)):
            return self._judged(message, Examined(Verdict.TOO_MANY))
        waiting.append(message)
        self._bytes += entry_bytes(message)
        if len(self) == 1:
            self._examine_next()
        return None

    def on_examined(self, done: ProposalExamined) -> None:
        """A worker has examined a message."""
        waiting = self._waiting.pop(done.message.sender)
        self._bytes -= entry_bytes(waiting.popleft())
        if waiting:
            self._waiting[done.message.sender] = waiting
        self._judged(done.message, done.found)
        if self._raft.state is not State.LEADER:
            self._let_go()
        elif self._waiting:
            self._examine_next()

    def _examine_next(self) -> None:
        message = next(iter(self._waiting.values()))[0]
        self._inbox.reserve()
        self._pool.submit(partial(self._examine, message))

    def _examine(self, message: Message) -> None:
        found = Examined(Verdict.TOO_MANY)  # where this fails, as for want of memory: those that wait go on
        try:
            found = examine(Entries.of(message.entries).runs, self._bounds, self._kinds)
        finally:
            self._inbox.complete(ProposalExamined(message, found))

    def _let_go(self) -> None:
        waiting, self._waiting, self._bytes = self._waiting, {}, 0
        for messages in waiting.values():
            for message in messages:
                self._judged(message, Examined(Verdict.SOUND))


def _is_small(runs: Sequence[Run]) -> bool:
    entries = sum(run.kinds.count(kind) for run in runs if run.kinds for kind in CODED)
    return entries * ENTRY_WORK <= MAX_WORK_HERE and (not entries or decoding_work(runs) <= MAX_WORK_HERE)


def examine(runs: Sequence[Run], bounds: Bounds, kinds: Collection[int] = ()) -> Examined:
    """Return whether all replicas can apply what another host proposes, and whether this one takes it. From any thread.

    `kinds` are those of the records that this replica's table delivers.
    """
    others = b"".join(run.kinds.translate(None, _PROPOSED) for run in runs)
    if others.translate(None, _OWN):
        return Examined(Verdict.POISON)
    if others.translate(None, bytes(kinds)):
        return Examined(Verdict.KIND_MISSING)
    largest = max(map(_largest, runs), default=0)
    if largest > bounds.command:
        return Examined(Verdict.POISON if largest > MAX_COMMAND_BYTES else Verdict.TOO_LARGE)
    work = decoding_work(runs)
    if work > bounds.message + ENTRY_WORK * sum(map(len, runs)):
        return Examined(Verdict.TOO_LARGE)
    try:
        for kind, payload in coded_entries(runs):
            if kind == EntryKind.SESSION:
                check_request(payload)
            else:
                compression.check(payload)
    except CorruptData:
        return Examined(Verdict.POISON, work)
    return Examined(Verdict.SOUND, work)


def _largest(run: Run) -> int:
    """Return the bytes of the largest command, or record, of a run."""
    if run.plain:
        return max(map(len, run.payloads))
    sizes = (
        command_size(kind, payload)
        for kind, payload in zip(run.kinds, run.payloads, strict=True)
        if kind in _BOUNDED
    )
    return max(sizes, default=0)
