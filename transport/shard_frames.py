"""The SHARD frame: what a host says of its replica of a shard, once for each connection, before the replica's first message.

What home the replica has is not in it: that is the number of the host that introduced itself on the connection.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import cbor2
from drakkar.handlers.checks import MAX_TERM, is_text, is_whole
from drakkar.handlers.entry_kinds import MAX_KIND_NAME
from drakkar.handlers.raft.lives import Life, Standing
from drakkar.transport.frames import FrameError, loads_strict

__all__ = ["MAX_FOUNDERS", "ShardHello", "decode_shard", "encode_shard"]

MAX_FOUNDERS: Final = 16
"""Members that a SHARD frame tells: more are missing in warnings alone. A replica remembers them of others, and in words too."""
_MAX_LISTED: Final = 1000
"""Members that a host of version 4.0 lists; the first of them are taken."""
MAX_KINDS: Final = 128
"""Kinds of entries of its own that a replica can have: their numbers are those from 128 to 255."""
_FIRST_OWN_KIND: Final = 128
_LAST_KIND: Final = 255
_FOUNDING_BYTES: Final = 16
_FIELDS: Final = 7
"""Those of version 4.0. The eighth, the kinds, was appended in 4.3."""
_ADDRESS_CHARS: Final = 300
"""A name has 253 at most."""
SHARD_LIMIT: Final = 128 << 10
"""Maximum bytes of the body of a SHARD: decoding more would keep the loop busy for long."""


@dataclass(frozen=True, slots=True)
class ShardHello:
    """What a host says of its replica of a shard."""

    shard: int
    replica: int
    founding: bytes = b""
    """See `Life`."""
    standing: Standing = Standing.INHERITED
    founders: Mapping[int, str] = field(default_factory=dict)
    """The members with which the shard was founded, for people to read; empty where the replica was not told."""
    generation: int = 0
    """The number of the file from which the shard was imported; 0 where it was not."""
    term: int = 0
    """A term in which the replica was when it said this, or became what it says."""
    kinds: Mapping[int, str] | None = None
    """The names of the kinds of entries of its application's own that it can take, by number; None where it does not say."""

    def life(self, home: int) -> Life:
        """Return what the replica says of itself, which lives on the host of this number."""
        kinds = None if self.kinds is None else frozenset(self.kinds)
        return Life(self.founding, home, self.standing, kinds=kinds)


def encode_shard(hello: ShardHello) -> bytes:
    """Return the body of a SHARD frame."""
    founders = [[replica, hello.founders[replica]] for replica in sorted(hello.founders)[:MAX_FOUNDERS]]
    row = [
        hello.shard,
        hello.replica,
        hello.founding,
        int(hello.standing),
        founders,
        hello.generation,
        hello.term,
    ]
    if hello.kinds is not None:
        row.append([[number, hello.kinds[number]] for number in sorted(hello.kinds)])
    return cbor2.dumps(row)


def decode_shard(body: bytes | memoryview) -> ShardHello:
    """Decode the body of a SHARD frame. Raises `FrameError` where it is malformed."""
    if len(body) > SHARD_LIMIT:
        raise FrameError(f"a SHARD has {len(body)} bytes, and {SHARD_LIMIT} are allowed")
    row = loads_strict(body, 4)
    # A later minor version may append fields, which this one ignores.
    if type(row) is not list or len(row) < _FIELDS:
        raise FrameError(f"a SHARD is not a list of {_FIELDS} fields")
    shard, replica, founding, standing, founders, generation, term = row[:_FIELDS]
    numbers = is_whole(shard) and is_whole(generation) and is_whole(term, 0, MAX_TERM)
    if not numbers or not is_whole(replica, 1):
        raise FrameError("a SHARD has a number out of its bounds")
    if type(founding) is not bytes or len(founding) not in {0, _FOUNDING_BYTES}:
        raise FrameError(f"the founding in a SHARD is no byte string of {_FOUNDING_BYTES} bytes")
    if type(standing) is not int or standing not in tuple(Standing):
        raise FrameError(f"the standing in a SHARD is {standing!r:.30}, and none of that number is known")
    kinds = _kinds(row[_FIELDS]) if len(row) > _FIELDS else None
    return ShardHello(
        shard, replica, founding, Standing(standing), _founders(founders), generation, term, kinds
    )


def _founders(pairs: Any) -> dict[int, str]:
    if type(pairs) is not list or len(pairs) > _MAX_LISTED:
        raise FrameError(f"the founders in a SHARD are no list of at most {_MAX_LISTED}")
    told = pairs[:MAX_FOUNDERS]
    for pair in told:
        if not (type(pair) is list and len(pair) == 2 and is_whole(pair[0], 1) and _is_shown(pair[1])):
            raise FrameError(
                f"a founder in a SHARD is {pair!r:.60}, which is no pair of an id and an address"
            )
    return dict(told)


def _kinds(pairs: Any) -> dict[int, str]:
    if type(pairs) is not list or len(pairs) > MAX_KINDS:
        raise FrameError(f"the kinds in a SHARD are no list of at most {MAX_KINDS}")
    for pair in pairs:
        if not (
            type(pair) is list
            and len(pair) == 2
            and is_whole(pair[0], _FIRST_OWN_KIND, _LAST_KIND)
            and is_text(pair[1], MAX_KIND_NAME)
        ):
            raise FrameError(f"a kind in a SHARD is {pair!r:.60}, which is no pair of a number and a name")
    return dict(pairs)


def _is_shown(text: Any, most: int = _ADDRESS_CHARS) -> bool:
    """Return whether people can be shown it: it goes into log lines as it is."""
    return type(text) is str and len(text) <= most and text.isprintable()
