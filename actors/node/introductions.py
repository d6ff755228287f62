"""What other replicas have said of themselves: how their shard was founded, and where they live; and who is refused for it.

A host brings it before the first message of a replica (`Introduced`), in the order in which it came, so that each message
is judged by what its sender had said by then. The rules are the core's (`Raft.meet`, `Raft.lets_in`); here is what people are
told of them, and who is remembered: of strangers, as many as `MAX_STRANGERS`.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final, Protocol

from drakkar.actors.node.completions import own_type
from drakkar.actors.runtime.log_lines import Lines
from drakkar.handlers.errors import ActorFailed
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import permissions
from drakkar.handlers.raft.entries import EntryKind
from drakkar.handlers.raft.lives import Life, Lives, Meeting, Standing
from drakkar.handlers.raft.raft import Raft
from drakkar.transport.addresses import same_host
from drakkar.transport.reminders import Reminders, and_others
from drakkar.transport.shard_frames import ShardHello, encode_shard

__all__ = ["Founding", "Introduced", "IntroductionServices", "Introductions"]


LAG_S: Final = 2.0
"""How long another life is refused before that is worth a warning: the log here may be behind what the other one knows."""
MAX_STRANGERS: Final = 100
"""Ids of no members whose introductions are remembered; of more, the oldest is forgotten, until it is introduced again.

This host introduces it to the node again before it delivers the replica's next message.
"""
TERM_JUMP: Final = 1_000_000
"""Terms that one message may add without a warning: elections of one a second take eleven days for them."""


@dataclass(frozen=True, slots=True)
class Founding:
    """How the shard of a replica was founded, for people to read."""

    founders: Mapping[int, str] = field(default_factory=dict)
    """Addresses by replica id; empty at a replica that joined later."""
    generation: int = 0
    """The number of the file from which the shard was imported; 0 where it was not."""

    def __str__(self) -> str:
        if not self.founders:
            return "by members that it was not told, as it joined later"
        members = ", ".join(f"{replica}: {self.founders[replica]}" for replica in sorted(self.founders))
        how = f"by the import of the file {self.generation:016x} " if self.generation else ""
        return f"{how}with the members {{{members}}}"


@dataclass(frozen=True, slots=True)
class Introduced:
    """Another replica says of which shard it is and where it lives. Its messages follow."""

    type: ClassVar[MessageType] = own_type("INTRODUCED", 214)
    hello: ShardHello
    home: int
    """The number of its host."""
    address: str
    """Where its host says that it is reached."""
    certified: bool = False
    """Its host has shown a certificate for this address."""

    @property
    def life(self) -> Life:
        """The same, as the core takes it, but for the address."""
        return self.hello.life(self.home)

    def __str__(self) -> str:
        return f"replica {self.hello.replica} at {self.address}"


class Addresses(Protocol):
    """What a router does for the introductions."""

    def learn(self, replica: int, address: str, *, moved: bool = False) -> None:
        """Remember where a replica is answered; see `Router.learn`."""

    def at_home(self, replica: int) -> None:
        """A member has spoken from its address in the membership."""


class IntroductionServices(Protocol):
    """What a host does for the introductions. Called in the loop's thread; never blocks."""

    def introduce(self, address: str, shard_id: int) -> None:
        """Send the host at `address` what this host says of its replica of a shard, unless it has heard it."""

    def reintroduce(self, shard_id: int) -> None:
        """Send all hosts what this host says of its replica of a shard, before its next message."""

    def make_known(self, address: str, shard_id: int) -> None:
        """Introduce a replica to the host at `address`, unless this host has introduced one there since it started."""

    def proves(self, speaker: str, address: str) -> bool:
        """Return whether the host that introduced itself at `speaker` has shown a certificate that is for `address` too."""
        ...

    def confirms(self, address: str) -> bool:
        """Return whether the host that introduced itself at `address` is surely reached there, and may be dialed."""
        ...


class Introductions:
    """The replicas that have introduced themselves to this one. For the loop's thread, but `refused` and `dropped`."""

    def __init__(
        self,
        raft: Raft,
        founding: Founding,
        *,
        services: IntroductionServices,
        lines: Lines,
        now: Callable[[], float],
        router: Addresses | None = None,
    ) -> None:
        """`router` is told where to answer replicas of which the membership does not say it."""
        self._raft, self._founding, self._services, self._lines = raft, founding, services, lines
        self._router = router
        self.heard_on: dict[int, object] = {}
        """For the host: the connection on which each replica introduced itself last."""
        self.refused: dict[int, str] = {}
        """Why the messages of a replica are refused. Replaced, never changed."""
        self.dropped = 0
        """Messages of replicas that are refused."""
        self.not_allowed: Counter[str] = Counter()
        """Messages of strangers that only members may send, by why they were dropped."""
        self._known: dict[int, Introduced] = {}
        self._welcome: dict[int, int] = {}
        """The version of the lives in which each replica was welcome."""
        self._reminders = Reminders()
        self._now = now
        self._refused_since: dict[int, float] = {}
        self._homes: Mapping[int, int] | None = None
        """Those of the membership when they were looked at last."""
        self._kinds = {int(kind): EntryKind(kind).name for kind in raft.handlers.kinds}
        """The names of the kinds of records that this replica's table delivers."""
        self._own: Lives = raft.lives.own
        """What is durable of this replica's own life: only that is told."""
        self._body = b""

    # -- what this replica says -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Let the hosts of all members hear which run of this host it is, before this replica promises anything.

        Else the leader alone would hear it, and when that is down the others could not tell an older copy from this host.
        """
        for replica, address in self._raft.membership.addresses.items():
            if replica != self._raft.id:
                self._services.make_known(address, self._raft.config.shard_id)

    @property
    def body(self) -> bytes:
        """What this replica says of itself: the body of a SHARD frame."""
        if not self._body:
            own, founding = self._own, self._founding
            self._body = encode_shard(
                ShardHello(
                    self._raft.config.shard_id,
                    self._raft.id,
                    own.founding,
                    own.standing,
                    founding.founders,
                    founding.generation,
                    self._raft.term,
                    self._kinds,
                )
            )
        return self._body

    def on_durable(self, lives: Lives) -> None:
        """Let the others know what is durable of this replica's life now."""
        if lives.standing is not self._own.standing:
            self._lines.info("is %s", _STANDINGS[lives.standing])
        self._own, self._body = lives, b""
        self._services.reintroduce(self._raft.config.shard_id)

    def look(self) -> None:
        """Warn where the log says that this replica lives on another host. Called after every batch."""
        raft = self._raft
        homes = raft.membership.homes
        # Before it has caught up, it may see a home of long ago.
        if homes is self._homes or not raft.leader_id or raft.log.applied < raft.log.committed:
            return
        self._homes = homes
        newborn = raft.lives.own.standing is Standing.NEWBORN  # it waits to be settled here
        away = raft.home_of(raft.id) not in {None, 0, raft.lives.home}
        if raft.lives.home and away and not newborn:
            if raft.id not in self.refused:
                self._lines.warning("neither votes nor leads: %s", _SETTLED_ELSEWHERE)
                self.refused = {**self.refused, raft.id: _SETTLED_ELSEWHERE}
        elif raft.id in self.refused:
            self._forget(raft.id)

    def _forget(self, replica: int) -> None:
        self.refused = {other: why for other, why in self.refused.items() if other != replica}

    # -- what others say ------------------------------------------------------------------------------------------

    def take(self, said: Introduced) -> None:
        """Hear what a replica says of itself. Raises `ActorFailed` where that shows that this one must end."""
        replica = said.hello.replica
        before = self._known.get(replica)
        self._remember(said)
        if self._meet(said, 0) not in _STRANGERS:
            self._tell_of_lost_data(said, before)
            self._tell_of_other_kinds(said)

    def _remember(self, said: Introduced) -> None:
        replica, known = said.hello.replica, self._known
        known[replica] = said
        self._welcome.pop(replica, None)
        if len(known) > MAX_STRANGERS + len(self._raft.progress):
            oldest = next(it for it in known if it not in self._raft.progress and it != replica)
            for table in (known, self._welcome, self._refused_since, self.heard_on):
                table.pop(oldest, None)
            if oldest in self.refused:
                self._forget(oldest)

    def _life(self, said: Introduced) -> Life:
        """Return what a replica says of itself as the core takes it, its address spelt as in the membership."""
        certified = said.certified
        member = self._raft.membership.addresses.get(said.hello.replica, "")
        here = bool(member) and same_host(member, said.address)
        if member and not here and certified and self._services.proves(said.address, member):
            certified = False  # of a host that has moved, and can prove that, the home counts
        return replace(
            said.life,
            address=member if here else said.address,
            certified=certified,
            kinds=self._kinds_of(said),
        )

    def _kinds_of(self, said: Introduced) -> frozenset[int] | None:
        """Return the kinds of records that a replica takes, without those that are another thing to it than to this one."""
        told = said.hello.kinds
        return None if told is None else frozenset(told).difference(self._mistaken(told))

    def _mistaken(self, told: Mapping[int, str] | None) -> dict[int, str]:
        """Return the kinds that have another name here: two applications, or two versions, use one number."""
        return {
            number: name for number, name in (told or {}).items() if self._kinds.get(number, name) != name
        }

    def _certified_life(self, said: Introduced) -> Life:
        """Return the same, certified by all that the host has shown."""
        return replace(self._life(said), certified=said.certified)

    def _tell_of_lost_data(self, said: Introduced, before: Introduced | None) -> None:
        """A replica that has lived elsewhere and starts empty: its data are lost, or a disk is not mounted."""
        replica = said.hello.replica
        home = self._raft.home_of(replica)
        lost = said.hello.standing is Standing.NEWBORN and home not in {None, 0, said.home}
        if (
            lost
            and (before is None or before.home != said.home)
            and self._reminders.due((replica, said.home))
        ):
            self._lines.warning(
                "%s starts with an empty data directory, though it has lived elsewhere: it counts for nothing until the "
                "others have brought it up to date. If its disk is only not mounted, stop its host and mount it",
                said,
            )

    def _tell_of_other_kinds(self, said: Introduced) -> None:
        for number, name in self._mistaken(said.hello.kinds).items():
            if self._reminders.due((said.hello.replica, number)):
                self._lines.warning(
                    "records of the kind %d are %r here and %r at %s, so this replica logs none when it leads: give them two "
                    "numbers, and restart the hosts",
                    number,
                    self._kinds[number],
                    name,
                    said,
                )

    def address_of(self, replica: int) -> str | None:
        """Return where the host is that brought the last message of a replica; None where none was introduced."""
        said = self._known.get(replica)
        return None if said is None else said.address

    def objection(self, said: Introduced, message: Message) -> str | None:
        """Return why a message would be refused that has not come yet; None where that is not so, or not known."""
        ours, theirs = self._raft.lives.own.founding, said.hello.founding
        if ours and theirs and ours != theirs:
            return _other_founding(said, self._founding)
        life = self._life(said)
        if not permissions.is_stranger(self._raft, message.sender, life):
            return None
        if not permissions.is_proven(self._raft, life):
            return Meeting.UNPROVEN.value
        may_say = permissions.stranger_may_say(self._raft, message, self._certified_life(said))
        return None if may_say else Meeting.STRANGER.value

    def refuses(self, message: Message) -> bool:
        """Return whether a message is to be dropped, for what its sender has said of itself; count it then.

        Raises as `take` does.
        """
        sender = message.sender
        if self._welcome.get(sender) == self._raft.lives.version or message.type.traits.local:
            return False
        said = self._known.get(sender)
        if said is None:
            return self._refuses_unknown(message)
        meeting = self._meet(said, message.term)
        if sender != self._raft.id and self._raft.lets_in(meeting, message, self._certified_life(said)):
            if meeting in _STRANGERS:
                self._note_address(said, moved=False)
            return False
        self.dropped += 1
        if meeting in _STRANGERS:
            self._count_stranger(said, meeting.name, meeting.value, message)
        return True

    def unwelcome(self, message: Message) -> Life | None:
        """Return what the sender of a message that was let in has said of itself; None where that one is welcome."""
        sender = message.sender
        said = self._known.get(sender)
        if said is None or self._welcome.get(sender) == self._raft.lives.version:
            return None
        return self._certified_life(said)

    def is_members(self, replica: int, address: str) -> bool:
        """Return whether a replica that has introduced itself from the host at `address` is a member, and not refused."""
        said = self._known.get(replica)
        if said is None or said.address != address or replica in self.refused:
            return False
        return self._welcome.get(replica) == self._raft.lives.version or not permissions.is_stranger(
            self._raft, replica, self._life(said)
        )

    def _refuses_unknown(self, message: Message) -> bool:
        """Refuse a replica whose introduction is forgotten: others came before its message had its turn.

        This host introduces it to the node again before its next message. Where no rule asks where replicas live, none is introduced.
        """
        if not self._raft.lives.home:
            return False
        self.dropped += 1
        self._count_stranger(f"replica {message.sender}", "NOT_INTRODUCED", _FORGOTTEN, message)
        return True

    def _note_address(self, said: Introduced, *, moved: bool) -> None:
        """Remember where to answer a replica, unless that is known; never where the host just says that it is.

        Else a stranger would have us dial any address that it names. One that knows no members yet has nothing to lose, and must
        answer who leads it.
        """
        replica, raft, router = said.hello.replica, self._raft, self._router
        member = raft.membership.addresses.get(replica)
        if router is None:
            return
        if member is not None and same_host(member, said.address):
            router.at_home(replica)
        elif not raft.progress or self._services.confirms(said.address):
            router.learn(replica, said.address, moved=moved and member is not None)

    def _count_stranger(self, who: Introduced | str, cause: str, why: str, message: Message) -> None:
        """Count what only members may say. One warning stands for all strangers: they can take any name."""
        self.not_allowed[cause] += 1
        if count := self._reminders.due(cause):
            self._lines.warning(
                "drops %s of %s: %s. If it belongs to the shard, add it, or tell the shard its address%s",
                message.type,
                who,
                why,
                and_others(count),
            )

    def tell_of_jump(self, message: Message, term: int) -> None:
        """A message has raised the term, which was `term`, by more than elections do: warn of its sender."""
        said = self._known.get(message.sender)
        if count := self._reminders.due("a jump of the term"):
            self._lines.warning(
                "its term rose from %d to %d by a %s of %s. Elections raise it one by one: look what runs there%s",
                term,
                self._raft.term,
                message.type,
                said or f"replica {message.sender}",
                and_others(count),
            )

    def _meet(self, said: Introduced, term: int) -> Meeting:
        """Meet a replica, with a message of `term`; 0: without one, or with one that has none.

        The message may be older than what its sender has said since, on another connection.
        """
        replica = said.hello.replica
        newest = term and max(term, said.hello.term)
        meeting = (
            self._own_id(said)
            if replica == self._raft.id
            else self._raft.meet(replica, self._life(said), newest)
        )
        if meeting is Meeting.WELCOME:
            self._welcome[replica] = self._raft.lives.version
            self._refused_since.pop(replica, None)
            self._note_address(said, moved=True)
            if replica in self.refused:
                self._forget(replica)
                if self._reminders.due((replica, "is taken again")):
                    self._lines.info("takes the messages of %s again", said)
        elif meeting not in _STRANGERS:
            self._refuse(said, meeting)
        return meeting

    def _own_id(self, said: Introduced) -> Meeting:
        """A replica with the id of this one is never welcome."""
        known = said.hello.founding and self._raft.lives.own.founding
        other = known and said.hello.founding != self._raft.lives.own.founding
        return Meeting.OTHER_FOUNDING if other else Meeting.OTHER_LIFE

    def _refuse(self, said: Introduced, meeting: Meeting) -> None:
        why = _REASONS[meeting](said, self._founding)
        if self.refused.get(said.hello.replica) != why:
            self.refused = {**self.refused, said.hello.replica: why}
        if meeting is Meeting.OLDER_LIFE:
            raise ActorFailed(
                f"replica {self._raft.id} of shard {self._raft.config.shard_id} stops, and keeps its data: {why}"
            )
        now = self._now()
        since = self._refused_since.setdefault(said.hello.replica, now)
        if meeting is Meeting.OTHER_LIFE and now < since + LAG_S:
            return
        # A stranger can take any number of ids: one warning stands for all that are no members'.
        replica = said.hello.replica if said.hello.replica in self._raft.membership.addresses else 0
        if count := self._reminders.due((replica, meeting)):
            self._lines.warning("refuses %s: %s%s", said, why, and_others(count))
            # So that the other side hears why, and says so too.
            if self._is_reached_at(said.address):
                self._services.introduce(said.address, self._raft.config.shard_id)

    def _is_reached_at(self, address: str) -> bool:
        members = self._raft.membership.addresses.values()
        return any(same_host(member, address) for member in members) or self._services.confirms(address)


_STRANGERS: Final = frozenset({Meeting.STRANGER, Meeting.UNPROVEN})
_FORGOTTEN: Final = (
    f"what its host said of it is forgotten, as {MAX_STRANGERS} other replicas that are no members came since"
)


_STANDINGS: Mapping[Standing, str] = {
    Standing.NEWBORN: "newborn: it starts empty, and counts for nothing yet",
    Standing.FOUNDER: "one of the founders of its shard",
    Standing.SETTLED: "settled: the log says that it lives on this host",
    Standing.INHERITED: "older than the record of where it lives",
}


_SETTLED_ELSEWHERE: Final = (
    "by the log, this replica has moved to another host since this one had it. This directory is a copy, or was put back or "
    "swapped: look which host should run the replica, and stop the other one"
)


def _other_founding(said: Introduced, own: Founding) -> str:
    theirs = Founding(said.hello.founders, said.hello.generation)
    mistake = (
        "One of the two was started with a wrong list of members: look which list is right"
        if theirs.generation == own.generation
        else "One of the two was forgotten when the shard was imported: stop that one, and import the same file on its host, "
        "or add a new replica there"
    )
    return f"its shard was founded {theirs}, and that of this replica {own}. {mistake}; keep the data of both until you know"


def _other_life(_said: Introduced, _own: Founding) -> str:
    return (
        "it has data of its own, but by the log it lives on another host. Its directory was copied or swapped, or an older "
        "one was put back: look which host should run it, and stop the other one; keep the data of both until you know"
    )


def _older_life(said: Introduced, own: Founding) -> str:
    return (
        f"{said} is older than all that this replica knows. Its shard was founded {own} a second time, while directories "
        "with its data were away: look where they are, as on a disk that is not mounted, and start this host with them again"
    )


_REASONS: Mapping[Meeting, Callable[[Introduced, Founding], str]] = {
    Meeting.OTHER_FOUNDING: _other_founding,
    Meeting.OTHER_LIFE: _other_life,
    Meeting.OLDER_LIFE: _older_life,
}
