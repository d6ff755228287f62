"""An inbox and its lanes: what is refused, what never is, what is taken first, and that nothing is overlooked."""

import threading

import pykka
import pytest
from drakkar.actors.runtime.actor import TrioActor
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.actors.runtime.inbox import MAX_NEWS, Inbox, Lane
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.handlers.errors import ReplicaStopped, SystemBusy
from pykka._envelope import Envelope

from tests.actors.support import until

TIMEOUT_S = 10
NEVER = float("inf")


class Request:
    """What clients put into a lane: some commands, which count one each."""

    def __init__(self, *commands, deadline=NEVER):
        self.commands, self.deadline = commands, deadline
        self.future = ActorFuture()
        self.count, self.size = len(commands), sum(map(len, commands))

    @property
    def outcome(self):
        """The class of its error; None as long as it waits."""
        return type(self.future.outcome()[1]) if self.future.done else None


class Turns:
    """An inbox whose turns are counted."""

    def __init__(self, capacity=10):
        self.count = 0
        self.inbox = Inbox("mine", capacity)
        self.inbox.open("mine", self.give)
        self.end()
        self.count = 0

    def give(self):
        self.count += 1

    def end(self):
        """As at the end of a turn in which all was taken."""
        self.inbox.woken = False
        self.inbox.rest()


def lane(inbox=None, *, count=10, size=100):
    return Lane(Inbox("mine", 10) if inbox is None else inbox, "commands", max_count=count, max_bytes=size)


# -- One schedule


def test_whichever_lane_something_comes_into_the_actor_gets_one_turn_for_all():
    turns = Turns()
    waiting = lane(turns.inbox)
    turns.inbox.complete("done")
    waiting.put(Request(b"a"))
    turns.inbox.put(Envelope("hello"))
    turns.inbox.wake()
    assert turns.count == 1


@pytest.mark.parametrize(
    "come",
    [
        pytest.param(lambda inbox: inbox.complete("done"), id="a completion"),
        pytest.param(lambda inbox: inbox.put(Envelope("hello")), id="a message"),
        pytest.param(lambda inbox: lane(inbox).put(Request(b"a")), id="a request"),
        pytest.param(lambda inbox: inbox.wake(), id="a wake"),
    ],
)
def test_what_comes_in_the_middle_of_a_turn_gets_another_turn(come):
    turns = Turns()
    turns.inbox.wake()
    assert turns.count == 1
    turns.inbox.woken = False  # the lanes are looked at
    come(turns.inbox)
    assert turns.count == 1, "it has its turn"
    turns.inbox.rest()
    assert turns.count == 2


def test_the_actor_is_woken_by_the_first_request_and_by_the_first_after_it_took_all():
    turns = Turns()
    waiting = lane(turns.inbox)
    first, second, third = Request(b"a"), Request(b"b"), Request(b"c")
    waiting.put(first)
    turns.end()
    waiting.put(second)
    assert turns.count == 1, "the actor knows, and left the first where it was"
    assert waiting.take() == [first, second]
    assert waiting.take() == []
    waiting.put(third)
    assert turns.count == 2
    assert waiting.take() == [third]


# -- News


def test_news_is_put_behind_all_that_waits_though_the_queue_is_full_but_not_without_end():
    turns = Turns(2)
    inbox = turns.inbox
    for message in ("a", "b"):
        inbox.put(Envelope(message))
    news = [f"news {number}" for number in range(MAX_NEWS)]
    for message in news:
        inbox.put_last(Envelope(message))
    with pytest.raises(SystemBusy, match=f"mine has not taken {2 + MAX_NEWS} messages yet"):
        inbox.put_last(Envelope("too much"))
    assert inbox.refused == 1
    assert [envelope.message for envelope in inbox.queue] == ["a", "b", *news]


def test_news_wakes_the_actor():
    turns = Turns()
    turns.inbox.put_last(Envelope("news"))
    assert turns.count == 1
    full = Turns(1)
    full.inbox.queue.append(Envelope("not seen yet"))
    full.inbox.put_last(Envelope("news"))
    assert full.count == 1


@pytest.mark.parametrize("waiting", [0, 1], ids=["with room", "full"])
def test_whoever_brings_news_to_an_actor_that_has_ended_is_told(waiting):
    inbox = Inbox("mine", 1)
    inbox.queue.extend([Envelope("old")] * waiting)
    inbox.close()
    with pytest.raises(pykka.ActorDeadError):
        inbox.put_last(Envelope("news"))


# -- Completions


def test_a_completion_is_taken_though_the_queue_is_full():
    inbox = Inbox("mine", 1)
    inbox.put(Envelope("hello"))
    with pytest.raises(SystemBusy):
        inbox.put(Envelope("too much"))
    for number in range(100):
        inbox.reserve()
        inbox.complete(number)
    assert list(inbox.completions) == list(range(100))
    assert (len(inbox), inbox.refused) == (101, 1)


class Holding(Inbox):
    """Keeps what it drops."""

    def __init__(self, owner, capacity):
        super().__init__(owner, capacity)
        self.late = []

    def dropped(self, message):
        self.late.append(message)


def test_a_completion_for_an_actor_that_has_ended_is_dropped_and_what_it_holds_can_be_let_go():
    inbox = Holding("mine", 1)
    inbox.complete("early")
    inbox.close()
    assert inbox.late == ["early"]
    inbox.complete("late")
    assert len(inbox) == 0
    assert inbox.late == ["early", "late"]


def test_a_place_is_reserved_until_the_completion_is_taken_or_the_work_was_not_ordered():
    inbox = Inbox("mine", 1)
    for _ in range(3):
        inbox.reserve()
    inbox.release()
    inbox.complete("done")
    assert inbox.outstanding == 2, "it is not taken"
    assert inbox.take_completion() == "done"
    assert inbox.outstanding == 1


def test_a_completion_of_what_was_not_ordered_is_an_error():
    inbox = Inbox("mine", 1)
    inbox.complete("done")
    with pytest.raises(AssertionError, match="mine was told of more work than it had ordered"):
        inbox.take_completion()


def test_messages_that_an_actor_never_saw_are_dropped_by_its_inbox():
    with TrioLoop() as loop:
        inbox = Holding("mine", 10)
        actor = Recorder.start_actor(loop=loop, inbox=inbox)

        def end():
            actor.actor_ref.tell("late")
            actor.actor_inbox.reserve()
            actor.actor_inbox.complete("done")
            raise SystemExit

        actor.actor_ref.tell(end)
        until(lambda: sorted(inbox.late) == ["done", "late"])


class Recorder(TrioActor):
    """Notes what it is told, in order; told a function, it calls it in the middle of its turn."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen = []

    def on_receive(self, message):
        if callable(message):
            return message()
        self.seen.append(message)
        return list(self.seen)

    def after_batch(self):
        self.seen.append("batch")


@pytest.fixture
def recorder():
    with TrioLoop() as loop:
        yield Recorder.start(loop=loop)


def test_completions_are_taken_before_the_messages_that_came_earlier(recorder):
    entered, leave = threading.Event(), threading.Event()
    recorder.tell(lambda: (entered.set(), leave.wait(TIMEOUT_S)))
    assert entered.wait(TIMEOUT_S)
    recorder.tell("tick")
    for done in ("done 1", "done 2"):
        recorder.actor_inbox.reserve()
        recorder.actor_inbox.complete(done)
    leave.set()
    seen = recorder.ask("last", timeout=TIMEOUT_S)
    assert [each for each in seen if each != "batch"] == ["done 1", "done 2", "tick", "last"]


def test_a_completion_alone_gives_a_turn_which_ends_as_all_do(recorder):
    recorder.ask("first", timeout=TIMEOUT_S)
    recorder.actor_inbox.reserve()
    recorder.actor_inbox.complete("done")
    seen = recorder._actor_weakref().seen
    until(lambda: seen[-2:] == ["done", "batch"])


def test_a_wake_alone_runs_what_ends_a_turn_and_once_only(recorder):
    recorder.ask("first", timeout=TIMEOUT_S)
    seen = recorder._actor_weakref().seen
    until(lambda: seen[-1] == "batch")
    seen.clear()
    recorder.actor_inbox.wake()
    until(lambda: seen)
    recorder._actor_weakref().actor_loop.call(lambda: None, timeout=TIMEOUT_S)
    assert seen == ["batch"]


class Restless(Recorder):
    """At the end of its first batch, something comes."""

    def __init__(self, come, **kwargs):
        super().__init__(**kwargs)
        self.come = come

    def after_batch(self):
        super().after_batch()
        come, self.come = self.come, lambda _: None
        come(self.actor_inbox)


@pytest.mark.parametrize(
    "come",
    [
        pytest.param(lambda inbox: inbox.wake(), id="a wake"),
        pytest.param(lambda inbox: lane(inbox).put(Request(b"a")), id="a request"),
    ],
)
def test_what_comes_while_a_batch_ends_is_followed_by_another_batch(come):
    with TrioLoop() as loop:
        actor = Restless.start_actor(come, loop=loop)
        until(lambda: actor.seen == ["batch", "batch"])
        loop.call(lambda: None, timeout=TIMEOUT_S)
        assert actor.seen == ["batch", "batch"], "and by no more"


# -- A lane's bounds


@pytest.mark.parametrize(
    ("bounds", "commands"),
    [
        pytest.param({"count": 3}, [b"c", b"d"], id="one command too many"),
        pytest.param({"size": 3}, [b"cd"], id="one byte too many"),
    ],
)
def test_a_full_lane_refuses_at_once_and_counts_it(bounds, commands):
    waiting = lane(**bounds)
    accepted, refused = Request(b"a", b"b"), Request(*commands)
    waiting.put(accepted)
    waiting.put(refused)
    assert accepted.outcome is None
    assert refused.outcome is SystemBusy
    limit = f"{bounds.get('count', 10)} commands and {bounds.get('size', 100)} bytes"
    assert f"2 commands of 2 bytes wait for mine, which takes up to {limit}" in str(
        refused.future.outcome()[1]
    )
    assert waiting.refused == 1
    # What is taken makes room.
    assert waiting.take() == [accepted]
    again = Request(*commands)
    waiting.put(again)
    assert waiting.take() == [again]


def test_a_lane_without_a_bound_in_bytes_does_not_speak_of_them():
    waiting = Lane(Inbox("mine", 10), "requests", max_count=1)
    waiting.put(Request(b"a"))
    refused = Request(b"b")
    waiting.put(refused)
    assert "1 requests wait for mine, which takes up to 1 requests: wait" in str(refused.future.outcome()[1])


def test_a_request_that_is_larger_than_the_bounds_is_taken_when_nothing_else_waits():
    waiting = lane(count=3)
    large = Request(*[b"x"] * 50)
    waiting.put(large)
    assert waiting.take() == [large]


@pytest.mark.parametrize(
    ("bounds", "parts"),
    [
        pytest.param({"max_count": 4}, [2, 2, 1], id="commands"),
        pytest.param({"max_bytes": 8}, [1, 4], id="bytes"),
        pytest.param({"max_count": 1}, [1] * 5, id="each is too large, and taken alone"),
        pytest.param({}, [5], id="all"),
    ],
)
def test_a_turn_takes_a_part_of_what_waits_and_is_given_another_for_the_rest(bounds, parts):
    turns = Turns()
    waiting = lane(turns.inbox)
    sent = [
        Request(b"a" * 6, b"b"),
        Request(b"c", b"d"),
        Request(b"e", b"f", b"g"),
        Request(b"h"),
        Request(b"i"),
    ]
    for request in sent:
        waiting.put(request)
    taken = []
    for number in range(1, len(parts) + 1):
        turns.count = 0
        turns.inbox.woken = False
        taken += waiting.take(**bounds)
        turns.inbox.rest()
        assert len(taken) == sum(parts[:number])
        assert turns.count == (number < len(parts))
    assert taken == sent
    assert waiting.take(**bounds) == []


def test_what_was_left_by_a_turn_still_counts_towards_the_bounds():
    waiting = lane(count=3)
    for _ in range(3):
        waiting.put(Request(b"x"))
    waiting.take(max_count=2)
    accepted, refused = Request(b"y", b"z"), Request(b"w")
    waiting.put(accepted)
    waiting.put(refused)
    assert (accepted.outcome, refused.outcome) == (None, SystemBusy)


def test_what_waits_beyond_its_deadline_fails_and_makes_room():
    waiting = lane(count=2)
    late, early = Request(b"a", deadline=1.0), Request(b"b", deadline=2.0)
    waiting.put(late)
    waiting.put(early)
    waiting.expire(1.5, SystemBusy("too late"))
    assert (late.outcome, early.outcome) == (SystemBusy, None)
    third = Request(b"c")
    waiting.put(third)
    assert waiting.take() == [early, third]


def test_closing_a_lane_refuses_what_waits_and_all_that_comes():
    waiting = lane()
    before, after = Request(b"a"), Request(b"b")
    waiting.put(before)
    waiting.close(ReplicaStopped("it is over"))
    waiting.put(after)
    assert (before.outcome, after.outcome) == (ReplicaStopped, ReplicaStopped)
    assert waiting.take() == []


def test_no_request_is_lost_or_taken_twice_when_threads_put_while_the_loop_takes():
    turns, woken = Turns(), threading.Event()
    turns.give = woken.set
    turns.inbox._give_turn = woken.set
    waiting = lane(turns.inbox, count=1 << 30, size=1 << 30)
    count = 500
    taken = []

    def put(name):
        for number in range(count):
            waiting.put(Request(b"%d %d" % (name, number)))

    threads = [threading.Thread(target=put, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    while len(taken) < 4 * count:
        assert woken.wait(TIMEOUT_S), "a request waits, and the actor was not told"
        woken.clear()
        turns.inbox.woken = False
        taken += [each.commands[0] for each in waiting.take()]
        turns.inbox.rest()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert sorted(taken) == sorted(b"%d %d" % (name, number) for name in range(4) for number in range(count))
    # Each client's own are in order.
    for name in range(4):
        mine = [int(command.split()[1]) for command in taken if command.startswith(b"%d " % name)]
        assert mine == list(range(count))
