"""`Letter`: a message between nodes without Raft as it travels, and what the actor of such a node is told of its peers."""

from dataclasses import dataclass
from typing import Any

import pykka
from drakkar.handlers.checks import are_whole, is_whole
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.payloads import NUMBERS, decode_payload, encode_payload

__all__ = ["Heard", "Letter", "PeerNews", "UnknownType"]


class UnknownType(ValueError):
    """The type of a letter is not defined in this process: the other host may be of a newer version."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A message to a peer. It goes to other hosts too, so the fields of one that came may be anything."""

    type: int
    sender: str
    """The name of the node that has sent it."""
    payload: bytes | None = None
    """Encoded, so that its size is known, and each side has a payload of its own."""
    reject: bool = False
    shard: int = 0
    term: int = 0
    log_term: int = 0
    log_index: int = 0
    commit: int = 0
    hint: int = 0
    hint_high: int = 0

    @classmethod
    def of(cls, message: Message) -> "Letter":
        """Return the letter with a message that a node has sent, which was checked then."""
        payload = None if message.payload is None else encode_payload(message.payload)
        numbers = {name: getattr(message, name) for name in NUMBERS}
        return cls(int(message.type), str(message.sender), payload, message.reject, **numbers)

    @property
    def size(self) -> int:
        """Bytes of its payload."""
        return 0 if self.payload is None else len(self.payload)

    def open(self, to: str) -> Message:
        """Return the message, addressed to the node of this name.

        Raises `UnknownType`, and `ValueError` for what `of` makes of no message: the letter may come from a hostile host.
        """
        numbers = {name: getattr(self, name) for name in NUMBERS}
        if not are_whole([*numbers.values()]) or type(self.reject) is not bool:
            raise ValueError("its numbers are out of their bounds")
        type_ = MessageType.known.get(self.type) if is_whole(self.type, 0, 0xFFFF) else None
        if type_ is None:
            raise UnknownType(f"message type {self.type!r:.60} is not defined here")
        if type_ < MessageType.FIRST_FREE or type_.traits.local:
            raise ValueError(f"no peer sends {type_}")
        return Message(
            type_, to=to, sender=self.sender, payload=self._payload(), reject=self.reject, **numbers
        )

    def _payload(self) -> Any:
        if self.payload is None:
            return None
        if type(self.payload) is not bytes:
            raise ValueError("its payload is no byte string")
        return decode_payload(self.payload)


@dataclass(frozen=True, slots=True)
class Heard:
    """A letter that has arrived. Only this process makes one, so what it says of where the letter comes from can be relied on."""

    letter: Letter
    address: str
    """Of the host that has sent it; empty: an actor of this process that uses no host."""


@dataclass(frozen=True, slots=True)
class PeerNews:
    """What came of the search for a peer, or the end of one that was found. At most one of each kind waits for each peer."""

    peer: str
    ref: pykka.ActorRef[Any] | None
    """Who was found, or has ended. None: nobody was found."""
    reason: BaseException | None = None
    """Why nobody was found, or why it has ended; None there: it was stopped."""
    ended: bool = False
