"""Looking into the data directory of a stopped host tells everything, and changes nothing."""

import pytest
from drakkar.actors import ConfigError, CorruptData, NodeHost
from drakkar.actors.log.data_dir import DataDir
from drakkar.actors.tools.repair import export, import_, inspect

from tests.actors.tools.support import LOG, MEMBERS_AFTER, OLD, A, Book
from tests.ports import free_addresses


def test_an_inspection_tells_everything_and_changes_nothing(survivor, tmp_path):
    survivor.fill(snapshot=7, compacted=4)
    survivor.fill(LOG[:2], shard=2, replica=6, commit=2, joins=True)
    before = survivor.picture()
    report = inspect(survivor.path)
    assert survivor.picture() == before
    assert (report.deployment_id, report.address, len(report.host_id)) == ("default", A, 32)
    one, two = report.replicas
    assert (one.shard_id, one.replica_id, one.state_machine, one.joined) == (1, 1, "Book", False)
    assert (one.term, one.vote, one.commit) == (3, 2, 9)
    assert (one.first_index, one.last_index, one.last_term) == (5, 12, 2)
    assert (one.snapshot.index, one.snapshot.term, one.snapshot.problem) == (7, 1, "")
    assert one.snapshot.size == survivor.snapshot_files()[0].stat().st_size
    assert (one.membership, one.damaged, one.witness) == (MEMBERS_AFTER, False, False)
    assert (two.shard_id, two.replica_id, two.joined, two.snapshot) == (2, 6, True, None)
    assert (one.founding, one.standing) == ("", "INHERITED"), "made as the version before did"
    assert two.membership.addresses == OLD


def test_an_inspection_tells_what_is_damaged(survivor):
    survivor.fill(snapshot=7)
    survivor.harm_snapshot()
    survivor.harm_log(b"pay")
    (replica,) = inspect(survivor.path).replicas
    assert replica.damaged
    assert "the run of entries from 7 on" in replica.problem
    assert "does not match its checksum" in replica.snapshot.problem


def test_an_inspection_tells_that_the_end_of_the_log_was_lost(survivor):
    survivor.fill(LOG[:5], commit=7)
    (replica,) = inspect(survivor.path).replicas
    assert replica.commit == replica.last_index == 5
    assert "committed up to 7, but that ends at 5" in replica.problem


def test_a_directory_without_replicas_is_shown(tmp_path):
    NodeHost(free_addresses(1)[0], data_dir=tmp_path).stop()
    assert inspect(tmp_path).replicas == ()


def test_a_first_start_that_was_cut_short_is_told(tmp_path):
    DataDir.open(tmp_path, deployment_id="d", address=A).close()
    with pytest.raises(ConfigError, match="holds no IDENTITY, so no host was ever started there"):
        inspect(tmp_path)


@pytest.mark.parametrize("part", ["log", "snapshots", "IDENTITY"])
def test_a_directory_that_lacks_a_part_is_refused_by_every_tool_untouched(survivor, tmp_path, part):
    survivor.fill(snapshot=7)
    whole, file = survivor.path, tmp_path / "export"
    export(whole, 1, Book, file)
    (whole / part).rename(tmp_path / "aside")
    before = survivor.picture()
    for use in (
        lambda: inspect(whole),
        lambda: export(whole, 1, Book, tmp_path / "again"),
        lambda: import_(
            file, whole, shard_id=1, replica_id=1, members={1: A}, address=A, deployment_id="default"
        ),
    ):
        with pytest.raises(CorruptData, match=rf"{whole / part} is missing"):
            use()
    assert survivor.picture() == before


def test_what_is_no_hosts_directory_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is empty, so no host was ever started there"):
        inspect(tmp_path)
    with pytest.raises(ConfigError, match="does not exist, so perhaps its disk is not mounted"):
        inspect(tmp_path / "nowhere")
    (tmp_path / "letter").write_text("Dear all")
    with pytest.raises(ConfigError, match="holds no IDENTITY, so no host was ever started there"):
        inspect(tmp_path)
