"""Mutants of the rules about where replicas live: who votes, who counts, and who founds a shard."""

from dataclasses import replace

from drakkar.actors.log.state import LogChanges
from drakkar.actors.node.actor import NodeActor
from drakkar.actors.node.introductions import Introductions
from drakkar.handlers.messages import MessageType
from drakkar.handlers.raft import founding, permissions, quorum, settling
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.entries import EntryKind
from drakkar.handlers.raft.lives import Claim, KnownLives, Meeting, Standing
from drakkar.handlers.raft.log import RaftLog
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.testing.core_host import CoreHost
from drakkar.handlers.testing.plan import TICK, Event

from tests.simulation.mutants import (
    CHECK_QUORUM_ON,
    CLEAR,
    FAST,
    LATE,
    LEADER,
    NARROW,
    members,
    mutant,
    repeatedly,
    requests,
    restarts,
)

# -- situations ----------------------------------------------------------------------------------------------------


def settled_in_vain(random, plan):
    """A leader is isolated when it has logged where an emptied follower lives, and the next one has to log it again."""
    yield from requests(random, plan, "put", every=6, of_leader=0.5)
    for time in range(60, plan.ticks * TICK, 130):
        begin = time + random.randrange(20)
        yield Event(begin, "wipe", (random.choice(members(plan)), 1))
        yield Event(begin + random.randrange(10, 40), "isolate", (LEADER, random.randrange(60, 90)))


def wiped_while_apart(random, plan):
    """A follower is emptied while the leader is cut off from the others, and comes back at the side of either."""
    yield from requests(random, plan, "put", "add", of_leader=0.5)
    for time in range(60, plan.ticks * TICK, 120):
        begin = time + random.randrange(30)
        yield Event(begin, "isolate", (LEADER, random.randrange(60, 110)))
        yield Event(begin + random.randrange(40, 110), "wipe", (random.choice(members(plan)), 1))


def wiped_pairs(random, plan):
    """One of two is emptied, and the other one is started again."""
    yield from requests(random, plan, "put", "add", of_leader=0.5)
    for time in range(60, plan.ticks * TICK, 150):
        begin = time + random.randrange(50)
        one, other = random.sample(members(plan), 2)
        yield Event(begin, "wipe", (one, random.randrange(1, 30)))
        yield Event(begin + random.randrange(30), "crash", (other, 1.0, random.randrange(1, 40)))


def lost_quorums(random, plan):
    """The disks of a quorum are emptied, while those that keep theirs are away for some time."""
    yield from requests(random, plan, "put", "add", of_leader=0.5)
    begin = random.randrange(150, 200)
    yield Event(begin, "wipe_quorum", (random.randrange(1 << 8), 1))
    yield from (
        Event(begin - 1, "isolate", (replica, random.randrange(60, 150))) for replica in members(plan)
    )
    yield Event(begin + 1, "heal")
    yield Event(begin + 2, "partition", (random.randrange(1 << 8), random.randrange(60, 150)))


def founders(random, plan):
    """Founders begin at different times, and are emptied when the first leader has worked for some time."""
    yield from requests(random, plan, "put", of_leader=1.0)
    yield from repeatedly(random, plan, 10, "wipe", members(plan), range(1, 20))
    yield from repeatedly(random, plan, 10, "isolate", members(plan), range(10, 60))


def wiped_under_load(random, plan):
    """A follower is emptied while many of its answers are on their way."""
    yield from requests(random, plan, "put", every=2, of_leader=1.0)
    yield from repeatedly(random, plan, 12, "wipe", members(plan), 1)


def strangers(random, plan):
    """Strangers speak as members to all replicas, while these work, and hold elections."""
    yield from requests(random, plan, "put", "add", of_leader=0.5)
    yield from restarts(random, plan)
    for time in range(60, plan.ticks * TICK, 5):
        receiver, sender = random.choice([LEADER, *members(plan)]), random.choice(members(plan))
        yield Event(time, "stranger", (receiver, sender, random.randrange(1 << 16)))


HOMES = {"hosts": "core", "seeds": 300, "weather": CLEAR}
THREE = HOMES | {
    "given": {"homes": True, "voters": 3, "observers": 0, "witnesses": 0, "ticks": 60, "config": NARROW},
    "rig": wiped_while_apart,
}
PAIR = THREE | {"given": THREE["given"] | {"voters": 2, "config": FAST}, "rig": wiped_pairs}
VAIN = THREE | {"given": THREE["given"] | {"voters": 5, "ticks": 100}, "rig": settled_in_vain}
LOST = THREE | {
    "given": THREE["given"] | {"loses_quorum": True, "config": NARROW},
    "rig": lost_quorums,
}

STRANGERS = {
    "hosts": "both",
    "seeds": 40,
    "weather": CLEAR,
    "given": THREE["given"] | {"config": CHECK_QUORUM_ON},
    "rig": strangers,
}

# -- who may say what ----------------------------------------------------------------------------------------------


@mutant("a stranger is taken for the member whose id it names", "INV54", **STRANGERS)
def _(change):
    change.patch(permissions, "is_stranger", lambda raft, replica, life: False)


@mutant("a home that is only told counts beside a certificate", "INV54", **STRANGERS)
def _(change):
    @change.around(permissions, "is_stranger")
    def believe(inner, raft, replica, life):
        return inner(raft, replica, replace(life, certified=False))


@mutant("a stranger need not say how its shard was founded", "INV54", **STRANGERS)
def _(change):
    change.patch(permissions, "is_proven", lambda raft, life: True)


@mutant(
    "a stranger with a certificate takes the place of a leader that was heard lately", "INV54", **STRANGERS
)
def _(change):
    change.patch(permissions, "_expects_leader", lambda raft: False)


@mutant(
    "without CheckQuorum, a stranger with a certificate takes the place of a leader that was heard lately",
    "INV54",
    **STRANGERS | {"given": THREE["given"]},
)
def _(change):
    @change.around(permissions, "_expects_leader")
    def expect(inner, raft):
        return raft.check_quorum and inner(raft)


@mutant("any host speaks as the leader that is followed", "INV54", **STRANGERS)
def _(change):
    change.patch(Claim, "is_of", lambda claim, replica, life: replica == claim.replica)


@mutant("the host of a leader is not remembered", "INV54", "INV11", **STRANGERS)
def _(change):
    change.patch(KnownLives, "follow", lambda lives, leader, term: None)


@mutant("a stranger takes the place of a newborn founder", "INV54", **STRANGERS)
def _(change):
    @change.around(permissions, "lets_in")
    def vouch(inner, raft, meeting, message, life):
        newborn = meeting is Meeting.STRANGER and message.type is MessageType.NEWBORN
        return newborn or inner(raft, meeting, message, life)


@mutant("a stranger may say all that members may", "INV54", **STRANGERS)
def _(change):
    @change.around(permissions, "lets_in")
    def let_in(inner, raft, meeting, message, life):
        stranger = meeting is Meeting.STRANGER
        return stranger or inner(raft, meeting, message, life)


@mutant("what a stranger says of itself takes the place of what the member said", "INV54", **STRANGERS)
def _(change):
    @change.around(permissions, "is_proven")
    def note(inner, raft, life):
        raft.lives.met.update(dict.fromkeys(raft.lives.met, life))
        return inner(raft, life)


# -- who votes -----------------------------------------------------------------------------------------------------


@mutant("a newborn votes", "INV44", **THREE)
def _(change):
    change.patch(RaftCore, "remembers", True)


@mutant("a voter that was emptied counts as any other", "INV11", "INV4", "INV1", **THREE)
def _(change):
    change.patch(settling, "_counts", lambda raft, voter: True)


@mutant("a voter counts before the entry of its new home is committed", "INV11", **THREE)
def _(change):
    def counts(raft, voter):
        life = raft.lives.met.get(voter)
        return life is None or voter == raft.id or raft.home_of(voter) in {None, 0, life.home}

    change.patch(settling, "_counts", counts)


@mutant("less than half of an odd number are enough beside one that was emptied", "INV11", "INV4", **THREE)
def _(change):
    @change.around(quorum, "_believed")
    def fewer(inner, voters, match, doubted, added):
        if not voters:
            return inner(voters, match, doubted, added)
        trusted = sorted((match(voter) for voter in voters if voter not in doubted), reverse=True)
        half = max(len(voters) // 2, 1)
        return min(trusted[half - 1], quorum.committed(voters, match)) if len(trusted) >= half else 0


@mutant("one of two elects itself beside one that was emptied and has not answered", "INV1", **PAIR)
def _(change):
    @change.around(quorum, "_needed")
    def alone(inner, voters, doubted, *, one_added):
        return 1 if voters == 2 else inner(voters, doubted, one_added=one_added)


@mutant(
    "what an earlier life has acknowledged is counted for the next one", "INV12", "INV11", "INV26", **THREE
)
def _(change):
    change.patch(settling, "_forget", lambda raft, replica: None)


@mutant(
    "the messages of a life that the log has replaced are taken",
    "INV11",
    "INV12",
    "INV1",
    **THREE | {"weather": LATE, "rig": wiped_under_load},
)
def _(change):
    change.patch(permissions, "_other_life_may_say", lambda raft, message: True)


# -- where a replica lives -----------------------------------------------------------------------------------------


@mutant("a home is not taken back with the entry that said so", "INV45", "INV46", **VAIN)
def _(change):
    @change.around(RaftLog, "_truncate")
    def keep(inner, log, index):
        kept = [entry for entry in log._changes if entry.kind is EntryKind.SETTLED and entry.index >= index]
        inner(log, index)
        log._changes += kept


@mutant("a replica is settled by an entry that is not committed", "INV48", **THREE)
def _(change):
    @change.around(settling, "note_standing")
    def early(inner, raft):
        inner(raft)

    @change.around(Raft, "ready")
    def settle(inner, raft):
        home = raft.lives.home
        if home and raft.home_of(raft.id) == home and raft.lives.own.standing is not Standing.SETTLED:
            raft.lives.own = settling.replace(raft.lives.own, standing=Standing.SETTLED)
        return inner(raft)


@mutant("a home is not in effect when it is applied", "INV46", "INV26", **THREE)
def _(change):
    @change.around(settling, "apply")
    def forget(inner, raft, entry):
        homes = raft.membership.homes
        inner(raft, entry)
        raft.membership = settling.replace(raft.membership, homes=homes)


@mutant("an emptied replica is never settled again", "INV26", **THREE)
def _(change):
    @change.around(settling, "_is_due")
    def never(inner, raft, replica, life):
        return inner(raft, replica, life) and raft.home_of(replica) is None


# -- who founds ----------------------------------------------------------------------------------------------------


@mutant("a founder is sure without a majority", "INV47", "INV1", "INV44", **THREE | {"rig": founders})
def _(change):
    def sure(raft):
        raft.lives.own = settling.replace(raft.lives.own, standing=Standing.FOUNDER)

    change.patch(founding, "_found", sure)


@mutant("one that knows more says that it is empty too", "INV47", "INV1", **THREE | {"rig": founders})
def _(change):
    change.patch(founding, "_knows_more", lambda raft, ask: False)


@mutant(
    "a founder takes an emptied companion for the one that it knew",
    "INV47",
    "INV11",
    **THREE | {"rig": founders},
)
def _(change):
    @change.around(founding, "_knows_more")
    def forgive(inner, raft, ask):
        return ask.sender not in raft.lives.own.companions and inner(raft, ask)


# -- what others are told of a life --------------------------------------------------------------------------------


@mutant("a host tells of a life that is not durable", "INV10", **THREE | {"rig": founders})
def _(change):
    change.patch(CoreHost, "lives_told", property(lambda host: host.raft.lives.own))


@mutant("a node tells of a life that is not durable", "INV10", **THREE | {"hosts": "node", "rig": founders})
def _(change):
    @change.around(NodeActor, "_do")
    def hurry(inner, node, ready):
        if ready.lives is not None:
            node.introductions.on_durable(ready.lives)
        return inner(node, ready)


# -- a shard that was founded twice --------------------------------------------------------------------------------


@mutant(
    "the leader of a second founding goes on when it hears one that knows", "INV51", "INV52", "INV53", **LOST
)
def _(change):
    change.patch(settling, "_is_older", lambda raft, replica, life, term: False)


@mutant("the leader of a second founding settles one that knows", "INV51", "INV52", "INV53", **LOST)
def _(change):
    change.patch(settling, "_lives_elsewhere", lambda raft, replica, life: False)


# -- nodes ---------------------------------------------------------------------------------------------------------

NODE = THREE | {"hosts": "node", "seeds": 150}


@mutant(
    "a node takes the messages of a life that the log has replaced",
    "INV11",
    "INV12",
    "INV1",
    **NODE | {"weather": LATE, "rig": wiped_under_load},
)
def _(change):
    change.patch(Introductions, "refuses", lambda introductions, message: False)


@mutant("a node forgets what it remembers of its life", "INV44", "INV10", **NODE | {"rig": restarts})
def _(change):
    @change.around(LogChanges, "save")
    def forget(inner, changes, hard_state, runs, snapshot, lives=None):
        return inner(changes, hard_state, runs, snapshot, None)


@mutant(
    "a node of a second founding goes on when it hears one that knows",
    "INV51",
    "INV52",
    rare=True,
    **LOST | {"hosts": "node"},
)
def _(change):
    @change.around(Introductions, "_refuse")
    def go_on(inner, introductions, said, meeting):
        if meeting is not Meeting.OLDER_LIFE:
            inner(introductions, said, meeting)
