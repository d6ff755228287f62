"""The last step of a proposal's journey: from committed entries to the state machine, and back with results."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from drakkar.actors.compression import decode
from drakkar.actors.futures import ActorFuture, brief
from drakkar.actors.state_machine import StateMachine
from drakkar.actors.workers import WorkerPool
from drakkar.handlers.entries import Entries, Run
from drakkar.handlers.errors import ActorFailed, CorruptData, ReplicaStopped
from drakkar.handlers.messages import EntryKind

__all__ = ["Applied", "Applier"]

Applied: TypeAlias = tuple[int, list[tuple[Run, Sequence[Any]]]]
"""The last index that was applied, and the results of the runs that this host proposed."""
Query: TypeAlias = tuple[Any, ActorFuture[Any]]

_COMMAND = int(EntryKind.COMMAND)
_ENCODED = int(EntryKind.ENCODED)


class Applier:
    """One replica's state machine, and what waits for it.

    Batches and queries take effect in the order in which they come. All methods are for the loop's thread; the
    state machine itself is touched by one thread at a time, a worker's or, where it never blocks, the loop's.
    """

    def __init__(
        self,
        machine: StateMachine,
        origin: int,
        pool: WorkerPool,
        report: Callable[[Applied | BaseException], None],
    ) -> None:
        """`report` is called after each batch: at once where the state machine never blocks, else on a worker."""
        self.machine = machine
        self._origin = origin
        self._pool = pool
        self._report = report
        self._waiting: deque[Entries | list[Query]] = deque()
        self._lock = threading.Lock()
        self._busy = False
        self._failed: BaseException | None = None
        self._asked = 0
        self._answered = 0
        """Written by whoever has the state machine, one thread at a time."""

    @property
    def unanswered(self) -> int:
        """Questions that wait for the state machine, or that it has not answered yet."""
        return self._asked - self._answered

    def apply(self, entries: Entries) -> None:
        """Apply committed entries, which follow on those given before."""
        self._do(entries)

    def query(self, queries: list[Query]) -> None:
        """Answer questions, from the state after all that was given before."""
        self._asked += len(queries)
        self._do(queries)

    def stop(self, error: Exception) -> None:
        """Refuse what waits, and all that comes, because of `error`."""
        self._failed = self._failed or error
        with self._lock:
            waiting, self._waiting = self._waiting, deque()
        for work in waiting:
            self._refuse(work)

    def _do(self, work: Entries | list[Query]) -> None:
        if self._failed is not None:
            self._refuse(work)
            return
        if not self.machine.blocks:
            self._work(work)
            return
        with self._lock:
            self._waiting.append(work)
            idle, self._busy = not self._busy, True
        if idle:
            self._pool.submit(self._work_on_worker)

    def _work_on_worker(self) -> None:
        """Do one piece of work, and go to the back of the queue with the rest: other replicas wait there too."""
        with self._lock:
            work = self._waiting.popleft() if self._waiting else None
        if work is not None:
            self._work(work)
        with self._lock:
            # Once it is false, the loop may submit the next piece to another worker: it must not be looked at again.
            more = self._busy = bool(self._waiting)
        if more:
            self._pool.submit(self._work_on_worker)

    def _refuse(self, work: Entries | list[Query]) -> None:
        """Nobody is told anything by a state machine that failed, perhaps in the middle of a command."""
        if not isinstance(work, list):
            return
        ended = ReplicaStopped(f"the state machine has ended: {brief(self._failed)}")
        for _, future in work:
            future.try_fail(ended)

    def _work(self, work: Entries | list[Query]) -> None:
        if self._failed is not None:
            self._refuse(work)
            return
        if isinstance(work, list):
            for query, future in work:
                self._answer(query, future)
            self._answered += len(work)
            return
        try:
            results = [(run, self._apply(run)) for run in work.runs]
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is the state machine's, and ends the replica
            self._failed = error
            self._report(error)
            return
        mine = [(run, answers) for run, answers in results if run.origin == self._origin]
        self._report((work.runs[-1].last, mine))

    def _apply(self, run: Run) -> Sequence[Any]:
        if run.plain:
            results = self.machine.apply_many(run.payloads)
            if len(results) != len(run.payloads):
                raise ValueError(f"apply_many gave {len(results)} results for {len(run.payloads)} commands")
            return results
        return [
            self.machine.apply(payload) if kind == _COMMAND else self._apply_other(run, place, kind)
            for place, (kind, payload) in enumerate(zip(run.kinds, run.payloads, strict=True))
        ]

    def _apply_other(self, run: Run, place: int, kind: int) -> Any:
        """One at a time, since what was encoded may be large; membership changes and the like are the core's."""
        if kind != _ENCODED:
            return None
        try:
            command = decode(run.payloads[place])
        except CorruptData as error:
            raise CorruptData(f"entry {run.first + place}: {error}") from error
        return self.machine.apply(command)

    def _answer(self, query: Any, future: ActorFuture[Any]) -> None:
        if future.done:  # its deadline passed while it waited
            return
        try:
            answer = self.machine.query(query)
        except Exception as error:  # noqa: BLE001  # it goes to whoever asked
            future.try_fail(error)
        except BaseException as error:  # noqa: BLE001  # neither the asker nor the worker must be ended by a SystemExit
            failed = ActorFailed(f"the state machine answered a query by raising {brief(error)}")
            failed.__cause__ = error
            failed.outcome_known = True  # it was a question
            future.try_fail(failed)
        else:
            future.try_set(answer)
