"""What handlers ask their node to do beside Raft's messages, done after the batch: see `NodeServices` in `handlers`."""

import logging
from collections.abc import Callable

from drakkar.actors.node.asks import Asks
from drakkar.actors.node.events import ExtensionEvent
from drakkar.actors.runtime.futures import brief
from drakkar.actors.runtime.log_lines import Lines
from drakkar.handlers.effects import Told
from drakkar.handlers.messages import MessageType
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
        failed: Callable[[MessageType, Exception], None],
        lines: Lines,
    ) -> None:
        """`failed` is called for a handler of the application's own type that has failed, to log it."""
        self._raft, self._asks, self._announce, self._failed = raft, asks, announce, failed
        self._lines = lines
        raft.effects.on_many = self.run_waiting
        self.undelivered = 0
        """Messages for other actors that were dropped: they have ended, or their inboxes are full."""

    def run(self, ready: Ready) -> None:
        """Do, once, what handlers have asked for."""
        if ready.tells:
            tells, ready.tells = ready.tells, ()
            for told in tells:
                self._tell(told)
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
                self._failed(failure.message.type, failure.error)

    def run_waiting(self) -> None:
        """Do the same with what no `Ready` hands out now: none of it is to be saved.

        The log store is full, or in the middle of a batch that is applied there are many already.
        """
        if self._raft.effects.waiting:
            ready = Ready()
            self._raft.effects.hand_out(ready)
            self.run(ready)

    def _tell(self, told: Told) -> None:
        try:
            told.ref.tell(told.message)
        except Exception as error:  # noqa: BLE001  # another actor's, whatever it is
            self.undelivered += 1
            # The first one, and then ever more seldom.
            rare = self.undelivered & (self.undelivered - 1) == 0
            self._lines.log(
                logging.WARNING if rare else logging.DEBUG,
                "a handler's message to another actor is dropped (%d by now): %s",
                self.undelivered,
                brief(error),
            )
