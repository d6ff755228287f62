"""`Replica`: what a client calls to use one replica of this host."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, Final, cast

import pykka
from drakkar.actors.host import own_messages
from drakkar.actors.host.handover import HAND_OVER_TIMEOUT_S, hand_over
from drakkar.actors.host.session import DEFAULT_TIMEOUT_S, Endpoint, Session, later_on, open_session
from drakkar.actors.machine.sessions import FENCE
from drakkar.actors.machine.state_machine import DiskStateMachine
from drakkar.actors.node.actor import NodeActor
from drakkar.actors.node.proposals import Proposal
from drakkar.actors.node.requests import (
    AppliedRequest,
    AssignGroups,
    ForgetLeader,
    GroupsConsistent,
    LogQuery,
    OwnMessage,
    ReadRequest,
    SnapshotRequest,
    TransferRequest,
)
from drakkar.actors.node.status import Status
from drakkar.actors.runtime.forks import here
from drakkar.actors.runtime.futures import ActorFuture, brief, forbid_waiting, forbid_waiting_for
from drakkar.handlers.checks import (
    MAX_SIGNED,
    check_choice,
    check_switch,
    check_timeout,
    check_type,
    check_whole,
    is_whole,
)
from drakkar.handlers.errors import ConfigError, DrakkarError, MembershipRejected
from drakkar.handlers.messages import Message
from drakkar.handlers.raft.confchange import Change, ChangeType, ConfigChange, Transition
from drakkar.handlers.raft.entries import Entries, EntryKind
from drakkar.handlers.raft.state import Membership
from drakkar.transport.addresses import parse_address

__all__ = ["Replica"]

MAX_QUERY_BYTES: Final = 8 << 20
"""What a log query may read at once: the loop stands still meanwhile."""
ASK_GRACE_S: Final = 5.0
"""How much longer than its timeout a thread waits for the answer to an ask: it has come by then, unless the host's loop hangs."""
_ADDITIONS: Final = frozenset({ChangeType.ADD_VOTER, ChangeType.ADD_OBSERVER, ChangeType.ADD_WITNESS})


class Replica:
    """A replica that this host runs. All methods may be called from any thread; none but `ask` and `stop` blocks.

    What has to wait returns an `ActorFuture`: `get(timeout=…)` in a thread, `await` in trio and asyncio. Every future is
    set by its `timeout`, in seconds and to within a tick. Its error tells whether the request had an effect:

    - none: `NotLeader`, `SystemBusy`, `TransferInProgress`, `DiskFull`, any other `RequestDropped`, `ReplicaStopped`, and
      `ForkedError`, which says that this process was forked from the host's;
    - none, though it is committed: `Refused`, by the state machine, on all replicas alike;
    - unknown: `OutcomeUnknown`; it may or may not have been committed, and may still be.

    A `timeout` that is no number of seconds from 0 up raises `ConfigError` at once. All other wrong arguments set it as
    the future's error.
    """

    def __init__(self, ref: pykka.ActorRef[NodeActor], node: NodeActor, *, max_command_bytes: int) -> None:
        """Made by `NodeHost.start_replica`."""
        self.ref = ref
        """The node actor's ref; `ref.proxy().handlers` is its table."""
        self._node = node
        self._process = here.process
        self._owner = node.owner
        self.shard_id = node.raft.config.shard_id
        self.replica_id = node.raft.id
        compresses = node.raft.config.entry_compression != "none"
        self._put = self._put_compressed if compresses else node.actor_inbox.proposals.put
        self._endpoint = Endpoint(
            shard_id=self.shard_id,
            put=node.actor_inbox.proposals.put,
            later=later_on(node.actor_loop),
            max_command_bytes=max_command_bytes,
            compress=compresses,
            owner=node.owner,
        )

    def __repr__(self) -> str:
        return f"<Replica {self.replica_id} of shard {self.shard_id}>"

    # -- commands -----------------------------------------------------------------------------------------------

    def propose(self, command: bytes, *, timeout: float = DEFAULT_TIMEOUT_S) -> ActorFuture[Any]:
        """Have a command applied by all replicas; the future has the result of this host's state machine.

        The future is set when the command is durable on a majority and applied here. Any replica takes proposals:
        one that does not lead forwards them to the leader.
        """
        future: ActorFuture[Any] = ActorFuture()
        future.owner = self._owner
        refusal = self._endpoint.reason_to_refuse(command)
        if refusal is None:
            self._put(Proposal((command,), future, _deadline(timeout), True))
        else:
            future.fail(refusal)
        return future

    def propose_many(
        self, commands: Sequence[bytes], *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> ActorFuture[list[Any]]:
        """Propose commands together, which is much cheaper than one by one; the future has the list of results.

        They are applied in this order, and next to one another unless the leader changes meanwhile. A command that the
        state machine refuses has its `Refused` in its place in the list, as the others have their results.
        """
        future: ActorFuture[list[Any]] = ActorFuture()
        future.owner = self._owner
        deadline = _deadline(timeout)
        if isinstance(commands, str | bytes) or not isinstance(commands, Iterable):
            future.fail(ConfigError("commands", brief(commands), "must be a list of commands"))
        elif not (commands := list(commands)):
            future.set([])
        elif (refusal := self._reason_to_refuse(commands)) is None:
            self._put(Proposal(commands, future, deadline, False))
        else:
            future.fail(refusal)
        return future

    def _put_compressed(self, proposal: Proposal) -> None:
        """Compress in the client's thread, since that takes milliseconds a megabyte."""
        proposal.compress()
        self._node.actor_inbox.proposals.put(proposal)

    def _reason_to_refuse(self, commands: Sequence[bytes]) -> DrakkarError | None:
        fits = set(map(type, commands)) == {bytes} and (
            max(map(len, commands)) <= self._endpoint.max_command_bytes
        )
        if fits:
            return None  # found out for all together, which is quicker
        refusals = map(self._endpoint.reason_to_refuse, commands)
        return next((refusal for refusal in refusals if refusal is not None), None)

    def fence(self, *, timeout: float = DEFAULT_TIMEOUT_S) -> ActorFuture[int]:
        """Commit an entry that changes nothing; the future has its index: a fencing number.

        Each fence of a shard has a greater number than all that were committed before it, on whichever replica. So what
        an actor does elsewhere can carry the number, and be refused there once a greater one was seen. The state machine
        is not told of it. Fails as `propose` does.
        """
        future: ActorFuture[int] = ActorFuture.of(self._owner)
        kinds = bytes([EntryKind.SESSION])
        self._node.actor_inbox.proposals.put(Proposal((FENCE,), future, _deadline(timeout), True, kinds))
        return future

    def session(
        self, *, token: bytes | None = None, timeout: float = DEFAULT_TIMEOUT_S
    ) -> ActorFuture[Session]:
        """Open a client session, each of whose commands is applied exactly once, however often it is proposed.

        The session proposes a command again until its deadline (thesis §6.3). With a `token`, continue that session
        at this host; `Session.token` says what it is. The shard remembers 4096 sessions, and forgets the least
        recently used one. State machines on disk keep none: the future fails with `ConfigError`.
        """
        if self._node.snapshots.on_disk:
            future: ActorFuture[Session] = ActorFuture.of(self._owner)
            name = DiskStateMachine.__name__
            future.fail(
                ConfigError("session", self.shard_id, f"a {name} keeps no sessions: propose without one")
            )
            return future
        return open_session(self._endpoint, token=token, timeout=timeout)

    # -- reads --------------------------------------------------------------------------------------------------

    def read(self, query: Any, *, timeout: float = DEFAULT_TIMEOUT_S) -> ActorFuture[Any]:
        """Ask the state machine, linearizably: the answer reflects all that was committed before the call.

        Any replica answers from its own state machine, after the leader has confirmed the read. With the option
        `read_mode="safe"`, the default, this costs the leader a round of heartbeats, which simultaneous reads share,
        and no write (thesis §6.4). With `read_mode="lease"` it costs nothing at the leader, and a message there and
        back elsewhere (§6.4.1). A lease is linearizable only while the clocks of the hosts do not drift apart, and no
        process pauses, by more than the election timeout allows: a leader that was paused may answer from an old
        state.
        """
        future: ActorFuture[Any] = ActorFuture()
        future.owner = self._owner
        self._node.actor_inbox.requests.put(ReadRequest(query, future, _deadline(timeout)))
        return future

    def stale_read(self, query: Any, *, timeout: float = DEFAULT_TIMEOUT_S) -> ActorFuture[Any]:
        """Ask the state machine as it is here and now; costs no message.

        The answer may be older than what the same client has seen before, by as much as this replica is behind. There
        is no limit to that while it is cut off.
        """
        future: ActorFuture[Any] = ActorFuture()
        future.owner = self._owner
        self._node.actor_inbox.requests.put(ReadRequest(query, future, _deadline(timeout), stale=True))
        return future

    # -- who leads, and who belongs -----------------------------------------------------------------------------

    def transfer_leadership(self, target: int, *, timeout: float = DEFAULT_TIMEOUT_S) -> ActorFuture[int]:
        """Transfer the leadership to `target`, a voter; the future has its id, once this replica sees it lead.

        Meanwhile, for an election timeout at most, proposals are refused with `TransferInProgress` (thesis §3.10). The
        future fails as soon as the leader refuses the transfer or gives it up, and when another replica is elected.
        To name the present leader cancels a transfer that is in progress.
        """
        future: ActorFuture[int] = ActorFuture.of(self._owner)
        if is_whole(target, 1, MAX_SIGNED):
            self._node.actor_inbox.requests.put(TransferRequest(target, future, _deadline(timeout)))
        else:
            future.fail(ConfigError("target", target, "must be a replica id, a whole number from 1 up"))
        return future

    def add_replica(
        self, replica_id: int, address: str, *, force: bool = False, timeout: float = DEFAULT_TIMEOUT_S
    ) -> ActorFuture[Membership]:
        """Add a voter, or promote an observer; the future has the new membership. `address` is its host's.

        See `change_membership` for `force`. A shard of one voter needs an observer that has caught up.
        """
        change = Change(ChangeType.ADD_VOTER, replica_id, address)
        return self.change_membership([change], force=force, timeout=timeout)

    def add_observer(
        self, replica_id: int, address: str, *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> ActorFuture[Membership]:
        """Add a replica that receives everything and never votes; the future has the new membership."""
        return self.change_membership([Change(ChangeType.ADD_OBSERVER, replica_id, address)], timeout=timeout)

    def add_witness(
        self, replica_id: int, address: str, *, force: bool = False, timeout: float = DEFAULT_TIMEOUT_S
    ) -> ActorFuture[Membership]:
        """Add a replica that votes and keeps no commands; the future has the new membership.

        See `change_membership` for `force`. A witness cannot be an observer first, so it needs two voters that work.
        """
        change = Change(ChangeType.ADD_WITNESS, replica_id, address)
        return self.change_membership([change], force=force, timeout=timeout)

    def remove_replica(
        self, replica_id: int, *, force: bool = False, timeout: float = DEFAULT_TIMEOUT_S
    ) -> ActorFuture[Membership]:
        """Remove a replica for good: its id is never used again. The future has the new membership.

        See `change_membership` for `force`.
        """
        return self.change_membership([Change(ChangeType.REMOVE, replica_id)], force=force, timeout=timeout)

    def update_address(
        self, replica_id: int, address: str, *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> ActorFuture[Membership]:
        """Tell the shard that a member is reached at another address; the future has the new membership.

        Do so for every replica of a host that is to move. Then stop the host, and start it there with the same data
        directory: only now it may have another address than before, and only this one. `AddressChanged` tells its subscribers. Fails
        as `change_membership` does.
        """
        return self.change_membership([Change(ChangeType.UPDATE, replica_id, address)], timeout=timeout)

    def change_membership(
        self,
        changes: Sequence[Change],
        *,
        transition: Transition = Transition.AUTO,
        change_id: int = 0,
        force: bool = False,
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> ActorFuture[Membership]:
        """Change several replicas at once, by joint consensus (thesis §4.3); the future has the new membership.

        `change_id`: with the option `ordered_config_change`, the `Membership.change_id` that this change follows. Fails
        with `MembershipRejected`, which names the rule that the change breaks, or why it is not possible now.

        The leader refuses a change after which it could not reach a quorum now, of both halves where the change is joint:
        the shard would commit nothing more. It counts the voters that have answered it lately, and of the new ones those
        that have caught up as observers. `force`: make the change all the same.
        """
        future: ActorFuture[Membership] = ActorFuture.of(self._owner)
        deadline = _deadline(timeout)
        try:
            check_choice("transition", transition, Transition)
            check_whole("change_id", change_id, 0, MAX_SIGNED)
            _check_changes(changes, self._node.raft.membership.addresses)
            check_switch("force", force)
        except DrakkarError as error:
            future.fail(error)
            return future
        payload = ConfigChange(tuple(changes), transition, change_id, forced=force).encode()
        kinds = bytes([EntryKind.CONFIG_CHANGE])
        self._node.actor_inbox.proposals.put(Proposal((payload,), future, deadline, single=True, kinds=kinds))
        return future

    # -- snapshots ----------------------------------------------------------------------------------------------

    def snapshot(
        self,
        *,
        export_to: str | os.PathLike[str] | None = None,
        compaction_overhead: int | None = None,
        timeout: float = 60.0,
    ) -> ActorFuture[int]:
        """Take a snapshot now and compact the log up to it; the future has its index once it is durable.

        If nothing was applied since the last snapshot, that one's index. `compaction_overhead`: how many entries to
        keep in the log, instead of what the option of that name says. With `export_to`, only a copy is written to that
        file, which must not exist: a backup, or the source of an `import` after a disaster. Proposals are still
        taken; `StateMachine` says what waits. A witness has no snapshots. The future fails with `StorageFailed` where the
        file cannot be written; the log stays as it is then.
        """
        future: ActorFuture[int] = ActorFuture.of(self._owner)
        deadline = _deadline(timeout)
        try:
            if compaction_overhead is not None:
                check_whole("compaction_overhead", compaction_overhead, 0)
            path = _path_of("export_to", export_to) if export_to is not None else None
        except ConfigError as error:
            future.fail(error)
        else:
            self._node.actor_inbox.requests.put(SnapshotRequest(future, deadline, compaction_overhead, path))
        return future

    # -- messages of your own types -----------------------------------------------------------------------------

    def tell(self, message: Message) -> None:
        """Bring a message of a type of your own to this replica's handler table. It has no answer. Never blocks.

        Its payload has at most 8 KiB. It may have objects of this process, such as an actor's ref: each counts 1 KiB, or what it
        takes in memory. What handlers raise is logged and counted. Messages that one thread tells and asks are handled in this order.

        Raises `ConfigError` for a message of another type, one that names another replica, and one whose payload is too large;
        `SystemBusy` where too many wait, or the disk hangs; `ReplicaStopped` where the replica has ended, or the shard has removed
        it; `ForkedError` in a forked process. What waits when the disk begins to hang is dropped and counted.
        """
        told, size = own_messages.checked(message, self.shard_id, self.replica_id)
        refusal: ActorFuture[None] = ActorFuture()
        why = self._node.clients.reason_to_refuse_all()
        if why is None:
            self._node.actor_inbox.own.put(OwnMessage(told, refusal, math.inf, size, asked=False))
        else:
            refusal.fail(why)
        if refusal.done:
            refusal.get()

    def ask(self, message: Message, *, block: bool = True, timeout: float | None = None) -> Any:
        """Bring a message of a type of your own to this replica's handler table, and wait for the answer, as pykka's `ask`.

        With `block=False` it returns a future. The answer is what the handler returns, or what it gives to `node.reply(message,
        answer)` later; what it raises is raised here. `timeout` is in seconds, 5 by default, and ends the ask in every case:

        - surely without an effect: `RequestDropped`, where no handler takes the message in the present state, or not by then; any
          `SystemBusy`; `ReplicaStopped` where the replica had ended;
        - unknown: `OutcomeUnknown` where a handler has taken it and has not replied; `ReplicaStopped` with `outcome_known=False`
          where the replica ended meanwhile.

        Raises `ConfigError` as `tell`, and `DeadlockError` where it would block the thread of a `TrioLoop`.
        """
        if block:
            forbid_waiting(
                f"ask() of {self!r}", "use ask(…, block=False), and await the future or give it a callback"
            )
        timeout = DEFAULT_TIMEOUT_S if timeout is None else timeout
        future: ActorFuture[Any] = ActorFuture.of(self._owner)
        deadline = _deadline(timeout)
        try:
            asked, size = own_messages.checked(message, self.shard_id, self.replica_id)
        except ConfigError as error:
            future.fail(error)
        else:
            self._node.actor_inbox.own.put(OwnMessage(asked, future, deadline, size))
        return future.get(timeout=timeout + ASK_GRACE_S) if block else future

    def table(self) -> str:
        """Return this replica's handler table as text: who answers what in which state, and how often each cell has. From any thread."""
        self._process.check(self)
        return self._node.handlers.describe(counts=self._node.tally)

    # -- for operators ------------------------------------------------------------------------------------------

    def query_log(
        self,
        first: int,
        end: int,
        *,
        max_bytes: int = 1 << 20,
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> ActorFuture[Entries]:
        """Read committed entries from `first` up to, but without, `end`, as this replica's log holds them.

        Returns a prefix of them of `max_bytes`, 1 to 8 MiB, but at least one entry: for more, ask again from the entry
        behind the last. Payloads are as they were logged: those of ENCODED and SESSION entries are not decoded. Fails
        with `RequestDropped` where `first` is compacted or not yet known to be committed, and at a witness.
        """
        future: ActorFuture[Entries] = ActorFuture.of(self._owner)
        try:
            check_whole("first", first, 1, MAX_SIGNED)
            check_whole("end", end, first + 1, MAX_SIGNED)
            check_whole("max_bytes", max_bytes, 1, MAX_QUERY_BYTES)
        except ConfigError as error:
            future.fail(error)
        else:
            self._node.actor_inbox.requests.put(LogQuery(first, end, max_bytes, future, _deadline(timeout)))
        return future

    def forget_leader(self) -> ActorFuture[None]:
        """Do as if no leader were known, so that this replica may vote for another one at once.

        For an operator who knows that the leader is gone. A message of that leader makes it known again. Changes
        nothing at a leader, nor with `read_mode="lease"`. The future is set in the replica's next turn.
        """
        future: ActorFuture[None] = ActorFuture.of(self._owner)
        self._node.actor_inbox.requests.put(ForgetLeader(future))
        return future

    def assign_groups(self, groups: Mapping[int, int]) -> ActorFuture[None]:
        """Say where replicas stand, for the option `group_commit`: `{replica_id: group}`, with 0 for no group.

        What is committed is then durable in two groups, so that losing all machines of one loses nothing. Any replica
        may lead, so call it at each; those that are not named keep their group. It lasts until the replica stops:
        `start_replica(groups=…)` says it anew. Fails with `ConfigError` for what is no replica id or no group, and
        without `group_commit`, and then changes nothing. The future is set in the replica's next turn.
        """
        future: ActorFuture[None] = ActorFuture.of(self._owner)
        if isinstance(groups, Mapping):
            self._node.actor_inbox.requests.put(AssignGroups(dict(groups), future))
        else:
            future.fail(ConfigError("groups", brief(groups), "must be a mapping of replica ids to groups"))
        return future

    def groups_consistent(self) -> ActorFuture[bool | None]:
        """Tell whether two groups hold all that is committed, so that the loss of one group loses nothing.

        The future has None where that is not known: at a replica that does not lead or has just been elected, and
        without groups. It is set in the replica's next turn.
        """
        future: ActorFuture[bool | None] = ActorFuture.of(self._owner)
        self._node.actor_inbox.requests.put(GroupsConsistent(future))
        return future

    # -- itself -------------------------------------------------------------------------------------------------

    def status(self) -> Status:
        """Return term, leader, indexes and members as they were a moment ago; after its end, also when and why it ended."""
        self._process.check(self)
        return self._node.status()

    @property
    def counters(self) -> Mapping[str, int]:
        """What this replica has counted since its start, by name; a copy.

        - `messages refused`, `proposals refused`, `requests refused`, `own messages refused`: its inbox was full;
        - `messages while the disk hung`: dropped, for the disk could not take what they bring;
        - `messages that waited for too long`: orders to campaign that were in the inbox for an election timeout; dropped;
        - `entries dropped by a full disk`: those of a leader that this host has no room for; the leader sends them again;
        - `proposals refused by a full disk`: those that this replica refused as the leader (`DiskFull`);
        - `reads that waited for the disk`: reads of old entries that were too large for the loop, or not in memory; they are tried
          again when another thread has read them;
        - `messages without an address`: not sent, since the host of their receiver is not known;
        - `snapshots failed`: those that could not be taken;
        - `answers that nobody waited for`: of handlers, which replied twice, or after the deadline;
        - `messages to other actors dropped`: of handlers; those actors have ended, or take no more;
        - `records refused`: those that handlers proposed here, and that the core has refused, here or at the leader;
        - `faulty: without a term`, and so on: messages that no correct peer sends, by what is wrong with them;
        - `handled REPLICATE in FOLLOWER`, and so on for each message type and state: calls of a handler. Likewise
          `failed`, of handlers of your own types that raised, `ignored`, `swallowed` by a guard, and `impossible`: there is a bug, here
          or at a peer; and `delivered`, of entries to extensions, by their kinds.
        """
        self._process.check(self)
        return self._node.counters()

    def when_applied(self, index: int, *, timeout: float = DEFAULT_TIMEOUT_S) -> ActorFuture[int]:
        """Wait until this replica has applied the log up to `index`; the future has the index it has applied by then."""
        future: ActorFuture[int] = ActorFuture.of(self._owner)
        try:
            check_whole("index", index, 0, MAX_SIGNED)
        except ConfigError as error:
            future.fail(error)
        else:
            self._node.actor_inbox.requests.put(AppliedRequest(index, future, _deadline(timeout)))
        return future

    def stop(self, *, timeout: float = 10.0) -> None:
        """Stop this replica, and wait until its state machine has finished. The others of its shard go on.

        If it leads, it first hands over to a voter that is up to date, for a second at most; see `NodeHost.stop`.

        Raises `pykka.Timeout` if that takes longer than `timeout` seconds, and `DeadlockError` in the host's loop and in
        the replica's own state machine.
        """
        forbid_waiting_for(self._owner, f"stop() of {self!r}")
        forbid_waiting(f"stop() of {self!r}", "call it in another thread, or use ref.stop(block=False)")
        self._process.check(self)
        until = _deadline(timeout)
        hand_over(self._node.actor_loop, [self._node], min(timeout, HAND_OVER_TIMEOUT_S))
        self.ref.stop(timeout=max(0.0, until - monotonic()))
        self._node.over.get(timeout=max(0.0, until - monotonic()))


def _path_of(option: str, path: object) -> Path:
    check_type(option, path, (str, os.PathLike), "the path of a file")
    return Path(cast("str", path)).absolute()


def _deadline(timeout: float) -> float:
    if timeout is not DEFAULT_TIMEOUT_S:  # each command comes here
        check_timeout(timeout)
    return monotonic() + timeout


def _check_changes(changes: Sequence[Change], known: Mapping[int, str]) -> None:
    """Refuse what must not get into the log, which keeps it for good."""
    check_type("changes", changes, Iterable, "a list of Changes")
    for change in changes:
        check_type("changes", change, Change, "a list of Changes")
        check_choice("type", change.type, ChangeType)
        check_whole("replica_id", change.replica, 1, MAX_SIGNED)
        if type(change.address) is not str:
            raise ConfigError("address", change.address, "must be a text, 'host:port'")
        if change.address:
            parse_address(change.address)
        elif change.type in _ADDITIONS and change.replica not in known:
            raise ConfigError(
                "address", "", f"name the host of the new replica {change.replica}, 'host:port'"
            )
        if change.type is ChangeType.UPDATE and not change.address:
            raise ConfigError("address", "", f"name the new address of replica {change.replica}, 'host:port'")
        if change.type in (ChangeType.REMOVE, ChangeType.UPDATE) and change.replica not in known:
            # The log would take it, and an id that was removed could never be used.
            raise MembershipRejected(
                f"replica {change.replica} is no member: {sorted(known)} are, as far as this replica knows"
            )
