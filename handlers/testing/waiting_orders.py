"""Orders to campaign in simulated time: where they wait at their sender, and can still be recalled.

A TIMEOUT_NOW is control, and leaves its host at once, unless the connection takes nothing: then it waits, and its
transfer may be over meanwhile. Their random numbers are of their own, so that a plan without waiting orders is the same
with this module and without.
"""

from random import Random
from typing import Final

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.state import State
from drakkar.handlers.testing.history import Violation
from drakkar.handlers.testing.simulated_lanes import Endpoint, Network

__all__ = ["WaitingOrders"]

_LEAVES: Final = "INV42 an order to campaign does not outlive its transfer"


class WaitingOrders:
    """The orders to campaign of one shard that wait at their senders."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._random = Random(f"waiting orders of {network.plan.seed}")
        self._waiting: list[Message] = []

    def take(self, host: Endpoint, message: Message) -> bool:
        """Let an order of a host wait. False: the message leaves at once."""
        longest = self._network.weather.order_time
        if not longest or message.type is not MessageType.TIMEOUT_NOW:
            return False
        self._waiting.append(message)
        self._network.later(host, self._random.randint(0, longest), self._leave, host, message)
        return True

    def recall(self, message: Message) -> None:
        """Drop what equals a message, where it still waits."""
        kept = [waiting for waiting in self._waiting if waiting != message]
        recalled = len(self._waiting) - len(kept)
        self._network.invariants.happened["an order to campaign was recalled"] += recalled
        self._waiting = kept

    def stopped(self, host: Endpoint) -> None:
        """A host stops: what waits there is gone."""
        self._waiting = [waiting for waiting in self._waiting if waiting.sender != host.id]

    def _leave(self, host: Endpoint, message: Message) -> None:
        if not any(waiting is message for waiting in self._waiting):
            return
        self._waiting = [waiting for waiting in self._waiting if waiting is not message]
        raft = host.raft
        target = raft.transfer.target
        wanted = raft.state is State.LEADER and raft.term == message.term and target == message.to
        wanted |= not raft.membership.is_voter(raft.id)  # a leader that has left: its last order stands
        if not wanted and not raft.has_ready:  # else the host has not been told yet
            raise Violation(_LEAVES, f"{raft!r} transfers to {target}, and sends {message}")
        self._network.transmit(host, message)
