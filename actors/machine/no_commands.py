"""`NoCommands`: the state machine of a shard that has handlers, and no commands."""

from typing import Any, BinaryIO, ClassVar, Final

from drakkar.actors.machine.state_machine import StateMachine
from drakkar.actors.runtime.futures import brief
from drakkar.handlers.errors import Refused

__all__ = ["NoCommands"]

_WHY: Final = "this shard has only handlers, which are asked by `replica.ask`: it takes no %s"


class NoCommands(StateMachine):
    """For a shard whose state is that of its extensions alone: commands and queries are `Refused`."""

    blocks: ClassVar[bool] = False

    def apply(self, command: bytes) -> Any:
        """Refuse a command."""
        raise Refused(_WHY % f"command, such as one of {len(command)} bytes")

    def query(self, query: Any) -> Any:
        """Refuse a query."""
        raise Refused(_WHY % f"query, such as {brief(query)}")

    def save(self, sink: BinaryIO) -> None:
        """Write nothing."""

    def load(self, source: BinaryIO) -> None:
        """Read nothing."""
