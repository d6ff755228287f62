"""Names through a real shard: registered on one host, found on others, given back when actors and runs end."""

import threading

import pykka
import pytest
from drakkar.actors import ConfigError, DeadlockError, DrakkarError, State, SystemBusy, TrioActor
from drakkar.actors.names import registered
from drakkar.actors.names.directory import Directory, NotRegistered
from drakkar.actors.remote.errors import NameTaken
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.handlers.errors import OutcomeUnknown, RequestDropped, TransportError

from tests.actors.names.support import Echo, Network, names_of
from tests.actors.support import TIMEOUT_S, Hosts, settled, until

SHARD = 9


class Trio(TrioActor):
    def on_receive(self, message):
        return message


class Office:
    """Three hosts, of which some have a replica of the directory, and the names of each."""

    def __init__(self, hosts, *, numbers=(1, 2, 3)):
        self.hosts, self.network = hosts, Network()
        self.replicas = hosts.run(Directory, shard_id=SHARD, numbers=numbers)
        hosts.leader()
        self.names = {}
        for number, host in hosts.hosts.items():
            self.names[number] = names_of(host, self.network)
            if number in self.replicas:
                self.names[number].serve(self.replicas[number])

    def __getitem__(self, number):
        return self.names[number]


@pytest.fixture
def office():
    with Hosts() as hosts:
        yield Office(hosts)


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    pykka.ActorRegistry.stop_all()


def find(names, name, **options):
    """Find it, until there is an answer of the shard."""

    def ask():
        found = settled(names.find(name, block=False, timeout=2.0, **options))
        known = isinstance(found, NotRegistered | pykka.ActorRef)
        assert known or isinstance(found, DrakkarError), found
        return found if known else None

    return until(ask)


@pytest.mark.parametrize("kind", [Echo, Trio])
def test_a_name_is_found_on_all_hosts(office, kind):
    ref = kind.start()
    assert office[1].register("ledger", ref, timeout=TIMEOUT_S) is None
    for number in (1, 2, 3):
        assert office[number].find("ledger", timeout=TIMEOUT_S) is ref
        assert office[number].registered_names(timeout=TIMEOUT_S) == ["ledger"]
    with pytest.raises(NotRegistered, match="'other'"):
        office[2].find("other", timeout=TIMEOUT_S)


def test_a_host_that_has_no_replica_names_one_that_has(tmp_path):
    with Hosts(4) as hosts:
        members = {number: hosts.addresses[number - 1] for number in (1, 2, 3)}
        for number in (1, 2, 3, 4):
            hosts.start(number)
        network = Network()
        for number in members:
            hosts.replicas[number] = hosts.hosts[number].start_replica(
                Directory, shard_id=SHARD, replica_id=number, members=members
            )
        hosts.leader()
        names = {number: names_of(host, network) for number, host in hosts.hosts.items()}
        for number in members:
            names[number].serve(hosts.replicas[number])
        with pytest.raises(ConfigError, match="at='host:port'"):
            names[4].find("ledger", shard_id=SHARD)
        ref = Echo.start()
        names[4].register("ledger", ref, shard_id=SHARD, at=members[2], timeout=TIMEOUT_S)
        assert names[1].find("ledger", timeout=TIMEOUT_S) is ref
        assert names[4].find("ledger", timeout=TIMEOUT_S) is ref, "the address is remembered"
        ref.stop()
        until(lambda: isinstance(find(names[1], "ledger"), NotRegistered))
        network.cut_off.add(members[2])
        with pytest.raises(TransportError):
            names[4].find("ledger", timeout=TIMEOUT_S)


def test_an_observer_serves_too():
    with Hosts(2) as hosts:
        hosts.start(1)
        hosts.start(2)
        network = Network()
        voter = hosts.hosts[1].start_replica(
            Directory, shard_id=SHARD, replica_id=1, members={1: hosts.addresses[0]}
        )
        hosts.replicas[1] = voter
        hosts.leader()
        until(lambda: not isinstance(settled(voter.add_observer(2, hosts.addresses[1])), Exception))
        observer = hosts.hosts[2].start_replica(
            Directory, shard_id=SHARD, replica_id=2, join=True, role=State.OBSERVER
        )
        names = names_of(hosts.hosts[2], network)
        names.serve(observer)
        ref = Echo.start()
        names.register("ledger", ref, timeout=TIMEOUT_S)
        assert names.find("ledger", timeout=TIMEOUT_S) is ref


def test_of_two_hosts_that_race_for_one_name_exactly_one_has_it_and_the_other_is_told_who(office):
    for attempt in range(10):
        refs = {number: Echo.start() for number in (1, 2, 3)}
        name, barrier, outcomes = f"ledger {attempt}", threading.Barrier(3), {}

        def race(number, name=name, barrier=barrier, outcomes=outcomes, refs=refs):
            barrier.wait(TIMEOUT_S)
            future = office[number].register(name, refs[number], block=False, timeout=TIMEOUT_S)
            outcomes[number] = settled(future)

        threads = [threading.Thread(target=race, args=(number,)) for number in refs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
        [winner] = [number for number, outcome in outcomes.items() if outcome is None]
        losers = [outcome for outcome in outcomes.values() if outcome is not None]
        assert {type(outcome) for outcome in losers} == {NameTaken}
        assert {outcome.holder for outcome in losers} == {f"an actor on {office.hosts.addresses[winner - 1]}"}
        assert office[1].find(name, timeout=TIMEOUT_S) is refs[winner]


@pytest.mark.parametrize("kind", [Echo, Trio])
def test_the_name_of_an_actor_that_ends_is_given_back(office, kind):
    ref = kind.start()
    office[1].register("ledger", ref, timeout=TIMEOUT_S)
    ref.stop()
    until(lambda: isinstance(find(office[2], "ledger"), NotRegistered))
    office[2].register("ledger", Echo.start(), timeout=TIMEOUT_S)


def test_an_actor_that_ended_before_it_was_registered_has_no_name_for_long(office):
    ref = Echo.start()
    ref.stop()
    office[1].register("ledger", ref, timeout=TIMEOUT_S)
    until(lambda: isinstance(find(office[2], "ledger"), NotRegistered))


def test_the_end_of_an_actor_frees_no_name_that_has_moved_on_to_another(office):
    first, second = Echo.start(), Echo.start()
    office[1].register("ledger", first, timeout=TIMEOUT_S)
    office[1].register("ledger", second, timeout=TIMEOUT_S)
    assert find(office[2], "ledger") is second
    first.stop()
    end_another(office)
    assert find(office[2], "ledger") is second


def end_another(office):
    """Return when what an end before this call has given back is given back, as the ends are looked at in order."""
    other = Echo.start()
    office[1].register("other", other, timeout=TIMEOUT_S)
    other.stop()
    until(lambda: isinstance(find(office[2], "other"), NotRegistered))


def test_a_name_is_unregistered_by_its_host_only(office):
    ref = Echo.start()
    office[1].register("ledger", ref, timeout=TIMEOUT_S)
    assert office[2].unregister("ledger", timeout=TIMEOUT_S) is False
    assert find(office[3], "ledger") is ref
    assert office[1].unregister("ledger", timeout=TIMEOUT_S) is True
    assert isinstance(find(office[3], "ledger"), NotRegistered)
    assert office[1].unregister("ledger", timeout=TIMEOUT_S) is False


def test_another_host_takes_a_name_only_where_it_insists(office):
    mine, theirs = Echo.start(), Echo.start()
    office[1].register("ledger", mine, timeout=TIMEOUT_S)
    with pytest.raises(NameTaken, match="replace=True"):
        office[2].register("ledger", theirs, timeout=TIMEOUT_S)
    office[2].register("ledger", theirs, replace=True, timeout=TIMEOUT_S)
    assert find(office[1], "ledger") is theirs
    mine.stop()
    assert find(office[1], "ledger") is theirs


def test_the_names_of_a_host_are_free_when_its_next_run_serves_a_directory(office):
    ref = Echo.start()
    office[1].register("ledger", ref, timeout=TIMEOUT_S)
    again = names_of(office.hosts.hosts[1], office.network, count=2)
    again.serve(office.replicas[1])
    until(lambda: isinstance(find(office[2], "ledger"), NotRegistered))
    with pytest.raises(RequestDropped, match="started later"):
        office[1].register("ledger", ref, timeout=TIMEOUT_S)


def test_names_survive_a_change_of_leader_and_the_loss_of_a_host(office):
    refs = {f"name {each}": Echo.start() for each in range(20)}
    for name, ref in refs.items():
        office[1].register(name, ref, timeout=TIMEOUT_S)
    office.hosts.stop(office.hosts.leader())
    left = next(iter(office.hosts.hosts))
    for name, ref in refs.items():
        assert find(office[left], name) is ref


def test_a_name_that_cannot_be_given_back_now_is_given_back_later(tmp_path):
    with Hosts(data=tmp_path) as hosts:
        office, ref = Office(hosts), Echo.start()
        office[1].register("ledger", ref, timeout=TIMEOUT_S)
        for number in (2, 3):
            hosts.stop(number)
        ref.stop()
        until(lambda: office[1]._entries == {})
        assert isinstance(settled(office[1].find("ledger", block=False, timeout=0.5)), DrakkarError)
        hosts.run(Directory, shard_id=SHARD, numbers=[2])
        until(lambda: isinstance(find(office[1], "ledger"), NotRegistered))


@pytest.mark.parametrize("away", ["silent", "cut_off"])
def test_a_directory_that_is_away_holds_up_no_name_of_another(office, monkeypatch, away):
    monkeypatch.setattr(registered, "MAX_GIVEN_BACK", 1)
    names, elsewhere = office[1], "127.0.0.1:9"
    names._turns.clear()
    getattr(office.network, away).add(elsewhere)
    names._directory(SHARD + 1, elsewhere)
    for _ in range(3):
        names._do_in_the_end(SHARD + 1, ["unregister", "other", *names._owner(), None], "give back a name")
    ref = Echo.start()
    names.register("ledger", ref, shard_id=SHARD, timeout=TIMEOUT_S)
    ref.stop()
    until(lambda: names.registered_names(shard_id=SHARD, timeout=TIMEOUT_S) == [])


def test_what_waits_to_be_tried_again_holds_up_nothing_of_its_own_directory(office, monkeypatch):
    monkeypatch.setattr(registered, "MAX_GIVEN_BACK", 1)
    names, tried = office[1], set()
    names._turns.clear()

    async def refuse(_, operation):
        tried.update(operation)
        return ["failed", True, "not now"]

    monkeypatch.setattr(names, "_try", refuse)
    for name in "abc":
        names._do_in_the_end(SHARD, [name], "give back a name")
    until(lambda: tried >= set("abc"))  # beside what announces the host, perhaps


@pytest.mark.parametrize(
    ("host_id", "words"), [(None, "set the clock right"), ("an id", "copy of its data directory")]
)
def test_an_earlier_run_is_told_why_it_may_be_taken_for_one(office, caplog, host_id, words):
    host = office.hosts.hosts[1]
    late = names_of(host, office.network, count=2, host_id=host_id)
    late.serve(office.replicas[1])
    late.register("ledger", Echo.start(), timeout=TIMEOUT_S)
    early = names_of(host, office.network, count=1, host_id=host_id)
    early.serve(office.replicas[1])
    with pytest.raises(RequestDropped, match=words):
        early.register("other", Echo.start(), timeout=TIMEOUT_S)
    until(lambda: "cannot announce this run of the host: " in caplog.text)
    assert words in caplog.text
    assert early.registered_names(timeout=TIMEOUT_S) == ["ledger"]


def test_many_names_at_once_become_few_commands(office):
    refs = [Echo.start() for _ in range(5)]
    before = office.replicas[1].status().commit
    futures = [
        office[1].register(f"name {each}", refs[each % 5], block=False, timeout=TIMEOUT_S)
        for each in range(500)
    ]
    assert [settled(future) for future in futures] == [None] * 500
    assert office.replicas[1].status().commit - before < 100
    assert len(office[2].registered_names("name 4", timeout=TIMEOUT_S)) == 111


# -- what fails


def test_without_a_quorum_what_waits_has_surely_no_effect_and_what_was_proposed_is_unknown(office):
    office[1].register("first", Echo.start(), timeout=TIMEOUT_S)
    for number in (2, 3):
        office.hosts.stop(number)
    outcomes = []
    for each in range(3):
        future = office[1].register(f"ledger {each}", Echo.start(), block=False, timeout=0.3)
        outcomes.append(settled(future))
    assert {type(outcome) for outcome in outcomes} <= {OutcomeUnknown, RequestDropped}


def test_a_replica_that_ends_ends_its_server_and_all_who_wait_are_told(office):
    ref = Echo.start()
    server = office.network.published[office.hosts.addresses[0], f"drakkar:directory:{SHARD}"]
    office.replicas[1].stop()
    until(lambda: not server.is_alive())
    with pytest.raises(RequestDropped, match=r"start_directory\(\)"):
        office[1].register("ledger", ref)
    again = office.hosts.run(Directory, shard_id=SHARD, numbers=[1])[1]
    office[1].serve(again)
    office[1].register("ledger", ref, timeout=TIMEOUT_S)


def test_a_replica_that_is_started_again_at_once_serves_though_the_server_before_it_has_not_ended_yet(office):
    office[1].serve(office.replicas[1])
    office[1].register("ledger", Echo.start(), timeout=TIMEOUT_S)


def test_a_host_that_serves_no_directory_is_told_as_such(office):
    with pytest.raises(RequestDropped, match=r"start_directory\(\)"):
        office[1].find("ledger", shard_id=SHARD + 1, at=office.hosts.addresses[1])


@pytest.mark.parametrize("moved", [False, True])
def test_a_name_whose_move_to_another_actor_is_unknown_is_given_back_with_its_holder(
    office, monkeypatch, moved
):
    first, second = Echo.start(), Echo.start()
    office[1].register("ledger", first, timeout=TIMEOUT_S)
    do = office[1]._do

    def lose_the_answer(*operation):
        assert not moved or settled(do(*operation)) == ["ok"]
        return settled_now(["failed", False, "nobody knows"])

    with monkeypatch.context() as patch:
        patch.setattr(office[1], "_do", lose_the_answer)
        with pytest.raises(OutcomeUnknown, match="nobody knows"):
            office[1].register("ledger", second, timeout=TIMEOUT_S)
    assert find(office[2], "ledger") is (second if moved else first)
    first.stop()
    end_another(office)
    assert (find(office[2], "ledger") is second) == moved
    assert [entry.ref for entry in office[1]._entries.values()] == [second]
    office[1].register("ledger", second, timeout=TIMEOUT_S)
    second.stop()
    until(lambda: isinstance(find(office[2], "ledger"), NotRegistered))


def settled_now(result):
    future = ActorFuture()
    future.set(result)
    return future


def test_names_that_cannot_be_given_back_yet_take_room_until_they_are(office, monkeypatch):
    monkeypatch.setattr(registered, "MAX_REGISTERED", 2)
    refs = [Echo.start() for _ in range(2)]
    for number, ref in enumerate(refs):
        office[1].register(f"name {number}", ref, timeout=TIMEOUT_S)
    with monkeypatch.context() as patch:
        patch.setattr(registered, "FIRST_WAIT_S", 0.01)
        patch.setattr(office[1], "_do", lambda *_: settled_now(["failed", True, "no leader"]))
        for ref in refs:
            ref.stop()
        until(lambda: office[1]._entries == {})
        with pytest.raises(SystemBusy, match="not given them back"):
            office[1].register("other", Echo.start())
    until(lambda: not office[1]._leaving)
    office[1].register("other", Echo.start(), timeout=TIMEOUT_S)


def test_the_loop_is_never_blocked(office):
    ref, loop = Echo.start(), office.hosts.hosts[1].loop

    async def use():
        await office[1].register("ledger", ref, block=False, timeout=TIMEOUT_S)
        return await office[1].find("ledger", block=False, timeout=TIMEOUT_S)

    assert loop.call(use, timeout=TIMEOUT_S) is ref
    for call in (
        lambda: office[1].register("ledger", ref),
        lambda: office[1].unregister("ledger"),
        lambda: office[1].find("ledger"),
        office[1].registered_names,
    ):
        with pytest.raises(DeadlockError, match="block=False"):
            loop.call(call)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda names, ref: names.register("", ref), "name"),
        (lambda names, ref: names.register("a", ref.proxy()), "the ref of an actor"),
        (lambda names, ref: names.register("a", ref, shard_id=8), "is no directory"),
        (lambda names, ref: names.register("a", ref, shard_id="9"), "shard_id"),
        (lambda names, ref: names.register("a", ref, replace=1), "replace"),
        (lambda names, ref: names.register("a", ref, timeout=None), "timeout"),
        (lambda names, ref: names.find("a", at=7), "at"),
        (lambda names, ref: names.find(7), "name"),
        (lambda names, ref: names.registered_names(7), "prefix"),
        (lambda names, ref: names.registered_names(limit=1001), "limit"),
        (lambda names, ref: names.unregister("a\n"), "name"),
    ],
)
def test_mistakes_are_told_at_once(office, call, words):
    with pytest.raises(ConfigError, match=words):
        call(office[1], Echo.start())


def test_only_an_actor_of_this_host_is_registered_here(office):
    ref = Echo.start()
    office[1].register("ledger", ref, timeout=TIMEOUT_S)
    with pytest.raises(ConfigError, match="another host"):
        office[2].register("mine now", ref)


def test_what_one_host_registers_is_bounded(office, monkeypatch):
    monkeypatch.setattr(registered, "MAX_REGISTERED", 2)
    ref = Echo.start()
    for name in ("a", "b", "a"):
        office[1].register(name, ref, timeout=TIMEOUT_S)
    with pytest.raises(SystemBusy, match="unregister some"):
        office[1].register("c", ref)


def test_which_directory_is_meant_must_be_said_where_there_are_two(office):
    other = office.hosts.hosts[1].start_replica(
        Directory, shard_id=SHARD + 1, replica_id=1, members={1: office.hosts.addresses[0]}
    )
    office[1].serve(other)
    with pytest.raises(ConfigError, match=r"\[9, 10\]"):
        office[1].find("ledger")
    ref = Echo.start()
    office[1].register("ledger", ref, shard_id=SHARD + 1, timeout=TIMEOUT_S)
    with pytest.raises(NotRegistered):
        office[1].find("ledger", shard_id=SHARD, timeout=TIMEOUT_S)
