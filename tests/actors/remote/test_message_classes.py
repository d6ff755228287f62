"""`@message`: what can be registered, and what a newcomer is told who writes it another way."""

from dataclasses import InitVar, dataclass, field
from typing import Any, ClassVar

import pytest
from drakkar.actors.remote.message_classes import message, message_of_class, message_of_name
from drakkar.actors.remote.values import pack, unpack
from drakkar.handlers.errors import ConfigError

from tests.actors.remote.support import REFS, Deposit


def told(register: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        register()
    return str(caught.value)


def test_a_class_is_known_by_its_name_and_stays_what_it_was() -> None:
    known = message_of_name("test.deposit")
    assert known is not None
    assert known is message_of_class(Deposit)
    assert (known.cls, known.fields, known.needed) == (Deposit, ("account", "amount"), {"account"})
    assert message_of_name("test.nobody") is None
    assert message_of_class(int) is None


# ---- the forms of a mistake


def without_parentheses() -> Any:
    @message  # type: ignore[arg-type]
    @dataclass
    class Forgotten:
        amount: int

    return Forgotten


def below_dataclass() -> Any:
    @dataclass
    @message("test.wrong_order")
    class Below:
        amount: int

    return Below


def below_a_dataclass_with_a_dataclass_as_base() -> Any:
    @dataclass
    @message("test.wrong_order")
    class Below(Deposit):
        currency: str = "EUR"

    return Below


def no_dataclass() -> Any:
    @message("test.plain")
    class Plain:
        pass

    return Plain


def a_function() -> Any:
    @message("test.function")  # type: ignore[type-var]
    def deposit() -> None:
        pass

    return deposit


def without_init() -> Any:
    @message("test.without_init")
    @dataclass
    class Computed:
        amount: int
        doubled: int = field(init=False, default=0)

    return Computed


def with_init_var() -> Any:
    @message("test.init_var")
    @dataclass
    class Given:
        amount: int
        factor: InitVar[int] = 1

    return Given


def marked_field() -> Any:
    cls = type("Marked", (), {"__annotations__": {"@name": int}, "__module__": __name__})
    return message("test.marked")(dataclass(init=False, repr=False, eq=False)(cls))


def taken() -> Any:
    @message("test.deposit")
    @dataclass
    class Other:
        amount: int

    return Other


def second_name() -> Any:
    return message("test.another_name")(Deposit)


@pytest.mark.parametrize(
    ("register", "parts"),
    [
        pytest.param(
            without_parentheses,
            ["name=<class", 'must be a string in parentheses: write @message("bank.deposit")'],
            id="without parentheses",
        ),
        pytest.param(
            below_dataclass,
            ["Below", 'is no dataclass: write @dataclass between @message("test.wrong_order") and the class'],
            id="below @dataclass",
        ),
        pytest.param(
            below_a_dataclass_with_a_dataclass_as_base,
            ["Below", "is no dataclass: write @dataclass between"],
            id="below @dataclass, and a dataclass by its base",
        ),
        pytest.param(no_dataclass, ["Plain", "is no dataclass"], id="no dataclass"),
        pytest.param(a_function, ["deposit", "is no class"], id="a function"),
        pytest.param(
            without_init,
            [
                "Computed.doubled'",
                "has init=False, so it would be lost",
                "make it an argument, or a property",
            ],
            id="a field that is no argument",
        ),
        pytest.param(
            with_init_var,
            ["Given.factor'", "is an InitVar", "make it a field"],
            id="an argument that is no field",
        ),
        pytest.param(
            marked_field, ["Marked.@name'", "begins with '@'", "choose another name"], id="a marked field"
        ),
        pytest.param(
            taken,
            [
                "name='test.deposit': is the name of tests.actors.remote.support.Deposit",
                f"choose another one for {__name__}.taken.<locals>.Other",
            ],
            id="a name that is taken",
        ),
        pytest.param(
            second_name,
            ["support.Deposit has the name 'test.deposit'", "give it one name only"],
            id="a second name",
        ),
    ],
)
def test_a_mistake_is_named_with_a_remedy(register: Any, parts: list[str]) -> None:
    said = told(register)
    assert [part for part in parts if part not in said] == []


@pytest.mark.parametrize(
    ("name", "part"),
    [
        pytest.param("", "must be printable and not empty", id="empty"),
        pytest.param("a\nb", "must be printable and not empty", id="not printable"),
        pytest.param("a" * 101, "has 101 characters, and 100 are allowed", id="too long"),
        pytest.param(None, "must be a string", id="none"),
        pytest.param(7, "must be a string", id="a number"),
    ],
)
def test_a_name_is_checked_before_the_class_is_there(name: Any, part: str) -> None:
    assert part in told(lambda: message(name))


def test_what_was_refused_leaves_no_trace() -> None:
    told(with_init_var)
    assert message_of_name("test.init_var") is None
    told(second_name)
    assert message_of_name("test.another_name") is None


# ---- what goes


def test_the_longest_name_passes() -> None:
    name = "test." + "n" * 95
    cls = message(name)(_longest())
    assert unpack(pack(cls(1), REFS), REFS) == cls(1)


def _longest() -> type[Any]:
    @dataclass
    class Longest:
        amount: int

    return Longest


def make(amount_default: int) -> type[Any]:
    @message("test.reloaded")
    @dataclass
    class Reloaded:
        amount: int = amount_default

    return Reloaded


def test_a_class_whose_module_is_imported_anew_takes_the_place_of_the_old_one() -> None:
    old, new = make(1), make(2)
    known = message_of_name("test.reloaded")
    assert known is not None
    assert known.cls is new
    assert type(unpack(pack(old(5), REFS), REFS)) is new, "what was made before can still be sent"


def test_the_same_class_may_be_registered_twice() -> None:
    assert message("test.deposit")(Deposit) is Deposit


def test_what_belongs_to_the_class_is_no_field() -> None:
    @message("test.constants")
    @dataclass(frozen=True)
    class Constants:
        amount: int
        limit: ClassVar[int] = 100

    known = message_of_class(Constants)
    assert known is not None
    assert known.fields == ("amount",)
    assert unpack(pack(Constants(1), REFS), REFS) == Constants(1)
