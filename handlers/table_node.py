"""`TableNode`: a node without Raft, of which a table says who answers what."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from drakkar.handlers.effects import Answer, Effects, Failure, Told
from drakkar.handlers.extension import Extension
from drakkar.handlers.messages import Message
from drakkar.handlers.services import NodeServices
from drakkar.handlers.table import HandlerTable, Tally
from drakkar.handlers.timers import Timers

__all__ = ["NodeReady", "TableNode"]


@dataclass(slots=True, eq=False)
class NodeReady:
    """What the host of a `TableNode` has to do now. Each piece is handed out once."""

    messages: list[Message] = field(default_factory=list)
    """To be sent to peers: `to` is the peer's name."""
    tells: list[Told] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


class TableNode(NodeServices):
    """A node without Raft: a table, a state, peers by name, timers. Pure; not thread-safe.

    `step` takes a message in, `tick` says that time has passed, `ready` hands out what is to be done.
    """

    def __init__(self, name: str, handlers: HandlerTable, state: Any, peers: Iterable[str] = ()) -> None:
        """Begin in `state`, with peers of these names.

        Raises `HandlerTableError` for a table with undeclared cells, `ConfigError` for a state that the table does not have, a name
        that is none, or a peer of this node's own name.
        """
        self.name = name
        self.handlers = handlers
        self.state = state
        self.peers = tuple(peers)
        self.tally = Tally()
        self.tick_count = 0
        self.effects = Effects()
        self.message_timers = Timers()
        self._extensions: dict[type[Extension], Any] = {}

    def step(self, message: Message) -> Any:
        """Answer one message: the guards, then the table. Returns what the handler returns; `LATER`: not answered yet."""
        raise NotImplementedError

    def tick(self) -> None:
        """One tick has passed: step the messages of the timers that are due."""
        raise NotImplementedError

    def send(self, message: Message) -> None:
        """Queue a message to the peer named in `message.to`, stamped with this node's name.

        Raises `ConfigError` for a name that is no peer's, a type that is not your own, and a payload that cannot be sent.
        """
        raise NotImplementedError

    @property
    def has_ready(self) -> bool:
        """Whether `ready` would hand anything out."""
        raise NotImplementedError

    def ready(self) -> NodeReady:
        """Hand out, once, what is to be done."""
        raise NotImplementedError
