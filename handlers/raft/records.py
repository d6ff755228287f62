"""Records: entries of kinds of one's own, proposed by handlers, and delivered to extensions in log order.

    propose ─► PROPOSE, as any proposal: to the leader, into the log, to a majority
    committed ─► Ready.committed ─► the host applies commands ─► Raft.applied ─► deliver, commands and records alike

Each replica that keeps commands delivers them; a witness keeps none. A replica that cannot take a kind stops at the entry
(`RaftLog.take_committed`), so a leader logs a kind only once all have said that they have it.
"""

from typing import Any, Final

from drakkar.handlers.cells import EMPTY
from drakkar.handlers.checks import check_type
from drakkar.handlers.entry_kinds import EntryKind
from drakkar.handlers.errors import ConfigError
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.ready import Dropped
from drakkar.handlers.raft.runs import Entry, Run
from drakkar.handlers.raft.state import State

__all__ = ["MAX_RECORD_BYTES", "deliver", "deliver_run", "lacking", "propose"]

MAX_RECORD_BYTES: Final = 1 << 20
"""Maximum bytes of a record's payload."""

_COMMAND: Final = int(EntryKind.COMMAND)


def propose(raft: RaftCore, kind: Any, payload: Any) -> str:
    """Propose a record; see `Raft.propose`. Anything may come from an application, and a compiled function takes what it says."""
    _check(raft, kind, payload)
    if raft.state is State.WITNESS:
        return "a witness keeps no records"
    entry = Entry(kind=kind, payload=payload)
    if raft.room.judge is not None:
        raft.room.judge((entry,))
    dropped, messages, last = raft.outbox.dropped, raft.outbox.messages, raft.log.last_index
    reports, sent = len(dropped), len(messages)
    answer = raft.step(Message(MessageType.PROPOSE, sender=raft.id, entries=(entry,)))
    refused = [report for report in dropped[reports:] if _is_of(report, entry)]
    if refused:
        # No proposer waits for it but the caller, who is told here.
        dropped.remove(refused[0])
        return _why(refused[0])
    if raft.log.last_index > last or any(it.type is MessageType.PROPOSE for it in messages[sent:]):
        return ""
    return answer.because if isinstance(answer, EMPTY) else "its handler neither logged it nor sent it on"


def _why(refused: Dropped) -> str:
    if not refused.replicas:
        return refused.text or refused.because.value
    return f"{refused.because.value}; those that have not: {', '.join(map(str, refused.replicas))}"


def _check(raft: RaftCore, kind: Any, payload: Any) -> None:
    if not isinstance(kind, EntryKind) or kind not in raft.handlers.kinds:
        known = ", ".join(map(str, sorted(raft.handlers.kinds))) or "none"
        raise ConfigError(
            "kind", kind, f"must be one that an extension of this replica's table delivers: {known}"
        )
    check_type("payload", payload, bytes, "bytes")
    if len(payload) > MAX_RECORD_BYTES:
        raise ConfigError(
            "payload", f"{len(payload)} bytes", f"a record has at most {MAX_RECORD_BYTES} bytes"
        )


def _is_of(report: Dropped, entry: Entry) -> bool:
    """Whether this report is of the proposal of a single record, which has no number of its own."""
    return (
        report.type is MessageType.PROPOSE
        and not report.origin
        and len(report.entries) == 1
        and report.entries[0] == entry
    )


def lacking(raft: RaftCore, kind: int) -> tuple[int, ...] | None:
    """The members that keep commands and have not said that they take records of this kind; None where all have.

    Where introductions are not in use, only this replica is asked.
    """
    if kind not in raft.handlers.kinds:
        return (raft.id,)
    if not raft.lives.home:
        return None
    membership, met = raft.membership, raft.lives.met
    lack = []
    for replica in sorted(membership.everybody):
        if replica == raft.id or membership.is_witness(replica):
            continue
        life = met.get(replica)
        if life is None or life.kinds is None or kind not in life.kinds:
            lack.append(replica)
    return tuple(lack) or None


def deliver(raft: RaftCore, index: int) -> None:
    """Deliver all entries up to `index` that wait, in log order. An exception ends the replica: half-done state diverges."""
    for run in raft.undelivered.take(index):
        deliver_run(raft, run)


def deliver_run(raft: RaftCore, run: Run) -> None:
    """Deliver these entries, which follow those that were delivered before. Many effects are handed out on the way."""
    deliveries, effects = raft.handlers.deliveries, raft.effects
    if not run.kinds and _COMMAND not in deliveries:
        return
    for place, kind in enumerate(run.kinds or bytes(len(run))):
        takers = deliveries.get(kind)
        if takers is None:
            continue
        entry = run.entry(run.first + place)
        for taker in takers:
            raft.tally.delivered[raft.state, entry.kind] += 1
            taker(raft, entry)
            if effects.many and effects.on_many is not None and raft.tally.broken is None:
                effects.on_many()
