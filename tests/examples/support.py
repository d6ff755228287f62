"""A Python program as a person has it in a terminal: what it says, line by line, and what is typed into it."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from tests.actors.support import TIMEOUT_S
from tests.ports import free_addresses

ROOT = Path(__file__).parents[2]


class Program:
    """A process of its own."""

    def __init__(self, log, *arguments, cwd=ROOT):
        """`arguments` are those of Python; `log` is the file that its errors go to."""
        self._log = log
        with log.open("a") as errors:
            self._process = subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                cwd=cwd,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.said = []
        self._silent = False
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self._process.stdout:
            with self._more:
                self.said.append(line.rstrip("\n"))
                self._more.notify_all()
        with self._more:
            self._silent = True
            self._more.notify_all()

    @property
    def complaints(self):
        """What it has written to its standard error."""
        return self._log.read_text(errors="replace")

    def wait_for(self, words, *, since=0, timeout=3 * TIMEOUT_S):
        """Return the first line with these words, of those that came after the first `since`."""

        def found():
            return next((line for line in self.said[since:] if words in line), None)

        with self._more:
            self._more.wait_for(lambda: self._silent or found() is not None, timeout)
            line = found()
        assert line is not None, f"{words!r} was not said, but {self.said[since:]}; errors: {self.complaints}"
        return line

    def type(self, line):
        """Type a line, and return how many lines it had said before."""
        said = len(self.said)
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return said

    def ask(self, line, words=""):
        """Type a line, and return the next one with these words that it says."""
        return self.wait_for(words, since=self.type(line))

    def kill(self):
        """As `kill -9` does. What it has said until then is read to its end."""
        self._process.kill()
        self._process.wait(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)

    def send(self, number):
        """Send a signal."""
        self._process.send_signal(number)

    def end(self, *, interrupt=False):
        """Press Ctrl-D, or Ctrl-C; return its status and all that it has complained about."""
        if interrupt:
            self._process.send_signal(signal.SIGINT)
        else:
            self._process.stdin.close()
        status = self._process.wait(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)
        return status, self.complaints

    def clean_up(self):
        """Leave nothing behind, also where a test has killed or paused it."""
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGCONT)
            self.kill()
        self._reader.join(TIMEOUT_S)
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # what was typed last was not read
                pipe.close()


class Five:
    """The programs of an example that runs on five hosts, each of which is called by its number."""

    def __init__(self, run, module):
        self._run, self._module, self._hosts = run, module, free_addresses(5)
        self.programs = {}
        for number in range(1, 6):
            self.start(number)

    def __getitem__(self, number):
        return self.programs[number]

    def start(self, number):
        self.programs[number] = self._run(self._module, number, "--hosts", *self._hosts)
        return self.programs[number]
