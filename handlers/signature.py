"""Check the signature of a function that is registered in a table, and name the function in error texts."""

import inspect
import reprlib
from functools import partial
from typing import Any, Final

__all__ = ["fault_in", "where"]

_NEVER_RUNS: Final = {
    inspect.iscoroutinefunction: "is async, so calling it would not run it: write it with `def`",
    inspect.isasyncgenfunction: "is an async generator, so calling it would not run it: write it with `def`, without `yield`",
    inspect.isgeneratorfunction: "is a generator, so calling it would not run it: write it without `yield`",
}


def fault_in(function: Any, form: str) -> str | None:
    """Return a text that says why `function` cannot be called as `form`, or None if it can.

    `form` is for example "guard(node, message)". The parameters may have other names, have defaults, or be `*args`. A
    built-in function whose signature is unknown passes.
    """
    if not callable(function):
        return f"{reprlib.repr(function)} is not a function: pass one that looks like {form}"
    for never_runs, because in _NEVER_RUNS.items():
        if never_runs(function) or never_runs(_called(function)):
            return f"{where(function)} {because}, as {form}"
    try:
        # For a decorated function, the signature of the wrapper counts, since the wrapper is what is called.
        signature = inspect.signature(function, follow_wrapped=False)
    except (ValueError, TypeError):
        return None
    try:
        signature.bind(*filter(None, form.partition("(")[2].rstrip(")").split(", ")))
    except TypeError:
        return f"{where(function)} takes {signature}, but it is called as {form}"
    return None


def where(function: Any) -> str:
    """Name a function and the line where it is defined: "count (audit.handlers:12)"."""
    called = _called(function)
    code = getattr(called, "__code__", None)
    module = getattr(called, "__module__", None) or "built in"
    return f"{called.__qualname__} ({module}{f':{code.co_firstlineno}' if code else ''})"


def _called(function: Any) -> Any:
    """Return the function that runs in the end: unwrap partials and objects with a `__call__`."""
    while isinstance(function, partial):
        function = function.func
    return function if inspect.isroutine(function) or inspect.isclass(function) else type(function).__call__
