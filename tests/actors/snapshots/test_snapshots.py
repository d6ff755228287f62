"""Snapshot files: whole and durable, or absent; and every change of what was written is noticed."""

import errno
import io
import itertools
import json
import os
import random
import resource
import shutil
import threading
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cbor2
import pytest
from drakkar.actors.log.records import encode_snapshot
from drakkar.actors.snapshots import format as snapshot_format
from drakkar.actors.snapshots import store as snapshots
from drakkar.actors.snapshots.files import DiskFiles
from drakkar.actors.snapshots.store import (
    MemorySnapshots,
    SnapshotFiles,
    Snapshots,
    SnapshotStore,
    export_to,
    read_file,
)
from drakkar.handlers.checks import MAX_INDEX, MAX_SIGNED, MAX_TERM
from drakkar.handlers.errors import ConfigError, CorruptData, StorageFailed
from drakkar.handlers.raft.state import Membership, Snapshot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

MEMBERS = Membership(voters={1: "a:1", 2: "b:2"}, observers={3}, removed={9}, change_id=4)
FACTS = {"applied": 17, "kind": "Counter", "nested": [1, {"two": b"2"}]}


def at(index: int, term: int = 3) -> Snapshot:
    return Snapshot(index, term, MEMBERS)


def store_of(kind: str, path: Path) -> SnapshotStore:
    return SnapshotFiles(path) if kind == "disk" else MemorySnapshots()


both = pytest.mark.parametrize("kind", ["disk", "memory"])


def take(
    own: Snapshots, index: int, content: bytes = b"content", compression: Any = "none", step: int = 1 << 30
) -> str:
    """A finished snapshot's name."""
    with own.create(compression=compression) as writer:
        for start in range(0, len(content), step):
            writer.write(content[start : start + step])
        return writer.finish(at(index), FACTS).payload.decode()


def content_of(own: Snapshots, name: str) -> bytes:
    with own.open(name) as reader:
        reader.verify()
        return reader.read()


def names_in(path: Path) -> list[str]:
    return sorted(each.name for each in path.rglob("*") if each.is_file())


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_format, "BLOCK_BYTES", 64)


# What was written is what is read.


@both
@pytest.mark.parametrize("compression", ["none", "zlib"])
def test_a_snapshot_is_found_again_with_all_that_was_said_of_it(
    kind: str, compression: str, tmp_path: Path
) -> None:
    store = store_of(kind, tmp_path)
    own = store.of(5, 1)
    with own.create(compression=compression) as writer:
        assert writer.write(b"abc") == 3
        assert writer.write(memoryview(b"def" * 100)) == 300
        taken = writer.finish(at(17), FACTS)
    assert (taken.index, taken.term, taken.membership) == (17, 3, MEMBERS)
    assert taken.payload.startswith(b"00000000000000000017-")
    again = SnapshotFiles(tmp_path) if kind == "disk" else store.restarted()
    with again.of(5, 1).open(taken.payload.decode()) as reader:
        assert (reader.snapshot, reader.facts) == (taken, FACTS)
        assert reader.read() == b"abc" + b"def" * 100
        assert reader.content_size == 303
    if kind == "disk":
        assert names_in(tmp_path / "5-1") == [taken.payload.decode()]
        assert (tmp_path / "5-1" / taken.payload.decode()).stat().st_size == taken.size
    assert again.orphans == 0


@pytest.mark.usefixtures("small_blocks")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    pieces=st.lists(st.binary(max_size=200) | st.integers(0, 200).map(bytes), max_size=8),
    reads=st.lists(
        st.tuples(st.sampled_from(["read", "read1", "readinto", "readline"]), st.integers(0, 200)),
        max_size=12,
    ),
    compression=st.sampled_from(["none", "zlib"]),
)
def test_any_writes_give_any_reads(
    pieces: list[bytes], reads: list[tuple[str, int]], compression: Any
) -> None:
    own = MemorySnapshots().of(1, 1)
    with own.create(compression=compression) as writer:
        for piece in pieces:
            writer.write(piece)
        name = writer.finish(at(1)).payload.decode()
    twin = io.BytesIO(b"".join(pieces))
    with own.open(name) as reader:
        for how, size in reads:
            if how == "readinto":
                buffer = bytearray(size)
                assert bytes(buffer[: reader.readinto(buffer)]) == twin.read(size)
            elif how == "read1":
                part = reader.read1(size)
                assert part == twin.read(len(part))
                assert part or not size or not twin.read(1)
            else:
                assert getattr(reader, how)(size) == getattr(twin, how)(size)
        assert reader.read() == twin.read()
        assert reader.read(1) == b""


@pytest.mark.parametrize("compression", ["none", "zlib"])
@pytest.mark.parametrize("size", [0, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (3 << 20) + 7])
def test_real_blocks_have_borders_too(size: int, compression: Any, tmp_path: Path) -> None:
    content = random.Random(size).randbytes(size // 2) + bytes(size - size // 2)
    own = SnapshotFiles(tmp_path).of(1, 1)
    for step in (1 << 30, 300_000):
        name = take(own, 1, content, compression, step)
        assert content_of(own, name) == content


def test_compression_saves_where_there_is_something_to_save(tmp_path: Path) -> None:
    own = SnapshotFiles(tmp_path).of(1, 1)
    plain, packed = take(own, 1, bytes(1 << 20)), take(own, 2, bytes(1 << 20), "zlib")
    assert own.open(plain).snapshot.size > 1 << 20
    assert own.open(packed).snapshot.size < 20_000


@both
def test_what_python_writes_to_files_and_reads_from_them_works(kind: str, tmp_path: Path) -> None:
    own = store_of(kind, tmp_path).of(1, 1)
    state = {"balance": list(range(1000))}
    with own.create() as writer:
        with io.TextIOWrapper(writer, encoding="utf-8") as text:  # which closes the writer
            json.dump(state, text)
        first = writer.finish(at(1)).payload.decode()
    with own.create() as writer:
        with zipfile.ZipFile(writer, "w") as archive:
            archive.writestr("state", b"z" * 5000)
        second = writer.finish(at(2)).payload.decode()
    with own.open(first) as reader:
        assert json.load(reader) == state
    with own.open(first) as reader, io.TextIOWrapper(reader, encoding="utf-8") as text:
        assert json.load(text) == state
    copy = io.BytesIO()
    with own.open(second) as reader:
        shutil.copyfileobj(reader, copy)
    assert zipfile.ZipFile(copy).read("state") == b"z" * 5000
    with own.create() as writer:
        cbor2.dump([1, {"a": b"b" * 300}], writer)
        third = writer.finish(at(3)).payload.decode()
    with own.open(third) as reader:
        assert cbor2.load(reader) == [1, {"a": b"b" * 300}]


def test_memory_stays_flat_at_any_size(tmp_path: Path) -> None:
    own = SnapshotFiles(tmp_path).of(1, 1)
    content = bytes(48 << 20)
    tracemalloc.start()
    try:
        for compression in ("none", "zlib"):
            name = take(own, 1, content, compression)
            with own.open(name) as reader, own.receive() as incoming:
                reader.verify()
                with reader.raw() as raw:
                    while data := raw.read(1 << 16):
                        incoming.write(data)
                incoming.finish()
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


# Files of other hosts, and copies.


@both
def test_the_bytes_of_a_file_are_taken_in_by_another_host_under_a_name_of_its_own(
    kind: str, tmp_path: Path
) -> None:
    content = os.urandom(3000)
    here, there = store_of(kind, tmp_path / "a").of(1, 1), store_of("disk", tmp_path / "b").of(1, 2)
    sent = take(here, 8, content, "zlib")
    take(there, 8, b"another at that index")
    with here.open(sent) as reader, reader.raw() as raw, there.receive() as incoming:
        reader.close()  # the raw file lives on
        while data := raw.read(100):
            incoming.write(data)
        snapshot, facts = incoming.finish()
    assert snapshot.payload.decode() in names_in(tmp_path / "b")
    assert (snapshot.index, snapshot.membership, facts) == (8, MEMBERS, FACTS)
    with there.open(snapshot.payload.decode()) as found:
        assert (found.snapshot, found.read()) == (snapshot, content)


def test_a_stream_can_be_continued_from_any_offset(tmp_path: Path) -> None:
    own = SnapshotFiles(tmp_path).of(1, 1)
    name = take(own, 1, os.urandom(1000))
    with own.open(name) as reader, reader.raw() as raw:
        whole = (tmp_path / "1-1" / name).read_bytes()
        raw.seek(500)
        assert raw.read() == whole[500:]
        assert raw.seek(-10, os.SEEK_END) == len(whole) - 10
        assert raw.read() == whole[-10:]


@pytest.mark.parametrize("change", ["cut", "flip", "nothing arrived", "more arrived"])
def test_a_file_that_was_damaged_on_its_way_is_refused_and_leaves_nothing(
    change: str, tmp_path: Path
) -> None:
    own = SnapshotFiles(tmp_path / "a").of(1, 1)
    raw = bytearray((tmp_path / "a" / "1-1" / take(own, 1, b"x" * 5000)).read_bytes())
    if change == "flip":
        raw[3000] ^= 4
    raw = {"cut": raw[:-1], "nothing arrived": b"", "more arrived": raw + b"\0"}.get(change, raw)
    there = SnapshotFiles(tmp_path / "b").of(1, 1)
    with there.receive() as incoming:
        incoming.write(raw)
        with pytest.raises(CorruptData, match=r"/b/1-1/.*have it sent again"):
            incoming.finish()
        with pytest.raises(ValueError, match="begin another"):
            incoming.write(b"more")
    assert names_in(tmp_path / "b") == []


def test_an_export_is_a_file_of_its_own_that_can_be_imported(tmp_path: Path) -> None:
    own = MemorySnapshots().of(1, 1)
    name = take(own, 4, b"precious")
    path = tmp_path / "rescue.snapshot"
    with own.open(name) as reader:
        reader.read(3)
        export_to(reader, path)
        with pytest.raises(ConfigError, match=r"rescue.snapshot.*exists already"):
            export_to(reader, path)
        with pytest.raises(ConfigError, match=r"make that first"):
            export_to(reader, tmp_path / "nowhere" / "rescue")
    assert names_in(tmp_path) == ["rescue.snapshot"]
    alone = Membership(voters={1: "a:1"}, change_id=4)
    repaired = SnapshotFiles(tmp_path / "host").of(1, 1)
    with read_file(path) as exported, repaired.create() as writer:
        assert (exported.snapshot.payload, exported.facts) == (b"rescue.snapshot", FACTS)
        shutil.copyfileobj(exported, writer)
        imported = writer.finish(Snapshot(4, 3, alone), exported.facts)
    with repaired.open(imported.payload.decode()) as reader:
        assert (reader.snapshot.membership, reader.read()) == (alone, b"precious")


def test_a_damaged_snapshot_is_not_exported(tmp_path: Path) -> None:
    own = SnapshotFiles(tmp_path / "host").of(1, 1)
    name = take(own, 4, b"precious" * 100)
    path = tmp_path / "host" / "1-1" / name
    path.write_bytes(path.read_bytes().replace(b"precious", b"specious", 1))
    with own.open(name) as reader, pytest.raises(CorruptData, match=f"{name}.*index 4"):
        export_to(reader, tmp_path / "rescue")
    assert names_in(tmp_path) == [name]
    with pytest.raises(CorruptData, match=r"rescue does not exist; take another copy"):
        read_file(tmp_path / "rescue")


# Damage.


@pytest.fixture
def small(tmp_path: Path) -> tuple[Snapshots, Path]:
    """A file with plain and compressed blocks."""
    own = SnapshotFiles(tmp_path).of(1, 1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(snapshot_format, "BLOCK_BYTES", 64)
        with own.create(compression="zlib") as writer:
            writer.write(random.Random(1).randbytes(100) + b"a" * 128 + b"tail")
            name = writer.finish(at(7), {"a": 1}).payload.decode()
    return own, tmp_path / "1-1" / name


def noticed(own: Snapshots, path: Path) -> CorruptData:
    with pytest.raises(CorruptData) as raised, own.open(path.name) as reader:
        reader.verify()
    assert str(path) in str(raised.value)
    return raised.value


def test_a_file_that_is_cut_short_anywhere_is_refused_when_it_is_opened(
    small: tuple[Snapshots, Path],
) -> None:
    own, path = small
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptData, match=path.name):
            own.open(path.name)


@pytest.mark.parametrize("bits", [1, 0x80, 0xFF])
def test_a_flip_of_any_byte_is_noticed(bits: int, small: tuple[Snapshots, Path]) -> None:
    own, path = small
    whole = path.read_bytes()
    for offset in range(len(whole)):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ bits]) + whole[offset + 1 :])
        noticed(own, path)
    path.write_bytes(whole)
    own.open(path.name).verify()


def test_a_reader_is_told_file_index_and_offset_of_the_damage_each_time_and_never_the_end(
    tmp_path: Path,
) -> None:
    own = SnapshotFiles(tmp_path).of(1, 1)
    name = take(own, 7, bytes(3 << 20))
    path = tmp_path / "1-1" / name
    with path.open("r+b") as file:
        file.seek((1 << 20) + 5000)
        file.write(b"\1")
    with own.open(name) as reader:
        assert len(reader.read(1 << 20)) == 1 << 20
        for read in (reader.read, reader.read, lambda: reader.read(1), lambda: reader.readinto(bytearray(5))):
            with pytest.raises(CorruptData) as raised:
                read()
            assert f"{path} (snapshot at index 7): the block at byte {16 + 9 + (1 << 20)} does" in str(
                raised.value
            )


def blocks_of(path: Path) -> tuple[bytes, list[bytes], bytes]:
    """Header, blocks, and the rest."""
    raw, blocks, offset = path.read_bytes(), [], 16
    footer = snapshot_format._TAIL.unpack(raw[-snapshot_format._TAIL.size :])[2]
    while offset < len(raw) - snapshot_format._TAIL.size - footer:
        after = offset + 9 + int.from_bytes(raw[offset : offset + 4], "big")
        blocks.append(raw[offset:after])
        offset = after
    return raw[:16], blocks, raw[offset:]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    "change", ["one lost", "last lost", "all lost", "two swapped", "one twice", "another's"]
)
def test_blocks_that_are_whole_but_not_where_they_were_are_noticed(change: str, tmp_path: Path) -> None:
    own = SnapshotFiles(tmp_path).of(1, 1)
    path, other = (tmp_path / "1-1" / take(own, 7, b"same" * 100) for _ in range(2))
    header, blocks, rest = blocks_of(path)
    match change:
        case "one lost":
            del blocks[2]
        case "last lost":
            del blocks[-1]
        case "all lost":
            blocks.clear()
        case "two swapped":
            blocks[1], blocks[2] = blocks[2], blocks[1]
        case "one twice":
            blocks.insert(1, blocks[1])
        case _:
            blocks[3] = blocks_of(other)[1][3]
    path.write_bytes(header + b"".join(blocks) + rest)
    noticed(own, path)


def made(path: Path, footer: bytes, blocks: list[tuple[int, bytes]] | None = None, size: int = 0) -> Path:
    """A file by an attacker who knows the format."""
    header = b"DRKSNAP\1" + b"evilevil"
    chain, body = zlib.crc32(header), b""
    for how, stored in blocks or ():
        start = snapshot_format._BLOCK_START.pack(len(stored), how)
        chain = zlib.crc32(stored, zlib.crc32(start, chain))
        body += start + chain.to_bytes(4, "big") + stored
    start = snapshot_format._TAIL_START.pack(size, chain, len(footer))
    checksum = zlib.crc32(start, zlib.crc32(footer, zlib.crc32(header)))
    path.write_bytes(header + body + footer + start + checksum.to_bytes(4, "big") + b"DRKSNEND")
    return path


GOOD = cbor2.dumps([encode_snapshot(at(7)), {}])


def with_columns(**changed: Any) -> bytes:
    columns = dict(enumerate(cbor2.loads(encode_snapshot(at(7)))))
    columns.update({int(key[1:]): value for key, value in changed.items()})
    return cbor2.dumps([cbor2.dumps(list(columns.values())), {}])


def roles(**changed: Any) -> bytes:
    columns = dict(enumerate(cbor2.loads(encode_snapshot(at(7)))[2]))
    columns.update({int(key[1:]): value for key, value in changed.items()})
    return with_columns(_2=list(columns.values()))


@pytest.mark.parametrize(
    "footer",
    [
        b"",
        b"\xff",
        GOOD + b"\0",
        cbor2.dumps([encode_snapshot(at(7))]),
        cbor2.dumps([encode_snapshot(at(7)), []]),
        cbor2.dumps(["text", {}]),
        cbor2.dumps([encode_snapshot(at(7)), {1: 2}]),
        cbor2.dumps([encode_snapshot(at(7)), {"big": 1 << 70}]),
        cbor2.dumps([b"", {}]),
        with_columns(_0=0),
        with_columns(_0=-1),
        with_columns(_1=-1),
        with_columns(_0="7"),
        roles(_0=[[1]]),
        roles(_0=["1"]),
        roles(_7=[0]),
        roles(_9=[[1]]),
        with_columns(_0=MAX_INDEX + 1),
        with_columns(_1=MAX_TERM + 1),
        with_columns(_5=MAX_SIGNED + 1),
        roles(_0=[MAX_SIGNED + 1]),
        roles(_8=MAX_INDEX + 1),
    ],
)
def test_a_footer_is_not_trusted_because_its_checksum_is_right(footer: bytes, tmp_path: Path) -> None:
    with read_file(made(tmp_path / "good", GOOD)) as reader:
        assert reader.read() == b""
    with pytest.raises(CorruptData, match=str(tmp_path / "bad")):
        read_file(made(tmp_path / "bad", footer))


@both
def test_a_long_footer_of_another_host_is_not_even_decoded(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of our own may be longer: a shard that has removed very many replicas can still be started."""
    long = cbor2.dumps([encode_snapshot(at(7)), {"long": bytes(snapshot_format.RECEIVED_FOOTER_BYTES)}])
    with read_file(made(tmp_path / "own", long)) as reader:
        assert reader.snapshot.index == 7
    decoded: list[bytes] = []
    monkeypatch.setattr(snapshot_format, "_decode_footer", decoded.append)
    with store_of(kind, tmp_path / "store").of(1, 1).receive() as incoming:
        incoming.write((tmp_path / "own").read_bytes())
        with pytest.raises(CorruptData, match="its footer says that it has"):
            incoming.finish()
    assert decoded == []


@pytest.mark.parametrize(
    ("how", "stored", "size"),
    [
        pytest.param(1, zlib.compress(bytes((1 << 20) + 1)), (1 << 20) + 1, id="swells beyond a block"),
        pytest.param(1, zlib.compress(b""), 0, id="swells to nothing"),
        pytest.param(1, zlib.compress(b"abc") + b"x", 3, id="more behind it"),
        pytest.param(1, zlib.compress(b"abc")[:-1], 3, id="less of it"),
        pytest.param(1, b"abc", 3, id="not compressed"),
        pytest.param(2, b"abc", 3, id="unknown encoding"),
        pytest.param(0, b"", 0, id="empty"),
        pytest.param(0, bytes((1 << 20) + 1), (1 << 20) + 1, id="too long"),
        pytest.param(0, b"abc", 4, id="not of the size it says"),
    ],
)
def test_a_block_is_not_trusted_because_its_checksum_is_right(
    how: int, stored: bytes, size: int, tmp_path: Path
) -> None:
    full = zlib.compress(bytes(1 << 20))
    with read_file(made(tmp_path / "good", GOOD, [(0, b"abc"), (1, full)], 3 + (1 << 20))) as reader:
        assert len(reader.read()) == 3 + (1 << 20)
    with (
        read_file(made(tmp_path / "bad", GOOD, [(how, stored)], size)) as reader,
        pytest.raises(CorruptData, match=r"bad \(snapshot at index 7\)"),
    ):
        reader.read()


def test_a_file_that_is_missing_or_another_snapshots_or_another_formats_is_refused(tmp_path: Path) -> None:
    own = SnapshotFiles(tmp_path).of(1, 1)
    path = tmp_path / "1-1" / take(own, 7)
    moved = path.rename(path.with_name("00000000000000000008-00000000.snapshot"))
    assert "index 7, not 8" in str(noticed(own, moved))
    assert "does not exist; restore it" in str(noticed(own, path))
    moved.write_bytes(moved.read_bytes().replace(b"DRKSNAP\1", b"DRKSNAP\2"))
    assert "its format is 2, and this version reads 1" in str(noticed(own, moved))


@pytest.mark.parametrize(
    "name", ["", "../2-1/00000000000000000007-00000000.snapshot", "0.tmp", "a\0b", "x\n"]
)
def test_a_name_leads_nowhere_else(name: str, tmp_path: Path) -> None:
    own = SnapshotFiles(tmp_path).of(1, 1)
    for use in (own.open, own.discard, own.pin):
        with pytest.raises(CorruptData, match="is no name of a snapshot"):
            use(name)
    with pytest.raises(ConfigError, match="replica_id=0"):
        SnapshotFiles(tmp_path).of(1, 0)


@pytest.mark.parametrize(
    ("snapshot", "facts", "named"),
    [
        (at(0), {}, "index=0"),
        (at(MAX_INDEX + 1), {}, "index"),
        (Snapshot(1, MAX_TERM + 1), {}, "term"),
        (at(1), {"set": {1}}, "facts"),
        (at(1), {1: 2}, "facts"),
        (at(1), {"object": object()}, "facts"),
        (Snapshot(1, 1, Membership(voters={0})), {}, "membership"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(
    snapshot: Snapshot, facts: dict[Any, Any], named: str, tmp_path: Path
) -> None:
    own = SnapshotFiles(tmp_path).of(1, 1)
    with own.create() as writer:
        writer.write(b"content")
        with pytest.raises(ConfigError, match=named):
            writer.finish(snapshot, facts)
        good = writer.finish(at(1))
    assert names_in(tmp_path) == [good.payload.decode()]
    with pytest.raises(ConfigError, match="compression='lz4'"):
        own.create(compression="lz4")  # type: ignore[arg-type]


# Which files stay.


@both
def test_pruning_leaves_what_is_kept_pinned_written_or_about_to_be_recorded(
    kind: str, tmp_path: Path
) -> None:
    own = store_of(kind, tmp_path).of(1, 1)
    old, pinned, kept, newer = (take(own, index) for index in (1, 2, 3, 4))
    own.pin(pinned)
    with own.create() as writer:
        writer.write(b"x" * 5)
        own.prune(kept)
        assert [content_of(own, name) for name in (pinned, kept, newer)] == [b"content"] * 3
        with pytest.raises(CorruptData, match="does not exist"):
            own.open(old)
        own.unpin(pinned)
        with pytest.raises(CorruptData, match="does not exist"):
            own.open(pinned)
        last = writer.finish(at(5)).payload.decode()
    own.prune(last)
    assert content_of(own, last) == b"x" * 5
    for name in (kept, newer):
        with pytest.raises(CorruptData, match="does not exist"):
            own.open(name)


def test_what_an_earlier_life_finished_but_did_not_record_is_pruned_even_if_newer(tmp_path: Path) -> None:
    own = SnapshotFiles(tmp_path).of(1, 1)
    kept, unrecorded = take(own, 1), take(own, 2)
    own.prune(kept)
    assert names_in(tmp_path) == [kept, unrecorded]
    own = SnapshotFiles(tmp_path).of(1, 1)
    (tmp_path / "1-1" / "notes.txt").write_text("not ours")
    own.prune(kept)
    assert names_in(tmp_path) == [kept, "notes.txt"]
    own.prune("")
    assert names_in(tmp_path) == ["notes.txt"]


@both
def test_what_is_discarded_goes_when_the_last_pin_does(kind: str, tmp_path: Path) -> None:
    own = store_of(kind, tmp_path).of(1, 1)
    name, free = take(own, 1), take(own, 2)
    own.pin(name)
    own.pin(name)
    own.discard(name)
    own.discard(free)
    own.discard(free)
    own.unpin(name)
    with own.open(name) as reader:
        own.unpin(name)
        with pytest.raises(CorruptData, match="does not exist"):
            own.open(name)
        assert reader.read() == b"content"  # an open reader reads on
    with pytest.raises(ConfigError, match="is not pinned"):
        own.unpin(name)
    with pytest.raises(CorruptData, match="does not exist"):
        own.open(free)


@both
def test_a_replicas_data_goes_altogether(kind: str, tmp_path: Path) -> None:
    store = store_of(kind, tmp_path)
    own, other = store.of(1, 1), store.of(11, 1)
    assert store.of(1, 1) is own
    name, others = take(own, 1), take(other, 1)
    own.pin(name)
    with own.create() as writer:
        own.remove_all()
        with pytest.raises(StorageFailed, match="1-1"):
            writer.finish(at(2))
    own.remove_all()
    with pytest.raises(CorruptData, match="does not exist"):
        own.open(name)
    assert content_of(other, others) == b"content"
    if kind == "disk":
        assert [each.name for each in tmp_path.iterdir()] == ["11-1"]
    assert content_of(own, take(own, 3)) == b"content"


@both
def test_what_is_not_finished_is_removed(kind: str, tmp_path: Path) -> None:
    own = store_of(kind, tmp_path).of(1, 1)

    def fails() -> None:
        with own.create() as writer:
            writer.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    with own.receive() as incoming:
        incoming.write(b"half")
    with own.create() as writer:
        writer.abort()
        writer.abort()
        with pytest.raises(ValueError, match="begin another"):
            writer.finish(at(1))
    assert own._names() == []
    assert own._writing == set()
    with own.create() as writer:
        name = writer.finish(at(1)).payload.decode()
        writer.abort()
        with pytest.raises(ValueError, match="begin another"):
            writer.finish(at(1))
    assert own._names() == [name]


def test_orphans_of_earlier_lives_are_removed_counted_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = take(SnapshotFiles(tmp_path).of(1, 1), 1)
    for orphan in ("0badf00d.tmp", "deadbeef.tmp"):
        (tmp_path / "1-1" / orphan).write_bytes(b"half")
    store = SnapshotFiles(tmp_path)
    own = store.of(1, 1)
    assert (names_in(tmp_path), store.orphans) == ([name], 2)
    assert "removed 2 unfinished snapshots of an earlier run, such as 0badf00d.tmp" in caplog.text
    with own.create():
        store.of(1, 1)
        assert (len(names_in(tmp_path)), store.orphans) == (2, 2)


def test_the_memory_of_a_host_that_restarts_has_what_was_finished_and_nothing_else() -> None:
    def life() -> tuple[MemorySnapshots, str]:
        store = MemorySnapshots()
        own = store.of(1, 1)
        name = take(own, 1, os.urandom(10))
        own.pin(name)
        own.create().write(b"half")
        return store.restarted(), name

    store, name = life()
    own = store.of(1, 1)
    assert (own._names(), store.orphans) == ([name], 1)
    assert life()[1] == name  # no chance in it
    own.prune("")
    assert own._names() == []


def test_many_threads_take_receive_and_prune_at_once(tmp_path: Path) -> None:
    own = SnapshotFiles(tmp_path).of(1, 1)
    first = take(own, 1, b"first")
    made: list[tuple[str, bytes]] = []
    failures: list[BaseException] = []
    going = threading.Event()

    def work(mine: int) -> None:
        going.wait(10)
        try:
            for index in range(2 + mine, 42, 4):
                content = bytes([mine]) * (index * 1000)
                name = take(own, index, content, "zlib" if mine % 2 else "none", 700)
                with own.open(name) as reader, reader.raw() as raw, own.receive() as incoming:
                    incoming.write(raw.read())
                    received = incoming.finish()[0].payload.decode()
                own.prune(first)
                own.pin(name)
                own.discard(name)
                made.append((received, content))
                assert content_of(own, name) == content
                own.unpin(name)
        except BaseException as error:  # noqa: BLE001  # told to the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=(each,)) for each in range(4)]
    for thread in threads:
        thread.start()
    going.set()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert len({name for name, _ in made}) == 40
    assert all(content_of(own, name) == content for name, content in made)
    assert names_in(tmp_path) == sorted([first, *(name for name, _ in made)])


# Crashes and failing disks.


def never(_number: int, _operation: str) -> int:
    return 0


def failing_at(first: int, code: int, lasts: bool, asked: list[str], number: int, operation: str) -> int:
    asked.append(operation)
    return code if number == first or (lasts and number > first) else 0


def outcome(attempt: Callable[[], Any]) -> StorageFailed | None:
    try:
        attempt()
    except StorageFailed as error:
        return error
    return None


@dataclass
class Journal:
    """A real disk, and a record of all that was asked of it; it fails when it is told to."""

    operations: list[tuple[Any, ...]] = field(default_factory=list)
    fails: Callable[[int, str], int] = never
    """The errno with which the operation of this number fails, or 0."""

    def __post_init__(self) -> None:
        self.disk = DiskFiles()
        self.inodes: dict[int, int] = {}
        self.fresh = itertools.count()
        self.tokens = itertools.count(1)
        self.number = 0

    def _attempt(self, operation: str) -> None:
        number, self.number = self.number, self.number + 1
        if code := self.fails(number, operation):
            raise OSError(code, os.strerror(code))

    def token(self) -> str:
        return f"{next(self.tokens):08x}"

    def make_directory(self, path: Path) -> None:
        self.disk.make_directory(path)

    def names(self, directory: Path) -> list[str]:
        return self.disk.names(directory)

    def open(self, path: Path) -> Any:
        return self.disk.open(path)

    def create(self, path: Path) -> int:
        self._attempt("create")
        handle = self.disk.create(path)
        self.inodes[handle] = next(self.fresh)
        self.operations.append(("create", path.name, self.inodes[handle]))
        return handle

    def write(self, handle: int, data: bytes) -> None:
        try:
            self._attempt("write")
        except OSError:
            self.disk.write(handle, data[: len(data) // 2])
            raise
        self.disk.write(handle, data)
        self.operations.append(("write", self.inodes[handle], bytes(data)))

    def sync(self, handle: int) -> None:
        self._attempt("sync")
        self.operations.append(("sync", self.inodes[handle]))

    def close(self, handle: int) -> None:
        self.disk.close(handle)
        self._attempt("close")

    def rename(self, old: Path, new: Path) -> None:
        self._attempt("rename")
        self.disk.rename(old, new)
        self.operations.append(("rename", old.name, new.name))

    def sync_directory(self, path: Path) -> None:
        self._attempt("sync_directory")
        self.operations.append(("sync_directory",))

    def remove(self, path: Path) -> None:
        self._attempt("remove")
        self.disk.remove(path)
        self.operations.append(("remove", path.name))

    def remove_directory(self, path: Path) -> None:
        self.disk.remove_directory(path)


class Platter:
    """What a crash may leave of operations: all that was synced, and of the rest what `chance` picks."""

    def __init__(self, operations: list[tuple[Any, ...]], chance: random.Random, loss: float) -> None:
        self.chance, self.loss = chance, loss
        self.content: dict[int, bytes] = {}
        self.written: dict[int, list[tuple[int, bytes]]] = {}
        self.length: dict[int, int] = {}
        self.names: dict[str, int] = {}
        self.named: list[tuple[Any, ...]] = []
        self.inodes: dict[str, int] = {}
        for operation, *rest in operations:
            getattr(self, operation)(*rest)

    def create(self, name: str, inode: int) -> None:
        self.content[inode], self.written[inode], self.length[inode] = b"", [], 0
        self.inodes[name] = inode
        self.named.append((name, inode))

    def write(self, inode: int, data: bytes) -> None:
        self.written[inode].append((self.length[inode], data))
        self.length[inode] += len(data)

    def sync(self, inode: int) -> None:
        for offset, data in self.written[inode]:
            self._put(inode, offset, data)
        self.written[inode].clear()

    def rename(self, old: str, new: str) -> None:
        inode = self.inodes[new] = self.inodes.pop(old)
        self.named += [(new, inode), (old, None)]

    def remove(self, name: str) -> None:
        self.inodes.pop(name, None)
        self.named.append((name, None))

    def sync_directory(self) -> None:
        for name, inode in self.named:
            self._name(name, inode)
        self.named.clear()

    def finished(self, _name: str) -> None:
        pass

    def crash(self) -> dict[str, bytes]:
        """The files that are found afterwards."""
        for inode, writes in self.written.items():
            for offset, data in self._some(writes):
                torn = self.chance.random() < self.loss
                self._put(inode, offset, data[: self.chance.randrange(len(data) + 1)] if torn else data)
        for name, inode in self._some(self.named):
            self._name(name, inode)
        return {name: self.content[inode] for name, inode in self.names.items()}

    def _some(self, of: list[Any]) -> list[Any]:
        kept = [each for each in of if self.chance.random() >= self.loss]
        self.chance.shuffle(kept)
        return kept

    def _put(self, inode: int, offset: int, data: bytes) -> None:
        before = self.content[inode].ljust(offset, b"\0")
        self.content[inode] = before[:offset] + data + before[offset + len(data) :]

    def _name(self, name: str, inode: int | None) -> None:
        if inode is None:
            self.names.pop(name, None)
        else:
            self.names[name] = inode


def one_life(own: Snapshots, journal: Journal) -> dict[int, bytes]:
    """Snapshots are taken, received, given up and pruned; returns their content by index."""
    contents = {
        index: random.Random(index).randbytes(150) + bytes([index]) * 100 for index in (1, 2, 3, 4, 5)
    }

    def finished(name: str) -> None:
        journal.operations.append(("finished", name))

    first = take(own, 1, contents[1], step=40)
    finished(first)
    with own.open(first) as reader, reader.raw() as raw, own.receive() as incoming:
        incoming.write(raw.read(100))
        incoming.write(raw.read())
        again = incoming.finish()[0].payload.decode()
        finished(again)
    second = take(own, 2, contents[2], "zlib", step=40)
    finished(second)
    own.prune(second)
    with own.create() as writer:
        writer.write(contents[3])
        with own.create(compression="zlib") as other:
            other.write(contents[4])
            fourth = other.finish(at(4)).payload.decode()
            finished(fourth)
    own.prune(fourth)
    finished(take(own, 5, contents[5]))
    return contents


@contextmanager
def a_directory_with(files: dict[str, bytes], path: Path) -> Iterator[SnapshotFiles]:
    (path / "1-1").mkdir(parents=True)
    for name, content in files.items():
        (path / "1-1" / name).write_bytes(content)
    yield SnapshotFiles(path)
    shutil.rmtree(path)


def still_owed(operations: list[tuple[Any, ...]]) -> set[str]:
    """The names that were returned, and not given up since."""
    owed: set[str] = set()
    for operation, *rest in operations:
        if operation == "finished":
            owed.add(rest[0])
        elif operation == "remove":
            owed.discard(rest[0])
    return owed


@pytest.mark.usefixtures("small_blocks")
def test_a_crash_at_any_instant_leaves_every_finished_snapshot_and_no_half_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "_SYNC_BYTES", 150)
    journal = Journal()
    contents = one_life(SnapshotFiles(tmp_path / "live", files=journal).of(1, 1), journal)
    assert sum(operation[0] == "finished" for operation in journal.operations) == 5
    seen: set[frozenset[tuple[str, bytes]]] = set()
    for instant in range(len(journal.operations) + 1):
        before = journal.operations[:instant]
        owed = still_owed(before)
        for seed, loss in [(0, 0.0), (0, 1.0), *((seed, 0.5) for seed in range(25))]:
            left = Platter(before, random.Random(instant * 1000 + seed), loss).crash()
            assert owed <= left.keys()
            if frozenset(left.items()) in seen:
                continue
            seen.add(frozenset(left.items()))
            with a_directory_with(left, tmp_path / "after") as store:
                own = store.of(1, 1)
                complete = {name for name in left if name.endswith(".snapshot")}
                assert store.orphans == len(left) - len(complete)
                assert set(own._names()) == complete
                for name in complete:
                    assert content_of(own, name) == contents[int(name[:20])]
    assert len(seen) > 300


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("lasts", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("how", ["create", "receive", "export"])
def test_a_disk_that_fails_at_any_operation_says_so_and_leaves_no_snapshot(
    how: str, lasts: bool, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "_SYNC_BYTES", 150)
    content = random.Random(1).randbytes(300)
    journal = Journal()
    monkeypatch.setattr(snapshots, "DiskFiles", lambda: journal)
    own = SnapshotFiles(tmp_path / "host", files=journal).of(1, 1)
    kept = take(own, 1, content)
    exported = tmp_path / "exports" / "file"
    exported.parent.mkdir()

    def attempt() -> Any:
        with own.open(kept) as reader:
            if how == "export":
                return export_to(reader, exported)
            with own.receive() if how == "receive" else own.create() as writer, reader.raw() as raw:
                source = raw if how == "receive" else reader
                while data := source.read(50):
                    writer.write(data)
                return writer.finish(*([] if how == "receive" else [at(2)]))

    failed: set[str] = set()
    for number in itertools.count():
        journal.number, asked = 0, []
        journal.fails = partial(failing_at, number, code, lasts, asked)
        error = outcome(attempt)
        journal.fails = never
        if error is None:
            break
        assert str(tmp_path) in str(error)
        assert ("free some space" if code == errno.ENOSPC else "the disk failed") in str(error)
        failed.add(asked[number])
        if not lasts:
            assert names_in(tmp_path) == [kept]
        own.prune(kept)
        assert names_in(tmp_path / "host") == [kept]
        shutil.rmtree(exported.parent)
        exported.parent.mkdir()
    assert failed == {"create", "write", "sync", "close", "rename", "sync_directory"}
    assert own._writing == set()
    assert content_of(own, kept) == content
    assert len(names_in(tmp_path)) == 2


def test_a_state_machine_that_shrugs_at_a_full_disk_does_not_get_half_a_snapshot(tmp_path: Path) -> None:
    journal = Journal()
    own = SnapshotFiles(tmp_path, files=journal).of(1, 1)
    with own.create() as writer:
        journal.fails = lambda number, operation: errno.ENOSPC if operation == "write" else 0
        with pytest.raises(StorageFailed, match=r"No space left.*free some space"):
            writer.write(bytes(2 << 20))
        journal.fails = never
        for again in (lambda: writer.write(bytes(2 << 20)), lambda: writer.finish(at(1))):
            with pytest.raises(StorageFailed, match="No space left"):
                again()
    assert names_in(tmp_path) == []


def test_what_the_system_writes_and_reads_in_parts_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, pread = os.write, os.pread
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:1000]))
    monkeypatch.setattr(os, "pread", lambda handle, length, at: pread(handle, min(length, 700), at))
    own = SnapshotFiles(tmp_path).of(1, 1)
    content = os.urandom(5000)
    assert content_of(own, take(own, 1, content)) == content


def test_little_is_left_for_the_last_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "_SYNC_BYTES", 2 << 20)
    journal = Journal()
    take(SnapshotFiles(tmp_path, files=journal).of(1, 1), 1, bytes(6 << 20))
    waiting = most = 0
    for operation, *rest in journal.operations:
        waiting = 0 if operation == "sync" else waiting + (len(rest[1]) if operation == "write" else 0)
        most = max(most, waiting)
    assert 0 < most < 4 << 20


def test_a_bad_disk_is_told_from_a_process_that_has_too_many_files_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = SnapshotFiles(tmp_path).of(1, 1)
    name = take(own, 1)

    def refuse(code: int, *_: Any) -> Any:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", partial(refuse, errno.EMFILE))
        with pytest.raises(StorageFailed, match=f"{name} cannot be read: Too many open files: .*ulimit -n"):
            own.open(name)
    with own.open(name) as reader:
        monkeypatch.setattr(os, "pread", partial(refuse, errno.EIO))
        with pytest.raises(CorruptData, match=f"{name} cannot be read: .*the disk failed"):
            reader.read()


def test_a_refused_file_is_not_left_open(tmp_path: Path) -> None:
    own = SnapshotFiles(tmp_path).of(1, 1)
    path = tmp_path / "1-1" / take(own, 1)
    path.write_bytes(path.read_bytes()[:-1])
    before = len(list(Path("/proc/self/fd").iterdir()))
    noticed(own, path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_real_limit_of_the_system_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    own = SnapshotFiles(tmp_path).of(1, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, before[1]))
    try:
        with (
            own.create() as writer,
            pytest.raises(StorageFailed, match=r"1-1.*File too large: .*ulimit -f"),
        ):
            writer.write(bytes(3 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names_in(tmp_path) == []
    assert content_of(own, take(own, 1, bytes(3 << 20))) == bytes(3 << 20)


def test_what_cannot_be_removed_is_logged_and_removed_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal()
    own = SnapshotFiles(tmp_path, files=journal).of(1, 1)
    old, new = take(own, 1), take(own, 2)
    journal.fails = lambda _number, operation: errno.EIO if operation == "remove" else 0
    own.prune(new)
    assert f"{old} cannot be removed now" in caplog.text
    with pytest.raises(StorageFailed, match=r"1-1"):
        own.remove_all()
    journal.fails = never
    own.prune(new)
    assert names_in(tmp_path) == [new]
