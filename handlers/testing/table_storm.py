"""Runs nodes without Raft under random faults, for `TableCluster.storm`: schedules, drawn from seeds, and their runs."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final, TypeAlias

from drakkar.handlers.messages import PEER_NEWS, Message
from drakkar.handlers.table_node import NodeReady
from drakkar.handlers.testing.plan import Event
from drakkar.handlers.testing.storm_parts import Parts, run_or_reduce
from drakkar.handlers.testing.table_network import Member, Peers, TableNetwork, Tables

__all__ = ["Nodes", "TablePlan", "draw_table_plan", "run_table_storm"]

Nodes: TypeAlias = tuple[Sequence[str], Tables, Any, Peers]
"""What nodes are made of: names, tables, first states, and who knows whom."""

MAX_SEARCH: Final = 10
"""Ticks within which a node finds a peer that is there."""
MAX_MESSAGES: Final = 2_000
"""Messages that nodes may exchange in one tick."""


@dataclass(frozen=True, slots=True)
class TablePlan:
    """One schedule. The same plan always gives the same run. Times are in ticks."""

    seed: int = 0
    """The seed of everything that is not planned."""
    ticks: int = 30
    """How long faults last. After that everything is repaired."""
    calm: int = 50
    """How long it goes on then."""
    loss: float = 0.0
    """The probability that a message is lost."""
    delay: float = 0.0
    """The probability that a link carries no more in a tick, before each message."""
    news: int = 1
    """The longest time until a node is told that a peer is up, or down."""
    events: tuple[Event, ...] = ()

    def __str__(self) -> str:
        """Return a line for the faults of the whole time, and one for each event."""
        weather = f"loss={self.loss}, delay={self.delay}, news={self.news}"
        head = f"seed {self.seed}; {self.ticks} ticks with {weather}, then {self.calm} without faults"
        return "\n".join([head, *(f"{event.time:6} {event}" for event in self.events)])


_FAULTS: Final = ((5, "crash"), (3, "pause"), (3, "isolate"), (3, "cut"), (2, "partition"), (2, "clock"))
"""The kinds of faults, each with its weight in the draw."""


def draw_table_plan(
    seed: int, names: Sequence[str], *, ticks: int | None = None, calm: int = 50
) -> TablePlan:
    """Return the plan of a seed, for nodes of these names."""
    random = Random(f"table plan {seed}")
    plan = TablePlan(
        seed,
        ticks=ticks or random.choice((10, 30, 30, 100)),
        calm=calm,
        loss=random.choice((0.0, 0.0, 0.02, 0.1, 0.3)),
        delay=random.choice((0.0, 0.2, 0.5, 0.8)),
        news=random.choice((1, 3, 10, 40)),
    )
    weights = [weight for weight, _ in _FAULTS]
    faults = random.choices(_FAULTS, weights, k=max(1, plan.ticks // random.choice((3, 6, 12))))
    events = [Event(random.randrange(plan.ticks), kind, _draw(random, kind, names)) for _, kind in faults]
    events += [
        Event(random.randrange(plan.ticks), "traffic", (random.choice(names),)) for _ in range(plan.ticks)
    ]
    return replace(plan, events=tuple(sorted(events, key=lambda event: event.time)))


def _draw(random: Random, kind: str, names: Sequence[str]) -> tuple[Any, ...]:
    """Draw the arguments of a fault. The last one is how long it lasts."""
    time = random.randint(1, 20)
    if kind == "cut":
        return random.choice(names), random.choice(names), random.random() < 0.5, time
    if kind == "partition":
        return random.randrange(1 << len(names)), time
    if kind == "clock":
        return random.choice(names), random.choice((0.3, 0.5, 2.0)), time
    return random.choice(names), time


def _simpler(plan: TablePlan) -> Iterable[Callable[[TablePlan], TablePlan]]:
    """Yield functions that take a part of the faults out of a plan."""
    last = plan.events[-1].time + 1 if plan.events else 1
    yield lambda plan: replace(plan, ticks=min(plan.ticks, last))
    yield lambda plan: replace(plan, calm=1)
    yield lambda plan: replace(plan, loss=0.0)
    yield lambda plan: replace(plan, delay=0.0)
    yield lambda plan: replace(plan, news=1)


def run_table_storm(plan: TablePlan, nodes: Nodes, parts: Parts) -> Counter[str]:
    """Run a plan; return how often each fault happened. See `TableCluster.storm`."""
    return run_or_reduce(plan, lambda tried: _Run(tried, nodes, parts), _simpler).happened


class _Network(TableNetwork):
    """Nodes and links as in a `TableCluster`. All that happens is noted, and the user's invariants are checked."""

    def __init__(self, plan: TablePlan, nodes: Nodes, parts: Parts) -> None:
        names, handlers, state, peers = nodes
        super().__init__(names, handlers, state, peers=peers, seed=plan.seed)
        self.parts = parts
        self.news = plan.news
        self.now = 0
        self.happened: Counter[str] = Counter()
        self.trace: deque[tuple[int, Any]] = deque(maxlen=2_000)

    def cut_only(self, cuts: Counter[tuple[str, str]]) -> None:
        """Let these links be cut that are counted, and no others."""
        self._cut = set(+cuts)

    def exchange(self, delay: float) -> None:
        """Let links carry messages, until each carries no more in this tick."""
        silent: set[tuple[str, str]] = set()
        arrived = 0
        while links := [link for link in self._deliverable() if link not in silent]:
            link = self.random.choice(links)
            if self.random.random() < delay:
                silent.add(link)
                continue
            arrived += self._deliver(link)
            assert arrived <= MAX_MESSAGES, (
                f"{MAX_MESSAGES} messages were exchanged in one tick; next: {self.network[0]}"
            )

    def tick(self, name: str) -> None:
        """Let a tick of a node pass."""
        self._tick(self.nodes[name])

    def traffic(self, name: str) -> None:
        """Call the user's `traffic` with a node, if it runs."""
        member = self.nodes[name]
        if member.runs and self.parts.traffic is not None:
            self.parts.traffic(member.node, self.random)
            self._stepped(member)

    def _step(self, member: Member, message: Message) -> None:
        self.trace.append((self.now, message))
        self.happened[f"{message.type} came"] += message.type in PEER_NEWS
        super()._step(member, message)

    def _stepped(self, member: Member) -> None:
        super()._stepped(member)
        if self.parts.check is not None:
            running = {name: other.node for name, other in self.nodes.items() if other.runs}
            self.parts.check_after_step(running)

    def _handed_out(self, member: Member, ready: NodeReady) -> None:
        super()._handed_out(member, ready)
        self.parts.see_effects(member.node, ready)

    def _lose(self, message: Message) -> None:
        super()._lose(message)
        self.trace.append((self.now, f"lost: {message}"))
        self.happened["a message was lost"] += 1

    def _news_after(self, *, up: bool) -> int:
        return self.random.randint(1, min(self.news, MAX_SEARCH) if up else self.news)


class _Run:
    """One run of a plan. Its public methods are the events that a plan can name, and what `run_or_reduce` asks for."""

    def __init__(self, plan: TablePlan, nodes: Nodes, parts: Parts) -> None:
        self._plan = plan
        self._parts = parts.begin()
        self._network = _Network(plan, nodes, self._parts)
        self._random = self._network.random
        self._names = list(self._network.nodes)
        self._speeds: dict[str, float] = {}
        self._cuts: Counter[tuple[str, str]] = Counter()
        """How many faults cut each link now."""
        self._ends: list[tuple[int, Callable[[], None]]] = []
        """What ends a fault, and when."""

    @property
    def happened(self) -> Counter[str]:
        """How often each fault happened."""
        return self._network.happened

    def run(self) -> None:
        """Run the plan, repair everything, and go on for a while."""
        network, plan = self._network, self._plan
        network.faults(loss=plan.loss)
        events = deque(plan.events)
        while network.now < plan.ticks:
            self._end_faults()
            while events and events[0].time <= network.now:
                self._happen(events.popleft())
            self._pass_tick(plan.delay)
        self._repair()
        while network.now < plan.ticks + plan.calm:
            self._pass_tick(0.0)
        self._parts.check_at_the_end({name: member.node for name, member in network.nodes.items()})

    def story(self, lines: int = 120) -> str:
        """Return what has happened last, one event a line."""
        return "\n".join(f"{time:6} {what}" for time, what in [*self._network.trace][-lines:])

    # -- time -----------------------------------------------------------------------------------------------------

    def _pass_tick(self, delay: float) -> None:
        network = self._network
        for name in self._random.sample(self._names, len(self._names)):
            speed = self._speeds.get(name, 1.0)
            ticks = int(speed) + (self._random.random() < speed % 1)
            for _ in range(ticks if network.nodes[name].runs else 0):
                network.tick(name)
            if self._random.random() < 1 / len(self._names):
                network.exchange(delay)
        network.exchange(delay)
        network.now += 1

    def _happen(self, event: Event) -> None:
        self._note(event)
        self.happened[event.kind] += 1
        getattr(self, event.kind)(*event.args)

    def _note(self, what: Any) -> None:
        self._network.trace.append((self._network.now, what))

    def _later(self, time: int, end: Callable[[], None]) -> None:
        self._ends.append((self._network.now + time, end))

    def _end_faults(self) -> None:
        due = [end for time, end in self._ends if time <= self._network.now]
        self._ends = [(time, end) for time, end in self._ends if time > self._network.now]
        for end in due:
            end()

    def _repair(self) -> None:
        network = self._network
        self._note("all is repaired")
        self._ends.clear()
        self._speeds.clear()
        network.heal()
        network.news = 1
        for name, member in network.nodes.items():
            if member.up:
                network.resume(name)
            else:
                network.restart(name)

    # -- events of a plan -----------------------------------------------------------------------------------------

    def traffic(self, name: str) -> None:
        """Call the user's `traffic` with a node."""
        self._network.traffic(name)

    def crash(self, name: str, time: int) -> None:
        """Stop a node, and start it again later."""
        network, member = self._network, self._network.nodes[name]
        network.crash(name)

        def start_again() -> None:
            if not member.up:
                self._note(f"{name} starts again")
                network.restart(name)

        self._later(time, start_again)

    def pause(self, name: str, time: int) -> None:
        """Let a node stand still for some time."""
        self._network.pause(name)
        self._later(time, lambda: self._network.resume(name))

    def clock(self, name: str, speed: float, time: int) -> None:
        """Let the clock of a node run fast or slowly for some time."""
        self._speeds[name] = speed
        self._later(time, lambda: self._speeds.__setitem__(name, 1.0))

    def isolate(self, name: str, time: int) -> None:
        """Cut all links of a node for some time."""
        others = [other for other in self._names if other != name]
        self._cut([link for other in others for link in ((name, other), (other, name))], time)

    def cut(self, one: str, other: str, both: bool, time: int) -> None:
        """Cut the link between two nodes, in one direction or in both, for some time."""
        self._cut([(one, other), (other, one)][: 1 + both], time)

    def partition(self, side: int, time: int) -> None:
        """Separate the nodes into two groups, by the bits of `side`, for some time."""
        one = [name for at, name in enumerate(self._names) if side >> at & 1]
        rest = [name for name in self._names if name not in one]
        self._cut([link for a in one for b in rest for link in ((a, b), (b, a))], time)

    def _cut(self, links: list[tuple[str, str]], time: int) -> None:
        self._cuts.update(links)
        self._network.cut_only(self._cuts)

        def repair() -> None:
            self._cuts.subtract(links)
            self._network.cut_only(self._cuts)

        self._later(time, repair)
