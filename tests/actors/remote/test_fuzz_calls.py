"""What a host says of actors, from the decoded records to inboxes, answers and watches: it is taken, or ends the connection.

`tests/attacks` fuzzes the same path led by coverage; here the inputs know the form of records, and so come further.
"""

from collections.abc import Iterator
from typing import Any

import cbor2
import pytest
from drakkar.actors.remote.records import encode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.actors.remote.support import RECORDS, TEXTS, printable
from tests.actors.remote.test_fuzz_values import WIRES
from tests.attacks.fuzz_calls import HERE, SMALL, Stage

patient = settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

small = st.integers(0, SMALL - 1)
numbers = st.one_of(small, small, st.integers(0, 1 << 62))
here = st.tuples(st.just(HERE), small).map(list)
targets = st.one_of(here, st.lists(numbers, min_size=2, max_size=2))
paths = st.lists(
    st.one_of(st.sampled_from(["echo", "limit", "fail", "_private", "stop", "__class__"]), printable),
    max_size=3,
)
references = st.builds(
    lambda *fields: {"@": list(fields)},
    st.one_of(st.sampled_from(["127.0.0.1:7000", "127.0.0.2:7000", "a:1", ""]), TEXTS),
    st.one_of(st.just(HERE), numbers),
    numbers,
    TEXTS,
    st.one_of(TEXTS, st.just("\0"), st.just("Ledger")),
    st.lists(st.one_of(printable, st.sampled_from(["a.b", "a.b()", ".", "a..b", "a.b.c.d.e"])), max_size=3),
)
messages = st.sampled_from(
    [
        {"@": "tests.attacks.picky", "count": 1},
        {"@": "tests.attacks.picky", "count": 5000},
        {"@": "tests.attacks.picky", "count": "x", "more": [1]},
        "hang",
    ]
)
values = st.one_of(
    st.binary(max_size=9),
    *(each.map(cbor2.dumps) for each in (WIRES, references, messages, st.lists(references, max_size=3))),
)
times = st.integers(0, 1000)
kwargs = st.one_of(values, st.dictionaries(TEXTS, st.integers(0, 3), max_size=2).map(cbor2.dumps))
args = st.one_of(values, st.lists(st.integers(0, 3), max_size=2).map(cbor2.dumps))
founds = st.tuples(targets, printable, st.lists(printable, max_size=3)).map(
    lambda found: cbor2.dumps(list(found))
)
failures = st.tuples(
    st.sampled_from(
        ["KeyError", "drakkar.NotLeader", "drakkar.ValueRefused", "pykka.ActorDeadError", "strange.Error", ""]
    ),
    TEXTS,
    TEXTS,
    st.one_of(st.none(), args),
).map(list)

GOOD_ROWS = st.one_of(
    st.tuples(st.just(2), small, here, st.integers(1, 1000), messages.map(cbor2.dumps)),
    st.tuples(st.just(6), st.just(0), founds),
    st.tuples(st.just(6), st.just(1), st.lists(printable, max_size=2).map(cbor2.dumps)),
    st.tuples(st.just(6), st.just(2), values),
    st.tuples(st.just(10), small, here),
    st.tuples(st.just(12), st.just(0), st.one_of(st.none(), failures)),
).map(list)
"""What brings something about: seldom enough by chance."""
ROWS = st.one_of(
    GOOD_ROWS,
    GOOD_ROWS,
    GOOD_ROWS,
    st.tuples(st.just(1), targets, values),
    st.tuples(st.just(2), numbers, targets, times, values),
    st.tuples(st.just(3), numbers, targets, times, paths, args, kwargs),
    st.tuples(st.just(4), numbers, targets, times, paths),
    st.tuples(st.just(5), numbers, targets, times, paths, values),
    st.tuples(st.just(6), numbers, st.one_of(values, founds)),
    st.tuples(
        st.just(7),
        numbers,
        st.sampled_from(["raised", "dead", "unknown", "busy", "refused", "late"]),
        failures,
    ),
    st.tuples(st.just(8), numbers, st.one_of(printable, st.sampled_from(["echo", "guarded", "listed"]))),
    st.tuples(st.just(9), numbers),
    st.tuples(st.just(10), numbers, targets),
    st.tuples(st.just(11), numbers),
    st.tuples(st.just(12), numbers, st.one_of(st.none(), failures)),
).map(list)
ANY_ROWS = st.one_of(
    ROWS,
    ROWS,
    RECORDS.map(lambda record: cbor2.loads(encode(record))),
    st.tuples(st.integers(0, 13), st.lists(WIRES, max_size=7)).map(lambda row: [row[0], *row[1]]),
)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.close()


@patient
@given(rows=st.lists(ANY_ROWS, min_size=1, max_size=8))
def test_any_records_are_taken_or_end_the_connection(stage: Stage, rows: list[list[Any]]) -> None:
    stage.hear(rows)


def test_the_inputs_come_through_to_actors_questions_and_watches(stage: Stage) -> None:
    """Else the fuzz would see refusals alone."""
    before = stage.seen.copy()

    @patient
    @given(rows=st.lists(ROWS, min_size=1, max_size=8))
    def fuzz(rows: list[list[Any]]) -> None:
        stage.hear(rows)

    fuzz()
    for what in ("answers", "failures", "ends", "questions", "watches"):
        assert stage.seen[what] > before[what], f"no input has brought about {what}: {stage.seen}"
    assert stage.wire.sent > 100
    assert stage.wire.charged > 100


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            [2, 1, [HERE, 0], 1000, cbor2.dumps([{"@": ["a:1", 1, 1, "", "\0", []]}])],
            id="a class name with a null",
        ),
        pytest.param(
            [2, 1, [HERE, 0], 1000, cbor2.dumps([{"@": ["a:1", 1, 1, "\n", "x" * 5000, []]}])],
            id="a long class name",
        ),
        pytest.param([2, 1, [HERE, 0], 1000, cbor2.dumps([{"@": ["", 1, 1, "", "", []]}])], id="no address"),
        pytest.param([6, 0, cbor2.dumps([[1, 2], "A", ["a", "a.b"]])], id="attributes below what has none"),
        pytest.param(
            [7, 2, "raised", ["drakkar.ValueRefused", "", "", cbor2.dumps([1])]],
            id="an exception of too few arguments",
        ),
        pytest.param(
            [12, 0, ["drakkar.ActorCrashed", "", "", cbor2.dumps([[[]]])]], id="an end with strange arguments"
        ),
        pytest.param(
            [3, 0, [HERE, 0], 0, ["echo"], cbor2.dumps({}), cbor2.dumps([])],
            id="arguments the wrong way round",
        ),
        pytest.param(
            [3, 0, [HERE, 0], 0, ["_private"], cbor2.dumps([]), cbor2.dumps({})], id="a private method"
        ),
    ],
)
def test_what_is_wrong_in_one_record_harms_no_other(stage: Stage, row: list[Any]) -> None:
    assert stage.hear([row, [9, 77]])


def test_a_number_that_is_used_twice_is_counted_once(stage: Stage) -> None:
    """No host does that; one that does has no more questions and watches than others."""
    hang = cbor2.dumps("hang")
    stage.hear([[2, 5, [HERE, number], 1000, hang] for number in (0, 1, 2) * 5])
    stage.hear([[10, 5, [HERE, 0]]] * 50)
