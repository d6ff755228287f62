"""Where the time goes in a host's process, thread by thread: cProfile around each thread that begins under it."""

import cProfile
import io
import pstats
import sys
import threading
from types import FrameType
from typing import Any, Final

_WAITING: Final = ("acquire", "select.epoll", "poll", "sleep")


class Profiler:
    """Profiles every thread that is started after `start`, from its first function on until it ends."""

    def __init__(self) -> None:
        self._profiles: list[tuple[str, cProfile.Profile]] = []

    def start(self) -> None:
        """Begin with the next thread."""
        threading.setprofile(self._begin)

    def _begin(self, _frame: FrameType, _event: str, _argument: object) -> None:
        """Run once in each thread, as the profile function that `threading` gave it: put the real one in its place."""
        sys.setprofile(None)
        profile = cProfile.Profile()
        self._profiles.append((threading.current_thread().name, profile))
        profile.enable()

    def report(self, top: int = 45) -> dict[str, str]:
        """Return a table for each thread, once all have ended."""
        threading.setprofile(None)
        return {name: _table(profile, top) for name, profile in self._profiles}


def _table(profile: Any, top: int) -> str:
    text = io.StringIO()
    pstats.Stats(profile, stream=text).strip_dirs().sort_stats("tottime").print_stats(top)
    return text.getvalue()
