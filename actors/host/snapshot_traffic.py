"""Snapshots sent between hosts: from a file here, over a stream of its own, into a file there.

leader's node ─► SnapshotTraffic.send ─► stream ─► SnapshotTraffic.receive ─► a file ─► the follower's node
      ▲                    │
      └─ SNAPSHOT_STATUS ──┘
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, BinaryIO, Final, TypeVar

import pykka
import trio
from drakkar.actors.node.actor import NodeActor
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.actors.snapshots.store import DAMAGED, IncomingSnapshot, SnapshotReader, Snapshots
from drakkar.handlers.errors import CorruptData, DrakkarError, SystemBusy, TransportError
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.snapshot import is_news
from drakkar.handlers.raft.state import Snapshot
from drakkar.transport.frames import HEADER_SIZE
from drakkar.transport.message_frames import decode_messages, encode_messages
from drakkar.transport.streams import StreamSink
from drakkar.transport.tcp import TcpTransport

__all__ = ["SnapshotTraffic"]

logger = logging.getLogger(__name__)

PIECE_BYTES: Final = 1 << 20
MAX_THREADS: Final = 4
"""Threads that read and write files of streams at a time."""

T = TypeVar("T")


class SnapshotTraffic:
    """The snapshots that one host sends and receives. For the loop's thread; other threads read and write the files."""

    def __init__(self, transport: TcpTransport, loop: TrioLoop, nodes: Mapping[int, NodeActor]) -> None:
        """`nodes`: those that this host runs, by shard id."""
        self._transport, self._loop, self._nodes = transport, loop, nodes
        self._sending: set[tuple[int, int]] = set()
        self._receiving: set[int] = set()
        self._threads = trio.CapacityLimiter(MAX_THREADS)

    async def in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Call what blocks on the disk. Not cancelled midway, since the file would be left half written."""
        with trio.CancelScope(shield=True):
            result = await trio.to_thread.run_sync(function, *args, limiter=self._threads)
        return result  # noqa: RET504  # mypy cannot know that this scope cancels nothing

    # -- out ----------------------------------------------------------------------------------------------------

    def send(self, address: str, message: Message, *, temporary: bool) -> None:
        """Send the file of an INSTALL_SNAPSHOT, and report to the node how that ended.

        A `temporary` file is deleted afterwards. One stream to a replica at a time: a second one is reported as failed,
        and the core asks again if it still needs to.
        """
        key = (message.shard, message.to)
        again = key in self._sending
        if not again:
            self._sending.add(key)
        self._loop.spawn(
            self._send, address, message, again, temporary, name=f"snapshot for replica {message.to}"
        )

    async def _send(self, address: str, message: Message, again: bool, temporary: bool) -> None:
        node, snapshot = self._nodes.get(message.shard), message.snapshot
        failed = True
        try:
            if node is not None and snapshot is not None and not again:
                await self._stream(node.snapshots.files, snapshot.payload.decode(), address, message)
                failed = False
        except CorruptData as error:
            if node is not None and snapshot is not None:
                node.peer_snapshots.found_damaged(snapshot, error)
        except DrakkarError as error:
            logger.warning(
                "replica %d of shard %d was not sent its snapshot: %s", message.to, message.shard, error
            )
        finally:
            if not again:
                self._sending.discard((message.shard, message.to))
            if node is not None:
                node.peer_snapshots.was_sent(message.to, failed=failed)
                if temporary and snapshot is not None:
                    await self.in_thread(node.snapshots.files.discard, snapshot.payload.decode())

    async def _stream(self, files: Snapshots, name: str, address: str, message: Message) -> None:
        reader = await self.in_thread(_pinned, files, name)
        try:
            source = _Source(self, reader.raw())
            try:
                await self._transport.send_stream(address, _header(message), source)
            finally:
                await self.in_thread(source.file.close)
        except TransportError as error:
            if DAMAGED in str(error):  # so says the receiver: check whether the file here is damaged
                await self.in_thread(reader.verify)
            raise
        finally:
            await self.in_thread(_unpinned, files, name, reader)

    # -- in -----------------------------------------------------------------------------------------------------

    def receive(self, address: str, header: bytes) -> StreamSink:
        """Return what takes in a snapshot that the host at `address` begins to send.

        Raises `TransportError`, whose text the sender reads, if this host cannot use it.
        """
        messages = decode_messages(header).messages
        message = messages[0] if len(messages) == 1 else None
        if message is None or message.type is not MessageType.INSTALL_SNAPSHOT or message.snapshot is None:
            raise TransportError("a stream must begin with one INSTALL_SNAPSHOT")
        node = self._nodes.get(message.shard)
        if node is None or message.to not in (0, node.raft.id):
            raise TransportError(f"replica {message.to} of shard {message.shard} is not here")
        if not is_news(node.raft, message.snapshot):
            raise TransportError(
                f"{node} needs no snapshot at {message.snapshot.index}: it holds all up to {node.raft.log.committed}"
            )
        if message.shard in self._receiving:
            raise TransportError(f"{node} is receiving a snapshot already: wait for its end")
        self._receiving.add(message.shard)
        logger.info("%s receives the snapshot at %d from %s", node, message.snapshot.index, address)
        return _Arrival(self, node, address, message, lambda: self._receiving.discard(message.shard))


class _Source:
    """Reads a file piece by piece, on a thread."""

    def __init__(self, traffic: SnapshotTraffic, file: BinaryIO) -> None:
        self._traffic, self.file = traffic, file

    async def read(self) -> bytes:
        return await self._traffic.in_thread(self.file.read, PIECE_BYTES)


class _Arrival:
    """Writes a snapshot that arrives to a file and, once that is complete and durable, tells the node."""

    def __init__(
        self,
        traffic: SnapshotTraffic,
        node: NodeActor,
        address: str,
        message: Message,
        on_end: Callable[[], None],
    ) -> None:
        self._traffic, self._node, self._address = traffic, node, address
        self._message, self._on_end = message, on_end
        self._files = node.snapshots.files
        self._incoming: IncomingSnapshot | None = None
        self._gathered: list[bytes] = []
        self._bytes = 0

    async def write(self, data: bytes) -> None:
        self._gathered.append(data)
        self._bytes += len(data)
        if self._bytes >= PIECE_BYTES:
            await self._traffic.in_thread(self._write_gathered)

    def _write_gathered(self) -> None:
        if self._incoming is None:
            self._incoming = self._files.receive()
        gathered, self._gathered, self._bytes = self._gathered, [], 0
        self._incoming.write(b"".join(gathered))

    async def finish(self) -> None:
        snapshot = await self._traffic.in_thread(self._complete)
        message = replace(self._message, snapshot=snapshot)
        try:
            self._node.router.learn(message.sender, self._address)
            self._node.actor_ref.tell(message)
        except (SystemBusy, pykka.ActorDeadError) as error:
            await self._traffic.in_thread(self._give_back, snapshot)
            raise TransportError(f"{self._node} cannot take a snapshot now: {error}") from error
        self._on_end()

    def _complete(self) -> Snapshot:
        self._write_gathered()
        incoming, announced = self._incoming, self._message.snapshot
        assert incoming is not None, "it was just written"
        assert announced is not None, "it was checked when the stream began"
        snapshot, facts = incoming.finish()
        name = snapshot.payload.decode()
        shard = facts.get("shard", self._message.shard)
        if (snapshot.index, snapshot.term, shard) != (announced.index, announced.term, self._message.shard):
            self._files.discard(name)
            raise CorruptData(
                f"a stream announced the snapshot at {announced.index} of shard {self._message.shard}, and brought "
                f"the one at {snapshot.index} of shard {shard}"
            )
        self._files.pin(name)
        return snapshot

    def _give_back(self, snapshot: Snapshot) -> None:
        self._files.discard(snapshot.payload.decode())
        self._files.unpin(snapshot.payload.decode())

    async def abort(self, error: Exception) -> None:
        self._on_end()
        logger.warning("%s did not receive the whole snapshot: %s", self._node, error)
        if self._incoming is not None:
            await self._traffic.in_thread(self._incoming.abort)


def _header(message: Message) -> bytes:
    """Encode the message without its file's name, which means nothing to another host."""
    assert message.snapshot is not None, "INSTALL_SNAPSHOT has one"
    bare = replace(message, snapshot=replace(message.snapshot, payload=b""))
    return encode_messages([bare])[0][HEADER_SIZE:]


def _pinned(files: Snapshots, name: str) -> SnapshotReader:
    files.pin(name)
    try:
        return files.open(name)
    except BaseException:
        files.unpin(name)
        raise


def _unpinned(files: Snapshots, name: str, reader: SnapshotReader) -> None:
    reader.close()
    files.unpin(name)
