"""Log lines in one form: the host, shard and replica that a line is about, and then the text.

    10.0.0.1:7000 replica 1 of shard 3: won the election of term 5

A record also has them as the attributes `host`, `shard` and `replica`, for filters and for handlers that write fields.

A thousand shards may have the same to say at once, and the loop that writes it has other work. So each kind of line has an
allowance: `MAX_BURST` lines at once, `LINES_PER_SECOND` in the long run. What exceeds it is left out and counted, and the
next line of its kind tells how many those were.
"""

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Final, final

__all__ = ["HostLines", "Lines", "is_rare"]

MAX_BURST: Final = 5_000
"""Lines of one kind at once: they take some 0.1 s of the loop, spread over its rounds."""
LINES_PER_SECOND: Final = 500
"""Lines of one kind a second in the long run: 1 % of the loop's time."""


def is_rare(count: int) -> bool:
    """Whether to log the `count`th of what may go on for ever: the first one, and then ever more seldom."""
    return count & (count - 1) == 0


class _Allowance:
    """How many lines of one kind may be written now."""

    __slots__ = ("at", "left", "left_out")

    def __init__(self, now: float) -> None:
        self.at, self.left = now, float(MAX_BURST)
        self.left_out = 0
        """Lines since the last one that was written."""

    def take(self, now: float) -> bool:
        """Use one line of it; return False where there is none left."""
        self.left = min(MAX_BURST, self.left + (now - self.at) * LINES_PER_SECOND)
        self.at = now
        if self.left < 1:
            self.left_out += 1
            return False
        self.left -= 1
        return True


_all: "Final[weakref.WeakSet[HostLines]]" = weakref.WeakSet()


def _free_locks() -> None:
    """In a forked child the thread that held a lock does not exist."""
    for each in _all:
        each._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_locks)


@final
class HostLines:
    """Makes the loggers of one host. From any thread."""

    def __init__(self, host: str = "", *, clock: Callable[[], float] = time.monotonic) -> None:
        """`host` names the host in its lines; empty: they name none. `clock` is in seconds."""
        self.host = host
        self.left_out = 0
        """Lines that were not written, since too many of their kind came at once."""
        self._clock = clock
        self._allowances: dict[str, _Allowance] = {}
        """By the format of the line: there are as many kinds as places that log."""
        self._lock = threading.Lock()
        _all.add(self)

    def of(self, name: str, shard_id: int = 0, replica_id: int = 0) -> "Lines":
        """Return the logger of this name for what is about a replica, or about the host."""
        return Lines(self, logging.getLogger(name), shard_id, replica_id)

    def admit(self, kind: str) -> int:
        """Return how many lines of this kind were left out before this one; -1 where this one is left out too."""
        with self._lock:
            now = self._clock()
            allowance = self._allowances.get(kind)
            if allowance is None:
                allowance = self._allowances[kind] = _Allowance(now)
            if not allowance.take(now):
                self.left_out += 1
                return -1
            left_out, allowance.left_out = allowance.left_out, 0
            return left_out


@final
class Lines(logging.LoggerAdapter[logging.Logger]):
    """A logger whose lines begin with what they are about. Nothing is formatted where its level is off. From any thread."""

    def __init__(self, host: HostLines, logger: logging.Logger, shard_id: int, replica_id: int) -> None:
        super().__init__(logger)
        self._host, self._shard, self._replica = host, shard_id, replica_id

    @property
    def host(self) -> str:
        """The host that its lines begin with; empty if they name none."""
        return self._host.host

    def about(self, shard_id: int, replica_id: int) -> "Lines":
        """Return the same logger for what is about a replica."""
        return Lines(self._host, self.logger, shard_id, replica_id)

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log a line. `msg` is a constant with a place for each of `args`: it is the kind of the line."""
        if not self.isEnabledFor(level):
            return
        left_out = self._host.admit(str(msg))
        if left_out < 0:
            return
        text = f"%s{msg}"
        if left_out:
            text += " (%d lines like this one were left out)"
            args = (*args, left_out)
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1  # the line of the caller, not this one
        kwargs["extra"] = {"host": self._host.host, "shard": self._shard, "replica": self._replica}
        self.logger.log(level, text, self._subject(), *args, **kwargs)

    def _subject(self) -> str:
        words = [self._host.host] if self._host.host else []
        if self._replica:  # a shard may have the number 0
            words.append(f"replica {self._replica} of shard {self._shard}")
        return " ".join(words) + ": " if words else ""
