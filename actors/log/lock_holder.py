"""Which process holds a lock, for the error of the one that does not get it."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["describe_holder"]

_PROCESSES: Final = Path("/proc")
_MAX_COMMAND: Final = 100
"""Characters of a command that are shown."""


def describe_holder(path: Path) -> str:
    """Name a living process that has the file at `path` open, and its command, as far as this user may know.

    The caller must not have it open for its own try.

    The file may hold the number of the process that locked it last. That one may have ended: a lock is held as long as
    any process has the open file, so also by children that it left behind.
    """
    signed = _signed(path)
    holder = _one_that_has_open(path, signed) or (signed if _may_hold(signed) else 0)
    if holder == os.getpid():
        return f"process {holder}, which is this one"
    if holder:
        return f"process {holder}{_command(holder)}"
    return "a process of another user, machine or container"


def _one_that_has_open(path: Path, first: int) -> int:
    """Return the number of a process that has the file open, `first` if that has; 0 if none can be found."""
    with suppress(OSError):
        wanted = path.stat()
        numbers = sorted(int(entry.name) for entry in _PROCESSES.iterdir() if entry.name.isdigit())
        for number in sorted(numbers, key=lambda each: each != first):
            if _has_open(number, wanted):
                return number
    return 0


def _has_open(number: int, wanted: os.stat_result) -> bool:
    with suppress(OSError):  # it has ended, or is another user's
        for link in (_PROCESSES / str(number) / "fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                found = link.stat()
                if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                    return True
    return False


def _signed(path: Path) -> int:
    """Return the number of the process that the file names; 0 if it names none."""
    with suppress(OSError, ValueError):
        return int(path.read_bytes()[:32])
    return 0


def _may_hold(number: int) -> bool:
    """Return whether a process lives, and what it has open cannot be known: another user's, or on a system without /proc."""
    if not number:
        return False
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return not _PROCESSES.is_dir()


def _command(number: int) -> str:
    """Return the command of a process in parentheses; empty if it cannot be read."""
    with suppress(OSError):
        words = (_PROCESSES / str(number) / "cmdline").read_bytes().replace(b"\0", b" ")
        command = " ".join(words.decode(errors="replace").split())
        if command:
            return f" ({command[:_MAX_COMMAND]}{'…' if len(command) > _MAX_COMMAND else ''})"
    return ""
