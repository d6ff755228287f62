"""Which host a replica's messages go to."""

import logging
from collections.abc import Callable, Sequence
from typing import Final

from drakkar.handlers.messages import Message
from drakkar.handlers.raft.raft import Raft

__all__ = ["Router"]

logger = logging.getLogger(__name__)

MAX_LEARNED_ADDRESSES: Final = 100
"""Addresses to remember of replicas that the membership does not list."""


class Router:
    """Sends a replica's messages to the hosts of their receivers. All methods are for the loop's thread."""

    def __init__(
        self,
        raft: Raft,
        *,
        send: Callable[[str, Sequence[Message]], None],
        send_snapshot: Callable[[str, Message], None],
    ) -> None:
        """`send` takes an address and all messages for it; `send_snapshot` one whose content travels in a stream."""
        self._raft = raft
        self._send, self._send_snapshot = send, send_snapshot
        self.learned_addresses: dict[int, str] = {}
        """Of replicas that the membership does not list: the host that their last message came from."""
        self.undeliverable = 0
        """Messages that were dropped, since the address of their receiver is not known."""

    def learn(self, replica: int, address: str) -> None:
        """Remember that a message of `replica` came from the host at `address`.

        A replica that joins must answer a leader that its membership does not list yet.
        """
        learned = self.learned_addresses
        if replica not in learned and len(learned) >= MAX_LEARNED_ADDRESSES:
            del learned[next(iter(learned))]
        learned[replica] = address

    def send(self, messages: Sequence[Message]) -> None:
        """Send messages, those for one host together. One whose receiver's address is not known is dropped and counted."""
        if not messages:
            return
        by_address: dict[str, list[Message]] = {}
        addresses = self._raft.membership.addresses
        for message in messages:
            address = addresses.get(message.to) or self.learned_addresses.get(message.to)
            if address is None:
                self._count_undeliverable(message)
            elif message.snapshot is not None and not message.snapshot.witness:
                self._send_snapshot(address, message)
            elif address in by_address:
                by_address[address].append(message)
            else:
                by_address[address] = [message]
        for address, group in by_address.items():
            self._send(address, group)

    def _count_undeliverable(self, message: Message) -> None:
        self.undeliverable += 1
        level = logging.DEBUG if self.undeliverable > 1 else logging.INFO
        raft = self._raft
        logger.log(
            level,
            "replica %d of shard %d does not know the address of replica %d: dropped %s",
            raft.id,
            raft.config.shard_id,
            message.to,
            message,
        )
