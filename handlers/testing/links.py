"""Links: what the simulated network carries from one replica to another, and what overtakes what there."""

from dataclasses import dataclass, field, replace

from drakkar.handlers.messages import Message, is_own
from drakkar.handlers.payloads import sent_payload

__all__ = ["Link", "arrived"]


def arrived(message: Message) -> Message:
    """Return a message as its receiver has it: an object of its own, as is the payload of an own type."""
    payload = sent_payload(message.type, message.payload) if is_own(message.type) else message.payload
    return replace(message, payload=payload)


@dataclass(slots=True)
class Link:
    """The messages from one replica to another, numbered from 1 in the order of sending; they may arrive in another."""

    _sent: int = 0
    """How many messages were sent."""
    _last_arrival: int = 0
    """When the last message of this connection will arrive, where messages keep their order."""
    _settled: int = 0
    """All messages up to this number have arrived, or are lost."""
    _early: set[int] = field(default_factory=set)
    """The numbers of messages that have overtaken the first one that is still in transit."""

    def send(self) -> int:
        """Return the number of the message that is sent now."""
        self._sent += 1
        return self._sent

    def arrival_in_order(self, time: int) -> int:
        """Return when a message arrives that could do so at `time`, but overtakes no other."""
        self._last_arrival = max(time, self._last_arrival)
        return self._last_arrival

    def lose(self) -> None:
        """Lose all that is in transit, with the connection: what is sent from now on goes by another one."""
        self._settled = self._sent
        self._early.clear()
        self._last_arrival = 0

    @property
    def idle(self) -> bool:
        """Whether nothing is in transit."""
        return self._settled == self._sent

    def is_lost(self, number: int) -> bool:
        """Whether a message whose time of arrival has come was lost before."""
        return number <= self._settled

    def arrive(self, number: int) -> bool:
        """Note that a message arrives; True if it has overtaken another one, or was overtaken.

        A count of arrivals does not tell: of three messages that arrive the last one first, the second has its own place.
        """
        out_of_order = bool(self._early) or number != self._settled + 1
        self._early.add(number)
        while self._settled + 1 in self._early:
            self._settled += 1
            self._early.remove(self._settled)
        return out_of_order
