"""`@message`: dataclasses that may be sent to other hosts, each under a name that all hosts know it by."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Any, Final, NamedTuple, TypeVar

from drakkar.actors.remote.registry import Registry, place_of
from drakkar.handlers.errors import ConfigError

__all__ = ["MARK", "MessageClass", "message", "message_of_class", "message_of_name"]

MARK: Final = "@"
"""The key under which the map of a message has its name, so no field may have this name."""

C = TypeVar("C", bound=type[Any])


class MessageClass(NamedTuple):
    """What is known of a registered dataclass."""

    name: str
    cls: type[Any]
    fields: tuple[str, ...]
    """The names of its fields, in their order."""
    known: frozenset[str]
    """The same as a set."""
    needed: frozenset[str]
    """The fields that have no default."""


_MESSAGES: Final[Registry[MessageClass]] = Registry("@message", "bank.deposit")


def message(name: str) -> Callable[[C], C]:
    """Let the instances of a dataclass be sent to other hosts, under `name`.

        @message("bank.deposit")
        @dataclass(frozen=True, slots=True)
        class Deposit:
            account: str
            amount: int
            currency: str = "EUR"  # came later, so it has a default

    The name is what travels, so all hosts register the class under the same one; module and class may differ. A subclass
    needs a name of its own. A host fills in the default of a field that the sender does not know, and drops a field that
    it does not know itself: so hosts of different versions understand each other as long as new fields have defaults.

    The other host makes the instance with the class itself, so a `__post_init__` of yours is called there, in the thread
    of its loop: it may check fields, and must not block. Types of fields are not checked.

    Raises `ConfigError` for a name that is empty, longer than 100 characters, not printable or taken by another class; for
    what is no dataclass; and for a field that is no argument of the class, or an argument that is no field.
    """
    _MESSAGES.check_name(name)

    def register(cls: C) -> C:
        _MESSAGES.add(_examine(name, cls))
        return cls

    return register


def message_of_name(name: str) -> MessageClass | None:
    """Return the class of a name; None if no class has it."""
    return _MESSAGES.by_name.get(name)


def message_of_class(cls: type[Any]) -> MessageClass | None:
    """Return what is known of exactly this class; None if it is not registered."""
    return _MESSAGES.by_class.get(cls)


def _examine(name: str, cls: Any) -> MessageClass:
    if not isinstance(cls, type):
        raise ConfigError("class", cls, "is no class: @message is for dataclasses")
    # A subclass of a dataclass has the attribute too, but its own fields only if it is decorated itself.
    if "__dataclass_fields__" not in vars(cls):
        raise ConfigError(
            "class", cls, f'is no dataclass: write @dataclass between @message("{name}") and the class'
        )
    known = fields(cls)
    for field in known:
        _check_field(cls, field)
    names = tuple(field.name for field in known)
    _check_arguments(cls, names)
    needed = frozenset(
        field.name for field in known if field.default is MISSING and field.default_factory is MISSING
    )
    return MessageClass(name, cls, names, frozenset(names), needed)


def _check_field(cls: type[Any], field: Field[Any]) -> None:
    where = f"{place_of(cls)}.{field.name}"
    if field.name.startswith(MARK):
        raise ConfigError("field", where, f"begins with {MARK!r}, which marks messages: choose another name")
    if not field.init:
        raise ConfigError(
            "field",
            where,
            "has init=False, so it would be lost on the way: make it an argument, or a property that computes it",
        )


def _check_arguments(cls: type[Any], names: tuple[str, ...]) -> None:
    """Refuse an `InitVar`: it is an argument, but no field, so its value is not there to be sent."""
    arguments = inspect.signature(cls.__init__).parameters
    others = [name for name in vars(cls)["__dataclass_fields__"] if name not in names]
    for name in others:
        if name in arguments:
            raise ConfigError(
                "field",
                f"{place_of(cls)}.{name}",
                "is an InitVar, so it would be lost on the way: make it a field",
            )
