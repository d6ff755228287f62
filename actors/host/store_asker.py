"""What threads other than the loop's ask of the log store, and wait for."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from drakkar.actors.log.store import Done
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.handlers.errors import DrakkarError, LoopError, OutcomeUnknown, ReplicaStopped

__all__ = ["Request", "StoreAsker"]

STORE_TIMEOUT_S: Final = 60.0
"""How long a caller waits for the disk."""

Request = Callable[[Done], None]
"""Called in the loop's thread, with a `done` to hand over to the log store."""


class StoreAsker:
    """Makes requests of a log store that lives on a loop, for callers on other threads."""

    def __init__(self, loop: TrioLoop) -> None:
        self._loop = loop
        self._waiting: dict[_Requests, None] = {}
        """Those that are not all done."""

    def ask(self, requests: Sequence[Request], then: Callable[[], Any] = lambda: None) -> Any:
        """Make requests, all at once; when all are done, call `then` in the loop's thread, and return what it returns.

        So a caller needs one visit to the loop, however busy that is. Raises the first error, of a request or of `then`;
        `ReplicaStopped` if the host is stopped meanwhile, and `OutcomeUnknown` if the disk hangs: `then` is not called.
        """
        return self.call(self._begin, requests, then)

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Call a function in the loop's thread, as `TrioLoop.call`. Raises `ReplicaStopped` if the host is stopped meanwhile."""
        try:
            return self._loop.call(fn, *args)
        except LoopError as error:
            raise ReplicaStopped("the host was stopped meanwhile: make a new one") from error

    def _begin(self, requests: Sequence[Request], then: Callable[[], Any]) -> ActorFuture[Any]:
        asked = _Requests(len(requests), then, time.monotonic() + STORE_TIMEOUT_S, self._waiting.pop)
        self._waiting[asked] = None
        for request in requests:
            try:
                request(asked.done)
            except DrakkarError as error:
                asked.done(error)
        asked.done(None)
        self._loop.end_round()
        return asked.outcome

    @property
    def overdue(self) -> bool:
        """Whether requests are still waiting whose caller was told `OutcomeUnknown`. From any thread."""
        return any(asked.outcome.done for asked in list(self._waiting))

    def tick(self, no_space: str = "") -> None:
        """Give up requests that take too long: because of `no_space`, if the disk is full. In the loop's thread."""
        now = time.monotonic()
        for asked in list(self._waiting):
            if now >= asked.deadline and not asked.outcome.done:
                asked.outcome.fail(
                    OutcomeUnknown(
                        f"the log store did not finish within {STORE_TIMEOUT_S} s: "
                        f"{no_space or 'its disk is very busy, or hangs'}"
                    )
                )


class _Requests:
    """Several requests of one caller. In the loop's thread."""

    def __init__(
        self, count: int, then: Callable[[], Any], deadline: float, finished: Callable[["_Requests"], Any]
    ) -> None:
        self.outcome: ActorFuture[Any] = ActorFuture()
        """What `then` returns, or the first error."""
        self.deadline = deadline
        self._left = count + 1  # and that all have been made
        self._then, self._finished = then, finished
        self._error: BaseException | None = None

    def done(self, error: BaseException | None) -> None:
        """Note that one is done."""
        self._error = self._error or error
        self._left -= 1
        if self._left:
            return
        self._finished(self)
        if self.outcome.done:
            return
        if self._error is not None:
            self.outcome.fail(self._error)
            return
        try:
            self.outcome.set(self._then())
        except BaseException as failure:  # noqa: BLE001  # it is the caller's
            self.outcome.fail(failure)
