"""What the store knows of one replica's log without reading it, and how a batch of requests changes that.

Planning is apart from writing: `LogChanges` say what to write and what will be true once that is durable. So a
transaction can be done again as a whole, in a bigger map or without a replica whose data is corrupt, and nothing
that was only planned is ever seen by a reader.
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
)
from drakkar.handlers.errors import ConfigError, CorruptData, ProtocolViolation, RequestDropped
from drakkar.handlers.raft.entries import Run
from drakkar.handlers.raft.state import HardState, Membership, Snapshot

__all__ = ["LogChanges", "LogState", "RefusedReplica"]


_NEVER_AGAIN: Final = (
    "was removed from this log store, and ids are never used again, since others may still count on what it promised: "
    "choose another id"
)
_TERMS: Final = 128
"""Terms whose beginning is kept in mind, of each log."""


class RefusedReplica(Exception):  # never leaves the store
    """What is on disk of this replica is corrupt, so that the changes to it cannot be made."""

    def __init__(self, key: ReplicaKey, error: CorruptData) -> None:
        super().__init__(key, error)
        self.key, self.error = key, error


class LogState(NamedTuple):
    """Where a replica's log stands. Immutable, so that any thread may look at it while another replaces it."""

    bootstrap: Bootstrap
    hard_state: HardState = HardState()
    snapshot: Snapshot = Snapshot()
    marker: tuple[int, int] = (0, 0)
    """Index and term of the entry before the first."""
    last: int = 0
    starts: tuple[int, ...] = ()
    """Indexes at which the newest terms begin, ascending. Before the first a term must be read from the log."""
    terms: tuple[int, ...] = ()
    """The terms that begin there."""
    cuts: int = 0
    """How often the tail was cut off: whoever remembers entries must forget them when this rises."""

    @property
    def membership(self) -> Membership:
        """As of the snapshot, or the initial one."""
        return self.snapshot.membership if self.snapshot else self.bootstrap.membership

    def term(self, index: int) -> int | None:
        """Return the term at `index`; 0 where the log has none, None where it must be read."""
        if index == self.marker[0]:
            return self.marker[1]
        if not self.marker[0] < index <= self.last:
            return 0
        at = bisect_right(self.starts, index) - 1
        return self.terms[at] if at >= 0 else None

    def extended(self, run: Run) -> "LogState":
        """Return it with `run` behind the last entry."""
        starts, terms = self.starts, self.terms
        if not terms or terms[-1] != run.term:
            # Where there are elections and little else, a log may hold as many terms as entries.
            starts, terms = (*starts[-_TERMS:], run.first), (*terms[-_TERMS:], run.term)
        return self._replace(last=run.last, starts=starts, terms=terms)

    def cut(self, index: int) -> "LogState":
        """Return it without `index` and all after it."""
        kept = bisect_left(self.starts, index)
        return self._replace(
            last=index - 1, starts=self.starts[:kept], terms=self.terms[:kept], cuts=self.cuts + 1
        )

    def compacted(self, index: int, term: int) -> "LogState":
        """Return it without `index` and all before it."""
        past = max(bisect_right(self.starts, index + 1) - 1, 0)
        return self._replace(marker=(index, term), starts=self.starts[past:], terms=self.terms[past:])

    def installed(self, snapshot: Snapshot) -> "LogState":
        """Return it begun anew behind a snapshot that a leader sent."""
        return self._replace(
            snapshot=snapshot,
            marker=(snapshot.index, snapshot.term),
            last=snapshot.index,
            starts=(),
            terms=(),
            cuts=self.cuts + 1,
        )


class LogChanges:
    """Changes to one replica that become durable together, in the order in which they were asked for.

    Each method either plans all that it is asked, or raises and plans nothing.
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
        """It takes the place of what was there: who read that has nothing to read any more."""
        self.log: list[int | Run] = []
        """What to do to the entries, in order: an index cuts it and all after it off, a run is appended."""
        self.records: dict[bytes, bytes | None] = {}
        """What to store beside the entries, by kind; None deletes."""
        self.trim: int | None = None
        """Entries up to here are no longer needed, and may be deleted at leisure; None leaves it as it was."""
        self.urgent = False
        """Somebody waits for this. A commit index alone need not be flushed: it can be learned anew."""
        self._written = written

    def is_late(self) -> bool:
        """Whether the hard state on disk is out of date."""
        return self.state is not None and self.state.hard_state != self._written

    def seal(self) -> None:
        """Add the hard state, where the one on disk is out of date. The last call before it is written."""
        if self.state is not None and self.is_late():
            self.records[HARD_STATE] = encode_hard_state(self.state.hard_state)

    def bootstrap(self, record: Bootstrap) -> None:
        """Begin a replica. Raises `ConfigError` where it is in the store already, or was."""
        if self.state is not None:
            raise ConfigError(
                "replica", _named(self.key), "is in this log store already: open it, or choose another id"
            )
        if self.removed:
            raise ConfigError("replica", _named(self.key), _NEVER_AGAIN)
        self.state = LogState(record)
        self.records[BOOTSTRAP] = encode_bootstrap(record)
        self.urgent = True

    def replace(self, record: Bootstrap, snapshot: Snapshot, hard_state: HardState) -> None:
        """Begin a replica behind a snapshot, in place of whatever there is, or was, of it."""
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
        """Forget the replica, whether or not it is there, all but that it must never come back."""
        self.records = dict.fromkeys((BOOTSTRAP, HARD_STATE, MARKER, SNAPSHOT))
        self.records[REMOVED] = b""
        self.log = []
        self.state = None
        self.removed = True
        self.trim = ALL_ENTRIES
        self.urgent = True

    def save(self, hard_state: HardState | None, runs: Sequence[Run], snapshot: Snapshot | None) -> None:
        """Plan a snapshot first, then the entries behind it, then the hard state.

        Raises `ProtocolViolation` where the entries leave a gap, or would replace compacted ones.
        """
        state = self._present()
        if snapshot is not None and snapshot.index < state.marker[0]:
            raise ProtocolViolation(
                f"{_named(self.key)}: a snapshot at {snapshot.index} would bring back entries that were compacted "
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
        """Drop the entries up to `index`, whose term is `term`; nothing to do where they are gone already."""
        state = self._present()
        if state.marker[0] < index <= state.last:
            self._set(state.compacted(index, term))
            self.records[MARKER] = encode_marker((index, term))
            self.trim = index

    def record_snapshot(self, snapshot: Snapshot) -> None:
        """Keep a snapshot that was taken here. Raises `RequestDropped` where a newer one is known."""
        state = self._present()
        if snapshot.index <= state.snapshot.index:
            raise RequestDropped(
                f"{_named(self.key)}: the snapshot at {snapshot.index} is out of date, there is one at "
                f"{state.snapshot.index}"
            )
        if snapshot.index > state.last:
            raise ProtocolViolation(
                f"{_named(self.key)}: the snapshot at {snapshot.index} lies beyond the last entry saved, {state.last}"
            )
        self._set(state._replace(snapshot=snapshot))
        self.records[SNAPSHOT] = encode_snapshot(snapshot)

    def _present(self) -> LogState:
        if self.state is None:
            problem = _NEVER_AGAIN if self.removed else "is not in this log store: bootstrap it first"
            raise ConfigError("replica", _named(self.key), problem)
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
    """Refuse runs that cannot stand in a log of `first`..`last`."""
    if not runs:
        return
    if not first <= runs[0].first <= last + 1:
        raise ProtocolViolation(
            f"{_named(key)}: entries from {runs[0].first} on cannot follow a log of {first}..{last}"
        )
    for run, following in zip(runs, (*runs[1:], None), strict=True):
        if not run.payloads or (following is not None and following.first != run.last + 1):
            raise ProtocolViolation(f"{_named(key)}: {run} is empty, or {following} does not follow it")


def _named(key: ReplicaKey) -> str:
    return f"shard {key[0]} replica {key[1]}"
