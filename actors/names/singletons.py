"""`Singletons`: actors of which one runs at a time, on the host that leads a shard.

The host that wins the shard's office starts one, and ends it when it loses office. What it does elsewhere carries its fencing
number, the index of a committed entry: the greater number is the later one, even where clocks are wrong and processes stand still.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, Final

import pykka
import trio
from drakkar.actors.names.events import SingletonEnded, SingletonStarted
from drakkar.actors.names.registered import DEFAULT_TIMEOUT_S, GRACE_S
from drakkar.actors.names.shards import Calls, Home
from drakkar.actors.names.singleton_keeper import Declare, Leave, SingletonKeeper, SingletonSpec
from drakkar.actors.names.tenure import SingletonPhase, Tenure
from drakkar.actors.runtime.child_specs import MAX_WAIT_S, check_start
from drakkar.actors.runtime.forks import on_fork
from drakkar.actors.runtime.futures import ActorFuture, forbid_blocking, forbid_waiting, in_full
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.handlers.checks import (
    MAX_SIGNED,
    check_name,
    check_number,
    check_switch,
    check_timeout,
    check_type,
    check_whole,
)
from drakkar.handlers.errors import ConfigError, DrakkarError, LoopError, RequestDropped, SystemBusy

__all__ = [
    "Singleton",
    "SingletonEnded",
    "SingletonPhase",
    "SingletonStarted",
    "SingletonStatus",
    "Singletons",
]

MAX_SINGLETONS: Final = 1_000
"""Singletons of one host: each turn of their keeper looks at all."""
LOOK_INTERVAL_S: Final = 0.1
"""How often `Singleton.ref` looks again where it runs."""


@dataclass(frozen=True, slots=True)
class SingletonStatus:
    """Where a singleton stands on one host."""

    phase: SingletonPhase
    fence: int
    """The number of the last incarnation here that was started; 0: there was none."""
    starts: int
    """How often it was up here."""
    abandoned: int
    """Starts and actors of it here that were left behind, since they did not end in time."""
    reason: BaseException | None
    """With what it failed the last time here."""


class Singleton:
    """A singleton as one host sees it. From any thread."""

    def __init__(self, owner: "Singletons", spec: SingletonSpec, tenure: Tenure) -> None:
        """Made by `NodeHost.singleton`."""
        self._owner, self._spec, self._tenure = owner, spec, tenure
        self.name = spec.name
        self.shard_id = spec.shard_id

    def __repr__(self) -> str:
        return f"<Singleton {self.name!r} of shard {self.shard_id}>"

    @property
    def status(self) -> SingletonStatus:
        """Where it stands on this host."""
        tenure = self._tenure
        return SingletonStatus(tenure.phase, tenure.fence, tenure.starts, tenure.abandoned, tenure.reason)

    def where(self) -> str | None:
        """Return the address of the host that leads the shard, as far as this host knows, and so runs it, or soon will.

        None while no leader is known here, and where this host has no replica of the shard. Never waits.
        """
        if self._tenure.phase is SingletonPhase.UP:
            return self._owner.home.address
        try:
            status = self._owner.home.replica(self.shard_id).status()
        except ConfigError:
            return None
        return status.addresses.get(status.leader_id)

    def ref(self, *, timeout: float = DEFAULT_TIMEOUT_S, block: bool = True) -> Any:
        """Return the ref of the actor, wherever it runs; with `block=False` a future of it. Waits until there is one.

        The ref is of one incarnation: when its asks fail, get the next one. Raises `RequestDropped` after `timeout` seconds.
        """
        check_switch("block", block)
        check_timeout(timeout)
        if block:
            forbid_blocking("ref()", "ref(block=False)")
        found: ActorFuture[pykka.ActorRef[Any]] = ActorFuture()
        self._owner.loop.spawn(self._find, found, timeout, name=f"find the singleton {self.name!r}")
        return found.get(timeout=timeout + GRACE_S) if block else found

    async def _find(self, found: ActorFuture[pykka.ActorRef[Any]], seconds: float) -> None:
        until = time.monotonic() + seconds
        why = "no leader of its shard is known here"
        try:
            while time.monotonic() < until:
                ref, why = await self._look(until - time.monotonic(), why)
                if ref is not None:
                    found.try_set(ref)
                    return
                await trio.sleep(min(LOOK_INTERVAL_S, max(0.0, until - time.monotonic())))
            found.try_fail(RequestDropped(f"{self!r} was not found within {seconds} seconds: {why}"))
        finally:
            found.try_fail(LoopError(f"the loop of this host ended before {self!r} was found"))

    async def _look(self, left: float, why: str) -> tuple[pykka.ActorRef[Any] | None, str]:
        mine = self._tenure.ref
        if mine is not None and self._tenure.phase is SingletonPhase.UP:
            return mine, ""
        address = self.where()
        if address is None:
            return None, why
        if address == self._owner.home.address:
            return None, "this host leads its shard, and has not started it yet"
        try:
            return await self._owner.calls.remote(
                address, self._spec.published, timeout=left, block=False
            ), ""
        except Exception as error:  # noqa: BLE001  # told, if there is no ref until the end
            return None, in_full(error)

    def stop(self, *, timeout: float = DEFAULT_TIMEOUT_S) -> bool:
        """Run it on this host no more; return whether it has ended here within `timeout` seconds.

        As long as this host leads the shard, no other host runs it: transfer the leadership first, if one is to. Once it has
        ended, it may be declared anew; until then call this again. Raises `DeadlockError` in a loop.
        """
        return self._owner.leave(self.name, timeout=timeout)


class Singletons:
    """The singletons of one host. From any thread."""

    def __init__(
        self,
        home: Home,
        calls: Calls,
        loop: TrioLoop,
        *,
        announce: Callable[[object], object] = lambda _: None,
        gone: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """`announce(event)` tells the host's subscribers, and never raises.

        `gone(address)` returns whether the process that was last known at that address has surely ended; in the loop's thread.
        """
        self.home, self.calls, self.loop = home, calls, loop
        self._announce, self._gone = announce, gone
        self._lock = threading.Lock()
        self._keeper: SingletonKeeper | None = None
        self._known: dict[str, Singleton] = {}
        self._closed = False
        on_fork(self)

    def declare(
        self,
        name: str,
        start: type[pykka.Actor] | Callable[..., pykka.ActorRef[Any]],
        *,
        shard_id: int,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        proxy: Any = False,
        acl: Any = None,
        start_timeout: float = 5.0,
        stop_timeout: float = 5.0,
    ) -> Singleton:
        """See `NodeHost.singleton`."""
        spec = SingletonSpec(
            name, shard_id, start, args, kwargs or {}, proxy, acl, start_timeout, stop_timeout
        )
        _check(spec)
        self._check_shard(shard_id)
        with self._lock:
            if self._closed:
                raise LoopError(f"the host at {self.home.address} is stopping, and takes no more singletons")
            if name in self._known:
                raise ConfigError(
                    "name",
                    name,
                    "is a singleton of this host already: choose another name, or stop() it first",
                )
            if len(self._known) >= MAX_SINGLETONS:
                raise SystemBusy(
                    f"this host has {MAX_SINGLETONS} singletons: let one of them start the others"
                )
            if self._keeper is None:
                self._keeper = SingletonKeeper.start_actor(
                    self.home, self.calls, announce=self._announce, gone=self._gone, loop=self.loop
                )
            tenure = Tenure(
                name, self._keeper.hands_of(spec), start_timeout=start_timeout, stop_timeout=stop_timeout
            )
            self._keeper.actor_ref.tell(Declare(spec, tenure))
            singleton = self._known[name] = Singleton(self, spec, tenure)
        return singleton

    def _check_shard(self, shard_id: int) -> None:
        config = self.home.config(shard_id)
        if not config.check_quorum:
            raise ConfigError(
                "check_quorum",
                False,
                f"singletons need it: a leader of shard {shard_id} would not notice its loss",
            )
        if config.quiesce:
            raise ConfigError(
                "quiesce",
                True,
                f"no singletons run in a shard that sleeps, as {shard_id} does: it notices no loss",
            )

    def leave(self, name: str | None = None, *, timeout: float = DEFAULT_TIMEOUT_S) -> bool:
        """Run no more singletons on this host, or not the one of that name; return whether they have ended in time.

        For a host that is about to hand over: the next leaders can start theirs at once then. Raises `DeadlockError` in a loop.
        """
        check_timeout(timeout)
        forbid_waiting("stop() of a singleton", "call it in another thread")
        with self._lock:
            keeper = self._keeper
            self._closed = self._closed or name is None
        ended = True
        if keeper is not None:
            ended = self._ask_to_leave(keeper, name, timeout)
        if name is not None and ended:
            with self._lock:
                self._known.pop(name, None)
        return ended

    @staticmethod
    def _ask_to_leave(keeper: SingletonKeeper, name: str | None, timeout: float) -> bool:
        try:
            return bool(keeper.actor_ref.ask(Leave(name), timeout=timeout))
        except (pykka.Timeout, DrakkarError):
            return False
        except pykka.ActorDeadError:  # its loop has ended
            return True

    def _let_go_in_child(self) -> None:
        """A forked child runs none of them; a thread that is gone may hold the lock."""
        self._lock = threading.Lock()
        self._known.clear()


def _check(spec: SingletonSpec) -> None:
    check_name("name", spec.name)
    check_whole("shard_id", spec.shard_id, 0, MAX_SIGNED)
    check_type("args", spec.args, (tuple, list), "a tuple of the arguments")
    check_type("kwargs", spec.kwargs, (Mapping, NoneType), "a mapping of the named arguments")
    check_number("start_timeout", spec.start_timeout, 0.001, MAX_WAIT_S)
    check_number("stop_timeout", spec.stop_timeout, 0.0, MAX_WAIT_S)
    if "fence" in spec.kwargs:
        raise ConfigError("kwargs", "fence", "is what the actor is given by its host: leave it out")
    check_start(spec.start)
