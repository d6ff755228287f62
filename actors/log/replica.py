"""`ReplicaLog`: what the log holds of one replica, and where. `Usage`: how much of each segment is needed."""

from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping

from drakkar.actors.log.index import OFFSET_BITS, RunIndex, place_of
from drakkar.actors.log.records import (
    CHANGE_BYTES,
    Kind,
    ReplicaKey,
    decode_bootstrap,
    decode_hard_state,
    decode_lives,
    decode_marker,
    decode_snapshot,
)
from drakkar.actors.log.state import LogChanges, LogState, Placed
from drakkar.handlers.checks import MAX_INDEX, MAX_TERM
from drakkar.handlers.errors import CorruptData
from drakkar.handlers.raft.lives import Lives
from drakkar.handlers.raft.state import Snapshot

__all__ = ["ReplicaLog", "Usage"]


class Usage:
    """How many bytes of each segment are needed, and what was written to it."""

    def __init__(self) -> None:
        self.live: Counter[int] = Counter()
        """By segment, the bytes in it that are needed."""
        self.total = 0
        """Bytes that are needed in all segments."""
        self.written: defaultdict[int, dict[ReplicaKey, array[int]]] = defaultdict(dict)
        """By segment and replica, the first indexes of the runs that were written to it, needed or not."""
        self.sequence = 0
        """The number of the newest durable record; 0 if none was written since the log was opened."""
        self._changed: dict[int, int] = {}
        """By segment, the number of the newest record that made something in it superfluous."""

    def add(self, segment: int, key: ReplicaKey, size: int, first: int | None = None) -> None:
        """Note that `size` more bytes of a segment are needed; `first` is the first index of a run."""
        self.live[segment] += size
        self.total += size
        firsts = self.written[segment].get(key)
        if firsts is None:
            firsts = self.written[segment][key] = array("Q")
        if first is not None:
            firsts.append(first)

    def add_runs(self, key: ReplicaKey, index: RunIndex) -> None:
        """Note that all runs of a replica are needed. Quicker than `add` for each of them."""
        sizes, known = self.live, -1
        for first, place, size in zip(index.firsts, index.places, index.sizes, strict=True):
            segment = place >> OFFSET_BITS
            if segment != known:
                known = segment
                firsts = self.written[segment].setdefault(key, array("Q"))
            firsts.append(first)
            sizes[segment] += CHANGE_BYTES + size
        self.total += sum(index.sizes) + CHANGE_BYTES * len(index)

    def drop(self, segment: int, size: int) -> None:
        """Note that `size` bytes of a segment are no longer needed."""
        self.live[segment] -= size
        self.total -= size
        self._changed[segment] = self.sequence

    def is_settled(self, segment: int) -> bool:
        """Return whether a later record confirms the record that last made something in the segment superfluous.

        An unconfirmed last record that is found damaged counts as torn by a crash, and the log ends before it. What it
        replaced is needed then.
        """
        return self._changed.get(segment, 0) < self.sequence

    def forget(self, segment: int) -> None:
        """Forget a segment that is gone."""
        del self.live[segment]
        self.written.pop(segment, None)
        self._changed.pop(segment, None)


class ReplicaLog:
    """What is durable of one replica. Only for the log's thread."""

    __slots__ = ("_usage", "broken", "facts", "floor", "gone", "index", "key", "opened", "removed", "state")

    def __init__(self, key: ReplicaKey, usage: Usage) -> None:
        self.key = key
        self._usage = usage
        self.state: LogState | None = None
        """None if the replica is not in the store, or if what was found of it contradicts itself."""
        self.removed = False
        """The replica was in the store before, and was removed."""
        self.index = RunIndex(usage.drop)
        self.facts: dict[Kind, tuple[int, int]] = {}
        """For each kind of what is stored beside the entries: the segment of the newest, and its size."""
        self.floor = (0, 0)
        """Index and term up to which the log is being compacted: readers no longer see these entries."""
        self.broken: Exception | None = None
        """Why requests of the replica fail, and, if it has no `state`, why it cannot be opened."""
        self.opened = False
        """`LogStore.open` has returned a log of this object."""
        self.gone = ""
        """Why open logs of this object cannot be read any more; "" if they can."""

    def apply(self, changed: LogChanges, placed: list[Placed], segment: int, begin: int) -> None:
        """Take over changes that have become durable, in a record that begins at `begin` in this segment."""
        for kind, first, term, offset, size in placed:
            if kind is Kind.RUN:
                self.index.append(first, term, place_of(segment, begin + offset), size)
                self._usage.add(segment, self.key, CHANGE_BYTES + size, first)
            elif kind is Kind.MOVED_RUN:
                moved = self.index.move(first, place_of(segment, begin + offset), size)
                assert moved, f"{self.key}: the run from {first} on is gone"
                self._usage.add(segment, self.key, CHANGE_BYTES + size, first)
            elif kind is Kind.CLEAR:
                self.index.clear()
            else:
                self._put_fact(kind, segment, size)
        self.state, self.removed = changed.state, changed.removed
        if self.state is not None:
            self.index.trim(self.state.marker[0], self.state.last)

    def check_usable(self, *, discards: bool) -> None:
        """Raise `broken` if it is set; clear it instead if the next request `discards` the old data."""
        if discards:
            self.broken = None
        if self.broken is not None:
            raise self.broken

    def _put_fact(self, kind: Kind, segment: int, size: int) -> None:
        if kind is Kind.REMOVED:
            self.index.clear()
            for known in list(self.facts):
                self._drop_fact(known)
        elif kind is Kind.BOOTSTRAP:
            self._drop_fact(Kind.REMOVED)
        self._drop_fact(kind)
        self.facts[kind] = segment, size
        self._usage.add(segment, self.key, size)

    def _drop_fact(self, kind: Kind) -> None:
        known = self.facts.pop(kind, None)
        if known is not None:
            self._usage.drop(*known)

    def succeeded(self, why: str) -> "ReplicaLog":
        """Return the object that replaces this one. Open logs of this one raise `ReplicaStopped` from now on."""
        self.gone = why
        new = ReplicaLog(self.key, self._usage)
        new.index, new.facts, new.state, new.removed = self.index, self.facts, self.state, self.removed
        return new

    def recover(self, index: RunIndex, facts: Mapping[Kind, tuple[int, bytes]], last: int) -> None:
        """Take over what was found on disk: the runs, the last index, and what is stored beside them, with its segments.

        Raises `CorruptData` if that contradicts itself. The replica has no state then, and all that was found counts as
        needed.
        """
        contents = {kind: content for kind, (_, content) in facts.items()}
        for kind, (segment, content) in facts.items():
            self._put_fact(kind, segment, len(content) + CHANGE_BYTES)
        self.removed = Kind.REMOVED in facts
        try:
            state = None if self.removed else self._decoded(contents, last)
            if state is not None:
                index.trim(state.marker[0], state.last)
        finally:
            index.dropped, self.index = self._usage.drop, index
            self._usage.add_runs(self.key, index)
        if state is not None:
            self._check(state)
        self.state = state

    def _decoded(self, contents: Mapping[Kind, bytes], last: int) -> LogState:
        if Kind.BOOTSTRAP not in contents or Kind.HARD_STATE not in contents:
            raise CorruptData("its bootstrap record or its hard state is missing")
        snapshot, marker = contents.get(Kind.SNAPSHOT), contents.get(Kind.MARKER)
        lives = contents.get(Kind.LIVES)
        point = decode_marker(marker) if marker is not None else (0, 0)
        return LogState(
            bootstrap=decode_bootstrap(contents[Kind.BOOTSTRAP]),
            hard_state=decode_hard_state(contents[Kind.HARD_STATE]),
            snapshot=decode_snapshot(snapshot) if snapshot is not None else Snapshot(),
            marker=point,
            last=max(last, point[0]),
            lives=decode_lives(lives) if lives is not None else Lives(),
        )

    def _check(self, state: LogState) -> None:
        if state.last > MAX_INDEX or max(self.index.terms, default=0) > MAX_TERM:
            raise CorruptData(f"it has an entry above index {MAX_INDEX} or term {MAX_TERM}")
        first = state.marker[0] + 1
        if len(self.index) and self.index.firsts[0] > first:
            raise CorruptData(f"entry {first} is missing")
        if state.snapshot.index > state.last:
            raise CorruptData(
                f"it has a snapshot at {state.snapshot.index}, but its log ends at {state.last}"
            )
