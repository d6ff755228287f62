"""`Tally`: what became of the messages and entries of one node."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from drakkar.handlers.cells import Never

__all__ = ["Tally"]


class Tally:
    """Outcomes of dispatched messages, and of deliveries: counters, each by state and message type, unless it says otherwise."""

    __slots__ = (
        "broken",
        "delivered",
        "dropped",
        "failed",
        "handled",
        "ignored",
        "impossible",
        "on_impossible",
        "swallowed",
    )

    def __init__(self, on_impossible: Callable[[Any, Any, Never], None] | None = None) -> None:
        """`on_impossible(state, type, cell)` is called for the first message that hits each `Never` cell."""
        self.handled: Counter[tuple[Any, Any]] = Counter()
        """How often each handler was called."""
        self.failed: Counter[tuple[Any, Any]] = Counter()
        """Calls of handlers that raised, and of guards for a message of this type. Also methods of extensions that were to take an
        entry, to save or to load: by state and name, such as "Audit.save"."""
        self.broken: BaseException | None = None
        """The first exception after which the node must end, though a caller may have caught it: that of a guard, of a
        handler of a built-in type, of a handler that is `fatal`, or of a method that takes entries, saves or loads."""
        self.ignored: Counter[tuple[Any, Any]] = Counter()
        """Messages that hit an `Ignore` cell, or whose type has no row in the table."""
        self.impossible: Counter[tuple[Any, Any]] = Counter()
        """Messages that hit a `Never` cell: late ones, just after a change of state, or the sign of a bug."""
        self.swallowed: Counter[tuple[Any, Any]] = Counter()
        """Messages that a guard swallowed."""
        self.delivered: Counter[tuple[Any, Any]] = Counter()
        """Committed entries that were delivered to extensions, by state and kind; one that two methods take counts twice."""
        self.dropped = 0
        """Messages that no handler took: those that were ignored, impossible or swallowed."""
        self.on_impossible = on_impossible

    def note_broken(self, error: BaseException, state: Any, what: Any) -> None:
        """Note an exception after which the node must end. Only the first is kept, and counted: others may come of it."""
        if self.broken is None:
            self.broken = error
            self.failed[state, what] += 1

    def count_impossible(self, state: Any, type_: Any, cell: Never) -> None:
        """Count a message that hit a `Never` cell. Only the first is reported, since a faulty peer may go on for ever."""
        self.dropped += 1
        self.impossible[state, type_] += 1
        if self.on_impossible is not None and self.impossible[state, type_] == 1:
            self.on_impossible(state, type_, cell)
