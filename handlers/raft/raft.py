"""`Raft`: what a host talks to. `step` takes a message in, `ready` hands out what is to be done.

`persisted` and `applied` report back that it was done. Nothing is done inside: no clock is read, no byte is sent. Who
answers what stands in `matrix`, the state of a replica in `core`.
"""

from collections.abc import Callable, Mapping
from random import Random

from drakkar.handlers.errors import ConfigError
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import (
    commit,
    confchange,
    election,
    extension_states,
    founding,
    membership,
    notices,
    permissions,
    quiesce,
    records,
    sending,
    settling,
    snapshot,
    transfer,
    vetoes,
)
from drakkar.handlers.raft.config import RaftConfig
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.entries import Entries, Entry, EntryKind, changes
from drakkar.handlers.raft.lanes import Lanes
from drakkar.handlers.raft.lives import Life, Meeting
from drakkar.handlers.raft.log import EntriesNotLoaded, Storage, check_compaction
from drakkar.handlers.raft.log_memory import LogMemory
from drakkar.handlers.raft.matrix import checked_handlers, raft_handlers
from drakkar.handlers.raft.ready import Changed, Ready
from drakkar.handlers.raft.state import HardState, Snapshot, State
from drakkar.handlers.services import NodeServices
from drakkar.handlers.table import HandlerTable
from drakkar.handlers.timers import Timers

__all__ = ["Raft"]


class Raft(RaftCore, NodeServices):
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
        lanes: Lanes | None = None,
        memory: LogMemory | None = None,
        home: int = 0,
    ) -> None:
        """Continue where `log` stands, as a follower, observer or witness.

        With `lanes` a leader sends a peer no more than fits on its way, and what it sent counts as lost only
        where that is known. Without, it takes each answer to a heartbeat as a sign that a probe was lost.
        `memory` bounds what the logs that share it keep in memory; without it, this one has a budget of its
        own. `home` is the number of the host on which it lives; with 0 no rule asks where replicas live.

        Raises `HandlerTableError` for a table with undeclared cells, `ConfigError` for a role that the membership
        contradicts, `CorruptData` for a log that contradicts itself.
        """
        table = raft_handlers() if handlers is None else checked_handlers(handlers)
        super().__init__(config, log, table, random, lanes, memory, home)
        self._numbers = 0
        self._handed_state = log.hard_state
        self._unsaved_votes: list[int] = []
        self._appends_held = 0
        """The number of the last `Ready` whose appends wait for its write; 0 where none do."""
        self._handed_lives = log.lives
        settling.note_standing(self)
        founding.begin(self)
        self.message_timers = Timers(self.id)
        self.extensions_loading = False
        """Set by a host that is still loading the snapshot with which this replica starts: extensions have not their state."""
        self._node_extensions = {}
        self._node_make_extensions()

    def tick(self) -> None:
        """One tick of the host's clock has passed: also the timers of handlers that are due are stepped."""
        self.step(Message(MessageType.LOCAL_TICK, sender=self.id, reject=quiesce.tick(self)))
        if self.message_timers.waiting:
            self._node_step_due()

    def meet(self, replica: int, life: Life, term: int = 0) -> Meeting:
        """Hear what a replica says of itself, before its first message on a connection, and again when that has changed.

        WELCOME holds until `lives.version` changes; where it is refused, ask again with each of its messages. Step a message
        that `lets_in` lets in, with `life` where this was not WELCOME. `term` is that of the message, if it has one, or the one in which the other replica said
        this, if that is newer: OLDER_LIFE is told only where it is not newer than ours. Then this replica is to end.

        STRANGER and UNPROVEN are no members of this shard, as far as this replica knows.
        """
        return settling.meet(self, replica, life, term)

    def lets_in(self, meeting: Meeting, message: Message, life: Life) -> bool:
        """Return whether to step a message of a replica, by what came of the last meeting with it.

        Ask anew for each message, unless that was WELCOME, after the one before was stepped. `life`: as it was met, and
        certified by all that its host has shown. One that sleeps may wake up, to hear whether there is a leader.
        """
        return permissions.lets_in(self, meeting, message, life)

    # -- work for the host --------------------------------------------------------------------------------------

    def ready(self) -> Ready:
        """Hand out, once, what is to be done; see `Ready`. Falsy when there is nothing.

        Raises `MissingExtension` where the next entry to apply is a record that this replica's table does not deliver: all
        before it was handed out, and the replica is to end.
        """
        if self.appends_due:
            sending.send_due_appends(self)
        if self.notices_due:
            notices.send_due(self)
        self._numbers += 1
        ready = Ready(self._numbers)
        self._hand_out_state(ready)
        self._hand_out_lives(ready)
        ready.snapshot, unsaved = self.log.take_unsaved(ready.number)
        if unsaved:
            ready.entries = Entries(unsaved)
        ready.must_save |= bool(unsaved) or ready.snapshot is not None
        # A term, a vote or a standing that a crash can forget must not be known to any other replica before it is durable.
        held = bool(self._unsaved_votes)
        self.outbox.hand_out(ready, hold=held)
        if held or self._appends_held:
            held = self._keep_appends_in_order(ready)
        if self.lanes is not None:
            for peer in self.progress.values():
                peer.handed_out(held=held)
        committed = self.log.take_committed(self.config.max_apply_bytes, self._apply_ahead)
        if committed:
            ready.committed = Entries(committed)
            if self.handlers.deliveries:
                self.undelivered.runs += committed
        if any(changes(committed)):
            # A voter that forgets that one was removed may need the vote of that one, which has ended since.
            ready.must_save = True
            ready.hard_state = self._handed_state
        if self.effects.waiting:
            self.effects.hand_out(ready)
        return ready

    def _keep_appends_in_order(self, ready: Ready) -> bool:
        """Let no append overtake one that waits, be it for a vote or for entries written since. Return whether any waits."""
        if self._appends_held:
            appends = [message for message in ready.messages if message.type is MessageType.REPLICATE]
            ready.messages = [it for it in ready.messages if it.type is not MessageType.REPLICATE]
            ready.messages_after_save += appends
        if any(message.type is MessageType.REPLICATE for message in ready.messages_after_save):
            self._appends_held = ready.number
        return bool(self._unsaved_votes or self._appends_held)

    @property
    def has_ready(self) -> bool:
        """Whether `ready` would hand anything out."""
        handed = self._handed_state
        return bool(
            self.outbox
            or self.appends_due
            or self.notices_due
            or handed.commit != self.log.committed
            or handed.term != self.term
            or handed.vote != self.vote
            or self._handed_lives is not self.lives.own
            or self.log.has_unsaved()
            or self.log.may_apply(self.config.max_apply_bytes, self._apply_ahead)
            or self.effects.waiting
        )

    @property
    def caught_up(self) -> bool:
        """Whether extensions have the state of all that is committed, as far as this replica knows.

        False while the snapshot with which it starts is being loaded, and while entries wait to be applied.
        """
        return not self.extensions_loading and self.log.applied >= self.log.committed

    @property
    def commit_untold(self) -> bool:
        """Whether the host is to step COMMIT_DUE about a millisecond from now, unless this is False again by then."""
        config = self.config
        if not config.commit_notices or config.skip_commit_broadcast or self.state is not State.LEADER:
            return False
        return notices.untold(self)

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

    def _hand_out_lives(self, ready: Ready) -> None:
        if self.lives.own is self._handed_lives:
            return
        ready.lives = self._handed_lives = self.lives.own
        ready.must_save = True
        # That a leader is settled is in its log too, and its appends must keep their order.
        if self.state is not State.LEADER:
            self._unsaved_votes.append(ready.number)

    def persisted(self, ready: Ready) -> None:
        """What `ready` asked to save, and all that was asked before, is durable. In order, once for each."""
        while self._unsaved_votes and self._unsaved_votes[0] <= ready.number:
            self._unsaved_votes.pop(0)
        if self._appends_held <= ready.number:
            self._appends_held = 0
        stable = self.log.stable
        self.log.saved(ready.number)
        if self.state is State.LEADER and self.log.stable > stable:
            commit.on_own_write(self)

    def applied(self, index: int) -> None:
        """The state machine has loaded the snapshot, or applied all entries, up to `index`.

        Membership changes up to there take effect now (thesis §4.1 as etcd and dragonboat have it), and extensions are told of
        their entries. Raises `ConfigError` for an index that was not handed out, `ExtensionFailed` where an extension fails: then
        this replica must stop.
        """
        if index > self.log.applying:
            raise ConfigError(
                "applied index", index, f"only entries up to {self.log.applying} were handed out"
            )
        if self.undelivered.saves:
            self._pass_saves(index)
        self._applied_through(index)

    def _applied_through(self, index: int) -> None:
        self._release_uncommitted(self.log.applied + 1, index)
        for entry in self.log.unapplied_changes(index):
            self.log.applied_to(entry.index)
            if entry.kind is EntryKind.SETTLED:
                settling.apply(self, entry)
            else:
                self._apply_change(entry)
        self.log.applied_to(index)
        membership.leave_when_due(self)
        transfer.obey_when_applied(self)
        if self.undelivered.runs:
            records.deliver(self, index)

    def _pass_saves(self, index: int) -> None:
        """Stop on the way to `index` wherever extensions are to be saved."""
        saves = self.undelivered.saves
        while saves and saves[0][0] <= index:
            at, done = saves.popleft()
            self._applied_through(at)
            done(extension_states.encode(self))

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
        """What counts was appended in this term, so it is in memory until it is applied."""
        if self.uncommitted_bytes:
            applied = self.log.payload_bytes(low, high + 1)
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
        the log holds, or a leader's snapshot is not loaded; also where `index` was not handed out, and the entries before
        it are not loaded.
        """
        log = self.log
        if log.pending_snapshot is not None or not log.applied <= index <= log.stable or not log.term(index):
            return None
        witness = self.base_state is State.WITNESS
        try:
            membership = self.membership_at(index)
        except EntriesNotLoaded:
            return None
        return Snapshot(index, log.term(index), membership, witness=witness)

    @property
    def snapshot_wanted(self) -> int:
        """The index that a peer wants a snapshot to reach, which none does yet; 0 for none. For a leader's host."""
        wanted = max((peer.requested_snapshot for peer in self.progress.values()), default=0)
        return wanted if wanted > self.log.snapshot.index else 0

    # -- what handlers of one's own may ask for --------------------------------------------------------------------

    def propose(self, kind: EntryKind, payload: bytes) -> str:
        """Propose a record: an entry of a kind of your own, which is delivered on every replica that keeps commands.

        Returns "" where this replica logged it or sent it on to the leader, else why not. It may be lost all the same, as any
        proposal may; what is delivered is committed. A record may have `MAX_RECORD_BYTES`.

        Raises `ConfigError` for a kind that this replica's table does not deliver, and a payload that is too large or not bytes.
        """
        return records.propose(self, kind, payload)

    def veto(self, message: Message, why: str, only: Callable[[Entry], bool] | None = None) -> Message | None:
        """Refuse a PROPOSE, READ_INDEX or LEADER_TRANSFER with a text: its proposer gets `RequestDropped(why)`.

        For a wrapper of such a type, at any replica. Of a PROPOSE, `only(entry)` says which entries are refused; without it all
        are. Returns the message with the rest, to pass to `inner`, or None if nothing is left. Of the text, 500 printable characters
        travel.

        Raises `ConfigError` for a message of another type, and with `only` for one that is no PROPOSE.
        """
        return vetoes.veto(self, message, why, only)

    def save_extensions(self, index: int, done: Callable[[bytes | None], None]) -> None:
        """Call `done` with the state of the extensions as of `index`: when all up to it is delivered, and nothing beyond.

        At once where `index` is applied, else in `applied`, on its way past. The bytes are for `load_extensions`; b"" where no
        extension saves any, and None where a leader's snapshot is loaded that is newer, so that there is no such state any more.

        Raises `ConfigError` for an index that is past. `done` is not called if the replica ends before, or `save` fails:
        then `ExtensionFailed` is raised, here or by `applied`.
        """
        extension_states.save(self, index, done)

    def load_extensions(self, data: bytes, index: int) -> None:
        """Hand extensions their parts of a snapshot, before `applied(index)` reports that it is loaded.

        To be called for each snapshot, also for one without any part: it stands for all entries up to `index` that are not delivered
        yet. An extension without a part stays as it is. Raises `MissingExtension` for a part of one that the table lacks,
        `CorruptData` for bytes that `save_extensions` did not give, `ExtensionFailed` where `load` fails.
        """
        extension_states.load(self, data, index)

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
