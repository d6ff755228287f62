"""`LogMeter`: bytes of entries by index."""

import pytest
from drakkar.actors.node.log_meter import LogMeter
from drakkar.handlers.raft.entries import ENTRY_OVERHEAD, Entries, Run

SIZE = 100 - ENTRY_OVERHEAD


def entries(first, count):
    return Entries([Run(first, 1, [bytes(SIZE)] * count)])


@pytest.fixture
def meter():
    """Ten batches of ten entries of 100 bytes: entries 1 to 100."""
    meter = LogMeter(1_000)
    for first in range(1, 100, 10):
        meter.note(entries(first, 10))
    return meter


@pytest.mark.parametrize(("index", "size"), [(0, 10_000), (10, 9_000), (55, 5_000), (100, 0), (200, 0)])
def test_it_counts_what_is_behind_an_index(meter, index, size):
    assert meter.behind(index) == size


@pytest.mark.parametrize(
    ("index", "limit", "before"),
    [(100, 10_000, 0), (100, 20_000, 0), (100, 5_000, 50), (100, 4_500, 60), (100, 0, 100), (50, 1_000, 40)],
)
def test_it_finds_from_where_on_there_are_so_many_bytes(meter, index, limit, before):
    assert meter.before(index, limit) == before


def test_what_is_compacted_is_forgotten(meter):
    meter.forget(45)
    assert meter.behind(45) == 6_000
    assert meter.before(100, 2_000) == 80
    meter.note(entries(101, 10))
    assert meter.behind(100) == 1_000


def test_small_batches_are_noted_together():
    meter = LogMeter(1_000)
    for index in range(1, 101):
        meter.note(entries(index, 1))
    assert len(meter._indexes) == 11
    assert meter.behind(50) == 5_000


def test_a_snapshot_that_was_loaded_is_no_gap(meter):
    meter.note(entries(1_001, 10))
    assert meter.behind(1_000) == 1_000
    assert meter.before(1_010, 1_000) == 100
