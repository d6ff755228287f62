"""`SingletonKeeper`: the actor that starts and ends the singletons of one host, as `tenure` decides.

It hears from its own host who leads which shard, and asks the keepers of other hosts whether theirs have ended. A question is
["ended", shard, name, term], of plain values, as other hosts send it: the asker leads the shard in that term. The answer is True
once no incarnation of an older term runs there, nor will; False if that is not told. Only the host of a member of the shard is believed,
as in Raft itself: else any host that may connect could end a singleton, and keep it down.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final

import pykka
import trio
from drakkar.actors.names.events import SingletonEnded, SingletonStarted
from drakkar.actors.names.registered import ask_at
from drakkar.actors.names.shards import Calls, Home
from drakkar.actors.names.tenure import SingletonPhase, Tenure, TenureHands
from drakkar.actors.node.events import LeaderChanged, MembershipChanged, ReplicaEnded
from drakkar.actors.remote.from_host import FromHost
from drakkar.actors.runtime.actor import TrioActor
from drakkar.actors.runtime.alarm import Alarm
from drakkar.actors.runtime.child_specs import Start, call_start
from drakkar.actors.runtime.futures import ActorFuture, AnswerLater
from drakkar.actors.runtime.inbox import ask_to_stop
from drakkar.actors.runtime.monitor import ActorDied
from drakkar.actors.runtime.tasks import Task
from drakkar.handlers.checks import MAX_SIGNED, is_whole
from drakkar.handlers.errors import ConfigError, DrakkarError
from drakkar.transport.addresses import same_host

__all__ = ["KEEPER_NAME", "Declare", "Leave", "SingletonKeeper", "SingletonSpec", "takeover_ticks"]

KEEPER_NAME: Final = "drakkar:singletons"
"""Under which the keeper of each host is published."""
FENCE_TIMEOUT_S: Final = 5.0
MAX_ASKERS: Final = 1_000
"""Who wait for an end: other hosts, and threads of this one."""


def takeover_ticks(election_ticks: int) -> int:
    """Return after how many ticks in office the singleton of the leader before has ended: see docs/names.md."""
    return 2 * election_ticks + -(-election_ticks // 5) + 2


@dataclass(frozen=True, slots=True)
class SingletonSpec:
    """What is run, and where."""

    name: str
    shard_id: int
    start: Start
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    proxy: Any
    acl: Any
    start_timeout: float
    stop_timeout: float

    @property
    def published(self) -> str:
        """The name under which it is published where it runs."""
        return f"singleton:{self.name}"

    def make(self, fence: int) -> pykka.ActorRef[Any]:
        """Start it. May block, and raises what its constructor raises."""
        return call_start(self.start, *self.args, fence=fence, **self.kwargs)


@dataclass(frozen=True, slots=True)
class Declare:
    """Run this singleton on this host whenever it leads its shard."""

    spec: SingletonSpec
    tenure: Tenure


@dataclass(frozen=True, slots=True)
class Leave:
    """Run no more of these singletons on this host; None: of none. The answer is True when they have ended.

    It is False, at once, where a thousand wait for an end already.
    """

    name: str | None = None


@dataclass(eq=False, slots=True)
class _Kept:
    """One singleton, and the search for a proof that the one before has ended."""

    spec: SingletonSpec
    tenure: Tenure
    term: int = 0
    """Of the search."""
    fence: ActorFuture[int] | None = None
    """Committed first, so that this replica knows all members that may have led before."""
    answers: dict[str, ActorFuture[Any]] | None = None
    """Of the other hosts, by their addresses; None: they are not asked yet."""


@dataclass(eq=False, slots=True)
class _Asker:
    kept: _Kept | None
    """None: all of them."""
    term: float
    """It asks whether all of older terms have ended."""
    answer: AnswerLater[bool]

    def is_of(self, kept: _Kept) -> bool:
        return self.kept is None or self.kept is kept


class SingletonKeeper(TrioActor):
    """Keeps the singletons of one host; on the host's loop."""

    inbox_capacity: ClassVar[int] = 10_000
    told_of_hosts: ClassVar[bool] = True

    def __init__(
        self,
        home: Home,
        calls: Calls,
        *,
        announce: Callable[[object], object],
        gone: Callable[[str], bool],
        clock: Callable[[], float] = time.monotonic,
        **kwargs: Any,
    ) -> None:
        """`announce` tells the host's subscribers. `gone(address)`: the process that was last known there has surely ended."""
        super().__init__(**kwargs)
        self._home, self._calls, self._announce, self._gone, self._clock = home, calls, announce, gone, clock
        self._kept: dict[str, _Kept] = {}
        self._shards: dict[int, float] = {}
        """The shards of its singletons, and since when the membership of each has not changed here."""
        self._events: deque[object] = deque()
        """Of the host, in their order."""
        self._askers: list[_Asker] = []
        self._alarm = Alarm(self.actor_loop, self.actor_inbox.wake)
        self._time: Task | None = None

    def on_start(self) -> None:
        """Hear of the host's events, and of time."""
        self._home.subscribe(self._on_event)
        self._calls.publish(KEEPER_NAME, self.actor_ref)
        self._time = self.actor_loop.spawn(self._watch_time, name="singletons")

    # -- what it hears ------------------------------------------------------------------------------------------

    def _on_event(self, event: object) -> None:
        """Of the host, in whichever thread. It is looked at before all that came after it."""
        if not isinstance(event, LeaderChanged | MembershipChanged | ReplicaEnded) or self.actor_inbox.closed:
            return
        if event.shard in self._shards:
            self._events.append(event)
            self.actor_inbox.wake()

    def on_receive(self, message: Any) -> Any:
        """Declare a singleton, let some go, hear of an end, or answer another host."""
        if isinstance(message, ActorDied):
            for kept in self._kept.values():
                kept.tenure.on_died(message.ref, message.reason, self._clock())
            return None
        if isinstance(message, Declare):
            self._declare(message)
            return None
        if isinstance(message, Leave):
            return self._leave_singletons(message.name)
        if isinstance(message, FromHost):
            return self._on_question(message.address, message.message)
        return super().on_receive(message)

    def _declare(self, message: Declare) -> None:
        spec = message.spec
        self._kept[spec.name] = _Kept(spec, message.tenure)
        self._shards[spec.shard_id] = self._clock()
        self._look_at_office(spec.shard_id)

    def _leave_singletons(self, name: str | None) -> AnswerLater[bool] | bool:
        kept = None if name is None else self._kept.get(name)
        if name is not None and kept is None:
            return True
        for each in [kept] if kept is not None else list(self._kept.values()):
            each.tenure.close()
        return self._when_ended(kept, math.inf)

    def _when_ended(self, kept: _Kept | None, term: float) -> AnswerLater[bool] | bool:
        if len(self._askers) >= MAX_ASKERS:
            return False
        asker = _Asker(kept, term, AnswerLater())
        self._askers.append(asker)
        return asker.answer

    def _on_question(self, address: str, message: Any) -> Any:
        if type(message) is not list or len(message) != 4 or message[0] != "ended":
            return False
        _, shard_id, name, term = message
        if not is_whole(shard_id) or not is_whole(term, 1, MAX_SIGNED) or type(name) is not str:
            return False
        kept = self._kept.get(name)
        if kept is None or kept.spec.shard_id != shard_id:
            return True  # a start takes a fence of its term, which could not be committed any more
        try:
            members = self._home.replica(shard_id).status().addresses.values()
        except ConfigError:  # its replica has ended, so none is started here
            return kept.tenure.term == 0 and kept.tenure.ended_before(term)
        if not any(same_host(address, member) for member in members):
            return False
        kept.tenure.bar(term, self._clock() + 2 * self._bound(shard_id))
        return True if kept.tenure.ended_before(term) else self._when_ended(kept, term)

    # -- who leads ----------------------------------------------------------------------------------------------

    def _take_events(self) -> None:
        while self._events:
            event = self._events.popleft()
            if isinstance(event, LeaderChanged):
                self._on_office(event.shard, event.term if event.leader == event.replica else 0)
            elif isinstance(event, ReplicaEnded):
                self._shards[event.shard] = self._clock()
                self._on_office(event.shard, 0)
            elif isinstance(event, MembershipChanged):
                self._shards[event.shard] = self._clock()

    def _look_at_office(self, shard_id: int) -> None:
        try:
            shard = self._home.replica(shard_id)
        except ConfigError:  # its replica has ended, or is not started yet
            return
        status = shard.status()
        self._on_office(shard_id, status.term if status.leader_id == shard.replica_id else 0)

    def _on_office(self, shard_id: int, term: int) -> None:
        now = self._clock()
        for kept in self._kept.values():
            if kept.spec.shard_id != shard_id or kept.tenure.term == term:
                continue
            kept.tenure.on_office(term, now, self._bound(shard_id) if term else 0.0)
            kept.term, kept.fence, kept.answers = term, None, None
            if term and now - self._shards[shard_id] >= self._bound(shard_id):
                kept.fence = self.actor_inbox.wake_after(self._fence(shard_id))

    def _bound(self, shard_id: int) -> float:
        return takeover_ticks(self._election_ticks(shard_id)) * self._home.tick_interval

    def _election_ticks(self, shard_id: int) -> int:
        try:
            return self._home.config(shard_id).election_ticks
        except ConfigError:  # its replica has ended at this moment, so it does not lead
            return 1

    def _fence(self, shard_id: int) -> ActorFuture[int]:
        try:
            return self._home.replica(shard_id).fence(timeout=FENCE_TIMEOUT_S)
        except DrakkarError as error:
            failed: ActorFuture[int] = ActorFuture()
            failed.fail(error)
            return failed

    # -- whether the one before has ended -----------------------------------------------------------------------

    def _seek_proof(self, kept: _Kept) -> None:
        """Ask the hosts of all other voters, and see what they have answered."""
        if not kept.term or kept.tenure.proven or kept.fence is None or not kept.fence.done:
            return
        shard_id = kept.spec.shard_id
        if kept.fence.outcome()[1] is not None or self._clock() - self._shards[shard_id] < self._bound(
            shard_id
        ):
            kept.fence = None  # no proof, then; so it waits
            return
        if kept.answers is None:
            kept.answers = self._ask_others(kept)
        if all(self._is_over(address, answer) for address, answer in kept.answers.items()):
            kept.tenure.on_proof(kept.term)

    def _ask_others(self, kept: _Kept) -> dict[str, ActorFuture[Any]]:
        spec = kept.spec
        try:
            shard = self._home.replica(spec.shard_id)
        except ConfigError as error:  # it has ended at this moment, so it does not lead
            nothing: ActorFuture[Any] = ActorFuture()
            nothing.fail(error)
            return {self._home.address: nothing}
        status = shard.status()
        question = ["ended", spec.shard_id, spec.name, kept.term]
        timeout = self._bound(spec.shard_id)
        others = {status.addresses.get(voter, "") for voter in status.voters if voter != shard.replica_id}
        return {
            address: self.actor_inbox.wake_after(ask_at(self._calls, address, KEEPER_NAME, question, timeout))
            for address in others
        }

    def _is_over(self, address: str, answer: ActorFuture[Any]) -> bool:
        return (answer.done and answer.outcome()[0] is True) or self._gone(address)

    def _answer_askers(self) -> None:
        for asker in self._askers:
            if all(kept.tenure.ended_before(asker.term) for kept in self._kept.values() if asker.is_of(kept)):
                asker.answer.try_set(True)
        self._askers = [asker for asker in self._askers if not asker.answer.done]
        for kept in [each for each in self._kept.values() if each.tenure.over]:
            del self._kept[kept.spec.name]

    # -- its turns ----------------------------------------------------------------------------------------------

    def after_batch(self) -> None:
        """Do what is next, now that all is heard."""
        self._take_events()
        now = self._clock()
        for kept in self._kept.values():
            self._seek_proof(kept)
            kept.tenure.proceed(now)
        self._answer_askers()
        times = [kept.tenure.next_time(now) for kept in self._kept.values()]
        self._alarm.set(min(times, default=math.inf))

    async def _watch_time(self) -> None:
        """Notice that this host has stood still: then others may have elected a leader, and it would learn that last."""
        last = _boot_time()
        while True:
            await trio.sleep(self._home.tick_interval)
            now = _boot_time()
            stood_still, last = now - last, now
            if stood_still >= 2 * self._home.tick_interval:
                self._on_stall(stood_still)
            if self._askers or any(kept.answers and not kept.tenure.proven for kept in self._kept.values()):
                self.actor_inbox.wake()

    def _on_stall(self, seconds: float) -> None:
        for kept in list(self._kept.values()):
            limit = self._election_ticks(kept.spec.shard_id) * self._home.tick_interval
            if kept.tenure.phase is not SingletonPhase.IDLE and seconds >= limit:
                self._doubt(kept, seconds)

    def _doubt(self, kept: _Kept, seconds: float) -> None:
        self.actor_loop.lines.warning(
            "the singleton %r ends and begins anew, since this host stood still for %.1f seconds, in which another may have "
            "taken over",
            kept.spec.name,
            seconds,
        )
        kept.tenure.doubt()
        self.actor_inbox.wake()

    def hands_of(self, spec: SingletonSpec) -> "_Hands":
        """Return what does the work of a tenure."""
        return _Hands(self, spec)

    # -- its end ------------------------------------------------------------------------------------------------

    def on_stop(self) -> None:
        """Let all singletons end, with the host."""
        self._alarm.cancel()
        if self._time is not None:
            self._time.cancel()
        for kept in self._kept.values():
            kept.tenure.let_go()
        for asker in self._askers:
            asker.answer.try_set(False)

    def on_failure(self, _type: Any, _error: BaseException | None, _traceback: Any) -> None:
        """Let all singletons end: nothing would end them when this host loses office."""
        self.on_stop()


class _Hands(TenureHands):
    def __init__(self, keeper: SingletonKeeper, spec: SingletonSpec) -> None:
        super().__init__(keeper)
        self._keeper, self._spec = keeper, spec

    def fence(self) -> ActorFuture[int]:
        return self._inbox.wake_after(self._keeper._fence(self._spec.shard_id))

    def start(self, fence: int, /) -> ActorFuture[pykka.ActorRef[Any]]:
        spec, calls = self._spec, self._keeper._calls

        def publish(ref: pykka.ActorRef[Any]) -> None:
            calls.publish(spec.published, ref, proxy=spec.proxy, acl=spec.acl)

        return self.launch(
            partial(spec.make, fence), f"the singleton {spec.name!r}", spec.start_timeout, publish
        )

    def leave(self, ref: pykka.ActorRef[Any]) -> None:
        self._keeper._calls.unpublish(self._spec.published, ref)

    def stop(self, ref: pykka.ActorRef[Any]) -> ActorFuture[Any]:
        """Before it handles more of what waits."""
        return self._inbox.wake_after(ask_to_stop(ref, first=True))

    def on_started(self, fence: int, ref: pykka.ActorRef[Any]) -> None:
        self._keeper.actor_loop.lines.info(
            "the singleton %r runs here, with fence %d", self._spec.name, fence
        )
        self._keeper._announce(SingletonStarted(self._spec.name, self._spec.shard_id, fence, ref))

    def on_ended(self, fence: int, reason: BaseException | None) -> None:
        self._keeper._announce(SingletonEnded(self._spec.name, self._spec.shard_id, fence, reason))


def _boot_time() -> float:
    """Seconds of a clock that goes on while this process is stopped, and where there is one, while the machine sleeps."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)
