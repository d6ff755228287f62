"""Names that are never answered hold up no others."""

import socket
import threading
from typing import Any

import pytest
import trio
from drakkar.transport.lookups import Lookups, use_lookups

from tests.transport.support import Host, on_loop, running, until

set_resolver = trio.socket.set_custom_hostname_resolver


class Elsewhere(trio.abc.HostnameResolver):
    """A resolver of the application."""

    async def getaddrinfo(self, *_: Any) -> list[Any]:
        raise NotImplementedError

    async def getnameinfo(self, *_: Any) -> tuple[str, str]:
        raise NotImplementedError


def resolver() -> trio.abc.HostnameResolver | None:
    """Return the one of this run."""
    now = set_resolver(None)
    set_resolver(now)
    return now


@on_loop
async def test_names_that_are_never_answered_hold_up_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    asked: list[bytes] = []

    def look_up(host: bytes, *_: Any) -> list[str]:
        asked.append(host)
        if host.startswith(b"silent"):
            answered.wait()
        return [host.decode()]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    lookups = Lookups()
    lookups.set_members("a", ["member"])
    lookups.set_members("b", ["m\u00fcnchen"])
    try:
        async with trio.open_nursery() as nursery:
            for name in range(100):
                nursery.start_soon(lookups.getaddrinfo, b"silent-%d" % name, 7000)
            await until(lambda: len(asked) == 8)
            assert await lookups.getaddrinfo(b"member", 7000) == ["member"]
            for spelling in (b"Member", b"member.", b"xn--mnchen-3ya"):
                assert await lookups.getaddrinfo(spelling, 7000) == [spelling.decode()]
            nursery.cancel_scope.cancel()
        with trio.move_on_after(0.05):  # those that were given up have their threads still
            await lookups.getaddrinfo(b"silent-101", 7000)
        assert len(asked) == 12
    finally:
        answered.set()
    assert await lookups.getaddrinfo(b"silent-1", 7000) == ["silent-1"]
    await until(lambda: not lookups._limits)


@on_loop
async def test_a_resolver_of_the_application_stays() -> None:
    own = Lookups()
    with use_lookups("a") as lookups:
        assert resolver() is lookups
        set_resolver(own)
    assert resolver() is own
    set_resolver(Elsewhere())
    with use_lookups("a") as lookups:
        assert lookups is None
    assert isinstance(resolver(), Elsewhere)


@on_loop
async def test_transports_of_a_run_share_a_resolver_until_the_last_one_ends() -> None:
    a, b = Host(), Host()
    async with running(b):
        async with running(a):
            lookups = resolver()
            assert isinstance(lookups, Lookups)
            a.transport.members(["one:1"])
            b.transport.members(["two:1"])
            assert [lookups._is_member(name) for name in (b"one", b"two", b"three")] == [True, True, False]
        assert resolver() is lookups
        assert [lookups._is_member(name) for name in (b"one", b"two")] == [False, True]
        a.transport.members(["one:1"])
        assert not lookups._is_member(b"one"), "it serves no more"
    assert resolver() is None
