"""One host of a key-value store whose members change, which does what it is told on standard input.

    python -m examples.member --replica 1 --address 127.0.0.1:7001 --data-dir d1 --members 1=127.0.0.1:7001
    {"id": 1, "do": "write", "arguments": [["greeting", "hello"]]}
    {"id": 2, "do": "add_observer", "arguments": [2, "127.0.0.1:7002"]}
    {"id": 3, "do": "status"}

and, so that there is a host to add, in another terminal:

    python -m examples.member --replica 2 --address 127.0.0.1:7002 --data-dir d2 --join --role OBSERVER

It ends with its orders, or by itself when its shard has removed it. `examples.membership_demo` runs many of them.

From top to bottom: how a replica is started; the orders, which are the calls of `Replica`; what is said; the process.
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
"""So a host that joins is sent the newest snapshot and the log behind it, not all that was ever written."""
TIMEOUT: Final = 5.0

Say: TypeAlias = Callable[[dict[str, Any]], None]


def start(host: NodeHost, options: argparse.Namespace) -> Replica:
    """Start the replica: one of the first members, or one that joins a shard that exists."""
    if not options.join:
        return host.start_replica(
            KeyValue,
            shard_id=SHARD,
            replica_id=options.replica,
            members=options.members,
            config=SETTINGS,
        )
    # It is told nothing but its own number and role, and waits until the shard's leader finds it.
    return host.start_replica(
        KeyValue,
        shard_id=SHARD,
        replica_id=options.replica,
        join=True,
        role=State[options.role],
        config=SETTINGS if options.role != "WITNESS" else None,
    )


# -- Orders -----------------------------------------------------------------------------------------------------

CALLS: Final = frozenset(
    {"add_observer", "add_replica", "add_witness", "remove_replica", "transfer_leadership"}
)


def begin(replica: Replica, order: Mapping[str, Any]) -> ActorFuture[Any]:
    """Begin what an order says. All of it may be asked of any member but a witness, whoever leads."""
    arguments, timeout = order.get("arguments", []), order.get("timeout", TIMEOUT)
    match order["do"]:
        case "write":
            commands = [cbor2.dumps(["SET", key.encode(), text.encode()]) for key, text in arguments]
            return replica.propose_many(commands, timeout=timeout)
        case "read":
            return replica.read([["MGET", *(key.encode() for key in arguments)]], timeout=timeout)
        case "change_membership":
            changes = [Change(ChangeType[kind], *who) for kind, *who in arguments]
            return replica.change_membership(changes, timeout=timeout)
        case do if do in CALLS:
            future: ActorFuture[Any] = getattr(replica, do)(*arguments, timeout=timeout)
            return future
        case do:
            raise ConfigError("do", do, "is no order: see the examples in this program")


def obey(replica: Replica, say: Say, over: threading.Event) -> None:
    """Do what is ordered, and answer when it is done, until there are no more orders."""
    for line in sys.stdin:
        number = None
        try:
            order = json.loads(line)
            number = order["id"]
            if order["do"] == "status":
                say({"id": number, "value": standing(replica)})
            else:
                begin(replica, order).add_done_callback(partial(answer, say, number))
        except (ValueError, KeyError, TypeError) as error:
            say({"id": number, "error": type(error).__name__, "known": True, "text": str(error)})
    over.set()


# -- What is said -----------------------------------------------------------------------------------------------


def answer(say: Say, number: int, done: ActorFuture[Any]) -> None:
    """Say what came of an order; `known`: whether it surely had no effect."""
    result, error = done.outcome()
    if error is not None:
        known = isinstance(error, DrakkarError) and error.outcome_known
        say({"id": number, "error": type(error).__name__, "known": known, "text": str(error)})
        return
    match result:
        case [[*values]]:  # of a read
            say({"id": number, "value": [value and value.decode() for value in values]})
        case _:
            say({"id": number, "value": "done"})


def standing(replica: Replica) -> dict[str, Any]:
    """Say where the replica stands."""
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
    """Hears the host's events, and ends the process with the replica."""

    def __init__(self, say: Say, over: threading.Event) -> None:
        super().__init__()
        self._say, self._over = say, over
        self.failure: BaseException | None = None

    def on_receive(self, message: object) -> None:
        """Take one event."""
        if isinstance(message, ReplicaRemoved):
            self._say({"event": "removed"})
        elif isinstance(message, ReplicaEnded):
            self.failure = message.reason
            self._over.set()


class Voice:
    """Writes lines on a thread of its own, so that none of the loop's time is spent on it."""

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def say(self, line: dict[str, Any]) -> None:
        """Have it written. From any thread."""
        self._lines.put(line)

    def finish(self) -> None:
        """Wait until all is written, a second at most."""
        self._lines.put(None)
        self._thread.join(1.0)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            print(json.dumps(line), flush=True)


# -- The process ------------------------------------------------------------------------------------------------


def serve(options: argparse.Namespace) -> None:
    """Run the host until its orders end, or its replica does. Raises what that one failed with."""
    voice, over = Voice(), threading.Event()
    with NodeHost(str(options.address), data_dir=options.data_dir, deployment_id="members") as host:
        listener = Listener.start(voice.say, over)
        host.subscribe(listener)
        replica = start(host, options)
        threading.Thread(target=obey, args=(replica, voice.say, over), daemon=True).start()
        voice.say({"event": "ready"})
        over.wait()
        failure = listener.proxy().failure.get()
    listener.stop()
    voice.finish()
    if failure is not None:
        raise failure


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line. Ends the process with status 2 and a message where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="member", description="One host of a shard whose members change.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--replica", type=replica_id, required=True, metavar="N", help="its number, never used before")
    add(
        "--address",
        type=address,
        required=True,
        metavar="HOST:PORT",
        help="where the other hosts find this one",
    )
    add("--data-dir", type=Path, required=True, metavar="DIR", help="where it keeps its log; made if missing")
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument(
        "--members", type=members, metavar="1=HOST:PORT,...", help="the first members, this one among them"
    )
    either.add_argument("--join", action="store_true", help="enter a shard that exists")
    add(
        "--role",
        choices=("FOLLOWER", "OBSERVER", "WITNESS"),
        default="FOLLOWER",
        help="what to join as (default: %(default)s)",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one host, and tell how it ended: 0 when it was asked to stop or was removed, 1 for trouble."""
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
