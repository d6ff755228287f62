"""Actors, and ways to hold one up, for the tests of the runtime."""

import threading
import time
from collections import deque
from random import Random

from drakkar.actors.runtime.actor import TrioActor

TIMEOUT_S = 10  # seconds after which a test is stuck


class TroubleError(Exception):
    pass


def wait_until(condition):
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        threading.Event().wait(0.001)


class Ref:
    """What those use of a ref who decide what is to be done with it."""

    actor_class = object

    def __init__(self, name, number):
        self.actor_urn = f"{name}{number}"
        self.alive = True

    def __repr__(self):
        return self.actor_urn

    def is_alive(self):
        return self.alive


class Latest(Random):
    """Cuts no wait."""

    def uniform(self, a, b):
        return b


class Echo(TrioActor):
    def on_receive(self, message):
        return message


class Recorder(TrioActor):
    """Writes down what it is told, in a list that the test holds."""

    def __init__(self, seen, **kwargs):
        super().__init__(**kwargs)
        self._seen = seen

    def on_receive(self, message):
        self._seen.append(message)
        return len(self._seen)


class Gate:
    """Something a handler can be held up at, on purpose: it blocks the whole loop."""

    def __init__(self):
        self.reached, self.opened = threading.Event(), threading.Event()

    def pass_through(self):
        self.reached.set()
        assert self.opened.wait(TIMEOUT_S)


class Held(Echo):
    def on_receive(self, message):
        if isinstance(message, Gate):
            message.pass_through()
        return message


class Meddled(deque):
    """A queue into which another thread puts something at the very moment that it is found empty."""

    def __init__(self, meddle):
        super().__init__()
        self.meddle = [meddle]

    def __bool__(self):
        empty = len(self) == 0
        if empty and self.meddle:
            self.meddle.pop()()
        return not empty
