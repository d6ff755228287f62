"""Hosts in network namespaces of their own, joined by bridges, and cut off from one another by their links.

Everything is in namespaces, the bridges too, so the machine's own network has no part in it, and nothing is left once
they are deleted. Their names begin with the number of the process that made them: leftovers of one that was killed are
known by that, and removed.
"""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

PREFIX = "drakkar-test-"
PORT = 7000


def why_not():
    """What keeps this machine from having them; None where nothing does."""
    if sys.platform != "linux":
        return f"network namespaces are Linux's, and this is {sys.platform}"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    if shutil.which("ip") is None:
        return "there is no `ip` command: install iproute2"
    probe = f"{PREFIX}{os.getpid()}-probe"
    try:
        ip("netns", "add", probe)
        try:
            ip("-netns", probe, "link", "add", "main", "type", "bridge")
            ip("-netns", probe, "link", "add", "one", "type", "veth", "peer", "name", "two")
        finally:
            ip("netns", "delete", probe)
    except RefusedError as error:
        return f"this machine does not let root have them: {error}"
    return None


class RefusedError(Exception):
    """The `ip` command failed."""


def ip(*words):
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise RefusedError(f"`ip {' '.join(words)}` says: {done.stderr.strip() or done.returncode}")
    return done.stdout


class Network:
    """A namespace for each number, with a link to a bridge in one more. A context manager; for one thread.

    There is a second bridge, an island: hosts that are linked to it reach only one another.
    """

    def __init__(self, numbers):
        self._mine = f"{PREFIX}{os.getpid()}-"
        self._hub = f"{self._mine}hub"
        self._numbers = list(numbers)

    def __enter__(self):
        sweep()
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for name in names():
            if name.startswith(self._mine):
                ip("netns", "delete", name)

    def address(self, number):
        return f"10.0.0.{number}:{PORT}"

    def within(self, number):
        """The command that starts another one in a namespace, and becomes it."""
        return ("ip", "netns", "exec", f"{self._mine}{number}")

    @contextmanager
    def cut(self, numbers):
        """Take links down, so that each of these reaches no other host."""
        for number in numbers:
            self._in_hub("link", "set", _link(number), "down")
        yield
        for number in numbers:
            self._in_hub("link", "set", _link(number), "up")

    @contextmanager
    def split(self, numbers):
        """Move these to the island: they have one another left, and the others have one another."""
        for number in numbers:
            self._in_hub("link", "set", _link(number), "master", "island")
        yield
        for number in numbers:
            self._in_hub("link", "set", _link(number), "master", "main")

    def _build(self):
        ip("netns", "add", self._hub)
        for bridge in ("main", "island"):
            self._in_hub("link", "add", bridge, "type", "bridge")
            self._in_hub("link", "set", bridge, "up")
        for number in self._numbers:
            self._join(number)

    def _join(self, number):
        home = f"{self._mine}{number}"
        ip("netns", "add", home)
        self._in_hub("link", "add", _link(number), "type", "veth", "peer", "name", "eth0", "netns", home)
        self._in_hub("link", "set", _link(number), "master", "main", "up")
        host, _ = self.address(number).split(":")
        ip("-netns", home, "address", "add", f"{host}/24", "dev", "eth0")
        ip("-netns", home, "link", "set", "lo", "up")
        ip("-netns", home, "link", "set", "eth0", "up")

    def _in_hub(self, *words):
        ip("-netns", self._hub, *words)


def _link(number):
    """The end at the bridge."""
    return f"host{number}"


def names():
    """All namespaces that this or another test run has made."""
    every = [line.split()[0] for line in ip("netns", "list").splitlines() if line.strip()]
    return [name for name in every if name.startswith(PREFIX)]


def sweep():
    """Delete what a test run left behind that was killed."""
    for name in names():
        maker = name.removeprefix(PREFIX).split("-")[0]
        if not Path("/proc", maker).exists():
            ip("netns", "delete", name)
