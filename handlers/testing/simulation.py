"""`Simulation`: one run of a plan. When the faults are over, the shard must recover (thesis §3.9)."""

from collections.abc import Callable, Iterable
from random import Random
from typing import Any, Final

from drakkar.handlers.raft.confchange import Change, ChangeType, ConfigChange, Transition
from drakkar.handlers.raft.entries import EntryKind
from drakkar.handlers.raft.progress import ProgressState
from drakkar.handlers.raft.state import Membership, State
from drakkar.handlers.testing.answers import Answer
from drakkar.handlers.testing.history import Violation
from drakkar.handlers.testing.membership_changes import address
from drakkar.handlers.testing.plan import CALM, REQUEST_TIMEOUT_S, TICK, UNITS_PER_SECOND, Plan
from drakkar.handlers.testing.shard import PROBE, SimulatedShard, ignore
from drakkar.handlers.testing.simulated_host import SimulatedHost

__all__ = ["Simulation"]

_SETTLING_ELECTIONS: Final = 60
"""Election timeouts within which the shard must recover when the faults are over."""
_CONVERGES: Final = "INV26 without faults a shard converges"
_ALL: Final = 1 << 62


class Simulation(SimulatedShard):
    """One run of a plan: events and faults, then a repair, then checks that the shard works again."""

    settled_after = 0
    """Ticks from the repair until the shard had converged."""

    def __init__(
        self, plan: Plan, make_host: Callable[[SimulatedShard, int, State | None], SimulatedHost]
    ) -> None:
        super().__init__(plan, make_host)
        self._finishers: list[Callable[[], bool]] = []

    def run(self) -> None:
        """Run the plan, repair everything, and check that the shard recovers. Raises `Violation`."""
        for replica in sorted(self._first.everybody):
            self._add(replica, None)
        if self.plan.begins_led:
            self._await_first_leader()
        begin = self.now
        for event in self.plan.events:
            self.after(event.time, self._happen, event)
        self._run_until(begin + self.plan.ticks * TICK)
        self._settle()

    def _await_first_leader(self) -> None:
        """Without this, half of all schedules would end before the first leader is elected."""
        self.weather = CALM
        self._await(_CONVERGES, lambda: any(host.raft.has_committed_in_term for host in self._leaders()))
        self.weather = self.plan.weather

    def end_only_when(self, is_done: Callable[[], bool]) -> None:
        """Let the run go on until `is_done()` is true."""
        self._finishers.append(is_done)

    # -- when the faults are over -----------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Thesis §3.9: with a majority up and no faults, a shard elects a leader, commits and converges."""
        begin = self.now
        self.over = True
        self.weather = CALM
        self.heal()
        for host in self.hosts.values():
            host.tick_every, host.apply_slowness, host.frozen_until = TICK, 1, 0
            host.disk.slowness, host.disk.planned_crash = 1, None
        random = Random(f"settling {self.plan.seed}")
        if self.plan.ends_with_majority:
            self._check_majority(random)
        self._start_all(self.hosts)
        self._await(_CONVERGES, self._has_converged)
        self._await(_CONVERGES, self._until_done(_probe))
        self._await(_CONVERGES, lambda: self._has_converged() and all(done() for done in self._finishers))
        self.settled_after = (self.now - begin) // TICK
        self._check_idle()
        self._check_operator(random)
        self._await(_CONVERGES, self._has_converged)
        self._check_idle()
        self._check_states()
        if any(host.raft.quiesce.on for host in self.hosts.values()):
            self._check_quiesce()

    def _start_all(self, replicas: Iterable[int]) -> None:
        for replica in list(replicas):
            if not self.hosts[replica].up:
                self._start(self.hosts[replica])

    def _await(self, check: str, condition: Callable[[], bool]) -> None:
        """Let time pass until a condition is true. Raises `Violation` with the name of the check on a timeout."""
        for _ in range(self._timeout_ticks):
            self._stop_removed()
            if condition():
                return
            self._finish_joint_change()
            self._run_for(1)
        raise Violation(check, self._describe())

    @property
    def _timeout_ticks(self) -> int:
        return _SETTLING_ELECTIONS * max(host.raft.config.election_ticks for host in self.hosts.values())

    def _until_done(self, ask: Callable[[SimulatedHost, Answer], None]) -> Callable[[], bool]:
        """Return a condition that sends a request to the leader until one is done; then it is true."""
        outcome = ""

        def note(answer: str, _value: Any) -> None:
            nonlocal outcome
            outcome = answer

        def is_done() -> bool:
            nonlocal outcome
            leader = self.leader()
            if outcome not in ("done", "waits") and leader is not None:
                outcome = "waits"
                ask(leader, note)
            return outcome == "done"

        return is_done

    def _check_majority(self, random: Random) -> None:
        """Without as many replicas as a shard can spare, the others elect a leader and commit."""
        newest = self._newest
        staying = self._majority(random, newest)
        if not staying:
            return
        for host in self.hosts.values():
            if host.id not in staying:
                self._stop(host, random.choice((0.0, 1.0)))
        self._start_all(sorted(staying))
        probed = self._until_done(_probe)
        # A change that was in progress may require another majority.
        self._await("INV26 a majority is enough", lambda: probed() or self._changes_from(newest))
        self.invariants.happened["a majority was enough"] += probed()

    def _majority(self, random: Random, newest: Membership) -> set[int]:
        """Return a smallest majority and the observers, or an empty set if no replica can be spared.

        A replica cannot be spared if only it may know of a membership change, or hold an entry that a witness knows of.
        """
        quorum = {*newest.voters, *newest.witnesses}
        dispensable = sorted(newest.witnesses or quorum)
        away = random.sample(dispensable, min((len(quorum) - 1) // 2, len(dispensable)))
        staying = frozenset(quorum).difference(away)
        informed = all(self._knows(self.hosts[replica], newest) for replica in staying)
        settled = informed and not newest.joint and not self._changes_from(newest)
        ranges = [self.hosts[replica].raft.config.election_range for replica in staying]
        settled &= all(end - begin > 1 for begin, end in ranges)  # else all may campaign at once, for ever
        return {*staying, *newest.observers} if away and settled else set()

    def _knows(self, host: SimulatedHost, newest: Membership) -> bool:
        """Return whether a host knows durably that this membership is committed."""
        storage = host.storage
        durable = max(storage.hard_state.commit, storage.snapshot.index)
        return max(durable, host.raft.log.committed if host.up else 0) >= newest.change_id

    def _changes_from(self, membership: Membership) -> bool:
        """Return whether the membership is a different one now, or may become one."""
        applied = max(host.raft.log.applied for host in self.hosts.values())
        logs = ((host.raft.log if host.up else host.storage) for host in self.hosts.values())
        return self._newest != membership or any(
            run.kind(at) == EntryKind.CONFIG_CHANGE
            for log in logs
            for run in log.runs(max(log.first_index, applied + 1), log.last_index + 1, _ALL)
            for at in range(run.first, run.last + 1)
        )

    def _check_operator(self, random: Random) -> None:
        """A shard without faults carries out requests of its operator: a membership change, and a transfer."""
        newest = self._newest

        spare = 0

        def change(leader: SimulatedHost, answer: Answer) -> None:
            nonlocal spare
            members = leader.raft.membership
            if members.observers:
                one = Change(ChangeType.REMOVE, min(members.observers))
            else:
                if not spare or spare in members.removed:
                    spare = self._add(max(self.hosts) + 1, State.OBSERVER).id
                one = Change(ChangeType.ADD_OBSERVER, spare, address(spare))
            wanted = ConfigChange((one,), Transition.AUTO, members.change_id)
            leader.submit("change", wanted.encode(), REQUEST_TIMEOUT_S, answer)

        def transfer(leader: SimulatedHost, answer: Answer) -> None:
            successors = sorted(set(leader.raft.membership.voters) - {leader.id})
            leader.transfer(random.choice(successors), REQUEST_TIMEOUT_S, answer)

        self._await("V11 a change is made", self._until_done(change))
        self._await(_CONVERGES, self._has_converged)
        if len(newest.voters) > 1:
            self._await("V11 a transfer is made", self._until_done(transfer))

    def _leading(self) -> SimulatedHost:
        leader = self.leader()
        assert leader is not None, "it has just converged"
        return leader

    def _check_states(self) -> None:
        """All state machines hold the same state."""
        states = {host.id: host.state() for host in self._members()}
        known = [state for state in states.values() if state is not None]
        if any(state != known[0] for state in known):
            raise Violation("V6 state machines agree", f"{states}")

    def _stop_removed(self) -> None:
        """As an operator does: a removed replica without a vote would campaign for ever."""
        for host in self.hosts.values():
            leads = host.up and host.raft.state is State.LEADER
            if host.up and not leads and self._is_dispensable(host.id):
                self._stop(host, 1.0)

    def _finish_joint_change(self) -> None:
        """Leave a joint membership that was entered explicitly."""
        leader = self.leader()
        if leader is None:
            return
        membership, log = leader.raft.membership, leader.raft.log
        idle = leader.raft.pending_change_index <= log.applied and not leader.raft.transfer.target
        if membership.joint and not membership.auto_leave and idle:
            leave = ConfigChange(change_id=membership.change_id)
            leader.submit("change", leave.encode(), REQUEST_TIMEOUT_S, ignore)

    def _has_converged(self) -> bool:
        leader = self.leader()
        if leader is None or leader.raft.membership.joint or leader.raft.transfer.target:
            return False
        last = leader.raft.log.last_index
        members = self._members()
        if {host.id for host in members} != set(leader.raft.progress) or leader not in members:
            return False
        return all(
            host.up
            and host.raft.term == leader.raft.term
            and host.raft.log.last_index == host.raft.log.committed == host.raft.log.applied == last
            and host.raft.membership == leader.raft.membership
            and leader.raft.progress[host.id].match == last
            and (host is leader or leader.raft.progress[host.id].state is ProgressState.REPLICATE)
            and host.idle
            for host in members
        )

    def _check_idle(self) -> None:
        """All requests are answered or given up, so that nothing grows over time."""
        if any(True for host in self._members() for _ in _held(host)):
            # A request whose answer was lost may wait until its deadline.
            self._run_until(self.now + round((REQUEST_TIMEOUT_S + 1) * UNITS_PER_SECOND))
        for host in self._members():
            held = ", ".join(_held(host))
            if held:
                raise Violation("V10 an idle shard holds nothing", f"{host.raft!r}: {held}")

    def _check_quiesce(self) -> None:
        """An idle shard quiesces, and wakes for the next request."""
        quiesce = max((host.raft.quiesce for host in self._members()), key=lambda each: each.threshold)
        self._run_for(quiesce.threshold + 3 * quiesce.settling)
        terms, steps = [host.raft.term for host in self._members()], self.messages
        self._run_for(quiesce.threshold // 2)
        if self.messages != steps or terms != [host.raft.term for host in self._members()]:
            raise Violation("INV27 an idle shard is silent", self._describe())
        self.invariants.happened["a shard quiesced"] += 1
        leader = self._leading()
        last = leader.raft.log.last_index
        leader.submit("propose", PROBE, REQUEST_TIMEOUT_S, ignore)
        self._run_for(4 * leader.raft.config.election_ticks)
        if not self._has_converged() or leader.raft.log.last_index == last:
            raise Violation("INV27 a silent shard wakes", self._describe())

    def _run_for(self, ticks: int) -> None:
        self._run_until(self.now + ticks * TICK)

    def _describe(self) -> str:
        lines = [f"newest membership: {self.invariants.newest}"]
        for host in self.hosts.values():
            raft = host.raft
            lines.append(f"{'up  ' if host.up else 'down'} {raft!r} elapsed={raft.timers.election_elapsed}")
            if raft.state is State.LEADER:
                lines += [f"       {replica}: {peer}" for replica, peer in raft.progress.items()]
        return "\n".join(lines)


def _probe(leader: SimulatedHost, answer: Answer) -> None:
    leader.submit("propose", PROBE, REQUEST_TIMEOUT_S, answer)


def _held(host: SimulatedHost) -> Iterable[str]:
    """Name what a host and its core still hold."""
    raft = host.raft
    yield from host.leftovers()
    if len(raft.reads):
        yield f"{len(raft.reads)} reads"
    if raft.uncommitted_bytes:
        yield f"{raft.uncommitted_bytes} uncommitted bytes"
    for replica, peer in raft.progress.items():
        if peer.inflight:
            yield f"the window of {replica}"
