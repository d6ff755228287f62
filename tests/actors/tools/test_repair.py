"""A shard that lost its quorum for good is repaired, on the directories that are left, and nothing else is broken."""

import json
import shutil
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from drakkar.actors import (
    ConfigError,
    CorruptData,
    MembershipRejected,
    NodeHost,
)
from drakkar.actors.log.data_dir import DataDir
from drakkar.actors.log.store import Bootstrap, LogStore, at_once, log_on_disk
from drakkar.actors.snapshots.store import Snapshots, read_file
from drakkar.actors.tools.inspection import StoppedHost
from drakkar.actors.tools.repair import export, import_, inspect
from drakkar.handlers.checks import MAX_TERM
from drakkar.handlers.errors import ActorFailed, TransportError
from drakkar.handlers.raft.confchange import ChangeType
from drakkar.handlers.raft.ends import NEAR_END
from drakkar.handlers.raft.entries import EntryKind, Run
from drakkar.handlers.raft.lives import Lives, Standing
from drakkar.handlers.raft.state import HardState, Membership

from tests.actors.support import TICK, commit, contents, settled, until
from tests.actors.tools.support import (
    LOG,
    LONG,
    MEMBERS_AFTER,
    NEW,
    OLD,
    STATE,
    A,
    B,
    Book,
    C,
    D,
    Directory,
    DiskBook,
    E,
    InlineBook,
    Other,
    bring_in,
    change,
    command,
    first_entry,
    started,
)
from tests.ports import free_addresses

# -- The story


def test_a_shard_of_which_one_host_is_left_goes_on_with_two_new_ones_and_has_lost_nothing(tmp_path, caplog):
    addresses = free_addresses(5)
    old, new = (
        dict(enumerate(addresses[:3], 1)),
        dict(zip((1, 4, 5), addresses[:1] + addresses[3:], strict=True)),
    )
    options = {"config": {"snapshot_entries": 50, "compaction_overhead": 20}}
    with ExitStack() as stack:
        replicas = start(stack, tmp_path, old, members=old, **options)
        for number in range(20):
            settled(replicas[1 + number % 3].propose_many([b"%d-%d" % (number, each) for each in range(10)]))
        client = replicas[2].session().get(timeout=20)
        before_payment = client.token
        paid = client.propose(b"pay", timeout=20).get(timeout=20)
        written = contents(replicas[1])
    assert len(written) == 201

    # Two machines are lost, but a copy of one was forgotten.
    for number in (2, 3):
        shutil.move(tmp_path / str(number), tmp_path / f"lost-{number}")
    exported = export(tmp_path / "1", 1, Book, tmp_path / "export", compression="zlib")
    assert exported.membership.voters == {1, 2, 3}
    for number, address in new.items():
        import_(
            tmp_path / "export",
            tmp_path / str(number),
            shard_id=1,
            replica_id=number,
            members=new,
            address=address,
            deployment_id="default",
        )

    with ExitStack() as stack:
        replicas = start(stack, tmp_path, new, members=None, **options)
        for replica in replicas.values():
            assert contents(replica) == written
        again = replicas[5].session(token=before_payment).get(timeout=20)
        assert again.propose(b"pay", timeout=20).get(timeout=20) == paid
        after = [b"after-%d" % number for number in range(100)]
        assert settled(replicas[4].propose_many(after))[-1] == len(written) + 100
        for replica in replicas.values():
            assert contents(replica) == written + after
        lost = replicas[1].add_replica(2, old[2], timeout=5)
        assert isinstance(settled(lost), MembershipRejected)

        # The lost ones come back after all, and are a majority of what they take for the shard.
        before = replicas[1].status()
        ghosts = start(stack, tmp_path, {2: old[2], 3: old[3]}, members=old, directory="lost-{}", **options)
        # Replica 1 and the one that speaks to it refuse each other, and both sides say why.
        until(lambda: replicas[1].status().refused)
        ghost = next(iter(replicas[1].status().refused))
        until(lambda: set(ghosts[ghost].status().refused) == {1})
        for where, about in ((old[1], ghost), (old[ghost], 1)):
            lists = [
                ", ".join(f"{number}: {address}" for number, address in each.items()) for each in (old, new)
            ]
            words = [where, f"refuses replica {about} at", "forgotten when the shard was imported", *lists]
            until(lambda words=words: warned(caplog, *words))
        assert settled(replicas[5].propose_many([b"still here"])) == [len(written) + 101]
        for replica in replicas.values():
            status = replica.status()
            assert (status.leader_id, status.term) == (before.leader_id, before.term)
            assert (status.voters, status.ended) == ((1, 4, 5), None)
        assert [ghost.status().ended for ghost in ghosts.values()] == [None, None]


def warned(caplog, *words):
    return any(all(word in record.getMessage() for word in words) for record in caplog.records)


def start(stack, tmp_path, addresses, *, members, directory="{}", **options):
    replicas = {}
    for number, address in addresses.items():
        host = stack.enter_context(NodeHost(address, tmp_path / directory.format(number), tick_interval=TICK))
        replicas[number] = host.start_replica(Book, shard_id=1, replica_id=number, members=members, **options)
    return replicas


# -- Export


@pytest.mark.parametrize("machine", [Book, InlineBook])
@pytest.mark.parametrize(
    ("snapshot", "compacted"),
    [
        pytest.param(0, 0, id="the log alone"),
        pytest.param(7, 0, id="a snapshot, and a log that overlaps it"),
        pytest.param(7, 7, id="a snapshot, and the log behind it"),
        pytest.param(12, 12, id="a snapshot, and no log"),
    ],
)
def test_an_export_holds_what_the_replica_would_hold_after_a_restart(
    survivor, target, machine, snapshot, compacted
):
    survivor.fill(snapshot=snapshot, compacted=compacted, machine=machine.__name__)
    before = survivor.picture()
    exported = export(survivor.path, 1, machine, target, compression="zlib")
    assert survivor.picture() == before
    assert (exported.index, exported.term, exported.membership) == (12, 2, MEMBERS_AFTER)
    assert (exported.replayed, exported.uncommitted, exported.left_out) == (
        12 - snapshot,
        12 - max(9, snapshot),
        0,
    )
    with read_file(target) as file:
        assert (file.snapshot.index, file.snapshot.term, file.snapshot.membership) == (12, 2, MEMBERS_AFTER)
    bring_in(target, survivor.path.with_name("new"))
    made = machine()
    export(survivor.path.with_name("new"), 1, lambda: made, target.with_name("again"))
    assert made.commands == STATE


def test_an_export_can_stop_at_what_is_known_to_be_committed(survivor, target):
    survivor.fill(commit=10)
    exported = export(survivor.path, 1, Book, target, committed_only=True)
    assert (exported.index, exported.uncommitted, exported.left_out) == (10, 0, 2)
    # It is no loss of what is left out that keeps the same directory from taking the export.
    bring_in(target, survivor.path)
    assert started(survivor.path)[0] == STATE[:-2]


def test_a_replica_that_joined_its_shard_is_exported_like_any_other(survivor, target):
    survivor.fill(joins=True)
    assert export(survivor.path, 1, Book, target).membership == MEMBERS_AFTER


def test_what_only_a_change_for_an_older_membership_asked_for_does_not_happen(survivor, target):
    survivor.fill()
    ordered = export(survivor.path, 1, Book, target, ordered_config_change=True).membership
    # The first entry made membership 1, and both changes name none.
    assert (ordered.voters, ordered.observers, ordered.change_id) == ({1, 2, 3}, frozenset(), 1)


@pytest.mark.parametrize(
    ("held", "committed_only", "index"),
    [
        pytest.param(0, False, 12, id="it is empty"),
        pytest.param(4, False, 12, id="it is behind"),
        pytest.param(11, False, 12, id="it is ahead of the known commit"),
        pytest.param(11, True, 11, id="and cannot go back"),
        pytest.param(4, True, 9, id="it is behind the known commit"),
    ],
)
def test_a_state_machine_on_disk_is_given_what_it_lacks(
    survivor, target, tmp_path, held, committed_only, index
):
    plain = [run for run in LOG if EntryKind.SESSION not in run.kinds]
    log = [*plain, Run(0, 1, [b"11"]), Run(0, 1, [b"12"])]
    survivor.fill(log, machine="DiskBook")
    commands = {3: "3", 4: "4", 5: LONG.decode(), 8: "10", 9: "11", 10: "12", 11: "11", 12: "12"}
    machine = DiskBook()
    machine.path = tmp_path / "rows"
    if held:
        machine.path.write_text(json.dumps([[at, text] for at, text in commands.items() if at <= held]))
    exported = export(survivor.path, 1, lambda: machine, target, committed_only=committed_only)
    assert exported.index == index
    with read_file(target) as file:
        assert file.facts["machine_index"] == machine.rows[-1][0] <= index
    assert machine.rows == [[at, text] for at, text in commands.items() if at <= index]

    assert machine.path is None, "it was not closed"

    bring_in(target, tmp_path / "new")
    elsewhere = DiskBook()
    elsewhere.path = tmp_path / "other rows"
    export(tmp_path / "new", 1, lambda: elsewhere, tmp_path / "again")
    assert elsewhere.rows == machine.rows


def test_a_state_machine_on_disk_that_does_not_belong_to_the_log_is_refused(survivor, target, tmp_path):
    survivor.fill(machine="DiskBook")
    machine = DiskBook()
    machine.path = tmp_path / "rows"
    machine.path.write_text(json.dumps([[13, "13"]]))
    with pytest.raises(CorruptData, match="holds the log up to 13, but that ends at 12"):
        export(survivor.path, 1, lambda: machine, target)


def test_a_witness_is_shown_and_not_exported(survivor, target):
    survivor.fill([first_entry(OLD), change((ChangeType.ADD_WITNESS, 8, D))], replica=8, commit=2)
    (replica,) = inspect(survivor.path).replicas
    assert replica.witness
    with pytest.raises(ConfigError, match="replica_id=8: is a witness"):
        export(survivor.path, 1, Book, target)


class Broken(Book):
    fails = ""

    def apply(self, command):
        return self.fail("apply") or super().apply(command)

    def save(self, sink):
        self.fail("save")

    def load(self, source):
        self.fail("load")

    def fail(self, where):
        if self.fails == where:
            raise ValueError(f"broken in {where}")


def fails(where):
    made = Broken()
    made.fails = where
    return made


@pytest.mark.parametrize(
    ("fill", "arguments", "error", "says"),
    [
        ({}, {"shard_id": 7}, ConfigError, "shard_id=7: .* holds replicas of 1"),
        ({}, {"replica_id": 5}, ConfigError, "replica_id=5: .* holds 1 of shard 1"),
        ({}, {"state_machine": Other}, ConfigError, "state_machine='Other': .* written for 'Book'"),
        ({}, {"state_machine": 5}, ConfigError, "state_machine='5': must be a StateMachine class"),
        ({"log": [], "commit": 0}, {}, ConfigError, "replica_id=1: has no entries yet"),
        ({"compacted": 5}, {}, CorruptData, "entries 1 to 5 are missing"),
        (
            {"machine": "Broken"},
            {"state_machine": lambda: fails("apply")},
            ActorFailed,
            "applying entries 3 to 3, and nothing was exported: apply failed at entry 3",
        ),
        ({"machine": "Broken"}, {"state_machine": lambda: fails("save")}, ActorFailed, "writing its state"),
        (
            {"machine": "Broken", "snapshot": 7},
            {"state_machine": lambda: fails("load")},
            ActorFailed,
            "loading the snapshot at 7",
        ),
        (
            {"log": [first_entry(OLD), Run(0, 1, [b""], bytes([EntryKind.METADATA]))], "commit": 2},
            {},
            ConfigError,
            "replica_id=1: is a witness",
        ),
    ],
)
def test_an_export_that_cannot_be_says_why_and_leaves_nothing(survivor, target, fill, arguments, error, says):
    survivor.fill(**fill)
    before = survivor.picture()
    with pytest.raises(error, match=says):
        export(survivor.path, **{"shard_id": 1, "state_machine": Book, "path": target, **arguments})
    assert survivor.picture() == before
    assert not [path for path in target.parent.iterdir() if path.name.startswith("export")]


def test_several_replicas_of_a_shard_are_told_apart(survivor, target):
    survivor.fill()
    survivor.fill(LOG[:3], replica=5, commit=3)
    with pytest.raises(ConfigError, match="holds 1, 5 of shard 1: name one"):
        export(survivor.path, 1, Book, target)
    assert export(survivor.path, 1, Book, target, replica_id=5).index == 3


def test_damage_is_found_and_the_file_named(survivor, target):
    survivor.fill(snapshot=7)
    survivor.harm_snapshot()
    with pytest.raises(CorruptData, match=r"snapshots/1-1/0+7-.*checksum"):
        export(survivor.path, 1, Book, target)
    other = Directory(survivor.path.with_name("other")).fill()
    other.harm_log(b"pay")
    with pytest.raises(
        CorruptData, match=r"\.segment, offset \d+: shard 1 replica 1: the run of entries from 7 on"
    ):
        export(other.path, 1, Book, target)
    assert not target.exists()


def test_what_a_snapshot_covers_may_be_damaged_in_the_log(survivor, target):
    survivor.fill(snapshot=7)
    survivor.harm_log(b"pay")
    assert export(survivor.path, 1, Book, target).index == 12
    bring_in(target, survivor.path.with_name("new"))
    assert started(survivor.path.with_name("new"))[0] == STATE


def test_nothing_is_overwritten(survivor, target):
    survivor.fill()
    target.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="exists already"):
        export(survivor.path, 1, Book, target)
    assert target.read_bytes() == b"precious"


def test_a_running_host_keeps_others_out(tmp_path, target):
    (address,) = free_addresses(1)
    with NodeHost(address, tmp_path / "1", tick_interval=TICK) as host:
        replica = host.start_replica(Book, shard_id=1, replica_id=1, members={1: address})
        commit(replica, b"one")
        for attempt in (
            lambda: inspect(tmp_path / "1"),
            lambda: export(tmp_path / "1", 1, Book, target),
            lambda: import_from_elsewhere(tmp_path, address),
        ):
            with pytest.raises(ConfigError, match="is in use by process"):
                attempt()
        commit(replica, b"two")
    assert not target.exists()


def import_from_elsewhere(tmp_path, address):
    aside = Directory(tmp_path / "aside").fill(LOG[:3], commit=3)
    export(aside.path, 1, Book, tmp_path / "other-export")
    bring_in(tmp_path / "other-export", tmp_path / "1", members={1: address}, address=address)


# -- Import


@pytest.fixture
def exported(survivor, target):
    survivor.fill(snapshot=7)
    export(survivor.path, 1, Book, target)
    return target


def test_the_imported_replica_starts_with_the_new_members_in_a_new_term(exported, tmp_path):
    done = bring_in(exported, tmp_path / "new", replica_id=4, address=D)
    members = Membership(voters=NEW, removed={2, 3, 9}, change_id=12)
    assert (done.index, done.term, done.membership) == (12, 4, members)
    with DataDir.existing(tmp_path / "new") as directory:
        store = log_on_disk(directory.part("log"), directory.host_id, create=False)
    try:
        log = store.open(1, 4)
        with read_file(exported) as file:
            record = Bootstrap(Membership(voters=NEW), state_machine="Book", generation=file.fingerprint)
        assert (log.bootstrap, log.lives) == (record, Lives())
        assert log.hard_state == HardState(4, 0, 12)
        assert (log.first_index, log.last_index, log.term(12), log.membership) == (13, 12, 2, members)
        name = log.snapshot.payload.decode()
    finally:
        store.close()
    # The file says so too, since it may be sent to those who join.
    with read_file(tmp_path / "new" / "snapshots" / "1-4" / name) as file:
        assert file.snapshot.membership == members
        assert (file.snapshot.size, file.facts["shard"]) == (log_size(file), 1)


def test_an_import_founds_the_shard_anew_on_all_hosts_alike_and_another_file_does_so_otherwise(
    survivor, exported, tmp_path
):
    def founded(file, name, **who):
        bring_in(file, tmp_path / name, **who)
        with StoppedHost(tmp_path / name) as host:
            return host.log(host.find(1, None)).bootstrap.generation

    one, copy = founded(exported, "one"), Path(shutil.copy(exported, tmp_path / "copy"))
    assert one == founded(copy, "four", replica_id=4, address=D) > 0
    export(survivor.path, 1, Book, tmp_path / "again")
    assert (tmp_path / "again").stat().st_size == exported.stat().st_size
    assert founded(tmp_path / "again", "other") != one


def test_an_import_forgets_the_life_of_the_replica_that_it_replaces(survivor, exported):
    with DataDir.existing(survivor.path) as directory:
        store = log_on_disk(directory.part("log"), directory.host_id, create=False)
        at_once(partial(store.live, 1, 1, Lives(b"before" * 2 + b"1234", Standing.SETTLED)))
        store.close()
    bring_in(exported, survivor.path)
    with StoppedHost(survivor.path) as host:
        assert host.log((1, 1)).lives == Lives()


def log_size(file):
    with file.raw() as raw:
        return len(raw.read())


def test_an_export_can_become_another_shard(exported, tmp_path):
    bring_in(exported, tmp_path / "new", as_shard=8)
    made = Book()
    export(tmp_path / "new", 8, lambda: made, tmp_path / "again")
    assert made.commands == STATE


def test_who_was_removed_by_a_repair_stays_so_in_the_next(exported, tmp_path):
    bring_in(exported, tmp_path / "new")
    export(tmp_path / "new", 1, Book, tmp_path / "again")
    with pytest.raises(ConfigError, match="replica 2 was removed from the shard"):
        bring_in(tmp_path / "again", tmp_path / "newer", members={1: A, 2: B})
    assert bring_in(tmp_path / "again", tmp_path / "newer", members={1: A, 6: B}).membership.removed == {
        2,
        3,
        4,
        5,
        9,
    }


def test_a_copy_for_safekeeping_can_be_imported_too(tmp_path):
    (address,) = free_addresses(1)
    with NodeHost(address, tmp_path / "1", tick_interval=TICK) as host:
        replica = host.start_replica(Book, shard_id=1, replica_id=1, members={1: address})
        commit(replica, b"one")
        replica.snapshot(export_to=tmp_path / "copy").get(timeout=20)
        commit(replica, b"two")
    arguments = {"members": {1: address}, "address": address}
    with pytest.raises(ConfigError, match="state_machine=None: the file does not say"):
        bring_in(tmp_path / "copy", tmp_path / "new", **arguments)
    bring_in(tmp_path / "copy", tmp_path / "new", state_machine="Book", **arguments)
    with pytest.raises(ConfigError, match="export this one instead"):
        bring_in(tmp_path / "copy", tmp_path / "1", state_machine="Book", **arguments)
    with NodeHost(address, tmp_path / "new", tick_interval=TICK) as host:
        replica = host.start_replica(Book, shard_id=1, replica_id=1)
        assert contents(replica) == [b"one"]


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"shard_id": 2}, ConfigError, "shard_id=2: the export is of shard 1: name that, and as_shard=2"),
        (
            {"deployment_id": "prod"},
            ConfigError,
            "deployment_id='prod': the export is of .* deployment 'default'",
        ),
        ({"replica_id": 7}, ConfigError, "members=.* must contain replica 7 itself"),
        ({"replica_id": 0}, ConfigError, "replica_id=0: must be a whole number from 1"),
        ({"address": B}, ConfigError, f"address='{B}': the members say that replica 1 is at {A}"),
        ({"members": {1: A, 3: C}}, ConfigError, "replica 3 was removed from the shard"),
        ({"members": {1: A, 4: A}}, ConfigError, "two members have the same address"),
        ({"members": {1: A, "4": D}}, ConfigError, "'4' is no replica id"),
        ({"members": {1: A, 4: "10.0.0.4:0"}}, ConfigError, "10.0.0.4:0 has no port"),
        ({"members": {1: A, 4: "nowhere"}}, TransportError, "address 'nowhere'"),
        ({"state_machine": "Other"}, ConfigError, "state_machine='Other': the export is of a 'Book'"),
    ],
)
def test_an_import_that_contradicts_the_export_touches_nothing(exported, tmp_path, changes, error, says):
    with pytest.raises(error, match=says):
        bring_in(exported, tmp_path / "new", **changes)
    assert not (tmp_path / "new").exists()


def test_a_damaged_or_foreign_file_touches_nothing(exported, survivor, tmp_path):
    content = exported.read_bytes()
    for harmed in (
        content[:-1],
        content[: len(content) // 2],
        bytes([*content[:40], content[40] ^ 1, *content[41:]]),
    ):
        exported.write_bytes(harmed)
        with pytest.raises(CorruptData, match=f"{exported}.*take another copy of it"):
            bring_in(exported, tmp_path / "new")
    with pytest.raises(CorruptData, match="does not exist"):
        bring_in(tmp_path / "nothing", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_directory_of_another_address_or_deployment_is_refused_untouched(exported, survivor, tmp_path):
    before = survivor.picture()
    with pytest.raises(ConfigError, match=f"address='{D}': the data directory .* belongs to address='{A}'"):
        bring_in(exported, survivor.path, replica_id=4, address=D)
    assert survivor.picture() == before


def test_another_replica_of_the_shard_goes_only_when_it_is_given_up(survivor, exported):
    arguments = {"replica_id": 4, "members": {4: A, 5: E}}
    with pytest.raises(ConfigError, match="holds replica 1 of shard 1: import to another directory"):
        bring_in(exported, survivor.path, **arguments)
    assert started(survivor.path)[0] == STATE
    assert bring_in(exported, survivor.path, replace=True, **arguments).replaced == (1,)
    assert started(survivor.path)[0] == STATE
    assert [path.parent.name for path in survivor.snapshot_files()] == ["1-4"]
    with pytest.raises(ConfigError, match="ids are never used again"):
        survivor.fill()


def test_a_survivor_that_holds_more_than_the_exported_one_is_not_overwritten_by_mistake(exported, tmp_path):
    more = Directory(tmp_path / "more", address=B).fill([*LOG, command(13)], replica=2)
    arguments = {"replica_id": 2, "members": {1: A, 2: B}, "address": B}
    with pytest.raises(
        ConfigError, match=r"up to entry 13 of term 2, .* ended with entry 12 of term 2: export this"
    ):
        bring_in(exported, more.path, **arguments)
    assert started(more.path)[0] == [*STATE, b"13"]
    bring_in(exported, more.path, replace=True, **arguments)
    assert started(more.path)[0] == STATE


def test_terms_never_go_back(exported, tmp_path):
    voted = Directory(tmp_path / "voted", address=B).fill(LOG[:5], replica=2, commit=5, term=90)
    assert bring_in(exported, voted.path, replica_id=2, members={1: A, 2: B}, address=B).term == 91


def test_a_shard_whose_terms_are_used_up_begins_with_the_first_ones(survivor, target, tmp_path):
    """Nothing of the old shard is heard in the new one, so its terms mean nothing there; but votes in the new one count."""
    survivor.fill(snapshot=7, term=MAX_TERM)
    export(survivor.path, 1, Book, target)
    assert bring_in(target, survivor.path, members={1: A, 2: B}).term == 2
    again = Directory(survivor.path)
    log = again.open_log(1, 1)
    assert log == (HardState(2, 0, 12), 12, 1)
    again.vote(1, 1, HardState(NEAR_END + 9, 1, 12))
    assert bring_in(target, survivor.path, members={1: A, 2: B}).term == NEAR_END + 10
    again.vote(1, 1, HardState(MAX_TERM, 1, 12))
    with pytest.raises(ConfigError, match="term=4611686018427387904: must be"):
        bring_in(target, survivor.path, members={1: A, 2: B})


def test_a_used_up_term_of_the_replica_alone_does_not_count(exported, tmp_path):
    voted = Directory(tmp_path / "voted", address=B).fill(LOG[:5], replica=2, commit=5, term=MAX_TERM)
    assert bring_in(exported, voted.path, replica_id=2, members={1: A, 2: B}, address=B).term == 4


def test_a_damaged_replica_goes_only_when_it_is_given_up(exported, tmp_path):
    harmed = Directory(tmp_path / "harmed").fill()
    harmed.harm_log(b"12")
    with pytest.raises(ConfigError, match="holds it, damaged, so it cannot be seen"):
        bring_in(exported, harmed.path)
    bring_in(exported, harmed.path, replace=True)
    assert started(harmed.path)[0] == STATE


@pytest.mark.parametrize("where", ["import_replica", "create"])
def test_a_crash_in_the_middle_leaves_what_was_and_the_import_can_be_repeated(
    survivor, exported, monkeypatch, where
):
    class Crash(BaseException):
        pass

    def crash(*_, **__):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(LogStore if where == "import_replica" else Snapshots, where, crash)
        with pytest.raises(Crash):
            bring_in(exported, survivor.path)
    commands, again = started(survivor.path)
    assert (commands, again.membership) == (STATE, MEMBERS_AFTER)
    bring_in(exported, survivor.path)
    assert started(survivor.path)[1].membership.voters == {1, 4, 5}
    assert len(survivor.snapshot_files()) == 1
