"""Client sessions, the client's side: proposals that are repeated until they are answered, and applied once."""

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from types import NoneType
from typing import Any, Final, Protocol, TypeAlias

import cbor2
import trio
from drakkar.actors.machine.compression import encode
from drakkar.actors.machine.sessions import REGISTER, UNREGISTER, encode_request
from drakkar.actors.node.proposals import Proposal
from drakkar.actors.node.requests import DEFAULT_TIMEOUT_S
from drakkar.actors.runtime.forks import here, on_fork
from drakkar.actors.runtime.futures import ActorFuture, brief, in_full, settle
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.actors.runtime.waits import Owner
from drakkar.handlers import cbor
from drakkar.handlers.backoff import Backoff
from drakkar.handlers.checks import MAX_UNSIGNED, check_timeout, is_whole
from drakkar.handlers.errors import (
    ConfigError,
    DrakkarError,
    LoopError,
    OutcomeUnknown,
    Refused,
    RequestDropped,
    ResultLost,
    SessionRefused,
    Vetoed,
)
from drakkar.handlers.raft.entries import EntryKind

__all__ = ["DEFAULT_TIMEOUT_S", "Endpoint", "Later", "Session", "later_on", "open_session"]

_KINDS: Final = bytes([EntryKind.SESSION])
_TOKEN_VERSION: Final = 1

ATTEMPTS: Final = 4
"""A request without an answer is proposed again after this part of its timeout: what was sent to a leader may be lost."""
MIN_ATTEMPT_TIMEOUT_S: Final = 0.5
MAX_ATTEMPT_TIMEOUT_S: Final = 10.0
"""Bounds of the time that one attempt waits for its answer."""
MIN_WAIT_S: Final = 0.02
MAX_WAIT_S: Final = 0.5
"""The first and the longest wait before the next attempt at a request that was refused."""


class Later(Protocol):
    """Calls a function once after `delay` seconds, in any thread. Never blocks the caller."""

    def __call__(self, delay: float, fn: Callable[[], object], /) -> object:
        """Raises `LoopError` once the loop has ended."""


def later_on(loop: TrioLoop) -> Later:
    """Return a `Later` that calls functions on a loop: after their delay, or when the loop ends if that is earlier."""

    def later(delay: float, fn: Callable[[], object], /) -> None:
        loop.spawn(trio.sleep, delay, name="a session's pause").finished.add_done_callback(lambda _: fn())

    return later


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What a session knows of the replica that it proposes to."""

    shard_id: int
    put: Callable[[Proposal], None]
    """Takes a proposal from any thread, and answers it by its deadline in every case; as the lane of proposals does."""
    later: Later
    max_command_bytes: int
    compress: bool = False
    """Compress commands that become smaller by it."""
    owner: Owner | None = None
    """Must do its work before a request is answered."""
    now: Callable[[], float] = time.monotonic
    random: Random = field(default_factory=Random)
    """Decides how long attempts wait for one another."""

    def reason_to_refuse(self, command: object) -> DrakkarError | None:
        """Why this is no command that can be proposed; None if it is one."""
        if type(command) is not bytes:
            return ConfigError("command", type(command).__name__, "a command is bytes: encode it first")
        if len(command) > self.max_command_bytes:
            return RequestDropped(
                f"a command of {len(command)} bytes is larger than {self.max_command_bytes}: make it smaller, or "
                "raise the host's max_command_bytes"
            )
        return None


def open_session(
    endpoint: Endpoint, *, token: bytes | None = None, timeout: float = DEFAULT_TIMEOUT_S
) -> "ActorFuture[Session]":
    """Open a session; with a `token`, continue that one, which needs no message. See `Replica.session`."""
    future: ActorFuture[Session] = ActorFuture.of(endpoint.owner)
    check_timeout(timeout)
    if token is not None:
        try:
            future.set(_of_token(endpoint, token))
        except ConfigError as error:
            future.fail(error)
        return future

    def request() -> bytes:
        # A new id for each attempt. An earlier attempt may take effect late; with the same id, it would bring back a
        # session that the shard has forgotten meanwhile, without its results.
        return encode_request(secrets.randbelow(REGISTER - 1) + 1, REGISTER, 0, b"")

    def conclude(client: Any, error: BaseException | None, _: bool) -> None:
        if error is None:
            future.try_set(Session(endpoint, client))
        elif isinstance(error, OutcomeUnknown):
            late = (
                "no session was opened by the deadline: open one again (one that is opened late stays unused; last error: "
                f"{in_full(error)})"
            )
            future.try_fail(RequestDropped(late))
        else:
            future.try_fail(error)

    _Attempts(endpoint, request, timeout, conclude).start()
    return future


class Session:
    """A client's session with a shard: each of its commands is applied once, however often it is proposed.

        session = replica.session().get(timeout=5)
        try:
            session.propose(b"pay 5", timeout=3).get()
        except OutcomeUnknown:
            session.retry(timeout=60).get()   # the result of the first time that it arrives

    One command at a time; to have several under way, open several sessions. Until its deadline, a command is proposed
    again where that may help: no leader, another leader, a full queue, no answer. It fails with

    - `OutcomeUnknown`: it may or may not have been applied, and may still be. The command stays open: `retry` it, here
      or, with the `token`, through another host; or `close` the session;
    - `SessionExpired`: the shard has forgotten the session, since it keeps the 4096 that were used last. If
      `outcome_known` is False, it is unknown whether the command was applied. The session is over;
    - `SessionRefused`: another client used this session, or its token is an old one. The session is over;
    - `Refused`: the state machine refused it; a `retry` would get the same answer. No command stays open;
    - `ResultLost`: it was applied or refused, once, by an earlier request, and its result is of a type or size that the shard
      does not keep (it keeps None, bool, int of 64 bits, float, str, bytes, and list, tuple and dict of them, to 1 MiB);
    - what `Replica.propose` fails with where surely nothing happened. No command stays open then.

    All methods may be called from any thread, and none of them blocks.
    """

    def __init__(
        self, endpoint: Endpoint, client: int, series: int = 1, command: bytes | None = None
    ) -> None:
        """Made by `Replica.session`. `series`: the number of the next command. `command`: the open one, if any."""
        self.client = client
        """The id by which the shard knows the session."""
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._series = series
        self._command = command
        self._under_way = ""
        """What is not answered yet: "a command", "close()" or, mostly, nothing."""
        self._over: DrakkarError | None = None
        """Why it takes no commands any more."""
        self._gone = False
        """The shard has no such session any more, or another client uses it."""
        self._process = here.process
        on_fork(self)

    def __repr__(self) -> str:
        return f"<Session {self.client} with shard {self._endpoint.shard_id}, at its command {self._series}>"

    @property
    def open(self) -> bool:
        """Whether a command is under way, or its outcome is unknown."""
        return self._command is not None

    @property
    def token(self) -> bytes:
        """What another host, or a later process, needs to continue this session: `replica.session(token=…)`.

        It includes the open command, so take one while a command is under way: its holder may `retry`, and nothing is
        applied twice. Continue only with the newest token, and in one place.
        """
        with self._lock:
            return cbor2.dumps(
                [_TOKEN_VERSION, self._endpoint.shard_id, self.client, self._series, self._command]
            )

    def propose(self, command: bytes, *, timeout: float = DEFAULT_TIMEOUT_S) -> ActorFuture[Any]:
        """Have a command applied once; the future has its result. `timeout` in seconds.

        Fails with `RequestDropped` if another command is under way, or open.
        """
        future: ActorFuture[Any] = ActorFuture.of(self._endpoint.owner)
        check_timeout(timeout)
        refusal = self._endpoint.reason_to_refuse(command) or self._begin(command)
        if refusal is None:
            self._repeat(future, command, timeout, unknown=False)
        else:
            future.fail(refusal)
        return future

    def retry(self, *, timeout: float = DEFAULT_TIMEOUT_S) -> ActorFuture[Any]:
        """Propose the open command again. It is applied unless it was; the future has the result of the one time.

        Fails with `RequestDropped` if no command is open.
        """
        future: ActorFuture[Any] = ActorFuture.of(self._endpoint.owner)
        check_timeout(timeout)
        with self._lock:
            command = self._command
            refusal = self._reason_not_now()
            if refusal is None and command is not None:
                self._under_way = "a command"
        if refusal is not None:
            future.fail(refusal)
        elif command is None:
            future.fail(RequestDropped("no command is open, so there is nothing to retry: propose it"))
        else:
            self._repeat(future, command, timeout, unknown=True)
        return future

    def close(self, *, timeout: float = DEFAULT_TIMEOUT_S) -> ActorFuture[None]:
        """Let the shard forget the session; an open command of it is not applied after that.

        The session takes no commands from now on. If the future fails, call it again, or leave it: the shard forgets
        sessions that are not used. The future is set at once if the session is over already.
        """
        future: ActorFuture[None] = ActorFuture.of(self._endpoint.owner)
        check_timeout(timeout)
        with self._lock:
            refusal = self._reason_not_now() if self._under_way else None
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

    def _let_go_in_child(self) -> None:
        """Take nothing in a forked child, where no thread answers."""
        self._lock = threading.Lock()  # a thread that is gone may hold it
        self._under_way, self._over = "", self._process.error(self)

    def _reason_not_now(self) -> DrakkarError | None:
        """Why it can take nothing now, if so. Called with the lock."""
        if self._under_way:
            return RequestDropped(
                f"{self._under_way} of this session is under way: wait for its answer first"
            )
        return self._over

    def _begin(self, command: bytes) -> DrakkarError | None:
        with self._lock:
            refusal = self._reason_not_now()
            if refusal is None and self._command is not None:
                refusal = RequestDropped(
                    f"the outcome of command {self._series} of this session is unknown: retry() it or close() the "
                    "session first"
                )
            if refusal is None:
                self._command, self._under_way = command, "a command"
            return refusal

    def _repeat(self, future: ActorFuture[Any], command: bytes, timeout: float, *, unknown: bool) -> None:
        series = self._series
        (payload,), kinds = encode((command,)) if self._endpoint.compress else ((command,), b"")
        # One command at a time, so the results of all before it are here.
        request = encode_request(self.client, series, series - 1, payload, encoded=bool(kinds))

        def conclude(result: Any, error: BaseException | None, unknown: bool) -> None:
            settle(future, result, self._conclude(error, unknown))

        _Attempts(self._endpoint, lambda: request, timeout, conclude, unknown=unknown).start()

    def _unregister(self, future: ActorFuture[None], timeout: float) -> None:
        request = encode_request(self.client, UNREGISTER, 0, b"")

        def conclude(_: Any, error: BaseException | None, unknown: bool) -> None:
            settle(future, None, self._conclude_close(error, unknown))

        _Attempts(self._endpoint, lambda: request, timeout, conclude).start()

    def _conclude(self, error: BaseException | None, unknown: bool) -> BaseException | None:
        """Note how the command ended, and return the error for its client, if it failed."""
        with self._lock:
            self._under_way = ""
            if error is None or isinstance(error, Refused | ResultLost):
                self._series += 1
                self._command = None
            elif isinstance(error, SessionRefused):
                error.outcome_known = not unknown
                self._end(f"the session is over, so open another one: {error}")
            elif not unknown:
                self._command = None
            else:
                return OutcomeUnknown(
                    f"command {self._series} of this session may or may not have been applied, and may still be: "
                    f"retry() it, or close() the session (last error: {in_full(error)})"
                )
        return error

    def _end(self, why: str) -> None:
        """Take nothing any more, since the shard does not know the session. Called with the lock."""
        self._command = None
        self._gone = True
        self._over = RequestDropped(why)

    def _conclude_close(self, error: BaseException | None, unknown: bool) -> BaseException | None:
        """As `_conclude`, for `close`. A session that the shard does not know counts as closed."""
        with self._lock:
            self._under_way = ""
            if error is None or isinstance(error, SessionRefused):
                self._end("the session is closed: open another one")
                return None
            if unknown:
                return OutcomeUnknown(
                    "the session may or may not be closed: close() it again, or leave it "
                    f"(last error: {in_full(error)})"
                )
        return error


Conclude: TypeAlias = Callable[[Any, "BaseException | None", bool], object]
"""Takes the result, the error, and whether an earlier attempt may have been, or may still be, applied."""


class _Attempts:
    """Proposes a request, and again where that may help, until there is an answer or no time is left."""

    def __init__(
        self,
        endpoint: Endpoint,
        request: Callable[[], bytes],
        timeout: float,
        conclude: Conclude,
        *,
        unknown: bool = False,
    ) -> None:
        self._endpoint, self._request, self._conclude = endpoint, request, conclude
        self._deadline = endpoint.now() + timeout
        self._attempt_timeout = min(max(timeout / ATTEMPTS, MIN_ATTEMPT_TIMEOUT_S), MAX_ATTEMPT_TIMEOUT_S)
        self._backoff = Backoff(MIN_WAIT_S, MAX_WAIT_S, endpoint.random)
        self._unknown = unknown

    def start(self) -> None:
        """Make an attempt. What follows happens in the threads that answer it."""
        future: ActorFuture[Any] = ActorFuture()
        deadline = min(self._deadline, self._endpoint.now() + self._attempt_timeout)
        self._endpoint.put(Proposal((self._request(),), future, deadline, single=True, kinds=_KINDS))
        future.add_done_callback(self._on_answer)

    def _on_answer(self, future: ActorFuture[Any]) -> None:
        result, error = future.outcome()
        if isinstance(result, SessionRefused):
            result, error = None, result
        if error is None or isinstance(error, SessionRefused):
            self._conclude(result, error, self._unknown)
            return
        self._unknown = self._unknown or not getattr(error, "outcome_known", False)
        passing = isinstance(error, RequestDropped | OutcomeUnknown) and not isinstance(error, Vetoed)
        if not (passing and self._try_again()):
            self._conclude(None, error, self._unknown)

    def _try_again(self) -> bool:
        """Make another attempt after a wait; return False if no time is left for that, or the loop has ended."""
        wait = self._backoff.next()
        if self._endpoint.now() + wait >= self._deadline:
            return False
        try:
            self._endpoint.later(wait, self.start)
        except LoopError:  # the host stops
            return False
        return True


def _of_token(endpoint: Endpoint, token: bytes) -> Session:
    try:
        version, shard_id, client, series, command = cbor.loads(token, max_depth=1)
    except (ValueError, TypeError) as error:
        raise ConfigError("token", brief(token), f"is no session's token: {error}") from error
    if not is_whole(version, _TOKEN_VERSION, _TOKEN_VERSION):
        raise ConfigError("token", brief(token), "is no session's token, or one of another version")
    bounded = is_whole(shard_id) and is_whole(client, 1, MAX_UNSIGNED) and is_whole(series, 1, REGISTER - 1)
    if not bounded or type(command) not in {bytes, NoneType}:
        raise ConfigError("token", brief(token), "is no session's token: a value is out of its bounds")
    if shard_id != endpoint.shard_id:
        raise ConfigError(
            "token",
            brief(token),
            f"is of shard {shard_id}, and this is shard {endpoint.shard_id}: ask that one",
        )
    return Session(endpoint, client, series, command)
