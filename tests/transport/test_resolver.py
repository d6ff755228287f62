"""Which IP addresses the addresses of hosts lead to, as far as names can be resolved."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from drakkar.handlers.errors import TransportError
from drakkar.transport import resolver as resolver_module
from drakkar.transport.resolver import Resolver

from tests.transport.support import on_loop, until


class Names(trio.abc.HostnameResolver):
    """A resolver of names that a test can change, and what it was asked."""

    def __init__(self, **ips: list[str]) -> None:
        self.ips = {name.replace("_", "-"): found for name, found in ips.items()}
        self.asked: list[str] = []
        self.answers = trio.Event()
        self.answers.set()

    async def getaddrinfo(self, host: Any, port: Any, *rest: int) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        self.asked.append(name)
        await self.answers.wait()
        if name not in self.ips:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (ip, 0)) for ip in self.ips[name]]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


class Told:
    """What a resolver tells of members."""

    def __init__(self) -> None:
        self.members: frozenset[str] = frozenset()
        self.ips: frozenset[str] = frozenset()

    def __call__(self, members: frozenset[str], ips: frozenset[str]) -> None:
        self.members, self.ips = members, ips


@asynccontextmanager
async def resolving(names: Names) -> AsyncIterator[tuple[Resolver, Told]]:
    trio.socket.set_custom_hostname_resolver(names)
    told = Told()
    resolver = Resolver(told)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(resolver.run)
        await trio.testing.wait_all_tasks_blocked()
        yield resolver, told
        nursery.cancel_scope.cancel()


@on_loop
async def test_names_of_members_are_resolved_in_the_background() -> None:
    names = Names(node_1=["10.0.0.1"], node_2=["10.0.0.2", "::ffff:10.0.0.3", "fe80::4%eth0"])
    async with resolving(names) as (resolver, told):
        resolver.set_members(["Node-1:7000", "node-2:7000", "10.0.0.9:7000", "[FD00::1]:7000"])
        assert told.members == {"node-1:7000", "node-2:7000", "10.0.0.9:7000", "[fd00::1]:7000"}
        assert told.ips == {"10.0.0.9", "fd00::1"}
        await until(lambda: len(told.ips) == 6)
        assert told.ips == {"10.0.0.1", "10.0.0.2", "10.0.0.3", "fe80::4", "10.0.0.9", "fd00::1"}
        assert await resolver.comes_from("node-2:7000", "10.0.0.3")
        resolver.set_members(["node-2:7000"])
        assert told.ips == {"10.0.0.2", "10.0.0.3", "fe80::4"}
    assert sorted(names.asked) == ["node-1", "node-2"]


@on_loop
async def test_a_name_that_cannot_be_resolved_is_tried_again_and_what_it_led_to_counts_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resolver_module, "_RETRY_AFTER_S", 0.01)
    monkeypatch.setattr(resolver_module, "_AGAIN_AFTER_S", 0.01)
    names = Names()
    async with resolving(names) as (resolver, told):
        resolver.set_members(["node-1:7000"])
        await until(lambda: len(names.asked) > 2)
        assert told.ips == frozenset()
        names.ips["node-1"] = ["10.0.0.1"]
        await until(lambda: told.ips == {"10.0.0.1"})
        del names.ips["node-1"]
        asked = len(names.asked)
        await until(lambda: len(names.asked) > asked + 2)
        assert told.ips == {"10.0.0.1"}
        assert await resolver.comes_from("node-1:7000", "10.0.0.1")


@on_loop
async def test_a_member_that_has_moved_is_resolved_when_it_comes_and_not_for_each_that_says_it_is_it() -> (
    None
):
    names = Names(node_1=["10.0.0.1"])
    async with resolving(names) as (resolver, told):
        resolver.set_members(["node-1:7000"])
        await until(lambda: told.ips)
        names.ips["node-1"] = ["10.0.0.2"]
        assert not await resolver.comes_from("node-1:7000", "10.0.0.2")  # it was resolved a moment ago
        await trio.sleep(resolver_module._FRESH_S)
        assert await resolver.comes_from("node-1:7000", "10.0.0.2")
        assert told.ips == {"10.0.0.2"}
        for number in range(50):
            assert not await resolver.comes_from("node-1:7000", f"10.1.0.{number}")
    assert len(names.asked) == 2


@on_loop
async def test_strangers_do_not_make_this_host_resolve_more_than_a_few_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resolver_module, "_WAIT_S", 0.01)
    monkeypatch.setattr(resolver_module, "MAX_NAMES", 10)
    names = Names(node_1=["10.0.0.1"], other=["10.0.0.5"])
    async with resolving(names) as (resolver, told):
        assert await resolver.comes_from("other:1", "10.0.0.5")
        names.answers = trio.Event()
        asking: list[bool] = []

        async def ask(name: str) -> None:
            asking.append(await resolver.comes_from(name, "10.0.0.5"))

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(ask, f"name-{number}:1")
        assert asking == [False] * 200
        assert len(resolver._questions) == resolver_module.MAX_QUESTIONS
        await until(
            lambda: len(names.asked) > resolver_module._AT_ONCE
        )  # they may all have waited for long enough before
        await trio.testing.wait_all_tasks_blocked()
        assert len(names.asked) == 1 + resolver_module._AT_ONCE
        assert len(resolver._others) == 10
        # Those of members are resolved meanwhile.
        resolver.set_members(["node-1:7000"])
        await until(lambda: "node-1" in names.asked)
        names.answers.set()
        await until(lambda: told.ips == {"10.0.0.1"})
        await until(lambda: not resolver._questions)


@on_loop
async def test_addresses_that_cannot_be_resolved_come_from_nowhere() -> None:
    async with resolving(Names()) as (resolver, _):
        assert not await resolver.comes_from("a..b:1", "127.0.0.1")
        assert await resolver.comes_from("[::1]:1", "::1")
        assert await resolver.comes_from("127.0.0.1:1", "::ffff:127.0.0.1")
        assert not await resolver.comes_from("127.0.0.1:1", "127.0.0.2")
        assert await resolver.comes_from("127.0.1.1:1", "127.0.0.1")  # what dials it on its own machine
        assert not await resolver.comes_from("10.0.0.1:1", "127.0.0.1")
        with pytest.raises(TransportError):
            resolver.set_members(["nowhere"])


def test_connections_are_counted_by_ip_address_or_by_ipv6_network_and_members_apart() -> None:
    resolver = Resolver(lambda *_: None)
    resolver.set_members(["[2001:db8::7]:1"])
    assert resolver.source_of("10.0.0.1") == "10.0.0.1"
    assert resolver.source_of("::ffff:10.0.0.1") == "10.0.0.1"
    assert resolver.source_of("2001:db8::1") == resolver.source_of("2001:db8::2%eth0") == "2001:db8::/64"
    assert resolver.source_of("2001:db8::7") == "2001:db8::7"
    assert resolver.source_of("::1") == "::1"
