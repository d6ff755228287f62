"""Streams that no host of ours would send: they cost a host no more than was announced, and what fits its disk.

Hosts 1 and 2 have a snapshot and are stopped; host 3 starts empty. A transport stands in for host 1, and sends host 3 the
snapshot: as it is, which has its effect, or forged.
"""

import logging
from dataclasses import replace
from typing import NamedTuple

import pytest
import trio
from drakkar.actors.host import snapshot_traffic
from drakkar.actors.log.segments import RESERVE_BYTES
from drakkar.handlers.errors import TransportError
from drakkar.handlers.messages import Message, MessageType
from drakkar.transport.hello import Run
from drakkar.transport.shard_frames import decode_shard, encode_shard

from tests.actors.host.test_hanging_files import CALM, Saved, save_a_snapshot
from tests.actors.support import Hosts, until
from tests.transport.support import Host, running
from tests.transport.test_streams import Source

MIB = 1 << 20


class Prepared(NamedTuple):
    """Host 3, and what host 1 would send it."""

    hosts: Hosts
    message: Message
    introduction: bytes
    content: bytes
    host_id: str


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    """Of hosts 1 and 2, which are stopped."""
    data = tmp_path_factory.mktemp("hosts")
    with Hosts(data=data) as hosts:
        save_a_snapshot(hosts)
        node = hosts.hosts[1]._registry.nodes[1]
        snapshot, term = node.raft.log.snapshot, node.raft.term
        (file,) = (data / "1").rglob(snapshot.payload.decode())
        message = Message(MessageType.INSTALL_SNAPSHOT, to=3, sender=1, shard=1, term=term, snapshot=snapshot)
        host_id = hosts.hosts[1]._directory.host_id
        return hosts.addresses, message, node.introductions.body, file.read_bytes(), host_id


@pytest.fixture
def prepared(tmp_path, snapshot):
    """Host 3 waits for the snapshot that hosts 1 and 2 had."""
    addresses, *sent = snapshot
    with Hosts(data=tmp_path) as hosts:
        hosts.addresses = addresses
        hosts.run(Saved, numbers=[3], config=CALM)
        yield Prepared(hosts, *sent)


def send(prepared, *, content=None, message=None, introduction=None, size=None):
    """Send a stream as host 1 would, but for what is given. Returns None, or the text of the refusal."""
    message = message or prepared.message
    size = len(prepared.content) if size is None else size
    message = replace(message, snapshot=replace(message.snapshot, size=size))
    header = snapshot_traffic._header(introduction or prepared.introduction, message)

    async def main():
        host = Host(prepared.hosts.addresses[0])
        host.transport.identify(prepared.host_id, Run(100, tuple(range(1, 65))))
        async with running(host):
            source = Source(prepared.content if content is None else content, sizes=(MIB,))
            try:
                await host.transport.send_stream(prepared.hosts.addresses[2], header, source)
            except TransportError as error:
                return str(error)
            return None

    return trio.run(main)


def arrives(prepared):
    """The positive control: the stream as it is."""
    assert send(prepared) is None
    until(lambda: prepared.hosts[3].status().applied >= 10)


def is_left(prepared):
    """Nothing is on the way any more, and no file is left of what was."""
    host = prepared.hosts.hosts[3]
    until(lambda: host.metrics()["snapshots_receiving"] == 0)
    assert not host._traffic.room._reservations
    return not list((prepared.hosts.data / "3").rglob("*.tmp"))


def test_the_stream_as_it_is_has_its_effect(prepared):
    arrives(prepared)
    assert is_left(prepared)


def test_a_stream_ends_at_the_first_byte_that_was_not_announced(prepared):
    error = send(prepared, content=prepared.content + bytes(1 << 16))
    assert f"announced {len(prepared.content)} bytes, and brings more" in error
    assert prepared.hosts.hosts[3].metrics()["transport_malformed_total"] == 1
    assert is_left(prepared)
    arrives(prepared)


def test_a_stream_that_goes_on_for_ever_takes_no_disk(prepared):
    error = send(prepared, content=bytes(64 * MIB))
    assert "brings more" in error
    assert prepared.hosts.hosts[3].metrics()["streams_received_bytes_total"] <= MIB
    assert is_left(prepared)
    arrives(prepared)


def test_a_stream_that_ends_before_its_end_is_refused(prepared):
    error = send(prepared, size=len(prepared.content) + 10)
    assert "ended 10 before that" in error
    assert is_left(prepared)
    arrives(prepared)


def test_the_log_has_one_line_of_many_streams_of_strangers_that_break_off(prepared, caplog):
    """Each names another replica as its sender."""
    said = decode_shard(prepared.introduction)
    for sender in range(70, 75):
        forged = encode_shard(replace(said, replica=sender))
        message = replace(prepared.message, sender=sender)
        size = len(prepared.content) + 10
        assert "ended 10 before that" in send(prepared, message=message, introduction=forged, size=size)
    told = [each.getMessage() for each in caplog.records if "did not receive the whole" in each.getMessage()]
    assert len(told) == 1
    assert "replica 3 of shard 1: did not" in told[0]
    arrives(prepared)


def test_a_stream_says_how_many_bytes_it_brings(prepared):
    assert "must say how many bytes it brings" in send(prepared, size=0)
    assert is_left(prepared)
    arrives(prepared)


NO_ROOM = "its disk has no room for it; its log says more"


def test_a_snapshot_is_announced_only_if_it_fits_the_disk_beside_the_reserve(prepared, caplog):
    """How much is free is told in the log of the host alone."""
    room = prepared.hosts.hosts[3]._traffic.room
    actual, size = room._free_bytes, len(prepared.content)
    room._free_bytes = lambda: size + RESERVE_BYTES - 1
    error = send(prepared)
    assert error.endswith(NO_ROOM)
    assert f"has {size + RESERVE_BYTES - 1} bytes free, and {size + RESERVE_BYTES} are needed" in caplog.text
    assert is_left(prepared)
    room._free_bytes = lambda: size + RESERVE_BYTES
    arrives(prepared)
    room._free_bytes = actual


def test_no_disk_has_room_for_what_was_announced_absurdly_large(prepared):
    assert send(prepared, size=1 << 60).endswith(NO_ROOM)
    assert is_left(prepared)
    arrives(prepared)


def test_a_snapshot_of_an_older_term_is_refused_before_its_first_byte(prepared):
    raft = prepared.hosts.hosts[3]._registry.nodes[1].raft
    prepared.hosts.hosts[3].loop.call(_raise_term, raft, prepared.message.term + 1)
    error = send(prepared)
    assert f"is in term {prepared.message.term + 1}, and takes no snapshot of term" in error
    assert prepared.hosts.hosts[3].metrics()["streams_received_bytes_total"] == 0
    assert is_left(prepared)


async def _raise_term(raft, term):
    raft.become_follower(term, 0)


def test_damaged_bytes_are_refused_and_the_refusal_tells_no_path(prepared, caplog):
    caplog.set_level(logging.WARNING)
    content = bytearray(prepared.content)
    content[len(content) // 2] ^= 1
    error = send(prepared, content=bytes(content))
    assert "it was damaged on its way" in error
    assert str(prepared.hosts.data) not in error
    assert str(prepared.hosts.data / "3") in caplog.text  # its own log has it
    assert is_left(prepared)
    arrives(prepared)


def test_a_disk_that_fails_is_told_without_its_path(prepared, monkeypatch, caplog):
    files = prepared.hosts.hosts[3]._registry.nodes[1].snapshots.files._files

    def fail(*_):
        raise OSError(28, "No space left on device", str(prepared.hosts.data / "3"))

    with monkeypatch.context() as broken:
        broken.setattr(files, "write", fail)
        error = send(prepared)
    assert "cannot use its disk now" in error
    assert str(prepared.hosts.data) not in error
    assert str(prepared.hosts.data / "3") in caplog.text
    assert is_left(prepared)
    arrives(prepared)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        pytest.param({"shard": 2}, "introduction of its sender", id="another shard"),
        pytest.param({"to": 2}, "replica 2 of shard 1 is not here", id="another replica"),
        pytest.param({"sender": 2}, "introduction of its sender", id="another sender"),
        pytest.param({"type": MessageType.HEARTBEAT}, "begin with one INSTALL_SNAPSHOT", id="another type"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(prepared, change, why):
    assert why in send(prepared, message=replace(prepared.message, **change))
    arrives(prepared)


def test_another_founding_is_refused(prepared):
    said = decode_shard(prepared.introduction)
    forged = encode_shard(replace(said, founding=bytes(16)))
    assert "its shard was founded" in send(prepared, introduction=forged)
    assert is_left(prepared)
    arrives(prepared)


def test_a_stream_that_never_ends_does_not_keep_out_the_leaders(prepared):
    """It comes from another address, with the leader's introduction."""

    class Endless(Source):
        async def read(self):
            if self.reads:
                await trio.sleep_forever()
            return await super().read()

    message = replace(prepared.message, snapshot=replace(prepared.message.snapshot, size=1 << 20))
    header = snapshot_traffic._header(prepared.introduction, message)
    host = prepared.hosts.hosts[3]

    async def main():
        stranger = Host()
        async with running(stranger) as nursery:
            nursery.start_soon(
                stranger.transport.send_stream, prepared.hosts.addresses[2], header, Endless(b"x" * 10)
            )
            while host.metrics()["snapshots_receiving"] < 1:  # noqa: ASYNC110  # a number without an event
                await trio.sleep(0.01)
            await trio.to_thread.run_sync(arrives, prepared)
            assert host.metrics()["snapshots_receiving"] == 1
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert is_left(prepared)
