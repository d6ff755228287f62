"""`Supervisor`: an actor that starts others, starts them again when they end, and stops them in order.

What follows when a child ends is decided in `children`. This file does it: starts in threads of their own, since they may
block; stops by messages, each with a deadline; and nothing here waits.
"""

import time
from collections.abc import Callable, Iterable
from functools import partial
from types import TracebackType
from typing import Any, ClassVar, Final

import pykka
from drakkar.actors.runtime.actor import TrioActor
from drakkar.actors.runtime.alarm import Alarm
from drakkar.actors.runtime.child_specs import ChildSpec, Limits, Strategy
from drakkar.actors.runtime.children import ChildPhase, ChildStatus, Family, TooManyRestarts
from drakkar.actors.runtime.futures import ActorFuture, AnswerLater, brief
from drakkar.actors.runtime.hands import Hands
from drakkar.actors.runtime.monitor import ActorDied
from drakkar.handlers.checks import check_timeout, check_type
from drakkar.handlers.errors import ConfigError, DrakkarError

__all__ = ["ChildPhase", "ChildSpec", "ChildStatus", "Publish", "Supervisor", "TooManyRestarts"]

Publish = Callable[[str, pykka.ActorRef[Any]], object]
"""Makes an actor known under a name; it may block, and is called again with each new incarnation.

It may return a function that takes this back, in any thread and without waiting: called where an incarnation is left behind."""

DEFAULT_TIMEOUT_S: Final = 30.0


class Supervisor(TrioActor):
    """Starts child actors in order, starts them again when they fail, and stops them in the reverse order.

        supervisor = Supervisor.start(
            [ChildSpec("ledger", Ledger, publish="ledger"), ChildSpec("teller", Teller, args=(7,))],
            strategy="rest_for_one",
            publish=host.publish,
        ).proxy()
        supervisor.ready().get(timeout=10)
        ledger = supervisor.ref_of("ledger").get()   # its present incarnation

    The children are pykka actors of any kind, supervisors among them; `ChildSpec` says how each is started. When one ends,
    the strategy says which are restarted: "one_for_one" that one, "all_for_one" all, "rest_for_one" that one and those
    after it. The others of these are stopped first, the newest before the older ones, and then all start in order.

    Each restart comes after a wait, from `first_wait` to `last_wait` seconds, which doubles with each failure in a row. If
    there are more than `max_restarts` within `window` seconds, of all children together, the supervisor stops its children
    and fails with `TooManyRestarts`; a supervisor above it restarts it then. A start that raises, or takes too long, is a
    failure like any other.

    It never blocks its loop, even where a child hangs. A start that hangs and an actor that does not stop are left behind after
    their time, logged and counted in `abandoned`; beside more than 16 of them it fails itself. A start that comes too
    late is undone.

    Its methods are called by its proxy, from any thread; those that wait answer when it is done, or after their timeout.
    A ref or a proxy of a child belongs to one incarnation, and raises `pykka.ActorDeadError` after its end: get the next
    by `ref_of`, or by the name under which it is published.
    """

    usual_stop_s: ClassVar[float] = 60.0
    """Seconds that a supervisor above this one grants it to stop, unless the spec says otherwise."""

    def __init__(
        self,
        children: Iterable[ChildSpec] = (),
        *,
        strategy: Strategy = "one_for_one",
        max_restarts: int = 5,
        window: float = 30.0,
        first_wait: float = 0.1,
        last_wait: float = 5.0,
        publish: Publish | None = None,
        **kwargs: Any,
    ) -> None:
        """`publish(name, ref)` makes a child known that has a `publish` name, each time it has started: `host.publish`, say.

        Where it returns a function, as that does, an incarnation that is left behind loses its name by it, to the next one.
        The other options are explained above. Raises `ConfigError`.
        """
        super().__init__(**kwargs)
        if publish is not None and not callable(publish):
            raise ConfigError(
                "publish", brief(publish), "must be a function of a name and a ref, as host.publish is"
            )
        self._publish = publish
        limits = Limits(max_restarts, window, first_wait, last_wait)
        self._family = Family(self, strategy, limits, _Hands(self))
        self._alarm = Alarm(self.actor_loop, self.actor_inbox.wake)
        self._asked_to_stop: list[pykka.Future[Any]] = []
        self._ends = False
        """All children have ended, and it is about to."""
        check_type("children", children, Iterable, "a list of ChildSpecs")
        for spec in children:
            self._add(spec)

    def _add(self, spec: ChildSpec, asker: AnswerLater[Any] | None = None, deadline: float = 0.0) -> None:
        check_type("spec", spec, ChildSpec, "a ChildSpec")
        if spec.publish is not None and self._publish is None:
            raise ConfigError(
                "publish",
                spec.publish,
                f"needs a supervisor that publishes: give {type(self).__name__} publish=host.publish",
            )
        if asker is None:
            self._family.add(spec)
        else:
            self._family.add(spec, asker, deadline)

    # -- for its proxy ------------------------------------------------------------------------------------------

    @property
    def abandoned(self) -> int:
        """Starts and actors so far that were left behind, since they did not end in time."""
        return self._family.abandoned

    def children(self) -> dict[str, ChildStatus]:
        """Return where each child stands, by name, in the order in which they start."""
        return {name: child.status for name, child in self._family.children.items()}

    def ref_of(self, name: str, timeout: float = DEFAULT_TIMEOUT_S) -> AnswerLater[pykka.ActorRef[Any]]:
        """Find the present incarnation of a child; while it is being restarted, the next one, for `timeout` seconds.

        Raises `ConfigError` for an unknown name, `pykka.ActorDeadError` for a child that has ended for good, `pykka.Timeout`,
        and `SystemBusy` if too many wait already.
        """
        asker: AnswerLater[pykka.ActorRef[Any]] = AnswerLater()
        self._family.ask_ref(name, asker, _deadline(timeout))
        return asker

    def ready(self, timeout: float = DEFAULT_TIMEOUT_S) -> AnswerLater[bool]:
        """Wait until all children are up that are to be. Raises `pykka.Timeout`, and `pykka.ActorDeadError` if it stops."""
        asker: AnswerLater[bool] = AnswerLater()
        self._family.ask_ready(asker, _deadline(timeout))
        return asker

    def start_child(
        self, spec: ChildSpec, timeout: float = DEFAULT_TIMEOUT_S
    ) -> AnswerLater[pykka.ActorRef[Any]]:
        """Add a child behind the others, and start it; return its ref once it is up.

        If this first start fails, its error is raised, the child is not kept, and no limit counts it. After `timeout`
        seconds it raises `pykka.Timeout`, and the child is kept. Raises `ConfigError` for a name that is taken, and
        `SystemBusy` where there are a thousand children.
        """
        asker: AnswerLater[pykka.ActorRef[Any]] = AnswerLater()
        self._add(spec, asker, _deadline(timeout))
        return asker

    def stop_child(self, name: str) -> AnswerLater[None]:
        """Stop a child for good, and forget it; return when it has ended, or was left behind.

        The others go on with any strategy. Raises `ConfigError` for an unknown name.
        """
        stopper: AnswerLater[None] = AnswerLater()
        self._family.remove(name, stopper)
        return stopper

    def restart_child(
        self, name: str, timeout: float = DEFAULT_TIMEOUT_S
    ) -> AnswerLater[pykka.ActorRef[Any]]:
        """Stop a child, with those that the strategy says, and start them again at once; return its new ref.

        No limit counts it. It also starts one that had ended for good. Raises as `ref_of`.
        """
        asker: AnswerLater[pykka.ActorRef[Any]] = AnswerLater()
        self._family.restart(name, asker, _deadline(timeout))
        return asker

    # -- its turns ----------------------------------------------------------------------------------------------

    def on_receive(self, message: Any) -> Any:
        """Hear of the end of a child. All else is logged as unexpected."""
        if isinstance(message, ActorDied):
            self._family.on_died(message.ref, message.reason, time.monotonic())
            return None
        return super().on_receive(message)

    def outlives(self, error: Exception) -> bool:
        """Go on after a call that was refused, though its caller does not hear of it."""
        refused = isinstance(error, DrakkarError | pykka.ActorDeadError)
        if refused:
            self.actor_loop.lines.warning("%s refused what had no asker: %s", self, brief(error))
        return refused

    def after_batch(self) -> None:
        """Do what is next, now that all is heard."""
        now = time.monotonic()
        self._family.proceed(now)
        self._alarm.set(self._family.next_time(now))
        if self._family.over and not self._ends:
            self._ends = True
            # Not in this turn, which may be about to handle another request to stop.
            self.actor_loop.run_soon(self._finish)

    # -- its end ------------------------------------------------------------------------------------------------

    def _stop(self, reply_to: pykka.Future[Any] | None = None) -> None:
        """Begin to stop: the children first, the newest before the others. It ends when they have."""
        if reply_to is not None:
            self._asked_to_stop.append(reply_to)
        self._family.end()
        self.actor_inbox.wake()

    def _finish(self) -> None:
        if self.actor_inbox.closed:  # it has failed meanwhile
            return
        if self._family.failure is not None:
            self._actor_fail(self._family.failure)
        else:
            super()._stop()

    def _actor_publish_end(self, reason: BaseException | None, stops: list[pykka.Future[Any]]) -> None:
        asked, self._asked_to_stop = self._asked_to_stop, []
        super()._actor_publish_end(reason, [*stops, *asked])

    def on_stop(self) -> None:
        """Leave nothing behind that would wake it."""
        self._alarm.cancel()

    def on_failure(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Stop the children, if it fails in the midst of its work."""
        self._alarm.cancel()
        self._family.let_go(pykka.ActorDeadError(f"{self} has failed: {brief(error)}"))


class _Hands(Hands[ChildSpec]):
    def __init__(self, supervisor: Supervisor) -> None:
        super().__init__(supervisor)
        self._supervisor = supervisor
        self._take_back: dict[str, Callable[[], object]] = {}
        """By the urns of children that are published."""

    def start(self, spec: ChildSpec, /) -> ActorFuture[pykka.ActorRef[Any]]:
        publish = partial(self._publish, spec.publish) if spec.publish is not None else None
        return self.launch(spec.make, f"child {spec.name!r}", spec.start_timeout, publish)

    def _publish(self, name: str, ref: pykka.ActorRef[Any]) -> None:
        """In the thread of a start."""
        publish = self._supervisor._publish
        assert publish is not None, "it was checked when the child was added"
        take_back = publish(name, ref)
        if callable(take_back):
            self._take_back[ref.actor_urn] = take_back

    def leave(self, ref: pykka.ActorRef[Any]) -> None:
        take_back = self._take_back.pop(ref.actor_urn, None)
        if take_back is None:
            return
        try:
            take_back()
        except Exception:  # noqa: BLE001  # its user's
            self._supervisor.actor_loop.lines.exception("the name of %s could not be taken back", ref)

    def unwatch(self, ref: pykka.ActorRef[Any]) -> None:
        super().unwatch(ref)
        self._take_back.pop(ref.actor_urn, None)


def _deadline(timeout: float) -> float:
    check_timeout(timeout)
    return time.monotonic() + timeout
