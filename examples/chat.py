"""A chat of people on three hosts, who find one another by their names.

    python -m examples.chat 1 ann --data c1
    python -m examples.chat 2 bob --data c2
    python -m examples.chat 3 cat --data c3

Start each in a terminal of its own, or with --hosts on three machines. What you type goes to all, `@bob hello` to bob,
and `/answer yes` to the last one you heard; `/who` lists who is there, and Ctrl-D ends. Kill one with `kill -9`: those
who have heard its user are told, and the other two go on. Start it again with its data: its user is found again.

The names are in a directory, which has a copy on each host, and works as long as two of the three do.
"""

import argparse
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pykka
from drakkar.actors import ActorDied, DrakkarError, NodeHost, message, watch

DIRECTORY = 1
"""The shard of the directory."""


def show(text: str) -> None:
    """Print a line as a whole, since several threads print."""
    print(f"{text}\n", end="", flush=True)


@message("chat.line")
@dataclass(frozen=True)
class Line:
    """What someone says, with a reference by which to answer."""

    author: str
    text: str
    speaker: pykka.ActorRef[Any]


class User(pykka.ThreadingActor):
    """Someone who chats on this host: shows what others say, and which of them is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.last: pykka.ActorRef[Any] = self.actor_ref
        """The last one that was heard."""
        self._heard: dict[str, str] = {}

    def on_receive(self, message: Any) -> None:
        """Show what someone says, or that someone is gone."""
        if isinstance(message, Line):
            show(f"{message.author}: {message.text}")
            self.last, urn = message.speaker, message.speaker.actor_urn
            if urn not in self._heard:
                watch(self.last, self.actor_ref)
            self._heard[urn] = message.author
        elif isinstance(message, ActorDied):
            author = self._heard.pop(message.ref.actor_urn, "someone")
            show(f"{author} is gone: {message.reason or 'has left'}")


def do(line: str, host: NodeHost, name: str, user: pykka.ActorRef[User]) -> None:
    """Do what a line says. Each one who is to hear it does so at most once; say of whom that is not known."""
    to, _, text = line.partition(" ")
    try:
        if to == "/who":
            show(f"here are {', '.join(host.registered_names())}")
        elif to == "/answer":
            user.proxy().last.get().ask(Line(name, text, user), timeout=5)
        elif to.startswith("@"):
            host.find(to[1:]).ask(Line(name, text, user), timeout=5)
        else:
            for other in host.registered_names():
                if other != name:
                    do(f"@{other} {line}", host, name, user)
    except (DrakkarError, pykka.ActorDeadError, pykka.Timeout) as error:
        show(f"{to} has perhaps not heard it: {error}")


def main() -> None:
    """Run one host and its user, until standard input ends."""
    local = [f"127.0.0.1:720{number}" for number in (1, 2, 3)]
    parser = argparse.ArgumentParser(prog="chat")
    parser.add_argument("number", type=int, choices=(1, 2, 3), help="which of the three hosts this is")
    parser.add_argument("name", help="your name, which no other user has")
    parser.add_argument("--hosts", nargs=3, default=local, metavar="HOST:PORT", help="all three, in order")
    parser.add_argument("--data", required=True, metavar="DIR", help="where this host keeps its log")
    options = parser.parse_args()
    members = dict(enumerate(options.hosts, 1))
    with NodeHost(members[options.number], options.data) as host:
        host.start_directory(shard_id=DIRECTORY, replica_id=options.number, members=members)
        user = User.start()
        try:
            with suppress(KeyboardInterrupt):
                host.register(options.name, user, timeout=60)  # two of the three must be there
                show("ready")
                for line in sys.stdin:
                    do(line.strip(), host, options.name, user)
            host.unregister(options.name)
        except DrakkarError as error:
            sys.exit(f"chat: {error}")
        finally:
            user.stop()


if __name__ == "__main__":
    main()
