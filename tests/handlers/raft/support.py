"""Small tools of the scenario tests: a replica in any state, its messages in one line, a cluster with the options of docs/protocol.md.

The scenarios assume, unless they say otherwise, an election timeout of ten ticks, a heartbeat every tick, and
neither pre-vote nor CheckQuorum. `replica(...)` and `cluster(...)` do the same.
"""

from random import Random

from drakkar.handlers import (
    Entry,
    EntryKind,
    HardState,
    Membership,
    MemoryLog,
    Message,
    MessageType,
    Raft,
    RaftConfig,
    Snapshot,
    State,
)
from drakkar.handlers.raft.lanes import UNLIMITED
from drakkar.handlers.testing import Cluster, drain

T = 10
"""The election timeout of all scenarios, in ticks."""

DEFAULTS = {"election_ticks": T, "heartbeat_ticks": 1, "pre_vote": False, "check_quorum": False}

FIXED = {"min_election_ticks": T, "max_election_ticks": T + 1}
"""Options with which every timeout that is drawn is `T`."""


def disk(terms=(), *, term=None, vote=0, commit=0, membership=None, snapshot=None):
    """A log to start from; its term is that of its last entry unless given."""
    given = tuple(item if isinstance(item, Entry) else Entry(term=item, payload=b"x") for item in terms)
    last = given[-1].term if given else 0
    return MemoryLog(given, HardState(last if term is None else term, vote, commit), membership, snapshot)


def replica(
    id_=1,
    *,
    voters=(1, 2, 3),
    observers=(),
    witnesses=(),
    membership=None,
    terms=(),
    term=None,
    vote=0,
    commit=0,
    state=State.FOLLOWER,
    leader=0,
    snapshot=None,
    handlers=None,
    seed=0,
    lanes=None,
    **config,
):
    """A replica in `state` at `term`, by the messages that lead there; its log holds entries of `terms`.

    A follower may know a `leader`. A leader's empty entry is its log's last, durable here and held nowhere else.
    Nothing is applied yet in a follower: `drain` it to apply up to `commit`.
    """
    members = membership or Membership(voters, observers, witnesses)
    elected = state in (State.CANDIDATE, State.LEADER)
    if term is None:
        last = terms[-1] if terms else 0
        term = (last.term if isinstance(last, Entry) else last) + elected
    log = disk(terms, term=term - elected, vote=vote, commit=commit, membership=members, snapshot=snapshot)
    options = {**DEFAULTS, **config}
    if state is State.PRE_CANDIDATE:
        options["pre_vote"] = True
    raft = Raft(
        RaftConfig(replica_id=id_, **options), log, handlers=handlers, random=Random(seed), lanes=lanes
    )
    if leader:
        raft.step(heartbeat(leader, term))
        drain(raft)
    elif state is State.PRE_CANDIDATE:
        campaign(raft)
    elif state is State.CANDIDATE:
        become_candidate(raft)
    elif state is State.LEADER:
        become_leader(raft)
    assert (raft.state, raft.term) == (raft.base_state if state is State.FOLLOWER else state, term)
    return raft


class FakeLanes:
    """Lanes as a test sets them: empty, and all that was handed out has left, unless it says otherwise."""

    def __init__(self):
        self.rooms, self.waits, self.asked = {}, {}, []
        self.least = {}
        """What each was asked for last."""

    def room(self, replica, least=1):
        self.asked.append(replica)
        self.least[replica] = least
        room = self.rooms.get(replica, UNLIMITED)
        return room if room >= least else 0

    def waiting(self, replica):
        return self.waits.get(replica, 0)


def cluster(members=3, **options):
    """A `Cluster` by the scenarios' defaults."""
    return Cluster(members, **{**DEFAULTS, **options})


# -- what a replica does -------------------------------------------------------------------------------------------


def campaign(raft):
    """Let it campaign now; returns what it sends."""
    raft.step(Message(MessageType.ELECTION, sender=raft.id))
    return drain(raft)


def become_candidate(raft):
    """Let it campaign, and be encouraged by all where it asks first; returns what it sends as candidate."""
    sent = campaign(raft)
    for voter in raft.voters:
        if raft.state is State.PRE_CANDIDATE and voter != raft.id:
            raft.step(pre_vote(voter, raft.term + 1))
    return sent + drain(raft)


def become_leader(raft):
    """Let it win an election; returns what it sends. No peer has acknowledged its empty entry."""
    sent = become_candidate(raft)
    for voter in raft.voters:
        if raft.state is State.CANDIDATE and voter != raft.id:
            raft.step(vote(voter, raft.term))
    assert raft.state is State.LEADER
    return sent + drain(raft)


def acknowledge_all(raft):
    """Let every peer of a leader hold all of its log, so that all is committed; returns what the leader sends."""
    for peer in raft.peers:
        raft.step(ack(peer, raft.term, raft.log.last_index))
    return drain(raft)


def propose(raft, *payloads, kind=EntryKind.COMMAND):
    """Propose entries at a replica, in one batch; returns what it sends, and on it `.dropped`."""
    raft.step(
        Message(
            MessageType.PROPOSE,
            sender=raft.id,
            entries=tuple(Entry(kind=kind, payload=payload) for payload in payloads),
        )
    )
    return drain(raft)


def tick(raft, count=1):
    """Let `count` ticks pass; returns what it sends."""
    sent = drain(raft)
    for _ in range(count):
        raft.tick()
        sent += drain(raft)
    return sent


def ticks_until_campaign(raft, limit=100):
    """Tick until it campaigns, anew where it does already; returns how many ticks that took, 0 for never."""
    drain(raft)
    for count in range(1, limit + 1):
        if of_type(tick(raft), MessageType.REQUEST_VOTE, MessageType.REQUEST_PRE_VOTE):
            return count
    return 0


def hear(raft, *messages):
    """Step messages of peers or of the host; returns what it sends."""
    for message in messages:
        raft.step(message)
    return drain(raft)


def terms_of(raft):
    """The terms of its log, from the first entry that it holds on."""
    return [entry.term for entry in raft.log.entries(raft.log.first_index, raft.log.last_index + 1)]


# -- what is said ------------------------------------------------------------------------------------------------


def of_type(messages, *types):
    """Those of the messages that are of these types."""
    return [message for message in messages if message.type in types]


def routes(messages):
    """Types and receivers of messages, to compare with."""
    return [(message.type, message.to) for message in messages]


def standing(raft):
    """State, term, vote and leader of a replica, to compare with."""
    return raft.state, raft.term, raft.vote, raft.leader_id


def vote_request(sender, term, index=0, log_term=0, **fields):
    """A candidate whose last entry is `index` of `log_term` asks."""
    return Message(
        MessageType.REQUEST_VOTE, sender=sender, term=term, log_index=index, log_term=log_term, **fields
    )


def pre_vote_request(sender, term, index=0, log_term=0, **fields):
    """A pre-candidate asks about `term`, which is its own and one."""
    return Message(
        MessageType.REQUEST_PRE_VOTE, sender=sender, term=term, log_index=index, log_term=log_term, **fields
    )


def vote(sender, term, **fields):
    """A vote, or with `reject` a refusal."""
    return Message(MessageType.REQUEST_VOTE_RESP, sender=sender, term=term, **fields)


def pre_vote(sender, term, **fields):
    """A pre-vote for `term`, or with `reject` a refusal by a voter of `term`."""
    return Message(MessageType.REQUEST_PRE_VOTE_RESP, sender=sender, term=term, **fields)


def heartbeat(sender, term, commit=0, **fields):
    """A leader's heartbeat."""
    return Message(MessageType.HEARTBEAT, sender=sender, term=term, commit=commit, **fields)


def heartbeat_answer(sender, term, context=(0, 0), **fields):
    """A peer's answer to a heartbeat, with the context of a read."""
    hint, hint_high = context
    return Message(
        MessageType.HEARTBEAT_RESP, sender=sender, term=term, hint=hint, hint_high=hint_high, **fields
    )


def append(sender, term, previous=(0, 0), terms=(), commit=0, **fields):
    """A leader's REPLICATE: entries of `terms` behind `previous`, an (index, term)."""
    index, log_term = previous
    new = tuple(
        Entry(index=number, term=one, payload=b"x") if not isinstance(one, Entry) else one
        for number, one in enumerate(terms, index + 1)
    )
    return Message(
        MessageType.REPLICATE,
        sender=sender,
        term=term,
        log_index=index,
        log_term=log_term,
        entries=new,
        commit=commit,
        **fields,
    )


def install(sender, term, last=(1, 1), members=(1, 2, 3), **fields):
    """A leader's snapshot up to `last`, an (index, term)."""
    membership = members if isinstance(members, Membership) else Membership(members)
    return Message(
        MessageType.INSTALL_SNAPSHOT, sender=sender, term=term, snapshot=Snapshot(*last, membership), **fields
    )


def ack(sender, term, index, **fields):
    """A peer holds the leader's log up to `index`."""
    return Message(MessageType.REPLICATE_RESP, sender=sender, term=term, log_index=index, **fields)


def rejection(sender, term, index, hint, **fields):
    """A peer has nothing that agrees with the leader's log at `index`."""
    return Message(
        MessageType.REPLICATE_RESP,
        sender=sender,
        term=term,
        reject=True,
        log_index=index,
        hint=hint,
        **fields,
    )
