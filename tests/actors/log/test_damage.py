"""What is damaged, missing or foreign in the log's folder is found, named, and never taken for the end of the log."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import pytest
from drakkar.actors.log import manifest, records
from drakkar.actors.log.files import DiskFiles
from drakkar.actors.log.records import stored_run
from drakkar.actors.log.segments import HEADER_BYTES
from drakkar.actors.log.store import LogStore, log_on_disk
from drakkar.handlers.errors import ConfigError, CorruptData
from drakkar.handlers.raft.entries import Entries, Run
from drakkar.handlers.raft.lanes import UNLIMITED
from drakkar.handlers.raft.state import HardState, Snapshot

from tests.actors.log.support import MEMBERS, OWNER, RECORD, SMALL, Host, check, of, on_disk, run

LOG = "LOG"
COPY_BYTES = manifest.COPY_BYTES
RUN_HEAD = records._RUN.size


class Folder:
    """The folder of a log that is closed, and what can be done to it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def host(self) -> Host:
        return Host(lambda: on_disk(self.path))

    @property
    def segments(self) -> list[Path]:
        return sorted(self.path.glob("*.segment"))

    def find(self, needle: bytes) -> tuple[Path, int]:
        """File and offset of the only place where these bytes are."""
        places = [
            (file, content.index(needle))
            for file in self.segments
            if needle in (content := file.read_bytes())
        ]
        assert len(places) == 1
        assert places[0][0].read_bytes().count(needle) == 1
        return places[0]

    def flip(self, file: Path, offset: int, bit: int = 0) -> None:
        content = bytearray(file.read_bytes())
        content[offset] ^= 1 << bit
        file.write_bytes(content)

    def picture(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.path.iterdir()}

    def refused(self, error: type[Exception], text: str, *, create: bool = False) -> None:
        """It cannot be opened, to write or to read, and is left as it is."""
        before = self.picture()
        for read_only in (False, True):
            with pytest.raises(error, match=text):
                LogStore(DiskFiles(self.path), OWNER, create=create, read_only=read_only, segment_bytes=SMALL)
            assert self.picture() == before

    def manifest(self, **changes: object) -> None:
        """Change what is in the manifest, as another version or another host would have written it."""
        fields = json.loads((self.path / LOG).read_text()[:COPY_BYTES]) | changes
        fields.pop("checksum", None)
        fields["checksum"] = crc32(json.dumps(fields).encode())
        (self.path / LOG).write_text(json.dumps(fields, indent=2).ljust(COPY_BYTES) * 2)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    return Folder(tmp_path / "log")


def stored_bytes(key: tuple[int, int], entries: Run) -> bytes:
    stored = stored_run(key, entries)
    return stored.head + stored.entries


def fill(folder: Folder) -> None:
    """Two replicas; the first in three records, the last of which is in another segment."""
    host = folder.host()
    host.begin()
    host.begin(1, 2)
    host.save(run(1, 2))
    host.save(run(1, 5), replica=2)
    host.save(run(3, 2), hard=HardState(3, 2, 4))
    host.save(Run(6, 1, [bytes(SMALL // 2)]), replica=2)
    host.save(Run(7, 1, [bytes(SMALL // 2)]), replica=2)
    host.save(run(5, 2))
    host.close()


# -- entries --------------------------------------------------------------------------------------------------------


def check_damaged(folder: Folder, where: str) -> None:
    """The first replica alone cannot be opened, read or written."""
    host = folder.host()
    with pytest.raises(CorruptData, match=where):
        host.store.open(1, 1)
    assert isinstance(host.save(run(7, 1)), CorruptData)
    with pytest.raises(CorruptData):
        host.bootstrap(1, 1)
    assert host.log(1, 2).runs(1, 6, UNLIMITED)[0].encode() == run(1, 5).encode()
    assert host.save(run(host.log(1, 2).last_index + 1, 1), replica=2) is None
    assert host.store.replicas() == [(1, 1), (1, 2)]
    host.close()


def test_a_flipped_bit_in_any_byte_of_an_entry_is_found(folder: Folder) -> None:
    """BUG-L15: damage in the middle must never look like the end."""
    fill(folder)
    entries = stored_run((1, 1), run(3, 2)).entries
    file, offset = folder.find(entries)
    where = rf"log: shard 1 replica 1: .*{file.name}, offset {offset - RUN_HEAD}, from index 3 on"
    for position in range(len(entries)):
        folder.flip(file, offset + position, position % 8)
        check_damaged(folder, where)
        folder.flip(file, offset + position, position % 8)
    host = folder.host()
    check(host.log(), of(run(1, 6)), 1, 0)
    host.close()


@pytest.mark.parametrize("first", [1, 3, 5], ids=["the first run", "one in the middle", "the last run"])
def test_damaged_entries_are_found_wherever_they_are(folder: Folder, first: int) -> None:
    fill(folder)
    entries = stored_run((1, 1), run(first, 2)).entries
    file, offset = folder.find(entries)
    folder.flip(file, offset)
    check_damaged(folder, f"offset {offset - RUN_HEAD}, from index {first} on")


def test_entries_of_another_replica_in_the_place_are_found(folder: Folder) -> None:
    """The same bytes, with the same checksum, but not where they were."""
    host = folder.host()
    host.begin()
    host.begin(1, 2)
    host.save(run(1, 2))
    host.save(run(1, 2), replica=2)
    host.save(run(3, 2))
    host.close()
    data = {replica: stored_bytes((1, replica), run(1, 2)) for replica in (1, 2)}
    assert data[1] != data[2]
    file, offset = folder.find(data[1])
    content = file.read_bytes()
    file.write_bytes(content[:offset] + data[2] + content[offset + len(data[2]) :])
    folder.refused(CorruptData, f"{file.name}, offset")


@pytest.mark.parametrize("gone", ["compacted", "replaced", "a snapshot instead", "removed"])
def test_damage_in_what_is_not_needed_any_more_does_no_harm(folder: Folder, gone: str) -> None:
    host = folder.host()
    host.begin()
    host.save(run(1, 2))
    host.save(run(3, 2))
    if gone == "compacted":
        host.compact(4)
    elif gone == "replaced":
        host.save(run(3, 2, 2))
    elif gone == "removed":
        host.remove()
    else:
        host.save(snapshot=Snapshot(4, 1, MEMBERS))
    host.close()
    entries = stored_run((1, 1), run(3, 2)).entries
    folder.flip(*folder.find(entries))
    host = folder.host()
    if gone == "removed":
        assert host.store.open(1, 1) is None
    elif gone == "replaced":
        check(host.log(), of(run(1, 2), run(3, 2, 2)), 1, 0)
    else:
        check(host.log(), [], 5, 1)
    host.close()


def test_entries_that_are_needed_in_part_only_are_damaged_all_the_same(folder: Folder) -> None:
    host = folder.host()
    host.begin()
    host.save(run(1, 6))
    host.save(run(5, 1, 2))
    host.compact(2)
    host.close()
    file, offset = folder.find(stored_run((1, 1), run(1, 6)).entries)
    folder.flip(file, offset)
    host = folder.host()
    with pytest.raises(CorruptData, match="from index 1 on"):
        host.store.open(1, 1)
    host.close()


def test_damage_that_comes_after_the_start_is_found_by_the_read(folder: Folder) -> None:
    fill(folder)
    entries = stored_run((1, 1), run(3, 2)).entries
    file, offset = folder.find(entries)
    host = folder.host()
    log = host.log()
    with file.open("r+b") as opened:
        opened.seek(offset + len(entries) - 2)
        opened.write(b"0")  # in a payload, which could be decoded all the same
    assert list(Entries(log.runs(1, 3, UNLIMITED))) == of(run(1, 2)), "what is sound can be read"
    with pytest.raises(
        CorruptData,
        match=rf"{file.name}, offset {offset - RUN_HEAD}: shard 1 replica 1: the run of entries from 3 on",
    ):
        log.runs(2, 6, UNLIMITED)
    host.close()


def test_who_only_reads_gets_what_is_sound_of_a_damaged_replica(folder: Folder) -> None:
    fill(folder)
    file, offset = folder.find(stored_run((1, 1), run(3, 2)).entries)
    folder.flip(file, offset)
    store = LogStore(DiskFiles(folder.path, read_only=True), OWNER, create=False, read_only=True)
    log = store.open(1, 1)
    assert log is not None
    assert (log.first_index, log.last_index) == (1, 6)
    assert list(Entries(log.runs(5, 7, UNLIMITED))) == of(run(5, 2))
    with pytest.raises(CorruptData, match=rf"{file.name}, offset {offset - RUN_HEAD}: .* from 3 on"):
        log.runs(1, 7, UNLIMITED)
    store.close()


@pytest.mark.parametrize("remedy", ["remove", "import"])
def test_a_corrupt_replica_can_be_removed_or_replaced(folder: Folder, remedy: str) -> None:
    fill(folder)
    folder.flip(*folder.find(stored_run((1, 1), run(3, 2)).entries))
    host = folder.host()
    with pytest.raises(CorruptData):
        host.store.open(1, 1)
    if remedy == "remove":
        host.remove()
    else:
        host.import_(RECORD, Snapshot(3, 2, MEMBERS), HardState(2))
    for _ in range(2):
        if remedy == "remove":
            assert host.store.open(1, 1) is None
            assert host.store.replicas() == [(1, 2)]
        else:
            check(host.log(), [], 4, 2)
        assert host.log(1, 2).last_index == 7
        host.restart()
    host.close()


def test_a_commit_index_beyond_the_log_is_lowered_with_a_warning(
    folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    """BUG-L14: power was lost between two files, or the log was restored from a copy."""
    host = folder.host()
    host.begin()
    host.save(run(1, 2), hard=HardState(1, 1, 4))
    host.restart()
    assert host.log().hard_state == HardState(1, 1, 2)
    assert host.log().recorded_commit == 4
    assert "the commit index 4 lies beyond the last entry 2" in caplog.text
    host.close()


# -- records --------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_any_byte_of_a_record_beside_the_entries_is_found(folder: Folder) -> None:
    host = folder.host()
    host.begin()
    host.save(run(1, 5))
    host.close()
    (file,) = [file for file in folder.segments if b"1:5" in file.read_bytes()]
    host = folder.host()
    begin = file_end(file)
    host.save(run(6, 2), hard=HardState(3, 2, 4), snapshot=None)
    host.record(Snapshot(4, 1, MEMBERS))
    host.log()
    host.compact(2)
    end = file_end(file)
    host.close()
    entries = stored_run((1, 1), run(6, 2)).entries
    _, data = folder.find(entries)
    assert begin < data < end
    whole = file.read_bytes()
    for position in (*range(begin, data), *range(data + len(entries), end)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << (position % 8)
        file.write_bytes(flipped)
        folder.refused(CorruptData, rf"{file.name}, offset \d+: record \d+ is (damaged|missing).*put it back")


def file_end(file: Path) -> int:
    """Where the records end, of a segment that was not used before."""
    return len(file.read_bytes().rstrip(b"\0")) if file.exists() else HEADER_BYTES


def test_what_a_damaged_record_held_is_told_as_far_as_it_can_be_seen(folder: Folder) -> None:
    fill(folder)
    file, offset = folder.find(stored_bytes((1, 1), run(3, 2)))
    folder.flip(file, offset + RUN_HEAD - 1)
    begin = offset - records._CHANGE.size - records.RECORD_BYTES
    folder.refused(
        CorruptData,
        rf"{file.name}, offset {begin}: record 5 is damaged, and record 6 says .* up to record 5; "
        "it held entries of shard 1 replica 1 from 3 on: put it back",
    )


@pytest.mark.parametrize("number", [0, 1], ids=["in the first segment", "alone in the second"])
def test_a_damaged_record_before_another_segment_is_found(folder: Folder, number: int) -> None:
    """No later record of its own segment tells that it was durable."""
    host = folder.host()
    host.begin()
    host.save(Run(1, 1, [b"a" * (SMALL // 2)]))
    host.save(Run(2, 1, [b"b" * (SMALL // 2)]))
    host.save(Run(3, 1, [b"c" * (SMALL // 2)]))
    host.close()
    file, offset = folder.find(
        stored_bytes((1, 1), Run(1 + number, 1, [b"ab"[number : number + 1] * (SMALL // 2)]))
    )
    assert file == folder.segments[number]
    begin = offset - records._CHANGE.size - records.RECORD_BYTES
    folder.flip(file, begin + 5)
    folder.refused(
        CorruptData,
        f"{file.name}, offset {begin}: record {2 + number} is missing, and record {3 + number} follows",
    )


def test_what_was_in_a_file_before_is_never_taken_for_new(folder: Folder) -> None:
    """Files are used again, and all of their old records are whole."""
    host = folder.host()
    host.begin()
    for index in range(1, 200):
        host.save(Run(index, index, [b"%d" % index * 1000]))
        if index % 10 == 0:
            host.compact(index)
    host.close()
    assert max(int(file.stem, 16) for file in folder.segments) > 8
    host = folder.host()
    check(host.log(), of(*(Run(index, index, [b"%d" % index * 1000]) for index in range(191, 200))), 191, 190)
    host.close()


# -- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [0, 1, HEADER_BYTES - 1, HEADER_BYTES, 20_000, SMALL - 1])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_file_that_was_cut_off_is_refused(folder: Folder, left: int, number: int) -> None:
    fill(folder)
    file = folder.segments[number]
    os.truncate(file, left)
    folder.refused(CorruptData, rf"{file.name} has {left} bytes")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_missing_file_is_found_and_named(folder: Folder, number: int) -> None:
    fill(folder)
    file = folder.segments[number]
    file.unlink()
    folder.refused(CorruptData, f"lacks {file.name}, though the log consists of segments 1 to 3")


def test_a_flipped_bit_in_any_byte_of_a_header_is_found(folder: Folder) -> None:
    fill(folder)
    file = folder.segments[1]
    size = len(file.read_bytes()[:HEADER_BYTES].rstrip(b"\0"))
    for position in range(size):
        folder.flip(file, position, position % 8)
        folder.refused(CorruptData, f"{file.name}, offset 0: the header is damaged")
        folder.flip(file, position, position % 8)


def test_a_segment_of_another_host_is_refused(folder: Folder, tmp_path: Path) -> None:
    fill(folder)
    log_on_disk(tmp_path / "other", "another", create=True, segment_bytes=SMALL).close()
    other = min((tmp_path / "other").glob("*.segment"))
    shutil.copy(other, folder.segments[0])
    folder.refused(CorruptData, f"{other.name} belongs to another log")


def test_a_segment_under_another_number_is_refused(folder: Folder) -> None:
    fill(folder)
    shutil.copy(folder.segments[0], folder.segments[1])
    folder.refused(CorruptData, f"{folder.segments[1].name} .* is segment 1 of this one")


def harm(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {"empty": b"", "half": path.read_bytes()[:50], "a list": b"[]", "noise": b"\xff\x00"}[how]
        )


@pytest.mark.parametrize("how", ["missing", "empty", "half", "a list", "noise"])
def test_a_missing_or_damaged_manifest_is_no_new_log(folder: Folder, how: str) -> None:
    fill(folder)
    harm(folder.path / LOG, how)
    folder.refused(CorruptData, r"log lacks LOG" if how == "missing" else r"log/LOG cannot be read")


def test_a_flipped_bit_in_any_byte_of_the_manifest_is_found(folder: Folder) -> None:
    """A log that seems to end with an earlier segment has forgotten what it acknowledged. One of two copies is enough."""
    fill(folder)
    content = (folder.path / LOG).read_bytes()[:COPY_BYTES]
    for position in range(len(content)):
        if content[position : position + 1].isspace():
            continue
        for bit in range(8):
            for copy in (0, COPY_BYTES):
                folder.flip(folder.path / LOG, copy + position, bit)
            folder.refused(
                (CorruptData, ConfigError),  # type: ignore[arg-type]
                r"log/LOG|holds a log of format",
            )
            for copy in (0, COPY_BYTES):
                folder.flip(folder.path / LOG, copy + position, bit)


@pytest.mark.parametrize("begin", [0, COPY_BYTES])
def test_one_damaged_copy_of_the_manifest_does_no_harm(folder: Folder, begin: int) -> None:
    """A crash may leave it half written; the next start writes it anew."""
    fill(folder)
    whole = (folder.path / LOG).read_bytes()
    folder.flip(folder.path / LOG, begin + 9)
    host = folder.host()
    assert host.log().last_index == 6
    host.close()
    assert (folder.path / LOG).read_bytes()[:9] == whole[:9]


def test_an_old_copy_of_the_manifest_is_found(folder: Folder) -> None:
    host = folder.host()
    host.begin()
    old = (folder.path / LOG).read_bytes()
    for index in range(1, 7):
        host.save(Run(index, 1, [bytes(SMALL // 2)]))
    host.close()
    (folder.path / LOG).write_bytes(old)
    folder.refused(
        CorruptData, "log/LOG names no segment after 2, but 000000000000000[0-9].segment holds records"
    )


def test_the_log_of_another_host_is_refused(folder: Folder) -> None:
    fill(folder)
    folder.manifest(host_id="e0" * 16)
    folder.refused(
        ConfigError, f"holds the log of host '{'e0' * 16}', and this data directory is that of host '{OWNER}'"
    )


@pytest.mark.parametrize("found", [1, 3, "9", None])
def test_a_log_of_another_format_is_refused(folder: Folder, found: object) -> None:
    fill(folder)
    folder.manifest(format=found)
    folder.refused(ConfigError, f"format {found!r}, and this version reads 2: use the version that wrote it")


@pytest.mark.parametrize(
    "numbers",
    [{"first": 0}, {"first": 9}, {"last": "3"}, {"last": True}, {"sequence": 0}, {"sequence": None}],
)
def test_a_manifest_that_contradicts_itself_is_refused(folder: Folder, numbers: dict[str, object]) -> None:
    fill(folder)
    folder.manifest(**numbers)
    folder.refused(CorruptData, "log/LOG names segments")


@pytest.mark.parametrize("create", [False, True])
def test_a_folder_with_a_log_of_the_old_format_is_refused_untouched(folder: Folder, create: bool) -> None:
    folder.path.mkdir()
    (folder.path / "data.mdb").write_bytes(b"not ours")
    (folder.path / "lock.mdb").write_bytes(b"")
    if create:
        folder.refused(ConfigError, "holds data.mdb, which is no part of a log: name an empty", create=True)
    else:
        folder.refused(CorruptData, "lacks LOG", create=False)


def test_a_folder_of_another_program_is_refused(folder: Folder) -> None:
    folder.path.mkdir()
    (folder.path / "theirs").write_bytes(b"data")
    with pytest.raises(
        ConfigError, match="holds theirs, which is no part of a log: name an empty or a new directory"
    ):
        on_disk(folder.path)
    assert folder.picture() == {"theirs": b"data"}


def test_an_empty_folder_is_a_log_only_where_one_may_be_made(folder: Folder) -> None:
    folder.path.mkdir()
    folder.refused(CorruptData, "lacks LOG")
    folder.host().close()
    assert (folder.path / LOG).exists()


def test_a_start_that_was_cut_short_is_begun_again(folder: Folder) -> None:
    folder.path.mkdir()
    for name in ("0000000000000001.segment", "LOG.new", "spare-1"):
        (folder.path / name).write_bytes(b"half")
    host = folder.host()
    host.begin()
    host.restart()
    assert host.store.replicas() == [(1, 1)]
    host.close()


def test_files_that_are_not_ours_are_left_alone(folder: Folder) -> None:
    """The folder may be the root of a file system, and operators leave things there."""
    (folder.path / "lost+found").mkdir(parents=True)
    fill(folder)
    for name in ("spare-me", "notes", "LOG.bak"):
        (folder.path / name).write_text("mine")
    host = folder.host()
    assert host.log().last_index == 6
    host.close()
    assert {"lost+found", "spare-me", "notes", "LOG.bak"} <= {path.name for path in folder.path.iterdir()}


def test_what_a_crash_left_between_two_steps_is_deleted(folder: Folder) -> None:
    fill(folder)
    shutil.copy(folder.segments[0], folder.path / "00000000000000ff.segment")
    (folder.path / "LOG.new").write_bytes(b"half")
    (folder.path / "spare-9").write_bytes(b"too short")
    host = folder.host()
    assert host.log().last_index == 6
    host.close()
    names = {path.name for path in folder.path.iterdir()}
    assert names.isdisjoint({"00000000000000ff.segment", "LOG.new", "spare-9"})


def test_a_file_in_place_of_the_folder_is_refused(folder: Folder) -> None:
    folder.path.write_text("mine")
    with pytest.raises(ConfigError, match="cannot hold a log"):
        on_disk(folder.path)
    assert folder.path.read_text() == "mine"


def test_a_log_can_be_read_where_nothing_can_be_written(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(folder)
    opened: list[int] = []
    real = os.open

    def watched(path: object, flags: int, *arguments: int) -> int:
        opened.append(flags)
        return real(path, flags, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", watched)
    store = LogStore(DiskFiles(folder.path, read_only=True), OWNER, create=False, read_only=True)
    log = store.open(1, 1)
    assert log is not None
    check(log, of(run(1, 6)), 1, 0)
    store.close()
    assert opened
    assert not [flags for flags in opened if flags & (os.O_WRONLY | os.O_RDWR)]
