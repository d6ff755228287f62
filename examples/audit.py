"""An audit of a shard: what was refused, and who was made the leader on purpose, is on record on every replica.

    python -m examples.audit

It wraps two of Raft's handlers. A deletion without a ticket is refused, wherever it was proposed, and its proposer is told why.
Of that, and of each order to take over the leadership, there is a mark: a record of the log, which comes to all replicas in the
same order, and is part of their snapshots. It is proposed until it comes back; a replica that crashes loses those that have not.
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
WAITING = 100  # marks that may wait until they come back
KEPT = 1_000  # marks that are kept, the last ones


class Audit(Extension):
    """The trail of marks, and the marks of this replica that are not in it yet."""

    def __init__(self, node: Any) -> None:
        super().__init__(node)
        self.trail: dict[str, str] = {}
        self.waiting: dict[str, str] = {}
        self.more = 0  # marks that were not kept, since too many waited
        node.every(10, Message(FLUSH))

    @handles(MessageType.PROPOSE, State.LEADER, wrap=True)
    def refuse(self, message: Message, inner: Any) -> None:
        """Refuse deletions without a ticket, and have the rest logged."""
        rest = self.node.veto(message, "write: delete KEY ticket NUMBER", only=self.lacks_ticket)
        if rest is not None:
            inner(rest)

    def lacks_ticket(self, entry: Any) -> bool:
        """Return whether an entry is such a deletion. Then there is a mark of it."""
        command = command_of(entry, limit=1 << 16) or b""
        if not command.startswith(b"delete ") or b" ticket " in command:
            return False
        self.mark(f"{command[:100]!r} was refused")
        return True

    @handles(MessageType.TIMEOUT_NOW, State.FOLLOWER, wrap=True)
    def note_order(self, order: Message, inner: Any) -> None:
        """Note that the leader wants this replica to take over."""
        self.mark(f"replica {order.sender} made replica {self.node.id} lead, after term {self.node.term}")
        inner(order)

    def mark(self, text: str) -> None:
        """Have a mark logged. Where too many wait, it is only counted, and a later mark tells the number."""
        if len(self.waiting) < WAITING:
            self.waiting[f"{self.node.random.getrandbits(64):x}"] = text
        else:
            self.more += 1

    @handles(FLUSH)
    def flush(self, _: Message) -> None:
        """Propose all marks that have not come back: there may have been no leader, or one that lost them."""
        if self.more and len(self.waiting) < WAITING:
            self.mark(f"there were {self.more} more, for which replica {self.node.id} had no room")
            self.more = 0
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


if __name__ == "__main__":
    table, replicas = raft_handlers().use(Audit), {}
    with ExitStack() as stack:
        hosts = {number: stack.enter_context(NodeHost("127.0.0.1:0", IN_MEMORY)) for number in (1, 2, 3)}
        home = {number: host.address for number, host in hosts.items()}
        for number, host in hosts.items():
            one = host.start_replica(Echo, shard_id=1, replica_id=number, members=home, handlers=table)
            replicas[number] = one
        for command in (b"set a 1", b"delete a", b"delete a ticket 7"):
            try:
                print("done:", replicas[2].propose(command, timeout=9).get())
            except RequestDropped as error:
                print("refused:", error)
        replicas[1].transfer_leadership(replicas[1].status().leader_id % 3 + 1).get()
        while any(len(replica.ask(Message(TRAIL))) < 2 for replica in replicas.values()):
            time.sleep(0.1)
        print(*(replica.ask(Message(TRAIL)) for replica in replicas.values()), sep="\n")
