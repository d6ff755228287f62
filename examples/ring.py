"""A token goes around five hosts: who has it may work, and each token has a number that no token before it had.

    python -m examples.ring 1    # likewise 2 to 5, in terminals of their own, or with --hosts on five machines

Kill one with `kill -9`, or cut its link: the others go on without it. If the token is lost, a node asks all for their votes to
make another. A majority is enough, and none votes for the same number twice: so five hosts that are cut in two make one token.
One that is cut off with the token does not know that at once: what it works on must refuse smaller numbers than it has seen.
"""

import argparse
import sys
import time
from enum import IntEnum
from typing import Any

from drakkar.actors import NodeEvent, NodeHost, TableActor
from drakkar.handlers import Extension, HandlerTable, Message, MessageType, handles

WORK, PATIENCE = 3, 30  # ticks for which a node has the token; and at least waits for it
START = MessageType.define("ring.start", 2050)
TOKEN = MessageType.define("ring.token", 2051)
DONE = MessageType.define("ring.done", 2052)
LOST = MessageType.define("ring.lost", 2053)
CLAIM = MessageType.define("ring.claim", 2054)
VOTE = MessageType.define("ring.vote", 2055)
State = IntEnum("State", "NEW WAITING WORKING CLAIMING")


class Ring(Extension):
    """What a node knows: the others, the next one first, and who of them is down; the newest token; what it has voted for."""

    def __init__(self, node: Any) -> None:
        super().__init__(node)
        self.others = sorted(node.peers, key=lambda peer: (peer < node.name, peer))
        self.patience = PATIENCE + PATIENCE * sum(peer < node.name for peer in node.peers) // 5
        self.token, self.voted = (0, 0), 0
        self.votes, self.down = set[str](), set[str]()
        self.timer = node.after(1, Message(LOST))

    @handles(START, State.NEW, elsewhere="it has started")
    def start(self, message: Message) -> None:
        """Begin above all numbers that this node may have voted for in earlier lives."""
        self.voted = message.payload
        self.become(State.WAITING)

    @handles(TOKEN, State.WAITING, State.WORKING, State.CLAIMING, elsewhere="it has not started")
    def take(self, token: Message) -> None:
        """Work, unless a newer token was here, or this one, passed on as often."""
        if (token.hint, token.hint_high) > self.token:
            self.work(token.hint, token.hint_high)

    @handles(DONE, State.WORKING, elsewhere="it has no token")
    def pass_on(self, _: Message) -> None:
        """Send the token to the next node that is up. It is given up where a majority is down, which may have another."""
        up = [name for name in self.others if name not in self.down]
        if len(up) >= len(self.down):
            self.node.send(Message(TOKEN, to=up[0], hint=self.token[0], hint_high=self.token[1] + 1))
        self.become(State.WAITING)

    @handles(LOST, State.WAITING, State.CLAIMING, elsewhere="it has the token, or has not started")
    def claim(self, _: Message) -> None:
        """Ask all to vote for a number that is greater than any that is known here, and vote for it."""
        self.voted, self.votes = max(self.voted, self.token[0]) + 1, {self.node.name}
        for peer in self.node.peers:
            self.node.send(Message(CLAIM, to=peer, hint=self.voted))
        self.become(State.CLAIMING)

    @handles(CLAIM, State.WAITING, State.CLAIMING, elsewhere="it has the token, or has not started")
    def vote(self, claim: Message) -> None:
        """Vote for a number once, and never for a smaller one."""
        if claim.hint > max(self.voted, self.token[0]):
            self.voted = claim.hint
            self.node.reply(claim, VOTE, hint=claim.hint)
            self.become(State.WAITING)

    @handles(VOTE, State.CLAIMING, elsewhere="it claims nothing")
    def count(self, vote: Message) -> None:
        """Make the token when a majority has voted for its number."""
        if vote.hint == self.voted:
            self.votes.add(vote.sender)
            if 2 * len(self.votes) > len(self.others) + 1:
                self.work(self.voted, 0)

    @handles(MessageType.PEER_DOWN)
    def note_down(self, news: Message) -> None:
        """Pass a node over from now on."""
        self.down.add(news.sender)

    @handles(MessageType.PEER_UP)
    def note_up(self, news: Message) -> None:
        """Pass it over no longer."""
        self.down.discard(news.sender)

    def work(self, number: int, times: int) -> None:
        """Work with a token that was passed on so many times."""
        self.token = (number, times)
        self.become(State.WORKING)
        self.node.publish_event(f"works with token {number}")

    def become(self, state: State) -> None:
        """Be in a state for some time. No two wait for the token equally long, or they would claim it together."""
        self.timer.cancel()
        ticks, then = (WORK, DONE) if state is State.WORKING else (self.patience, LOST)
        self.node.state, self.timer = state, self.node.after(ticks, Message(then))


table = HandlerTable(State).use(Ring)
if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="ring")
    parser.add_argument("number", type=int, choices=range(1, 6))
    parser.add_argument("--hosts", nargs=5, default=[f"127.0.0.1:732{number}" for number in range(1, 6)])
    options = parser.parse_args()
    name, here = f"n{options.number}", options.hosts[options.number - 1]
    peers = {f"n{number}": host for number, host in enumerate(options.hosts, 1) if host != here}
    with NodeHost(here) as host:
        host.subscribe(lambda told: isinstance(told, NodeEvent) and print(told.name, told.event, flush=True))
        node = TableActor.start(handlers=table, state=State.NEW, host=host, name=name, peers=peers)
        node.tell(Message(START, payload=time.time_ns() // 1_000_000))
        sys.stdin.read()
