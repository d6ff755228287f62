"""Snapshots sent between hosts: from a file here, over a stream of its own, into a file there.

leader's node ─► SnapshotTraffic.send ─► stream ─► SnapshotTraffic.receive ─► a file ─► the follower's node
      ▲                    │
      └─ SNAPSHOT_STATUS ──┘
"""

from collections.abc import Hashable, Mapping
from contextlib import suppress
from dataclasses import replace
from struct import Struct
from typing import BinaryIO, Final

import pykka
from drakkar.actors.host.file_threads import FileThreads
from drakkar.actors.host.snapshot_room import DiskReservation, SnapshotRoom
from drakkar.actors.node.actor import NodeActor
from drakkar.actors.node.introductions import Introduced
from drakkar.actors.runtime.log_lines import Lines
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.actors.snapshots.store import IncomingSnapshot, SnapshotReader, Snapshots
from drakkar.handlers.errors import CorruptData, DrakkarError, SystemBusy, TransportError
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.lives import home_number
from drakkar.handlers.raft.snapshot import is_news
from drakkar.handlers.raft.state import Snapshot
from drakkar.transport.frames import HEADER_SIZE, FrameError
from drakkar.transport.message_frames import decode_messages, encode_messages
from drakkar.transport.reminders import Reminders, and_others
from drakkar.transport.shard_frames import ShardHello, decode_shard
from drakkar.transport.streams import DAMAGED, StreamSink
from drakkar.transport.tcp import TcpTransport

__all__ = ["SnapshotTraffic"]

PIECE_BYTES: Final = 1 << 20
_LENGTH: Final = Struct(">I")
"""Of the introduction in a header."""


class SnapshotTraffic:
    """The snapshots that one host sends and receives. For the loop's thread; other threads read and write the files."""

    def __init__(
        self,
        transport: TcpTransport,
        loop: TrioLoop,
        nodes: Mapping[int, NodeActor],
        threads: FileThreads,
        room: SnapshotRoom,
        lines: Lines,
    ) -> None:
        """`nodes`: those that this host runs, by shard id. `room`: on the disk to which snapshots are written."""
        self._lines = lines
        self._transport, self._loop, self._nodes = transport, loop, nodes
        self._sending: set[tuple[int, int]] = set()
        self._receiving: set[tuple[int, str]] = set()
        """Shards, and the hosts from which their snapshots come: one that never ends does not keep out the leader's."""
        self._reminders = Reminders()
        self.threads, self.room = threads, room

    @property
    def sending(self) -> int:
        """Snapshots that are being sent. From any thread, as is `receiving`."""
        return len(self._sending)

    @property
    def receiving(self) -> int:
        """Snapshots that are being received."""
        return len(self._receiving)

    def lines_of(self, node: NodeActor) -> Lines:
        """Return the logger for what is about a replica."""
        return self._lines.about(node.raft.config.shard_id, node.raft.id)

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
                await self._stream(node, snapshot.payload.decode(), address, message)
                failed = False
                self.lines_of(node).info(
                    "sent the snapshot at %d to replica %d at %s", snapshot.index, message.to, address
                )
        except CorruptData as error:
            if node is not None and snapshot is not None:
                node.peer_snapshots.found_damaged(snapshot, error)
        except DrakkarError as error:
            self.warn(
                (message.shard, message.to),
                self._lines.about(message.shard, message.sender),
                "replica %d at %s was not sent its snapshot: %s",
                message.to,
                address,
                error,
            )
        finally:
            if not again:
                self._sending.discard((message.shard, message.to))
            if node is not None:
                node.peer_snapshots.was_sent(message.to, failed=failed)
                if temporary and snapshot is not None:
                    with suppress(TransportError):  # the host stops: its next start deletes the file
                        await self.threads.write(
                            _outgoing(message), node.snapshots.files.discard, snapshot.payload.decode()
                        )

    def warn(self, cause: Hashable, lines: Lines, text: str, *args: object) -> None:
        """Warn of what became of a snapshot, once a minute for each cause; see `Reminders`."""
        count = self._reminders.due((text, cause))
        if count:
            lines.warning(text + "%s", *args, and_others(count))

    async def _stream(self, node: NodeActor, name: str, address: str, message: Message) -> None:
        files, introduction, what = node.snapshots.files, node.introductions.body, _outgoing(message)
        reader = await self.threads.read(what, _pinned, files, name)
        try:
            source = _Source(self, reader.raw(), what)
            announced = replace(message, snapshot=replace(message.snapshot, size=reader.snapshot.size))
            try:
                await self._transport.send_stream(address, _header(introduction, announced), source)
            finally:
                await self.threads.read(what, source.file.close)
        except TransportError as error:
            if DAMAGED in str(error):  # so says the receiver: check whether the file here is damaged
                await self.threads.read(what, reader.verify)
            raise
        finally:
            await self.threads.read(what, _unpinned, files, name, reader)

    # -- in -----------------------------------------------------------------------------------------------------

    def receive(self, address: str, header: bytes, *, member: bool) -> StreamSink:
        """Return what takes in a snapshot that the host at `address` begins to send.

        `member`: that host has shown that it is a member of a shard of this one.

        Raises `TransportError`, whose text the sender reads, if this host cannot use it.
        """
        hello, messages = _read_header(header)
        message = messages[0] if len(messages) == 1 else None
        if message is None or message.type is not MessageType.INSTALL_SNAPSHOT or message.snapshot is None:
            raise FrameError("a stream must begin with one INSTALL_SNAPSHOT")
        if (hello.shard, hello.replica) != (message.shard, message.sender):
            raise FrameError("a stream must begin with the introduction of its sender")
        if message.snapshot.size <= 0:
            raise FrameError("a stream must say how many bytes it brings")
        node = self._nodes.get(message.shard)
        if node is None or message.to not in (0, node.raft.id):
            raise TransportError(f"replica {message.to} of shard {message.shard} is not here")
        home = home_number(self._transport.host_id_at(address))
        said = Introduced(hello, home, address, self._transport.certified)
        if (objection := node.introductions.objection(said, message)) is not None:
            raise TransportError(f"{node} refuses {said}: {objection}")
        self._check_use(node, address, message)
        arrival = _Arrival(self, node, said, message, member=member)
        self._receiving.add(arrival.key)
        self.lines_of(node).debug("receives the snapshot at %d from %s", message.snapshot.index, address)
        return arrival

    def _check_use(self, node: NodeActor, address: str, message: Message) -> None:
        """Raise `TransportError` where a snapshot is of no use now."""
        raft, snapshot = node.raft, message.snapshot
        assert snapshot is not None, "it was checked"
        if message.term < raft.term:
            raise TransportError(
                f"{node} is in term {raft.term}, and takes no snapshot of term {message.term}"
            )
        if not is_news(raft, snapshot):
            raise TransportError(
                f"{node} needs no snapshot at {snapshot.index}: it holds all up to {raft.log.committed}"
            )
        if (message.shard, address) in self._receiving:
            raise TransportError(f"{node} is receiving a snapshot from {address} already: wait for its end")

    def ended(self, arrival: "_Arrival") -> None:
        """A snapshot has arrived, or was given up."""
        self._receiving.discard(arrival.key)


class _Source:
    """Reads a file piece by piece, on a thread."""

    def __init__(self, traffic: SnapshotTraffic, file: BinaryIO, what: str) -> None:
        self._traffic, self.file, self._what = traffic, file, what

    async def read(self) -> bytes:
        return await self._traffic.threads.read(self._what, self.file.read, PIECE_BYTES)


class _Arrival:
    """Writes a snapshot that arrives to a file and, once that is complete and durable, tells the node."""

    def __init__(
        self,
        traffic: SnapshotTraffic,
        node: NodeActor,
        said: Introduced,
        message: Message,
        *,
        member: bool,
    ) -> None:
        assert message.snapshot is not None, "it was checked when the stream began"
        self._traffic, self._node, self._said, self._address = traffic, node, said, said.address
        self._message, self._announced, self._member = message, message.snapshot, member
        self.key = (message.shard, said.address)
        self._reservation: DiskReservation | None = None
        self._rest = self._announced.size
        """Bytes that are still to come."""
        self._files = node.snapshots.files
        self._incoming: IncomingSnapshot | None = None
        self._gathered: list[bytes] = []
        self._bytes = 0
        self._what = f"the snapshot for {node} from {said.address}"

    async def begin(self) -> None:
        await self._traffic.threads.write(self._what, self._open)

    def _open(self) -> None:
        self._reservation = self._traffic.room.reserve(self._announced.size, member=self._member)
        self._incoming = self._files.receive()

    async def write(self, data: bytes) -> None:
        self._rest -= len(data)
        if self._rest < 0:
            raise FrameError(f"a stream announced {self._announced.size} bytes, and brings more")
        self._gathered.append(data)
        self._bytes += len(data)
        if self._bytes >= PIECE_BYTES:
            await self._traffic.threads.write(self._what, self._write_gathered)

    def _write_gathered(self) -> None:
        assert self._incoming is not None, "it has begun"
        assert self._reservation is not None, "it has begun"
        gathered, size = self._gathered, self._bytes
        self._gathered, self._bytes = [], 0
        with self._traffic.room.writing(self._reservation, size):
            self._incoming.write(b"".join(gathered))

    async def finish(self) -> None:
        if self._rest:
            raise FrameError(
                f"a stream announced {self._announced.size} bytes, and ended {self._rest} before that"
            )
        snapshot = await self._traffic.threads.write(self._what, self._complete)
        message = replace(self._message, snapshot=snapshot)
        try:
            # Before its next message on another connection, it is introduced anew.
            self._node.introductions.heard_on.pop(message.sender, None)
            self._node.actor_ref.tell(self._said)
            self._node.actor_ref.tell(message)
        except (SystemBusy, pykka.ActorDeadError) as error:
            await self._traffic.threads.write(self._what, self._give_back, snapshot)
            raise TransportError(f"{self._node} cannot take a snapshot now: {error}") from error
        self._traffic.lines_of(self._node).info(
            "received the snapshot at %d from replica %d at %s",
            snapshot.index,
            message.sender,
            self._address,
        )
        self._end()

    def _end(self) -> None:
        self._traffic.ended(self)
        if self._reservation is not None:
            self._traffic.room.give_back(self._reservation)

    def _complete(self) -> Snapshot:
        self._write_gathered()
        incoming, announced = self._incoming, self._announced
        assert incoming is not None, "it has begun"
        snapshot, facts = incoming.finish()
        name = snapshot.payload.decode()
        shard = facts.get("shard", self._message.shard)
        if (snapshot.index, snapshot.term, shard) != (announced.index, announced.term, self._message.shard):
            self._files.discard(name)
            raise FrameError(
                f"a stream announced the snapshot at {announced.index} of shard {self._message.shard}, and brought "
                f"the one at {snapshot.index} of shard {shard}"
            )
        self._files.pin(name)
        return snapshot

    def _give_back(self, snapshot: Snapshot) -> None:
        self._files.discard(snapshot.payload.decode())
        self._files.unpin(snapshot.payload.decode())

    async def abort(self, error: Exception) -> None:
        self._traffic.warn(
            # All who are no members together: what they say of themselves is their own choice.
            (type(error).__name__, self.key if self._member else None),
            self._traffic.lines_of(self._node),
            "did not receive the whole snapshot at %d from %s: %s",
            self._announced.index,
            self._address,
            error,
        )
        try:
            if self._incoming is not None:
                with suppress(TransportError):  # as above
                    await self._traffic.threads.write(self._what, self._incoming.abort)
        finally:
            self._end()


def _outgoing(message: Message) -> str:
    return f"the snapshot for replica {message.to} of shard {message.shard}"


def _header(introduction: bytes, message: Message) -> bytes:
    """Encode the message, after what its sender says of itself, and without its file's name, which means nothing elsewhere."""
    assert message.snapshot is not None, "INSTALL_SNAPSHOT has one"
    bare = replace(message, snapshot=replace(message.snapshot, payload=b""))
    return _LENGTH.pack(len(introduction)) + introduction + encode_messages([bare])[0][HEADER_SIZE:]


def _read_header(header: bytes) -> tuple[ShardHello, list[Message]]:
    """Decode what `_header` encodes. Raises `FrameError`."""
    if len(header) < _LENGTH.size:
        raise FrameError(f"the header of a stream has {len(header)} bytes")
    end = _LENGTH.size + _LENGTH.unpack_from(header)[0]
    return decode_shard(header[_LENGTH.size : end]), decode_messages(header[end:]).messages


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
