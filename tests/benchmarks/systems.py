"""The systems that are measured, what each of them promises, and how the load reaches it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

DRAKKAR: Final = "Drakkar"
COMPILED: Final = "Drakkar, compiled"
DRAGONBOAT: Final = "dragonboat"
ETCD: Final = "etcd"
FLUSHED: Final = "PySyncObj, flushed"
UNFLUSHED: Final = "PySyncObj, not flushed"


TRIO_ACTOR: Final = "Drakkar, TrioActor"
THREADING_ACTOR: Final = "Drakkar, ThreadingActor"
ECHO: Final = "trio, an echo"
XOSCAR: Final = "xoscar"


class Unavailable(Exception):
    """Something cannot be measured on this machine; the text says what is missing, and how to get it."""


@dataclass(frozen=True, slots=True)
class System:
    """One of those that are compared."""

    module: str
    """What a host and the option `--systems` call it."""
    durability: str
    """What is true of a command that was answered."""
    in_process: bool = True
    """Whether the load is in the process of a host; if not, it comes through gRPC."""
    durable: bool = True
    """Whether each answered command must be on the disks of a majority, which the check of the flushes asks."""

    @property
    def reached(self) -> str:
        """How the load reaches it."""
        return "in process" if self.in_process else "through gRPC, from another process"


_ON_DISK: Final = "each command is on disk (fsync) on two of three hosts before it is answered"

SYSTEMS: Final[Mapping[str, System]] = {
    DRAKKAR: System("drakkar", _ON_DISK),
    COMPILED: System("drakkar-compiled", _ON_DISK),
    DRAGONBOAT: System("dragonboat", _ON_DISK),
    ETCD: System("etcd", _ON_DISK, in_process=False),
    FLUSHED: System(
        "pysyncobj",
        f"{_ON_DISK}, by the benchmark's own doing: it flushes the journal (msync) before a host sends anything; the "
        "file of term and vote is not flushed",
    ),
    UNFLUSHED: System(
        "pysyncobj",
        "as it ships: each command is in the memory map of a journal file on two of three hosts; it outlives a crash of "
        "the process, but not of the machine",
        durable=False,
    ),
}


@dataclass(frozen=True, slots=True)
class CallSystem:
    """One of those whose questions between two processes are compared."""

    module: str
    """What the option `--systems` calls it, and where it is from."""
    target: str
    """The class in `tests/benchmarks` that asks by it, after its module."""
    what: str
    """What a question is."""
    options: Mapping[str, str] = field(default_factory=dict)


CALL_SYSTEMS: Final[Mapping[str, CallSystem]] = {
    TRIO_ACTOR: CallSystem(
        "drakkar", "calls_on_drakkar:Calls", "ask() of an actor on the loop of its host", {"kind": "trio"}
    ),
    THREADING_ACTOR: CallSystem(
        "drakkar", "calls_on_drakkar:Calls", "ask() of an actor with a thread of its own", {"kind": "thread"}
    ),
    ECHO: CallSystem(
        "trio",
        "calls_on_trio:Echo",
        "as many bytes as a question of Drakkar's through a plain TCP connection, and as many as its answer back: nothing is "
        "encoded, and no actor asked",
    ),
    XOSCAR: CallSystem(
        "xoscar", "calls_on_xoscar:Calls", "a method of an actor in a pool, by a client outside of it"
    ),
}
"""All of them answer with the bytes that they were sent."""


def module_of(system: str) -> str:
    """What the option `--systems` calls a system, of either kind."""
    return (SYSTEMS.get(system) or CALL_SYSTEMS[system]).module
