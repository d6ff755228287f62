"""Classes that are registered by name, since only these are ever made of what another host sends."""

from typing import Any, Final, Generic, Protocol, TypeVar

from drakkar.handlers.errors import ConfigError

__all__ = ["MAX_NAME", "Registered", "Registry", "place_of"]

MAX_NAME: Final = 100
"""Characters of a name."""


class Registered(Protocol):
    """What a registry knows of a class."""

    @property
    def name(self) -> str:
        """The name under which hosts speak of the class."""

    @property
    def cls(self) -> type[Any]:
        """The class itself."""


R = TypeVar("R", bound=Registered)


class Registry(Generic[R]):
    """Names of classes, for the whole process. Modules fill it when they are imported, from any thread.

    A class whose module is imported anew takes the place of the old one. What was made of the old one can still be sent.
    """

    def __init__(self, decorator: str, example: str) -> None:
        """`decorator` and `example` are for error texts: "@message" and "bank.deposit"."""
        self._decorator, self._example = decorator, example
        self.by_name: Final[dict[str, R]] = {}
        self.by_class: Final[dict[type[Any], R]] = {}

    def check_name(self, name: object) -> None:
        """Raise `ConfigError` unless `name` can be the name of a class."""
        if not isinstance(name, str):
            raise ConfigError(
                "name", name, f'must be a string in parentheses: write {self._decorator}("{self._example}")'
            )
        if not name or not name.isprintable():
            raise ConfigError("name", name, f'must be printable and not empty, for example "{self._example}"')
        if len(name) > MAX_NAME:
            raise ConfigError(
                "name", f"{name[:20]}…", f"has {len(name)} characters, and {MAX_NAME} are allowed"
            )

    def add(self, new: R) -> None:
        """Register a class. Raises `ConfigError` if its name belongs to another class, or if it has another name."""
        same_class = self.by_class.get(new.cls)
        if same_class is not None and same_class.name != new.name:
            raise ConfigError(
                "name",
                new.name,
                f"{place_of(new.cls)} has the name {same_class.name!r}: give it one name only",
            )
        same_name = self.by_name.get(new.name)
        if same_name is not None and place_of(same_name.cls) != place_of(new.cls):
            raise ConfigError(
                "name",
                new.name,
                f"is the name of {place_of(same_name.cls)}: choose another one for {place_of(new.cls)}",
            )
        self.by_name[new.name] = self.by_class[new.cls] = new


def place_of(cls: type[Any]) -> str:
    """Return module and name of a class: "bank.Deposit"; of one that is built in, the name alone."""
    module = "" if cls.__module__ == "builtins" else f"{cls.__module__}."
    return f"{module}{cls.__qualname__}"
