"""The leader of a shard goes to where the work is: to the replica at which most is proposed.

    python -m examples.leader_placement

What is proposed at another replica goes to the leader and back. So the leader counts where proposals come from, and hands the
leadership over when more have come from one other voter, in a period, than from all the rest.
"""

from collections import Counter
from contextlib import ExitStack, suppress
from typing import Any

from drakkar.actors import IN_MEMORY, DrakkarError, ExtensionEvent, NodeHost, State, StateMachine
from drakkar.handlers import Extension, Message, MessageType, handles, raft_handlers

PERIOD = 20  # ticks
ENOUGH = 10  # proposals in a period; with fewer it does not matter who leads
JUDGE = MessageType.define("placement.judge", 2030, wakes=False)  # it does not keep a shard awake


class Placement(Extension):
    """How many proposals came from which replica, in the present period."""

    def __init__(self, node: Any) -> None:
        super().__init__(node)
        self.proposals: Counter[int] = Counter()
        node.every(PERIOD, Message(JUDGE))

    @handles(MessageType.PROPOSE, State.LEADER, wrap=True)
    def count(self, message: Message, inner: Any) -> None:
        """Count proposals of clients here, and those that other replicas have forwarded."""
        self.proposals[message.sender or self.node.id] += len(message.entries)
        inner(message)

    @handles(JUDGE)
    def judge(self, _: Message) -> None:
        """Begin a new period, and hand the leadership over as the past one shows."""
        proposals, self.proposals = self.proposals, Counter()
        replica = self.place_for(proposals)
        if self.node.state is State.LEADER and replica != self.node.id:
            share = f"{proposals[replica]} of {proposals.total()}"
            self.node.publish_event(f"replica {replica} is to lead, which made {share} proposals")
            self.node.step(Message(MessageType.LEADER_TRANSFER, sender=self.node.id, hint=replica))

    def place_for(self, proposals: Counter[int]) -> int:
        """Return the voter that made more than half of these proposals; this replica, if there is none."""
        for replica in self.node.voters:
            if proposals.total() >= ENOUGH and 2 * proposals[replica] > proposals.total():
                return int(replica)
        return int(self.node.id)


table = raft_handlers().use(Placement)


class Echo(StateMachine):
    """To which clients propose."""

    def apply(self, command: bytes) -> bytes:
        """Answer with the command."""
        return command


def main() -> None:
    """Propose at each of three replicas, until it leads."""
    replicas = {}
    with ExitStack() as stack:
        hosts = {number: stack.enter_context(NodeHost("127.0.0.1:0", IN_MEMORY)) for number in (1, 2, 3)}
        members = {number: host.address for number, host in hosts.items()}
        options: dict[str, Any] = {"shard_id": 1, "members": members, "handlers": table}
        for number, host in hosts.items():
            host.subscribe(lambda event: isinstance(event, ExtensionEvent) and print(event.event, flush=True))
            replicas[number] = host.start_replica(Echo, replica_id=number, **options)
        for number, replica in replicas.items():
            while replica.status().leader_id != number:
                with suppress(DrakkarError):  # while the leadership is handed over
                    replica.propose(b"work", timeout=9).get()
            print(f"replica {number} leads")


if __name__ == "__main__":
    main()
