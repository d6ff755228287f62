"""Client sessions, the replicated side: what every replica remembers, so that no command is applied twice (thesis §6.3).

A request of a session is the payload of a SESSION entry:

    1 byte    the encoding: 0 is a command as it is, 1 is one that `compression` encoded
    8 bytes   the client's id, not 0
    8 bytes   the series: 1 for the first command, one more for each that follows
    8 bytes   responded to: the client has the results of the commands up to this series
    the rest  the command

All numbers are big-endian. The replicas of a shard must come to the same table on all hosts. So nothing here depends on
a clock, on chance, or on any order but the log's, and the limits below are part of the protocol.
"""

import struct
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final, NamedTuple, Self

import cbor2
from drakkar.actors.machine.compression import HEADER_BYTES as COMMAND_HEADER
from drakkar.actors.machine.compression import announced, check, decode
from drakkar.actors.machine.results import NotEncodable, decode_result, encode_result
from drakkar.actors.runtime.log_lines import HostLines
from drakkar.handlers import cbor
from drakkar.handlers.checks import MAX_UNSIGNED, check_whole, is_whole
from drakkar.handlers.errors import ConfigError, CorruptData, ResultLost, SessionExpired, SessionRefused

__all__ = [
    "CAPACITY",
    "FENCE",
    "MAX_KEPT_BYTES",
    "MAX_RESULTS",
    "REGISTER",
    "UNREGISTER",
    "SessionTable",
    "check_request",
    "encode_request",
    "request_size",
    "requested",
]

REGISTER: Final = (1 << 64) - 2
"""The series that opens a session."""
UNREGISTER: Final = (1 << 64) - 1
"""The series that closes it."""

CAPACITY: Final = 4096
"""Sessions of a shard. When there are as many, a new session replaces the least recently used one."""
MAX_RESULTS: Final = 64
"""Results of a session that its client has not confirmed yet. Our clients leave one unconfirmed."""
MAX_KEPT_BYTES: Final = 64 << 20
"""Bytes of the results of all sessions together."""

_HEADER: Final = struct.Struct(">BQQQ")
_DIGEST_BYTES: Final = 16
_VERSION: Final = 1


class _Request(NamedTuple):
    client: int
    series: int
    responded_to: int
    command: bytes
    encoded: bool

    def plain(self) -> bytes:
        """Return the command as it was proposed."""
        return decode(self.command) if self.encoded else self.command


def encode_request(
    client: int, series: int, responded_to: int, command: bytes, *, encoded: bool = False
) -> bytes:
    """Return the payload of a SESSION entry. `encoded` says that `compression` encoded the command.

    `REGISTER` and `UNREGISTER` take no command, and 0 for `responded_to`. Raises `ConfigError`.
    """
    check_whole("client", client, 1, MAX_UNSIGNED)
    check_whole("series", series, 1, MAX_UNSIGNED)
    check_whole("responded_to", responded_to, 0, MAX_UNSIGNED)
    wrong = _problem(_Request(client, series, responded_to, command, encoded))
    if wrong:
        raise ConfigError("session request", (client, series, responded_to), wrong)
    return _HEADER.pack(encoded, client, series, responded_to) + command


def _decode_request(payload: bytes) -> _Request:
    if len(payload) < _HEADER.size:
        raise CorruptData(
            f"a session's request has {len(payload)} bytes, and its header alone takes {_HEADER.size}"
        )
    how, client, series, responded_to = _HEADER.unpack_from(payload)
    if how > 1:
        raise CorruptData(f"a session's command has encoding {how}, which this version does not know")
    request = _Request(client, series, responded_to, payload[_HEADER.size :], how == 1)
    if wrong := _problem(request):
        raise CorruptData(f"a session's request is damaged: {wrong}")
    return request


def check_request(payload: bytes) -> None:
    """Raise `CorruptData` unless `SessionTable.apply` can decode this payload, and its command."""
    request = _decode_request(payload)
    if request.encoded:
        check(request.command)


def request_size(payload: bytes) -> int:
    """Return how many bytes the command of this payload has, as the payload says. Raises `CorruptData` if it does not say."""
    at = _HEADER.size
    return announced(payload[at : at + COMMAND_HEADER]) if payload[:1] == b"\1" else max(len(payload) - at, 0)


def requested(payload: bytes) -> tuple[bytes, bool] | None:
    """Return the command of a SESSION entry, and whether it is compressed. None for a request that has none.

    Raises `CorruptData` for a payload that is no request.
    """
    request = _decode_request(payload)
    return None if request.series >= REGISTER else (request.command, request.encoded)


def _problem(request: _Request) -> str:
    if not request.client or not request.series:
        return "neither the client nor the series may be 0"
    if request.series >= REGISTER and (request.responded_to or request.command or request.encoded):
        return "opening and closing a session takes neither a command nor a `responded_to`"
    return ""


FENCE: Final = encode_request(MAX_UNSIGNED, UNREGISTER, 0, b"")
"""The payload of an entry that changes nothing, and whose result is its index: it closes a session that no client opens."""


class _Kept(NamedTuple):
    """The outcome of a command that was applied."""

    digest: bytes
    """Of the command: a request with the same series must have the same command."""
    result: bytes | str
    """As `encode_result` made it, or a text that says why the result could not be kept."""


class _Session:
    __slots__ = ("kept", "responded_to")

    def __init__(self, responded_to: int = 0, kept: dict[int, _Kept] | None = None) -> None:
        self.responded_to = responded_to
        self.kept: dict[int, _Kept] = kept or {}
        """By series, all of them above `responded_to`."""


class SessionTable:
    """The sessions of a shard, as one of its replicas has them. For the thread that uses the state machine.

    The table is part of the state and of every snapshot, its order included: all replicas forget the same sessions.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        """`capacity` is the greatest number of sessions, the same on all replicas. Raises `ConfigError`."""
        check_whole("capacity", capacity, 1, (1 << 32) - 1)
        self.capacity = capacity
        self._sessions: OrderedDict[int, _Session] = OrderedDict()
        """The least recently used one is the first."""
        self.kept_bytes = 0
        """Bytes of all kept results together."""
        self.lines = HostLines().of("drakkar.actors.machine")
        self._told = False

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, client: object) -> bool:
        return client in self._sessions

    # -- requests -----------------------------------------------------------------------------------------------

    def apply(self, payload: bytes, apply: Callable[[bytes], Any]) -> Any:
        """Carry out the request of a SESSION entry, and return the result for its proposer.

        `apply` is the state machine's. It is called with a command that was not applied before, and returns a `Refused`
        where the state machine raises one: that is kept as any result is. If it raises, nothing is kept, the exception
        comes through, and the replica must end.

        The result is the client's id for a session that was opened or closed, and otherwise the command's. If it is a
        `SessionRefused`, which is returned and not raised, nothing was applied now:

        - `SessionExpired`: there is no such session;
        - `ResultLost`: the command came with an earlier request, and its result could not be kept;
        - otherwise the text says what is wrong with the request.

        Raises `CorruptData` for a payload that is no request.
        """
        request = _decode_request(payload)
        if request.series == REGISTER:
            return self._register(request.client)
        if request.series == UNREGISTER:
            return self._unregister(request.client)
        session = self._sessions.get(request.client)
        if session is None:
            return _expired(request.client)
        self._sessions.move_to_end(request.client)
        self._confirm(session, request.responded_to)
        return self._update(session, request, apply)

    def _register(self, client: int) -> int | SessionRefused:
        if client in self._sessions:
            self._sessions.move_to_end(client)
            return _without_effect(f"the session {client} exists already: open one with another id")
        if len(self._sessions) == self.capacity:
            _, evicted = self._sessions.popitem(last=False)
            self._forget(evicted)
        self._sessions[client] = _Session()
        return client

    def _unregister(self, client: int) -> int | SessionRefused:
        session = self._sessions.pop(client, None)
        if session is None:
            return _expired(client)
        self._forget(session)
        return client

    def _forget(self, session: _Session) -> None:
        self.kept_bytes -= sum(len(kept.result) for kept in session.kept.values())

    def _confirm(self, session: _Session, responded_to: int) -> None:
        """Forget the results that the client has: those up to `responded_to`. An old request may name fewer."""
        if responded_to <= session.responded_to:
            return
        session.responded_to = responded_to
        for series in [series for series in session.kept if series <= responded_to]:
            self.kept_bytes -= len(session.kept.pop(series).result)

    def _update(self, session: _Session, request: _Request, apply: Callable[[bytes], Any]) -> Any:
        series = request.series
        if series <= session.responded_to:
            return SessionRefused(
                f"the session {request.client} has confirmed its results up to command {session.responded_to}, so that of "
                f"command {series} was given up: this is an old request, or an old token"
            )
        command = request.plain()
        digest = blake2b(command, digest_size=_DIGEST_BYTES).digest()
        known = session.kept.get(series)
        if known is not None:
            return _again(request, digest, known)
        if len(session.kept) >= MAX_RESULTS:
            return _without_effect(
                f"the session {request.client} keeps {MAX_RESULTS} results that its client has not confirmed: "
                "let each request say which results were received"
            )
        result = apply(command)
        kept = _Kept(digest, self._keep(request, result))
        session.kept[series] = kept
        self.kept_bytes += len(kept.result)
        return result

    def _keep(self, request: _Request, result: Any) -> bytes | str:
        try:
            kept = encode_result(result)
        except NotEncodable as error:
            self._tell_once(request, error)
            return str(error)
        if self.kept_bytes + len(kept) > MAX_KEPT_BYTES:
            return f"one too many, since those of all sessions together may take {MAX_KEPT_BYTES} bytes"
        return kept

    def _tell_once(self, request: _Request, error: NotEncodable) -> None:
        """Tell the author of the state machine, since a client finds out only when it has to ask again."""
        if not self._told:
            self._told = True
            self.lines.warning(
                "the result of command %d of the session %d cannot be kept for a client that asks again, since it is %s: "
                "return values that `Session` lists from apply (this is logged once)",
                request.series,
                request.client,
                error,
            )

    # -- as bytes -----------------------------------------------------------------------------------------------

    def encode(self) -> bytes:
        """Return the table as bytes, its order included. Equal tables have equal bytes on all replicas."""
        sessions = [
            [
                client,
                session.responded_to,
                [[series, *session.kept[series]] for series in sorted(session.kept)],
            ]
            for client, session in self._sessions.items()
        ]
        return cbor2.dumps([_VERSION, self.capacity, sessions])

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the table of these bytes. Raises `CorruptData` if they are not what `encode` makes."""
        try:
            return cls._of(cbor.loads(data, max_depth=5))
        except (ValueError, CorruptData) as error:
            raise CorruptData(
                f"a table of sessions, of {len(data)} bytes, cannot be decoded: {error}"
            ) from error

    @classmethod
    def _of(cls, value: Any) -> Self:
        version, capacity, sessions = _fields(value, int, int, list)
        if version != _VERSION:
            raise CorruptData(f"its version is {version}, and this version reads {_VERSION}")
        table = cls(capacity)
        for each in sessions:
            client, responded_to, kept = _fields(each, int, int, list)
            bounded = is_whole(client, 1, MAX_UNSIGNED) and is_whole(responded_to, 0, MAX_UNSIGNED)
            if not bounded or client in table:
                raise CorruptData(
                    f"the session {client}, confirmed up to {responded_to}, is out of bounds or stands there twice"
                )
            session = _Session(responded_to, _decode_kept(kept, responded_to))
            table._sessions[client] = session
            table.kept_bytes += sum(len(kept.result) for kept in session.kept.values())
        if len(table) > capacity:
            raise CorruptData(f"it holds {len(table)} sessions, and its capacity is {capacity}")
        return table


def _again(request: _Request, digest: bytes, known: _Kept) -> Any:
    """Return the result of the first request to one that came again."""
    if digest != known.digest:
        return SessionRefused(
            f"command {request.series} of the session {request.client} was another one: two clients use this session, "
            "or one uses an old token"
        )
    if isinstance(known.result, bytes):
        return decode_result(known.result)
    return ResultLost(
        f"command {request.series} of the session {request.client} was applied or refused, once, and its result was not "
        f"kept, since it is {known.result}: read the state instead"
    )


def _without_effect(text: str) -> SessionRefused:
    refused = SessionRefused(text)
    refused.outcome_known = True
    return refused


def _expired(client: int) -> SessionExpired:
    return SessionExpired(
        f"there is no session {client}: it was closed, or replaced by others that were used more recently. What it "
        "applied is no longer known: read the state, and open another session"
    )


def _fields(value: Any, *types: type) -> list[Any]:
    """Return a list of exactly these types."""
    if type(value) is not list or tuple(map(type, value)) != types:
        raise CorruptData(f"not a list of {', '.join(each.__name__ for each in types)}")
    return value


def _decode_kept(rows: list[Any], responded_to: int) -> dict[int, _Kept]:
    results: dict[int, _Kept] = {}
    last = responded_to
    for row in rows:
        text = type(row) is list and len(row) == 3 and type(row[2]) is str
        series, digest, result = _fields(row, int, bytes, str if text else bytes)
        if not last < series < REGISTER or len(digest) != _DIGEST_BYTES:
            raise CorruptData(f"the result of command {series} follows that of command {last}")
        if not text:
            decode_result(result)  # now, and not only when a client asks for it
        results[series] = _Kept(digest, result)
        last = series
    if len(results) > MAX_RESULTS:
        raise CorruptData(f"a session has {len(results)} results, and at most {MAX_RESULTS} are allowed")
    return results
