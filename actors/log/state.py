"""The state of one replica's log, and how requests change it.

Planning and writing are apart: `LogChanges` say what to write, and what the state is once that is durable. So readers
never see what was only planned.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from drakkar.actors.log.records import (
    Bootstrap,
    Kind,
    RecordBuilder,
    ReplicaKey,
    StoredRun,
    check_hard_state,
    decode_bootstrap,
    decode_lives,
    decode_snapshot,
    encode_bootstrap,
    encode_hard_state,
    encode_lives,
    encode_marker,
    encode_snapshot,
    named,
    stored_run,
)
from drakkar.handlers.errors import ConfigError, CorruptData, ProtocolViolation, RequestDropped
from drakkar.handlers.raft.entries import Run
from drakkar.handlers.raft.lives import Lives
from drakkar.handlers.raft.state import HardState, Membership, Snapshot

__all__ = ["LogChanges", "LogState", "Placed"]

MAX_RUN_BYTES: Final = 1 << 20
"""Longer runs are stored in parts, so that one entry can be read without many others."""

_NEVER_AGAIN: Final = (
    "was removed from this log store, and ids are never used again, since others may still rely on its votes: "
    "choose another id"
)


class LogState(NamedTuple):
    """The state of a replica's log, beside the entries."""

    bootstrap: Bootstrap
    hard_state: HardState = HardState()
    snapshot: Snapshot = Snapshot()
    marker: tuple[int, int] = (0, 0)
    """Index and term of the entry before the first."""
    last: int = 0
    """The last index; that of the marker if the log has no entries."""
    cuts: int = 0
    """How often entries at the end of the log were replaced. Cached entries are invalid when this changes."""
    lives: Lives = Lives()
    """What the replica remembers of its own life; nothing in a directory of before."""

    @property
    def membership(self) -> Membership:
        """The members as of the snapshot, or the initial ones if there is none."""
        return self.snapshot.membership if self.snapshot else self.bootstrap.membership

    def encode(self, kind: Kind) -> bytes:
        """Return the content of a change of this kind. Raises `ValueError` for a kind that has none here."""
        match kind:
            case Kind.BOOTSTRAP:
                return encode_bootstrap(self.bootstrap)
            case Kind.HARD_STATE:
                return encode_hard_state(self.hard_state)
            case Kind.MARKER:
                return encode_marker(self.marker)
            case Kind.SNAPSHOT:
                return encode_snapshot(self.snapshot)
            case Kind.LIVES:
                return encode_lives(self.lives)
        raise ValueError(kind)


class Placed(NamedTuple):
    """A change that was put into a record. First index, term and offset are 0 unless it is a run."""

    kind: Kind
    first: int
    term: int
    offset: int
    """From the beginning of the record."""
    size: int


class LogChanges:
    """Changes to one replica that become durable together, in the order in which they were requested.

    Each method plans its changes, or raises and plans nothing. Those that take data of the replica raise `ProtocolViolation`
    for what could not be read back.
    """

    __slots__ = ("_facts", "_log", "_replaced_from", "key", "removed", "state", "successor")

    def __init__(self, key: ReplicaKey, state: LogState | None, *, removed: bool = False) -> None:
        """`state` is None for a replica that is not in the store."""
        self.key = key
        self.state = state
        self.removed = removed
        """The replica was in the store, and its id must never be used again."""
        self.successor = False
        """The changes replace all old data: logs that are open cannot be read any more."""
        # Runs, after `Kind.CLEAR` without one if the log begins anew.
        self._log: list[tuple[Kind, StoredRun | None]] = []
        self._facts: dict[Kind, None] = {}
        """The kinds to store beside the entries, in order. Each is stored once, as it is after all the changes."""
        self._replaced_from: int | None = None
        """The lowest index from which on entries are replaced; None if none are."""

    def begin(self, record: Bootstrap, lives: Lives) -> None:
        """Begin a replica. Raises `ConfigError` if the replica is in the store or was removed from it."""
        if self.state is not None:
            raise ConfigError(
                "replica", named(self.key), "is in this log store already: open it, or choose another id"
            )
        if self.removed:
            raise ConfigError("replica", named(self.key), _NEVER_AGAIN)
        _check_readable(self.key, bootstrap=record, lives=lives)
        self.state = LogState(record, lives=lives)
        self._store(Kind.BOOTSTRAP)
        self._store(Kind.LIVES)
        self._store(Kind.HARD_STATE)

    def replace(self, record: Bootstrap, snapshot: Snapshot, hard_state: HardState) -> None:
        """Begin a replica after a snapshot, in place of all data of it."""
        _check_readable(self.key, hard_state, snapshot=snapshot, bootstrap=record)
        self._log, self._facts = [], {}
        self.state = LogState(record, hard_state)
        self._install(snapshot)
        self._store(Kind.BOOTSTRAP)
        self._store(Kind.LIVES)  # in place of what the old data say
        self._store(Kind.HARD_STATE)
        self.removed = False
        self.successor = True

    def remove(self) -> None:
        """Delete the replica, whether or not it is in the store, and record that its id must never be used again."""
        self._log = []
        self._facts = {Kind.REMOVED: None}
        self.state = None
        self.removed = True

    def save(
        self,
        hard_state: HardState | None,
        runs: Sequence[Run],
        snapshot: Snapshot | None,
        lives: Lives | None = None,
    ) -> None:
        """Replace the log by `snapshot`, if any; then append the entries and store the hard state, and the life.

        Raises `ProtocolViolation` also if the entries leave a gap or would replace compacted ones.
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
        _check_readable(self.key, hard_state, snapshot, lives)
        stored = _stored(self.key, runs)
        if snapshot is not None:
            self._install(snapshot)
        if stored:
            self._append(stored)
        if hard_state is not None:
            self._remember(hard_state)
        if lives is not None:
            self.live(lives)

    def live(self, lives: Lives) -> None:
        """Store what the replica remembers of its own life from now on."""
        state = self._present()
        _check_readable(self.key, lives=lives)
        self.state = state._replace(lives=lives)
        self._store(Kind.LIVES)

    def compact(self, index: int, term: int) -> None:
        """Drop the entries up to `index`, whose term is `term`, unless they are gone already."""
        state = self._present()
        if state.marker[0] < index <= state.last:
            self.state = state._replace(marker=(index, term))
            self._store(Kind.MARKER)

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
        _check_readable(self.key, snapshot=snapshot)
        self.state = state._replace(snapshot=snapshot)
        self._store(Kind.SNAPSHOT)

    def move_run(self, run: StoredRun) -> None:
        """Store a run again that the log holds, unless an earlier change replaces a part of it or drops all of it."""
        state = self.state
        replaced = self._replaced_from is not None and run.last >= self._replaced_from
        if state is not None and not replaced and run.last > state.marker[0]:
            self._log.append((Kind.MOVED_RUN, run))

    def move_facts(self, kinds: Sequence[Kind]) -> None:
        """Store these kinds of what is stored beside the entries again."""
        for kind in kinds:
            if (kind is Kind.REMOVED) == (self.state is None):
                self._store(kind)

    def encode(self, builder: RecordBuilder) -> list[Placed]:
        """Put all changes into a record."""
        placed = []
        for kind, run in self._log:
            if run is not None:
                offset = builder.add_run(kind, self.key, run)
                placed.append(Placed(kind, run.first, run.term, offset, run.size))
            else:
                placed.append(Placed(kind, 0, 0, 0, builder.add(kind, self.key, b"")))
        for kind in self._facts:
            content = self.state.encode(kind) if self.state is not None else b""
            placed.append(Placed(kind, 0, 0, 0, builder.add(kind, self.key, content)))
        return placed

    def _present(self) -> LogState:
        if self.state is None:
            problem = _NEVER_AGAIN if self.removed else "is not in this log store: bootstrap it first"
            raise ConfigError("replica", named(self.key), problem)
        return self.state

    def _store(self, kind: Kind) -> None:
        self._facts[kind] = None

    def _install(self, snapshot: Snapshot) -> None:
        """Replace the whole log by a snapshot."""
        state = self._present()
        self._log = [(Kind.CLEAR, None)]
        self._replaced_from = 0
        point = (snapshot.index, snapshot.term)
        self.state = state._replace(snapshot=snapshot, marker=point, last=snapshot.index, cuts=state.cuts + 1)
        self._store(Kind.SNAPSHOT)
        self._store(Kind.MARKER)

    def _append(self, runs: Sequence[StoredRun]) -> None:
        state, first = self._present(), runs[0].first
        if first <= state.last:
            state = state._replace(cuts=state.cuts + 1)
        if self._replaced_from is None or first < self._replaced_from:
            self._replaced_from = first
        self._log += [(Kind.RUN, run) for run in runs]
        self.state = state._replace(last=runs[-1].last)

    def _remember(self, hard_state: HardState) -> None:
        state = self._present()
        if hard_state != state.hard_state:
            self.state = state._replace(hard_state=hard_state)
            self._store(Kind.HARD_STATE)


def _stored(key: ReplicaKey, runs: Sequence[Run]) -> list[StoredRun]:
    """Return runs in the form in which they are stored, long ones in parts."""
    stored: list[StoredRun] = []
    for run in runs:
        if run.size <= MAX_RUN_BYTES:
            stored.append(stored_run(key, run))
        else:
            stored += [stored_run(key, part) for part in run.parts(MAX_RUN_BYTES)]
    return stored


def _check_readable(
    key: ReplicaKey,
    hard_state: HardState | None = None,
    snapshot: Snapshot | None = None,
    lives: Lives | None = None,
    bootstrap: Bootstrap | None = None,
) -> None:
    """Raise `ProtocolViolation` for what could not be read back. All but the hard state is rare, so it is decoded once."""
    try:
        if hard_state is not None:
            check_hard_state(hard_state)
        if snapshot is not None:
            decode_snapshot(encode_snapshot(snapshot))
        if lives is not None:
            decode_lives(encode_lives(lives))
        if bootstrap is not None:
            decode_bootstrap(encode_bootstrap(bootstrap))
    except CorruptData as error:
        raise ProtocolViolation(
            f"{named(key)}: this could not be read back, so it is not stored: {error}"
        ) from error


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
