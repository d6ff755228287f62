"""Two-phase commit: as its program tells it, and under faults, in which no payment is done by one account and not by the other."""

from itertools import count

import pytest
from drakkar.handlers import LATER, HandlerTable, Message
from drakkar.handlers.testing import TableCluster, Violation

from examples.two_phase_commit import (
    ENDED,
    PAY,
    PROMISE,
    VOTE,
    WRITTEN,
    Account,
    AccountState,
    Bank,
    BankState,
)

ACCOUNTS = ("ann", "bob")
PAYMENT = (1, {"ann": -3, "bob": 3})


def test_the_bank_is_lost_and_what_is_written_is_done(run):
    program = run("two_phase_commit")
    status, _ = program.end()
    assert status == 0
    stops = [at for at, text in enumerate(program.said) if "the bank is stopped" in text]
    assert [program.said[at].partition("written are ")[2] for at in stops] == ["[]", "[2]", "[2, 3]"]
    for account, done in (("ann", 97), ("bob", 103)):
        first, second = (
            program.said.index(f"NodeEvent(name='{account}', event='has {has} after payment {number}')")
            for number, has in ((1, 100), (2, done))
        )
        assert stops[0] < first < stops[1] < second < stops[2], "it has waited, and heard it of the next bank"


def cluster_of(bank=Bank, account=Account):
    tables = dict.fromkeys(ACCOUNTS, HandlerTable(AccountState).use(account))
    tables["bank"] = HandlerTable(BankState).use(bank)
    states = {"bank": BankState.NEW} | dict.fromkeys(ACCOUNTS, AccountState.FREE)
    peers = {"bank": ACCOUNTS} | dict.fromkeys(ACCOUNTS, ("bank",))
    return TableCluster(("bank", *ACCOUNTS), tables, states, peers=peers)


@pytest.fixture
def cluster():
    cluster = cluster_of()
    cluster.tell("bank", Message(WRITTEN, payload=[]))
    return cluster


def balances(cluster):
    return [cluster[name].extension(Account).has for name in ACCOUNTS]


def test_a_payment_that_is_written_is_done(cluster):
    assert cluster.ask("bank", Message(PAY, payload=PAYMENT)) is True
    assert balances(cluster) == [100, 100], "nothing is done before it is written"
    cluster.tell("bank", Message(WRITTEN, payload=[1]))
    assert balances(cluster) == [97, 103]


def test_an_account_without_enough_promises_nothing_and_the_other_is_free_again(cluster):
    assert cluster.ask("bank", Message(PAY, payload=(1, {"ann": -101, "bob": 101}))) is False
    cluster.tell("bank", Message(WRITTEN, payload=[]))
    assert balances(cluster) == [100, 100]
    assert cluster["bob"].state is AccountState.FREE


def test_a_promise_that_is_lost_is_asked_for_again(cluster):
    cluster.cut("bank", "bob")
    assert cluster.ask("bank", Message(PAY, payload=PAYMENT)) is LATER
    cluster.heal()
    cluster.tick(5)
    assert [answer.value for answer in cluster.nodes["bank"].answers] == [True]


@pytest.mark.parametrize(("written", "after"), [([], [100, 100]), ([1], [97, 103])])
def test_accounts_wait_for_a_bank_that_is_killed_and_hear_what_is_written(cluster, written, after):
    cluster.ask("bank", Message(PAY, payload=PAYMENT))
    cluster.crash("bank")
    cluster.tick(100)
    assert [cluster[name].state for name in ACCOUNTS] == [AccountState.PROMISED] * 2
    cluster.restart("bank")
    cluster.tick(10)
    assert [cluster[name].state for name in ACCOUNTS] == [AccountState.PROMISED] * 2, "it has not begun"
    cluster.tell("bank", Message(WRITTEN, payload=written))
    cluster.tick(10)
    assert balances(cluster) == after
    assert [cluster[name].state for name in ACCOUNTS] == [AccountState.FREE] * 2


def test_a_payment_that_has_ended_is_not_promised_again(cluster):
    cluster.ask("bank", Message(PAY, payload=PAYMENT))
    cluster.tell("bank", Message(WRITTEN, payload=[1]))
    late = Message(PROMISE, sender="bank", payload=[1, -3])  # of a bank that is lost
    cluster.tell("ann", late)
    assert cluster["ann"].state is AccountState.FREE
    cluster.tick(10)
    assert balances(cluster) == [97, 103]


def test_an_account_that_waits_for_a_payment_is_asked_again_for_the_next(cluster):
    cluster.ask("bank", Message(PAY, payload=PAYMENT))
    cluster.drop_next(ENDED)
    cluster.tell("bank", Message(WRITTEN, payload=[1]))
    assert balances(cluster) == [100, 103]
    assert cluster.ask("bank", Message(PAY, payload=(2, {"ann": -3, "bob": 3}))) is LATER
    cluster.tick(10)
    assert [answer.value for answer in cluster.nodes["bank"].answers[1:]] == [True]
    assert balances(cluster) == [97, 103]


# -- under faults


class Watched(Account):
    """An account that remembers how its payments have ended."""

    def __init__(self, node):
        super().__init__(node)
        self.outcomes = {}

    def obey(self, ended):
        had = self.has
        super().obey(ended)
        if self.node.state is AccountState.FREE:
            self.outcomes.setdefault(self.number, []).append(self.has != had)


class Clerk:
    """Asks for payments, writes what both have promised, or does not, and has each new bank begin with what is written.

    What banks have asked comes to accounts once more, at any later time, as if the way had been slow.

    What an account knows is lost when it crashes, so only those are looked at that have lived on since they promised.
    """

    def __init__(self):
        self.written, self.answered = [], {}
        self.bank, self.number, self.numbers = None, 0, count(1)
        self.amounts = {}
        self.asked = {}
        """The accounts that were there when a payment began."""

    def traffic(self, node, random):
        if node.name != "bank":
            if self.amounts:
                number = random.choice(list(self.amounts))
                node.step(Message(PROMISE, sender="bank", payload=[number, self.amounts[number][node.name]]))
        elif node is not self.bank:
            self.bank = node
            node.step(Message(WRITTEN, payload=list(self.written)))
        elif node.state is BankState.FREE:
            self.number, amount = next(self.numbers), random.choice((1, 60))
            self.amounts[self.number] = {"ann": -amount, "bob": amount}
            node.step(Message(PAY, payload=(self.number, self.amounts[self.number])))
        elif self.number in self.written:
            node.step(Message(WRITTEN, payload=[self.number]))
        elif self.answered.get(self.number) and random.random() < 0.8:
            self.written.append(self.number)
        elif self.number in self.answered or random.random() < 0.2:  # else its patience is over
            node.step(Message(WRITTEN, payload=[]))

    def effects(self, node, ready):
        self.answered |= {answer.message.payload[0]: answer.value for answer in ready.answers}

    def check(self, nodes):
        accounts = {name: nodes[name].extension(Account) for name in ACCOUNTS if name in nodes}
        self.asked.setdefault(self.number, accounts)
        for name, account in accounts.items():
            for number, outcomes in account.outcomes.items():
                is_written = number in self.written
                assert outcomes == [is_written], (
                    f"for {name} payment {number} is done: {outcomes}, not [{is_written}]"
                )
            for number in self.written:
                if self.asked[number].get(name) is account:
                    known = number in account.outcomes or number == account.number
                    assert known, f"for {name} payment {number} is not even promised"


def storm(bank=Bank, account=Watched, seeds=100):
    clerks = []

    def clerk():
        clerks.append(Clerk())
        return clerks[-1]

    cluster_of(bank, account).storm(range(seeds), user=clerk)
    return clerks


def test_both_accounts_do_a_payment_or_none_does_whatever_happens():
    clerks = storm()
    assert sum(len(clerk.written) for clerk in clerks) > len(clerks) // 3
    assert sum(len(clerk.answered) - len(clerk.written) for clerk in clerks) > len(clerks) // 3


class TellsBeforeItIsWritten(Bank):
    def count(self, vote):
        super().count(vote)
        if self.node.state is BankState.PAYING and len(self.votes) == 2 and all(self.votes.values()):
            self.end(Message(WRITTEN, payload=[self.number]))


class BeginsWithNothing(Bank):
    def end(self, news):
        super().end(Message(WRITTEN, payload=[]) if self.node.state is BankState.NEW else news)


class CountsEmptyVotes(Bank):
    def count(self, vote):
        super().count(Message(VOTE, sender=vote.sender, payload=[vote.payload[0], True]))


class GivesUp(Watched):
    def vote_again(self, message):
        self.obey(Message(ENDED, payload=[self.number, False]))


class ObeysWhateverEnds(Watched):
    def obey(self, ended):
        super().obey(Message(ENDED, payload=[self.number, ended.payload[1]]))


class PromisesTwice(Watched):
    def consider(self, ask):
        number, self.number = self.number, 0
        super().consider(ask)
        self.number = self.number or number


@pytest.mark.parametrize(
    "mutant",
    [
        {"bank": TellsBeforeItIsWritten},
        {"bank": BeginsWithNothing},
        {"bank": CountsEmptyVotes},
        {"account": GivesUp},
        {"account": ObeysWhateverEnds},
        {"account": PromisesTwice},
    ],
    ids=lambda mutant: next(iter(mutant.values())).__name__,
)
def test_its_storm_catches_what_is_wrong(mutant):
    with pytest.raises(Violation, match=r"payment \d+ is (done|not even promised)"):
        storm(**mutant)
