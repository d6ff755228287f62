"""Client sessions, the client's side: proposals that repeat themselves, and are applied once all the same."""

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import NoneType
from typing import Any, Final, Protocol, TypeAlias

import cbor2
import trio
from drakkar.actors.machine.compression import encode
from drakkar.actors.machine.sessions import REGISTER, UNREGISTER, encode_request
from drakkar.actors.node.proposals import Proposal
from drakkar.actors.runtime.futures import ActorFuture, brief
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.handlers import cbor
from drakkar.handlers.checks import check_timeout
from drakkar.handlers.errors import (
    ConfigError,
    DrakkarError,
    LoopError,
    OutcomeUnknown,
    RequestDropped,
    ResultLost,
    SessionRefused,
)
from drakkar.handlers.raft.entries import EntryKind
from drakkar.transport.backoff import Backoff

__all__ = ["Endpoint", "Later", "Session", "later_on", "open_session"]

DEFAULT_TIMEOUT: Final = 5.0

_KINDS: Final = bytes([EntryKind.SESSION])
_TOKEN_VERSION: Final = 1

_PARTS: Final = 4
"""Parts of its time after which a request without an answer is repeated: what was sent to a leader may be lost."""
_LEAST_PATIENCE: Final = 0.5
_MOST_PATIENCE: Final = 10.0
"""Seconds for which a request waits for its answer before it is repeated, whatever its time."""
_FIRST_WAIT_S: Final = 0.02
_MAX_WAIT_S: Final = 0.5
"""The first and the longest wait before a request that was refused is repeated."""


class Later(Protocol):
    """Calls a function after some seconds, in any thread, and without blocking the one that asks."""

    def __call__(self, delay: float, fn: Callable[[], object], /) -> object:
        """Raises `LoopError` where nothing can be called any more."""


def later_on(loop: TrioLoop) -> Later:
    """Let functions be called on a loop: when their time has come or the loop ends, whichever is first."""

    def later(delay: float, fn: Callable[[], object], /) -> None:
        loop.spawn(trio.sleep, delay, name="a session's pause").finished.add_done_callback(lambda _: fn())

    return later


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What a session knows of the replica that it proposes to."""

    shard: int
    put: Callable[[Proposal], None]
    """Takes a proposal, from any thread, and answers it by its deadline, whatever happens; as `ProposalQueue` does."""
    later: Later
    max_command_bytes: int
    compress: bool = False
    """Let commands that gain by it travel compressed."""
    now: Callable[[], float] = time.monotonic


def open_session(
    endpoint: Endpoint, *, token: bytes | None = None, timeout: float = DEFAULT_TIMEOUT
) -> "ActorFuture[Session]":
    """Open a session; or go on with the one of the `token`, which asks nobody. See `Replica.session`."""
    future: ActorFuture[Session] = ActorFuture()
    check_timeout(timeout)
    if token is not None:
        try:
            future.set(_of_token(endpoint, token))
        except ConfigError as error:
            future.fail(error)
        return future

    def request() -> bytes:
        # A new id each time: a request that was thought lost may open its session late, and would bring back to life,
        # without its results, one that was forgotten meanwhile.
        return encode_request(secrets.randbelow(REGISTER - 1) + 1, REGISTER, 0, b"")

    def conclude(client: Any, error: BaseException | None, _: bool) -> None:
        if error is None:
            future.try_set(Session(endpoint, client))
        elif isinstance(error, OutcomeUnknown):
            late = "no session was opened by the deadline: ask again (one that is opened late stays unused)"
            future.try_fail(RequestDropped(late))
        else:
            future.try_fail(error)

    _Repetition(endpoint, request, timeout, conclude).start()
    return future


class Session:
    """A client's session with a shard: its commands are applied once each, however often they are proposed.

        session = replica.session().get(timeout=5)
        try:
            session.propose(b"pay 5", timeout=3).get()
        except OutcomeUnknown:
            session.retry(timeout=60).get()   # the result of the first time that it arrives

    One command at a time; to have several under way, open several sessions. Until its deadline a proposal repeats
    itself wherever that may help: no leader, another leader, a full queue, no answer. It fails with

    - `OutcomeUnknown`: it may or may not have been applied, and may be yet. The command stays open: `retry` it, here
      or, by the `token`, through another host, or `close` the session;
    - `SessionExpired`: the shard has forgotten the session, as it keeps the 4096 that were used last. Whether the
      command was applied stays unknown if `outcome_known` is False. The session is over;
    - `SessionRefused`: somebody else used this session, or its token is an old one. The session is over;
    - `ResultLost`: it was applied, once, by an earlier request, and its result is of a type or size that cannot be
      kept (kept are None, bool, int of 64 bits, float, str, bytes, and list, tuple and dict of them, to 1 MiB);
    - what `Replica.propose` fails with where surely nothing happened: no command stays open then.

    All methods may be called from any thread, and none of them blocks.
    """

    def __init__(
        self, endpoint: Endpoint, client: int, series: int = 1, command: bytes | None = None
    ) -> None:
        """Made by `Replica.session`. `series` is the next command's; `command` the open one, if there is one."""
        self.client = client
        """The id by which the shard knows the session."""
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._series = series
        self._command = command
        self._under_way = ""
        """What nobody has an answer to yet; only one thing at a time."""
        self._over: RequestDropped | None = None
        """Why it takes no commands any more."""
        self._gone = False
        """The shard does not know it any more, or not as ours."""

    def __repr__(self) -> str:
        return f"<Session {self.client} with shard {self._endpoint.shard}, at its command {self._series}>"

    @property
    def open(self) -> bool:
        """There is a command that is under way, or whose outcome is unknown."""
        return self._command is not None

    @property
    def token(self) -> bytes:
        """What another host, or a later process, needs to go on: `replica.session(token=…)`.

        A token holds the open command, too, so one that was taken while a command is under way is the one to keep:
        whoever has it may `retry`, and nothing is applied twice. Go on with the newest one only, and in one place.
        """
        with self._lock:
            return cbor2.dumps(
                [_TOKEN_VERSION, self._endpoint.shard, self.client, self._series, self._command]
            )

    def propose(self, command: bytes, *, timeout: float = DEFAULT_TIMEOUT) -> ActorFuture[Any]:
        """Have a command applied once; the result is that of its first time.

        Fails with `RequestDropped` if another command is under way, or open.
        """
        future: ActorFuture[Any] = ActorFuture()
        check_timeout(timeout)
        refusal = self._unfit(command) or self._begin(command)
        if refusal is None:
            self._repeat(future, command, timeout, unknown=False)
        else:
            future.fail(refusal)
        return future

    def retry(self, *, timeout: float = DEFAULT_TIMEOUT) -> ActorFuture[Any]:
        """Propose the open command again: it is applied if it was not, and the result is that of its first time.

        Fails with `RequestDropped` if no command is open.
        """
        future: ActorFuture[Any] = ActorFuture()
        check_timeout(timeout)
        with self._lock:
            command = self._command
            refusal = self._why_not()
            if refusal is None and command is not None:
                self._under_way = "a command"
        if refusal is not None:
            future.fail(refusal)
        elif command is None:
            future.fail(RequestDropped("no command is open, so there is nothing to retry: propose it"))
        else:
            self._repeat(future, command, timeout, unknown=True)
        return future

    def close(self, *, timeout: float = DEFAULT_TIMEOUT) -> ActorFuture[None]:
        """Let the shard forget the session; an open command of it is not applied after that.

        The session takes no commands from now on. If the future fails, call it again, or leave it: what is not used
        is forgotten in the end. It is set at once where the session is over already.
        """
        future: ActorFuture[None] = ActorFuture()
        check_timeout(timeout)
        with self._lock:
            refusal = self._why_not() if self._under_way else None
            proposes = refusal is None and not self._gone
            if proposes:
                self._under_way = "close()"
                self._over = RequestDropped("the session is closed, or being closed: open another one")
        if refusal is not None:
            future.fail(refusal)
        elif proposes:
            self._unregister(future, timeout)
        else:
            future.set(None)
        return future

    def _why_not(self) -> RequestDropped | None:
        """Why it can take nothing now, if so. With the lock."""
        if self._under_way:
            return RequestDropped(
                f"{self._under_way} of this session is under way: wait for its answer first"
            )
        return self._over

    def _unfit(self, command: bytes) -> DrakkarError | None:
        if type(command) is not bytes:
            return ConfigError("command", type(command).__name__, "a command is bytes: encode it first")
        if len(command) > self._endpoint.max_command_bytes:
            return RequestDropped(
                f"a command of {len(command)} bytes is larger than {self._endpoint.max_command_bytes}: make it "
                "smaller, or raise the host's max_command_bytes"
            )
        return None

    def _begin(self, command: bytes) -> RequestDropped | None:
        with self._lock:
            refusal = self._why_not()
            if refusal is None and self._command is not None:
                refusal = RequestDropped(
                    f"nobody knows yet what became of command {self._series} of this session: "
                    "retry() it or close() the session first"
                )
            if refusal is None:
                self._command, self._under_way = command, "a command"
            return refusal

    def _repeat(self, future: ActorFuture[Any], command: bytes, seconds: float, *, unknown: bool) -> None:
        series = self._series
        (payload,), kinds = encode((command,)) if self._endpoint.compress else ((command,), b"")
        # One command at a time, so the results of all before it are here.
        request = encode_request(self.client, series, series - 1, payload, encoded=bool(kinds))

        def conclude(result: Any, error: BaseException | None, unknown: bool) -> None:
            _settle(future, result, self._conclude(error, unknown))

        _Repetition(self._endpoint, lambda: request, seconds, conclude, unknown=unknown).start()

    def _unregister(self, future: ActorFuture[None], seconds: float) -> None:
        request = encode_request(self.client, UNREGISTER, 0, b"")

        def conclude(_: Any, error: BaseException | None, unknown: bool) -> None:
            _settle(future, None, self._conclude_close(error, unknown))

        _Repetition(self._endpoint, lambda: request, seconds, conclude).start()

    def _conclude(self, error: BaseException | None, unknown: bool) -> BaseException | None:
        """Note how the command ended, and return what to tell its client, if it failed."""
        with self._lock:
            self._under_way = ""
            if error is None or isinstance(error, ResultLost):
                self._series += 1
                self._command = None
            elif isinstance(error, SessionRefused):
                error.outcome_known = not unknown
                self._end(f"the session is over, so open another one: {error}")
            elif not unknown:
                self._command = None
            else:
                return OutcomeUnknown(
                    f"command {self._series} of this session may or may not have been applied, and may be yet: "
                    f"retry() it, or close() the session (what came last is {brief(error)})"
                )
        return error

    def _end(self, why: str) -> None:
        """It is over on both sides. With the lock."""
        self._command = None
        self._gone = True
        self._over = RequestDropped(why)

    def _conclude_close(self, error: BaseException | None, unknown: bool) -> BaseException | None:
        """The same for `close`. A session that the shard does not know is as good as closed."""
        with self._lock:
            self._under_way = ""
            if error is None or isinstance(error, SessionRefused):
                self._end("the session is closed: open another one")
                return None
            if unknown:
                return OutcomeUnknown(
                    "the session may or may not be closed: close() it again, or leave it "
                    f"(what came last is {brief(error)})"
                )
        return error


Conclude: TypeAlias = Callable[[Any, "BaseException | None", bool], object]
"""Takes the result, or the error, and whether an earlier request may have been, or may yet be, carried out."""


class _Repetition:
    """Proposes a request, and again wherever that may help, until there is an answer or no time is left."""

    def __init__(
        self,
        endpoint: Endpoint,
        request: Callable[[], bytes],
        seconds: float,
        conclude: Conclude,
        *,
        unknown: bool = False,
    ) -> None:
        self._endpoint, self._request, self._conclude = endpoint, request, conclude
        self._deadline = endpoint.now() + seconds
        self._patience = min(max(seconds / _PARTS, _LEAST_PATIENCE), _MOST_PATIENCE)
        self._backoff = Backoff(_FIRST_WAIT_S, _MAX_WAIT_S)
        self._unknown = unknown

    def start(self) -> None:
        """Propose it. What follows happens in the threads that answer."""
        future: ActorFuture[Any] = ActorFuture()
        deadline = min(self._deadline, self._endpoint.now() + self._patience)
        self._endpoint.put(Proposal((self._request(),), future, deadline, single=True, kinds=_KINDS))
        future.add_done_callback(self._take)

    def _take(self, future: ActorFuture[Any]) -> None:
        result, error = future.outcome()
        if isinstance(result, SessionRefused):
            result, error = None, result
        if error is None or isinstance(error, SessionRefused):
            self._conclude(result, error, self._unknown)
            return
        self._unknown = self._unknown or not getattr(error, "outcome_known", False)
        if not (isinstance(error, RequestDropped | OutcomeUnknown) and self._goes_on()):
            self._conclude(None, error, self._unknown)

    def _goes_on(self) -> bool:
        """Repeat it after a wait; return False where no time is left for that, or the host stops."""
        wait = self._backoff.next()
        if self._endpoint.now() + wait >= self._deadline:
            return False
        try:
            self._endpoint.later(wait, self.start)
        except LoopError:  # the host stops
            return False
        return True


def _settle(future: ActorFuture[Any], result: Any, error: BaseException | None) -> None:
    if error is None:
        future.try_set(result)
    else:
        future.try_fail(error)


def _of_token(endpoint: Endpoint, token: bytes) -> Session:
    try:
        version, shard, client, series, command = cbor.loads(token, max_depth=1)
    except (ValueError, TypeError) as error:
        raise ConfigError("token", brief(token), f"is no session's token: {error}") from error
    numbers = (version, shard, client, series)
    if set(map(type, numbers)) != {int} or version != _TOKEN_VERSION:
        raise ConfigError("token", brief(token), "is no session's token, or one of another version")
    if type(command) not in {bytes, NoneType} or not (0 < client < 1 << 64 and 0 < series < REGISTER):
        raise ConfigError("token", brief(token), "is no session's token: its values cannot be")
    if shard != endpoint.shard:
        raise ConfigError(
            "token", brief(token), f"is one of shard {shard}, and this is shard {endpoint.shard}"
        )
    return Session(endpoint, client, series, command)
