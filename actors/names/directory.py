"""`Directory`: the replicated table of names, as a state machine. What it decides, all its replicas decide alike.

A name belongs to the host that registered it, its *owner*, and to one *run* of it: the time from a start of the host to its
end. An actor lives no longer than its host's run. So as soon as a newer run of an owner is heard of, all names of its older runs
are free.

    register   a free name; or its owner's, whose older registration it replaces; or anybody's with `replace`
    unregister the owner's own, if the actor is still the one that is meant
    announce   a run of an owner has begun: those before it are over

Each command is a list of such operations, in CBOR, and its result the list of their results. They are applied in the order of
the log: of two hosts that register one name at a time, one has it, and the other is told who.
"""

import heapq
import io
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from typing import Any, BinaryIO, ClassVar, Final, NamedTuple

import cbor2
from drakkar.actors.machine.state_machine import StateMachine
from drakkar.actors.remote.errors import UnknownName
from drakkar.handlers import cbor
from drakkar.handlers.checks import MAX_NAME, MAX_SIGNED, is_text, is_whole
from drakkar.handlers.errors import CorruptData, Refused, RequestDropped

__all__ = [
    "Directory",
    "NotRegistered",
    "Owner",
    "Registration",
    "check_operation",
    "encode_command",
]

MAX_NAMES: Final = 100_000
MAX_OWNERS: Final = 10_000
"""Hosts that are remembered, with their last run. Of more, one that has no name is forgotten, the first to come first."""
MAX_OWNER_CHARS: Final = 200
MAX_ADDRESS_CHARS: Final = 300
MAX_PLACE_BYTES: Final = 3_072
"""An address, two numbers, and two names of 200 characters, of up to four bytes each."""
MAX_LISTED: Final = 1_000
"""Names in one answer."""
MAX_OPERATIONS: Final = 1_000
"""Of one command."""
_VERSION: Final = 1


class NotRegistered(RequestDropped, UnknownName):
    """No actor has this name in the directory. `name`."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"no actor is registered as {self.name!r}: register it, or look for its name with registered_names()"


class Owner(NamedTuple):
    """A host, and which run of it."""

    host: str
    """Its id: made with its data directory. Of a host without one, its address."""
    starts: int
    """How many it has seen. Of a host without a data directory, when it started."""
    nonce: int
    """A random number of this run."""

    @property
    def run(self) -> tuple[int, int]:
        """Runs of one host are ordered by it."""
        return self.starts, self.nonce


@dataclass(frozen=True, slots=True)
class Registration:
    """To what a name leads."""

    host: str
    count: int
    nonce: int
    """The owner's, as in `Owner`."""
    number: int
    """The actor's number in that run."""
    address: str
    """Of its host, "host:port"."""
    place: bytes
    """How it is reached, as `actors.remote` writes it."""


Result = list[Any]
"""["ok"], ["ok", True], ["taken", address], ["full", text] or ["over"]: its own run is over, as a newer one is known."""


class Directory(StateMachine):
    """The names of a deployment, for `NodeHost.start_directory`."""

    recorded_name: ClassVar[str] = "drakkar.Directory"

    def __init__(self) -> None:
        self._names: dict[str, Registration] = {}
        self._runs: dict[str, tuple[int, int]] = {}
        """The last run of each host, in the order in which hosts were first heard of."""
        self._held: dict[str, dict[str, None]] = {}
        """The names of each host that has any."""

    def __len__(self) -> int:
        """How many names there are."""
        return len(self._names)

    # -- commands -----------------------------------------------------------------------------------------------

    def apply(self, command: bytes) -> list[Result]:
        """Apply a list of operations. Raises `Refused`, and changes nothing, where one of them is none."""
        try:
            operations = cbor.loads(command, max_depth=2)
        except ValueError as error:
            raise Refused(f"no command of a directory: {error}") from error
        if type(operations) is not list or not 1 <= len(operations) <= MAX_OPERATIONS:
            raise Refused(f"a command of a directory is a list of 1 to {MAX_OPERATIONS} operations")
        for operation in operations:
            fault = check_operation(operation)
            if fault is not None:
                raise Refused(fault)
        return [_APPLY[operation[0]](self, *operation[1:]) for operation in operations]

    def _register(
        self,
        name: str,
        host: str,
        count: int,
        nonce: int,
        number: int,
        address: str,
        place: bytes,
        replace: bool,
    ) -> Result:
        known = self._note_run(host, (count, nonce))
        if known is not None:
            return known
        holder = self._names.get(name)
        if holder is not None and holder.host != host and not replace:
            return ["taken", holder.address]
        if holder is None and len(self._names) >= MAX_NAMES:
            return ["full", f"the directory has {MAX_NAMES} names: unregister some that are not needed"]
        if holder is not None:
            self._free(name, holder)
        self._names[name] = Registration(host, count, nonce, number, address, place)
        self._held.setdefault(host, {})[name] = None
        return ["ok"]

    def _unregister(self, name: str, host: str, count: int, nonce: int, number: int | None) -> Result:
        """With a `number`, only the registration of that actor; without, that of whichever the host has registered."""
        holder = self._names.get(name)
        mine = (
            holder is not None
            and (holder.host, holder.count, holder.nonce) == (host, count, nonce)
            and number in {None, holder.number}
        )
        if holder is not None and mine:
            self._free(name, holder)
        return ["ok", mine]

    def _announce(self, host: str, count: int, nonce: int) -> Result:
        return self._note_run(host, (count, nonce)) or ["ok"]

    def _note_run(self, host: str, run: tuple[int, int]) -> Result | None:
        """Free the names of the host's older runs; return why an older one, or one too many, is refused."""
        last = self._runs.get(host)
        if last is not None and run < last:
            return ["over"]
        if last is None and len(self._runs) >= MAX_OWNERS and not self._forget_host():
            return ["full", f"the directory knows {MAX_OWNERS} hosts, all of which have names"]
        if last != run:
            self._runs[host] = run
            for name in self._held.pop(host, ()):
                del self._names[name]
        return None

    def _forget_host(self) -> bool:
        """Forget the host that was heard of first of those without a name; return False if all have some."""
        idle = next((host for host in self._runs if host not in self._held), None)
        if idle is not None:
            del self._runs[idle]
        return idle is not None

    def _free(self, name: str, holder: Registration) -> None:
        del self._names[name]
        held = self._held[holder.host]
        del held[name]
        if not held:
            del self._held[holder.host]

    # -- queries ------------------------------------------------------------------------------------------------

    def query(self, query: Any) -> Any:
        """["find", name]: its `Registration`, or None. ["names", prefix, after, limit]: the first names of a prefix.

        Names come sorted, `limit` of them at most, 1,000 if that is more, and only those after the name `after`.
        """
        what, *arguments = query
        if what == "find":
            return self._names.get(arguments[0])
        prefix, after, limit = arguments
        found = (name for name in self._names if name.startswith(prefix) and name > after)
        return heapq.nsmallest(min(limit, MAX_LISTED), found)

    # -- snapshots ----------------------------------------------------------------------------------------------

    def save(self, sink: BinaryIO) -> None:
        """Write the table, the order of its hosts included, since that decides which one is forgotten."""
        runs = [[host, *run] for host, run in self._runs.items()]
        names = [[name, *astuple(registration)] for name, registration in self._names.items()]
        cbor2.dump([_VERSION, runs, names], sink)

    def load(self, source: BinaryIO) -> None:
        """Replace the table. Raises `CorruptData`."""
        try:
            version, runs, names = cbor.loads(source.read(), max_depth=3)
            if version != _VERSION:
                raise CorruptData(f"a directory's snapshot has version {version}, and this reads {_VERSION}")
            self._runs = {host: (count, nonce) for host, count, nonce in runs}
            self._names = {name: Registration(*fields) for name, *fields in names}
        except (ValueError, TypeError) as error:
            raise CorruptData(f"a directory's snapshot cannot be read: {error}") from error
        self._held = {}
        for name, registration in self._names.items():
            self._held.setdefault(registration.host, {})[name] = None


_APPLY: Final[Mapping[str, Callable[..., Result]]] = {
    "register": Directory._register,
    "unregister": Directory._unregister,
    "announce": Directory._announce,
}


# -- operations as they are written --------------------------------------------------------------------------------------


def encode_command(operations: list[list[Any]]) -> bytes:
    """Return a command of these operations."""
    target = io.BytesIO()
    cbor2.dump(operations, target)
    return target.getvalue()


def check_operation(operation: object) -> str | None:
    """Return what is wrong with an operation, from whichever host it comes; None if nothing is."""
    if type(operation) is not list or not operation or type(operation[0]) is not str:
        return "an operation of a directory is a list that begins with what it does"
    fields = _FIELDS.get(operation[0])
    if fields is None:
        return f"a directory knows no operation {operation[0]!r:.30}"
    if len(operation) != 1 + len(fields):
        return f"the operation {operation[0]!r} of a directory has {len(fields)} fields, not {len(operation) - 1}"
    for (field, fits), value in zip(fields, operation[1:], strict=True):
        if not fits(value):
            return f"the operation {operation[0]!r} of a directory has a {field} out of its bounds: {value!r:.60}"
    return None


_OWNER: Final[tuple[tuple[str, Callable[[Any], bool]], ...]] = (
    ("host", lambda value: is_text(value, MAX_OWNER_CHARS)),
    ("count", lambda value: is_whole(value, 0, MAX_SIGNED)),
    ("nonce", lambda value: is_whole(value, 0, MAX_SIGNED)),
)
_NAME: Final[tuple[str, Callable[[Any], bool]]] = ("name", lambda value: is_text(value, MAX_NAME))
_FIELDS: Final[Mapping[str, tuple[tuple[str, Callable[[Any], bool]], ...]]] = {
    "register": (
        _NAME,
        *_OWNER,
        ("number", lambda value: is_whole(value, 0, MAX_SIGNED)),
        ("address", lambda value: is_text(value, MAX_ADDRESS_CHARS)),
        ("place", lambda value: type(value) is bytes and len(value) <= MAX_PLACE_BYTES),
        ("replace", lambda value: type(value) is bool),
    ),
    "unregister": (
        _NAME,
        *_OWNER,
        ("number", lambda value: value is None or is_whole(value, 0, MAX_SIGNED)),
    ),
    "announce": _OWNER,
}
