"""`Task`: an async function that runs on a `TrioLoop`. Its failure ends neither the loop nor another task."""

import contextlib
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from drakkar.actors.runtime.futures import ActorFuture, in_full
from drakkar.handlers.errors import ActorFailed, LoopError

__all__ = ["Task"]


class Task:
    """A task that `TrioLoop.spawn` started. From any thread."""

    def __init__(
        self,
        name: str,
        loop: str,
        run_soon: Callable[[Callable[[], None]], None],
        on_end: Callable[["Task"], None],
    ) -> None:
        """Made by `TrioLoop.spawn`. `on_end` is called in the loop's thread, before `finished` is set."""
        self.name = name
        self.finished: ActorFuture[Any] = ActorFuture()
        """What the function returned, or raised; None if it was cancelled before it returned."""
        self.cancelled = False
        """It was cancelled before its function returned."""
        self._loop, self._run_soon, self._on_end = loop, run_soon, on_end
        self._scope = trio.CancelScope()
        self._future: ActorFuture[Any] | None = None
        """What it waits for, if its function returned a future."""

    def __repr__(self) -> str:
        return f"<Task {self.name!r} on {self._loop}>"

    def cancel(self) -> None:
        """Cancel the task, without waiting for its end; `finished` tells that. Nothing happens if it has ended."""
        with contextlib.suppress(LoopError):
            self._run_soon(self._cancel)

    def _cancel(self) -> None:
        self._scope.cancel()
        if self._future is not None:
            self.cancelled = True
            self._end(None)

    def _call(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Awaitable[Any] | None:
        """Call a function: its result, or the outcome of a future that it returns, is the task's.

        Returns another awaitable, which is yet to be awaited by `_run`.
        """
        try:
            result = fn(*args)
        except BaseException as error:  # noqa: BLE001  # as in `_run`
            self._fail(error)
            return None
        if isinstance(result, ActorFuture) and not result._is_opaque:
            # Without a task of trio, which would go on only in trio's next pass: on a busy loop that is milliseconds.
            self._future = result
            result.add_done_callback(self._take)
            if self._scope.cancel_called:
                self._cancel()
        elif inspect.isawaitable(result):
            return result
        else:
            self._end(result)
        return None

    def _take(self, future: ActorFuture[Any]) -> None:
        value, error = future.outcome()
        if error is None:
            self._end(value)
        else:
            self._fail(error)

    async def _run(
        self,
        async_fn: Callable[..., Awaitable[Any]],
        args: tuple[Any, ...],
        report: Callable[["Task", BaseException], None] | None,
    ) -> None:
        result = None
        try:
            with self._scope:
                result = await async_fn(*args)
        except trio.Cancelled:
            raise  # not by `cancel`: trio itself ends, and the loop tells all tasks
        except BaseException as error:  # noqa: BLE001  # even a SystemExit must not end the loop
            self._fail(error)
            if report is not None:
                report(self, error)
        else:
            self.cancelled = self._scope.cancelled_caught
            self._end(result)

    def _end(self, result: Any) -> None:
        self._on_end(self)
        self.finished.try_set(result)

    def _fail(self, error: BaseException) -> None:
        self._on_end(self)
        if isinstance(error, Exception):
            self.finished.try_fail(error)
        else:  # a SystemExit in a task must not end the thread that asks for its result
            failed = ActorFailed(f"task {self.name!r} raised {in_full(error)}")
            failed.__cause__ = error
            self.finished.try_fail(failed)
