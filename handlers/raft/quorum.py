"""Majorities: who has won a vote, and what a majority holds. Arithmetic on sets and numbers; it knows no Raft.

While the membership changes jointly there are two sets of voters, and each must agree by a majority of its own
(thesis §4.3). So an *electorate* is always a pair of sets, and a joint answer is the more reluctant of two plain
ones. The second set is empty most of the time. An empty set agrees with everything,
which makes the plain case a joint one without a special rule. Two empty sets agree too, so it is the caller's
duty that a shard has voters.

Nothing here keeps state or blocks: call it from any thread.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from enum import Enum
from typing import Final, TypeAlias

__all__ = [
    "INFINITY",
    "Electorate",
    "Vote",
    "believed",
    "believes",
    "committed",
    "describe",
    "elect",
    "group_committed",
    "has_quorum",
    "joint_committed",
    "joint_tally",
    "majority",
    "spans_groups",
    "tally",
]

Electorate: TypeAlias = tuple[Collection[int], Collection[int]]
"""The two sets that must each agree; the second is empty unless a joint change is on its way."""

INFINITY: Final[int] = (1 << 64) - 1
"""Above every index of a log: what an empty set of voters holds."""


class Vote(Enum):
    """Where a vote stands."""

    PENDING = "pending"
    """Neither side has a majority yet, and both still may."""
    WON = "won"
    LOST = "lost"
    """So many refused that the silent voters cannot make a majority of grants any more."""


def majority(size: int) -> int:
    """How many of `size` voters make a majority; of none, none."""
    return size // 2 + 1 if size else 0


def tally(voters: Collection[int], votes: Mapping[int, bool]) -> Vote:
    """Where the vote of one set stands. `votes` has True for a grant; a voter that is not in it has not answered.

    Answers of others than `voters` do not count. A vote is lost as soon as it cannot be won any more, which is
    etcd's rule; dragonboat waits for a majority of refusals, so that two of four leave it waiting in vain.
    """
    granted = refused = 0
    for voter in voters:
        if voter in votes:
            if votes[voter]:
                granted += 1
            else:
                refused += 1
    needed = majority(len(voters))
    if granted >= needed:
        return Vote.WON
    return Vote.LOST if len(voters) - refused < needed else Vote.PENDING


def joint_tally(electorate: Electorate, votes: Mapping[int, bool]) -> Vote:
    """Where the vote of both sets stands: won if both won, lost if either lost (thesis §4.3)."""
    halves = {tally(voters, votes) for voters in electorate}
    if Vote.LOST in halves:
        return Vote.LOST
    return Vote.PENDING if Vote.PENDING in halves else Vote.WON


def committed(voters: Collection[int], match: Callable[[int], int]) -> int:
    """Find the highest index that a majority of `voters` holds; each holds all up to `match(voter)`.

    `INFINITY` for no voters. A leader asks at every answer of a peer, so the usual sizes are spared a sort.
    """
    count = len(voters)
    if count == 3:
        return _median_of_three(map(match, voters))
    if count == 5:
        return _median_of_five(map(match, voters))
    if not count:
        return INFINITY
    # With the lowest first, the voter at this place and all after it are just a majority.
    return sorted(map(match, voters))[(count - 1) // 2]


# Plain comparisons take half the time that sorting takes; min() and max() would cost the gain.


def _median_of_three(held: Iterable[int]) -> int:
    a, b, c = held
    if a > b:
        a, b = b, a
    if b <= c:
        return b
    if a <= c:
        return c
    return a


def _median_of_five(held: Iterable[int]) -> int:
    a, b, c, d, e = held
    if a > b:
        a, b = b, a
    if c > d:
        c, d = d, c
    # The lower of the two lows is below three others, so it is not in the middle: drop it.
    if a > c:
        b, c, d = d, a, b
    # Of b, c <= d and e, which are left, the median is the second from below.
    if b > e:
        b, e = e, b
    if b <= c:
        b, d = c, e
    if b <= d:
        return b
    return d


def joint_committed(electorate: Electorate, match: Callable[[int], int]) -> int:
    """Find the highest index that a majority of each set holds (thesis §4.3)."""
    incoming, outgoing = electorate
    if not outgoing:
        return committed(incoming, match)
    return min(committed(incoming, match), committed(outgoing, match))


def believed(
    electorate: Electorate,
    match: Callable[[int], int],
    doubted: Collection[int],
    added: Collection[int] = (),
) -> int:
    """Find the highest index that a majority of each set holds, and at least half of each without the `doubted` voters.

    Half is rounded up, so in a set of odd size the doubted do not count at all. In one of even size they help the others
    to a majority: two of four that are not doubted and a third that is may commit, and so may one of two.

    A leader may have been elected without those that were `added`, by a majority of all or, in a set of even size, by half.
    So where there are such, the others that are not doubted must be a majority together with them: then they meet
    those that elected.
    """
    return min(_believed(voters, match, doubted, added) for voters in electorate)


def _believed(
    voters: Collection[int], match: Callable[[int], int], doubted: Collection[int], added: Collection[int]
) -> int:
    trusted = [voter for voter in voters if voter not in doubted]
    index = min(committed(voters, match), _held_by((len(voters) + 1) // 2, trusted, match))
    new = sum(voter in added for voter in voters)
    if not new:
        return index
    older = [voter for voter in trusted if voter not in added]
    return min(index, _held_by(majority(len(voters)) - new, older, match))


def _held_by(count: int, voters: Collection[int], match: Callable[[int], int]) -> int:
    """Find the highest index that `count` of `voters` hold; 0 where there are fewer voters."""
    if count <= 0:
        return INFINITY
    return sorted(map(match, voters), reverse=True)[count - 1] if len(voters) >= count else 0


def believes(
    electorate: Electorate, members: Collection[int], doubted: Collection[int], added: Collection[int] = ()
) -> bool:
    """Whether `members` are as many of each set as `believed` asks for."""
    return believed(electorate, lambda voter: int(voter in members), doubted, added) > 0


def elect(
    electorate: Electorate, votes: Mapping[int, bool], doubted: Collection[int], added: Collection[int]
) -> Vote:
    """Where a vote of both sets stands while some voters are `doubted`, and some were `added` and never voted.

    The doubted grant nothing, but one that has not answered may be doubted no more when it does. In a set of even size half
    of all is enough where one voter was added, since then it is a majority of the others; and where the other half is
    doubted, and has said that it does not vote in this term.
    """
    halves = {_elect(voters, votes, doubted, added) for voters in electorate if voters}
    if Vote.LOST in halves:
        return Vote.LOST
    return Vote.PENDING if Vote.PENDING in halves else Vote.WON


def _elect(
    voters: Collection[int], votes: Mapping[int, bool], doubted: Collection[int], added: Collection[int]
) -> Vote:
    refused = {voter for voter in voters if not votes.get(voter, True)}
    granted = sum(votes.get(voter, False) for voter in voters if voter not in doubted)
    one_added = any(voter in added for voter in voters)
    if granted >= _needed(len(voters), len(refused & set(doubted)), one_added=one_added):
        return Vote.WON
    possible, away = len(voters) - len(refused), sum(voter in doubted for voter in voters)
    return Vote.LOST if possible < _needed(len(voters), away, one_added=one_added) else Vote.PENDING


def _needed(voters: int, doubted: int, *, one_added: bool) -> int:
    """How many grants elect, where so many doubted voters have answered that they do not vote in this term."""
    half, odd = divmod(voters, 2)
    return half if not odd and (one_added or doubted >= half) else half + 1


def has_quorum(electorate: Electorate, members: Collection[int]) -> bool:
    """Whether `members` contain a majority of each set. Members who are no voters do not count."""
    present = frozenset(members)
    return all(len(present.intersection(voters)) >= majority(len(voters)) for voters in electorate)


def group_committed(electorate: Electorate, match: Callable[[int], int], group: Callable[[int], int]) -> int:
    """Find the highest index that a majority of each set holds, in at least two groups (raft-rs' group commit).

    Groups stand for places that fail together, such as data centres: what is committed so outlives the loss of
    any one of them. `group(voter)` is a number, 0 for none.

    A set that cannot span two groups is no reason to stop for ever. Where all its voters share one group, its
    plain majority counts. Where only some have a group, the assignment is taken to be unfinished, and all its
    voters must hold the index.
    """
    return min(_group_committed(voters, match, group) for voters in electorate)


def _group_committed(
    voters: Collection[int], match: Callable[[int], int], group: Callable[[int], int]
) -> int:
    """`group_committed` of one set.

    raft-rs starts from the group of the voter that completes the majority; starting from the highest match gives
    the same index, and is easier to see: the first voter of a second group is the first place where two hold it.
    """
    plain = committed(voters, match)
    first = 0
    for voter in sorted(voters, key=match, reverse=True):
        its_group = group(voter)
        if first and its_group and its_group != first:
            return min(match(voter), plain)
        first = first or its_group
    if all(map(group, voters)):
        return plain
    return min(map(match, voters))


def spans_groups(electorate: Electorate, group: Callable[[int], int]) -> bool:
    """Whether the voters of each set stand in two groups or more; an empty set is no obstacle."""
    return all(len({group(voter) for voter in voters} - {0}) > 1 for voters in electorate if voters)


def describe(electorate: Electorate, match: Callable[[int], int]) -> str:
    """One line for logs and tests: who holds what, highest first, with a bar behind the majority.

    `2:103 1:101 | 3:100 -> 101` reads: voters 2 and 1 are the majority that holds index 101. A joint electorate
    gives `(2:103 1:101 | 3:100 -> 101) && (4:99 -> 99) -> 99`.
    """
    halves = [_describe(voters, match) for voters in electorate if voters]
    if not halves:
        return "no voters -> any index"
    if len(halves) == 1:
        return halves[0]
    both = " && ".join(f"({half})" for half in halves)
    return f"{both} -> {joint_committed(electorate, match)}"


def _describe(voters: Collection[int], match: Callable[[int], int]) -> str:
    ranked = [f"{voter}:{match(voter)}" for voter in sorted(voters, key=lambda voter: (-match(voter), voter))]
    needed = majority(len(voters))
    holders, rest = " ".join(ranked[:needed]), " ".join(ranked[needed:])
    return (
        f"{holders} | {rest} -> {committed(voters, match)}"
        if rest
        else f"{holders} -> {committed(voters, match)}"
    )
