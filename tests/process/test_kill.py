"""Three processes under load, killed and stopped: nothing acknowledged is lost, and all agree at the end."""

import pytest

from tests.actors.support import until
from tests.process.support import Load, Operation, judge, three_hosts


@pytest.fixture
def cluster(tmp_path, request):
    with three_hosts(tmp_path, slow_disk=getattr(request, "param", 0.0)) as cluster:
        cluster.leader()
        yield cluster


def check(cluster, load):
    """All hosts hold the same, and what the clients saw fits it."""
    first, *others = cluster.contents()
    assert all(other == first for other in others)
    judge(load.history, first)


def test_each_host_is_killed_in_turn_the_leader_first(cluster):
    with Load(cluster) as load:
        load.progress()
        leader = cluster.leader()
        for number in [leader, *(other for other in cluster.hosts if other != leader)]:
            cluster.kill(number)
            load.progress()
            cluster.start(number)
            load.progress()
    check(cluster, load)


@pytest.mark.parametrize("cluster", [0.02], indirect=True, ids=["slow disks"])
def test_all_hosts_are_killed_at_once_and_start_again(cluster):
    with Load(cluster) as load:
        for _ in range(2):
            load.progress(60)
            cluster.kill(*cluster.hosts)
            cluster.start(*cluster.hosts)
            load.progress()
    check(cluster, load)


def test_a_leader_that_is_stopped_and_goes_on_has_missed_its_deposition(cluster):
    with Load(cluster) as load:
        for each in range(3):
            load.progress()
            leader = cluster.leader()
            cluster.hosts[leader].pause()
            successor = cluster.leader([number for number in cluster.hosts if number != leader])
            load.write(successor, f"while {leader} slept, {each}")
            # Its own clients wait meanwhile, and the first answers after its sleep must not be of yesterday.
            with load.reading(leader):
                cluster.hosts[leader].resume()
            load.progress()
    check(cluster, load)


def test_hosts_that_end_in_good_order_start_again_where_they_were(cluster):
    with Load(cluster) as load:
        load.progress()
    before = cluster.contents()
    assert [host.stop() for host in cluster.hosts.values()] == [0, 0, 0]
    cluster.start(*cluster.hosts)
    assert cluster.contents() == before
    until(lambda: "value" in cluster.hosts[1].ask("propose", command="after"))
    judge(load.history, before[0])


# -- The judge itself


def write(command, place, began, ended):
    return Operation("propose", command, began, ended, {"value": place})


def read(count, began, ended):
    return Operation("read", "", began, ended, {"value": count})


@pytest.mark.parametrize(
    ("history", "verdict"),
    [
        ([write("a", 1, 0, 1), read(1, 2, 3), write("b", 2, 2, 4)], None),
        ([write("a", 1, 0, 1), read(0, 0.5, 3)], None),
        ([write("a", 1, 0, 1), read(0, 2, 3)], "older than what was seen"),
        ([read(2, 0, 1), read(1, 2, 3)], "older than what was seen"),
        ([write("b", 2, 0, 1), write("a", 1, 2, 3)], "older than what was seen"),
        ([write("c", 3, 0, 1)], "was acknowledged, and is not there"),
        ([write("a", 2, 0, 1)], "was acknowledged, and is not there"),
        (
            [Operation("propose", "a", 0, 1, {"error": "NotLeader", "known": True})],
            "was refused, and is there",
        ),
        ([Operation("propose", "a", 5, 6, {"error": "Gone", "known": False}), read(1, 1, 2)], "older"),
        ([Operation("propose", "a", 0, 1, {"error": "Gone", "known": False}), read(0, 2, 3)], None),
        ([Operation("propose", "x", 0, 1, {"error": "Gone", "known": False})], None),
    ],
)
def test_the_judge_finds_what_is_wrong_and_nothing_else(history, verdict):
    ledger = ["a", "b"]
    if verdict is None:
        judge(history, ledger)
    else:
        with pytest.raises(AssertionError, match=verdict):
            judge(history, ledger)


def test_the_judge_finds_what_was_applied_twice():
    with pytest.raises(AssertionError, match="twice"):
        judge([], ["a", "a"])
