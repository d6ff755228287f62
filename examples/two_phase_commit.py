"""Ann pays bob, or she does not: a two-phase commit between two hosts, whose coordinator is lost in the middle.

    python -m examples.two_phase_commit

The bank has both accounts promise; then who asked for the payment writes down that it is done, and the bank tells the accounts.
They keep what they have promised until they hear that. A bank that was lost is started again with what is written, and they ask it:
what is not written is not done. Here its actor is stopped; `make demo-handlers` kills its process, and writes into a file. An
account that is lost has forgotten all: a real one would write down what it promises, and what it has.
"""

from enum import IntEnum
from typing import Any

from drakkar.actors import NodeHost, TableActor
from drakkar.handlers import Extension, HandlerTable, Message, MessageType, handles

WRITTEN = MessageType.define("payment.written", 2040)
PAY = MessageType.define("payment.pay", 2041)
PROMISE = MessageType.define("payment.promise", 2042)
VOTE = MessageType.define("payment.vote", 2043)
ENDED = MessageType.define("payment.ended", 2044)
AGAIN = MessageType.define("payment.again", 2045)

BankState = IntEnum("BankState", "NEW FREE PAYING")
AccountState = IntEnum("AccountState", "FREE PROMISED")


class Bank(Extension):
    """Has both accounts promise, and tells them what is written: one payment at a time."""

    def __init__(self, node: Any) -> None:
        super().__init__(node)
        self.written, self.amounts = set[int](), dict[str, int]()
        node.every(5, Message(AGAIN))

    @handles(PAY, BankState.FREE, elsewhere="one payment at a time")
    def pay(self, ask: Message) -> None:
        """Begin a payment. Its number must be greater than those of all before."""
        self.ask, self.votes = ask, dict[str, bool]()
        self.number, self.amounts = ask.payload
        self.node.state = BankState.PAYING
        self.ask_accounts(ask)

    @handles(AGAIN, BankState.PAYING, elsewhere="nothing is asked")
    def ask_accounts(self, _: Message) -> None:
        """Ask for the promises, also again: a message may be lost, or an account not be free yet."""
        for account, amount in self.amounts.items():
            self.node.send(Message(PROMISE, to=account, payload=[self.number, amount]))

    @handles(VOTE, BankState.FREE, BankState.PAYING, elsewhere="it does not know yet what is written")
    def count(self, vote: Message) -> None:
        """Answer whether both have promised. Tell one that has not heard of an earlier payment what is written."""
        number, promised = vote.payload
        if self.node.state is BankState.PAYING and number == self.number:
            self.votes[vote.sender] = promised
            if len(self.votes) == len(self.amounts):
                self.node.reply(self.ask, all(self.votes.values()))
        else:
            self.node.reply(vote, ENDED, payload=[number, number in self.written])

    @handles(WRITTEN, BankState.NEW, BankState.PAYING, elsewhere="no payment has begun")
    def end(self, news: Message) -> None:
        """Learn which payments are written: first all, then whether the present one is. Tell the accounts that."""
        self.written |= set(news.payload)
        self.node.state = BankState.FREE
        for account in self.amounts:
            self.node.send(Message(ENDED, to=account, payload=[self.number, self.number in self.written]))


class Account(Extension):
    """What it has promised it keeps, and promises nothing else, until it hears how the payment has ended."""

    def __init__(self, node: Any) -> None:
        super().__init__(node)
        self.has = 100
        self.number, self.amount = 0, 0  # of the last payment that it has promised
        node.every(5, Message(AGAIN))

    @handles(PROMISE, AccountState.FREE, elsewhere="it has promised, and is asked again")
    def consider(self, ask: Message) -> None:
        """Promise, if it has enough; but nothing twice: what a bank asked before it was lost may come late."""
        number, amount = ask.payload
        promised = number > self.number and self.has + amount >= 0
        if promised:
            self.number, self.amount = number, amount
            self.node.state = AccountState.PROMISED
        self.node.reply(ask, VOTE, payload=[number, promised])

    @handles(AGAIN, AccountState.PROMISED, elsewhere="nothing is promised")
    def vote_again(self, _: Message) -> None:
        """Nothing was heard: the bank was lost, or a message."""
        self.node.send(Message(VOTE, to="bank", payload=[self.number, True]))

    @handles(ENDED, AccountState.PROMISED, elsewhere="it has heard")
    def obey(self, ended: Message) -> None:
        """Do what was promised, or be free of it."""
        number, is_done = ended.payload
        if number == self.number:
            self.has += self.amount if is_done else 0
            self.node.state = AccountState.FREE
            self.node.publish_event(f"has {self.has} after payment {number}")


BANK, ACCOUNT = HandlerTable(BankState).use(Bank), HandlerTable(AccountState).use(Account)
if __name__ == "__main__":
    written: list[int] = []
    with NodeHost("127.0.0.1:0") as first, NodeHost("127.0.0.1:0") as second:
        second.subscribe(print)
        home, places = {"bank": first.address}, {"ann": second.address, "bob": second.address}
        for name in places:
            TableActor.start(handlers=ACCOUNT, state=AccountState.FREE, host=second, name=name, peers=home)
        for number in (1, 2, 3):
            bank = TableActor.start(handlers=BANK, state=BankState.NEW, host=first, name="bank", peers=places)
            bank.tell(Message(WRITTEN, payload=written))
            bank.ask(Message(PAY, payload=[number, {"ann": -3, "bob": 3}]), timeout=9)
            if number > 1:  # else the bank is lost before it is written
                written.append(number)
            print(f"both have promised payment {number}; the bank is stopped, and written are {written}")
            bank.stop()
