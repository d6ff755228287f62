"""What a replica counts, as one flat mapping that a host can show."""

from collections.abc import Mapping

from drakkar.actors.node.cells import OUTCOMES
from drakkar.handlers.raft.room_state import Room
from drakkar.handlers.table import Tally

__all__ = ["counters_of"]


def counters_of(
    tally: Tally,
    *,
    refusals: Mapping[str, int],
    unheard: int,
    expired: int,
    faults: Mapping[str, int],
    room: Room,
    not_loaded: int,
    undeliverable: int,
    refused_lives: int,
    not_allowed: Mapping[str, int],
    failed_snapshots: int,
    unasked: int,
    undelivered: int,
    records_refused: int,
) -> dict[str, int]:
    """Return all counts by name. May be called from any thread: `list` copies a counter in one step."""
    counts = {f"{lane} refused": count for lane, count in refusals.items()}
    counts["messages while the disk hung"] = unheard
    counts["messages that waited for too long"] = expired
    counts["entries dropped by a full disk"] = room.dropped
    counts["proposals refused by a full disk"] = room.refused
    counts["reads that waited for the disk"] = not_loaded
    counts["messages without an address"] = undeliverable
    counts["messages of refused replicas"] = refused_lives
    counts["snapshots failed"] = failed_snapshots
    counts["answers that nobody waited for"] = unasked
    counts["messages to other actors dropped"] = undelivered
    counts["records refused"] = records_refused
    for why, count in list(not_allowed.items()):
        counts[f"messages that only members may send: {why}"] = count
    counts |= {f"faulty: {what}": count for what, count in list(faults.items())}
    for outcome in OUTCOMES:
        for (state, what), count in list(getattr(tally, outcome).items()):
            counts[f"{outcome} {what} in {state.name}"] = count
    return counts
