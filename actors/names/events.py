"""What a host tells its subscribers of its singletons."""

from dataclasses import dataclass
from typing import Any

import pykka

__all__ = ["SingletonEnded", "SingletonStarted"]


@dataclass(frozen=True, slots=True)
class SingletonStarted:
    """A singleton runs on this host."""

    name: str
    shard: int
    fence: int
    """Its number: greater than those of all that were started before it, on whichever host."""
    ref: pykka.ActorRef[Any]


@dataclass(frozen=True, slots=True)
class SingletonEnded:
    """A singleton runs on this host no more; or it did not stop in time, and was left behind."""

    name: str
    shard: int
    fence: int
    reason: BaseException | None
    """The exception with which it failed; None if it was stopped."""
