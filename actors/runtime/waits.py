"""Which waits could never end: they are refused at once, instead of ending by a deadline.

A replica's future is set when its state machine has done its work, one piece at a time, mostly on a worker of its host. So a
thread that is in the middle of such a piece of work must not wait for

- a future of the same replica, which is set only after that work;
- one of another replica that waits, perhaps by way of others, for this one;
- any of a replica whose work is for the same workers, if this is the last worker that does not wait so.

What a replica of another process waits for is not known here, nor what another thread does for a state machine.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from drakkar.handlers.errors import DeadlockError

__all__ = ["Owner", "Workers"]


class _Graph:
    """Who waits for whom, in this process."""

    lock = threading.Lock()
    """Held for a moment at the begin and the end of each wait of a state machine."""

    def renew(self) -> None:
        """In a forked child: a thread that is gone may hold the lock."""
        self.lock = threading.Lock()


_graph: Final = _Graph()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_graph.renew)


class Workers:
    """The threads of a pool."""

    __slots__ = ("size", "waiting")

    def __init__(self, size: int) -> None:
        self.size = size
        self.waiting = 0
        """Those that wait for work that is for the same threads."""


class Owner:
    """The owner of futures: a replica, whose state machine must do its work before they are set."""

    __slots__ = ("beside", "name", "waits_for", "workers")

    def __init__(self, name: str, workers: Workers | None = None, *, beside: "Owner | None" = None) -> None:
        """`workers` do its work; None if a loop does. `beside`: the owner at whose side this one works, for its own wait."""
        self.name = name
        self.workers = workers
        self.beside = beside
        self.waits_for: Owner | None = None

    def check(self, other: "Owner", what: str) -> None:
        """Raise `DeadlockError` if `other` can never end its work while this one waits for it."""
        each: Owner | None = other
        while each is not None:
            if each is self or each is self.beside:
                raise DeadlockError(_reason(self, other, what))
            each = each.waits_for

    @contextmanager
    def waiting(self, other: "Owner", mine: Workers | None, what: str) -> Iterator[None]:
        """Note that it waits for `other`, in a thread of `mine`. Raises `DeadlockError` if that could never end."""
        shared = mine if mine is not None and mine is other.workers else None
        with _graph.lock:
            self.check(other, what)
            if shared is not None:
                if shared.waiting + 1 >= shared.size:
                    raise DeadlockError(
                        f"{what} would wait for {other.name}, and all {shared.size} workers of the host would then wait for "
                        "work that is theirs to do: let the state machine not wait, or raise the host's `workers`"
                    )
                shared.waiting += 1
            self.waits_for = other
        try:
            yield
        finally:
            with _graph.lock:
                self.waits_for = None
                if shared is not None:
                    shared.waiting -= 1


def _reason(waiting: Owner, other: Owner, what: str) -> str:
    if other is waiting or other is waiting.beside:
        why = f"which is set only after the state machine of {other.name} has ended what it does now"
    else:
        why = f"which waits for the state machine of {waiting.name}, perhaps by way of others, and so for this call"
    return (
        f"{what} would wait for {other.name}, {why}: let the state machine return, and leave the request to its client or "
        "to add_done_callback()"
    )
