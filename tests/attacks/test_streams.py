"""Streams, which carry snapshots: what they announce, what they bring, how long they last, and what they are told."""

import struct
import time
import zlib
from contextlib import ExitStack

import pytest
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.lives import Standing, founding_id
from drakkar.handlers.raft.state import Membership, Snapshot
from drakkar.transport.frames import HEADER_SIZE, FrameKind, encode_frame
from drakkar.transport.hello import decode_reason
from drakkar.transport.message_frames import encode_messages
from drakkar.transport.shard_frames import ShardHello, encode_shard
from drakkar.transport.stream_frames import encode_stream_end, encode_stream_piece

from tests.attacks import forge
from tests.attacks.forge import STRANGER

pytestmark = [pytest.mark.xdist_group("attacks"), pytest.mark.slow]

MIB = 1 << 20


def begin(target, *, size, replica=2, index=10**9, term=None, shard=1):
    """The header of a stream of a snapshot, as a leader sends it."""
    said = encode_shard(
        ShardHello(shard, replica, founding_id(shard, target.members), Standing.INHERITED, target.members)
    )
    snapshot = Snapshot(index, term or target.status(1)["term"], Membership(dict(target.members)), size=size)
    message = Message(
        MessageType.INSTALL_SNAPSHOT, to=1, sender=replica, shard=shard, term=snapshot.term, snapshot=snapshot
    )
    body = struct.pack(">I", len(said)) + said + encode_messages([message])[0][HEADER_SIZE:]
    return encode_frame(FrameKind.STREAM_BEGIN, body)


def stream(target, number=2, **fields):
    """The connection of a stream, by the host of a member; it is introduced."""
    link = forge.Link(target.members[1], **target.member(number))
    answer = link.introduce(
        target.members[number],
        stream=True,
        host_id=target.ask(number, "host_id"),
        run=forge.Run(*target.ask(number, "run")),
    )
    if answer is None or answer.kind != FrameKind.HELLO:
        link.close()
        pytest.fail(f"no stream was taken: {answer and decode_reason(answer.body)}")
    return link


def end_of(link, within=10.0):
    """The reason that ends a stream; "" where there was none, None where it goes on."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            got = link.next(until - time.monotonic())
        except TimeoutError:
            return None
        if got is None:
            return ""
        if got.kind in {FrameKind.REFUSED, FrameKind.FULL}:
            return decode_reason(got.body)
        if got.kind == FrameKind.STREAM_DONE:
            return "done"
    return None


def test_more_than_was_announced(secure):
    taken = "transport: stream bytes received"
    with secure.attack("a stream of more than it announces", memory_mib=32) as seen:
        before = secure.counter(1, taken)
        with stream(secure) as link:
            link.send(begin(secure, size=1000))
            link.socket.settimeout(5)
            for number in range(64):
                if not link.send(encode_stream_piece(number, bytes(MIB))):
                    break
            reason = end_of(link)
        assert reason != "done"
        assert reason is not None, "it goes on"
        assert secure.counter(1, taken) < before + 1000 + MIB
        seen.watch(1)


def test_what_does_not_fit_the_disk(secure):
    with secure.attack("a stream that announces 2**60 bytes", memory_mib=32) as seen:
        with stream(secure) as link:
            link.send(begin(secure, size=1 << 60))
            reason = end_of(link)
            assert reason, "it was not refused"
            assert "/" not in reason.replace("MiB/s", ""), "the refusal names a path"
            seen.note(reason[:80])
        seen.watch(1)


def test_a_stream_that_only_says_that_it_lives(secure):
    """PINGs, and a byte now and then, are no progress."""
    with secure.attack("streams of nothing but PINGs", memory_mib=32) as seen, ExitStack() as links:
        mine = [links.enter_context(stream(secure, 2)) for _ in range(4)]
        for link in mine:
            link.send(begin(secure, size=100 * MIB))
        for _ in range(10):
            for link in mine:
                link.send(encode_frame(FrameKind.PING) * 100)
            seen.watch(0.2)
        ended = sum(not link.send(encode_frame(FrameKind.PING)) for link in mine)
        seen.note(f"{ended} of 4 had ended")
    assert ended == 4


def test_places_of_streams_are_not_first_come_first_served(secure):
    """A stranger opens as many as it can; a member still finds a place."""
    with secure.attack("40 streams of a stranger", memory_mib=32) as seen, ExitStack() as links:
        taken = 0
        for number in range(40):
            link = links.enter_context(forge.Link(secure.members[1], tls=secure.outsider))
            answer = link.introduce(f"{STRANGER}:{number + 1}", stream=True)
            taken += answer is not None and answer.kind == FrameKind.HELLO
        with stream(secure) as link:
            link.send(
                begin(secure, size=1, index=1)
            )  # old news: it is refused, by the node and not for lack of a place
            reason = end_of(link) or ""
            assert "streams" not in reason, reason
            assert reason
        seen.watch(1)
        seen.note(f"{taken} were taken")


def test_what_a_refusal_tells(secure):
    """Nsecure a path of this host nor an error of its system."""
    told = []
    with secure.attack("streams that are refused") as seen:
        for frames in (
            [begin(secure, size=10, index=1)],
            [begin(secure, size=10, shard=77)],
            [
                begin(secure, size=10),
                encode_stream_piece(0, bytes(10)),
                encode_stream_end(10, zlib.crc32(bytes(10))),
            ],
            [begin(secure, size=10), encode_stream_piece(5, bytes(10))],
            [encode_frame(FrameKind.STREAM_BEGIN, b"nonsense")],
            [encode_frame(FrameKind.STREAM_BEGIN, bytes(70_000))],
        ):
            with stream(secure) as link:
                link.send(*frames)
                told.append(end_of(link))
        seen.watch(1)
    assert all(told), told
    for text in told:
        assert str(secure.directory) not in text
        assert "snapshot-" not in text
        assert "Errno" not in text
