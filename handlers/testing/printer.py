"""Prints messages, entries and replicas in one line each, for text scenarios and traces."""

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
    """Return the fields except `shard`, and the entries: `1->2 REPLICATE term=2 log_index=1 log_term=1: 2/2 "x"`."""
    head = str(replace(message, shard=0, entries=()))
    return f"{head}: {print_entries(message.entries)}" if message.entries else head


def print_entries(entries: Sequence[Entry]) -> str:
    """Return index, term and content of each entry: `1/1 no-op, 2/1 "x"`."""
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
    return "change: " + (", ".join(parts) or "leave the joint membership") + ", forced" * change.forced


def print_replica(raft: Raft) -> str:
    """Return the state of a replica, such as `1 LEADER term=2 vote=1 leader=1`, with `asleep` if it is quiesced, and `full` without room."""
    marks = " asleep" * raft.quiesce.quiesced + " full" * raft.room.full
    return f"{raft.id} {raft.state.name} term={raft.term} vote={raft.vote} leader={raft.leader_id}{marks}"


def print_log(raft: Raft) -> str:
    """Return the commit index and the entries of a replica's log: `committed=2 log=2..3: 2/1 "x", 3/2 no-op`."""
    log = raft.log
    held = print_entries(log.entries(log.first_index, log.last_index + 1))
    return f"committed={log.committed} log={log.first_index}..{log.last_index}" + (held and f": {held}")


def print_membership(membership: Membership) -> str:
    """Return the voters of both halves, the other roles and the removed replicas: `(1 2 4)&&(1 2 3) removed(5)`."""
    removed = " ".join(map(str, sorted(membership.removed)))
    return describe(membership) + (f" removed({removed})" if removed else "")


def print_progress(raft: Raft) -> Iterable[str]:
    """Yield a leader's membership, then its progress for each peer, one per line."""
    yield f"members {print_membership(raft.membership)}"
    for peer, progress in sorted(raft.progress.items()):
        yield f"{peer} {progress}"
