"""Mutants of what hosts know of the life of others: heartbeats, which make a guess, and evidence, which makes sure."""

from drakkar.transport import liveness
from drakkar.transport.liveness import HostState, HostStateChanged, Liveness

from tests.simulation.failover_mutants import ASKING, EVERYBODY, flapping_links
from tests.simulation.mutants import CLEAR, LATE, THREE, members, mutant, repeatedly


def restarts_and_cuts(random, plan):
    """Hosts are killed, cut off one way or both, and paused, and their clocks are wrong."""
    yield from repeatedly(random, plan, 8, "crash", members(plan), 1.0, range(10, 60))
    yield from repeatedly(random, plan, 8, "cut", members(plan), members(plan), (False, True), range(20, 150))
    yield from repeatedly(random, plan, 12, "freeze", members(plan), range(20, 150))
    yield from repeatedly(random, plan, 12, "clock", members(plan), (3, 20), range(20, 150))


def mistakes(random, plan):
    """Processes that live are taken for gone again and again."""
    yield from repeatedly(random, plan, 5, "false_evidence", members(plan), EVERYBODY)


CUTS = {"given": THREE | {"config": ASKING, "evidence": 20}, "weather": LATE, "rig": restarts_and_cuts}
NO_EVIDENCE = CUTS | {"given": CUTS["given"] | {"evidence": 0}}
MISTAKES = CUTS | {"weather": CLEAR, "rig": mistakes}

# -- heartbeats ----------------------------------------------------------------------------------------------------


@mutant("a host is dead as soon as it is suspect", "INV59", **CUTS)
def _(change):
    change.patch(liveness, "DEAD_TICKS", liveness.SUSPECT_TICKS)


@mutant("a host that does not answer any more is alive for ever", "INV59", **CUTS)
def _(change):
    change.patch(Liveness, "_judge", lambda lives, host: lives._become(host, HostState.ALIVE, "it did once"))


@mutant("a late answer passes for one to the newest heartbeat", "INV59", **CUTS)
def _(change):
    @change.around(Liveness, "answered")
    def rejuvenate(inner, lives, name, run, _number):
        return inner(lives, name, run, lives.number)


@mutant("a host that was paused counts the ticks that it has missed", "INV59", **CUTS)
def _(change):
    @change.around(Liveness, "tick")
    def catch_up(inner, lives):
        lives.number += 1
        return inner(lives)


@mutant("an answer of the run before passes for one of this run", "INV59", **NO_EVIDENCE)
def _(change):
    @change.around(Liveness, "answered")
    def confuse(inner, lives, name, _run, number):
        return inner(lives, name, lives._hosts[name].run, number)


# -- what is told --------------------------------------------------------------------------------------------------


@mutant("a state is told whenever it is looked at", "INV60", **CUTS)
def _(change):
    def repeat(lives, host, state, why):
        host.state = state
        lives._changed(HostStateChanged(host.name, host.run.host_id, host.run.starts, state, why))

    change.patch(Liveness, "_become", repeat)


@mutant("the end of a run is told as often as there is evidence of it", "INV60", **MISTAKES)
def _(change):
    @change.around(Liveness, "_end")
    def forget(inner, lives, host, run, why):
        host.reported = liveness._NONE
        inner(lives, host, run, why)


@mutant("a late answer brings a run back to life that is gone", "INV60", "INV59", **MISTAKES)
def _(change):
    @change.around(Liveness, "answered")
    def revive(inner, lives, name, run, number):
        lives._hosts[name].gone = False
        return inner(lives, name, run, number)


# -- evidence ------------------------------------------------------------------------------------------------------


@mutant(
    "a connection that is lost shows that the process has ended", "INV61", **CUTS | {"rig": flapping_links}
)
def _(change):
    @change.around(Liveness, "lost")
    def conclude(inner, lives, name):
        inner(lives, name)
        host = lives._hosts[name]
        lives._end(host, host.run, "its connection is lost")


@mutant("a host that does not answer for long is gone", "INV61", **CUTS)
def _(change):
    @change.around(Liveness, "_judge")
    def conclude(inner, lives, host):
        inner(lives, host)
        if host.state is HostState.DEAD:
            lives._end(host, host.run, "it does not answer")


@mutant("a host that was taken for gone by mistake never returns", "INV59", "INV62", **MISTAKES)
def _(change):
    change.patch(Liveness, "_return", lambda lives, host: None)
