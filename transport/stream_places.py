"""How many streams other hosts may send to this one at a time: each peer has places of its own. Plain data.

A stream may last long, and its sender decides how long. So no host takes the places of others: not a member's where it has
none, and of those that are no members, all together half of them, and a single source a quarter.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final

from drakkar.transport.hello import FullError

__all__ = ["StreamPlaces"]

_MEMBERS_SHARE: Final = 3 / 4
"""Of all places, so much is for one host, at most."""
_OTHERS_SHARE: Final = 1 / 2
"""So much is for all hosts together that are no members: a host that joins knows no members yet."""
_SOURCE_SHARE: Final = 1 / 4
"""So much is for those of one source: what address it says is a host's own choice."""


class StreamPlaces:
    """The places of one host. Each is taken from the introduction of the sender to the end of its connection."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._members: Counter[str] = Counter()
        self._others: Counter[str] = Counter()

    def __len__(self) -> int:
        """How many are taken."""
        return self._members.total() + self._others.total()

    def take(self, address: str, source: str, *, member: bool) -> Callable[[], None]:
        """Take a place for a stream of the host at a canonical address, which comes from `source`; return how to free it.

        Raises `FullError` where there is none.
        """
        taken, key = (self._members, address) if member else (self._others, source)
        if full := self._full_of(key, member=member):
            raise FullError(f"this host takes {full}; try again later")
        taken[key] += 1
        return partial(_free, taken, key)

    def _full_of(self, key: str, *, member: bool) -> str:
        """Return what this host takes already, where that is enough; "" where there is a place."""
        if member and not self._members[key]:
            return ""  # there are no more of these than members
        if len(self) >= self._limit:
            return f"{len(self)} streams at once already"
        if member:
            return self._enough(self._members[key], _MEMBERS_SHARE, f"of {key}")
        return self._enough(self._others[key], _SOURCE_SHARE, f"from {key}") or self._enough(
            self._others.total(), _OTHERS_SHARE, "of hosts that are no members of its shards"
        )

    def _enough(self, taken: int, share: float, whose: str) -> str:
        return f"{taken} streams {whose} at once already" if taken + 1 > max(1, self._limit * share) else ""


def _free(taken: Counter[str], key: str) -> None:
    taken[key] -= 1
    if not taken[key]:
        del taken[key]
