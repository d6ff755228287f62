"""What entries say that they take to decode, and what that is: they are decoded only where there is time for it."""

import struct
import threading
import zlib
from unittest.mock import patch

import pytest
from drakkar.actors.machine import compression
from drakkar.actors.machine.applier import MAX_WORK_ON_LOOP, Applier
from drakkar.actors.machine.decoding import ENTRY_WORK, command_of, command_size, decoding_work
from drakkar.actors.machine.sessions import FENCE, REGISTER, encode_request
from drakkar.actors.snapshots.store import MemorySnapshots
from drakkar.handlers.errors import ConfigError, CorruptData
from drakkar.handlers.raft.entries import Entries, Entry, EntryKind, Run
from hypothesis import given
from hypothesis import strategies as st

from tests.actors.machine.test_applier import FakePool
from tests.actors.support import InlineLedger

ENCODED, SESSION = int(EntryKind.ENCODED), int(EntryKind.SESSION)
TEXT = b"a command that is compressed, " * 9


def packed(command, *, size=None):
    return struct.pack(">BI", 1, len(command) if size is None else size) + zlib.compress(command)


# -- the check

PIECE = 100
COMMANDS = st.one_of(
    st.binary(max_size=300),
    st.integers(0, 3).map(lambda pieces: bytes(pieces * PIECE)),
    st.integers(0, 9 * PIECE).map(bytes),
)


def _decodes(payload):
    try:
        return compression.decode(payload) is not None
    except CorruptData:
        return False


def _passes(payload):
    try:
        with patch.object(compression, "_PIECE", PIECE):
            return compression.check(payload) is None
    except CorruptData:
        return False


@given(COMMANDS, st.integers(-2, 2), st.binary(max_size=3), st.data())
def test_what_is_checked_is_what_decodes(command, more, behind, data):
    sound = packed(command)
    assert _passes(sound)
    payload = bytearray(packed(command, size=max(len(command) + more, 0)) + behind)
    if data.draw(st.booleans()):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    if data.draw(st.booleans()):
        del payload[data.draw(st.integers(0, len(payload))) :]
    assert _passes(bytes(payload)) == _decodes(bytes(payload))


def test_a_check_ends_where_there_is_more_than_was_announced(monkeypatch):
    made = []
    decompressobj = zlib.decompressobj

    class Counting:
        def __init__(self):
            self._decoder = decompressobj()

        def decompress(self, *arguments):
            made.append(piece := self._decoder.decompress(*arguments))
            return piece

        def __getattr__(self, name):
            return getattr(self._decoder, name)

    monkeypatch.setattr(zlib, "decompressobj", Counting)
    with pytest.raises(CorruptData, match="does not have 1000 bytes"):
        compression.check(packed(bytes(4 << 20), size=1000))
    assert sum(map(len, made)) <= compression._PIECE


# -- what they say


@pytest.mark.parametrize(
    ("kind", "payload", "size"),
    [
        pytest.param(EntryKind.COMMAND, b"abc", 3, id="a command"),
        pytest.param(ENCODED, packed(TEXT), len(TEXT), id="an encoded one"),
        pytest.param(ENCODED, packed(b"", size=1 << 31), 1 << 31, id="one that lies"),
        pytest.param(ENCODED, b"no", 2, id="one that is none"),
        pytest.param(SESSION, encode_request(1, 1, 0, b"abc"), 3, id="a session's"),
        pytest.param(SESSION, encode_request(1, 1, 0, packed(TEXT), encoded=True), len(TEXT), id="both"),
        pytest.param(SESSION, encode_request(1, 1, 0, packed(TEXT), encoded=True)[:27], 27, id="a part"),
        pytest.param(SESSION, b"", 0, id="nothing"),
    ],
)
def test_the_size_that_an_entry_says_its_command_has(kind, payload, size):
    assert command_size(kind, payload) == size


def test_what_entries_take_is_what_they_say_and_a_little_each():
    kinds = bytes([0, ENCODED, SESSION])
    run = Run(0, 0, [bytes(5000), packed(TEXT), encode_request(1, 1, 0, b"abc")], kinds)
    assert decoding_work([Run(0, 0, [bytes(5000)]), run]) == len(TEXT) + 3 + 2 * ENTRY_WORK


# -- where they are applied


def commands(*, count, size):
    payloads = [packed(bytes(size))] * count
    return Entries([Run(1, 1, payloads, bytes([ENCODED] * count))])


def test_a_state_machine_that_never_blocks_leaves_to_a_worker_what_takes_long_to_decode():
    """Some kilobytes of the log may be gigabytes of commands, which would keep the loop for seconds."""
    pool, reports, threads = FakePool(), [], []
    machine = InlineLedger()
    machine.apply = lambda command: threads.append(threading.get_ident())
    applier = Applier(machine, 1, pool, reports.append, MemorySnapshots().of(1, 1), shard_id=1)
    applier.apply(commands(count=3, size=1000))
    assert (len(threads), len(reports), len(pool.jobs)) == (3, 1, 0)
    applier.apply(commands(count=3, size=MAX_WORK_ON_LOOP // 3))
    assert (len(threads), len(reports), len(pool.jobs)) == (3, 1, 1)
    pool.jobs.pop()()
    assert (len(threads), len(reports)) == (6, 2)
    many = MAX_WORK_ON_LOOP // ENTRY_WORK
    applier.apply(commands(count=many, size=1))
    assert len(pool.jobs) == 1, "each entry takes its time, however small"


# -- what a handler sees of a command


@pytest.mark.parametrize(
    ("kind", "payload", "command"),
    [
        pytest.param(EntryKind.COMMAND, TEXT, TEXT, id="as it is"),
        pytest.param(EntryKind.ENCODED, packed(TEXT), TEXT, id="compressed"),
        pytest.param(EntryKind.SESSION, encode_request(1, 1, 0, TEXT), TEXT, id="of a session"),
        pytest.param(EntryKind.SESSION, encode_request(1, 1, 0, packed(TEXT), encoded=True), TEXT, id="both"),
        pytest.param(EntryKind.SESSION, encode_request(1, REGISTER, 0, b""), None, id="a session opens"),
        pytest.param(EntryKind.SESSION, FENCE, None, id="a fence"),
        pytest.param(EntryKind.NO_OP, b"", None, id="Raft's own"),
        pytest.param(EntryKind.of_log(244), b"a record", None, id="a record"),
        pytest.param(EntryKind.ENCODED, b"\2", None, id="damaged"),
        pytest.param(EntryKind.ENCODED, packed(TEXT)[:6] + b"?" * 9, None, id="damaged further on"),
        pytest.param(EntryKind.SESSION, b"short", None, id="a damaged request"),
    ],
)
def test_a_handler_sees_the_command_as_it_was_proposed(kind, payload, command):
    entry = Entry(kind=kind, payload=payload)
    assert command_of(entry, limit=len(TEXT) + 1) == command
    assert command_of(entry, limit=5) == (None if command is None else command[:5])


def test_a_handler_must_say_how_much_of_a_command_it_looks_at():
    """Else it would decide by the beginning of one that has more, and not know that."""
    with pytest.raises(TypeError, match="limit"):
        command_of(Entry(payload=TEXT))


def test_no_more_of_a_bomb_is_decoded_than_was_asked_for():
    bomb = packed(bytes(50 << 20))
    with patch.object(compression.zlib, "decompressobj") as made:
        made.return_value.decompress.return_value = b"x"
        assert command_of(Entry(kind=EntryKind.ENCODED, payload=bomb), limit=7) == b"x"
    assert made.return_value.decompress.call_args[0][1] == 7
    with pytest.raises(ConfigError, match="limit"):
        command_of(Entry(kind=EntryKind.ENCODED, payload=bomb), limit=0)
