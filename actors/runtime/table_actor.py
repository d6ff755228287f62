"""`TableActor`: an actor that is a node without Raft: it does what a handler table says, with peers, timers and extensions."""

import functools
import time
from collections import Counter
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, ClassVar, Final

import pykka
from drakkar.actors.runtime.actor import TrioActor
from drakkar.actors.runtime.alarm import Alarm
from drakkar.actors.runtime.futures import AnswerLater, brief, in_full
from drakkar.actors.runtime.handling import Teller, log_failure
from drakkar.actors.runtime.letters import Heard, PeerNews
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.actors.runtime.open_asks import ANSWER_TIMEOUT_S, OpenAsks
from drakkar.actors.runtime.peers import Home, Peers, Place
from drakkar.actors.runtime.ticks import Ticks
from drakkar.handlers.cells import EMPTY
from drakkar.handlers.checks import check_number
from drakkar.handlers.errors import ActorFailed, ConfigError, RequestDropped
from drakkar.handlers.extension import LATER
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.table import HandlerTable, Never
from drakkar.handlers.table_node import NodeReady, TableNode

__all__ = ["EVENTS_DROPPED", "TELLS_DROPPED", "UNASKED", "TableActor"]

DEFAULT_TICK_S: Final = 0.1
TELLS_DROPPED: Final = "tells dropped"
EVENTS_DROPPED: Final = "events dropped, without a host"
UNASKED: Final = "answers that nobody waited for"
_TICK: Final = object()
"""A tick is over, of which a timer may be due."""


class TableActor(TrioActor, TableNode):
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
    handler is called as `handler(actor, message)`, may set `actor.state`, and what it returns answers an `ask`; one that returns
    `LATER` calls `actor.reply(message, answer)` later. Guards run before it. `tally` counts all messages that have a type.
    Where no handler runs, the asker gets `RequestDropped` with the reason.

    Handlers are given the actor itself, which is a `TableNode`: it has `send`, `after`, `every`, `tell`, `publish_event`, `reply` and
    `extension`, and does what they ask for at the end of its turn. With a host it has peers, which may be on others:

        TrafficLight.start(host=host, name="north", peers={"south": "10.0.0.2:7000"})

    It is published under `name`, and a peer is the actor that is published under the peer's name by the host at that address.
    `send(Message(PRESS, to="south"))` reaches it at most once, and in order. The node is told by PEER_UP and PEER_DOWN when a
    peer is found, and lost; see `peers` for what that means.

    An exception of a handler of a type of your own goes to who asked; without an asker it is logged, and counted in `tally.failed`.
    The actor goes on, unless the handler is `fatal`; as with a guard that raises, it ends then.

    The table is not copied: give each actor `table.copy()` if actors change theirs.

    Raises, in the thread that starts it, `ConfigError` if the state is missing or not one of the table's, or a peer cannot be
    one, `HandlerTableError` if the table is missing, `table.check()` refuses it or an extension cannot be made, and with a host
    what `NodeHost.publish` raises, such as `NameTaken`.
    """

    handlers: HandlerTable
    """The table. Change it before the start, or in the loop's thread, so in a handler."""

    state: Any
    """The state that the actor is in: one of `handlers.states`."""

    answer_timeout: ClassVar[float] = ANSWER_TIMEOUT_S
    """Seconds after which an asker gets `OutcomeUnknown`, to whom a handler has returned `LATER` and has not replied."""

    def __init__(
        self,
        *args: Any,
        handlers: HandlerTable | None = None,
        state: Any = None,
        name: str | None = None,
        host: Any = None,
        peers: Mapping[str, Place] | None = None,
        tick_interval: float | None = None,
        loop: TrioLoop | None = None,
        **kwargs: Any,
    ) -> None:
        """Make the node.

        `name`: by which its peers know it; by default that of the class. With `host`, a `NodeHost`, it is published under it.
        `peers`: the address of each peer's host, by name; or its reference, where it lives in this process and has no host.
        `tick_interval`: seconds a tick, from 0.001 to 60; by default that of the host, or 0.1.
        `loop`: by default that of the host.
        """
        home = None if host is None else _home_of(host)
        super().__init__(*args, loop=loop or (None if host is None else host.loop), **kwargs)
        self._actor_home = home
        self._actor_asks = OpenAsks()
        self._actor_is_asked = False
        self._actor_outlived: BaseException | None = None
        """The last exception of a handler that does not end it."""
        self._actor_teller = Teller(self, self.actor_loop.lines)
        self._actor_events_dropped = 0
        if tick_interval is None:
            tick_interval = DEFAULT_TICK_S if host is None else host.tick_interval
        check_number("tick_interval", tick_interval, 0.001, 60.0)
        self._actor_ticks = Ticks(tick_interval)
        self._actor_tick_alarm = Alarm(self.actor_loop, self._actor_ring)
        places = dict(peers or {})
        named = type(self).__name__ if name is None else name
        alarm = functools.partial(Alarm, self.actor_loop)
        self.peer_links = Peers(named, home, self.actor_inbox, alarm, self.actor_loop.lines)
        """Where its peers are, and what was sent to them and dropped."""
        for peer, place in places.items():
            self.peer_links.add(peer, place)
        table: Any = handlers or getattr(self, "handlers", None)
        state = getattr(self, "state", None) if state is None else state
        TableNode.__init__(self, named, table, state, places)
        self.tally.on_impossible = self._actor_warn

    @property
    def counts(self) -> Counter[str]:
        """What it has sent, received and dropped beside what `tally` counts, by name; a copy. From any thread."""
        counts = Counter(dict(self.peer_links.counts))
        counts[TELLS_DROPPED], counts[UNASKED] = self._actor_teller.undelivered, self._actor_asks.unasked
        counts[EVENTS_DROPPED] = self._actor_events_dropped
        return counts

    def table(self) -> str:
        """Return the table as text, with what became of the messages in each cell. By the actor's own proxy: `proxy().table()`."""
        return self.handlers.describe(self.tally)

    def add_peer(self, name: str, place: Place) -> None:
        """Have one more peer: the address of its host, or its reference. In a handler, or by the actor's own proxy.

        For actors of one process, of which the first is started before there is a reference to the second; and for the one
        that takes the place of an actor that has ended, under its name. Raises `ConfigError`.
        """
        known = name in self.peers
        if name == self.name or (known and not self.peer_links.has_ended(name)):
            raise ConfigError(
                "name", name, f"is that of {self.name!r} itself, or of a peer that it has already"
            )
        self.peer_links.add(name, place)
        if not known:
            self.peers += (name,)

    # ---- what comes

    def on_receive(self, message: Any) -> Any:
        """Run the guards, then the cell. A message without a type is logged as unexpected."""
        if type(message) is Heard:
            return self._actor_hear(self.peer_links.open(message))
        if type(message) is PeerNews:
            return self._actor_hear(self.peer_links.take(message))
        if message is _TICK:
            return self._actor_tick()
        if not isinstance(getattr(message, "type", None), MessageType | IntEnum):
            return super().on_receive(message)
        return self._actor_ask(message) if self._actor_is_asked else self._actor_run(message)

    def _actor_ask(self, message: Any) -> Any:
        refusal = self._actor_asks.reason_to_refuse(self)
        if refusal is not None:
            raise refusal
        state = self.state
        answer = self._actor_run(message)
        if isinstance(answer, EMPTY):
            raise RequestDropped(f"{self} did not take {message.type}: {answer.because}")
        if answer is not LATER:
            return answer
        later: AnswerLater[Any] = AnswerLater()
        deadline = time.monotonic() + self.answer_timeout
        self._actor_asks.open(message, later, deadline, self.handlers[state][message.type])
        return later

    def _actor_hear(self, message: Message | None) -> None:
        """A peer has sent a message, or there is news of one."""
        if message is not None:
            self._actor_run(message)

    def _actor_run(self, message: Any) -> Any:
        try:
            return self.step(message)
        except Exception as error:
            self._actor_note_failure(message, error)
            raise

    def _actor_note_failure(self, message: Any, error: Exception) -> None:
        if self.tally.broken is not None:
            return
        self._actor_outlived = error
        if not self._actor_is_asked:
            log_failure(self, self.tally, message.type, error, self.actor_loop.lines)

    def outlives(self, error: Exception) -> bool:
        """Tell whether only a handler of the application's own has failed."""
        outlived, self._actor_outlived = self._actor_outlived, None
        return outlived is error

    def _actor_answer(self, message: Any, reply_to: pykka.Future[Any]) -> None:
        self._actor_is_asked = True
        try:
            super()._actor_answer(message, reply_to)
        finally:
            self._actor_is_asked = False
            self._actor_outlived = None

    # ---- time

    def _actor_take_turn(self, until: float) -> None:
        if not self.actor_inbox.begun:
            self.peer_links.begin()
        if not self.message_timers:
            self.tick_count += self._actor_ticks.idle()
        super()._actor_take_turn(until)

    def _actor_ring(self) -> None:
        self.actor_inbox.reserve()
        self.actor_inbox.complete(_TICK)

    def _actor_tick(self) -> None:
        for _ in range(self._actor_ticks.passed()):
            self.tick()
        self._actor_asks.expire(time.monotonic(), self)

    # ---- what goes

    def _actor_end_batch(self) -> None:
        super()._actor_end_batch()
        broken = self.tally.broken
        if broken is not None:
            raise ActorFailed(f"{self} ends, since a handler failed: {in_full(broken)}") from broken
        if self.has_ready:
            self._actor_hand_out(self.ready())
        if self.message_timers or self._actor_asks:
            self._actor_tick_alarm.set(self._actor_ticks.next)

    def _actor_hand_out(self, ready: NodeReady) -> None:
        """Do what handlers have asked for."""
        for message in ready.messages:
            self.peer_links.send(message)
        for told in ready.tells:
            self._actor_teller.tell(told)
        for event in ready.events:
            self._actor_announce(event)
        for answer in ready.answers:
            self._actor_asks.answer(answer)
        for failure in ready.failures:
            log_failure(self, self.tally, failure.message.type, failure.error, self.actor_loop.lines)

    def _actor_announce(self, event: Any) -> None:
        if self._actor_home is not None:
            self._actor_home.announce(self, event)
            return
        self._actor_events_dropped += 1
        if self._actor_events_dropped == 1:
            self.actor_loop.lines.warning(
                "%s publishes events, and nobody can hear them: start it with host=…", self
            )

    def _actor_warn(self, state: Any, type_: Any, cell: Never) -> None:
        self.actor_loop.lines.warning(
            "%s got %s in %s, which cannot be: %s", self, type_, state.name, cell.because
        )

    # ---- its start and its end

    def _start_actor_loop(self) -> None:
        if self._actor_home is not None:
            try:
                self._actor_home.enter(self)
            except BaseException as error:
                self._actor_leave()
                self._actor_publish_end(error, [])
                raise
        super()._start_actor_loop()

    def _actor_publish_end(self, reason: BaseException | None, stops: list[pykka.Future[Any]]) -> None:
        try:
            self._actor_let_go(reason)
        except BaseException:  # noqa: BLE001  # logged; its end is told all the same
            self.actor_loop.lines.exception("%s could not let all go that it had", self)
        super()._actor_publish_end(reason, stops)

    def _actor_let_go(self, reason: BaseException | None) -> None:
        if reason is None and self.has_ready:
            self._actor_hand_out(self.ready())  # of `on_stop`
        self._actor_tick_alarm.cancel()
        self.peer_links.close()
        self._actor_asks.fail_all(self._actor_cut_off(reason))
        if self._actor_home is not None:
            self._actor_home.leave(self)

    def _actor_cut_off(self, reason: BaseException | None) -> Exception:
        if reason is None:
            return pykka.ActorDeadError(f"{self.actor_ref} stopped before it had answered")
        return self._actor_crashed(reason, "before it had answered")


def _home_of(host: Any) -> Home:
    home = getattr(host, "_table_actors", None)  # nothing for users
    if not isinstance(home, Home):
        raise ConfigError("host", brief(host), "must be a NodeHost, or None")
    return home
