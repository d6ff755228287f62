"""An audit of a shard: what was refused, and who was made the leader on purpose, is on record on every replica.

    python -m examples.audit

It wraps two of Raft's handlers. A deletion without a ticket is refused, wherever it was proposed, and its proposer is told why.
For that, and for each order to take over the leadership, there is a mark. Marks travel in records of the log, so they come to
all replicas in the same order, and are part of their snapshots. They are proposed until they come back, and kept once.
"""

import time
from contextlib import ExitStack
from typing import Any

import cbor2
from drakkar.actors import IN_MEMORY, NodeHost, RequestDropped, State, StateMachine, command_of
from drakkar.handlers import EntryKind, Extension, Message, MessageType, delivers, handles, raft_handlers

MARK = EntryKind.define("audit.mark", 200)
FLUSH = MessageType.define("audit.flush", 2020, wakes=False)  # it does not keep a shard awake
TRAIL = MessageType.define("audit.trail", 2021)
AGAIN, KEPT, WAITING = 10, 1_000, 100  # ticks between proposals; marks that are kept; that may wait


class Audit(Extension):
    """The trail of marks, and the marks of this replica that are not in it yet."""

    def __init__(self, node: Any) -> None:
        super().__init__(node)
        self.trail: dict[str, str] = {}
        self.waiting: dict[str, str] = {}
        node.every(AGAIN, Message(FLUSH))

    @handles(MessageType.PROPOSE, State.LEADER, wrap=True)
    def refuse(self, message: Message, inner: Any) -> None:
        """Refuse deletions without a ticket, and have the rest logged."""
        rest = self.node.veto(message, "write: delete KEY ticket NUMBER", only=self.lacks_ticket)
        if rest is not None:
            inner(rest)

    def lacks_ticket(self, entry: Any) -> bool:
        """Return whether an entry is such a deletion. Then there is a mark of it."""
        command = command_of(entry, limit=100) or b""
        lacks = command.startswith(b"delete ") and b" ticket " not in command
        if lacks:
            self.mark(f"{command!r} was refused")
        return lacks

    @handles(MessageType.TIMEOUT_NOW, State.FOLLOWER, wrap=True)
    def note_order(self, order: Message, inner: Any) -> None:
        """Note that the leader wants this replica to take over."""
        self.mark(f"replica {order.sender} made replica {self.node.id} lead, after term {self.node.term}")
        inner(order)

    def mark(self, text: str) -> None:
        """Have a mark logged."""
        if len(self.waiting) < WAITING:
            self.waiting[f"{self.node.random.getrandbits(64):x}"] = text

    @handles(FLUSH)
    def flush(self, _: Message) -> None:
        """Propose all marks that have not come back: there may have been no leader, or one that lost them."""
        if self.waiting:
            self.node.propose(MARK, cbor2.dumps(self.waiting))

    @delivers(MARK)
    def keep(self, entry: Any) -> None:
        """Keep the marks that have not come before."""
        for tag, text in cbor2.loads(entry.payload).items():
            self.waiting.pop(tag, None)
            self.trail.setdefault(tag, text)
        while len(self.trail) > KEPT:
            del self.trail[next(iter(self.trail))]

    def save(self) -> bytes:
        """Return the trail as a part of a snapshot."""
        return cbor2.dumps(self.trail)

    def load(self, data: bytes) -> None:
        """Take the trail from a snapshot."""
        self.trail = cbor2.loads(data)

    @handles(TRAIL)
    def show(self, _: Message) -> list[str]:
        """Answer with all marks, oldest first."""
        return list(self.trail.values())


class Echo(StateMachine):
    """Whose commands are audited."""

    def apply(self, command: bytes) -> str:
        """Answer with the command."""
        return command.decode()


def main() -> None:
    """Propose, have another replica lead, and show the trail of each of three."""
    table, replicas = raft_handlers().use(Audit), {}
    with ExitStack() as stack:
        hosts = {number: stack.enter_context(NodeHost("127.0.0.1:0", IN_MEMORY)) for number in (1, 2, 3)}
        members = {number: host.address for number, host in hosts.items()}
        for number, host in hosts.items():
            replicas[number] = host.start_replica(
                Echo, shard_id=1, replica_id=number, members=members, handlers=table
            )
        for command in (b"set a 1", b"delete a", b"delete a ticket 7"):
            try:
                print("done:", replicas[2].propose(command, timeout=9).get())
            except RequestDropped as error:
                print("refused:", error)
        leader = replicas[1].status().leader_id
        replicas[1].transfer_leadership(leader % 3 + 1).get()
        while any(len(replica.ask(Message(TRAIL))) < 2 for replica in replicas.values()):
            time.sleep(0.1)
        print(*(replica.ask(Message(TRAIL)) for replica in replicas.values()), sep="\n")


if __name__ == "__main__":
    main()
