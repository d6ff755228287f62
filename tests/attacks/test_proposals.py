"""Proposals of a member that are small on the wire, and large once they are decoded: the other shards of the host must not wait."""

import struct
import zlib

import pytest
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.entries import Entries, EntryKind, Run

from tests.actors.support import until
from tests.attacks import forge

pytestmark = pytest.mark.xdist_group("attacks")

MIB = 1 << 20
SHARD, ATTACKER = 7, 4
HOME = f"{forge.STRANGER}:4"


def _commands(count, size, *, key):
    """A proposal of so many compressed commands, of so many bytes each."""
    payload = struct.pack(">BI", 1, size) + zlib.compress(bytes(size), 9)
    run = Run(0, 0, [payload] * count, bytes([EntryKind.ENCODED] * count), 9, key)
    return forge.messages(
        Message(MessageType.PROPOSE, to=1, sender=ATTACKER, shard=SHARD, entries=Entries([run]))
    )


def _as_member(target):
    """A connection of the host of a member, which the attacker is."""
    members = {1: target.members[1], 3: target.members[3], ATTACKER: HOME}
    if SHARD not in target.opened:
        target.open_shard(SHARD, "counting", (1, 3), others={ATTACKER: HOME})
    link = forge.introduced(target.members[1], HOME)
    link.send(forge.shard(SHARD, ATTACKER, members))
    return link


def _applied(target):
    return target.ask(1, "read", shard=SHARD)


def test_a_message_that_announces_gigabytes(plain):
    """50 commands of 32 MiB are 1.6 MB on the wire, and took seven seconds of the loop to decode."""
    with plain.attack("proposals of 1.6 GB in 1.6 MB, by a member") as seen, _as_member(plain) as link:
        before = _applied(plain)
        link.send(_commands(2, 1000, key=1))
        until(lambda: _applied(plain) == before + 2)
        assert link.send(_commands(50, 32 * MIB, key=3) * 2)
        seen.watch()
        assert link.send(_commands(1, 1000, key=200)), "it was not cut"
        until(lambda: _applied(plain) == before + 3)


@pytest.mark.slow
def test_proposals_of_as_much_as_is_allowed(plain):
    """They are applied, by a worker on each host, though this state machine never blocks."""
    with plain.attack("proposals of 8 MiB in 8 KiB, by a member") as seen, _as_member(plain) as link:
        before = _applied(plain)
        for number in range(10):
            assert link.send(_commands(8, MIB, key=1 + 8 * number))
        seen.watch()
        until(lambda: _applied(plain) == before + 80)
