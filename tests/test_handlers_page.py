"""What docs/handlers.md says is what there is: its examples run, its bounds and names are those of the code, its links lead somewhere."""

import builtins
import enum
import operator
import re
import struct
import zlib
from pathlib import Path

import pykka
import pytest
from drakkar import actors, handlers
from drakkar.actors.machine.sessions import REGISTER, encode_request
from drakkar.actors.node import inbox
from drakkar.actors.runtime import open_asks
from drakkar.handlers import (
    Entry,
    EntryKind,
    Message,
    MessageType,
    effects,
    extension,
    payloads,
    testing,
    timers,
)
from drakkar.handlers.raft import extension_states, ready, records

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "handlers.md").read_text(encoding="utf-8")
EXAMPLES = (
    "custom_handler",
    "audit",
    "leader_placement",
    "two_phase_commit",
    "ring",
    "failure_detector",
)


def section(title):
    """A part of the page, from its heading to the next."""
    return re.search(rf"\n## {re.escape(title)}\n(.*?)(?=\n## |\Z)", PAGE, re.DOTALL)[1]


def rows(text):
    """The rows of the first table in a text, as lists of cells."""
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture
def names(types_of_one_test):
    """What there is when all examples have run from top to bottom."""
    names = {}
    for example in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(example, names)  # it is what the test is about
    return names


def test_its_examples_run_from_top_to_bottom(capsys, names):
    assert "light.ring" in capsys.readouterr().out


def test_its_records_keep_what_is_alike_and_what_is_empty(names):
    notes = names["Notes"]
    cluster = testing.Cluster(3, handlers=handlers.raft_handlers().use(notes))
    cluster.elect(1)
    words = ["a\nb", "", "a\nb"]
    asked = {cluster.ask(2, Message(names["WRITE"], payload=each)) for each in words}
    assert len(asked) == 3
    cluster.compact(1)
    cluster.crash(3)
    cluster.restart(3)
    cluster.tick(2)
    assert list(cluster[3].extension(notes).notes.values()) == words
    cluster.isolate(1)
    cluster.tick(50)
    assert isinstance(cluster.ask(1, Message(names["WRITE"], payload="lost")), str)
    assert not cluster[1].extension(notes).waiting, "it was told why not"
    empty = testing.Cluster(3, handlers=handlers.raft_handlers().use(notes))[1].extension(notes)
    empty.load(empty.save())
    assert not empty.notes


def test_its_sizes_begin_at_one_index_wherever_replicas_start_from(names):
    cluster = testing.Cluster(3)
    cluster.elect(1)
    cluster.propose(1, b"one")
    cluster.compact(1)
    cluster.propose(1, b"two")
    cluster.handlers = handlers.raft_handlers().use(names["Sizes"])
    for replica in (1, 2, 3):
        cluster.crash(replica)
        cluster.restart(replica)
    cluster.elect(1)
    cluster.propose(1, b"three")
    assert [cluster.ask(replica, Message(names["START"])) for replica in (1, 2)] == ["it begins"] * 2
    cluster.propose(1, b"four")
    cluster.tick(2)
    assert [cluster[replica].extension(names["Sizes"]).total for replica in (1, 2, 3)] == [4, 4, 4]


def test_its_quota_is_for_commands_however_they_are_logged_and_for_nothing_else(names):
    quota = testing.Cluster(1, handlers=handlers.raft_handlers().use(names["Quota"]))[1].extension(
        names["Quota"]
    )
    limit, packed = bytes(100), struct.pack(">BI", 1, 101) + zlib.compress(bytes(101))
    kinds = EntryKind
    large = [
        (kinds.COMMAND, bytes(101)),
        (kinds.ENCODED, packed),
        (kinds.SESSION, encode_request(1, 1, 0, bytes(101))),
    ]
    others = [
        (kinds.COMMAND, limit),
        (kinds.SESSION, encode_request(1, 1, 0, limit)),
        (kinds.CONFIG_CHANGE, bytes(101)),
    ]
    others += [(names["NOTE"], bytes(101)), (kinds.SESSION, encode_request(1, REGISTER, 0, b""))]
    assert all(quota.is_large(Entry(kind=kind, payload=payload)) for kind, payload in large)
    assert not any(quota.is_large(Entry(kind=kind, payload=payload)) for kind, payload in others)


def test_its_bounds_are_those_of_the_code():
    kib, mib = 1 << 10, 1 << 20
    expected = {
        "the payload of a message": f"{payloads.PAYLOAD_LIMIT // kib} KiB, {payloads._MAX_DEPTH} lists and dicts",
        "a record": f"{records.MAX_RECORD_BYTES // mib} MiB",
        "what all extensions": f"{extension_states.MAX_SAVED_BYTES // mib} MiB",
        "active timers": f"{timers.MAX_TIMERS:,}",
        "the time of a timer": f"{timers.MAX_TICKS:,} ticks",
        "effects of each sort": f"{effects.MAX_EFFECTS:,}",
        "messages told and asked": f"{inbox.MAX_OWN_MESSAGES:,}",
        "asks that a handler has taken": f"{open_asks.MAX_ASKS:,}",
        "the text of a veto": f"{ready.MAX_TEXT} characters",
        "the name of an extension": f"{extension.MAX_NAME} characters",
        "the kinds of one's own": f"{0x100 - EntryKind.FIRST_FREE}",
    }
    found = rows(section("Bounds"))
    assert [row[0].startswith(words) for row, words in zip(found, expected, strict=True)] == [True] * len(
        found
    )
    assert [row[1][: len(text)] for row, text in zip(found, expected.values(), strict=True)] == list(
        expected.values()
    )
    assert f"from {MessageType.FIRST_FREE} to 65535" in PAGE
    assert f"a number from {EntryKind.FIRST_FREE} to 255" in PAGE


def test_its_traits_are_those_that_a_type_can_have():
    told = {row[0].strip("`").partition("=")[0] for row in rows(section("States, types, cells"))}
    assert told == set(MessageType.define.__kwdefaults__)


class State(enum.IntEnum):
    ONLY = 0


def has(node, names):
    try:
        operator.attrgetter(names)(node)
    except AttributeError:
        return False
    return True


def test_each_class_and_call_that_it_names_is_there():
    owners = (actors, handlers, testing, pykka, enum, builtins)
    for name in re.findall(r"`(?:pykka\.)?([A-Z][a-z]+(?:[A-Z][a-z]+)+)", PAGE):
        assert any(hasattr(owner, name) for owner in owners), name
    table = handlers.HandlerTable(State)
    nodes = testing.Cluster(1)[1], handlers.TableNode("a", table, State.ONLY), actors.TableActor
    for names in re.findall(r"`node\.([\w.]+)", PAGE):
        assert any(has(node, names) for node in nodes), names
    for call in re.findall(r"`replica\.(\w+)", PAGE):
        assert hasattr(actors.Replica, call), call


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_example_is_one_short_file_that_the_page_shows(name):
    text = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 120
    assert "from examples" not in text, "it reads from top to bottom, in one file"
    defined = re.findall(r"^[A-Z]+ = \w+\.define\(\"[^\"]+\", \d+", text, re.MULTILINE)
    assert len(defined) == text.count(".define("), "each has its name and number on a line of its own"
    [row] = [row for row in rows(PAGE) if f"(../examples/{name}.py)" in row[0]]
    [command] = re.findall(r"`(python -m [^`]+)`", row[2])
    assert command in text, "its docstring says the same"
    assert (ROOT / "tests" / "examples" / f"test_{name}.py").exists()
