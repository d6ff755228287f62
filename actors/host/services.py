"""What a host does for its nodes, and brings to them: both sides of the `NodeActor`s, and no part of the public face."""

import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pykka
import trio
from drakkar.actors.host.snapshot_traffic import SnapshotTraffic
from drakkar.actors.log.store import AppendRequest, Done, LogStore
from drakkar.actors.node.actor import NodeActor
from drakkar.handlers.errors import SystemBusy
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.state import Snapshot
from drakkar.transport.tcp import TcpTransport

__all__ = ["NodeInputs", "NodeServices"]

logger = logging.getLogger(__name__)


class NodeServices:
    """What a host does for its nodes (`node.actor.Services`). For the loop's thread; none of it blocks.

    Only `subscribe` and `announce` may be called from any thread.
    """

    def __init__(
        self, store: LogStore, transport: TcpTransport, traffic: SnapshotTraffic, counters: Counter[str]
    ) -> None:
        self._store, self._transport, self._traffic = store, transport, traffic
        self._counters = counters
        self._lock = threading.Lock()
        self._subscribers: tuple[pykka.ActorRef[Any], ...] = ()

    def send(self, address: str, messages: Sequence[Message]) -> None:
        """Send messages to the host at `address`."""
        self._transport.send(address, messages)

    def save(self, request: AppendRequest) -> None:
        """Make it durable. Raises `SystemBusy` when too much waits."""
        self._store.save(request)

    def record_snapshot(
        self, shard_id: int, replica_id: int, snapshot: Snapshot, done: Done | None = None
    ) -> None:
        """Remember a snapshot that was taken."""
        self._store.record_snapshot(shard_id, replica_id, snapshot, done)

    def compact(self, shard_id: int, replica_id: int, index: int) -> None:
        """Delete the log up to `index`, which a snapshot covers."""
        self._store.compact(shard_id, replica_id, index)

    def send_snapshot(self, address: str, message: Message, *, temporary: bool) -> None:
        """Stream the file of an INSTALL_SNAPSHOT to the host at `address`."""
        self._traffic.send(address, message, temporary=temporary)

    def subscribe(self, ref: pykka.ActorRef[Any]) -> None:
        """Tell an actor of all events from now on."""
        with self._lock:
            self._subscribers = (*self._subscribers, ref)

    def announce(self, event: object) -> None:
        """Tell the subscribers. One that cannot take an event is told no more."""
        for ref in self._subscribers:
            try:
                ref.tell(event)
            except (pykka.ActorDeadError, SystemBusy) as error:
                self._counters["events lost"] += 1
                logger.warning("%s is told no more events: %s", ref, error)
                with self._lock:
                    self._subscribers = tuple(other for other in self._subscribers if other is not ref)


class NodeInputs:
    """Brings nodes the messages of other hosts, the ticks of the clock and the loss of peers. For the loop's thread."""

    def __init__(self, nodes: Mapping[int, NodeActor], counters: Counter[str]) -> None:
        """`nodes`: those that run, by shard."""
        self._nodes, self._counters = nodes, counters

    def deliver(self, address: str, messages: list[Message]) -> None:
        """Hand over what the host at `address` sent."""
        for message in messages:
            node = self._nodes.get(message.shard)
            if node is None:
                self._counters["messages for shards that are not here"] += 1
                continue
            if message.snapshot is not None and not message.snapshot.witness:
                self._counters["snapshots that came without a stream"] += 1
                continue
            if message.sender not in node.raft.membership.addresses:
                node.router.learn(message.sender, address)
            try:
                node.actor_ref.tell(message)
            except (SystemBusy, pykka.ActorDeadError):
                self._counters["messages for nodes that could not take them"] += 1

    def report_unreachable(self, address: str) -> None:
        """Tell the nodes that have a peer at `address` that messages to it were lost."""
        for node in list(self._nodes.values()):
            for replica, known in node.raft.membership.addresses.items():
                if known == address:
                    self._tell(node, Message(MessageType.UNREACHABLE, sender=replica))

    async def tick(self, interval: float) -> None:
        """Tell all nodes every `interval` seconds that a tick has passed. Never returns.

        A stalled host does not make up for the ticks that it missed: it would elect before it has listened.
        """
        due = trio.current_time() + interval
        while True:
            await trio.sleep_until(due)
            due = max(due + interval, trio.current_time())
            for node in list(self._nodes.values()):
                if not node.tick_waits:
                    node.tick_waits = self._tell(node, Message(MessageType.LOCAL_TICK))

    def _tell(self, node: NodeActor, message: Message) -> bool:
        try:
            node.actor_ref.tell(message)
        except SystemBusy:
            self._counters["messages for nodes that could not take them"] += 1
            return False
        except pykka.ActorDeadError:
            logger.debug("%s ended a moment ago", node)
            return False
        return True
