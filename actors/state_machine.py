"""`StateMachine`: what an application writes, and the log drives."""

from collections.abc import Sequence
from typing import Any, BinaryIO, ClassVar

__all__ = ["StateMachine"]


class StateMachine:
    """The application's state, changed by commands that every replica applies in the same order (thesis §2.1).

    So `apply` must depend on nothing but the state and the command: no clock, no random source, no I/O whose
    result differs between hosts. An exception in it stops this replica, loudly; a command that is merely wrong is
    answered with a result that says so.

    Methods are never called at the same time, nor out of order. They run on a worker thread, so they may take
    their time; with `blocks = False` they run on the host's loop, which saves two thread hops a batch, and then
    none of them may ever wait for anything, nor compute for more than a millisecond or so.
    """

    blocks: ClassVar[bool] = True
    """Whether a method may take long. False promises that none does."""

    def apply(self, command: bytes) -> Any:
        """Change the state by one committed command; the result goes to whoever proposed it, on that host alone."""
        raise NotImplementedError(f"{type(self).__name__} must define apply(self, command)")

    def apply_many(self, commands: Sequence[bytes]) -> Sequence[Any]:
        """Apply a batch, in order; one result for each. Override it where a batch is cheaper than its commands."""
        return [self.apply(command) for command in commands]

    def query(self, query: Any) -> Any:
        """Answer a question about the state, without changing it. An exception goes to whoever asked."""
        raise NotImplementedError(f"{type(self).__name__} must define query(self, query)")

    def save(self, sink: BinaryIO) -> None:
        """Write the whole state, as of the last command applied."""
        raise NotImplementedError(f"{type(self).__name__} must define save(self, sink)")

    def load(self, source: BinaryIO) -> None:
        """Replace the whole state by one that `save` wrote."""
        raise NotImplementedError(f"{type(self).__name__} must define load(self, source)")
