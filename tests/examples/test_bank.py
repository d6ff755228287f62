"""The bank as its docstring says: on two real processes, one of which is killed; and within one process."""

import pykka
import pytest
from drakkar.actors import HostGone, NotAllowed, OutcomeUnknown, RemoteError, SystemBusy

from examples import bank
from tests.ports import free_addresses


@pytest.fixture
def start(run, tmp_path):
    """Start one of the two hosts; the same again where it is called again."""
    ledger, tellers = free_addresses(2)
    options = ("--ledger", ledger, "--tellers", tellers, "--file", tmp_path / "ledger.sqlite")

    def begin(role):
        program = run("bank", role, *options)
        program.wait_for("ready")
        return program

    return begin


def test_tellers_on_one_host_order_at_the_ledger_on_another(start):
    ledger, tellers = start("ledger"), start("tellers")
    assert tellers.ask("ann 5") == "ann has 5"
    assert tellers.ask("ann -3") == "ann has 2", "of the other teller"
    assert tellers.ask("bob 1") == "bob has 1"
    assert tellers.ask("ann -9") == "not done: ann lacks 7", "the exception comes back as what it is"
    assert tellers.ask("ann 0") == "ann has 2", "it was not done"
    assert tellers.ask("ann lots").startswith("not done: ")
    assert tellers.ask("what").startswith("not done: ")
    assert tellers.end() == (0, ""), "Ctrl-D ends it"
    status, complaints = ledger.end()
    assert status == 0
    assert "Traceback" not in complaints, "it may say that the tellers' host is gone, and no more"


def test_a_ledger_that_fails_is_started_again_and_found_again(start):
    ledger, tellers = start("ledger"), start("tellers")
    assert tellers.ask("ann 5") == "ann has 5"
    for more in (1, 2):
        tellers.ask("crash", "cannot handle")
        assert tellers.ask("ann 1") == f"ann has {5 + more}"
    tellers.end()
    status, complaints = ledger.end()
    assert status == 0
    assert complaints.count("child 'ledger'") == 2, "its supervisor says that it is started again"
    assert "TypeError" in complaints


def test_an_order_that_finds_the_ledgers_host_killed_is_done_when_it_is_back(start):
    ledger, tellers = start("ledger"), start("tellers")
    assert tellers.ask("ann 5") == "ann has 5"
    ledger.kill()
    said = tellers.type("ann 2")
    start("ledger")
    assert tellers.wait_for("ann", since=said) == "ann has 7"
    assert tellers.ask("ann 0") == "ann has 7", "once"


def test_tellers_that_start_first_wait_for_the_ledger(start):
    tellers = start("tellers")
    said = tellers.type("ann 2")
    start("ledger")
    assert tellers.wait_for("ann", since=said) == "ann has 2"


def test_ctrl_c_ends_each(start):
    programs = [start("ledger"), start("tellers")]
    programs[1].ask("ann 5", "ann has")
    assert [program.end(interrupt=True)[0] for program in programs] == [0, 0]


# -- In one process, without a host


@pytest.fixture
def ledger(tmp_path):
    yield bank.Ledger.start(str(tmp_path / "ledger.sqlite"))
    pykka.ActorRegistry.stop_all()


def test_both_are_actors_of_pykka_that_need_no_host(ledger):
    teller = bank.Teller.start(lambda: ledger).proxy()
    assert teller.order("ann", 5).get(timeout=10) == 5
    with pytest.raises(bank.Overdrawn, match="ann lacks 4"):
        teller.order("ann", -9).get(timeout=10)


def test_the_ledger_does_an_order_once_however_often_it_comes(ledger):
    order = bank.Order("one", "ann", 5)
    assert [ledger.ask(order, timeout=10) for _ in range(3)] == [5, 5, 5]
    assert ledger.ask(bank.Order("two", "ann", 5), timeout=10) == 10


def test_an_order_that_is_not_done_may_be_done_later(ledger):
    order = bank.Order("one", "ann", -5)
    with pytest.raises(bank.Overdrawn):
        ledger.ask(order, timeout=10)
    ledger.ask(bank.Order("two", "ann", 8), timeout=10)
    assert ledger.ask(order, timeout=10) == 3, "it left no trace"


class Unreliable:
    """A reference to the ledger that loses the first answers, or the first orders."""

    def __init__(self, ledger, *errors, before=False):
        self.ledger, self.errors, self.before = ledger, list(errors), before
        self.asked = []

    def ask(self, order, timeout):
        self.asked.append(order)
        if self.before and self.errors:
            raise self.errors.pop(0)
        balance = self.ledger.ask(order, timeout=timeout)
        if self.errors:
            raise self.errors.pop(0)
        return balance


@pytest.mark.parametrize(
    ("error", "before"),
    [
        pytest.param(OutcomeUnknown("lost"), False, id="the answer was lost, the order was done"),
        pytest.param(OutcomeUnknown("lost"), True, id="the answer was lost, the order too"),
        pytest.param(HostGone("gone"), True, id="the host is gone"),
        pytest.param(SystemBusy("busy"), True, id="the ledger is busy"),
        pytest.param(pykka.ActorDeadError("dead"), False, id="the ledger failed when it had done it"),
    ],
)
def test_a_teller_repeats_the_same_order_until_there_is_an_answer(ledger, error, before):
    reference = Unreliable(ledger, error, error, before=before)
    teller = bank.Teller.start(lambda: reference).proxy()
    assert teller.order("ann", 5).get(timeout=10) == 5
    assert len(reference.asked) == 3
    assert len(set(reference.asked)) == 1, "another number would be another order"


@pytest.mark.parametrize(
    ("error", "patience", "said"),
    [
        pytest.param(HostGone("gone"), 0.2, "perhaps done: ", id="one of many that were lost may be done"),
        pytest.param(RemoteError("sqlite3.OperationalError", "locked"), 30, "perhaps done: ", id="it failed"),
        pytest.param(NotAllowed("its acl"), 30, "not done: ", id="surely not"),
    ],
)
def test_not_done_is_said_only_of_what_is_surely_not(ledger, monkeypatch, error, patience, said):
    monkeypatch.setattr(bank, "PATIENCE_S", patience)
    reference = Unreliable(ledger, *[error] * 100, before=True)
    teller = bank.Teller.start(lambda: reference).proxy()
    assert bank.do("ann 5", teller, lambda: reference).startswith(said)
