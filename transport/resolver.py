"""Where connections come from: which IP addresses the addresses of hosts lead to.

Without TLS, a host can show no more than that it comes from where its address leads to. Names are resolved in threads: those of
members when they become members and then each minute, so that connections of members do not wait for it.
"""

import ipaddress
import socket
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache
from math import inf
from typing import Final, TypeAlias

import trio
from drakkar.transport.addresses import canonical, parse_address

__all__ = ["Resolver"]

_Ip: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_LOOPBACK: Final = "127.0.0.1"
"""Where connections come from that a machine opens to any loopback address of its own."""
_AGAIN_AFTER_S: Final = 60.0
"""How often the names of members are resolved."""
_RETRY_AFTER_S: Final = 5.0
"""Likewise while one of them cannot be resolved."""
_FRESH_S: Final = 1.0
"""A name is not resolved again within so many seconds, however many hosts say that they are there."""
_WAIT_S: Final = 1.0
"""How long a connection waits for its name to be resolved. After that, it has not shown where it is."""
_AT_ONCE: Final = 4
"""Names that are resolved at the same time: each takes a thread."""
MAX_QUESTIONS: Final = 64
"""Names of hosts that are no members, and that wait or are resolved. Of more, none is."""
MAX_NAMES: Final = 1000
"""Names of hosts that are no members, and that are remembered."""


class _Name:
    """What is known of a name."""

    __slots__ = ("asked", "failed", "ips")

    def __init__(self, host: str) -> None:
        ip = _plain(host)
        self.ips = frozenset() if ip is None else _sources([ip])
        """Those of the last time that it could be resolved: they count until the next one."""
        self.asked = -inf if ip is None else inf
        """When it was resolved last. An IP address never needs it."""
        self.failed = False
        """It could not be resolved then."""


class Resolver:
    """The IP addresses of hosts. For the trio loop's thread only."""

    def __init__(self, on_change: Callable[[frozenset[str], frozenset[str]], None]) -> None:
        """`on_change` is called with the canonical addresses of members, and the IP addresses that they lead to."""
        self._on_change = on_change
        self._members: frozenset[str] = frozenset()
        self._member_ips: frozenset[str] = frozenset()
        self._names: dict[str, _Name] = {}
        """Of members, by host."""
        self._others: OrderedDict[str, _Name] = OrderedDict()
        """Of hosts that are no members."""
        self._questions: dict[str, trio.Event] = {}
        """The names that are being resolved. The event says that the answer is there."""
        self._limit = trio.CapacityLimiter(_AT_ONCE)
        self._limit_of_others = trio.CapacityLimiter(_AT_ONCE)
        self._changed = trio.Event()
        self._nursery: trio.Nursery | None = None

    def set_members(self, addresses: Iterable[str]) -> None:
        """Say which addresses are those of members, instead of the ones before. Raises `TransportError` for one that is none."""
        members = frozenset(map(canonical, addresses))
        if members == self._members:
            return
        self._members = members
        hosts = {parse_address(address)[0] for address in members}
        self._names = {host: self._names.get(host) or _Name(host) for host in hosts}
        self._tell()
        self._changed.set()

    def source_of(self, ip: str) -> str:
        """Return what a connection from an IP address is counted under.

        That is the address, or the /64 network that it is in, since one machine may have a whole network of IPv6
        addresses. A member in that network is counted apart.
        """
        found = _plain(ip)
        source = str(found or ip)
        if (
            isinstance(found, ipaddress.IPv6Address)
            and source not in self._member_ips
            and not found.is_loopback
        ):
            return f"{ipaddress.IPv6Address(int(found) >> 64 << 64)}/64"
        return source

    async def comes_from(self, address: str, ip: str) -> bool:
        """Return whether `ip` is one that the host in `address` resolves to. May wait a second for that."""
        host = parse_address(canonical(address))[0]
        source = str(_plain(ip) or ip)
        if host not in self._names:
            self._others.setdefault(host, _Name(host))
            self._others.move_to_end(host)
            if len(self._others) > MAX_NAMES:
                self._others.popitem(last=False)
        name = self._name(host)
        if source not in name.ips and trio.current_time() >= name.asked + _FRESH_S:
            await self._ask(host)
        return source in self._name(host).ips

    async def run(self) -> None:
        """Resolve the names of members, again and again, and those that `comes_from` asks for."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            while True:
                self._changed = trio.Event()
                for host, name in self._names.items():
                    if trio.current_time() >= name.asked + (
                        _RETRY_AFTER_S if name.failed else _AGAIN_AFTER_S
                    ):
                        self._begin(host)
                with trio.move_on_after(_RETRY_AFTER_S):
                    await self._changed.wait()

    def _name(self, host: str) -> _Name:
        return self._names.get(host) or self._others.get(host) or _Name(host)

    async def _ask(self, host: str) -> None:
        """Wait until a name is resolved, for a while."""
        question = self._begin(host)
        if question is not None:
            with trio.move_on_after(_WAIT_S):
                await question.wait()

    def _begin(self, host: str) -> trio.Event | None:
        """Have a name resolved, in a task of its own: what asks for it may be gone before the answer comes."""
        question = self._questions.get(host)
        is_member = host in self._names
        if question is not None or self._nursery is None:
            return question
        if not is_member and len(self._questions) >= MAX_QUESTIONS:
            return None
        self._questions[host] = question = trio.Event()
        self._nursery.start_soon(self._resolve, host, self._limit if is_member else self._limit_of_others)
        return question

    async def _resolve(self, host: str, limit: trio.CapacityLimiter) -> None:
        found: frozenset[str] = frozenset()
        try:
            async with limit:
                found = await _look_up(host)
        finally:
            name = self._name(host)
            name.asked, name.failed = trio.current_time(), not found
            changed = found and found != name.ips
            name.ips = found or name.ips
            self._questions.pop(host).set()
            if changed and host in self._names:
                self._tell()

    def _tell(self) -> None:
        self._member_ips = frozenset(ip for name in self._names.values() for ip in name.ips)
        self._on_change(self._members, self._member_ips)


async def _look_up(host: str) -> frozenset[str]:
    """Return the IP addresses of a name; none where it cannot be resolved."""
    try:
        found = await trio.socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, ValueError):  # the second for a name that cannot be one, such as "a..b"
        return frozenset()
    return _sources([ip for answer in found if (ip := _plain(str(answer[4][0]))) is not None])


def _sources(ips: Collection[_Ip]) -> frozenset[str]:
    """Return from where connections come of a host with these IP addresses.

    What dials 127.0.1.1 on its own machine, as Debian has it for a machine's name, comes from 127.0.0.1.
    """
    found = {str(ip) for ip in ips}
    if any(ip.version == 4 and ip.is_loopback for ip in ips):
        found.add(_LOOPBACK)
    return frozenset(found)


@lru_cache(1024)
def _plain(ip: str) -> _Ip | None:
    """Return an IP address without the interface, and an IPv4 address that is written as an IPv6 one as itself."""
    try:
        found = ipaddress.ip_address(ip.partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found
