"""State machines that hang: the workers that others get in their place, and what the log says of it."""

from collections.abc import Mapping, Sequence
from typing import Final

import trio
from drakkar.actors.machine.applier import Hang
from drakkar.actors.node.actor import NodeActor
from drakkar.actors.runtime.workers import LOOK_INTERVAL_S, WorkerPool

__all__ = ["HangWatch"]

LOOKS_A_SECOND: Final = round(1 / LOOK_INTERVAL_S)


class HangWatch:
    """Looks at the workers and state machines of a host. For the loop's thread."""

    def __init__(self, pools: Sequence[WorkerPool], nodes: Mapping[int, NodeActor]) -> None:
        """`nodes` are those that run, by shard."""
        self._pools, self._nodes = pools, nodes
        self._hanging: dict[NodeActor, Hang] = {}
        """Those of which the log was told, also where the replica has been stopped since."""

    async def run(self) -> None:
        """Look again and again, as a task of the loop."""
        while True:
            for _ in range(LOOKS_A_SECOND):
                await trio.sleep(LOOK_INTERVAL_S)
                for pool in self._pools:
                    pool.look()
            self.tell()

    def tell(self) -> None:
        """Log which state machines hang, and which do so no more: one line each."""
        for node in {*self._nodes.values(), *self._hanging}:
            before, now = self._hanging.get(node), node.hang
            if now is not None and before is None:
                node.lines.warning(
                    "its state machine hangs: it has not returned from %s for %.0f seconds, and the replica applies and "
                    "answers nothing meanwhile",
                    now.what,
                    now.seconds,
                )
                self._hanging[node] = now
            elif before is not None and now is None:
                del self._hanging[node]
                node.lines.warning("its state machine hangs no more: it has returned from %s", before.what)
