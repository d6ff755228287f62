"""What the store knows of one replica's log without reading it, and how a batch of requests changes that.

Planning and writing are apart: `LogChanges` say what to write, and what is true once that is durable. So a transaction
can be repeated as a whole, in a bigger map or without a replica whose data is corrupt, and readers never see what was
only planned.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Final, NamedTuple

from drakkar.actors.log.records import (
    ALL_ENTRIES,
    BOOTSTRAP,
    HARD_STATE,
    MARKER,
    REMOVED,
    SNAPSHOT,
    Bootstrap,
    ReplicaKey,
    encode_bootstrap,
    encode_hard_state,
    encode_marker,
    encode_snapshot,
    named,
)
from drakkar.handlers.errors import ConfigError, CorruptData, ProtocolViolation, RequestDropped
from drakkar.handlers.raft.entries import Run
from drakkar.handlers.raft.state import HardState, Membership, Snapshot

__all__ = ["LogChanges", "LogState", "RefusedReplica"]


_NEVER_AGAIN: Final = (
    "was removed from this log store, and ids are never used again, since others may still rely on its votes: "
    "choose another id"
)
_TERMS: Final = 128
"""The number of terms of each log whose first index is remembered."""


class RefusedReplica(Exception):  # never leaves the store
    """The data of this replica on the disk is corrupt, so it cannot be changed."""

    def __init__(self, key: ReplicaKey, error: CorruptData) -> None:
        super().__init__(key, error)
        self.key, self.error = key, error


class LogState(NamedTuple):
    """The state of a replica's log. Immutable, so that any thread may read it while another one replaces it."""

    bootstrap: Bootstrap
    hard_state: HardState = HardState()
    snapshot: Snapshot = Snapshot()
    marker: tuple[int, int] = (0, 0)
    """Index and term of the entry before the first."""
    last: int = 0
    starts: tuple[int, ...] = ()
    """Indexes at which the newest terms begin, ascending. The terms before the first must be read from the log."""
    terms: tuple[int, ...] = ()
    """The terms that begin there."""
    cuts: int = 0
    """How often the end of the log was cut off. Cached entries are invalid when this changes."""

    @property
    def membership(self) -> Membership:
        """As of the snapshot, or the initial one."""
        return self.snapshot.membership if self.snapshot else self.bootstrap.membership

    def term(self, index: int) -> int | None:
        """Return the term at `index`; 0 if the log does not hold it, None if it must be read."""
        if index == self.marker[0]:
            return self.marker[1]
        if not self.marker[0] < index <= self.last:
            return 0
        at = bisect_right(self.starts, index) - 1
        return self.terms[at] if at >= 0 else None

    def extended(self, run: Run) -> "LogState":
        """Return the state with `run` after the last entry."""
        starts, terms = self.starts, self.terms
        if not terms or terms[-1] != run.term:
            # A log of elections and little else may hold as many terms as entries.
            starts, terms = (*starts[-_TERMS:], run.first), (*terms[-_TERMS:], run.term)
        return self._replace(last=run.last, starts=starts, terms=terms)

    def cut(self, index: int) -> "LogState":
        """Return the state without `index` and all entries after it."""
        kept = bisect_left(self.starts, index)
        return self._replace(
            last=index - 1, starts=self.starts[:kept], terms=self.terms[:kept], cuts=self.cuts + 1
        )

    def compacted(self, index: int, term: int) -> "LogState":
        """Return the state without `index` and all entries before it."""
        past = max(bisect_right(self.starts, index + 1) - 1, 0)
        return self._replace(marker=(index, term), starts=self.starts[past:], terms=self.terms[past:])

    def installed(self, snapshot: Snapshot) -> "LogState":
        """Return the state of a log that is empty after a snapshot."""
        return self._replace(
            snapshot=snapshot,
            marker=(snapshot.index, snapshot.term),
            last=snapshot.index,
            starts=(),
            terms=(),
            cuts=self.cuts + 1,
        )


class LogChanges:
    """Changes to one replica that become durable together, in the order in which they were requested.

    Each method plans its changes, or raises and plans nothing.
    """

    __slots__ = ("_written", "key", "log", "records", "removed", "state", "successor", "trim", "urgent")

    def __init__(
        self,
        key: ReplicaKey,
        state: LogState | None,
        written: HardState | None = None,
        *,
        removed: bool = False,
    ) -> None:
        """`state` is None for a replica that is not in the store; `written` is the hard state on disk."""
        self.key = key
        self.state = state
        self.removed = removed
        """It was in the store, and its id must not be used again."""
        self.successor = False
        """It replaces the old data: open logs of it cannot be read any more."""
        self.log: list[int | Run] = []
        """Changes to the entries, in order: an index cuts off that entry and all after it, a run is appended."""
        self.records: dict[bytes, bytes | None] = {}
        """Records to store, by kind; None deletes."""
        self.trim: int | None = None
        """Entries up to here are no longer needed, and may be deleted later; None changes nothing."""
        self.urgent = False
        """Must be flushed now. A commit index alone need not be: it can be learned again."""
        self._written = written

    def is_late(self) -> bool:
        """Return whether the hard state on disk is out of date."""
        return self.state is not None and self.state.hard_state != self._written

    def seal(self) -> None:
        """Add the hard state, if the one on disk is out of date. The last call before writing."""
        if self.state is not None and self.is_late():
            self.records[HARD_STATE] = encode_hard_state(self.state.hard_state)

    def bootstrap(self, record: Bootstrap) -> None:
        """Begin a replica. Raises `ConfigError` if it is in the store or was removed from it."""
        if self.state is not None:
            raise ConfigError(
                "replica", named(self.key), "is in this log store already: open it, or choose another id"
            )
        if self.removed:
            raise ConfigError("replica", named(self.key), _NEVER_AGAIN)
        self.state = LogState(record)
        self.records[BOOTSTRAP] = encode_bootstrap(record)
        self.urgent = True

    def replace(self, record: Bootstrap, snapshot: Snapshot, hard_state: HardState) -> None:
        """Begin a replica after a snapshot, in place of all data of it."""
        self.log = [0]
        self.trim = snapshot.index
        self.records = {
            BOOTSTRAP: encode_bootstrap(record),
            SNAPSHOT: encode_snapshot(snapshot),
            MARKER: encode_marker((snapshot.index, snapshot.term)),
            REMOVED: None,
        }
        self._set(LogState(record, hard_state).installed(snapshot))
        self._written = None
        self.removed = False
        self.successor = True

    def remove(self) -> None:
        """Delete the replica, whether or not it is there, and record that it must never come back."""
        self.records = dict.fromkeys((BOOTSTRAP, HARD_STATE, MARKER, SNAPSHOT))
        self.records[REMOVED] = b""
        self.log = []
        self.state = None
        self.removed = True
        self.trim = ALL_ENTRIES
        self.urgent = True

    def save(self, hard_state: HardState | None, runs: Sequence[Run], snapshot: Snapshot | None) -> None:
        """Plan first a snapshot, then the entries after it, then the hard state.

        Raises `ProtocolViolation` if the entries leave a gap or would replace compacted ones.
        """
        state = self._present()
        if snapshot is not None and snapshot.index < state.marker[0]:
            raise ProtocolViolation(
                f"{named(self.key)}: a snapshot at {snapshot.index} would bring back entries that were compacted "
                f"up to {state.marker[0]}"
            )
        behind = state.marker[0] if snapshot is None else snapshot.index
        last = state.last if snapshot is None else snapshot.index
        _check_runs(self.key, runs, behind + 1, last)
        if snapshot is not None:
            self._install(snapshot)
        if runs:
            self._append(runs)
        if hard_state is not None:
            self._remember(hard_state)

    def compact(self, index: int, term: int) -> None:
        """Drop the entries up to `index`, whose term is `term`, unless they are gone already."""
        state = self._present()
        if state.marker[0] < index <= state.last:
            self._set(state.compacted(index, term))
            self.records[MARKER] = encode_marker((index, term))
            self.trim = index

    def record_snapshot(self, snapshot: Snapshot) -> None:
        """Record a snapshot that was taken here. Raises `RequestDropped` if a newer one is known."""
        state = self._present()
        if snapshot.index <= state.snapshot.index:
            raise RequestDropped(
                f"{named(self.key)}: the snapshot at {snapshot.index} is out of date, since there is one at "
                f"{state.snapshot.index}"
            )
        if snapshot.index > state.last:
            raise ProtocolViolation(
                f"{named(self.key)}: the snapshot at {snapshot.index} lies beyond the last entry saved, {state.last}"
            )
        self._set(state._replace(snapshot=snapshot))
        self.records[SNAPSHOT] = encode_snapshot(snapshot)

    def _present(self) -> LogState:
        if self.state is None:
            problem = _NEVER_AGAIN if self.removed else "is not in this log store: bootstrap it first"
            raise ConfigError("replica", named(self.key), problem)
        return self.state

    def _set(self, state: LogState) -> None:
        self.state = state
        self.urgent = True

    def _install(self, snapshot: Snapshot) -> None:
        state = self._present()
        self.log.append(snapshot.index + 1)
        self.trim = snapshot.index
        self._set(state.installed(snapshot))
        self.records[SNAPSHOT] = encode_snapshot(snapshot)
        self.records[MARKER] = encode_marker((snapshot.index, snapshot.term))

    def _append(self, runs: Sequence[Run]) -> None:
        state = self._present()
        if runs[0].first <= state.last:
            self.log.append(runs[0].first)
            state = state.cut(runs[0].first)
        self.log.extend(runs)
        for run in runs:
            state = state.extended(run)
        self._set(state)

    def _remember(self, hard_state: HardState) -> None:
        state = self._present()
        known = state.hard_state
        if (hard_state.term, hard_state.vote) != (known.term, known.vote):
            self.urgent = True
        self.state = state._replace(hard_state=hard_state)


def _check_runs(key: ReplicaKey, runs: Sequence[Run], first: int, last: int) -> None:
    """Raise `ProtocolViolation` for runs that cannot follow a log of `first`..`last`."""
    if not runs:
        return
    if not first <= runs[0].first <= last + 1:
        raise ProtocolViolation(
            f"{named(key)}: entries from {runs[0].first} on cannot follow a log of {first}..{last}"
        )
    for run, following in zip(runs, (*runs[1:], None), strict=True):
        if not run.payloads or (following is not None and following.first != run.last + 1):
            raise ProtocolViolation(f"{named(key)}: {run} is empty, or {following} does not follow it")
