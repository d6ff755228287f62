"""What a host does for its nodes, and brings to them: both sides of the `NodeActor`s, and no part of the public face."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import pykka
import trio
from drakkar.actors.host.commit_timer import CommitTimer
from drakkar.actors.host.snapshot_traffic import SnapshotTraffic
from drakkar.actors.host.subscribers import Subscribers
from drakkar.actors.log.store import AppendRequest, Done, LogStore
from drakkar.actors.node.actor import NodeActor
from drakkar.actors.node.introductions import Introduced
from drakkar.actors.runtime.log_lines import Lines
from drakkar.handlers.errors import SystemBusy
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.lanes import not_sent
from drakkar.handlers.raft.lives import home_number
from drakkar.handlers.raft.state import Snapshot
from drakkar.transport.addresses import same_host
from drakkar.transport.frames import FrameError
from drakkar.transport.shard_frames import ShardHello
from drakkar.transport.tcp import TcpTransport

__all__ = ["NodeInputs", "NodeServices"]

TICK_TOGETHER: Final = 16
"""Nodes that are told of a tick all at once."""
TICK_PARTS: Final = 8
"""Where there are more, one eighth after the other: some 10 ms apart by default, as few wake-ups as that is worth."""


_UNTAKEN: Final = "messages for nodes that could not take them"
MAX_SHARDS: Final = 1 << 20
"""Shards that one host may have."""
MAX_AHEAD: Final = 1 << 18
"""What other hosts have said of shards that are not here, and may be about to start, is remembered: so many replicas and
founders of them, over all hosts, in some 100 MB. Of more, that of the host which has said most is forgotten."""


class NodeServices:
    """What a host does for its nodes (`node.actor.Services`). For the loop's thread; none of it blocks.

    Only `announce` may be called from any thread.
    """

    def __init__(
        self,
        store: LogStore,
        transport: TcpTransport,
        traffic: SnapshotTraffic,
        commit_timer: CommitTimer,
        counters: Counter[str],
        lines: Lines,
    ) -> None:
        self._store, self._transport, self._traffic = store, transport, traffic
        self._commit_timer = commit_timer
        self._known_at: set[str] = set()
        """The addresses of hosts to which a replica was introduced when it started."""
        self.subscribers = Subscribers(counters, lines)

    def send(self, address: str, messages: Sequence[Message]) -> None:
        """Send messages to the host at `address`."""
        self._transport.send(address, messages)

    def recall(self, address: str, message: Message) -> None:
        """See `node.actor.Services`."""
        self._transport.recall(address, message)

    def charge(self, address: str, count: int) -> None:
        """See `node.actor.Services`."""
        self._transport.charge(address, count)

    def proves(self, speaker: str, address: str) -> bool:
        """See `node.introductions.IntroductionServices`."""
        return self._transport.proves(speaker, address)

    def confirms(self, address: str) -> bool:
        """See `node.introductions.IntroductionServices`."""
        return self._transport.is_at_home(address)

    def reachable(self, address: str) -> bool:
        """See `node.actor.Services`."""
        return self._transport.reachable(address)

    def lane_room(self, address: str, shard: int, least: int) -> int:
        """See `node.actor.Services`."""
        return self._transport.room(address, shard, least)

    def introduce(self, address: str, shard_id: int) -> None:
        """See `node.introductions.IntroductionServices`."""
        self._transport.introduce(address, shard_id)

    def make_known(self, address: str, shard_id: int) -> None:
        """See `node.introductions.IntroductionServices`."""
        if address not in self._known_at:
            self._known_at.add(address)
            self._transport.introduce(address, shard_id)

    def reintroduce(self, shard_id: int) -> None:
        """See `node.introductions.IntroductionServices`."""
        self._transport.reintroduce(shard_id)

    def lane_waiting(self, address: str, shard: int) -> int:
        """See `node.actor.Services`."""
        return self._transport.waiting(address, shard)

    def save(self, request: AppendRequest) -> None:
        """Make it durable. Raises `SystemBusy` when too much waits."""
        self._store.save(request)

    def written(self) -> int:
        """Return how many writes the log store has done since it was opened."""
        return self._store.written

    def room(self, size: int) -> bool:
        """Return whether the log store has room for `size` bytes of entries beside all that waits in it."""
        return self._store.room(size)

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

    def commit_untold(self, shard_id: int, *, untold: bool) -> None:
        """Let COMMIT_DUE come about a millisecond from now, or not at all."""
        if untold:
            self._commit_timer.start(shard_id)
        else:
            self._commit_timer.cancel(shard_id)

    def announce(self, event: object) -> None:
        """Tell the subscribers. Never raises."""
        self.subscribers.tell(event)


class IntroducedShards:
    """What a host that has opened a connection has said there of its replicas."""

    __slots__ = ("_ahead", "address", "ahead", "home", "shards")

    def __init__(self, address: str, home: int) -> None:
        self.address, self.home = address, home
        self.shards: dict[int, ShardHello] = {}
        """By shard."""
        self._ahead: set[int] = set()
        """Those of the shards that were not here when it said so."""
        self.ahead = 0
        """Replicas and founders of these that are remembered."""

    def add(self, hello: ShardHello, *, here: bool) -> bool:
        """Remember what the host says of a replica; return whether it is the first that it says of that shard.

        `here`: the shard is on this host. Raises `FrameError` where it has more shards than any.
        """
        first = hello.shard not in self.shards
        if len(self.shards) >= MAX_SHARDS and first:
            raise FrameError(f"a host introduces more than {MAX_SHARDS} shards")
        if hello.shard in self._ahead:
            self._ahead.discard(hello.shard)
            self.ahead -= 1 + len(self.shards[hello.shard].founders)
        if not here:
            self._ahead.add(hello.shard)
            self.ahead += 1 + len(hello.founders)
        self.shards[hello.shard] = hello
        return first

    def forget_ahead(self) -> None:
        """Forget what the host says of shards that are not here."""
        for shard in self._ahead:
            del self.shards[shard]
        self._ahead.clear()
        self.ahead = 0


class NodeInputs:
    """Brings nodes messages of other hosts, ticks of the clock and news of connections. For the loop's thread."""

    def __init__(
        self,
        nodes: Mapping[int, NodeActor],
        counters: Counter[str],
        charge: Callable[[str, int], object] = lambda *_: None,
        *,
        certified: bool = False,
    ) -> None:
        """`nodes`: those that run, by shard. `charge`: see `TcpTransport`.

        `certified`: hosts show certificates for the addresses that they name.
        """
        self._nodes, self._counters, self._charge = nodes, counters, charge
        self._certified = certified
        self._callers: dict[str, IntroducedShards] = {}
        """By address, the hosts that have a connection to this one, and what they have said on it."""
        self._ahead = 0
        """The sum of what they have `ahead`."""

    def greet(self, address: str, host_id: str) -> None:
        """A host has opened a connection for its messages, in place of the one that it had."""
        self.forget(address)
        self._callers[address] = IntroducedShards(address, home_number(host_id))

    def forget(self, address: str) -> None:
        """The connection of a host has ended."""
        caller = self._callers.pop(address, None)
        if caller is not None:
            self._ahead -= caller.ahead
            caller.shards.clear()  # nodes still refer to the caller

    def hear_introduction(self, address: str, hello: ShardHello) -> None:
        """The host at `address` tells what its replica of a shard says of itself. The messages of the replica follow."""
        caller = self._callers.get(address)
        if caller is None:
            self._counters["messages of replicas that were not introduced"] += 1
            return
        node = self._nodes.get(hello.shard)
        before = caller.ahead
        first = caller.add(hello, here=node is not None)
        self._note_ahead(caller.ahead - before)
        if not first or node is None:
            self._charge(address, 1)
        if node is not None:
            try:
                self._introduce(node, caller, hello.replica)
            except (SystemBusy, pykka.ActorDeadError):  # its first message does so again
                self._counters[_UNTAKEN] += 1

    def _note_ahead(self, more: int) -> None:
        """Count what is said of shards that are not here. Forget that of the host which has said most, if it is too much."""
        self._ahead += more
        if self._ahead > MAX_AHEAD:
            most = max(self._callers.values(), key=lambda caller: caller.ahead)
            self._ahead -= most.ahead
            self._counters["introductions forgotten"] += most.ahead
            most.forget_ahead()

    def introduction(self, shard_id: int) -> bytes | None:
        """Return what the replica of a shard says of itself to other hosts; None where none runs."""
        node = self._nodes.get(shard_id)
        return node.introductions.body if node is not None else None

    def _introduce(self, node: NodeActor, caller: IntroducedShards, replica: int) -> bool:
        """Tell a node what a replica has said of itself on this connection; return False where that is not known.

        Raises `SystemBusy` and `pykka.ActorDeadError` where the node cannot take it.
        """
        hello = caller.shards.get(node.raft.config.shard_id)
        if hello is None or hello.replica != replica:
            self._counters["messages of replicas that were not introduced"] += 1
            return False
        node.actor_ref.tell(Introduced(hello, caller.home, caller.address, self._certified))
        node.introductions.heard_on[replica] = caller
        return True

    def deliver(self, address: str, messages: list[Message]) -> None:
        """Hand over what the host at `address` sent, and charge it for what is of no use."""
        caller = self._callers.get(address)
        if caller is None:
            self._counters["messages of replicas that were not introduced"] += len(messages)
            self._charge(address, len(messages))
            return
        useless = 0
        for message in messages:
            node = self._nodes.get(message.shard)
            if node is None:
                self._counters["messages for shards that are not here"] += 1
                useless += 1
                continue
            if message.snapshot is not None and not message.snapshot.witness:
                self._counters["snapshots that came without a stream"] += 1
                useless += 1
                continue
            sender = message.sender
            try:
                known = node.introductions.heard_on.get(sender) is caller
                if known or self._introduce(node, caller, sender):
                    node.actor_ref.tell(message)
                else:
                    useless += 1
            except (SystemBusy, pykka.ActorDeadError):
                useless += self._drop_untaken(node, address, message)
        if useless:
            self._charge(address, useless)

    def _drop_untaken(self, node: NodeActor, address: str, message: Message) -> bool:
        """A node could not take a message. Return whether its host is to be charged: never that of a member.

        A node that has too much to do is no fault of its members: their other shards would not be heard.
        """
        self._counters[_UNTAKEN] += 1
        if not node.introductions.is_members(message.sender, address):
            return True
        node.refuse_untaken(message)
        return False

    def report_unreachable(self, address: str) -> None:
        """Tell the nodes that have a peer at `address` that its connection was lost, or cannot be made.

        Those whose table has a handler for it in their state, that is leaders. Where one host led hundreds of shards, the others
        have to elect new leaders now, and each attempt to connect would cost as many turns.
        """
        for node in list(self._nodes.values()):
            if node.raft.handlers[node.raft.state][MessageType.UNREACHABLE]:
                self._tell_of(node, address, MessageType.UNREACHABLE)

    def report_drained(self, address: str, shards: Sequence[int]) -> None:
        """Tell the nodes of these shards that there is room again for bulk messages to the host at `address`."""
        for shard in shards:
            node = self._nodes.get(shard)
            if node is not None:
                self._tell_of(node, address, MessageType.LANE_DRAINED)

    def hand_back(self, _address: str, messages: Sequence[Message]) -> None:
        """Tell the nodes that sent these messages that they were not sent."""
        for message in messages:
            node = self._nodes.get(message.shard)
            if node is not None and node.raft.id == message.sender:
                node.hear(not_sent(message))

    @staticmethod
    def _tell_of(node: NodeActor, address: str, what: MessageType) -> None:
        for replica, known in node.raft.membership.addresses.items():
            if same_host(known, address):
                node.hear(Message(what, sender=replica))

    def tell_commit_due(self, shard_id: int) -> None:
        """Tell a node that its peers are to be told of a commit. One that cannot take it will ask again."""
        node = self._nodes.get(shard_id)
        if node is not None:
            node.notice_waits = False
            self._tell(node, Message(MessageType.COMMIT_DUE))

    async def tick(self, interval: float, first: Callable[[], None]) -> None:
        """Tell each node every `interval` seconds that a tick has passed; call `first` as often. Never returns.

        The ticks of many nodes are spread over the interval: those of a thousand would hold up for 0.1 s what
        clients ask.

        A stalled host does not make up for the ticks that it missed: it would elect before it has listened.
        """
        due = trio.current_time() + interval
        while True:
            parts = TICK_PARTS if len(self._nodes) > TICK_TOGETHER else 1
            for part in range(parts):
                await trio.sleep_until(due)
                due = max(due + interval / parts, trio.current_time())
                if part == 0:
                    first()
                for shard, node in list(self._nodes.items()):
                    if shard % parts == part and not node.tick_waits:
                        node.tick_waits = self._tell(node, Message(MessageType.LOCAL_TICK))

    def _tell(self, node: NodeActor, message: Message) -> bool:
        try:
            node.actor_ref.tell(message)
        except SystemBusy:
            self._counters[_UNTAKEN] += 1
            return False
        except pykka.ActorDeadError:
            return False  # it ended a moment ago
        return True
