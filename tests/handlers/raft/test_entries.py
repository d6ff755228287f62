"""Entries in bulk against a plain list of them, and the decoder against any bytes from a wire."""

import tracemalloc
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import cbor2
import pytest
from drakkar.handlers.checks import MAX_INDEX, MAX_SIGNED, MAX_TERM
from drakkar.handlers.errors import CorruptData, ProtocolViolation
from drakkar.handlers.raft.entries import ENTRY_OVERHEAD, MAX_ENTRIES, Entries, Entry, EntryKind, Run
from hypothesis import example, given, settings
from hypothesis import strategies as st

# A shared machine may stand still for a moment: that is no failure.
patient = settings(deadline=None, max_examples=200)

CONFIG, COMMAND, NO_OP, METADATA = (
    EntryKind.CONFIG_CHANGE,
    EntryKind.COMMAND,
    EntryKind.NO_OP,
    EntryKind.METADATA,
)


@st.composite
def logs(draw: st.DrawFn, min_size: int = 0) -> list[Entry]:
    """Consecutive entries as they stand in a log: terms rise, proposers alternate, keys mostly count up."""
    index, term, key = draw(st.integers(1, 1 << 40)), draw(st.integers(1, 9)), draw(st.integers(1, 1 << 40))
    entries = []
    for _ in range(draw(st.integers(min_size, 12))):
        term += draw(st.sampled_from([0, 0, 0, 1, 5]))
        key += draw(st.sampled_from([1, 1, 1, 7]))
        origin = draw(st.sampled_from([0, 3, 3, 3, MAX_SIGNED]))
        kind = draw(st.sampled_from([COMMAND, COMMAND, *EntryKind]))
        entries.append(Entry(index, term, kind, draw(st.binary(max_size=40)), origin, key if origin else 0))
        index += 1
    return entries


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """One run, as a proposer or a leader makes it."""
    payloads = draw(st.lists(st.binary(max_size=40), min_size=1, max_size=12))
    kinds = draw(
        st.none() | st.lists(st.sampled_from(list(EntryKind)), min_size=len(payloads), max_size=len(payloads))
    )
    origin = draw(st.sampled_from([0, 3]))
    first = draw(st.integers(0, 1 << 40))
    term = draw(st.integers(1, 1 << 40)) if first else 0
    return Run(
        first, term, payloads, bytes(kinds or []), origin, draw(st.integers(1, 1 << 40)) if origin else 0
    )


def in_runs(entries: Sequence[Entry], cuts: Sequence[int]) -> Entries:
    """The same entries, in more runs than they need."""
    edges = sorted({0, len(entries), *(cut % (len(entries) + 1) for cut in cuts)})
    return Entries(
        run for start, stop in pairwise(edges) for run in Entries.of(list(entries[start:stop])).runs
    )


class TestEntries:
    @patient
    @given(logs(), st.lists(st.integers(0, 12), max_size=4))
    def test_they_are_the_list_they_were_made_of(self, entries: list[Entry], cuts: list[int]) -> None:
        for made in (Entries.of(entries), in_runs(entries, cuts)):
            assert list(made) == entries
            assert made == entries
            assert made == tuple(entries)
            assert len(made) == len(entries)
            assert bool(made) is bool(entries)
            assert made.payload_bytes == sum(len(entry.payload) for entry in entries)
            assert made.size == made.payload_bytes + ENTRY_OVERHEAD * len(entries)
            assert hash(made) == hash(tuple(entries))

    @patient
    @given(logs(), st.lists(st.integers(0, 12), max_size=4), st.slices(12))
    def test_they_are_indexed_and_sliced_like_it(
        self, entries: list[Entry], cuts: list[int], part: slice
    ) -> None:
        made = in_runs(entries, cuts)
        for at in range(-len(entries), len(entries)):
            assert made[at] == entries[at]
        for at in (len(entries), -len(entries) - 1):
            with pytest.raises(IndexError):
                made[at]
        assert made[part] == tuple(entries[part])

    @patient
    @given(logs())
    def test_they_take_no_more_runs_than_they_need(self, entries: list[Entry]) -> None:
        """A run ends where the term, the proposer or the counting of its keys does, and nowhere else."""
        breaks = sum(
            before.term != after.term
            or before.origin != after.origin
            or (after.origin != 0 and after.key != before.key + 1)
            for before, after in pairwise(entries)
        )
        assert len(Entries.of(entries).runs) == breaks + bool(entries)

    def test_a_gap_between_indexes_is_kept(self) -> None:
        entries = [Entry(3, 1), Entry(5, 1), Entry(6, 1)]
        made = Entries.of(entries)
        assert [(run.first, run.last) for run in made.runs] == [(3, 3), (5, 6)]
        assert list(made) == entries

    def test_proposals_have_no_index_yet_and_are_one_run_all_the_same(self) -> None:
        entries = [Entry(payload=b"%d" % key, origin=4, key=key) for key in range(1, 6)]
        made = Entries.of(entries)
        assert len(made.runs) == 1
        assert list(made) == entries

    def test_entries_are_not_made_twice(self) -> None:
        made = Entries.of([Entry(1, 1)])
        assert Entries.of(made) is made

    @patient
    @given(logs(min_size=1), st.data())
    def test_one_different_entry_makes_them_differ(self, entries: list[Entry], data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(entries) - 1))
        other = list(entries)
        other[at] = Entry(entries[at].index, entries[at].term, entries[at].kind, entries[at].payload + b"!")
        assert Entries.of(entries) != other
        assert Entries.of(entries) != entries[:-1]
        assert Entries.of(entries) != 5

    def test_they_are_shown_by_their_runs(self) -> None:
        made = Entries.of([Entry(3, 1), Entry(4, 1), Entry(5, 2)])
        assert repr(made) == "Entries([Run(3..4@1), Run(5..5@2)])"


class TestRun:
    @patient
    @given(runs())
    def test_its_sizes_are_those_of_its_entries(self, run: Run) -> None:
        entries = list(Entries([run]))
        assert (len(run), run.last) == (len(entries), run.first + len(entries) - 1)
        assert run.payload_bytes == sum(len(entry.payload) for entry in entries)
        assert run.size == run.payload_bytes + ENTRY_OVERHEAD * len(entries)
        assert not run.plain or {entry.kind for entry in entries} == {COMMAND}

    @patient
    @given(runs().filter(lambda run: run.first), st.data())
    def test_a_slice_holds_the_entries_between(self, run: Run, data: st.DataObject) -> None:
        low = data.draw(st.integers(run.first - 1, run.last))
        high = data.draw(st.integers(max(low, run.first) + 1, run.last + 2))
        wanted = [entry for entry in Entries([run]) if low <= entry.index < high]
        part = run.slice(low, high)
        assert list(Entries([part])) == wanted
        assert part.size == sum(len(entry.payload) + ENTRY_OVERHEAD for entry in wanted)
        assert Entries([Run.decode(part.encode())]) == wanted

    def test_a_slice_of_everything_is_the_run_itself(self) -> None:
        """So that it is not encoded a second time."""
        run = Run(3, 1, [b"a", b"b"])
        assert run.slice(3, 5) is run
        assert run.slice(0, 99) is run

    @patient
    @given(runs(), st.integers(0, 200))
    def test_its_parts_are_its_entries_in_order_each_as_long_as_fits(self, run: Run, limit: int) -> None:
        parts = list(run.parts(limit))
        assert [entry for part in parts for entry in Entries([part])] == list(Entries([run]))
        assert all(part.size <= limit or len(part) == 1 for part in parts)
        for part, following in pairwise(parts):
            assert part.size + len(following.payloads[0]) + ENTRY_OVERHEAD > limit

    @patient
    @given(runs(), st.integers(0, 600))
    @example(Run(1, 1, [b"", b""]), ENTRY_OVERHEAD)
    @example(Run(1, 1, [b"", b""]), 2 * ENTRY_OVERHEAD - 1)
    @example(Run(1, 1, [b"", b"", b""]), 2 * ENTRY_OVERHEAD)
    def test_what_fits_is_the_longest_part_from_the_front_but_never_nothing(
        self, run: Run, limit: int
    ) -> None:
        entries = list(Entries([run]))
        part = run.fitting(limit)
        assert list(Entries([part])) == entries[: len(part)]
        assert part.size <= limit or len(part) == 1
        if len(part) < len(entries):
            assert part.size + len(entries[len(part)].payload) + ENTRY_OVERHEAD > limit

    @patient
    @given(runs(), st.integers(1, 99), st.integers(1, 9))
    def test_a_leader_logs_a_proposal_as_it_is(self, run: Run, first: int, term: int) -> None:
        placed = list(Entries([run.placed(first, term)]))
        for at, (before, after) in enumerate(zip(Entries([run]), placed, strict=True)):
            assert (after.index, after.term) == (first + at, term)
            assert (after.kind, after.payload, after.origin, after.key) == (
                before.kind,
                before.payload,
                before.origin,
                before.key,
            )

    @patient
    @given(runs())
    def test_a_witness_keeps_changes_of_the_membership_alone(self, run: Run) -> None:
        """Thesis §11.7.2."""
        for before, after in zip(Entries([run]), Entries([run.without_content()]), strict=True):
            assert (after.index, after.term) == (before.index, before.term)
            if before.kind in {CONFIG, EntryKind.SETTLED}:
                assert (after.kind, after.payload) == (before.kind, before.payload)
            else:
                assert (after.kind, after.payload) == (METADATA, b"")

    @patient
    @given(runs())
    def test_what_is_encoded_is_decoded_to_the_same(self, run: Run) -> None:
        again = Run.decode(run.encode())
        assert Entries([again]) == Entries([run])
        assert (again.first, again.term, again.origin, again.key) == (
            run.first,
            run.term,
            run.origin,
            run.key,
        )
        assert again.kinds == run.kinds
        assert again.size == run.size

    def test_a_run_is_encoded_once(self) -> None:
        """The bytes that a leader stores are those that it sends, and that its followers store."""
        run = Run(3, 1, [b"a"])
        data = run.encode()
        assert run.encode() is data
        assert Run.decode(data).encode() is data


def encoded(**columns: Any) -> bytes:
    """A run of two entries with one column replaced."""
    whole = {"first": 1, "term": 1, "kinds": b"", "origin": 0, "key": 0, "payloads": [b"a", b"b"]}
    return cbor2.dumps(list({**whole, **columns}.values()))


PLAIN = encoded()
MANY = b"\x9a" + (MAX_ENTRIES + 1).to_bytes(4) + b"\x40" * (MAX_ENTRIES + 1)
"""A list of more byte strings than a run may have entries."""


class TestHostileBytes:
    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(b"", id="nothing"),
            pytest.param(PLAIN[:-1], id="cut short"),
            pytest.param(b"\xff", id="a break"),
            pytest.param(b"\xf7", id="undefined"),
            pytest.param(cbor2.dumps("run"), id="a string"),
            pytest.param(cbor2.dumps({}), id="a map"),
            pytest.param(cbor2.dumps([]), id="no columns"),
            pytest.param(cbor2.dumps([1, 1, b"", 0, 0]), id="five columns"),
            pytest.param(cbor2.dumps([1, 1, b"", 0, 0, [b""], 0]), id="seven columns"),
            pytest.param(encoded(first=-1), id="an index below 0"),
            pytest.param(encoded(first=MAX_INDEX + 1, payloads=[b""]), id="an index above its bound"),
            pytest.param(encoded(term=MAX_TERM + 1), id="a term above its bound"),
            pytest.param(encoded(origin=MAX_SIGNED + 1), id="an origin above its bound"),
            pytest.param(encoded(first=1.0), id="an index that is a float"),
            pytest.param(encoded(first=True), id="an index that is a switch"),
            pytest.param(encoded(term="1"), id="a term that is a string"),
            pytest.param(encoded(term=None), id="no term"),
            pytest.param(encoded(origin=-1), id="a proposer below 0"),
            pytest.param(encoded(key=1 << 70), id="a key above 64 bits"),
            pytest.param(encoded(payloads=[]), id="no entries"),
            pytest.param(encoded(payloads=b"ab"), id="payloads that are one string"),
            pytest.param(encoded(payloads={0: b"a"}), id="payloads that are a map"),
            pytest.param(encoded(payloads=[b"a", "b"]), id="a payload that is text"),
            pytest.param(encoded(payloads=[b"a", [b"b"]]), id="a payload that is a list"),
            pytest.param(encoded(payloads=[b"a", 7]), id="a payload that is a number"),
            pytest.param(encoded(kinds=b"\x00"), id="a kind too few"),
            pytest.param(encoded(kinds=b"\x00\x00\x00"), id="a kind too many"),
            pytest.param(encoded(kinds=b"\x00\x07"), id="an unknown kind"),
            pytest.param(encoded(kinds="ab"), id="kinds that are text"),
            pytest.param(encoded(kinds=[0, 0]), id="kinds that are a list"),
            pytest.param(b"\x81" * 100_000 + b"\x00", id="lists in lists"),
            pytest.param(b"\x9b\x7f" + b"\xff" * 7, id="a list of more than there is memory"),
            pytest.param(b"\x5b\x7f" + b"\xff" * 7, id="a string of more than there is memory"),
            pytest.param(b"\x9f" + PLAIN[1:] + b"\xff", id="a list without a length"),
            pytest.param(PLAIN[:-4] + b"\x41a\x5f\x41b\xff", id="a payload without a length"),
            pytest.param(PLAIN[:-2] + b"\xc2\x41b", id="a payload that is a big number"),
            pytest.param(b"\xd9\xd9\xf7" + PLAIN, id="CBOR that says that it is"),
            pytest.param(PLAIN + b"\x00", id="a byte too many"),
            pytest.param(b"\x86\xc2\x41\x01" + PLAIN[2:], id="a big number that is small"),
            pytest.param(
                encoded(payloads=[])[:-1] + b"\x82\xd8\x1c\x41a\xd8\x1d\x00", id="one payload twice"
            ),
            pytest.param(b"\xd8\x1c" + PLAIN, id="a list to refer to"),
            pytest.param(encoded(first=MAX_INDEX), id="a last index above its bound"),
            pytest.param(encoded(origin=1, key=MAX_SIGNED), id="a last key above its bound"),
        ],
    )
    def test_what_is_no_run_is_corrupt(self, data: bytes) -> None:
        with pytest.raises(CorruptData, match="run"):
            Run.decode(data)

    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(b"\x86\x01\x01\x40\x00\x00" + MANY, id="entries"),
            pytest.param(
                b"\x86\x1a\x00\x00\x00\x01\x01\x40\x00\x00" + MANY, id="entries behind a long number"
            ),
            pytest.param(b"\x86\x01\x01\x40\x00\x00\x81" + MANY, id="entries in an entry"),
            pytest.param(b"\x86\x01\x01" + MANY, id="kinds"),
            pytest.param(b"\x86" + MANY, id="an index that is a list"),
            pytest.param(MANY, id="columns"),
            pytest.param(b"\x86\x01\x01\x5a\x7f\xff\xff\xff" + MANY, id="kinds without an end"),
            pytest.param(b"\x86\x01\x01\x40\x00\x00\xba" + MANY[1:], id="a map"),
        ],
    )
    def test_a_run_of_very_many_entries_is_refused_before_they_are_decoded(self, data: bytes) -> None:
        """64 MiB of empty entries would keep the loop busy for half a minute, and take a gigabyte."""
        tracemalloc.start()
        with pytest.raises(CorruptData, match="run"):
            Run.decode(data)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2 * len(data)

    def test_a_run_has_no_more_entries_than_are_decoded(self) -> None:
        whole = Run(1, 1, [b""] * (MAX_ENTRIES + 9), b"", 3, 5)
        with pytest.raises(ProtocolViolation, match=f"entries are {MAX_ENTRIES + 9}"):
            whole.encode()
        first, second = whole.parts(1 << 62)
        assert (len(first), second.first, second.key, len(second)) == (
            MAX_ENTRIES, MAX_ENTRIES + 1, MAX_ENTRIES + 5, 9,
        )  # fmt: skip
        assert len(Run.decode(first.encode())) == MAX_ENTRIES
        large = Run(1, 1, [bytes(MAX_ENTRIES + 9)])
        assert Run.decode(large.encode()).payloads == large.payloads

    @pytest.mark.parametrize(
        ("run", "text"),
        [
            pytest.param(Run(MAX_INDEX, 1, [b"", b""]), "last index is 4611686018427387904", id="index"),
            pytest.param(Run(1, MAX_TERM + 1, [b""]), "term is 4611686018427387904", id="term"),
            pytest.param(Run(1, 1, [b""], origin=1 << 63), "origin is 9223372036854775808", id="origin"),
            pytest.param(Run(1, 1, [b"", b""], b"", 1, MAX_SIGNED), "key is 9223372036854775808", id="key"),
        ],
    )
    def test_what_would_be_refused_is_not_encoded(self, run: Run, text: str) -> None:
        with pytest.raises(ProtocolViolation, match=text):
            run.encode()

    @pytest.mark.parametrize(
        "run",
        [
            Run(MAX_INDEX - 1, MAX_TERM, [b"", b""], b"", MAX_SIGNED, MAX_SIGNED - 1),
            Run(0, 0, [b""], b"", MAX_SIGNED, MAX_SIGNED),
        ],
    )
    def test_the_largest_numbers_come_back(self, run: Run) -> None:
        again = Run.decode(run.encode())
        assert (again.last, again.term, again.origin, again.key) == (
            run.last,
            run.term,
            run.origin,
            run.key,
        )

    def test_the_sample_without_a_fault_is_a_run(self) -> None:
        """Else the rows above would prove nothing."""
        assert list(Entries([Run.decode(PLAIN)])) == [Entry(1, 1, payload=b"a"), Entry(2, 1, payload=b"b")]

    @patient
    @given(st.binary(max_size=80))
    def test_any_bytes_are_a_run_or_corrupt(self, data: bytes) -> None:
        self.assert_run_or_corrupt(data)

    @patient
    @given(runs(), st.data())
    def test_a_damaged_run_is_a_run_or_corrupt(self, run: Run, data: st.DataObject) -> None:
        damaged = bytearray(run.encode())
        for _ in range(data.draw(st.integers(1, 4))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        self.assert_run_or_corrupt(bytes(damaged))

    @patient
    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.binary() | st.text(),
            lambda inner: (
                st.lists(inner, max_size=7) | st.dictionaries(st.integers() | st.text(), inner, max_size=3)
            ),
            max_leaves=12,
        )
    )
    def test_any_value_is_a_run_or_corrupt(self, value: Any) -> None:
        self.assert_run_or_corrupt(cbor2.dumps(value))
        self.assert_run_or_corrupt(cbor2.dumps([1, 1, b"", 0, 0, value]))
        self.assert_run_or_corrupt(cbor2.dumps([value, 1, b"", 0, 0, [b"a"]]))

    @staticmethod
    def assert_run_or_corrupt(data: bytes) -> None:
        """No other exception, and what passed can be used."""
        try:
            run = Run.decode(data)
        except CorruptData:
            return
        entries = list(Entries([run]))
        assert len(entries) == len(run) > 0
        assert all(type(entry.payload) is bytes for entry in entries)
        assert run.fitting(0).size >= ENTRY_OVERHEAD
