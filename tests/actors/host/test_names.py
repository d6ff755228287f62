"""Names and singletons of real hosts, which reach each other's actors: what users call, from end to end."""

import math

import pykka
import pytest
from drakkar.actors import (
    ConfigError,
    HostGone,
    NameTaken,
    NotRegistered,
    RequestDropped,
    SingletonEnded,
    SingletonStarted,
    State,
    TrioActor,
)
from drakkar.actors.host import host as host_module
from drakkar.actors.host.handover import hand_over as hand_over_all
from drakkar.actors.names import singleton_keeper
from drakkar.actors.names.singletons import SingletonPhase

from tests.actors.support import TIMEOUT_S, Hosts, InlineLedger, Notices, hand_over, settled, until

DIRECTORY = 9
SHARD = 1
CONFIG = {"election_ticks": 40}
LONG_TICKS = {"tick_interval": 0.1, "config": {"election_ticks": 10}}
"""As hosts have them by default: that the process of a host has ended is found out within three ticks, or not at all."""


class Ledger(TrioActor):
    def on_receive(self, message):
        return ["ledger", message]


class Scheduler(pykka.ThreadingActor):
    use_daemon_thread = True

    def __init__(self, place, *, fence):
        super().__init__()
        self.place, self.fence = place, fence

    def on_receive(self, message):
        return [self.place, self.fence]


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    pykka.ActorRegistry.stop_all(block=False)


def serve(hosts, number, **options):
    """Start a replica of the directory on a host."""
    if number not in hosts.hosts:
        hosts.start(number)
    members = None if options else dict(list(hosts.members.items())[:3])
    replica = hosts.hosts[number].start_directory(
        shard_id=DIRECTORY, replica_id=number, members=members, **{"config": CONFIG, **options}
    )
    hosts.replicas[number] = replica
    return replica


@pytest.fixture
def hosts(tmp_path):
    with Hosts(data=tmp_path) as hosts:
        for number in hosts.members:
            serve(hosts, number)
        hosts.leader()
        yield hosts


def found(host, name, **options):
    """What is found once the shard answers: a reference, or None."""

    def ask():
        outcome = settled(host.find(name, block=False, timeout=2.0, **options))
        if isinstance(outcome, NotRegistered):
            return (None,)
        return (outcome,) if isinstance(outcome, pykka.ActorRef) else None

    return until(ask)[0]


def test_an_actor_is_found_by_its_name_on_all_hosts_and_answers(hosts):
    one, two, three = hosts.hosts.values()
    ref = Ledger.start(loop=one.loop)
    assert one.register("ledger", ref, timeout=TIMEOUT_S) is None
    assert one.find("ledger", timeout=TIMEOUT_S) is ref
    for host in (two, three):
        ledger = host.find("ledger", timeout=TIMEOUT_S)
        assert ledger.ask("hello", timeout=TIMEOUT_S) == ["ledger", "hello"]
        assert host.registered_names(timeout=TIMEOUT_S) == ["ledger"]
        assert host.registered_names("x", timeout=TIMEOUT_S) == []
    assert two.unregister("ledger", timeout=TIMEOUT_S) is False
    assert one.unregister("ledger", timeout=TIMEOUT_S) is True
    with pytest.raises(NotRegistered, match="'ledger'"):
        three.find("ledger", timeout=TIMEOUT_S)


METHODS = [f"method_{number}_of_a_ledger_with_many_methods" for number in range(100)]


class Large(Ledger):
    """An actor with many public methods."""


for number, name in enumerate(METHODS):
    setattr(Large, name, lambda self, number=number: number)


def test_the_proxy_of_an_actor_that_is_found_reaches_what_it_is_published_with_by_then(hosts):
    one, two, _ = hosts.hosts.values()
    ref = Large.start(loop=one.loop)
    one.register("main ledger", ref, timeout=TIMEOUT_S)
    with pytest.raises(TypeError, match="was not published for proxies"):
        two.find("main ledger", timeout=TIMEOUT_S).proxy()
    one.publish("ledger", ref, proxy=True)
    early = two.find("main ledger", timeout=TIMEOUT_S)
    assert early == two.remote(one.address, "ledger")
    assert getattr(early.proxy(), METHODS[60])().get(timeout=TIMEOUT_S) == 60
    one.unpublish("ledger")
    one.publish("ledger", ref, proxy=METHODS[:7])
    late = settled(two.find("main ledger", block=False, timeout=TIMEOUT_S))
    assert late == early, "it was found by another name too, so it is the same actor still"
    assert getattr(late.proxy(), METHODS[6])().get(timeout=TIMEOUT_S) == 6
    with pytest.raises(AttributeError):
        getattr(late.proxy(), METHODS[7])


def test_a_host_without_a_replica_registers_and_finds_through_one_that_has_one():
    with Hosts(4) as hosts:
        for number in (1, 2, 3):
            serve(hosts, number)
        hosts.leader()
        four = hosts.start(4)
        ref = Ledger.start(loop=four.loop)
        four.register("ledger", ref, shard_id=DIRECTORY, at=hosts.addresses[1], timeout=TIMEOUT_S)
        assert four.find("ledger", timeout=TIMEOUT_S) is ref, "the address is remembered"
        ledger = hosts.hosts[1].find("ledger", timeout=TIMEOUT_S)
        assert ledger.ask(1, timeout=TIMEOUT_S) == ["ledger", 1]
        ref.stop(timeout=TIMEOUT_S)
        until(lambda: found(hosts.hosts[1], "ledger") is None)
        with pytest.raises(RequestDropped, match=r"start_directory\(\)"):
            hosts.hosts[1].find("ledger", shard_id=DIRECTORY + 1, at=four.address, timeout=TIMEOUT_S)


def test_the_names_of_a_host_that_ends_stay_until_it_has_started_again_and_are_free_then(hosts):
    one, two, three = hosts.hosts.values()
    for name in ("ledger", "teller"):
        one.register(name, Ledger.start(loop=one.loop), timeout=TIMEOUT_S)
    hosts.stop(1)
    ledger = found(two, "ledger")
    with pytest.raises(HostGone, match="what a proxy reaches"):
        ledger.proxy()
    until(lambda: isinstance(settled(ledger.ask("hello", block=False, timeout=2.0)), HostGone))
    with pytest.raises(NameTaken, match="replace=True"):
        two.register("ledger", Ledger.start(loop=two.loop), timeout=TIMEOUT_S)
    insists = Ledger.start(loop=three.loop)
    three.register("ledger", insists, replace=True, timeout=TIMEOUT_S)
    assert found(two, "teller") is not None
    serve(hosts, 1)
    until(lambda: found(two, "teller") is None)
    assert found(three, "ledger") is insists, "it belongs to another host by now"
    two.register("teller", Ledger.start(loop=two.loop), timeout=TIMEOUT_S)
    assert found(hosts.hosts[1], "teller").ask(1, timeout=TIMEOUT_S) == ["ledger", 1]


def test_a_directory_is_served_by_observers_but_by_no_witness():
    with Hosts(3) as hosts:
        one = hosts.start(1)
        leader = one.start_directory(
            shard_id=DIRECTORY, replica_id=1, members={1: one.address}, config=CONFIG
        )
        hosts.replicas[1] = leader
        hosts.leader()
        two, three = hosts.start(2), hosts.start(3)
        two.start_directory(shard_id=DIRECTORY, replica_id=2, join=True, role=State.OBSERVER)
        three.start_directory(shard_id=DIRECTORY, replica_id=3, join=True, role=State.WITNESS)
        until(lambda: not isinstance(settled(leader.add_observer(2, two.address)), Exception))
        until(lambda: not isinstance(settled(leader.add_witness(3, three.address, force=True)), Exception))
        ref = Ledger.start(loop=two.loop)
        two.register("ledger", ref, timeout=TIMEOUT_S)
        assert found(one, "ledger").ask(1, timeout=TIMEOUT_S) == ["ledger", 1]
        with pytest.raises(ConfigError, match="is no directory"):
            three.find("ledger", shard_id=DIRECTORY)
        assert three.find("ledger", shard_id=DIRECTORY, at=two.address, timeout=TIMEOUT_S).is_alive()


def test_a_loop_waits_for_nothing(hosts):
    one = hosts.hosts[1]
    ref = Ledger.start(loop=one.loop)

    async def use():
        await one.register("ledger", ref, block=False, timeout=TIMEOUT_S)
        return await one.find("ledger", block=False, timeout=TIMEOUT_S)

    assert one.loop.call(use, timeout=TIMEOUT_S) is ref


# -- singletons


class Office:
    """Three hosts, each of which would run the scheduler."""

    def __init__(self, hosts):
        self.hosts = hosts
        hosts.run(InlineLedger, shard_id=SHARD, config=LONG_TICKS["config"])
        self.notices = {number: Notices.start() for number in hosts.members}
        self.handles = {}
        for number, host in hosts.hosts.items():
            host.subscribe(self.notices[number])
            self.handles[number] = host.singleton(
                "scheduler", Scheduler, shard_id=SHARD, args=(number,), proxy=["fence"]
            )

    def told(self, number, kind):
        events = self.notices[number]._actor_weakref().events
        return [event for event in events if isinstance(event, kind)]

    def up(self):
        def runs():
            running = [n for n, one in self.handles.items() if one.status.phase is SingletonPhase.UP]
            return running[0] if running == [self.hosts.leader()] else None

        return until(runs)


@pytest.fixture
def office():
    with Hosts(tick_interval=LONG_TICKS["tick_interval"]) as hosts:
        yield Office(hosts)


def asked(handle):
    """Ask it, wherever it runs, until there is an answer."""

    def answer():
        ref = settled(handle.ref(block=False, timeout=2.0))
        outcome = ref if isinstance(ref, Exception) else settled(ref.ask("who?", block=False, timeout=2.0))
        return None if isinstance(outcome, Exception) else outcome

    return until(answer)


def test_a_singleton_answers_on_all_hosts_and_moves_with_the_office_and_its_number_rises(office):
    leader = office.up()
    fence = office.handles[leader].status.fence
    for handle in office.handles.values():
        assert asked(handle) == [leader, fence]
        assert handle.where() == office.hosts.members[leader]
    after = hand_over(office.hosts[leader], office.hosts.others(leader)[0])
    assert office.up() == after
    for handle in office.handles.values():
        place, newer = asked(handle)
        assert (place, newer > fence) == (after, True)
    remote = office.handles[leader].ref(timeout=TIMEOUT_S)
    assert remote.proxy().fence.get(timeout=TIMEOUT_S) == office.handles[after].status.fence
    [started] = office.told(leader, SingletonStarted)
    [ended] = office.told(leader, SingletonEnded)
    assert (started.fence, ended.fence, ended.reason) == (fence, fence, None)


def test_when_a_host_stops_its_singleton_ends_first_so_the_next_one_need_not_wait(office, monkeypatch):
    leader = office.up()
    monkeypatch.setattr(singleton_keeper, "takeover_ticks", lambda _: 10_000)
    for host in office.hosts.hosts.values():
        shards = host._singletons._keeper._shards
        host.loop.call(shards.__setitem__, SHARD, -math.inf)
    ref = office.handles.pop(leader).ref(timeout=TIMEOUT_S)
    alive = []

    def note(loop, nodes):
        alive.append(ref.is_alive())
        return hand_over_all(loop, nodes)

    monkeypatch.setattr(host_module, "hand_over", note)
    office.hosts.stop(leader)
    assert alive == [False], "it has ended when another may win the office"
    after = office.up()
    assert asked(office.handles[after])[0] == after
