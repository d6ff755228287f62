"""Clients in a process of their own, which write and read registers through all hosts and keep a history.

The first line tells them everything, as JSON: `doors`, the hosts' sockets; `clients`, their numbers; `seed`; `pause`,
the seconds between two of their operations, on average; and `history`, the file that takes what they did. They end
when the orders do. Times are those of the machine's one monotonic clock, which all processes read alike.
"""

import itertools
import json
import random
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

DEADLINE = 1.0
"""Seconds after which a host shall have answered."""
GRACE = 0.5
"""Seconds that a client waits longer than that, for a host that was stopped meanwhile, say."""
EPOCH = 10.0
"""Seconds after which all clients leave their keys for new ones, so that no history of a key gets long."""
KEYS = 4
KINDS = {"get": 4, "put": 2, "add": 2, "cas": 2}
"""How often each is done."""
RESTLESS = 0.2
"""How often a client goes to another host, although this one serves it well."""


class Client:
    """One client, which does one thing after the other; for one thread. `history` has all of it, as dictionaries.

    What became of each is its `outcome`: "done", with a result; "refused", surely without effect; or "unknown".
    """

    def __init__(self, name, doors):
        self.name, self._doors = name, doors
        self._connections = {}
        self.history = []

    def do(self, host, kind, key, argument=None):
        """Do one thing through a host, and return what became of it."""
        if kind == "get":
            order = {"do": "read", "query": key}
        else:
            # What is added twice would be seen, so that is done in a session, which repeats it by itself.
            order = {
                "do": "once" if kind == "add" else "propose",
                "command": json.dumps([kind, key, argument]),
            }
        operation = {"client": self.name, "host": host, "kind": kind, "key": key, "argument": argument}
        operation["invoked"] = time.monotonic()
        operation["outcome"], operation["result"] = self._ask(host, order)
        operation["returned"] = time.monotonic()
        self.history.append(operation)
        return operation

    def _ask(self, host, order):
        try:
            connection = self._connection(host)
        except OSError as error:  # it was killed before it was asked anything
            return "refused", str(error)
        try:
            answer = connection.ask({"id": 0, "timeout": DEADLINE, **order})
        except OSError as error:
            self._connections.pop(host).close()
            return "unknown", str(error)
        if "value" in answer:
            return "done", answer["value"]
        return "refused" if answer["known"] else "unknown", f"{answer['error']}: {answer['text']}"

    def _connection(self, host):
        if host not in self._connections:
            self._connections[host] = Connection(self._doors[host])
        return self._connections[host]

    def close(self):
        for connection in self._connections.values():
            connection.close()


class Connection:
    """To a host's door."""

    def __init__(self, path):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(DEADLINE + GRACE)
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise
        self._answers = self._socket.makefile("rb")

    def ask(self, order):
        """Raises `OSError` where no answer comes; it is worth nothing afterwards, since that one may still come."""
        self._socket.sendall(json.dumps(order).encode() + b"\n")
        answer = self._answers.readline()
        if not answer.endswith(b"\n"):
            raise ConnectionResetError("the host left before it answered")
        return json.loads(answer)

    def close(self):
        self._answers.close()
        self._socket.close()


class Habits:
    """What a client does next, drawn from a random source. Every text that it writes is unlike all others."""

    def __init__(self, name, random):
        self._name, self._random = name, random
        self._numbers = itertools.count(1)
        self._seen = {}
        """What each key held when the client last heard of it, which is what a comparison expects."""

    def next(self):
        """Return a kind, a key and an argument."""
        (kind,) = self._random.choices(list(KINDS), list(KINDS.values()))
        key = f"{int(time.monotonic() / EPOCH)}-{self._random.randrange(KEYS)}"
        text = f"{self._name}.{next(self._numbers)};"
        return kind, key, {"get": None, "cas": [self._seen.get(key), text]}.get(kind, text)

    def learn(self, operation):
        if operation["outcome"] == "done":
            match operation["kind"], operation["result"]:
                case "put", _:
                    self._seen[operation["key"]] = operation["argument"]
                case "cas", True:
                    self._seen[operation["key"]] = operation["argument"][1]
                case "get" | "add", text:
                    self._seen[operation["key"]] = text


def live(name, who, over, note):
    """Be one client until it is over; `note` each operation."""
    doors = {int(number): path for number, path in who["doors"].items()}
    client, source = Client(name, doors), random.Random(f"{who['seed']}-{name}")
    habits, hosts = Habits(name, source), list(doors)
    host = source.choice(hosts)
    while not over.wait(source.uniform(0, 2 * who["pause"])):
        operation = client.do(host, *habits.next())
        habits.learn(operation)
        note(operation)
        if operation["outcome"] != "done" or source.random() < RESTLESS:
            host = source.choice(hosts)
    client.close()


def main():
    who, over, lock = json.loads(sys.stdin.readline()), threading.Event(), threading.Lock()
    with Path(who["history"]).open("w", buffering=1) as file, ThreadPoolExecutor(len(who["clients"])) as pool:

        def note(operation):
            with lock:
                file.write(json.dumps(operation) + "\n")

        lives = [pool.submit(live, name, who, over, note) for name in who["clients"]]
        with suppress(KeyboardInterrupt):
            sys.stdin.read()
        over.set()
        for each in lives:
            each.result()


if __name__ == "__main__":
    main()
