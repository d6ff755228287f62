"""The Redis commands of the key-value example: how each is checked, and what answers it.

A command is answered here, or translated for the state machine into a list of a name and arguments. `query` takes the
list itself, `apply` takes it as CBOR.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import cbor2

from examples.kv_commands import MAX_PATTERN
from examples.resp import OK, Failure, Reply, Request, integer

__all__ = ["COMMANDS", "REDIS_VERSION", "Client", "Kind", "Limits", "plan"]

MAX_NAME: Final = 256
"""Maximum bytes of the name that a client gives its connection."""

COMMAND_OVERHEAD: Final = 64
"""Bytes of memory that a queued command takes beside its own."""

REDIS_VERSION: Final = "7.0.0"
"""The version of Redis whose replies these follow. Clients use it to find out which commands they may send."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one host's front. Keep `max_value` the same on all hosts."""

    max_value: int = 512 << 10
    """Maximum bytes of a key or a value."""
    max_clients: int = 1000
    """Maximum connections of clients at once."""
    timeout: float = 5.0
    """Seconds until a command is answered, if need be with an error. The election of a new leader takes less."""
    attempt: float = 2.0
    """Seconds until the outcome of a write is unknown, where the leader that it was sent to does not answer."""
    idle: float = 300.0
    """Seconds until a client that sends nothing, or takes none of its replies, is disconnected."""

    @property
    def max_command(self) -> int:
        """Maximum bytes of all keys and values of one command, which becomes one entry of the log."""
        return 8 * self.max_value


@dataclass(eq=False, slots=True, kw_only=True)
class Client:
    """The state of one connection."""

    number: int
    name: bytes = b""
    resp3: bool = False
    leaving: bool = False
    transaction: "Transaction | None" = None

    def call(self, name: bytes) -> None:
        """Give the connection a name."""
        if len(name) > MAX_NAME:
            raise RefusedError(f"ERR a name of {len(name)} bytes is over the limit of {MAX_NAME}: shorten it")
        self.name = name


@dataclass(eq=False, slots=True)
class Transaction:
    """The commands since MULTI, encoded for the log."""

    commands: list[bytes] = field(default_factory=list)
    size: int = 0
    """Bytes of the commands."""
    spoiled: bool = False
    """A command was wrong, so EXEC must apply none."""

    @property
    def memory(self) -> int:
        """Bytes of memory that it takes, about."""
        return self.size + COMMAND_OVERHEAD * len(self.commands)


class Host(Protocol):
    """What commands that are answered here need to know of the host."""

    limits: Limits

    def role(self) -> str:
        """Return the replica's state in lower case, such as leader or follower."""

    def info(self) -> dict[str, dict[str, object]]:
        """Return the sections of INFO, each with its fields."""


class Kind(Enum):
    """What answers a command, and which commands travel together."""

    HERE = "the front"
    READ = "a linearizable read of the replica, together with other reads"
    SCAN = "a linearizable read on its own, because its answer may be large"
    WRITE = "an entry of the log"
    TRANSACTION = "one entry of the log, for all commands between MULTI and EXEC"


class RefusedError(Exception):
    """The command is wrong. The text is the reply."""


# -- Commands for the state machine


def _check_sizes(limits: Limits, *arguments: bytes) -> None:
    # Usually all arguments together are smaller than the limit of one.
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
            f"ERR {_shown(min(expiry))} is not supported: keys of this store never expire, so leave it out"
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
    # The limit is part of the command, so all hosts decide alike, even where they were started with different limits.
    return ["APPEND", key, value, limits.max_value]


def _flush_all(_limits: Limits, *mode: bytes) -> list[Any]:
    if mode and mode[0].upper() not in {b"SYNC", b"ASYNC"}:
        raise RefusedError(f"ERR syntax error: FLUSHALL takes SYNC or ASYNC, not {_shown(mode[0])}")
    return ["FLUSHALL"]


def _add(sign: int, limits: Limits, key: bytes, amount: bytes = b"1") -> list[Any]:
    _check_sizes(limits, key)
    if (number := integer(amount)) is None:
        raise RefusedError(
            f"ERR value is not an integer or out of range: {_shown(amount)} is not an integer of 64 bits"
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
    """One row of the table."""

    kind: Kind
    min_arguments: int
    max_arguments: int
    """How many arguments may follow the name."""
    prepare: Callable[..., Any]
    """Translates the arguments for the state machine; for `HERE`, returns the reply."""
    keys: tuple[int, int, int] = (0, 0, 0)
    """The first and the last argument that is a key, and the step from one key to the next, as in COMMAND INFO."""

    @property
    def arity(self) -> int:
        """The number of arguments as Redis counts it: with the name, and negative where more may follow."""
        fixed = self.min_arguments == self.max_arguments
        return 1 + self.min_arguments if fixed else -1 - self.min_arguments


# -- Commands that are answered here


def _ping(_front: Host, _client: Client, *message: bytes) -> Reply:
    return message[0] if message else "PONG"


def _echo(_front: Host, _client: Client, message: bytes) -> Reply:
    return message


def _select(_front: Host, _client: Client, number: bytes) -> Reply:
    if number != b"0":
        raise RefusedError(f"ERR DB index is out of range: {_shown(number)} does not exist, use 0")
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
            client.call(name)
        case [b"AUTH", *_]:
            raise RefusedError(
                "ERR AUTH is not supported: this store has no users and passwords, so leave it out"
            )
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
            client.call(name)
            return OK
        case [b"GETNAME"]:
            return client.name or None
        case [b"ID"]:
            return client.number
        case [b"SETINFO", _, _]:
            return OK
    raise _unknown_subcommand("CLIENT", subcommand, "GETNAME, ID, SETINFO attribute value, SETNAME name")


def _config(front: Host, _client: Client, subcommand: bytes, *patterns: bytes) -> Reply:
    if subcommand.upper() != b"GET" or not patterns:
        raise _unknown_subcommand("CONFIG", subcommand, "GET pattern; set options when you start the host")
    known = {
        "appendonly": b"yes",
        "maxclients": b"%d" % front.limits.max_clients,
        "proto-max-bulk-len": b"%d" % front.limits.max_value,
        "save": b"",
    }
    wanted = [pattern.decode(errors="replace").lower() for pattern in patterns]
    return {name: value for name, value in known.items() if any(fnmatchcase(name, each) for each in wanted)}


def _command(_front: Host, _client: Client, *arguments: bytes) -> Reply:
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
            # Documentation is optional: redis-cli asks for it and works without it.
            return {}
    raise _unknown_subcommand("COMMAND", arguments[0], "COUNT, DOCS, INFO, LIST")


def _described(name: bytes) -> Reply:
    command = COMMANDS[name]
    flags: list[Reply] = ["write" if command.kind is Kind.WRITE else "readonly"]
    # Access categories, tips, key specifications and subcommands are left empty.
    return [name.lower(), command.arity, flags, *command.keys, [], [], [], []]


def _info(front: Host, _client: Client, *sections: bytes) -> Reply:
    wanted = {section.decode(errors="replace").lower() for section in sections}
    everything = not wanted or wanted & {"all", "default", "everything"}
    lines: list[str] = []
    for title, fields in front.info().items():
        if everything or title.lower() in wanted:
            lines += [f"# {title}", *(f"{name}:{value}" for name, value in fields.items()), ""]
    return "\r\n".join(lines).encode()


# -- Transactions: the queued commands, reads too, become one command of the log


def _multi(_front: Host, client: Client) -> "Step":
    if client.transaction is not None:
        raise RefusedError("ERR MULTI calls can not be nested: send EXEC or DISCARD first")
    client.transaction = Transaction()
    return Kind.HERE, partial(str, OK)


def _queue(limits: Limits, transaction: Transaction, command: Command, request: Request) -> "Step":
    if command.kind is Kind.HERE:
        raise RefusedError(
            f"ERR {_shown(request[0])} is not allowed between MULTI and EXEC: send reads and writes only"
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
        raise RefusedError(f"ERR {name} without MULTI: send MULTI first")
    return transaction


# -- Unknown commands


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
    """Return what a client sent as one printable line, cut to 64 bytes."""
    text = argument[:64].decode("ascii", "backslashreplace")
    return "".join(letter if letter.isprintable() else "?" for letter in text)


# -- The table

UNLIMITED: Final = sys.maxsize

COMMANDS: Final[Mapping[bytes, Command]] = {
    b"GET": Command(Kind.READ, 1, 1, partial(_of_keys, "GET"), (1, 1, 1)),
    b"MGET": Command(Kind.READ, 1, UNLIMITED, partial(_of_keys, "MGET"), (1, -1, 1)),
    b"EXISTS": Command(Kind.READ, 1, UNLIMITED, partial(_of_keys, "EXISTS"), (1, -1, 1)),
    b"DBSIZE": Command(Kind.READ, 0, 0, partial(_of_keys, "DBSIZE")),
    b"KEYS": Command(Kind.SCAN, 1, 1, _keys),
    b"SET": Command(Kind.WRITE, 2, UNLIMITED, _set, (1, 1, 1)),
    b"MSET": Command(Kind.WRITE, 2, UNLIMITED, _mset, (1, -1, 2)),
    b"DEL": Command(Kind.WRITE, 1, UNLIMITED, partial(_of_keys, "DEL"), (1, -1, 1)),
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
    b"INFO": Command(Kind.HERE, 0, UNLIMITED, _info),
    b"COMMAND": Command(Kind.HERE, 0, UNLIMITED, _command),
    b"QUIT": Command(Kind.HERE, 0, UNLIMITED, _quit),
    # Clients and tools send these by themselves when they connect.
    b"ECHO": Command(Kind.HERE, 1, 1, _echo),
    b"SELECT": Command(Kind.HERE, 1, 1, _select),
    b"HELLO": Command(Kind.HERE, 0, UNLIMITED, _hello),
    b"CLIENT": Command(Kind.HERE, 1, UNLIMITED, _client),
    b"CONFIG": Command(Kind.HERE, 1, UNLIMITED, _config),
}


Step: TypeAlias = tuple[Kind, Any]
"""What answers, and its input: for `HERE` a function without arguments, for reads a query, for writes the bytes."""


def plan(host: Host, client: Client, request: Request) -> Step:
    """Check the request, and decide what answers it."""
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
    if not command.min_arguments < len(request) <= command.max_arguments + 1:
        raise RefusedError(f"ERR wrong number of arguments for '{_shown(name).lower()}' command")
    return command


def _answer(command: Command, host: Host, client: Client, request: Request) -> Reply:
    try:
        return command.prepare(host, client, *request[1:])  # type: ignore[no-any-return]
    except RefusedError as refused:
        return Failure(str(refused))
