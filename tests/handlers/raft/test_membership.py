"""Membership changes (thesis chapter 4): the rules as functions, and what they do to a replica and to a shard."""

from dataclasses import replace
from itertools import combinations

import pytest
from drakkar.handlers import (
    Change,
    ChangeType,
    ConfigChange,
    CorruptData,
    Entry,
    EntryKind,
    HardState,
    Membership,
    MemoryLog,
    Message,
    MessageType,
    ProgressState,
    ProtocolViolation,
    Raft,
    RaftConfig,
    Refusal,
    Snapshot,
    State,
    Transition,
)
from drakkar.handlers.errors import MembershipRejected
from drakkar.handlers.raft.confchange import (
    MAX_CHANGE_BYTES,
    decide,
    describe,
    enter_joint,
    initial_log,
    leave_joint,
    simple,
)
from drakkar.handlers.raft.membership import is_dispensable
from drakkar.handlers.testing import drain
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.handlers.raft.support import (
    DEFAULTS,
    FIXED,
    ack,
    acknowledge_all,
    append,
    become_leader,
    cluster,
    disk,
    hear,
    heartbeat,
    of_type,
    propose,
    rejection,
    replica,
    routes,
    tick,
    ticks_until_campaign,
    vote,
    vote_request,
)
from tests.handlers.raft.support import (
    T as TIMEOUT,
)

T = MessageType
AUTO, IMPLICIT, EXPLICIT = Transition.AUTO, Transition.IMPLICIT, Transition.EXPLICIT
CONFIG = RaftConfig(replica_id=1)
ORDERED = RaftConfig(replica_id=1, ordered_config_change=True)

KINDS = {
    "v": ChangeType.ADD_VOTER,
    "r": ChangeType.REMOVE,
    "o": ChangeType.ADD_OBSERVER,
    "w": ChangeType.ADD_WITNESS,
    "u": ChangeType.UPDATE,
}


def changes(text):
    """`"v2 r1"`: add voter 2, remove 1; `"v2=a2"` with an address. `o` observer, `w` witness, `u` update."""
    made = []
    for word in text.split():
        number, _, address = word[1:].partition("=")
        made.append(Change(KINDS[word[0]], int(number), address))
    return tuple(made)


def change(text, transition=AUTO, **fields):
    return ConfigChange(changes(text), transition, **fields)


def entry(what, index=9):
    return Entry(index, 1, EntryKind.CONFIG_CHANGE, what.encode())


def outcome(membership, what, config=CONFIG):
    """The membership after a change, as text; or the rule that it breaks."""
    after = decide(membership, entry(what), config)
    return after if isinstance(after, str) else describe(after)


def ask(raft, text="", transition=AUTO):
    """Propose a change at a replica, and drain."""
    return propose(raft, change(text, transition).encode(), kind=EntryKind.CONFIG_CHANGE)


def ask_shard(shard, at, text="", transition=AUTO):
    shard.propose(at, change(text, transition).encode(), kind=EntryKind.CONFIG_CHANGE)


class TestOneChangeAtATime:
    """Dragonboat's checks (rules of membership, facts L): members {1: a1}, observers {2: a2}."""

    MEMBERS = Membership({1: "a1"}, {2: "a2"})

    @pytest.mark.parametrize(
        ("text", "after"),
        [
            pytest.param("v3=a1", None, id="L1 voter: the address of a voter"),
            pytest.param("v4=a2", None, id="L1 voter: the address of an observer"),
            pytest.param("v3=a3", "(1 3) observers(2)", id="L1 voter: new"),
            pytest.param("v1=a3", None, id="L1 voter: a voter elsewhere"),
            pytest.param("v1=a1", None, id="L1 voter: is one"),
            pytest.param("v2=a2", "(1 2)", id="L1 voter: an observer is promoted"),
            pytest.param("w3=a1", None, id="L2 witness: the address of a voter"),
            pytest.param("w4=a2", None, id="L2 witness: the address of an observer"),
            pytest.param("w3=a3", "(1) observers(2) witnesses(3)", id="L2 witness: new"),
            pytest.param("w1=a3", None, id="L2 witness: a voter"),
            pytest.param("w1=a1", None, id="L2 witness: a voter, same address"),
            pytest.param("w2=a2", None, id="L2 witness: an observer"),
            pytest.param("o3=a1", None, id="L3 observer: the address of a voter"),
            pytest.param("o4=a2", None, id="L3 observer: the address of an observer"),
            pytest.param("o3=a3", "(1) observers(2 3)", id="L3 observer: new"),
            pytest.param("o2=a4", None, id="L3 observer: is one, elsewhere"),
            pytest.param("o2=a2", None, id="L3 observer: is one"),
            pytest.param("o1=a1", None, id="L7 a voter is not turned back into an observer"),
            pytest.param("v2=a9", None, id="L7 promotion does not move"),
            pytest.param("v3=A1", None, id="addresses are compared without case"),
        ],
    )
    def test_what_is_let_through(self, text, after):
        result = decide(self.MEMBERS, entry(change(text)), CONFIG)
        if after is None:
            assert isinstance(result, str)
        else:
            assert describe(result) == after
            assert result.change_id == 9

    @pytest.mark.parametrize("text", ["v3=a3", "o3=a3", "w2=a2"])
    def test_a_witness_changes_no_role(self, text):
        """L7, N6."""
        members = Membership({1: "a1"}, witnesses={3: "a3", 2: "a2"})
        assert "witness" in outcome(members, change(text))

    def test_a_change_that_another_one_overtook_is_rejected_where_changes_are_ordered(self):
        """L4."""
        members = Membership({1: "a1"}, change_id=5)
        assert outcome(members, change("v2"), CONFIG) == "(1 2)"
        assert outcome(members, change("v2", change_id=5), ORDERED) == "(1 2)"
        assert "made for membership 4, but 5 is in effect" in outcome(
            members, change("v2", change_id=4), ORDERED
        )
        assert outcome(members, change("v2", initialize=True), ORDERED) == "(2)"

    def test_the_only_voter_stays(self):
        """L5, INV25."""
        assert "without voters" in outcome(Membership((1,)), change("r1"))
        assert outcome(Membership((1, 2)), change("r1")) == "(2)"
        assert outcome(Membership((1,), (2,)), change("r2")) == "(1)"

    @pytest.mark.parametrize("text", ["v4", "o4", "w4"])
    def test_a_removed_id_never_comes_back(self, text):
        """L6, INV25: with an empty disk it could vote twice."""
        members = decide(Membership((1, 4)), entry(change("r4")), CONFIG)
        assert members.removed == {4}
        assert "never used again" in outcome(members, change(text))
        assert "never used again" in outcome(members, change(text + " o7"))

    def test_removing_it_again_or_one_that_was_never_there_is_fine(self):
        """L6."""
        once = decide(Membership((1, 2, 3)), entry(change("r3")), CONFIG)
        twice = decide(once, entry(change("r3")), CONFIG)
        other = decide(twice, entry(change("r8")), CONFIG)
        assert [describe(m) for m in (once, twice, other)] == ["(1 2)"] * 3
        assert other.removed == {3, 8}

    def test_no_two_replicas_of_one_change_share_an_address(self):
        """INV25: compared with each other, not only with those who are there."""
        result = outcome(Membership({1: "a1"}), change("v2=a2 v3=a2"))
        assert "address a2" in result
        result = outcome(Membership({1: "a1"}), change("v2=a2 o2=a3"))
        assert "address a2" in result

    @pytest.mark.parametrize(
        ("text", "addresses"),
        [
            ("u1=a9", {1: "a9", 2: "a2"}),
            ("u1=a1", {1: "a1", 2: "a2"}),
            ("u1", {1: "a1", 2: "a2"}),
            ("u7=a7", {1: "a1", 2: "a2"}),
            ("u2=a3 u1=a2", {1: "a2", 2: "a3"}),
            ("u2=a3 u2=a4", {1: "a1", 2: "a4"}),
        ],
    )
    def test_an_update_changes_the_address_of_a_member_and_no_role(self, text, addresses):
        """M7."""
        before = Membership({1: "a1", 2: "a2"})
        after = decide(before, entry(change(text)), CONFIG)
        assert (after.voters, after.addresses) == (before.voters, addresses)

    @pytest.mark.parametrize("text", ["u1=a2", "u1=A2", "u1=a3 u2=a3", "u1=a2 u2=a3"])
    def test_an_update_takes_no_address_of_another(self, text):
        """M7; in the order in which they are named."""
        result = decide(Membership({1: "a1", 2: "a2"}), entry(change(text)), CONFIG)
        assert "belongs to replica" in result

    @pytest.mark.parametrize(
        "payload",
        [
            b"", b"nonsense", b"\xff" * 9, b"\x84\x00\x00\xf4\x81\x83\x09\x01\x60",
            ConfigChange((Change(ChangeType.ADD_VOTER, 1 << 63),)).encode(),
            ConfigChange((Change(ChangeType.ADD_VOTER, 3, "a" * MAX_CHANGE_BYTES),)).encode(),
        ],
        ids=["nothing", "text", "breaks", "unknown", "an id beyond its bound", "too long"],
    )  # fmt: skip
    def test_what_is_no_change_at_all_is_rejected(self, payload):
        """Everywhere alike, as it stands in the log."""
        result = decide(self.MEMBERS, Entry(9, 1, EntryKind.CONFIG_CHANGE, payload), CONFIG)
        assert "no membership change" in result
        with pytest.raises(CorruptData):
            ConfigChange.decode(payload)

    def test_a_change_is_the_same_after_it_was_encoded(self):
        what = change("v2=a2 o3 r4", EXPLICIT, change_id=77)
        assert ConfigChange.decode(what.encode()) == what


class TestSeveralAtOnce:
    """etcd's joint changer (facts M), without what the state machine refuses: (incoming)&&(outgoing)."""

    def test_the_leader_leaves_by_itself_where_it_was_asked_to(self):
        """M1."""
        joint = enter_joint(Membership((1,)), changes("v2 v3"), auto_leave=True)
        assert describe(joint) == "(1 2 3)&&(1) auto-leave"
        with pytest.raises(MembershipRejected, match="on its way"):
            enter_joint(joint, changes("v4"), auto_leave=True)
        assert describe(leave_joint(joint)) == "(1 2 3)"

    def test_the_last_word_on_a_replica_counts(self):
        """M2: idempotent, in order."""
        text = "r1 r2 r9 v2 v3 v4 v2 v3 v4 o2 o2 r4 r4 o1 o1"
        joint = enter_joint(Membership((1,)), changes(text), auto_leave=False)
        assert describe(joint) == "(3)&&(1) observers(2) next(1)"
        assert describe(leave_joint(joint)) == "(3) observers(1 2)"

    @pytest.mark.parametrize(
        "broken",
        [
            pytest.param(lambda: leave_joint(Membership((1,))), id="leave what was not entered"),
            pytest.param(lambda: enter_joint(Membership(), changes("v1"), auto_leave=False), id="no voters"),
            pytest.param(
                lambda: enter_joint(Membership((1,), outgoing=(2,)), changes("v1"), auto_leave=False),
                id="twice",
            ),
            pytest.param(
                lambda: simple(Membership((1,), outgoing=(2,)), changes("v3")), id="simple while joint"
            ),
            pytest.param(
                lambda: enter_joint(Membership((1,)), changes("r1"), auto_leave=False), id="to an empty half"
            ),
        ],
    )
    def test_what_is_refused(self, broken):
        """M3."""
        with pytest.raises(MembershipRejected):
            broken()

    def test_old_and_new_half(self):
        """M4."""
        joint = enter_joint(Membership((1,)), changes("r1 v2 v3 o4"), auto_leave=False)
        assert describe(joint) == "(2 3)&&(1) observers(4)"
        after = leave_joint(joint)
        assert (describe(after), after.removed) == ("(2 3) observers(4)", {1})

    def test_a_simple_change_touches_one_voter_at_most(self):
        """M5, in sequence."""
        with pytest.raises(MembershipRejected, match="without voters"):
            simple(Membership(), changes("o1"))
        now = simple(Membership(), changes("v1"))
        now = simple(now, changes("v2 o3"))
        assert describe(now) == "(1 2) observers(3)"
        for text in ("r1 v5", "v3 v4", "o1 v5"):
            with pytest.raises(MembershipRejected, match="more than one voter"):
                simple(now, changes(text))
        for text in ("r1 r2", "o1 o2"):
            with pytest.raises(MembershipRejected, match="without voters"):
                simple(now, changes(text))
        now = simple(now, changes("o2 o3 o4 o5"))
        assert describe(now) == "(1) observers(2 3 4 5)"
        with pytest.raises(MembershipRejected, match="without voters"):
            simple(now, changes("r1"))
        assert describe(simple(now, changes("r2 r3 r4 r5"))) == "(1)"

    @pytest.mark.parametrize(
        ("members", "text", "after"),
        [
            (Membership((1,)), "v1", "(1)"),
            (Membership((1,)), "r2", "(1)"),
            (Membership((1,), (2,)), "o2", "(1) observers(2)"),
            (Membership((1, 2)), "o1", "(2) observers(1)"),
            (Membership((1, 2)), "u1 u2 u9", "(1 2)"),
            (Membership((1, 2)), "v0 r0", "(1 2)"),
        ],
    )
    def test_what_is_so_already_stays_so(self, members, text, after):
        """M6, M7; id 0 stands for a change that was vetoed."""
        assert describe(simple(members, changes(text))) == after

    def test_what_a_snapshot_says_of_it(self):
        """M8."""
        joint = enter_joint(Membership((1,)), changes("v2 o1 o3"), auto_leave=False)
        assert (joint.voters, joint.outgoing, joint.observers, joint.next_observers) == ({2}, {1}, {3}, {1})
        after = leave_joint(joint)
        assert (after.voters, after.outgoing, after.observers, after.next_observers) == (
            {2},
            set(),
            {1, 3},
            set(),
        )

    def test_witnesses_keep_their_role_in_the_old_half(self):
        """BUG-S5: restored as what it is, not as a voter."""
        joint = enter_joint(Membership((1, 2), witnesses=(3,)), changes("r3 v4"), auto_leave=False)
        assert joint.electorate == ({1, 2, 4}, {1, 2, 3})
        assert (joint.is_witness(3), joint.is_voter(3), joint.is_voter(4)) == (True, False, True)


ids = st.integers(1, 5)
one_change = st.builds(
    Change, st.sampled_from(list(ChangeType)), ids, st.sampled_from(["", "a1", "a2", "a3", "a4", "a5"])
)
any_change = st.builds(ConfigChange, st.lists(one_change, max_size=3).map(tuple), st.sampled_from(Transition))


def majorities(voters):
    """All smallest majorities of a set."""
    return [set(some) for some in combinations(sorted(voters), len(voters) // 2 + 1)]


def decisive(membership):
    """All smallest sets that may decide under a membership."""
    incoming, outgoing = membership.electorate
    return [a | b for a in majorities(incoming) for b in (majorities(outgoing) if outgoing else [set()])]


class TestAnySequenceOfChanges:
    @given(st.lists(any_change, max_size=8))
    @settings(deadline=None, max_examples=60)
    def test_keeps_the_sets_apart_and_the_majorities_together(self, sequence):
        """INV15 and INV25, thesis §4.1 and §4.3."""
        now = Membership({1: "a1", 2: "a2"})
        for number, what in enumerate(sequence, 1):
            after = decide(now, entry(what, number), CONFIG)
            if isinstance(after, str):
                continue
            assert after.change_id == number
            assert after.voters
            roles = (after.voters, after.observers, after.witnesses)
            assert sum(map(len, roles)) == len(set().union(*roles))
            assert not after.removed & after.everybody
            assert now.removed <= after.removed
            assert not after.outgoing & after.observers
            assert after.next_observers <= after.outgoing
            assert after.outgoing_witnesses <= after.outgoing
            assert after.joint or not (after.next_observers or after.auto_leave or after.outgoing_witnesses)
            assert len(set(after.addresses.values())) == len(after.addresses)
            assert set(after.addresses) <= after.everybody
            assert all(one & other for one in decisive(now) for other in decisive(after))
            now = after


def test_the_first_members_begin_with_the_same_committed_entry():
    members = Membership(voters={2: "b", 1: "a"}, observers={4: "d"}, witnesses={3: "c"})
    hard_state, run = initial_log(members)
    same = initial_log(Membership(voters={1: "a", 2: "b"}, observers={4: "d"}, witnesses={3: "c"}))
    assert (run.encode(), hard_state) == (same[1].encode(), same[0])
    assert (run.first, run.last, run.term, hard_state) == (1, 1, 1, HardState(term=1, vote=0, commit=1))
    # A replica that has no members yet learns all of them from it, with roles and addresses.
    assert decide(Membership(), run.entry(1), CONFIG) == replace(members, change_id=1)


class TestInALeader:
    def test_a_change_is_logged_and_the_next_has_to_wait(self):
        """K1 and K2, thesis §4.1: the second is logged as an empty entry, and reported."""
        raft = leader_of(1, 2, 3)
        ask(raft, "v4")
        assert (raft.log.last_index, raft.pending_change_index) == (2, 2)
        out = ask(raft, "o5")
        assert [d.because for d in out.dropped] == [Refusal.CHANGE_PENDING]
        [logged] = raft.log.entries(3, 4)
        assert (logged.kind, logged.payload) == (EntryKind.NO_OP, b"")
        assert raft.pending_change_index == 2

    def test_a_change_waits_for_one_that_stood_behind_other_proposals(self):
        """INV15: also where one batch holds the proposals of several, and so several runs."""
        raft = leader_of(1, 2, 3)
        batch = [Entry(payload=b"%d" % n, origin=7, key=n) for n in range(1, 4)]
        batch.append(Entry(kind=EntryKind.CONFIG_CHANGE, payload=change("v4").encode(), origin=9, key=1))
        hear(raft, Message(T.PROPOSE, entries=tuple(batch)))
        hear(raft, ack(2, 1, 3))
        assert raft.log.applied == 3
        assert [d.because for d in ask(raft, "v5").dropped] == [Refusal.CHANGE_PENDING]
        acknowledge_all(raft)
        assert describe(raft.membership) == "(1 2 3 4)"
        assert ask(raft, "v5").dropped == []

    def test_two_changes_of_one_batch_become_one(self):
        """K2: the other entries of the batch go on."""
        raft = leader_of(1, 2, 3)
        batch = tuple(
            Entry(
                kind=EntryKind.CONFIG_CHANGE if text else EntryKind.COMMAND,
                payload=payload,
                origin=5,
                key=key,
            )
            for key, (text, payload) in enumerate(
                [("v4", change("v4").encode()), ("", b"x"), ("v5", change("v5").encode())], 1
            )
        )
        out = hear(raft, Message(T.PROPOSE, entries=batch))
        assert [(d.because, d.origin, d.key, d.count) for d in out.dropped] == [
            (Refusal.CHANGE_PENDING, 5, 3, 1)
        ]
        assert [e.kind for e in raft.log.entries(2, 5)] == [
            EntryKind.CONFIG_CHANGE,
            EntryKind.COMMAND,
            EntryKind.NO_OP,
        ]

    def test_the_whole_membership_of_a_running_shard_cannot_be_replaced(self):
        """L4: what is marked as the first membership would bypass every rule, INV15 among them."""
        raft = leader_of(1, 2, 3)
        out = propose(raft, change("v9", initialize=True).encode(), kind=EntryKind.CONFIG_CHANGE)
        assert [d.because for d in out.dropped] == [Refusal.CHANGE_INVALID]
        acknowledge_all(raft)
        assert describe(raft.membership) == "(1 2 3)"

    def test_a_rejected_change_is_reported_and_frees_the_way(self):
        """Rules of membership."""
        raft = leader_of(1, 2, 3)
        ask(raft, "v2")
        changed = acknowledge_and_changes(raft)
        assert [(c.index, bool(c.rejected)) for c in changed] == [(2, True)]
        assert describe(raft.membership) == "(1 2 3)"
        assert ask(raft, "v4").dropped == []

    def test_a_leader_that_is_removed_follows_and_never_campaigns(self):
        """K4 and K6, thesis §4.2.2: late answers mean nothing to it."""
        raft = leader_of(1, 2, 3, **FIXED)
        ask(raft, "r1")
        acknowledge_all(raft)
        assert (raft.state, raft.leader_id, raft.term) == (State.FOLLOWER, 0, 1)
        hear(raft, ack(2, 1, 2))
        assert [d.because for d in propose(raft, b"x").dropped] == [Refusal.NO_LEADER]
        assert ticks_until_campaign(raft) == 0
        hear(raft, Message(T.ELECTION), Message(T.TIMEOUT_NOW, sender=2, term=1))
        assert raft.state is State.FOLLOWER

    def test_it_first_tells_the_others_that_the_change_is_committed(self):
        """Rules of membership: so that none has to time out to learn it."""
        raft = leader_of(1, 2, 3)
        ask(raft, "r1")
        sent = hear(raft, ack(2, 1, 2))
        assert {m.to for m in of_type(sent, T.REPLICATE) if m.commit == 2} == {2, 3}

    def test_it_may_be_told_to_lead_on_without_counting_itself(self):
        """K5, etcd's default: until it is stopped."""
        raft = leader_of(1, 2, 3, step_down_on_removal=False)
        ask(raft, "r1")
        propose(raft, b"x")
        hear(raft, ack(2, 1, 2))
        hear(raft, ack(3, 1, 2))
        assert (raft.state, sorted(raft.progress)) == (State.LEADER, [2, 3])
        hear(raft, ack(2, 1, 3))
        assert raft.log.committed == 2
        hear(raft, ack(3, 1, 3))
        assert raft.log.committed == 3
        assert [d.because for d in propose(raft, b"y").dropped] == [Refusal.NOT_A_MEMBER]
        assert routes(of_type(tick(raft), T.HEARTBEAT)) == [(T.HEARTBEAT, 2), (T.HEARTBEAT, 3)]

    def test_a_smaller_quorum_commits_what_waited_for_a_larger_one(self):
        """Rules of membership, remove."""
        raft = leader_of(1, 2)
        ask(raft, "r2")
        propose(raft, b"x")
        hear(raft, ack(2, 1, 2))
        assert (describe(raft.membership), raft.log.committed) == ("(1)", 3)

    def test_a_new_voter_is_probed_and_then_sent_the_log(self):
        """K10."""
        raft = leader_of(1)
        propose(raft, b"x")
        sent = ask(raft, "v2")
        assert describe(raft.membership) == "(1 2)"
        [probe] = of_type(sent, T.REPLICATE)
        assert (probe.to, probe.log_index) == (2, 3)
        peer = raft.progress[2]
        assert (peer.match, peer.active) == (0, True), (
            "it counts as heard, or it could cost the leader its office"
        )
        [append_] = of_type(hear(raft, rejection(2, 1, 3, 0)), T.REPLICATE)
        assert (append_.log_index, len(append_.entries)) == (0, 3)

    def test_a_new_voter_gets_a_snapshot_where_the_log_is_compacted(self):
        """K10."""
        raft = leader_of(1)
        propose(raft, b"x")
        ask(raft, "v2")
        hear(raft, ack(2, 1, 0), Message(T.UNREACHABLE, sender=2))
        raft.snapshot_taken(snapshot_of(raft))
        raft.compact(3)
        [sent] = hear(raft, rejection(2, 1, 0, 0), Message(T.HEARTBEAT_RESP, sender=2, term=1))
        assert (sent.type, sent.snapshot.index, describe(sent.snapshot.membership)) == (
            T.INSTALL_SNAPSHOT,
            3,
            "(1 2)",
        )

    def test_peers_are_all_the_others_and_never_oneself(self):
        """BUG-M10 (pso PR131)."""
        raft = leader_of(1, 2, 3)
        for text in ("v4", "r2", "o5"):
            ask(raft, text)
            acknowledge_all(raft)
            assert raft.id not in raft.peers
        assert raft.peers == [3, 4, 5]
        assert all(m.to != 1 for m in tick(raft, 3) + propose(raft, b"x"))

    def test_answers_of_a_peer_that_was_removed_meanwhile_break_nothing(self):
        """BUG-M10 (pso#121): its tick thread died of a KeyError."""
        raft = leader_of(1, 2, 3)
        ask(raft, "r3")
        hear(raft, ack(2, 1, 2))
        assert sorted(raft.progress) == [1, 2]
        late = [ack(3, 1, 1), rejection(3, 1, 1, 0), Message(T.HEARTBEAT_RESP, sender=3, term=1, hint=7)]
        late += [Message(kind, sender=3) for kind in (T.UNREACHABLE, T.SNAPSHOT_STATUS)]
        assert hear(raft, *late, Message(T.RATE_LIMIT, sender=3, term=1, hint=9)) == []
        tick(raft, 3)
        assert sorted(raft.progress) == [1, 2]

    def test_growing_by_one_that_is_not_up_does_not_stop_the_shard(self):
        """BUG-M11 (pso#51): join as observer first; and back, if it never comes."""
        raft = leader_of(1)
        ask(raft, "o2")
        propose(raft, b"x")
        assert (raft.log.committed, raft.log.last_index) == (3, 3)
        ask(raft, "r2")
        assert (describe(raft.membership), raft.log.committed) == ("(1)", 4)
        assert raft.peers == []


def leader_of(*voters, **options):
    """Leads term 1 of these voters; its empty entry is applied, and all have it."""
    raft = replica(voters=voters, state=State.LEADER, **options)
    acknowledge_all(raft)
    return raft


def acknowledge_and_changes(raft):
    """Let all peers hold all; returns the membership changes that were applied."""
    return hear(raft, *[ack(peer, raft.term, raft.log.last_index) for peer in raft.peers]).changes


def snapshot_of(raft):
    """What the host would take now."""
    return Snapshot(raft.log.applied, raft.log.term(raft.log.applied), raft.membership)


class TestJointly:
    def test_until_it_is_told_to_leave(self):
        """K7, thesis §4.3."""
        raft = leader_of(1)
        ask(raft, "v2", EXPLICIT)
        assert describe(raft.membership) == "(1 2)&&(1)"
        for text in ("v3", "r1"):
            assert [d.because for d in ask(raft, text).dropped] == [Refusal.CHANGE_INVALID]
        acknowledge_all(raft)
        ask(raft)
        acknowledge_all(raft)
        assert describe(raft.membership) == "(1 2)"
        assert [d.because for d in ask(raft).dropped] == [Refusal.CHANGE_INVALID]
        kinds = [e.kind for e in raft.log.entries(1, raft.log.last_index + 1)]
        assert kinds == [
            EntryKind.NO_OP,
            EntryKind.CONFIG_CHANGE,
            EntryKind.NO_OP,
            EntryKind.NO_OP,
            EntryKind.CONFIG_CHANGE,
            EntryKind.NO_OP,
        ]

    def test_until_the_leader_leaves_by_itself(self):
        """K8: as soon as the joint membership is applied; in effect when both halves hold it."""
        raft = leader_of(1)
        ask(raft, "v2", IMPLICIT)
        assert describe(raft.membership) == "(1 2)&&(1) auto-leave"
        assert (raft.log.last_index, raft.log.committed) == (3, 2)
        tick(raft, 5)
        assert raft.log.last_index == 3, "BUG-M6: proposed once"
        hear(raft, ack(2, 1, 3))
        assert describe(raft.membership) == "(1 2)"
        tick(raft, 5)
        assert raft.log.last_index == 3

    def test_several_changes_go_jointly_and_one_goes_directly(self):
        """Rules of membership, transition auto."""
        raft = leader_of(1)
        ask(raft, "o2")
        assert describe(raft.membership) == "(1) observers(2)"
        ask(raft, "o3 o4")
        assert describe(raft.membership) == "(1) observers(2 3 4)"
        assert (
            sum(e.kind == EntryKind.CONFIG_CHANGE for e in raft.log.entries(1, raft.log.last_index + 1)) == 3
        )

    @pytest.mark.parametrize(
        ("acks", "committed"),
        [
            pytest.param([2], 2, id="a majority of the old half only"),
            pytest.param([4, 5], 2, id="a majority of the new half only"),
            pytest.param([2, 4], 3, id="of both"),
        ],
    )
    def test_commits_need_both_halves(self, acks, committed):
        """Thesis §4.3: (1 4 5)&&(1 2 3)."""
        raft = leader_of(1, 2, 3)
        ask(raft, "r2 r3 v4 v5", EXPLICIT)
        hear(raft, ack(2, 1, 2))
        assert describe(raft.membership) == "(1 4 5)&&(1 2 3)"
        propose(raft, b"x")
        for peer in acks:
            hear(raft, ack(peer, 1, 3))
        assert raft.log.committed == committed

    @pytest.mark.parametrize(
        ("grants", "state"),
        [([2], State.CANDIDATE), ([4, 5], State.CANDIDATE), ([2, 4], State.LEADER)],
    )
    def test_elections_need_both_halves(self, grants, state):
        """Thesis §4.3."""
        joint = Membership((1, 4, 5), outgoing=(1, 2, 3))
        raft = replica(membership=joint, state=State.CANDIDATE)
        for voter in grants:
            hear(raft, vote(voter, raft.term))
        assert raft.state is state

    def test_the_leader_is_replaced(self):
        """K9: remove 1, add 4, explicitly; hand over to 4; leave."""
        shard = cluster(3)
        shard.add(4)
        shard.elect(1)
        ask_shard(shard, 1, "r1 v4", EXPLICIT)
        shard.tick(3)
        assert {describe(shard[n].membership) for n in (1, 2, 3, 4)} == {"(2 3 4)&&(1 2 3)"}
        shard.cut(4, 2)
        shard.cut(4, 3)
        shard.transfer(1, 4)
        assert shard[4].state is State.CANDIDATE, "its own vote and 1's are no majority of either half"
        shard.heal()
        shard.tick(40)
        shard.transfer(shard.leader.id, 4)
        assert shard.leader.id == 4
        ask_shard(shard, 4)
        shard.tick(1)
        assert {describe(shard[n].membership) for n in (2, 3, 4)} == {"(2 3 4)"}
        assert (shard[1].state, shard[1].promotable) == (State.FOLLOWER, False)
        shard.propose(4, b"after")
        assert shard.applied(2)[-1] == b"after"

    @pytest.mark.parametrize("killed_after", range(0, 30, 2))
    def test_a_shard_gets_out_of_it_whenever_its_leader_dies(self, killed_after):
        """BUG-M6 (etcd#11281) and BUG-M7 (etcd PR12435): the leader is killed when so many messages have arrived."""
        shard = cluster(3, seed=killed_after, pre_vote=True, check_quorum=True)
        shard.add(4)
        shard.add(5)
        shard.elect(1)
        shard.auto_deliver = False
        ask_shard(shard, 1, "r1 v4 v5", AUTO)
        for _ in range(killed_after):
            if not shard.network:
                shard.tick(1, 1)
            if shard.network:
                shard.deliver_one()
        entered = shard[1].log.last_index > 1
        shard.crash(1)
        shard.auto_deliver = True
        shard.tick(80)
        assert shard.leader is not None
        shard.propose(shard.leader.id, b"after")
        shard.tick(40)
        assert entered
        leader = shard.leader
        assert leader.log.committed == leader.log.last_index
        assert not leader.membership.joint
        assert shard.applied(leader.id)[-1] == b"after"

    def test_leaving_is_put_off_by_a_transfer_and_made_up_for(self):
        """BUG-M6: refused and lost, it would stay joint for ever."""
        raft = leader_of(1, 2, 3)
        ask(raft, "v4", IMPLICIT)
        hear(raft, Message(T.LEADER_TRANSFER, hint=3))
        hear(raft, ack(2, 1, 2))
        assert (describe(raft.membership), raft.log.last_index) == ("(1 2 3 4)&&(1 2 3) auto-leave", 2)
        tick(raft, 10)
        assert raft.transfer.target == 0
        assert raft.log.last_index == 3
        acknowledge_all(raft)
        assert describe(raft.membership) == "(1 2 3 4)"


class TestInAShard:
    def test_an_observer_is_promoted_and_a_voter_demoted(self):
        """K3."""
        shard = cluster(1)
        shard.add(2)
        shard.elect(1)
        ask_shard(shard, 1, "o2")
        shard.tick(2)
        assert (shard[2].state, describe(shard[2].membership)) == (State.OBSERVER, "(1) observers(2)")
        ask_shard(shard, 1, "v2")
        shard.tick(2)
        assert (shard[2].state, describe(shard[1].membership)) == (State.FOLLOWER, "(1 2)")
        ask_shard(shard, 1, "o1", IMPLICIT)
        shard.tick(40)
        assert (shard[1].state, shard[2].state) == (State.OBSERVER, State.LEADER)
        ask_shard(shard, 2, "v1")
        shard.tick(2)
        assert (shard[1].state, describe(shard[1].membership)) == (State.FOLLOWER, "(1 2)")

    def test_a_promotion_takes_effect_in_an_idle_shard(self):
        """BUG-M9 (ra#584): an observer that got only a snapshot was not promoted before the next command."""
        shard = cluster(Membership((1,), observers=(2,)))
        shard.isolate(2)
        shard.elect(1)
        shard.propose(1, b"x")
        shard.compact(1, 2)
        shard.heal()
        shard.tick(3)
        assert shard[2].log.first_index == 3
        ask_shard(shard, 1, "v2")
        shard.tick(2)
        assert (shard[2].state, shard[2].promotable) == (State.FOLLOWER, True)

    def test_an_update_promotes_no_replica(self):
        """BUG-M9 (etcd PR21737)."""
        shard = cluster(Membership((1,), observers=(2,)))
        shard.elect(1)
        ask_shard(shard, 1, "u2=a2")
        shard.tick(2)
        assert (shard[2].state, describe(shard[1].membership)) == (State.OBSERVER, "(1) observers(2)")

    def test_a_voter_that_does_not_know_yet_that_it_is_one_votes(self):
        """K11: else no replica could win, as the third is down."""
        members = Membership((1, 2), observers=(3,))
        log = (Entry(term=1, payload=b"x"),) * 3 + (entry(change("v3")),)
        shard = cluster(
            members,
            logs={
                1: disk(log, commit=4, membership=members),
                2: disk(log, commit=4, membership=members),
                3: disk(log[:3], commit=3, membership=members),
            },
        )
        shard.deliver()
        assert [shard[n].state for n in (2, 3)] == [State.FOLLOWER, State.OBSERVER]
        shard.crash(1)
        shard.elect(2)
        assert (shard[2].state, shard[2].term) == (State.LEADER, 2)
        [refused] = [m for m in of_type(shard.seen, T.REPLICATE_RESP) if m.reject]
        assert (refused.sender, refused.hint) == (3, 3)
        assert (shard[3].state, shard[3].log.committed) == (State.FOLLOWER, 5)

    def test_two_voters_survive_the_removal_of_their_leader_though_its_last_word_is_lost(self):
        """BUG-M8 (etcd#10563): the one that is left learns, or wins with the vote of the one that is gone."""
        shard = cluster(2, pre_vote=True, check_quorum=True)
        shard.elect(1)
        shard.auto_deliver = False
        ask_shard(shard, 1, "r1")
        while shard.network and shard[1].state is State.LEADER:
            shard.deliver_one()
        shard.network.clear()
        assert (shard[1].state, describe(shard[1].membership)) == (State.FOLLOWER, "(2)")
        assert describe(shard[2].membership) == "(1 2)"
        shard.auto_deliver = True
        shard.tick(60)
        assert (shard[2].state, describe(shard[2].membership)) == (State.LEADER, "(2)")
        shard.propose(2, b"after")
        assert shard.applied(2) == [b"after"]

    def test_every_replica_has_the_same_membership_when_it_has_applied_the_same(self):
        """BUG-M2, V8: a change is in effect from its application, on all replicas alike, restarts included."""
        shard = cluster(3, seed=3)
        for joiner in (4, 5):
            shard.add(joiner)
        shard.elect(1)
        seen = {}
        for text in ("v4", "r2", "o5", "v5", "r3", "u1"):
            ask_shard(shard, shard.leader.id, text)
            shard.tick(2)
            shard.restart(4)
            shard.tick(2)
            for node in shard.nodes.values():
                raft = node.raft
                first = seen.setdefault(raft.log.applied, raft.membership)
                assert raft.membership == first or raft.id in first.removed or raft.log.applied < 2
        assert describe(shard.leader.membership) == "(1 4 5)"


CAUSES = {
    "its timeout": lambda raft: [raft.tick() for _ in range(25)],
    "its host": lambda raft: raft.step(Message(T.ELECTION)),
    "a transfer": lambda raft: raft.step(Message(T.TIMEOUT_NOW, sender=2, term=1)),
}
CHANGES = {
    "add a voter": change("v4"),
    "remove one": change("r3"),
    "add an observer": change("o4"),
    "add a witness": change("w4"),
    "several": change("v4 v5 r2"),
    "enter a joint change": change("v4", EXPLICIT),
}


class TestWhatIsCommittedAndNotApplied:
    @pytest.mark.parametrize("pre_vote", [False, True], ids=["", "with pre-vote"])
    @pytest.mark.parametrize("what", CHANGES.values(), ids=CHANGES)
    @pytest.mark.parametrize("cause", CAUSES.values(), ids=CAUSES)
    def test_keeps_a_replica_from_campaigning(self, cause, what, pre_vote):
        """BUG-M1 (etcd#12133, rrs#221): it would count a quorum that need not meet the new one; V1, INV18."""
        raft = replica(term=1, pre_vote=pre_vote, max_apply_bytes=1)
        message = append(2, 1, (0, 0), [1, 1], commit=2)
        message.entries = (Entry(1, 1, payload=b"x"), entry(what, 2))
        raft.step(message)
        raft.persisted(raft.ready())
        assert raft.log.committed == 2
        cause(raft)
        assert (raft.state, raft.term) == (State.FOLLOWER, 1)
        drain(raft)
        assert raft.log.applied == 2
        cause(raft)
        assert raft.state in (State.PRE_CANDIDATE, State.CANDIDATE)

    def test_keeps_one_that_leaves_a_joint_change_from_it_too(self):
        """BUG-M1: the newer type of change; it is empty."""
        joint = Membership((1, 2), outgoing=(1, 2, 3))
        raft = replica(membership=joint, term=1)
        message = append(2, 1, (0, 0), [1], commit=1)
        message.entries = (entry(ConfigChange(), 1),)
        raft.step(message)
        raft.step(Message(T.ELECTION))
        assert raft.state is State.FOLLOWER


class TestWhatIsLoggedAndNotCommitted:
    def test_does_not_count_after_a_restart(self):
        """BUG-M3 (ra 110b8d63): here changes count from their application, so not before it on either side."""
        log = MemoryLog((entry(change("r2 r3"), 1),), HardState(1, 0, 0), Membership((1, 2, 3)))
        raft = Raft(RaftConfig(replica_id=1, **DEFAULTS), log)
        drain(raft)
        assert raft.electorate == ({1, 2, 3}, set())
        become_leader(raft)
        assert raft.log.committed == 0

    @pytest.mark.parametrize("text", ["r1", "o1 v4", "v4", "r2 r3"])
    def test_leaves_nothing_behind_when_it_is_cut_off(self, text):
        """BUG-M4 (ra#600, #609): neither the membership nor one's own role."""
        raft = replica(terms=[1], term=1, commit=1)
        drain(raft)
        before = raft.membership
        message = append(2, 1, (1, 1), [1])
        message.entries = (entry(change(text), 2),)
        hear(raft, message)
        hear(raft, append(3, 2, (1, 1), [2], commit=2))
        assert (raft.membership, raft.state, raft.base_state) == (before, State.FOLLOWER, State.FOLLOWER)
        assert raft.promotable

    def test_keeps_a_new_leader_from_logging_another(self):
        """BUG-M5 (ra cc797663): until all that it inherited is applied, however quickly it is elected again."""
        raft = leader_of(1, 2, 3)
        ask(raft, "v4")
        hear(raft, heartbeat(2, 2))
        become_leader(raft)
        assert raft.term == 3
        assert [d.because for d in ask(raft, "v5").dropped] == [Refusal.CHANGE_PENDING]
        hear(raft, ack(2, 3, raft.log.last_index))
        hear(raft, ack(3, 3, raft.log.last_index))
        assert describe(raft.membership) == "(1 2 3 4)"
        assert ask(raft, "v5").dropped == []

    def test_does_not_keep_one_from_it_that_never_had_it(self):
        """BUG-M5: no flag of an earlier term survives."""
        raft = leader_of(1, 2, 3)
        ask(raft, "v4")
        hear(raft, append(2, 2, (1, 1), [2], commit=2))
        become_leader(raft)
        acknowledge_all(raft)
        assert ask(raft, "v4").dropped == []


class TestWitnesses:
    @pytest.mark.parametrize("role", [ChangeType.ADD_VOTER, ChangeType.ADD_OBSERVER])
    def test_one_that_is_told_to_change_its_role_stops(self, role):
        """N6, K14."""
        raft = replica(voters=(2, 3), witnesses=(1,), state=State.WITNESS)
        with pytest.raises(ProtocolViolation, match="from WITNESS"):
            raft.step(Message(T.CONFIG_CHANGE_EVENT, hint=1, hint_high=role))

    def test_one_is_sent_that_entries_exist_and_membership_changes_whole(self):
        """N7, INV17, thesis §11.7.2."""
        raft = replica(voters=(1, 3), witnesses=(2,), state=State.LEADER)
        acknowledge_all(raft)
        sent = propose(raft, b"secret") + ask(raft, "v4")
        entries = [e for m in of_type(sent, T.REPLICATE) if m.to == 2 for e in m.entries]
        assert [(e.index, e.term, e.kind, e.payload) for e in entries] == [
            (2, 1, EntryKind.METADATA, b""),
            (3, 1, EntryKind.CONFIG_CHANGE, change("v4").encode()),
        ]
        entries = [e for m in of_type(sent, T.REPLICATE) if m.to == 3 for e in m.entries]
        assert [e.payload for e in entries] == [b"secret", change("v4").encode()]

    def test_one_makes_a_majority_with_the_voters_that_are_left(self):
        """N8: voters 1, 2, 3 and witness 4, of which 3 is cut off."""
        shard = cluster(Membership((1, 2, 3), witnesses=(4,)))
        shard.isolate(3)
        shard.elect(1)
        shard.propose(1, b"x")
        shard.tick(1)
        assert [shard[n].log.committed for n in (1, 2, 4)] == [2, 2, 2]
        shard.crash(2)
        shard.propose(1, b"y")
        assert shard[1].log.committed == 2, "two of four"
        kinds = {e.kind for e in shard[4].log.entries(1, 4)}
        assert kinds <= {EntryKind.METADATA, EntryKind.CONFIG_CHANGE}

    def test_one_keeps_nothing_but_the_vote_and_never_leads(self):
        raft = replica(voters=(2, 3), witnesses=(1,), state=State.WITNESS, **FIXED)
        [answer] = hear(raft, vote_request(2, 1))
        assert (answer.reject, raft.vote) == (False, 2)
        assert ticks_until_campaign(raft) == 0


class TestEventsOfTheHost:
    """CONFIG_CHANGE_EVENT as dragonboat's state machine sends it: a replica and a type that were checked there."""

    def test_it_takes_effect(self):
        raft = leader_of(1, 2, 3)
        hear(raft, Message(T.CONFIG_CHANGE_EVENT, hint=4, hint_high=ChangeType.ADD_OBSERVER))
        assert describe(raft.membership) == "(1 2 3) observers(4)"
        sent = hear(raft, Message(T.CONFIG_CHANGE_EVENT, hint=1, hint_high=ChangeType.REMOVE))
        assert (describe(raft.membership), raft.state) == ("(2 3) observers(4)", State.FOLLOWER)
        assert {(T.REPLICATE, 2), (T.REPLICATE, 3)} <= set(routes(sent)), "its last word"

    @pytest.mark.parametrize(
        "event",
        [
            pytest.param({"reject": True, "hint": 4}, id="it was rejected"),
            pytest.param({"hint": 0}, id="replica 0"),
        ],
    )
    def test_it_only_frees_the_way_for_the_next(self, event):
        """Rules of message types, type 3."""
        raft = leader_of(1, 2, 3)
        ask(raft, "v4")
        hear(raft, Message(T.CONFIG_CHANGE_EVENT, **event))
        assert (raft.pending_change_index, describe(raft.membership)) == (0, "(1 2 3)")

    @pytest.mark.parametrize("event", [{"hint": 4, "hint_high": 99}, {"hint": 1, "hint_high": 1}])
    def test_one_that_makes_no_sense_is_counted_and_changes_nothing(self, event):
        raft = leader_of(1)
        hear(raft, Message(T.CONFIG_CHANGE_EVENT, **event))
        assert (describe(raft.membership), raft.faults.total()) == ("(1)", 1)


class TestRolesOfPeers:
    def test_a_progress_moves_along_with_its_replica(self):
        """Rules of membership: an observer that becomes a voter is not probed anew."""
        raft = replica(voters=(1, 2), observers=(3,), state=State.LEADER)
        acknowledge_all(raft)
        before = raft.progress[3]
        ask(raft, "v3")
        acknowledge_all(raft)
        assert raft.progress[3] is before
        assert before.state is ProgressState.REPLICATE


def test_leaving_a_joint_membership_names_the_change_that_it_follows():
    # Else it would be rejected where changes are ordered, and proposed again, for ever.
    shard = cluster(3, ordered_config_change=True)
    shard.elect(1)
    ask_shard(shard, 1, "v4 r2", Transition.IMPLICIT)
    assert not shard[1].membership.joint
    assert shard[1].log.last_index < 10


# -- who was removed and does not know


def a_shard_that_removed_the_third(**options):
    shard = cluster(3, **options)
    shard.elect(1)
    shard.isolate(3)
    shard.change(1, ConfigChange((Change(ChangeType.REMOVE, 3),)))
    assert 3 in shard[2].membership.removed
    return shard


@pytest.mark.parametrize("kind", [T.REQUEST_PRE_VOTE, T.REQUEST_VOTE])
def test_a_leader_tells_a_removed_replica_that_asks_for_votes(kind):
    shard = a_shard_that_removed_the_third()
    leader, gone = shard[1], shard[3]
    term = leader.term
    answers = hear(leader, Message(kind, to=1, sender=3, term=term + 1, log_index=9, log_term=9))
    assert (leader.state, leader.term) == (State.LEADER, term), "it disturbs no leader"
    (news,) = of_type(answers, T.REMOVED)
    assert (news.to, news.snapshot.witness) == (3, True)
    hear(gone, news)
    assert 3 in gone.membership.removed
    assert not gone.promotable


def test_only_the_leader_tells_the_removed():
    shard = a_shard_that_removed_the_third()
    ask = Message(T.REQUEST_PRE_VOTE, to=2, sender=3, term=shard[2].term + 1, log_index=9, log_term=9)
    assert of_type(hear(shard[2], ask), T.REMOVED) == []


@pytest.mark.parametrize("options", [{}, {"pre_vote": True, "check_quorum": True}], ids=["", "both options"])
def test_a_removed_voter_learns_of_it_though_its_term_is_the_higher_one(options):
    shard = a_shard_that_removed_the_third(**options)
    gone = shard[3]
    for _ in range(5):
        gone.become_candidate()
        shard.tick(2, 3)
    assert gone.term > shard[1].term + 3
    before = gone.term
    shard.heal()
    shard.tick(3 * TIMEOUT)
    assert 3 in gone.membership.removed
    assert gone.term >= before
    assert (shard[1].state, shard[1].term) == (State.LEADER, 1), "it disturbs no leader"
    asked = len(shard.seen)
    shard.tick(4 * TIMEOUT)
    assert {m.sender for m in shard.seen[asked:]} == {1, 2}, "nor asks any more"


def news_of_removal(removed=(1,), last=(5, 1), **fields):
    membership = Membership((2, 3), removed=removed, change_id=last[0])
    snapshot = Snapshot(*last, membership, witness=True)
    return Message(T.REMOVED, **{"sender": 2, "term": 2, "snapshot": snapshot, **fields})


@pytest.mark.parametrize("state", [State.FOLLOWER, State.PRE_CANDIDATE, State.CANDIDATE, State.LEADER])
def test_news_of_an_older_term_is_taken_in_by_the_replica_that_it_removes(state):
    raft = replica(terms=[1, 1, 6], term=9, state=state)
    vote_then = raft.vote
    out = hear(raft, news_of_removal())
    assert (raft.state, raft.term, raft.vote, raft.leader_id) == (State.FOLLOWER, 9, vote_then, 0)
    assert (raft.log.committed, raft.log.last_index, raft.membership.removed) == (5, 5, {1})
    assert (out, raft.faults.total()) == ([], 0), "that leader listens to it no more"


def test_news_of_a_newer_term_raises_the_term_too():
    """As far as its content is of a newer term: no entry may be newer than the term of its replica."""
    raft = replica(terms=[1], term=1)
    hear(raft, news_of_removal(last=(5, 3), term=1 << 40))
    assert (raft.term, raft.leader_id, raft.log.last_term, raft.membership.removed) == (3, 0, 3, {1})


@pytest.mark.parametrize("state", [State.FOLLOWER, State.LEADER])
def test_news_from_a_second_leader_of_the_term_is_counted_and_not_believed(state):
    raft = replica(terms=[1], term=2, state=state, leader=3 if state is State.FOLLOWER else None)
    drain(raft)
    hear(raft, news_of_removal())
    assert (raft.state, raft.membership.removed, raft.faults.total()) == (state, set(), 1)


def test_a_leader_that_was_removed_in_office_is_believed():
    """It leads on where `step_down_on_removal` is off, and may remove others."""
    raft = replica(term=2, membership=Membership((1, 3), removed=(2,)))
    raft.leader_id = 2
    hear(raft, news_of_removal())
    assert 1 in raft.membership.removed


@pytest.mark.parametrize("wrong", ["x", 5, None, Snapshot()])
@pytest.mark.parametrize("kind", [T.REMOVED, T.INSTALL_SNAPSHOT])
def test_what_is_no_snapshot_is_counted_and_changes_nothing(kind, wrong):
    raft = replica(term=2)
    hear(raft, Message(kind, sender=2, term=2, snapshot=wrong))
    assert (raft.log.committed, raft.faults.total()) == (0, 1)


def test_news_of_what_it_holds_is_only_committed():
    raft = replica(terms=[1] * 5 + [6], term=9)
    hear(raft, news_of_removal())
    assert (raft.log.committed, raft.log.last_index) == (5, 6)


@pytest.mark.parametrize(
    ("news", "faults"),
    [
        pytest.param(news_of_removal(removed=(4,)), 1, id="that removes another"),
        pytest.param(
            news_of_removal(last=(3, 2)), 0, id="of a shard repaired without what is committed here"
        ),
        pytest.param(news_of_removal(last=(5, 3)), 1, id="of a term beyond its leader's"),
        pytest.param(
            news_of_removal(snapshot=Snapshot(5, 1, Membership((2, 3), removed=(1,)))), 1, id="with content"
        ),
    ],
)
def test_other_news_of_an_older_term_changes_nothing(news, faults):
    raft = replica(terms=[1, 1, 1, 6], term=9, commit=3)
    drain(raft)
    hear(raft, news)
    assert (raft.term, raft.log.committed, raft.log.last_index) == (9, 3, 4)
    assert (raft.membership.removed, raft.faults.total()) == (set(), faults)


def removal_query(known):
    return Message(T.REMOVAL_QUERY, sender=3, term=1, log_index=known)


@pytest.mark.parametrize(
    ("known", "told", "answers"),
    [(0, (0, 0), 1), (5, (4, 4), 0), (5, (5, 0), 0), (5, (5, 5), 1), (5, (9, 9), 1)],
    ids=["does not know", "too early", "two of four", "three of four", "all that is later"],
)
def test_one_that_knows_of_its_removal_is_answered_once_a_quorum_knows_it(known, told, answers):
    """Else the others may need its vote."""
    members = Membership((1, 2, 4, 5), removed=(3,))
    raft = replica(membership=members, terms=[1] * 9, commit=9, state=State.LEADER)
    drain(raft)
    raft.progress[2].commit, raft.progress[4].commit = told
    news = hear(raft, removal_query(known))
    assert [(m.type, m.to, m.log_index) for m in news] == [(T.REMOVED, 3, known)] * answers


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize(
    ("changed_at", "answers"), [(5, 0), (6, 1)], ids=["by this change", "by a later one"]
)
def test_one_that_saw_a_later_change_confirms_a_removal_to_one_that_knows_it(state, changed_at, answers):
    """Whoever leads by now may be no member that the removed replica knows."""
    roles = {State.OBSERVER: {"observers": (1,)}, State.WITNESS: {"witnesses": (1,)}}
    voters = (2, 4) if state in roles else (1, 2, 4)
    members = Membership(voters, removed=(3,), change_id=changed_at, **roles.get(state, {}))
    raft = replica(membership=members, terms=[1] * 9, commit=9, state=state)
    drain(raft)
    assert hear(raft, removal_query(0)) == [] or state is State.LEADER, "only a leader tells of it"
    news = hear(raft, removal_query(5))
    assert [(m.type, m.to, m.log_index) for m in news] == [(T.REMOVED, 3, 5)] * answers


def test_one_that_was_removed_asks_until_it_is_told_that_a_quorum_knows_it():
    raft = replica(membership=Membership((2, 3), removed=(1,)), terms=[1] * 5, commit=5, **FIXED)
    drain(raft)
    for _ in range(2):
        asks = of_type(tick(raft, TIMEOUT), T.REMOVAL_QUERY)
        assert [(ask.to, ask.log_index) for ask in asks] == [(2, 5), (3, 5)]
    assert not is_dispensable(raft)
    hear(raft, news_of_removal(term=1))
    assert not is_dispensable(raft), "that was the answer to a question of before"
    hear(raft, replace(news_of_removal(term=1), log_index=5))
    assert is_dispensable(raft)
    assert not of_type(tick(raft, 3 * TIMEOUT), T.REMOVAL_QUERY)


@pytest.mark.parametrize("role", ["observers", "witnesses"])
def test_a_removed_onlooker_that_was_away_asks_and_is_told(role):
    shard = cluster(Membership((1, 2), **{role: (3,)}))
    shard.elect(1)
    shard.isolate(3)
    shard.change(1, ConfigChange((Change(ChangeType.REMOVE, 3),)))
    shard.tick(5 * TIMEOUT)
    assert 3 not in shard[3].membership.removed
    shard.heal()
    shard.tick(2 * TIMEOUT)
    assert 3 in shard[3].membership.removed
    assert [(shard[n].term, shard[n].leader_id) for n in (1, 2)] == [(1, 1)] * 2
    asked = len(shard.seen)
    shard.tick(4 * TIMEOUT)
    assert {m.sender for m in shard.seen[asked:]} == {1, 2}, "it asks no more"


ONLOOKERS = {
    "an observer": {"voters": (2, 3), "observers": (1, 4)},
    "a witness": {"voters": (2, 3), "observers": (4,), "witnesses": (1,)},
    "a voter that is not listed yet": {"voters": (2, 3), "observers": (4,)},
}


@pytest.mark.parametrize("members", ONLOOKERS.values(), ids=ONLOOKERS)
def test_who_cannot_campaign_asks_once_an_election_timeout_without_a_leader(members):
    raft = replica(term=3, state=Membership(**members).state_of(1), **members, **FIXED)
    assert tick(raft, TIMEOUT - 1) == []
    hear(raft, heartbeat(2, 3))
    assert tick(raft, TIMEOUT - 1) == [], "a leader was heard"
    for _ in range(3):
        assert routes(tick(raft)) == [(T.REMOVAL_QUERY, 2), (T.REMOVAL_QUERY, 3), (T.REMOVAL_QUERY, 4)]
        assert tick(raft, TIMEOUT - 1) == []
    for _ in range(3 * TIMEOUT):
        raft.step(Message(T.LOCAL_TICK, reject=True))
    assert drain(raft) == [], "nor while it is quiesced"


def question(sender, term):
    asker = replica(sender, voters=(1, 2, 3), observers=(sender,), term=term, state=State.OBSERVER, **FIXED)
    return next(m for m in tick(asker, TIMEOUT) if m.to == 1)


@pytest.mark.parametrize("term", [1, 2, 9], ids=["older", "the same", "newer"])
@pytest.mark.parametrize("state", State)
def test_the_question_changes_nothing_for_a_member_and_wakes_no_replica(state, term):
    roles = {State.OBSERVER: "observers", State.WITNESS: "witnesses"}
    members = {"voters": (2, 3), roles[state]: (1, 4)} if state in roles else {"observers": (4,)}
    raft = replica(**members, term=2, state=state, quiesce=True, check_quorum=True)
    hear(raft, Message(T.QUIESCE, sender=2))
    tick(raft)
    before = (
        raft.state,
        raft.term,
        raft.vote,
        raft.leader_id,
        raft.timers.election_elapsed,
        raft.quiesce.quiesced,
    )
    assert hear(raft, question(4, term)) == []
    assert before == (
        raft.state,
        raft.term,
        raft.vote,
        raft.leader_id,
        raft.timers.election_elapsed,
        raft.quiesce.quiesced,
    )
    assert not raft.faults


def test_a_witness_that_asks_does_not_take_itself_for_one_that_hears_a_leader():
    """Its lease is over, and the others may need its vote (thesis §4.2.3)."""
    raft = replica(
        voters=(2, 3), witnesses=(1,), term=1, state=State.WITNESS, leader=2, check_quorum=True, **FIXED
    )
    assert of_type(tick(raft, TIMEOUT + 1), T.REMOVAL_QUERY)
    [answer] = hear(raft, vote_request(3, 2))
    assert (answer.type, answer.reject) == (T.REQUEST_VOTE_RESP, False)


def test_a_leader_that_was_removed_while_it_was_cut_off_learns_of_it():
    """It has no reason to ask, and without CheckQuorum it would lead on for ever."""
    shard = cluster(3)
    shard.elect(1)
    shard.isolate(1)
    shard.elect(2)
    shard.change(2, ConfigChange((Change(ChangeType.REMOVE, 1),)))
    assert (shard[1].state, shard[2].state) == (State.LEADER, State.LEADER)
    shard.heal()
    shard.tick(2)
    assert (shard[1].state, shard[1].membership.removed) == (State.FOLLOWER, {1})


def test_two_that_removed_each_other_do_not_answer_for_ever():
    """As where a shard was repaired while the rest of it still worked."""
    raft = replica(membership=Membership((1,), removed=(2,)), state=State.LEADER)
    assert hear(raft, news_of_removal(term=9)) == []
    assert raft.state is State.LEADER


def test_a_removed_leader_that_was_told_to_lead_on_is_followed():
    """K5: until it is stopped."""
    shard = cluster(3, step_down_on_removal=False, pre_vote=True, check_quorum=True)
    shard.elect(1)
    shard.change(1, ConfigChange((Change(ChangeType.REMOVE, 1),)))
    shard.tick(10 * TIMEOUT)
    assert [(shard[n].leader_id, shard[n].term) for n in (1, 2, 3)] == [(1, 1)] * 3
    shard.crash(1)
    shard.tick(4 * TIMEOUT)
    assert shard.leader is not None
    assert shard.leader.id in (2, 3)
