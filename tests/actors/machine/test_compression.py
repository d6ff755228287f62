"""Commands that are compressed on their way: who compresses, who decodes, and what is no compressed command."""

import struct
import tracemalloc
import zlib
from random import Random

import pytest
from drakkar.actors.machine.applier import Applier
from drakkar.actors.machine.compression import MAX_BYTES, decode, encode
from drakkar.actors.snapshots.store import MemorySnapshots
from drakkar.handlers.errors import CorruptData
from drakkar.handlers.raft.entries import Entries, EntryKind, Run
from hypothesis import given
from hypothesis import strategies as st

from tests.actors.support import Hosts, InlineLedger, Ledger, commit, contents, settled

TEXT = b"a command of many words, most of which come again and again, " * 20
NOISE = Random(1).randbytes(500)
ENCODED, COMMAND = int(EntryKind.ENCODED), int(EntryKind.COMMAND)


def packed(command, *, size=None, how=1):
    return struct.pack(">BI", how, len(command) if size is None else size) + zlib.compress(command)


@pytest.fixture
def hosts():
    with Hosts() as hosts:
        yield hosts


# -- the codec


@given(
    st.lists(
        st.one_of(st.binary(max_size=200), st.binary(max_size=9).map(lambda part: part * 50)), min_size=1
    )
)
def test_every_command_comes_back_whole_and_none_gets_larger(commands):
    payloads, kinds = encode(commands)
    assert not kinds or len(kinds) == len(commands)
    for payload, kind, command in zip(payloads, kinds or bytes(len(commands)), commands, strict=True):
        assert (decode(payload) if kind == ENCODED else payload) == command
        assert len(payload) <= len(command)


@pytest.mark.parametrize("command", [b"", b"x", b"x" * 63, NOISE, zlib.compress(TEXT)])
def test_what_gains_nothing_stays_as_it_is(command):
    assert encode((command,)) == ((command,), b"")


def test_only_those_that_gain_are_compressed():
    payloads, kinds = encode([b"small", TEXT])
    assert list(kinds) == [COMMAND, ENCODED]
    assert payloads[0] == b"small"
    assert len(payloads[1]) < len(TEXT) / 5


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        pytest.param(b"", "has 0 bytes", id="nothing"),
        pytest.param(packed(TEXT)[:4], "has 4 bytes", id="half a header"),
        pytest.param(packed(TEXT, how=2), "encoding 2", id="of another encoding"),
        pytest.param(packed(TEXT)[:5], "as it says", id="a header alone"),
        pytest.param(packed(TEXT)[:-1], "as it says", id="cut off"),
        pytest.param(packed(TEXT) + b"x", "as it says", id="a byte too many"),
        pytest.param(packed(TEXT, size=len(TEXT) - 1), "as it says", id="more than it says"),
        pytest.param(packed(TEXT, size=0), "as it says", id="something that says it is nothing"),
        pytest.param(packed(TEXT, size=len(TEXT) + 1), "as it says", id="less than it says"),
        pytest.param(packed(TEXT, size=MAX_BYTES + 1), "are allowed", id="more than there may be"),
        pytest.param(packed(TEXT)[:5] + TEXT, "cannot be decoded", id="not compressed at all"),
        pytest.param(packed(TEXT)[:-1] + b"\0", "cannot be decoded", id="of a wrong checksum"),
    ],
)
def test_what_is_no_compressed_command_is_corrupt(payload, why):
    with pytest.raises(CorruptData, match=why):
        decode(payload)


@pytest.mark.parametrize("said", [1000, MAX_BYTES], ids=["that lies", "that says what it pretends"])
def test_a_bomb_takes_no_more_memory_than_it_says_and_than_it_has(said):
    bomb = packed(bytes(30 << 20), size=said)
    tracemalloc.start()
    with pytest.raises(CorruptData, match="as it says"):
        decode(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < (1 << 20 if said == 1000 else 100 << 20)


# -- the state machine


def test_it_gets_the_commands_as_they_were_proposed():
    machine, reports = InlineLedger(), []
    applier = Applier(machine, 7, None, reports.append, MemorySnapshots().of(1, 1), shard_id=1)
    kinds = bytes([COMMAND, ENCODED, EntryKind.NO_OP, EntryKind.CONFIG_CHANGE, EntryKind.METADATA, COMMAND])
    applier.apply(Entries([Run(1, 1, [b"a", packed(TEXT), b"", b"change", b"", b"b"], kinds, 7, 1)]))
    assert machine.commands == [b"a", TEXT, b"b"]
    ((index, [(_, answers)]),) = reports
    assert (index, answers) == (6, [1, 2, None, None, None, 3])


def test_one_that_cannot_be_decoded_ends_the_replica_as_a_failing_command_does():
    machine, reports = InlineLedger(), []
    applier = Applier(machine, 7, None, reports.append, MemorySnapshots().of(1, 1), shard_id=1)
    applier.apply(Entries([Run(4, 1, [b"a", b"no zlib"], bytes([COMMAND, ENCODED]), 7, 1)]))
    (error,) = reports
    assert type(error) is CorruptData
    assert str(error).startswith("entry 5: ")
    applier.apply(Entries([Run(6, 1, [b"late"])]))
    assert machine.commands == [b"a"]


# -- whole hosts


@pytest.mark.parametrize("machine", [Ledger, InlineLedger], ids=["on a worker", "on the loop"])
def test_the_replicas_of_a_shard_need_not_agree_on_compression(hosts, machine):
    for number in hosts.members:
        hosts.run(machine, numbers=[number], config={"entry_compression": "zlib"} if number == 1 else None)
    hosts.leader()
    assert commit(hosts[1], TEXT) == 1
    assert commit(hosts[2], TEXT + b"2") == 2
    assert settled(hosts[1].propose_many([b"small", TEXT, NOISE])) == [3, 4, 5]
    assert [contents(hosts[number]) for number in hosts.members] == [
        [TEXT, TEXT + b"2", b"small", TEXT, NOISE]
    ] * 3
    for number in hosts.members:
        log = hosts[number]._node.raft.log
        entries = [entry for entry in log.entries(1, log.last_index + 1) if entry.payload in (TEXT, b"small")]
        assert [entry.payload for entry in entries] == [b"small"], "compressed on every disk"


def test_proposals_that_were_compressed_are_answered_among_others(hosts):
    """Commands of one batch, some of them compressed, with a membership change between them."""
    hosts.run(config={"entry_compression": "zlib"})
    leader = hosts[hosts.leader()]
    commit(leader, b"first")
    futures = [leader.propose(TEXT), leader.propose(b"small")]
    change = leader.add_observer(9, "127.0.0.1:1")
    futures += [leader.propose(TEXT + b"again"), leader.propose_many([TEXT, b"x"])]
    assert [settled(future) for future in futures] == [2, 3, 4, [5, 6]]
    assert 9 in settled(change).observers
