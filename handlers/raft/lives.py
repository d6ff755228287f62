"""Where a replica lives, and how its shard was founded: what replicas tell each other once, before their first message.

A replica whose disk is lost comes back under its old id, and has forgotten what it promised. So the log says on which host
each replica lives, and what a replica tells of itself is compared with that; the rules are in `settling`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from hashlib import sha256
from typing import Final

import cbor2
from drakkar.handlers import cbor
from drakkar.handlers.checks import MAX_SIGNED, is_whole
from drakkar.handlers.errors import CorruptData

__all__ = [
    "Claim",
    "KnownLives",
    "Life",
    "Lives",
    "Meeting",
    "Standing",
    "decode_settled",
    "encode_settled",
    "founding_id",
    "home_number",
]


class Standing(IntEnum):
    """What a replica may claim to remember. Durable."""

    NEWBORN = 0
    """Its directory was empty when it started, and nothing has told it yet that it belongs there."""
    FOUNDER = 1
    """It was newborn, and so was a majority of the founders, and none of them said otherwise."""
    SETTLED = 2
    """It has applied the entry that says that it lives on this host."""
    INHERITED = 3
    """It has data from before, of an older version or an import, and the log does not say yet where it lives."""


class Meeting(Enum):
    """What came of meeting a replica; see `Raft.meet`. Which of its messages are taken: `permissions.lets_in`."""

    WELCOME = "its messages are taken"
    OTHER_FOUNDING = "its shard was founded with other members"
    OTHER_LIFE = "by the log, this replica lives on another host"
    OLDER_LIFE = "its shard is older than ours: ours was founded a second time, by mistake"
    STRANGER = "by our membership, it is no member, or a member that is reached at another address"
    UNPROVEN = "it is a stranger, and does not say how its shard was founded"


@dataclass(frozen=True, slots=True)
class Life:
    """What a replica says of itself, once for each connection and shard, and again when it has changed."""

    founding: bytes = b""
    """The founding of its shard (`founding_id`); empty at a replica that joins and has heard of none yet."""
    home: int = 0
    """The number of the host on which it lives (`home_number`); 0 where that is not told."""
    standing: Standing = Standing.INHERITED
    address: str = ""
    """Where its host says that it is reached, spelt as in the membership; empty where that is not told: no rule asks for it."""
    certified: bool = False
    """Its host has shown a certificate for this address."""
    kinds: frozenset[int] | None = None
    """The kinds of records that its table delivers (`HandlerTable.kinds`); None where that is not told."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A replica leads a term, as it says, and what its host has said of itself."""

    replica: int
    term: int
    life: Life

    def is_of(self, replica: int, life: Life) -> bool:
        """Whether this replica, on this host, made the claim. A host does not move while its replica leads."""
        same = self.life
        return replica == self.replica and (life.address, life.home) == (same.address, same.home)


_SETTLED_BYTES: Final = 1 + 9 + 9
"""Maximum bytes of the payload of a SETTLED entry: the head of a list, and two numbers."""

_NO_COMPANIONS: Final[Mapping[int, int]] = {}


@dataclass(frozen=True, slots=True)
class Lives:
    """What a replica remembers, durably, of its own life."""

    founding: bytes = b""
    standing: Standing = Standing.INHERITED
    companions: Mapping[int, int] = field(default_factory=lambda: _NO_COMPANIONS)
    """The founders that a NEWBORN or FOUNDER has taken for empty, as it was itself, and the homes that they had then."""


class KnownLives:
    """What a replica knows of lives: its own, and those of the replicas that it has met."""

    def __init__(self, home: int, own: Lives) -> None:
        self.home = home
        """The number of the host on which it lives; 0: no rule asks where replicas live."""
        self.own = own
        """What it remembers of its own life, which may not be durable yet."""
        self.met: dict[int, Life] = {}
        """What the other replicas have said of themselves last, as far as they are welcome."""
        self.met_at: dict[int, int] = {}
        """The tick at which each was first met in this life."""
        self.greeted: dict[int, int] = {}
        """Newborns that a leader has asked whether they are there, by a heartbeat with a number of its own."""
        self.present: set[int] = set()
        """Those that have answered, in this term, a heartbeat that left after they were met."""
        self.doubted: frozenset[int] = frozenset()
        """Voters that do not count by themselves yet: they may have forgotten what they promised in an earlier life."""
        self.added: frozenset[int] = frozenset()
        """Voters that were added, and of whom the committed log does not say yet where they live. Known while others are doubted."""
        self.version = 0
        """Rises whenever a replica that was welcome may not be any more."""
        self.founders: frozenset[int] = frozenset()
        """Who founds the shard, at a newborn that belongs to them."""
        self.empty: dict[int, int] = {}
        """The founders that said that they are empty too, and their homes."""
        self.too_late = False
        """A replica said that the shard is older than this newborn."""
        self.claim: Claim | None = None
        """While a message is stepped that was let in though its sender is not welcome: that one, and the term that it names."""
        self.followed: Claim | None = None
        """The leader that was followed last; None where its host said nothing of itself."""

    def follow(self, leader: int, term: int) -> None:
        """Remember the host of a leader, by its first message of a term."""
        known, claim = self.followed, self.claim
        if known is not None and (known.replica, known.term) == (leader, term):
            return
        if claim is not None and (claim.replica, claim.term) == (leader, term):
            self.followed = claim
        else:
            life = self.met.get(leader)
            self.followed = None if life is None else Claim(leader, term, life)
        self.version += 1  # one that knows no members takes little of others from now on


def founding_id(shard: int, founders: Mapping[int, str], generation: int = 0) -> bytes:
    """Return the 16 bytes that name a founding: of this shard, by these founders, at these canonical addresses.

    An import founds the shard anew: its `generation` is the number of the file. Equal arguments give equal bytes.
    """
    members = [[replica, founders[replica]] for replica in sorted(founders)]
    return sha256(cbor2.dumps([shard, members, generation], canonical=True)).digest()[:16]


def home_number(host_id: str) -> int:
    """Return the number of a host, from 1 to 2**63 - 1: the same wherever it is asked."""
    return (int.from_bytes(sha256(host_id.encode()).digest()[:8], "big") & MAX_SIGNED) or 1


def encode_settled(replica: int, home: int) -> bytes:
    """Return the payload of a SETTLED entry: from here on, `replica` lives on the host with the number `home`."""
    return cbor2.dumps([replica, home])


def decode_settled(payload: bytes) -> tuple[int, int]:
    """Return the replica and the home of a SETTLED entry. Raises `CorruptData` where they are none."""
    if len(payload) > _SETTLED_BYTES:
        raise CorruptData(f"a SETTLED entry has {len(payload)} bytes, and {_SETTLED_BYTES} are allowed")
    try:
        columns = cbor.loads(payload, max_depth=1)
    except ValueError as error:
        raise CorruptData(f"a SETTLED entry cannot be decoded: {error}") from error
    if type(columns) is not list or len(columns) != 2 or not all(is_whole(it, 1) for it in columns):
        raise CorruptData("a SETTLED entry does not name a replica and its home")
    replica, home = columns
    return replica, home
