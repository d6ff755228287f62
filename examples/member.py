"""One host of a key-value store whose members change. It takes commands on standard input, as lines of JSON.

    python -m examples.member --replica 1 --address 127.0.0.1:7001 --data-dir d1 --members 1=127.0.0.1:7001
    {"id": 1, "do": "write", "arguments": [["greeting", "hello"]]}
    {"id": 2, "do": "add_observer", "arguments": [2, "127.0.0.1:7002"]}
    {"id": 3, "do": "status"}

To have a host to add, run in another terminal:

    python -m examples.member --replica 2 --address 127.0.0.1:7002 --data-dir d2 --join --role OBSERVER

It catches up then, and `{"id": 4, "do": "add_replica", "arguments": [2, "127.0.0.1:7002"]}` makes it a voter. Without a second host
that is refused, since the shard could commit nothing more; `"force": true` in the line would do it all the same.

It ends when standard input ends, or when its shard has removed it. `examples.membership_demo` runs several of them.

From top to bottom: how a replica is started; the commands, which are methods of `Replica`; the answers; the process.
"""

import argparse
import json
import logging
import queue
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import cbor2
import pykka
from drakkar.actors import (
    ActorFuture,
    ConfigError,
    DrakkarError,
    NodeHost,
    Replica,
    ReplicaEnded,
    ReplicaRemoved,
)
from drakkar.handlers import Change, ChangeType, State

from examples.kv import KeyValue, address, members, replica_id

SHARD: Final = 1
SETTINGS: Final = {"snapshot_entries": 20_000, "compaction_overhead": 5_000}
"""A snapshot every 20,000 entries, so a host that joins gets the newest one and the log after it, not every write."""
TIMEOUT: Final = 5.0

Say: TypeAlias = Callable[[dict[str, Any]], None]


def start(host: NodeHost, options: argparse.Namespace) -> Replica:
    """Start the replica: one of the first members, or one that joins an existing shard."""
    if not options.join:
        return host.start_replica(
            KeyValue,
            shard_id=SHARD,
            replica_id=options.replica,
            members=options.members,
            config=SETTINGS,
        )
    # It knows only its own id and role, and waits until the leader of the shard contacts it.
    return host.start_replica(
        KeyValue,
        shard_id=SHARD,
        replica_id=options.replica,
        join=True,
        role=State[options.role],
        config=SETTINGS if options.role != "WITNESS" else None,
    )


# -- Commands ---------------------------------------------------------------------------------------------------

CALLS: Final = frozenset(
    {"add_observer", "add_replica", "add_witness", "remove_replica", "transfer_leadership"}
)


def begin(replica: Replica, command: Mapping[str, Any]) -> ActorFuture[Any]:
    """Begin one command. Every member but a witness takes them all, leader or not."""
    arguments, timeout = command.get("arguments", []), command.get("timeout", TIMEOUT)
    force = {"force": command["force"]} if "force" in command else {}
    match command["do"]:
        case "write":
            writes = [cbor2.dumps(["SET", key.encode(), text.encode()]) for key, text in arguments]
            return replica.propose_many(writes, timeout=timeout)
        case "read":
            return replica.read([["MGET", *(key.encode() for key in arguments)]], timeout=timeout)
        case "change_membership":
            changes = [Change(ChangeType[kind], *target) for kind, *target in arguments]
            return replica.change_membership(changes, timeout=timeout, **force)
        case do if do in CALLS:
            future: ActorFuture[Any] = getattr(replica, do)(*arguments, timeout=timeout, **force)
            return future
        case do:
            raise ConfigError("do", do, "is not a command: see the examples at the top of this program")


def run_commands(replica: Replica, say: Say, over: threading.Event) -> None:
    """Read commands until the input ends, and answer each when it is done. Sets `over` at the end."""
    for line in sys.stdin:
        number = None
        try:
            command = json.loads(line)
            number = command["id"]
            if command["do"] == "status":
                say({"id": number, "value": status_of(replica)})
            else:
                begin(replica, command).add_done_callback(partial(answer, say, number))
        except (ValueError, KeyError, TypeError) as error:
            say({"id": number, "error": type(error).__name__, "known": True, "text": str(error)})
    over.set()


# -- Answers ---------------------------------------------------------------------------------------------------


def answer(say: Say, number: int, done: ActorFuture[Any]) -> None:
    """Answer a command with its result or its error; `known` says that a failed one certainly had no effect."""
    result, error = done.outcome()
    if error is not None:
        known = isinstance(error, DrakkarError) and error.outcome_known
        say({"id": number, "error": type(error).__name__, "known": known, "text": str(error)})
        return
    match result:
        case [[*values]]:  # the values of a read
            say({"id": number, "value": [value and value.decode() for value in values]})
        case _:
            say({"id": number, "value": "done"})


def status_of(replica: Replica) -> dict[str, Any]:
    """Return the state of the replica, for the command `status`."""
    status = replica.status()
    return {
        "state": status.state.name,
        "term": status.term,
        "leader": status.leader_id,
        "commit": status.commit,
        "applied": status.applied,
        "first": status.first_index,
        "voters": status.voters,
        "observers": status.observers,
        "witnesses": status.witnesses,
    }


class Listener(pykka.ThreadingActor):
    """Receives the host's events, and ends the process when the replica has ended."""

    def __init__(self, say: Say, over: threading.Event) -> None:
        super().__init__()
        self._say, self._over = say, over
        self.failure: BaseException | None = None

    def on_receive(self, message: object) -> None:
        """Handle one event."""
        if isinstance(message, ReplicaRemoved):
            self._say({"event": "removed"})
        elif isinstance(message, ReplicaEnded):
            self.failure = message.reason
            self._over.set()


class Output:
    """Writes lines to standard output in a thread of its own, so that the host's loop never waits for it."""

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def say(self, line: dict[str, Any]) -> None:
        """Queue a line. From any thread."""
        self._lines.put(line)

    def finish(self) -> None:
        """Wait until all lines are written, for one second at most."""
        self._lines.put(None)
        self._thread.join(1.0)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            print(json.dumps(line), flush=True)


# -- The process ------------------------------------------------------------------------------------------------


def serve(options: argparse.Namespace) -> None:
    """Run the host until its input or its replica ends. Raises the error where the replica failed."""
    output, over = Output(), threading.Event()
    with NodeHost(str(options.address), data_dir=options.data_dir, deployment_id="members") as host:
        listener = Listener.start(output.say, over)
        host.subscribe(listener)
        replica = start(host, options)
        threading.Thread(target=run_commands, args=(replica, output.say, over), daemon=True).start()
        output.say({"event": "ready"})
        over.wait()
        failure = listener.proxy().failure.get()
    listener.stop()
    output.finish()
    if failure is not None:
        raise failure


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line. Ends the process with status 2 and a message where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="member", description="One host of a shard whose members change.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--replica", type=replica_id, required=True, metavar="N", help="its replica id, never used before")
    add(
        "--address",
        type=address,
        required=True,
        metavar="HOST:PORT",
        help="where other hosts reach this one",
    )
    add(
        "--data-dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="where it keeps its log; created if missing",
    )
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument(
        "--members", type=members, metavar="1=HOST:PORT,...", help="the first members, with this one"
    )
    either.add_argument("--join", action="store_true", help="join an existing shard")
    add(
        "--role",
        choices=("FOLLOWER", "OBSERVER", "WITNESS"),
        default="FOLLOWER",
        help="the role in which it joins (default: %(default)s)",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one host, and return its exit status: 0 where it was stopped or removed, 1 after an error."""
    options = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        serve(options)
    except KeyboardInterrupt:
        return 0
    except (DrakkarError, OSError) as error:
        print(f"member: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
