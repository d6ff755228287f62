"""Networks of one machine for a demo, in which a host can be cut off: network namespaces, or relays where they are not allowed.

In namespaces each host has a network of its own, and a link to a bridge, which is taken down: as if a cable was pulled. A relay
stands before each host, on loopback, and carries what others send to it; of a host that is cut off it holds all back.

Both are context managers: `start` is the command that starts another one where a host lives, `addresses` are those by which hosts
know one another, and `listen` those at which they listen.
"""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

import trio

from examples.kv_demo import DemoError, free_ports

_PREFIX: Final = "drakkar-demo-"
_PORT: Final = 7000
_CHUNK: Final = 64 << 10
_START_S: Final = 10.0


class Network:
    """What connects hosts, which have the numbers 1, 2, 3 and so on. A context manager."""

    what: str
    """What it is made of, for people."""
    addresses: Sequence[str]
    listen: Sequence[str]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def start(self, _number: int) -> list[str]:
        """Return what stands before the command that starts a host."""
        return []

    def cut(self, number: int) -> None:
        """Let nothing pass to a host, and nothing from it."""
        raise NotImplementedError

    def heal(self, number: int) -> None:
        """Let it pass again."""
        raise NotImplementedError


def network(hosts: int, why_no_namespaces: str | None) -> Network:
    """Return a network of namespaces, or of relays if there is a reason why there can be no namespaces."""
    return Namespaces(hosts) if why_no_namespaces is None else Relays(hosts)


# -- namespaces -------------------------------------------------------------------------------------------------


def why_no_namespaces() -> str | None:
    """Return what keeps this process from making network namespaces; None if nothing does."""
    if sys.platform != "linux":
        return f"network namespaces are Linux's, and this is {sys.platform}"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    if shutil.which("ip") is None:
        return "there is no `ip` command: install iproute2"
    try:
        with Namespaces(1):
            return None
    except DemoError as error:
        return f"this machine allows no network namespaces: {error}"


class Namespaces(Network):
    """A namespace for each host, with a link to a bridge in one more. All are gone in the end, with what is in them."""

    what = "network namespaces"

    def __init__(self, hosts: int) -> None:
        self._numbers = range(1, hosts + 1)
        self._mine = f"{_PREFIX}{os.getpid()}-"
        self.addresses = self.listen = [f"10.0.0.{number}:{_PORT}" for number in self._numbers]

    def __enter__(self) -> Self:
        try:
            self._sweep()
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in _names():
            if name.startswith(self._mine):
                _ip("netns", "delete", name)

    def start(self, number: int) -> list[str]:
        """Return the command that starts another one in a host's namespace."""
        return ["ip", "netns", "exec", f"{self._mine}{number}"]

    def cut(self, number: int) -> None:
        """Take the link of a host down."""
        self._in_hub("link", "set", f"host{number}", "down")

    def heal(self, number: int) -> None:
        """Take it up again."""
        self._in_hub("link", "set", f"host{number}", "up")

    def _build(self) -> None:
        _ip("netns", "add", f"{self._mine}hub")
        self._in_hub("link", "add", "main", "type", "bridge")
        self._in_hub("link", "set", "main", "up")
        for number in self._numbers:
            home, link = f"{self._mine}{number}", f"host{number}"
            _ip("netns", "add", home)
            self._in_hub("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", home)
            self._in_hub("link", "set", link, "master", "main", "up")
            _ip("-netns", home, "address", "add", f"10.0.0.{number}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-netns", home, "link", "set", device, "up")

    def _in_hub(self, *words: str) -> None:
        _ip("-netns", f"{self._mine}hub", *words)

    def _sweep(self) -> None:
        """Delete what a demo left behind that was killed: its number is in the names."""
        for name in _names():
            maker = name.removeprefix(_PREFIX).split("-")[0]
            if not Path("/proc", maker).exists():
                _ip("netns", "delete", name)


def _names() -> list[str]:
    listed = [line.split()[0] for line in _ip("netns", "list").splitlines() if line.strip()]
    return [name for name in listed if name.startswith(_PREFIX)]


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False, timeout=30)  # noqa: S603, S607
    if done.returncode:
        raise DemoError(f"`ip {' '.join(words)}` says: {done.stderr.strip() or done.returncode}")
    return done.stdout


# -- relays -----------------------------------------------------------------------------------------------------


class Relays(Network):
    """A relay before each host, on loopback. They run in a thread of their own."""

    what = "relays between processes of one network"

    def __init__(self, hosts: int) -> None:
        ports = free_ports(2 * hosts)
        self.addresses = [f"127.0.0.1:{port}" for port in ports[:hosts]]
        self.listen = [f"127.0.0.1:{port}" for port in ports[hosts:]]
        self._cut: set[int] = set()
        self._changed = trio.Event()
        self._thread = threading.Thread(target=self._run, name="relays", daemon=True)
        self._started = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._started.wait(_START_S):
            raise DemoError("the relays between the hosts do not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._scope.cancel)
        self._thread.join(_START_S)

    def cut(self, number: int) -> None:
        """Hold back what is on its way to a host, and from it."""
        self._call(self._change, {*self._cut, number})

    def heal(self, number: int) -> None:
        """Let it pass."""
        self._call(self._change, self._cut - {number})

    def _call(self, function: Callable[..., Any], *args: Any) -> None:
        trio.from_thread.run_sync(function, *args, trio_token=self._token)

    def _change(self, cut: set[int]) -> None:
        self._cut = cut
        self._changed.set()
        self._changed = trio.Event()

    def _run(self) -> None:
        trio.run(self._serve)

    async def _serve(self) -> None:
        async with trio.open_nursery() as nursery:
            for number, address in enumerate(self.addresses, 1):
                host, port = address.split(":")
                listeners = await trio.open_tcp_listeners(int(port), host=host)
                nursery.start_soon(trio.serve_listeners, _Relay(self, number).guide, listeners)
            self._scope, self._token = nursery.cancel_scope, trio.lowlevel.current_trio_token()
            self._started.set()

    def caller(self, called: int, first: bytes) -> int:
        """Return who introduces itself by these bytes to a host: each says its address. 0 if none does."""
        others = ((number, address) for number, address in enumerate(self.addresses, 1) if number != called)
        return next((number for number, address in others if address.encode() in first), 0)

    async def passes(self, *ends: int) -> None:
        """Wait until none of these is cut off."""
        while self._cut & set(ends):
            await self._changed.wait()


class _Relay:
    """In front of one host."""

    def __init__(self, relays: Relays, number: int) -> None:
        self._relays, self._number = relays, number
        host, port = relays.listen[number - 1].split(":")
        self._host, self._port = host, int(port)

    async def guide(self, guest: trio.SocketStream) -> None:
        """Carry what the two ends of a connection say, until one closes it."""
        with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            first = bytes(await guest.receive_some(_CHUNK))
            ends = (self._number, self._relays.caller(self._number, first))
            host = await trio.open_tcp_stream(self._host, self._port)
            async with guest, host, trio.open_nursery() as nursery:
                nursery.start_soon(self._carry, ends, host, guest, b"", nursery.cancel_scope)
                await self._carry(ends, guest, host, first, nursery.cancel_scope)

    async def _carry(
        self,
        ends: tuple[int, ...],
        source: trio.SocketStream,
        sink: trio.SocketStream,
        first: bytes,
        scope: trio.CancelScope,
    ) -> None:
        with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            data = first or bytes(await source.receive_some(_CHUNK))
            while data:
                await self._relays.passes(*ends)
                await sink.send_all(data)
                data = bytes(await source.receive_some(_CHUNK))
        scope.cancel()
