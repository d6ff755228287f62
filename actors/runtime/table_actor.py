"""`TableActor`: an actor that does what a handler table says, for states and message types of any protocol."""

from enum import IntEnum
from typing import Any

from drakkar.actors.runtime.actor import TrioActor
from drakkar.actors.runtime.futures import brief
from drakkar.handlers.errors import ConfigError
from drakkar.handlers.messages import MessageType
from drakkar.handlers.table import HandlerTable, Never, Tally

__all__ = ["TableActor"]


class TableActor(TrioActor):
    """An actor whose answer to a message is the cell `handlers[state][message.type]`.

        class Light(IntEnum):
            RED = 0
            GREEN = 1

        class TrafficLight(TableActor):
            handlers = table      # see `HandlerTable` for how to fill it
            state = Light.RED

        light = TrafficLight.start()
        light.tell(Message(PRESS))

    A message's type is a `MessageType`, or a member of an `IntEnum` of yours if its messages stay in this process.

    The table and the first state are attributes of the class, or are given to `start(handlers=…, state=…)`. A cell's
    handler is called as `handler(actor, message)`, may set `actor.state`, and what it returns answers an `ask`. Guards
    run before it. `tally` counts all messages that have a type. Where no handler runs, the answer is None.

    The table is not copied: give each actor `table.copy()` if actors change theirs.

    Raises, in the thread that starts it, `ConfigError` if the table or the state is missing, or the state is not one of
    the table's, and `HandlerTableError` if `table.check()` refuses the table.
    """

    handlers: HandlerTable
    """The table. Change it before the start, or in the loop's thread, so in a handler."""

    state: Any
    """The state that the actor is in: one of `handlers.states`."""

    def __init__(
        self, *args: Any, handlers: HandlerTable | None = None, state: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if handlers is not None:
            self.handlers = handlers
        if state is not None:
            self.state = state
        self.tally = Tally(self._actor_warn)
        """What became of the messages that have a type, by state and type."""
        self._actor_check_table()

    def _actor_check_table(self) -> None:
        name = type(self).__name__
        table = getattr(self, "handlers", None)
        if not isinstance(table, HandlerTable):
            raise ConfigError(
                f"{name}.handlers", brief(table), "a HandlerTable, in the class or given to start()"
            )
        if not table.has_state(getattr(self, "state", None)):
            known = ", ".join(state.name for state in table.states)
            raise ConfigError(
                f"{name}.state", getattr(self, "state", None), f"must be one of the table's states, {known}"
            )
        table.check()

    def on_receive(self, message: Any) -> Any:
        """Run the guards, then the cell. A message without a type is logged as unexpected."""
        if not isinstance(getattr(message, "type", None), MessageType | IntEnum):
            return super().on_receive(message)
        return self.handlers.dispatch(self, message)

    def _actor_warn(self, state: Any, type_: Any, cell: Never) -> None:
        self.actor_loop.lines.warning(
            "%s got %s in %s, which cannot be: %s", self, type_, state.name, cell.because
        )
