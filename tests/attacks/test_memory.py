"""What makes a host keep bytes for nothing: messages that never end, and answers that are never read."""

import socket
import struct
import time
import zlib
from contextlib import ExitStack

import pytest
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.entries import Entry, EntryKind
from drakkar.transport.frames import FrameKind, encode_frame

from tests.attacks import forge
from tests.attacks.forge import STRANGER, frame

pytestmark = [pytest.mark.xdist_group("attacks"), pytest.mark.slow]

MIB = 1 << 20
CONNECTIONS = 30
ALMOST = 63 * MIB
WHOLE = 64 * MIB


def _whole_frame():
    """All but the end of one frame of 64 MiB."""
    yield frame(FrameKind.MESSAGES, length=WHOLE)
    for _ in range(63):
        yield bytes(MIB)


def _parts():
    """All but the last part of a message of 64 MiB."""
    for at in range(0, ALMOST, 1 << 17):
        yield forge.part(WHOLE, at, bytes(1 << 17))


def test_frames_that_never_end(plain):
    _never_ends(plain, "30 frames of 64 MiB that never end", _whole_frame)


def test_messages_in_parts_that_never_end(secure):
    _never_ends(secure, "30 messages of 64 MiB in parts that never end", _parts)


def _never_ends(target, name, made):
    """The memory for it is one budget, of which strangers have a part. A member's large command still passes."""
    with target.attack(name, memory_mib=300) as seen, ExitStack() as links:
        for number in range(CONNECTIONS):
            try:
                link = links.enter_context(
                    forge.introduced(target.members[1], f"{STRANGER}:{number + 1}", tls=target.outsider)
                )
            except (OSError, PermissionError):
                break
            _send_what_is_taken(link, made())
        seen.watch(1)
        assert target.ask(1, "propose", shard=1, command="x" * (1 * MIB)) is not None
        assert number >= 7, "hardly any connection was taken: the attack was none"
        seen.note(f"{number + 1} connections were taken")


def _send_what_is_taken(link, pieces):
    link.socket.settimeout(0.05)
    try:
        for piece in pieces:
            link.socket.sendall(piece)
    except OSError:
        pass


def test_a_large_frame_before_the_introduction(secure):
    with secure.attack("64 MiB before the introduction", memory_mib=16) as seen:
        for _ in range(20):
            with forge.Link(secure.members[1], tls=secure.outsider) as link:
                link.send(frame(FrameKind.HELLO, length=WHOLE))
                link.socket.settimeout(1)
                link.send(bytes(8 * MIB))
                assert link.closed()
        seen.watch(1)


def test_answers_that_are_not_read(plain):
    """PINGs by the thousand, and no PONG is taken."""
    pings = encode_frame(FrameKind.PING, b"x" * 64) * 500

    def again():
        with forge.Link(plain.members[1], receive_bytes=4096) as link:
            link.introduce(f"{STRANGER}:1")
            link.socket.settimeout(2)
            while link.send(pings):
                pass
            time.sleep(1)

    with plain.attack("answers that are not read", memory_mib=32) as seen, forge.Attackers(*[again] * 10):
        seen.watch(3)


def test_many_small_frames_in_pieces_of_a_byte(plain):
    """Each byte comes in a segment of its own."""
    ping = encode_frame(FrameKind.PING, b"x")

    def again():
        with forge.introduced(plain.members[1], f"{STRANGER}:3") as link:
            link.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in ping * 200:
                link.socket.sendall(bytes([byte]))

    with plain.attack("frames in pieces of a byte") as seen, forge.Attackers(again, again):
        seen.watch()


def test_a_command_that_unpacks_to_gigabytes(plain):
    """A member's proposal says that it is 256 MiB, compressed into some hundred KiB: a member can do that much to its own shard."""
    if 5 not in plain.opened:
        plain.open_shard(5)
    bomb = struct.pack(">BI", 1, 256 * MIB) + zlib.compress(bytes(256 * MIB), 9)
    with plain.attack("commands that unpack to 256 MiB, by a member", memory_mib=600) as seen:
        with forge.introduced(
            plain.members[1],
            plain.members[2],
            host_id=plain.ask(2, "host_id"),
            run=forge.Run(*plain.ask(2, "run")),
            **plain.member(2),
        ) as link:
            link.send(forge.shard(5, 2, plain.members))
            entry = Entry(0, 0, EntryKind.ENCODED, payload=bomb)
            link.send(forge.messages(Message(MessageType.PROPOSE, to=1, sender=2, shard=5, entries=(entry,))))
            seen.watch(2)
        for host in plain.hosts:
            assert not plain.status(host, 1)["ended"]
