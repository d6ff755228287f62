"""Plans of simulations: drawn from a seed, written as JSON, and reduced to what makes them fail."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from random import Random
from typing import Any, ClassVar, Final, Protocol, Self, TypeVar

__all__ = [
    "CALM",
    "LANES",
    "REQUEST_TIMEOUT_S",
    "TICK",
    "UNITS_PER_SECOND",
    "WHERE_IT_CRASHES",
    "Event",
    "Plan",
    "Schedule",
    "Weather",
    "draw_faults",
    "draw_plan",
    "shrink",
    "simpler_plans",
]

TICK: Final = 10
"""Units of simulated time between two ticks of a correct clock."""
UNITS_PER_SECOND: Final = 10 * TICK
REQUEST_TIMEOUT_S: Final = 2.0
"""Simulated seconds after which a request of the simulation is given up."""


@dataclass(frozen=True, slots=True)
class Weather:
    """Faults of the network and the disks that are possible during the whole run."""

    loss: float = 0.0
    """The probability that a message is lost."""
    duplication: float = 0.0
    """The probability that a message arrives twice."""
    delay: float = 0.0
    """The probability that a message takes several ticks instead of a fraction of one."""
    reordering: bool = False
    """Messages may overtake one another on a link."""
    disk: int = 2
    """The longest time that a write takes, in units of time."""
    apply: int = 2
    """The longest time that a state machine takes for one batch, in units of time."""
    linger: int = 0
    """The longest time that a host holds back received messages, in units of time. It then gets several at once."""
    slow_reads: float = 0.0
    """The probability that old entries have to be read from the disk. Then no entry stays in memory that need not."""
    lanes: int = 0
    """The bytes of bulk messages that may wait at a host for each of its peers; 0: none waits, they leave at once."""
    lane_time: int = 1
    """The longest time that a bulk message takes to leave its lane, in units of time."""
    order_time: int = 0
    """The longest time that a TIMEOUT_NOW waits at its sender, in units of time, until its transfer is over."""
    hand_back: float = 0.0
    """The probability that a lane hands a message back, as if another shard had taken the room."""
    evidence: int = 0
    """The longest time until another host is told that a process is gone, in units of time; 0: none is ever told."""

    @property
    def calm(self) -> "Weather":
        """The same lanes, without faults."""
        return replace(CALM, lanes=self.lanes)


CALM: Final = Weather()


@dataclass(frozen=True, slots=True)
class Event:
    """A call of a method of the simulation, at a moment in units of time."""

    time: int
    kind: str
    args: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(map(repr, self.args))})"


@dataclass(frozen=True, slots=True)
class Plan:
    """One schedule. The same plan always gives the same run. It can be written as JSON."""

    seed: int = 0
    """The seed of everything that is not planned: delays, losses, election timeouts."""
    voters: int = 3
    observers: int = 0
    witnesses: int = 0
    ticks: int = 60
    """How many ticks faults last. After that everything is repaired."""
    weather: Weather = CALM
    config: Mapping[str, Any] = field(default_factory=dict)
    """Options of `RaftConfig` for all replicas."""
    events: tuple[Event, ...] = ()
    begins_led: bool = False
    """There are no faults until the first leader is elected. The times of the events count from then on."""
    ends_with_majority: bool = False
    """After the repair, only a majority runs at first, if a majority is enough."""
    homes: bool = False
    """Hosts have homes, and each replica says where it lives."""
    loses_quorum: bool = False
    """The disks of a quorum may be emptied at once. Then nothing is promised but that a wrong answer ends in time."""
    ends_with_full_disks: bool = False
    """When it has recovered, some disks are full for a while, the leader's among them; then all."""
    differing: Mapping[str, Any] = field(default_factory=dict)
    """Options of `RaftConfig` that differ at some replicas."""
    differ: int = 0
    """At which, by its bits: bit r is that of replica r."""

    @property
    def certified(self) -> bool:
        """Whether hosts prove their addresses by certificates. It does not matter where no stranger speaks."""
        return self.seed // 2 % 2 == 0

    def to_json(self) -> dict[str, Any]:
        """Return the plan as lists, mappings, strings and numbers."""
        return asdict(self) | {
            "events": [[event.time, event.kind, list(event.args)] for event in self.events]
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the plan that `to_json` described."""
        events = tuple(Event(time, kind, tuple(args)) for time, kind, args in data["events"])
        return cls(**{**data, "weather": Weather(**data["weather"]), "events": events})

    def __str__(self) -> str:
        """Return one line for the options that differ from the defaults, and one for each event."""
        roles = f"{self.voters} voters, {self.observers} observers, {self.witnesses} witnesses"
        weather = ", ".join(
            f"{name}={value}" for name, value in asdict(self.weather).items() if value != getattr(CALM, name)
        )
        config = ", ".join(f"{name}={value!r}" for name, value in self.config.items())
        ticks = f"{self.ticks} ticks"
        ticks += " after the first election" * self.begins_led + ", then a majority" * self.ends_with_majority
        ticks += ", then full disks" * self.ends_with_full_disks + ", with homes" * self.homes
        if self.differ:
            others = ", ".join(f"{name}={value!r}" for name, value in self.differing.items())
            config += f"; at {self.differ:#b}: {others}"
        head = f"seed {self.seed}; {roles}; {ticks}; weather: {weather or 'calm'}; {config}"
        return "\n".join([head, *(f"{event.time:6} {event}" for event in self.events)])


_LENGTHS: Final = (4, 4, 10, 10, 30)
"""How many election timeouts faults last."""


def draw_plan(
    seed: int,
    *,
    voters: int | None = None,
    observers: int | None = None,
    witnesses: int | None = None,
    ticks: int | None = None,
    config: Mapping[str, Any] | None = None,
    membership: bool = True,
    homes: bool | None = None,
    loses_quorum: bool | None = None,
    evidence: int | None = None,
) -> Plan:
    """Return the plan of a seed. Arguments that are given are used as they are; all else is drawn.

    Without `membership` the plan has no membership changes, without `homes` no faults of whole disks. Given
    `evidence` is never mistaken, and given options are those of all replicas.
    """
    random = Random(f"plan {seed}")
    elections = random.choice(_LENGTHS)
    options = _draw_config(random, config or {}) | dict(config or {})
    if not options["check_quorum"] and "read_mode" not in (config or {}):
        options.pop("read_mode", None)  # lease reads need CheckQuorum
    drawn = (
        random.choice((1, 2, 3, 3, 3, 3, 4, 5, 5)),
        random.choice((0, 0, 0, 1)),
        random.choice((0, 0, 0, 0, 1)),
    )
    plan = Plan(
        seed,
        voters=drawn[0] if voters is None else voters,
        observers=drawn[1] if observers is None else observers,
        witnesses=drawn[2] if witnesses is None else witnesses,
        ticks=elections * options["election_ticks"] if ticks is None else ticks,
        weather=_draw_weather(random),
        config=options,
        begins_led=random.random() < 0.75,
        ends_with_majority=random.random() < 0.5,
    )
    plan = replace(plan, events=draw_faults(random, plan, membership=membership))
    slow_reads = Random(f"slow reads {seed}").choice((0.0, 0.0, 0.3, 1.0))
    plan = replace(plan, weather=replace(plan.weather, slow_reads=slow_reads))
    plan = _with_full_disks(Random(f"full disks {seed}"), plan)
    plan = _with_lanes(Random(f"lanes {seed}"), plan, config or {})
    notices = {"commit_notices": Random(f"commit notices {seed}").random() < 0.75}
    order_time = Random(f"waiting orders {seed}").choice((0, 0, 2 * TICK, 10 * TICK))
    plan = replace(plan, weather=replace(plan.weather, order_time=order_time))
    drawn_bytes = {"snapshot_bytes": Random(f"snapshot bytes {seed}").choice((0, 0, 0, 200))}
    strict = {"strict_membership_changes": Random(f"strict changes {seed}").random() < 0.5}
    plan = replace(plan, config={**notices, **drawn_bytes, **strict, **plan.config})
    plan = _with_evidence(Random(f"evidence {seed}"), plan, evidence)
    random = Random(f"homes {seed}")
    drawn_homes, drawn_loss = random.random() < 0.4, random.random() < 0.15
    if not (drawn_homes if homes is None else homes):
        return plan if config else _with_differing_options(Random(f"differing {seed}"), plan)
    plan = _with_homes(random, plan, loses_quorum=drawn_loss if loses_quorum is None else loses_quorum)
    return _with_strangers(Random(f"strangers {seed}"), plan)


def _draw_config(random: Random, given: Mapping[str, Any]) -> dict[str, Any]:
    check_quorum = random.random() < 0.75
    options: dict[str, Any] = {
        "election_ticks": random.choice((5, 5, 5, 10)),
        "pre_vote": random.random() < 0.75,
        "check_quorum": check_quorum,
    }
    rare: list[tuple[float, str, Any]] = [
        (0.5, "batch_append", True),
        (0.2, "max_message_bytes", random.choice((0, 64))),
        (0.2, "max_inflight_messages", random.choice((1, 2))),
        (0.15, "max_uncommitted_bytes", 64),
        (0.15, "apply_unpersisted_limit", 3),
        (0.2, "skip_commit_broadcast", True),
        (0.1, "max_apply_bytes", 1),
        (0.1, "ordered_config_change", True),
        (0.1, "disable_proposal_forwarding", True),
        (0.1, "max_in_mem_log_bytes", 200),
        (0.1, "max_pending_reads", 2),
        (0.3, "snapshot_entries", random.choice((2, 5))),
        (0.2, "compaction_overhead", 2),
        (0.05, "quiesce", True),
    ]
    options.update({name: value for chance, name, value in rare if random.random() < chance})
    if not given.keys() & {"max_message_bytes", "max_inflight_bytes"} and random.random() < 0.1:
        options["max_message_bytes"], options["max_inflight_bytes"] = 64, random.choice((64, 200))
    if check_quorum and random.random() < 0.2:
        options["read_mode"] = "lease"
    return options


def _draw_weather(random: Random) -> Weather:
    return Weather(
        loss=random.choice((0.0, 0.0, 0.02, 0.1, 0.3)),
        duplication=random.choice((0.0, 0.0, 0.05, 0.3)),
        delay=random.choice((0.0, 0.0, 0.02, 0.2)),
        reordering=random.random() < 0.5,
        disk=random.choice((1, 2, 5, 15)),
        apply=random.choice((1, 2, 5, 15)),
        linger=random.choice((0, 3, 8)),
    )


_FAULTS: Final = (
    (6, "crash"),
    (3, "isolate"),
    (3, "partition"),
    (2, "cut"),
    (2, "flap"),
    (2, "heal"),
    (2, "freeze"),
    (2, "clock"),
    (2, "slow_disk"),
    (2, "slow_apply"),
    (3, "crash_in_write"),
    (2, "strand"),
    (2, "burst"),
    (1, "request_snapshot"),
    (1, "forget_leader"),
    (4, "transfer"),
    (5, "snapshot"),
    (1, "query"),
)
"""The kinds of events, each with its weight in the draw."""


def draw_faults(random: Random, plan: Plan, *, membership: bool = True) -> tuple[Event, ...]:
    """Return random events that fit the plan, ordered by time."""
    kinds = [(weight, kind) for weight, kind in _FAULTS if not _spoils_leases(plan, kind)]
    if membership:
        kinds.append((6, "change"))
    weights = [weight for weight, _ in kinds]
    events = []
    for _ in range(max(1, plan.ticks // random.choice((2, 4, 8)))):
        time = random.randrange(plan.ticks * TICK)
        kind = random.choices(kinds, weights)[0][1]
        events.append(Event(time, kind, _DRAW[kind](random, plan)))
    return tuple(sorted(events, key=lambda event: event.time))


def _with_full_disks(random: Random, plan: Plan) -> Plan:
    """Add full disks to every third plan."""
    if random.randrange(3):
        return plan
    events = [
        Event(
            random.randrange(plan.ticks * TICK),
            "full_disk",
            (_any_replica(random, plan), random.choice((0, 0, 50, 200)), _duration(random, 40)),
        )
        for _ in range(max(1, plan.ticks // random.choice((5, 10, 20))))
    ]
    return replace(
        plan,
        events=tuple(sorted((*plan.events, *events), key=lambda event: event.time)),
        ends_with_full_disks=True,
    )


_EVIDENCE: Final = (0, 1, 5, 20, 60)
"""The longest times until hosts are told that a process is gone, from which one is drawn."""


def _with_evidence(random: Random, plan: Plan, given: int | None) -> Plan:
    """Let hosts be told that processes are gone in most plans, and by mistake in some of these."""
    evidence = random.choice(_EVIDENCE) if given is None else given
    plan = replace(plan, weather=replace(plan.weather, evidence=evidence))
    if given is not None or not evidence or random.random() < 0.6:
        return plan
    events = [
        Event(random.randrange(plan.ticks * TICK), "false_evidence", _DRAW["false_evidence"](random, plan))
        for _ in range(max(1, plan.ticks // random.choice((2, 5, 10))))
    ]
    events.extend(plan.events)
    events.sort(key=lambda event: event.time)
    return replace(plan, events=tuple(events))


_RESTARTS: Final = frozenset({"crash", "crash_in_write"})


def _with_differing_options(random: Random, plan: Plan) -> Plan:
    """Let some replicas of half of the plans with lease reads have none, or no CheckQuorum either.

    No replica restarts then: those that have no lease reads would not know that they have forgotten a lease.
    """
    if not _by_lease(plan) or random.random() < 0.5:
        return plan
    differing: dict[str, Any] = {"read_mode": "safe"}
    if plan.config["pre_vote"] and random.random() < 0.5:
        differing["check_quorum"] = False
    events = tuple(event for event in plan.events if event.kind not in _RESTARTS)
    return replace(plan, differing=differing, differ=random.randrange(1 << 6), events=events)


_DISK_FAULTS: Final = (
    (5, "wipe"),
    (2, "wipe_several"),
    (2, "restore"),
    (1, "swap"),
    (1, "clone"),
)
"""The kinds of events that exchange whole disks, each with its weight in the draw."""


def _with_homes(random: Random, plan: Plan, *, loses_quorum: bool) -> Plan:
    """Let hosts have homes, and add faults of whole disks to most plans."""
    plan = replace(plan, homes=True, loses_quorum=loses_quorum)
    if random.random() < 0.2 and not loses_quorum:
        return plan
    weights = [weight for weight, _ in _DISK_FAULTS]
    events = list(plan.events)
    for _ in range(max(1, plan.ticks // random.choice((5, 10, 20)))):
        time = random.randrange(plan.ticks * TICK)
        kind = random.choices(_DISK_FAULTS, weights)[0][1]
        events.append(Event(time, kind, _DRAW[kind](random, plan)))
    if loses_quorum:
        time = random.randrange(plan.ticks * TICK)
        events.append(Event(time, "wipe_quorum", _DRAW["wipe_quorum"](random, plan)))
    events.sort(key=lambda event: event.time)
    return replace(plan, events=tuple(events))


def _with_strangers(random: Random, plan: Plan) -> Plan:
    """Let strangers speak to the replicas in every other plan that has homes."""
    if random.random() < 0.5:
        return plan
    events = [
        Event(random.randrange(plan.ticks * TICK), "stranger", _DRAW["stranger"](random, plan))
        for _ in range(max(1, plan.ticks // random.choice((2, 5, 10))))
    ]
    events.extend(plan.events)
    events.sort(key=lambda event: event.time)
    return replace(plan, events=tuple(events))


LANES: Final = (0, 60, 200, 1000)
"""The sizes of lanes in bytes, from which one is drawn."""


def _with_lanes(random: Random, plan: Plan, given: Mapping[str, Any]) -> Plan:
    """Let bulk messages wait in lanes in some plans, and connections be lost in most of these.

    A lane that is empty takes several messages of `max_message_bytes` together, so it holds at least as many.
    """
    lanes = random.choice(LANES)
    weather = replace(
        plan.weather,
        lanes=lanes,
        lane_time=random.choice((1, 3, 10, 30)),
        hand_back=random.choice((0.0, 0.0, 0.05, 0.3)),
    )
    if not lanes:
        return plan
    options = dict(plan.config)
    if "max_message_bytes" not in given:
        options["max_message_bytes"] = min(options.get("max_message_bytes", lanes), lanes)
    events = [
        Event(
            random.randrange(plan.ticks * TICK),
            *random.choice(
                (
                    ("disconnect", (_any_replica(random, plan), _any_replica(random, plan))),
                    (
                        "clog",
                        (_any_replica(random, plan), _any_replica(random, plan), _duration(random, 20)),
                    ),
                )
            ),
        )
        for _ in range(plan.ticks // random.choice((2, 5, plan.ticks + 1)))
    ]
    events.extend(plan.events)
    events.sort(key=lambda event: event.time)
    return replace(plan, weather=weather, config=options, events=tuple(events))


def _spoils_leases(plan: Plan, kind: str) -> bool:
    """Lease reads assume that processes do not pause."""
    return _by_lease(plan) and kind == "freeze"


def _by_lease(plan: Plan) -> bool:
    return plan.config.get("read_mode") == "lease"


def _any_replica(random: Random, plan: Plan) -> int:
    """Return a random replica; 0 stands for the leader at the time of the event."""
    return random.randrange(plan.voters + plan.observers + plan.witnesses + 1)


def _duration(random: Random, max_ticks: int) -> int:
    """Return a random duration in units of time."""
    return random.randrange(1, max_ticks * TICK)


WHERE_IT_CRASHES: Final = (
    "nothing is kept",
    "a part is kept",
    "all is kept",
    "nothing is sent",
    "a part is sent",
)
"""How far a write comes when the host crashes in it. "sent" is about the messages that wait for the write."""


_DRAW: Final[Mapping[str, Callable[[Random, Plan], tuple[Any, ...]]]] = {
    # The replica, the part of the current write that is kept, and the time until the restart.
    "crash": lambda random, plan: (
        _any_replica(random, plan),
        random.choice((0.0, 0.0, 0.5, 1.0)),
        _duration(random, 20),
    ),
    "crash_in_write": lambda random, plan: (
        _any_replica(random, plan),
        random.choice((1, 1, 2, 4)),
        random.choice(WHERE_IT_CRASHES),
        _duration(random, 20),
    ),
    "isolate": lambda random, plan: (_any_replica(random, plan), _duration(random, 30)),
    "partition": lambda random, _plan: (random.randrange(1 << 8), _duration(random, 30)),
    "cut": lambda random, plan: (
        _any_replica(random, plan),
        _any_replica(random, plan),
        random.random() < 0.5,
        _duration(random, 30),
    ),
    "flap": lambda random, plan: (
        _any_replica(random, plan),
        _any_replica(random, plan),
        _duration(random, 2),
        _duration(random, 20),
    ),
    "heal": lambda _random, _plan: (),
    "freeze": lambda random, plan: (_any_replica(random, plan), _duration(random, 15)),
    # Leases assume clocks that differ by a tenth at most.
    "clock": lambda random, plan: (
        _any_replica(random, plan),
        random.choice((TICK + 1,) if _by_lease(plan) else (3, 5, 20, 40)),
        _duration(random, 20),
    ),
    "slow_disk": lambda random, plan: (
        _any_replica(random, plan),
        random.choice((5, 20, 60)),
        _duration(random, 20),
    ),
    "slow_apply": lambda random, plan: (
        _any_replica(random, plan),
        random.choice((5, 20, 60)),
        _duration(random, 20),
    ),
    "strand": lambda random, plan: (
        _any_replica(random, plan),
        random.choice((5, 20)),
        random.randrange(1, TICK),
        _duration(random, 30),
    ),
    "burst": lambda random, plan: (_any_replica(random, plan), random.choice((2, 5, 20))),
    "transfer": lambda random, plan: (_any_replica(random, plan), _any_replica(random, plan)),
    "snapshot": lambda random, plan: (_any_replica(random, plan), random.choice((0, 0, 3))),
    "request_snapshot": lambda random, plan: (_any_replica(random, plan),),
    "forget_leader": lambda random, plan: (_any_replica(random, plan),),
    "false_evidence": lambda random, plan: (_any_replica(random, plan), random.randrange(1 << 8)),
    "query": lambda random, plan: (
        _any_replica(random, plan),
        random.randrange(1, 10),
        random.randrange(1, 10),
    ),
    "wipe": lambda random, plan: (_any_replica(random, plan), _duration(random, 10)),
    "wipe_several": lambda random, _plan: (random.randrange(1 << 8), _duration(random, 10)),
    "wipe_quorum": lambda random, _plan: (random.randrange(1 << 8), _duration(random, 10)),
    "restore": lambda random, plan: (
        _any_replica(random, plan),
        random.randrange(2 * TICK, 20 * TICK),
        _duration(random, 20),
    ),
    "swap": lambda random, plan: (
        _any_replica(random, plan),
        _any_replica(random, plan),
        _duration(random, 10),
    ),
    "clone": lambda random, plan: (_any_replica(random, plan),),
    # Who hears it, as whom a stranger speaks, and the seed of what it says.
    "stranger": lambda random, plan: (
        _any_replica(random, plan),
        _any_replica(random, plan),
        random.randrange(1 << 16),
    ),
    "change": lambda random, plan: (_any_replica(random, plan), random.randrange(1 << 16)),
}


# -- shrinking -----------------------------------------------------------------------------------------------------


class Schedule(Protocol):
    """A dataclass with events."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def events(self) -> tuple[Event, ...]:
        """What happens, in order."""
        ...


_Schedule = TypeVar("_Schedule", bound=Schedule)


def shrink(
    plan: _Schedule,
    fails: Callable[[_Schedule], bool],
    simpler: Callable[[_Schedule], Iterable[Callable[[_Schedule], _Schedule]]],
    *,
    max_runs: int = 400,
) -> _Schedule:
    """Return the smallest plan found that still fails: fewer events, and simpler in each of these ways: less time, fewer faults.

    `fails` runs a plan and returns whether it fails in the same way; it is called at most `max_runs` times. Events are
    removed by delta debugging (Zeller and Hildebrandt).
    """
    runs = 0

    def tried(smaller: _Schedule) -> bool:
        nonlocal runs
        runs += 1
        return runs <= max_runs and fails(smaller)

    before = None
    while plan != before and runs < max_runs:
        before = plan
        plan = _fewer_events(plan, tried)
        for way in simpler(plan):
            candidate = way(plan)
            if candidate != plan and tried(candidate):
                plan = candidate
    return plan


def _fewer_events(plan: _Schedule, fails: Callable[[_Schedule], bool]) -> _Schedule:
    size = max(len(plan.events) // 2, 1)
    while size:
        at = 0
        while at < len(plan.events):
            fewer = replace(plan, events=plan.events[:at] + plan.events[at + size :])
            if fails(fewer):
                plan = fewer
            else:
                at += size
        size //= 2
    return plan


def simpler_plans(plan: Plan) -> Iterable[Callable[[Plan], Plan]]:
    """Yield functions that take a part of the faults and options out of a plan."""
    last = plan.events[-1].time // TICK + 1 if plan.events else 1
    yield lambda plan: replace(plan, ticks=min(plan.ticks, last))
    for name in asdict(CALM):
        yield lambda plan, name=name: replace(  # type: ignore[misc]
            plan, weather=replace(plan.weather, **{name: getattr(CALM, name)})
        )
    yield lambda plan: replace(plan, differing={}, differ=0)
    for name in ("begins_led", "ends_with_majority", "ends_with_full_disks", "homes"):
        yield lambda plan, name=name: replace(plan, **{name: False})  # type: ignore[misc]
    for role in ("observers", "witnesses"):
        yield lambda plan, role=role: replace(plan, **{role: 0})  # type: ignore[misc]
    for option in plan.config:
        yield lambda plan, option=option: replace(  # type: ignore[misc]
            plan, config={name: value for name, value in plan.config.items() if name != option}
        )
