"""A Redis server in front of one replica of a key-value store. Any replica will do: writes are sent on to the leader.

The front answers some commands by itself. Reads and writes go to the replica in lanes: while one request to the replica
is on its way, the commands of all connections are collected for the next one. A request costs nearly the same for one
command as for a thousand.

Each connection is served in order: its next request is taken when the last one is answered. So the effects of its
commands happen in order too, and a client that does not read its replies is not read from.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import groupby, islice
from math import inf
from operator import itemgetter
from typing import Any, Final, Protocol

import trio
from drakkar.actors import DrakkarError, OutcomeUnknown, ReplicaStopped, RequestDropped, SystemBusy
from drakkar.transport import Backoff

from examples.resp import Failure, ProtocolError, Reply, Request, Requests, pieces
from examples.resp_commands import REDIS_VERSION, Client, Kind, Limits, plan

__all__ = ["Front", "Lane", "Replica"]

_log: Final = logging.getLogger(__name__)

RECEIVE_BYTES: Final = 64 << 10
"""Bytes read at once. It limits how far a client's pipeline can be ahead of its replies."""

FLUSH_BYTES: Final = 64 << 10
"""Bytes of replies that are collected before they are sent."""

MAX_REQUEST: Final = 32 << 20
"""Maximum bytes of one request. It is above --max-value, so that too large a value gets an error reply."""

MAX_BUFFERED: Final = 128 << 20
"""Maximum bytes of incomplete requests and open transactions, over all connections. The one with the most loses."""

MAX_UNREAD: Final = 128 << 20
"""Maximum bytes of replies that clients leave unread for long, over all connections. The client with the most loses."""

LOOK_S: Final = 1.0
"""Seconds after which replies count as unread for long, and between two looks at them."""

MAX_BATCH: Final = 1 << 20
"""Maximum bytes of commands that travel together. A larger command travels alone."""

MAX_KEYS: Final = 10_000
"""Maximum keys that are read together."""


class Replica(Protocol):
    """The part of `drakkar.actors.Replica` that the front uses."""  # Its futures can be awaited.

    def propose_many(self, commands: list[bytes], *, timeout: float) -> Awaitable[list[Any]]:
        """Have the commands applied, in order; return their results."""

    def read(self, query: Any, *, timeout: float) -> Awaitable[Any]:
        """Query the state machine, once it is up to date."""

    def status(self) -> Any:
        """Return the state of the replica."""


# -- Lanes to the replica ---------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class _Order:
    """Items of one connection, and the replies that it waits for."""

    items: list[Any]
    weight: int
    deadline: float
    replies: list[Reply] = field(default_factory=list)
    done: trio.Event = field(default_factory=trio.Event)


class Lane:
    """Carries the items of all connections to the replica, in few large requests.

    At most `WIDTH` requests are on their way, and each takes all items that wait, up to `max_weight`. A request that
    takes longer than `SLOW_AFTER_S`, because its leader is gone, no longer counts: connections that are not part of it
    need not wait for it. There are at most `MAX_REQUESTS`, slow ones included.

    A request that certainly had no effect is repeated, at growing intervals, until its deadline. So clients see a pause
    and no errors while a leader is elected.
    """

    WIDTH: Final = 4
    SLOW_AFTER_S: Final = 0.25
    MAX_REQUESTS: Final = 64
    FIRST_WAIT_S: Final = 0.01
    MAX_WAIT_S: Final = 0.16

    def __init__(
        self,
        request: Callable[[list[Any], float], Awaitable[list[Reply]]],
        *,
        limits: Limits,
        max_weight: int,
        may_repeat: tuple[type[DrakkarError], ...],
    ) -> None:
        """`request(items, timeout)` returns one reply per item; errors of `may_repeat` mean that it had no effect."""
        self._request, self._limits, self._max_weight = request, limits, max_weight
        self._may_repeat = may_repeat
        self._orders: deque[_Order] = deque()
        self._ordered = trio.lowlevel.ParkingLot()
        self._started: list[float] = []
        """When each request that is on its way was started."""
        self._returned = trio.lowlevel.ParkingLot()

    async def order(self, items: list[Any]) -> list[Reply]:
        """Return one reply per item, in order. Where a request fails, each of its items gets a `Failure`."""
        placed = _Order(items, sum(map(len, items)), trio.current_time() + self._limits.timeout)
        self._orders.append(placed)
        self._ordered.unpark()
        await placed.done.wait()
        return placed.replies

    async def run(self) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                while not self._orders:
                    await self._ordered.park()
                await self._wait_for_slot()
                nursery.start_soon(self._carry, list(self._take()))

    async def _wait_for_slot(self) -> None:
        while True:
            slow = trio.current_time() - self.SLOW_AFTER_S
            fast = [started for started in self._started if started > slow]
            if len(fast) < self.WIDTH and len(self._started) < self.MAX_REQUESTS:
                return
            with trio.move_on_at(min(fast, default=inf) + self.SLOW_AFTER_S):
                await self._returned.park()

    def _take(self) -> Iterator[_Order]:
        weight = 0
        while self._orders and (not weight or weight + self._orders[0].weight <= self._max_weight):
            order = self._orders.popleft()
            weight += order.weight
            yield order

    async def _carry(self, orders: list[_Order]) -> None:
        started = trio.current_time()
        self._started.append(started)
        items = [item for order in orders for item in order.items]
        replies = iter(await self._deliver(items, orders[0].deadline))
        for order in orders:
            order.replies = list(islice(replies, len(order.items)))
            order.done.set()
        self._started.remove(started)
        self._returned.unpark()

    async def _deliver(self, items: list[Any], deadline: float) -> list[Reply]:
        backoff = Backoff(self.FIRST_WAIT_S, self.MAX_WAIT_S)
        while True:
            remaining = max(deadline - trio.current_time(), self.FIRST_WAIT_S)
            try:
                return await self._request(items, min(remaining, self._limits.attempt))
            except DrakkarError as error:
                wait = backoff.next()
                if trio.current_time() + wait >= deadline or not isinstance(error, self._may_repeat):
                    return [_failure(error)] * len(items)
            except Exception:  # noqa: BLE001  # logged; a lane that stops would leave all clients waiting
                _log.exception("a request of %d items failed", len(items))
                return [Failure("ERR this host failed: see its log")] * len(items)
            await trio.sleep(wait)


def _size(reply: Reply) -> int:
    """Return the bytes of the values in a reply."""
    if isinstance(reply, list):
        return sum(map(_size, reply))
    return len(reply) if isinstance(reply, bytes) else 0


def _failure(error: DrakkarError) -> Failure:
    match error:
        case SystemBusy():
            return Failure(f"TRYAGAIN not executed, since this host is busy: {error}")
        case RequestDropped():
            return Failure(f"CLUSTERDOWN not executed, so send it again: {error}")
        case ReplicaStopped():
            return Failure(f"CLUSTERDOWN not executed, so ask another host: {error}")
        case OutcomeUnknown():
            return Failure(
                f"UNKNOWN it may have been executed, or may still be, so read before sending it again: {error}"
            )
        case _:
            return Failure(f"ERR {error}")


# -- The front --------------------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True, kw_only=True)
class _Connection(Client):
    """One client, and the replies that were not sent to it yet."""

    stream: trio.SocketStream
    idle: float
    """See `Limits`."""
    requests: Requests = field(default_factory=lambda: Requests(MAX_REQUEST))
    buffered: int = 0
    """Bytes of an incomplete request, and of an open transaction, when they were counted last."""
    unread: int = 0
    """Bytes of the replies that it is being sent: they are kept until it has taken the last of them."""
    unread_since: float = inf
    silent: bool = True
    """It has sent no request yet."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    """Of what serves it."""
    _out: bytearray = field(default_factory=bytearray)

    async def receive(self) -> bytes:
        """Wait for the next bytes. Returns b"" at the end of the connection, and where none come in time."""
        with trio.move_on_after(self.idle):
            return bytes(await self.stream.receive_some(RECEIVE_BYTES))
        _log.info("client %d is disconnected: it sent nothing for %g s", self.number, self.idle)
        return b""

    async def reply(self, replies: Iterable[Reply]) -> None:
        """Write the replies, and wait for the client to read where there are many."""
        for reply in replies:
            for piece in pieces(reply, resp3=self.resp3):
                self._out += piece
                if len(self._out) >= FLUSH_BYTES:
                    await self.flush()

    async def flush(self) -> None:
        """Send the replies that were written. Raises `trio.BrokenResourceError` where the client does not take them in time."""
        if self._out:
            out, self._out = self._out, bytearray()
            with trio.move_on_after(self.idle) as waiting:
                await self.stream.send_all(out)
            if waiting.cancelled_caught:
                _log.info("client %d is disconnected: it took no reply for %g s", self.number, self.idle)
                raise trio.BrokenResourceError


class Front:
    """Answers Redis clients on behalf of `replica`.

    Create and run it within trio. `about` has further fields for INFO, such as ports.
    """

    def __init__(
        self, replica: Replica, limits: Limits | None = None, about: Mapping[str, object] | None = None
    ) -> None:
        self.replica, self.limits, self.about = replica, limits or Limits(), dict(about or {})
        self._writes = Lane(
            lambda commands, timeout: replica.propose_many(commands, timeout=timeout),
            limits=self.limits,
            max_weight=MAX_BATCH,
            may_repeat=(RequestDropped,),
        )
        self._reads = Lane(
            lambda queries, timeout: replica.read(queries, timeout=timeout),
            limits=self.limits,
            max_weight=MAX_KEYS,
            may_repeat=(RequestDropped, OutcomeUnknown),
        )
        self._lanes: Mapping[Kind, tuple[Lane, int]] = {
            Kind.WRITE: (self._writes, 1000),
            Kind.READ: (self._reads, 1000),
            Kind.SCAN: (self._reads, 1),
        }
        self._started_at = time.monotonic()
        self._clients: dict[_Connection, None] = {}
        """In the order in which they came."""
        self._buffered = 0
        counted = (
            "connections",
            "rejected_connections",
            "evicted_connections",
            "commands",
            "protocol_errors",
        )
        self.counts = dict.fromkeys(counted, 0)

    async def serve(self, listeners: list[trio.SocketListener]) -> None:
        """Serve clients until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._writes.run)
            nursery.start_soon(self._reads.run)
            nursery.start_soon(self._watch_unread)
            await trio.serve_listeners(self._accept, listeners)

    # -- One connection

    async def _accept(self, stream: trio.SocketStream) -> None:
        """Serve one client until it leaves. Its errors never stop the others."""
        self.counts["connections"] += 1
        client = _Connection(stream=stream, number=self.counts["connections"], idle=self.limits.idle)
        try:
            async with stream:
                if not self._has_place():
                    await self._reject(client)
                    return
                self._clients[client] = None
                with client.scope:
                    await self._serve_client(client)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            _log.debug("client %d disconnected", client.number)
        except Exception:  # noqa: BLE001  # logged; one client must not stop the others
            _log.exception("client %d was disconnected by an error", client.number)
        finally:
            self._forget(client)

    def _has_place(self) -> bool:
        """Return whether one more client may come in. Where all places are taken, one that was silent so far loses its own."""
        if len(self._clients) < self.limits.max_clients:
            return True
        silent = next((client for client in self._clients if client.silent), None)
        if silent is None:
            return False
        self._evict(silent, "others need its place, and it has sent no request yet")
        return True

    def _evict(self, client: _Connection, why: str) -> None:
        self.counts["evicted_connections"] += 1
        _log.info("client %d is disconnected: %s", client.number, why)
        client.scope.cancel()
        self._forget(client)

    def _forget(self, client: _Connection) -> None:
        self._clients.pop(client, None)
        self._count_buffered(client, 0)

    async def _reject(self, client: _Connection) -> None:
        self.counts["rejected_connections"] += 1
        limit = self.limits.max_clients
        await client.reply(
            [Failure(f"ERR max number of clients reached: {limit}, so close one or raise --max-clients")]
        )
        await client.flush()

    async def _serve_client(self, client: _Connection) -> None:
        requests = client.requests
        while not client.leaving and (chunk := await client.receive()):
            complete = requests.feed(chunk)
            client.silent = client.silent and not complete
            self._bound_buffered(client)
            await self._answer(client, complete)
            self._bound_buffered(client)
            if requests.broken is not None:
                self.counts["protocol_errors"] += 1
                await client.reply([Failure(f"ERR Protocol error: {requests.broken}")])
                client.leaving = True
            await client.flush()

    def _bound_buffered(self, client: _Connection) -> None:
        """Count what is held for a client now. Where all hold too much together, the one with the most is disconnected."""
        if client not in self._clients:
            return  # it was evicted
        transaction = client.transaction
        held = client.requests.buffered + (transaction.memory if transaction is not None else 0)
        self._count_buffered(client, held)
        while self._buffered > MAX_BUFFERED:
            largest = max(self._clients, key=lambda each: each.buffered)
            if largest is client:
                client.transaction = None
                client.requests.broken = ProtocolError(
                    f"the incomplete requests of all clients have more than {MAX_BUFFERED} bytes, and this one is the "
                    "largest: send it again later"
                )
                self._count_buffered(client, 0)
            else:
                self._evict(
                    largest, "the requests that wait here are too large together, and its are the largest"
                )

    def _count_buffered(self, client: _Connection, held: int) -> None:
        self._buffered += held - client.buffered
        client.buffered = held

    async def _answer(self, client: _Connection, requests: list[Request]) -> None:
        """Answer in order. Consecutive commands of one kind go together."""
        self.counts["commands"] += len(requests)
        steps = (plan(self, client, request) for request in requests)
        for kind, group in groupby(steps, key=itemgetter(0)):
            items = map(itemgetter(1), group)
            if kind is Kind.HERE:
                for answer in items:
                    await client.reply([answer()])
                    if client.leaving:
                        return
            else:
                lane, limit = self._lanes[kind]
                while batch := list(islice(items, limit)):
                    replies = await lane.order(batch)
                    client.unread, client.unread_since = _size(replies), trio.current_time()
                    await client.reply(replies)
                    del replies
                    client.unread, client.unread_since = 0, inf

    async def _watch_unread(self) -> None:
        """Let slow clients keep no more than `MAX_UNREAD`: replies hold values that the store itself may have replaced since."""
        while True:
            await trio.sleep(LOOK_S)
            late_since = trio.current_time() - LOOK_S
            slow = [client for client in self._clients if client.unread_since <= late_since]
            slow.sort(key=lambda each: each.unread)
            held = sum(client.unread for client in slow)
            while held > MAX_UNREAD:
                largest = slow.pop()
                held -= largest.unread
                self._evict(
                    largest, "the replies that clients do not read are too large, and its are the largest"
                )

    # -- INFO

    def role(self) -> str:
        """Return the replica's state in lower case, such as leader or follower."""
        return str(self.replica.status().state.name).lower().replace("_", "-")

    def info(self) -> dict[str, dict[str, object]]:
        """Return the sections of INFO, each with its fields."""
        status = self.replica.status()
        return {
            "Server": {
                "redis_version": REDIS_VERSION,
                "drakkar_version": version("drakkar"),
                "process_id": os.getpid(),
                "uptime_in_seconds": int(time.monotonic() - self._started_at),
                **self.about,
            },
            "Clients": {"connected_clients": len(self._clients), "maxclients": self.limits.max_clients},
            "Stats": {
                "total_connections_received": self.counts["connections"],
                "rejected_connections": self.counts["rejected_connections"],
                "evicted_clients": self.counts["evicted_connections"],
                "total_commands_processed": self.counts["commands"],
                "protocol_errors": self.counts["protocol_errors"],
            },
            "Replication": {
                "role": self.role(),
                "leader": status.leader_id,
                "term": status.term,
                "commit_index": status.commit,
                "applied_index": status.applied,
            },
        }
