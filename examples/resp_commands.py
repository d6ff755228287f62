"""The Redis commands of the key-value example: what each is checked for, and what becomes of it.

A command is answered here, or turned into what the state machine is given: a list of a name and arguments, which
`query` takes as it is, and `apply` as CBOR.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import cbor2

from examples.resp import OK, Failure, Reply, Request, integer

__all__ = ["COMMANDS", "REDIS_VERSION", "Client", "Kind", "Limits", "plan"]

MAX_PATTERN: Final = 1 << 10
"""Bytes of a pattern of KEYS."""

REDIS_VERSION: Final = "7.0.0"
"""The Redis whose replies these follow; clients look at it to learn what they may ask for."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one host's front takes on."""

    max_value: int = 512 << 10
    """Bytes of a key or a value."""
    max_clients: int = 1000
    timeout: float = 5.0
    """Seconds after which a command is answered, with an error if need be. A new leader is found well within."""
    attempt: float = 2.0
    """Seconds after which a write that was sent to a leader, and of which nothing is heard, is called unknown."""

    @property
    def max_command(self) -> int:
        """Bytes of all keys and values of one command, which becomes one entry of the log."""
        return 8 * self.max_value


@dataclass(eq=False, slots=True, kw_only=True)
class Client:
    """What a connection agreed on."""

    number: int
    name: bytes = b""
    resp3: bool = False
    leaving: bool = False
    transaction: "Transaction | None" = None


@dataclass(eq=False, slots=True)
class Transaction:
    """What was said since MULTI, as the log will hold it."""

    commands: list[bytes] = field(default_factory=list)
    size: int = 0
    spoiled: bool = False
    """Something was wrong, so EXEC must do nothing."""


class Host(Protocol):
    """What the commands that are answered here need to know."""

    limits: Limits

    def role(self) -> str:
        """Name the replica's state: leader, follower, candidate."""

    def info(self) -> dict[str, dict[str, object]]:
        """Gather the sections of INFO, and their fields."""


class Kind(Enum):
    """Who answers a command, and in what company."""

    HERE = "the front"
    READ = "the replica, when it knows that it is up to date, together with other reads"
    SCAN = "the same, alone, because its answer may be large"
    WRITE = "the log"
    TRANSACTION = "the log, for all of several commands or none"


class RefusedError(Exception):
    """The command is wrong; the text is the reply."""


# -- What the state machine is given


def _check_sizes(limits: Limits, *arguments: bytes) -> None:
    # Mostly all of them together are within the bound of one.
    if (total := sum(map(len, arguments))) <= limits.max_value:
        return
    if (longest := max(map(len, arguments))) > limits.max_value:
        raise RefusedError(
            f"ERR a key or value of {longest} bytes is over the limit of {limits.max_value}: "
            "send a smaller one, or start all hosts with a larger --max-value"
        )
    if total > limits.max_command:
        raise RefusedError(
            f"ERR {total} bytes of keys and values are over the limit of {limits.max_command} for one command: "
            "split it into several"
        )


_EXPIRY: Final = frozenset({b"EX", b"PX", b"EXAT", b"PXAT", b"KEEPTTL"})
_SET_OPTIONS: Final = frozenset({b"NX", b"XX", b"GET"})


def _set(limits: Limits, key: bytes, value: bytes, *options: bytes) -> list[Any]:
    _check_sizes(limits, key, value)
    if not options:
        return ["SET", key, value]
    chosen = {option.upper() for option in options}
    if expiry := chosen & _EXPIRY:
        raise RefusedError(
            f"ERR {_shown(min(expiry))} is not offered by this store: its keys never expire, so leave it out"
        )
    if unknown := chosen - _SET_OPTIONS:
        raise RefusedError(
            f"ERR syntax error: SET takes the options NX, XX and GET, not {_shown(min(unknown))}"
        )
    if {b"NX", b"XX"} <= chosen:
        raise RefusedError("ERR syntax error: NX and XX exclude each other")
    return ["SET", key, value, *sorted(option.decode() for option in chosen)]


def _mset(limits: Limits, *pairs: bytes) -> list[Any]:
    if len(pairs) % 2:
        raise RefusedError("ERR wrong number of arguments for 'mset' command: keys and values come in pairs")
    _check_sizes(limits, *pairs)
    return ["MSET", *pairs]


def _append(limits: Limits, key: bytes, value: bytes) -> list[Any]:
    _check_sizes(limits, key, value)
    # The limit travels with the command, so that all hosts judge alike, whatever they were started with.
    return ["APPEND", key, value, limits.max_value]


def _flush_all(_limits: Limits, *mode: bytes) -> list[Any]:
    if mode and mode[0].upper() not in {b"SYNC", b"ASYNC"}:
        raise RefusedError(f"ERR syntax error: FLUSHALL takes SYNC or ASYNC, not {_shown(mode[0])}")
    return ["FLUSHALL"]


def _add(sign: int, limits: Limits, key: bytes, amount: bytes = b"1") -> list[Any]:
    _check_sizes(limits, key)
    if (number := integer(amount)) is None:
        raise RefusedError(
            f"ERR value is not an integer or out of range: {_shown(amount)} has no place in 64 bits"
        )
    return ["INCR", key, sign * number]


def _keys(_limits: Limits, pattern: bytes) -> list[Any]:
    if len(pattern) > MAX_PATTERN:
        raise RefusedError(
            f"ERR a pattern of {len(pattern)} bytes is over the limit of {MAX_PATTERN}: shorten it"
        )
    return ["KEYS", pattern]


def _of_keys(name: str, limits: Limits, *keys: bytes) -> list[Any]:
    _check_sizes(limits, *keys)
    return [name, *keys]


class Command(NamedTuple):
    """One line of the table."""

    kind: Kind
    least: int
    most: int
    """How many arguments follow the name."""
    prepare: Callable[..., Any]
    """Turns the arguments into what the state machine is given; for `HERE`, answers at once."""
    keys: tuple[int, int, int] = (0, 0, 0)
    """The first and last argument that is a key, and the step between, as Redis counts them."""

    @property
    def arity(self) -> int:
        """As Redis counts: the name too, and negative where more may follow."""
        return 1 + self.least if self.least == self.most else -1 - self.least


# -- What is answered here


def _ping(_front: Host, _who: Client, *message: bytes) -> Reply:
    return message[0] if message else "PONG"


def _echo(_front: Host, _who: Client, message: bytes) -> Reply:
    return message


def _select(_front: Host, _who: Client, number: bytes) -> Reply:
    if number != b"0":
        raise RefusedError(f"ERR DB index is out of range: there is only 0, and no {_shown(number)}")
    return OK


def _quit(_front: Host, client: Client, *_ignored: bytes) -> Reply:
    client.leaving = True
    return OK


def _hello(front: Host, client: Client, *arguments: bytes) -> Reply:
    if arguments and arguments[0] not in {b"2", b"3"}:
        raise RefusedError(f"NOPROTO unsupported protocol version {_shown(arguments[0])}: ask for 2 or 3")
    match [option.upper() if at % 2 == 0 else option for at, option in enumerate(arguments[1:])]:
        case []:
            pass
        case [b"SETNAME", name]:
            client.name = name
        case [b"AUTH", *_]:
            raise RefusedError("ERR this store has no users and no passwords: leave AUTH out")
        case _:
            raise RefusedError("ERR syntax error: HELLO takes a protocol version and SETNAME")
    if arguments:
        client.resp3 = arguments[0] == b"3"
    return {
        "server": b"redis",
        "version": REDIS_VERSION.encode(),
        "proto": 3 if client.resp3 else 2,
        "id": client.number,
        "mode": b"standalone",
        "role": b"master" if front.role() == "leader" else b"replica",
        "modules": [],
    }


def _client(_front: Host, client: Client, subcommand: bytes, *arguments: bytes) -> Reply:
    match [subcommand.upper(), *arguments]:
        case [b"SETNAME", name]:
            client.name = name
            return OK
        case [b"GETNAME"]:
            return client.name or None
        case [b"ID"]:
            return client.number
        case [b"SETINFO", _, _]:
            return OK
    raise _unknown_subcommand("CLIENT", subcommand, "GETNAME, ID, SETINFO attribute value, SETNAME name")


def _config(front: Host, _who: Client, subcommand: bytes, *patterns: bytes) -> Reply:
    if subcommand.upper() != b"GET" or not patterns:
        raise _unknown_subcommand(
            "CONFIG", subcommand, "GET pattern; options are set when the host is started"
        )
    known = {
        "appendonly": b"yes",
        "maxclients": b"%d" % front.limits.max_clients,
        "proto-max-bulk-len": b"%d" % front.limits.max_value,
        "save": b"",
    }
    wanted = [pattern.decode(errors="replace").lower() for pattern in patterns]
    return {name: value for name, value in known.items() if any(fnmatchcase(name, each) for each in wanted)}


def _command(_front: Host, _who: Client, *arguments: bytes) -> Reply:
    match [argument.upper() for argument in arguments]:
        case [] | [b"INFO"]:
            return [_described(name) for name in COMMANDS]
        case [b"INFO", *names]:
            return [_described(name) if name in COMMANDS else None for name in names]
        case [b"COUNT"]:
            return len(COMMANDS)
        case [b"LIST"]:
            return [name.lower() for name in COMMANDS]
        case [b"DOCS", *_]:
            # Has a place for a summary, a history, a complexity; redis-cli asks for it and does without.
            return {}
    raise _unknown_subcommand("COMMAND", arguments[0], "COUNT, DOCS, INFO, LIST")


def _described(name: bytes) -> Reply:
    command = COMMANDS[name]
    flags: list[Reply] = ["write" if command.kind is Kind.WRITE else "readonly"]
    # Access categories, tips, key specifications and subcommands follow, and are not told.
    return [name.lower(), command.arity, flags, *command.keys, [], [], [], []]


def _info(front: Host, _who: Client, *sections: bytes) -> Reply:
    wanted = {section.decode(errors="replace").lower() for section in sections}
    everything = not wanted or wanted & {"all", "default", "everything"}
    lines: list[str] = []
    for title, fields in front.info().items():
        if everything or title.lower() in wanted:
            lines += [f"# {title}", *(f"{name}:{value}" for name, value in fields.items()), ""]
    return "\r\n".join(lines).encode()


# -- Transactions: what is queued becomes one command of the log, reads included


def _multi(_front: Host, client: Client) -> "Step":
    if client.transaction is not None:
        raise RefusedError("ERR MULTI calls can not be nested: EXEC or DISCARD the one that is open")
    client.transaction = Transaction()
    return Kind.HERE, partial(str, OK)


def _queue(limits: Limits, transaction: Transaction, command: Command, request: Request) -> "Step":
    if command.kind is Kind.HERE:
        raise RefusedError(
            f"ERR {_shown(request[0])} has no place between MULTI and EXEC: only reads and writes have"
        )
    encoded = cbor2.dumps(command.prepare(limits, *request[1:]))
    if transaction.size + len(encoded) > limits.max_command:
        raise RefusedError(
            f"ERR the transaction is over the limit of {limits.max_command} bytes: split it into several"
        )
    transaction.commands.append(encoded)
    transaction.size += len(encoded)
    return Kind.HERE, partial(str, "QUEUED")


def _exec(_front: Host, client: Client) -> "Step":
    transaction = _close(client, "EXEC")
    if transaction.spoiled:
        return Kind.HERE, partial(Failure, "EXECABORT Transaction discarded because of previous errors.")
    return Kind.WRITE, cbor2.dumps(["EXEC", *transaction.commands])


def _discard(_front: Host, client: Client) -> "Step":
    _close(client, "DISCARD")
    return Kind.HERE, partial(str, OK)


def _close(client: Client, name: str) -> Transaction:
    transaction, client.transaction = client.transaction, None
    if transaction is None:
        raise RefusedError(f"ERR {name} without MULTI: say MULTI first")
    return transaction


# -- Who is not understood


def _unknown_subcommand(name: str, subcommand: bytes, known: str) -> RefusedError:
    return RefusedError(
        f"ERR unknown subcommand or wrong number of arguments for '{_shown(subcommand)}': {name} knows {known}"
    )


def _unknown(name: bytes, *arguments: bytes) -> RefusedError:
    beginning = " ".join(f"'{_shown(argument)}'" for argument in arguments[:4])
    known = ", ".join(sorted(each.decode() for each in COMMANDS))
    return RefusedError(
        f"ERR unknown command '{_shown(name)}', with args beginning with: {beginning}: this store knows {known}"
    )


def _shown(argument: bytes) -> str:
    """Make what a client sent fit for one line on a person's terminal."""
    text = argument[:64].decode("ascii", "backslashreplace")
    return "".join(letter if letter.isprintable() else "?" for letter in text)


# -- The table

MANY: Final = sys.maxsize

COMMANDS: Final[Mapping[bytes, Command]] = {
    b"GET": Command(Kind.READ, 1, 1, partial(_of_keys, "GET"), (1, 1, 1)),
    b"MGET": Command(Kind.READ, 1, MANY, partial(_of_keys, "MGET"), (1, -1, 1)),
    b"EXISTS": Command(Kind.READ, 1, MANY, partial(_of_keys, "EXISTS"), (1, -1, 1)),
    b"DBSIZE": Command(Kind.READ, 0, 0, partial(_of_keys, "DBSIZE")),
    b"KEYS": Command(Kind.SCAN, 1, 1, _keys),
    b"SET": Command(Kind.WRITE, 2, MANY, _set, (1, 1, 1)),
    b"MSET": Command(Kind.WRITE, 2, MANY, _mset, (1, -1, 2)),
    b"DEL": Command(Kind.WRITE, 1, MANY, partial(_of_keys, "DEL"), (1, -1, 1)),
    b"INCR": Command(Kind.WRITE, 1, 1, partial(_add, 1), (1, 1, 1)),
    b"INCRBY": Command(Kind.WRITE, 2, 2, partial(_add, 1), (1, 1, 1)),
    b"DECR": Command(Kind.WRITE, 1, 1, partial(_add, -1), (1, 1, 1)),
    b"DECRBY": Command(Kind.WRITE, 2, 2, partial(_add, -1), (1, 1, 1)),
    b"APPEND": Command(Kind.WRITE, 2, 2, _append, (1, 1, 1)),
    b"FLUSHALL": Command(Kind.WRITE, 0, 1, _flush_all),
    b"MULTI": Command(Kind.TRANSACTION, 0, 0, _multi),
    b"EXEC": Command(Kind.TRANSACTION, 0, 0, _exec),
    b"DISCARD": Command(Kind.TRANSACTION, 0, 0, _discard),
    b"PING": Command(Kind.HERE, 0, 1, _ping),
    b"INFO": Command(Kind.HERE, 0, MANY, _info),
    b"COMMAND": Command(Kind.HERE, 0, MANY, _command),
    b"QUIT": Command(Kind.HERE, 0, MANY, _quit),
    # What clients and tools say by themselves when they connect.
    b"ECHO": Command(Kind.HERE, 1, 1, _echo),
    b"SELECT": Command(Kind.HERE, 1, 1, _select),
    b"HELLO": Command(Kind.HERE, 0, MANY, _hello),
    b"CLIENT": Command(Kind.HERE, 1, MANY, _client),
    b"CONFIG": Command(Kind.HERE, 1, MANY, _config),
}


Step: TypeAlias = tuple[Kind, Any]
"""Who answers, and what is handed to them: `HERE` a function to call, reads a query, the log a command's bytes."""


def plan(host: Host, client: Client, request: Request) -> Step:
    """Check the request, and decide who answers it."""
    try:
        command = _find(request)
        if command.kind is Kind.TRANSACTION:
            return command.prepare(host, client)  # type: ignore[no-any-return]
        if client.transaction is not None:
            return _queue(host.limits, client.transaction, command, request)
        if command.kind is Kind.HERE:
            return Kind.HERE, partial(_answer, command, host, client, request)
        item = command.prepare(host.limits, *request[1:])
    except RefusedError as refused:
        if client.transaction is not None:
            client.transaction.spoiled = True
        return Kind.HERE, partial(Failure, str(refused))
    return command.kind, cbor2.dumps(item) if command.kind is Kind.WRITE else item


def _find(request: Request) -> Command:
    name = request[0]
    command = COMMANDS.get(name) or COMMANDS.get(name.upper())
    if command is None:
        raise _unknown(*request)
    if not command.least < len(request) <= command.most + 1:
        raise RefusedError(f"ERR wrong number of arguments for '{_shown(name).lower()}' command")
    return command


def _answer(command: Command, host: Host, client: Client, request: Request) -> Reply:
    try:
        return command.prepare(host, client, *request[1:])  # type: ignore[no-any-return]
    except RefusedError as refused:
        return Failure(str(refused))
