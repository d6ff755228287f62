"""Integers with names, of which users may add more: what `MessageType` and `EntryKind` have in common."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self, cast

from drakkar.handlers.errors import HandlerTableError

__all__ = ["Numbered", "clash"]


class _Known(type):
    """Makes a class of numbers iterable and indexable by name, as an enum is."""

    known: Mapping[int, Any]

    def __iter__(cls) -> Iterator[Any]:
        return iter(tuple(cls.known.values()))

    def __len__(cls) -> int:
        return len(cls.known)

    def __getitem__(cls, name: str) -> Any:
        for known in cls.known.values():
            if known.name == name:
                return known
        raise KeyError(name)


class Numbered(int, metaclass=_Known):
    """An integer with a name, one of those in `known`, which all of this process share. A subclass has its own `known`."""

    name: str
    known: ClassVar[Any] = {}
    """All numbers of this class, by number."""
    what: ClassVar[str]
    """What they are, in error texts."""

    def __new__(cls, number: int) -> Self:
        """Look up the one with this number. Raises `ValueError` if there is none."""
        known = cls.known.get(number)
        if known is None:
            raise ValueError(
                f"{number!r} is not a known {cls.what}: define it with {cls.__name__}.define(name, number)"
            )
        return cast("Self", known)

    @classmethod
    def _make(cls, name: str, number: int) -> Self:
        made = int.__new__(cls, number)
        made.name = name
        return made

    @property
    def value(self) -> int:
        """The plain number, as of a member of an enum."""
        return int(self)

    def __repr__(self) -> str:
        return f"{self.name}({int(self)})"

    def __str__(self) -> str:
        return self.name

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _memo: object) -> Self:
        return self


def clash(cls: type[Numbered], name: str, number: int) -> Any:
    """Return the one that has this name and this number already, or None where both are free.

    Raises `HandlerTableError` where either belongs to another one.
    """
    same_name = next((known for known in cls if known.name == name), None)
    same_number = cls.known.get(number)
    if same_name is not same_number:
        taken = same_number if same_number is not None else same_name
        raise HandlerTableError(
            f"{cls.what} {name!r} = {number} clashes with {taken!r}: choose another name and number"
        )
    return same_number
