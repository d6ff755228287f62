"""How a shard is founded: the one time at which replicas without a past may vote.

A newborn founder asks the others whether they are empty too. When a majority of the founders is, itself among them, and none has said
otherwise, it counts as FOUNDER: there is nothing that it could have forgotten. It remembers these companions and
their homes, so that a companion that is wiped later is not taken for empty again.

    NEWBORN(home) ─► NEWBORN_RESP: "I am empty too"    a majority of these ─► FOUNDER
                 └─► NEWBORN_RESP: "the shard is older" (reject)         ─► it waits until a leader settles it
"""

from dataclasses import replace
from typing import Final

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import quorum
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.lives import Lives, Standing

__all__ = ["answer_newborn", "ask", "begin", "on_newborn_response"]

_LISTEN_TIMEOUTS: Final = 2
"""Election timeouts for which a newborn waits for the founders that say nothing: a shard elects its next leader in two."""


def begin(raft: RaftCore) -> None:
    """A replica starts: if it is a founder, and newborn, it asks the others at once."""
    voters, _ = raft.electorate
    if (
        raft.lives.home
        and raft.lives.own.standing is Standing.NEWBORN
        and raft.id in voters
        and not _moved(raft)
    ):
        raft.lives.founders = frozenset(voters)
        ask(raft)


def ask(raft: RaftCore) -> None:
    """Ask all other founders, at each tick, until this is settled one way or the other."""
    if not _is_open(raft):
        return
    _found(raft)
    for founder in sorted(raft.lives.founders - {raft.id}):
        raft.send(Message(MessageType.NEWBORN, to=founder, hint=raft.lives.home))


def _is_open(raft: RaftCore) -> bool:
    """Whether this newborn may still become a founder: it has heard of no leader, and of no older life."""
    lives = raft.lives
    newborn = bool(lives.founders) and lives.own.standing is Standing.NEWBORN
    return newborn and not lives.too_late and not raft.leader_id and not _moved(raft)


def _moved(raft: RaftCore) -> bool:
    """Whether there is more than the membership with which every founder begins, of which there may be a snapshot."""
    return raft.log.last_index > 1


def answer_newborn(raft: RaftCore, ask: Message) -> None:
    """Say whether this replica is as empty as the asker, if it knows."""
    knows_more = _knows_more(raft, ask)
    if knows_more is not None:
        raft.reply(ask, MessageType.NEWBORN_RESP, hint=ask.hint, reject=knows_more)


def _knows_more(raft: RaftCore, ask: Message) -> bool | None:
    """Whether the shard is older than the life of the asker; None where this replica cannot say.

    One that has done nothing yet takes the asker as a companion. That cannot be said a second time, to another life: the
    first one may have voted since. But neither does it show that the shard is older, which would keep newborns from founding.
    """
    own, known = raft.lives.own, raft.lives.own.companions.get(ask.sender)
    newborn = own.standing is Standing.NEWBORN
    if known == ask.hint and not newborn:
        return False
    if raft.lives.too_late or _moved(raft) or own.standing in {Standing.SETTLED, Standing.INHERITED}:
        return True
    may_have_voted = raft.term > 1 and not newborn
    if known not in {None, ask.hint} or may_have_voted:
        return None
    if known is None:
        _vouch(raft, ask)
    return False


def _vouch(raft: RaftCore, ask: Message) -> None:
    """Remember durably whom this replica takes for empty, before it says so.

    Of two founders neither does anything without the other: while this one is newborn, the other one may begin anew.
    """
    own = raft.lives.own
    if own.standing is Standing.FOUNDER or len(raft.lives.founders) > 2:
        raft.lives.own = replace(own, companions={**own.companions, ask.sender: ask.hint})


def on_newborn_response(raft: RaftCore, answer: Message) -> None:
    """Count those that are empty too. An answer to an earlier life of this replica names another home."""
    lives = raft.lives
    if not _is_open(raft) or answer.hint != lives.home or answer.sender not in lives.founders:
        return
    if answer.reject:
        lives.too_late = True
    elif answer.sender in lives.met:
        home = lives.met[answer.sender].home
        if lives.own.companions.get(answer.sender, home) == home:
            lives.empty[answer.sender] = home
            _found(raft)


def _found(raft: RaftCore) -> None:
    """Become a founder, if enough others are empty: at once with the word of all, after a while with that of a majority.

    Until then one that knows more may be heard, above all the leader of a shard that has grown since it was founded.
    """
    lives = raft.lives
    empty, founders = len(lives.empty) + 1, len(lives.founders)
    waited = raft.timers.ticks >= _LISTEN_TIMEOUTS * raft.config.election_ticks
    if empty == founders or (waited and empty >= quorum.majority(founders)):
        companions = {**lives.empty, **lives.own.companions}
        lives.own = Lives(lives.own.founding, Standing.FOUNDER, companions)
