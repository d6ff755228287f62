"""What a replica counts, as one flat mapping that a host can show."""

from collections.abc import Mapping
from typing import Final

from drakkar.handlers.raft.room_state import Room
from drakkar.handlers.table import Tally

__all__ = ["counters_of"]

OUTCOMES: Final = ("handled", "failed", "ignored", "swallowed", "impossible")


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
    for why, count in list(not_allowed.items()):
        counts[f"messages that only members may send: {why}"] = count
    counts |= {f"faulty: {what}": count for what, count in list(faults.items())}
    for outcome in OUTCOMES:
        for (state, type_), count in list(getattr(tally, outcome).items()):
            counts[f"{outcome} {type_} in {state.name}"] = count
    return counts
