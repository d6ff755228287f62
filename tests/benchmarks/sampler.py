"""Where the time goes in a host's process, thread by thread, by looking at all stacks a thousand times a second.

Nothing is put into what is measured, so the proportions are right, other than those that `cProfile` gives for a
million small functions. A function written in C is not seen: its time is that of the line that calls it. Waiting is
seen as well: the line on which an idle thread sleeps is at the top of that thread's list.
"""

import sys
import threading
from collections import Counter
from types import CodeType, FrameType
from typing import Final

_INTERVAL: Final = 0.001

_SWITCH_INTERVAL: Final = 0.0005
"""Seconds after which a busy thread lets the sampler look. By default it is five milliseconds, and most of the looks
would then fall on lines that wait for the system."""


class Sampler:
    """Samples all threads but its own between `start` and `stop`."""

    def __init__(self) -> None:
        self.looks = 0
        """How often all threads were looked at."""
        self._threads: dict[str, _Samples] = {}
        self._patience = sys.getswitchinterval()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="sampler", daemon=True)

    def start(self) -> None:
        """Begin."""
        sys.setswitchinterval(_SWITCH_INTERVAL)
        self._thread.start()

    def stop(self) -> None:
        """End, and leave the interpreter as it was."""
        self._stop.set()
        self._thread.join()
        sys.setswitchinterval(self._patience)

    def report(self, top: int = 40) -> dict[str, str]:
        """Return a table for each thread, after `stop`."""
        return {name: samples.table(top) for name, samples in self._threads.items()}

    def _sample(self) -> None:
        while not self._stop.wait(_INTERVAL):
            names = {thread.ident: thread.name for thread in threading.enumerate()}
            for ident, frame in sys._current_frames().items():
                if ident in names and ident != threading.get_ident():
                    self._threads.setdefault(names[ident], _Samples()).add(frame)
            self.looks += 1


class _Samples:
    """How often each line was the one being run, and each function one of those that were."""

    def __init__(self) -> None:
        self._total = 0
        self._lines: Counter[tuple[CodeType, int]] = Counter()
        self._own: Counter[CodeType] = Counter()
        self._with_callees: Counter[CodeType] = Counter()

    def add(self, frame: FrameType) -> None:
        self._total += 1
        self._lines[frame.f_code, frame.f_lineno] += 1
        self._own[frame.f_code] += 1
        codes = set()
        caller: FrameType | None = frame
        while caller is not None:
            codes.add(caller.f_code)
            caller = caller.f_back
        self._with_callees.update(codes)

    def table(self, top: int) -> str:
        """The functions that took most, by themselves and with what they call, and the line that took most in each."""
        rows = [f"{self._total} samples", "   own    with callees   function, and its costliest line"]
        busiest = sorted(
            self._with_callees, key=lambda code: -max(self._own[code], self._with_callees[code] / 4)
        )
        for code in busiest[:top]:
            own, whole = (100 * count[code] / self._total for count in (self._own, self._with_callees))
            lines = [(count, line) for (its, line), count in self._lines.items() if its is code]
            line = max(lines)[1] if lines else code.co_firstlineno
            rows.append(f"{own:5.1f}%  {whole:5.1f}%   {code.co_qualname}  {_place(code)}:{line}")
        return "\n".join(rows)


def _place(code: CodeType) -> str:
    return "/".join(code.co_filename.split("/")[-2:])
