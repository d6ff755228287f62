"""What stands in a cell of a `HandlerTable`: a handler, or the reason why there is none."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

__all__ = [
    "EMPTY",
    "SWALLOW",
    "SWALLOWED",
    "Cell",
    "Guard",
    "Handler",
    "Ignore",
    "Never",
    "Undeclared",
    "Wrapper",
]

Handler: TypeAlias = Callable[[Any, Any], Any]
"""`handler(node, message)`: changes the node's state and queues effects; it does no I/O itself. Returns the answer."""

Wrapper: TypeAlias = Callable[[Any, Any, Handler], Any]
"""`wrapper(node, message, inner)`: calls `inner(node, message)` to run the wrapped handler. Returns the answer."""

Guard: TypeAlias = Callable[[Any, Any], bool | None]
"""`guard(node, message)`: runs before dispatch, in every state. If it returns `SWALLOW`, the message goes no further."""

SWALLOW: Final = True


@dataclass(frozen=True, slots=True)
class Ignore:
    """The message is legal here; it is counted and changes nothing."""

    because: str

    def __bool__(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Never:
    """No correct peer means such a message for this state, so no handler may ever be registered.

    It is counted and changes nothing. A late one may still come, just after a change of state; any other shows a bug.
    """

    because: str

    def __bool__(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Undeclared:
    """The cell was not declared, so `check` refuses the table."""

    because: str = "undeclared"

    def __bool__(self) -> bool:
        return False


Cell: TypeAlias = Handler | Ignore | Never | Undeclared

EMPTY: Final = (Ignore, Never, Undeclared)
"""Cells without a handler. `HandlerTable.dispatch` returns one, with the reason, where no handler has taken a message."""

SWALLOWED: Final = Ignore("a guard swallowed it")
