"""The smallest handler of your own: the leader of a shard gives out tickets, of which no two are alike.

python -m examples.custom_handler
"""

from drakkar.actors import IN_MEMORY, NoCommands, NodeHost
from drakkar.handlers import Extension, Message, MessageType, State, handles, raft_handlers

TICKET = MessageType.define("example.ticket", 2000)


class Tickets(Extension):
    """A ticket is a term, which has one leader at most, and a number that this leader counts up."""

    given = 0

    @handles(TICKET, State.LEADER, elsewhere="only the leader gives tickets")
    def give(self, _: Message) -> tuple[int, int]:
        """Answer with the next ticket."""
        self.given += 1
        return self.node.term, self.given


table = raft_handlers().use(Tickets)
if __name__ == "__main__":
    with NodeHost("127.0.0.1:0", IN_MEMORY) as host:
        home = {1: host.address}
        one = host.start_replica(NoCommands, shard_id=1, replica_id=1, members=home, handlers=table)
        one.fence(timeout=9).get()  # it leads
        print(one.ask(Message(TICKET)), one.ask(Message(TICKET)))
