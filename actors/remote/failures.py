"""Exceptions that travel between hosts: of the same type where it is registered, else as a `RemoteError`.

What travels is the name of the type, the text, the text of the traceback, and the arguments of an exception whose type is
registered. On the other side the exception is made of its arguments. Its text comes from there anew; what it was is in the
text of the traceback, which is a note of the exception that is made.
"""

import traceback
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

import pykka
from drakkar.actors.remote.registry import Registry, place_of
from drakkar.actors.remote.values import Refs, ValueRefused, pack, unpack
from drakkar.actors.runtime.futures import in_full
from drakkar.actors.runtime.monitor import ActorCrashed
from drakkar.handlers import errors
from drakkar.handlers.errors import ConfigError, DrakkarError

__all__ = [
    "MAX_ARGS_BYTES",
    "MAX_TEXT",
    "MAX_TRACEBACK",
    "MAX_TYPE",
    "Failure",
    "RemoteError",
    "decode_failure",
    "encode_failure",
    "failure",
]

MAX_TYPE: Final = 200
"""Characters of the name of a type."""
MAX_TEXT: Final = 10_000
"""Characters of the text of an exception; what is longer loses its end."""
MAX_TRACEBACK: Final = 20_000
"""Characters of the text of a traceback; what is longer loses its beginning."""
MAX_ARGS_BYTES: Final = 64 << 10
"""Bytes of the arguments; an exception that has more becomes a `RemoteError`."""
_FRAMES: Final = 50
"""Innermost frames of each traceback."""
_MAX_SAID: Final = 300
"""Characters of what a constructor says of its failure."""

E = TypeVar("E", bound=type[Exception])


class RemoteError(DrakkarError):
    """An actor on another host answered with an exception whose type is not registered on both hosts, or cannot be made here.

    `type` is the name of that type, such as "bank.Overdrawn", `text` what the exception said, and `traceback` the text of
    its traceback on that host. What the actor did before is unknown. Decorate the class with `@failure("a.name")` on both
    hosts, and it comes back as what it was.
    """

    outcome_known = False

    def __init__(self, type: str, text: str, traceback: str = "") -> None:  # noqa: A002  # it is called so in the docs
        super().__init__(type, text, traceback)
        self.type, self.text, self.traceback = type, text, traceback

    def __str__(self) -> str:
        return f"{self.type}: {self.text}" if self.text else self.type


class Failure(NamedTuple):
    """An exception, as it travels."""

    type: str
    """The name under which its class is registered, or that of the class."""
    text: str
    traceback: str
    """The text of its traceback; "" if there is none."""
    args: bytes | None
    """Its packed arguments; None if the class is not registered, or if they cannot be sent."""


class _FailureClass(NamedTuple):
    """A registered class of exceptions."""

    name: str
    cls: type[Exception]


_FAILURES: Final[Registry[_FailureClass]] = Registry("@failure", "bank.overdrawn")


def failure(name: str) -> Callable[[E], E]:
    """Let exceptions of a class come back to an asker on another host as what they are, under `name`.

        @failure("bank.overdrawn")
        class Overdrawn(Exception):
            def __init__(self, account: str, missing: int) -> None:
                super().__init__(account, missing)  # all arguments, since the other host makes it of `args`
                self.account, self.missing = account, missing

    The other host makes the exception by `cls(*error.args)`, in the thread of its loop. If that fails there, or if the
    arguments are no values that can be sent, or more than 64 KiB, the asker gets a `RemoteError`. It counts exactly this
    class: a subclass needs a name of its own. The common exceptions of Python and pykka, and all of this package, are
    registered.

    Raises `ConfigError` for a name that is empty, longer than 100 characters, not printable or taken by another class, and
    for what is no subclass of `Exception`.
    """
    _FAILURES.check_name(name)

    def register(cls: E) -> E:
        if not (isinstance(cls, type) and issubclass(cls, Exception)):
            raise ConfigError("class", cls, "is no subclass of Exception: @failure is for what actors raise")
        _FAILURES.add(_FailureClass(name, cls))
        return cls

    return register


def encode_failure(error: BaseException, refs: Refs, *, traced: bool = True) -> Failure:
    """Return an exception as it travels. Never raises, even where the exception's own methods do. From any thread.

    `traced`: with the text of its traceback, which takes some 0.1 ms to make.
    """
    cls = type(error)
    registered = _FAILURES.by_class.get(cls)
    return Failure(
        _sendable(registered.name if registered else place_of(cls))[:MAX_TYPE],
        _sendable(_text(error))[:MAX_TEXT],
        _sendable(_traceback(error))[-MAX_TRACEBACK:] if traced else "",
        _args(error, refs) if registered else None,
    )


def decode_failure(failed: Failure, refs: Refs, *, handled: bool = False) -> Exception:
    """Return the exception, to be raised here. It may come from a hostile host; nothing that it holds makes this raise.

    `handled`: an actor has handled the message that it answers. So its `outcome_known` is False: what the actor did before is
    unknown, also where it was told of something else that this had surely no effect.
    """
    remote = RemoteError(failed.type, failed.text, failed.traceback)
    registered = _FAILURES.by_name.get(failed.type)
    if registered is not None and failed.args is not None:
        try:
            return _noted(_made(registered.cls, failed.args, refs, handled=handled), failed)
        except (Exception, SystemExit) as fault:  # noqa: BLE001 - of a constructor of users
            remote.add_note(
                f"It is no {place_of(registered.cls)}, since that cannot be made here: {in_full(fault):.{_MAX_SAID}}"
            )
    return _noted(remote, failed)


def _made(cls: type[Exception], args: bytes, refs: Refs, *, handled: bool) -> Exception:
    values = unpack(args, refs, what="args")
    if type(values) is not list:
        raise ValueRefused("args", "is no list", "send the arguments of the exception")
    error = cls(*values)
    if not isinstance(error, cls):  # a `__new__` may return anything
        raise TypeError(f"its class made a {place_of(type(error))}")
    if handled and isinstance(error, DrakkarError):
        error.outcome_known = False
    return error


def _noted(error: Exception, failed: Failure) -> Exception:
    if failed.traceback:
        error.add_note(f"On the other host:\n{failed.traceback}")
    return error


def _args(error: BaseException, refs: Refs) -> bytes | None:
    try:
        return pack(list(error.args), refs, what="args", limit=MAX_ARGS_BYTES)
    except Exception:  # noqa: BLE001  # `args` may be a property of users
        return None


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as fault:  # noqa: BLE001  # that of a class of users
        return f"its text cannot be read, since that raised a {place_of(type(fault))}"


def _traceback(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error, limit=-_FRAMES))
    except Exception:  # noqa: BLE001  # it asks classes of users for texts
        return ""


def _sendable(text: str) -> str:
    """Return a text that UTF-8 can encode: half a surrogate pair is written as its number."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


_BUILT_IN: Final[tuple[type[Exception], ...]] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    Exception,
    FloatingPointError,
    IndexError,
    KeyError,
    LookupError,
    NameError,
    NotImplementedError,
    OverflowError,
    PermissionError,
    RuntimeError,
    TimeoutError,
    TypeError,
    ValueError,
    ZeroDivisionError,
)
"""Those that applications raise themselves. What tells of the memory, the files and the connections of a host comes as a
`RemoteError`, so that an asker does not take it for its own."""

for _cls in _BUILT_IN:
    failure(_cls.__name__)(_cls)
for _cls in (pykka.ActorDeadError, pykka.Timeout):
    failure(f"pykka.{_cls.__name__}")(_cls)
for _cls in (*(getattr(errors, name) for name in errors.__all__), ActorCrashed, RemoteError, ValueRefused):
    failure(f"drakkar.{_cls.__name__}")(_cls)
