"""Asking: what references send, what comes of each answer, and whom a useless one is charged to."""

import pykka
import pytest
from drakkar.actors import unwatch, watch
from drakkar.actors.remote import questions
from drakkar.actors.remote.asking import LATE_ANSWERS
from drakkar.actors.remote.deadlines import SLOT_S
from drakkar.actors.remote.errors import AnswerTimeout, HostGone, NotAllowed, UnknownName
from drakkar.actors.remote.failures import encode_failure
from drakkar.actors.remote.records import (
    Answer,
    Ask,
    Call,
    Describe,
    Died,
    Failed,
    FailKind,
    Found,
    Get,
    Lookup,
    Names,
    Set,
    Target,
    Tell,
    Unwatch,
    Watch,
    encode_found,
    encode_names,
)
from drakkar.actors.remote.refs import Place, RemoteRef
from drakkar.actors.remote.values import ValueRefused, pack, unpack
from drakkar.actors.runtime.forks import Process
from drakkar.handlers.errors import ConfigError, ForkedError, OutcomeUnknown, SystemBusy, TransportError
from drakkar.transport.options import Options
from pykka.messages import ProxySetAttr

from tests.actors.remote.fakes import NOT_SENT, OTHER_RUN, THERE, Side
from tests.actors.remote.support import REFS, Deposit

TARGET = Target(OTHER_RUN, 6)


def at(side, number=6, **more):
    return RemoteRef(side.asking, Place(THERE, OTHER_RUN, number), **more)


@pytest.fixture
def side(monkeypatch):
    side = Side()
    monkeypatch.setattr(questions, "time", side.clock)
    return side


@pytest.fixture
def ref(side):
    return at(side, attributes={"balance": False, "deposit": True})


def packed(value):
    return pack(value, REFS)


def failed(question, error, kind=FailKind.RAISED):
    return Failed(question, kind, encode_failure(error, REFS))


def sent(side):
    [record] = side.wire.take()
    return record


def outcome(future):
    assert future.done
    return future.outcome()


# ---- what is sent


def test_a_told_message_is_one_record(side, ref):
    ref.tell(Deposit("ann", 5))
    record = sent(side)
    assert (record.target, unpack(record.message, REFS)) == (TARGET, Deposit("ann", 5))
    assert isinstance(record, Tell)


def test_a_question_says_how_long_its_asker_waits(side, ref):
    ref.ask("who", block=False)
    ref.ask("who", block=False, timeout=0.0015)
    default, short = side.wire.take()
    assert isinstance(default, Ask)
    assert (default.target, default.milliseconds, short.milliseconds) == (TARGET, 10_000, 2)
    assert unpack(default.message, REFS) == "who"


def test_what_a_proxy_does_is_a_record_of_its_kind(side, ref):
    proxy = ref.proxy()
    proxy.deposit("ann", amount=5)
    proxy.deposit.within(2.5)("bob")
    proxy.deposit.defer("eve")
    _ = proxy.balance
    ref.ask(ProxySetAttr(("balance",), 7), block=False)  # as `proxy.balance = 7`, which waits for the answer
    called, within, deferred, got, put = side.wire.take()
    assert isinstance(called, Call)
    assert (called.path, unpack(called.args, REFS), unpack(called.kwargs, REFS)) == (
        ("deposit",),
        ["ann"],
        {"amount": 5},
    )
    assert within.milliseconds == 2500
    assert (deferred.question, deferred.milliseconds) == (0, 0)
    assert called.question
    assert within.question
    assert (type(got), got.path) == (Get, ("balance",))
    assert (type(put), put.path, unpack(put.value, REFS)) == (Set, ("balance",), 7)


def test_what_cannot_be_sent_is_refused_before_anything_is_sent(side, ref):
    for call in (ref.tell, ref.ask, lambda message: ref.proxy().deposit(message)):
        with pytest.raises(ValueRefused, match="set"):
            call({1, 2})
    assert side.wire.take() == []
    assert side.link.questions == 0


def test_a_message_may_be_as_long_as_a_record_of_it_may():
    side = Side(Options(call_limit=1000))
    ref = at(side)
    ref.tell(bytes(side.longest_value - 10))
    ref.ask(bytes(side.longest_value - 10), block=False)
    assert len(side.wire.take()) == 2
    with pytest.raises(ValueRefused, match="more than"):
        ref.tell(bytes(1000))
    side = Side(Options(call_limit=4 << 20))
    at(side).tell(bytes(3 << 20))
    assert len(side.wire.take()) == 1, "the option, and not what is usual, is the bound"


def test_what_is_told_to_a_host_that_could_not_be_reached_is_refused_at_once_and_the_host_tried_again(
    side, ref
):
    """No one would be told that it was lost. A question is told, and so it may wait for the attempt."""
    side.wire.why_unreached = "cannot reach it: refused"
    ref = at(side, attributes={"deposit": True})
    for call in (ref.tell, ref.tell, ref.proxy().deposit.defer):
        with pytest.raises(
            HostGone, match=f"Actor at {THERE} was not reached: cannot reach it: refused"
        ) as caught:
            call("pay")
        assert caught.value.outcome_known
    ref.ask("pay", block=False)
    assert [type(record) for record in side.wire.take()] == [Ask]
    assert side.wire.knocks == 1
    with pytest.raises(HostGone):
        ref.tell("pay")
    side.thread.run()
    assert side.wire.knocks == 2
    side.wire.why_unreached = ""
    ref.tell("pay")
    assert len(side.wire.take()) == 1


def test_a_full_lane_is_busy_at_once():
    side = Side(Options(call_records=1))
    ref = at(side)
    ref.tell("first")
    for call in (ref.tell, ref.ask, lambda message: ref.ask(message, block=False)):
        with pytest.raises(SystemBusy):
            call("second")
    with pytest.raises(SystemBusy):
        watch(ref, print)
    assert side.link.questions == len(side.link.watches) == 0


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), True, "3"])
def test_a_deadline_is_a_time(side, ref, timeout):
    with pytest.raises(ConfigError, match="timeout"):
        ref.ask("who", timeout=timeout)
    with pytest.raises(ConfigError, match="timeout"):
        side.asking.look_up(THERE, "ledger", timeout)


def test_a_forked_child_asks_nothing(side, ref, monkeypatch):
    monkeypatch.setattr(side.asking, "_process", Process(1))
    for call in (ref.tell, ref.ask):
        with pytest.raises(ForkedError):
            call("who")
    assert side.wire.take() == []


# ---- what comes of it


def test_an_answer_is_the_outcome_of_its_question_and_of_no_other(side, ref):
    futures = [ref.ask(number, block=False) for number in range(3)]
    records = side.wire.take()
    for record in reversed(records):
        assert side.hear(Answer(record.question, packed(unpack(record.message, REFS) * 10)))
    assert [future.get() for future in futures] == [0, 10, 20]


def test_a_failure_is_raised_as_what_it_was(side, ref):
    future = ref.ask("who", block=False)
    assert side.hear(failed(sent(side).question, KeyError("bob")))
    with pytest.raises(KeyError, match="bob"):
        future.get()
    assert ref.is_alive()


@pytest.mark.parametrize(
    "error", [HostGone("of a third"), SystemBusy("another"), ValueRefused("answer", "a", "b")]
)
def test_what_an_actor_was_told_of_something_else_says_nothing_of_its_own_message(side, ref, error):
    """It has done a part of its work perhaps, before it raised what it got from a third host."""
    raised, refused = (ref.ask("pay", block=False) for _ in range(2))
    first, second = side.wire.take()
    side.hear(failed(first.question, error))
    side.hear(failed(second.question, error, FailKind.BUSY))
    assert type(outcome(raised)[1]) is type(outcome(refused)[1]) is type(error)
    assert not outcome(raised)[1].outcome_known
    assert outcome(refused)[1].outcome_known, "the actor did not see it"


def test_an_answer_that_cannot_be_decoded_fails_its_question_alone(side, ref):
    bad, good = (ref.ask("who", block=False) for _ in range(2))
    first, second = side.wire.take()
    assert side.hear(Answer(first.question, b"\xff"))
    assert side.hear(Answer(second.question, packed(1)))
    assert isinstance(outcome(bad)[1], ValueRefused)
    assert good.get() == 1


def test_an_actor_that_is_said_to_have_ended_has_for_all_references_to_it(side, ref):
    future = ref.ask("who", block=False)
    dead = pykka.ActorDeadError("the actor has ended")
    assert side.hear(failed(sent(side).question, dead, FailKind.DEAD))
    assert isinstance(outcome(future)[1], pykka.ActorDeadError)
    assert not at(side).is_alive()
    assert at(side, 7).is_alive()
    with pytest.raises(pykka.ActorDeadError):
        ref.tell("hello")
    with pytest.raises(pykka.ActorDeadError):
        ref.ask("who")
    assert isinstance(outcome(ref.ask("who", block=False))[1], pykka.ActorDeadError)
    assert side.wire.take() == []


def test_an_exception_of_that_kind_that_the_actor_raised_says_nothing_of_its_own_end(side, ref):
    ref.ask("who", block=False)
    side.hear(failed(sent(side).question, pykka.ActorDeadError("another actor has ended")))
    assert ref.is_alive()


def test_answers_that_come_late_are_counted_and_forgiven_and_others_are_charged(side, ref):
    future = ref.ask("who", block=False, timeout=1.0)
    question = sent(side).question
    side.clock.now += 1 + 2 * SLOT_S
    side.deadlines.end_late()
    assert isinstance(outcome(future)[1], AnswerTimeout)
    assert side.hear(Answer(question, packed(1)))
    assert not side.hear(Answer(question, packed(1))), "once"
    assert not side.hear(failed(12345, ValueError()))
    assert not side.hear(Died(12345, None))
    assert side.counters[LATE_ANSWERS] == 3


def test_an_answer_of_another_host_ends_no_question(side, ref):
    future = ref.ask("who", block=False)
    question = sent(side).question
    assert not side.hear(Answer(question, packed("forged")), side.links.of("10.0.0.3:7000"))
    assert not future.done
    assert side.hear(Answer(question, packed("true")))
    assert future.get() == "true"


def test_a_host_that_is_out_of_reach_is_gone_at_once(side, ref):
    side.wire.error = NOT_SENT
    future = ref.ask("who", block=False)
    side.thread.run()
    error = outcome(future)[1]
    assert isinstance(error, HostGone)
    assert isinstance(error, TransportError)
    assert f"Actor at {THERE} was not reached: nothing listens there" in str(error)


def test_a_lost_connection_leaves_the_outcome_unknown(side, ref):
    future = ref.ask("who", block=False)
    side.wire.take()
    side.lose()
    assert type(outcome(future)[1]) is OutcomeUnknown


# ---- names


def test_a_name_is_looked_up(side):
    question = side.asking.look_up(THERE, "ledger", None)
    lookup = sent(side)
    assert (type(lookup), lookup.name) == (Lookup, "ledger")
    found = Found(TARGET, "Keeper", {"balance": False})
    assert side.hear(Answer(lookup.question, encode_found(found)))
    ref = question.wait()
    assert ref == at(side)
    assert (str(ref), ref.attributes) == (f"Keeper 'ledger' at {THERE}", {"balance": False})


def test_a_name_that_nobody_has_is_a_clear_error(side):
    question = side.asking.look_up(THERE, "ledger", None)
    unknown = UnknownName("no actor is published as 'ledger'")
    side.hear(failed(sent(side).question, unknown, FailKind.UNKNOWN))
    with pytest.raises(UnknownName, match="ledger"):
        question.wait()


@pytest.mark.parametrize("value", [b"", b"\xff", b"\x01", b"\x83\x01\x02\x03"])
@pytest.mark.parametrize("by_name", [True, False])
def test_an_answer_that_no_host_sends_fails_the_look_up(side, value, by_name):
    look_up, list_names = side.asking.look_up, side.asking.list_names
    question = look_up(THERE, "ledger", None) if by_name else list_names(THERE, None)
    side.wire.take()
    assert side.hear(Answer(question.number, value))
    with pytest.raises(TransportError):
        question.wait()


def test_a_reference_learns_what_a_proxy_reaches_of_its_actor(side):
    ref = at(side)
    described = side.asking.describe(ref, 1.0)
    asked = sent(side)
    assert (type(asked), asked.target) == (Describe, TARGET)
    assert not described.done
    found = Found(TARGET, "Account", {"balance": False})
    assert side.hear(Answer(asked.question, encode_found(found)))
    assert described.get(timeout=0) is ref
    assert dir(ref.proxy())[-1] == "balance"


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (NotAllowed("it is for others"), NotAllowed),
        (SystemBusy("too many questions"), HostGone),
        (TransportError("unreadable"), HostGone),
    ],
)
def test_one_of_which_that_cannot_be_learnt_can_be_told_and_says_why_it_has_no_proxy(side, error, raised):
    ref = at(side)
    described = side.asking.describe(ref, 1.0)
    side.hear(failed(sent(side).question, error, FailKind.REFUSED))
    assert described.get(timeout=0) is ref
    with pytest.raises(raised, match=rf"{error}.*[Ff]ind it again"):
        ref.proxy()
    ref.tell("hello")
    assert isinstance(sent(side), Tell)


def test_one_that_is_said_to_have_ended_when_its_reach_is_asked_for_has(side):
    ref = at(side)
    described = side.asking.describe(ref, 1.0)
    side.hear(failed(sent(side).question, pykka.ActorDeadError("it has ended"), FailKind.DEAD))
    assert described.get(timeout=0) is ref
    assert not ref.is_alive()
    with pytest.raises(pykka.ActorDeadError):
        ref.proxy()


def test_where_too_much_waits_a_reference_is_of_use_all_the_same():
    side = Side(Options(call_records=1))
    ref = at(side)
    ref.tell("fills the lane")
    assert side.asking.describe(ref, 1.0).get(timeout=0) is ref
    with pytest.raises(HostGone, match="SystemBusy"):
        ref.proxy()


def test_names_are_listed_in_order(side):
    question = side.asking.list_names(THERE, None)
    names = sent(side)
    assert isinstance(names, Names)
    side.hear(Answer(names.question, encode_names(["b", "a"])))
    assert question.wait() == ["a", "b"]


# ---- watches


def test_a_watch_is_confirmed_and_then_tells_of_the_end(side, ref):
    died = []
    watch(ref, died.append)
    asked = sent(side)
    assert (type(asked), asked.target) == (Watch, TARGET)
    assert side.hear(Answer(asked.watch, packed(None)))
    assert (side.link.questions, len(side.link.watches)) == (0, 1)
    side.clock.now += 100
    side.deadlines.end_late()
    assert died == []
    assert side.hear(Died(asked.watch, encode_failure(ValueError("crashed"), REFS)))
    [notice] = died
    assert notice.ref == ref
    assert str(notice.reason) == "crashed"
    assert not ref.is_alive()
    assert not side.hear(Died(asked.watch, None)), "nobody watches any more"


def test_an_actor_that_was_stopped_has_ended_for_no_reason(side, ref):
    died = []
    watch(ref, died.append)
    side.hear(Died(sent(side).watch, None))
    assert [notice.reason for notice in died] == [None]


@pytest.mark.parametrize("kind", [FailKind.BUSY, FailKind.REFUSED])
def test_a_watch_that_is_refused_says_nothing_of_the_actors_end(side, ref, kind):
    died = []
    watch(ref, died.append)
    side.hear(failed(sent(side).watch, SystemBusy("too many watches"), kind))
    assert [type(notice.reason) for notice in died] == [SystemBusy]
    assert ref.is_alive()
    assert side.link.watches == {}
    watch(ref, died.append)
    assert isinstance(sent(side), Watch)


def test_a_watch_that_stood_and_is_refused_now_is_over_and_says_nothing_of_the_actors_end(side, ref):
    died = []
    watch(ref, died.append)
    asked = sent(side)
    side.hear(Answer(asked.watch, packed(None)))
    refused = failed(asked.watch, NotAllowed("it is for others"), FailKind.REFUSED)
    assert side.hear(refused)
    assert [type(each.reason) for each in died] == [NotAllowed]
    assert ref.is_alive()
    assert side.link.watches == {}
    assert not side.hear(refused), "nothing is watched any more"
    watch(ref, died.append)
    assert isinstance(sent(side), Watch)


def test_one_who_watches_what_has_ended_is_told_so(side, ref):
    died, late = [], []
    watch(ref, died.append)
    side.hear(failed(sent(side).watch, pykka.ActorDeadError("it has ended"), FailKind.DEAD))
    assert [type(notice.reason) for notice in died] == [pykka.ActorDeadError]
    assert not ref.is_alive()
    watch(ref, late.append)
    assert len(late) == 1
    assert side.wire.take() == []


def test_a_watch_that_is_not_confirmed_is_over(side, ref):
    """As of a host that cannot reach this one: it could not tell of the end either."""
    died = []
    watch(ref, died.append)
    asked = sent(side)
    side.clock.now += 11
    side.deadlines.end_late()
    [notice] = died
    assert isinstance(notice.reason, HostGone)
    assert ref.is_alive()
    assert side.wire.take() == [Unwatch(asked.watch)]
    assert side.hear(Answer(asked.watch, packed(None)))
    assert side.hear(Died(asked.watch, None)), "it crossed the end of the watch"


def test_a_host_that_is_out_of_reach_ends_the_watch_at_the_next_attempt_to_reach_it(side, ref):
    died = []
    side.wire.why_away = "cannot reach it"
    watch(ref, died.append)
    assert isinstance(sent(side), Watch), "it waits in the lane"
    assert died == []
    [record] = [question.record for question in side.link._questions.values()]
    side.link.handed_back([record], NOT_SENT)
    [notice] = died
    assert isinstance(notice.reason, HostGone)
    assert side.link.watches == {}


def test_the_end_of_a_watch_is_told_when_nobody_watches_any_more(side, ref):
    watch(ref, print)
    asked = sent(side)
    side.hear(Answer(asked.watch, packed(None)))
    assert unwatch(ref, print)
    assert side.wire.take() == [Unwatch(asked.watch)]
    assert side.link.watches == {}
    assert not unwatch(ref, print)


def test_a_watch_outlives_the_reference_that_it_was_made_with(side):
    died = []
    watch(at(side, 9), died.append)
    asked = sent(side)
    side.hear(Answer(asked.watch, packed(None)))
    assert side.hear(Died(asked.watch, None))
    assert len(died) == 1


def test_a_thousand_watches_end_with_the_connection(side):
    died = []
    for number in range(1000):
        watch(at(side, number), died.append)
    records = side.wire.take()
    for record in records[:500]:
        side.hear(Answer(record.watch, packed(None)))
    side.lose("the connection was lost")
    assert len(died) == 1000
    assert len({notice.ref for notice in died}) == 1000
    assert (side.link.questions, side.link.watches) == (0, {})
