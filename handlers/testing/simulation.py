"""`Simulation`: one run of a plan. When the faults are over, the shard must recover (thesis §3.9)."""

from collections.abc import Callable, Iterable
from random import Random
from typing import Any, Final

from drakkar.handlers.raft.confchange import Change, ChangeType, ConfigChange, Transition
from drakkar.handlers.raft.entries import EntryKind
from drakkar.handlers.raft.progress import ProgressState
from drakkar.handlers.raft.state import Membership, State
from drakkar.handlers.testing.answers import Answer
from drakkar.handlers.testing.history import Violation, is_quorum
from drakkar.handlers.testing.lost_quorum import LostQuorum
from drakkar.handlers.testing.membership_changes import address
from drakkar.handlers.testing.plan import REQUEST_TIMEOUT_S, TICK, UNITS_PER_SECOND, Plan
from drakkar.handlers.testing.shard import PROBE, SimulatedShard, ignore
from drakkar.handlers.testing.simulated_host import SimulatedHost
from drakkar.handlers.testing.strangers import Strangers

__all__ = ["STUCK", "Simulation"]

STUCK: Final = "a shard that lost disks could not recover"
"""What happened if nothing is promised of the end of a run."""

_SETTLING_ELECTIONS: Final = 60
"""Election timeouts within which the shard must recover when the faults are over."""
_CONVERGES: Final = "INV26 without faults a shard converges"
_FAILS_OVER: Final = "INV58 a shard whose leader is gone has another one soon"
_KILLS: Final = 3
"""How many leaders are killed one after the other when the faults are over."""
_FAILOVER_ELECTIONS: Final = 10
"""Election timeouts within which there is another leader, however late the others are told, and with any of them first to campaign."""
_ALL: Final = 1 << 62


class _Stuck(Exception):
    """A shard does not recover, and nothing is promised of it."""


class Simulation(Strangers):
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
        try:
            self._settle()
        except _Stuck:
            self.invariants.happened[STUCK] += 1

    def _await_first_leader(self) -> None:
        """Without this, half of all schedules would end before the first leader is elected."""
        self.weather = self.plan.weather.calm
        self._await(_CONVERGES, self._is_led)
        self.weather = self.plan.weather

    def end_only_when(self, is_done: Callable[[], bool]) -> None:
        """Let the run go on until `is_done()` is true."""
        self._finishers.append(is_done)

    # -- when the faults are over -----------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Thesis §3.9: with a majority up and no faults, a shard elects a leader, commits and converges."""
        begin = self.now
        self.over = True
        self.weather = self.plan.weather.calm
        self.heal()
        self.lanes.repair()
        for host in self.hosts.values():
            host.tick_every, host.apply_slowness, host.frozen_until = TICK, 1, 0
            host.disk.slowness, host.disk.planned_crash, host.disk.space = 1, None, None
        self.give_up_copies()
        random = Random(f"settling {self.plan.seed}")
        if self.invariants.lost is not None:
            self._check_second_founding(self.invariants.lost)
            return
        if self.plan.ends_with_majority:
            self._check_majority(random)
        self._start_all(self.hosts)
        self._await(_CONVERGES, self._has_converged)
        self._await(_CONVERGES, self._until_done(_probe))
        self._await(_CONVERGES, lambda: self._has_converged() and all(done() for done in self._finishers))
        self.settled_after = (self.now - begin) // TICK
        self._check_idle()
        if self.plan.ends_with_full_disks:
            self._check_full_disks(Random(f"full disks at the end of {self.plan.seed}"))
        self._check_failover()
        self._check_operator(random)
        self._await(_CONVERGES, self._has_converged)
        self._await("V13 a removed replica stops", self._have_removed_stopped)
        self._check_idle()
        self._check_states()
        sleeps = any(host.raft.quiesce.on for host in self.hosts.values())
        if sleeps and not any(_keeps_awake(host) for host in self.hosts.values()):
            self._check_quiesce()

    def _start_all(self, replicas: Iterable[int]) -> None:
        for replica in list(replicas):
            if not self.hosts[replica].up and not self.hosts[replica].ended:
                self._start(self.hosts[replica])

    def _is_stuck(self) -> bool:
        """Whether disks were emptied of which no shard is promised to recover: what is left cannot be elected.

        The newest entry may be left at a witness, which does not lead, and at newborns, which do not either; or a change that
        came at the same time may make those the voters that were emptied.
        """
        identity = self.invariants.identity
        if not identity.emptied:
            return False
        newborn = {host.id for host in self._members() if host.up and not host.raft.remembers}
        forgetful = {*identity.emptied, *newborn, *self._newest.observers}
        electors = [host for host in self._members() if host.id not in forgetful]
        newest = max((_end(host) for host in electors), default=(0, 0))
        only_witnesses = all(
            host.raft.base_state is State.WITNESS for host in electors if _end(host) == newest
        )
        changing = self._newest.joint or self._changes_from(self._newest)
        return only_witnesses or changing or identity.forgets_too_much()

    def _await(self, check: str, condition: Callable[[], bool], *, ticks: int = 0) -> None:
        """Let time pass until a condition is true. Raises `Violation` with the name of the check on a timeout."""
        for _ in range(ticks or self._timeout_ticks):
            self._stop_removed()
            if condition():
                return
            self._finish_joint_change()
            self._run_for(1)
        if self._is_stuck():
            raise _Stuck
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

    def _check_second_founding(self, lost: LostQuorum) -> None:
        """A second founding ends where one that knows is left. Where none is, and all are empty, it is as the first."""
        self._start_all(self.hosts)
        self._run_for(self._timeout_ticks // 3)
        empty = all(replica in self.invariants.former for replica in self.hosts)
        if not lost.knowing and empty and self._first.everybody == self._newest.everybody:
            self._await("INV26 a shard whose disks are all empty is founded", self._until_done(_probe))
            self.invariants.happened["a shard was founded a second time"] += 1
        elif lost.knowing:
            probed = self._until_done(_probe)
            for _ in range(self._timeout_ticks // 6):
                leader = self.leader()
                if probed() and leader is not None and lost.should_have_ended(leader.raft):
                    raise Violation(
                        "INV53 a second founding does not outlive one that knows", self._describe()
                    )
                self._run_for(1)

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
        settled &= not any(self.hosts[replica].is_newborn for replica in staying)
        settled &= self._can_elect(self.hosts[replica] for replica in staying)
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
        # The weather is calm by now, so that no read is slow.
        return self._newest != membership or any(
            run.kind(at) == EntryKind.CONFIG_CHANGE
            for log in logs
            for run in log.runs(max(log.first_index, applied + 1), log.last_index + 1, _ALL)
            for at in range(run.first, run.last + 1)
        )

    def _check_full_disks(self, random: Random) -> None:
        """Rules of full disks: a majority with room is enough, and without any room there is still a leader that reads."""
        newest = self._newest
        electors = [host for host in self._members() if host.id not in newest.observers]
        spare = (len(electors) - 1) // 2
        leader = self._leading()
        full = [leader, *random.sample([host for host in electors if host is not leader], max(spare - 1, 0))]
        if spare and not {host.id for host in full}.issuperset(newest.voters):
            _fill(full)
            self._await("INV26 a majority with room is enough", self._until_done(_probe))
            self.invariants.happened["a majority with room was enough"] += 1
            self._recover_room()
        leader = self._leading()
        self._fill_followers([host for host in electors if host is not leader])
        _fill([leader])
        if spare and len(newest.voters) > 1 and self._can_elect(electors):
            self._stop(leader, 1.0)
        self._await("INV26 a shard without room elects and reads", self._until_done(_read))
        self.invariants.happened["a shard without room elected and read"] += not leader.up
        self._start_all([leader.id])
        self._recover_room()

    def _fill_followers(self, followers: list[SimulatedHost]) -> None:
        """Let proposals of a leader that has room make the others notice that they have none."""
        _fill(followers)
        probed = self._until_done(_probe)

        def noticed() -> bool:
            probed()
            return all(host.raft.room.full for host in followers if host.up)  # a removed one stops

        self._await("INV26 full disks are noticed", noticed)

    def _recover_room(self) -> None:
        """When there is room again, all goes on without a restart."""
        for host in self.hosts.values():
            host.disk.space = None
        self._await("INV26 with room again a shard converges", self._has_converged)
        self._await("INV26 with room again a shard commits", self._until_done(_probe))
        self._await("INV26 with room again a shard converges", self._has_converged)

    def _can_elect(self, hosts: Iterable[SimulatedHost]) -> bool:
        """Whether election timeouts differ; else all may campaign at once, for ever."""
        ranges = [host.raft.config.election_range for host in hosts]
        return all(end - begin > 1 for begin, end in ranges)

    def _check_failover(self) -> None:
        """Leaders whose processes end are replaced soon where the others are told, mostly within an election timeout.

        The last one sleeps, where shards do.
        """
        if not self.plan.weather.evidence:
            return
        slow = 0
        for kill in range(_KILLS):
            quiesce = self._leading().raft.quiesce
            if quiesce.on and kill == _KILLS - 1:
                self._run_for(quiesce.threshold + 3 * quiesce.settling)
            leader, members = self._leading(), self._newest
            others = {*members.everybody} - {leader.id}
            if not (is_quorum(members, others) and any(map(members.is_voter, others))):
                return
            slow += not self._fails_over(leader)
            self._start_all([leader.id])
            self._await(_CONVERGES, self._has_converged)
        if slow == _KILLS:
            raise Violation(_FAILS_OVER, f"none of {_KILLS} leaders was replaced within an election timeout")

    def _fails_over(self, leader: SimulatedHost) -> bool:
        """Kill a leader, and wait for the next one; return whether there was one within an election timeout.

        It begins when all were told. Where reads rely on leases, these have to end first, which takes as long.
        """
        timeout = leader.raft.config.election_ticks
        told = -(-self.plan.weather.evidence // TICK)
        killed = self.now
        self._stop(leader, 1.0)
        self._await(_FAILS_OVER, self._is_led, ticks=told + _FAILOVER_ELECTIONS * timeout)
        leases = any(host.raft.config.read_mode == "lease" for host in self.hosts.values())
        quick = self.now - killed <= (told + timeout + leases * timeout) * TICK
        self.invariants.happened["a leader that was killed was replaced"] += 1
        self.invariants.happened["a leader that was killed was replaced at once"] += quick
        return quick

    def _is_led(self) -> bool:
        return any(host.raft.has_committed_in_term for host in self._leaders())

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
        """All state machines hold the same state, and so do extensions."""
        for host in self._members():
            self.invariants.records.agree(host.raft)
        states = {host.id: host.state() for host in self._members()}
        known = [state for state in states.values() if state is not None]
        if any(state != known[0] for state in known):
            raise Violation("V6 state machines agree", f"{states}")

    def _stop_removed(self) -> None:
        """As an operator does: a removed replica without a vote would campaign for ever. One that knows it ends by itself."""
        for host in self.hosts.values():
            unaware = host.up and host.raft.state is not State.LEADER and not host.knows_its_removal
            if unaware and self._is_dispensable(host.id):
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
            and host.is_settled
            and host.raft.term == leader.raft.term
            and host.raft.log.last_index == host.raft.log.committed == host.raft.log.applied == last
            and host.raft.membership == leader.raft.membership
            and leader.raft.progress[host.id].match == last
            and (host is leader or leader.raft.progress[host.id].state is ProgressState.REPLICATE)
            and host.idle
            for host in members
        )

    def _have_removed_stopped(self) -> bool:
        """One that knows no member of today has none to ask, and stays until its host stops."""
        members = self._newest.everybody
        return not any(
            host.up and host.knows_its_removal and members & set(host.raft.peers)
            for host in self.hosts.values()
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


def _end(host: SimulatedHost) -> tuple[int, int]:
    """Return the term and index of the last entry on a disk."""
    storage = host.storage
    return storage.term(storage.last_index), storage.last_index


def _keeps_awake(host: SimulatedHost) -> bool:
    """Return whether a timer of a handler goes on waking the replica."""
    waiting = host.raft.message_timers.waiting
    return any(timer.active and timer._message.type.traits.wakes for _, _, timer in waiting)


def _probe(leader: SimulatedHost, answer: Answer) -> None:
    leader.submit("propose", PROBE, REQUEST_TIMEOUT_S, answer)


def _fill(hosts: Iterable[SimulatedHost]) -> None:
    """Leave no room for entries on these disks."""
    for host in hosts:
        host.disk.space = 0


def _read(leader: SimulatedHost, answer: Answer) -> None:
    leader.submit("read", "a", REQUEST_TIMEOUT_S, answer)


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
        if peer.busy:
            yield f"{replica} is busy"
