"""`Names`: the names that this host registers in directories, and finds there.

A directory is reached through its server on this host, where it has a replica of it, or else on the host that `at` names. What
this host has registered is watched: when an actor ends, its name is given back, however long that takes.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

import pykka
import trio
from drakkar.actors.names.directory import (
    MAX_LISTED,
    NotRegistered,
    Owner,
    Result,
)
from drakkar.actors.names.directory_server import DirectoryServer, server_name
from drakkar.actors.names.shards import Calls, Shard
from drakkar.actors.remote.errors import NameTaken, UnknownName
from drakkar.actors.runtime.forks import on_fork
from drakkar.actors.runtime.futures import ActorFuture, brief, forbid_blocking, in_full, settle
from drakkar.actors.runtime.log_lines import Lines
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.actors.runtime.monitor import ActorDied, unwatch, watch
from drakkar.handlers.backoff import Backoff
from drakkar.handlers.checks import (
    MAX_SIGNED,
    check_name,
    check_switch,
    check_timeout,
    check_type,
    check_whole,
)
from drakkar.handlers.errors import (
    ConfigError,
    DrakkarError,
    LoopError,
    OutcomeUnknown,
    RequestDropped,
    SystemBusy,
)
from drakkar.transport.addresses import parse_address

__all__ = ["Names", "ask_at"]

DEFAULT_TIMEOUT_S: Final = 5.0
MAX_REGISTERED: Final = 10_000
"""Names that one host has registered, or not given back yet, at a time."""
MAX_GIVEN_BACK: Final = 100
"""Names that a host gives back to one directory at a time."""
_NO_SERVER: Final = (
    "no replica serves the directory there: start one by start_directory(), or name another host by `at`"
)
_TAKEN: Final = "unregister it there, or, if that host is gone for good, register with replace=True"
GIVE_BACK_TIMEOUT_S: Final = 5.0
FIRST_WAIT_S: Final = 0.1
LAST_WAIT_S: Final = 10.0
GRACE_S: Final = 1.0
"""How much longer than its timeout a call that blocks waits for its future, which is set by then unless the loop hangs."""


@dataclass(eq=False, slots=True)
class _Entry:
    """A name that this host has registered."""

    shard_id: int
    name: str
    number: int
    ref: pykka.ActorRef[Any]
    watcher: Callable[[ActorDied], object] | None = None


class Names:
    """The names of one host in directories. From any thread.

    `block=False` returns a future instead, which is set by the `timeout`, in seconds.
    """

    def __init__(
        self,
        *,
        address: Callable[[], str],
        owner: Callable[[], Owner],
        calls: Calls,
        loop: TrioLoop,
        lines: Lines,
    ) -> None:
        """`address()` is the host's own, and `owner()` which run of which host it is; `loop` is the host's."""
        self._address, self._owner, self._calls, self._loop, self._lines = address, owner, calls, loop, lines
        self._lock = threading.Lock()
        self._servers: dict[int, pykka.ActorRef[DirectoryServer]] = {}
        """By shard, the servers on this host."""
        self._at: dict[int, str] = {}
        """By shard, the host that was named last to reach a directory of which there is no replica here."""
        self._entries: dict[tuple[int, str], _Entry] = {}
        self._leaving: set[_Entry] = set()
        """Their actors have ended, and their names are not given back yet."""
        self._turns: defaultdict[int, trio.CapacityLimiter] = defaultdict(
            lambda: trio.CapacityLimiter(MAX_GIVEN_BACK)
        )
        """By shard, for what is done in the end. In the loop's thread: one directory that is away holds up no other."""
        on_fork(self)

    def serve(self, shard: Shard) -> None:
        """Let this host's replica of a directory serve this host and others. Never waits.

        Names of an earlier run of this host are free soon. Raises `LoopError` if the loop does not run.
        """
        server = DirectoryServer.start(shard, loop=self._loop)
        with self._lock:
            self._servers[shard.shard_id] = server
        name = server_name(shard.shard_id)
        self._calls.unpublish(name)  # the server of a replica before this one may be about to end
        self._calls.publish(name, server)
        self._do_in_the_end(shard.shard_id, ["announce", *self._owner()], "announce this run of the host")

    # -- what users call ----------------------------------------------------------------------------------------

    def register(
        self,
        name: str,
        ref: pykka.ActorRef[Any],
        *,
        shard_id: int | None = None,
        at: str | None = None,
        replace: bool = False,
        timeout: float = DEFAULT_TIMEOUT_S,
        block: bool = True,
    ) -> Any:
        """See `NodeHost.register`."""
        _check_block("register()", block)
        check_name("name", name)
        check_type("ref", ref, pykka.ActorRef, "the ref of an actor of this host")
        check_switch("replace", replace)
        number, place = self._calls.place_of(ref)
        shard_id = self._directory(shard_id, at)
        entry = _Entry(shard_id, name, number, ref)
        self._check_room(entry)
        operation = ["register", name, *self._owner(), number, self._address(), place, replace]
        return self._answer(
            self._do(shard_id, operation, timeout), partial(self._on_registered, entry), timeout, block
        )

    def unregister(
        self,
        name: str,
        *,
        shard_id: int | None = None,
        at: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        block: bool = True,
    ) -> Any:
        """See `NodeHost.unregister`."""
        _check_block("unregister()", block)
        check_name("name", name)
        shard_id = self._directory(shard_id, at)
        operation = ["unregister", name, *self._owner(), None]
        return self._answer(
            self._do(shard_id, operation, timeout),
            partial(self._on_unregistered, (shard_id, name)),
            timeout,
            block,
        )

    def find(
        self,
        name: str,
        *,
        shard_id: int | None = None,
        at: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        block: bool = True,
    ) -> Any:
        """See `NodeHost.find`."""
        _check_block("find()", block)
        check_name("name", name)
        asked = self._ask(self._directory(shard_id, at), ["find", _ms(timeout), name], timeout)
        until = time.monotonic() + timeout
        return self._answer(asked, partial(self._on_found, name, until), timeout, block)

    def registered_names(
        self,
        prefix: str = "",
        *,
        after: str = "",
        limit: int = MAX_LISTED,
        shard_id: int | None = None,
        at: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        block: bool = True,
    ) -> Any:
        """See `NodeHost.registered_names`."""
        _check_block("registered_names()", block)
        check_type("prefix", prefix, str, "a text")
        check_type("after", after, str, "a text")
        check_whole("limit", limit, 1, MAX_LISTED)
        message = ["names", _ms(timeout), prefix, after, limit]
        asked = self._ask(self._directory(shard_id, at), message, timeout)
        return self._answer(asked, _listed, timeout, block)

    # -- which directory ----------------------------------------------------------------------------------------

    def _directory(self, shard_id: int | None, at: str | None) -> int:
        """Return which directory is meant, and remember how it is reached. Raises `ConfigError`."""
        if at is not None:
            check_type("at", at, str, "the address of a host, 'host:port'")
            parse_address(at)
        if shard_id is not None:
            check_whole("shard_id", shard_id, 0, MAX_SIGNED)
        with self._lock:
            known = {*self._servers, *self._at}
            if shard_id is None and len(known) == 1:
                shard_id = next(iter(known))
            elif shard_id is None:
                raise ConfigError(
                    "shard_id", None, f"name the directory's shard: this host knows {sorted(known) or 'none'}"
                )
            if at is not None:
                self._at[shard_id] = at
            elif shard_id not in known:
                raise ConfigError(
                    "shard_id",
                    shard_id,
                    "is no directory that this host has a replica of: start one by start_directory(), or name a host that has "
                    "one, at='host:port'",
                )
            return shard_id

    def _do(self, shard_id: int, operation: list[Any], timeout: float) -> ActorFuture[Any]:
        return self._ask(shard_id, ["do", _ms(timeout), operation], timeout)

    def _ask(self, shard_id: int, message: list[Any], timeout: float) -> ActorFuture[Any]:
        with self._lock:
            server, address = self._servers.get(shard_id), self._at.get(shard_id)
        if server is not None and (address is None or server.is_alive()):
            return _asked(server, message)
        assert address is not None, "it is known where a directory is that has no server here"
        return ask_at(self._calls, address, server_name(shard_id), message, timeout)

    def _answer(
        self,
        asked: ActorFuture[Any],
        conclude: Callable[[Result], Any],
        timeout: float,
        block: bool,
    ) -> Any:
        """Return what the answer means, or with `block=False` a future of it. `conclude` may return a future of that."""
        done: ActorFuture[Any] = ActorFuture()
        asked.add_done_callback(partial(_conclude, done, conclude))
        return done.get(timeout=timeout + GRACE_S) if block else done

    # -- what this host has registered --------------------------------------------------------------------------

    @property
    def _why_over(self) -> str:
        """Why a directory takes this run of the host for an earlier one."""
        if self._owner().host != self._address():
            return (
                "a newer run of this host is known to the directory: is there a copy of its data directory?"
            )
        return (
            "the directory knows a run of the host at this address that started later. A host without a data directory has its "
            "runs told apart by the time of its clock, which may have gone back: set the clock right, and start the host again, or "
            "give it a data directory"
        )

    def _check_room(self, entry: _Entry) -> None:
        with self._lock:
            # A name that is not given back yet takes room too: while the shard has no leader, there would be no end to them.
            full = len(self._entries) + len(self._leaving) >= MAX_REGISTERED
            full = full and (entry.shard_id, entry.name) not in self._entries
        if full:
            raise SystemBusy(
                f"this host has registered {MAX_REGISTERED} names, or not given them back yet: unregister some, or let other "
                "hosts have some"
            )

    def _on_registered(self, entry: _Entry, result: Result) -> None:
        """It has the name now, or perhaps; from now on its end gives the name back."""
        if result[0] == "over":
            raise RequestDropped(self._why_over)
        try:
            _check(result, entry.name)
        except OutcomeUnknown:
            # Perhaps the actor before it has the name still: then its end gives it back, as before.
            self._keep(entry)
            raise
        before = self._keep(entry)
        if before is not None and before.watcher is not None:
            unwatch(before.ref, before.watcher)

    def _keep(self, entry: _Entry) -> _Entry | None:
        """Watch the actor; return what had the name before."""
        entry.watcher = partial(self._on_died, entry)
        with self._lock:
            before = self._entries.get((entry.shard_id, entry.name))
            self._entries[entry.shard_id, entry.name] = entry
        watch(entry.ref, entry.watcher)
        return before

    def _on_unregistered(self, key: tuple[int, str], result: Result) -> bool:
        _check(result, key[1])
        with self._lock:
            entry = self._entries.pop(key, None)
        if entry is not None and entry.watcher is not None:
            unwatch(entry.ref, entry.watcher)
        return bool(result[1])

    def _on_died(self, entry: _Entry, _: ActorDied) -> None:
        with self._lock:
            key = entry.shard_id, entry.name
            if self._entries.get(key) is entry:
                del self._entries[key]
            self._leaving.add(entry)
        operation = ["unregister", entry.name, *self._owner(), entry.number]
        done = self._do_in_the_end(entry.shard_id, operation, f"give back the name {entry.name!r}")
        done.add_done_callback(partial(self._on_given_back, entry))

    def _on_given_back(self, entry: _Entry, _: ActorFuture[None]) -> None:
        with self._lock:
            self._leaving.discard(entry)

    def _do_in_the_end(self, shard_id: int, operation: list[Any], what: str) -> ActorFuture[None]:
        """Do it as soon as that is possible, for as long as this host runs. Never waits; the future is set when it is over."""
        try:
            return self._loop.spawn(self._repeat, shard_id, operation, what, name=what).finished
        except LoopError:  # the host stops: its next run announces itself
            self._lines.debug("the host stops before it could %s", what)
            over: ActorFuture[None] = ActorFuture()
            over.set(None)
            return over

    async def _repeat(self, shard_id: int, operation: list[Any], what: str) -> None:
        backoff = Backoff(FIRST_WAIT_S, LAST_WAIT_S)
        while True:
            async with self._turns[shard_id]:
                result = await self._try(shard_id, operation)
            if result[0] == "over":
                self._lines.warning("cannot %s: %s", what, self._why_over)
            if result[0] != "failed":
                return
            if backoff.failures == 0:
                self._lines.info("cannot %s yet, and tries again: %s", what, result[-1])
            await trio.sleep(backoff.next())

    async def _try(self, shard_id: int, operation: list[Any]) -> Result:
        try:
            return list(await self._do(shard_id, operation, GIVE_BACK_TIMEOUT_S))
        except (DrakkarError, pykka.ActorDeadError, pykka.Timeout) as error:
            return ["failed", True, in_full(error)]

    def _let_go_in_child(self) -> None:
        """A forked child has none of the parent's names; a thread that is gone may hold the lock."""
        self._lock = threading.Lock()
        self._entries.clear()
        self._leaving.clear()

    # -- what was found -----------------------------------------------------------------------------------------

    def _on_found(self, name: str, until: float, result: Result) -> ActorFuture[Any]:
        _check(result, name)
        if result[1] is None:
            raise NotRegistered(name)
        try:
            return self._calls.ref_of(result[3], max(0.0, until - time.monotonic()))
        except (IndexError, TypeError, ValueError) as error:
            raise RequestDropped(f"what the directory has as {name!r} leads to no actor: {error}") from error


def ask_at(calls: Calls, address: str, name: str, message: Any, timeout: float) -> ActorFuture[Any]:
    """Ask the actor that is published under a name on another host. The future is set within `timeout` seconds."""
    answer: ActorFuture[Any] = ActorFuture()
    until = time.monotonic() + timeout

    def on_found(found: ActorFuture[Any]) -> None:
        ref, error = found.outcome()
        if error is not None or ref is None:
            answer.try_fail(error or RequestDropped(f"{address} has no {name!r}"))
            return
        try:
            left = max(0.0, until - time.monotonic())
            asked = ref.ask(message, block=False, timeout=left)
            asked.add_done_callback(lambda source: settle(answer, *source.outcome()))
        except Exception as failure:  # noqa: BLE001  # it is the answer
            answer.try_fail(failure)

    try:
        calls.remote(address, name, timeout=timeout, block=False).add_done_callback(on_found)
    except Exception as failure:  # noqa: BLE001  # likewise
        answer.try_fail(failure)
    return answer


def _asked(server: pykka.ActorRef[Any], message: Any) -> ActorFuture[Any]:
    try:
        return cast("ActorFuture[Any]", server.ask(message, block=False))
    except DrakkarError as error:  # its inbox is full
        asked: ActorFuture[Any] = ActorFuture()
        asked.fail(error)
        return asked


def _conclude(done: ActorFuture[Any], conclude: Callable[[Result], Any], asked: ActorFuture[Any]) -> None:
    result, error = asked.outcome()
    if isinstance(error, pykka.ActorDeadError | UnknownName) and getattr(error, "outcome_known", True):
        done.try_fail(RequestDropped(f"{in_full(error)}: {_NO_SERVER}"))
        return
    if error is not None and getattr(error, "outcome_known", True):
        done.try_fail(error)  # it says itself what is wrong
        return
    if error is not None:
        result = ["failed", False, in_full(error)]
    elif type(result) is not list or not result:
        result = ["failed", False, f"the directory's host answered with {brief(result)}"]
    try:
        concluded = conclude(result)
        if isinstance(concluded, ActorFuture):
            concluded.add_done_callback(lambda source: settle(done, *source.outcome()))
        else:
            done.try_set(concluded)
    except (IndexError, TypeError):
        done.try_fail(OutcomeUnknown(f"the directory's host gave an answer that is none: {result!r:.100}"))
    except Exception as failure:  # noqa: BLE001  # it is the outcome
        done.try_fail(failure)


def _check(result: Result, name: str) -> None:
    """Raise the error that a result means, if it means one."""
    if result[0] == "ok":
        return
    if result[0] == "taken":
        raise NameTaken(name, f"an actor on {result[1]}", _TAKEN)
    if result[0] == "full":
        raise SystemBusy(str(result[1]))
    known, text = result[1], str(result[2])
    raise (RequestDropped if known is True else OutcomeUnknown)(text)


def _listed(result: Result) -> list[str]:
    _check(result, "")
    return list(result[1])


def _check_block(call: str, block: bool) -> None:
    check_switch("block", block)
    if block:
        forbid_blocking(call, f"{call[:-1]}…, block=False)")


def _ms(timeout: float) -> int:
    check_timeout(timeout)
    return int(timeout * 1000)
