"""What a forked child does with what it has of its parent: it lets go of files and sockets, and says so of all else.

A child has a copy of each object and each open file of its parent, and none of its threads. So nothing that is asked in
it would ever be answered, and a file, lock or socket that it keeps is held for as long as it lives. Files are closed by
their descriptors alone: a child must not unlock what it shares, and the parent's epoll, and what is asked of it, is the
parent's.

Objects that wait for threads remember the process that they were made in. All that a child makes itself works as usual.
"""

import contextlib
import logging
import os
import weakref
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self, final

from drakkar.handlers.errors import ForkedError

__all__ = ["Descriptor", "Process", "close_below", "here", "on_fork"]

logger = logging.getLogger("drakkar.actors.runtime")


@final
class Process:
    """The process that an object was made in."""

    __slots__ = ("pid",)

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def check(self, what: object) -> None:
        """Raise `ForkedError` in a process that was forked from this one; `what` is asked for."""
        if self is not here.process:
            raise self.error(what)

    def error(self, what: object) -> ForkedError:
        """Return the error for one who asks for `what` in a forked process."""
        return ForkedError(str(what), os.getpid(), self.pid)


class _Here:
    """The process that this code runs in."""

    process = Process(os.getpid())
    forks_begun = 0
    """How often this process has forked, or begun to."""


here: Final = _Here()


class Forkable(Protocol):
    """What has to let go of something in a forked child."""

    def _let_go_in_child(self) -> None:
        """Close what is open, and make locks anew, since a thread that is gone may hold them. Waits for nothing."""


_forkables: Final[weakref.WeakSet[Forkable]] = weakref.WeakSet()


def on_fork(owner: Forkable) -> None:
    """Let `owner` let go in forked children, for as long as it exists. It must be hashable. From any thread."""
    _forkables.add(owner)


_descriptors: "Final[set[Descriptor]]" = set()


@final
class Descriptor:
    """An open file of this process, which its forked children do not keep. A context manager. From any thread."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        """Take over an open file: `number` is closed by `close`, and in forked children."""
        self.number = number
        """The file descriptor; -1 when it is closed."""
        _descriptors.add(self)

    @classmethod
    def open(cls, path: str | Path, flags: int, mode: int = 0o640) -> Self:
        """Open a file, which programs that are started do not keep either. Raises `OSError`."""
        return cls(os.open(path, flags | os.O_CLOEXEC, mode))

    def duplicate(self) -> "Descriptor":
        """Return another descriptor of the same open file. Raises `OSError`."""
        return Descriptor(os.dup(self.number))

    def close(self) -> None:
        """Close it. A second call does nothing. Raises `OSError` where the file system reports an error only now."""
        number, self.number = self.number, -1
        _descriptors.discard(self)
        if number >= 0:
            os.close(number)

    def __enter__(self) -> int:
        return self.number

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_OWN_FILES: Final = Path("/proc/self/fd")


def close_below(directories: Iterable[str]) -> None:
    """Close all that is open in these directories, and they themselves, in a forked child. They are absolute, without links.

    A thread of the parent may have opened it so shortly before the fork that no `Descriptor` of it exists. On Linux only.
    """
    below = tuple(f"{directory}/" for directory in directories)
    with contextlib.suppress(FileNotFoundError):
        for link in list(_OWN_FILES.iterdir()):
            with contextlib.suppress(OSError):  # the listing itself
                if f"{link.readlink()}/".startswith(below):
                    os.close(int(link.name))


def _note_fork() -> None:
    here.forks_begun += 1


def _let_go() -> None:
    """In a child, right after the fork, in its only thread."""
    if _forkables or _descriptors:
        here.process = Process(os.getpid())
    else:
        here.process.pid = os.getpid()  # there is nothing yet that a child could mistake for its own
    for descriptor in list(_descriptors):
        with contextlib.suppress(OSError):
            descriptor.close()
    for owner in list(_forkables):
        try:
            owner._let_go_in_child()
        except Exception:
            logger.exception("a forked child could not let go of %r", owner)
        _forkables.discard(owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_note_fork, after_in_child=_let_go)
