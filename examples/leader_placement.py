"""The leader of a shard goes to where the work is: to the replica at which most is proposed.

    python -m examples.leader_placement

What is proposed at another replica goes to the leader and back. So the leader counts where proposals come from, and hands the
leadership over when a period of its term has shown that more come from one other voter than from all the rest.
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
        self.term = 0
        node.every(PERIOD, Message(JUDGE))

    @handles(MessageType.PROPOSE, State.LEADER, wrap=True)
    def count(self, message: Message, inner: Any) -> None:
        """Count proposals of clients here, and those that other replicas have forwarded."""
        self.proposals[message.sender or self.node.id] += len(message.entries)
        inner(message)

    @handles(JUDGE)
    def judge(self, _: Message) -> None:
        """Begin a new period. Hand over, if the past one was this leader's, and shows to whom."""
        proposals, term = self.proposals, self.term
        self.proposals, self.term = Counter(), self.node.term
        total = proposals.total()
        if self.node.state is not State.LEADER or term != self.node.term or total < ENOUGH:
            return
        [(busiest, count)] = proposals.most_common(1)
        if 2 * count > total and busiest != self.node.id and busiest in self.node.voters:
            self.node.publish_event(f"replica {busiest} is to lead: {count} of {total} proposals are its own")
            self.node.step(Message(MessageType.LEADER_TRANSFER, sender=self.node.id, hint=busiest))


class Echo(StateMachine):
    """To which clients propose."""

    def apply(self, command: bytes) -> bytes:
        """Answer with the command."""
        return command


def main() -> None:
    """Propose at each of three replicas, until it leads."""
    table, replicas = raft_handlers().use(Placement), {}
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
