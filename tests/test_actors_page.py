"""What docs/actors.md says is what there is: its bounds, its examples, its links, and what it tells of each method."""

import re
from pathlib import Path

import pykka
import pytest
from drakkar import actors
from drakkar.actors.remote import (
    clients,
    deadlines,
    links,
    loads,
    published,
    reach,
    records,
    refs,
    serving,
    values,
)
from drakkar.actors.runtime import open_asks
from drakkar.actors.runtime import peers as node_peers
from drakkar.handlers import checks
from drakkar.transport import calls
from drakkar.transport.options import Options

from tests.examples import shown

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGE = (DOCS / "actors.md").read_text(encoding="utf-8")


def section(title):
    """A part of the page, from its heading to the next."""
    return re.search(rf"\n## {re.escape(title)}\n(.*?)(?=\n## |\Z)", PAGE, re.DOTALL)[1]


def rows(title):
    """The rows of the table in a section, as lists of cells."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def bound(words):
    """The bound in the row of the table that begins so."""
    [found] = [row[1] for row in rows("Bounds") if row[0].startswith(words)]
    return found


def test_the_bounds_are_those_of_the_code():
    options = Options()
    mib = 1 << 20
    expected = {
        "calls and answers that wait": f"{options.call_records:,} of {options.call_bytes // mib} MiB",
        "on their way": f"{calls.WINDOW_RECORDS} of {calls.WINDOW_BYTES >> 10} KiB",
        "one message": f"{options.call_limit // mib} MiB (`call_limit`), {values.MAX_ITEMS:,} values, ",
        "questions of this host": f"{links.MAX_QUESTIONS:,}",
        "questions of one other host": f"{clients.MAX_QUESTIONS:,}",
        "of these, questions to one actor": f"{clients.MAX_QUESTIONS_TO_ONE:,}",
        "messages in the inbox of a `ThreadingActor`": f"{serving.MAX_INBOX:,}",
        "messages in the inbox of a `TrioActor`": f"`inbox_capacity`, {actors.TrioActor.inbox_capacity:,}",
        "bytes of messages of other hosts": f"{loads.MAX_BYTES_OF_ONE // mib} MiB of one host, {loads.MAX_BYTES // mib} MiB of all",
        "actors of a host": f"{published.MAX_ACTORS:,}",
        "actors that one other host watches": f"{clients.MAX_WATCHES:,}, {clients.MAX_WATCHES_OF_ONE} of them of one actor",
        "attributes of one actor": f"{reach.MAX_ATTRIBUTES:,}",
        "names in one answer": f"{records.MAX_NAMES:,}",
        "the length of a name": f"{checks.MAX_NAME} characters",
        "messages of a table actor": f"{node_peers.MAX_WAITING:,} of {node_peers.MAX_WAITING_BYTES // mib} MiB, for {node_peers.PATIENCE_S:.0f} s",
        "questions that a table actor": f"{open_asks.MAX_ASKS:,}",
    }
    assert f", {values.MAX_DEPTH} inside each other" in bound("one message")
    assert {words: bound(words)[: len(text)] for words, text in expected.items()} == expected


def test_the_deadlines_are_those_of_the_code():
    assert f"{refs.DEFAULT_ASK_S:.0f} seconds where you name none" in PAGE
    assert f"at\nmost {deadlines.SLOT_S} s later" in PAGE
    assert f"{Options().keepalive + Options().answer_timeout:.0f} s by default" in section("Watching")


def test_every_error_of_the_page_can_be_imported():
    named = [re.match(r"`([\w.]+)`", row[0]) for row in rows("What failures mean")]
    names = [match[1] for match in named if match]
    assert len(names) > 8
    for name in names:
        owner = pykka if name.startswith("pykka.") else actors
        error = getattr(owner, name.removeprefix("pykka."))
        assert issubclass(error, Exception)


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (actors.UnknownName, True),
        (actors.NotAllowed, True),
        (actors.HostGone, True),
        (actors.SystemBusy, True),
        (actors.DeadlockError, True),
        (actors.AnswerTimeout, False),
        (actors.OutcomeUnknown, False),
        (actors.RemoteError, False),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_whether_a_message_was_handled_is_what_the_error_says(error, known):
    assert error.outcome_known is known
    [told] = [row[1] for row in rows("What failures mean") if row[0].startswith(f"`{error.__name__}`")]
    surely_not = told.startswith(("no", "surely not", "there was none"))
    assert surely_not is known


def test_the_counters_of_the_page_are_those_of_the_code():
    source = (ROOT / "actors" / "remote" / "replies.py").read_text(encoding="utf-8")
    for name in ("remote messages dropped", "remote answers dropped"):
        assert f"`{name}`" in PAGE
        assert f'"{name}"' in source


@pytest.mark.parametrize("name", shown.EXAMPLES)
def test_each_example_is_one_short_file_that_the_page_shows(name):
    text = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 120
    assert "from examples" not in text, "it reads from top to bottom, in one file"
    assert f"(../examples/{name}.py)" in PAGE
    [run] = [row[2] for row in rows_of_examples() if f"examples/{name}.py" in row[0]]
    commands = re.findall(r"`(python -m [^`]+)`", run)
    assert commands
    for command in commands:
        assert command in text, "its docstring says the same"
    assert shown.shown(name, PAGE) == shown.written(name), "run `python -m tests.examples.shown`"


def rows_of_examples():
    lines = [line for line in PAGE.splitlines() if line.startswith("| [`examples/")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def slug(heading):
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", ["actors.md", "tutorial.md", "handlers.md", "protocol_tutorial.md"])
def test_all_links_lead_somewhere(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (DOCS / path).resolve() if path else DOCS / page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), target
