"""Two-phase commit: as its program tells it, and under faults, in which no payment is done by one account and not by the other."""

from itertools import count

import pytest
from drakkar.handlers import LATER, HandlerTable, Message
from drakkar.handlers.testing import TableCluster, Violation

from examples.two_phase_commit import BEGIN, END, ENDED, PAY, VOTE, Account, Bank, State

ACCOUNTS = ("ann", "bob")
PAYMENT = ("first", {"ann": -3, "bob": 3})


def test_the_bank_is_killed_and_what_is_written_is_done(run):
    program = run("two_phase_commit")
    status, _ = program.end()
    assert status == 0
    said = [text for text in program.said if "has" in text or "killed" in text]
    phases = [[]]
    for text in said:
        phases[-1].append(text)
        if "killed" in text:
            phases.append([])
    for account, amount, done in (("ann", "-3", "97"), ("bob", "3", "103")):
        first, second, third = [events_of(account, phase) for phase in phases[:3]]
        promised = f"has promised {amount}"
        assert first == [promised]
        # Where the other one has not heard yet of the payment before, a payment is not done, and is asked for again.
        assert second == ["has 100", promised] * (len(second) // 2) != [], "the first was not written"
        assert third == [f"has {done}", promised] * (len(third) // 2) != [], "the second was"


def events_of(account, said):
    """What an account has published."""
    head = f"NodeEvent(name='{account}', event='"
    return [text.removeprefix(head).removesuffix("')") for text in said if text.startswith(head)]


def cluster_of(bank=Bank, account=Account):
    tables = {"bank": HandlerTable(State).use(bank)} | dict.fromkeys(
        ACCOUNTS, HandlerTable(State).use(account)
    )
    states = {"bank": State.NEW} | dict.fromkeys(ACCOUNTS, State.FREE)
    peers = {"bank": ACCOUNTS} | dict.fromkeys(ACCOUNTS, ("bank",))
    return TableCluster(("bank", *ACCOUNTS), tables, states, peers=peers)


@pytest.fixture
def cluster():
    cluster = cluster_of()
    cluster.tell("bank", Message(BEGIN, payload=[]))
    return cluster


def balances(cluster):
    return [cluster[name].extension(Account).has for name in ACCOUNTS]


def test_a_payment_that_is_written_is_done(cluster):
    assert cluster.ask("bank", Message(PAY, payload=PAYMENT)) is True
    assert balances(cluster) == [100, 100], "nothing is done before it is written"
    cluster.tell("bank", Message(END, payload=True))
    assert balances(cluster) == [97, 103]


def test_an_account_without_enough_promises_nothing_and_the_other_is_free_again(cluster):
    assert cluster.ask("bank", Message(PAY, payload=("first", {"ann": -101, "bob": 101}))) is False
    cluster.tell("bank", Message(END, payload=False))
    assert balances(cluster) == [100, 100]
    assert cluster["bob"].state is State.FREE


def test_a_promise_that_is_lost_is_asked_for_again(cluster):
    cluster.cut("bank", "bob")
    assert cluster.ask("bank", Message(PAY, payload=PAYMENT)) is LATER
    cluster.heal()
    cluster.tick(5)
    assert [answer.value for answer in cluster.nodes["bank"].answers] == [True]


@pytest.mark.parametrize(("written", "after"), [([], [100, 100]), (["first"], [97, 103])])
def test_accounts_wait_for_a_bank_that_is_killed_and_hear_what_is_written(cluster, written, after):
    cluster.ask("bank", Message(PAY, payload=PAYMENT))
    cluster.crash("bank")
    cluster.tick(100)
    assert [cluster[name].state for name in ACCOUNTS] == [State.WAITING] * 2
    cluster.restart("bank")
    cluster.tick(10)
    assert [cluster[name].state for name in ACCOUNTS] == [State.WAITING] * 2, "it has not begun"
    cluster.tell("bank", Message(BEGIN, payload=written))
    cluster.tick(10)
    assert balances(cluster) == after
    assert [cluster[name].state for name in ACCOUNTS] == [State.FREE] * 2


# -- under faults


class Watched(Account):
    """An account that remembers how its payments have ended."""

    def __init__(self, node):
        super().__init__(node)
        self.outcomes = {}

    def obey(self, ended):
        promise, had = self.promise, self.has
        super().obey(ended)
        if promise and not self.promise:
            self.outcomes[promise[0]] = self.has != had


class Clerk:
    """Asks for payments, writes what both have promised, or does not, and has each new bank begin with what is written.

    What an account knows is lost when it crashes, so only those are looked at that have lived on since they promised.
    """

    def __init__(self):
        self.written, self.answered = [], {}
        self.bank, self.number, self.numbers = None, "", count()
        self.asked = {}
        """The accounts that were there when a payment began."""

    def traffic(self, node, random):
        if node.name != "bank":
            return
        if node is not self.bank:
            self.bank = node
            node.step(Message(BEGIN, payload=list(self.written)))
        elif node.state is State.FREE:
            self.number, amount = f"{next(self.numbers)}", random.randrange(1, 10)
            node.step(Message(PAY, payload=(self.number, {"ann": -amount, "bob": amount})))
        elif self.number in self.written:
            node.step(Message(END, payload=True))
        elif self.answered.get(self.number) and random.random() < 0.8:
            self.written.append(self.number)
        elif self.number in self.answered or random.random() < 0.2:  # else its patience is over
            node.step(Message(END, payload=False))

    def effects(self, node, ready):
        self.answered |= {answer.message.payload[0]: answer.value for answer in ready.answers}

    def check(self, nodes):
        accounts = {name: nodes[name].extension(Account) for name in ACCOUNTS if name in nodes}
        self.asked.setdefault(self.number, accounts)
        for name, account in accounts.items():
            for number, done in account.outcomes.items():
                wrong = f"for {name} payment {number} is {'' if done else 'not '}done"
                assert done == (number in self.written), wrong
            for number in self.written:
                if self.asked[number].get(name) is account:
                    known = number in account.outcomes or number in account.promise
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
        if self.node.state is State.WAITING and len(self.votes) == 2 and all(self.votes.values()):
            self.end(Message(END, payload=True))


class BeginsWithNothing(Bank):
    def begin(self, message):
        super().begin(Message(BEGIN, payload=[]))


class CountsEmptyVotes(Bank):
    def count(self, vote):
        super().count(Message(VOTE, sender=vote.sender, payload=[vote.payload[0], True]))


class GivesUp(Watched):
    def vote_again(self, message):
        self.obey(Message(ENDED, payload=[self.promise[0], False]))


class ObeysWhateverEnds(Watched):
    def obey(self, ended):
        super().obey(Message(ENDED, payload=[self.promise[0], ended.payload[1]]))


@pytest.mark.parametrize(
    "mutant",
    [
        {"bank": TellsBeforeItIsWritten},
        {"bank": BeginsWithNothing},
        {"bank": CountsEmptyVotes},
        {"account": GivesUp},
        {"account": ObeysWhateverEnds},
    ],
    ids=lambda mutant: next(iter(mutant.values())).__name__,
)
def test_its_storm_catches_what_is_wrong(mutant):
    with pytest.raises(Violation, match=r"payment \d+ is (not )?(done|even promised)"):
        storm(**mutant)
