"""Questions to an actor of another process by xoscar, another actor library for Python. It has no TLS, and sends what pickle makes.

The actor lives in the main process of a pool without others. The client has no pool of its own, as one of an application that only asks.
"""

import asyncio
import queue
import threading
import time
from types import TracebackType
from typing import Any, Final, Self

import xoscar

from tests.benchmarks.load import Figures, Load, LoadError, figures_of
from tests.ports import free_addresses

_UID: Final = "echo"
_STARTS_WITHIN: Final = 30.0


class _Echo(xoscar.Actor):
    def echo(self, message: bytes) -> bytes:
        """Answer with the same bytes."""
        return message


class Calls:
    """One of the two processes, with an asyncio loop in a thread of its own."""

    def __init__(self, asked: str) -> None:
        self._asked = asked
        self.address = ""
        self._started: queue.SimpleQueue[str | BaseException] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        if not self._asked:
            threading.Thread(target=self._run, daemon=True).start()
            started = self._started.get(timeout=_STARTS_WITHIN)
            if isinstance(started, BaseException):
                raise started
            self.address = started
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return  # the thread ends with the process

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001  # the main thread raises it
            self._started.put(error)

    async def _serve(self) -> None:
        (address,) = free_addresses(1)
        pool = await xoscar.create_actor_pool(address, n_process=0)
        await pool.start()
        await xoscar.create_actor(_Echo, uid=_UID, address=pool.external_address)
        self._started.put(pool.external_address)
        await pool.join()

    def run(self, load: Load) -> Figures:
        """Ask. Raises `LoadError` if a single question fails."""
        try:
            return asyncio.run(self._ask(load))
        except Exception as error:
            raise LoadError(f"a question failed: {error!r}") from error

    async def _ask(self, load: Load) -> Figures:
        echo = await xoscar.actor_ref(_UID, address=self._asked)
        clients = _Clients(echo, load)
        await asyncio.gather(*(clients.ask() for _ in range(load.in_flight)))
        return clients.figures()


class _Clients:
    """Tasks that each have one question on its way."""

    def __init__(self, echo: Any, load: Load) -> None:
        self._echo, self._load = echo, load
        self._begin = time.perf_counter() + load.warm_up
        self._end = self._begin + load.seconds
        self._times: list[float] = []
        self._count = 0

    async def ask(self) -> None:
        """Ask again and again."""
        message, now = self._load.command, time.perf_counter()
        while now < self._end:
            since = now
            if await self._echo.echo(message) != message:
                raise LoadError("it does not echo")
            now = time.perf_counter()
            self._count += 1
            if since >= self._begin and now <= self._end:
                self._times.append(now - since)

    def figures(self) -> Figures:
        """Sum up what was measured."""
        return figures_of(self._times, self._load.seconds, self._load, self._count)
