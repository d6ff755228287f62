"""`step` raises for no message, but to stop a replica whose safety is broken; and the basics go on holding.

BUG-N9 (hc#465, ra 56e2f0e2): peers decoded from a snapshot, or an answer from an unknown replica, brought replicas down.
"""

from dataclasses import replace
from random import Random

import pytest
from drakkar.handlers import (
    Change,
    ChangeType,
    ConfigChange,
    Entry,
    EntryKind,
    Membership,
    Message,
    MessageType,
    ProtocolViolation,
    Snapshot,
    State,
    Transition,
)
from drakkar.handlers.raft.progress import ProgressState
from drakkar.handlers.testing import Cluster
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.handlers.raft.support import DEFAULTS, replica

T = MessageType
BUILT_IN = [T(number) for number in range(39)]
CAMPAIGNING = (State.PRE_CANDIDATE, State.CANDIDATE)

small = st.integers(0, 6)
odd = st.sampled_from([-1, 9, 1 << 31, (1 << 63) - 1, (1 << 64) - 1, 1 << 70])
numbers = st.one_of(small, small, small, odd)
replicas = st.frozensets(st.integers(0, 5), max_size=4)
memberships = st.builds(
    Membership, replicas, replicas, replicas, replicas, replicas, replicas, st.booleans(), replicas
)
snapshots = st.none() | st.builds(
    Snapshot, numbers, numbers, memberships, st.binary(max_size=3), st.booleans()
)
changes = st.builds(
    ConfigChange,
    st.lists(
        st.builds(Change, st.sampled_from(ChangeType), small, st.sampled_from(["", "a"])), max_size=3
    ).map(tuple),
    st.sampled_from(Transition),
    small,
    st.booleans(),
).map(ConfigChange.encode)
entries = st.builds(
    Entry,
    st.one_of(small, st.integers(0, 1 << 64)),
    st.one_of(small, st.integers(0, 1 << 64)),
    st.sampled_from([kind for kind in EntryKind if kind < EntryKind.FIRST_FREE]),
    st.one_of(st.binary(max_size=4), changes),
    small,
    small,
)
payloads = st.one_of(
    st.none(), numbers, st.text(max_size=4), st.binary(max_size=4), st.lists(small, max_size=2), st.booleans()
)
anything = st.builds(
    Message,
    st.sampled_from(BUILT_IN),
    to=st.sampled_from([0, 1, 1, 1, 2, -1]),
    sender=st.sampled_from([0, 1, 2, 2, 3, 3, 4, 9, -1, 1 << 63]),
    term=numbers,
    log_term=numbers,
    log_index=numbers,
    commit=numbers,
    reject=st.booleans(),
    hint=numbers,
    hint_high=numbers,
    entries=st.lists(entries, max_size=3).map(tuple),
    snapshot=snapshots,
    payload=payloads,
)
"""Every field of every type, but for the types of the fields, which the wire checks."""


@st.composite
def plausible(draw, term):
    """As `anything`, but in the term, or the next, from a member and about entries that are there.

    It gets past the guards, and mostly past the checks of the handlers too.
    """
    message = draw(anything)
    index, log_term = draw(
        st.sampled_from([(0, 0), (1, 1), (2, 1), (3, 2), (message.log_index, message.log_term)])
    )
    if draw(st.booleans()):
        follow = (replace(entry, index=index + 1 + at, term=2) for at, entry in enumerate(message.entries))
        message = replace(message, entries=tuple(follow))
    ahead = message.type is T.REQUEST_PRE_VOTE or draw(st.integers(0, 9)) == 0
    sender = draw(st.sampled_from([2, 3, 4]))
    return replace(message, to=1, sender=sender, term=term + ahead, log_index=index, log_term=log_term)


def in_state(state, seed, **options):
    """A replica with three entries, of which two are applied, in any of the states."""
    roles = {State.OBSERVER: {"observers": (1, 4)}, State.WITNESS: {"witnesses": (1,)}}.get(
        state, {"observers": (4,)}
    )
    voters = (2, 3) if state in (State.OBSERVER, State.WITNESS) else (1, 2, 3)
    return replica(terms=[1, 1, 2], commit=2, state=state, voters=voters, seed=seed, **roles, **options)


class Watch:
    """What must hold after every step."""

    def __init__(self, raft):
        self.raft = raft
        self.term, self.vote = raft.term, raft.vote
        self.committed, self.applied = raft.log.committed, raft.log.applied
        self.resting = raft.base_state

    def check(self):
        raft, log = self.raft, self.raft.log
        assert raft.term >= self.term, "INV8"
        assert raft.term > self.term or self.vote in (0, raft.vote), "INV8, INV9"
        assert log.committed >= self.committed, "INV6"
        assert log.applied >= self.applied, "INV7"
        assert log.applied <= log.committed <= log.last_index, "INV6, INV7"
        assert log.stable <= log.last_index
        self.check_office()
        terms = [log.term(index) for index in range(log.first_index, log.last_index + 1)]
        assert terms == sorted(terms), "INV3"
        assert log.last_term <= raft.term, "INV2"
        self.term, self.vote = raft.term, raft.vote
        self.committed, self.applied = log.committed, log.applied

    def check_office(self):
        raft = self.raft
        assert (raft.leader_id == raft.id) == (raft.state is State.LEADER)
        if raft.state in (*CAMPAIGNING, State.LEADER):
            assert raft.base_state is State.FOLLOWER, "INV17"
        if raft.state in CAMPAIGNING:
            assert raft.leader_id == 0
        for peer, progress in raft.progress.items():
            assert progress.match < progress.next, "INV12"
            if raft.state is State.LEADER:
                assert progress.next <= raft.log.last_index + 1, "INV12"
            assert progress.inflight.indexes == tuple(sorted(set(progress.inflight.indexes))), "INV13"
            assert bool(progress.pending_snapshot) == (progress.state is ProgressState.SNAPSHOT), peer
        assert raft.id not in raft.peers

    def check_sent(self, messages):
        for message in messages:
            assert message.sender == self.raft.id, "INV23"
            assert message.to != self.raft.id, f"to itself: {message}"
            if message.type is not T.REQUEST_PRE_VOTE_RESP:  # names the term that it was asked about
                assert message.term <= self.raft.term + (message.type is T.REQUEST_PRE_VOTE)


def host(raft, watch, random):
    """What a host does, with delays: hand out, save, apply."""
    ready = raft.ready()
    watch.check_sent([*ready.messages, *ready.messages_after_save])
    waiting = [ready]
    if random.random() < 0.7:
        raft.persisted(waiting.pop())
        watch.check()
    if random.random() < 0.7:
        if raft.log.pending_snapshot is not None:
            raft.applied(raft.log.pending_snapshot.index)
        raft.applied(raft.log.applying)
        watch.check()


def live(raft, messages, seed):
    """Let a replica live through messages; a `ProtocolViolation` stops it, and nothing else may be raised."""
    watch, random = Watch(raft), Random(seed)
    for message in messages:
        try:
            raft.step(message)
            watch.check()
            if random.random() < 0.3:
                raft.tick()
                watch.check()
            host(raft, watch, random)
        except ProtocolViolation:
            return


options = st.fixed_dictionaries(
    {
        "check_quorum": st.booleans(),
        "quiesce": st.booleans(),
        "batch_append": st.booleans(),
        "max_in_mem_log_bytes": st.sampled_from([0, 129]),
        "max_uncommitted_bytes": st.sampled_from([0, 8]),
        "max_inflight_messages": st.sampled_from([1, 256]),
        "group_commit": st.booleans(),
    }
)
patient = settings(
    deadline=None,
    max_examples=8,
    # A few messages are short enough to read; making them fewer can take minutes.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)


@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
class TestOneReplica:
    @given(
        messages=st.lists(anything, min_size=1, max_size=6), given_options=options, seed=st.integers(0, 99)
    )
    @patient
    def test_anything_at_all(self, state, messages, given_options, seed):
        """BUG-N9: every field of every message type in every state, unknown senders included."""
        live(in_state(state, seed, **given_options), messages, seed)

    @given(data=st.data(), given_options=options, seed=st.integers(0, 99))
    @patient
    def test_what_gets_past_the_guards(self, state, data, given_options, seed):
        """BUG-N9: in its own term, from members, with entries that follow one another."""
        raft = in_state(state, seed, **given_options)
        messages = data.draw(st.lists(plausible(raft.term), min_size=1, max_size=6))
        live(raft, messages, seed)


@pytest.mark.parametrize("type_", BUILT_IN, ids=str)
@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
def test_an_empty_message_of_every_type_from_everybody(state, type_):
    """Each cell once, from itself, a member and a non-member, with and without a term."""
    for sender in (1, 2, 9):
        live(in_state(state, 0), [Message(type_, sender=sender, to=1, term=term) for term in (0, 3)], 1)


class TestAShard:
    @pytest.mark.parametrize("seed", range(4))
    def test_a_non_member_that_sends_nonsense_does_not_stop_a_shard(self, seed):
        """BUG-N9: it is no member, and sends everything to everybody; a shard with pre-vote and CheckQuorum works on."""
        shard = Cluster(3, seed=seed, **{**DEFAULTS, "pre_vote": True, "check_quorum": True})
        shard.elect(1)
        random = Random(seed)
        for number in range(60):
            kind = random.choice([t for t in BUILT_IN if t not in LOCAL])
            shard.step(
                random.randint(1, 3),
                Message(
                    kind, sender=9, term=random.choice([0, 1]), log_index=random.randint(0, 9), hint=number
                ),
            )
            shard.propose(1, b"%d" % number)
        shard.tick(3)
        assert (shard[1].state, shard[1].term) == (State.LEADER, 1)
        assert shard.applied(2)[-1] == b"59"


LOCAL = {
    T.LOCAL_TICK,
    T.ELECTION,
    T.LEADER_HEARTBEAT,
    T.CONFIG_CHANGE_EVENT,
    T.CHECK_QUORUM,
    T.SNAPSHOT_RECEIVED,
    T.TIMEOUT_NOW,
    T.READ_INDEX_RESP,
    T.REPLICATE,
    T.HEARTBEAT,
    T.INSTALL_SNAPSHOT,
    T.DISK_HUNG,
    T.DISK_FULL,
    T.DISK_ROOM,
    T.ENTRIES_LOADED,
    T.COMMIT,
    T.COMMIT_DUE,
    T.LANE_DRAINED,
    T.NOT_SENT,
    T.LEADER_GONE,
}
"""What only a host says to its own replica, or only the leader of a term."""
