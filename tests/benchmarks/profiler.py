"""Where the time of a host's loop goes: cProfile around its thread, from the first function to the last.

Looking at the stacks now and then is no use here: another thread gets to look only when the loop's lets go of the
interpreter, so it would see system calls and little else. What cProfile costs is the same for each call, so many small
functions look dearer than they are; counts are exact. Times are those of the clock, waiting for the processor included.

From Python 3.12 on cProfile sees the calls of other threads as well: use 3.11 for exact figures.
"""

import cProfile
import io
import pstats
import sys
import threading
from types import FrameType
from typing import Final

_LOOP: Final = "drakkar-"
"""What the names of the loops' threads begin with."""


class LoopProfiler:
    """Profiles the next loop that is started in this process."""

    def __init__(self) -> None:
        self._profile = cProfile.Profile()

    def start(self) -> None:
        """Begin with the thread of the next loop."""
        threading.setprofile(self._enter_thread)

    def _enter_thread(self, _frame: FrameType, _event: str, _argument: object) -> None:
        """Run once in each new thread, as the profile function that `threading` gives it."""
        sys.setprofile(None)
        if threading.current_thread().name.startswith(_LOOP):
            threading.setprofile(None)  # type: ignore[arg-type]  # none for the threads that follow
            self._profile.enable()

    def report(self, top: int = 60) -> str:
        """Return what took longest, after the thread has ended."""
        text = io.StringIO()
        pstats.Stats(self._profile, stream=text).strip_dirs().sort_stats("tottime").print_stats(top)
        return text.getvalue()
