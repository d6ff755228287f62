"""Which hosts this one knows, and in which run: how a copy of a host's data directory is told from the host.

A host raises its run each time that it starts (`hello.Run`), and other hosts remember the last one that they heard of. So

- a lower run, or another one with the same number, is that of a copy: of a directory that was restored from a backup, or
  that two machines have. What it promised since is not in it, so it is refused;
- a higher run is the host, restarted, or a copy of its directory beside it. The connections of the last run tell which:
  where one of them still answers, the newcomer is a copy; else it takes over.

What cannot be told: a copy of a host that does not run, which has started as often as no one has heard of yet.

Each host that connects is told the id and the run of the one that it reached, and can claim them. So a run that was heard
of at the address of a member of this host's shards is changed only by what is at that address, and has shown that; and
that one is not kept out by claims from elsewhere. Only the runs of members are written.

A member can claim the id of another one, too, before that was heard of. Certificates tell the two apart: what was heard of
an id at the address of a member concerns no host whose certificate is not for that address. Where a shard moves
the member, it counts at the new address, too. Without certificates it concerns all.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias

import trio
from drakkar.transport.addresses import canonical
from drakkar.transport.hello import Hello, RefusedError, Run

__all__ = ["KnownHosts", "Link", "RunMemory"]

MAX_HOSTS: Final = 10_000
"""Host ids that are remembered; of more, those that are no members' and were heard of longest ago are forgotten."""

_Place: TypeAlias = tuple[str, bool]
"""The canonical address at which a host says that it is, and whether it has shown that."""

RunMemory: TypeAlias = Mapping[str, tuple[int, int, str]]
"""By host id: count and nonce of the last run that was heard of, and at which canonical address; "" where that was not kept.

Where an id was heard of at several addresses, a line end and the address follow it in all keys but the first.
"""


class Link(Protocol):
    """A connection to a host."""

    async def answers(self, within: float) -> bool:
        """Ask the host for a sign of life; return whether one came in so many seconds."""
        ...

    def give_up(self) -> None:
        """Close the connection soon."""


@dataclass(slots=True)
class _Heard:
    """What was heard of a host id at one place."""

    start: tuple[int, int]
    """Of its last run."""
    trusted: bool
    """It was a member's place."""
    links: set[Link] = field(default_factory=set)
    """The connections to it in that run."""


def _may_be_anywhere(_address: str) -> bool:
    return True


class KnownHosts:
    """The runs of other hosts, as this one has heard of them. For the trio loop's thread only."""

    def __init__(self, host_id: str, run: Run, *, timeout: float) -> None:
        """`host_id` and `run` are this host's own. An old run has `timeout` seconds to answer."""
        self.host_id, self.run, self._timeout = host_id, run, timeout
        self.on_change: Callable[[RunMemory], None] | None = None
        """Called with all runs when one has changed, to have them written. It must return soon."""
        self.on_replaced: Callable[[str, str, tuple[int, int], Collection[Link]], None] | None = None
        """Called where a host has introduced itself, at its own address, in another run than before: with the canonical
        address and the host id of the last one, its count and nonce, and its connections, which were given up. It must
        return soon, and raise nothing."""
        self._heard: dict[str, dict[_Place, _Heard]] = {}
        """By host id, the one that was heard of last at the end. Where a version before this one wrote it, the address is ""."""
        self._members: frozenset[str] | None = None
        """The canonical addresses of members; None: all hosts are trusted alike."""
        self._at: dict[str, str] = {}
        """By canonical address, the id of the host that was admitted last as the one there."""

    def remember(self, runs: RunMemory) -> None:
        """Remember what was written before."""
        for key, (count, nonce, address) in runs.items():
            heard = self._heard.setdefault(key.partition("\n")[0], {})
            heard[address, True] = _Heard((count, nonce), trusted=True)

    def set_members(self, addresses: Iterable[str]) -> None:
        """Say at which canonical addresses there are members of this host's shards, instead of what was said before."""
        self._members = frozenset(addresses)
        new = [
            it
            for heard in self._heard.values()
            for place, it in heard.items()
            if not it.trusted and self._is_member(place)
        ]
        for it in new:
            it.trusted = True
        if new:
            self._write()

    def move(self, before: str, after: str) -> None:
        """A shard has moved a member from one canonical address to another, where there was none: its runs are known there, too.

        Where it came there earlier, it has to come again, and is judged by them.
        """
        if self._is_member((after, True)):
            return
        old, new = (before, True), (after, True)
        ids = [heard for heard in self._heard.values() if old in heard and heard[old].trusted]
        for heard in ids:
            if new in heard:
                _give_up(heard[new])
            heard[new] = _Heard(heard[old].start, trusted=True)
        if ids:
            self._write()

    def add(self, hello: Hello, link: Link, *, at_home: bool = True) -> None:
        """Note a connection to a host that was admitted. Raises `RefusedError` if a later run of it was, meanwhile."""
        heard = self._heard_from(hello, at_home=at_home)
        if heard is None:
            return  # what it says of its run is not what is remembered
        if heard.start != hello.run.start:
            raise RefusedError(f"{_who(hello)} is over: a later run has introduced itself", "copy")
        heard.links.add(link)

    def remove(self, hello: Hello, link: Link, *, at_home: bool = True) -> None:
        """Note that a connection has ended, which was added with the same arguments."""
        heard = self._heard_from(hello, at_home=at_home)
        if heard is not None:
            heard.links.discard(link)

    def _heard_from(self, hello: Hello, *, at_home: bool) -> _Heard | None:
        return self._heard.get(hello.host_id, {}).get(_place(hello, at_home=at_home))

    async def admit(
        self, hello: Hello, may_be: Callable[[str], bool] = _may_be_anywhere, *, at_home: bool = True
    ) -> None:
        """Let a host in, in the run in which it introduces itself. Raises `RefusedError` where that is a copy's.

        `at_home`: it has shown that it is at the address that it says. `may_be`: whether it may be the host at another address,
        as far as its certificate tells. May wait for the answer of an older run.
        """
        place = _place(hello, at_home=at_home)
        own = hello.host_id == self.host_id
        objection = self._own_copy(hello) if own else await self._copy(hello, place, may_be)
        if objection is not None:
            raise RefusedError(objection, "copy")
        self._note_id(hello.host_id, place)

    def _note_id(self, host_id: str, place: _Place) -> None:
        address, at_home = place
        members = self._members or frozenset()
        if address in self._at and address in members and not at_home:
            return
        self._at.pop(address, None)
        self._at[address] = host_id
        if len(self._at) > MAX_HOSTS:
            del self._at[next((other for other in self._at if other not in members), address)]

    def host_id_at(self, address: str) -> str:
        """Return the id of the host that was admitted last as the one at `address`; "" if none was."""
        return self._at.get(canonical(address), "")

    def _own_copy(self, hello: Hello) -> str | None:
        if hello.run == self.run:
            return None  # it dialed itself
        return f"{_who(hello)} has the identity of the host that it reached, {_COPY}"

    async def _copy(self, hello: Hello, place: _Place, may_be: Callable[[str], bool]) -> str | None:
        """Return why a host is refused as a copy; None where it is not, and its run is remembered."""
        asked: set[Link] = set()
        while True:
            others = self._concerning(hello.host_id, place, may_be)
            older = [it for it in others.values() if it.start != hello.run.start]
            for heard in older:
                if not hello.run.follows(*heard.start):
                    return f"{_who(hello)} does not follow its run {heard.start[0]}, which was heard of before, {_COPY}"
            waiting = [(link, heard.start[0]) for heard in older for link in heard.links - asked]
            if not waiting:
                self._note(hello, place, others)
                return None
            link, count = waiting[0]
            asked.add(link)
            if await link.answers(self._timeout):
                return f"{_who(hello)} is not its run {count}, which still answers, {_COPY}"

    def _concerning(self, host_id: str, place: _Place, may_be: Callable[[str], bool]) -> dict[_Place, _Heard]:
        """Return what was heard of an id, as far as it concerns a host with this id at `place`.

        A member has nothing to do with what was not heard of from one. Where no address was kept, it concerns all.
        """
        member = self._is_member(place)
        return {
            other: heard
            for other, heard in self._heard.get(host_id, {}).items()
            if (heard.trusted or not member) and (other == place or not other[0] or may_be(other[0]))
        }

    def _is_member(self, place: _Place) -> bool:
        address, at_home = place
        return self._members is None or (at_home and address in self._members)

    def _has_moved(self, place: _Place, heard: _Heard) -> bool:
        """Whether there was a member, and is none any more."""
        return heard.trusted and (self._members is None or not self._is_member(place))

    def _note(self, hello: Hello, place: _Place, concerning: Mapping[_Place, _Heard]) -> None:
        """Remember the run of a host that is let in, as far as its place may tell of it.

        That depends on what else was heard of its id that concerns it, and where:

        | heard of elsewhere                      | what was heard there | the newcomer's run                          |
        |-----------------------------------------|----------------------|---------------------------------------------|
        | nowhere                                 |                      | is remembered                               |
        | at no member's place                    | is forgotten         | is remembered                               |
        | where a member was, and comes from one  | is forgotten         | is remembered                               |
        | at a member's place, in all other cases | stays                | is remembered only in place of a member's   |
        """
        superseded = {
            other for other, it in concerning.items() if other != place and self._supersedes(place, other, it)
        }
        before = self._heard.get(hello.host_id, {}).get(place)
        contested = bool(concerning.keys() - superseded - {place})
        if contested and (before is None or not before.trusted):
            return
        if before is None or before.start != hello.run.start or superseded:
            self._store(hello, place, superseded)

    def _supersedes(self, place: _Place, other: _Place, there: _Heard) -> bool:
        """Whether a host that is let in at `place` takes the place of what was heard of its id at another one."""
        return not there.trusted or (self._is_member(place) and self._has_moved(other, there))

    def _store(self, hello: Hello, place: _Place, superseded: Collection[_Place]) -> None:
        """Put a run in the place of what was heard before, there and at the places that are superseded."""
        heard, start = self._heard.pop(hello.host_id, {}), hello.run.start
        replaced = heard.keys() & {place, *superseded}
        ended = {over: heard[over] for over in replaced if heard[over].start != start}
        for it in ended.values():
            _give_up(it)
        now = heard.get(place)
        if now is None or now.start != start:
            now = _Heard(start, self._is_member(place) if now is None else now.trusted)
        # Of those that are no members', the newest is enough.
        kept = {other: it for other, it in heard.items() if it.trusted and other not in superseded}
        self._heard[hello.host_id] = {**kept, place: now}
        while len(self._heard) > MAX_HOSTS:
            self._forget_one()
        if now.trusted:
            self._write()
        self._tell_replaced(hello.host_id, place, ended)

    def _tell_replaced(self, host_id: str, place: _Place, ended: Mapping[_Place, _Heard]) -> None:
        """Tell of the runs that ended: of those at the address of the newcomer, and where a member was that has moved there.

        What was said of an id elsewhere, by hosts that are no members, shows nothing.
        """
        for over, it in ended.items():
            if place[1] and (over == place or it.trusted) and self.on_replaced is not None:
                self.on_replaced(over[0], host_id, it.start, tuple(it.links))

    def _forget_one(self) -> None:
        """Forget what was heard of an id at no member's place; else of the oldest id at the place at which there are most."""
        for host_id, heard in self._heard.items():
            if not any(it.trusted for it in heard.values()):
                del self._heard[host_id]
                return
        ids = Counter(place for heard in self._heard.values() for place in heard)
        ((most, _),) = ids.most_common(1)
        host_id, heard = next(it for it in self._heard.items() if most in it[1])
        del heard[most]
        if not heard:
            del self._heard[host_id]

    def _write(self) -> None:
        if self.on_change is None:
            return
        runs: dict[str, tuple[int, int, str]] = {}
        for host_id, heard in self._heard.items():
            for (address, _), it in heard.items():
                if it.trusted:
                    runs[host_id if host_id not in runs else f"{host_id}\n{address}"] = (*it.start, address)
        self.on_change(runs)


def _give_up(heard: _Heard) -> None:
    for link in heard.links:
        link.give_up()


def _place(hello: Hello, *, at_home: bool) -> _Place:
    return canonical(hello.address), at_home


_COPY: Final = (
    "so one of the two data directories is a copy, perhaps of an older state: stop the copy, or replace its replicas by new "
    "ones in an empty directory"
)


def _who(hello: Hello) -> str:
    return f"run {hello.run.count} of the host {hello.host_id[:12]} at {hello.address}"


class Answer:
    """Waits for the answer to a question. For a `Link`: more than one may wait for it."""

    def __init__(self) -> None:
        self._over = trio.Event()
        self._answers = 0

    def heard(self) -> None:
        """It came."""
        self._answers += 1
        self._over.set()
        self._over = trio.Event()

    def lost(self) -> None:
        """It will not come any more, as the connection has ended."""
        self._over.set()

    async def wait(self, within: float) -> bool:
        """Return whether one came in so many seconds."""
        before = self._answers
        with trio.move_on_after(within):
            await self._over.wait()
        return self._answers > before
