"""Invariants of logs: what is appended, committed and applied (thesis figure 3.2)."""

from bisect import bisect_left
from typing import Final

from drakkar.handlers.messages import MessageType
from drakkar.handlers.raft.entries import EntryKind, Run
from drakkar.handlers.raft.lives import decode_settled
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.ready import Dropped, Ready
from drakkar.handlers.raft.state import Snapshot, State
from drakkar.handlers.testing.history import History, LastSeen, Observed, Violation
from drakkar.handlers.testing.identity_checks import IdentityChecks

__all__ = [
    "check_commit",
    "check_complete",
    "check_entry",
    "check_handed_out",
    "check_indexes",
    "check_memory",
    "check_prefix",
    "check_room",
]

_KEPT_BY_WITNESSES: Final = frozenset({EntryKind.METADATA, EntryKind.CONFIG_CHANGE, EntryKind.SETTLED})


def check_indexes(raft: Raft, seen: LastSeen) -> None:
    """The indexes of a log never fall, and are in order."""
    log = raft.log
    if log.committed < seen.committed:
        raise Violation("INV6 the commit index never falls", f"{raft!r} had {seen.committed}")
    if log.applied < seen.applied:
        raise Violation("INV7 the applied index never falls", f"{raft!r} had applied {seen.applied}")
    if not log.applied <= log.applying <= log.committed <= log.last_index:
        raise Violation("INV7 applied, handed out, committed, last", f"{raft!r}, applying {log.applying}")
    if log.first_index > log.last_index + 1 or log.first_index < seen.first:
        raise Violation("INV24 the log has no gap", repr(raft))


def check_memory(raft: Raft) -> None:
    """A log holds in memory what it must, and no more than its budget beside it; what it holds is counted."""
    log = raft.log
    runs = log.runs_in_memory()
    spare = sum(run.memory for run in runs if run.last <= min(log.stable, log.applied))
    held = sum(run.memory for run in runs)
    if (runs[0].first if runs else log.last_index + 1) > max(log.stable + 1, log.first_index):
        raise Violation("INV10 what is not durable is in memory", f"{raft!r} holds {runs}")
    if held != log.memory.held:
        raise Violation("V10 what a log holds is counted", f"{raft!r} holds {held} bytes: {log.memory!r}")
    if spare and held > log.memory.limit:
        raise Violation("V10 a log keeps to its budget", f"{raft!r} could drop {spare} bytes: {log.memory!r}")


def check_room(history: History, replica: Observed, run: Run) -> None:
    """A replica is about to append a run. Without room only a leader's own entries may come, and the first of a term."""
    raft = replica.raft
    if replica.has_room(run.size):
        return
    records = any(kind >= EntryKind.FIRST_FREE for kind in run.kinds)
    own = raft.state is State.LEADER and not run.origin and not records
    begins_term = run.term > raft.log.last_term and len(run) == 1 and not run.payloads[0]
    if not own and not begins_term:
        raise Violation("V16 entries need room", f"{raft!r} appends {run} of {run.size} bytes")
    history.happened["an entry was written from the reserve"] += 1


def check_handed_out(history: History, replica: Observed, ready: Ready) -> None:
    """A core hands out work for its host."""
    raft, seen = replica.raft, history.seen[replica.id]
    if ready.snapshot is not None:
        _note_snapshot(history, raft, seen, ready.snapshot)
    for run in ready.entries.runs:
        _note_run(history, raft, seen, run)
    seen.settled = raft.log.committed
    for run in ready.committed.runs:
        _check_applying(history, raft, seen, run)
        _check_applied_once(history, raft, run)
    if ready.committed:
        _check_applying_durable(history, raft, ready.committed.runs[-1].last)
    for dropped in ready.dropped:
        if dropped.type is MessageType.PROPOSE:
            _note_dropped(history, raft, dropped)
    for read in ready.reads:
        asked = history.reads.pop((raft.id, *read.context), None)
        if asked is not None and read.index < asked:
            raise Violation(
                "INV21 a read sees every entry that was committed before it",
                f"{raft!r} reads at {read.index}, but {asked} was committed",
            )


def _note_snapshot(history: History, raft: Raft, seen: LastSeen, snapshot: Snapshot) -> None:
    history.happened["a snapshot was installed"] += 1
    if snapshot.index < seen.settled:
        raise Violation("INV6 the commit index never falls", f"{raft!r} installs {snapshot.index}")
    if history.committed_term(snapshot.index) != snapshot.term:
        raise Violation("INV24 a snapshot holds committed entries", f"{raft!r} installs {snapshot}")
    newest = max((change for change in history.memberships if change <= snapshot.index), default=0)
    if snapshot.membership.change_id != newest:
        raise Violation("INV24 a snapshot holds the newest membership", f"{raft!r} installs {snapshot}")
    seen.base, seen.terms, seen.changes = snapshot.index, [snapshot.term], []
    seen.base_homes, seen.homes = snapshot.membership.homes, []
    seen.applying = snapshot.index


def _note_run(history: History, raft: Raft, seen: LastSeen, run: Run) -> None:
    last = seen.base + len(seen.terms) - 1
    if run.first <= last:
        _check_truncation(history, raft, seen, run)
    elif run.first != last + 1:
        raise Violation("INV24 the log has no gap", f"{raft!r} hands out {run} after {last}")
    previous = seen.terms[-1]
    if run.term < previous or run.term > raft.term:
        raise Violation("INV3 terms never fall along a log", f"{raft!r}: {run} after term {previous}")
    for index in range(run.first, run.last + 1):
        kind, payload = run.kind(index), run.payloads[index - run.first]
        check_entry(history, raft, index, run.term, previous, kind, payload)
        seen.terms.append(run.term)
        previous = run.term
        if kind == EntryKind.SETTLED:
            seen.homes.append((index, *decode_settled(payload)))
        if kind == EntryKind.CONFIG_CHANGE:
            _check_single_change(history, raft, seen, index, run.term)
            seen.changes.append(index)


def _check_truncation(history: History, raft: Raft, seen: LastSeen, run: Run) -> None:
    history.happened["a conflict was truncated"] += 1
    if run.first <= seen.settled:
        raise Violation(
            "INV14 committed entries are never truncated",
            f"{raft!r} truncates {run.first}, {seen.settled} is committed",
        )
    if seen.term_at(run.first) == run.term:
        raise Violation("INV14 matching entries are never rewritten", f"{raft!r} writes {run.first} again")
    if raft.state is State.LEADER and seen.state is State.LEADER and raft.term == seen.term:
        raise Violation("INV2 a leader only appends", f"{raft!r} replaces {run.first}")
    del seen.terms[run.first - seen.base :]
    if seen.homes and seen.homes[-1][0] >= run.first:
        history.happened["a new home was truncated"] += 1
        seen.homes = [home for home in seen.homes if home[0] < run.first]
    if seen.changes and seen.changes[-1] >= run.first:
        history.happened["a membership change was truncated"] += 1
        seen.changes = [at for at in seen.changes if at < run.first]


def check_entry(
    history: History, raft: Raft, index: int, term: int, previous: int, kind: EntryKind, payload: bytes
) -> None:
    """An entry is equal to the one that any other replica holds at this index and term (log matching)."""
    if raft.base_state is State.WITNESS:
        if kind not in _KEPT_BY_WITNESSES or (kind == EntryKind.METADATA and payload):
            raise Violation("INV17 a witness keeps no commands", f"{raft!r} stores {kind.name} at {index}")
    elif kind == EntryKind.METADATA:
        raise Violation("INV17 only witnesses drop commands", f"{raft!r} at {index}")
    known = history.entries.get((index, term))
    if known is None:
        if kind != EntryKind.METADATA:
            history.entries[index, term] = (previous, kind, payload)
    elif known[0] != previous or (kind != EntryKind.METADATA and known[1:] != (kind, payload)):
        raise Violation(
            "INV3 logs match", f"{raft!r} has a different entry {index} of term {term}, or one before it"
        )


def _check_single_change(history: History, raft: Raft, seen: LastSeen, index: int, term: int) -> None:
    """A leader appends no membership change while another is unapplied."""
    open_ = [at for at in seen.changes if at > raft.log.applied]
    if raft.state is State.LEADER and term == raft.term and open_:
        raise Violation("INV15 one change at a time", f"{raft!r} appends one at {index}, unapplied: {open_}")


def _check_applying(history: History, raft: Raft, seen: LastSeen, run: Run) -> None:
    if run.first != seen.applying + 1:
        raise Violation("INV5 applied once and in order", f"{raft!r} applies {run} after {seen.applying}")
    seen.applying = run.last
    for index in range(run.first, run.last + 1):
        if history.committed_term(index) != run.term:
            raise Violation(
                "INV5 all apply the same",
                f"{raft!r} applies {index} of term {run.term}, committed is {history.committed_term(index)}",
            )
        kind, payload = run.kind(index), run.payloads[index - run.first]
        known = history.entries.get((index, run.term))
        if kind != EntryKind.METADATA and known is not None and known[1:] != (kind, payload):
            raise Violation("INV5 all apply the same", f"{raft!r} applies something else at {index}")


def _check_applying_durable(history: History, raft: Raft, last: int) -> None:
    if raft.state is State.LEADER:
        last -= raft.config.apply_unpersisted_limit
    if last >= raft.log.first_index and not history.holds(raft.id, last, raft.log.term(last)):
        raise Violation("INV7 applied entries are durable", f"{raft!r} applies {last}")


def _check_applied_once(history: History, raft: Raft, run: Run) -> None:
    """A witness does not know the origin of an entry, so its entries are left out."""
    for index in range(run.first, run.last + 1) if run.origin else ():
        key = (run.origin, run.key + index - run.first)
        if run.kind(index) == EntryKind.COMMAND and history.proposals.setdefault(key, index) != index:
            raise Violation(
                "INV22 a proposal has one outcome",
                f"{raft!r} applies at {index} what was applied at {history.proposals[key]} (0: dropped)",
            )


def _note_dropped(history: History, raft: Raft, dropped: Dropped) -> None:
    for key in range(dropped.key, dropped.key + dropped.count):
        index = history.proposals.setdefault((dropped.origin, key), 0)
        if index:
            raise Violation(
                "INV22 a proposal has one outcome",
                f"{raft!r} drops what was applied at {index}: {dropped}",
            )


def check_prefix(history: History, raft: Raft, upto: int) -> None:
    """The entries that a replica regards as committed are those that were committed."""
    index = min(upto, len(history.committed) - 1)
    if index >= raft.log.first_index - 1 and raft.log.term(index) != history.committed[index]:
        raise Violation(
            "INV5 committed entries never change",
            f"{raft!r} has term {raft.log.term(index)} at {index}, committed is {history.committed[index]}",
        )


def check_commit(history: History, raft: Raft, seen: LastSeen, identity: IdentityChecks) -> None:
    """A replica's commit index has risen. Only a leader commits, by the rule of thesis §3.6.2."""
    check_prefix(history, raft, raft.log.committed)
    new = raft.log.committed
    if new < len(history.committed):
        return
    # A leader may step down in the turn in which it committed.
    leader_term = raft.term if raft.state is State.LEADER else seen.term
    if State.LEADER not in (raft.state, seen.state) or history.leaders.get(leader_term) != raft.id:
        raise Violation("INV11 only leaders commit", f"{raft!r} commits what no leader has committed")
    term = raft.log.term(new)
    if term != leader_term:
        raise Violation("INV11 counting commits only the own term", f"{raft!r} commits {new} of term {term}")
    if not identity.hold(raft, seen, new):
        raise Violation(
            "INV11 a majority holds it durably", f"{raft!r} commits {new}, on disk at {history.disks(new)}"
        )
    history.committed += [raft.log.term(index) for index in range(len(history.committed), new + 1)]
    history.committed_in += [leader_term] * (len(history.committed) - len(history.committed_in))
    identity.committed(seen)
    for other in history.replicas.values():
        if other.up and other.raft.state is State.LEADER and other.raft.term > leader_term:
            check_complete(history, other.raft)


def check_complete(history: History, raft: Raft) -> None:
    """A leader has all entries that were committed in earlier terms. Logs match, so it is enough to check the newest."""
    last = bisect_left(history.committed_in, raft.term) - 1
    if raft.log.first_index - 1 <= last and raft.log.term(last) != history.committed[last]:
        raise Violation(
            "INV4 a leader has all committed entries",
            f"{raft!r} has term {raft.log.term(last)} at {last}, where {history.committed[last]} is committed",
        )
