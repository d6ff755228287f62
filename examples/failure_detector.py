"""A failure detector between hosts, after SWIM: all learn who is dead, and more hosts cost none of them more messages.

    python -m examples.failure_detector 1    # likewise 2 to 5, in terminals of their own, or with --hosts on five machines

Kill one with `kill -9`: some seconds later all believe it dead. Start it again: it is alive. In each period a node pings one
other, in turn. If that does not answer, two more are asked to ping it, since perhaps only its own way there is cut. If they
hear nothing, it is a suspect, and dead some periods later, unless it objects. What a node believes travels with all it says.
"""

import argparse
import sys
from enum import IntEnum
from typing import Any

from drakkar.actors import NodeEvent, NodeHost, TableActor
from drakkar.handlers import Extension, HandlerTable, Message, MessageType, handles

PERIOD = 10  # ticks from ping to ping
OBJECTION = 8  # periods in which a suspect may object
ALIVE, SUSPECT, DEAD = 0, 1, 2
BEGIN = MessageType.define("swim.begin", 2010)
PING = MessageType.define("swim.ping", 2011)
ACK = MessageType.define("swim.ack", 2012)
LATE = MessageType.define("swim.late", 2013)
ASSIST = MessageType.define("swim.assist", 2014)


class State(IntEnum):
    """Whether the node that was pinged last has answered."""

    ANSWERED = 0
    PINGED = 1
    ASSISTED = 2


class Swim(Extension):
    """What a node believes of each: a number, which only that one raises, when it objects; and its health."""

    def __init__(self, node: Any) -> None:
        super().__init__(node)
        self.beliefs = dict.fromkeys((node.name, *node.peers), (0, ALIVE))
        self.since = dict.fromkeys(self.beliefs, 0)  # the period in which a belief began
        self.period, self.pinged = 0, node.name
        node.every(PERIOD, Message(BEGIN))

    @handles(BEGIN)
    def begin(self, _: Message) -> None:
        """Judge the node that was pinged last, and the suspects; then ping the next one."""
        if self.node.state is not State.ANSWERED:
            self.believe(self.pinged, (self.beliefs[self.pinged][0], SUSPECT))
        self.period += 1
        for name, (number, health) in self.beliefs.items():
            if health == SUSPECT and self.period - self.since[name] > OBJECTION:
                self.believe(name, (number, DEAD))
        self.pinged = self.node.peers[self.period % len(self.node.peers)]
        self.say(PING, self.pinged, self.pinged, self.node.name)
        self.node.state = State.PINGED
        self.node.after(PERIOD // 2, Message(LATE))

    @handles(LATE, State.PINGED, elsewhere="it has answered")
    def ask_two_more(self, _: Message) -> None:
        """Have the next two ping it as well."""
        after = self.period % len(self.node.peers) + 1
        for other in (self.node.peers * 2)[after : after + 2]:
            self.say(ASSIST, other, self.pinged, self.node.name)
        self.node.state = State.ASSISTED

    @handles(PING)
    @handles(ASSIST)
    def answer(self, message: Message) -> None:
        """Answer a ping, or ping another node, on behalf of who asked."""
        about, asker = self.hear(message)
        type_, to = (ACK, message.sender) if about == self.node.name else (PING, about)
        self.say(type_, to, about, asker)

    @handles(ACK)
    def note(self, ack: Message) -> None:
        """Note that the node has answered, or pass that on to who asked."""
        about, asker = self.hear(ack)
        if asker != self.node.name:
            self.say(ACK, asker, about, asker)
        elif about == self.pinged:
            self.node.state = State.ANSWERED

    def say(self, type_: MessageType, to: str, about: str, asker: str) -> None:
        """Send a message, and all beliefs with it."""
        self.node.send(Message(type_, to=to, payload=[about, asker, self.beliefs]))

    def hear(self, message: Message) -> tuple[str, str]:
        """Learn what the sender believes; return whom the message is about, and who asked."""
        about, asker, beliefs = message.payload
        for name, (number, health) in beliefs.items():
            self.believe(name, (number, health))
        return about, asker

    def believe(self, name: str, belief: tuple[int, int]) -> None:
        """Believe what has the greater number, or is graver under the same. A node objects to all that is said of itself."""
        number, health = self.beliefs[name]
        if belief > (number, health):
            belief = (belief[0] + 1, ALIVE) if name == self.node.name else belief
            self.beliefs[name], self.since[name] = belief, self.period
            if belief[1] != health:
                self.node.publish_event(f"believes {name} {('alive', 'suspect', 'dead')[belief[1]]}")


table = HandlerTable(State).use(Swim)
if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="failure_detector")
    parser.add_argument("number", type=int, choices=range(1, 6))
    parser.add_argument("--hosts", nargs=5, default=[f"127.0.0.1:731{number}" for number in range(1, 6)])
    options = parser.parse_args()
    name, here = f"n{options.number}", options.hosts[options.number - 1]
    peers = {f"n{number}": host for number, host in enumerate(options.hosts, 1) if host != here}
    with NodeHost(here) as host:
        host.subscribe(lambda told: isinstance(told, NodeEvent) and print(told.name, told.event, flush=True))
        TableActor.start(handlers=table, state=State.ANSWERED, host=host, name=name, peers=peers)
        print(name, "is here", flush=True)
        sys.stdin.read()
