"""Where the members of a host's shards live, all together: the transport keeps places free for them."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from drakkar.actors.node.actor import NodeActor
from drakkar.actors.node.events import MembershipChanged, ReplicaEnded
from drakkar.handlers.errors import TransportError
from drakkar.transport.addresses import canonical

__all__ = ["MemberAddresses"]


class MemberAddresses:
    """The addresses of all members of the shards that have a replica here. For the loop's thread."""

    def __init__(self, tell: Callable[[Iterable[str]], None], moved: Callable[[str, str], None]) -> None:
        """`tell` is called with all of them: now, when there are none, and when they have changed.

        `moved` is called before that, where a shard reaches a member at another address than before: with both.
        """
        self._tell, self._moved = tell, moved
        self._of: dict[int, dict[int, str]] = {}
        """By shard of a replica that runs, and by replica."""
        self._count: Counter[str] = Counter()
        """Of how many shards."""
        # Until a replica starts, none of the hosts that connect is a member's.
        tell(())

    def add(self, node: NodeActor) -> None:
        """Note a replica that starts."""
        self._set(node.raft.config.shard_id, node.raft.membership.addresses)

    def note(self, event: object) -> None:
        """Take in an event of the host."""
        if isinstance(event, MembershipChanged):
            if event.shard in self._of:
                self._set(event.shard, event.membership.addresses)
        elif isinstance(event, ReplicaEnded):
            self._set(event.shard, {})
            del self._of[event.shard]

    def _set(self, shard: int, members: Mapping[int, str]) -> None:
        known = self._of.get(shard, {})
        self._of[shard] = {replica: it for replica, it in members.items() if _is_address(it)}
        old, new = frozenset(known.values()), frozenset(self._of[shard].values())
        for replica, address in self._of[shard].items():
            if (before := known.get(replica, address)) != address:
                self._moved(before, address)
        self._count.update(new - old)
        self._count.subtract(old - new)
        gone = [address for address in old - new if not self._count[address]]
        for address in gone:
            del self._count[address]
        if gone or any(self._count[address] == 1 for address in new - old):
            self._tell(self._count.keys())


def _is_address(address: str) -> bool:
    """A membership may hold what is none: each attempt to dial it reports that."""
    try:
        canonical(address)
    except TransportError:
        return False
    return True
