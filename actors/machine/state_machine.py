"""What an application writes, and the log drives: state machines of three kinds.

|                            | state    | while a snapshot is written      | after a restart                     |
|----------------------------|----------|----------------------------------|-------------------------------------|
| `StateMachine`             | memory   | commands wait to be applied      | newest snapshot, and the log behind |
| `ConcurrentStateMachine`   | memory   | commands are applied             | the same                            |
| `DiskStateMachine`         | own disk | commands are applied             | where it was: nothing is replayed   |

Proposals are taken, logged and committed in any case; what waits is how soon they take effect.
"""

from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, ClassVar

from drakkar.actors.runtime.futures import brief
from drakkar.handlers.errors import ConfigError

__all__ = ["ConcurrentStateMachine", "DiskStateMachine", "StateMachine", "made"]


class StateMachine:
    """The application's state, changed by commands that every replica applies in the same order (thesis §2.1).

    So `apply` must depend on nothing but the state and the command: no clock, no random source, no I/O whose
    result differs between hosts. An exception in it stops this replica, loudly; a command that is merely wrong is
    answered with a result that says so.

    Methods are never called at the same time, nor out of order. They run on a worker thread, so they may take
    their time; with `blocks = False` they run on the host's loop, which saves two thread hops a batch, and then
    none of them may ever wait for anything, nor compute for more than a millisecond or so. `save` and `load` always
    run on a worker, and what comes meanwhile waits.
    """

    blocks: ClassVar[bool] = True
    """Whether `apply` or `query` may take long. False promises that neither does."""

    def apply(self, command: bytes) -> Any:
        """Change the state by one committed command; the result goes to whoever proposed it, on that host alone.

        The result of a command of a client session is kept, and is part of every snapshot: it must be made of what
        CBOR encodes without tags, or a retry learns no more than that the command was applied.
        """
        raise NotImplementedError(f"{type(self).__name__} must define apply(self, command)")

    def apply_many(self, commands: Sequence[bytes]) -> Sequence[Any]:
        """Apply a batch, in order; one result for each. Override it where a batch is cheaper than its commands."""
        return [self.apply(command) for command in commands]

    def query(self, query: Any) -> Any:
        """Answer a question about the state, without changing it. An exception goes to whoever asked."""
        raise NotImplementedError(f"{type(self).__name__} must define query(self, query)")

    def save(self, sink: BinaryIO) -> None:
        """Write the whole state, as of the last command applied. An exception costs this snapshot alone."""
        raise NotImplementedError(f"{type(self).__name__} must define save(self, sink)")

    def load(self, source: BinaryIO) -> None:
        """Replace the whole state by one that `save` wrote. An exception stops this replica."""
        raise NotImplementedError(f"{type(self).__name__} must define load(self, source)")


class ConcurrentStateMachine(StateMachine):
    """One that goes on applying commands while a snapshot is written: its state can be fixed quickly.

    By a persistent data structure, say, or a read transaction of a database.
    """

    def capture(self) -> Callable[[BinaryIO], None]:
        """Fix the state as it is now, soon, and return what writes it.

        What is returned is called once, on another thread, beside `apply` and `query`, with the sink; it must write
        the state of the moment of `capture`, whatever happens to the machine meanwhile.
        """
        raise NotImplementedError(f"{type(self).__name__} must define capture(self)")

    def save(self, sink: BinaryIO) -> None:
        """Write the whole state, as of the last command applied."""
        self.capture()(sink)


class DiskStateMachine(ConcurrentStateMachine):
    """One that keeps its state in a database or files of its own, and knows how far it has applied the log.

    The commands come to `apply_entries`, with their indexes; whatever it makes of them must become durable together
    with the last index, or not at all. It need not be durable at once: `sync` asks for that. After a crash it is
    given again what it does not remember, and nothing that it does.

    Sessions are refused: their table would have to live with the state. A command that is proposed twice has another
    index each time, so let a command carry an id of its own where that matters.
    """

    def open(self) -> int:
        """Open the state, before anything else; return the last index that it holds, 0 for an empty one."""
        raise NotImplementedError(f"{type(self).__name__} must define open(self)")

    def apply_entries(self, entries: Sequence[tuple[int, bytes]]) -> Sequence[Any]:
        """Apply commands, each with its index, in order; one result for each."""
        raise NotImplementedError(f"{type(self).__name__} must define apply_entries(self, entries)")

    def sync(self) -> None:
        """Return when all that was applied is durable: the log behind it may be given up after that."""
        raise NotImplementedError(f"{type(self).__name__} must define sync(self)")

    def load(self, source: BinaryIO) -> None:
        """Replace the whole state, and its index, by what `capture` wrote on another host.

        At once and durably, or not at all: a crash in the middle must leave the old state or the new one.
        """
        raise NotImplementedError(f"{type(self).__name__} must define load(self, source)")

    def close(self) -> None:
        """The replica has stopped: let go of files. Nothing is called after that, and it may be called twice."""

    def apply(self, command: bytes) -> Any:
        """Never called: the commands come to `apply_entries`."""
        raise NotImplementedError("a state machine on disk is given its commands with their indexes")


def made(state_machine: Callable[[], StateMachine]) -> StateMachine:
    """Make one of what a caller named. Raises `ConfigError` where that is neither a class nor a function for it."""
    machine = state_machine() if callable(state_machine) else None
    if not isinstance(machine, StateMachine):
        raise ConfigError(
            "state_machine",
            brief(state_machine),
            "must be a StateMachine class, or a function that makes one",
        )
    return machine
