"""`Task`: an async function that runs on a `TrioLoop`. Its failure ends neither the loop nor another task."""

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from drakkar.actors.runtime.futures import ActorFuture, brief
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

    def __repr__(self) -> str:
        return f"<Task {self.name!r} on {self._loop}>"

    def cancel(self) -> None:
        """Cancel the task, without waiting for its end; `finished` tells that. Nothing happens if it has ended."""
        with contextlib.suppress(LoopError):
            self._run_soon(self._scope.cancel)

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
            self._on_end(self)
            self.finished.try_set(result)

    def _fail(self, error: BaseException) -> None:
        self._on_end(self)
        if isinstance(error, Exception):
            self.finished.try_fail(error)
        else:  # a SystemExit in a task must not end the thread that asks for its result
            failed = ActorFailed(f"task {self.name!r} raised {brief(error)}")
            failed.__cause__ = error
            self.finished.try_fail(failed)
