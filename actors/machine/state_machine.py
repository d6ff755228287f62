"""The three kinds of state machines that an application may write.

|                          | state    | while a snapshot is written | after a restart                        |
|--------------------------|----------|-----------------------------|----------------------------------------|
| `StateMachine`           | memory   | commands wait to be applied | newest snapshot, then the log after it |
| `ConcurrentStateMachine` | memory   | commands are applied        | the same                               |
| `DiskStateMachine`       | own disk | commands are applied        | it goes on where it was                |

In all three cases proposals are taken, logged and committed while a snapshot is written.
"""

from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, ClassVar

from drakkar.actors.runtime.futures import brief
from drakkar.handlers.errors import ConfigError

__all__ = ["ConcurrentStateMachine", "DiskStateMachine", "StateMachine", "make_machine"]


class StateMachine:
    """The application's state, changed by commands that every replica applies in the same order (thesis §2.1).

    `apply` must depend on the state and the command alone: no clock, no random numbers, no I/O whose result differs
    between hosts. An exception in it stops this replica; answer a command that is merely wrong with a result that
    says so.

    The methods are called one at a time, in order. They run on a worker thread, so they may take their time. With
    `blocks = False` they run on the host's loop, which saves two changes of thread a batch; then they must not wait for
    anything, nor compute for more than about a millisecond. `save` and `load` always run on a worker, and commands wait
    meanwhile.
    """

    blocks: ClassVar[bool] = True
    """Whether `apply` or `query` may take long. False promises that neither does, and so runs them on the loop."""

    def apply(self, command: bytes) -> Any:
        """Change the state by one committed command, and return the result for its proposer.

        The result of a command of a client session is kept and is part of every snapshot. If it is not made of values
        that CBOR encodes without tags, a retry learns only that the command was applied.
        """
        raise NotImplementedError(f"{type(self).__name__} must define apply(self, command)")

    def apply_many(self, commands: Sequence[bytes]) -> Sequence[Any]:
        """Apply a batch, in order; return one result for each. Override it if a batch is cheaper than its commands."""
        return [self.apply(command) for command in commands]

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
        """Apply commands, each with its index, in order; return one result for each."""
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


def make_machine(state_machine: Callable[[], StateMachine]) -> StateMachine:
    """Return a new state machine. Raises `ConfigError` if `state_machine` is not a class of one, or a function that makes one."""
    machine = state_machine() if callable(state_machine) else None
    if not isinstance(machine, StateMachine):
        raise ConfigError(
            "state_machine",
            brief(state_machine),
            "must be a StateMachine class, or a function that makes one",
        )
    return machine
