"""`TableCluster`: scenarios and storms of nodes without Raft."""

from collections import Counter
from collections.abc import Callable, Iterable
from random import Random
from typing import Any, Final

from drakkar.handlers.errors import ActorFailed
from drakkar.handlers.messages import Message
from drakkar.handlers.table_node import NodeReady, TableNode
from drakkar.handlers.testing.effects import check_own
from drakkar.handlers.testing.storm_parts import Parts
from drakkar.handlers.testing.table_network import Member, Peers, TableNetwork, Tables
from drakkar.handlers.testing.table_storm import draw_table_plan, run_table_storm

__all__ = ["TableCluster"]

DOWN_AFTER: Final = 3
"""Ticks after which a node is told that a peer is out of reach, unless another number is set."""


class TableCluster(TableNetwork):
    """Nodes without Raft, a network that you can break, and a clock that you advance.

        cluster = TableCluster(["a", "b", "c"], table, State.IDLE)
        cluster.tell("a", Message(BEGIN))
        cluster.crash("b")
        cluster.tick(3)                     # the others are told by PEER_DOWN
        assert cluster["a"].state is State.DONE

    Messages between two nodes arrive at most once and in the order in which they were sent, as those of table actors do. At the
    start all nodes are told of their peers by PEER_UP. When a peer is out of reach, since it has crashed, is paused, or a link is
    cut, a node is told by PEER_DOWN, `down_after` of its ticks later; until then, and after that, what it sends there is lost.
    When the peer is back, it is told by PEER_UP in its next tick, and messages arrive again. A node that restarts is a new one: its
    peers are told that the old one is down first.

    `deliver` delivers messages until the network is quiet; `step`, `tell`, `ask`, `tick` and similar methods do so too, unless the
    cluster was made with `auto_deliver=False`. `Extension.check` is called after each step. What handlers ask their host to do is
    kept, and not done: see `nodes[name].tells`, `.events` and `.answers`. The error of a handler is raised at once.

    Not thread-safe.
    """

    def __init__(
        self,
        names: Iterable[str],
        handlers: Tables,
        state: Any,
        *,
        peers: Peers = None,
        seed: int = 0,
        auto_deliver: bool = True,
        down_after: int = DOWN_AFTER,
    ) -> None:
        """Start a node of each name. `handlers` and `state` are the same for all, or mappings by name.

        `peers` says who knows whom, by name; without it all know one another. `seed` is the seed of all randomness.

        Raises `ConfigError` for a peer that is no node, and as `TableNode` does.
        """
        names = tuple(names)
        super().__init__(names, handlers, state, peers=peers, seed=seed)
        self.auto_deliver = auto_deliver
        self.down_after = down_after
        self._made_of = names, handlers, state, peers
        for member in self.nodes.values():
            for peer in member.known:
                self._tell_up(member, peer)
        self._settle()

    # -- events -------------------------------------------------------------------------------------------------

    def step(self, name: str, message: Message) -> None:
        """Pass a message to a node, as its host would, if it runs."""
        if self.nodes[name].runs:
            self._step(self.nodes[name], message)
        self._settle()

    def tell(self, name: str, message: Message) -> None:
        """Tell a node a message of your own type. Raises the error of its handler, and `ActorFailed` if it is down or paused."""
        check_own(message)
        self._step(self._running(name), message)
        self._settle()

    def ask(self, name: str, message: Message) -> Any:
        """Ask a node a message of your own type; return the answer, or raise the error of its handler.

        Returns `LATER` if there is no answer when all messages are delivered; it appears in `nodes[name].answers`. Raises
        `RequestDropped` if no handler takes the message, and `ActorFailed` if the node is down or paused.
        """
        member = self._running(name)

        def settle() -> None:
            self._stepped(member)
            self._settle()

        return member.ask(member.node, message, settle)

    def _running(self, name: str) -> Member:
        member = self.nodes[name]
        if not member.runs:
            raise ActorFailed(f"{name} is {'paused' if member.up else 'down'}, and answers nothing")
        return member

    def tick(self, ticks: int = 1, *names: str) -> None:
        """Let so many ticks pass, for all nodes or for those given. They are also told what has become of their peers."""
        for _ in range(ticks):
            for name in names or tuple(self.nodes):
                if self.nodes[name].runs:
                    self._tick(self.nodes[name])
            self._settle()

    def resume(self, name: str) -> None:
        """Let a paused node go on."""
        super().resume(name)
        self._settle()

    def report_down(self, peer: str, *told: str) -> None:
        """Tell nodes at once that a peer is out of reach: those given, or all that know it. It may be a mistake."""
        for name in told or tuple(self.nodes):
            member = self.nodes[name]
            if member.runs and peer in member.known and not member.known[peer].gone:
                self._tell_down(member, peer)
        self._settle()

    def deliver(self, limit: int = 100_000) -> int:
        """Deliver messages until the network is quiet; return how many arrived.

        Raises `AssertionError` after `limit` messages, since two nodes may answer each other for ever.
        """
        self._collect()
        arrived = 0
        while links := self._deliverable():
            arrived += self._deliver(self._choose(links))
            assert arrived <= limit, (
                f"the network is not quiet after {limit} messages; next: {self.network[:1]}"
            )
        return arrived

    def _settle(self) -> None:
        if self.auto_deliver:
            self.deliver()
        else:
            self._collect()

    def _news_after(self, *, up: bool) -> int:
        return 1 if up else self.down_after

    # -- random faults ------------------------------------------------------------------------------------------

    def storm(
        self,
        seeds: Iterable[int] = range(100),
        *,
        traffic: Callable[[TableNode, Random], None] | None = None,
        check: Callable[[dict[str, TableNode]], None] | None = None,
        settled: Callable[[dict[str, TableNode]], None] | None = None,
        effects: Callable[[TableNode, NodeReady], None] | None = None,
        user: Callable[[], Any] | None = None,
        ticks: int | None = None,
        calm: int = 50,
    ) -> Counter[str]:
        """Run nodes like these under random faults, a schedule for each seed, and check them after every step.

        Messages are lost and delayed, and overtake those of other links. Nodes crash, start again in their first state, and are
        paused; their clocks run fast or slowly. Links are cut in one direction or in both. What has become of a peer is told at
        once, late, or not before it has changed again. Faults last for `ticks`, or as long as each seed draws. Then all is
        repaired, and it goes on for `calm` ticks.

        `traffic(node, random)` is called at random times with a node that runs, to step or send your messages; in the calm it
        is not. `check(nodes)` is called after every step with the nodes that run, by name, and `settled(nodes)` once, with all, when
        the calm is over. `effects(node, ready)` is called with what a node has handed out for other actors, subscribers and who
        asked: `ready.tells`, `.events` and `.answers`. Each raises `AssertionError` if your invariant is broken, as
        `Extension.check` does. Where they are to remember what has happened in a schedule, they are the methods of a class: each run
        makes a `user` of its own.

        Returns how often each fault happened.

        Raises `Violation` for the first schedule that breaks an invariant, or in which a handler fails. Its text has the smallest
        schedule found that still fails, and what happened. This cluster itself does not change.
        """
        parts = Parts(traffic, check, settled, effects, user)
        names, handlers, state, peers = self._made_of
        happened: Counter[str] = Counter()
        for seed in seeds:
            plan = draw_table_plan(seed, names, ticks=ticks, calm=calm)
            happened += run_table_storm(plan, (names, handlers, state, peers), parts)
        return happened
