"""What is measured: each row is a system, how it is set up, and a load."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

from tests.benchmarks.failover import Failovers
from tests.benchmarks.flushes import FlushCheck
from tests.benchmarks.load import SMALL, Client, Figures, Load
from tests.benchmarks.systems import (
    CALL_SYSTEMS,
    COMPILED,
    DRAGONBOAT,
    DRAKKAR,
    ETCD,
    FLUSHED,
    SYSTEMS,
    TRIO_ACTOR,
    UNFLUSHED,
    module_of,
)


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One line of the table. Equal to itself alone."""

    system: str
    """As in `SYSTEMS` or `CALL_SYSTEMS`."""
    in_flight: int
    what: str = ""
    """What is special about it; empty for the plain ones, which are compared over the number in flight."""
    group: str = ""
    """What the option `--rows` calls it, and what its counterparts of other systems have in common; see `name`."""
    client: Client = "calling"
    batch: int = 1
    size: int = SMALL
    read: bool = False
    at_leader: bool = True
    everywhere: bool = False
    """Each host has this load at the same time, for the shards that it leads."""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The group, or the number in flight."""
        return self.group or str(self.in_flight)

    @property
    def module(self) -> str:
        """What a host calls the system."""
        return module_of(self.system)

    def load(self, seconds: float, *, moments: bool = False) -> Load:
        """The load, for so many seconds."""
        return Load(self.in_flight, seconds, self.batch, self.client, self.size, self.read, moments)


# Tuned for the best result of each load. By default PySyncObj sends every 0.1 s, or with `appendEntriesUseBatch` off
# a message for each command, which is best for one at a time and ten times slower for many.
_AT_ONCE: Final = {"appendEntriesUseBatch": False, "appendEntriesPeriod": 0.01, "autoTickPeriod": 0.001}
_IN_BATCHES: Final = {"appendEntriesPeriod": 0.002, "autoTickPeriod": 0.002}

SHARDS: Final = 300
"""Of the row with many shards."""

_COMPLETE: Final = (DRAKKAR, COMPILED, DRAGONBOAT, ETCD)
"""Those that have all of the rows."""


def _plain(in_flight: int) -> list[Row]:
    client: Client = "waiting" if in_flight == 1 else "calling"
    return [Row(system, in_flight, client=client) for system in _COMPLETE]


def _pysyncobj(in_flight: int, client: Client, tuning: Mapping[str, Any]) -> list[Row]:
    return [
        Row(system, in_flight, client=client, options={"flush": system == FLUSHED, **tuning})
        for system in (FLUSHED, UNFLUSHED)
    ]


def _alike(group: str, in_flight: int, what: str, **load: Any) -> list[Row]:
    return [Row(system, in_flight, what, group, **load) for system in _COMPLETE]


def _many_shards(*systems: str) -> list[Row]:
    what = f"a host, {SHARDS} shards active"
    options = {"shards": SHARDS}
    return [Row(system, 1000, what, "shards", everywhere=True, options=options) for system in systems]


# Those to be compared stand together, so that all other load of the machine meets them alike.
ROWS: Final = (
    *_plain(1),
    *_pysyncobj(1, "waiting", _AT_ONCE),
    *_plain(64),
    *_pysyncobj(64, "calling", _IN_BATCHES),
    *_plain(1000),
    *_pysyncobj(1000, "calling", _IN_BATCHES),
    Row(DRAKKAR, 1000, "from another thread", "thread", client="threaded"),
    Row(DRAKKAR, 1000, "applied on a worker", "worker", options={"apply_on": "worker"}),
    *_plain(4000),
    Row(DRAKKAR, 1000, "ten lists of 100", "lists", batch=100),
    Row(COMPILED, 1000, "ten lists of 100", "lists", batch=100),
    Row(DRAGONBOAT, 1000, "ten clients, 100 each", "lists", batch=100),
    Row(ETCD, 1000, "ten Txns of 100 puts", "lists", batch=100),
    *_alike("reads", 1000, "linearizable reads", read=True),
    *_alike("1KiB", 64, "1 KiB", size=1 << 10),
    *_alike("64KiB", 32, "64 KiB", size=64 << 10),
    *_alike("1MiB", 8, "1 MiB", size=1 << 20),
    *_alike("follower", 64, "through a follower", at_leader=False),
    *_many_shards(DRAKKAR, COMPILED, DRAGONBOAT),
)

ASK: Final = "ask"
ASKS: Final = "asks"

CALLS: Final = (
    *(Row(system, 1, group=ASK, client="waiting") for system in CALL_SYSTEMS),
    *(Row(system, 100, group=ASKS) for system in CALL_SYSTEMS),
)
"""Questions to an actor of another process, and the answers."""

FAILOVER: Final = "failover"
FLUSHES: Final = "flushes"


@dataclass(frozen=True, slots=True)
class Killed:
    """Whose leaders are killed, and what they lead."""

    system: str
    options: Mapping[str, Any] = field(default_factory=dict)


MANY: Final = f"{DRAKKAR}, {SHARDS} shards"
MIDDLE: Final = f"{MANY}, the middle one"
"""Of the same kills: when half of the shards were there again, where `MANY` is when all were."""

FAILOVERS: Final[Mapping[str, Killed]] = {
    DRAKKAR: Killed(DRAKKAR),
    DRAGONBOAT: Killed(DRAGONBOAT),
    ETCD: Killed(ETCD),
    MANY: Killed(DRAKKAR, {"shards": SHARDS}),
}
"""By title."""

GROUPS: Final = tuple(dict.fromkeys([*(row.name for row in (*ROWS, *CALLS)), FAILOVER, FLUSHES]))
"""What `--rows` chooses from."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one round brought for one row."""

    figures: Figures
    cpu: float
    """CPU time of all processes for a command, in microseconds."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The medians of all rounds of a row, and the sum of the errors."""

    rate: float
    p50: float
    p99: float
    cpu: float
    errors: int

    @classmethod
    def of(cls, rounds: list[Round]) -> "Summary":
        """Sum up; there must be a round."""
        return cls(
            median(each.figures.rate for each in rounds),
            median(each.figures.p50 for each in rounds),
            median(each.figures.p99 for each in rounds),
            median(each.cpu for each in rounds),
            sum(each.figures.errors for each in rounds),
        )


@dataclass(slots=True)
class Results:
    """All rounds of all rows."""

    rounds: dict[Row, list[Round]] = field(default_factory=dict)
    failovers: dict[str, Failovers] = field(default_factory=dict)
    """By title, those of all rounds together."""
    calls: dict[Row, list[Round]] = field(default_factory=dict)
    """All rounds of the rows of calls."""
    flushes: dict[str, FlushCheck] = field(default_factory=dict)
    """By system."""
    skipped: list[str] = field(default_factory=list)
    """What could not be measured here, and why."""
    repeated: list[str] = field(default_factory=list)
    """Why rounds had to be repeated."""
    failed: list[str] = field(default_factory=list)
    """What was left out because it failed each time, and why it failed last."""

    @property
    def lacking_flushes(self) -> list[str]:
        """The durable systems that answered a command which was not flushed on a majority."""
        return [
            name
            for name, check in self.flushes.items()
            if SYSTEMS[name].durable and check.flushed < check.commands
        ]

    def add(self, row: Row, outcome: Round) -> None:
        """Add a round."""
        self.rounds.setdefault(row, []).append(outcome)

    def summary(self, row: Row) -> Summary:
        """The medians of a row."""
        return Summary.of(self.rounds[row])

    def ratio(self, row: Row, system: str) -> float | None:
        """How many times as fast as another system in the same round, the median; None where there is no such row."""
        for other, theirs in self.rounds.items():
            if (other.system, other.name) == (system, row.name):
                pairs = zip(self.rounds[row], theirs, strict=False)
                return median(mine.figures.rate / its.figures.rate for mine, its in pairs)
        return None

    def call_ratio(self, row: Row) -> float | None:
        """How many times a row's rate a `TrioActor` reaches in the same round, the median; None for its own rows."""
        if row.system == TRIO_ACTOR:
            return None
        for ours, rounds in self.calls.items():
            if (ours.system, ours.name) == (TRIO_ACTOR, row.name):
                pairs = zip(rounds, self.calls[row], strict=False)
                return median(mine.figures.rate / its.figures.rate for mine, its in pairs)
        return None

    def drakkar_ratio(self, row: Row) -> float | None:
        """How many times a row's rate Drakkar reaches in the same round, the median; None for its own rows."""
        if row.system == DRAKKAR:
            return None
        ours = next((each for each in self.rounds if (each.system, each.name) == (DRAKKAR, row.name)), None)
        return None if ours is None else self.ratio(ours, row.system)
