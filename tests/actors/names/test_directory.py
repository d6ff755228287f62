"""The table of names: who has a name, who may take it over, and that all replicas agree."""

import io

import cbor2
import pytest
from drakkar.actors.names import directory
from drakkar.actors.names.directory import (
    MAX_PLACE_BYTES,
    Directory,
    Registration,
    check_operation,
    encode_command,
)
from drakkar.handlers.checks import check_name
from drakkar.handlers.errors import ConfigError, CorruptData, Refused
from hypothesis import given, settings
from hypothesis import strategies as st

A, B = "host a", "host b"
ADDRESSES = {A: "10.0.0.1:7000", B: "10.0.0.2:7000"}


def register(name, host, number=1, *, run=(1, 11), replace=False):
    return ["register", name, host, *run, number, ADDRESSES[host], b"place of %d" % number, replace]


def unregister(name, host, number=None, *, run=(1, 11)):
    return ["unregister", name, host, *run, number]


def announce(host, run):
    return ["announce", host, *run]


class Table:
    """A directory, which does one operation after the other."""

    def __init__(self):
        self.directory = Directory()

    def do(self, *operations):
        results = self.directory.apply(encode_command(list(operations)))
        return results[0] if len(operations) == 1 else results

    def who(self, name):
        found = self.directory.query(["find", name])
        return None if found is None else (found.host, found.number)

    def names(self, prefix="", after="", limit=1000):
        return self.directory.query(["names", prefix, after, limit])


@pytest.fixture
def table():
    return Table()


TAKEN = ["taken", ADDRESSES[A]]


# -- who has a name


def test_a_free_name_is_given_and_found(table):
    assert table.do(register("ledger", A, 7)) == ["ok"]
    assert table.directory.query(["find", "ledger"]) == Registration(A, 1, 11, 7, ADDRESSES[A], b"place of 7")
    assert table.who("other") is None


def test_of_two_hosts_that_register_one_name_the_first_in_the_log_has_it_and_the_other_is_told_who(table):
    assert table.do(register("ledger", A), register("ledger", B)) == [["ok"], TAKEN]
    assert table.who("ledger") == (A, 1)


@pytest.mark.parametrize(
    ("operation", "result", "after"),
    [
        pytest.param(register("ledger", A, 2), ["ok"], (A, 2), id="its owner's next actor"),
        pytest.param(register("ledger", A, 1), ["ok"], (A, 1), id="the same again: the answer was lost"),
        pytest.param(register("ledger", B, 5), TAKEN, (A, 1), id="another host's"),
        pytest.param(
            register("ledger", B, 5, replace=True), ["ok"], (B, 5), id="another host's that insists"
        ),
        pytest.param(register("ledger", A, 5, run=(2, 5)), ["ok"], (A, 5), id="its owner's next run"),
        pytest.param(
            register("ledger", A, 5, run=(0, 5)), ["over"], (A, 1), id="its owner's run before, too late"
        ),
        pytest.param(unregister("ledger", A), ["ok", True], None, id="given back, whichever actor it is"),
        pytest.param(unregister("ledger", A, 1), ["ok", True], None, id="given back, since its actor ended"),
        pytest.param(
            unregister("ledger", A, 2), ["ok", False], (A, 1), id="of an actor before: it has another now"
        ),
        pytest.param(unregister("ledger", B), ["ok", False], (A, 1), id="by another host"),
        pytest.param(
            unregister("ledger", A, run=(0, 5)), ["ok", False], (A, 1), id="by a run before, too late"
        ),
        pytest.param(unregister("other", A), ["ok", False], (A, 1), id="another name"),
        pytest.param(announce(A, (1, 11)), ["ok"], (A, 1), id="the same run"),
        pytest.param(announce(A, (2, 5)), ["ok"], None, id="the run is over"),
        pytest.param(announce(A, (0, 99)), ["over"], (A, 1), id="an older run is no evidence"),
        pytest.param(announce(B, (9, 9)), ["ok"], (A, 1), id="another host's run"),
    ],
)
def test_what_becomes_of_a_name_that_host_a_has(table, operation, result, after):
    table.do(register("ledger", A, 1))
    assert table.do(operation) == result
    assert table.who("ledger") == after


def test_when_the_holder_s_run_is_over_another_host_may_have_the_name(table):
    table.do(register("ledger", A))
    assert table.do(register("ledger", B)) == TAKEN
    table.do(register("something else", A, run=(2, 5)))
    assert table.do(register("ledger", B)) == ["ok"]


def test_a_host_whose_name_was_replaced_does_not_take_it_back_unasked_nor_frees_it(table):
    table.do(register("ledger", A))
    table.do(register("ledger", B, replace=True))
    assert table.do(register("ledger", A)) == ["taken", ADDRESSES[B]]
    assert table.do(unregister("ledger", A)) == ["ok", False]
    table.do(announce(A, (2, 5)))
    assert table.who("ledger") == (B, 1)


def test_names_are_listed_in_order_by_prefix_and_in_pages(table):
    for name in ("b2", "a", "b1", "b3", "c"):
        table.do(register(name, A))
    assert table.names() == ["a", "b1", "b2", "b3", "c"]
    assert table.names("b") == ["b1", "b2", "b3"]
    assert table.names("b", limit=2) == ["b1", "b2"]
    assert table.names("b", after="b2", limit=2) == ["b3"]
    assert table.names("x") == []


# -- bounds


def test_names_are_bounded_and_those_that_are_given_back_make_room(table, monkeypatch):
    monkeypatch.setattr(directory, "MAX_NAMES", 2)
    table.do(register("1", A), register("2", A))
    assert table.do(register("3", A))[0] == "full"
    assert table.do(register("1", A, 9)) == ["ok"], "a move needs no room"
    table.do(unregister("1", A))
    assert table.do(register("3", B)) == ["ok"]
    table.do(announce(A, (2, 5)))
    assert table.do(register("4", B)) == ["ok"], "those of a run that is over make room at once"


def test_hosts_are_bounded_and_one_without_a_name_is_forgotten_first(table, monkeypatch):
    monkeypatch.setattr(directory, "MAX_OWNERS", 2)
    table.do(register("1", A), announce("c", (1, 1)))
    assert table.do(register("2", B)) == ["ok"], "c is forgotten"
    assert table.do(announce("c", (1, 1)))[0] == "full"
    assert {table.who("1"), table.who("2")} == {(A, 1), (B, 1)}


GOOD = register("ledger", A)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, "rename"),
        (0, 7),
        (1, ""),
        (1, "x" * 201),
        (1, "line\nbreak"),
        (1, 7),
        (2, ""),
        (2, "x" * 201),
        (3, -1),
        (3, 1 << 63),
        (3, True),
        (4, None),
        (5, "7"),
        (6, "x" * 301),
        (7, b"x" * (MAX_PLACE_BYTES + 1)),
        (7, "place"),
        (8, 1),
    ],
)
def test_what_is_no_operation_is_refused_on_all_replicas_alike_and_changes_nothing(table, place, value):
    bad = [*GOOD]
    bad[place] = value
    assert check_operation(bad) is not None
    with pytest.raises(Refused, match="a directory"):
        table.directory.apply(cbor2.dumps([GOOD, bad]))
    assert table.names() == [], "the good one before it was not applied either"


@pytest.mark.parametrize(
    "command",
    [
        b"",
        b"no CBOR",
        cbor2.dumps([]),
        cbor2.dumps({}),
        cbor2.dumps([[]]),
        cbor2.dumps([GOOD[:-1]]),
        cbor2.dumps([GOOD] * 1001),
    ],
)
def test_what_is_no_command_is_refused(table, command):
    with pytest.raises(Refused, match="directory"):
        table.directory.apply(command)


@pytest.mark.parametrize("name", ["", "x" * 201, "a\tb", 7, None])
def test_a_user_is_told_what_can_be_no_name(name):
    with pytest.raises(ConfigError, match="name"):
        check_name("name", name)


# -- all replicas agree


def saved(table):
    sink = io.BytesIO()
    table.save(sink)
    return sink.getvalue()


def loaded(data):
    table = Directory()
    table.load(io.BytesIO(data))
    return table


OPERATIONS = st.lists(
    st.one_of(
        st.builds(
            register,
            st.sampled_from("xyz"),
            st.sampled_from([A, B]),
            st.integers(1, 3),
            run=st.tuples(st.integers(1, 3), st.integers(0, 1)),
            replace=st.booleans(),
        ),
        st.builds(
            unregister,
            st.sampled_from("xyz"),
            st.sampled_from([A, B]),
            st.one_of(st.none(), st.integers(1, 3)),
            run=st.tuples(st.integers(1, 3), st.integers(0, 1)),
        ),
        st.builds(announce, st.sampled_from([A, B, "c"]), st.tuples(st.integers(1, 3), st.integers(0, 1))),
    ),
    max_size=30,
)


class Model:
    """The same, in the dumbest way: all is searched each time."""

    def __init__(self):
        self.names, self.runs = {}, {}

    def do(self, what, *fields):
        if what == "register":
            name, host, count, nonce, number, address, place, replace = fields
        elif what == "unregister":
            name, host, count, nonce, number = fields
            held = self.names.get(name)
            mine = held is not None and held[:3] == (host, count, nonce) and number in {None, held[3]}
            if mine:
                del self.names[name]
            return ["ok", mine]
        else:
            host, count, nonce = fields
        if (count, nonce) < self.runs.get(host, (0, 0)):
            return ["over"]
        self.runs[host] = count, nonce
        for each, held in list(self.names.items()):
            if held[0] == host and held[1:3] != (count, nonce):
                del self.names[each]
        if what == "announce":
            return ["ok"]
        held = self.names.get(name)
        if held is not None and held[0] != host and not replace:
            return ["taken", held[4]]
        self.names[name] = (host, count, nonce, number, address, place)
        return ["ok"]


@settings(max_examples=300, deadline=None)
@given(OPERATIONS)
def test_it_does_what_a_much_simpler_table_does(operations):
    table, model = Table(), Model()
    for operation in operations:
        assert table.do(operation) == model.do(*operation)
    found = {name: table.directory.query(["find", name]) for name in "xyz"}
    assert {name: each for name, each in found.items() if each} == {
        name: Registration(*fields) for name, fields in model.names.items()
    }
    assert table.names() == sorted(model.names)


@settings(max_examples=200, deadline=None)
@given(OPERATIONS, OPERATIONS)
def test_a_replica_that_loaded_a_snapshot_goes_on_like_one_that_applied_all(before, after):
    table = Table()
    for operation in before:
        table.do(operation)
    other = Table()
    other.directory = loaded(saved(table.directory))
    assert saved(other.directory) == saved(table.directory)
    for operation in after:
        assert other.do(operation) == table.do(operation)
    assert saved(other.directory) == saved(table.directory)


@pytest.mark.parametrize(
    "data", [b"", b"no snapshot", cbor2.dumps([2, [], []]), cbor2.dumps([1, [7], []]), cbor2.dumps([1])]
)
def test_a_damaged_snapshot_is_not_loaded(data):
    with pytest.raises(CorruptData):
        loaded(data)
