"""What is measured: each row is a system, how it is set up, and a load."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

from tests.benchmarks.load import Client, Figures, Load

FLUSHED: Final = "PySyncObj, flushed"
UNFLUSHED: Final = "PySyncObj, not flushed"

DURABILITY: Final[Mapping[str, str]] = {
    "Drakkar": "each command is on disk (fsync) on two of three hosts before it is answered",
    FLUSHED: (
        "the same, by the benchmark's own doing: it flushes the journal (msync) before a host sends anything; the file "
        "of term and vote is not flushed"
    ),
    UNFLUSHED: (
        "as it ships: each command is in the memory map of a journal file on two of three hosts; it outlives a crash of "
        "the process, but not of the machine"
    ),
}


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One line of the table. Equal to itself alone."""

    system: str
    """As in `DURABILITY`."""
    in_flight: int
    what: str = ""
    """What is special about it; empty for the plain ones, which are compared with those of the other systems."""
    client: Client = "calling"
    batch: int = 1
    at_leader: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def module(self) -> str:
        """What a host calls the system."""
        return "drakkar" if self.system == "Drakkar" else "pysyncobj"

    def load(self, seconds: float) -> Load:
        """The load, for so many seconds."""
        return Load(self.in_flight, seconds, self.batch, self.client)


# Tuned for the best result of each load. By default PySyncObj sends every 0.1 s, or with `appendEntriesUseBatch` off
# a message for each command, which is best for one at a time and ten times slower for many.
_AT_ONCE: Final = {"appendEntriesUseBatch": False, "appendEntriesPeriod": 0.01, "autoTickPeriod": 0.001}
_IN_BATCHES: Final = {"appendEntriesPeriod": 0.002, "autoTickPeriod": 0.002}


def _others(in_flight: int, client: Client, tuning: Mapping[str, Any]) -> list[Row]:
    return [
        Row(system, in_flight, client=client, options={"flush": system == FLUSHED, **tuning})
        for system in (FLUSHED, UNFLUSHED)
    ]


# Those to be compared stand together, so that all other load of the machine meets them alike.
ROWS: Final = (
    Row("Drakkar", 1, client="waiting"),
    *_others(1, "waiting", _AT_ONCE),
    Row("Drakkar", 64),
    *_others(64, "calling", _IN_BATCHES),
    Row("Drakkar", 1000),
    *_others(1000, "calling", _IN_BATCHES),
    Row("Drakkar", 1000, "from another thread", client="threaded"),
    Row("Drakkar", 1000, "applied on a worker", options={"apply_on": "worker"}),
    Row("Drakkar", 1000, "ten lists of 100", batch=100),
    Row("Drakkar", 64, "through a follower", at_leader=False),
)


@dataclass(frozen=True, slots=True)
class Round:
    """What one round brought for one row."""

    figures: Figures
    cpu: float
    """CPU time of all three processes for a command, in microseconds."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The medians of all rounds of a row."""

    rate: float
    p50: float
    p99: float
    cpu: float

    @classmethod
    def of(cls, rounds: list[Round]) -> "Summary":
        """Sum up; there must be a round."""
        return cls(
            median(each.figures.rate for each in rounds),
            median(each.figures.p50 for each in rounds),
            median(each.figures.p99 for each in rounds),
            median(each.cpu for each in rounds),
        )


@dataclass(slots=True)
class Results:
    """All rounds of all rows."""

    rounds: dict[Row, list[Round]] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)
    """Why rounds had to be repeated."""

    def add(self, row: Row, outcome: Round) -> None:
        """Add a round."""
        self.rounds.setdefault(row, []).append(outcome)

    def summary(self, row: Row) -> Summary:
        """The medians of a row."""
        return Summary.of(self.rounds[row])

    def ratio(self, row: Row, system: str) -> float | None:
        """How many times as fast as another system in the same round, the median; None where there is no such row."""
        for other, theirs in self.rounds.items():
            if (other.system, other.in_flight, other.what) == (system, row.in_flight, ""):
                pairs = zip(self.rounds[row], theirs, strict=False)
                return median(mine.figures.rate / its.figures.rate for mine, its in pairs)
        return None
