"""Lanes: where messages to one peer host wait until they leave, bulk messages and control messages apart.

*Bulk* is what may be large (`Traits.bulk`): REPLICATE, INSTALL_SNAPSHOT and PROPOSE. *Control* is all else,
and may overtake bulk. The bulk messages of one shard stay in their order. A lane has *room* for a bounded
number of bytes. A peer whose lane has no room is *busy*: its leader hands out nothing for it, so that nothing
counts as sent that only waits, until the lane has *drained*.

The host tells its core by three messages of its own, each with the peer as its `sender`:

    LANE_DRAINED  the lane has room again, after `Lanes.room` was too little
    NOT_SENT      the lane hands back a message that it did not send; see `not_sent`
    UNREACHABLE   the connection was lost: once a loss and shard, or where none can be made; only leaders need to know
"""

from typing import Final, Protocol

from drakkar.handlers.messages import Message, MessageType

__all__ = ["UNLIMITED", "Lanes", "left", "not_sent"]

UNLIMITED: Final = 1 << 62
"""A number of bytes that stands for no limit."""


class Lanes(Protocol):
    """How much of what a core sends fits on its way. Asked on the loop, often; it must not block.

    What a core has handed out by `Ready` counts in both answers before the core is stepped again.
    """

    def room(self, replica: int, least: int = 1) -> int:
        """Bytes of bulk messages that may be handed out for `replica` now, as `Entries.size` counts them.

        The answer is `least` or more, or 0. Then the host steps LANE_DRAINED when there is room. So a core
        that finds the room too little for its first entry asks again for as much as that takes. Without a
        connection the room is 0, and the host tries to make one. A lane that holds nothing takes one message
        of any size, and says `UNLIMITED`; a core hands several out where together they do not exceed
        `RaftConfig.max_message_bytes`.
        """
        ...

    def waiting(self, replica: int) -> int:
        """How many bulk messages of this shard for `replica` were handed out and have not left this host whole.

        What was handed back, or dropped with its connection, waits no more.
        """
        ...


def left(room: int, held: int, usual: int) -> int:
    """How much of a lane's `room` is left beside `held` bytes that the lane has not been told of yet.

    An empty lane takes one message of any size, or several that together are no larger than one of the `usual` size. A
    message without entries makes a lane hold something too, so it counts 1 in `held`.
    """
    if held and room >= UNLIMITED:
        room = usual
    return max(room - held, 0)


def not_sent(message: Message) -> Message:
    """The report that `message` was handed out and has not been sent: step it in the core that handed `message` out."""
    return Message(MessageType.NOT_SENT, sender=message.to, payload=message)
