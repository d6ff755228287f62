"""Stand-ins for what the log works with: a disk with a capacity, and a driver that a test advances step by step."""

import errno
import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from drakkar.actors.log.driver import Driver, InlineDriver
from drakkar.actors.log.files import Files, MemoryFiles

BLOCK_BYTES = 512


class CappedFiles(MemoryFiles):
    """A folder in memory, on a disk of limited capacity. It counts how often each method is called."""

    def __init__(self, capacity: int = 1 << 40) -> None:
        super().__init__()
        self.capacity = capacity
        self.calls: Counter[str] = Counter()
        self.moved_per_read: list[int] = []
        self.failing: dict[str, OSError] = {}
        """What methods raise, by name."""
        self.used = 0
        """Bytes of all files."""

    def fill(self) -> None:
        """Another process takes all that is left."""
        self.capacity = self.used

    def allocate(self, name: str, size: int, *, filled: bool) -> None:
        self._note("allocate", size)
        super().allocate(name, size, filled=filled)
        self._count()

    def put(self, name: str, offset: int, data: bytes) -> None:
        self._write("put", name, offset, data)

    def read_apart(self, name: str, places: list[tuple[int, int]]) -> list[bytes]:
        self._note("read_apart")
        self.moved_per_read.append(sum(size for _, size in places))
        return super().read_apart(name, places)

    def rename(self, name: str, new: str) -> None:
        self._note("rename")
        super().rename(name, new)

    def remove(self, name: str) -> None:
        self._note("remove")
        super().remove(name)
        self._count()

    def free_bytes(self) -> int:
        return self.capacity - self.used

    def write(self, name: str, offset: int, data: bytes) -> None:
        self._write("write", name, offset, data)

    def sync(self, name: str) -> None:
        self._note("sync")

    def _write(self, method: str, name: str, offset: int, data: bytes) -> None:
        self._note(method)
        assert offset + len(data) <= self.size(name), "it would need new blocks"
        super().write(name, offset, data)

    def _note(self, method: str, size: int = 0) -> None:
        self.calls[method] += 1
        if method in self.failing:
            raise self.failing[method]
        if self.used + self._blocks(size) > self.capacity:
            raise OSError(errno.ENOSPC, "No space left on device")

    def _count(self) -> None:
        self.used = sum(self._blocks(self.size(name)) for name in self.names())

    def _blocks(self, size: int) -> int:
        return -(-size // BLOCK_BYTES) * BLOCK_BYTES


class StepDriver(Driver):
    """Does nothing before a test says so: the ends of rounds, flushes and jobs come in any order among each other."""

    def __init__(self) -> None:
        self.deferred: deque[Callable[[], None]] = deque()
        self.flushes: deque[Callable[[], None]] = deque()
        self.jobs: deque[Callable[[], None]] = deque()
        self._inline = InlineDriver()
        self._finished = False

    def defer(self, action: Callable[[], None]) -> None:
        if self._finished:
            action()
        else:
            self.deferred.append(action)

    def flush(self, files: Files, name: str, done: Callable[[BaseException | None], None]) -> None:
        if self._finished:
            self._inline.flush(files, name, done)
            return
        assert not self.flushes, "one at a time"
        self.flushes.append(lambda: self._inline.flush(files, name, done))

    def background(self, job: Callable[[], Any], done: Callable[[Any], None]) -> None:
        if self._finished:
            self._inline.background(job, done)
        else:
            self.jobs.append(lambda: self._inline.background(job, done))

    def read(self, job: Callable[[], Any], done: Callable[[Any], None]) -> None:
        self.background(job, done)

    def finish(self) -> None:
        while self.step_any(self.jobs, self.flushes):
            pass
        self._finished = True

    def step_any(self, *queues: deque[Callable[[], None]]) -> bool:
        """Take one step of the first queue that has one; return whether there was one."""
        for queue in queues:
            if queue:
                queue.popleft()()
                return True
        return False

    def step(self, rng: random.Random, job_weight: float) -> bool:
        """Take one step, a job with this weight against 1 for a flush or the end of a round."""
        queues = [(self.deferred, 1.0), (self.flushes, 1.0), (self.jobs, job_weight)]
        waiting = [(queue, weight) for queue, weight in queues if queue]
        if not waiting:
            return False
        [queue] = rng.choices([queue for queue, _ in waiting], [weight for _, weight in waiting])
        queue.popleft()()
        return True

    def settle_but(self, stop: Callable[[], bool]) -> None:
        """Take all steps until nothing is left to do, or `stop` says so."""
        while not stop() and self.step_any(self.deferred, self.flushes, self.jobs):
            pass

    def settle(self) -> None:
        """Take all steps until nothing is left to do."""
        for _ in range(1_000_000):
            if not self.step_any(self.deferred, self.flushes, self.jobs):
                return
        raise AssertionError("it never comes to rest")
