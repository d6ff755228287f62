"""`NodeHost.metrics`: the page lists all figures and no other, and they say what happened."""

import re
from dataclasses import fields
from pathlib import Path

import drakkar.actors.host
import pytest
from drakkar.actors import ConfigError
from drakkar.transport.options import Counters

from tests.actors.support import TIMEOUT_S, Hosts, Ledger, commit, until

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"
ROW = re.compile(r"^\| `(\w+)` \| ([\w ]+) \| .+ \|$", re.MULTILINE)
ONE_REPLICA = "## Of one replica only"

CALM = {"election_ticks": 50, "snapshot_entries": 0}


@pytest.fixture
def hosts():
    with Hosts() as hosts:
        yield hosts


def documented(section=""):
    """The names on the page with their units, of a section or of all but the last."""
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(ONE_REPLICA)
    rows = ROW.findall(after if section else before)
    assert len(dict(rows)) == len(rows), "a name stands there twice"
    return dict(rows)


def listed(figures):
    """The names that the page lists one by one: all but those of the cells of tables, of which it tells the form."""
    return {name for name in figures if not name.startswith("cell_")}


def test_the_page_lists_the_figures_of_a_host_and_no_other(hosts):
    hosts.run(numbers=[1])
    assert listed(hosts.hosts[1].metrics()) == set(documented())


def test_the_page_lists_the_figures_of_a_replica_and_no_other(hosts):
    hosts.run(numbers=[1])
    host = hosts.hosts[1]
    of_replica = listed(host.metrics(1)) - set(host.metrics())
    assert of_replica == set(documented(ONE_REPLICA))
    assert "messages_handled_total" in host.metrics(1)
    assert "log_segments" not in host.metrics(1)


def test_names_carry_their_unit_as_prometheus_wants_it():
    for name, unit in {**documented(), **documented(ONE_REPLICA)}.items():
        assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name)
        for word in ("seconds", "bytes"):
            assert (unit == word) == (name.removesuffix("_total").endswith(f"_{word}")), name
        assert "_total_" not in name


def test_all_that_a_host_and_its_transport_count_is_among_the_figures(hosts):
    hosts.run(numbers=[1])
    host = hosts.hosts[1]
    sources = Path(drakkar.actors.host.__path__[0]).glob("*.py")
    counted = {name for path in sources for name in re.findall(r'_counters\["([^"]+)"\]', path.read_text())}
    assert counted
    before = host.metrics()
    odd = 1 << 40
    for name in counted:
        host._counters[name] = odd
    for field in fields(Counters):
        setattr(host._transport.counters, field.name, odd)
    changed = [name for name, value in host.metrics().items() if value >= odd > before[name]]
    assert len(changed) == len(counted) + len(fields(Counters)), f"add what is missing: {changed}"


def test_figures_tell_what_happened(hosts):
    hosts.run(config=CALM)
    leader = hosts.leader()
    other = hosts.others(leader)[0]
    for _ in range(10):
        commit(hosts[leader], b"x")
    host = hosts.hosts[leader]
    figures = host.metrics()
    assert all(type(value) in {int, float} for value in figures.values())
    assert (figures["replicas"], figures["replicas_leading"], figures["replicas_without_leader"]) == (1, 1, 0)
    assert figures["messages_handled_total"] > 10
    assert figures["log_entries_total"] > 10
    assert figures["log_flushes_total"] > 0
    assert (figures["peers"], figures["peers_connected"]) == (2, 2)
    assert figures["transport_sent_bytes_total"] > 100
    assert figures["loop_turns_total"] > 10
    assert figures["logs_memory_bytes"] == host.log_memory > 0
    assert hosts.hosts[other].metrics()["replicas_leading"] == 0
    status, of_shard = hosts[leader].status(), host.metrics(1)
    assert of_shard["commit_index"] == status.commit
    assert (of_shard["term"], of_shard["leader_replica_id"]) == (status.term, leader)
    assert of_shard["log_memory_bytes"] == status.log_memory_bytes


def test_a_host_adds_up_its_replicas_and_tells_of_each(hosts):
    for shard in (1, 2, 3):
        hosts.run(numbers=[1], shard_id=shard)
    host = hosts.hosts[1]
    for shard in (1, 2, 3):
        host.replica(shard)._node.router.undeliverable = shard
    assert [host.metrics(shard)["messages_without_address_total"] for shard in (1, 2, 3)] == [1, 2, 3]
    assert host.metrics()["messages_without_address_total"] == 6
    assert host.metrics()["replicas_without_leader"] == 3
    with pytest.raises(ConfigError, match=r"shard_id.*4.*start one first"):
        host.metrics(4)


def test_a_counter_does_not_shrink_when_a_replica_ends_or_the_host_stops(hosts):
    hosts.run(numbers=[1])
    host = hosts.hosts[1]
    until(lambda: host.metrics()["messages_handled_total"] > 3)
    before = host.metrics()
    hosts[1].stop()
    until(lambda: host.metrics()["replicas"] == 0)
    after = host.metrics()
    assert [name for name in before if name.endswith("_total") and after[name] < before[name]] == []
    assert after["messages_handled_total"] >= before["messages_handled_total"]
    assert after["replicas_without_leader"] == 0
    host.start_replica(Ledger, shard_id=1, replica_id=1)
    assert host.metrics()["messages_handled_total"] >= after["messages_handled_total"]
    host.stop()
    assert host.metrics()["messages_handled_total"] >= after["messages_handled_total"]


def test_figures_may_be_read_on_the_loop_too(hosts):
    hosts.run(numbers=[1])
    host = hosts.hosts[1]
    assert host.loop.call(host.metrics, timeout=TIMEOUT_S)["replicas"] == 1


def test_each_cell_of_the_tables_has_a_figure_once_something_has_met_it(hosts):
    hosts.run(numbers=[1], shard_id=1)
    hosts.run(numbers=[1], shard_id=2)
    host = hosts.hosts[1]
    ticks = "cell_handled_local_tick_in_follower_total"
    until(lambda: host.metrics().get(ticks, 0) > 3)
    alone = [host.metrics(shard)[ticks] for shard in (1, 2)]
    both = host.metrics()
    assert all(alone)
    assert both[ticks] >= sum(alone)
    assert "cell_handled_propose_in_follower_total" not in both
    assert "`cell_OUTCOME_TYPE_in_STATE_total`" in PAGE.read_text(encoding="utf-8")
    until(lambda: host.metrics()["messages_handled_total"] > both["messages_handled_total"])
    before = host.metrics()[ticks]
    hosts[1].stop()
    assert host.metrics()[ticks] >= before
