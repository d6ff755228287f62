"""The guards: what is settled before the table is asked, for every state alike (thesis §3.3).

After them a handler may assume that the message is for this replica, that whoever answers is a member, and that
the terms agree.
"""

from typing import TYPE_CHECKING, Final

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import snapshot as snapshots
from drakkar.handlers.raft.state import Snapshot, State
from drakkar.handlers.table import SWALLOW

if TYPE_CHECKING:
    from drakkar.handlers.raft.raft import Raft

__all__ = [
    "ask_whether_removed",
    "reconcile_terms",
    "refuse_misdelivered",
    "refuse_strangers",
    "tell_the_removed",
]

VOTE_REQUESTS: Final = frozenset({MessageType.REQUEST_VOTE, MessageType.REQUEST_PRE_VOTE})

# Only the leader of a term sends these. TIMEOUT_NOW and READ_INDEX_RESP prove a leader too, but add nothing.
FROM_LEADER: Final = frozenset({MessageType.REPLICATE, MessageType.HEARTBEAT, MessageType.INSTALL_SNAPSHOT})

# What only a member may do. News of a removal is not among it: two that removed each other would answer for ever.
CLAIMS_MEMBERSHIP: Final = VOTE_REQUESTS | {MessageType.REPLICATE, MessageType.HEARTBEAT}

# From this replica's own host, or requests, which carry no term.
WITHOUT_TERM: Final = frozenset(
    {
        MessageType.LOCAL_TICK,
        MessageType.ELECTION,
        MessageType.LEADER_HEARTBEAT,
        MessageType.CONFIG_CHANGE_EVENT,
        MessageType.PROPOSE,
        MessageType.SNAPSHOT_STATUS,
        MessageType.UNREACHABLE,
        MessageType.CHECK_QUORUM,
        MessageType.BATCHED_READ_INDEX,
        MessageType.READ_INDEX,
        MessageType.QUIESCE,
        MessageType.SNAPSHOT_RECEIVED,
        MessageType.LEADER_TRANSFER,
        MessageType.LOG_QUERY,
        MessageType.PING,
        MessageType.PONG,
        MessageType.NO_OP,
    }
)

# Answers and reports mean something only from a member, and only a member may ask for another leader.
FROM_MEMBERS: Final = frozenset(
    {
        MessageType.REPLICATE_RESP,
        MessageType.REQUEST_VOTE_RESP,
        MessageType.REQUEST_PRE_VOTE_RESP,
        MessageType.HEARTBEAT_RESP,
        MessageType.READ_INDEX_RESP,
        MessageType.UNREACHABLE,
        MessageType.SNAPSHOT_STATUS,
        MessageType.LEADER_TRANSFER,
        MessageType.RATE_LIMIT,
    }
)


def refuse_misdelivered(raft: "Raft", message: Message) -> bool | None:
    """A message for another replica, or one that lacks the term it must have, would skip the rules below.

    Nor is anybody its own peer: whoever followed, or answered, itself would do so for ever.
    """
    if message.to not in (0, raft.id) and message.type is not MessageType.LOG_QUERY:
        raft.fault("addressed to another replica")
        return SWALLOW
    if message.type in WITHOUT_TERM or message.type >= MessageType.FIRST_FREE:
        return None
    if not message.term:
        raft.fault("without a term")
        return SWALLOW
    if message.sender == raft.id:
        raft.fault("from this replica to itself")
        return SWALLOW
    return None


def tell_the_removed(raft: "Raft", message: Message) -> bool | None:
    """Who was removed neither leads here, nor is voted for, nor raises our term; its leader lets it know.

    A replica that was cut off when it was removed asks for votes for ever, or leads on without a quorum, or asks whether
    it was removed. Nobody sends it the log any more, so it learns of it by a snapshot without content, which it takes in
    since the membership there names it as removed (dragonboat's rule for such a snapshot). And where a shard was repaired
    without them, a majority of the old one may come back, and elect a leader whose term would make ours follow.

    The question, which `ask_whether_removed` asks, ends here: it is no sign of activity, and its term is nobody's concern.
    """
    if not message.term or message.type >= MessageType.FIRST_FREE:
        return None
    asks = _asks_whether_removed(message)
    if message.sender not in raft.membership.removed:
        return SWALLOW if asks else None
    if message.sender == raft.leader_id and message.term == raft.term:
        return None  # it was removed in office, and told to lead on: `step_down_on_removal` is off
    if raft.state is State.LEADER and (asks or message.type in CLAIMS_MEMBERSHIP):
        applied = raft.log.applied
        news = Snapshot(applied, raft.log.term(applied), raft.membership, witness=True)
        raft.reply(message, MessageType.INSTALL_SNAPSHOT, snapshot=news)
    return SWALLOW


def ask_whether_removed(raft: "Raft") -> None:
    """For one that cannot campaign, and hears no leader: its shard may have removed it, and nobody would tell it.

    A NO_OP whose `hint` is its sender. All that it knows of are asked, since an observer may lead by now. Only a leader
    that knows it as removed answers. One that never heard of a term knows no shard that it could be removed from.
    """
    if not raft.term or raft.id in raft.membership.removed:
        return
    for peer in raft.peers:
        raft.send(Message(MessageType.NO_OP, to=peer, hint=raft.id))


def _asks_whether_removed(message: Message) -> bool:
    return message.type is MessageType.NO_OP and message.hint == message.sender != 0


def refuse_strangers(raft: "Raft", message: Message) -> bool | None:
    """Answers of replicas that are no members, or no more, count for nothing.

    A replica that has not learnt its membership yet takes READ_INDEX_RESP from anybody: it knows nobody.
    """
    if message.type not in FROM_MEMBERS or not raft.progress or message.sender in raft.progress:
        return None
    if message.type is MessageType.LEADER_TRANSFER and message.sender in (0, raft.id):
        return None  # its own host may always ask
    raft.fault("answer from a stranger")
    return SWALLOW


def reconcile_terms(raft: "Raft", message: Message) -> bool | None:
    """Thesis §3.3: a newer term is adopted, an older one is refused. Here are also the exceptions.

    Messages of your own types take no part: they tell their term, but change nobody's, since the rules that protect
    a leader (§4.2.3) could not judge them.
    """
    if not message.term or message.term == raft.term or message.type >= MessageType.FIRST_FREE:
        return None
    if message.term < raft.term:
        return _refuse_older(raft, message)
    if message.type in VOTE_REQUESTS and _in_lease(raft) and not _is_transfer(message):
        return SWALLOW
    if not _asks_ahead(message):
        _adopt(raft, message)
    return None


def _in_lease(raft: "Raft") -> bool:
    """Thesis §4.2.3: whoever hears a leader regularly does not let others disturb it.

    A leader hears itself, so that it is protected too. A replica that was just started may have heard a leader
    that still serves reads by its lease.
    """
    if not raft.check_quorum:
        return False
    hears_leader = bool(raft.leader_id) and raft.election_elapsed < raft.config.election_ticks
    return hears_leader or raft.ticks < raft.no_votes_before


def _is_transfer(message: Message) -> bool:
    """The leader itself asked for this election (thesis §3.10), so its lease is no reason against it."""
    return message.type is MessageType.REQUEST_VOTE and message.hint == message.sender != 0


def _asks_ahead(message: Message) -> bool:
    """Pre-votes carry the term that would be, not one that is (thesis §9.6). A refusal carries a real one."""
    granted = message.type is MessageType.REQUEST_PRE_VOTE_RESP and not message.reject
    return message.type is MessageType.REQUEST_PRE_VOTE or granted


def _adopt(raft: "Raft", message: Message) -> None:
    leader = message.sender if message.type in FROM_LEADER else 0
    # Dragonboat's rule: a request alone does not put off our own election. A replica with slow ticks would be
    # pushed back by every other candidate and never have its turn. A vote that is granted resets the timer.
    raft.become_follower(message.term, leader, keep_timer=message.type is MessageType.REQUEST_VOTE)


def _refuse_older(raft: "Raft", message: Message) -> bool:
    if message.type is MessageType.REQUEST_PRE_VOTE:
        # Raises the sender's term: else an old log of a high term and a new log of a low term block each other.
        raft.reply(message, MessageType.REQUEST_PRE_VOTE_RESP, term=raft.term, reject=True)
    elif snapshots.tells_of_removal(raft, message):
        # While we were cut off we asked for votes, which raised our term beyond the shard's; it takes no term from us.
        snapshots.learn_of_removal(raft, message)
    elif message.type in FROM_LEADER and (raft.check_quorum or raft.config.pre_vote or not raft.promotable):
        # A replica that raised its term while it was cut off: nobody listens to its votes inside the lease, and it
        # does not listen to the leader. This makes the leader step down, and a fresh election follows. One that cannot
        # campaign could not even begin one, whose term somebody raised that is gone.
        raft.reply(message, MessageType.NO_OP)
    return SWALLOW
