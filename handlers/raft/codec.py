"""A membership as a list that CBOR encodes: one layout for the log, for snapshots and for the wire."""

from typing import Any, Final

from drakkar.handlers.checks import MAX_INDEX, is_whole
from drakkar.handlers.errors import CorruptData
from drakkar.handlers.raft.state import Membership

__all__ = ["decode_membership", "encode_membership"]

_ROLES: Final = ("voters", "observers", "witnesses", "outgoing", "outgoing_witnesses", "next_observers")
_COLUMNS: Final = len(_ROLES) + 4
"""Columns that every membership has; that of the homes may follow."""


def encode_membership(membership: Membership) -> list[Any]:
    """Return the columns of a membership, in the order of its fields. Equal memberships give equal columns.

    A set of replicas is a sorted list of ids. The addresses are sorted pairs, since the keys of a map are strings
    wherever hosts speak CBOR. The homes are such pairs too, and left out where none is known.
    """
    return [
        *(sorted(getattr(membership, role)) for role in _ROLES),
        membership.auto_leave,
        sorted(membership.removed),
        membership.change_id,
        [[replica, membership.addresses[replica]] for replica in sorted(membership.addresses)],
        *([_encode_homes(membership)] if membership.homes else []),
    ]


def _encode_homes(membership: Membership) -> list[list[int]]:
    return [[replica, membership.homes[replica]] for replica in sorted(membership.homes)]


def decode_membership(columns: Any) -> Membership:
    """Return the membership of these columns, which may come from a peer or a damaged disk.

    Raises `CorruptData` unless every column has its type, every id is a whole number from 1 to 2**63 - 1, and no set
    names a replica twice.
    """
    if type(columns) is not list or len(columns) not in {_COLUMNS, _COLUMNS + 1}:
        raise CorruptData(f"a membership is not a list of {_COLUMNS} columns, or one more")
    *roles, auto_leave, removed, change_id, addresses = columns[:_COLUMNS]
    for name, ids in zip((*_ROLES, "removed"), (*roles, removed), strict=True):
        _check_ids(name, ids)
    if type(auto_leave) is not bool:
        raise CorruptData(f"the auto_leave of a membership is {auto_leave!r:.60}, which is no boolean")
    if not is_whole(change_id, 0, MAX_INDEX):
        raise CorruptData(f"the change_id of a membership is {change_id!r:.60}, which is no index")
    homes = _decode_homes(columns[_COLUMNS]) if len(columns) > _COLUMNS else {}
    fields = [*columns[: _COLUMNS - 1], _decode_addresses(addresses), homes]
    return Membership(*fields)


def _check_ids(name: str, ids: Any) -> None:
    if type(ids) is not list:
        raise CorruptData(f"the {name} of a membership are {ids!r:.60}, which is no list")
    for replica in ids:
        if not is_whole(replica, 1):
            raise CorruptData(f"the {name} of a membership name {replica!r:.60}, which is no replica id")
    if len(set(ids)) != len(ids):
        raise CorruptData(f"the {name} of a membership name a replica twice")


def _decode_addresses(pairs: Any) -> dict[int, str]:
    if type(pairs) is not list:
        raise CorruptData(f"the addresses of a membership are {pairs!r:.60}, which is no list")
    for pair in pairs:
        if type(pair) is not list or len(pair) != 2 or type(pair[1]) is not str:
            raise CorruptData(
                f"an address in a membership is {pair!r:.60}, which is no pair of an id and a string"
            )
    _check_ids("addresses", [replica for replica, _ in pairs])
    return dict(pairs)


def _decode_homes(pairs: Any) -> dict[int, int]:
    if type(pairs) is not list:
        raise CorruptData(f"the homes of a membership are {pairs!r:.60}, which is no list")
    for pair in pairs:
        if type(pair) is not list or len(pair) != 2 or not is_whole(pair[1]):
            raise CorruptData(
                f"a home in a membership is {pair!r:.60}, which is no pair of an id and the number of a host"
            )
    _check_ids("homes", [replica for replica, _ in pairs])
    return dict(pairs)
