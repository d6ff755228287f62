"""The log as the core sees it: a window of recent entries in memory over what the host keeps on disk.

    first_index                  window                     last_index
        |------- storage -----------|---- in memory ------------|
                     applied <= committed        stable <= handed <= last_index

Storage indexes are the log's own. `stable` is durable, `handed` was given to the host to be made durable. Entries that
are stable and applied may leave the window: when they do is decided by a `LogMemory`, which all logs of a
host share, so that nothing in memory grows with the length of the logs.
"""

from collections import deque
from collections.abc import Iterable
from typing import Final, Protocol

from drakkar.handlers.compiling import mypyc_attr
from drakkar.handlers.errors import ConfigError, CorruptData, MissingExtension, ProtocolViolation
from drakkar.handlers.raft.entries import Entries, EntriesNotLoaded, Entry, EntryKind, Run, changes, fitting
from drakkar.handlers.raft.lanes import UNLIMITED
from drakkar.handlers.raft.lives import Lives, decode_settled
from drakkar.handlers.raft.log_memory import LogMemory
from drakkar.handlers.raft.state import HardState, Membership, Snapshot
from drakkar.handlers.raft.window import Window

__all__ = ["EntriesNotLoaded", "RaftLog", "Storage", "check_compaction"]

_PAGE: Final = 1 << 20
_PAGES_AT_ONCE: Final = 4
"""Pages of the log that are searched in one go for membership changes, as the loop waits meanwhile."""


class Storage(Protocol):
    """What a `Raft` starts from and reads older entries from. Read on the loop, so it must not block for long.

    Only `runs` may have to read the disk. All else is in memory, and always answered.

    The implementation guarantees, and the core assumes:
    1. the entries `first_index`..`last_index` are there without a gap, and their terms never decrease;
    2. what `Raft.persisted` reported is readable.
    """

    @property
    def hard_state(self) -> HardState:
        """As last made durable."""
        ...

    @property
    def lives(self) -> Lives:
        """What the replica remembers of its own life, as last made durable."""
        ...

    @property
    def snapshot(self) -> Snapshot:
        """The newest one; index 0 is none."""
        ...

    @property
    def membership(self) -> Membership:
        """As of the snapshot, or the initial one."""
        ...

    @property
    def first_index(self) -> int:
        """The oldest entry still held."""
        ...

    @property
    def last_index(self) -> int:
        """The newest entry held; `first_index - 1` where there is none."""
        ...

    def term(self, index: int) -> int:
        """The term at `index`, known from `first_index - 1` to `last_index`; 0 elsewhere."""
        ...

    def runs(self, low: int, high: int, limit: int) -> list[Run]:
        """Entries `low` up to, but without, `high`: at most `limit` bytes, but at least one entry.

        It may raise `EntriesNotLoaded`: then it reads them elsewhere, and has its `Raft` step ENTRIES_LOADED when it is
        done, whatever came of it. The core asks again then, and may be refused again. A storage that never blocks for
        long, or whose reader may be blocked, need not raise it.
        """
        ...


@mypyc_attr(allow_interpreted_subclasses=True)  # The simulator observes its methods.
class RaftLog:
    """The log of one `Raft`: where it stands, and the rules by which it may change (thesis §3.5, §3.6).

    All methods are for the core, on the loop's thread.
    """

    def __init__(self, storage: Storage, *, memory: LogMemory | None = None) -> None:
        """Continue where `storage` stands. Raises `CorruptData` where it has a gap, or lacks what is committed.

        `memory` is shared by the logs of a host; without it, the log has a budget of its own.
        """
        self.storage = storage
        self.snapshot = storage.snapshot
        """The newest local snapshot, to be sent to a peer that is too far behind."""
        self.pending_snapshot: Snapshot | None = None
        """One that a leader sent and that the state machine has not loaded yet."""
        self._unhanded_snapshot: Snapshot | None = None
        self._marker = (storage.first_index - 1, storage.term(storage.first_index - 1))
        self.memory = memory or LogMemory()
        self._window = Window(storage.last_index + 1, self.memory)
        self._last = storage.last_index
        self._last_term = storage.term(self._last)
        if self._marker[0] > self.snapshot.index:
            raise CorruptData(
                f"entries {self.snapshot.index + 1} to {self._marker[0]} are in neither the snapshot nor the log: "
                "remove this replica and add a new one in its place"
            )
        # A commit index need not be flushed, so that the snapshot may know of more.
        self.committed = max(storage.hard_state.commit, self.snapshot.index, self._marker[0])
        if self.committed > self._last:
            raise CorruptData(
                f"commit index {self.committed} lies beyond the last entry {self._last}: the log was cut off or "
                "restored from an older copy; remove this replica and add a new one in its place"
            )
        self.applied = self.snapshot.index
        self.applying = self.applied
        """Handed to the state machine; `applied` follows when it reports back."""
        self._unapplied: deque[tuple[int, int]] = deque()
        self._unapplied_bytes = 0
        """Handed to the state machine, and not reported back: (last index, bytes) of each portion."""
        self._awaits_load = False
        """The entries to apply next are not loaded."""
        self._searched = self.applied
        """How far the log was searched for membership changes: up to `applying`, or further."""
        self._changes: list[Entry] = []
        """The membership changes after `applied`, as far as it was searched."""
        self._taken_kinds = bytes(range(256))
        """The kinds of entries that may be handed out to apply."""
        self.not_loaded = 0
        """Reads that were put off, since their entries had to be read from the disk first."""
        self.stable = self.handed = self._last
        self._writes: deque[list[int]] = deque()  # [number of the write, last index it still makes durable]

    def __repr__(self) -> str:
        return (
            f"RaftLog({self.first_index}..{self.last_index}, applied={self.applied}, committed={self.committed}, "
            f"stable={self.stable})"
        )

    def takes(self, kinds: Iterable[int]) -> None:
        """Let no entry of a kind of users be handed out to apply, but for these."""
        self._taken_kinds = bytes([*range(EntryKind.FIRST_FREE), *kinds])

    # -- what it holds ------------------------------------------------------------------------------------------

    @property
    def first_index(self) -> int:
        """The oldest entry still held."""
        return self._marker[0] + 1

    @property
    def last_index(self) -> int:
        """The newest entry; `first_index - 1` where there is none."""
        return self._last

    @property
    def last_term(self) -> int:
        """The term of the newest entry."""
        return self._last_term

    def term(self, index: int) -> int:
        """The term at `index`; 0 where it is unknown: compacted away, or beyond the last."""
        if index == self._last:
            return self._last_term
        if index >= self._window.first:
            return self._window.at(index).term if index < self._last else 0
        if index == self._marker[0]:
            return self._marker[1]
        return self.storage.term(index) if index > self._marker[0] else 0

    def matches(self, index: int, term: int) -> bool:
        """Whether this log has an entry of `term` at `index` (thesis §3.5). Nothing lies beyond the last."""
        return index <= self._last and self.term(index) == term and (term > 0 or index == 0)

    def is_up_to_date(self, term: int, index: int) -> bool:
        """Whether a log that ends in `index` of `term` holds all that this one may know committed (thesis §3.6.1)."""
        return (term, index) >= (self._last_term, self._last)

    def runs(self, low: int, high: int, limit: int = UNLIMITED) -> list[Run]:
        """Entries `low` up to, but without, `high`: at most `limit` bytes, but at least one where there is one.

        Raises `EntriesNotLoaded` if they must be read from the disk first.
        """
        high = min(high, self._last + 1)
        low = max(low, self.first_index)
        if low >= high:
            return []
        if low >= self._window.first:
            return fitting(self._window.between(low, high), limit)
        try:
            stored = self.storage.runs(low, min(high, self._window.first), limit)
        except EntriesNotLoaded:
            self.not_loaded += 1
            raise
        room = limit - sum(run.size for run in stored)
        if room <= 0 or stored[-1].last + 1 < min(high, self._window.first):
            return stored
        return stored + [
            run for run in fitting(self._window.between(self._window.first, high), room) if run.size <= room
        ]

    def entries(self, low: int, high: int, limit: int = UNLIMITED) -> Entries:
        """The same as `runs`, as one sequence."""
        return Entries(self.runs(low, high, limit))

    def last_not_after(self, index: int, term: int) -> tuple[int, int]:
        """The largest index up to `index` whose term is at most `term`, and that term; 0 where it is unknown.

        Two logs cannot agree at any index between it and `index`, since terms never fall along a log. So a
        follower and a leader that both search like this probe at most once for each term (etcd's hint).
        """
        index = min(index, self._last)
        while index > self._marker[0]:
            known = self.term(index)
            if known <= term:
                return index, known
            index = self._run_start(index) - 1
        return index, self.term(index)

    def _run_start(self, index: int) -> int:
        """An index at or before `index` down to which the term surely is the same."""
        return max(self._window.at(index).first, self._window.first) if index >= self._window.first else index

    def unapplied_change(self) -> bool:
        """Whether a committed membership change waits to be applied: this node's quorum may be out of date.

        Raises `EntriesNotLoaded` while that is not known.
        """
        if not self._changes or self._changes[0].index > self.committed:
            self._search(self.committed)
        return bool(self._changes) and self._changes[0].index <= self.committed

    def unapplied_changes(self, index: int) -> list[Entry]:
        """The membership changes after `applied`, up to `index`. None of them is read for one that was handed out to apply.

        Raises `EntriesNotLoaded` while they are not known.
        """
        self._search(index)
        return [entry for entry in self._changes if entry.index <= index]

    def holds_change(self) -> bool:
        """Whether a change of the members stands in the log that is not applied, as far as that was searched."""
        return any(entry.kind is EntryKind.CONFIG_CHANGE for entry in self._changes)

    def settled(self, replica: int) -> list[tuple[int, int]]:
        """Where `replica` is said to live after `applied`, as far as that was searched: (index, home), in order."""
        found = []
        for entry in self._changes:
            if entry.kind is EntryKind.SETTLED:
                try:
                    whose, home = decode_settled(entry.payload)
                except CorruptData:
                    continue  # it changes nothing when it is applied either
                if whose == replica:
                    found.append((entry.index, home))
        return found

    @property
    def searched(self) -> bool:
        """Whether all committed membership changes are known."""
        return self._searched >= self.committed

    def _search(self, index: int) -> None:
        """Search the log up to `index`: what a replica has found in it at its start, since all later entries are known."""
        for _ in range(_PAGES_AT_ONCE):
            if self._searched >= index:
                return
            self._note_changes(self.runs(self._searched + 1, index + 1, _PAGE))
        if self._searched < index:
            raise EntriesNotLoaded(f"entries after {self._searched} are not searched yet")

    def _note_changes(self, runs: Iterable[Run]) -> None:
        """Note the changes in these runs, the first of which begins at or before the end of what was searched."""
        for run in runs:
            if run.last > self._searched:
                self._changes += changes((run.slice(self._searched + 1, run.last + 1),))
                self._searched = run.last

    def payload_bytes(self, low: int, high: int) -> int:
        """Bytes of the payloads of the entries `low` up to, but without, `high`, as far as they are held in memory."""
        return sum(run.payload_bytes for run in self._window.between(max(low, self._window.first), high))

    def runs_in_memory(self) -> tuple[Run, ...]:
        """The newest runs, as far as they are held in memory."""
        return tuple(self._window.runs)

    @property
    def memory_bytes(self) -> int:
        """Bytes that the entries in memory take there."""
        return self._window.bytes

    def size_after(self, index: int) -> int:
        """Bytes held in memory of the entries after `index`."""
        return sum(
            run.size for run in self._window.between(max(index + 1, self._window.first), self._last + 1)
        )

    # -- how it changes -----------------------------------------------------------------------------------------

    def append(self, run: Run) -> None:
        """Add a run behind the last entry."""
        self._window.append(run)
        if self._searched == self._last:
            if run.kinds:
                self._changes += changes((run,))
            self._searched = run.last
        self._last, self._last_term = run.last, run.term

    def conflict(self, entries: Entries) -> int:
        """The first index that is absent here, or whose term differs; 0 where all of `entries` are here."""
        for run in entries.runs:
            if run.last > self._last or run.first < self._window.first:
                beyond = min(run.last, self._last)
                differs = (i for i in range(run.first, beyond + 1) if self.term(i) != run.term)
                found = next(differs, beyond + 1 if run.last > self._last else 0)
            else:
                mine = self._window.between(run.first, run.last + 1)
                found = next((own.first for own in mine if own.term != run.term), 0)
            if found:
                return found
        return 0

    def replace_from(self, index: int, entries: Entries) -> None:
        """Drop `index` and all after it, and append those of `entries` that are not before it (thesis §3.5).

        Raises `ProtocolViolation` where that would drop a committed entry.
        """
        if index <= self.committed:
            raise ProtocolViolation(
                f"entry {index} is committed (up to {self.committed}) and cannot be replaced"
            )
        if index <= self._last:
            self._truncate(index)
        for run in entries.runs:
            if run.last >= index:
                self.append(run.slice(max(run.first, index), run.last + 1))

    def _truncate(self, index: int) -> None:
        self._window.cut(index)
        self.stable = min(self.stable, index - 1)
        self.handed = min(self.handed, index - 1)
        self._window.release(
            min(self.stable, self.applied)
        )  # what is left of a run that was cut may be spare
        # The same index and term may stand there again before these writes are reported, and not be durable yet.
        for write in self._writes:
            write[1] = min(write[1], index - 1)
        self._last = index - 1
        self._searched = min(self._searched, self._last)
        while self._changes and self._changes[-1].index >= index:
            self._changes.pop()
        if self._window.runs:
            self._last_term = self._window.runs[-1].term
        else:
            self._last_term = (
                self._marker[1] if self._last == self._marker[0] else self.storage.term(self._last)
            )

    def commit_to(self, index: int) -> bool:
        """Raise the commit index; True if it rose. It never falls.

        Raises `ProtocolViolation` beyond the last entry: a leader committed what this log has lost.
        """
        if index <= self.committed:
            return False
        if index > self._last:
            raise ProtocolViolation(
                f"entry {index} is committed, but this log ends at {self._last}: its data was lost or restored from "
                "an older copy; remove this replica and add a new one in its place"
            )
        self.committed = index
        return True

    def restore(self, snapshot: Snapshot) -> None:
        """Begin anew behind a snapshot that a leader sent (thesis §5.3)."""
        self.snapshot = self.pending_snapshot = self._unhanded_snapshot = snapshot
        self._marker = (snapshot.index, snapshot.term)
        self._window.clear(snapshot.index + 1)
        self._last, self._last_term = self._marker
        self.committed = self.applying = self._searched = snapshot.index
        self._changes.clear()
        self._unapplied.clear()
        self._unapplied_bytes = 0
        self.handed = snapshot.index
        self.stable = 0
        for write in self._writes:
            write[1] = 0

    def compact(self, index: int) -> None:
        """Forget entries up to `index`, which are applied. Raises `ConfigError` where it is not one of those held."""
        check_compaction(index, self.first_index, self.applied)
        self._marker = (index, self.term(index))
        self._window.drop_through(index)

    def let_go(self) -> None:
        """Drop all entries in memory, since the replica has ended. From then on it only knows where it stood."""
        self._window.clear(self._last + 1)

    # -- the conversation with the host -------------------------------------------------------------------------

    def take_unsaved(self, number: int) -> tuple[Snapshot | None, list[Run]]:
        """What write `number` shall make durable: handed out once."""
        snapshot, self._unhanded_snapshot = self._unhanded_snapshot, None
        runs = list(self._window.between(self.handed + 1, self._last + 1)) if self.handed < self._last else []
        if snapshot is not None or runs:
            self.handed = self._last
            self._writes.append([number, self._last])
        return snapshot, runs

    def saved(self, number: int) -> None:
        """Write `number`, and all before it, is durable."""
        while self._writes and self._writes[0][0] <= number:
            self.stable = max(self.stable, self._writes.popleft()[1])
        self._window.release(min(self.stable, self.applied))

    def has_unsaved(self) -> bool:
        """Whether `take_unsaved` would find something."""
        return self.handed < self._last or self._unhanded_snapshot is not None

    def may_apply(self, limit: int, ahead: int = 0) -> bool:
        """Whether `take_committed` would find something."""
        free = not self._unapplied or self._unapplied_bytes < limit
        return free and not self._awaits_load and self.appliable(ahead) > self.applying

    def appliable(self, ahead: int = 0) -> int:
        """The last index that may be applied now: committed, and durable here but for `ahead` entries."""
        if self.pending_snapshot is not None:
            return self.applying
        return min(self.committed, self.stable + ahead)

    def take_committed(self, limit: int, ahead: int = 0) -> list[Run]:
        """The next entries to apply: at most `limit` bytes, but at least one; handed out once.

        None while the state machine has as much before it: a slow one must not be buried. None either while they are
        not loaded: `loaded` is to be called when they are. Raises `MissingExtension` where the next one is of a kind that this
        replica does not take.
        """
        if not self.may_apply(limit, ahead):
            return []
        try:
            runs = self.runs(self.applying + 1, self.appliable(ahead) + 1, limit)
        except EntriesNotLoaded:
            self._awaits_load = True
            return []
        for run in runs:
            if run.kinds:  # most have commands alone
                runs = self._before_missing(runs)
                break
        self._note_changes(runs)
        self.applying = runs[-1].last
        size = sum(run.size for run in runs)
        self._unapplied.append((self.applying, size))
        self._unapplied_bytes += size
        return runs

    def _before_missing(self, runs: list[Run]) -> list[Run]:
        """The entries before the first of a kind that this replica does not take."""
        for at, run in enumerate(runs):
            missing = run.kinds.translate(None, self._taken_kinds) if run.kinds else b""
            if not missing:
                continue
            index = run.first + run.kinds.index(missing[0])
            before = runs[:at]
            if index > run.first:
                before.append(run.slice(run.first, index))
            if not before:
                raise _missing(index, missing[0])
            return before
        return runs

    def loaded(self) -> None:
        """The host has read what it had to read: `take_committed` may find something."""
        self._awaits_load = False

    def applied_to(self, index: int) -> None:
        """The state machine applied, or loaded, all up to `index`."""
        self.applied = max(self.applied, index)
        self.applying = max(self.applying, index)
        self._searched = max(self._searched, index)
        while self._changes and self._changes[0].index <= index:
            self._changes.pop(0)
        while self._unapplied and self._unapplied[0][0] <= index:
            self._unapplied_bytes -= self._unapplied.popleft()[1]
        if self.pending_snapshot is not None and index >= self.pending_snapshot.index:
            self.pending_snapshot = None
        self._window.release(min(self.stable, self.applied))


def check_compaction(index: int, first: int, last: int) -> None:
    """Refuse to compact what is not there, or is still needed."""
    if not first <= index <= last:
        raise ConfigError(
            "compaction index",
            index,
            f"entries {first} to {last} can be compacted; choose one of these"
            if first <= last
            else f"no entries can be compacted before a snapshot of {first} or later is taken",
        )


def _missing(index: int, number: int) -> MissingExtension:
    known = EntryKind.known.get(number)
    name = known.name if known is not None else "not defined in this process"
    return MissingExtension(index, f"an entry of kind {number} ({name})")
