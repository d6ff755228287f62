"""Proposals: taken by the leader, forwarded to it, or refused (thesis §3.5, §6.2)."""

from typing import Final

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import limits, membership, reach, records, sending
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.entries import Entries, EntryKind, Run
from drakkar.handlers.raft.ready import Dropped, Refusal

__all__ = ["append", "forward", "refuse", "refuse_run", "refuse_with"]

_UNCHECKED: Final = bytes(kind for kind in range(EntryKind.FIRST_FREE) if kind != EntryKind.CONFIG_CHANGE)
"""The kinds of entries that a leader logs without a question."""


def forward(raft: RaftCore, ask: Message) -> None:
    """A proposal goes to the leader, if one is known (thesis §6.2); else the proposer is told."""
    if not raft.leader_id:
        refuse_with(raft, ask, Refusal.NO_LEADER)
    elif raft.config.disable_proposal_forwarding:
        refuse_with(raft, ask, Refusal.FORWARDING_DISABLED)
    elif ask.sender not in (0, raft.id):
        # Forwarded once already: two replicas that each believe the other leads do not send it back and forth.
        refuse_with(raft, ask, Refusal.NO_LEADER)
    else:
        raft.send(Message(MessageType.PROPOSE, to=raft.leader_id, entries=ask.entries))


def refuse(raft: RaftCore, ask: Message) -> None:
    """While an election is going on no replica can take proposals."""
    refuse_with(raft, ask, Refusal.CAMPAIGNING)


def append(raft: RaftCore, ask: Message) -> None:
    """The leader appends the proposal to its log, and sends it out at once (thesis §3.5, §10.2.1)."""
    entries = Entries.of(ask.entries)
    if not entries:
        return
    refusal = _reason_to_refuse(raft, entries)
    if refusal is not None:
        raft.room.refused += len(entries) if refusal is Refusal.DISK_FULL else 0
        refuse_with(raft, ask, refusal)
        return
    runs = _without_refused(raft, ask, entries)
    raft.uncommitted_bytes += sum(run.payload_bytes for run in runs)
    raft.append_entries(runs)
    if ask.sender != raft.id and ask.sender in raft.progress:
        raft.progress[ask.sender].awaits = raft.log.last_index
    sending.broadcast(raft)


def _reason_to_refuse(raft: RaftCore, entries: Entries) -> Refusal | None:
    if not raft.membership.is_voter(raft.id):
        return Refusal.NOT_A_MEMBER
    if raft.room.full:
        return Refusal.DISK_FULL
    if raft.transfer.target:
        return Refusal.TRANSFERRING
    if limits.too_many_uncommitted(raft, entries.payload_bytes):
        return Refusal.TOO_MANY_UNCOMMITTED
    return None


def _without_refused(raft: RaftCore, ask: Message, entries: Entries) -> list[Run]:
    """What is refused by itself becomes an empty entry, and is reported.

    Thesis §4.1: one membership change at a time. And a record only where all can take it who keep commands.
    """
    runs, first = [], raft.log.last_index + 1
    for run in entries.runs:
        runs.append(_checked(raft, ask, run, first) if run.kinds else run)
        first += len(run)
    return runs


def _checked(raft: RaftCore, ask: Message, run: Run, first: int) -> Run:
    """The run as it may be logged from index `first` on."""
    if not run.kinds.translate(None, _UNCHECKED):
        return run
    kinds, payloads = bytearray(run.kinds), list(run.payloads)
    for at, kind in enumerate(run.kinds):
        refusal, missing = _reason_to_refuse_entry(raft, kind, payloads[at])
        if refusal is None:
            if kind == EntryKind.CONFIG_CHANGE:
                raft.pending_change_index = first + at
            continue
        key = run.key + at if run.origin else 0
        refused = Run(0, 0, [payloads[at]], bytes([kind]), run.origin, key)
        refuse_run(raft, ask, refused, refusal, missing)
        kinds[at], payloads[at] = EntryKind.NO_OP, b""
    return Run(0, 0, payloads, bytes(kinds), run.origin, run.key)


def _reason_to_refuse_entry(
    raft: RaftCore, kind: int, payload: bytes
) -> tuple[Refusal | None, tuple[int, ...]]:
    """Why an entry is not logged now, and the replicas that are the reason."""
    if kind == EntryKind.CONFIG_CHANGE:
        return _reason_to_refuse_change(raft, payload)
    if kind >= EntryKind.FIRST_FREE:
        lacking = records.lacking(raft, kind)
        return (Refusal.KIND_MISSING, lacking) if lacking else (None, ())
    return None, ()


def _reason_to_refuse_change(raft: RaftCore, payload: bytes) -> tuple[Refusal | None, tuple[int, ...]]:
    """Why a membership change is not logged now, and the voters that it waits for."""
    refusal = membership.reason_to_refuse(raft, payload)
    if refusal is not None:
        return refusal, ()
    unsettled = membership.unsettled_for(raft, payload)
    if unsettled:
        return Refusal.VOTER_UNSETTLED, unsettled
    missing = reach.missing_for(raft, payload)
    return (Refusal.QUORUM_UNREACHABLE, missing) if missing else (None, ())


def refuse_with(raft: RaftCore, ask: Message, because: Refusal) -> None:
    """Tell who proposed that these proposals have no effect, and why; each run by a report of its own."""
    for run in Entries.of(ask.entries).runs:
        refuse_run(raft, ask, run, because)


def refuse_run(
    raft: RaftCore,
    ask: Message,
    run: Run,
    because: Refusal,
    missing: tuple[int, ...] = (),
    text: str = "",
) -> None:
    """Tell who proposed that the proposals of this run have no effect, and why."""
    entries = Entries([run])
    refused = Dropped(MessageType.PROPOSE, because, run.origin, run.key, len(run), entries, missing, text)
    raft.refuse(ask.sender, refused)
