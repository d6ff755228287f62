"""`TableActors`: the nodes without Raft that are at home on a host: how they reach their peers, and what they have counted."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import pykka
from drakkar.actors.node.cells import CellCounts
from drakkar.actors.remote.calls import Calls
from drakkar.actors.remote.refs import RemoteRef
from drakkar.actors.runtime.forks import on_fork
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.actors.runtime.letters import Heard, Letter
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.actors.runtime.peers import Phase
from drakkar.actors.runtime.table_actor import TableActor
from drakkar.handlers.checks import check_name
from drakkar.handlers.errors import LoopError

__all__ = ["NodeEvent", "NodeFigures", "TableActors"]

FIND_TIMEOUT_S: Final = 5.0
"""How long the search for a peer waits for the host that is asked."""


@dataclass(frozen=True, slots=True)
class NodeEvent:
    """A handler of a table actor has called `node.publish_event(event)`."""

    name: str
    """Of the actor."""
    event: Any


class NodeFigures(NamedTuple):
    """What the table actors of a host come to. The counts include those that have ended."""

    actors: int
    """Those that run."""
    phases: Counter[Phase]
    """Their peers, by how they stand."""
    counts: Counter[str]
    """See `TableActor.counts`."""


class TableActors:
    """The table actors that were started with a host: the `Home` of each. From any thread."""

    def __init__(
        self,
        calls: Calls,
        loop: TrioLoop,
        *,
        address: Callable[[], str],
        charge: Callable[[str, int], object],
        announce: Callable[[object], object],
    ) -> None:
        """`loop` is the host's, in whose thread `charge` is called: see `TcpTransport.charge`. `announce` tells the subscribers."""
        self._calls, self._loop = calls, loop
        self._address, self._charge, self._announce = address, charge, announce
        self._lock = threading.Lock()
        self._actors: dict[str, TableActor] = {}
        """Those that run, by their urns."""
        self._counts: Counter[str] = Counter()
        """Of those that have ended."""
        self._cells = CellCounts()
        """Likewise."""
        on_fork(self)

    # ---- what actors call: see `peers.Home`

    @staticmethod
    def check_name(name: str) -> None:
        """See `Home`."""
        check_name("name", name)

    def enter(self, actor: TableActor) -> None:
        """See `Home`."""
        self._calls.publish(actor.name, actor.actor_ref)
        with self._lock:
            self._actors[actor.actor_urn] = actor

    def leave(self, actor: TableActor) -> None:
        """See `Home`. Its name is free as soon as it has ended, as that of each published actor."""
        with self._lock:
            if self._actors.pop(actor.actor_urn, None) is not None:
                self._counts.update(actor.counts)
                self._cells.add(actor.tally)

    def find(self, address: str, name: str) -> ActorFuture[pykka.ActorRef[Any]]:
        """See `Home`."""
        found: ActorFuture[pykka.ActorRef[Any]] = self._calls.remote(
            address, name, block=False, timeout=FIND_TIMEOUT_S
        )
        return found

    def deliver(self, ref: pykka.ActorRef[Any], letter: Letter) -> None:
        """See `Home`. Where the peer lives on this host, the letter arrives as if this host had sent it."""
        ref.tell(letter if isinstance(ref, RemoteRef) else Heard(letter, self._address()))

    def charge(self, address: str) -> None:
        """See `Home`."""
        with suppress(LoopError):
            self._loop.run_soon(self._charge, address, 1)

    def announce(self, actor: TableActor, event: object) -> None:
        """See `Home`."""
        self._announce(NodeEvent(actor.name, event))

    # ---- what the host calls

    def stop(self, timeout: float) -> list[str]:
        """Ask all to stop, and wait until they have; return the names of those that had not within `timeout` seconds."""
        with self._lock:
            actors = list(self._actors.values())
        ends = [
            (actor.name, actor.actor_ref.stop(block=False)) for actor in actors if actor.actor_ref.is_alive()
        ]
        deadline = time.monotonic() + timeout
        return [name for name, end in ends if not _has_ended(end, deadline)]

    def figures(self) -> NodeFigures:
        """Return what they come to now."""
        with self._lock:
            actors, counts = list(self._actors.values()), Counter(self._counts)
        phases: Counter[Phase] = Counter()
        for actor in actors:
            phases.update(actor.peer_links.phases())
            counts.update(actor.counts)
        return NodeFigures(len(actors), phases, counts)

    def cells(self) -> CellCounts:
        """Return what became of messages, cell by cell, since the start of the host. One actor's own are in its `tally`."""
        with self._lock:
            actors, cells = list(self._actors.values()), self._cells.copy()
        for actor in actors:
            cells.add(actor.tally)
        return cells

    def _let_go_in_child(self) -> None:
        """A forked child has none of them; and a thread that is gone may hold the lock."""
        self._lock = threading.Lock()
        self._actors.clear()


def _has_ended(end: pykka.Future[Any], deadline: float) -> bool:
    try:
        end.get(timeout=max(0.0, deadline - time.monotonic()))
    except pykka.Timeout:
        return False
    return True
