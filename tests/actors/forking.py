"""Run a part of a test in a forked child."""

import contextlib
import json
import os
import signal
import traceback
from pathlib import Path

BOUND_S = 60


def in_child(function):
    """Fork, call the function in the child, and return what it returned, of JSON's types. Its error fails the test."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            signal.alarm(BOUND_S)
            answer = {"value": function()}
        except BaseException:  # noqa: BLE001  # the child must not go on as the test
            answer = {"error": traceback.format_exc()}
        with os.fdopen(write, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    answer = json.loads(text or '{"error": "the child did not answer"}')
    assert "error" not in answer, answer["error"]
    return answer["value"]


def told(*calls):
    """What each call raised, by the names of the errors; None where it returned."""

    def outcome(call):
        try:
            call()
        except Exception as error:  # noqa: BLE001  # it is the outcome
            return type(error).__name__
        return None

    return [outcome(call) for call in calls]


def open_files():
    """What this process has open, by descriptor."""
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing itself
            found[link.name] = str(link.readlink())
    return found
