"""The page of guarantees quotes what the library says: each quotation stands in the code."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "guarantees.md").read_text()
QUOTED = sorted(
    {
        said
        for line in PAGE.partition("## What is noticed")[2].splitlines()
        if line.startswith("|")
        for said in re.findall(r'"([^"]+)"', line.split("|")[3])
    }
)


def texts():
    """All texts in the code; those with fields in them in parts."""
    for room in ("actors", "handlers", "transport"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


@pytest.fixture(scope="module")
def said():
    return "\n".join(texts())


@pytest.mark.parametrize("quotation", QUOTED)
def test_the_library_says_what_the_page_quotes(said, quotation):
    assert quotation in said


def test_each_mistake_of_the_page_is_quoted():
    assert len(QUOTED) > 20
