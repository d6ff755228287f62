"""Who belongs to a simulated shard at first, and random membership changes."""

from collections.abc import Iterable
from random import Random
from typing import Final

from drakkar.handlers.raft.confchange import Change, ChangeType, ConfigChange, Transition
from drakkar.handlers.raft.state import Membership
from drakkar.handlers.testing.plan import Plan

__all__ = ["address", "choose_change", "first_members", "is_forced"]

_MAX_REPLICAS: Final = 9


def first_members(plan: Plan) -> Membership:
    """Return the membership at the start of a plan."""
    numbers = iter(range(1, plan.voters + plan.observers + plan.witnesses + 1))
    roles = [[next(numbers) for _ in range(size)] for size in (plan.voters, plan.observers, plan.witnesses)]
    voters, observers, witnesses = ({replica: address(replica) for replica in role} for role in roles)
    return Membership(voters, observers, witnesses)


def address(replica: int) -> str:
    """Return the address of a replica's host."""
    return f"host-{replica}:1"


def choose_change(random: Random, membership: Membership, known: Iterable[int]) -> ConfigChange:
    """Return a random change. Most are allowed; some are not, and must be refused. `known` are ids that are in use."""
    fresh = (replica for replica in range(1, _MAX_REPLICAS + 1) if replica not in known)
    count = random.choice((1, 1, 1, 2, 3))
    changes = [_choose_one(random, membership, fresh) for _ in range(count)]
    change_id = membership.change_id
    if membership.joint and not membership.auto_leave:
        return ConfigChange(change_id=change_id)
    unique = {one.replica: one for one in changes if one is not None}
    transition = random.choice(tuple(Transition)) if random.random() < 0.4 else Transition.AUTO
    return ConfigChange(tuple(unique.values()), transition, change_id)


def is_forced(choice: int) -> bool:
    """Return whether the change of this choice is forced, where that means anything."""
    return Random(f"force {choice}").random() < 0.3


def _choose_one(random: Random, membership: Membership, fresh: Iterable[int]) -> Change | None:
    members, voters = sorted(membership.everybody), sorted(membership.voters)
    observers = sorted(membership.observers)
    kind = random.choice(("add", "add", "observe", "witness", "promote", "demote", "remove", "remove"))
    if kind in ("add", "observe", "witness"):
        replica = next(iter(fresh), None)
        if replica is None:
            return None
        host = replica if random.random() < 0.9 else random.choice(members)  # an address in use
        types = {
            "add": ChangeType.ADD_VOTER,
            "observe": ChangeType.ADD_OBSERVER,
            "witness": ChangeType.ADD_WITNESS,
        }
        return Change(types[kind], replica, address(host))
    if kind == "promote" and observers:
        replica = random.choice(observers)
        return Change(ChangeType.ADD_VOTER, replica, address(replica))
    if kind == "demote":
        replica = random.choice(voters)
        return Change(ChangeType.ADD_OBSERVER, replica, address(replica))
    return Change(ChangeType.REMOVE, random.choice(members))
