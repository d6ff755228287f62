"""`TableNode`: a node without Raft, of which a table says who answers what."""

import reprlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, cast

from drakkar.handlers.effects import Answer, Effects, Failure, Told, not_a_type
from drakkar.handlers.errors import ConfigError, HandlerTableError
from drakkar.handlers.extension import Extension
from drakkar.handlers.messages import Message, MessageType, is_own
from drakkar.handlers.payloads import check_message, sent_payload
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

        Raises `HandlerTableError` for a table with undeclared cells or an extension that delivers entries, since there is no log;
        `ConfigError` for a state that the table does not have, for what is no name, and for a name that comes twice.
        """
        self.name = name
        self.handlers = _checked_table(handlers)
        self.state = _checked_state(handlers, state)
        self.peers = _checked_peers(name, peers)
        self.tally = Tally()
        """What became of the messages since the start, by state and type."""
        self.tick_count = 0
        self.effects = Effects()
        self.message_timers = Timers(name)
        self._node_messages: list[Message] = []
        self._node_extensions: dict[type[Extension], Any] = {}
        self._node_make_extensions()

    def step(self, message: Message) -> Any:
        """Answer one message: the guards, then the table. Returns what the handler returns; `LATER`: not answered yet.

        Where no handler takes it, that is the reason: see `HandlerTable.dispatch`.
        """
        return self.handlers.dispatch(self, message)

    def tick(self) -> None:
        """One tick has passed: step the messages of the timers that are due."""
        self.tick_count += 1
        self._node_step_due()

    def send(self, message: Message) -> None:
        """Queue a message to the peer named in `message.to`, stamped with this node's name. It arrives at most once.

        The payload is sent as it is now. Raises `ConfigError` for a name that is no peer's, a type that is not your own, and what
        cannot travel: see `check_message` and `sent_payload`.
        """
        if message.to not in self.peers:
            raise ConfigError(
                "to", message.to, f"must be the name of a peer: {', '.join(self.peers) or 'there is none'}"
            )
        if not is_own(message.type):
            raise ConfigError("message", message.type, "nodes send types of your own: see MessageType.define")
        check_message(message)
        message.payload = sent_payload(message.type, message.payload)
        message.sender = self.name
        self._node_messages.append(message)

    def reply(self, message: Message, answer: Any, **fields: Any) -> None:
        """Answer a message. If it was asked in this process, `answer` is the value that the ask returns, without fields.

        If it came from a peer, a message of the type `answer`, with these fields, is sent to that. Raises as `send`.
        """
        if message.sender in {0, self.name}:
            self.effects.answer(message, answer, fields)
            return
        if not isinstance(answer, MessageType | IntEnum):
            raise not_a_type(message, answer)
        self.send(Message(cast("MessageType", answer), to=message.sender, **fields))

    @property
    def has_ready(self) -> bool:
        """Whether `ready` would hand anything out."""
        return bool(self._node_messages) or self.effects.waiting

    def ready(self) -> NodeReady:
        """Hand out, once, what is to be done."""
        ready = NodeReady()
        ready.messages, self._node_messages = self._node_messages, []
        self.effects.hand_out(ready)
        return ready


def _checked_table(handlers: Any) -> HandlerTable:
    if not isinstance(handlers, HandlerTable):
        raise HandlerTableError(
            f"handlers={reprlib.repr(handlers)} is no HandlerTable: make one of your states"
        )
    handlers.check()
    if handlers.deliveries:
        kinds = ", ".join(map(str, handlers.deliveries))
        raise HandlerTableError(
            f"an extension of this table takes committed entries ({kinds}), and a node without Raft has no log: use it in a replica"
        )
    return handlers


def _checked_state(handlers: HandlerTable, state: Any) -> Any:
    if not handlers.has_state(state):
        known = ", ".join(known.name for known in handlers.states)
        raise ConfigError("state", state, f"must be one of the table's states, {known}")
    return state


def _checked_peers(name: str, peers: Iterable[str]) -> tuple[str, ...]:
    found = tuple(peers)
    for each in (name, *found):
        if not isinstance(each, str) or not each:
            raise ConfigError("name", each, "must be a string that is not empty: names tell nodes apart")
    if len({name, *found}) <= len(found):
        raise ConfigError("peers", found, f"must be the names of other nodes than {name}, each once")
    return found
