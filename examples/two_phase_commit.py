"""Ann pays bob, or she does not: a two-phase commit between two hosts, whose coordinator is killed in the middle.

    python -m examples.two_phase_commit

The bank has both accounts promise; then who asked for the payment writes down that it is done, and the bank tells the accounts.
They keep what they have promised, whatever happens, until they hear that. A bank that was killed is started again with what is
written, and the accounts ask it: what is not written is not done. `make demo-handlers` kills processes, and writes into a file.
"""

from enum import IntEnum
from typing import Any

from drakkar.actors import NodeHost, TableActor
from drakkar.handlers import Extension, HandlerTable, Message, MessageType, handles

NAMES = ("begin", "pay", "promise", "vote", "end", "ended", "again")
BEGIN, PAY, PROMISE, VOTE, END, ENDED, AGAIN = (
    MessageType.define(f"payment.{name}", 2040 + at) for at, name in enumerate(NAMES)
)
State = IntEnum("State", "NEW FREE WAITING")


class Bank(Extension):
    """Has both accounts promise, and tells them what is written: one payment at a time."""

    @handles(BEGIN, State.NEW, elsewhere="it has begun")
    def begin(self, message: Message) -> None:
        """Begin with the numbers of all payments that are written."""
        self.written, self.node.state = set(message.payload), State.FREE
        self.node.every(5, Message(AGAIN))

    @handles(PAY, State.FREE, elsewhere="one payment at a time")
    def pay(self, ask: Message) -> None:
        """Begin a payment."""
        self.ask, (self.number, self.amounts), self.votes = ask, ask.payload, dict[str, bool]()
        self.node.state = State.WAITING
        self.ask_accounts(ask)

    @handles(AGAIN, State.WAITING, elsewhere="nothing is asked")
    def ask_accounts(self, _: Message) -> None:
        """Ask for the promises, also again: a message may be lost."""
        for account, amount in self.amounts.items():
            self.node.send(Message(PROMISE, to=account, payload=[self.number, amount]))

    @handles(VOTE, State.FREE, State.WAITING, elsewhere="it votes again")
    def count(self, vote: Message) -> None:
        """Answer whether both have promised. Tell one that has not heard of an earlier payment what is written."""
        number, promised = vote.payload
        if self.node.state is State.FREE or number != self.number:
            self.node.reply(vote, ENDED, payload=[number, number in self.written])
        else:
            self.votes[vote.sender] = promised
            if len(self.votes) == len(self.amounts):
                self.node.reply(self.ask, all(self.votes.values()))

    @handles(END, State.WAITING, elsewhere="no payment has begun")
    def end(self, end: Message) -> None:
        """Tell the accounts that the payment is written, or that it is not done."""
        self.written |= {self.number} if end.payload else set()
        self.node.state = State.FREE
        for account in self.amounts:
            self.node.send(Message(ENDED, to=account, payload=[self.number, end.payload]))


class Account(Extension):
    """What it has promised it keeps, and promises nothing else, until it hears how the payment has ended."""

    def __init__(self, node: Any) -> None:
        super().__init__(node)
        self.has = 100
        self.promise: list[Any] = []
        node.every(5, Message(AGAIN))

    @handles(PROMISE)
    def consider(self, ask: Message) -> None:
        """Promise, if it is free and has enough."""
        if self.node.state is State.FREE and self.has + ask.payload[1] >= 0:
            self.promise, self.node.state = ask.payload, State.WAITING
            self.node.publish_event(f"has promised {ask.payload[1]}")
        self.node.reply(ask, VOTE, payload=[ask.payload[0], ask.payload == self.promise])

    @handles(AGAIN, State.WAITING, elsewhere="nothing is promised")
    def vote_again(self, _: Message) -> None:
        """Nothing was heard: the bank was killed, or a message was lost."""
        self.node.send(Message(VOTE, to="bank", payload=[self.promise[0], True]))

    @handles(ENDED, State.WAITING, elsewhere="it has heard")
    def obey(self, ended: Message) -> None:
        """Do what was promised, or be free of it."""
        if ended.payload[0] == self.promise[0]:
            self.has += self.promise[1] if ended.payload[1] else 0
            self.promise, self.node.state = [], State.FREE
            self.node.publish_event(f"has {self.has}")


BANK, ACCOUNT = HandlerTable(State).use(Bank), HandlerTable(State).use(Account)


def main() -> None:
    """Pay three times on two hosts, and kill the bank before the first payment is written, and after the second is."""
    written: list[str] = []
    with NodeHost("127.0.0.1:0") as first, NodeHost("127.0.0.1:0") as second:
        second.subscribe(print)
        home, places = {"bank": first.address}, {"ann": second.address, "bob": second.address}
        for name in places:
            TableActor.start(handlers=ACCOUNT, state=State.FREE, host=second, name=name, peers=home)
        for number in ("first", "second", "third"):
            bank = TableActor.start(handlers=BANK, state=State.NEW, host=first, name="bank", peers=places)
            bank.tell(Message(BEGIN, payload=written))
            while not bank.ask(Message(PAY, payload=(number, {"ann": -3, "bob": 3})), timeout=9):
                bank.tell(Message(END, payload=False))  # they still wait for the payment before
            if number != "first":
                written.append(number)
            print(f"they have promised the {number} payment; the bank is killed, and written are {written}")
            bank.stop()


if __name__ == "__main__":
    main()
