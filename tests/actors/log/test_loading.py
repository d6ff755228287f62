"""Reads that the loop must not wait for: what is read on it, what elsewhere, and what becomes of that."""

import errno
import os

import pytest
from drakkar.actors.log import files as log_files
from drakkar.actors.log.disk_errors import explain
from drakkar.actors.log.driver import InlineDriver
from drakkar.actors.log.files import DiskFiles
from drakkar.actors.log.kept_runs import KeptRuns
from drakkar.actors.log.segments import HEADER_BYTES
from drakkar.actors.log.store import AppendRequest, Bootstrap, LogStore, at_once, log_in_memory
from drakkar.actors.log.stored_log import MAX_LOOP_BYTES
from drakkar.handlers.errors import CorruptData, StorageFailed
from drakkar.handlers.raft.entries import Run
from drakkar.handlers.raft.log import EntriesNotLoaded
from drakkar.handlers.raft.log_memory import LogMemory
from drakkar.handlers.raft.state import Membership, Snapshot
from drakkar.handlers.raft.window import Window

MIB = 1 << 20
LARGE = MAX_LOOP_BYTES + 1


class Files(DiskFiles):
    """A folder of which parts are not in the page cache."""

    cold = False
    elsewhere = 0

    def read_cached(self, name, offset, size):
        return None if self.cold else super().read_cached(name, offset, size)

    def read_apart(self, name, places):
        self.elsewhere += len(places)
        return super().read_apart(name, places)


class Driver:
    """Does everything at once, but for reads, which wait for the test."""

    def __init__(self):
        inline = InlineDriver()
        self.defer, self.flush, self.background = inline.defer, inline.flush, inline.background
        self.finish = inline.finish
        self.reads = []

    def read(self, job, done):
        self.reads.append((job, done))

    def run(self, *, before=lambda: None):
        """Do the oldest read; `before` happens between the reading and the report."""
        job, done = self.reads.pop(0)
        try:
            outcome = job()
        except Exception as error:  # noqa: BLE001  # as the driver's
            outcome = error
        before()
        done(outcome)


class Log:
    """A store with one replica, and its log as the core reads it."""

    def __init__(self, path, segment_bytes=4 * MIB):
        self.files, self.driver = Files(path), Driver()
        self.store = LogStore(self.files, "host", segment_bytes=segment_bytes)
        self.store.start(self.driver)
        at_once(lambda done: self.store.begin(1, 1, Bootstrap(Membership({1: "a:1"})), None, done))
        self.stored = self.store.open(1, 1)
        self.news = 0
        self.stored.listen(self._loaded)

    def _loaded(self):
        self.news += 1

    def write(self, first, *sizes, term=1, apart=True):
        """Write entries of these sizes, each by a request of its own or all in one run."""
        payloads = [bytes([first + at & 0xFF]) * size for at, size in enumerate(sizes)]
        runs = [Run(first + at, term, [payload]) for at, payload in enumerate(payloads)]
        for run in runs if apart else [Run(first, term, payloads)]:
            at_once(lambda done, run=run: self.store.save(AppendRequest(1, 1, None, [run], done=done)))

    def read(self, low, high, limit=1 << 60):
        """The entries of a page: index, term and size of each."""
        return [
            (entry.index, run.term, len(entry.payload))
            for run in self.stored.runs(low, high, limit)
            for entry in (run.entry(index) for index in range(run.first, run.last + 1))
        ]

    def indexes(self, low, high, limit=1 << 60):
        return [index for index, _, _ in self.read(low, high, limit)]

    def refused(self, low, high, limit=1 << 60):
        with pytest.raises(EntriesNotLoaded):
            self.stored.runs(low, high, limit)
        return len(self.driver.reads)


@pytest.fixture
def log(tmp_path):
    made = Log(tmp_path / "log")
    yield made
    made.store.close()


class TestWhatIsReadOnTheLoop:
    def test_what_is_short_and_in_the_page_cache(self, log):
        log.write(1, 10, 20, 30)
        assert log.read(1, 4) == [(1, 1, 10), (2, 1, 20), (3, 1, 30)]
        assert not log.driver.reads

    def test_no_more_at_once_than_the_bound(self, log):
        """A short page is a page: its reader asks on."""
        log.write(1, *[MIB - 100] * 5)
        assert log.indexes(1, 6) == [1, 2]
        assert log.indexes(3, 6) == [3, 4]
        assert not log.driver.reads

    def test_no_run_that_is_larger_though_it_is_in_memory(self, log):
        log.write(1, 10, LARGE, 10)
        assert log.indexes(1, 4) == [1]
        assert log.refused(2, 4) == 1

    def test_nothing_that_needs_the_disk(self, log):
        log.write(1, 10, 10)
        log.files.cold = True
        assert log.refused(1, 3) == 1

    def test_a_run_of_small_entries_is_never_too_large(self, log):
        """It is stored in parts. The last that was read is kept, as it often holds the next page too."""
        log.write(1, *[1000] * 5000, apart=False)
        first = log.indexes(1, 5001, 10_000)
        log.files.cold = True
        assert (len(first), log.indexes(first[-1] + 1, 5001, 10_000)[0]) == (9, first[-1] + 1)

    def test_everything_by_a_reader_who_does_not_listen(self, log):
        """Tools read in a thread of their own."""
        log.write(1, 10, LARGE, LARGE)
        log.files.cold = True
        other = log.store.open(1, 1)
        assert [run.first for run in other.runs(1, 4, 1 << 60)] == [1, 2, 3]

    def test_everything_of_a_log_in_memory(self):
        store = log_in_memory()
        at_once(lambda done: store.begin(1, 1, Bootstrap(Membership({1: "a:1"})), None, done))
        at_once(
            lambda done: store.save(AppendRequest(1, 1, None, [Run(1, 1, [bytes(LARGE)] * 3)], done=done))
        )
        stored = store.open(1, 1)
        stored.listen(lambda: pytest.fail("nothing had to be read elsewhere"))
        assert [run.first for run in stored.runs(1, 4, 1 << 60)] == [1, 2, 3]


class TestWhatIsReadElsewhere:
    def test_it_is_there_when_the_news_come(self, log):
        log.write(1, LARGE, 10)
        log.refused(1, 3)
        log.driver.run()
        assert log.news == 1
        assert log.read(1, 3) == [(1, 1, LARGE), (2, 1, 10)]

    def test_it_is_taken_once_and_not_kept(self, log):
        log.write(1, LARGE)
        log.refused(1, 2)
        log.driver.run()
        log.indexes(1, 2)
        assert log.refused(1, 2) == 1

    def test_a_page_has_the_size_that_was_asked_for_and_a_bound_of_its_own(self, log):
        log.write(1, *[MIB - 1000] * 10)
        log.files.cold = True
        log.refused(1, 11, 2 * MIB)
        log.driver.run()
        assert log.indexes(1, 11, 2 * MIB) == [1, 2]
        log.refused(3, 11)
        log.driver.run()
        assert log.indexes(3, 11) == [3, 4, 5, 6]

    def test_it_may_lie_in_several_segments(self, tmp_path):
        log = Log(tmp_path / "small", segment_bytes=1 << 14)
        log.write(1, *[6000] * 10)
        log.files.cold = True
        log.refused(1, 11)
        log.driver.run()
        assert log.indexes(1, 11) == [*range(1, 11)]
        log.store.close()

    def test_asking_again_meanwhile_reads_nothing_twice(self, log):
        log.write(1, LARGE)
        log.refused(1, 2)
        assert log.refused(1, 2) == 1
        log.driver.run()
        assert not log.driver.reads

    def test_pages_for_several_are_read_one_by_one_in_the_order_of_asking(self, log):
        log.write(1, *[LARGE] * 4)
        for low in (3, 1, 4):
            assert log.refused(low, low + 1) == 1
        found = []
        for low in (3, 1, 4):
            log.driver.run()
            found += log.indexes(low, low + 1)
        assert (found, log.news, log.driver.reads) == ([3, 1, 4], 3, [])

    def test_two_pages_are_kept_and_one_that_had_to_go_is_read_again(self, log):
        log.write(1, *[LARGE] * 3)
        for low in (1, 2, 3):
            log.refused(low, low + 1)
        for _ in range(3):
            log.driver.run()
        assert log.indexes(2, 3) + log.indexes(3, 4) == [2, 3]
        assert log.refused(1, 2) == 1
        log.driver.run()
        assert log.indexes(1, 2) == [1]

    def test_so_many_may_wait_and_the_others_ask_again(self, log):
        log.write(1, *[LARGE] * 12)
        for low in range(1, 13):
            log.refused(low, low + 1)
        while log.driver.reads:
            log.driver.run()
        assert log.news == 9  # one that was being read, and eight that waited


class TestWhatChangesMeanwhile:
    def test_entries_that_were_replaced_are_not_taken_for_the_new_ones(self, log):
        log.write(1, LARGE, LARGE)
        log.refused(2, 3)
        log.driver.run()
        log.write(2, LARGE + 5, term=2)
        assert log.refused(2, 3) == 1
        log.driver.run()
        assert log.read(2, 3) == [(2, 2, LARGE + 5)]

    def test_neither_if_they_are_replaced_while_they_are_read(self, log):
        log.write(1, LARGE, LARGE)
        log.refused(2, 3)
        log.driver.run(before=lambda: log.write(2, LARGE + 5, term=2))
        assert log.refused(2, 3) == 1
        log.driver.run()
        assert log.read(2, 3) == [(2, 2, LARGE + 5)]

    def test_what_was_compacted_before_its_turn_is_not_read_but_told(self, log):
        log.write(1, *[LARGE] * 3)
        log.refused(1, 2)
        log.refused(2, 3)
        log.store.compact(1, 1, 2)
        while log.driver.reads:
            log.driver.run()
        assert (log.news, log.files.elsewhere) == (2, 1)
        with pytest.raises(IndexError):
            log.indexes(2, 3)

    def test_a_snapshot_takes_the_place_of_all(self, log):
        log.write(1, *[LARGE] * 3)
        log.refused(2, 4)
        snapshot = Snapshot(9, 3, Membership({1: "a:1"}), b"file")
        at_once(lambda done: log.store.save(AppendRequest(1, 1, None, (), snapshot, done=done)))
        log.write(10, LARGE, term=3)
        log.driver.run()
        log.refused(10, 11)
        log.driver.run()
        assert (log.news, log.read(10, 11)) == (2, [(10, 3, LARGE)])

    def test_a_run_that_is_elsewhere_by_now_is_no_damage(self, log):
        """What is needed of a segment is moved before its file is used again: then the bytes are another run's."""
        log.write(1, LARGE)
        places = log.store._replicas[1, 1].index.places
        now = places[0]
        places[0] = now + 1
        log.refused(1, 2)
        log.driver.run(before=lambda: places.__setitem__(0, now))
        assert log.news == 1
        log.refused(1, 2)
        log.driver.run()
        assert log.indexes(1, 2) == [1]


class TestDamage:
    def damage(self, log, index):
        """Flip a bit in the content of an entry."""
        row = log.store._replicas[1, 1].index.find(index)
        name = log.store.active_file
        with (log.files.path / name).open("r+b") as file:
            file.seek((row.place & 0xFFFFFFFF) + row.size // 2)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))

    @pytest.mark.parametrize("cold", [False, True])
    def test_it_is_reported_with_its_place(self, log, cold):
        log.write(1, 1000, 1000)
        self.damage(log, 2)
        log.files.cold = cold
        if cold:
            log.refused(1, 3)
            log.driver.run()
            assert log.indexes(1, 2) == [1]
        with pytest.raises(CorruptData, match=r"segment, offset \d+.*replica 1.*entries from 2 on"):
            log.indexes(2, 3)

    def test_a_file_that_cannot_be_read_is_damage_too(self, log):
        log.write(1, LARGE)
        log.refused(1, 2)
        (log.files.path / log.store.active_file).rename(log.files.path / "away")
        log.driver.run()
        with pytest.raises(CorruptData, match="No such file"):
            log.indexes(1, 2)

    def test_so_is_a_read_that_fails_in_any_other_way(self, log, monkeypatch):
        log.write(1, LARGE)
        monkeypatch.setattr(log.files, "read_apart", lambda name, places: 1 / 0)
        log.refused(1, 2)
        log.driver.run()
        with pytest.raises(CorruptData, match="division"):
            log.indexes(1, 2)
        assert log.news == 1


class TestThePageCache:
    @pytest.fixture
    def files(self, tmp_path):
        files = DiskFiles(tmp_path)
        files.allocate("one", 4 * MIB, filled=True)
        yield files
        files.close()

    def test_what_is_in_it_is_returned(self, files):
        files.write("one", HEADER_BYTES, b"content")
        assert files.read_cached("one", HEADER_BYTES, 7) == b"content"

    def test_what_is_not_is_none(self, files):
        if not files._nowait:
            pytest.skip("this system cannot tell")
        os.posix_fadvise(files.handle("one"), 0, 0, os.POSIX_FADV_DONTNEED)
        found = [files.read_cached("one", offset, MIB) for offset in range(0, 4 * MIB, MIB)]
        if None not in found:
            pytest.skip("this file system keeps all in memory")
        assert files.read("one", 0, MIB) == bytes(MIB)
        assert files.read_cached("one", 0, MIB) == bytes(MIB)

    def test_the_end_of_a_file_is_none(self, files):
        assert files.read_cached("one", 4 * MIB - 10, 20) is None

    def test_where_the_kernel_cannot_tell_it_reads(self, files, monkeypatch):
        def refuse(*_):
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(os, "preadv", refuse)
        assert files.read_cached("one", 0, 5) == bytes(5)
        assert not files._nowait

    def test_any_other_error_is_raised(self, files, monkeypatch):
        def fail(*_):
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(OSError, match="Input/output"):
            files.read_cached("one", 0, 5)


class TestLimitsOfTheProcess:
    def without(self, monkeypatch, code):
        """No file can be opened for this reason."""

        def refuse(*_arguments):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "open", refuse)

    @pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
    @pytest.mark.parametrize("cold", [False, True])
    def test_they_are_no_damage(self, log, cold, code, monkeypatch):
        log.write(1, 1000, 1000)
        log.files.cold = cold
        log.files.forget(log.store.active_file)
        with monkeypatch.context() as patched:
            self.without(patched, code)
            if cold:
                log.refused(1, 2)
                log.driver.run()
            with pytest.raises(
                StorageFailed, match=r"replica 1.*entries from 1 on.*restart this host"
            ) as raised:
                log.indexes(1, 2)
            assert explain(OSError(code, os.strerror(code))) in str(raised.value)
        if cold:
            log.refused(1, 2)
            log.driver.run()
        assert log.indexes(1, 2) == [1]

    @pytest.mark.parametrize("cold", [False, True])
    def test_a_bad_disk_is_damage(self, log, cold, monkeypatch):
        log.write(1, 1000)
        log.files.cold = cold
        log.files.forget(log.store.active_file)
        with monkeypatch.context() as patched:
            self.without(patched, errno.EIO)
            if cold:
                log.refused(1, 2)
                log.driver.run()
            with pytest.raises(CorruptData, match=os.strerror(errno.EIO)):
                log.indexes(1, 2)

    def test_the_file_that_is_written_stays_open(self, tmp_path, monkeypatch):
        monkeypatch.setattr(log_files, "_MAX_OPEN", 2)
        names = [f"file-{number}" for number in range(5)]
        for name in names:
            (tmp_path / name).write_bytes(b"old")
        files = DiskFiles(tmp_path)
        try:
            files.write(names[0], 0, b"new")
            for name in names[1:]:
                assert files.read(name, 0, 3) == b"old"
            assert len(files._open) == 2
            self.without(monkeypatch, errno.EMFILE)
            files.write(names[0], 0, b"now")
            files.sync(names[0])
            assert files.read(names[0], 0, 3) == b"now"
        finally:
            files.close()


class TestWhatIsKeptInMemory:
    """It counts in the budget of the host's logs, which may have it dropped, but for what a replica waits for."""

    @pytest.fixture
    def memory(self, log):
        memory = LogMemory(100 * MIB)
        log.stored.listen(log._loaded, memory)
        return memory

    def test_what_was_read_counts_until_the_replica_ends(self, log, memory):
        log.write(1, 1000, LARGE)
        log.read(1, 2)
        assert 2000 < memory.held < 3000
        log.refused(2, 3)
        log.driver.run()
        assert memory.held > LARGE
        log.read(2, 3)
        assert memory.held < 3000
        log.stored.let_go()
        assert memory.held == 0

    def test_others_that_need_the_memory_get_it_but_not_the_page_that_a_replica_waits_for(self, log, memory):
        log.write(1, LARGE, LARGE, MIB)
        log.read(3, 4)
        for index in (1, 2):
            log.refused(index, index + 1, limit=1)
            log.driver.run()
        other = Window(1, memory)
        other.append(Run(1, 1, [bytes(100 * MIB)]))
        assert memory.tight
        assert LARGE < memory.held - other.bytes < LARGE + 1000
        assert log.indexes(2, 3) == [2]
        assert memory.held == other.bytes
        assert log.refused(1, 2) == 1

    def test_what_is_dropped_at_once_is_read_all_the_same(self, log):
        log.stored.listen(log._loaded, LogMemory(0))
        log.write(1, 10, LARGE)
        assert log.indexes(1, 3) == [1]
        log.refused(2, 3)
        log.driver.run()
        assert log.indexes(2, 3) == [2]

    def test_taking_a_page_run_by_run_looks_at_each_run_only_a_few_times(self, monkeypatch):
        """Else a page of n short runs costs the loop n² steps."""
        looks = []
        counted = Run.memory.fget
        monkeypatch.setattr(Run, "memory", property(lambda run: looks.append(run) or counted(run)))
        memory, kept, number = LogMemory(), KeptRuns(), 5000
        kept.memory = memory
        kept.add_page(0, {first: Run(first, 1, [b"x"]) for first in range(1, number + 1)})
        assert memory.held == kept.bytes == number * counted(Run(1, 1, [b"x"]))
        for first in range(1, number + 1):
            kept.remember(0, kept.take(first, 0))
        assert len(looks) < 10 * number
        assert memory.held == kept.bytes == kept.spare == counted(Run(1, 1, [b"x"]))
        kept.clear()
        assert memory.held == kept.bytes == kept.spare == 0
