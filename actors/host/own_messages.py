"""What this process may tell or ask a replica of its own: messages of the application's own types, of bounded size."""

from dataclasses import replace
from typing import Any

from drakkar.handlers.checks import check_type
from drakkar.handlers.errors import ConfigError
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.payloads import payload_bytes

__all__ = ["checked"]


def checked(message: Any, shard_id: int, replica_id: int) -> tuple[Message, int]:
    """Return a copy of a message for a replica, and the bytes that its payload counts.

    Raises `ConfigError` unless it is a `Message` of an own type, for this replica, without a sender, entries and a snapshot,
    and its payload is no larger than one that is sent to other hosts. It may be an object of this process.
    """
    check_type("message", message, Message, "a Message")
    type_ = message.type
    if not isinstance(type_, MessageType) or type_ < MessageType.FIRST_FREE:
        raise ConfigError(
            "message",
            type_,
            "is no type of your own (MessageType.define): clients use propose(), read(), transfer_leadership() and the like",
        )
    if message.to not in {0, replica_id}:
        raise ConfigError(
            "to",
            message.to,
            f"leave it out: this goes to replica {replica_id}, whose handlers send to others",
        )
    if message.sender:
        raise ConfigError("sender", message.sender, "leave it out: it comes from this process")
    if message.entries or message.snapshot is not None:
        raise ConfigError("message", str(message), "entries and snapshots are Raft's own: use payload")
    return replace(message, to=replica_id, shard=shard_id), _size_of(message)


def _size_of(message: Message) -> int:
    if message.payload is None:
        return 0
    try:
        return payload_bytes(message.payload)
    except ValueError as error:
        raise ConfigError("message", str(message.type), str(error)) from error
