"""`Raft`: what a host talks to. `step` takes a message in, `ready` hands out what is to be done.

`persisted` and `applied` report back that it was done. Nothing is done inside: no clock is read, no byte is sent. Who
answers what stands in `matrix`, the state of a replica in `core`.
"""

from collections.abc import Mapping
from random import Random

from drakkar.handlers.errors import ConfigError
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import commit, confchange, election, membership, quiesce, sending, snapshot
from drakkar.handlers.raft.config import RaftConfig
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.entries import Entries, Entry
from drakkar.handlers.raft.log import Storage, check_compaction
from drakkar.handlers.raft.matrix import checked_handlers, raft_handlers
from drakkar.handlers.raft.ready import Changed, Ready
from drakkar.handlers.raft.state import HardState, Snapshot, State
from drakkar.handlers.table import HandlerTable

__all__ = ["Raft"]


class Raft(RaftCore):
    """The Raft machine of one replica. Pure: the same messages and the same random source give the same life.

    Not thread-safe: all calls come from one thread, in a host its loop's.
    """

    def __init__(
        self,
        config: RaftConfig,
        log: Storage,
        *,
        handlers: HandlerTable | None = None,
        random: Random | None = None,
    ) -> None:
        """Continue where `log` stands, as a follower, observer or witness.

        Raises `HandlerTableError` for a table with undeclared cells, `ConfigError` for a role that the membership
        contradicts, `CorruptData` for a log that contradicts itself.
        """
        table = raft_handlers() if handlers is None else checked_handlers(handlers)
        super().__init__(config, log, table, random)
        self._numbers = 0
        self._handed_state = log.hard_state
        self._unsaved_votes: list[int] = []

    def tick(self) -> None:
        """One tick of the host's clock has passed."""
        self.step(Message(MessageType.LOCAL_TICK, sender=self.id, reject=quiesce.tick(self)))

    # -- work for the host --------------------------------------------------------------------------------------

    def ready(self) -> Ready:
        """Hand out, once, what is to be done; see `Ready`. Falsy when there is nothing."""
        if self.appends_due:
            sending.send_due_appends(self)
        self._numbers += 1
        ready = Ready(self._numbers)
        self._hand_out_state(ready)
        ready.snapshot, runs = self.log.take_unsaved(ready.number)
        ready.entries = Entries(runs)
        ready.must_save |= bool(runs) or ready.snapshot is not None
        # A term or a vote that a crash can forget must not be known to any other replica before it is durable.
        self.outbox.hand_out(ready, hold=bool(self._unsaved_votes))
        ready.committed = Entries(self.log.take_committed(self.config.max_apply_bytes, self._apply_ahead))
        return ready

    @property
    def has_ready(self) -> bool:
        """Whether `ready` would hand anything out."""
        return bool(
            self.outbox
            or self.appends_due
            or self.log.has_unsaved()
            or self.log.may_apply(self.config.max_apply_bytes, self._apply_ahead)
            or self._handed_state != HardState(self.term, self.vote, self.log.committed)
        )

    @property
    def _apply_ahead(self) -> int:
        """Entries that may be applied before they are durable here: at a leader, whose peers hold them (raft-rs)."""
        return self.config.apply_unpersisted_limit if self.state is State.LEADER else 0

    def _hand_out_state(self, ready: Ready) -> None:
        state = HardState(self.term, self.vote, self.log.committed)
        if state == self._handed_state:
            return
        ready.hard_state = state
        if (state.term, state.vote) != (self._handed_state.term, self._handed_state.vote):
            ready.must_save = True
            self._unsaved_votes.append(ready.number)
        self._handed_state = state

    def persisted(self, ready: Ready) -> None:
        """What `ready` asked to save, and all that was asked before, is durable. In order, once for each."""
        while self._unsaved_votes and self._unsaved_votes[0] <= ready.number:
            self._unsaved_votes.pop(0)
        stable = self.log.stable
        self.log.saved(ready.number)
        if self.state is State.LEADER and self.log.stable > stable:
            commit.on_own_write(self)

    def applied(self, index: int) -> None:
        """The state machine has loaded the snapshot, or applied all entries, up to `index`.

        Membership changes up to there take effect now (thesis §4.1 as etcd and dragonboat have it).
        Raises `ConfigError` for an index that was not handed out.
        """
        if index > self.log.applying:
            raise ConfigError(
                "applied index", index, f"only entries up to {self.log.applying} were handed out"
            )
        before = self.log.applied
        self._release_uncommitted(before + 1, index)
        changes = list(self.log.changes(max(before, self.log.first_index - 1) + 1, index + 1))
        for entry in changes:
            self.log.applied_to(entry.index)
            self._apply_change(entry)
        self.log.applied_to(index)
        membership.leave_when_due(self)

    def _apply_change(self, entry: Entry) -> None:
        outcome = confchange.decide(self.membership, entry, self.config)
        rejected = outcome if isinstance(outcome, str) else ""
        event = Message(
            MessageType.CONFIG_CHANGE_EVENT, sender=self.id, log_index=entry.index, reject=bool(rejected)
        )
        if not isinstance(outcome, str):
            event.payload = outcome
        self.step(event)
        self.outbox.changes.append(Changed(entry.index, self.membership, rejected, entry.origin, entry.key))

    def _release_uncommitted(self, low: int, high: int) -> None:
        if self.uncommitted_bytes:
            applied = sum(run.payload_bytes for run in self.log.runs(low, high + 1))
            self.uncommitted_bytes = max(0, self.uncommitted_bytes - applied)

    def compact(self, index: int) -> None:
        """Forget entries up to `index`, which a snapshot holds. The host drops them from its store as well.

        Raises `ConfigError` where `index` is beyond the last snapshot, or gone already: a peer that needs what is
        in neither could never catch up.
        """
        check_compaction(index, self.log.first_index, self.log.snapshot.index)
        self.log.compact(index)

    def snapshot_taken(self, taken: Snapshot) -> None:
        """The host took a snapshot, which peers that are too far behind will be sent.

        Raises `ConfigError` where it is beyond what is applied; one that is no newer than the last is ignored.
        """
        if taken.index > self.log.applied:
            raise ConfigError(
                "snapshot index", taken.index, f"only entries up to {self.log.applied} are applied"
            )
        if taken.index > self.log.snapshot.index:
            snapshot.taken(self, taken)

    def snapshot_point(self, index: int) -> Snapshot | None:
        """Index, term and membership of a snapshot of the state at `index`; None if none can be taken there now.

        `index` is that of the last entry that the state machine was given: only its owner knows it, since `ready`
        hands entries out before they are passed on. The membership is that of the index, though changes may not have
        been reported as applied yet (thesis §5.1). None where `index` is not durable in this log yet, or behind what
        the log holds, or a leader's snapshot is not loaded.
        """
        log = self.log
        if log.pending_snapshot is not None or not log.applied <= index <= log.stable or not log.term(index):
            return None
        witness = self.base_state is State.WITNESS
        return Snapshot(index, log.term(index), self.membership_at(index), witness=witness)

    @property
    def snapshot_wanted(self) -> int:
        """The index that a peer wants a snapshot to reach, which none does yet; 0 for none. For a leader's host."""
        wanted = max((peer.requested_snapshot for peer in self.progress.values()), default=0)
        return wanted if wanted > self.log.snapshot.index else 0

    # -- what an operator may ask for -----------------------------------------------------------------------------

    def request_snapshot(self) -> None:
        """Ask the leader for its snapshot, though the log would do (raft-rs): where the state machine's state is lost.

        It must reach the last entry held here. Until it has come, no entries are taken in; asking again changes
        nothing. The request ends with the term, and with a campaign of this replica.

        Raises `RequestDropped`, which says why, at a leader, without one, while another snapshot is not loaded yet,
        and where the last entry is not of the current term.
        """
        snapshot.request(self)

    def forget_leader(self) -> None:
        """Do as if no leader were known, so that this replica may vote, and pre-vote, inside its lease (etcd).

        For an operator who knows that the leader is gone. The next message of a leader tells of it again. Changes
        nothing at a leader, nor where reads rely on leases.
        """
        election.forget_leader(self)

    def assign_groups(self, groups: Mapping[int, int]) -> None:
        """Say to which group each of these replicas belongs, for `group_commit`; 0 is none (raft-rs).

        Replicas that are not named keep theirs, over changes of leadership too, until this one restarts; any of them
        may lead, so tell them all. Raises `ConfigError` for what is no replica or no group; then nothing is changed.
        """
        commit.assign_groups(self, groups)

    def groups_consistent(self) -> bool | None:
        """Whether all that is committed is on a majority in two groups, so that the loss of one group loses nothing.

        Only a leader that has applied an entry of its term knows, and only where groups are in use: else None.
        """
        return commit.groups_consistent(self)
