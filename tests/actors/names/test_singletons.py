"""Singletons on three hosts: one runs, where the shard's leader is, and takes over when the one before has ended.

How long a takeover may take at most is counted in ticks, and docs/names.md says why. So what is measured here is that it comes
no sooner where it must not. That it comes at once where it may is shown with a bound that lies beyond the test's end.
"""

import math
import threading
import time
from contextlib import ExitStack

import pykka
import pytest
from drakkar.actors import ConfigError, DeadlockError, DrakkarError, NodeHost, SystemBusy, TrioActor
from drakkar.actors.names import singleton_keeper
from drakkar.actors.names import singletons as singletons_module
from drakkar.actors.names.events import SingletonEnded, SingletonStarted
from drakkar.actors.names.singleton_keeper import KEEPER_NAME, takeover_ticks
from drakkar.actors.names.singletons import Singletons
from drakkar.actors.names.tenure import SingletonPhase
from drakkar.actors.remote.from_host import FromHost
from drakkar.handlers.errors import RequestDropped

from tests.actors.names.support import Home, Network
from tests.actors.runtime.support import Gate
from tests.actors.support import TICK, TIMEOUT_S, Hosts, InlineLedger, contents, hand_over, settled, until
from tests.ports import free_addresses

SHARD = 1
CONFIG = {"election_ticks": 40}
ELECTION_S = CONFIG["election_ticks"] * TICK
BOUND_S = takeover_ticks(CONFIG["election_ticks"]) * TICK


class Scheduler(pykka.ThreadingActor):
    """Tells where it runs, by its number; and dies when it is told to."""

    use_daemon_thread = True

    def __init__(self, place, hook=None, *, fence):
        super().__init__()
        self.place, self.fence = place, fence
        if hook is not None:
            hook(self)

    def on_receive(self, message):
        if message == "die":
            raise ZeroDivisionError("a bug")
        if isinstance(message, Gate):
            message.pass_through()
            return None
        return self.place, self.fence


def hold(ref, gate):
    """Have it handle a message that takes until the gate is opened: a stop goes before those that it has not begun with."""
    ref.tell(gate)
    assert gate.reached.wait(TIMEOUT_S)


class TrioScheduler(TrioActor):
    def __init__(self, place, *, fence, **kwargs):
        super().__init__(**kwargs)
        self.place, self.fence = place, fence

    def on_receive(self, message):
        if message == "die":
            raise ZeroDivisionError("a bug")
        return self.place, self.fence


class Office:
    """Three hosts, each of which would run the scheduler."""

    def __init__(self, hosts, kind=Scheduler, *, hook=None, numbers=(1, 2, 3), config=CONFIG, **options):
        self.hosts, self.network = hosts, Network()
        self.events, self.gone = [], set()
        hosts.run(InlineLedger, config=config)
        self.singletons, self.handles = {}, {}
        for number in numbers:
            host = hosts.hosts[number]
            self.singletons[number] = Singletons(
                Home(host),
                self.network.of(host.address),
                host.loop,
                announce=lambda event, number=number: self.events.append((number, event)),
                gone=self.gone.__contains__,
            )
            args = (number,) if hook is None else (number, hook)
            self.handles[number] = self.singletons[number].declare(
                "scheduler", kind, shard_id=SHARD, args=args, **options
            )

    def __getitem__(self, number):
        return self.handles[number]

    def up(self):
        """Wait until it runs where the leader is, and return that host's number."""

        def runs():
            running = [
                number for number, handle in self.handles.items() if handle.status.phase is SingletonPhase.UP
            ]
            leader = self.hosts.leader()
            return leader if running == [leader] else None

        return until(runs)

    def calm(self):
        """Have all keepers believe that the membership has not changed for long."""
        for number, singletons in self.singletons.items():
            shards = singletons._keeper._shards
            self.hosts.hosts[number].loop.call(shards.__setitem__, SHARD, -math.inf)

    def fences(self):
        return [event.fence for _, event in self.events if isinstance(event, SingletonStarted)]

    def move(self):
        leader = self.up()
        target = self.hosts.others(leader)[0]
        hand_over(self.hosts[leader], target)
        return leader, target


@pytest.fixture
def hosts():
    with Hosts() as hosts:
        yield hosts


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    pykka.ActorRegistry.stop_all(block=False)


def ask(handle):
    """Ask it, wherever it runs, until there is an answer."""

    def answer():
        found = settled(handle.ref(block=False, timeout=2.0))
        return None if isinstance(found, Exception) else settled_answer(found)

    return until(answer)


def settled_answer(ref):
    try:
        return ref.ask("who?", timeout=2.0)
    except (pykka.ActorDeadError, pykka.Timeout):
        return None


@pytest.mark.parametrize("kind", [Scheduler, TrioScheduler])
def test_it_runs_on_the_leader_s_host_and_is_found_from_all(hosts, kind):
    office = Office(hosts, kind)
    leader = office.up()
    for number in (1, 2, 3):
        assert office[number].where() == hosts.addresses[leader - 1]
        assert ask(office[number]) == (leader, office[leader].status.fence)
    assert [number for number, _ in office.events] == [leader]


def test_its_number_is_the_index_of_a_committed_entry_and_the_state_machine_is_not_told(hosts):
    office = Office(hosts)
    leader = office.up()
    fence = office[leader].status.fence
    [entry] = settled(hosts[leader].query_log(fence, fence + 1))
    assert entry.index == fence
    assert contents(hosts[leader]) == []


def test_it_moves_with_the_office_and_its_numbers_rise(hosts):
    office = Office(hosts)
    office.up()
    for _ in range(3):
        before, after = office.move()
        assert office.up() == after
        assert office[before].status.phase is SingletonPhase.IDLE
        assert ask(office[before])[0] == after
    assert office.fences() == sorted(set(office.fences()))
    assert_one_at_a_time(office.events)


@pytest.fixture
def only_by_proof(monkeypatch):
    """From now on a host that wins the office starts its own only if it can tell that the one before has ended."""

    def begin(office):
        monkeypatch.setattr(singleton_keeper, "takeover_ticks", lambda _: 10_000)
        office.calm()

    return begin


def test_after_a_transfer_the_next_one_starts_as_soon_as_the_one_before_has_ended(hosts, only_by_proof):
    office = Office(hosts)
    office.up()
    only_by_proof(office)
    for _ in range(3):
        _, after = office.move()
        assert office.up() == after
    assert_one_at_a_time(office.events)


def assert_one_at_a_time(events):
    running = []
    for number, event in events:
        if isinstance(event, SingletonStarted):
            assert not running, f"{number} starts, and it runs on {running}"
            running.append(number)
        else:
            running.remove(number)


def test_while_the_one_before_does_not_stop_the_next_one_waits_for_its_time(hosts):
    gate = Gate()
    office = Office(hosts, stop_timeout=0.05)
    leader = office.up()
    office.calm()
    hold(office[leader].ref(), gate)
    try:
        began = time.monotonic()
        _, after = office.move()
        assert office.up() == after
        assert time.monotonic() - began >= BOUND_S
        assert office[leader].status.abandoned == 1
    finally:
        gate.opened.set()


def test_a_killed_host_is_proof_enough_where_it_is_known_to_be_gone(hosts, only_by_proof):
    office = Office(hosts)
    leader = office.up()
    only_by_proof(office)
    address = hosts.addresses[leader - 1]
    office.network.cut_off.add(address)
    office.gone.add(address)
    del office.handles[leader]
    hosts.stop(leader)
    assert office.up() != leader


def test_where_the_one_before_cannot_be_asked_the_next_one_waits_for_its_time(hosts):
    office = Office(hosts)
    leader = office.up()
    office.calm()
    office.network.cut_off.add(hosts.addresses[leader - 1])
    del office.handles[leader]
    began = time.monotonic()
    hosts.stop(leader)
    office.up()
    assert time.monotonic() - began >= BOUND_S


@pytest.mark.parametrize("when", ["before it wins the office", "before it knows all members"])
def test_where_the_membership_has_just_changed_the_next_one_waits_for_its_time(hosts, when):
    """A voter that was removed just now is not asked, and might run one still."""
    office = Office(hosts)
    leader = office.up()
    office.calm()
    began = time.monotonic()
    for number, singletons in office.singletons.items():
        keeper = singletons._keeper

        def fence(shard_id, keeper=keeper, commit=keeper._fence):
            keeper._shards[SHARD] = time.monotonic()
            return commit(shard_id)

        if when == "before it wins the office":
            hosts.hosts[number].loop.call(keeper._shards.__setitem__, SHARD, began)
        else:
            keeper._fence = fence
    office.move()
    assert office.up() != leader
    assert time.monotonic() - began >= BOUND_S


def test_a_leader_that_is_cut_off_ends_it_before_the_next_one_starts(hosts, monkeypatch):
    """The old host still runs, and only its own CheckQuorum tells it."""
    office = Office(hosts)
    leader = office.up()
    office.network.cut_off.add(hosts.addresses[leader - 1])
    host = hosts.hosts[leader]
    monkeypatch.setattr(host._services, "send", lambda *_: None)
    host.loop.call(host._inputs._callers.clear)
    until(lambda: office[leader].status.phase is SingletonPhase.IDLE)
    left = {number: hosts[number] for number in hosts.others(leader)}
    after = hosts.leader(left)
    until(lambda: office[after].status.phase is SingletonPhase.UP)
    assert_one_at_a_time(office.events)


# -- failures


@pytest.mark.parametrize("kind", [Scheduler, TrioScheduler])
def test_one_that_fails_is_started_again_on_the_same_host_with_a_new_number(hosts, kind):
    office = Office(hosts, kind)
    leader = office.up()
    first = office[leader].ref()
    first.tell("die")
    until(lambda: office[leader].status.starts == 2)
    assert ask(office[leader]) == (leader, office.fences()[1])
    assert office.fences() == sorted(set(office.fences()))
    assert isinstance(office[leader].status.reason, ZeroDivisionError)
    [failed] = [event for _, event in office.events if isinstance(event, SingletonEnded)]
    assert isinstance(failed.reason, ZeroDivisionError)


def test_one_whose_constructor_fails_is_tried_again_until_it_runs(hosts):
    failures = []

    def hook(scheduler):
        if len(failures) < 3:
            failures.append(scheduler.fence)
            raise ZeroDivisionError("not yet")

    office = Office(hosts, hook=hook)
    office.up()
    assert [*failures, *office.fences()] == sorted({*failures, *office.fences()})


def test_one_whose_constructor_hangs_blocks_no_loop_and_is_tried_again(hosts):
    gate, hung = threading.Event(), []

    def hook(scheduler):
        if not hung:
            hung.append(scheduler)
            gate.wait(TIMEOUT_S)

    office = Office(hosts, hook=hook, start_timeout=0.1)
    leader = office.up()
    assert sum(handle.status.abandoned for handle in office.handles.values()) == 1
    assert hosts.hosts[leader].loop.worst_lateness < TIMEOUT_S / 2
    gate.set()
    until(hung[0].actor_stopped.is_set)


def test_a_host_that_stood_still_begins_with_a_new_number_though_it_leads_on(caplog):
    with Hosts(1) as hosts:
        office = Office(hosts, numbers=(1,))
        office.up()
        before = len(office.fences())
        hosts.hosts[1].loop.run_soon(time.sleep, 1.5 * ELECTION_S)
        until(lambda: len(office.fences()) > before)
        assert "stood still" in caplog.text
        assert office.fences() == sorted(set(office.fences()))
        assert_one_at_a_time(office.events)


def test_one_that_hangs_leaves_its_published_name_to_the_next_on_the_same_host():
    gate = Gate()
    [address] = free_addresses(1)
    with NodeHost(address, tick_interval=TICK) as host:
        host.start_directory(shard_id=SHARD, replica_id=1, members={1: address})
        scheduler = host.singleton("scheduler", Scheduler, shard_id=SHARD, args=(1,), stop_timeout=0.05)
        old = scheduler.ref(timeout=TIMEOUT_S)
        hold(old, gate)
        try:
            keeper = host._singletons._keeper
            host.loop.run_soon(keeper._doubt, keeper._kept["scheduler"], 1.0)
            new = until(lambda: (ref := scheduler.ref(timeout=TIMEOUT_S)) is not old and ref)
            assert old.is_alive()
            assert host.published["singleton:scheduler"] is new
            assert scheduler.status.starts == 2
        finally:
            gate.opened.set()


# -- the replica, the host and the handle


def test_it_ends_with_the_replica_of_its_shard(hosts):
    office = Office(hosts)
    leader = office.up()
    hosts.replicas.pop(leader).stop()
    until(lambda: office[leader].status.phase is SingletonPhase.IDLE)
    assert office.up() != leader
    assert office[leader].where() is None
    with pytest.raises(RequestDropped, match="no leader of its shard is known here"):
        office[leader].ref(timeout=0.2)


def test_a_replica_that_is_started_again_may_run_it_again(hosts):
    office = Office(hosts)
    leader = office.up()
    hosts.replicas.pop(leader).stop()
    after = office.up()
    hosts.run(InlineLedger, numbers=[leader], config=CONFIG)
    hosts.leader()
    hand_over(hosts[after], leader)
    assert office.up() == leader


def test_a_host_that_leaves_ends_all_and_takes_no_more(hosts):
    office = Office(hosts)
    leader = office.up()
    assert office.singletons[leader].leave(timeout=TIMEOUT_S) is True
    assert office[leader].status.phase is SingletonPhase.IDLE
    with pytest.raises(DrakkarError, match="is stopping"):
        office.singletons[leader].declare("other", Scheduler, shard_id=SHARD)
    hand_over(hosts[leader], hosts.others(leader)[0])
    assert office.up() != leader


def test_one_that_is_stopped_by_its_handle_runs_here_no_more_and_may_be_declared_again(hosts):
    office = Office(hosts)
    leader = office.up()
    assert office[leader].stop(timeout=TIMEOUT_S) is True
    assert office[leader].status.phase is SingletonPhase.IDLE
    assert office.singletons[leader]._keeper._kept == {}, "what has ended is not kept"
    office.handles[leader] = office.singletons[leader].declare(
        "scheduler", Scheduler, shard_id=SHARD, args=(leader,)
    )
    assert office.up() == leader


def test_one_that_does_not_end_may_not_be_declared_again_beside_itself():
    gate = Gate()
    with Hosts(1) as hosts:
        office = Office(hosts, numbers=(1,), stop_timeout=0.05)
        office.up()
        hold(office[1].ref(), gate)
        try:
            assert office[1].stop(timeout=0.5) is False
            with pytest.raises(ConfigError, match="already"):
                office.singletons[1].declare("scheduler", Scheduler, shard_id=SHARD, args=(1,))
        finally:
            gate.opened.set()
        assert office[1].stop(timeout=TIMEOUT_S) is True
        office.handles[1] = office.singletons[1].declare("scheduler", Scheduler, shard_id=SHARD, args=(1,))
        assert office.up() == 1


def test_those_who_wait_for_an_end_are_bounded(monkeypatch):
    monkeypatch.setattr(singleton_keeper, "MAX_ASKERS", 1)
    gate = Gate()
    with Hosts(1) as hosts:
        office = Office(hosts, numbers=(1,), stop_timeout=0.05)
        office.up()
        hold(office[1].ref(), gate)
        try:
            keeper = office.network.published[hosts.addresses[0], KEEPER_NAME]
            question = FromHost(hosts.addresses[0], ["ended", SHARD, "scheduler", 1 << 40])
            first = keeper.ask(question, block=False)
            assert keeper.ask(question, timeout=TIMEOUT_S) is False
            assert office[1].stop(timeout=TIMEOUT_S) is False
            assert not first.done
        finally:
            gate.opened.set()
        assert first.get(timeout=TIMEOUT_S) is True


def test_it_ends_with_its_host(hosts):
    office = Office(hosts)
    leader = office.up()
    ref = office[leader].ref()
    hosts.stop(leader)
    until(lambda: not ref.is_alive())


def test_a_ref_is_waited_for_until_there_is_one(hosts):
    office = Office(hosts)
    future = office[1].ref(block=False, timeout=TIMEOUT_S)
    leader = office.up()
    assert future.get(timeout=TIMEOUT_S).ask("who?", timeout=TIMEOUT_S)[0] == leader


def test_the_loop_is_never_blocked(hosts):
    office = Office(hosts)
    leader = office.up()
    loop = hosts.hosts[leader].loop

    async def use():
        ref = await office[leader].ref(block=False)
        return ref.is_alive()

    assert loop.call(use, timeout=TIMEOUT_S) is True
    for call in (office[leader].ref, office[leader].stop):
        with pytest.raises(DeadlockError):
            loop.call(call)


# -- what other hosts ask


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        (["ended", SHARD, "other", 5], True),
        (["ended", SHARD + 1, "scheduler", 5], True),
        (["ended", SHARD, "scheduler"], False),
        (["ended", SHARD, "scheduler", 0], False),
        (["ended", SHARD, "scheduler", True], False),
        (["ended", SHARD, "scheduler", 1 << 63], False),
        (["ended", -1, "scheduler", 5], False),
        (["ended", SHARD, 7, 5], False),
        (["begun", SHARD, "scheduler", 5], False),
        ("ended", False),
        (None, False),
    ],
)
def test_a_question_is_answered_and_what_is_none_is_answered_with_false(hosts, message, answer):
    office = Office(hosts)
    leader = office.up()
    keeper = office.network.published[hosts.addresses[leader - 1], KEEPER_NAME]
    member = hosts.addresses[hosts.others(leader)[0] - 1]
    assert keeper.ask(FromHost(member, message), timeout=TIMEOUT_S) is answer
    assert office[leader].status.phase is SingletonPhase.UP


def test_one_that_is_asked_for_by_a_later_leader_ends_though_this_host_has_not_heard_of_it(hosts):
    office = Office(hosts)
    leader = office.up()
    keeper = office.network.published[hosts.addresses[leader - 1], KEEPER_NAME]
    term = hosts[leader].status().term
    member = hosts.addresses[hosts.others(leader)[0] - 1]
    question = FromHost(member, ["ended", SHARD, "scheduler", term + 1])
    assert keeper.ask(question, timeout=TIMEOUT_S) is True
    assert office[leader].status.phase is SingletonPhase.IDLE
    # It was not true, so that it runs again soon.
    until(lambda: any(handle.status.phase is SingletonPhase.UP for handle in office.handles.values()))


def test_a_host_of_no_member_ends_none_and_keeps_none_down():
    [member, elsewhere] = free_addresses(2)
    with NodeHost(member, tick_interval=TICK) as host, NodeHost(elsewhere, tick_interval=TICK) as stranger:
        host.start_directory(shard_id=SHARD, replica_id=1, members={1: member})
        scheduler = host.singleton("scheduler", Scheduler, shard_id=SHARD, args=(1,))
        ref = scheduler.ref(timeout=TIMEOUT_S)
        keeper = stranger.remote(member, KEEPER_NAME)
        for term in (1, 10**9):
            assert keeper.ask(["ended", SHARD, "scheduler", term], timeout=TIMEOUT_S) is False
        ref.tell("die")
        until(lambda: scheduler.ref(timeout=TIMEOUT_S) is not ref)  # nothing bars it
        [tenure] = [kept.tenure for kept in host._singletons._keeper._kept.values()]
        assert tenure._barred == 0


def test_hosts_of_members_are_believed_over_real_connections(monkeypatch):
    addresses = free_addresses(2)
    options = {"shard_id": SHARD, "members": dict(enumerate(addresses, 1))}
    with ExitStack() as stack:
        hosts = [stack.enter_context(NodeHost(address, tick_interval=TICK)) for address in addresses]
        replicas = [
            host.start_directory(replica_id=number, **options) for number, host in enumerate(hosts, 1)
        ]
        handles = [host.singleton("scheduler", Scheduler, shard_id=SHARD, args=(0,)) for host in hosts]

        def up():
            return next((at for at in (0, 1) if handles[at].status.phase is SingletonPhase.UP), None)

        until(lambda: up() is not None)
        first = up()
        monkeypatch.setattr(
            singleton_keeper, "takeover_ticks", lambda _: 10_000
        )  # by proof alone, from now on
        for host in hosts:
            host.loop.call(host._singletons._keeper._shards.__setitem__, SHARD, -math.inf)
        hand_over(replicas[first], 2 - first)
        until(lambda: up() == 1 - first)


def test_where_its_replica_has_ended_it_is_told_whether_one_runs(hosts):
    office = Office(hosts)
    leader = office.up()
    keeper = office.network.published[hosts.addresses[leader - 1], KEEPER_NAME]
    hosts[leader].stop()
    until(lambda: office[leader].status.phase is SingletonPhase.IDLE)
    question = FromHost(hosts.addresses[0], ["ended", SHARD, "scheduler", 1 << 40])
    assert keeper.ask(question, timeout=TIMEOUT_S) is True


# -- options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": ""}, "name"),
        ({"start": int}, "actor's class"),
        ({"start": 7}, "actor's class"),
        ({"shard_id": "1"}, "shard_id"),
        ({"shard_id": 2}, "has no replica"),
        ({"args": 7}, "args"),
        ({"kwargs": [7]}, "kwargs"),
        ({"kwargs": {"fence": 1}}, "fence"),
        ({"start_timeout": 0}, "start_timeout"),
        ({"stop_timeout": -1}, "stop_timeout"),
        ({"name": "scheduler"}, "already"),
    ],
)
def test_mistakes_are_told_at_once(options, words):
    with Hosts(1) as hosts:
        office = Office(hosts, numbers=(1,))
        with pytest.raises(ConfigError, match=words):
            office.singletons[1].declare(**{"name": "a", "start": Scheduler, "shard_id": SHARD, **options})


@pytest.mark.parametrize("config", [{"quiesce": True}, {"check_quorum": False}])
def test_a_shard_whose_leader_would_not_notice_its_loss_is_refused(config):
    with Hosts(1) as hosts, pytest.raises(ConfigError, match=next(iter(config))):
        Office(hosts, numbers=(1,), config=config)


def test_singletons_are_bounded(monkeypatch):
    monkeypatch.setattr(singletons_module, "MAX_SINGLETONS", 1)
    with Hosts(1) as hosts:
        office = Office(hosts, numbers=(1,))
        with pytest.raises(SystemBusy):
            office.singletons[1].declare("other", Scheduler, shard_id=SHARD)


def test_a_shard_of_one_replica_runs_it_when_its_time_has_come():
    with Hosts(1) as hosts:
        office = Office(hosts, numbers=(1,))
        assert office.up() == 1
