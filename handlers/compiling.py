"""What a compiler must be told of a class. Where the sources are interpreted, it means nothing."""

from typing import TYPE_CHECKING, Any

__all__ = ["mypyc_attr"]

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr
else:
    # mypyc knows its decorator by name when it compiles a module, and needs none when that runs: so nobody
    # who installs the library needs the package.
    def mypyc_attr(**_: Any) -> Any:
        """Return a decorator that returns its class."""
        return lambda class_: class_
