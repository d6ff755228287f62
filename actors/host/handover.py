"""Handing leadership over before replicas stop, so that their shards need no election."""

from collections.abc import Iterable
from typing import Final

import pykka
import trio
from drakkar.actors.node.actor import NodeActor
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.handlers.errors import LoopError
from drakkar.handlers.raft.state import State

__all__ = ["HAND_OVER_TIMEOUT_S", "hand_over"]

HAND_OVER_TIMEOUT_S: Final = 1.0
"""For all replicas that stop together. One that leads takes some milliseconds, a thousand a good part of this."""
MAX_TOGETHER: Final = 256
"""Shards that are without a leader at a time. Many share the flushes and the turns of slow hosts; more would only each be
without a leader for longer, since one takes the hosts some 3 ms of their processors."""


def hand_over(loop: TrioLoop, nodes: Iterable[NodeActor], timeout: float = HAND_OVER_TIMEOUT_S) -> int:
    """Let those of the nodes that lead hand over; return how many had not done so within `timeout` seconds.

    Waits for nothing where none leads, and for no leader without a voter that can take over. From any thread but a
    loop's. 0 too where the loop does not run or answer any more: then there is nothing that could be handed over.
    """
    try:
        return int(loop.call(_hand_over, nodes, timeout, timeout=1.5 * timeout))
    except (LoopError, pykka.Timeout):
        return 0


async def _hand_over(nodes: Iterable[NodeActor], within_s: float) -> int:
    leaders = [node for node in nodes if node.state is State.LEADER]
    together = trio.CapacityLimiter(MAX_TOGETHER)

    async def one(node: NodeActor) -> None:
        async with together:
            await node.leave()

    with trio.move_on_after(within_s):
        async with trio.open_nursery() as nursery:
            for node in leaders:
                nursery.start_soon(one, node)
    return sum(not node.departure.over.done for node in leaders)
