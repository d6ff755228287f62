"""Client sessions, the replicated side: what every replica remembers, so that nothing is applied twice (thesis §6.3).

A request of a session is the payload of a SESSION entry:

    1 byte    how: 0 is a command as it is, 1 is one that `actors.compression` encoded
    8 bytes   the client's id, not 0
    8 bytes   the series: 1 for its first command, one more for each that follows
    8 bytes   responded to: the client has the results of the commands up to this series
    the rest  the command

(all numbers big-endian). The replicas of a shard must come to the same table whatever their hosts are, so here is no
clock, no chance and no order but that of the log; and the limits below are as much a part of the protocol.
"""

import struct
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final, NamedTuple, Self

import cbor2
from drakkar.actors.machine.compression import decode
from drakkar.actors.machine.results import NotEncodable, decode_result, encode_result
from drakkar.handlers import cbor
from drakkar.handlers.errors import ConfigError, CorruptData, ResultLost, SessionExpired, SessionRefused

__all__ = [
    "CAPACITY",
    "MAX_KEPT_BYTES",
    "MAX_RESULTS",
    "REGISTER",
    "UNREGISTER",
    "SessionTable",
    "encode_request",
]

REGISTER: Final = (1 << 64) - 2
"""The series that opens a session."""
UNREGISTER: Final = (1 << 64) - 1
"""The series that closes it."""

CAPACITY: Final = 4096
"""Sessions of a shard; the one that was not used for longest makes room for a new one."""
MAX_RESULTS: Final = 64
"""Results that a session may leave without a receipt. Our clients leave one."""
MAX_KEPT_BYTES: Final = 64 << 20
"""Of the results of all sessions together."""

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
        """The command as it was proposed."""
        return decode(self.command) if self.encoded else self.command


def encode_request(
    client: int, series: int, responded_to: int, command: bytes, *, encoded: bool = False
) -> bytes:
    """The payload of a SESSION entry; `encoded`: the command is compressed by `actors.compression`.

    `REGISTER` and `UNREGISTER` come with 0 and no command. Raises `ConfigError`.
    """
    wrong = _what_is_wrong(_Request(client, series, responded_to, command, encoded))
    if wrong:
        raise ConfigError("session request", (client, series, responded_to), wrong)
    return _HEADER.pack(encoded, client, series, responded_to) + command


def _decode_request(payload: bytes) -> _Request:
    if len(payload) < _HEADER.size:
        raise CorruptData(f"{len(payload)} bytes are no request of a session")
    how, client, series, responded_to = _HEADER.unpack_from(payload)
    if how > 1:
        raise CorruptData(
            f"a session's command is encoded in the way {how}, which this version does not know"
        )
    request = _Request(client, series, responded_to, payload[_HEADER.size :], how == 1)
    if wrong := _what_is_wrong(request):
        raise CorruptData(f"a session's request is none: {wrong}")
    return request


def _what_is_wrong(request: _Request) -> str:
    if not all(0 <= number < 1 << 64 for number in request[:3]):
        return "its numbers have 64 bits"
    if not request.client or not request.series:
        return "neither the client nor the series is 0"
    if request.series >= REGISTER and (request.responded_to or request.command or request.encoded):
        return "to open or close a session takes neither a receipt nor a command"
    return ""


class _Kept(NamedTuple):
    """What became of a command."""

    digest: bytes
    """Of the command, since whoever asks for its result must mean this one."""
    result: bytes | str
    """As `results.keep` made it; or, where that cannot be kept, a text that says why."""


class _Session:
    __slots__ = ("kept", "responded_to")

    def __init__(self, responded_to: int = 0, kept: dict[int, _Kept] | None = None) -> None:
        self.responded_to = responded_to
        self.kept: dict[int, _Kept] = kept or {}
        """By series; all of them above `responded_to`."""


class SessionTable:
    """The sessions of a shard, as one of its replicas has them. For whoever has the state machine.

    It is a part of the state, and so of every snapshot, its order included: all replicas forget the same sessions.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        """`capacity`: how many sessions, at most; the same on all replicas. Raises `ConfigError`."""
        if not 0 < capacity < 1 << 32:
            raise ConfigError("session capacity", capacity, "must be from 1 to 2**32 - 1")
        self.capacity = capacity
        self._sessions: OrderedDict[int, _Session] = OrderedDict()
        """The one that was not used for longest is the first."""
        self.kept_bytes = 0
        """Of all kept results together."""

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, client: object) -> bool:
        return client in self._sessions

    # -- requests -----------------------------------------------------------------------------------------------

    def apply(self, payload: bytes, apply: Callable[[bytes], Any]) -> Any:
        """Carry out the request of a SESSION entry, and return the result for whoever proposed it.

        `apply` is the state machine's, and is called with a command that was not applied before. What it raises comes
        through: then nothing is kept, and the replica must end.

        The result is the client's id where a session was opened or closed, and else the command's. Where it is a
        `SessionRefused` (returned, not raised) nothing was applied now:

        - `SessionExpired`: there is no such session;
        - `ResultLost`: the command was applied by an earlier request, and its result is one that could not be kept;
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
        self._receive(session, request.responded_to)
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

    def _receive(self, session: _Session, responded_to: int) -> None:
        """The client has the results up to `responded_to`. It never takes that back; an old request may say less."""
        if responded_to <= session.responded_to:
            return
        session.responded_to = responded_to
        for series in [series for series in session.kept if series <= responded_to]:
            self.kept_bytes -= len(session.kept.pop(series).result)

    def _update(self, session: _Session, request: _Request, apply: Callable[[bytes], Any]) -> Any:
        series = request.series
        if series <= session.responded_to:
            return SessionRefused(
                f"the session {request.client} has got on to command {session.responded_to + 1}, and the result of "
                f"command {series} was given up: this is an old request, or an old token"
            )
        command = request.plain()
        digest = blake2b(command, digest_size=_DIGEST_BYTES).digest()
        known = session.kept.get(series)
        if known is not None:
            return _again(request, digest, known)
        if len(session.kept) >= MAX_RESULTS:
            return _without_effect(
                f"the session {request.client} keeps {MAX_RESULTS} results that its client has not said it "
                "received: let each request say which were"
            )
        result = apply(command)
        kept = _Kept(digest, self._keep(result))
        session.kept[series] = kept
        self.kept_bytes += len(kept.result)
        return result

    def _keep(self, result: Any) -> bytes | str:
        try:
            kept = encode_result(result)
        except NotEncodable as error:
            return str(error)
        if self.kept_bytes + len(kept) > MAX_KEPT_BYTES:
            return f"one too many, since those of all sessions together may take {MAX_KEPT_BYTES} bytes"
        return kept

    # -- as bytes -----------------------------------------------------------------------------------------------

    def encode(self) -> bytes:
        """The table, its order included: equal tables have equal bytes, on all replicas."""
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
        """The table of these bytes. Raises `CorruptData` where they are none."""
        try:
            return cls._of(cbor.loads(data, max_depth=5))
        except (ValueError, CorruptData) as error:
            raise CorruptData(f"{len(data)} bytes are no table of sessions: {error}") from error

    @classmethod
    def _of(cls, value: Any) -> Self:
        version, capacity, sessions = _fields(value, int, int, list)
        if version != _VERSION:
            raise CorruptData(f"version {version} is none that this one knows")
        table = cls(capacity)
        for each in sessions:
            client, responded_to, kept = _fields(each, int, int, list)
            if not 0 < client < 1 << 64 or client in table or not 0 <= responded_to < 1 << 64:
                raise CorruptData(f"the session {client}, with receipts up to {responded_to}, cannot be")
            session = _Session(responded_to, _decode_kept(kept, responded_to))
            table._sessions[client] = session
            table.kept_bytes += sum(len(kept.result) for kept in session.kept.values())
        if len(table) > capacity:
            raise CorruptData(f"{len(table)} sessions are more than its capacity of {capacity}")
        return table


def _again(request: _Request, digest: bytes, known: _Kept) -> Any:
    """A request came again, and gets the first one's result."""
    if digest != known.digest:
        return SessionRefused(
            f"command {request.series} of the session {request.client} was another one: two clients use this session, "
            "or one uses an old token"
        )
    if isinstance(known.result, bytes):
        return decode_result(known.result)
    return ResultLost(
        f"command {request.series} of the session {request.client} was applied, once, but its result is "
        f"{known.result}, and was only for the first request: read the state instead"
    )


def _without_effect(text: str) -> SessionRefused:
    refused = SessionRefused(text)
    refused.outcome_known = True
    return refused


def _expired(client: int) -> SessionExpired:
    return SessionExpired(
        f"there is no session {client}: it was closed, or made room for others that were used more recently, so it "
        "cannot be known any more what it applied; read the state, and open another session"
    )


def _fields(value: Any, *types: type) -> list[Any]:
    """A list of exactly these types."""
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
            raise CorruptData(f"the result of command {series} cannot stand after that of command {last}")
        if not text:
            decode_result(result)  # or it would be found out only by whoever asks for it
        results[series] = _Kept(digest, result)
        last = series
    if len(results) > MAX_RESULTS:
        raise CorruptData(f"{len(results)} results of one session are more than {MAX_RESULTS}")
    return results
