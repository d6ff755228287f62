"""Mutants of extensions: what is delivered, saved, loaded and logged, of timers, vetoes and answers."""

from dataclasses import replace

import cbor2
from drakkar.handlers.effects import Effects
from drakkar.handlers.entry_kinds import EntryKind
from drakkar.handlers.raft import extension_states, proposals, records, settling, vetoes
from drakkar.handlers.raft.entries import Run
from drakkar.handlers.raft.log import RaftLog
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.state import State
from drakkar.handlers.raft.undelivered import Undelivered
from drakkar.handlers.testing.plan import TICK, Event
from drakkar.handlers.timers import Timers

from tests.simulation.mutants import (
    CLEAR,
    COMPACT,
    FAST,
    LEADER,
    THREE,
    WITH_OBSERVER,
    WITH_WITNESS,
    laggards,
    members,
    mutant,
    repeatedly,
    requests,
)
from tests.simulation.records import RECORD

# -- situations ----------------------------------------------------------------------------------------------------


def written(random, plan):
    """Clients have records written, and propose commands; replicas crash, and take snapshots."""
    yield from requests(random, plan, "put", "add", every=2, of_leader=0.5)
    yield from repeatedly(random, plan, 1, "write", (LEADER, *members(plan)), 1.0)
    yield from repeatedly(random, plan, 8, "crash", members(plan), (0.0, 1.0), range(1, 40))
    yield from repeatedly(random, plan, 6, "snapshot", members(plan), 0)


def lagging(random, plan):
    """As `written`; replicas fall so far behind that they need a snapshot."""
    yield from laggards(random, plan, "add")
    yield from repeatedly(random, plan, 1, "write", (LEADER, *members(plan)), 1.0)
    yield from repeatedly(random, plan, 3, "snapshot", LEADER, 0)


def slow_machines(random, plan):
    """As `written`; state machines lag behind what they are given."""
    yield from written(random, plan)
    yield from repeatedly(random, plan, 3, "slow_apply", members(plan), (20, 60), range(50, 150))


def requested(random, plan):
    """As `slow_machines`; replicas ask for snapshots, though the log would do."""
    yield from slow_machines(random, plan)
    yield from repeatedly(random, plan, 2, "request_snapshot", members(plan))


def old_tables(random, plan):
    """Records are written while replicas have tables that do not take them."""
    yield from repeatedly(random, plan, 1, "write", (LEADER, *members(plan)), 1.0)
    late = plan.ticks * TICK - 1
    yield Event(late, "newer", (members(plan)[-1], 1))


def old_tables_lag(random, plan):
    """As `old_tables`; replicas fall so far behind that they need a snapshot, and commands alone are logged."""
    yield from laggards(random, plan, "add")
    yield from repeatedly(random, plan, 3, "snapshot", LEADER, 0)
    yield from old_tables(random, plan)


def older_tables(random, plan):
    """All take records, and have some; then replicas are started with older tables by mistake."""
    yield from written(random, plan)
    for time in range(150, plan.ticks * TICK, 100):
        yield Event(time, "older", (random.choice(members(plan)), random.randrange(1, 20)))


HOMES = THREE | {"homes": True, "loses_quorum": False, "config": FAST}
WRITTEN = {"given": THREE | {"config": FAST}, "weather": CLEAR, "rig": written}
LAGGING = {"given": THREE | {"config": FAST | COMPACT}, "weather": CLEAR, "rig": lagging}
OLDER = {"given": HOMES, "weather": CLEAR, "rig": older_tables}

# -- what is delivered ---------------------------------------------------------------------------------------------


@mutant("of what is applied together the last is delivered first", "INV63", **WRITTEN)
def _(change):
    def deliver(raft, index):
        for run in raft.undelivered.take(index):
            for at in range(run.last, run.first - 1, -1):
                records.deliver_run(raft, run.slice(at, at + 1))

    change.patch(records, "deliver", deliver)


@mutant("what was delivered is delivered again with what comes next", "INV63", **WRITTEN)
def _(change):
    def take(waiting, index):
        return [run for run in waiting.runs if run.last <= index]

    change.patch(Undelivered, "take", take)


@mutant("what is applied is delivered with the next entry alone", "INV63", **WRITTEN)
def _(change):
    @change.around(records, "deliver")
    def delay(inner, raft, index):
        inner(raft, index - 1)


@mutant("records are not delivered where this replica leads, which has logged them", "INV63", **WRITTEN)
def _(change):
    @change.around(records, "deliver_run")
    def pass_over(inner, raft, run):
        if raft.state is not State.LEADER or RECORD not in run.kinds:
            inner(raft, run)


@mutant(
    "a witness is delivered what it keeps no content of",
    "INV63",
    given=WITH_WITNESS | {"config": FAST},
    weather=CLEAR,
    rig=written,
)
def _(change):
    @change.around(records, "deliver_run")
    def deliver(inner, raft, run):
        kinds = run.kinds.replace(bytes([EntryKind.METADATA]), bytes([RECORD]))
        inner(raft, Run(run.first, run.term, run.payloads, kinds, run.origin, run.key))


# -- what is saved and loaded ----------------------------------------------------------------------------------------


@mutant(
    "extensions are saved when a snapshot is ordered, though not all up to it is delivered",
    "INV64",
    **WRITTEN | {"rig": slow_machines, "hosts": "node"},
)
def _(change):
    change.patch(extension_states, "save", lambda raft, index, done: done(extension_states.encode(raft)))


@mutant("extensions are not told of the snapshot that is loaded", "INV64", **LAGGING)
def _(change):
    change.patch(Raft, "load_extensions", lambda raft, data, index: None)


@mutant(
    "entries are not delivered that are reported while a snapshot waits which stands for them",
    "INV64",
    "INV63",
    **WRITTEN | {"rig": requested},
)
def _(change):
    @change.around(Raft, "_applied_through")
    def skip(inner, raft, index):
        pending = raft.log.pending_snapshot
        if pending is not None and pending.index <= index:
            raft.undelivered.take(pending.index)
        inner(raft, index)


@mutant("a snapshot has the state of extensions that the one before it had", "INV64", **WRITTEN)
def _(change):
    last = {}

    @change.around(extension_states, "save")
    def save_old(inner, raft, index, done):
        inner(raft, index, lambda state: done(last.setdefault(raft, state)))


# -- what is logged --------------------------------------------------------------------------------------------------


@mutant(
    "a snapshot has a part of an extension that was given no record yet",
    "INV65",
    given=HOMES | {"config": FAST | COMPACT},
    weather=CLEAR,
    rig=old_tables_lag,
)
def _(change):
    @change.around(extension_states, "encode")
    def encode_all(inner, raft):
        raft.undelivered.reached.update(raft.handlers.extensions)
        return inner(raft)


@mutant(
    "a leader logs records that not all members take",
    "INV65",
    given=HOMES,
    weather=CLEAR,
    rig=old_tables,
)
def _(change):
    change.patch(records, "lacking", lambda raft, kind: None)


@mutant(
    "an observer need not take the records that are logged",
    "INV65",
    given=HOMES | WITH_OBSERVER,
    weather=CLEAR,
    rig=old_tables,
)
def _(change):
    @change.around(records, "lacking")
    def without_observers(inner, raft, kind):
        lacking = inner(raft, kind)
        return tuple(each for each in lacking or () if each in raft.voters) or None


@mutant("what a replica took in an earlier life it is thought to take for ever", "INV65", **OLDER)
def _(change):
    @change.around(settling, "meet")
    def remember(inner, raft, replica, life, term):
        before = raft.lives.met.get(replica)
        meeting = inner(raft, replica, life, term)
        now = raft.lives.met.get(replica)
        if before is not None and now is not None and before.kinds and now.kinds is not None:
            raft.lives.met[replica] = replace(now, kinds=before.kinds | now.kinds)
        return meeting


@mutant(
    "a record that not all take is refused, and logged all the same",
    "INV65",
    given=HOMES,
    weather=CLEAR,
    rig=old_tables,
)
def _(change):
    @change.around(proposals, "_checked")
    def log_it(inner, raft, ask, run, first):
        inner(raft, ask, run, first)
        return run


@mutant("a replica passes over records that it does not take", "INV66", **OLDER)
def _(change):
    change.patch(RaftLog, "_before_missing", lambda log, runs: runs)


@mutant(
    "a replica leaves out what of a snapshot none of its extensions takes",
    "INV66",
    **OLDER | {"hosts": "node", "given": HOMES | {"config": FAST | COMPACT}},
)
def _(change):
    @change.around(extension_states, "load")
    def leave_out(inner, raft, data, index):
        parts = cbor2.loads(data) if data else {}
        known = {class_.__name__ for class_ in raft.handlers.extensions}
        inner(raft, cbor2.dumps({name: part for name, part in parts.items() if name in known}), index)


# -- timers, vetoes, answers -----------------------------------------------------------------------------------------


@mutant("a timer is due a tick later each time", "Journal.check", **WRITTEN)
def _(change):
    @change.around(Timers, "every")
    def slow_down(inner, timers, ticks, message):
        timer = inner(timers, ticks, message)
        timer._period = ticks + 1
        return timer


@mutant("a timer is not due in the tick in which another message comes", "Journal.check", **WRITTEN)
def _(change):
    @change.around(Raft, "_node_step_due")
    def skip(inner, raft):
        if raft.outbox.messages:
            raft.message_timers._now += 1
        else:
            inner(raft)


def several_at_once(random, plan):
    """Commands travel together, at leaders and to them."""
    yield from repeatedly(random, plan, 1, "together", (LEADER, *members(plan)), 5, 1.0)
    yield from repeatedly(random, plan, 4, "write", LEADER, 1.0)


TOGETHER = {"given": THREE | {"config": FAST}, "weather": CLEAR, "hosts": "node", "rig": several_at_once}


@mutant("a veto falls on all commands that travel together", "V11 a veto", **TOGETHER)
def _(change):
    @change.around(vetoes, "_veto_proposals")
    def veto_all(inner, raft, ask, text, only):
        some = any(map(only, ask.entries))
        return inner(raft, ask, text, (lambda entry: True) if some else only)


@mutant("behind what is vetoed proposals have the keys of others", "INV22", "V11", "NotLinear", **TOGETHER)
def _(change):
    @change.around(vetoes, "_parts")
    def shift(inner, run, only):
        return [
            (Run(0, 0, part.payloads, part.kinds, part.origin, run.key) if part.origin else part, refused)
            for part, refused in inner(run, only)
        ]


@mutant("what is vetoed is logged all the same", "INV22", "Journal.check", **WRITTEN)
def _(change):
    @change.around(vetoes, "_veto_proposals")
    def keep(inner, raft, ask, text, only):
        inner(raft, ask, text, only)
        return ask


@mutant("a reply that comes later gets lost", "V11 an ask", **WRITTEN)
def _(change):
    change.patch(Effects, "answer", lambda effects, message, value, fields: None)
