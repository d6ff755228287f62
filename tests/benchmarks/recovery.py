"""How a client finds out that its commands are answered again, after the leader's process was killed."""

import threading
import time
from typing import Final

from tests.benchmarks.load import Load, LoadError, Target

PROBE_EVERY_S: Final = 0.01


def recover(target: Target, within: float) -> None:
    """Propose a command every few milliseconds, without waiting for those before, until one is answered.

    Raises `LoadError` if none is within so many seconds. Commands may fail meanwhile: there may be no leader.
    """
    probe = Load(1, within).command
    answered = threading.Event()

    def done(error: BaseException | None) -> None:
        if error is None:
            answered.set()

    until = time.monotonic() + within
    while time.monotonic() < until:
        target.propose([probe], done)
        if answered.wait(PROBE_EVERY_S):
            return
    raise LoadError(f"no command was answered within {within:g} s")
