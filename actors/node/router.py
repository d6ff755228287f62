"""Which host a replica's messages go to, and how much of them fits on the way there."""

import logging
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from drakkar.actors.runtime.log_lines import Lines
from drakkar.handlers.messages import Message
from drakkar.handlers.raft.entries import Entries
from drakkar.handlers.raft.lanes import UNLIMITED, left
from drakkar.handlers.raft.raft import Raft

__all__ = ["Router"]

MAX_LEARNED_ADDRESSES: Final = 100
"""Addresses to remember of replicas that the membership does not list."""


class Post(Protocol):
    """What a host does with messages. See `node.actor.Services`."""

    def send(self, address: str, messages: Sequence[Message]) -> None:
        """Send messages to the host at `address`."""

    def recall(self, address: str, message: Message) -> None:
        """See `Services`."""

    def reachable(self, address: str) -> bool:
        """Return whether the host at `address` is connected, or was not tried yet."""
        ...

    def introduce(self, address: str, shard_id: int) -> None:
        """See `Services`."""

    def lane_room(self, address: str, shard: int, least: int) -> int:
        """See `Services`."""
        ...

    def lane_waiting(self, address: str, shard: int) -> int:
        """See `Services`."""
        ...


class Router:
    """Sends a replica's messages to the hosts of their receivers. All methods are for the loop's thread.

    It is the `Lanes` of its core.
    """

    def __init__(
        self, raft: Raft, post: Post, *, send_snapshot: Callable[[str, Message], None], lines: Lines
    ) -> None:
        """`send_snapshot` takes an address and a message whose content travels in a stream."""
        self._raft, self._lines = raft, lines
        self._post, self._send_snapshot = post, send_snapshot
        self._shard = raft.config.shard_id
        self._held: dict[int, Message] = {}
        """Bulk messages that the core has handed out and that must not leave yet, by their identity in memory."""
        self._orders: dict[int, Message | None] = {}
        """Messages that can be recalled (`Traits.perishable`), likewise; None for one that was recalled, and is to be dropped."""
        self._sent_orders: dict[int, str] = {}
        """The host that the last such message for each replica went to. By the recall it may be no member any more."""
        self.learned_addresses: dict[int, str] = {}
        """Where strangers are answered: replicas that the membership does not list, or not at the host that spoke for them."""
        self.moved_addresses: dict[int, str] = {}
        """Of members that are known by their homes: where they have moved, as far as the membership does not say it yet."""
        self.undeliverable = 0
        """Messages that were dropped, since the address of their receiver is not known."""

    def learn(self, replica: int, address: str, *, moved: bool = False) -> None:
        """Remember that the host at `address`, which surely is reached there, speaks for `replica`.

        A replica that joins must answer a leader that its membership does not list yet. `moved`: it is known as the host of
        the member.
        """
        learned = self.moved_addresses if moved else self.learned_addresses
        if replica not in learned and len(learned) >= MAX_LEARNED_ADDRESSES:
            del learned[next(iter(learned))]
        learned[replica] = address

    def at_home(self, replica: int) -> None:
        """A member has spoken from its address in the membership."""
        self.moved_addresses.pop(replica, None)

    def address(self, replica: int) -> str | None:
        """The address of a replica; None if it is not known."""
        known = self._raft.membership.addresses.get(replica)
        if not known:
            return self.learned_addresses.get(replica)
        moved = self.moved_addresses.get(replica) if self.moved_addresses else None
        return known if moved is None or self._is_reached(known) else moved

    def _is_reached(self, known: str) -> bool:
        """Whether a member's address can be used. If not, it is tried again, whatever is sent elsewhere meanwhile."""
        reached = self._post.reachable(known)
        if not reached:
            self._post.introduce(known, self._shard)
        return reached

    def _address_of(self, message: Message) -> str | None:
        """The address to which a message goes.

        A stranger that speaks for a member is answered, if that is not reached itself: perhaps it leads, and this
        membership is an old one. It is sent nothing of the log.
        """
        address = self.address(message.to)
        stranger = self.learned_addresses.get(message.to) if self.learned_addresses else None
        if stranger in {None, address} or address is None or not message.type.traits.from_members:
            return address
        return address if self._is_reached(address) else stranger

    def hold(self, messages: Sequence[Message]) -> None:
        """Count messages as handed out that are given to `send` later: when what they rest on is written."""
        for message in messages:
            if message.type.traits.bulk:
                self._held[id(message)] = message
            elif message.type.traits.perishable:
                self._orders[id(message)] = message

    def send(self, messages: Sequence[Message]) -> None:
        """Send messages, those for one host together. One whose receiver's address is not known is dropped and counted."""
        if not messages:
            return
        by_address: dict[str, list[Message]] = {}
        for message in messages:
            if self._held:
                self._held.pop(id(message), None)
            if self._orders and self._orders.pop(id(message), message) is None:
                continue
            address = self._address_of(message)
            if address is None:
                self._count_undeliverable(message)
            elif message.snapshot is not None and not message.snapshot.witness:
                self._send_snapshot(address, message)
            elif address in by_address:
                by_address[address].append(message)
            else:
                by_address[address] = [message]
            if address is not None and message.type.traits.perishable:
                self._sent_orders[message.to] = address
        for address, group in by_address.items():
            self._post.send(address, group)

    def recall(self, messages: Sequence[Message]) -> None:
        """Drop messages that were sent or held, and that equal these, where they still wait on this host."""
        for message in messages:
            for key, order in self._orders.items():
                if order == message:
                    self._orders[key] = None
            address = self._sent_orders.pop(message.to, None)
            if address is not None:
                self._post.recall(address, message)

    # -- lanes ----------------------------------------------------------------------------------------------------

    def room(self, replica: int, least: int = 1) -> int:
        """See `Lanes.room`. All is taken for a replica whose address is not known: it is dropped and counted."""
        address = self.address(replica)
        if address is None:
            return UNLIMITED
        if not self._held:
            return self._post.lane_room(address, self._shard, least)
        held = sum(Entries.of(message.entries).size or 1 for message in self._held_for(replica))
        room = self._post.lane_room(address, self._shard, least + held)
        return left(room, held, self._raft.config.max_message_bytes)

    def waiting(self, replica: int) -> int:
        """See `Lanes.waiting`."""
        address = self.address(replica)
        if address is None:
            return 0
        return self._post.lane_waiting(address, self._shard) + len(self._held_for(replica))

    def _held_for(self, replica: int) -> list[Message]:
        return [message for message in self._held.values() if message.to == replica]

    def _count_undeliverable(self, message: Message) -> None:
        self.undeliverable += 1
        level = logging.DEBUG if self.undeliverable > 1 else logging.INFO
        self._lines.log(level, "does not know the address of replica %d: dropped %s", message.to, message)
