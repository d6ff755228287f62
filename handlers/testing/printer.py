"""Messages, entries and replicas in one line each, for text scenarios and traces."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from drakkar.handlers.errors import CorruptData
from drakkar.handlers.messages import Message
from drakkar.handlers.raft.confchange import ConfigChange, describe
from drakkar.handlers.raft.entries import Entry, EntryKind
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.state import Membership

__all__ = [
    "print_entries",
    "print_log",
    "print_membership",
    "print_message",
    "print_progress",
    "print_replica",
]


def print_message(message: Message) -> str:
    """`1->2 REPLICATE term=2 log_index=1 log_term=1: 2/2 no-op, 3/2 "x"`: its fields but the shard, and its entries."""
    head = str(replace(message, shard=0, entries=()))
    return f"{head}: {print_entries(message.entries)}" if message.entries else head


def print_entries(entries: Sequence[Entry]) -> str:
    """`1/1 no-op, 2/1 "x"`: index, term and content of each."""
    return ", ".join(f"{entry.index}/{entry.term} {_content(entry)}" for entry in entries)


def _content(entry: Entry) -> str:
    if entry.kind is EntryKind.COMMAND:
        return '"' + entry.payload.decode("ascii", "backslashreplace") + '"'
    if entry.kind is EntryKind.CONFIG_CHANGE:
        return _change(entry.payload)
    name = entry.kind.name.lower().replace("_", "-")
    return f"{name} ({len(entry.payload)} bytes)" if entry.payload else name


def _change(payload: bytes) -> str:
    try:
        change = ConfigChange.decode(payload)
    except CorruptData:
        return "an unreadable membership change"
    parts = [f"{one.type.name.lower().replace('_', '-')} {one.replica}" for one in change.changes]
    return "change: " + (", ".join(parts) or "leave the joint membership")


def print_replica(raft: Raft) -> str:
    """`1 LEADER term=2 vote=1 leader=1`: what a replica is; `asleep` where it is quiesced."""
    asleep = " asleep" if raft.quiesce.quiesced else ""
    return f"{raft.id} {raft.state.name} term={raft.term} vote={raft.vote} leader={raft.leader_id}{asleep}"


def print_log(raft: Raft) -> str:
    """`committed=2 log=2..3: 2/1 "x", 3/2 no-op`: how far a replica's log goes, and what it still holds."""
    log = raft.log
    held = print_entries(log.entries(log.first_index, log.last_index + 1))
    return f"committed={log.committed} log={log.first_index}..{log.last_index}" + (held and f": {held}")


def print_membership(membership: Membership) -> str:
    """`(1 2 4)&&(1 2 3) removed(5)`: the voters of both halves, the other roles, and who was removed."""
    removed = " ".join(map(str, sorted(membership.removed)))
    return describe(membership) + (f" removed({removed})" if removed else "")


def print_progress(raft: Raft) -> Iterable[str]:
    """How far a leader has brought each peer, a line a peer; and the membership that it works with."""
    yield f"members {print_membership(raft.membership)}"
    for peer, progress in sorted(raft.progress.items()):
        yield f"{peer} {progress}"
