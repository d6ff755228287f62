"""Hosts whose log store has no room for entries: they refuse, the shard goes on, and so do they when there is room."""

from contextlib import contextmanager

from drakkar.actors import DiskFull

from tests.actors.support import Hosts, commit, contents, settled, until


@contextmanager
def full(hosts, *numbers):
    """Leave no room on the disks of these hosts."""
    stores = [hosts.hosts[number]._store for number in numbers]
    for store in stores:
        store.room = lambda _size: False
    yield
    for store in stores:
        del store.room


def test_a_leader_without_room_hands_over_and_catches_up_later_without_a_restart():
    with Hosts() as hosts:
        replicas = hosts.run()
        old = hosts.leader()
        commit(replicas[old], b"a")
        with full(hosts, old):
            assert type(settled(replicas[old].propose(b"b"))) is DiskFull
            new = until(lambda: (leader := hosts.leader()) != old and leader)
            assert commit(replicas[new], b"c") == 2
            until(lambda: replicas[new].status().full_peers == (old,))
            assert contents(replicas[new]) == [b"a", b"c"]
            assert replicas[old].status().disk_full
        until(lambda: replicas[old].status().applied == replicas[new].status().applied)
        assert contents(replicas[old]) == [b"a", b"c"]
        assert not replicas[old].status().disk_full
        until(lambda: not replicas[new].status().full_peers)


def test_where_no_host_has_room_proposals_are_refused_reads_go_on_and_all_recovers():
    with Hosts() as hosts:
        replicas = hosts.run()
        leader = hosts.leader()
        commit(replicas[leader], b"a")
        with full(hosts, *replicas):
            for replica in replicas.values():
                until(lambda replica=replica: type(settled(replica.propose(b"b"))) is DiskFull)
            assert contents(replicas[leader]) == [b"a"]
        commit(replicas[leader], b"c")
        for replica in replicas.values():
            assert contents(replica) == [b"a", b"c"]
