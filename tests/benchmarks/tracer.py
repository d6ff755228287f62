"""When a commit passes which place: moments that a host notes while a load runs, by wrappers around the library's methods.

Nothing of this is in the library: the wrappers are put on before the host starts. A wrapper costs half a
microsecond, and a commit meets some thirty of them, so that all is told about a twentieth too late. Moments
are nanoseconds of the system's monotonic clock, which all processes of a machine share.
"""

import functools
import importlib
import json
from collections.abc import Callable
from time import monotonic_ns
from typing import Any, Final

Moments = list[tuple[int, str]]

PLACES: Final = {
    "propose": "tests.benchmarks.on_drakkar:DrakkarTarget.propose_and_wait",
    "put": "drakkar.actors.host.replica:Replica.propose",
    "turn": "drakkar.actors.node.actor:NodeActor._actor_take_turn",
    "step": "drakkar.handlers.raft.raft:Raft.step",
    "ready": "drakkar.handlers.raft.raft:Raft.ready",
    "order": "drakkar.actors.log.store:LogStore.save",
    "record": "drakkar.actors.log.store:LogStore._write",
    "flush": "drakkar.actors.log.driver:LoopDriver.flush",
    "flushed": "drakkar.actors.log.store:LogStore._on_flushed",
    "deliver": "drakkar.actors.host.services:NodeInputs.deliver",
    "answer": "drakkar.actors.node.proposals:PendingProposals.applied",
    "send": "drakkar.transport.tcp:TcpTransport.send",
    "read": "os:read",
    "write": "os:write",
}
"""Where moments are noted: "<name>" as a method is entered, and "/<name>" as it is left. A step is named by
its message."""


def find(place: str) -> tuple[Any, str]:
    """The owner of a method of `PLACES`, and the method's name."""
    module, _, path = place.partition(":")
    *owners, attribute = path.split(".")
    return functools.reduce(getattr, owners, importlib.import_module(module)), attribute


class Tracer:
    """Notes moments from `start` on. Its report is for `journey`."""

    def __init__(self) -> None:
        self._moments: Moments = []

    def start(self) -> None:
        """Put the wrappers on. Call it once in a process, before the host is made."""
        for name, place in PLACES.items():
            owner, attribute = find(place)
            wrap = self._wrapped_step if name == "step" else functools.partial(self._wrapped, name)
            setattr(owner, attribute, wrap(getattr(owner, attribute)))

    def report(self) -> str:
        """What was noted, as JSON."""
        return json.dumps(self._moments)

    def _wrapped(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        note, entered, left = self._moments.append, name, f"/{name}"

        @functools.wraps(method)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            note((monotonic_ns(), entered))
            try:
                return method(*args, **kwargs)
            finally:
                note((monotonic_ns(), left))

        return wrapper

    def _wrapped_step(self, method: Callable[..., Any]) -> Callable[..., Any]:
        note = self._moments.append

        @functools.wraps(method)
        def step(raft: Any, message: Any, life: Any = None) -> Any:
            note((monotonic_ns(), message.type.name))
            answer = method(raft, message, life)
            note((monotonic_ns(), f"/{message.type.name}"))
            return answer

        return step


def read_moments(report: str) -> Moments:
    """What a `Tracer` reported, in order."""
    return sorted((moment, name) for moment, name in json.loads(report))
