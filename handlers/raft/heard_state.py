"""What a replica has heard from its leaders, beside the log; the conversations are in `replication`, `reads` and `divergence`."""

from dataclasses import dataclass

__all__ = ["Doubt", "Heard"]


@dataclass(frozen=True, slots=True)
class Doubt:
    """A question to a leader that is not answered yet."""

    leader: int
    term: int
    number: int
    """The answer repeats it, so it is no answer to an older question, nor made up by another."""


@dataclass(slots=True)
class Heard:
    """What counts beside the log."""

    number: int = 0
    """The highest number of an append that this term's leader sent here; 0 for none."""
    matched: int = 0
    """How far the log is known to be that of this term's leader: by what it sent here since this replica started."""
    vouched: int = 0
    """The highest commit index that a leader vouched for when it answered a read; its entries may come
    later than the answer.

    It outlives the term: what is committed stays so, and is in the log of every later leader (thesis §3.6.3).
    """
    doubt: Doubt | None = None
    """The leader that was asked about a contradiction."""
    removal_confirmed: bool = False
    """A replica that knows it has said that a quorum knows that this one was removed."""
