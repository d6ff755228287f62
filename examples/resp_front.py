"""A Redis front for a replica of a key-value state machine: any host's, since writes find their leader.

What clients ask for is sorted into three kinds. Some the front answers by itself. Reads and writes go to the
replica in lanes: whatever all connections ask for while a request is on its way travels together in the next
one, because a request to the replica costs nearly the same for one command and for a thousand.

Of a connection, everything is answered in order: its next request is looked at when the last one is answered. So
effects happen in order too, and a client that does not read its replies is not read from.
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
from drakkar.handlers.errors import DrakkarError, OutcomeUnknown, ReplicaStopped, RequestDropped, SystemBusy
from drakkar.transport.backoff import Backoff

from examples.resp import Failure, ProtocolError, Reply, Request, Requests, pieces
from examples.resp_commands import REDIS_VERSION, Client, Kind, Limits, plan

__all__ = ["Front", "Lane", "Replica"]

_log: Final = logging.getLogger(__name__)

RECEIVE: Final = 64 << 10
"""Bytes read at once, and so the bound on how much a client can have pipelined ahead of its replies."""

FLUSH: Final = 64 << 10
"""Bytes of replies gathered before they are sent."""

MAX_REQUEST: Final = 32 << 20
"""Bytes of one request, large ones included that are going to be refused politely."""

MAX_BUFFERED: Final = 128 << 20
"""Bytes of unfinished requests, over all connections."""

MAX_BATCH: Final = 1 << 20
"""Bytes of commands that travel together; a larger command travels alone."""

MAX_KEYS: Final = 10_000
"""Keys that are read together."""


class Replica(Protocol):
    """What the front needs of a `drakkar.actors.Replica`."""  # Its futures can be awaited.

    def propose_many(self, commands: list[bytes], *, timeout: float) -> Awaitable[list[Any]]:
        """Have the commands applied, in order; the results."""

    def read(self, query: Any, *, timeout: float) -> Awaitable[Any]:
        """Ask the state machine, once it is up to date."""

    def status(self) -> Any:
        """Tell where the replica stands."""


# -- Lanes to the replica ---------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class _Order:
    """What one connection waits for."""

    items: list[Any]
    weight: int
    deadline: float
    replies: list[Reply] = field(default_factory=list)
    done: trio.Event = field(default_factory=trio.Event)


class Lane:
    """Carries what all connections want at the same moment, in few requests that each hold much.

    `WIDTH` requests are on their way at a time, and each takes all that waits, up to `max_weight`. One that takes
    longer than `PATIENCE`, because its leader is gone, gives its place to another, so that nobody has to wait for
    it but those who are in it; `MOST` is the bound on these.

    A request that surely had no effect is repeated, less and less often, until its deadline: while a leader is
    elected, clients see a pause instead of errors.
    """

    WIDTH: Final = 4
    PATIENCE: Final = 0.25
    MOST: Final = 64
    FIRST_WAIT: Final = 0.01
    MAX_WAIT: Final = 0.16

    def __init__(
        self,
        request: Callable[[list[Any], float], Awaitable[list[Reply]]],
        *,
        limits: Limits,
        max_weight: int,
        may_repeat: tuple[type[DrakkarError], ...],
    ) -> None:
        """`request(items, timeout)` answers as many items; `may_repeat` are the errors that leave no trace."""
        self._request, self._limits, self._max_weight = request, limits, max_weight
        self._may_repeat = may_repeat
        self._orders: deque[_Order] = deque()
        self._ordered = trio.lowlevel.ParkingLot()
        self._under_way: list[float] = []
        self._returned = trio.lowlevel.ParkingLot()

    async def order(self, items: list[Any]) -> list[Reply]:
        """Have `items` answered, in order. What goes wrong is in the replies, as a `Failure` for each."""
        placed = _Order(items, sum(map(len, items)), trio.current_time() + self._limits.timeout)
        self._orders.append(placed)
        self._ordered.unpark()
        await placed.done.wait()
        return placed.replies

    async def run(self) -> None:
        """Carry until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                while not self._orders:
                    await self._ordered.park()
                await self._wait_for_a_place()
                nursery.start_soon(self._carry, list(self._take()))

    async def _wait_for_a_place(self) -> None:
        while True:
            lately = trio.current_time() - self.PATIENCE
            recent = [began for began in self._under_way if began > lately]
            if len(recent) < self.WIDTH and len(self._under_way) < self.MOST:
                return
            with trio.move_on_at(min(recent, default=inf) + self.PATIENCE):
                await self._returned.park()

    def _take(self) -> Iterator[_Order]:
        weight = 0
        while self._orders and (not weight or weight + self._orders[0].weight <= self._max_weight):
            order = self._orders.popleft()
            weight += order.weight
            yield order

    async def _carry(self, orders: list[_Order]) -> None:
        began = trio.current_time()
        self._under_way.append(began)
        items = [item for order in orders for item in order.items]
        replies = iter(await self._deliver(items, orders[0].deadline))
        for order in orders:
            order.replies = list(islice(replies, len(order.items)))
            order.done.set()
        self._under_way.remove(began)
        self._returned.unpark()

    async def _deliver(self, items: list[Any], deadline: float) -> list[Reply]:
        backoff = Backoff(self.FIRST_WAIT, self.MAX_WAIT)
        while True:
            remaining = max(deadline - trio.current_time(), self.FIRST_WAIT)
            try:
                return await self._request(items, min(remaining, self._limits.attempt))
            except DrakkarError as error:
                wait = backoff.next()
                if trio.current_time() + wait >= deadline or not isinstance(error, self._may_repeat):
                    return [_failure(error)] * len(items)
            except Exception:  # noqa: BLE001  # a lane that stops leaves all clients waiting
                _log.exception("a request of %d items failed", len(items))
                return [Failure("ERR this host failed to answer: its log says why")] * len(items)
            await trio.sleep(wait)


def _failure(error: DrakkarError) -> Failure:
    match error:
        case SystemBusy():
            return Failure(f"TRYAGAIN not executed, this host is busy: {error}")
        case RequestDropped():
            return Failure(f"CLUSTERDOWN not executed, so send it again: {error}")
        case ReplicaStopped():
            return Failure(f"CLUSTERDOWN not executed, so ask another host: {error}")
        case OutcomeUnknown():
            return Failure(
                f"UNKNOWN it may have been executed, or may be yet, so read before sending it again: {error}"
            )
        case _:
            return Failure(f"ERR {error}")


# -- The front --------------------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True, kw_only=True)
class _Connection(Client):
    """One client, and what is not yet sent to it."""

    stream: trio.SocketStream
    _out: bytearray = field(default_factory=bytearray)

    async def reply(self, replies: Iterable[Reply]) -> None:
        """Write the replies, and wait for the client to read where they are many."""
        for reply in replies:
            for piece in pieces(reply, resp3=self.resp3):
                self._out += piece
                if len(self._out) >= FLUSH:
                    await self.flush()

    async def flush(self) -> None:
        """Send what is written."""
        if self._out:
            out, self._out = self._out, bytearray()
            await self.stream.send_all(out)


class Front:
    """Answers Redis clients on behalf of `replica`.

    Construct and run it within trio. `about` are lines that INFO shows beside the replica's own, such as where
    things listen.
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
        self._started = time.monotonic()
        self._clients: set[_Connection] = set()
        self._buffered = 0
        self.counts = dict.fromkeys(("connections", "rejected_connections", "commands", "protocol_errors"), 0)

    async def serve(self, listeners: list[trio.SocketListener]) -> None:
        """Answer whoever connects, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._writes.run)
            nursery.start_soon(self._reads.run)
            await trio.serve_listeners(self._welcome, listeners)

    # -- One connection

    async def _welcome(self, stream: trio.SocketStream) -> None:
        """Serve one client; whatever happens to it stays with it."""
        self.counts["connections"] += 1
        client = _Connection(stream=stream, number=self.counts["connections"])
        try:
            async with stream:
                if len(self._clients) >= self.limits.max_clients:
                    await self._reject(client)
                    return
                self._clients.add(client)
                await self._converse(client)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            _log.debug("client %d went away", client.number)
        except Exception:  # noqa: BLE001  # one client's trouble must not become the others'
            _log.exception("client %d was disconnected by an error", client.number)
        finally:
            self._clients.discard(client)

    async def _reject(self, client: _Connection) -> None:
        self.counts["rejected_connections"] += 1
        most = self.limits.max_clients
        await client.reply(
            [Failure(f"ERR max number of clients reached: {most}, so close one or raise --max-clients")]
        )
        await client.flush()

    async def _converse(self, client: _Connection) -> None:
        requests = Requests(MAX_REQUEST)
        try:
            while not client.leaving and (chunk := await client.stream.receive_some(RECEIVE)):
                await self._answer(client, self._take_in(requests, chunk))
                if requests.broken is not None:
                    self.counts["protocol_errors"] += 1
                    await client.reply([Failure(f"ERR Protocol error: {requests.broken}")])
                    client.leaving = True
                await client.flush()
        finally:
            self._buffered -= requests.buffered

    def _take_in(self, requests: Requests, chunk: bytes) -> list[Request]:
        self._buffered -= requests.buffered
        complete = requests.feed(chunk)
        self._buffered += requests.buffered
        if self._buffered > MAX_BUFFERED:
            requests.broken = ProtocolError(
                f"requests of all clients together have more than {MAX_BUFFERED} bytes"
            )
        return complete

    async def _answer(self, client: _Connection, requests: list[Request]) -> None:
        """Answer in order; what follows each other and is of one kind goes together."""
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
                lane, most = self._lanes[kind]
                while some := list(islice(items, most)):
                    await client.reply(await lane.order(some))

    # -- What INFO shows

    def role(self) -> str:
        """Name the replica's state: leader, follower, candidate."""
        return str(self.replica.status().state.name).lower().replace("_", "-")

    def info(self) -> dict[str, dict[str, object]]:
        """Gather the sections of INFO, and their fields."""
        status = self.replica.status()
        return {
            "Server": {
                "redis_version": REDIS_VERSION,
                "drakkar_version": version("drakkar"),
                "process_id": os.getpid(),
                "uptime_in_seconds": int(time.monotonic() - self._started),
                **self.about,
            },
            "Clients": {"connected_clients": len(self._clients), "maxclients": self.limits.max_clients},
            "Stats": {
                "total_connections_received": self.counts["connections"],
                "rejected_connections": self.counts["rejected_connections"],
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
