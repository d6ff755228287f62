"""Values as bytes and back: what can be sent comes out as it was, all else is refused with its path and a remedy."""

import datetime as dt
import enum
import math
import sys
from collections import Counter, namedtuple
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import cbor2
import pykka
import pytest
from drakkar.actors.remote import values
from drakkar.actors.remote.message_classes import message
from drakkar.actors.remote.values import MAX_BYTES, MAX_DEPTH, MAX_ITEMS, ValueRefused, pack, unpack
from drakkar.handlers.errors import ConfigError, DrakkarError
from hypothesis import given
from hypothesis import strategies as st

from tests.actors.remote.support import (
    KEYS,
    PLAIN,
    REFS,
    VALUES,
    Deposit,
    Note,
    Nothing,
    Ref,
    nested,
    shape,
)


def refusal(value: Any, **how: Any) -> str:
    """What a sender is told."""
    with pytest.raises(ValueRefused) as caught:
        pack(value, REFS, **how)
    return str(caught.value)


def wire_refusal(wire: Any) -> str:
    """What is said of bytes that came in."""
    with pytest.raises(ValueRefused) as caught:
        unpack(wire if isinstance(wire, bytes) else cbor2.dumps(wire), REFS)
    return str(caught.value)


# ---- there and back


@given(VALUES)
def test_a_value_comes_out_as_it_was_with_all_its_types(value: Any) -> None:
    assert shape(unpack(pack(value, REFS), REFS)) == shape(value)


@given(st.dictionaries(KEYS, PLAIN), st.lists(PLAIN))
def test_a_value_is_not_changed_when_it_is_sent(inner: dict[str, Any], more: list[Any]) -> None:
    value = {"a": inner, "b": more, "c": Note(inner, more)}
    before = shape(value)
    pack(value, REFS)
    assert shape(value) == before


@pytest.mark.parametrize("value", [-(1 << 64), (1 << 64) - 1, -(1 << 63), 1 << 63, 0, -1])
def test_ints_of_64_bits_come_out_with_and_without_a_sign(value: int) -> None:
    assert unpack(pack(value, REFS), REFS) == value


@pytest.mark.parametrize("value", [math.inf, -math.inf, 5e-324, sys.float_info.max, -0.0])
def test_floats_come_out_to_the_last_bit(value: float) -> None:
    assert repr(unpack(pack(value, REFS), REFS)) == repr(value)


def test_a_tuple_comes_out_as_a_list() -> None:
    assert shape(unpack(pack((1, (2, Deposit((3,)))), REFS), REFS)) == shape([1, [2, Deposit([3])]])


def test_a_reference_comes_out_as_one_wherever_it_is() -> None:
    value = {"one": Ref(1), "many": [Ref(2), Deposit(Ref(3))]}
    assert unpack(pack(value, REFS), REFS) == value


@pytest.mark.parametrize(
    ("value", "wire"),
    [
        pytest.param(
            {"a": [None, True, 1, 1.5, "b", b"c"]}, {"a": [None, True, 1, 1.5, "b", b"c"]}, id="plain"
        ),
        pytest.param(Deposit("ann", 5), {"@": "test.deposit", "account": "ann", "amount": 5}, id="message"),
        pytest.param(Nothing(), {"@": "test.nothing"}, id="message without fields"),
        pytest.param({"@": 1, "a": 2}, {"@": {"@": 1, "a": 2}}, id="a dict that looks like a message"),
        pytest.param({"@": {"@": "x"}}, {"@": {"@": {"@": {"@": "x"}}}}, id="a dict that looks like that"),
        pytest.param({"@@": 1}, {"@@": 1}, id="a key that only begins so"),
        pytest.param(Ref(7), {"@": ["a:1", 7, ["balance", "deposit"], None]}, id="reference"),
    ],
)
def test_the_bytes_are_those_that_the_protocol_says(value: Any, wire: Any) -> None:
    """Hosts of different versions must agree on them."""
    assert pack(value, REFS) == cbor2.dumps(wire)


# ---- what cannot be sent


class Colour(enum.IntEnum):
    RED = 1


class Amount(int):
    pass


@dataclass
class Unregistered:
    amount: int = 0


@dataclass(frozen=True, slots=True)
class SpecialDeposit(Deposit):
    """Of a registered class, and not registered itself."""


@message("test.slots")
@dataclass(slots=True)
class Slots:
    amount: int


def without_amount() -> Slots:
    slots = Slots(1)
    del slots.amount
    return slots


PLAIN_REMEDY = "send plain values, references to actors, or a dataclass with @message"
Pair = namedtuple("Pair", "a b")  # noqa: PYI024  # as users write them


@pytest.mark.parametrize(
    ("value", "said"),
    [
        pytest.param(
            {"a": [0, 0, 0, Deposit("ann", Decimal(1))]},
            "message['a'][3].amount is of type decimal.Decimal: send str(value)",
            id="the path to it",
        ),
        pytest.param(
            [{"a": [[object()]]}],
            f"message[0]['a'][0][0] is of type object: {PLAIN_REMEDY}",
            id="a deeper path",
        ),
        pytest.param({1}, "message is of type set: send a list, such as sorted(value)", id="set"),
        pytest.param(
            frozenset(), "message is of type frozenset: send a list, such as sorted(value)", id="frozenset"
        ),
        pytest.param(bytearray(b"1"), "message is of type bytearray: send bytes(value)", id="bytearray"),
        pytest.param(memoryview(b"1"), "message is of type memoryview: send bytes(value)", id="memoryview"),
        pytest.param(
            dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
            "message is of type datetime.datetime: send value.isoformat(), or a number of seconds",
            id="datetime",
        ),
        pytest.param(
            dt.timedelta(1),
            "message is of type datetime.timedelta: send value.total_seconds()",
            id="timedelta",
        ),
        pytest.param(
            Colour.RED, f"message is of type {__name__}.Colour: send its value: member.value", id="enum"
        ),
        pytest.param(
            Amount(1), f"message is of type {__name__}.Amount: send int(value)", id="a subclass of int"
        ),
        pytest.param(
            Counter("a"), "message is of type collections.Counter: send dict(value)", id="a subclass of dict"
        ),
        pytest.param(Pair(1, 2), f"message is of type {__name__}.Pair: send tuple(value)", id="namedtuple"),
        pytest.param(
            ValueError("no"),
            "message is of type ValueError: raise it, or send its text: str(error)",
            id="exception",
        ),
        pytest.param(
            Unregistered(),
            f'message is of type {__name__}.Unregistered: write @message("a.name") above the @dataclass of this very class, '
            "on all hosts",
            id="a dataclass that is not registered",
        ),
        pytest.param(
            SpecialDeposit("ann"),
            f'message is of type {__name__}.SpecialDeposit: write @message("a.name") above the @dataclass of this very class, '
            "on all hosts",
            id="a subclass of a registered one",
        ),
        pytest.param(
            Deposit, f"message is of type type: {PLAIN_REMEDY}", id="the class in place of an instance"
        ),
        pytest.param(
            print, f"message is of type builtin_function_or_method: {PLAIN_REMEDY}", id="a function"
        ),
        pytest.param(1j, f"message is of type complex: {PLAIN_REMEDY}", id="complex"),
        pytest.param(
            1 << 64, "message is an int of more than 64 bits: send it as a string or as bytes", id="large int"
        ),
        pytest.param(
            [-(1 << 64) - 1],
            "message[0] is an int of more than 64 bits: send it as a string or as bytes",
            id="small int",
        ),
        pytest.param(
            {"a": {3: 1}},
            "message['a'] has the key 3 of type int: use strings as keys, or send a list of pairs",
            id="a number as a key",
        ),
        pytest.param(
            {b"a": 1},
            "message has the key b'a' of type bytes: use strings as keys, or send a list of pairs",
            id="bytes as a key",
        ),
        pytest.param(
            {"a": "\ud800"},
            "message['a'] is a string with half a surrogate pair, which is no valid Unicode: send bytes, for example "
            'value.encode("utf-8", "surrogatepass")',
            id="half a character",
        ),
        pytest.param(
            {"\ud800": 1},
            "message['\\ud800'] is a string with half a surrogate pair, which is no valid Unicode: send bytes, for example "
            'value.encode("utf-8", "surrogatepass")',
            id="half a character as a key",
        ),
        pytest.param(
            without_amount(),
            f"message has no 'amount', which is a field of {__name__}.Slots: give each field a value",
            id="a field without a value",
        ),
    ],
)
def test_what_cannot_be_sent_is_named_with_a_remedy(value: Any, said: str) -> None:
    assert refusal(value) == said


def test_actors_and_futures_are_sent_as_what_they_stand_for() -> None:
    actor = pykka.ThreadingActor()
    assert refusal([actor]).endswith("send its reference: actor.actor_ref")
    assert refusal(pykka.ThreadingFuture()).endswith("send what it holds: future.get()")


def test_the_error_names_the_whole_as_the_caller_calls_it() -> None:
    assert refusal([{1}], what="args").startswith("args[0] is of type set")


def test_the_error_is_the_callers_fault_and_can_be_sent_itself() -> None:
    with pytest.raises(ConfigError) as caught:
        pack([{1}], REFS)
    assert caught.value.args == ("message[0]", "is of type set", "send a list, such as sorted(value)")


def test_a_reference_that_cannot_be_sent_says_so_itself() -> None:
    with pytest.raises(DrakkarError, match=r"^too many references$"):
        pack([Ref(1000)], REFS)


def test_a_path_is_shortened_in_the_middle() -> None:
    value: Any = {1}
    for _ in range(20):
        value = {"k" * 100: value}
    said = refusal(value)
    assert said.startswith("message['kkkk")
    assert said.endswith("kkkk] is of type set: send a list, such as sorted(value)")
    assert "…" in said
    assert len(said) < 300


# ---- bounds

LIST, DICT, MARKED, MESSAGE = (
    lambda inner: [inner],
    lambda inner: {"a": inner},
    lambda inner: {"@": inner},
    Deposit,
)
MAKERS = [
    pytest.param([LIST], id="lists"),
    pytest.param([DICT], id="dicts"),
    pytest.param([MARKED], id="dicts that are escaped"),
    pytest.param([MESSAGE], id="messages"),
    pytest.param([LIST, DICT, MARKED, MESSAGE], id="all of them"),
]


@pytest.mark.parametrize("makers", MAKERS)
def test_the_deepest_value_comes_out_and_can_be_sent_on(makers: list[Any]) -> None:
    value = nested(makers, MAX_DEPTH)
    assert shape(unpack(pack(value, REFS), REFS)) == shape(value)


@pytest.mark.parametrize("makers", MAKERS)
def test_a_deeper_value_is_refused(makers: list[Any]) -> None:
    assert "is nested too deeply" in refusal(nested(makers, MAX_DEPTH + 1))


@pytest.mark.parametrize("makers", MAKERS)
def test_a_deeper_value_is_refused_where_it_comes_in(
    makers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(values, "MAX_DEPTH", MAX_DEPTH + 1)
        data = pack(nested(makers, MAX_DEPTH + 1), REFS)
    assert "is nested too deeply" in wire_refusal(data)


def test_a_reference_is_no_container() -> None:
    value: Any = Ref(1)
    for _ in range(MAX_DEPTH):
        value = [value]
    assert unpack(pack(value, REFS), REFS) == value


def test_a_value_that_holds_itself_is_refused() -> None:
    endless: list[Any] = []
    endless += [endless] * 10
    assert "is nested too deeply" in refusal(endless)
    note = Note()
    note.more = {"note": note}
    assert "is nested too deeply" in refusal(note)


def test_one_list_that_is_held_many_times_over_ends_soon() -> None:
    many: list[Any] = []
    for _ in range(MAX_DEPTH - 1):
        many = [many] * 10
    assert refusal(many).startswith(f"message has more than {MAX_ITEMS} values and keys: ")


def test_one_string_that_is_held_many_times_over_ends_soon() -> None:
    assert refusal({"a": ["x" * 1000] * 10_000}).startswith(f"message takes more than {MAX_BYTES} bytes: ")
    assert refusal([b"x" * 1000] * 10_000).startswith(f"message takes more than {MAX_BYTES} bytes: ")


@pytest.mark.parametrize("value", ["x" * 99, b"x" * 99, ["ä" * 49], {"x" * 99: 1}])
def test_a_value_may_be_as_long_as_its_caller_says(value: Any) -> None:
    size = len(pack(value, REFS))
    assert pack(value, REFS, limit=size)
    assert refusal(value, limit=size - 1).startswith(f"message takes more than {size - 1} bytes: ")


def count(wire: Any) -> int:
    """The items of what CBOR decodes."""
    if isinstance(wire, list):
        return 1 + sum(map(count, wire))
    if isinstance(wire, dict):
        return 1 + sum(1 + count(each) for each in wire.values())
    return 1


@given(VALUES)
def test_both_hosts_count_the_items_of_a_value_alike(value: Any) -> None:
    """Else a host would send what the other one refuses."""
    data = pack(value, REFS)
    items = count(cbor2.loads(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(values, "MAX_ITEMS", items)
        assert shape(unpack(pack(value, REFS), REFS)) == shape(value)
        patch.setattr(values, "MAX_ITEMS", items - 1)
        with pytest.raises(ValueRefused, match="items"):
            unpack(data, REFS)
        if items > 1:
            assert f"has more than {items - 1} values and keys" in refusal(value)


def test_the_longest_list_comes_out() -> None:
    assert unpack(pack([None] * (MAX_ITEMS - 1), REFS), REFS) == [None] * (MAX_ITEMS - 1)
    assert "values and keys" in refusal([None] * MAX_ITEMS)


# ---- versions


def test_a_field_that_the_sender_does_not_know_has_its_default() -> None:
    wire = cbor2.dumps([{"@": "test.deposit", "account": "ann"}, {"@": "test.note"}, {"@": "test.note"}])
    deposit, note, other = unpack(wire, REFS)
    assert (deposit, note) == (Deposit("ann", 0), Note("", []))
    assert note.more is not other.more, "each has a list of its own"


def test_a_field_that_the_sender_does_not_know_and_that_has_no_default_is_named() -> None:
    assert wire_refusal([{"@": "test.deposit", "amount": 5}]) == (
        "message[0] is a 'test.deposit' without 'account': send the field, or give it a default in "
        "tests.actors.remote.support.Deposit of the host that receives it"
    )


def test_a_field_that_the_receiver_does_not_know_is_dropped_and_counted() -> None:
    wire = {
        "@": "test.deposit",
        "account": "ann",
        "currency": "EUR",
        "note": {"@": "test.of_a_later_version"},
    }
    dropped: Counter[str] = Counter()
    assert unpack(cbor2.dumps([wire, wire]), REFS, dropped=dropped) == [Deposit("ann"), Deposit("ann")]
    assert dropped == {"test.deposit": 4}
    assert unpack(cbor2.dumps(wire), REFS) == Deposit("ann")


@message("test.keywords")
@dataclass(kw_only=True)
class Keywords:
    self: int
    cls: int = field(default=2)


@message("test.base")
@dataclass
class Base:
    first: int


@message("test.derived")
@dataclass
class Derived(Base):
    second: int = 2


@pytest.mark.parametrize(
    "value", [Keywords(self=1), Keywords(self=1, cls=3), Base(1), Derived(1), Derived(3, 4)]
)
def test_all_forms_of_dataclasses_come_out(value: Any) -> None:
    assert shape(unpack(pack(value, REFS), REFS)) == shape(value)


# ---- what comes in

BREAK = b"\xff"


@pytest.mark.parametrize(
    ("wire", "said"),
    [
        pytest.param(b"", "message cannot be decoded", id="nothing"),
        pytest.param(b"\x01\x01", "message cannot be decoded", id="more than one value"),
        pytest.param(b"\x9f\x01\xff", "message cannot be decoded", id="an indefinite length"),
        pytest.param(b"\xa2\x61a\x01\x61a\x02", "message cannot be decoded", id="a key twice"),
        pytest.param(b"\x61\xff", "message cannot be decoded", id="no Unicode"),
        pytest.param(Decimal(1), "message cannot be decoded", id="a tag"),
        pytest.param(1 << 70, "message cannot be decoded", id="a big number"),
        pytest.param({1: 2}, "message cannot be decoded", id="a number as a key"),
        pytest.param({b"a": 2}, "message has the key b'a', which is no string", id="bytes as a key"),
        pytest.param({"a": {b"b": []}}, "message['a'] has the key b'b'", id="bytes as a key further in"),
        pytest.param([cbor2.undefined], "message[0] is a CBOR value that no host sends", id="undefined"),
        pytest.param({"a": cbor2.CBORSimpleValue(99)}, "message['a'] is a CBOR value", id="a simple value"),
        pytest.param({"@": None}, "message is a map with the key '@'", id="a mark that is none"),
        pytest.param({"@": [], "a": 1}, "message is a map with the key '@'", id="a reference with fields"),
        pytest.param(
            {"@": {}, "a": 1}, "message is a map with the key '@'", id="an escaped dict with fields"
        ),
        pytest.param(
            {"@": []}, "message is a reference to an actor, which cannot be used", id="an empty reference"
        ),
        pytest.param({"@": [{}]}, "message is a reference that no host sends", id="a reference with a map"),
        pytest.param(
            {"@": [[[]]]}, "message is a reference that no host sends", id="a reference with deep lists"
        ),
        pytest.param(
            {"@": ["a:1", 1000, [], None]},
            "message is a reference to an actor, which cannot be used: DrakkarError: no such actor",
            id="a reference to nothing",
        ),
        pytest.param(
            {"a": {"@": "os.system"}},
            "message['a'] is a 'os.system', and no class of that name is known there: import the module that has its "
            "class, with @message('os.system'), on the host that receives it",
            id="a class that is not registered",
        ),
        pytest.param(
            {"@": "test.base", "first": [{"@": 1}]}, "message.first[0] is a map", id="the path to it"
        ),
    ],
)
def test_what_no_host_sends_is_refused(wire: Any, said: str) -> None:
    assert wire_refusal(wire).startswith(said)


def test_a_mark_that_ends_nothing_is_no_value() -> None:
    with pytest.raises(ValueRefused):
        unpack(BREAK, REFS)
    with pytest.raises(ValueRefused):
        unpack(b"\x81" + BREAK, REFS)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x9a\x00\x0f\xff\xf0" + b"\x80" * 0xFFFF0, id="empty lists"),
        pytest.param(b"\x9a\x00\x0f\xff\xf0" + b"\xa0" * 0xFFFF0, id="empty maps"),
        pytest.param(b"\x9a\x00\x0f\xff\xf0" + b"\x60" * 0xFFFF0, id="empty strings"),
    ],
)
def test_a_megabyte_of_nothing_is_refused_before_it_is_decoded(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(cbor2, "CBORDecoder")
    assert f"more than {MAX_ITEMS} items" in wire_refusal(data)


def test_a_megabyte_of_one_value_is_decoded() -> None:
    assert unpack(pack(bytes(MAX_BYTES - 5), REFS), REFS) == bytes(MAX_BYTES - 5)


MADE: list[str] = []


class Armed:
    """What must not happen: its construction is noted."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        MADE.append("armed")


def test_nothing_that_is_not_registered_is_ever_made() -> None:
    for name in ("Armed", f"{__name__}.Armed", "builtins.eval", "Unregistered", f"{__name__}.Unregistered"):
        assert "no class of that name" in wire_refusal({"@": name, "amount": 1})
    assert MADE == []


# ---- code of users


@message("test.checked")
@dataclass
class Checked:
    amount: Any

    def __post_init__(self) -> None:
        if self.amount == "exit":
            sys.exit("no")
        if self.amount < 0:
            raise ValueError(f"{self.amount} is below zero" + "!" * 10_000)


def test_what_a_class_raises_refuses_the_value() -> None:
    assert unpack(pack([Checked(1)], REFS), REFS) == [Checked(1)]
    said = wire_refusal([{"@": "test.checked", "amount": -1}])
    assert said.startswith(
        f"message[0] is a 'test.checked', whose class {__name__}.Checked raised ValueError: -1 is below"
    )
    assert said.endswith(": send what the class allows")
    assert len(said) < 600
    assert "raised TypeError" in wire_refusal({"@": "test.checked", "amount": "one"})


def test_a_class_cannot_end_the_loop() -> None:
    assert "raised SystemExit" in wire_refusal({"@": "test.checked", "amount": "exit"})


@message("test.unprintable")
@dataclass
class Unprintable:
    amount: int

    def __post_init__(self) -> None:
        raise Broken


class Broken(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_an_exception_without_a_text_refuses_the_value_too() -> None:
    assert "raised Broken, whose text cannot be read" in wire_refusal({"@": "test.unprintable", "amount": 1})


@pytest.mark.parametrize(
    "wire",
    [
        pytest.param({"@": "x" * 100_000}, id="the name of a class"),
        pytest.param({b"x" * 100_000: 1}, id="a key"),
        pytest.param({"x" * 100_000: cbor2.undefined}, id="a path"),
        pytest.param(b"\xa2" + 2 * (cbor2.dumps("x" * 100_000) + b"\x01"), id="a key twice"),
    ],
)
def test_the_texts_of_errors_are_bounded(wire: Any) -> None:
    assert len(wire_refusal(wire)) < 1000
