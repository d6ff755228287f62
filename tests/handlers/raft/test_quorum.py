"""Quorum arithmetic, in scenarios and against twins that are too simple to be wrong."""

from collections.abc import Collection, Mapping, Sequence
from itertools import chain, combinations, permutations, product

import pytest
from drakkar.handlers.raft.quorum import (
    INFINITY,
    Vote,
    believed,
    believes,
    committed,
    describe,
    elect,
    group_committed,
    has_quorum,
    joint_committed,
    joint_tally,
    majority,
    tally,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

PENDING, WON, LOST = Vote.PENDING, Vote.WON, Vote.LOST

# A shared machine may stand still for a moment: that is no failure.
patient = settings(deadline=None, max_examples=200)


# The twins: they try every subset, or every way in which the silent voters may yet answer.


def subsets(members: Collection[int]) -> list[tuple[int, ...]]:
    return list(chain.from_iterable(combinations(sorted(members), size) for size in range(len(members) + 1)))


def majorities(members: Collection[int]) -> list[tuple[int, ...]]:
    return [subset for subset in subsets(members) if 2 * len(subset) > len(members)]


def dumb_committed(voters: Collection[int], match: Mapping[int, int]) -> int:
    held = [min(match[voter] for voter in subset) for subset in majorities(voters)]
    return max(held, default=INFINITY)


def dumb_tally(electorate: Sequence[Collection[int]], votes: Mapping[int, bool]) -> Vote:
    silent = sorted(set().union(*electorate) - set(votes))
    outcomes = set()
    for answers in product([True, False], repeat=len(silent)):
        final = {**votes, **dict(zip(silent, answers, strict=True))}
        outcomes.add(
            all(
                not voters or 2 * sum(final[voter] for voter in voters) > len(voters) for voters in electorate
            )
        )
    return PENDING if len(outcomes) == 2 else (WON if outcomes == {True} else LOST)


def dumb_group_committed(voters: Collection[int], match: Mapping[int, int], group: Mapping[int, int]) -> int:
    spanning = [subset for subset in majorities(voters) if len({group[voter] for voter in subset} - {0}) >= 2]
    if spanning:
        return max(min(match[voter] for voter in subset) for subset in spanning)
    if all(group[voter] for voter in voters):
        return dumb_committed(voters, match)
    return min(match[voter] for voter in voters)


def scanned_group_committed(
    voters: Collection[int], match: Mapping[int, int], group: Mapping[int, int]
) -> int:
    """The rule as raft-rs states it: from the group of the voter that completes the majority."""
    ranked = sorted(voters, key=lambda voter: -match[voter])
    if not ranked:
        return INFINITY
    plain = ranked[len(ranked) // 2]
    theirs = group[plain] or next((group[voter] for voter in ranked if group[voter]), 0)
    for voter in ranked:
        if group[voter] not in {0, theirs}:
            return min(match[voter], match[plain])
    return match[plain] if all(group[voter] for voter in voters) else match[ranked[-1]]


IDS = st.integers(1, 7)
VOTERS = st.frozensets(IDS, max_size=7)
ELECTORATES = st.tuples(VOTERS, VOTERS | st.just(frozenset()))
MATCHES = st.fixed_dictionaries(dict.fromkeys(range(1, 8), st.integers(0, 9)))
VOTES = st.dictionaries(st.integers(1, 9), st.booleans(), max_size=9)
GROUPS = st.fixed_dictionaries(dict.fromkeys(range(1, 8), st.integers(0, 3)))


@pytest.mark.parametrize(("size", "needed"), [(0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 4)])
def test_a_majority_is_more_than_half(size: int, needed: int) -> None:
    assert majority(size) == needed


@pytest.mark.parametrize(
    ("match", "index"),
    [
        pytest.param([], INFINITY, id="G1 no voters, no objection"),
        pytest.param([0], 0, id="G1 one, holds nothing"),
        pytest.param([12], 12, id="G1 one"),
        pytest.param([12, 0], 0, id="G2 two, one holds nothing"),
        pytest.param([12, 5], 5, id="G2 two need both"),
        pytest.param([12, 0, 0], 0, id="G3 three, two hold nothing"),
        pytest.param([12, 5, 0], 5, id="G3 three, one holds nothing"),
        pytest.param([12, 5, 6], 6, id="G3 three, the last is in the middle"),
        pytest.param([12, 5, 4], 5, id="G3 three, falling"),
        pytest.param([5, 5, 0], 5, id="G3 three, two alike"),
        pytest.param([100, 101, 103], 101, id="G3 three, rising"),
        pytest.param([101, 104, 103, 103, 0], 103, id="G4 five, two alike"),
        pytest.param([101, 102, 103, 103, 0], 102, id="G4 five"),
        pytest.param([4, 2, 1, 3], 2, id="four need three"),
        pytest.param([7, 1, 6, 2, 5, 3, 4], 4, id="seven"),
    ],
)
def test_the_commit_index_is_what_a_majority_holds(match: list[int], index: int) -> None:
    """Thesis §3.5; the rows of etcd."""
    held = dict(enumerate(match, start=1))
    assert committed(held.keys(), held.__getitem__) == index
    assert joint_committed((held.keys(), ()), held.__getitem__) == index


@pytest.mark.parametrize("size", [3, 5])
def test_the_short_ways_for_three_and_five_agree_with_sorting_in_every_order(size: int) -> None:
    for match in product(range(size), repeat=size):
        assert committed(range(size), match.__getitem__) == sorted(match)[size // 2], match


@pytest.mark.parametrize(
    ("incoming", "outgoing", "votes", "result"),
    [
        pytest.param([1], [2], "y-", PENDING, id="G5 one half has not answered"),
        pytest.param([1], [2], "yy", WON, id="G5 both halves grant"),
        pytest.param([1], [2], "yn", LOST, id="G5 the second half refuses"),
        pytest.param([1], [2], "n-", LOST, id="G5 the first half refuses"),
        pytest.param([], [], "", WON, id="G5 no voters to ask"),
        pytest.param([1, 2], [3, 4], "yy--", PENDING, id="G6 one half won"),
        pytest.param([1, 2], [3, 4], "yyn-", LOST, id="G6 one of two refuses"),
        pytest.param([1, 2], [3, 4], "yyyy", WON, id="G6 all grant"),
        pytest.param([1, 2], [2, 3], "-n-", LOST, id="G7 the one in both halves refuses"),
        pytest.param([1, 2], [2, 3], "yy-", PENDING, id="G7 the second half waits"),
        pytest.param([1, 2], [2, 3], "yyy", WON, id="G7 all grant"),
        pytest.param([1, 2, 3], [2, 3, 4], "-n--", PENDING, id="G8 one refuses"),
        pytest.param([1, 2, 3], [2, 3, 4], "-nn-", LOST, id="G8 both common ones refuse"),
        pytest.param([1, 2, 3], [2, 3, 4], "-yy-", WON, id="G8 both common ones grant"),
        pytest.param([1, 2, 3], [2, 3, 4], "yy--", PENDING, id="G8 only one half has a majority"),
        pytest.param([1, 2, 3], [2, 3, 4], "yyny", WON, id="G8 one refusal is outvoted in both"),
        pytest.param(
            [1, 2, 3, 4], [], "nn--", LOST, id="half of an even set refuses: etcd's rule, not dragonboat's"
        ),
        pytest.param([1, 2, 3, 4], [], "yyn-", PENDING, id="half of an even set grants"),
    ],
)
def test_a_joint_vote_needs_both_halves(
    incoming: list[int], outgoing: list[int], votes: str, result: Vote
) -> None:
    """Thesis §4.3; the rows of etcd. `y` grants, `n` refuses, `-` is silent."""
    answers = {voter: answer == "y" for voter, answer in enumerate(votes, start=1) if answer != "-"}
    assert joint_tally((incoming, outgoing), answers) is result
    assert joint_tally((outgoing, incoming), answers) is result


def test_who_is_no_voter_does_not_count() -> None:
    """Observers answer, but never count (thesis §4.2.1)."""
    assert tally([1, 2, 3], {1: True, 8: True, 9: True}) is PENDING
    assert tally([1, 2, 3], {1: False, 8: False, 9: False}) is PENDING
    assert not has_quorum(([1, 2, 3], []), [1, 8, 9])


@pytest.mark.parametrize(
    ("match", "group", "index"),
    [
        pytest.param([], [], INFINITY, id="no voters"),
        pytest.param([5], [0], 5, id="one without a group"),
        pytest.param([9, 8, 3], [1, 1, 2], 3, id="wait for the second group"),
        pytest.param([9, 8, 3], [1, 2, 1], 8, id="the majority spans two groups"),
        pytest.param([9, 8, 3], [1, 1, 1], 8, id="one group only: its plain majority"),
        pytest.param([9, 8, 3], [0, 0, 0], 3, id="no groups: everybody"),
        pytest.param([9, 8, 3], [1, 0, 1], 3, id="one group and one without: everybody"),
        pytest.param([9, 8, 3], [1, 0, 2], 3, id="two groups, the second lags"),
        pytest.param([9, 8, 7, 2, 1], [1, 0, 2, 0, 0], 7, id="two groups among the first three of five"),
        pytest.param(
            [9, 8, 7, 2, 1], [2, 3, 1, 1, 1], 7, id="two groups are ahead, but it takes three voters"
        ),
    ],
)
def test_group_commit_wants_two_groups(match: list[int], group: list[int], index: int) -> None:
    """The rule of raft-rs."""
    assert group_committed((range(len(match)), ()), match.__getitem__, group.__getitem__) == index


def test_group_commit_of_a_joint_electorate_is_the_lower_of_both_halves() -> None:
    match = {1: 9, 2: 8, 3: 3, 4: 7}
    group = {1: 1, 2: 2, 3: 1, 4: 1}
    assert group_committed(({1, 2, 3}, {2, 3, 4}), match.__getitem__, group.__getitem__) == 7
    assert group_committed(({1, 2, 3}, {1, 3, 4}), match.__getitem__, group.__getitem__) == 7
    assert group_committed(({1, 2, 3}, {3}), match.__getitem__, group.__getitem__) == 3


@pytest.mark.parametrize(
    ("incoming", "outgoing", "text"),
    [
        pytest.param([], [], "no voters -> any index", id="no voters"),
        pytest.param([1], [], "1:101 -> 101", id="one"),
        pytest.param([3, 1, 2], [], "2:103 1:101 | 3:100 -> 101", id="three"),
        pytest.param([4, 1], [], "1:101 4:101 -> 101", id="alike, in the order of ids"),
        pytest.param([1, 2, 3], [3], "(2:103 1:101 | 3:100 -> 101) && (3:100 -> 100) -> 100", id="joint"),
        pytest.param([], [2], "2:103 -> 103", id="only the second half"),
    ],
)
def test_a_quorum_is_drawn_on_one_line(incoming: list[int], outgoing: list[int], text: str) -> None:
    match = {1: 101, 2: 103, 3: 100, 4: 101}
    assert describe((incoming, outgoing), match.__getitem__) == text


@patient
@given(VOTERS, MATCHES)
def test_commit_agrees_with_trying_all_majorities(voters: frozenset[int], match: dict[int, int]) -> None:
    assert committed(voters, match.__getitem__) == dumb_committed(voters, match)


@patient
@given(ELECTORATES, MATCHES)
def test_joint_commit_is_the_greatest_index_that_has_a_quorum(
    electorate: tuple[frozenset[int], frozenset[int]], match: dict[int, int]
) -> None:
    index = joint_committed(electorate, match.__getitem__)
    if electorate == (frozenset(), frozenset()):
        assert index == INFINITY
    else:
        assert has_quorum(electorate, [voter for voter in match if match[voter] >= index])
        assert not has_quorum(electorate, [voter for voter in match if match[voter] > index])


@patient
@given(VOTERS, VOTES)
@example(frozenset({1, 2, 3, 4}), {1: False, 2: False})
def test_a_vote_is_decided_when_no_answer_can_change_it(
    voters: frozenset[int], votes: dict[int, bool]
) -> None:
    assert tally(voters, votes) is dumb_tally([voters], votes)


@patient
@given(ELECTORATES, VOTES)
def test_a_joint_vote_is_decided_when_no_answer_can_change_it(
    electorate: tuple[frozenset[int], frozenset[int]], votes: dict[int, bool]
) -> None:
    assert joint_tally(electorate, votes) is dumb_tally(electorate, votes)


@patient
@given(ELECTORATES, st.frozensets(st.integers(1, 9)))
def test_a_quorum_is_what_would_win_a_vote(
    electorate: tuple[frozenset[int], frozenset[int]], members: frozenset[int]
) -> None:
    assert has_quorum(electorate, members) == (joint_tally(electorate, dict.fromkeys(members, True)) is WON)


@patient
@given(ELECTORATES.filter(any))
def test_two_quorums_always_share_a_voter(electorate: tuple[frozenset[int], frozenset[int]]) -> None:
    """Thesis §3.4 and §4.3: on this rests that there is one leader a term."""
    everybody = electorate[0] | electorate[1]
    for members in subsets(everybody):
        rest = everybody.difference(members)
        assert not (has_quorum(electorate, members) and has_quorum(electorate, rest)), members


@patient
@given(VOTERS, MATCHES, GROUPS)
@example(frozenset({1, 2, 3, 4, 5}), dict.fromkeys(range(1, 8), 4), dict.fromkeys(range(1, 8), 0))
def test_group_commit_agrees_with_trying_all_majorities(
    voters: frozenset[int], match: dict[int, int], group: dict[int, int]
) -> None:
    index = group_committed((voters, ()), match.__getitem__, group.__getitem__)
    assert index == (dumb_group_committed(voters, match, group) if voters else INFINITY)
    assert index == scanned_group_committed(voters, match, group)
    assert index <= committed(voters, match.__getitem__)


def test_the_order_in_which_voters_come_does_not_matter() -> None:
    match, group = {1: 5, 2: 5, 3: 9, 4: 2}, {1: 1, 2: 2, 3: 1, 4: 0}
    answers = {
        group_committed((order, ()), match.__getitem__, group.__getitem__) for order in permutations(match)
    }
    assert answers == {5}


# -- doubted voters ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("voters", "doubted", "holders", "enough"),
    [
        pytest.param((1, 2, 3), (3,), (1, 3), False, id="of three, one that is not doubted"),
        pytest.param((1, 2, 3), (3,), (1, 2), True, id="of three, two that are not doubted"),
        pytest.param((1, 2, 3), (2, 3), (1, 2, 3), False, id="of three, all, two of them doubted"),
        pytest.param((1, 2), (2,), (1,), False, id="of two, one alone"),
        pytest.param((1, 2), (2,), (1, 2), True, id="of two, one with the help of the doubted"),
        pytest.param((1, 2, 3, 4), (4,), (1, 2, 4), True, id="of four, two with the help of a doubted"),
        pytest.param(
            (1, 2, 3, 4), (3, 4), (1, 2, 4), True, id="of four, two with the help of one of two doubted"
        ),
        pytest.param((1, 2, 3, 4), (3, 4), (1, 3, 4), False, id="of four, one with the help of two doubted"),
        pytest.param((1, 2, 3, 4), (3, 4), (1, 2), False, id="of four, two without help"),
        pytest.param(
            (1, 2, 3, 4, 5), (4, 5), (1, 2, 4, 5), False, id="of five, two with the help of two doubted"
        ),
        pytest.param((1, 2, 3, 4, 5), (4, 5), (1, 2, 3), True, id="of five, three that are not doubted"),
    ],
)
def test_the_doubted_help_a_half_to_a_majority_and_do_no_more(voters, doubted, holders, enough):
    assert believes((voters, ()), holders, doubted) is enough
    assert (believed((voters, ()), lambda voter: 7 * (voter in holders), doubted) == 7) is enough
    assert believes(((9,), voters), (9, *holders), doubted) is enough


@patient
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.sets(st.integers(0, 5)))
def test_any_majority_without_the_forgotten_meets_what_is_believed(held, doubted):
    """The proof in small: what was committed, whoever is emptied later, is known to each that is elected."""
    voters = range(len(held))
    index = believed((voters, ()), held.__getitem__, doubted)
    holders = {voter for voter in voters if held[voter] >= index}
    assert 2 * len(holders) > len(held) or not index
    assert 2 * len(holders - doubted) >= len(held) or not index
    assert index <= committed(voters, held.__getitem__)
    assert believed((voters, ()), held.__getitem__, ()) == committed(voters, held.__getitem__)


@pytest.mark.parametrize(
    ("voters", "votes", "doubted", "added", "outcome"),
    [
        pytest.param((1, 2, 3), "1", (), (), PENDING, id="one of three"),
        pytest.param((1, 2, 3), "1 2", (), (), WON, id="two of three"),
        pytest.param((1, 2, 3), "1 -2 -3", (), (), LOST, id="refused by two of three"),
        pytest.param((1, 2, 3), "1 -3", (3,), (), PENDING, id="of three, refused by the doubted"),
        pytest.param((1, 2, 3), "1 3", (3,), (), PENDING, id="a doubted one grants nothing"),
        pytest.param((1, 2, 3), "1 -2 -3", (2, 3), (), LOST, id="alone among three"),
        pytest.param((1, 2), "1 -2", (2,), (), WON, id="one of two, the other doubted, and refusing"),
        pytest.param((1, 2), "1", (2,), (), PENDING, id="one of two, the other doubted, and silent"),
        pytest.param((1, 2), "1", (), (), PENDING, id="one of two, the other silent"),
        pytest.param((1, 2), "1", (), (2,), WON, id="one of two, the other just added"),
        pytest.param(
            (1, 2, 3, 4), "1 2 -3 -4", (3, 4), (), WON, id="two of four, the others doubted, and refusing"
        ),
        pytest.param((1, 2, 3, 4), "1 2 -3", (3, 4), (), PENDING, id="two of four, one doubted and refusing"),
        pytest.param((1, 2, 3, 4), "1 2", (4,), (), PENDING, id="two of four, one doubted, one silent"),
        pytest.param((1, 2, 3, 4), "1 2 3", (4,), (), WON, id="three of four, one doubted"),
        pytest.param((1, 2, 3, 4), "1 3", (3, 4), (), PENDING, id="of four, one and one doubted"),
        pytest.param((1, 2, 3, 4), "1 2", (), (4,), WON, id="two of four, one just added"),
        pytest.param((1, 2, 3, 4, 5), "1 2", (), (4, 5), PENDING, id="two of five, two just added"),
        pytest.param((1, 2, 3, 4, 5), "1 2 3", (4, 5), (), WON, id="three of five, two doubted"),
    ],
)
def test_an_election_among_doubted_voters(voters, votes, doubted, added, outcome):
    answers = {abs(int(vote)): not vote.startswith("-") for vote in votes.split()}
    assert elect((voters, ()), answers, doubted, added) is outcome
    assert elect((voters, (9,)), {**answers, 9: True}, doubted, added) is outcome
    assert elect((voters, (8, 9)), {**answers, 8: False}, doubted, added) is LOST


@pytest.mark.parametrize(
    ("voters", "doubted", "added", "holders", "enough"),
    [
        pytest.param((1, 2, 3, 4), (3,), (4,), (2, 3, 4), False, id="of four, one of the others elects with the third"),
        pytest.param((1, 2, 3, 4), (3,), (4,), (1, 2, 4), True, id="of four, two of the others"),
        pytest.param((1, 2, 3), (2,), (3,), (1, 3), True, id="of three, the one that elects beside the doubted"),
        pytest.param((1, 2, 3), (3,), (3,), (1, 3), False, id="of three, the doubted is the one that was added"),
        pytest.param((1, 4, 5), (1,), (4, 5), (4, 5), True, id="of three, two that were added"),
        pytest.param((1, 4, 5), (1,), (4, 5), (1, 4), False, id="of three, one of them"),
    ],
)  # fmt: skip
def test_those_that_were_added_do_not_make_up_for_the_doubted(voters, doubted, added, holders, enough):
    assert believes((voters, ()), holders, doubted, added) is enough


@patient
@given(
    st.integers(1, 6), st.sets(st.integers(0, 5)), st.sets(st.integers(0, 5)), st.sets(st.integers(0, 5), min_size=1)
)  # fmt: skip
def test_what_is_believed_meets_all_that_can_elect_without_those_that_were_added(
    size, holders, granting, added
):
    """Whoever is doubted may have granted a vote in an earlier life."""
    voters = range(size)
    wins = elect((voters, ()), dict.fromkeys(granting - added, True), (), added) is WON
    for doubted in (granting - added, holders - added):
        if wins and added & set(voters) and believes((voters, ()), holders, doubted, added):
            assert (holders - doubted) & granting & set(voters)


@patient
@given(st.sets(st.integers(1, 6), min_size=1), st.dictionaries(st.integers(1, 6), st.booleans()))
def test_without_doubts_an_election_is_what_it_was(voters, votes):
    assert elect((voters, ()), votes, (), ()) is tally(voters, votes)
