"""The end of terms and indexes. No shard comes there by itself: with an election a microsecond it would take 140,000 years.

But a peer with a bug, or a stranger where there is no TLS, may name any term. A replica that took the last one could never
campaign again, and a log that ends at the last index takes no entry more. So no single message takes them away:

1. Up to `NEAR_END` a newer term is adopted at once (thesis §3.3). From there on a message raises a term by `MAX_STEP` at most, and
   by 2**30 messages at the soonest to the last one. To raise one's own term is always safe: it is a vote that is not given. A
   replica that is further behind comes to the term of its leader in steps, by one message each.
2. A snapshot whose index is beyond `NEAR_END` is not taken in. Entries get there in no other way.
"""

from typing import Final

from drakkar.handlers.checks import MAX_INDEX, MAX_TERM

__all__ = ["MAX_STEP", "NEAR_END", "reachable"]

NEAR_END: Final = min(MAX_INDEX, MAX_TERM) - (1 << 40)
"""The first of the last 2**40 terms, and of the last 2**40 indexes."""
MAX_STEP: Final = 1 << 10
"""By how much one message raises a term beyond `NEAR_END`."""


def reachable(own: int, told: int) -> int:
    """Return the term that a replica of term `own` adopts from a message of the newer term `told`."""
    return told if told <= NEAR_END else min(told, max(NEAR_END, own + MAX_STEP))
