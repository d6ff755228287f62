"""Entry kinds: Raft's seven, which stay what they are on disk and wire, and those that users define."""

import copy

import pytest
from drakkar.handlers import CorruptData, EntryKind, HandlerTableError, MessageType
from drakkar.handlers.entry_kinds import MAX_KIND_NAME
from drakkar.handlers.raft.entries import Run

pytestmark = pytest.mark.usefixtures("types_of_one_test")


def test_one_of_your_own_is_as_good_as_a_built_in_one():
    mark = EntryKind.define("kinds.mark", 222)
    assert (mark, mark.name, mark.value, str(mark), repr(mark)) == (
        222,
        "kinds.mark",
        222,
        "kinds.mark",
        "kinds.mark(222)",
    )
    assert EntryKind(222) is EntryKind["kinds.mark"] is EntryKind.of_log(222) is mark
    assert list(EntryKind)[-1] is mark
    assert bytes([mark]) == b"\xde"
    assert copy.deepcopy(mark) is mark


def test_defining_the_same_one_again_gives_the_same_one():
    assert EntryKind.define("kinds.mark", 222) is EntryKind.define("kinds.mark", 222)


def test_a_message_type_of_the_same_number_or_name_is_no_clash():
    MessageType.define("kinds.mark", 1222)
    assert EntryKind.define("kinds.mark", 222) == MessageType.PEER_UP + 2


@pytest.mark.parametrize("name", ["", "k" * (MAX_KIND_NAME + 1), "a\nline", 7])
def test_a_name_that_introductions_could_not_tell_is_refused_at_once(name):
    with pytest.raises(HandlerTableError, match="choose 1 to 64 printable characters"):
        EntryKind.define(name, 222)


@pytest.mark.parametrize("number", [128, 255])
def test_both_ends_of_the_range_are_yours(number):
    assert EntryKind.define("kinds.edge", number) == number


@pytest.mark.parametrize("number", [-1, 0, 6, 7, 127, 256, True, "200"])
def test_other_numbers_are_not(number):
    with pytest.raises(
        HandlerTableError, match=f"entry kind 'kinds.mark' has number {number!r}: .* 128 to 255"
    ):
        EntryKind.define("kinds.mark", number)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        pytest.param("kinds.other", 222, id="the number"),
        pytest.param("kinds.mark", 223, id="the name"),
    ],
)
def test_a_clash_is_refused_and_changes_nothing(name, number):
    EntryKind.define("kinds.mark", 222)
    before = dict(EntryKind.known)
    with pytest.raises(HandlerTableError, match=r"clashes with kinds.mark\(222\): choose another"):
        EntryKind.define(name, number)
    assert EntryKind.known == before


def test_the_name_of_a_built_in_one_is_taken():
    with pytest.raises(HandlerTableError, match=r"clashes with COMMAND\(0\)"):
        EntryKind.define("COMMAND", 222)


@pytest.mark.parametrize("number", [7, 222, 256])
def test_an_unknown_number_is_refused_with_the_remedy(number):
    with pytest.raises(ValueError, match=rf"{number} is not a known entry kind: .*EntryKind.define"):
        EntryKind(number)


class TestInALog:
    def test_one_that_this_process_has_not_defined_is_read_without_a_name(self):
        """Another host has it, or an older version of this one had."""
        kind = Run(1, 1, [b"x"], bytes([223])).kind(1)
        assert (kind, kind.name) == (223, "kind 223")
        assert 223 not in EntryKind.known
        assert EntryKind.define("kinds.late", 223) == kind

    @pytest.mark.parametrize("number", [7, 100, 127])
    def test_what_is_neither_rafts_nor_free_is_corrupt(self, number):
        with pytest.raises(CorruptData, match=f"the kind {number}"):
            EntryKind.of_log(number)
        with pytest.raises(CorruptData, match="kinds"):
            Run.decode(Run(1, 1, [b"x", b"y"], bytes([0, number])).encode())

    @pytest.mark.parametrize("number", [0, 6, 128, 255])
    def test_others_are_read_from_disk_and_wire(self, number):
        again = Run.decode(Run(1, 1, [b"x", b"y"], bytes([1, number])).encode())
        assert [again.kind(1), again.kind(2)] == [1, number]

    def test_a_witness_keeps_none_of_yours(self):
        kept = Run(1, 1, [b"x", b"y"], bytes([200, 2])).without_content()
        assert (kept.kinds, kept.payloads) == (bytes([4, 2]), (b"", b"y"))
