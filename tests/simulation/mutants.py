"""Mutants: each breaks one rule of the protocol on purpose, and names the simulator's checks that must find it.

A mutant imitates a bug: a rule is missing or wrong. It wraps a handler or patches a function while a schedule runs.
`find` runs schedules in which the situation of the rule is frequent, until a check fails.

    @mutant("a vote is granted twice in a term", "INV8", "INV9")
    def _(change):
        @change.handlers.wrap(M.REQUEST_VOTE)
        def forget(raft, message, inner): ...
"""

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, islice
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest import mock

from drakkar.actors.log import records
from drakkar.actors.log.cleaning import Cleaner
from drakkar.actors.log.index import RunIndex
from drakkar.actors.machine.applied import AppliedState
from drakkar.actors.machine.applier import Applier
from drakkar.actors.machine.sessions import SessionTable
from drakkar.actors.node import removal
from drakkar.actors.node.actor import NodeActor
from drakkar.actors.node.clients import Clients
from drakkar.actors.node.completions import SnapshotLoaded
from drakkar.actors.node.disk_watch import DiskWatch
from drakkar.actors.node.persistence import Persistence
from drakkar.actors.node.proposals import PendingProposals
from drakkar.actors.node.reads import ReadRequests
from drakkar.actors.node.received_snapshots import ReceivedSnapshots
from drakkar.actors.node.router import Router
from drakkar.actors.node.snapshots import SnapshotKeeper
from drakkar.actors.node.transfers import Transfers
from drakkar.actors.runtime.inbox import Inbox, Lane
from drakkar.actors.snapshots.store import Snapshots
from drakkar.handlers import raft_handlers
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import (
    clock,
    commit,
    confchange,
    election,
    flow,
    heartbeat,
    membership,
    notices,
    proposals,
    quiesce,
    quorum,
    reach,
    reads,
    replication,
    room,
    sending,
    terms,
    transfer,
)
from drakkar.handlers.raft import snapshot as snapshots
from drakkar.handlers.raft.confchange import ChangeType, Transition
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.entries import Entries, Entry, EntryKind, Run, changes
from drakkar.handlers.raft.lanes import UNLIMITED
from drakkar.handlers.raft.log import EntriesNotLoaded, RaftLog
from drakkar.handlers.raft.log_memory import LogMemory
from drakkar.handlers.raft.outbox import Outbox
from drakkar.handlers.raft.progress import NEVER, Inflight, Progress, ProgressState
from drakkar.handlers.raft.quiesce_state import Quiesce
from drakkar.handlers.raft.quorum import Vote
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.ready import ReadReady, Ready, Refusal
from drakkar.handlers.raft.room_watch import RoomWatch
from drakkar.handlers.raft.state import Membership, State
from drakkar.handlers.testing.core_host import CoreHost
from drakkar.handlers.testing.membership_changes import choose_change, is_forced
from drakkar.handlers.testing.plan import TICK, Event
from drakkar.handlers.testing.simulated_host import NoticeTimer
from drakkar.handlers.testing.slow_reads import SlowReads

from tests.simulation import simulate
from tests.simulation.clients import FIRST_WITH_SESSION
from tests.simulation.node_host import NodeHost
from tests.simulation.store import Concurrent, InBytes, OnDisk

M = MessageType
BOTH = "both"

MUTANTS = []


class Changed:
    """The rules with one mutant: a handler table, and patches that last until `undo` is closed."""

    def __init__(self, undo):
        self.handlers = raft_handlers()
        self._undo = undo

    def patch(self, target, name, replacement):
        """Replace an attribute of a class or module."""
        self._undo.enter_context(mock.patch.object(target, name, replacement))

    def around(self, target, name):
        """Put the decorated function around a method or function. Its first argument is the original."""

        def fill(wrapper):
            inner = getattr(target, name)
            self.patch(target, name, lambda *args, **options: wrapper(inner, *args, **options))
            return wrapper

        return fill


@dataclass(frozen=True)
class Mutant:
    """One broken rule."""

    name: str
    checks: tuple[str, ...]
    """Prefixes of the names of the checks that may find it."""
    change: Callable[[Changed], None]
    hosts: str = BOTH
    """"core", "node", or "both": then the two take turns."""
    seeds: int = 150
    """The number of schedules within which it must be found."""
    rare: bool = False
    """It is found after dozens of schedules only, so `make check` alone looks for it."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """Arguments for `plan_of`."""
    weather: Mapping[str, Any] = field(default_factory=dict)
    rig: Callable[[Random, Any], Any] | None = None
    """Makes events that cause the situation of the rule, in place of random ones."""

    def plan(self, seed):
        """Return a schedule in which the situation of the rule is frequent."""
        plan = simulate.plan_of(seed, **{"ticks": 25, "homes": False, "evidence": 0, **self.given})
        if self.weather:
            plan = replace(plan, weather=replace(plan.weather, **self.weather))
        lanes = plan.weather.lanes
        if lanes and plan.config.get("max_message_bytes", lanes) > lanes:
            plan = replace(plan, config={**plan.config, "max_message_bytes": lanes})  # as in all plans
        if self.rig is not None:
            events = sorted(self.rig(Random(f"rig {seed}"), plan), key=lambda event: event.time)
            full = any(event.kind == "full_disk" for event in events)
            plan = replace(plan, events=tuple(events), begins_led=False, ends_with_full_disks=full)
        return plan

    def host(self, seed):
        return simulate.host_of(seed) if self.hosts == BOTH else self.hosts

    def run(self, seed):
        """Run one schedule with the rule broken."""
        with ExitStack() as undo:
            changed = Changed(undo)
            self.change(changed)
            return simulate.run(self.plan(seed), self.host(seed), changed.handlers)

    def find(self):
        """Return the first seed whose schedule fails, and its outcome; None if none fails."""
        for seed in range(self.seeds):
            outcome = self.run(seed)
            if outcome.check:
                return seed, outcome
        return None


def mutant(name, *checks, **options):
    """Register the decorated function, which breaks a rule."""

    def register(change):
        MUTANTS.append(Mutant(name, checks, change, **options))
        return change

    return register


# -- situations ----------------------------------------------------------------------------------------------------

FAST = {"election_ticks": 5, "pre_vote": False, "check_quorum": False, "read_mode": "safe"}
"""Short election timeouts, without pre-vote and CheckQuorum."""
NARROW = FAST | {"max_election_ticks": 8}
"""The election timeout is 5 to 8 ticks, so a follower that loses its leader is often the next leader."""
TIED = FAST | {"max_election_ticks": 6}
"""The election timeout is 5 or 6 ticks, so several replicas often campaign at once."""
CHECK_QUORUM_ON = {"election_ticks": 5, "pre_vote": False, "check_quorum": True, "read_mode": "safe"}
LEASES = {"election_ticks": 5, "pre_vote": True, "check_quorum": True, "read_mode": "lease"}
COMPACT = {"snapshot_entries": 2, "compaction_overhead": 0}

STORMY = {"loss": 0.1, "duplication": 0.3, "delay": 0.2, "reordering": True}
LATE = {"loss": 0.0, "duplication": 0.0, "delay": 0.5, "reordering": True, "disk": 2, "linger": 0}
CLEAR = {
    "loss": 0.0,
    "duplication": 0.0,
    "delay": 0.0,
    "reordering": False,
    "disk": 2,
    "apply": 2,
    "linger": 0,
}

THREE = {"voters": 3, "observers": 0, "witnesses": 0, "ticks": 40}
FIVE = THREE | {"voters": 5}
WITH_OBSERVER = {"voters": 3, "observers": 1}
WITH_WITNESS = {"voters": 2, "witnesses": 1}

LEADER = 0


def _joint_choices():
    """Yield the choices of changes that remove two of five voters, and leave the joint membership only on request."""
    five = Membership(range(1, 6))
    for choice in range(4000):
        change = choose_change(Random(choice), five, five.voters)
        losers = [one for one in change.changes if one.replica in five.voters]
        if change.transition is Transition.EXPLICIT and len(losers) > 1:
            yield choice


JOINT = tuple(_joint_choices())


def _removals():
    """Return the choices of changes that only remove one of four voters, by voter."""
    four = Membership(range(1, 5))
    removals = {replica: [] for replica in four.voters}
    for choice in range(400):
        change = choose_change(Random(choice), four, four.voters)
        if len(change.changes) == 1 and change.changes[0].type is ChangeType.REMOVE:
            removals[change.changes[0].replica].append(choice)
    return removals


REMOVAL = _removals()


def _removal_choices():
    """Yield the choices of changes that remove a voter from a shard of two voters and a witness."""
    pair = Membership((1, 2), witnesses=(3,))
    for choice in range(2000):
        change = choose_change(Random(choice), pair, pair.everybody)
        if [(one.type, one.replica in pair.voters) for one in change.changes] == [(ChangeType.REMOVE, True)]:
            yield choice


VOTER_REMOVAL = tuple(_removal_choices())


def _promotion_choices():
    """Yield the choices of changes that only make the observer of a shard of one voter a voter, and are not forced."""
    pair = Membership((1,), observers=(2,))
    for choice in range(2000):
        change = choose_change(Random(choice), pair, pair.everybody)
        kinds = [(one.type, one.replica) for one in change.changes]
        if kinds == [(ChangeType.ADD_VOTER, 2)] and not (change.joint or is_forced(choice)):
            yield choice


PROMOTION = tuple(_promotion_choices())


def requests(random, plan, *kinds, every=3, timeout=0.3, of_leader=0.0):
    """Clients send requests to random replicas, at most `every` units of time apart. `timeout` is in seconds."""
    time = 0
    while time < plan.ticks * TICK:
        time += random.randint(1, every)
        replica = LEADER if random.random() < of_leader else random.choice(members(plan))
        args = (random.randrange(12), replica, random.choice("ab"), random.choice(kinds), timeout)
        yield Event(time, "request", args)


def repeatedly(random, plan, gap, kind, *args):
    """Repeat an event at most `gap` ticks apart. An argument may be a range or tuple to choose from."""
    time = 0
    while time < plan.ticks * TICK:
        time += random.randint(1, gap * TICK)
        drawn = tuple(random.choice(each) if isinstance(each, range | tuple) else each for each in args)
        yield Event(time, kind, drawn)


def members(plan):
    return range(1, plan.voters + plan.observers + plan.witnesses + 1)


def isolated_leaders(random, plan):
    """Leaders are isolated during their work one after the other, and come back with their logs."""
    yield from requests(random, plan, "put", "add", of_leader=0.7)
    for time in range(80, plan.ticks * TICK, 100):
        begin = time + random.randrange(50)
        yield Event(begin, "isolate", (LEADER, random.randrange(70, 150)))
        yield Event(
            begin + random.randrange(50),
            "crash",
            (random.choice(members(plan)), 1.0, random.randrange(1, 60)),
        )


def restarts(random, plan):
    """Replicas crash and start again."""
    yield from requests(random, plan, "add", "get", every=6)
    yield from repeatedly(random, plan, 4, "crash", members(plan), 1.0, range(1, 30))


def slow_isolated_leaders(random, plan):
    """As `isolated_leaders`; the isolated leader has a slow disk."""
    for event in isolated_leaders(random, plan):
        if event.kind == "isolate":
            yield Event(event.time - 1, "slow_disk", (LEADER, random.randrange(50, 100), 40))
        yield event


def leaders_with_slow_disks(random, plan):
    """The disk of a leader is too slow for it to stay one."""
    yield from requests(random, plan, "put", of_leader=0.7)
    yield from repeatedly(random, plan, 12, "slow_disk", LEADER, 100, (80, 150))


def deaf_leaders(random, plan):
    """A leader hears no more of the others, soon after a commit."""
    for time in range(100, plan.ticks * TICK, 200):
        yield from (
            replace(event, time=event.time + time)
            for event in islice(requests(random, plan, "put", of_leader=1.0), 2)
        )
        cut = time + random.randrange(5, 20)
        for other in members(plan):
            yield Event(cut, "cut", (other, LEADER, False, 150))


def followers_behind_clogged_lanes(random, plan):
    """After some requests a shard is idle, and the entries that a follower needs are stuck in its leader's lane."""
    begin = random.randrange(100, 200)
    yield Event(begin, "clog", (LEADER, random.choice(members(plan)), plan.ticks * TICK))
    for event in requests(random, plan, "put", of_leader=1.0):
        if begin - 50 < event.time < begin + 50:
            yield event


def close_elections(random, plan):
    """Elections are close, and voters crash during them."""
    yield from repeatedly(random, plan, 8, "isolate", LEADER, range(10, 60))
    yield from repeatedly(random, plan, 1, "crash", members(plan), 1.0, range(1, 10))


def long_isolation(random, plan):
    """Leaders are isolated for longer than an election timeout; clients still send them requests."""
    yield from requests(random, plan, "put", "get", "get", every=2)
    yield from repeatedly(random, plan, 10, "isolate", LEADER, range(200, 300))


def cut_followers(random, plan):
    """A leader loses the link to a follower, which campaigns; clients read at all replicas."""
    yield from requests(random, plan, "put", every=40)
    yield from requests(random, plan, "get", every=2)
    yield from repeatedly(random, plan, 8, "cut", LEADER, members(plan), True, range(100, 200))


def slow_machines(random, plan):
    """State machines lag behind the commit index; clients read at all replicas."""
    yield from requests(random, plan, "put", every=8)
    yield from requests(random, plan, "get", every=4)
    yield from repeatedly(random, plan, 4, "slow_apply", members(plan), (10, 30), range(50, 150))


def leader_changes(random, plan):
    """Leaders fail soon after their first commit; clients read at all replicas."""
    yield from requests(random, plan, "put", "get", "get", every=2)
    yield from repeatedly(random, plan, 8, "isolate", LEADER, range(10, 100))
    yield from repeatedly(random, plan, 12, "crash", LEADER, 1.0, range(50, 100))


def membership_changes(random, plan):
    """The membership and the leader change often."""
    yield from requests(random, plan, "put", every=8)
    yield from repeatedly(random, plan, 2, "change", LEADER, range(1 << 16))
    yield from repeatedly(random, plan, 12, "isolate", LEADER, range(10, 80))
    yield from repeatedly(random, plan, 12, "crash", members(plan), (0.0, 1.0), range(1, 60))


def lagging_promotions(random, plan):
    """The only voter makes an observer a voter whose disk takes longer than an election timeout for a write."""
    yield from requests(random, plan, "put", every=8, of_leader=1.0)
    yield Event(150, "slow_disk", (2, 100, 10 * plan.ticks))
    yield from (Event(time, "change", (LEADER, random.choice(PROMOTION))) for time in range(350, 600, 20))


def changes_in_isolation(random, plan):
    """Of two voters one is cut off for longer than two election timeouts, and the other is asked for changes meanwhile."""
    for begin in range(100, plan.ticks * TICK - 200, 250):
        yield Event(begin, "isolate", (2, 200))
        yield Event(begin + random.randint(130, 190), "change", (1, random.randrange(1 << 16)))


def removal_in_isolation(random, plan):
    """A replica is isolated and removed, and learns of its removal while its disk hangs."""
    lost = random.choice(members(plan))
    begin = random.randrange(50, 100)
    yield Event(begin, "isolate", (lost, 150))
    for gap in range(60, 150, 10):  # until there is a leader that makes it
        yield Event(begin + gap, "change", (LEADER, random.choice(REMOVAL[lost])))
    yield Event(begin + 145, "slow_disk", (lost, 100, 300))


def leaders_that_leave(random, plan):
    """The leader of two is removed, and cut off about when it commits that."""
    begin = random.randrange(60, 100)
    for leader in members(plan):
        yield Event(begin, "change", (leader, random.choice(REMOVAL[leader])))
    yield Event(begin + random.randrange(5, 20), "isolate", (LEADER, 200))


def slow_membership_changes(random, plan):
    """As `membership_changes`; changes take long to be applied."""
    yield from membership_changes(random, plan)
    yield from repeatedly(random, plan, 4, "slow_apply", members(plan), (20, 60), range(50, 150))


def joint_leaders_lost(random, plan):
    """Leaders are isolated while the membership is joint."""
    yield from requests(random, plan, "put", every=6)
    for event in repeatedly(random, plan, 12, "change", LEADER, JOINT):
        yield event
        yield Event(event.time + random.randint(20, 50), "isolate", (LEADER, random.randrange(60, 100)))


def removal_with_witness(random, plan):
    """A voter is removed, and its leader is isolated. Only the leader knows that this is committed: the witness crashed."""
    time = random.randrange(150, 200)
    yield Event(time, "change", (LEADER, random.choice(VOTER_REMOVAL)))
    cut_off = time + random.randint(6, 12)
    yield Event(cut_off, "isolate", (LEADER, random.randrange(120, 200)))
    yield Event(cut_off, "crash", (plan.voters + 1, 1.0, random.randrange(1, 20)))


def failing_transfers(random, plan):
    """Leaders transfer their leadership to replicas that are isolated before or after, or lag."""
    yield from requests(random, plan, "put")
    for event in repeatedly(random, plan, 8, "transfer", LEADER, members(plan)):
        yield event
        successor = event.args[1]
        yield Event(
            max(event.time + random.randint(-10, 8), 0), "isolate", (successor, random.randrange(20, 150))
        )


def laggards(random, plan, *kinds):
    """Replicas fall so far behind that they need a snapshot."""
    yield from requests(random, plan, *(kinds or ("put",)), every=2, of_leader=0.5)
    for time in range(100, plan.ticks * TICK, 50):
        yield Event(
            time + random.randrange(50), "isolate", (random.choice(members(plan)), random.randrange(15, 45))
        )


def slow_snapshot_loads(random, plan):
    """As `laggards`; loading the snapshot takes long, and its sender is isolated."""
    for event in laggards(random, plan):
        yield event
        if event.kind == "isolate":
            back = event.time + event.args[1]
            yield Event(back - 1, "slow_apply", (event.args[0], random.randrange(50, 100), 150))
            yield Event(back + random.randrange(30, 80), "isolate", (LEADER, random.randrange(60, 120)))


def crashes_in_writes(random, plan):
    """Replicas crash during their writes, of which a part is kept."""
    yield from requests(random, plan, "put", every=4)
    yield from repeatedly(
        random, plan, 3, "crash_in_write", members(plan), 1, ("a part is kept",), range(1, 60)
    )


def repeated_commands(random, plan, clients=3):
    """Clients with sessions often get no answer, and repeat their commands at other replicas."""
    who = range(FIRST_WITH_SESSION, FIRST_WITH_SESSION + clients)
    yield from repeatedly(random, plan, 1, "once", who, (LEADER, *members(plan)), ("a", "b"), 0.1)
    yield from repeatedly(random, plan, 8, "isolate", LEADER, range(20, 60))
    yield from repeatedly(random, plan, 12, "crash", members(plan), (0.0, 1.0), range(1, 60))


def evicted_sessions(random, plan):
    """As `repeated_commands`, with more clients than sessions, and replicas that need snapshots."""
    yield from repeated_commands(random, plan, clients=6)
    yield from laggards(random, plan)


def crashes_with_snapshots(random, plan):
    """Replicas that often take snapshots crash, also during their writes."""
    yield from crashes_in_writes(random, plan)
    yield from restarts(random, plan)
    yield from laggards(random, plan)


def growing_laggards(random, plan):
    """As `laggards`; registers only grow, so a later command does not hide a skipped one."""
    return laggards(random, plan, "add")


def growing_registers(random, plan):
    """As `crashes_with_snapshots`; registers only grow, so a later command does not hide an error."""
    yield from (event for event in crashes_with_snapshots(random, plan) if "put" not in event.args)


def unheard_transfers(random, plan):
    """A leader transfers its leadership, and receives no messages about the outcome."""
    yield from requests(random, plan, "put", every=10, timeout=0.2)
    yield from requests(random, plan, "get", every=2, timeout=0.2)
    for event in repeatedly(random, plan, 15, "transfer", LEADER, members(plan)):
        for other in members(plan):
            yield Event(event.time, "cut", (other, LEADER, False, 100))
        yield event


def clogged_lanes(random, plan):
    """Lanes of leaders fill up, and lose their connections."""
    yield from requests(random, plan, "put", "get", every=3, of_leader=0.5)
    yield from repeatedly(random, plan, 2, "clog", LEADER, members(plan), range(10, 60))
    yield from repeatedly(random, plan, 3, "disconnect", LEADER, members(plan))
    yield from repeatedly(random, plan, 12, "isolate", LEADER, range(10, 80))


def restarted_leaders(random, plan):
    """Leaders restart, and are elected before their vote is durable where they are the only voter."""
    yield from requests(random, plan, "put", every=3, of_leader=1.0)
    yield from repeatedly(random, plan, 4, "crash", LEADER, 1.0, range(1, 10))


def busy_leaders(random, plan):
    """Leaders have more to write than their store takes, and full lanes."""
    yield from requests(random, plan, "put", every=1, of_leader=1.0)
    yield from repeatedly(random, plan, 2, "clog", LEADER, members(plan), range(10, 60))


def clogged_proposals(random, plan):
    """As `clogged_lanes`, with lanes from all members to their leader."""
    yield from clogged_lanes(random, plan)
    yield from repeatedly(random, plan, 2, "clog", members(plan), LEADER, range(10, 60))


def restarted_voters(random, plan):
    """A follower loses its leader and campaigns, and a voter that would refuse its vote restarts."""
    yield from requests(random, plan, "get", every=4, timeout=0.2)
    for time in range(250, plan.ticks * TICK, 300):
        lost, voter = random.sample(members(plan), 2)
        yield Event(time, "cut", (LEADER, lost, True, 300))
        back = time + random.randrange(150, 220)
        yield Event(back, "cut", (voter, LEADER, True, 80))
        yield Event(back, "crash", (voter, 1.0, 1))


FAST_ELECTIONS = {"given": {"config": FAST}}
ISOLATED_LEADERS = {"given": THREE | {"config": NARROW}, "rig": isolated_leaders}
LAGGING = {"given": THREE | {"config": NARROW | COMPACT}, "rig": laggards}
SESSIONS_REPEATED = {"given": THREE | {"config": NARROW}, "rig": repeated_commands, "hosts": "node"}
SESSIONS_EVICTED = {"given": THREE | {"config": NARROW | COMPACT}, "rig": evicted_sessions, "hosts": "node"}
SNAPSHOTS_CRASH = {
    "given": THREE | {"config": NARROW | COMPACT},
    "rig": crashes_with_snapshots,
    "hosts": "node",
}
CLOSE_ELECTIONS = {"given": {"voters": 5, "config": TIED}, "rig": close_elections}

# -- votes and terms -----------------------------------------------------------------------------------------------


@mutant("a vote is granted twice in a term", "INV8 a vote stands", **FAST_ELECTIONS)
def _(change):
    @change.handlers.wrap(M.REQUEST_VOTE)
    def forget(raft, message, inner):
        raft.vote = 0
        inner(raft, message)


@mutant("a vote is granted but not recorded", "INV10", **FAST_ELECTIONS)
def _(change):
    @change.handlers.wrap(M.REQUEST_VOTE)
    def forget(raft, message, inner):
        before = raft.vote
        inner(raft, message)
        raft.vote = before


@mutant("a vote is sent before it is durable", "INV10", **FAST_ELECTIONS)
def _(change):
    @change.around(Outbox, "hand_out")
    def hurry(inner, outbox, ready, *, hold):
        inner(outbox, ready, hold=hold)
        votes = [each for each in ready.messages_after_save if each.type is M.REQUEST_VOTE_RESP]
        ready.messages += votes
        ready.messages_after_save = [each for each in ready.messages_after_save if each not in votes]


@mutant("a term is sent before it is durable", "INV10", **FAST_ELECTIONS)
def _(change):
    @change.around(Outbox, "hand_out")
    def hurry(inner, outbox, ready, *, hold):
        inner(outbox, ready, hold=False)


@mutant("a term without a vote is not saved", "INV10")
def _(change):
    @change.around(Raft, "_hand_out_state")
    def spare(inner, raft, ready):
        inner(raft, ready)
        if ready.must_save and not raft.vote:
            ready.must_save = False
            raft._unsaved_votes.pop()


@mutant("a restart forgets the vote", "INV9", **CLOSE_ELECTIONS)
def _(change):
    @change.around(Raft, "__init__")
    def forget(inner, raft, *args, **options):
        inner(raft, *args, **options)
        raft.vote = 0


@mutant("a restart forgets the term", "INV8 terms never fall", **FAST_ELECTIONS)
def _(change):
    @change.around(Raft, "__init__")
    def forget(inner, raft, *args, **options):
        inner(raft, *args, **options)
        raft.term, raft.vote = raft.log.last_term, 0


@mutant("a candidate's log is not compared", "INV4", **ISOLATED_LEADERS)
def _(change):
    change.patch(RaftLog, "is_up_to_date", lambda log, term, index: True)


@mutant("only the last term of a candidate's log is compared", "INV4", **ISOLATED_LEADERS)
def _(change):
    change.patch(RaftLog, "is_up_to_date", lambda log, term, index: term >= log.last_term)


@mutant("the index of a candidate's log counts before its term", "INV4", **ISOLATED_LEADERS)
def _(change):
    def longer(log, term, index):
        return (index, term) >= (log.last_index, log.last_term)

    change.patch(RaftLog, "is_up_to_date", longer)


@mutant("a pre-vote raises the term", "INV16", given={"config": {"pre_vote": True}})
def _(change):
    change.patch(terms, "_asks_ahead", lambda message: False)


@mutant("a pre-vote is recorded as a vote", "INV16", given={"config": {"pre_vote": True}})
def _(change):
    @change.handlers.wrap(M.REQUEST_PRE_VOTE)
    def note(raft, message, inner):
        inner(raft, message)
        raft.vote = raft.vote or message.sender


@mutant("a pre-vote resets the voter's election timer", "INV16", given={"config": {"pre_vote": True}})
def _(change):
    @change.handlers.wrap(M.REQUEST_PRE_VOTE, State.FOLLOWER)
    def put_off(raft, message, inner):
        inner(raft, message)
        raft.timers.election_elapsed = 0


@mutant("a voter is counted twice", "INV1", given={"voters": 5}, weather=STORMY)
def _(change):
    def count(raft, answer):
        raft.votes[-1 - len(raft.votes)] = not answer.reject
        granted = sum(raft.votes.values())
        return Vote.WON if granted >= quorum.majority(len(raft.voters)) else Vote.PENDING

    change.patch(election, "_count", count)


@mutant(
    "votes of an earlier term count",
    "INV1 a majority elects",
    **CLOSE_ELECTIONS,
)
def _(change):
    @change.around(Raft, "_reset")
    def keep(inner, raft, term):
        votes = {voter: granted for voter, granted in raft.votes.items() if granted}
        inner(raft, term)
        raft.votes = votes


@mutant(
    "a late vote is counted in the next term",
    "INV1 a majority elects",
    **CLOSE_ELECTIONS,
    rare=True,
    weather=LATE,
)
def _(change):
    @change.around(terms, "_refuse_older")
    def listen(inner, raft, message):
        return None if message.type is M.REQUEST_VOTE_RESP else inner(raft, message)


@mutant(
    "a leader of an older term is followed",
    "INV8 terms never fall",
    "INV34 a follower says",
    **ISOLATED_LEADERS,
)
def _(change):
    @change.around(terms, "_refuse_older")
    def listen(inner, raft, message):
        return None if message.type.traits.from_leader else inner(raft, message)


@mutant("a leader does not step down in a newer term", "INV26", "V11 a transfer", **ISOLATED_LEADERS)
def _(change):
    @change.around(terms, "_adopt")
    def stay(inner, raft, message):
        if raft.state is not State.LEADER:
            inner(raft, message)


@mutant(
    "half of the voters count as a majority",
    "INV1 a majority elects",
    given={"voters": 4, "config": FAST},
)
def _(change):
    change.patch(quorum, "majority", lambda size: (size + 1) // 2)


# -- elections -----------------------------------------------------------------------------------------------------


@mutant(
    "a replica votes in its leader's lease",
    "INV20 a lease",
    given=THREE | {"config": CHECK_QUORUM_ON},
    rig=cut_followers,
)
def _(change):
    change.patch(terms, "_in_lease", lambda raft: False)


@mutant(
    "CheckQuorum is off although it is configured",
    "INV20 a leader",
    given={"config": CHECK_QUORUM_ON},
    rig=long_isolation,
)
def _(change):
    @change.handlers.on(M.CHECK_QUORUM, State.LEADER, replace=True)
    def nothing(raft, message):
        pass


@mutant(
    "CheckQuorum counts peers that were heard only once",
    "INV20 a leader",
    given={"config": CHECK_QUORUM_ON},
    rig=long_isolation,
)
def _(change):
    @change.handlers.wrap(M.CHECK_QUORUM, State.LEADER)
    def remember(raft, message, inner):
        active = [peer for peer in raft.progress.values() if peer.active]
        inner(raft, message)
        for peer in active:
            peer.active = True


@mutant(
    "a replica campaigns with an unapplied change",
    "INV18 no campaign",
    "INV15 successive",
    **FAST_ELECTIONS,
    weather={"apply": 15},
    rig=slow_membership_changes,
)
def _(change):
    change.patch(RaftLog, "unapplied_change", lambda log: False)


@mutant(
    "a replica campaigns before its snapshot is loaded",
    "INV18 no campaign",
    given=THREE | {"config": NARROW | COMPACT},
    weather=CLEAR | {"apply": 5},
    hosts="core",
    rig=slow_snapshot_loads,
)
def _(change):
    change.patch(
        Raft,
        "promotable",
        property(lambda raft: raft.base_state is State.FOLLOWER and raft.membership.is_voter(raft.id)),
    )


@mutant("a removed replica campaigns", "INV17", **FAST_ELECTIONS, rig=membership_changes)
def _(change):
    change.patch(
        Raft,
        "promotable",
        property(lambda raft: raft.base_state is State.FOLLOWER and raft.log.pending_snapshot is None),
    )


def campaign_as(change, state):
    """Let replicas in a state that never campaigns do so."""
    change.patch(Raft, "promotable", property(lambda raft: raft.log.pending_snapshot is None))
    change.patch(Raft, "_leave_for", lambda raft, state: None)

    @change.handlers.on(M.LOCAL_TICK, state, replace=True)
    def run_for_office(raft, tick):
        clock.tick_non_voter(raft, tick)
        if raft.timers.election_elapsed >= raft.timers.randomized_timeout:
            election.campaign(raft, tick)


@mutant("an observer campaigns", "INV17", given={**WITH_OBSERVER, "config": FAST})
def _(change):
    campaign_as(change, State.OBSERVER)


@mutant("a witness campaigns", "INV17", given={**WITH_WITNESS, "config": FAST})
def _(change):
    campaign_as(change, State.WITNESS)


@mutant("a campaign that failed is never tried again", "INV26", given={"voters": 2})
def _(change):
    @change.handlers.wrap(M.LOCAL_TICK, State.PRE_CANDIDATE, State.CANDIDATE)
    def wait(raft, tick, inner):
        tick.reject = True
        inner(raft, tick)


# -- commits -------------------------------------------------------------------------------------------------------


@mutant("an entry of an older term is committed by counting", "INV11 counting", **ISOLATED_LEADERS)
def _(change):
    def own_commit(raft):
        index = quorum.joint_committed(raft.electorate, raft.match_of)
        return index <= raft.log.last_index and raft.log.commit_to(index)

    change.patch(commit, "commit", own_commit)


@mutant("a new leader commits all that it inherited", "INV11", **ISOLATED_LEADERS)
def _(change):
    @change.around(Raft, "become_leader")
    def commit(inner, raft):
        inherited = raft.log.last_index
        inner(raft)
        raft.log.commit_to(inherited)


@mutant("a minority commits", "INV11 a majority", given={"voters": 5})
def _(change):
    change.patch(quorum, "committed", lambda voters, match: sorted(map(match, voters))[-2:][0])


def commit_with(change, others):
    """Let `others(raft)` count for commits too."""

    def own_commit(raft):
        voters, outgoing = raft.electorate
        index = quorum.joint_committed((voters | others(raft), outgoing), raft.match_of)
        own = index <= raft.log.last_index and raft.log.term(index) == raft.term
        return own and raft.log.commit_to(index)

    change.patch(commit, "commit", own_commit)


@mutant(
    "observers count for commits",
    "INV11 a majority",
    given={"voters": 3, "observers": 2, "config": FAST},
)
def _(change):
    commit_with(change, lambda raft: raft.membership.observers)


@mutant("a removed voter counts as if it held everything", "INV11 a majority", rig=membership_changes)
def _(change):
    @change.around(Raft, "match_of")
    def trust(inner, raft, replica):
        return inner(raft, replica) if replica in raft.progress else raft.log.last_index

    commit_with(change, lambda raft: raft.membership.removed)


@mutant("the leader's copy counts before it is durable", "INV11 a majority", "INV12 match is durable")
def _(change):
    @change.around(Raft, "append_entries")
    def count(inner, raft, runs):
        inner(raft, runs)
        if raft.id in raft.progress:
            raft.progress[raft.id].accepted(raft.log.last_index)


@mutant("a leader sends its last index as the commit index", "INV11 only leaders commit", "INV38")
def _(change):
    @change.around(Raft, "send")
    def boast(inner, raft, message):
        if message.type is M.REPLICATE:
            message.commit = raft.log.last_index
        inner(raft, message)


@mutant("a heartbeat carries the leader's whole commit index", "INV6 a heartbeat")
def _(change):
    @change.around(Raft, "send")
    def boast(inner, raft, message):
        if message.type is M.HEARTBEAT:
            message.commit = raft.log.committed
        inner(raft, message)


@mutant(
    "a follower commits entries that it has not compared",
    "INV5 committed",
    "INV11",
    "INV19",
    **ISOLATED_LEADERS,
)
def _(change):
    @change.handlers.wrap(M.REPLICATE, State.FOLLOWER)
    def commit(raft, message, inner):
        raft.log.commit_to(min(message.commit, raft.log.last_index))
        inner(raft, message)


@mutant("the commit index in a vote request is not checked", "INV5", "INV11", **ISOLATED_LEADERS)
def _(change):
    def believe(raft, message):
        if raft.state is not State.LEADER:
            raft.log.commit_to(min(message.commit, raft.log.last_index))

    change.patch(election, "learn_commit", believe)


@mutant("a term begins without an empty entry", "INV26", "V10", **ISOLATED_LEADERS)
def _(change):
    @change.around(Raft, "append_entries")
    def spare(inner, raft, runs):
        if [run.kinds for run in runs] != [bytes([EntryKind.NO_OP])]:
            inner(raft, runs)


# -- the log -------------------------------------------------------------------------------------------------------


@mutant("an acknowledgement is sent before the entries are durable", "INV10", "INV12 match is durable")
def _(change):
    change.patch(M.REPLICATE_RESP, "traits", replace(M.REPLICATE_RESP.traits, after_write=False))


@mutant("a late append truncates acknowledged entries", "INV14 matching", "INV12", "INV11", weather=STORMY)
def _(change):
    @change.around(replication, "_take_in")
    def cut(inner, raft, message):
        entries = Entries.of(message.entries)
        if entries and message.log_index >= raft.log.committed:
            raft.log.replace_from(message.log_index + 1, entries)
        inner(raft, message)


@mutant("committed entries are truncated", "INV14 committed", "INV6", weather=STORMY)
def _(change):
    @change.handlers.wrap(M.REPLICATE, State.FOLLOWER)
    def cut(raft, message, inner):
        log, entries = raft.log, Entries.of(message.entries)
        if entries and message.log_index < log.committed and log.matches(message.log_index, message.log_term):
            committed, log.committed = log.committed, 0
            log.replace_from(message.log_index + 1, entries)
            log.committed = min(committed, log.last_index)
        inner(raft, message)


@mutant("the entry before an append is not compared", "INV3", "INV5", **ISOLATED_LEADERS)
def _(change):
    change.patch(RaftLog, "matches", lambda log, index, term: index <= log.last_index)


@mutant(
    "entries that conflict with the leader's are kept",
    "INV5",
    "INV10",
    "INV11",
    "INV12",
    "V11",
    "ProtocolViolation",
    **ISOLATED_LEADERS,
)
def _(change):
    @change.around(RaftLog, "conflict")
    def overlook(inner, log, entries):
        found = inner(log, entries)
        return found if found > log.last_index else 0


@mutant(
    "a write of truncated entries confirms the entries that replaced them",
    "INV7 applied entries are durable",
    "INV12",
    "INV10",
    given=THREE | {"config": NARROW},
    weather={"disk": 5, "linger": 0},
    rig=slow_isolated_leaders,
)
def _(change):
    @change.around(RaftLog, "_truncate")
    def keep(inner, log, index):
        writes = [list(write) for write in log._writes]
        inner(log, index)
        for write, before in zip(log._writes, writes, strict=True):
            write[1] = before[1]


@mutant("a new leader truncates the entries that it inherited", "INV2", "INV4", **ISOLATED_LEADERS)
def _(change):
    @change.around(Raft, "become_leader")
    def cut(inner, raft):
        if raft.log.last_index > raft.log.committed:
            raft.log._truncate(raft.log.committed + 1)
        inner(raft)


@mutant("entries are applied before they are committed", "INV7 applied, handed out")
def _(change):
    change.patch(
        RaftLog, "appliable", lambda log, ahead=0: log.applying if log.pending_snapshot else log.stable
    )


@mutant(
    "entries are applied before they are durable",
    "INV7 applied entries are durable",
    given={"config": {"apply_unpersisted_limit": 0}},
    weather={"disk": 15},
)
def _(change):
    change.patch(
        RaftLog, "appliable", lambda log, ahead=0: log.applying if log.pending_snapshot else log.committed
    )


@mutant("an entry is applied twice", "INV5 applied once")
def _(change):
    @change.around(RaftLog, "applied_to")
    def repeat(inner, log, index):
        inner(log, index)
        if log.applying == index and log.pending_snapshot is None and index > log.first_index:
            log.applying = index - 1


# -- a leader and its peers ----------------------------------------------------------------------------------------


@mutant("a late acknowledgement lowers match", "INV12 match never falls", weather=STORMY)
def _(change):
    @change.around(Progress, "accepted")
    def lower(inner, peer, index):
        news = inner(peer, index)
        if not news and 0 < index < peer.match:
            peer.match = index
        return news


@mutant("a rejection lowers next below match", "INV12 match < next", weather=STORMY)
def _(change):
    @change.around(Progress, "rejected")
    def lower(inner, peer, rejected, hint):
        news = inner(peer, rejected, hint)
        if rejected == 0 or hint < peer.match:
            peer.next = max(1, min(rejected, hint + 1))
        return news


@mutant("the window is never freed", "INV13 the window")
def _(change):
    change.patch(Inflight, "free_to", lambda window, index: None)


@mutant(
    "a full window is never probed",
    "INV26",
    given={"config": {"max_inflight_messages": 1}},
    weather={"loss": 0.3},
)
def _(change):
    change.patch(sending, "send_empty", lambda raft, replica, peer: None)


@mutant("an answered heartbeat does not unpause a peer", "INV26", weather={"loss": 0.3})
def _(change):
    def hear(peer):
        peer.active = True

    change.patch(Progress, "heard", hear)


@mutant("a leader never probes after a loss", "INV26", weather={"loss": 0.3})
def _(change):
    change.patch(replication, "_step_back", lambda raft, ack, peer: None)


@mutant("a lagging peer is not sent the missing entries", "INV26", weather={"loss": 0.3, "lanes": 0})
def _(change):
    @change.handlers.on(M.HEARTBEAT_RESP, State.LEADER, replace=True)
    def only_listen(raft, answer):
        raft.progress[answer.sender].heard()
        reads.count_confirmation(raft, answer)


# -- snapshots -----------------------------------------------------------------------------------------------------


@mutant(
    "a snapshot lets the commit index go back",
    "INV6",
    "INV7",
    given=THREE | {"config": NARROW | COMPACT},
    weather={"duplication": 0.5, "delay": 0.4, "reordering": True},
    hosts="core",
    rig=laggards,
)
def _(change):
    def take_in(raft, snapshot):
        raft.log.restore(snapshot)
        raft.switch_membership(snapshot.membership)
        raft.reset_progress()

    change.patch(snapshots, "_fits", lambda raft, snapshot: True)
    change.patch(snapshots, "_take_in", take_in)


@mutant(
    "the outcome of a snapshot is ignored",
    "INV26",
    given=THREE | {"config": NARROW | COMPACT},
    weather={"loss": 0.3},
    hosts="core",
    rig=laggards,
)
def _(change):
    @change.handlers.on(M.SNAPSHOT_STATUS, State.LEADER, replace=True)
    def ignore(raft, report):
        pass


@mutant(
    "the log is compacted before its snapshot is durable",
    "CorruptData",
    hosts="core",
    given=THREE | {"config": NARROW | COMPACT},
    weather={"disk": 15},
    rig=isolated_leaders,
)
def _(change):
    @change.around(CoreHost, "snapshot")
    def hurry(inner, host, overhead):
        write = host.disk.write

        def compact_first(keep, done):
            done()
            write(keep, lambda: None)

        with mock.patch.object(host.disk, "write", compact_first):
            inner(host, overhead)


@mutant(
    "a snapshot holds the membership of an earlier one",
    "INV24",
    "INV19",
    hosts="core",
    given={"config": COMPACT},
    rig=membership_changes,
)
def _(change):
    @change.around(CoreHost, "_compact")
    def forget(inner, host, snapshot, overhead):
        inner(host, replace(snapshot, membership=host.simulation.first_members), overhead)


@mutant(
    "a restart applies the log to a state that holds it already",
    "NotLinearizable",
    "V6",
    hosts="core",
    given={"config": {"snapshot_entries": 0}},
    rig=restarts,
)
def _(change):
    @change.around(CoreHost, "start")
    def keep(inner, host):
        machine = host.machine
        inner(host)
        if host.log.snapshot.index == 0:
            host.machine = machine


# -- reads ---------------------------------------------------------------------------------------------------------


@mutant(
    "a read is served before the first commit of the term",
    "INV21",
    "NotLinearizable",
    given={"config": FAST | {"skip_commit_broadcast": True, "heartbeat_ticks": 2}},
    rig=leader_changes,
)
def _(change):
    change.patch(Raft, "has_committed_in_term", property(lambda raft: True))


@mutant(
    "a read is served without a quorum",
    "INV21",
    "NotLinearizable",
    given=THREE | {"config": NARROW},
    rig=long_isolation,
)
def _(change):
    change.patch(reads, "_holds_lease", lambda raft: True)


@mutant(
    "a read is confirmed by any answer",
    "INV21",
    "NotLinearizable",
    given=THREE | {"config": NARROW},
    weather=LATE,
    rig=cut_followers,
)
def _(change):
    @change.handlers.wrap(M.HEARTBEAT_RESP, State.LEADER)
    def confuse(raft, answer, inner):
        answer.hint, answer.hint_high = raft.reads.newest
        inner(raft, answer)


@mutant("a follower confirms its reads itself", "INV21", "NotLinearizable", rig=leader_changes)
def _(change):
    @change.handlers.on(M.READ_INDEX, State.FOLLOWER, replace=True)
    def confirm(raft, ask):
        raft.outbox.reads.append(ReadReady(raft.log.committed, (ask.hint, ask.hint_high)))


@mutant(
    "a read does not wait until its index is applied",
    "NotLinearizable",
    hosts="core",
    weather={"apply": 5},
    rig=slow_machines,
)
def _(change):
    @change.around(CoreHost, "_answer_reads")
    def hurry(inner, host):
        host._reads = {
            number: (query, answer, at if at is None else 0)
            for number, (query, answer, at) in host._reads.items()
        }
        inner(host)


@mutant(
    "a node's read does not wait until its index is applied",
    "NotLinearizable",
    hosts="node",
    weather={"apply": 5},
    rig=slow_machines,
)
def _(change):
    @change.around(ReadRequests, "due")
    def hurry(inner, waiting, applied):
        return inner(waiting, 1 << 62)


@mutant(
    "a lease is not checked",
    "INV21",
    "NotLinearizable",
    given={"ticks": 40, "config": LEASES},
    weather=CLEAR,
    rig=long_isolation,
)
def _(change):
    change.patch(reads, "_holds_lease", lambda raft: True)


def last_confirmed(raft):
    """Return the tick at which the newest heartbeat that a quorum answered was sent."""
    stamps = raft.reads.lease_stamps
    return quorum.joint_committed(
        raft.electorate, lambda replica: raft.timers.ticks if replica == raft.id else stamps.get(replica, 0)
    )


@mutant(
    "a lease outlasts the election timeout",
    "INV21",
    "NotLinearizable",
    given={"ticks": 40, "config": LEASES},
    weather=CLEAR,
    rig=long_isolation,
)
def _(change):
    def lasts(raft):
        start = last_confirmed(raft)
        return start > 0 and raft.timers.ticks - start < 2 * raft.config.election_ticks

    change.patch(reads, "_holds_lease", lasts)


@mutant(
    "a lease outlasts its leader's transfer",
    "INV21",
    "NotLinearizable",
    given={"voters": 3, "ticks": 50, "config": LEASES},
    weather=CLEAR,
    rig=unheard_transfers,
)
def _(change):
    @change.around(reads, "_holds_lease")
    def keep(inner, raft):
        raft.reads.lease_revoked = False
        return inner(raft)


@mutant(
    "a restart forgets the lease that was confirmed",
    "INV21",
    "NotLinearizable",
    given=THREE | {"ticks": 80, "config": LEASES | {"election_ticks": 10}},
    weather=CLEAR,
    rig=restarted_voters,
)
def _(change):
    change.patch(Raft, "_end_of_forgotten_lease", lambda raft: 0)


@mutant(
    "reads before the first commit of a term are never answered",
    "V10",
    "INV26",
    given=THREE | {"config": NARROW},
    rig=cut_followers,
)
def _(change):
    change.patch(reads, "answer_postponed", lambda raft: None)


# -- transfers -----------------------------------------------------------------------------------------------------


@mutant("a transfer does not stop proposals", "INV28 a transfer stops", rig=failing_transfers)
def _(change):
    @change.around(proposals, "_reason_to_refuse")
    def accept(inner, raft, entries):
        target, raft.transfer.target = raft.transfer.target, 0
        refusal = inner(raft, entries)
        raft.transfer.target = target
        return refusal


@mutant("a transfer is never given up", "INV28 a transfer ends", rig=failing_transfers)
def _(change):
    change.patch(transfer, "tick", lambda raft: None)


@mutant(
    "a transfer that was given up still lets its target campaign",
    "INV28 only the successor is asked",
    rig=failing_transfers,
)
def _(change):
    @change.around(Raft, "give_up_transfer")
    def remember(inner, raft, because):
        raft.once_wanted = raft.transfer.target or getattr(raft, "once_wanted", 0)
        inner(raft, because)

    @change.around(transfer, "hand_over_when_caught_up")
    def hand_over(inner, raft, replica):
        if replica == getattr(raft, "once_wanted", 0) and raft.match_of(replica) == raft.log.last_index:
            raft.once_wanted = 0
            raft.send(Message(M.TIMEOUT_NOW, to=replica))
        return inner(raft, replica)


@mutant(
    "a transfer that was given up still stops proposals", "INV28 only a transfer stops", rig=failing_transfers
)
def _(change):
    @change.around(Raft, "give_up_transfer")
    def remember(inner, raft, because):
        raft.once_wanted = raft.transfer.target or getattr(raft, "once_wanted", 0)
        inner(raft, because)

    @change.around(proposals, "_reason_to_refuse")
    def refuse(inner, raft, entries):
        if getattr(raft, "once_wanted", 0):
            return Refusal.TRANSFERRING
        return inner(raft, entries)


@mutant(
    "the order of a transfer that was given up stays in its lane",
    "INV42 an order",
    given=THREE,
    weather={"order_time": 10 * TICK},
    rig=failing_transfers,
)
def _(change):
    change.patch(Outbox, "recall", lambda outbox, message: None)


@mutant(
    "a node does not recall what its core recalls",
    "INV42 an order",
    given=THREE,
    weather={"order_time": 10 * TICK},
    rig=failing_transfers,
    hosts="node",
)
def _(change):
    change.patch(Router, "recall", lambda router, messages: None)


@mutant(
    "the mark of a transfer outlives its campaign",
    "INV28 only the successor campaigns",
    given={"config": {"election_ticks": 5}},
    rig=failing_transfers,
)
def _(change):
    @change.handlers.wrap(M.TIMEOUT_NOW, State.FOLLOWER)
    def keep(raft, message, inner):
        inner(raft, message)
        raft.was_asked = True

    for state in (State.FOLLOWER, State.PRE_CANDIDATE, State.CANDIDATE):

        @change.handlers.wrap(M.ELECTION, state)
        def by_order(raft, event, inner):
            inner(raft, replace(event, hint=raft.id) if getattr(raft, "was_asked", False) else event)


# -- membership ----------------------------------------------------------------------------------------------------


@mutant(
    "a membership takes effect when it is appended", "INV15 a change takes effect", rig=membership_changes
)
def _(change):
    @change.around(RaftLog, "append")
    def note(inner, log, run):
        inner(log, run)
        log.logged = [*getattr(log, "logged", []), *changes((run,))]

    @change.around(Raft, "ready")
    def switch(inner, raft):
        for entry in getattr(raft.log, "logged", ()):
            after = confchange.decide(raft.membership, entry, raft.config)
            if not isinstance(after, str):
                raft.switch_membership(after)
        raft.log.logged = []
        return inner(raft)


@mutant("two membership changes are in progress at once", "INV15 one change", rig=membership_changes)
def _(change):
    change.patch(membership, "reason_to_refuse", lambda raft, payload: None)


@mutant(
    "a new leader forgets the change that it inherited",
    "INV15 one change",
    **FAST_ELECTIONS,
    rig=membership_changes,
)
def _(change):
    @change.around(Raft, "become_leader")
    def forget(inner, raft):
        inner(raft)
        raft.pending_change_index = 0


@mutant("a joint membership is left as soon as it is entered", "INV15 successive", rig=membership_changes)
def _(change):
    @change.around(confchange, "enter_joint")
    def skip(inner, members, changes, *, auto_leave):
        return confchange.leave_joint(inner(members, changes, auto_leave=auto_leave))


@mutant("a joint membership is never left", "INV26", rig=membership_changes)
def _(change):
    change.patch(membership, "leave_when_due", lambda raft: None)


@mutant(
    "a joint membership commits by its new half alone",
    "INV11 a majority",
    given=FIVE | {"config": NARROW},
    weather={"disk": 15},
    rig=joint_leaders_lost,
)
def _(change):
    change.patch(quorum, "joint_committed", lambda electorate, match: quorum.committed(electorate[0], match))


@mutant(
    "a joint membership commits by its old half alone",
    "INV11 a majority",
    given=FIVE | {"config": NARROW},
    weather={"disk": 15},
    rig=joint_leaders_lost,
)
def _(change):
    def old(electorate, match):
        incoming, outgoing = electorate
        return quorum.committed(outgoing or incoming, match)

    change.patch(quorum, "joint_committed", old)


@mutant(
    "a joint membership commits by either half",
    "INV11 a majority",
    given=FIVE | {"config": NARROW},
    weather={"disk": 15},
    rig=joint_leaders_lost,
)
def _(change):
    def either(electorate, match):
        return max(quorum.committed(half, match) for half in electorate if half)

    change.patch(quorum, "joint_committed", either)


@mutant(
    "a joint membership elects by its new half alone",
    "INV1 a majority elects",
    given=FIVE | {"config": NARROW},
    weather={"disk": 15},
    rig=joint_leaders_lost,
)
def _(change):
    change.patch(quorum, "joint_tally", lambda electorate, votes: quorum.tally(electorate[0], votes))


@mutant(
    "several voters change at once without a joint membership", "INV15 successive", rig=membership_changes
)
def _(change):
    def directly(members, changes, *, auto_leave):
        builder = confchange.MembershipBuilder.of(members)
        for one in changes:
            builder.apply(one)
        return builder.build(members)

    change.patch(confchange, "enter_joint", directly)


@mutant(
    "a witness that receives nothing more counts for CheckQuorum",
    "INV26",
    hosts="node",
    given=WITH_WITNESS | {"observers": 0, "ticks": 40, "config": CHECK_QUORUM_ON},
    weather=CLEAR,
    rig=removal_with_witness,
)
def _(change):
    change.patch(clock, "_waiting_witnesses", lambda raft, heard: set())


@mutant("a witness is given commands", "INV17 a witness", given=WITH_WITNESS)
def _(change):
    change.patch(Run, "without_content", lambda run: run)


# -- hosts ---------------------------------------------------------------------------------------------------------


@mutant("a host sends messages that must wait for the write", "INV10", hosts="core")
def _(change):
    @change.around(CoreHost, "_save")
    def hurry(inner, host, ready):
        host.simulation.send(host, ready.messages_after_save)
        ready.messages_after_save = []
        inner(host, ready)


@mutant("a node sends messages that must wait for the write", "INV10", hosts="node")
def _(change):
    @change.around(NodeActor, "_do")
    def hurry(inner, node, ready):
        node.router.send(ready.messages_after_save)
        ready.messages_after_save = []
        return inner(node, ready)


@mutant(
    "the first completed write confirms all pending writes",
    "INV10",
    "INV11",
    "INV12",
    hosts="core",
    weather={"disk": 15},
)
def _(change):
    @change.around(CoreHost, "_saved")
    def confirm(inner, host):
        if not host._unsaved:
            return
        while len(host._unsaved) > 1:
            host._complete(host._unsaved.popleft())
        inner(host)


@mutant(
    "a node's first completed write confirms all pending writes",
    "INV10",
    "INV11",
    "INV12",
    hosts="node",
    weather={"disk": 15},
)
def _(change):
    @change.around(Persistence, "on_saved")
    def confirm(inner, persistence, done):
        newest = persistence._unsaved[-1][0] if persistence._unsaved else done.ready
        inner(persistence, replace(done, ready=newest))


@mutant("a host forgets its commit index", "INV18 only the newest", hosts="core", rig=membership_changes)
@mutant("a node forgets its commit index", "INV18 only the newest", hosts="node", rig=membership_changes)
def _(change):
    @change.around(Raft, "ready")
    def forget(inner, raft):
        ready = inner(raft)
        if ready.hard_state is not None:
            ready.hard_state = replace(ready.hard_state, commit=0)
        return ready


@mutant(
    "a host writes entries without the commit index that it knows",
    "INV18 only the newest",
    hosts="core",
    seeds=600,
    given={"config": {"max_apply_bytes": 1, "commit_notices": False}},
    weather={"apply": 12, "lanes": 0},
    rig=membership_changes,
)
def _(change):
    @change.around(CoreHost, "_keep")
    def forget(inner, host, ready, state):
        inner(host, ready, ready.hard_state)


def result_now(machine, payload):
    """Return the result that a command would have if it were applied now."""
    copy = InBytes()
    copy.values = dict(machine.values)
    return copy.apply(payload)


@mutant(
    "a result is returned before it is committed",
    "NotLinearizable",
    "INV22",
    hosts="core",
    **ISOLATED_LEADERS,
)
def _(change):
    @change.around(CoreHost, "_save")
    def hurry(inner, host, ready):
        for each in ready.entries.runs:
            for at, payload in enumerate(each.payloads):
                waits = each.origin == host._origin and not each.kinds
                answer = host._waiting.pop(each.key + at, None) if waits else None
                if answer is not None:
                    answer("done", result_now(host.machine, payload))
        inner(host, ready)


@mutant(
    "a node returns a result before it is committed",
    "NotLinearizable",
    "INV22",
    hosts="node",
    **ISOLATED_LEADERS,
)
def _(change):
    @change.around(NodeActor, "_do")
    def hurry(inner, node, ready):
        for each in ready.entries.runs:
            if each.origin == node.clients.pending.origin and not each.kinds:
                machine = node._applier.machine
                node.clients.pending.applied(
                    each, [result_now(machine, payload) for payload in each.payloads]
                )
        return inner(node, ready)


@mutant("a result goes to another proposal", "NotLinearizable", "V11", hosts="core", **ISOLATED_LEADERS)
def _(change):
    @change.around(CoreHost, "_apply_run")
    def confuse(inner, host, run):
        waiting, newest = host._waiting, max(host._waiting, default=0)
        if run.origin == host._origin and run.key in waiting:
            waiting[run.key], waiting[newest] = waiting[newest], waiting[run.key]
        inner(host, run)


@mutant("a node gives a result to another proposal", "NotLinearizable", hosts="node", **ISOLATED_LEADERS)
def _(change):
    @change.around(PendingProposals, "applied")
    def confuse(inner, pending, run, results):
        key = pending._firsts[0] if pending._firsts else run.key
        inner(pending, Run(run.first, run.term, run.payloads, run.kinds, run.origin, key), results)


@mutant(
    "a node treats results of other replicas as its own", "NotLinearizable", hosts="node", **ISOLATED_LEADERS
)
def _(change):
    @change.around(Applier, "_work")
    def confuse(inner, applier, work):
        if isinstance(work, Entries):
            for run in work.runs:
                applier._origin = run.origin or applier._origin
        inner(applier, work)


@mutant("a host waits for its proposals for ever", "V11", "INV26", hosts="core", **FAST_ELECTIONS)
def _(change):
    change.patch(CoreHost, "_expire", lambda host, number: None)


@mutant("a node waits for its proposals for ever", "V11", hosts="node", **FAST_ELECTIONS)
def _(change):
    change.patch(PendingProposals, "expire", lambda pending, now, late: None)
    change.patch(PendingProposals, "overtaken", lambda pending, term: None)


@mutant("a node waits for its leader for ever", "INV26", hosts="node", **FAST_ELECTIONS)
def _(change):
    change.patch(ReadRequests, "expire", lambda waiting, now, tick, late: None)


@mutant("a proposal is forwarded twice", "INV22", **ISOLATED_LEADERS)
def _(change):
    @change.handlers.wrap(M.PROPOSE, State.FOLLOWER)
    def repeat(raft, ask, inner):
        inner(raft, ask)
        if raft.leader_id and not raft.config.disable_proposal_forwarding:
            raft.send(Message(M.PROPOSE, to=raft.leader_id, entries=ask.entries))


@mutant(
    "a refused proposal is appended all the same",
    "INV22",
    given={"config": {"disable_proposal_forwarding": True}},
)
def _(change):
    @change.around(proposals, "refuse_with")
    def log(inner, raft, ask, because):
        inner(raft, ask, because)
        if raft.leader_id and raft.leader_id != raft.id:
            raft.send(Message(M.PROPOSE, to=raft.leader_id, entries=ask.entries))


@mutant(
    "writes that a full store refuses are forgotten",
    "V11",
    "INV7",
    "INV10",
    "INV11",
    "INV12",
    "INV26",
    hosts="node",
    weather={"disk": 15},
    **ISOLATED_LEADERS,
)
def _(change):
    @change.around(Persistence, "save")
    def forget(inner, persistence, ready, tick):
        inner(persistence, ready, tick)
        persistence._stalled = None
        return True


# -- limits and quiescing --------------------------------------------------------------------------------------------


@mutant(
    "applied bytes still count as uncommitted",
    "V10",
    "V11",
    "INV26",
    given={"config": {"max_uncommitted_bytes": 64}},
)
def _(change):
    change.patch(Raft, "_release_uncommitted", lambda raft, low, high: None)


NOTICES = {"config": {"commit_notices": True}}


@mutant("a notice is not clipped to what the peer holds", "INV36", given=NOTICES)
def _(change):
    @change.around(Progress, "notice_owed")
    def whole(inner, peer, commit):
        return commit if inner(peer, commit) or peer.state is ProgressState.REPLICATE else 0


@mutant("a notice is sent to a peer that is probed", "INV36", given=NOTICES)
def _(change):
    @change.around(notices, "_tell")
    def also_in_probe(inner, raft, replica, peer):
        inner(raft, replica, peer)
        owed = min(peer.match, raft.log.committed)
        if replica != raft.id and owed > peer.sent_commit:
            raft.send(Message(M.COMMIT, to=replica, commit=owed))


@mutant("a notice of an older term is accepted", "INV36", "INV8 terms", given=NOTICES, weather={"delay": 0.2})
def _(change):
    @change.around(terms, "_refuse_older")
    def accept(inner, raft, message):
        return None if message.type is M.COMMIT else inner(raft, message)


@mutant("a notice does not count as heard", "INV36", given=NOTICES)
def _(change):
    @change.handlers.wrap(M.COMMIT)
    def only_commit(raft, message, inner):
        elapsed = raft.timers.election_elapsed
        inner(raft, message)
        raft.timers.election_elapsed = elapsed


@mutant("entries carry a commit index clipped to what the peer holds", "INV38", given=NOTICES)
def _(change):
    @change.around(RaftCore, "send")
    def clipped(inner, raft, message):
        if message.type is M.REPLICATE and message.entries:
            message.commit = min(message.commit, raft.match_of(message.to))
        inner(raft, message)


@mutant("the successor campaigns before the others are told of a commit", "INV37 what", given=NOTICES)
def _(change):
    change.patch(transfer, "notices", SimpleNamespace(tell=lambda raft: None))


@mutant(
    "a leader without a quorum steps down without telling what it owes",
    "INV37 what",
    given={"config": {"commit_notices": True, "check_quorum": True}},
    rig=deaf_leaders,
)
def _(change):
    change.patch(NoticeTimer, "slowest", 100 * TICK)
    change.patch(clock, "notices", SimpleNamespace(tell=lambda raft: None))


@mutant(
    "a leader whose disk hangs steps down without telling what it owes",
    "INV37 what",
    given=THREE | {"config": NARROW | {"commit_notices": True}},
    hosts="node",
    rig=leaders_with_slow_disks,
)
def _(change):
    change.patch(NoticeTimer, "slowest", 100 * TICK)
    change.patch(election, "notices", SimpleNamespace(tell=lambda raft: None))


@mutant(
    "a peer that is removed is not told",
    "INV37 a removed",
    given=THREE | {"config": NARROW | {"commit_notices": True}},
    rig=membership_changes,
)
def _(change):
    change.patch(commit, "tells_commits", lambda raft: False)


@mutant("a forwarder waits for the timer", "INV37 a forwarder", given=NOTICES)
def _(change):
    change.patch(Progress, "waits_for_commit", False)


@mutant(
    "a leader sleeps while a peer does not know its commits",
    "INV37 a shard",
    given=THREE | {"ticks": 150, "config": FAST | {"commit_notices": True, "quiesce": True}},
    weather={"lanes": 400, "lane_time": 1},
    rig=followers_behind_clogged_lanes,
)
def _(change):
    change.patch(quiesce, "_may_sleep", lambda raft: raft.state not in quiesce.CAMPAIGNING)


@mutant("a node does not ask for the notices that it owes", "V17", given=NOTICES, hosts="node")
def _(change):
    change.patch(NodeActor, "_ask_for_notice", lambda node: None)


@mutant("an idle shard does not quiesce", "INV27 an idle", given={"config": {"quiesce": True}})
def _(change):
    change.patch(Quiesce, "_enter", lambda quiesce: None)


@mutant("a quiesced shard does not wake", "INV27 a silent", given={"config": {"quiesce": True}})
def _(change):
    change.patch(Quiesce, "note_activity", lambda quiesce: False)


# -- quorums and answers --------------------------------------------------------------------------------------------


@mutant("only entries that all voters hold are committed", "INV26 a majority", given=THREE)
def _(change):
    change.patch(quorum, "committed", lambda voters, match: min(map(match, voters), default=quorum.INFINITY))


@mutant("only an unanimous election is won", "INV26 a majority", given=THREE)
def _(change):
    def unanimous(voters, votes):
        granted = [votes.get(voter) for voter in voters]
        if all(granted):
            return Vote.WON
        return Vote.LOST if False in granted else Vote.PENDING

    change.patch(quorum, "tally", unanimous)


@mutant("a membership change is always refused", "V11 a change")
def _(change):
    change.patch(membership, "reason_to_refuse", lambda raft, payload: Refusal.CHANGE_INVALID)


@mutant("a node does not answer a membership change", "V11 a change", hosts="node")
def _(change):
    change.patch(Clients, "on_changed", lambda clients, change: None)


@mutant("a node does not answer a transfer", "V11", given=THREE, hosts="node")
def _(change):
    change.patch(Transfers, "settle", lambda transfers: None)
    change.patch(Transfers, "_fail", lambda transfers, over, error: None)


@mutant("a successor does not campaign", "V11 a transfer", given=THREE)
def _(change):
    @change.handlers.on(M.TIMEOUT_NOW, State.FOLLOWER, replace=True)
    def nothing(raft, message):
        pass


@mutant("a transfer is answered twice", "V11 a request is answered once", given=THREE, hosts="core")
def _(change):
    @change.around(CoreHost, "_answer")
    def repeat(inner, host, number, outcome, value):
        answer = host._waiting.get(number)
        inner(host, number, outcome, value)
        if answer is not None and outcome != "unknown":
            answer(outcome, value)


# -- crashes and disks ----------------------------------------------------------------------------------------------


@mutant("a write that replaces entries is skipped", "INV10", "INV12", hosts="core", **ISOLATED_LEADERS)
def _(change):
    @change.around(CoreHost, "_keep")
    def spare(inner, host, ready, state):
        replaces = ready.entries and ready.entries.runs[-1].last <= host.log.last_index
        inner(host, replace(ready, entries=Entries()) if replaces else ready, state)


@mutant(
    "the term is written after the entries",
    "INV8 terms never fall",
    hosts="core",
    rare=True,
    seeds=400,
    given=THREE | {"config": NARROW},
    weather={"slow_reads": 0.0, "loss": 0.1},
    rig=crashes_in_writes,
)
def _(change):
    @change.around(CoreHost, "_save")
    def split(inner, host, ready):
        if ready.entries:
            host.disk.write(lambda: host.log.save(Ready(entries=ready.entries)), lambda: None)
        inner(host, ready)


@mutant("a restart forgets the commit index", "INV6", hosts="both", rig=restarts)
def _(change):
    @change.around(RaftLog, "__init__")
    def forget(inner, log, storage, **options):
        inner(log, storage, **options)
        log.committed = max(log.snapshot.index, log._marker[0])


@mutant(
    "a restart begins with a membership older than its snapshot's",
    "V8",
    hosts="core",
    given={"config": COMPACT},
    rig=membership_changes,
)
def _(change):
    @change.around(Raft, "__init__")
    def forget(inner, raft, config, log, **options):
        inner(raft, config, log, **options)
        raft.membership = replace(raft.membership, observers=(), next_observers=())


@mutant("a snapshot lacks the newest command", "V6", "NotLinearizable", hosts="core", **LAGGING)
def _(change):
    @change.around(InBytes, "apply")
    def note(inner, machine, payload):
        machine.before = dict(machine.values)
        return inner(machine, payload)

    @change.around(InBytes, "save")
    def lack(inner, machine):
        older = InBytes()
        older.values = getattr(machine, "before", machine.values)
        return inner(older)


def keep_on_disk(change):
    """Let all nodes have state machines on disk."""

    @change.around(NodeHost, "__init__")
    def choose(inner, host, *args, **options):
        inner(host, *args, **options)
        host._machine = partial(OnDisk, host.own_disk)


# -- sessions and snapshots ------------------------------------------------------------------------------------------


@mutant("a repeated command of a session is applied again", "NotLinearizable", **SESSIONS_REPEATED)
def _(change):
    @change.around(SessionTable, "_update")
    def forget(inner, table, session, request, apply):
        session.kept.pop(request.series, None)
        return inner(table, session, request, apply)


@mutant("a session's result is dropped before its client has it", "NotLinearizable", **SESSIONS_REPEATED)
def _(change):
    @change.around(SessionTable, "_confirm")
    def hurry(inner, table, session, responded_to):
        inner(table, session, responded_to)
        session.kept.pop(responded_to + 1, None)


@mutant("results that a session's client has received are kept", "V10", **SESSIONS_REPEATED, rare=True)
def _(change):
    change.patch(SessionTable, "_confirm", lambda table, session, responded_to: None)


@mutant("a snapshot's sessions are not loaded", "V6", "NotLinearizable", **SESSIONS_EVICTED)
def _(change):
    @change.around(AppliedState, "_take_over")
    def forget(inner, state, source, index):
        sessions = state.sessions
        inner(state, source, index)
        state.sessions = sessions


@mutant("a snapshot's sessions are loaded in another order", "V6", **SESSIONS_EVICTED)
def _(change):
    @change.around(AppliedState, "_take_over")
    def turn_round(inner, state, source, index):
        inner(state, source, index)
        sessions = state.sessions._sessions
        for client in list(sessions)[::-1]:
            sessions.move_to_end(client)


@mutant(
    "a snapshot has the current membership, not that of its index",
    "INV24",
    "V8",
    "INV26",
    hosts="node",
    given={"config": COMPACT},
    weather={"apply": 15},
    rig=membership_changes,
)
def _(change):
    @change.around(Raft, "snapshot_point")
    def now(inner, raft, index):
        point = inner(raft, index)
        return point and replace(point, membership=raft.membership)


@mutant(
    "a snapshot has a higher index than its state",
    "V11 no node fails",
    "V6",
    "NotLinearizable",
    hosts="node",
    weather={"apply": 15},
    given=THREE | {"config": NARROW | COMPACT},
    rig=laggards,
)
def _(change):
    change.patch(Applier, "_check_point", lambda applier, point: None)

    @change.around(Raft, "snapshot_point")
    def boast(inner, raft, given):
        point, index = inner(raft, given), min(raft.log.committed, raft.log.stable)
        return point and replace(point, index=index, term=raft.log.term(index))


@mutant(
    "a snapshot for a peer has the index of the entries handed out, not of those that the state machine was given",
    "V6",
    "NotLinearizable",
    hosts="node",
    given=FIVE | {"ticks": 80, "config": NARROW | COMPACT},
    weather={"loss": 0.1, "duplication": 0.3, "disk": 2, "apply": 2},
    rig=growing_laggards,
)
def _(change):
    keep_on_disk(change)
    change.patch(Applier, "_check_point", lambda applier, point: None)

    @change.around(Raft, "snapshot_point")
    def ahead(inner, raft, given):
        return inner(raft, raft.log.applying)


@mutant(
    "a node compacts its log before the snapshot is recorded",
    "CorruptData",
    "V11",
    weather={"disk": 15, "lanes": 0},
    **SNAPSHOTS_CRASH,
)
def _(change):
    @change.around(SnapshotKeeper, "_record")
    def hurry(inner, keeper, snapshot):
        inner(keeper, snapshot)
        if keeper._unrecorded is None:
            keeper._raft.snapshot_taken(snapshot)
            keeper._compact(snapshot)


@mutant(
    "a leader's snapshot counts as applied before it is loaded",
    "V6",
    "NotLinearizable",
    "INV18",
    **LAGGING | {"hosts": "node"},
)
def _(change):
    change.patch(
        ReceivedSnapshots, "install", lambda received, snapshot: received.on_loaded(SnapshotLoaded(snapshot))
    )


@mutant(
    "a concurrent state machine is captured late",
    "V6",
    "NotLinearizable",
    weather={"apply": 15, "slow_reads": 0.0},
    **SNAPSHOTS_CRASH | {"rig": growing_registers},
)
def _(change):
    change.patch(
        Concurrent, "capture", lambda machine: lambda sink: sink.write(json.dumps(machine.values).encode())
    )


@mutant("a state machine on disk is given commands again", "V11 no node fails", **SNAPSHOTS_CRASH)
def _(change):
    keep_on_disk(change)

    @change.around(OnDisk, "apply_entries")
    def make_durable(inner, machine, entries):
        results = inner(machine, entries)
        machine.sync()
        return results

    @change.around(Applier, "_load")
    def forget(inner, applier, order):
        inner(applier, order)
        applier.state.index = order.snapshot.index


@mutant(
    "the log is compacted although a state machine on disk was not synced",
    "V11 no node fails",
    **SNAPSHOTS_CRASH,
)
def _(change):
    keep_on_disk(change)

    @change.around(Applier, "_save")
    def spare(inner, applier, order):
        with mock.patch.object(OnDisk, "sync"):
            inner(applier, order)


@mutant("a node does not answer a snapshot request", "V10", hosts="node")
def _(change):
    change.patch(SnapshotKeeper, "_answer", lambda keeper, over, error: None)


@mutant("a node never finishes a snapshot", "V10", hosts="node", given={"config": COMPACT})
def _(change):
    @change.around(SnapshotKeeper, "on_recorded")
    def go_on(inner, keeper, done):
        inner(keeper, done)
        keeper._taking = True


@mutant(
    "a snapshot that a newer one replaced counts as damaged",
    "V10",
    weather={"apply": 15, "lanes": 0},
    **LAGGING | {"given": THREE | {"ticks": 60, "config": NARROW | COMPACT}, "hosts": "node"},
)
def _(change):
    @change.around(SnapshotKeeper, "on_damaged")
    def take_for_damaged(inner, keeper, done):
        inner(keeper, replace(done, snapshot=keeper._raft.log.snapshot))


@mutant("a leader's snapshot stays pinned for ever", "V10", **LAGGING | {"hosts": "node"})
def _(change):
    change.patch(ReceivedSnapshots, "_release", lambda received, snapshot: None)


@mutant("the newest snapshot is pruned", "V11 no node fails", "INV26", **SNAPSHOTS_CRASH)
def _(change):
    @change.around(Snapshots, "prune")
    def wipe(inner, files, keep):
        inner(files, keep)
        if keep:
            files.discard(keep)


@mutant(
    "a removed replica does not stop",
    "V13 a removed replica stops",
    hosts="node",
    given=THREE | {"ticks": 100, "config": NARROW},
    rig=membership_changes,
)
def _(change):
    change.patch(NodeActor, "_check_removal", lambda node: None)


@mutant(
    "a removed replica stops before the others know that it was removed",
    "INV26",
    hosts="node",
    given={"voters": 2, "observers": 0, "witnesses": 0, "ticks": 40, "config": NARROW},
    weather=CLEAR,
    rig=leaders_that_leave,
)
def _(change):
    change.patch(removal, "is_dispensable", lambda raft: raft.id in raft.membership.removed)


@mutant(
    "a removed replica does not stop while its disk hangs",
    "V13 a removed replica stops",
    hosts="node",
    given=THREE | {"voters": 4, "ticks": 100, "config": NARROW | {"pre_vote": True}},
    weather=CLEAR | {"disk": 15},
    rig=removal_in_isolation,
)
def _(change):
    @change.around(NodeActor, "_check_removal")
    def wait(inner, node):
        if node.raft.log.pending_snapshot is None:  # which is on disk, and loaded
            inner(node)


# -- a node's inbox and its disk -------------------------------------------------------------------------------------


def waiting_clients(random, plan):
    """More clients than may wait ask replicas that have no leader yet."""
    for client in range(FIRST_WITH_SESSION):
        yield Event(client % 20, "request", (client, random.choice(members(plan)), "a", "put", 9.0))


def stalls(random, plan):
    """Leaders whose disk hangs, again and again, while clients propose."""
    yield from requests(random, plan, "put", every=5)
    yield from repeatedly(random, plan, 8, "slow_disk", LEADER, range(50, 100), 100)


@mutant("a completion is lost", "V10", "V11", "INV26", hosts="node")
def _(change):
    seen = count(1)

    @change.around(Inbox, "complete")
    def lose(inner, inbox, completion):
        if next(seen) % 20:
            inner(inbox, completion)


@mutant("a full inbox refuses completions", "V10", "V11", "INV26", hosts="node", rig=waiting_clients)
def _(change):
    @change.around(Inbox, "complete")
    def refuse(inner, inbox, completion):
        if len(inbox.proposals) < inbox.proposals._max_count:
            inner(inbox, completion)


@mutant("a node keeps the places of completions that it has taken", "V10", hosts="node")
def _(change):
    change.patch(Inbox, "release", lambda inbox: None)


@mutant("a node orders writes without a place for their completion", "V11 no node fails", hosts="node")
def _(change):
    @change.around(Persistence, "_order")
    def forget(inner, persistence, ready):
        with mock.patch.object(Inbox, "reserve"):
            return inner(persistence, ready)


@mutant("a node's proposals have no bound", "V14 queues", hosts="node", rig=waiting_clients)
def _(change):
    @change.around(Lane, "__init__")
    def widen(inner, lane, inbox, unit, *, max_count, **bounds):
        inner(lane, inbox, unit, max_count=1 << 30, **bounds)


@mutant("a hung disk is not noticed", "V15 a leader's disk", hosts="node", rig=stalls, given=THREE)
def _(change):
    change.patch(DiskWatch, "tick", lambda watch, waits_since, written: False)


@mutant(
    "a leader whose disk hangs does not step down",
    "V15 a leader's disk",
    hosts="node",
    rig=stalls,
    given=THREE,
)
def _(change):
    @change.handlers.on(M.DISK_HUNG, State.LEADER, replace=True)
    def stay(raft, event):
        pass


# -- full disks ----------------------------------------------------------------------------------------------------


def full_disks(random, plan):
    """Disks are full again and again, that of the leader too, while clients propose; replicas are isolated or crash."""
    yield from requests(random, plan, "put", "add", every=4, of_leader=0.5)
    yield from repeatedly(random, plan, 6, "full_disk", (LEADER, *members(plan)), (0, 0, 60), range(50, 250))
    yield from repeatedly(random, plan, 15, "isolate", (LEADER, *members(plan)), range(20, 120))


FULL_DISKS = {"given": THREE | {"config": NARROW | {"max_election_ticks": 10}}, "rig": full_disks}


@mutant("a full follower appends nevertheless", "V16", **FULL_DISKS)
def _(change):
    change.patch(room, "admitted", lambda raft, entries: entries)


@mutant("a full follower answers as if it had appended", "INV11 a majority", "INV12 match", **FULL_DISKS)
def _(change):
    @change.handlers.wrap(M.REPLICATE, State.FOLLOWER)
    def boast(raft, message, inner):
        inner(raft, message)
        for sent in raft.outbox.messages:
            if sent.type is M.LOG_FULL and message.entries:
                sent.log_index = message.log_index + len(message.entries)


@mutant("a full follower commits what it has dropped", "ProtocolViolation", "V11 no node fails", **FULL_DISKS)
def _(change):
    @change.handlers.wrap(M.REPLICATE, State.FOLLOWER)
    def commit_all(raft, message, inner):
        inner(raft, message)
        if raft.room.full and raft.log.matches(message.log_index, message.log_term):
            raft.log.commit_to(min(message.commit, message.log_index + len(message.entries)))


@mutant("a full follower refuses its vote", "INV26 a shard without room", **FULL_DISKS)
def _(change):
    @change.handlers.wrap(M.REQUEST_VOTE, State.FOLLOWER)
    def refuse(raft, message, inner):
        if not raft.room.full:
            inner(raft, message)


@mutant("a full follower is silent about it", "INV26 with room again", "INV26", **FULL_DISKS)
def _(change):
    @change.around(room, "accept")
    def say_nothing(inner, raft, message, index):
        if not raft.room.full:
            inner(raft, message, index)


@mutant("a full follower takes no first entry of a term", "INV26 a shard without room", **FULL_DISKS)
def _(change):
    change.patch(room, "_begins_term", lambda raft, run, index: False)


@mutant("a full follower takes any empty entry", "V16", **FULL_DISKS)
def _(change):
    change.patch(room, "_begins_term", lambda raft, run, index: run.first <= index <= run.last)


@mutant("a leader never probes a full peer again", "INV26", **FULL_DISKS)
def _(change):
    change.patch(Progress, "retry", lambda peer: None)


@mutant("a leader probes a full peer with every heartbeat", "INV13 a peer without room", **FULL_DISKS)
def _(change):
    @change.around(Progress, "heard")
    def hurry(inner, peer):
        inner(peer)
        peer.probe_sent = False


@mutant("a leader probes a full peer with every proposal", "INV13 a peer without room", **FULL_DISKS)
def _(change):
    @change.around(Progress, "ran_full")
    def forget_to_wait(inner, peer):
        inner(peer)
        peer.probe_sent = False


@mutant("a leader never learns that a peer has room again", "INV26", **FULL_DISKS)
def _(change):
    @change.around(replication, "_step_forward")
    def keep_the_mark(inner, raft, answer, peer):
        full = peer.full
        inner(raft, answer, peer)
        if full:
            peer.become_probe()
            peer.ran_full()


@mutant("a full leader takes proposals", "V16", **FULL_DISKS)
def _(change):
    @change.around(proposals, "_reason_to_refuse")
    def take(inner, raft, entries):
        refusal = inner(raft, entries)
        return None if refusal is Refusal.DISK_FULL else refusal


@mutant("a full leader keeps its office for ever", "INV26 a majority with room", **FULL_DISKS)
def _(change):
    change.patch(room, "hand_over", lambda raft, replica: None)


@mutant("a full leader hands over to a full voter", "INV28 a successor has room", **FULL_DISKS)
def _(change):
    @change.handlers.wrap(M.LOG_FULL, State.LEADER)
    def hand_over(raft, answer, inner):
        inner(raft, answer)
        if raft.room.full and not raft.transfer.target and raft.membership.is_voter(answer.sender):
            transfer.start(raft, answer.sender)


@mutant("a full leader steps down", "INV26 a shard without room", "INV26", **FULL_DISKS)
def _(change):
    @change.handlers.on(M.DISK_FULL, State.LEADER, replace=True)
    def leave(raft, event):
        raft.room.full = True
        raft.become_follower(raft.term, 0)

    @change.around(Raft, "become_leader")
    def leave_at_once(inner, raft):
        inner(raft)
        if raft.room.full:
            raft.become_follower(raft.term, 0)


@mutant("a full voter campaigns like any other", "INV29", **FULL_DISKS)
def _(change):
    change.patch(room, "campaign_ticks", lambda raft: raft.timers.randomized_timeout)


@mutant("a full voter never campaigns", "INV26 a shard without room", **FULL_DISKS)
def _(change):
    @change.around(room, "campaign_ticks")
    def never(inner, raft):
        return 1 << 30 if raft.room.full else inner(raft)


@mutant("a host does not ask for room", "V16", **FULL_DISKS)
def _(change):
    change.patch(RoomWatch, "judge", lambda watch, entries: None)


@mutant("a host asks for room only at the clock", "V16", **FULL_DISKS)
def _(change):
    @change.around(RoomWatch, "tick")
    def look(inner, watch):
        inner(watch)
        judge(watch, (Entry(payload=b"x"),))

    judge = RoomWatch.judge
    change.patch(RoomWatch, "judge", lambda watch, entries: None)


@mutant("a host never tells that there is room again", "INV26", **FULL_DISKS)
def _(change):
    change.patch(RoomWatch, "tick", lambda watch: None)


# -- flow control and leases ----------------------------------------------------------------------------------------


@mutant(
    "a full window is ignored",
    "INV13 the window is bounded",
    given={"config": {"max_inflight_messages": 1}},
)
def _(change):
    change.patch(Inflight, "full", property(lambda window: False))


@mutant(
    "the bytes of a window are ignored",
    "INV13 the window is bounded",
    given={"config": {"max_message_bytes": 64, "max_inflight_bytes": 64}},
)
def _(change):
    change.patch(Inflight, "full", property(lambda window: len(window) >= window.max_messages))


@mutant("a leader does not wait for the answer to a probe", "INV13 one probe", weather=STORMY)
def _(change):
    def paused(peer):
        return (
            peer.inflight.full
            if peer.state is ProgressState.REPLICATE
            else peer.state is ProgressState.SNAPSHOT
        )

    change.patch(Progress, "paused", property(paused))


@mutant("a leader does not wait for a snapshot in transit", "INV13 a snapshot", hosts="core", **LAGGING)
def _(change):
    def paused(peer):
        return peer.inflight.full if peer.state is ProgressState.REPLICATE else peer.probe_sent

    change.patch(Progress, "paused", property(paused))


@mutant(
    "a pre-vote is granted in the leader's lease",
    "INV20 a lease",
    given=THREE | {"config": CHECK_QUORUM_ON | {"pre_vote": True}},
    rig=cut_followers,
)
def _(change):
    change.patch(M.REQUEST_PRE_VOTE, "traits", replace(M.REQUEST_PRE_VOTE.traits, asks_for_vote=False))


STRICT = {"strict_membership_changes": True, "quiesce": False, "election_ticks": 5}


@mutant(
    "a change is made whose quorum is not heard",
    "INV43 a change",
    given={"config": STRICT},
    rig=membership_changes,
)
def _(change):
    change.patch(reach, "unreachable", lambda raft, after: ())


@mutant(
    "a voter that was heard once counts as heard for ever",
    "INV43 a change",
    given={"config": STRICT | FAST, "voters": 2, "witnesses": 0, "ticks": 100},
    rig=changes_in_isolation,
)
def _(change):
    change.patch(Progress, "reachable", property(lambda peer: peer.silent_rounds < NEVER))


@mutant(
    "an observer becomes a needed voter before it has caught up",
    "INV43 a change",
    given={"config": STRICT, "voters": 1, "observers": 1, "witnesses": 0, "ticks": 60},
    rig=lagging_promotions,
)
def _(change):
    change.patch(Progress, "caught_up", True)


@mutant(
    "of a joint change only the new half must be heard",
    "INV43 a change",
    given={"config": STRICT, "voters": 5},
    rig=membership_changes,
    rare=True,
    seeds=300,
)
def _(change):
    @change.around(reach, "unreachable")
    def half(unreachable, raft, after):
        return unreachable(raft, replace(after, outgoing=frozenset()))


@mutant("two replicas share an address", "INV25", rig=membership_changes)
def _(change):
    def note(addresses, one):
        if one.address:
            addresses.setdefault(one.replica, one.address)

    change.patch(confchange, "_note_address", note)


@mutant(
    "the only voter campaigns with an unapplied change",
    "INV18 no campaign",
    given=THREE | {"voters": 1, "config": FAST},
    weather={"apply": 15},
    rig=slow_membership_changes,
)
def _(change):
    change.patch(RaftLog, "unapplied_change", lambda log: False)


@mutant("a torn record is believed", "CorruptData", "INV", "V", hosts="node", given=THREE)
def _(change):
    change.patch(records, "crc32", lambda data, start=0: 0)


@mutant(
    "entries that are replaced stay in the index of the log",
    "CorruptData",
    "INV",
    "V",
    hosts="node",
    given=THREE,
)
def _(change):
    change.patch(RunIndex, "cut", lambda index, first: None)


@mutant(
    "a segment is dropped before what is needed of it was moved",
    "CorruptData",
    "INV",
    "V",
    hosts="node",
    given=THREE,
    weather={"lanes": 0},
)
def _(change):
    @change.around(Cleaner, "consider")
    def drop(inner, cleaner, written):
        if len(cleaner._segments.in_use) > 2:
            cleaner._usage.forget(cleaner._segments.in_use[0].number)
            cleaner._segments.drop_oldest()
        inner(cleaner, written)


# -- entries that are not loaded -------------------------------------------------------------------------------------

NOT_LOADED = {"given": THREE | {"config": NARROW}, "weather": {"slow_reads": 1.0}, "rig": restarts}


@mutant("entries to be applied that were not loaded are never asked for again", "INV26", **NOT_LOADED)
def _(change):
    change.patch(RaftLog, "loaded", lambda log: None)


@mutant("a node drops the news that entries were loaded", "INV26", **NOT_LOADED | {"hosts": "node"})
def _(change):
    change.patch(NodeActor, "entries_loaded", lambda node: None)


@mutant(
    "entries that are not loaded are left out when others are applied", "INV5", "INV19 no fault", **NOT_LOADED
)
def _(change):
    @change.around(RaftLog, "runs")
    def skip(inner, log, low, high, *limit):
        try:
            return inner(log, low, high, *limit)
        except EntriesNotLoaded:
            held = list(log._window.between(max(low, log._window.first), high))
            if low == log.applying + 1 and held:
                return held
            raise


@mutant("a leader sends what is in memory in place of what is not loaded", "INV19 no fault", **NOT_LOADED)
def _(change):
    @change.around(RaftLog, "entries")
    def skip(inner, log, low, high, *limit):
        try:
            return inner(log, low, high, *limit)
        except EntriesNotLoaded:
            return Entries(log._window.between(max(low, log._window.first), high))


@mutant("a page that was read for one peer is taken for another", "INV", **NOT_LOADED)
def _(change):
    @change.around(SlowReads, "runs")
    def mix_up(inner, storage, low, high, limit):
        first = min(storage._loaded, default=low)
        return inner(storage, first if first >= storage.first_index else low, high, limit)


@mutant(
    "a voter campaigns though its log is not searched for changes",
    "INV18 no campaign",
    given=THREE | {"voters": 1, "config": FAST},
    weather={"apply": 15, "slow_reads": 1.0},
    rig=slow_membership_changes,
)
def _(change):
    @change.around(RaftLog, "unapplied_change")
    def guess(inner, log):
        try:
            return inner(log)
        except EntriesNotLoaded:
            return False


# -- the memory of logs -------------------------------------------------------------------------------------------


@mutant("a log whose budget is used up keeps what it could drop", "V10", **NOT_LOADED)
def _(change):
    change.patch(LogMemory, "spared", lambda memory, holder: None)


@mutant("what a log drops is not counted as free", "V10", **NOT_LOADED)
def _(change):
    change.patch(LogMemory, "shrank", lambda memory, holder, size: None)


@mutant(
    "a log drops what is applied and not durable",
    "INV10",
    "INV5",
    given=THREE | {"config": NARROW | {"apply_unpersisted_limit": 100}},
    weather={"slow_reads": 1.0, "disk": 20},
    rig=restarts,
)
def _(change):
    @change.around(RaftLog, "applied_to")
    def drop(inner, log, index):
        inner(log, index)
        log._window.release(log.applied)


# -- lanes ---------------------------------------------------------------------------------------------------------

NARROW_LANES = CLEAR | {"lanes": 120, "lane_time": 15, "hand_back": 0.0}
CLOGGED = {
    "given": THREE | {"config": NARROW | {"max_message_bytes": 60}},
    "weather": NARROW_LANES,
    "rig": clogged_lanes,
}
LINGERING = CLOGGED | {"weather": NARROW_LANES | {"linger": 8}}
SLOW_VOTES = CLOGGED | {
    "given": {"voters": 1, "observers": 2, "witnesses": 0, "config": FAST | {"max_message_bytes": 60}},
    "weather": NARROW_LANES | {"disk": 20},
    "rig": restarted_leaders,
}
LOSSY_LANES = CLOGGED | {"weather": NARROW_LANES | {"loss": 0.2, "delay": 0.1, "lane_time": 5}}
HANDED_BACK = CLOGGED | {"weather": NARROW_LANES | {"hand_back": 0.3}, "rig": clogged_proposals}
SENT_AGAIN = HANDED_BACK | {
    "weather": NARROW_LANES | {"hand_back": 0.5, "lane_time": 1, "delay": 0.2, "reordering": True}
}


@mutant("a leader does not ask its lanes for room", "INV32", **CLOGGED)
def _(change):
    change.patch(sending, "_room", lambda *_: UNLIMITED)


@mutant("an empty append needs no room", "INV32", **CLOGGED)
def _(change):
    @change.around(sending, "_send_if_it_fits")
    def squeeze(inner, raft, replica, peer, previous_term, entries, room):
        return inner(raft, replica, peer, previous_term, entries, room if entries else UNLIMITED)


@mutant("a leader sends an entry more than fits", "INV32", **CLOGGED)
def _(change):
    @change.around(sending, "_room")
    def squeeze(inner, *asked):
        room = inner(*asked)
        return room + 40 if room else 0


@mutant("what the lane was not handed yet takes no room", "INV32", **CLOGGED)
def _(change):
    @change.around(Progress, "number")
    def overlook(inner, peer, size):
        return inner(peer, 0)


@mutant(
    "a node counts nothing that waits for a write as handed out",
    "INV32",
    "INV33",
    **CLOGGED | {"weather": NARROW_LANES | {"disk": 40}, "rig": busy_leaders, "hosts": "node"},
)
def _(change):
    change.patch(Router, "hold", lambda router, messages: None)


@mutant("a node sends the newest messages first", "INV30 appends go out", "INV33", hosts="node", **CLOGGED)
def _(change):
    @change.around(Router, "send")
    def turn(inner, router, messages):
        inner(router, messages[::-1])


@mutant("a lane that has drained changes nothing", "INV39", **CLOGGED)
def _(change):
    change.handlers.on(M.LANE_DRAINED, State.LEADER, replace=True)(lambda raft, event: None)


@mutant("a busy peer stays so when its connection is lost", "INV39", **CLOGGED)
def _(change):
    @change.around(Progress, "lost")
    def stay(inner, peer):
        busy = peer.busy
        inner(peer)
        peer.busy = busy


@mutant("appends are numbered anew with each change of state", "INV30 appends are numbered", **CLOGGED)
def _(change):
    @change.around(Progress, "_enter")
    def begin_anew(inner, peer, *args):
        inner(peer, *args)
        peer.numbered = 0


@mutant("a heartbeat names an append that waits in its lane", "INV33", **CLOGGED)
def _(change):
    change.patch(sending, "waiting", lambda raft, replica: 0)


@mutant("a heartbeat names an append that the host was not handed", "INV33", **LINGERING)
def _(change):
    @change.around(Progress, "number")
    def hurry(inner, peer, size):
        peer.handed = inner(peer, size)
        return peer.handed


@mutant("a follower forgets what it has heard", "INV34", **CLOGGED)
def _(change):
    @change.handlers.wrap(M.REPLICATE, State.FOLLOWER)
    def forget(raft, message, inner):
        heard = raft.heard.number
        inner(raft, message)
        raft.heard.number = heard


@mutant("a follower remembers what it heard in an earlier term", "INV34", **CLOGGED)
def _(change):
    @change.around(Raft, "_reset")
    def remember(inner, raft, term):
        heard = raft.heard.number
        inner(raft, term)
        raft.heard.number = heard


@mutant("a heartbeat that overtakes a probe counts it as lost", "INV31", **CLOGGED)
def _(change):
    @change.around(heartbeat, "_go_on_in_lanes")
    def hurry(inner, raft, replica, peer):
        peer.unpause()
        inner(raft, replica, peer)


@mutant("a loss counts once for each heartbeat that shows it", "INV31", **LOSSY_LANES)
def _(change):
    @change.handlers.wrap(M.HEARTBEAT_RESP, State.LEADER)
    def forget(raft, answer, inner):
        raft.progress[answer.sender].lost_until = 0
        inner(raft, answer)


@mutant("an append that was not heard does not count as lost", "INV41", "INV26", **LOSSY_LANES)
def _(change):
    @change.handlers.wrap(M.HEARTBEAT_RESP, State.LEADER)
    def overlook(raft, answer, inner):
        answer.reject = False
        inner(raft, answer)


@mutant("a lost answer is never asked for", "INV26", "V11", **LOSSY_LANES)
def _(change):
    change.patch(heartbeat, "_ASK_AGAIN_AFTER", 1 << 30)


@mutant("an append that is handed back counts as sent", "INV40", **HANDED_BACK)
def _(change):
    change.patch(Progress, "handed_back", lambda peer, before, count, number: None)


@mutant("an append that is handed back takes back what was sent again since", "INV40", **SENT_AGAIN)
def _(change):
    change.patch(Inflight, "holds", lambda window, last_index, number: last_index in window.indexes)


@mutant("the proposals that are handed back are not refused", "INV40", **HANDED_BACK)
def _(change):
    change.patch(flow, "not_sent", lambda raft, report: None)


@mutant("a follower forgets what its leader vouched for", "INV35", **CLOGGED)
def _(change):
    @change.handlers.wrap(M.READ_INDEX_RESP, State.FOLLOWER)
    def forget(raft, answer, inner):
        inner(raft, answer)
        raft.heard.vouched = 0


@mutant(
    "a witness's snapshot that was lost is never sent again",
    "INV26",
    given=WITH_WITNESS | {"observers": 0, "config": CHECK_QUORUM_ON | COMPACT},
    weather={"loss": 0.3, "lanes": 200},
)
def _(change):
    change.patch(Progress, "delay_status", lambda peer, ticks, rejected: None)


@mutant(
    "a witness's snapshot that is handed back counts as sent",
    "INV40",
    given=WITH_WITNESS | {"observers": 0, "config": CHECK_QUORUM_ON | COMPACT},
    weather={"hand_back": 0.3, "lanes": 200},
    seeds=300,
)
def _(change):
    change.patch(Progress, "snapshot_handed_back", lambda peer: None)
