"""What tests cite of docs/protocol.md is there, and what is there is cited; each message type has its row of fields."""

import re
from pathlib import Path

from drakkar.handlers import MessageType
from drakkar.handlers.messages import _BUILT_IN

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "protocol.md"
TEXT = PAGE.read_text(encoding="utf-8")

ANCHOR = re.compile(r"^\| ([A-Z]\d+|BUG-[A-Z]\d+|INV\d+|Rule \d+\w?) \|", re.MULTILINE)
HEADING = re.compile(r"^## (Rules of [\w ]+)$", re.MULTILINE)

# Single letters with a number mean something else elsewhere: `V8` an engine, `S101` a lint rule.
FACT = re.compile(r"(?<![\w\-/#.:@])[A-Q]\d{1,2}\b(?![\w(])")
NAMED = re.compile(r"BUG-[A-Z]\d+|\bINV\d+|\bV\d+\b|\bRule \d+\w?")
RULES = re.compile(r"\b[Rr]ules of [\w ]+")
CITES_FACTS = ["handlers/raft/*.py", "actors/log/*.py", "actors/machine/test_sessions.py"]
CITES_CHECKS = ["handlers/**/*.py", "actors/**/*.py", "simulation/*.py"]


def files(patterns):
    return sorted({path for pattern in patterns for path in TESTS.glob(pattern)})


def cited():
    """Every code that a test names, with the files that do."""
    found = {}
    for patterns, pattern in ((CITES_FACTS, FACT), (CITES_CHECKS, NAMED)):
        for path in files(patterns):
            for code in pattern.findall(path.read_text(encoding="utf-8")):
                found.setdefault(code, set()).add(path.name)
    return found


def test_every_code_that_a_test_cites_is_on_the_page():
    known = set(ANCHOR.findall(TEXT))
    unknown = {code: names for code, names in cited().items() if code not in known}
    assert not unknown, f"add these to {PAGE.name}, or cite others: {unknown}"


def test_every_rule_that_a_test_cites_is_on_the_page():
    known = HEADING.findall(TEXT)
    for path in files(CITES_CHECKS):
        for cite in RULES.findall(path.read_text(encoding="utf-8")):
            heading = cite[0].upper() + cite[1:]
            assert any(heading.startswith(each) for each in known), f"{path.name} cites {cite!r}"


def test_every_fact_on_the_page_is_cited_by_a_test():
    anchors = ANCHOR.findall(TEXT)
    assert len(anchors) == len(set(anchors)), "two facts with one code"
    ours = {code for code in anchors if not code.startswith(("INV", "Rule"))}
    assert ours <= cited().keys(), f"no test cites {sorted(ours - cited().keys())}"


def test_every_message_type_has_a_row_of_fields():
    table = TEXT[TEXT.index("## Message fields") :].split("\n## ")[0]
    rows = re.findall(r"^\| ([A-Z_]+) \|", table, re.MULTILINE)
    assert rows == [str(MessageType(number)) for number in range(len(_BUILT_IN))]
