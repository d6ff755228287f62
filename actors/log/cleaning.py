"""How space comes back: the oldest segment is dropped when nothing in it is needed.

If a replica that writes little still needs a part of it, that part is moved: it is written again at the end of the log,
a little with each flush, so that no save waits for it. The aim is a disk use under twice what is needed. Moving begins
earlier, while less is superfluous than needed, since more becomes superfluous before the oldest segments are dropped.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from drakkar.actors.log.disk_errors import explain
from drakkar.actors.log.driver import Driver
from drakkar.actors.log.index import Row, offset_of, segment_of
from drakkar.actors.log.records import (
    CHANGE_BYTES,
    Kind,
    ReplicaKey,
    StoredRun,
    decode_run,
    named,
    read_run,
    run_is_whole,
    stored_run,
)
from drakkar.actors.log.replica import ReplicaLog, Usage
from drakkar.actors.log.segments import Segment, Segments
from drakkar.actors.log.state import LogChanges
from drakkar.handlers.errors import CorruptData

__all__ = ["Cleaner", "Move"]

_SPARED_SEGMENTS: Final = 2
"""How many segments' worth of bytes may be superfluous at any time: moving anything for less is not worth it."""
_PORTIONS_PER_SEGMENT: Final = 64
"""How many portions a segment is moved in, one with each flush: 256 KiB each, if a segment has 16 MiB."""
_PACE: Final = 3
"""How many bytes are moved for each byte that requests write, if that is more than a portion."""
_SUPERFLUOUS: Final = 2 / 3
"""The ratio of superfluous to needed bytes at which moving begins. At the pace of `_PACE`, all that is needed has moved
before the ratio reaches 1."""
_MAX_READ_SEGMENTS: Final = 2
"""How many segments' worth of bytes is read at once, at most."""
_LOOKS: Final = 512
"""How many runs and replicas are looked at with one flush, at most: this takes less than a millisecond."""

_Facts = dict[Kind, tuple[int, int]]


class Move(NamedTuple):
    """What is to be written again of one replica: at most a portion, or one run that is larger."""

    key: ReplicaKey
    facts: _Facts
    """By kind of what is stored beside the entries: in which segment it is, and its bytes."""
    runs: list[tuple[Row, bytes]]
    """Runs as they are stored, with their bytes."""

    @property
    def size(self) -> int:
        """Bytes that the move takes in a record, at most."""
        return sum(CHANGE_BYTES + len(data) for _, data in self.runs) + sum(
            size for _, size in self.facts.values()
        )

    def plan(self, changed: LogChanges, replica: ReplicaLog) -> None:
        """Plan to write again what is still needed."""
        changed.move_facts([kind for kind, place in self.facts.items() if replica.facts.get(kind) == place])
        for row, data in self.runs:
            if replica.state is not None and replica.index.find(row.first) == row:
                changed.move_run(self._needed(replica, row, data, replica.state.last))

    def _needed(self, replica: ReplicaLog, row: Row, data: bytes, last: int) -> StoredRun:
        """Return the run without entries that were replaced."""
        end = replica.index.end_of(row.first, last + 1)
        stored = read_run(data)
        if stored.last < end:
            return stored
        return stored_run(self.key, decode_run(self.key, data).slice(row.first, end))


class Cleaner:
    """Drops segments, and moves what is needed of them. Only for the log's thread."""

    def __init__(
        self,
        segments: Segments,
        usage: Usage,
        replicas: dict[ReplicaKey, ReplicaLog],
        *,
        driver: Driver,
        move: Callable[[list[Move], Callable[[BaseException | None], None]], None],
    ) -> None:
        """`move` has moves written again, and calls back when they are durable; without any, it has one record written.

        If it calls back with an error, nothing is moved or dropped any more.
        """
        self._segments, self._usage, self._replicas = segments, usage, replicas
        self._driver, self._move = driver, move
        self._portion_bytes = segments.standard_bytes // _PORTIONS_PER_SEGMENT
        self.busy = False
        """Something is being read or moved, or a record is awaited."""
        self._considering = self._again = False
        """A driver that does everything at once calls `consider` again from within it: `_again` has it repeated."""
        self._allowance = 0
        """Bytes that may be moved beyond a portion, in return for what requests wrote."""
        self._number = 0
        """The segment whose content is being moved."""
        self._left: list[ReplicaKey] = []
        """The replicas that wrote to that segment and were not looked at yet. The last is the next."""
        self._looked_at = 0
        """How many runs in that segment, of the last of these replicas, were looked at already."""
        self._found = False
        """Something in that segment was needed."""
        self._unread = 0
        """The last segment that could not be read. That was reported, and is not reported again."""
        self._stopped = False
        """A move failed: what is on disk is not known any more."""
        self._pinned = 0
        """A segment that stays, since something in it cannot be moved."""
        self._pass_end = 0
        """The segment that was being written when moving began: when it is dropped, all has been moved once."""
        self._unreclaimable = 0.0
        """The lowest ratio of superfluous to needed bytes since all had been moved once: moving does not lower it."""

    def pace(self, written: int) -> int:
        """Return how many bytes may be moved in a record that has `written` bytes of requests."""
        return max(self._portion_bytes, _PACE * written)

    def consider(self, written: int = 0) -> None:
        """Drop the oldest segments if nothing in them is needed; otherwise begin to move, if that is worth it.

        `written` is how many bytes of requests the last record had.
        """
        self._allowance += _PACE * written
        self._again = True
        if self._considering or self._stopped:
            return
        self._considering = True
        try:
            while self._again:
                self._again = False
                self._step()
        finally:
            self._considering = False

    def _step(self) -> None:
        in_use = self._segments.in_use
        while len(in_use) > 1 and self._may_go(in_use[0].number):
            self._usage.forget(in_use[0].number)
            self._segments.drop_oldest()
        if self.busy or len(in_use) == 1 or in_use[0].number == self._pinned:
            return
        if not self._is_wasteful():
            self._allowance = self._pass_end = 0
        elif self._usage.live[in_use[0].number]:
            self._move_from(in_use[0])
        else:
            # Nothing in it is needed once a later record confirms that.
            self.busy = True
            self._move([], self._moved)

    def _may_go(self, segment: int) -> bool:
        # A later record is not waited for on a full disk: there may be no room for it.
        settled = self._usage.is_settled(segment) or self._segments.no_space is not None
        return settled and not self._usage.live[segment]

    def _is_wasteful(self) -> bool:
        segments, needed = self._segments, self._usage.total
        superfluous = segments.disk_bytes - needed
        if self._pass_end and segments.in_use[0].number > self._pass_end:
            self._unreclaimable, self._pass_end = superfluous / max(needed, 1), 0
        self._unreclaimable = min(self._unreclaimable, superfluous / max(needed, 1))
        ratio = (
            self._unreclaimable if segments.no_space is not None else max(self._unreclaimable, _SUPERFLUOUS)
        )
        return superfluous > ratio * needed + _SPARED_SEGMENTS * segments.standard_bytes

    def _move_from(self, oldest: Segment) -> None:
        self._pass_end = self._pass_end or self._segments.active.number
        if oldest.number != self._number:
            self._begin(oldest)
        most = _MAX_READ_SEGMENTS * self._segments.standard_bytes
        limit = min(max(self._portion_bytes, self._allowance), most)
        facts, rows = self._portion(limit)
        self._allowance = max(self._allowance - limit, 0)
        if facts or rows:
            self.busy = self._found = True
            self._read(oldest, facts, rows)
        elif self._left:
            self.busy = True
            self._driver.background(_do_nothing, self._moved)
        elif self._found:
            # It is looked at once more: a request may have replaced a part of a run, and the other part was not moved.
            self._begin(oldest)
            self._move_from(oldest)
        else:
            self._pin(oldest, "what a damaged replica left there")

    def _begin(self, oldest: Segment) -> None:
        self._number, self._found = oldest.number, False
        self._left, self._looked_at = list(self._usage.written[oldest.number]), 0

    def _portion(self, limit: int) -> tuple[dict[ReplicaKey, _Facts], list[tuple[ReplicaKey, Row]]]:
        """Return what is still needed among the next replicas and runs, until it has `limit` bytes."""
        facts: dict[ReplicaKey, _Facts] = {}
        rows: list[tuple[ReplicaKey, Row]] = []
        written, looks = self._usage.written[self._number], _LOOKS
        while self._left and looks > 0 and limit > 0:
            key = self._left[-1]
            replica, firsts = self._replicas.get(key), written[key]
            looks -= 1
            if replica is None or (replica.state is None and not replica.removed):
                self._pop()
                continue
            found = {kind: place for kind, place in replica.facts.items() if place[0] == self._number}
            if found:
                facts[key] = found
                limit -= sum(size for _, size in found.values())
            while self._looked_at < len(firsts) and looks > 0 and limit > 0:
                row = replica.index.find(firsts[self._looked_at])
                self._looked_at += 1
                looks -= 1
                if row is not None and segment_of(row.place) == self._number:
                    rows.append((key, row))
                    limit -= row.size
            if self._looked_at == len(firsts):
                self._pop()
        return facts, rows

    def _pop(self) -> None:
        self._left.pop()
        self._looked_at = 0

    def _read(
        self, segment: Segment, facts: dict[ReplicaKey, _Facts], rows: list[tuple[ReplicaKey, Row]]
    ) -> None:
        files = self._segments.files
        places = [(offset_of(row.place), row.size) for _, row in rows]

        def read() -> list[bytes]:
            found = files.read_apart(segment.name, places) if places else []
            for (key, row), data in zip(rows, found, strict=True):
                if not run_is_whole(key, data):
                    raise CorruptData(f"{named(key)}: the run of entries from {row.first} on is damaged")
            return found

        def on_read(outcome: list[bytes] | BaseException) -> None:
            if isinstance(outcome, BaseException):
                self.busy = False
                self._on_read_failed(segment, outcome)
                return
            self._move(self._moves(facts, rows, outcome), self._moved)

        self._driver.background(read, on_read)

    def _moves(
        self, facts: dict[ReplicaKey, _Facts], rows: list[tuple[ReplicaKey, Row]], found: list[bytes]
    ) -> list[Move]:
        """Return what was read, in moves of at most a portion each."""
        moves = [Move(key, of_replica, []) for key, of_replica in facts.items()]
        size = moves[-1].size if moves else 0
        for (key, row), data in zip(rows, found, strict=True):
            added = CHANGE_BYTES + len(data)
            if not moves or moves[-1].key != key or size + added > self._portion_bytes:
                moves.append(Move(key, {}, []))
                size = 0
            moves[-1].runs.append((row, data))
            size += added
        return moves

    def _on_read_failed(self, segment: Segment, error: BaseException) -> None:
        if not isinstance(error, OSError):
            self._pin(segment, str(error))
            return
        self._number = 0  # it is looked at anew after the next flush
        if self._unread != segment.number:
            self._unread = segment.number
            self._segments.lines.warning(
                "%s/%s could not be read, and is tried again after each flush: %s",
                self._segments.files.path,
                segment.name,
                explain(error),
            )

    def _pin(self, segment: Segment, problem: str) -> None:
        self._pinned = segment.number
        self._segments.lines.error(
            "%s/%s cannot be dropped, nor what follows it, and the log grows, because of %s",
            self._segments.files.path,
            segment.name,
            problem,
        )

    def _moved(self, error: BaseException | None = None) -> None:
        self.busy = False
        self._stopped = self._stopped or error is not None
        self.consider()


def _do_nothing() -> None:
    pass
