"""What a replica counts, as one flat mapping that a host can show."""

from collections.abc import Mapping
from typing import Final

from drakkar.handlers.table import Tally

__all__ = ["counters_of"]

OUTCOMES: Final = ("handled", "ignored", "swallowed", "impossible")


def counters_of(
    tally: Tally, *, refusals: Mapping[str, int], unheard: int, undeliverable: int, failed_snapshots: int
) -> dict[str, int]:
    """Return all counts by name. May be called from any thread: `list` copies a counter in one step."""
    counts = {f"{lane} refused": count for lane, count in refusals.items()}
    counts["messages while the disk hung"] = unheard
    counts["messages without an address"] = undeliverable
    counts["snapshots failed"] = failed_snapshots
    for outcome in OUTCOMES:
        for (state, type_), count in list(getattr(tally, outcome).items()):
            counts[f"{outcome} {type_} in {state.name}"] = count
    return counts
