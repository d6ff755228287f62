"""Changes of a membership as pure functions: one voter at a time (thesis §4.1), or a joint consensus (§4.3).

They know nothing of a replica or its log. The conversation about a change is in `membership`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Final

import cbor2
from drakkar.handlers import cbor
from drakkar.handlers.checks import is_whole
from drakkar.handlers.errors import CorruptData, MembershipRejected
from drakkar.handlers.raft.config import RaftConfig
from drakkar.handlers.raft.entries import Entry, EntryKind, Run
from drakkar.handlers.raft.lives import decode_settled
from drakkar.handlers.raft.state import HardState, Membership, State

__all__ = [
    "MAX_CHANGE_BYTES",
    "Change",
    "ChangeType",
    "ConfigChange",
    "MembershipBuilder",
    "Transition",
    "decide",
    "decide_all",
    "describe",
    "enter_joint",
    "initial_log",
    "leave_joint",
    "may_become",
    "role_conflict",
    "simple",
]


class ChangeType(IntEnum):
    """What happens to one replica; dragonboat's numbers."""

    ADD_VOTER = 0
    """Also promotes an observer."""
    REMOVE = 1
    ADD_OBSERVER = 2
    """In a joint change also demotes a voter, which becomes an observer on leaving."""
    ADD_WITNESS = 3
    UPDATE = 4
    """A member is reached at another address from now on; without an address it changes nothing."""


MAX_CHANGE_BYTES: Final = 256 << 10
"""Maximum bytes of a change in the log. It is decoded on the loop; a membership that is so long fits into no message either."""

_ADDS: Final = frozenset({ChangeType.ADD_VOTER, ChangeType.ADD_OBSERVER, ChangeType.ADD_WITNESS})


class Transition(IntEnum):
    """How a change of several replicas gets through."""

    AUTO = 0
    """One change directly, several jointly; the leader leaves the joint state by itself."""
    IMPLICIT = 1
    """Jointly, and the leader leaves by itself."""
    EXPLICIT = 2
    """Jointly, until an empty `ConfigChange` asks to leave."""


@dataclass(frozen=True, slots=True)
class Change:
    """One replica's new role."""

    type: ChangeType
    replica: int
    address: str = ""


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """The content of a CONFIG_CHANGE entry. Without changes it asks to leave the joint state."""

    changes: tuple[Change, ...] = ()
    transition: Transition = Transition.AUTO
    change_id: int = 0
    """The `Membership.change_id` that the asker has seen; checked where changes are ordered."""
    initialize: bool = False
    """The shard's first membership, whole: it replaces any that a replica started with."""
    forced: bool = False
    """A leader logs it although it cannot reach the new quorum now. Changes nothing about what the change does."""

    @property
    def joint(self) -> bool:
        """Goes through a joint consensus."""
        return len(self.changes) > 1 or self.transition is not Transition.AUTO

    def encode(self) -> bytes:
        """The payload of the entry."""
        changes = [[int(change.type), change.replica, change.address] for change in self.changes]
        row = [int(self.transition), self.change_id, self.initialize, changes]
        return cbor2.dumps([*row, True] if self.forced else row)

    @classmethod
    def decode(cls, payload: bytes) -> "ConfigChange":
        """The change of a payload. Raises `CorruptData` where it is none."""
        if len(payload) > MAX_CHANGE_BYTES:
            raise CorruptData(
                f"{len(payload)} bytes are no membership change: {MAX_CHANGE_BYTES} are allowed, so change fewer replicas at once"
            )
        try:
            row = cbor.loads(payload, max_depth=4)
            transition, change_id, initialize, changes, forced = row if len(row) == 5 else (*row, False)
            return cls(
                tuple(
                    Change(ChangeType(kind), _id(replica), str(address)) for kind, replica, address in changes
                ),
                Transition(transition),
                _id(change_id),
                bool(initialize),
                bool(forced),
            )
        except (ValueError, TypeError) as error:
            raise CorruptData(f"{len(payload)} bytes are no membership change: {error}") from error


def initial_log(membership: Membership) -> tuple[HardState, Run]:
    """What the log of a shard begins with, the same on each of its first members: their membership, committed.

    It is an entry, so that a replica that joins later learns it from the log.
    """
    roles = (
        (ChangeType.ADD_VOTER, membership.voters),
        (ChangeType.ADD_OBSERVER, membership.observers),
        (ChangeType.ADD_WITNESS, membership.witnesses),
    )
    changes = tuple(
        Change(role, replica, membership.addresses.get(replica, ""))
        for role, replicas in roles
        for replica in sorted(replicas)
    )
    run = Run(1, 1, [ConfigChange(changes, initialize=True).encode()], bytes([EntryKind.CONFIG_CHANGE]))
    return HardState(term=run.term, commit=run.last), run


def _id(number: int) -> int:
    if not is_whole(number):
        raise ValueError(f"{number!r} is no id")
    return number


@dataclass(slots=True)
class MembershipBuilder:
    """A membership while changes are applied to it, one after the other."""

    voters: set[int]
    observers: set[int]
    witnesses: set[int]
    outgoing: frozenset[int]
    next_observers: set[int]
    gone: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, membership: Membership) -> "MembershipBuilder":
        """Begin with what `membership` has."""
        return cls(
            set(membership.voters),
            set(membership.observers),
            set(membership.witnesses),
            frozenset(membership.outgoing),
            set(membership.next_observers),
        )

    def apply(self, change: Change) -> None:
        """Apply one change; applying it again changes nothing. Replica 0 stands for a change that was vetoed."""
        replica = change.replica
        if not replica or change.type is ChangeType.UPDATE:
            return
        if change.type is ChangeType.ADD_OBSERVER and replica in self.observers:
            return
        for role in (self.voters, self.observers, self.witnesses, self.next_observers):
            role.discard(replica)
        if change.type is ChangeType.REMOVE:
            self.gone.add(replica)
        elif change.type is ChangeType.ADD_VOTER:
            self.voters.add(replica)
        elif change.type is ChangeType.ADD_WITNESS:
            self.witnesses.add(replica)
        elif replica in self.outgoing:
            # It still votes in the old half, and a voter there cannot be an observer yet.
            self.next_observers.add(replica)
        else:
            self.observers.add(replica)

    def build(self, before: Membership) -> Membership:
        """The membership that follows `before`. Raises `MembershipRejected` where it has no voters."""
        if not self.voters:
            raise MembershipRejected("it would leave the shard without voters: add another voter first")
        after = replace(
            before,
            voters=frozenset(self.voters),
            observers=frozenset(self.observers),
            witnesses=frozenset(self.witnesses),
            next_observers=frozenset(self.next_observers),
        )
        return _mark_removed(before, after, self.gone)


def _mark_removed(before: Membership, after: Membership, gone: set[int]) -> Membership:
    """A replica in none of the sets is removed for good: under its old id, one that lost its disk might vote twice."""
    removed = (frozenset(before.removed) | before.everybody | gone) - after.everybody
    addresses = {
        replica: address for replica, address in after.addresses.items() if replica in after.everybody
    }
    return replace(after, removed=removed, addresses=addresses)


def simple(membership: Membership, changes: tuple[Change, ...]) -> Membership:
    """Change at most one voter (thesis §4.1). Raises `MembershipRejected`."""
    if membership.joint:
        raise MembershipRejected("a joint change is on its way: leave it first")
    builder = MembershipBuilder.of(membership)
    for change in changes:
        builder.apply(change)
    after = builder.build(membership)
    if len(membership.electorate[0] ^ after.electorate[0]) > 1:
        raise MembershipRejected("it changes more than one voter: use a joint change")
    return after


def enter_joint(membership: Membership, changes: tuple[Change, ...], *, auto_leave: bool) -> Membership:
    """Until `leave_joint`, decisions need a majority of the old voters and one of the new (thesis §4.3).

    Raises `MembershipRejected`.
    """
    if membership.joint:
        raise MembershipRejected("a joint change is on its way: leave it first")
    if not membership.voters:
        raise MembershipRejected("a shard without voters cannot change jointly")
    joint = replace(
        membership,
        outgoing=membership.electorate[0],
        outgoing_witnesses=membership.witnesses,
        auto_leave=auto_leave,
    )
    builder = MembershipBuilder.of(joint)
    for change in changes:
        builder.apply(change)
    return builder.build(joint)


def leave_joint(membership: Membership) -> Membership:
    """Only the new voters count from here on. Raises `MembershipRejected`."""
    if not membership.joint:
        raise MembershipRejected("no joint change is on its way, so there is none to leave")
    after = replace(
        membership,
        observers=frozenset(membership.observers) | frozenset(membership.next_observers),
        outgoing=frozenset(),
        outgoing_witnesses=frozenset(),
        next_observers=frozenset(),
        auto_leave=False,
    )
    return _mark_removed(membership, after, set())


def decide(membership: Membership, entry: Entry, config: RaftConfig) -> Membership | str:
    """The membership after an entry that changes it, or the rule that it breaks. The same on every replica."""
    if entry.kind is EntryKind.SETTLED:
        return _settled(membership, entry.payload)
    try:
        change = ConfigChange.decode(entry.payload)
        if config.ordered_config_change:
            _check_order(membership, change)
        after = _changed(membership, change)
    except (MembershipRejected, CorruptData) as rejection:
        return str(rejection)
    return replace(after, change_id=entry.index, homes=_homes_after(membership, after))


def _settled(membership: Membership, payload: bytes) -> Membership | str:
    try:
        replica, home = decode_settled(payload)
    except CorruptData as corrupt:
        return str(corrupt)
    if replica not in membership.everybody:
        return f"replica {replica} is no member, so it lives nowhere"
    return replace(membership, homes={**membership.homes, replica: home})


def _homes_after(before: Membership, after: Membership) -> dict[int, int]:
    """Those of the replicas that stay; of one that is added it is known that it has lived nowhere yet.

    That is not said before any home is known: the shard may be older than homes are.
    """
    homes = {replica: home for replica, home in before.homes.items() if replica in after.everybody}
    if before.homes:
        homes |= dict.fromkeys(after.everybody - before.everybody, 0)
    return homes


def decide_all(membership: Membership, entries: Iterable[Entry], config: RaftConfig) -> Membership:
    """The membership after these entries that change it; one that breaks a rule changes nothing."""
    for entry in entries:
        outcome = decide(membership, entry, config)
        membership = membership if isinstance(outcome, str) else outcome
    return membership


def _check_order(membership: Membership, change: ConfigChange) -> None:
    if not change.initialize and change.change_id != membership.change_id:
        raise MembershipRejected(
            f"it was made for membership {change.change_id}, but {membership.change_id} is in effect: "
            "read the membership and try again"
        )


def _changed(membership: Membership, change: ConfigChange) -> Membership:
    if change.initialize:
        return _first(change)
    if not change.changes:
        return leave_joint(membership)
    addresses = dict(membership.addresses)
    for one in change.changes:
        _check(membership, one, joint=change.joint)
        _note_address(addresses, one)
    if change.joint:
        after = enter_joint(
            membership, change.changes, auto_leave=change.transition is not Transition.EXPLICIT
        )
    else:
        after = simple(membership, change.changes)
    known = {replica: address for replica, address in addresses.items() if replica in after.everybody}
    return replace(after, addresses=known)


def _first(change: ConfigChange) -> Membership:
    """The shard's first membership. It stands at the head of the log, so that replicas that join later learn it."""
    builder = MembershipBuilder.of(Membership())
    for one in change.changes:
        builder.apply(one)
    addresses = {one.replica: one.address for one in change.changes}
    return builder.build(Membership(addresses=addresses))


def _check(membership: Membership, change: Change, *, joint: bool) -> None:
    """Dragonboat's rules for one replica. A joint change may also demote a voter, and repeat what is so already."""
    who, type_ = change.replica, change.type
    if type_ not in _ADDS:
        return
    if who in membership.removed:
        raise MembershipRejected(f"replica {who} was removed, and ids are never used again: choose a new one")
    is_witness, is_voter = membership.is_witness(who), who in membership.voters
    if is_witness or (type_ is ChangeType.ADD_WITNESS and (is_voter or who in membership.observers)):
        raise MembershipRejected(
            f"replica {who} cannot become or cease to be a witness: remove it, add a new one"
        )
    if joint:
        return
    if is_voter:
        raise MembershipRejected(f"replica {who} is a voter already")
    if type_ is ChangeType.ADD_OBSERVER and who in membership.observers:
        raise MembershipRejected(f"replica {who} is an observer already")


def _note_address(addresses: dict[int, str], change: Change) -> None:
    """An address belongs to one replica, which keeps it until an UPDATE; also among those that are changed together."""
    updates = change.type is ChangeType.UPDATE and change.replica in addresses
    if (change.type not in _ADDS and not updates) or not change.address:
        return
    wanted = _clean(change.address)
    for replica, address in addresses.items():
        if replica == change.replica and _clean(address) != wanted and not updates:
            raise MembershipRejected(
                f"replica {replica} has address {address}, which cannot become {change.address}"
            )
        if replica != change.replica and _clean(address) == wanted:
            raise MembershipRejected(f"address {change.address} belongs to replica {replica} already")
    if updates:
        addresses[change.replica] = change.address
    else:
        addresses.setdefault(change.replica, change.address)


def _clean(address: str) -> str:
    return address.strip().lower()


def may_become(role: State, after: State) -> bool:
    """Whether a membership change may turn one role into the other: a witness stays a witness (dragonboat)."""
    return role is after or State.WITNESS not in (role, after)


def role_conflict(replica: int, role: State, after: State) -> str:
    """Why a replica of one role cannot take the role that its shard lists, and what to do about it."""
    witness = after is State.WITNESS
    return (
        f"replica {replica} cannot become {after.name} from {role.name}: the shard has it as "
        f"{'a witness' if witness else 'no witness'}. If it has just joined, start it with is_witness={witness}; "
        "otherwise remove it, and add a new replica"
    )


def describe(membership: Membership) -> str:
    """`(1 2 3)&&(1) observers(4) next(5) auto-leave`, for logs and tests."""

    def listed(ids: object) -> str:
        return "(" + " ".join(map(str, sorted(ids))) + ")"  # type: ignore[call-overload]

    text = listed(membership.voters)
    if membership.joint:
        text += "&&" + listed(membership.outgoing)
    for name, ids in (
        ("observers", membership.observers),
        ("witnesses", membership.witnesses),
        ("next", membership.next_observers),
    ):
        if ids:
            text += f" {name}{listed(ids)}"
    return text + (" auto-leave" if membership.auto_leave else "")
