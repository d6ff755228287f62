"""What actors with a handler table, replicas and others, do alike for their handlers: they tell other actors, and log what fails."""

from typing import Any

from drakkar.actors.runtime.futures import brief
from drakkar.actors.runtime.log_lines import Lines, is_rare
from drakkar.handlers.effects import Told
from drakkar.handlers.tally import Tally

__all__ = ["Teller", "log_failure"]


class Teller:
    """Tells other actors what handlers have for them. For the thread of the node's loop."""

    def __init__(self, node: object, lines: Lines) -> None:
        """`node` is named in log lines."""
        self._node, self._lines = node, lines
        self.undelivered = 0
        """Messages that were dropped: the actors have ended, or their inboxes are full."""

    def tell(self, told: Told) -> None:
        """Tell one actor one message. Nothing that is wrong with it is the node's."""
        try:
            told.ref.tell(told.message)
        except Exception as error:  # noqa: BLE001  # another actor's, whatever it is
            self.undelivered += 1
            if is_rare(self.undelivered):
                self._lines.warning(
                    "%s could not tell %s a message of a handler (%d by now): %s",
                    self._node,
                    brief(told.ref),
                    self.undelivered,
                    brief(error),
                )


def log_failure(node: object, tally: Tally, type_: Any, error: BaseException, lines: Lines) -> None:
    """Log that a handler of this type has failed, and that its node goes on. A peer may cause it for ever."""
    failures = sum(count for (_, failed), count in tally.failed.items() if failed == type_)
    if is_rare(failures):
        lines.error(
            "%s goes on, though its handler of %s has failed (%d times by now)",
            node,
            type_,
            failures,
            exc_info=error,
        )
