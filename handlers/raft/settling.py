"""Where replicas live: who is met, whose word counts, and how the log learns of it.

A replica that starts with an empty disk has forgotten its votes and its acknowledgements. If it took part at once, an
entry could be lost that a majority held, or a term could have two leaders. So for every replica the log names a *home*, the
host on which it lives, and a newborn counts for nothing that its earlier life may have promised until an entry,
SETTLED, that was committed without it, names its new home.

    a wiped replica r comes back ─► meet: NEWBORN, at another home ─► it is *doubted*
      ─► it answers a heartbeat ─► the leader logs SETTLED(r, home) ─► committed by the others ─► it counts
                                                                   └─► applied by r: it is SETTLED, and votes

To count without the doubted is arithmetic, see `quorum.believed`. A leader that was deposed, and does not know it, cannot settle
a replica: that takes as many of the others as it needs to lead. See docs/protocol.md for the proof.
"""

from collections.abc import Callable, Collection
from dataclasses import replace

from drakkar.handlers.messages import Message
from drakkar.handlers.raft import permissions, quorum, sending
from drakkar.handlers.raft.confchange import decide
from drakkar.handlers.raft.core import BASE_STATES, RaftCore
from drakkar.handlers.raft.entries import Entry, EntryKind, Run
from drakkar.handlers.raft.lives import Life, Lives, Meeting, Standing, encode_settled
from drakkar.handlers.raft.state import Membership, State

__all__ = [
    "agreed",
    "apply",
    "has_quorum",
    "meet",
    "note_presence",
    "note_standing",
    "recount",
    "settle",
    "settle_due",
    "tally",
    "unsettled",
]

# -- meeting -------------------------------------------------------------------------------------------------------


def meet(raft: RaftCore, replica: int, life: Life, term: int) -> Meeting:
    """Hear what a replica says of itself: first how its shard was founded, then where it lives; see `Raft.meet`."""
    lives = raft.lives
    if lives.own.founding and life.founding and lives.own.founding != life.founding:
        return Meeting.OTHER_FOUNDING
    if permissions.is_stranger(raft, replica, life):
        # What it says of itself changes nothing here, and takes the place of no member.
        return Meeting.STRANGER if permissions.is_proven(raft, life) else Meeting.UNPROVEN
    if life.founding and not lives.own.founding:
        lives.own = replace(lives.own, founding=life.founding)
        lives.version += 1
    if not lives.home or not life.home:
        return Meeting.WELCOME
    if _lives_elsewhere(raft, replica, life):
        return Meeting.OLDER_LIFE if _is_older(raft, replica, life, term) else Meeting.OTHER_LIFE
    if lives.met.get(replica) != life:
        _welcome(raft, replica, life)
    if lives.followed is not None and lives.followed.replica == replica:
        # Where a stranger was followed in its name, that one is followed no more.
        lives.followed = replace(lives.followed, life=life)
    return Meeting.WELCOME


def _lives_elsewhere(raft: RaftCore, replica: int, life: Life) -> bool:
    """Whether the log contradicts a replica that says that it has been there before.

    A newborn says nothing of that kind. Nor does a founder: one at another home than the log names was wiped since, and founded with
    others that did not know. It is doubted, and settled, as a newborn is.
    """
    if life.standing is Standing.NEWBORN:
        return False
    home = raft.home_of(replica)
    if home:
        return home != life.home and life.standing is not Standing.FOUNDER
    if raft.state in BASE_STATES or replica in raft.membership.removed:
        return False  # we may be behind, and no answer counts here
    # The entry that settled it was committed, so that it would be in our log if we were entitled to lead. And where we
    # found all empty, there is no replica with data from before.
    inherited = life.standing is Standing.INHERITED and bool(raft.lives.own.companions)
    return life.standing is Standing.SETTLED or inherited


def _is_older(raft: RaftCore, replica: int, life: Life, term: int) -> bool:
    """Whether a contradiction shows that the shard was founded twice, ours by mistake.

    A leader that was deposed may just be behind: then the other one's term is newer. If it is not, the entry that settled
    the other one was committed in an earlier term, or by this leader itself; so it would be in our log. A replica that our own
    shard has added (home 0), or that cannot say how its shard was founded, shows nothing: its directory may be of another use.
    """
    leads = raft.state is State.LEADER and 0 < term <= raft.term
    return leads and bool(life.founding) and raft.home_of(replica) is None


def _welcome(raft: RaftCore, replica: int, life: Life) -> None:
    lives = raft.lives
    before = lives.met.get(replica)
    lives.met[replica] = life
    lives.version += 1
    if before is None or before.home != life.home:
        lives.met_at[replica] = raft.timers.ticks
        lives.present.discard(replica)
    if before is not None and before.home != life.home:
        _forget(raft, replica)
    _greet(raft, replica, life)
    if life.standing in {Standing.SETTLED, Standing.INHERITED}:
        lives.too_late = True
    recount(raft)
    settle_due(raft)


def _greet(raft: RaftCore, replica: int, life: Life) -> None:
    """A leader asks a newborn at once whether it is there, so that it is settled without waiting for the next heartbeat."""
    if (
        raft.state is not State.LEADER
        or life.standing is not Standing.NEWBORN
        or replica not in raft.progress
    ):
        return
    number = raft.lives.greeted[replica] = raft.random.getrandbits(62) | 1
    sending.send_heartbeat(raft, replica, (number, 0))


def _forget(raft: RaftCore, replica: int) -> None:
    """Another life of a replica: what the earlier one held and granted is gone with it."""
    raft.votes.pop(replica, None)
    peer = raft.progress.get(replica)
    if raft.state is State.LEADER and peer is not None:
        peer.start_over(raft.log.last_index + 1)
        sending.send(raft, replica)


# -- who counts ----------------------------------------------------------------------------------------------------


def recount(raft: RaftCore) -> None:
    """Find anew the voters that do not count by themselves."""
    if raft.lives.home:
        raft.lives.doubted = frozenset(voter for voter in raft.voters if not _counts(raft, voter))
        if raft.lives.doubted:
            raft.lives.added = frozenset(voter for voter in raft.voters if _committed_home(raft, voter) == 0)


def _committed_home(raft: RaftCore, voter: int) -> int | None:
    """Where a voter lives by what is committed; 0 for one that was added, None where it is not known."""
    home = raft.membership.homes.get(voter)
    for index, settled in raft.log.settled(voter):
        home = settled if index <= raft.log.committed else home
    return home


def _counts(raft: RaftCore, voter: int) -> bool:
    """Whether the life that was met last is the one that made the voter's promises; a voter that was not met says nothing."""
    life = raft.lives.met.get(voter)
    if life is None or voter == raft.id:
        return True
    home = _committed_home(raft, voter)
    if home == 0:
        # The first life of a replica that was added forgot nothing: it counts before its entry is committed.
        home = next((settled for _, settled in raft.log.settled(voter)), 0)
    if home is None:
        return life.standing is not Standing.NEWBORN
    return home in {0, life.home}


def agreed(raft: RaftCore, held: Callable[[int], int]) -> int:
    """Find the highest number that a quorum has reached; the doubted count only beside enough others."""
    index = quorum.joint_committed(raft.electorate, held)
    doubted, added = raft.lives.doubted, raft.lives.added
    return min(index, quorum.believed(_electing(raft), held, doubted, added)) if doubted else index


def has_quorum(raft: RaftCore, members: Collection[int]) -> bool:
    """Whether `members` are a quorum; the doubted count only beside enough others."""
    doubted, added = raft.lives.doubted, raft.lives.added
    enough = quorum.has_quorum(raft.electorate, members)
    return enough and (not doubted or quorum.believes(_electing(raft), members, doubted, added))


def tally(raft: RaftCore) -> quorum.Vote:
    """Where this candidate's vote stands. The doubted grant nothing."""
    if not raft.lives.home:
        return quorum.joint_tally(raft.electorate, raft.votes)
    recount(raft)
    met = raft.lives.met
    # Also one that lives where the log says, but has not applied that yet.
    newborn = {voter for voter in raft.voters if voter in met and met[voter].standing is Standing.NEWBORN}
    added = {voter for voter in raft.voters if raft.home_of(voter) == 0}
    return quorum.elect(_electing(raft), raft.votes, raft.lives.doubted | newborn, added)


def _electing(raft: RaftCore) -> quorum.Electorate:
    """The sets that elect, and have to be believed. The new voters of a joint change are none before its end is logged.

    Until then all that is committed, and all who are elected, have a majority of the old voters; and the new ones may not be
    able to vote yet.
    """
    incoming, outgoing = raft.electorate
    return ((), outgoing) if outgoing and not raft.log.holds_change() else (incoming, outgoing)


# -- the leader settles --------------------------------------------------------------------------------------------


def settle(raft: RaftCore) -> bool:
    """Log where those live of whom the log does not say it, the leader among them; True if there were any."""
    if not raft.lives.home:
        return False
    due = [(replica, life.home) for replica, life in _lives(raft) if _is_due(raft, replica, life)]
    if due:
        payloads = [encode_settled(replica, home) for replica, home in due]
        raft.append_entries([Run(0, 0, payloads, bytes([EntryKind.SETTLED]) * len(due))])
    recount(raft)
    return bool(due)


def settle_due(raft: RaftCore) -> None:
    """The same for a leader at work: after a meeting, an answer or a change, and at each tick."""
    if raft.state is State.LEADER and not raft.transfer.target and settle(raft):
        sending.broadcast(raft)


def _lives(raft: RaftCore) -> list[tuple[int, Life]]:
    met = {**raft.lives.met, raft.id: raft.life}
    return [(replica, met[replica]) for replica in raft.progress if replica in met]


def _is_due(raft: RaftCore, replica: int, life: Life) -> bool:
    """One that is newborn, or lives elsewhere by the log, is settled only once it is surely there.

    A message of an earlier life may come late, and would settle the dead. And one entry at a time, so that two lives of one replica
    do not fill the log.
    """
    home = raft.home_of(replica)
    if life.standing is Standing.SETTLED and replica != raft.id:
        return False  # by an entry that is not in our log: it is to be met again, and is refused then
    if life.standing is not Standing.NEWBORN and not home:
        return True
    return home != life.home and replica in raft.lives.present and not raft.log.settled(replica)


def note_presence(raft: RaftCore, answer: Message) -> None:
    """A peer answered a heartbeat that left at tick `log_index`, or the one with which it was greeted."""
    lives = raft.lives
    if not lives.home or answer.sender in lives.present:
        return
    greeted = answer.hint and answer.hint == lives.greeted.get(answer.sender)
    if greeted or answer.log_index > lives.met_at.get(answer.sender, raft.timers.ticks):
        lives.present.add(answer.sender)
        settle_due(raft)


# -- what was settled ----------------------------------------------------------------------------------------------


def apply(raft: RaftCore, entry: Entry) -> None:
    """An entry that says where a replica lives is applied."""
    outcome = decide(raft.membership, entry, raft.config)
    if isinstance(outcome, Membership):
        raft.membership = outcome
        raft.lives.version += 1  # a stranger may be known by its home from now on, or no more
        note_standing(raft)
    settle_due(raft)


def note_standing(raft: RaftCore) -> None:
    """The membership in effect may say that this replica lives here: from now on it votes."""
    lives = raft.lives
    settled = lives.home and raft.membership.homes.get(raft.id) == lives.home
    if settled and lives.own.standing is not Standing.SETTLED:
        # One that was newborn until now has founded nothing.
        founded = lives.own.standing is Standing.FOUNDER
        lives.own = Lives(lives.own.founding, Standing.SETTLED, lives.own.companions if founded else {})


def unsettled(raft: RaftCore, after: Membership) -> tuple[int, ...]:
    """The voters that a change to `after` has to wait for, since they may not be able to vote; in order.

    Those are the ones that stay, and were added or are doubted: else a shard could run out of replicas that may vote, and
    elections that do not ask those that were added could miss each other. To leave a joint membership takes a majority that may
    vote, and all that were met: until then the old voters elect alone.
    """
    voters = after.electorate[0]
    waiting = {it for it in raft.voters if it in voters and _waits_to_vote(raft, it)}
    if raft.membership.joint and len(voters - waiting) >= quorum.majority(len(voters)):
        waiting &= raft.lives.met.keys()
    return tuple(sorted(waiting)) if voters != raft.electorate[0] or raft.membership.joint else ()


def _waits_to_vote(raft: RaftCore, voter: int) -> bool:
    """Whether it is known of a voter that it cannot vote yet; or, in a joint membership, not known that it can."""
    if raft.membership.homes.get(voter) == 0 or voter in raft.lives.doubted:
        return True
    if not raft.lives.home or voter == raft.id or not raft.membership.joint:
        return False
    life = raft.lives.met.get(voter)
    return life is None or life.standing is Standing.NEWBORN
