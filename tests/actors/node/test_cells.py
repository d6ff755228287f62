"""What each cell of a table has counted, added up over replicas, under names for monitoring."""

import re

from drakkar.actors.node.cells import OUTCOMES, CellCounts, figures_of
from drakkar.handlers.raft.entries import EntryKind
from drakkar.handlers.raft.state import State
from drakkar.handlers.tally import Tally

from tests.actors.node.support import M

ODD = M.define("test-cells.Ask me!", 40_301)
MARK = EntryKind.define("test_cells.mark", 235)


def tally(**counts):
    made = Tally()
    for outcome, cells in counts.items():
        getattr(made, outcome).update(cells)
    return made


def test_the_counts_of_several_replicas_are_added_up_cell_by_cell():
    counts = CellCounts()
    counts.add(tally(handled={(State.LEADER, M.PROPOSE): 2, (State.FOLLOWER, M.PROPOSE): 1}))
    kept = counts.copy()
    counts.add(tally(handled={(State.LEADER, M.PROPOSE): 3}, failed={(State.LEADER, ODD): 1}))
    assert dict(counts.cells()) == {
        ("handled", "LEADER", "PROPOSE"): 5,
        ("handled", "FOLLOWER", "PROPOSE"): 1,
        ("failed", "LEADER", "test-cells.Ask me!"): 1,
    }
    assert kept.cells()["handled", "LEADER", "PROPOSE"] == 2, "a copy has a life of its own"


def test_figures_have_names_that_prometheus_takes():
    counts = CellCounts()
    failed = {(State.LEADER, "Audit.save"): 1}
    counts.add(tally(handled={(State.LEADER, ODD): 2}, delivered={(State.FOLLOWER, MARK): 7}, failed=failed))
    figures = figures_of(counts.cells())
    assert figures == {
        "cell_handled_test_cells_ask_me_in_leader_total": 2,
        "cell_delivered_test_cells_mark_in_follower_total": 7,
        "cell_failed_audit_save_in_leader_total": 1,
    }
    assert all(re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) for name in figures)


def test_cells_whose_names_look_alike_share_a_figure_and_lose_nothing():
    cells = {("handled", "RED", "a.b"): 1, ("handled", "RED", "a-b"): 2, ("handled", "red", "A B"): 4}
    assert figures_of(cells) == {"cell_handled_a_b_in_red_total": 7}
    assert figures_of({("handled", "RED", "..."): 1}) == {"cell_handled_unnamed_in_red_total": 1}


def test_a_state_that_is_none_is_shown_as_it_is():
    """A mistake of a handler, which ends its node: the figures of the host must not end with it."""
    counts = CellCounts()
    counts.add(tally(swallowed={("dark", ODD): 1}, failed={(7, "Audit.save"): 1}))
    assert figures_of(counts.cells()) == {
        "cell_swallowed_test_cells_ask_me_in_dark_total": 1,
        "cell_failed_audit_save_in_7_total": 1,
    }


def test_all_that_a_tally_counts_by_cells_has_figures():
    counted = {name for name in Tally.__slots__ if isinstance(getattr(Tally(), name), dict)}
    assert counted == set(OUTCOMES)
