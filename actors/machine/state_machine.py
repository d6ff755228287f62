"""The three kinds of state machines that an application may write.

|                          | state    | while a snapshot is written | after a restart                        |
|--------------------------|----------|-----------------------------|----------------------------------------|
| `StateMachine`           | memory   | commands wait to be applied | newest snapshot, then the log after it |
| `ConcurrentStateMachine` | memory   | commands are applied        | the same                               |
| `DiskStateMachine`       | own disk | commands are applied        | it goes on where it was                |

In all three cases proposals are taken, logged and committed while a snapshot is written.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, ClassVar, Final

from drakkar.actors.runtime.futures import brief
from drakkar.handlers.errors import ConfigError, Refused
from drakkar.handlers.signature import fault_in

__all__ = [
    "ConcurrentStateMachine",
    "DiskStateMachine",
    "StateMachine",
    "make_machine",
    "refusal",
    "type_name",
]

MAX_REFUSAL_CHARS: Final = 4096
"""What is kept of the text of a `Refused`. The replicas of a shard must agree on it, since sessions keep the text."""


def refusal(error: Refused) -> Refused:
    """Return a refusal as all replicas keep it: its text alone, which any encoding takes.

    Without a traceback, which would keep the state machine in memory.
    """
    return Refused(str(error)[:MAX_REFUSAL_CHARS].encode("utf-8", "backslashreplace").decode())


class StateMachine:
    """The application's state, changed by commands that every replica applies in the same order (thesis §2.1).

    `apply` must depend on the state and the command alone: no clock, no random numbers, no I/O whose result differs
    between hosts. Refuse a command that is merely wrong with `Refused`. Any other exception in `apply` stops this
    replica, and every other one when it comes to that entry.

    No method may wait for a future of its own shard, which cannot be set before the method returns: that raises
    `DeadlockError` at once. A method that runs on a worker may wait for other shards of its host, unless they wait for
    each other in a circle, or no worker would be left to do their work: that raises `DeadlockError` too.

    The methods are called one at a time, in order. They run on a worker thread, so they may take their time. With
    `blocks = False` they run on the host's loop, which saves two changes of thread a batch; then they must not wait for
    anything, nor compute for more than about a millisecond. `save` and `load` always run on a worker, and commands wait
    meanwhile.
    """

    blocks: ClassVar[bool] = True
    """Whether `apply` or `query` may take long. False promises that neither does, and so runs them on the loop."""

    recorded_name: ClassVar[str] = ""
    """The name that is recorded with a replica at its first start, and compared at each start; by default that of the class.

    When you rename the class, set it to the old name. State machines with the same recorded name must understand each
    other's commands and snapshots.
    """

    def apply(self, command: bytes) -> Any:
        """Change the state by one committed command, and return the result for its proposer.

        `raise Refused("why")` fails the proposer's future with that error, on whichever replica it was proposed, and
        changes nothing else. Raise it before you change the state: what was changed stays changed, on every replica.

        The result of a command of a client session is kept and is part of every snapshot. If it is not made of values
        that CBOR encodes without tags, a retry learns only that the command was applied.
        """
        raise NotImplementedError(f"{type(self).__name__} must define apply(self, command)")

    def apply_many(self, commands: Sequence[bytes]) -> Sequence[Any]:
        """Apply a batch, in order; return one result for each. Override it if a batch is cheaper than its commands.

        The result of a command that is refused is a `Refused`: to raise it would not say which command is meant.
        """
        results = []
        for command in commands:
            try:
                results.append(self.apply(command))
            except Refused as error:
                results.append(refusal(error))
        return results

    def query(self, query: Any) -> Any:
        """Answer a question about the state, without changing it. An exception goes to the caller of the query."""
        raise NotImplementedError(f"{type(self).__name__} must define query(self, query)")

    def save(self, sink: BinaryIO) -> None:
        """Write the whole state, after the last command applied. An exception makes this snapshot fail, and no more."""
        raise NotImplementedError(f"{type(self).__name__} must define save(self, sink)")

    def load(self, source: BinaryIO) -> None:
        """Replace the whole state by one that `save` wrote. An exception stops this replica."""
        raise NotImplementedError(f"{type(self).__name__} must define load(self, source)")


class ConcurrentStateMachine(StateMachine):
    """A state machine that applies commands while a snapshot is written.

    It can fix its state quickly, by a persistent data structure, for example, or a read transaction of a database.
    """

    def capture(self) -> Callable[[BinaryIO], None]:
        """Fix the state as it is now, and return a function that writes it. Must be quick, since commands wait.

        The function is called once, with the sink, on another thread and at the same time as `apply` and `query`. It
        must write the state of the moment of `capture`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define capture(self)")

    def save(self, sink: BinaryIO) -> None:
        """Write the whole state, after the last command applied."""
        self.capture()(sink)


class DiskStateMachine(ConcurrentStateMachine):
    """A state machine that keeps its state in a database or files of its own, with the index up to which it applied.

    It is given commands with their indexes, by `apply_entries`. The changes must become durable together with the last
    index, or not at all; they need not be durable before `sync` returns. After a crash it is given again the commands
    that it does not remember, and no others.

    Client sessions are refused, since their table would have to be stored with the state. A command that is proposed
    twice has two indexes: let commands carry an id of their own if that matters.
    """

    def open(self) -> int:
        """Open the state; return the last index that it holds, 0 if it is empty. Called before any other method."""
        raise NotImplementedError(f"{type(self).__name__} must define open(self)")

    def apply_entries(self, entries: Sequence[tuple[int, bytes]]) -> Sequence[Any]:
        """Apply commands, each with its index, in order; return one result for each: a `Refused` for one that is refused."""
        raise NotImplementedError(f"{type(self).__name__} must define apply_entries(self, entries)")

    def sync(self) -> None:
        """Return when all that was applied is durable. The log up to there may be deleted then."""
        raise NotImplementedError(f"{type(self).__name__} must define sync(self)")

    def load(self, source: BinaryIO) -> None:
        """Replace the whole state, and its index, by what `capture` wrote on another host, durably.

        A crash in the middle must leave either the old state or the new one.
        """
        raise NotImplementedError(f"{type(self).__name__} must define load(self, source)")

    def close(self) -> None:
        """Close the files, since the replica has stopped. The last call; it may come twice."""

    def apply(self, command: bytes) -> Any:
        """Never called: `apply_entries` is."""
        raise NotImplementedError("a state machine on disk is given its commands with their indexes")


_FORMS: Final = (
    "apply(command)",
    "apply_many(commands)",
    "query(query)",
    "save(sink)",
    "load(source)",
    "capture()",
    "open()",
    "apply_entries(entries)",
    "sync()",
    "close()",
)


def make_machine(state_machine: Callable[[], StateMachine]) -> StateMachine:
    """Return a new state machine.

    Raises `ConfigError` if `state_machine` is not a class of one, or a function that makes one; and if a method that is
    needed is missing, is async, or takes other parameters.
    """
    machine = state_machine() if callable(state_machine) else None
    if not isinstance(machine, StateMachine):
        raise ConfigError(
            "state_machine",
            brief(state_machine),
            "must be a StateMachine class, or a function that makes one",
        )
    name = type_name(machine)
    if type(name) is not str or not name:
        raise ConfigError("recorded_name", name, f"must be a text, in {type(machine).__name__}")
    for fault in _faults(machine):
        raise ConfigError("state_machine", type(machine).__name__, fault)
    return machine


def type_name(machine: StateMachine) -> str:
    """Return the name that a replica's record has for this kind of state machine."""
    return machine.recorded_name or type(machine).__name__


def _faults(machine: StateMachine) -> Iterator[str]:
    # Other methods that are missing say so where they are needed: one that is never asked needs no `query`.
    required = {"open", "apply_entries", "sync"} if isinstance(machine, DiskStateMachine) else {"apply"}
    for form in _FORMS:
        name, _, parameter = form.rstrip(")").partition("(")
        method = getattr(machine, name, None)
        if method is None:  # of another kind of state machine
            continue
        if name in required and _is_ours(method):
            yield f"must define {name}({', '.join(filter(None, ('self', parameter)))})"
        elif fault := fault_in(method, form):
            yield fault


def _is_ours(method: object) -> bool:
    """Whether it is one of the methods of this file, which only say that they are missing."""
    return getattr(method, "__module__", None) == __name__
