"""What docs/values.md shows is what there is."""

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import cbor2
import pytest
from drakkar.actors.remote import failures, message_classes
from drakkar.actors.remote.failures import decode_failure, encode_failure
from drakkar.actors.remote.registry import Registry
from drakkar.actors.remote.values import MAX_DEPTH, MAX_ITEMS, ValueRefused, pack, unpack

from tests.actors.remote.support import REFS, Deposit

PAGE = (Path(__file__).parents[3] / "docs" / "values.md").read_text(encoding="utf-8")


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the examples define, whose names are forgotten after the test."""
    monkeypatch.setattr(message_classes, "_MESSAGES", Registry("@message", "bank.deposit"))
    monkeypatch.setattr(failures, "_FAILURES", Registry("@failure", "bank.overdrawn"))
    scope: dict[str, Any] = {"__name__": "page"}
    for snippet in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(snippet, scope)  # that is the point
    return scope


def test_the_message_of_the_page_crosses(shown: dict[str, Any]) -> None:
    deposit = shown["Deposit"]("ann", 5)
    data = pack(deposit, REFS)
    assert unpack(data, REFS) == deposit
    assert f'Deposit("ann", 5)     {cbor2.loads(data)!r}'.replace("'", '"') in PAGE


def test_the_exception_of_the_page_crosses(shown: dict[str, Any]) -> None:
    out = decode_failure(encode_failure(shown["Overdrawn"]("ann", 5), REFS), REFS)
    assert type(out) is shown["Overdrawn"]
    assert str(out) == "ann lacks 5"


@pytest.mark.parametrize("value", [{"a": [0, 0, 0, Deposit("ann", Decimal(1))]}, {1}], ids=["path", "set"])
def test_the_errors_of_the_page_are_those_that_are_raised(value: Any) -> None:
    with pytest.raises(ValueRefused) as caught:
        pack(value, REFS)
    assert f"\n{caught.value}\n" in PAGE


def test_the_page_names_all_exceptions_of_python_that_are_registered() -> None:
    named = [
        cls for cls in failures._BUILT_IN if not issubclass(cls, ArithmeticError) or cls is ArithmeticError
    ]
    assert [cls.__name__ for cls in named if f"`{cls.__name__}`" not in PAGE] == []


def test_the_page_tells_the_bounds() -> None:
    assert f"| {MAX_ITEMS:,} |" in PAGE
    assert f"| {MAX_DEPTH} |" in PAGE
