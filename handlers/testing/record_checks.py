"""Invariants of records: delivered once and in log order, saved as of their index, and logged only where all can take them."""

from collections import deque
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, Final, TypeAlias

import cbor2
from drakkar.handlers.cells import Handler
from drakkar.handlers.entry_kinds import EntryKind
from drakkar.handlers.extension import name_of_extension
from drakkar.handlers.raft import extension_states
from drakkar.handlers.raft.entries import Entry, Run
from drakkar.handlers.raft.lives import Life, Meeting
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.ready import Ready
from drakkar.handlers.raft.state import Snapshot, State
from drakkar.handlers.raft.undelivered import Done
from drakkar.handlers.testing.history import History, Violation

__all__ = ["LOGGED", "RecordChecks"]

_DELIVERED: Final = "INV63 all is delivered once, in log order"
_SAVED: Final = "INV64 extensions are saved and loaded as of the index of the snapshot"
LOGGED: Final = "INV65 a record is logged only where all have said that they take it"
_TAKEN: Final = "INV66 no replica goes past what it cannot take"

_Due: TypeAlias = tuple[int, int, bytes, int]
"""Index, kind and payload of an entry, and the number of the method among those that take its kind."""


class _Known:
    """What is known of one replica since its start."""

    __slots__ = ("base", "begun", "due", "handed", "last", "loaded", "said")

    def __init__(self, raft: Raft) -> None:
        log = raft.log
        self.base = log.snapshot.index, log.term(log.snapshot.index)
        """Index and term of the snapshot with which it began."""
        self.begun = log.snapshot.witness
        """Something was delivered or saved, so what it began with is loaded; or there is nothing, as its removal has no content."""
        self.handed: deque[Run] = deque()
        """What was handed out to be applied, and is not reported back. Its log may be gone by then, for a leader's snapshot."""
        self.due: deque[_Due] = deque()
        """What is to be delivered by the end of a report of what is applied."""
        self.last = 0
        """The index of the last entry that was delivered."""
        self.loaded: Snapshot | None = None
        """A leader's snapshot of which the extensions have their parts, and which is not reported yet."""
        self.said: dict[int, frozenset[int] | None] = {}
        """The kinds that others take, by what they said last."""


def _taken(runs: deque[Run], index: int) -> Iterator[Run]:
    """Take all entries up to an index out of runs."""
    while runs and runs[0].first <= index:
        run = runs.popleft()
        if run.last > index:
            runs.appendleft(run.slice(index + 1, run.last + 1))
        yield run.slice(run.first, min(run.last, index) + 1)


class RecordChecks:
    """The checks of all records of one simulated shard, and of the states of extensions. Its methods raise `Violation`."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._known: dict[int, _Known] = {}
        self._parts: dict[tuple[int, int, str], bytes | None] = {}
        """What was saved, by index, term of the entry there, and name of the extension; None: it has no part in the snapshot."""
        self._founded_once = True

    def lose_quorum(self) -> None:
        """The shard may be founded a second time: index and term do not name a state any more.

        To be called when what observes the cores was taken off.
        """
        self._founded_once = False
        for replica in self._history.replicas.values():
            if replica.up:
                self._watch_ready(replica.raft, self._known[replica.id])

    def started(self, raft: Raft) -> None:
        """A replica has started: observe what it delivers, saves, loads and hears from now on."""
        known = self._known[raft.id] = _Known(raft)
        self._watch_ready(raft, known)
        self._watch_deliveries(raft, known)
        self._watch_applied(raft, known)
        self._watch_saved(raft, known)
        self._watch_loaded(raft, known)
        self._watch_meetings(raft, known)

    # -- what is delivered ------------------------------------------------------------------------------------------

    def _watch_ready(self, raft: Raft, known: _Known) -> None:
        ready = raft.ready

        def watched_ready() -> Ready:
            handed_out = ready()
            known.handed.extend(handed_out.committed.runs)
            return handed_out

        raft.ready = watched_ready  # type: ignore[method-assign]

    def _watch_deliveries(self, raft: Raft, known: _Known) -> None:
        def watched(number: int, taker: Handler) -> Handler:
            @wraps(taker)
            def deliver(node: Any, entry: Entry) -> None:
                self._check_delivered(raft, known, entry, number)
                taker(node, entry)

            return deliver

        raft.handlers.deliveries = {
            kind: tuple(watched(number, taker) for number, taker in enumerate(takers))
            for kind, takers in raft.handlers.deliveries.items()
        }

    def _check_delivered(self, raft: Raft, known: _Known, entry: Entry, number: int) -> None:
        if raft.base_state is State.WITNESS:
            raise Violation("INV63 a witness is delivered nothing", f"{raft!r} delivers {entry}")
        self._check_begun(raft, known)
        due = known.due.popleft() if known.due else None
        if due != (entry.index, int(entry.kind), entry.payload, number):
            raise Violation(_DELIVERED, f"{raft!r} delivers {entry} to method {number}; {due} is due")
        known.last = entry.index
        self._history.happened["a record was delivered"] += entry.kind >= EntryKind.FIRST_FREE

    def _watch_applied(self, raft: Raft, known: _Known) -> None:
        applied = raft.applied

        def watched_applied(index: int) -> None:
            for run in _taken(known.handed, index):
                known.due.extend(self._due(raft, run))
            applied(index)
            if known.due:
                raise Violation(_DELIVERED, f"{raft!r} has not delivered {known.due[0]}")
            self._compare_loaded(raft, known)

        raft.applied = watched_applied  # type: ignore[method-assign]

    def _compare_loaded(self, raft: Raft, known: _Known) -> None:
        loaded, known.loaded = known.loaded, None
        if (
            loaded is not None and not loaded.witness
        ):  # a removed replica is told so by a snapshot without content
            self._compare(raft, loaded.index, loaded.term, extension_states.encode(raft))

    def _due(self, raft: Raft, run: Run) -> Iterator[_Due]:
        """What of a run that is applied is to be delivered: all, but for a witness."""
        deliveries = raft.handlers.deliveries
        if raft.base_state is State.WITNESS or not (run.kinds or deliveries):
            return
        for place, kind in enumerate(run.kinds or bytes(len(run))):
            index, takers = run.first + place, deliveries.get(kind, ())
            if kind >= EntryKind.FIRST_FREE and not takers:
                raise Violation(_TAKEN, f"{raft!r} applies kind {kind} at {index}")
            for number in range(len(takers)):
                yield index, kind, run.payloads[place], number

    # -- what is saved and loaded -------------------------------------------------------------------------------------

    def _watch_saved(self, raft: Raft, known: _Known) -> None:
        save = raft.save_extensions

        def watched_save(index: int, done: Done) -> None:
            def watched_done(state: bytes | None) -> None:
                if state is not None:
                    self._check_begun(raft, known)
                    self._check_index(raft, known, index)
                    self._compare(raft, index, raft.log.term(index), state)
                    self._history.happened["extensions were saved"] += bool(state)
                done(state)

            save(index, watched_done)

        raft.save_extensions = watched_save  # type: ignore[method-assign]

    def _check_index(self, raft: Raft, known: _Known, index: int) -> None:
        """All up to the index is applied and delivered, and nothing beyond."""
        if raft.log.applied != index or known.last > index or (known.due and known.due[0][0] <= index):
            due = known.due[0] if known.due else "nothing"
            raise Violation(_SAVED, f"{raft!r} saves as of {index}, behind {known.last}; {due} is due")

    def _check_begun(self, raft: Raft, known: _Known) -> None:
        """The first of all that is delivered or saved rests on what the snapshot has, with which the replica has started."""
        if not known.begun:
            known.begun = True
            self._compare(raft, *known.base, extension_states.encode(raft))

    def _compare(self, raft: Raft, index: int, term: int, state: bytes) -> None:
        """What is saved as of an index is the same at all replicas, also where it was loaded."""
        if not self._founded_once or raft.base_state is State.WITNESS:
            return
        parts = cbor2.loads(state) if state else {}
        for name in _saving(raft):
            part = parts.get(name)
            known = self._parts.setdefault((index, term, name), part)
            if part != known:
                raise Violation(
                    _SAVED,
                    f"{raft!r}: the state of {name} as of {index} is {part!r}, and elsewhere {known!r}",
                )

    def _watch_loaded(self, raft: Raft, known: _Known) -> None:
        load = raft.load_extensions

        def watched_load(data: bytes, index: int) -> None:
            load(data, index)
            snapshot = raft.log.snapshot
            if snapshot.index == index and snapshot.index != known.base[0]:
                deque(_taken(known.handed, index), maxlen=0)  # the snapshot stands for them
                known.last, known.begun, known.loaded = 0, True, snapshot
            if raft.log.applied >= index:
                self._compare_loaded(raft, known)
            lacking = cbor2.loads(data).keys() - _saving(raft) if data else None
            if lacking:
                raise Violation(_TAKEN, f"{raft!r} loads a snapshot with parts of {lacking}")
            self._history.happened["extensions were loaded"] += bool(data)

        raft.load_extensions = watched_load  # type: ignore[method-assign]

    def agree(self, raft: Raft) -> None:
        """A shard has converged: its replicas have the same states of extensions."""
        if raft.base_state is not State.WITNESS:
            raft.save_extensions(raft.log.applied, lambda _state: None)

    # -- what is logged -------------------------------------------------------------------------------------------

    def _watch_meetings(self, raft: Raft, known: _Known) -> None:
        meet: Callable[[int, Life, int], Meeting] = raft.meet

        def watched_meet(replica: int, life: Life, term: int = 0) -> Meeting:
            meeting = meet(replica, life, term)
            if meeting is Meeting.WELCOME:
                known.said[replica] = life.kinds
            return meeting

        raft.meet = watched_meet  # type: ignore[method-assign]

    def appends(self, raft: Raft, run: Run) -> None:
        """A replica is about to append a run: what a leader logs all must be able to take."""
        if raft.state is not State.LEADER or not run.kinds:
            return
        for kind in sorted(set(run.kinds)):
            if kind >= EntryKind.FIRST_FREE:
                self._check_logged(raft, kind)

    def _check_logged(self, raft: Raft, kind: int) -> None:
        if kind not in raft.handlers.deliveries:
            raise Violation(LOGGED, f"{raft!r} logs kind {kind}, which it does not take")
        if not raft.lives.home:
            return  # replicas do not introduce themselves
        said = self._known[raft.id].said
        membership = raft.membership
        keepers = membership.everybody - {raft.id, *membership.witnesses, *membership.outgoing_witnesses}
        lacking = {replica for replica in keepers if kind not in (said.get(replica) or ())}
        if lacking:
            raise Violation(LOGGED, f"{raft!r} logs kind {kind}, which {lacking} have not said to take")


def _saving(raft: Raft) -> set[str]:
    """The names of the extensions that save their state."""
    return {name_of_extension(class_) for class_ in raft.handlers.extensions if hasattr(class_, "save")}
