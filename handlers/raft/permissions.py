"""Who may say what: which hosts a message is taken from, whatever the id is that it names as its sender.

A message names a replica, and its host has introduced itself. Where our membership lists the replica at that host, it is taken.
All other hosts are *strangers*, among them some that are right: the leader of members that joined while this replica slept, a
member that was removed, one that asks it for a vote before it has heard of it. So a stranger of the shard's own founding may say
what the trait `from_any_host` marks: what leaders say, requests for votes, and what is about a removal or a founding. All else,
above all answers and what clients ask for, is its members' own.

Where hosts have certificates, no stranger can name a member's address. Then one that has a certificate, and belongs to no member,
would still be able to end the work of a shard by a newer term. So it is not believed as long as a leader was heard lately: what a
leader's lease forbids candidates (thesis §4.2.3) it forbids those, too, who claim to have won. A leader that members have elected who
are not known here is followed a few election timeouts later, since the other one is silent then.

A term has one leader, and a leader does not move to another host. So in each term the first host that was believed to lead it is the only
stranger that is, and it may say all, as a member may.

A member that is no stranger, but lives elsewhere by our log, may say all that does not count on what it remembers.
"""

from typing import Final

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import reach
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.lives import Life, Meeting, Standing
from drakkar.handlers.raft.state import State

__all__ = ["is_proven", "is_stranger", "lets_in", "stranger_may_say"]

MIN_SILENCE_ELECTIONS: Final = 4
"""Election timeouts without a leader after which a stranger with a certificate is believed to lead. Members elect one in two."""


def is_stranger(raft: RaftCore, replica: int, life: Life) -> bool:
    """Whether a replica is no member, or speaks from another host than that of the member.

    A member that has moved, of which we have not heard, is known by its home. But a home is only told, so it does not
    count beside a certificate. A replica that knows no member has to believe all of them, until it follows a leader.
    """
    if not life.address:
        return False
    if not raft.progress:
        return _follows_a_host(raft) and not _is_followed(raft, replica, life)
    if replica not in raft.progress:
        return True
    address = raft.membership.addresses.get(replica)
    if not address or address == life.address:
        return False
    return life.certified or not life.home or raft.home_of(replica) != life.home


def _follows_a_host(raft: RaftCore) -> bool:
    """Whether it is known which host leads this term."""
    followed = raft.lives.followed
    return bool(raft.leader_id) and followed is not None and followed.term == raft.term


def _is_followed(raft: RaftCore, replica: int, life: Life) -> bool:
    """Whether this replica, on this host, was followed in this term."""
    followed = raft.lives.followed
    return followed is not None and followed.term == raft.term and followed.is_of(replica, life)


def is_proven(raft: RaftCore, life: Life) -> bool:
    """Whether a stranger says that its shard was founded as ours was, as far as we know that."""
    return not raft.lives.own.founding or life.founding == raft.lives.own.founding


def lets_in(raft: RaftCore, meeting: Meeting, message: Message, life: Life) -> bool:
    """Whether to step a message of a replica of whom `meeting` was told; see `Raft.lets_in`."""
    if meeting is Meeting.STRANGER:
        if stranger_may_say(raft, message, life):
            return True
        if raft.quiesce.quiesced and _may_say_in_silence(raft, message, life):
            # It sleeps, and hears no leader. Awake, it soon knows whether there is one.
            raft.quiesce.note_activity()
            raft.wake()
        return False
    return meeting is Meeting.WELCOME or (
        meeting is Meeting.OTHER_LIFE and _other_life_may_say(raft, message)
    )


def _other_life_may_say(raft: RaftCore, message: Message) -> bool:
    """Whether a member that lives elsewhere by our log may say this: it may know more than we do.

    So its requests are answered, its leadership is followed, and a newer term is believed; but no vote and no
    acknowledgement of it counts.
    """
    counts = message.type.traits.from_members and message.type is not MessageType.READ_INDEX_RESP
    return not counts or message.term > raft.term


def stranger_may_say(raft: RaftCore, message: Message, life: Life) -> bool:
    """Whether a stranger may say this, be it now or in a message that is to come. Changes nothing."""
    if not _may_say_in_silence(raft, message, life):
        return False
    return _may_say_beside_a_leader(raft, message, life) or not _expects_leader(raft)


def _may_say_in_silence(raft: RaftCore, message: Message, life: Life) -> bool:
    """Whether a stranger may say this where no leader was heard lately."""
    if _speaks_for_followed(raft, message, life):
        return True
    if not message.type.traits.from_any_host or (_leads(raft, message) and _follows_a_host(raft)):
        return False
    # A newborn may hear that the shard is older. But it takes no founder's place while the shard is founded.
    founded = raft.lives.own.standing in {Standing.SETTLED, Standing.INHERITED}
    return founded or message.type is not MessageType.NEWBORN


def _may_say_beside_a_leader(raft: RaftCore, message: Message, life: Life) -> bool:
    """Whether what a stranger may say in silence is taken though a leader was heard lately.

    A request for votes tells what is committed, too, so that is not. What a removed replica says is swallowed, and it is told why.
    """
    return (
        not life.certified
        or message.type in {MessageType.NEWBORN, MessageType.REMOVAL_QUERY}
        or message.sender in raft.membership.removed
        or _speaks_for_followed(raft, message, life)
    )


def _speaks_for_followed(raft: RaftCore, message: Message, life: Life) -> bool:
    """Whether this is of the host that is followed: it leads members that we have not heard of yet, or was removed in office."""
    followed = _is_followed(raft, message.sender, life)
    return followed and (_leads(raft, message) or message.sender == raft.leader_id)


def _leads(raft: RaftCore, message: Message) -> bool:
    """Whether the sender says that it leads this term."""
    return message.type.traits.from_leader and message.term == raft.term


def _expects_leader(raft: RaftCore) -> bool:
    """Whether a leader was heard lately, or this replica has just started, or sleeps; or it leads itself, and is heard.

    With CheckQuorum a leader that a quorum does not hear falls silent. Without, it leads on; but it believes a stranger then, so
    that those who hear it do so later.
    """
    if raft.quiesce.quiesced:
        return True
    if raft.state is State.LEADER and (raft.check_quorum or reach.hears_quorum(raft)):
        return True
    return raft.timers.ticks < raft.timers.leader_heard + MIN_SILENCE_ELECTIONS * raft.config.election_ticks
