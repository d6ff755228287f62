"""Serving: what other hosts ask reaches actors, is answered once, and takes no more than its bounds, even where actors hang and askers flood."""

import gc
import queue

import pykka
import pytest
from drakkar.actors.remote import clients, loads, replies, serving
from drakkar.actors.remote.errors import AnswerTimeout, NotAllowed, UnknownName
from drakkar.actors.remote.failures import RemoteError, decode_failure
from drakkar.actors.remote.from_host import FromHost
from drakkar.actors.remote.records import (
    Answer,
    Ask,
    Call,
    Describe,
    Died,
    Failed,
    FailKind,
    Get,
    Lookup,
    Names,
    Set,
    Target,
    Tell,
    Unwatch,
    Watch,
    decode_found,
    decode_names,
)
from drakkar.actors.remote.values import ValueRefused, pack, unpack
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.handlers.errors import DrakkarError, SystemBusy, TransportError
from drakkar.transport.options import Options
from pykka.messages import ProxyCall, ProxyGetAttr, ProxySetAttr

from tests.actors.remote.fakes import OTHER_RUN, RUN, THERE, Fake, Side
from tests.actors.remote.support import REFS, Deposit

LONG = 60_000
"""Milliseconds of a question that no test waits for."""


@pytest.fixture
def side(monkeypatch):
    side = Side()
    monkeypatch.setattr(serving, "time", side.clock)
    return side


@pytest.fixture
def keeper():
    return Fake()


@pytest.fixture
def target(side, keeper):
    return publish(side, keeper)


def publish(side, ref, name="keeper", **more):
    side.published.publish(name, ref, **more)
    return Target(RUN, side.published.by_name(name).number)


def packed(value):
    return pack(value, REFS)


def value(answer):
    assert isinstance(answer, Answer)
    return unpack(answer.value, REFS)


def error(failed):
    assert isinstance(failed, Failed)
    return decode_failure(failed.failure, REFS)


def ask(side, target, question=1, message="who", milliseconds=LONG):
    return side.hear(Ask(question, target, milliseconds, packed(message)))


def asked(side, target, keeper, question=1):
    """Ask, and return what the actor answers with."""
    assert ask(side, target, question)
    return keeper.take().reply_to


def only(rows):
    [row] = rows
    return row


# ---- messages and answers


def test_a_question_reaches_the_inbox_and_its_answer_the_asker(side, keeper, target):
    assert ask(side, target, 5, Deposit("ann", 3))
    envelope = keeper.take()
    assert envelope.message == Deposit("ann", 3)
    assert side.serving.questions == 1
    envelope.reply_to.set({"ann": 3})
    [(address, answer)] = side.wire.take_all()
    assert (address, answer.question, value(answer)) == (THERE, 5, {"ann": 3})
    assert side.serving.questions == 0


class Suspicious:
    """An actor that must know which host it is told and asked by."""

    told_of_hosts = True


def test_an_actor_that_must_know_is_given_each_message_with_its_host(side):
    suspicious = Fake(actor=Suspicious())
    target = publish(side, suspicious, "suspicious")
    assert ask(side, target, 5, ["who"])
    assert side.hear(Tell(target, packed("hello")))
    assert [suspicious.take().message for _ in range(2)] == [
        FromHost(THERE, ["who"]),
        FromHost(THERE, "hello"),
    ]


def test_a_told_message_reaches_the_inbox_and_nothing_comes_back(side, keeper, target):
    assert side.hear(Tell(target, packed("hello")))
    envelope = keeper.take()
    assert (envelope.message, envelope.reply_to) == ("hello", None)
    assert side.wire.take() == []


def test_an_exception_is_answered_with_its_kind_and_traceback(side, keeper, target):
    pending = asked(side, target, keeper)
    try:
        raise KeyError("bob")  # noqa: TRY301  # as an actor does
    except KeyError:
        pending.set_exception()  # as pykka does it
    failed = only(side.wire.take())
    assert failed.kind is FailKind.RAISED
    assert repr(error(failed)) == repr(KeyError("bob"))
    assert "test_an_exception" in failed.failure.traceback


@pytest.mark.parametrize(
    "exc_info", [(KeyError, None, None), (None, None, None)], ids=["a class", "nothing at all"]
)
def test_an_exception_without_a_value_is_one_all_the_same(side, keeper, target, exc_info):
    asked(side, target, keeper).set_exception(exc_info)
    assert isinstance(error(only(side.wire.take())), (KeyError, RuntimeError))


def test_only_the_first_answer_counts(side, keeper, target):
    pending = asked(side, target, keeper)
    pending.set(1)
    pending.set(2)
    pending.set_exception((ValueError, ValueError("late"), None))
    assert value(only(side.wire.take())) == 1
    assert side.serving.questions == 0


def test_a_future_is_answered_when_it_is_set_and_one_inside_it_too(side, keeper, target):
    outer, inner, failing = ActorFuture(), ActorFuture(), ActorFuture()
    asked(side, target, keeper, 1).set(outer)
    asked(side, target, keeper, 2).set(failing)
    outer.set(inner)
    assert side.wire.take() == []
    inner.set("in the end")
    failing.fail(ValueError("no"))
    first, second = side.wire.take()
    assert (first.question, value(first)) == (1, "in the end")
    assert (second.question, str(error(second))) == (2, "no")


def test_a_future_that_calls_nobody_back_is_refused_at_once(side, keeper, target):
    for question, future in enumerate((ActorFuture(), pykka.ThreadingFuture())):
        future.set_get_hook(lambda timeout: 1)
        asked(side, target, keeper, question).set(future)
    hook, threading = side.wire.take()
    assert isinstance(error(hook), DrakkarError)
    assert isinstance(error(threading), ValueRefused)
    assert "send what it holds: future.get()" in str(error(threading))


@pytest.mark.parametrize(
    ("answer", "text"),
    [(object(), "object"), ({1: 2}, "keys"), (bytes(2000), "more than")],
    ids=["no value", "a key that is no string", "too long"],
)
def test_what_cannot_be_sent_is_answered_by_why(answer, text):
    side, keeper = Side(Options(call_limit=1500)), Fake()
    asked(side, publish(side, keeper), keeper).set(answer)
    refused = error(only(side.wire.take()))
    assert isinstance(refused, ValueRefused)
    assert text in str(refused)


def test_an_answer_that_fails_while_it_is_read_is_answered_by_why(side, keeper, target, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("a property of a message")

    pending = asked(side, target, keeper)
    monkeypatch.setattr(replies, "pack", fail)
    pending.set(1)
    assert isinstance(error(only(side.wire.take())), ZeroDivisionError)


def test_no_fault_of_the_way_back_reaches_the_actor(side, keeper, target):
    pending = asked(side, target, keeper)
    other = asked(side, target, keeper, 2)
    side.links.close("this host has stopped")
    pending.set(1)
    other.set_exception((ValueError, ValueError("no"), None))
    assert side.counters[replies.DROPPED_ANSWERS] == 2


# ---- where nothing can be delivered


def test_an_actor_that_has_ended_is_said_to_be_and_only_who_asks_is_charged(side, keeper, target):
    """Who tells it something does not learn that it has ended, and may go on in good faith."""
    keeper.actor_stopped.set()
    assert not ask(side, target)
    failed = only(side.wire.take())
    assert failed.kind is FailKind.DEAD
    assert isinstance(error(failed), pykka.ActorDeadError)
    assert failed.failure.traceback == "", "it would be of this host's own code, and dear to make"
    assert side.hear(Tell(target, packed("hello")))
    assert side.counters[replies.DROPPED_MESSAGES] == 1
    assert keeper.idle


def test_a_number_of_another_run_is_nobodys(side, keeper, target):
    assert not ask(side, Target(OTHER_RUN, target.number))
    failed = only(side.wire.take())
    assert failed.kind is FailKind.DEAD
    assert "earlier run" in str(error(failed))
    assert keeper.idle


def test_a_question_whose_time_is_over_when_it_comes_does_not_reach_the_actor(side, keeper, target):
    assert not ask(side, target, milliseconds=0)
    failed = only(side.wire.take())
    assert failed.kind is FailKind.LATE
    assert isinstance(error(failed), AnswerTimeout)
    assert keeper.idle


@pytest.mark.parametrize("record", [Tell, Ask])
def test_what_cannot_be_decoded_fails_alone_and_is_charged(side, keeper, target, record):
    junk = b"\xff"
    assert not side.hear(Tell(target, junk) if record is Tell else Ask(1, target, LONG, junk))
    failed = side.wire.take()
    if record is Ask:
        assert only(failed).kind is FailKind.REFUSED
        assert isinstance(error(failed[0]), ValueRefused)
    else:
        assert side.counters[replies.DROPPED_MESSAGES] == 1
    assert side.serving.questions == 0
    assert ask(side, target)
    assert keeper.take().message == "who"


def test_an_acl_lets_in_only_hosts_with_such_a_certificate(side, keeper):
    target = publish(side, keeper, acl=["teller.example"])
    assert not ask(side, target)
    assert not side.hear(Lookup(2, "keeper"))
    assert not side.hear(Watch(3, target))
    refused = side.wire.take()
    assert [failed.kind for failed in refused] == [FailKind.REFUSED] * 3
    assert all(isinstance(error(failed), NotAllowed) for failed in refused)
    assert not side.hear(Tell(target, packed("hello")))
    side.hear(Names(4))
    assert decode_names(only(side.wire.take()).value) == []
    assert keeper.idle
    side.wire.certificates[THERE] = {"teller.example"}
    assert ask(side, target)
    assert not side.hear(Names(5)), "it takes long where there are many, so it is charged"
    assert keeper.take()
    assert decode_names(only(side.wire.take()).value) == ["keeper"]


def test_an_acl_holds_for_references_that_were_given_out_before_and_under_other_names(side, keeper):
    target = Target(RUN, side.published.export(keeper).number)
    assert ask(side, target)
    assert keeper.take()
    assert publish(side, keeper, acl=["teller.example"]) == target
    assert not ask(side, target, 2)
    assert isinstance(error(only(side.wire.take())), NotAllowed)
    publish(side, keeper, "for all")
    assert ask(side, target, 3), "it may look that name up, and has the same actor"
    assert not side.hear(Lookup(4, "keeper"))
    assert isinstance(error(only(side.wire.take())), NotAllowed)


def test_who_is_kept_out_from_now_on_is_told_that_its_watch_is_over(side, keeper):
    target = Target(RUN, side.published.export(keeper).number)
    teller = side.links.of("10.0.0.3:7000")
    side.wire.certificates[teller.address] = {"teller.example"}
    for link in (side.link, teller):
        assert side.hear(Watch(1, target), link)
    side.wire.take()
    side.serving.regranted(side.published.publish("keeper", keeper, acl=["teller.example"]))
    [(address, failed)] = side.wire.take_all()
    assert (address, failed.question, failed.kind) == (THERE, 1, FailKind.REFUSED)
    assert isinstance(error(failed), NotAllowed)
    assert side.serving.watches == 1
    side.serving.regranted(side.published.unpublish("keeper"))
    assert side.wire.take() == [], "the references that were given out before are of use to it"
    side.serving.end_of(side.published.forget(keeper.actor_urn), None)
    assert side.wire.take_all() == [(teller.address, Died(1, None))]


def test_watchers_of_what_is_not_reached_any_more_are_told_so(side, keeper, target):
    side.hear(Watch(1, target))
    side.wire.take()
    side.serving.regranted(side.published.unpublish("keeper"))
    died = only(side.wire.take())
    assert isinstance(died, Died)
    assert "not published any more" in died.reason.text


# ---- proxies


def test_a_proxy_reaches_what_the_names_grant_that_its_host_may_use(side, account):
    target = publish(side, account, "teller", proxy=["deposit"])
    publish(side, account, "manager", proxy=["balance"], acl=["manager.example"])
    call = Call(1, target, LONG, ("deposit",), packed([]), packed({}))
    assert side.hear(call)
    assert not side.hear(Get(2, target, LONG, ("balance",)))
    assert isinstance(error(only(side.wire.take())), NotAllowed)
    side.wire.certificates[THERE] = {"manager.example"}
    assert side.hear(Get(3, target, LONG, ("balance",)))
    assert side.hear(call._replace(question=4))


class Account:
    def __init__(self):
        self.balance = 5
        self._secret = 1

    def deposit(self, amount):
        return amount


@pytest.fixture
def account():
    return Fake(actor=Account())


def test_proxies_call_get_and_set(side, account):
    target = publish(side, account, proxy=True)
    args, kwargs = packed([1, "b"]), packed({"c": 2})
    assert side.hear(Call(1, target, LONG, ("deposit",), args, kwargs))
    assert side.hear(Get(2, target, LONG, ("balance",)))
    assert side.hear(Set(3, target, LONG, ("balance",), packed(7)))
    assert side.hear(Call(0, target, 0, ("deposit",), args, kwargs))
    envelopes = [account.take() for _ in range(4)]
    assert [envelope.message for envelope in envelopes] == [
        ProxyCall(("deposit",), (1, "b"), {"c": 2}),
        ProxyGetAttr(("balance",)),
        ProxySetAttr(("balance",), 7),
        ProxyCall(("deposit",), (1, "b"), {"c": 2}),
    ]
    assert [envelope.reply_to is None for envelope in envelopes] == [False, False, False, True]


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(lambda to: Call(1, to, LONG, ("_secret",), packed([]), packed({})), id="private"),
        pytest.param(
            lambda to: Call(1, to, LONG, ("balance",), packed([]), packed({})), id="call an attribute"
        ),
        pytest.param(lambda to: Get(1, to, LONG, ("deposit",)), id="read a method"),
        pytest.param(lambda to: Set(1, to, LONG, ("deposit",), packed(1)), id="replace a method"),
        pytest.param(lambda to: Get(1, to, LONG, ("balance", "real")), id="below an attribute"),
        pytest.param(
            lambda to: Call(1, to, LONG, ("deposit", "__call__"), packed([]), packed({})), id="below a method"
        ),
        pytest.param(lambda to: Get(1, to, LONG, ("__class__",)), id="the class"),
        pytest.param(lambda to: Call(1, to, LONG, ("nothing",), packed([]), packed({})), id="nothing"),
    ],
)
def test_what_was_not_published_for_proxies_is_out_of_reach(side, account, record):
    target = publish(side, account, proxy=True)
    assert not side.hear(record(target))
    failed = only(side.wire.take())
    assert failed.kind is FailKind.REFUSED
    assert "was not published for proxies" in str(error(failed))
    assert account.idle


def test_without_proxy_nothing_is_in_reach(side, account):
    target = publish(side, account)
    assert not side.hear(Call(1, target, LONG, ("deposit",), packed([]), packed({})))
    assert account.idle


@pytest.mark.parametrize(("args", "kwargs"), [({}, {}), ([], []), ("ab", {}), ([], None)])
def test_arguments_that_are_none_are_refused(side, account, args, kwargs):
    target = publish(side, account, proxy=True)
    assert not side.hear(Call(1, target, LONG, ("deposit",), packed(args), packed(kwargs)))
    assert isinstance(error(only(side.wire.take())), ValueRefused)
    assert not side.hear(Call(0, target, 0, ("deposit",), packed(args), packed(kwargs)))
    assert account.idle


# ---- bounds


def test_so_many_questions_to_one_actor_and_in_all_may_be_open(side, keeper, target, monkeypatch):
    monkeypatch.setattr(clients, "MAX_QUESTIONS_TO_ONE", 2)
    monkeypatch.setattr(clients, "MAX_QUESTIONS", 3)
    other = Fake()
    to_other = publish(side, other, "other")
    assert [ask(side, target, number) for number in range(3)] == [True, True, False]
    failed = only(side.wire.take())
    assert (failed.question, failed.kind) == (2, FailKind.BUSY)
    assert isinstance(error(failed), SystemBusy)
    assert [ask(side, to_other, number) for number in (3, 4)] == [True, False]
    assert only(side.wire.take()).question == 4, "three are open, in all"
    keeper.take().reply_to.set(None)
    side.wire.take()
    assert ask(side, to_other, 5)
    assert side.wire.take() == []
    assert side.serving.questions == 3
    assert len([other.take(), other.take()]) == 2


def test_a_question_that_never_gets_an_answer_gives_its_place_back_when_its_time_is_over(
    side, keeper, target
):
    never = ActorFuture()
    assert ask(side, target, 1, milliseconds=1000)
    keeper.take().reply_to.set(never)
    assert ask(side, target, 2, milliseconds=5000)
    side.clock.now += 1.5
    for _ in range(serving.SWEEP_TICKS):
        side.serving.tick()
    assert side.serving.questions == 1
    never.set("late")
    assert side.wire.take() == []
    assert side.counters[replies.DROPPED_ANSWERS] == 1
    keeper.take().reply_to.set("in time")
    assert value(only(side.wire.take())) == "in time"


def test_an_inbox_without_a_bound_takes_so_many(side, keeper, target, monkeypatch):
    monkeypatch.setattr(serving, "MAX_INBOX", 2)
    assert [ask(side, target, number) for number in range(3)] == [True, True, False]
    failed = only(side.wire.take())
    assert (failed.question, failed.kind) == (2, FailKind.BUSY)
    assert side.serving.questions == 2
    assert side.hear(Tell(target, packed("hello")))
    assert side.counters[replies.DROPPED_MESSAGES] == 1


def test_an_inbox_that_would_block_does_not(side):
    keeper = Fake(queue.Queue(maxsize=1))
    target = publish(side, keeper)
    assert ask(side, target, 1)
    assert not ask(side, target, 2)
    assert only(side.wire.take()).kind is FailKind.BUSY


def test_the_bytes_that_wait_for_actors_are_bounded(side, keeper, target, monkeypatch):
    monkeypatch.setattr(serving, "MAX_BYTES_OF_ONE", 90_000)
    assert side.hear(Tell(target, packed(bytes(45_000))))
    assert side.hear(Tell(target, packed(bytes(22_500))))
    assert not ask(side, target, 1, bytes(30_000))
    assert only(side.wire.take()).kind is FailKind.BUSY
    assert ask(side, target, 2), "a small one has room"
    keeper.take()
    assert ask(side, target, 3, bytes(30_000)), "what was taken out counts no more"
    assert side.wire.take() == []
    other = side.links.of("10.0.0.3:7000")
    assert side.hear(Tell(target, packed(bytes(45_000))), other), "each host has its own"
    assert side.counters[replies.DROPPED_MESSAGES] == 0


def test_a_host_that_comes_again_does_not_begin_anew_while_its_messages_wait(
    side, keeper, target, monkeypatch
):
    monkeypatch.setattr(serving, "MAX_BYTES_OF_ONE", 90_000)
    side.hear(Tell(target, packed(bytes(88_000))))
    side.lose()
    assert not ask(side, target, 1, bytes(4000))
    assert only(side.wire.take()).kind is FailKind.BUSY
    keeper.take()
    assert ask(side, target, 2, bytes(4000))
    assert side.wire.take() == []


def test_all_hosts_together_have_a_bound_too():
    load = loads.Load(10_000, "all")
    first, second = (loads.Load(8_000, name, load) for name in ("a", "b"))
    waits = loads.Delivered("x", None, first, 6_000)
    with pytest.raises(SystemBusy, match="messages from all wait"):
        second.check(6_000)
    second.check(2_000)
    del waits
    second.check(6_000)
    assert load.bytes == first.bytes == 0
    first.check(1 << 30)  # one of any size does, where nothing waits


# ---- askers that are gone


def test_the_answer_for_an_asker_that_is_gone_is_dropped_also_when_it_comes_again(side, keeper, target):
    """A new run of the asker at the same address would take it for the answer to a question of its own."""
    pending = asked(side, target, keeper, 5)
    side.lose()
    assert side.serving.questions == 0
    again = asked(side, target, keeper, 5)
    pending.set("for the one before")
    assert side.wire.take() == []
    assert side.counters[replies.DROPPED_ANSWERS] == 1
    again.set("for this one")
    assert value(only(side.wire.take())) == "for this one"


def test_an_answer_for_which_there_is_no_room_is_dropped_and_counted():
    side, keeper = Side(Options(call_records=1)), Fake()
    target = publish(side, keeper)
    first, second = asked(side, target, keeper, 1), asked(side, target, keeper, 2)
    first.set(1)
    second.set(2)
    assert only(side.wire.take()).question == 1
    assert side.counters[replies.DROPPED_ANSWERS] == 1
    assert side.serving.questions == 0


@pytest.fixture
def by_count_alone():
    """Without what looks for cycles."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def _kept_errors():
    return sum(isinstance(each, (SystemBusy, ValueRefused)) for each in gc.get_objects())


@pytest.mark.parametrize(
    "answer", [pytest.param(b"large", id="no room for it"), pytest.param(object(), id="not to be encoded")]
)
def test_what_an_answer_that_does_not_leave_has_taken_is_free_at_once(by_count_alone, answer):
    """Answers of a megabyte would wait for the garbage collector by the dozen."""
    side, keeper = Side(Options(call_records=1)), Fake()
    target = publish(side, keeper)
    asked(side, target, keeper, 1).set(1)
    before = _kept_errors()
    for number in range(2, 6):
        asked(side, target, keeper, number).set(answer)
    assert _kept_errors() == before
    assert side.counters[replies.DROPPED_ANSWERS] == 4


# ---- ends and watches


def test_an_actor_that_ends_leaves_no_question_without_an_answer(side, keeper, target):
    later = ActorFuture()
    asked(side, target, keeper, 1).set(later)
    pending = asked(side, target, keeper, 2)
    keeper.actor_stopped.set()
    actor = side.published.forget(keeper.actor_urn)
    side.serving.end_of(actor, None)
    ended = side.wire.take()
    assert sorted((failed.question, failed.kind) for failed in ended) == [
        (1, FailKind.DEAD),
        (2, FailKind.DEAD),
    ]
    assert "ended before it answered" in str(error(ended[0]))
    pending.set("too late")
    later.set("what it had promised")
    assert side.wire.take() == []
    assert side.counters[replies.DROPPED_ANSWERS] == 2


def test_watchers_are_told_once_and_why(side, keeper, target):
    assert side.hear(Watch(1, target))
    assert side.hear(Watch(2, target))
    assert side.hear(Unwatch(2))
    assert [value(answer) for answer in side.wire.take()] == [None, None]
    other = side.links.of("10.0.0.3:7000")
    assert side.hear(Watch(1, target), other)
    side.wire.take()
    assert side.serving.watches == 2
    actor = side.published.forget(keeper.actor_urn)
    side.serving.end_of(actor, ValueError("crashed"))
    died = side.wire.take_all()
    assert {address for address, _ in died} == {THERE, other.address}
    assert [record.watch for _, record in died] == [1, 1]
    assert str(decode_failure(died[0][1].reason, REFS)) == "crashed"
    side.serving.end_of(actor, None)
    assert side.wire.take() == []
    assert side.serving.watches == 0
    assert side.hear(Unwatch(1)), "it crossed the notice"


def test_a_lost_host_is_told_of_no_end(side, keeper, target):
    side.hear(Watch(1, target))
    side.wire.take()
    assert side.serving.waits(THERE)
    side.lose()
    assert not side.serving.waits(THERE)
    actor = side.published.forget(keeper.actor_urn)
    side.serving.end_of(actor, None)
    assert side.wire.take() == []


def test_what_cannot_be_watched_is_refused_with_the_reason(side, keeper, target, monkeypatch):
    monkeypatch.setattr(clients, "MAX_WATCHES", 1)
    assert side.hear(Watch(1, target))
    for refused in (Watch(2, target), Watch(3, Target(RUN, 9)), Watch(4, Target(OTHER_RUN, target.number))):
        assert not side.hear(refused), "each is charged"
    first, *refused = side.wire.take()
    assert value(first) is None
    assert [(failed.question, failed.kind) for failed in refused] == [
        (2, FailKind.BUSY),
        (3, FailKind.DEAD),
        (4, FailKind.DEAD),
    ]


def test_a_watch_number_that_comes_twice_is_one_watch_and_is_charged(side, keeper, target):
    other = Fake()
    assert side.hear(Watch(1, target))
    assert not side.hear(Watch(1, publish(side, other, "other"))), (
        "no host gives a number twice, so it is charged"
    )
    assert side.serving.watches == 1
    side.wire.take()
    for ref in (keeper, other):
        actor = side.published.forget(ref.actor_urn)
        side.serving.end_of(actor, None)
    assert side.wire.take() == [Died(1, None)]


def test_the_notice_of_an_end_waits_for_room():
    side, keeper = Side(Options(call_records=2)), Fake()
    target = publish(side, keeper)
    side.hear(Watch(1, target))
    side.wire.take()
    for _ in range(2):
        side.link.put(Tell(target, b""))
    actor = side.published.forget(keeper.actor_urn)
    side.serving.end_of(actor, None)
    assert Died(1, None) not in side.wire.take()
    assert side.serving.waits(THERE)
    side.serving.tick()
    assert side.wire.take() == [Died(1, None)]
    side.serving.tick()
    assert side.wire.take() == []


# ---- names


def test_a_name_is_looked_up_with_what_a_proxy_reaches(side, account):
    target = publish(side, account, proxy=True)
    assert side.hear(Lookup(1, "keeper"))
    found = decode_found(only(side.wire.take()).value)
    assert (found.target, found.cls) == (target, "Account")
    assert found.attributes == {"balance": False, "deposit": True}


def test_an_actor_is_described_with_all_that_its_names_let_a_proxy_of_the_asker_reach(side, account):
    target = publish(side, account, "teller", proxy=["deposit"])
    publish(side, account, "manager", proxy=["balance"], acl=["manager.example"])

    def described():
        assert side.hear(Describe(1, target))
        found = decode_found(only(side.wire.take()).value)
        assert (found.target, found.cls) == (target, "Account")
        return found.attributes

    assert described() == {"deposit": True}
    side.wire.certificates[THERE] = {"manager.example"}
    assert described() == {"deposit": True, "balance": False}
    side.wire.certificates.clear()
    side.published.unpublish("teller")
    assert not side.hear(Describe(2, target))
    assert isinstance(error(only(side.wire.take())), NotAllowed)
    account.actor_stopped.set()
    assert not side.hear(Describe(3, target))
    assert only(side.wire.take()).kind is FailKind.DEAD


def test_what_is_told_of_an_actor_is_charged_where_it_is_much(side, account):
    for number in range(500):
        setattr(account._actor, f"attribute_{number}", number)
    target = publish(side, account, proxy=True)
    for question in (Lookup(1, "keeper"), Describe(2, target)):
        assert not side.hear(question)
        assert len(decode_found(only(side.wire.take()).value).attributes) == 502
    publish(side, account, proxy=["balance"])
    assert side.hear(Lookup(3, "keeper"))
    assert side.hear(Describe(4, target))


def test_an_unknown_name_is_said_to_be_and_charged(side):
    assert not side.hear(Lookup(1, "nobody"))
    failed = only(side.wire.take())
    assert failed.kind is FailKind.UNKNOWN
    assert isinstance(error(failed), UnknownName)


def test_what_is_too_long_to_be_told_is_answered_by_that():
    side = Side(Options(call_limit=2000))
    for number in range(100):
        publish(side, Fake(), f"a rather long name of an actor {number}")
    side.hear(Names(1))
    failed = only(side.wire.take())
    assert failed.question == 1
    assert isinstance(error(failed), (TransportError, RemoteError))
    assert "too long" in str(error(failed))


@pytest.mark.parametrize("limit", [1500, 1 << 20])
def test_a_long_failure_is_told_without_its_traceback_rather_than_not_at_all(limit):
    side, keeper = Side(Options(call_limit=limit)), Fake()
    pending = asked(side, publish(side, keeper), keeper)
    try:
        raise ValueError("no " * 200)  # noqa: TRY301  # as an actor does
    except ValueError:
        pending.set_exception()
    failed = only(side.wire.take())
    assert isinstance(error(failed), ValueError)
    assert bool(failed.failure.traceback) is (limit > 1500)


def test_one_host_watches_one_actor_some_times_at_most(side, keeper, target):
    """All are told in one go when it ends."""
    for watch in range(clients.MAX_WATCHES_OF_ONE + 1):
        assert side.hear(Watch(watch, target)) == (watch < clients.MAX_WATCHES_OF_ONE)
    *_, last = side.wire.take()
    assert (last.question, last.kind) == (clients.MAX_WATCHES_OF_ONE, FailKind.BUSY)
    assert side.serving.watches == clients.MAX_WATCHES_OF_ONE
