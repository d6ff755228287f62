"""Mutants of quick failover: who campaigns when a leader's process is gone, and what a lease still forbids."""

from dataclasses import replace

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import failover, reads, sending
from drakkar.handlers.raft.quiesce import track_activity
from drakkar.handlers.raft.state import State
from drakkar.handlers.testing.plan import TICK, Event
from drakkar.handlers.testing.shard import SimulatedShard

from tests.simulation.mutants import (
    CHECK_QUORUM_ON,
    CLEAR,
    FIVE,
    LEADER,
    LEASES,
    THREE,
    members,
    mutant,
    repeatedly,
    requests,
)

M = MessageType

# -- situations ----------------------------------------------------------------------------------------------------

EVERYBODY = 0xFF


def killed_leaders(random, plan):
    """Leaders are killed, and started again later."""
    yield from requests(random, plan, "put", every=5)
    yield from repeatedly(random, plan, 8, "crash", LEADER, 1.0, range(30, 60))


def killed_followers(random, plan):
    """All replicas are killed now and then."""
    yield from requests(random, plan, "put", every=5)
    yield from repeatedly(random, plan, 4, "crash", members(plan), 1.0, range(10, 30))


def flapping_links(random, plan):
    """Links between leaders and followers are cut and repaired all the time, too briefly for an election timeout."""
    yield from requests(random, plan, "put", every=3)
    yield from repeatedly(random, plan, 3, "flap", LEADER, members(plan), 3, range(10, 30))


def isolated_and_thought_gone(random, plan):
    """Leaders are isolated, and all others are told by mistake that they are gone; clients read at all replicas."""
    yield from requests(random, plan, "put", "get", "get", every=2)
    for time in range(100, plan.ticks * TICK, 150):
        begin = time + random.randrange(30)
        yield Event(begin, "isolate", (LEADER, 120))
        yield Event(begin + 1, "false_evidence", (LEADER, EVERYBODY))


ASKING = {"election_ticks": 5, "pre_vote": True, "check_quorum": True, "read_mode": "safe"}
AT_ONCE = {"given": THREE | {"config": ASKING, "evidence": 1}, "weather": CLEAR, "rig": killed_leaders}
"""All are told at nearly the same time."""
APART = {"given": THREE | {"config": ASKING, "evidence": 20}, "weather": CLEAR, "rig": killed_leaders}
"""Some are told ticks after the others."""
SLOW = AT_ONCE | {"weather": CLEAR | {"delay": 1.0}}
"""An election takes longer than a step."""
LEASED = {
    "given": THREE | {"ticks": 60, "config": LEASES | {"election_ticks": 10}, "evidence": 5},
    "weather": CLEAR,
    "rig": isolated_and_thought_gone,
}

# -- who campaigns -------------------------------------------------------------------------------------------------


@mutant("all voters ask at once when their leader is gone", "INV58", **AT_ONCE)
def _(change):
    change.patch(failover, "_place", lambda raft, gone: 0)


@mutant("nothing comes of the news that a leader is gone", "INV58", **AT_ONCE)
def _(change):
    @change.handlers.wrap(M.LEADER_GONE)
    def ignore(raft, event, inner):
        pass


@mutant(
    "a sleeping shard does not hear that its leader is gone",
    "INV58",
    **AT_ONCE | {"given": THREE | {"config": ASKING | {"quiesce": True}, "evidence": 1}},
)
def _(change):
    @change.handlers.wrap(M.LEADER_GONE)
    def sleep_on(raft, event, inner):
        if not raft.quiesce.quiesced:
            inner(raft, event)


@mutant(
    "a replica that sleeps judges a request for its vote before it wakes up",
    "INV20 a lease",
    **APART | {"given": FIVE | {"config": ASKING | {"quiesce": True}, "evidence": 60}},
)
def _(change):
    change.handlers.guards.remove(track_activity)
    change.handlers.guards.append(track_activity)


@mutant("a voter that has granted a pre-vote asks for some itself as soon as it is its turn", "INV55", **SLOW)
def _(change):
    change.patch(failover, "postpone", lambda raft: None)


@mutant(
    "a voter begins a term at once when its leader is gone",
    "INV55",
    **APART | {"given": THREE | {"config": CHECK_QUORUM_ON, "evidence": 20}},
)
def _(change):
    @change.handlers.wrap(M.ELECTION, State.FOLLOWER)
    def begin(raft, event, inner):
        inner(raft, replace(event, reject=False))


@mutant("a voter claims that the leader that is gone has asked it to campaign", "INV55", **APART)
def _(change):
    @change.handlers.wrap(M.ELECTION, State.FOLLOWER)
    def claim(raft, event, inner):
        inner(raft, replace(event, hint=raft.id) if event.reject else event)


# -- who is gone ---------------------------------------------------------------------------------------------------


@mutant(
    "a lost connection passes for a lost process, so a flapping link deposes leaders",
    "INV56",
    given=THREE | {"config": ASKING},
    rig=flapping_links,
)
def _(change):
    @change.around(SimulatedShard, "report")
    def exaggerate(inner, shard, replica, report):
        if report.type is M.UNREACHABLE:
            report = Message(M.LEADER_GONE, sender=report.sender)
        inner(shard, replica, report)


@mutant("the end of any peer passes for that of the leader", "INV56", **APART | {"rig": killed_followers})
def _(change):
    @change.handlers.wrap(M.LEADER_GONE)
    def confuse(raft, event, inner):
        inner(raft, replace(event, sender=raft.leader_id))


# -- leases --------------------------------------------------------------------------------------------------------


@mutant("a voter gives its lease up when its leader is gone", "INV57", **LEASED)
def _(change):
    @change.handlers.wrap(M.LEADER_GONE)
    def give_up(raft, event, inner):
        raft.timers.no_votes_before = 0
        inner(raft, event)


@mutant("a lease does not bind those who elect another leader", "INV21", "NotLinearizable", **LEASED)
def _(change):
    change.patch(reads, "keep_lease", lambda raft, heartbeat: None)

    @change.around(sending, "send_heartbeat")
    def say_nothing(inner, raft, replica, context):
        inner(raft, replica, context)
        raft.outbox.messages[-1].payload = None
