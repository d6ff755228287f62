"""What handlers ask their node to do beside Raft's messages, done after the batch: see `NodeServices` in `handlers`."""

from collections.abc import Callable

from drakkar.actors.node.asks import Asks
from drakkar.actors.node.events import ExtensionEvent
from drakkar.actors.runtime.handling import Teller, log_failure
from drakkar.actors.runtime.log_lines import Lines
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.ready import Ready

__all__ = ["EffectRunner"]


class EffectRunner:
    """Executes the effects of one node. All methods are for the loop's thread."""

    def __init__(
        self,
        raft: Raft,
        asks: Asks,
        *,
        announce: Callable[[object], None],
        lines: Lines,
    ) -> None:
        """`announce` tells those who subscribed to the host's events."""
        self._raft, self._asks, self._announce, self._lines = raft, asks, announce, lines
        raft.effects.on_many = self.run_waiting
        self.teller = Teller("it", lines)

    def run(self, ready: Ready) -> None:
        """Do, once, what handlers have asked for."""
        if ready.tells:
            tells, ready.tells = ready.tells, ()
            for told in tells:
                self.teller.tell(told)
        if ready.events:
            events, ready.events = ready.events, ()
            for event in events:
                self._announce(ExtensionEvent(self._raft.config.shard_id, self._raft.id, event))
        if ready.answers:
            answers, ready.answers = ready.answers, ()
            self._asks.answered(answers)
        if ready.failures:
            failures, ready.failures = ready.failures, ()
            for failure in failures:
                log_failure("it", self._raft.tally, failure.message.type, failure.error, self._lines)

    def run_waiting(self) -> None:
        """Do the same with what no `Ready` hands out now: none of it is to be saved.

        The log store is full, or in the middle of a batch that is applied there are many already.
        """
        if self._raft.effects.waiting:
            ready = Ready()
            self._raft.effects.hand_out(ready)
            self.run(ready)
