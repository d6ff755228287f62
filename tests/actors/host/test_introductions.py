"""Hosts that do not belong together: wrong member lists, and data directories that were copied, swapped, put back or emptied."""

import logging
import shutil

import pytest
from drakkar.actors.host.host import NodeHost
from drakkar.actors.log.data_dir import LOG, DataDir
from drakkar.actors.log.store import at_once, log_on_disk
from drakkar.actors.tools.cli import main
from drakkar.actors.tools.inspection import inspect
from drakkar.handlers.errors import ConfigError, CorruptData, DrakkarError, OutcomeUnknown, RequestDropped
from drakkar.handlers.raft.lives import Lives, Standing, founding_id
from drakkar.handlers.raft.state import State
from drakkar.transport.addresses import canonical
from drakkar.transport.options import Options

from tests.actors.support import TICK, Hosts, Ledger, commit, contents, settled, until
from tests.ports import free_addresses

QUICK = Options(backoff_refused=0.1, run_timeout=0.5)


class Counts(Ledger):
    """A ledger whose state can be saved, so that one that joins may be sent it."""

    def save(self, sink):
        sink.write(b"\n".join(self.commands))

    def load(self, source):
        self.commands = source.read().split(b"\n")


@pytest.fixture
def hosts(tmp_path):
    with Hosts(data=tmp_path, transport_options=QUICK) as made:
        yield made


def warned(caplog, *words):
    """Return the warnings that have all of these words."""
    texts = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    return [text for text in texts if all(word in text for word in words)]


def start_replica(hosts, number, members, *, replica_id=None, machine=Counts, **options):
    host = hosts.hosts.get(number) or hosts.start(number)
    replica = host.start_replica(
        machine, shard_id=1, replica_id=replica_id or number, members=members, **options
    )
    hosts.replicas[number] = replica
    return replica


def change(call):
    """Ask for a membership change until it is made."""
    until(lambda: not isinstance(settled(call()), RequestDropped | OutcomeUnknown))


def all_settled(hosts, *numbers):
    """Wait until the log says of all of these where they live."""
    for number in numbers or hosts.members:
        until(lambda number=number: hosts[number].status().standing is Standing.SETTLED)


# ---- founding


def test_replicas_of_one_founding_settle_where_they_live(hosts):
    hosts.run(Counts)
    commit(hosts[1], b"a")
    all_settled(hosts)
    homes = {hosts[number].status().home for number in hosts.members}
    assert len(homes) == 3
    for number in hosts.members:
        assert hosts[number].status().refused == {}


def test_a_wrong_list_of_members_splits_no_shard_and_both_sides_say_so(hosts, caplog):
    alone = start_replica(hosts, 3, {3: hosts.members[3]})
    commit(alone, b"alone")
    for number in (1, 2):
        start_replica(hosts, number, hosts.members)
    commit(hosts[1], b"together")
    until(lambda: 3 in hosts[1].status().refused or 3 in hosts[2].status().refused)
    until(lambda: alone.status().refused)
    leader = hosts.leader({1: hosts[1], 2: hosts[2]})
    assert hosts[leader].status().match[3] == 0
    assert contents(alone) == [b"alone"]
    assert contents(hosts[leader]) == [b"together"]
    ours, theirs = (
        f"with the members {{1: {hosts.members[1]}, 2:",
        f"with the members {{3: {hosts.members[3]}}}",
    )
    until(lambda: warned(caplog, f"{hosts.members[3]} replica 3 of shard 1: refuses replica", ours, theirs))
    until(lambda: warned(caplog, "refuses replica 3 at", ours, theirs))
    assert "look which list is right" in alone.status().refused[leader]
    until(lambda: alone.counters["messages of refused replicas"] > 0)


def test_two_addresses_that_are_swapped_are_found(hosts, caplog):
    members = hosts.members
    swapped = {1: members[1], 2: members[3], 3: members[2]}
    start_replica(hosts, 1, members)
    start_replica(hosts, 2, members)
    commit(hosts[1], b"a")
    odd = start_replica(hosts, 3, swapped, replica_id=2)
    until(lambda: odd.status().refused)
    until(lambda: warned(caplog, "refuses replica", "with the members"))
    commit(hosts[1], b"b")
    assert odd.status().commit <= 1


def test_one_that_joins_adopts_the_founding_durably_and_settles(hosts):
    for number in (1, 2, 3):
        start_replica(hosts, number, {each: hosts.members[each] for each in (1, 2, 3)})
    commit(hosts[1], b"a")
    extra = free_addresses(1)[0]
    hosts.addresses.append(extra)
    joined = start_replica(hosts, 4, None, join=True)
    leader = hosts.leader()
    change(lambda: hosts[leader].add_replica(4, extra))
    until(lambda: joined.status().standing is Standing.SETTLED)
    commit(joined, b"b")
    hosts.stop(4)
    founders = {number: canonical(hosts.members[number]) for number in (1, 2, 3)}
    assert lives_of(hosts, 4).founding == founding_id(1, founders)


def test_one_that_should_join_and_is_started_with_members_is_refused_by_all(hosts, caplog):
    three = {number: hosts.members[number] for number in (1, 2, 3)}
    for number in three:
        start_replica(hosts, number, three)
    commit(hosts[1], b"a")
    hosts.addresses.append(free_addresses(1)[0])
    wrong = start_replica(hosts, 4, hosts.members)
    until(lambda: wrong.status().refused)
    until(lambda: warned(caplog, "refuses replica 4", f"4: {hosts.members[4]}"))
    until(lambda: warned(caplog, "replica 4 of shard 1: refuses replica"))
    assert wrong.status().state is not State.LEADER
    assert wrong.status().standing is Standing.NEWBORN
    commit(hosts[1], b"b")


def test_a_second_replica_of_a_shard_may_not_join_in_the_same_directory(hosts):
    hosts.run(Counts)
    commit(hosts[1], b"a")
    hosts.stop(3)
    host = hosts.start(3)
    with pytest.raises(ConfigError, match="holds replica 3 of shard 1: start that"):
        host.start_replica(Counts, shard_id=1, replica_id=9, join=True)


# ---- directories


def directory(hosts, number):
    return hosts.data / str(number)


def lives_of(hosts, number):
    """Return what the replica of a stopped host remembers of its own life."""
    with DataDir.existing(directory(hosts, number)) as found:
        store = log_on_disk(found.part(LOG), found.host_id, create=False)
        try:
            log = store.open(1, number)
            assert log is not None
            return log.lives
        finally:
            store.close()


def forget_identity(hosts, number):
    """Make the directory of a stopped host one of the version before, as far as its contents go."""
    with DataDir.existing(directory(hosts, number)) as found:
        store = log_on_disk(found.part(LOG), found.host_id, create=False)
        at_once(lambda done: store.live(1, number, Lives(), done))
        store.close()
    for name in ("RUN", "HOSTS"):
        (directory(hosts, number) / name).unlink(missing_ok=True)


def test_a_directory_of_the_version_before_opens_and_works(hosts):
    hosts.run(Counts)
    commit(hosts[1], b"a")
    all_settled(hosts)
    for number in (1, 2, 3):
        hosts.stop(number)
        forget_identity(hosts, number)
    hosts.run(Counts)
    commit(hosts[1], b"b")
    assert contents(hosts[2]) == [b"a", b"b"]
    for number in (1, 2, 3):
        hosts.stop(number)
    founders = {number: canonical(address) for number, address in hosts.members.items()}
    assert lives_of(hosts, 1).founding == founding_id(1, founders)


def test_an_emptied_directory_is_noticed_and_settles_anew(hosts, caplog):
    hosts.run(Counts)
    commit(hosts[1], b"a")
    all_settled(hosts)
    home = hosts[3].status().home
    hosts.stop(3)
    shutil.rmtree(directory(hosts, 3))
    again = start_replica(hosts, 3, hosts.members)
    until(lambda: again.status().standing is Standing.SETTLED)
    assert again.status().home != home
    until(lambda: warned(caplog, "replica 3 at", "starts with an empty data directory", "mount it"))
    commit(again, b"b")
    assert contents(again) == [b"a", b"b"]


def is_whole(path):
    try:
        with DataDir.existing(path) as found:
            log_on_disk(found.part(LOG), found.host_id, create=False).close()
    except CorruptData:
        return False
    return True


def copied(hosts, number, tmp_path):
    """Copy the directory of a host, which may run: a file that is there for a moment only may be missed."""
    target = tmp_path / f"copy of {number}"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(directory(hosts, number), target, ignore=shutil.ignore_patterns("*.new"))
    return target


def start_copy(hosts, number, path, port_of):
    """Start a copy of a host's directory on another machine: it advertises the same address, and listens elsewhere."""
    host = NodeHost(
        hosts.addresses[number - 1],
        path,
        listen_address=port_of,
        tick_interval=TICK,
        transport_options=QUICK,
    )
    hosts.hosts[f"copy of {number}"] = host
    return host.start_replica(Counts, shard_id=1, replica_id=number)


def end_copy(hosts, number):
    hosts.hosts.pop(f"copy of {number}").stop()


@pytest.mark.parametrize("running", [True, False], ids=["copied while it ran", "copied while it was stopped"])
def test_a_copy_of_a_host_that_runs_is_refused(hosts, tmp_path, caplog, running):
    hosts.run(Counts)
    commit(hosts[1], b"a")
    all_settled(hosts)
    if not running:
        hosts.stop(3)
    path = copied(hosts, 3, tmp_path / "elsewhere")
    if running:  # a file of the log may have been on its way: a copy of such a moment is refused for that
        until(lambda: is_whole(path) or copied(hosts, 3, tmp_path / "elsewhere") != path)
    else:
        start_replica(hosts, 3, hosts.members)
        leader = hosts.leader()
        commit(hosts[leader], b"b")
        until(lambda: hosts[3].status().commit >= hosts[leader].status().commit)
    copy = start_copy(hosts, 3, path, free_addresses(1)[0])
    try:
        until(
            lambda: warned(
                caplog, "of the host", "one of the two data directories is a copy", "closed the connection"
            )
        )
        until(lambda: warned(caplog, "cannot reach", "one of the two data directories is a copy"))
        commit(hosts[3], b"c")
        assert b"c" in contents(hosts[3])
        assert copy.status().leader_id == 0
    finally:
        end_copy(hosts, 3)


def test_an_older_copy_that_is_put_back_is_refused_however_often_it_is_started(hosts, tmp_path, caplog):
    hosts.run(Counts)
    commit(hosts[1], b"a")
    all_settled(hosts)
    hosts.stop(3)
    path = copied(hosts, 3, tmp_path / "elsewhere")
    start_replica(hosts, 3, hosts.members)
    commit(hosts[1], b"b")
    until(lambda: contents(hosts[3]) == [b"a", b"b"])
    hosts.stop(3)
    shutil.rmtree(directory(hosts, 3))
    shutil.copytree(path, directory(hosts, 3))
    for _ in range(3):
        caplog.clear()
        restored = start_replica(hosts, 3, hosts.members)
        until(lambda: warned(caplog, hosts.members[3], "does not follow its run", "of an older state"))
        assert restored.status().leader_id == 0
        hosts.stop(3)
    commit(hosts[1], b"c")


def test_two_directories_that_are_swapped_are_refused_at_the_start(hosts):
    """The address in the identity tells; see also `test_data_dir`."""
    hosts.run(Counts)
    commit(hosts[1], b"a")
    for number in (2, 3):
        hosts.stop(number)
    directory(hosts, 2).rename(hosts.data / "x")
    directory(hosts, 3).rename(directory(hosts, 2))
    (hosts.data / "x").rename(directory(hosts, 3))
    with pytest.raises(ConfigError, match="belongs to address"):
        hosts.start(2)


def test_hosts_in_memory_are_wiped_by_each_restart():
    with Hosts() as hosts:
        hosts.run(Counts)
        commit(hosts[1], b"a")
        all_settled(hosts)
        hosts.stop(3)
        again = start_replica(hosts, 3, hosts.members)
        until(lambda: again.status().standing is Standing.SETTLED)
        commit(again, b"b")
        assert contents(again) == [b"a", b"b"]


def test_two_of_three_that_were_emptied_found_nothing_that_outlives_the_third(hosts, caplog):
    """The leader of the second founding ends once it hears of the first one; no read is wrong after that."""
    hosts.run(Counts)
    for number in range(5):
        commit(hosts[1], b"%d" % number)
    all_settled(hosts)
    for number in (1, 2, 3):
        hosts.stop(number)
    for number in (2, 3):
        shutil.rmtree(directory(hosts, number))
        start_replica(hosts, number, hosts.members)
    commit(hosts[2], b"of the second founding")
    start_replica(hosts, 1, hosts.members)
    until(lambda: any(hosts[number].status().ended for number in (2, 3)))
    ended = next(number for number in (2, 3) if hosts[number].status().ended)
    why = hosts[ended].status().ended.why
    assert "replica 1 at" in why
    assert "a second time" in why
    assert "keeps its data" in why
    assert "delete" not in why
    answers = [settled(hosts[number].read(None, timeout=0.5)) for number in (1, 2, 3)]
    assert all(isinstance(answer, DrakkarError) for answer in answers), answers


def test_another_replica_of_the_shard_is_introduced_on_the_connections_that_there_are(hosts):
    hosts.addresses.append(free_addresses(1)[0])
    first = {number: hosts.members[number] for number in (1, 2, 3)}
    for number in first:
        start_replica(hosts, number, first)
    commit(hosts[1], b"a")
    joined = start_replica(hosts, 4, None, join=True)
    change(lambda: hosts[hosts.leader()].add_replica(4, hosts.members[4]))
    until(lambda: joined.status().standing is Standing.SETTLED)
    change(lambda: hosts[hosts.leader()].remove_replica(4))
    until(lambda: joined.status().ended)
    hosts.hosts[4].remove_data(1, 4)
    hosts.replicas.pop(4)
    joined = start_replica(hosts, 4, None, replica_id=5, join=True)
    change(lambda: hosts[hosts.leader()].add_replica(5, hosts.members[4]))
    until(lambda: joined.status().standing is Standing.SETTLED)
    assert contents(joined) == [b"a"]


def test_an_inspection_tells_founding_and_standing(hosts, capsys):
    hosts.run(Counts)
    commit(hosts[1], b"a")
    all_settled(hosts)
    founding = hosts[1]._node.raft.lives.own.founding
    hosts.stop(1)
    (replica,) = inspect(directory(hosts, 1)).replicas
    assert (replica.founding, replica.standing) == (founding.hex(), "SETTLED")
    assert main(["inspect", str(directory(hosts, 1))]) == 0
    assert f"founding {founding.hex()}, settled" in capsys.readouterr().out
