"""A bank in pykka: its ledger on one host, its tellers on another, and on each a supervisor that restarts what fails.

    python -m examples.bank ledger     # in one terminal, and in another one:
    python -m examples.bank tellers    # or on two machines, with --ledger and --tellers

Type orders into the second: `ann 5`, `ann -3`, `ann -9`. After `crash` the ledger fails, and is started again. Kill its
process with `kill -9`, type an order, and start the process again: the order is done, once, since a teller repeats it
until it has an answer, and the ledger knows by their numbers which it has done. Ctrl-D ends either.
"""

import argparse
import sqlite3
import sys
import time
from contextlib import closing, suppress
from dataclasses import astuple, dataclass
from functools import partial
from uuid import uuid4

import pykka
from drakkar import actors

DEAD_OR_LATE = (pykka.ActorDeadError, pykka.Timeout)
PATIENCE_S = 30
LOST = (actors.HostGone, actors.UnknownName, actors.SystemBusy, actors.OutcomeUnknown, *DEAD_OR_LATE)


@actors.message("bank.order")
@dataclass(frozen=True)
class Order:
    """Add an amount to an account; one below zero is taken away."""

    number: str
    account: str
    amount: int


@actors.failure("bank.overdrawn")
class Overdrawn(Exception):
    """The order was not done: the account has too little."""


class Ledger(pykka.ThreadingActor):
    """Keeps all orders in a file, which outlives the actor and its host."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self._file = file

    def on_receive(self, message: Order) -> int:
        """Do an order, unless it is done already, and return what the account has. An exception undoes it."""
        with closing(sqlite3.connect(self._file)) as db, db:
            db.execute("CREATE TABLE IF NOT EXISTS orders (number PRIMARY KEY, account, amount)")
            db.execute("INSERT OR IGNORE INTO orders VALUES (?, ?, ?)", astuple(message))
            orders = db.execute("SELECT sum(amount) FROM orders WHERE account = ?", (message.account,))
            balance: int = orders.fetchone()[0]
            if balance < 0:
                raise Overdrawn(f"{message.account} lacks {-balance}")
        return balance


class Teller(pykka.ThreadingActor):
    """Takes orders to the ledger, wherever that is."""

    def __init__(self, find_ledger: partial[pykka.ActorRef[Ledger]]) -> None:
        super().__init__()
        self._find_ledger, self._ledger = find_ledger, None

    def order(self, account: str, amount: int) -> int:
        """Have an order done once, and return what the account has. While the ledger is away, try again and again."""
        order, until = Order(uuid4().hex, account, amount), time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            with suppress(*LOST):  # it may be done, or not
                self._ledger = self._ledger or self._find_ledger()
                return int(self._ledger.ask(order, timeout=3))
            self._ledger = None
            time.sleep(0.05)
        raise actors.OutcomeUnknown("the ledger is away: see later what the account has")


def do(line: str, teller: pykka.ActorProxy[Teller], find_ledger: partial[pykka.ActorRef[Ledger]]) -> str:
    """Do what a line says, and return what came of it."""
    try:
        if line.strip() == "crash":
            find_ledger().tell("no order")
            return "the ledger was told something that it cannot handle"
        account, amount = line.split()
        return f"{account} has {teller.order(account, int(amount)).get()}"
    except (Overdrawn, ValueError, actors.DrakkarError, *DEAD_OR_LATE) as error:
        unsure = isinstance(error, DEAD_OR_LATE) or not getattr(error, "outcome_known", True)
        return f"{'perhaps' if unsure else 'not'} done: {error}"


def main() -> None:
    """Run one of the two hosts, until standard input ends."""
    parser = argparse.ArgumentParser(prog="bank")
    parser.add_argument("role", choices=("ledger", "tellers"))
    parser.add_argument("--ledger", default="127.0.0.1:7000", help="the address of the ledger's host")
    parser.add_argument("--tellers", default="127.0.0.1:7001", help="the address of the tellers' host")
    parser.add_argument("--file", default="ledger.sqlite", help="where the ledger keeps its orders")
    options = parser.parse_args()
    with suppress(KeyboardInterrupt), actors.NodeHost(getattr(options, options.role)) as host:
        find = partial(host.remote, options.ledger, "ledger", timeout=3)
        specs = [actors.ChildSpec(name, Teller, args=(find,)) for name in ("teller 1", "teller 2")]
        if options.role == "ledger":
            specs = [actors.ChildSpec("ledger", Ledger, args=(options.file,), publish="ledger")]
        children = actors.Supervisor.start(specs, publish=host.publish).proxy()
        try:
            children.ready().get(timeout=10)
            print("ready", flush=True)
            for number, line in enumerate(sys.stdin):
                if options.role == "tellers":
                    print(do(line, children.ref_of(specs[number % 2].name).get().proxy(), find), flush=True)
        finally:
            children.actor_ref.stop()


if __name__ == "__main__":
    main()
