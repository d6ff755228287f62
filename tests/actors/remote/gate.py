"""A proxy before a host, in a thread of its own: it breaks the connections to the host, or holds up what goes in and comes out."""

import trio
from drakkar.actors import TrioLoop
from drakkar.transport.addresses import parse_address

from tests.ports import free_addresses

TIMEOUT_S = 10


class Gate:
    """A context manager. The host advertises the gate's `address`, and listens at `behind`."""

    def __init__(self):
        self.address, self.behind = free_addresses(2)
        self._loop = TrioLoop("gate")
        self._scopes = set()
        self._open = trio.Event()
        self._open.set()

    def __enter__(self):
        self._loop.start()
        self._loop.call(self._listen, timeout=TIMEOUT_S)
        return self

    def __exit__(self, *_):
        self._loop.stop()

    async def _listen(self):
        host, port = parse_address(self.address)
        listeners = await trio.open_tcp_listeners(port, host=host)
        self._loop.spawn(trio.serve_listeners, self._pass_on, listeners)

    async def _pass_on(self, outer):
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                async with (
                    await trio.open_tcp_stream(*parse_address(self.behind)) as inner,
                    outer,
                    trio.open_nursery() as nursery,
                ):
                    nursery.start_soon(self._copy, outer, inner, scope)
                    nursery.start_soon(self._copy, inner, outer, scope)
            except (OSError, trio.BrokenResourceError):
                await trio.aclose_forcefully(outer)
            finally:
                self._scopes.discard(scope)

    async def _copy(self, source, target, scope):
        try:
            async for data in source:
                await self._open.wait()
                await target.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()

    def cut(self):
        """Break the connections that there are."""

        def cut():
            for scope in list(self._scopes):
                scope.cancel()

        self._loop.call(cut, timeout=TIMEOUT_S)

    def hold(self):
        """Let nothing pass, in neither direction, until `release`."""

        def hold():
            self._open = trio.Event()

        self._loop.call(hold, timeout=TIMEOUT_S)

    def release(self):
        self._loop.call(self._open.set, timeout=TIMEOUT_S)
