"""When a singleton may start on a host, and when it must end there, in time that is made up."""

from random import Random

import pytest
from drakkar.actors.names.singleton_keeper import takeover_ticks
from drakkar.actors.names.tenure import MAX_LEFT, SingletonPhase, Tenure
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.actors.runtime.incarnation import START_GRACE_S
from drakkar.actors.runtime.launching import StartTimedOut
from drakkar.handlers.errors import NotLeader

from tests.actors.runtime.support import Latest, Ref, TroubleError

BOUND = 24.0
MINE = TroubleError("mine")


class World:
    """A tenure, its hands, and the time."""

    def __init__(self, *, at_once=True):
        self.now, self.at_once = 0.0, at_once
        self.done = []
        """What was begun, in order."""
        self.index = 100
        """Of the last committed entry."""
        self.work = None
        self.abandoned, self.watched, self.lines, self.told = [], set(), [], []
        self.left = []
        """Those whose name was taken away."""
        self.tenure = Tenure("scheduler", self, start_timeout=2.0, stop_timeout=3.0, random=Latest())

    # -- its hands

    def fence(self):
        self.index += 1
        return self.begin("fence", self.index)

    def start(self, fence):
        return self.begin(f"start {fence}", Ref("", fence))

    def stop(self, ref):
        ref.alive = not self.at_once
        return self.begin(f"stop {ref}", None)

    def begin(self, what, outcome):
        self.done.append(what)
        self.work = ActorFuture()
        self.outcome = outcome
        if self.at_once:
            self.work.set(outcome)
        return self.work

    def finish(self):
        self.work.set(self.outcome)

    def abandon(self, started):
        self.abandoned.append(started)

    def leave(self, ref):
        self.left.append(ref.actor_urn)

    def watch(self, ref):
        self.watched.add(ref)

    def unwatch(self, ref):
        self.watched.discard(ref)

    def on_started(self, fence, ref):
        self.told.append(f"up {fence}")

    def on_ended(self, fence, reason):
        self.told.append(f"down {fence}" if reason is None else f"failed {fence}")

    def tell(self, level, text, *args):
        self.lines.append(text % args)

    # -- what happens to it

    def office(self, term):
        self.tenure.on_office(term, self.now, BOUND)
        return self.proceed()

    def die(self, error=MINE):
        ref = self.tenure.ref
        ref.alive = False
        self.tenure.on_died(ref, error, self.now)
        return self.proceed()

    def proceed(self, seconds=0.0):
        until = self.now + seconds
        while True:
            before = len(self.done)
            for _ in range(5):
                self.tenure.proceed(self.now)
            due = self.tenure.next_time(self.now)
            if len(self.done) == before and due > until:
                self.now = until
                self.tenure.proceed(until)
                done, self.done = self.done, []
                return done
            if len(self.done) == before:
                self.now = max(self.now, due)


def up(term=5, **options):
    world = World(**options)
    world.at_once = True
    world.office(term)
    world.tenure.on_proof(term)
    assert world.proceed() == ["fence", "start 101"]
    world.at_once = options.get("at_once", True)
    return world


# -- when it starts


def test_it_starts_when_the_one_before_has_surely_ended_with_the_index_of_an_entry_of_that_moment():
    world = World()
    assert world.office(5) == []
    assert world.proceed(BOUND - 0.1) == []
    assert world.proceed(0.1) == ["fence", "start 101"]
    assert (world.tenure.phase, world.tenure.fence, world.told) == (SingletonPhase.UP, 101, ["up 101"])


def test_it_starts_at_once_where_that_is_proven():
    world = World()
    world.office(5)
    world.tenure.on_proof(5)
    assert world.proceed() == ["fence", "start 101"]


def test_a_proof_of_another_term_is_none():
    world = World()
    world.office(5)
    world.tenure.on_proof(4)
    assert world.proceed(1) == []
    world.office(0)
    world.tenure.on_proof(5)
    world.office(7)
    assert world.proceed(1) == []


def test_out_of_office_it_never_starts():
    world = World()
    assert world.proceed(1000) == []
    world.office(5)
    world.office(0)
    assert world.proceed(1000) == []


def test_in_each_office_it_waits_anew():
    world = World()
    world.office(5)
    world.proceed(BOUND - 1)
    world.office(0)
    world.office(6)
    assert world.proceed(BOUND - 1) == []
    assert world.proceed(1) == ["fence", "start 101"]


def test_a_fence_that_fails_is_tried_again_while_in_office():
    world = World(at_once=False)
    world.office(5)
    world.tenure.on_proof(5)
    assert world.proceed() == ["fence"]
    world.work.fail(NotLeader(1))
    assert world.proceed(0.05) == []
    assert world.proceed(0.1) == ["fence"]


def test_a_fence_that_is_committed_after_the_office_was_lost_starts_nothing():
    """The next leader may have committed it, in a term of its own."""
    world = World(at_once=False)
    world.office(5)
    world.tenure.on_proof(5)
    world.proceed()
    lost = world.work
    world.office(0)
    lost.set(101)
    assert world.proceed(100) == []
    world.office(7)
    world.tenure.on_proof(7)
    assert world.proceed() == ["fence"], "another one, of this term"


# -- when it ends


@pytest.mark.parametrize(
    "lose",
    [
        pytest.param(lambda world: world.office(0), id="office is lost"),
        pytest.param(lambda world: world.office(7), id="and won again, unseen in between"),
        pytest.param(lambda world: world.tenure.bar(6, world.now + 48), id="another host says that it leads"),
        pytest.param(lambda world: world.tenure.close(), id="it is to run here no more"),
    ],
)
def test_it_ends_as_soon_as(lose):
    world = up()
    done = lose(world) or []
    assert [*done, *world.proceed(BOUND - 1)] == ["stop 101"]
    assert world.told == ["up 101", "down 101"]
    assert world.watched == set()


def test_a_bar_of_this_term_or_an_older_one_says_nothing_of_it():
    world = up(term=5)
    world.tenure.bar(5, world.now + 48)
    world.tenure.bar(3, world.now + 48)
    assert world.proceed(10) == []


def test_a_bar_that_was_not_true_ends_by_itself():
    """A host that lies could otherwise end a singleton for good by one message."""
    world = up()
    world.tenure.bar(1 << 60, world.now + 48)
    assert world.proceed(47) == ["stop 101"]
    assert world.proceed(2) == ["fence", "start 102"]


def test_a_bar_keeps_a_start_from_coming_that_was_fenced_before():
    world = World(at_once=False)
    world.office(5)
    world.tenure.on_proof(5)
    world.proceed()
    world.tenure.bar(6, 48.0)
    world.finish()
    assert world.proceed(10) == []
    assert world.tenure.ended_before(6)


def test_office_that_is_lost_during_the_start_ends_it_when_it_is_up():
    world = World(at_once=False)
    world.office(5)
    world.tenure.on_proof(5)
    world.proceed()
    world.finish()
    assert world.proceed() == ["start 101"]
    world.office(0)
    assert world.proceed(1) == []
    assert not world.tenure.ended_before(6)
    world.finish()
    assert world.proceed() == ["stop 101"]
    assert not world.tenure.ended_before(6)
    world.finish()
    world.proceed()
    assert world.tenure.ended_before(6)


def test_a_host_that_stood_still_lets_it_end_and_begins_with_a_new_number():
    world = up()
    world.tenure.doubt()
    assert world.proceed() == ["stop 101", "fence", "start 102"]


@pytest.mark.parametrize("steps", [0, 1])
def test_a_host_that_stood_still_while_it_started_begins_anew(steps):
    world = World(at_once=False)
    world.office(5)
    world.tenure.on_proof(5)
    world.proceed()
    for _ in range(steps):
        world.finish()
        world.proceed()
    world.tenure.doubt()
    world.at_once = True
    if steps:
        world.finish()
    done = world.proceed()
    assert done[-2:] == ["fence", "start 102"]


def test_doubt_about_one_that_does_not_run_changes_nothing():
    world = World()
    world.office(5)
    world.tenure.doubt()
    assert world.proceed(BOUND) == ["fence", "start 101"]


# -- failures


def test_one_that_fails_is_started_again_after_waits_that_double_each_time_with_a_new_number():
    world = up()
    waits = []
    for number in range(102, 110):
        assert world.die() == []
        waits.append(round(world.tenure.next_time(world.now) - world.now, 2))
        assert world.proceed(6.0) == ["fence", f"start {number}"]
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_one_that_was_up_for_long_begins_with_the_shortest_wait():
    world = up()
    for _ in range(3):
        world.die()
        assert world.proceed(0.11) != []
        world.proceed(31.0)


def test_one_that_another_stops_is_started_again():
    world = up()
    world.die(None)
    assert world.proceed(0.2) == ["fence", "start 102"]
    assert world.told == ["up 101", "down 101", "up 102"]


def test_a_start_that_fails_is_tried_again_with_a_new_number():
    world = World(at_once=False)
    world.office(5)
    world.tenure.on_proof(5)
    world.proceed()
    world.finish()
    world.proceed()
    world.work.fail(MINE)
    assert world.proceed(0.2) == ["fence"]
    assert world.tenure.reason is MINE


def test_one_that_fails_out_of_office_is_not_started_again():
    world = up(at_once=False)
    world.office(0)
    assert world.tenure.phase is SingletonPhase.STOPPING
    world.tenure.on_died(world.tenure.ref, MINE, world.now)
    world.finish()
    assert world.proceed(100) == []


# -- what hangs


def test_a_start_that_hangs_is_given_up_and_counted():
    world = World(at_once=False)
    world.office(5)
    world.tenure.on_proof(5)
    world.proceed()
    world.finish()
    world.proceed()
    hanging = world.work
    assert world.proceed(1.9 + START_GRACE_S) == []
    assert world.proceed(0.3) == ["fence"]
    assert world.abandoned == [hanging]
    assert world.tenure.abandoned == 1
    assert not world.tenure.ended_before(6), "what comes of it may still come up"
    hanging.fail(MINE)
    world.office(0)
    assert world.tenure.ended_before(6)


def test_one_that_does_not_stop_is_left_behind_and_has_not_ended():
    world = up(at_once=False)
    ref = world.tenure.ref
    assert world.office(0) == ["stop 101"]
    assert world.proceed(2.9) == []
    assert world.left == []
    world.proceed(0.2)
    assert world.tenure.phase is SingletonPhase.IDLE
    assert world.left == [ref.actor_urn], "its name is for the next one"
    assert any("may run elsewhere now" in line for line in world.lines)
    assert not world.tenure.ended_before(6)
    ref.alive = False
    assert world.tenure.ended_before(6)


def test_one_whose_on_start_hangs_has_not_ended():
    world = World(at_once=False)
    world.office(5)
    world.tenure.on_proof(5)
    world.proceed()
    world.finish()
    world.proceed()
    error = StartTimedOut("it hangs")
    error.ref = Ref("", 101)
    world.work.fail(error)
    world.proceed()
    assert world.left == [error.ref.actor_urn]
    world.office(0)
    assert not world.tenure.ended_before(6)
    error.ref.alive = False
    assert world.tenure.ended_before(6)


def test_beside_too_many_that_hang_none_is_started_until_one_has_ended():
    world = World(at_once=False)
    world.office(5)
    world.tenure.on_proof(5)
    for _ in range(MAX_LEFT):
        world.proceed(6.0)
        world.finish()  # the fence
        world.proceed(3.0)
    assert world.proceed(100) == []
    assert any("let another host lead" in line for line in world.lines)
    world.abandoned[0].fail(MINE)
    assert world.proceed(10) == ["fence"]


def test_what_serves_it_has_ended_and_so_does_it():
    world = up(at_once=False)
    world.tenure.let_go()
    assert world.done == ["stop 101"]
    other = World(at_once=False)
    other.office(5)
    other.tenure.on_proof(5)
    other.proceed()
    other.finish()
    other.proceed()
    other.tenure.let_go()
    assert other.abandoned == [other.work]


def test_the_bound_covers_two_election_timeouts_and_clocks_that_differ_by_a_tenth():
    for election_ticks in (1, 3, 10, 50, 999):
        slow_leader = 2 * election_ticks * 1.1  # ticks of the new leader's clock
        assert slow_leader < takeover_ticks(election_ticks) <= slow_leader + 4


# -- many hosts, at random: as long as no host stands still, two never run at a time


class Hosts:
    """Hosts that win and lose offices as Raft allows, each with a tenure of its own."""

    def __init__(self, seed):
        self.random = Random(seed)
        self.worlds = [World(at_once=False) for _ in range(3)]
        self.term = 0
        self.leader = None
        """Who leads; the others that still believe to do so lose office by a time."""
        self.believers = {}
        self.now = 0.0
        self.fences = []
        self.index = 100

    def elect(self):
        self.term += 1
        new = self.random.randrange(3)
        if self.leader is not None and self.leader != new:
            # It was cut off: CheckQuorum tells it within two election timeouts, by its own clock, which may be slow.
            self.believers[self.leader] = self.now + self.random.uniform(0, 2 * 10 * 1.1)
        self.believers.pop(new, None)
        self.leader = new
        self.worlds[new].office(self.term)

    def step(self):
        self.now += self.random.uniform(0.1, 2.0)
        for number, due in list(self.believers.items()):
            if due <= self.now:
                del self.believers[number]
                self.worlds[number].now = due
                self.worlds[number].office(0)
                self.settle(number)
        if self.random.random() < 0.03:
            for world in self.worlds:
                world.proceed(self.now - world.now)
            self.elect()
        for number, world in enumerate(self.worlds):
            world.proceed(max(0.0, self.now - world.now))
            self.settle(number)
        running = [
            number for number, world in enumerate(self.worlds) if world.tenure.phase is SingletonPhase.UP
        ]
        assert len(running) <= 1, f"{running} at {self.now}"

    def settle(self, number):
        """Its work is done: only the leader's fence is committed."""
        world = self.worlds[number]
        while world.work is not None and not world.work.done:
            if world.tenure.phase is SingletonPhase.FENCING:
                if number != self.leader:
                    return
                self.index += 1
                self.fences.append(self.index)
                world.work.set(self.index)
            else:
                world.finish()
            world.proceed()


def test_as_long_as_no_host_stands_still_two_never_run_at_a_time():
    starts = 0
    for seed in range(100):
        hosts = Hosts(seed)
        hosts.elect()
        for _ in range(300):
            hosts.step()
        assert hosts.fences == sorted(set(hosts.fences))
        starts += sum(world.tenure.starts for world in hosts.worlds)
    assert starts > 100, "they do run"
