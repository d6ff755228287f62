"""What a host remembers of the runs of others, written without holding up the loop."""

from collections.abc import Mapping
from pathlib import Path

import trio
from drakkar.actors.log.disk_errors import explain
from drakkar.actors.log.runs_file import write_known_runs
from drakkar.actors.runtime.log_lines import Lines
from drakkar.actors.runtime.loop import TrioLoop

__all__ = ["KnownRuns"]


class KnownRuns:
    """Writes the runs of other hosts into the data directory. For the loop's thread.

    A crash may lose the last of them: a copy of a host is then recognized later.
    """

    def __init__(self, directory: Path, loop: TrioLoop, lines: Lines) -> None:
        self._directory, self._loop, self._lines = directory, loop, lines
        self._due: Mapping[str, tuple[int, int, str]] | None = None
        self._writing = False

    def save(self, runs: Mapping[str, tuple[int, int, str]]) -> None:
        """Have these written soon, in place of what was there."""
        self._due = runs
        if not self._writing:
            self._writing = True
            self._loop.spawn(self._write, name="known runs")

    async def _write(self) -> None:
        try:
            while self._due is not None:
                runs, self._due = self._due, None
                # Not cancelled midway: the data directory is not released before it is done.
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(write_known_runs, self._directory, runs)
        except OSError as error:
            self._lines.warning("cannot write which runs of other hosts it has heard of: %s", explain(error))
        finally:
            self._writing = False
