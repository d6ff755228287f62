"""Names are looked up in threads. Those of members have threads of their own, so that no other name holds them up.

Trio looks all names up in the same 40 threads, and a look-up that was given up keeps its thread until the answer comes. Hosts that are
no members are dialed by names of their own choice, and these may never be answered: they would take all 40.

Trio has one resolver for each run. So all transports of a run share one, and it is taken back when the last of them ends. Other
tasks of the run that look names up share it, too: their names are those of no members.
"""

import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final
from weakref import WeakValueDictionary

import trio

__all__ = ["Lookups", "use_lookups"]

_OTHERS_AT_ONCE: Final = 8
"""Names of hosts that are no members and are looked up at the same time, each in a thread."""


class Lookups(trio.abc.HostnameResolver):
    """Looks names up. For one thread."""

    def __init__(self) -> None:
        self._members: dict[object, frozenset[bytes] | None] = {}
        """Canonical names of members, encoded, by the transport that named them; None: all are."""
        self._limits: WeakValueDictionary[object, trio.CapacityLimiter] = WeakValueDictionary()
        """By name, those of members that are being looked up: in one thread at a time."""
        self._others = trio.CapacityLimiter(_OTHERS_AT_ONCE)

    def set_members(self, user: object, names: Iterable[str] | None) -> None:
        """Say which names, in canonical spelling, are those of members of one user, instead of its ones before; None: all are."""
        self._members[user] = None if names is None else frozenset(map(_encoded, names))

    def forget(self, user: object) -> bool:
        """Forget the members of a user. Return whether others are left."""
        del self._members[user]
        return bool(self._members)

    def _is_member(self, name: bytes) -> bool:
        return any(names is None or name in names for names in self._members.values())

    async def getaddrinfo(
        self,
        host: bytes | None,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,  # noqa: A002  # trio calls it so
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        """Do as `socket.getaddrinfo`."""
        look_up = partial(socket.getaddrinfo, host, port, family, type, proto, flags)
        return await trio.to_thread.run_sync(look_up, limiter=self._limit(host), abandon_on_cancel=True)

    def _limit(self, host: bytes | None) -> trio.CapacityLimiter:
        # A membership may spell a name in another way than `canonical` does.
        name = None if host is None else host.lower().removesuffix(b".")
        if name is not None and not self._is_member(name):
            return self._others
        limit = self._limits.get(name)
        if limit is None:
            limit = self._limits[name] = trio.CapacityLimiter(1)
        return limit

    async def getnameinfo(self, sockaddr: tuple[Any, ...], flags: int) -> tuple[str, str]:
        """Do as `socket.getnameinfo`. Hosts do not ask for it."""
        return await trio.to_thread.run_sync(socket.getnameinfo, sockaddr, flags, abandon_on_cancel=True)


@contextmanager
def use_lookups(user: object) -> Iterator[Lookups | None]:
    """Have names looked up so in this run of trio, for one user; None where the application has a resolver of its own there.

    Until its members are named, all names are those of members. At the end of the last user the resolver is taken back.
    """
    lookups = _shared_lookups()
    if lookups is None:
        yield None
        return
    lookups.set_members(user, None)
    try:
        yield lookups
    finally:
        if not lookups.forget(user):
            _take_back(lookups)


def _shared_lookups() -> Lookups | None:
    lookups = Lookups()
    before = trio.socket.set_custom_hostname_resolver(lookups)
    if before is None:
        return lookups
    trio.socket.set_custom_hostname_resolver(before)
    return before if isinstance(before, Lookups) else None


def _take_back(lookups: Lookups) -> None:
    current = trio.socket.set_custom_hostname_resolver(None)
    if current is not lookups:  # the application has set its own since
        trio.socket.set_custom_hostname_resolver(current)


def _encoded(name: str) -> bytes:
    try:
        return name.encode("idna")
    except UnicodeError:  # it cannot be looked up
        return name.encode()
