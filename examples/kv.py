r"""One host of a replicated key-value store that speaks the Redis protocol.

    python -m examples.kv --replica 1 --data-dir d1 --redis 10.0.0.1:6379 \
        --members 1=10.0.0.1:7001,2=10.0.0.2:7001,3=10.0.0.3:7001

Run the same with replica 2 and replica 3 on the other two machines. Then connect a Redis client to any of them.
`make cluster` runs three hosts on this machine. With --tls-ca, --tls-cert and --tls-key the hosts refuse all that
have no certificate. Clients of the Redis port need none, so it belongs on an address that only they reach.

From top to bottom: the state machine, which is all that a replicated application must write; one host; the command
line.
"""

import argparse
import logging
import re
import signal
import struct
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from errno import EADDRINUSE
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import cbor2
import trio
from drakkar.actors import (
    ActorDied,
    ActorFuture,
    ConfigError,
    DrakkarError,
    NodeHost,
    ReplicaStopped,
    StateMachine,
    TlsConfig,
    watch,
)

from examples.kv_commands import WrongCommandError, decode
from examples.resp import OK, Failure, Reply, integer
from examples.resp_commands import Limits
from examples.resp_front import Front

# -- The state machine ------------------------------------------------------------------------------------------


class KeyValue(StateMachine):
    """Keys and values. Every host applies the same commands in the same order, so all hold the same.

    An invalid command gets a `Failure` as its reply, since an exception would stop the replica. A result must depend on
    nothing that differs between hosts: no clock, no random number, no local setting.
    """

    blocks = False  # a dictionary is fast enough for the loop's own thread

    def __init__(self) -> None:
        self.data: MutableMapping[bytes, bytes] = {}

    def apply(self, command: bytes) -> Reply:
        """Apply one command of the log, and return its reply. Bytes that are no command change nothing."""
        try:
            name, arguments = decode(command)
        except WrongCommandError as error:
            return Failure(f"ERR not a command of this store, so nothing was changed: {error}")
        return self._COMMANDS[name](self, *arguments)

    def query(self, query: Sequence[Sequence[Any]]) -> list[Reply]:
        """Answer several read commands from one and the same state."""
        return [self._COMMANDS[name](self, *arguments) for name, *arguments in query]

    # -- Writes

    def _set(self, key: bytes, value: bytes, *options: str) -> Reply:
        before = self.data.get(key)
        if not (("NX" in options and before is not None) or ("XX" in options and before is None)):
            self.data[key] = value
            return before if "GET" in options else OK
        return before if "GET" in options else None

    def _mset(self, *pairs: bytes) -> Reply:
        self.data.update(zip(pairs[::2], pairs[1::2], strict=True))
        return OK

    def _del(self, *keys: bytes) -> Reply:
        before = len(self.data)
        for key in keys:
            self.data.pop(key, None)
        return before - len(self.data)

    def _incr(self, key: bytes, amount: int) -> Reply:
        before = integer(self.data.get(key, b"0"))
        if before is None:
            return Failure(
                "ERR value is not an integer or out of range: a counter must be an integer of 64 bits"
            )
        after = before + amount
        if not -(1 << 63) <= after < 1 << 63:
            return Failure(f"ERR increment or decrement would overflow: {after} does not fit in 64 bits")
        self.data[key] = b"%d" % after
        return after

    def _append(self, key: bytes, value: bytes, limit: int) -> Reply:
        longer = self.data.get(key, b"") + value
        if len(longer) > limit:
            return Failure(
                f"ERR the value would have {len(longer)} bytes, over the limit of {limit}: "
                "use another key, or start all hosts with a larger --max-value"
            )
        self.data[key] = longer
        return len(longer)

    def _flush_all(self) -> Reply:
        self.data.clear()
        return OK

    def _exec(self, *commands: tuple[str, Sequence[Any]]) -> Reply:
        """Apply several commands as one: no other command comes between them, and no read sees only some of them.

        The values that APPEND makes are bounded together. By some bytes each, a transaction could else make a large value longer
        a thousand times, and read it in between: its replies would hold them all.
        """
        replies: list[Reply] = []
        made = 0
        for name, arguments in commands:
            if name == "APPEND":
                key, value, limit = arguments
                made += len(self.data.get(key, b"")) + len(value)
                if made > MAX_APPENDED * limit:
                    replies.append(
                        Failure(
                            f"ERR APPEND makes values of more than {MAX_APPENDED * limit} bytes in one transaction: split it"
                        )
                    )
                    continue
            replies.append(self._COMMANDS[name](self, *arguments))
        return replies

    # -- Reads

    def _get(self, key: bytes) -> Reply:
        return self.data.get(key)

    def _mget(self, *keys: bytes) -> Reply:
        return [self.data.get(key) for key in keys]

    def _exists(self, *keys: bytes) -> Reply:
        return sum(key in self.data for key in keys)

    def _dbsize(self) -> Reply:
        return len(self.data)

    def _keys(self, pattern: bytes) -> Reply:
        fits = glob(pattern).fullmatch
        return [key for key in self.data if fits(key)]

    _COMMANDS: Final[Mapping[str, Callable[..., Reply]]] = {
        "SET": _set,
        "MSET": _mset,
        "DEL": _del,
        "INCR": _incr,
        "APPEND": _append,
        "FLUSHALL": _flush_all,
        "EXEC": _exec,
        "GET": _get,
        "MGET": _mget,
        "EXISTS": _exists,
        "DBSIZE": _dbsize,
        "KEYS": _keys,
    }

    # -- Snapshots: blocks of keys and values, each after its length; an empty block is the end

    def save(self, sink: BinaryIO) -> None:
        """Write the whole state."""
        block: list[bytes] = []
        size = 0
        for pair in self.data.items():
            block += pair
            size += len(pair[0]) + len(pair[1])
            if size > _BLOCK:
                _write_block(sink, block)
                block, size = [], 0
        if block:
            _write_block(sink, block)
        _write_block(sink, [])

    def load(self, source: BinaryIO) -> None:
        """Replace the whole state by what `save` wrote."""
        self.data = {}
        while block := _read_block(source):
            self._mset(*block)


MAX_APPENDED: Final = 2
"""The bytes of all values that APPEND may make in one transaction, in times of the largest value. The same on all hosts."""

_BLOCK: Final = 256 << 10
_LENGTH: Final = struct.Struct(">I")


def _write_block(sink: BinaryIO, block: list[bytes]) -> None:
    encoded = cbor2.dumps(block)
    sink.write(_LENGTH.pack(len(encoded)) + encoded)


def _read_block(source: BinaryIO) -> list[bytes]:
    (length,) = _LENGTH.unpack(source.read(_LENGTH.size))
    block: list[bytes] = cbor2.loads(source.read(length))
    return block


def glob(pattern: bytes) -> re.Pattern[bytes]:
    r"""Translate a pattern of Redis: `*`, `?`, `[abc]`, `[^a-c]`, and `\` before a literal character.

    Each `*` matches as little as possible and never backtracks. That finds the same keys, in linear time.
    """
    parts: list[bytes] = [b""]
    for token in _TOKEN.findall(pattern):
        if token == b"*":
            parts.append(b"")
        else:
            parts[-1] += _translated(token)
    first, *middle = parts
    if not middle:
        return re.compile(first, re.DOTALL)
    *middle, last = middle
    between = b"".join(b"(?>.*?%b)" % part for part in middle if part)
    return re.compile(b"%b%b.*%b" % (first, between, last), re.DOTALL)


_TOKEN: Final = re.compile(rb"\*|\?|\[\^?(?:\\.|[^\]\\])*\]|\\?.", re.DOTALL)
_RANGE: Final = re.compile(rb"(\\.|.)(?:-(.))?", re.DOTALL)


def _translated(token: bytes) -> bytes:
    if token == b"?":
        return b"."
    if token[:1] == b"[" and len(token) > 1:
        return _translated_class(token[1:-1])
    return re.escape(token[-1:])


def _translated_class(body: bytes) -> bytes:
    others = body[:1] == b"^"
    ranges = b""
    for one, end in _RANGE.findall(body[others:]):
        low, high = sorted((one[-1:], end or one[-1:]))
        ranges += re.escape(low) + b"-" + re.escape(high)
    if not ranges:
        return b"." if others else b"(?!)"
    return b"[%b%b]" % (b"^" if others else b"", ranges)


# -- One host ---------------------------------------------------------------------------------------------------


class Address(NamedTuple):
    """A host and a port to listen on."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def serve(options: argparse.Namespace, machine: Callable[[], StateMachine]) -> None:
    """Run one host until SIGINT or SIGTERM. Prints one line when it accepts clients.

    Raises `DrakkarError` where the host cannot start, and where its replica fails.
    """
    raft: str = options.members[options.replica]
    limits: Limits = options.limits
    ended: ActorFuture[ActorDied | None] = ActorFuture()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.try_set(None))
    with NodeHost(
        raft,
        data_dir=options.data_dir,
        deployment_id=options.deployment,
        tls=options.tls,
        # A command has a few bytes of its own for each key and value.
        max_command_bytes=limits.max_command + (1 << 20),
    ) as host:
        # The front runs on the host's own loop, so a request passes through no other thread on its way to the replica.
        listeners = host.loop.call(listen, options.redis)
        redis = options.redis._replace(port=listeners[0].socket.getsockname()[1])
        replica = host.start_replica(machine, shard_id=1, replica_id=options.replica, members=options.members)
        watch(replica.ref, ended.try_set)
        front = Front(
            replica, limits, {"tcp_port": redis.port, "replica": options.replica, "raft_address": raft}
        )
        host.loop.spawn(front.serve, listeners, on_crash=ended.try_fail)
        print(f"ready: replica {options.replica}, redis on {redis}, raft on {raft}", flush=True)
        end = ended.get()
        if end is not None:
            raise ReplicaStopped(f"replica {options.replica} failed, and this process ends: {end.reason}")


async def listen(where: Address) -> list[trio.SocketListener]:
    """Open the port for clients. Raises `ConfigError` where that is not possible."""
    try:
        return await trio.open_tcp_listeners(where.port, host=where.host)
    except OSError as error:
        remedy = (
            "stop the process that uses it, or choose another port"
            if error.errno == EADDRINUSE
            else "choose another address"
        )
        raise ConfigError(
            "--redis", str(where), f"cannot listen there, {error.strerror}: {remedy}"
        ) from error


# -- The command line -------------------------------------------------------------------------------------------

MAX_VALUE: Final = 2 << 20
"""The highest --max-value, in bytes."""


def address(text: str, *, min_port: int = 1) -> Address:
    """Read HOST:PORT, or [HOST]:PORT where the host is an IPv6 address."""
    match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\[\]]+)):([0-9]{1,5})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not an address: write HOST:PORT, as in 10.0.0.1:6379")
    port = int(match[3])
    if not min_port <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r}: choose a port from {min_port} to 65535")
    return Address(match[1] or match[2], port)


def redis_address(text: str) -> Address:
    """Read an address whose port may be 0, which takes a free one."""
    return address(text, min_port=0)


def replica_id(text: str) -> int:
    """Read the id of a replica."""
    if not re.fullmatch(r"[1-9][0-9]{0,17}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a replica id: write a number from 1 up")
    return int(text)


def members(text: str) -> dict[int, str]:
    """Read the members of the cluster: their replica ids and addresses."""
    known: dict[int, str] = {}
    for member in text.split(","):
        number, separator, where = member.partition("=")
        if not separator:
            raise argparse.ArgumentTypeError(
                f"{member!r} in {text!r} is not a member: write ID=HOST:PORT, as in 1=10.0.0.1:7001"
            )
        replica = replica_id(number.strip())
        if replica in known:
            raise argparse.ArgumentTypeError(f"{text!r} names replica {replica} twice: give each its own id")
        known[replica] = str(address(where.strip()))
        if len(set(known.values())) < len(known):
            raise argparse.ArgumentTypeError(
                f"{text!r} names {where} twice: give each replica its own address"
            )
    return known


def between(low: float, high: float, kind: Callable[[str], float]) -> Callable[[str], float]:
    """Return a reader of numbers from `low` to `high`, both allowed."""

    def read(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = high + 1
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high}")
        return number

    return read


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line. Ends the process with status 2 and a message where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="kv",
        description="One host of a replicated key-value store that speaks Redis.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--replica",
        type=replica_id,
        required=True,
        metavar="N",
        help="the id of this host's replica, one of --members",
    )
    add(
        "--members",
        type=members,
        required=True,
        metavar="1=HOST:PORT,...",
        help="all replicas and their addresses for each other; the same list on each host",
    )
    add(
        "--data-dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="where this host keeps its log; created if missing",
    )
    add(
        "--redis",
        type=redis_address,
        required=True,
        metavar="HOST:PORT",
        help="where clients connect; port 0 takes a free one",
    )
    add(
        "--deployment",
        default="kv",
        metavar="NAME",
        help="hosts with another name are refused (default: kv)",
    )
    for option, what in (
        ("ca", "the certificate of the authority that signed those of all hosts"),
        ("cert", "the certificate of this host"),
        ("key", "its private key"),
    ):
        add(f"--tls-{option}", type=Path, metavar="FILE", help=f"{what}; all three for TLS between the hosts")
    defaults = Limits()
    add(
        "--max-value",
        type=between(1, MAX_VALUE, int),
        default=defaults.max_value,
        metavar="BYTES",
        help="the largest key or value; the same on each host (default: %(default)s)",
    )
    add(
        "--max-clients",
        type=between(1, 100_000, int),
        default=defaults.max_clients,
        metavar="N",
        help="the most connections of clients at once (default: %(default)s)",
    )
    add(
        "--timeout",
        type=between(0.1, 3600, float),
        default=defaults.timeout,
        metavar="SECONDS",
        help="how long a command may wait for a leader (default: %(default)s)",
    )
    add(
        "--idle-timeout",
        type=between(1, 86400, float),
        default=defaults.idle,
        metavar="SECONDS",
        help="how long a client may send nothing, or take none of its replies (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    if options.replica not in options.members:
        known = ", ".join(map(str, options.members))
        parser.error(
            f"--replica {options.replica} is not among --members, which has {known}: add it, or choose another"
        )
    files = options.tls_ca, options.tls_cert, options.tls_key
    if any(files) and not all(files):
        parser.error("--tls-ca, --tls-cert and --tls-key belong together: give all three, or none")
    options.tls = TlsConfig(*files) if all(files) else None
    options.limits = Limits(
        options.max_value, options.max_clients, options.timeout, idle=options.idle_timeout
    )
    return options


def main(
    arguments: Sequence[str] | None = None,
    *,
    machine: Callable[[Path], StateMachine] = lambda _: KeyValue(),
) -> int:
    """Run one host, and return its exit status: 0 after SIGINT or SIGTERM, 1 after an error, 2 for a wrong option.

    `machine` makes the state machine for a data directory.
    """
    options = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Until `serve` handles signals itself, SIGTERM ends the process as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        serve(options, lambda: machine(options.data_dir))
    except KeyboardInterrupt:
        return 0
    except (DrakkarError, OSError) as error:
        print(f"kv: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
