"""Links: what has been put leaves in order, and each question ends once, with the reason; nothing is kept for hosts that came and went."""

import gc
import threading

import pykka
import pytest
import trio
import trio.testing
from drakkar.actors.remote import links, questions
from drakkar.actors.remote.deadlines import SLOT_S, Deadlines
from drakkar.actors.remote.errors import AnswerTimeout, HostGone
from drakkar.actors.remote.links import Links
from drakkar.actors.remote.questions import Question
from drakkar.actors.remote.records import Answer, Ask, Died, Names, Target, Tell, Unwatch, Watch
from drakkar.handlers.errors import OutcomeUnknown, SystemBusy, TransportError
from drakkar.transport.options import Options

from tests.actors.remote.fakes import NOT_SENT, THERE, Clock, Thread, Wire

TARGET = Target(1, 2)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(questions, "time", clock)
    return clock


class Host:
    """The links of one host, and what they have sent."""

    def __init__(self, clock, options=None):
        self.thread = Thread()
        self.wire = Wire(self.thread, options)
        self.deadlines = Deadlines(clock.monotonic)
        self.links = Links(self.wire, self.thread, self.deadlines)
        self.link = self.links.of(THERE)

    def ask(self, timeout=10.0, *, patient=False):
        question = Question(self.link, self.link.number(), timeout, "Keeper", bytes, patient=patient)
        self.link.put(Ask(question.number, TARGET, 1, b""), question)
        return question

    def tell(self, message=b""):
        self.link.put(Tell(TARGET, message))

    @property
    def waiting(self):
        """Records that have a place on the way."""
        return self.wire.call_room(THERE).records


@pytest.fixture
def host(clock):
    return Host(clock)


class End:
    """What hears of the end of an actor."""

    def __init__(self):
        self.heard = []

    def lost(self, watch, reason):
        self.heard.append((watch, str(reason)))

    def ended(self, reason):
        self.heard.append(reason)


def error_of(question):
    assert question.future.done
    return question.future.outcome()[1]


# ---- sending


@pytest.mark.parametrize("inside", [True, False])
def test_what_was_put_together_leaves_together_and_in_order(host, inside):
    host.thread.inside = inside
    for number in range(5):
        host.tell(bytes([number]))
    assert len(host.thread.waiting) == 1, "one wake-up for all"
    assert [record.message for record in host.wire.take()] == [bytes([number]) for number in range(5)]
    host.tell(b"later")
    assert [record.message for record in host.wire.take()] == [b"later"], (
        "and another one for what comes after"
    )


def test_what_threads_put_leaves_once_and_in_the_order_of_each(host):
    host.thread.inside = False
    together = threading.Barrier(4)

    def tell(name):
        together.wait()
        for number in range(500):
            host.tell(bytes([name, number % 250, number // 250]))

    threads = [threading.Thread(target=tell, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    came = []
    while len(came) < 2000:
        came += [record.message for record in host.wire.take()]
        assert len(came) == 2000 or any(thread.is_alive() for thread in threads) or host.thread.waiting
    for thread in threads:
        thread.join()
    assert host.waiting == 0
    for name in range(4):
        sent = [each[1] + 250 * each[2] for each in came if each[0] == name]
        assert sent == list(range(500))


def test_the_transport_is_told_where_nothing_but_answers_leaves(host):
    host.link.put(Answer(1, b""))
    host.link.put(Died(2, None))
    host.wire.take()
    host.link.put(Answer(3, b""))
    host.tell()
    host.wire.take()
    host.ask()
    host.wire.take()
    assert host.wire.sent_as_answers == [True, False, False]


def test_numbers_begin_at_random_and_no_two_questions_share_one(clock):
    first, second = Host(clock), Host(clock)
    numbers = {host.link.number() for host in (first, second) for _ in range(100)}
    assert len(numbers) == 200, "an answer to an earlier run is not taken for one of this run"
    assert min(numbers) > 1 << 20, "nobody guesses one"
    assert max(numbers) < 1 << 63


def test_too_many_questions_are_refused_and_leave_nothing_behind(host, monkeypatch):
    monkeypatch.setattr(links, "MAX_QUESTIONS", 2)
    asked = [host.ask(), host.ask()]
    with pytest.raises(SystemBusy, match=f"2 questions to {THERE} have no answer"):
        host.ask()
    assert (host.link.questions, host.waiting) == (2, 2)
    host.wire.take()
    assert host.link.answered(asked[0].number) is asked[0]
    host.ask()


def test_a_question_that_would_wait_too_long_for_its_turn_is_refused_and_not_kept(host, clock):
    host.wire.rooms.clock = clock.monotonic
    host.tell()
    host.tell()
    clock.now += 1.0
    host.wire.call_room(THERE).left(1, 10)
    clock.now += 2.0
    with pytest.raises(SystemBusy, match=r"within 7 s"):
        host.ask(7.0)
    assert host.link.questions == 0
    host.tell()
    host.ask(9.0)


def test_a_full_lane_is_busy_at_once_and_the_question_is_not_kept(clock):
    host = Host(clock, Options(call_records=3))
    for _ in range(3):
        host.tell()
    with pytest.raises(SystemBusy, match="3 calls"):
        host.ask()
    with pytest.raises(SystemBusy):
        host.tell()
    assert host.link.questions == 0
    assert len(host.wire.take()) == 3
    host.ask()


def test_a_record_that_is_too_long_is_refused(clock):
    host = Host(clock, Options(call_limit=100))
    with pytest.raises(TransportError, match="too long"):
        host.tell(bytes(200))
    assert host.waiting == 0


# ---- the ends of questions


def test_an_answer_ends_a_question_once(host):
    question = host.ask()
    host.wire.take()
    assert host.link.answered(question.number) is question
    assert host.link.answered(question.number) is None
    host.deadlines.end_late()
    assert not question.future.done, "the one who took it sets it"


def test_what_has_not_left_surely_had_no_effect_and_what_has_may_have_had_one(host):
    sent = host.ask()
    assert host.wire.take()
    host.wire.error = NOT_SENT
    unsent = host.ask()
    host.thread.run()
    assert isinstance(error_of(unsent), HostGone)
    assert "Keeper was not reached: nothing listens there" in str(error_of(unsent))
    assert not sent.future.done
    host.link.lost("the connection was lost")
    assert type(error_of(sent)) is OutcomeUnknown
    assert "the connection was lost before Keeper had answered" in str(error_of(sent))
    assert (host.link.questions, bool(host.deadlines._slots)) == (0, False)


def test_only_those_fail_whose_records_were_handed_back(host):
    asked = [host.ask() for _ in range(4)]
    host.wire.take()
    host.link.handed_back([question.record for question in asked[2:]], NOT_SENT)
    assert [question.future.done for question in asked] == [False, False, True, True]
    assert host.link.questions == 2
    assert not host.link.forgive(), "the host does not know of them, so it owes no answer to them"


def test_a_lost_connection_ends_no_question_that_was_not_sent_yet(host):
    question = host.ask()
    host.link.lost("the connection was lost")
    assert not question.future.done
    assert len(host.wire.take()) == 1


def test_a_transport_that_has_ended_hands_all_back(host):
    host.wire.ended = True
    question = host.ask()
    host.thread.run()
    assert "this host stops" in str(error_of(question))


@pytest.mark.parametrize("inside", [True, False])
def test_questions_fail_at_once_where_the_host_is_known_to_be_out_of_reach(host, inside):
    host.thread.inside = inside
    host.wire.why_away = f"cannot reach {THERE}: refused"
    question, watch = host.ask(), host.ask(patient=True)
    host.tell(b"told")
    left = host.wire.take()
    assert [type(record) for record in left] == [Ask, Tell], "what waits for the next attempt"
    assert left[0].question == watch.number
    assert isinstance(error_of(question), HostGone)
    assert "cannot reach" in str(error_of(question))
    assert host.waiting == 0, "the place of what did not leave is given back"
    host.wire.why_away = ""
    host.ask()
    assert len(host.wire.take()) == 1


# ---- deadlines


def test_a_deadline_ends_a_question_within_a_slot(host, clock):
    soon, later = host.ask(timeout=1.6 * SLOT_S), host.ask(timeout=1.0)
    host.wire.take()
    clock.now += 1.5 * SLOT_S
    host.deadlines.end_late()
    assert not soon.future.done, "not before the deadline, though its slot has begun"
    clock.now += 1.1 * SLOT_S
    host.deadlines.end_late()
    error = error_of(soon)
    assert isinstance(error, AnswerTimeout)
    assert isinstance(error, pykka.Timeout)
    assert not later.future.done
    assert host.link.questions == 1


def test_one_that_never_heard_of_the_host_is_told_what_may_be_wrong(host, clock):
    def late():
        question = host.ask(timeout=1.0)
        host.wire.take()
        clock.now += 2
        host.deadlines.end_late()
        return str(error_of(question))

    assert f"nothing was ever heard of {THERE}" in late()
    host.link.heard = True
    assert "ever heard" not in late()


def test_a_question_whose_time_is_over_before_it_could_leave_is_not_sent(host, clock):
    question = host.ask(timeout=1.0)
    clock.now += 2
    with pytest.raises(AnswerTimeout):
        question.wait()
    assert host.wire.take() == []
    assert host.waiting == 0


def test_a_thread_that_waits_is_told_at_its_deadline_though_the_loop_hangs(host):
    host.thread.inside = False
    question = host.ask(timeout=0.0)
    with pytest.raises(AnswerTimeout):
        question.wait()
    assert host.link.questions == 0


def test_a_timeout_that_the_actor_answers_with_is_its_own(host):
    question = host.ask()
    host.wire.take()
    host.link.answered(question.number).future.fail(pykka.Timeout("the actor's"))
    with pytest.raises(pykka.Timeout, match="the actor's") as caught:
        question.wait()
    assert type(caught.value) is pykka.Timeout


def test_deadlines_keep_nothing_of_what_was_answered(host):
    for timeout in range(1, 100):
        question = host.ask(timeout=timeout)
        host.wire.take()
        host.link.answered(question.number)
    assert host.deadlines._slots == {}


def test_the_task_of_deadlines_sleeps_until_there_is_one_and_goes_on_after_it():
    ended = []

    class Waiting:
        def __init__(self, deadline):
            self.slot = int(deadline / SLOT_S) + 1

        def give_up(self):
            ended.append(trio.current_time())

    async def main():
        deadlines = Deadlines(trio.current_time)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(deadlines.run)
            for _ in range(2):
                await trio.sleep(100)
                at = trio.current_time() + 1.0
                deadlines.add(Waiting(at))
                await trio.sleep(5)
                assert at < ended[-1] <= at + 2.5 * SLOT_S
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert len(ended) == 2


# ---- the end of this host


def test_when_this_host_stops_all_ends_at_once_and_nothing_more_is_taken(host):
    end, sent = End(), host.ask()
    host.wire.take()
    host.links.watch(host.link, 7, end)
    unsent = host.ask()
    host.links.close("this host has stopped")
    assert type(error_of(sent)) is OutcomeUnknown
    assert isinstance(error_of(unsent), HostGone)
    assert end.heard == [(7, "this host has stopped")]
    for put in (host.ask, host.tell):
        with pytest.raises(HostGone, match="this host has stopped"):
            put()
    with pytest.raises(HostGone):
        host.links.of("10.0.0.9:7000").put(Names(1))


def test_a_loop_that_has_ended_by_itself_leaves_no_question_open(host):
    host.thread.inside, host.thread.ended = False, True
    with pytest.raises(HostGone, match="ended"):
        host.ask()
    assert host.link.questions == 0
    with pytest.raises(HostGone):
        host.tell()


# ---- watches


def test_a_lost_connection_ends_the_watches(host):
    end = End()
    host.links.watch(host.link, 7, end)
    host.link.lost("the connection was lost")
    [(watch, why)] = end.heard
    assert watch == 7
    assert "the connection was lost: whether the actor lives is not known" in why
    assert host.wire.take() == [], "the other host has noticed it too"
    host.link.lost("again")
    assert len(end.heard) == 1


def test_a_host_that_hangs_is_told_which_watches_are_over(host):
    end = End()
    for watch in (7, 8):
        host.links.watch(host.link, watch, end)
    host.link.incoming = True
    host.link.lost("it was taken for dead", hangs=True)
    assert len(end.heard) == 2
    assert host.wire.take() == [Unwatch(7), Unwatch(8)]
    assert host.link.incoming, "its connection stands"


def test_a_watch_that_was_not_sent_yet_is_not_lost(host):
    end, number = End(), host.link.number()
    question = Question(host.link, number, 10.0, "a watch", bytes, patient=True)
    host.links.watch(host.link, number, end)
    host.link.put(Watch(number, TARGET), question)
    host.link.lost("the connection was lost")
    assert (end.heard, question.future.done) == ([], False)


def test_as_many_late_answers_are_forgiven_as_the_host_may_owe(host, clock):
    assert not host.link.forgive(), "nothing was asked"
    for _ in range(2):
        host.ask(timeout=1.0)
    host.wire.take()
    host.ask(timeout=1.0)  # it has not left
    clock.now += 2
    host.deadlines.end_late()
    host.link.lost("over")
    assert [host.link.forgive() for _ in range(3)] == [True, True, False]


# ---- all links


def test_there_is_one_link_to_a_host_however_its_address_is_spelt(host):
    assert host.links.of("[::1]:7000") is not host.links.of("[::2]:7000")
    one = host.links.of("[::1]:7000")
    assert host.links.of("[0::1]:7000") is host.links.known("[0:0::1]:7000") is one
    with pytest.raises(TransportError, match="nonsense"):
        host.links.of("nonsense")


def test_hosts_that_come_and_go_leave_nothing_behind(host):
    for port in range(1, 500):
        host.links.of(f"10.1.1.1:{port}").heard = True
    gc.collect()
    assert host.links.all() == [host.link]


def test_a_link_lasts_while_something_is_waited_for(host, clock):
    question = host.ask(timeout=1.0)
    host.wire.take()
    number = question.number
    del question, host.link
    gc.collect()
    link = host.links.known(THERE)
    assert link is not None
    assert link.answered(number) is not None
    host.links.watch(link, 7, End())
    del link
    host.links.let_go()
    gc.collect()
    [link] = host.links.all()
    assert link.watches
    link.unwatch(7)
    host.wire.take()
    host.links.let_go()
    del link
    gc.collect()
    assert host.links.all() == []
