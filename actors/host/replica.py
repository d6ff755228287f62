"""`Replica`: the client's handle on one replica of this host."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pykka
from drakkar.actors.host.session import Endpoint, Session, later_on, open_session
from drakkar.actors.machine.state_machine import DiskStateMachine
from drakkar.actors.node.actor import NodeActor
from drakkar.actors.node.applied import AppliedRequest
from drakkar.actors.node.proposals import Proposal
from drakkar.actors.node.reads import ReadRequest
from drakkar.actors.node.snapshots import SnapshotRequest
from drakkar.actors.node.status import Status
from drakkar.actors.node.transfers import TransferRequest
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.handlers.checks import MAX_SIGNED, check_timeout, check_whole, is_whole
from drakkar.handlers.errors import ConfigError, DrakkarError, MembershipRejected, RequestDropped
from drakkar.handlers.raft.confchange import Change, ChangeType, ConfigChange, Transition
from drakkar.handlers.raft.entries import EntryKind
from drakkar.transport.addresses import parse_address

__all__ = ["Replica"]

DEFAULT_TIMEOUT: Final = 5.0
_ADDITIONS: Final = frozenset({ChangeType.ADD_VOTER, ChangeType.ADD_OBSERVER, ChangeType.ADD_WITNESS})


class Replica:
    """A replica that this host runs. All methods may be called from any thread, and none of them blocks.

    What has to wait returns an `ActorFuture`: `get(timeout=…)` in a thread, `await` in trio and asyncio. Every one is
    answered by its `timeout`, in seconds and to within a tick, whatever happens. How it fails tells what became of it:

    - `NotLeader`, `SystemBusy`, `TransferInProgress`, or any other `RequestDropped`, and `ReplicaStopped`: surely nothing;
    - `OutcomeUnknown`: it may or may not have been committed, and may be yet.
    """

    def __init__(self, ref: pykka.ActorRef[NodeActor], node: NodeActor, *, max_command_bytes: int) -> None:
        """Made by `NodeHost.start_replica`."""
        self.ref = ref
        """The node actor's ref; `ref.proxy().handlers` is its table."""
        self._node = node
        self._max_command_bytes = max_command_bytes
        self.shard_id = node.raft.config.shard_id
        self.replica_id = node.raft.id
        compresses = node.raft.config.entry_compression != "none"
        self._put = self._put_compressed if compresses else node.queue.put
        self._endpoint = Endpoint(
            shard=self.shard_id,
            put=node.queue.put,
            later=later_on(node.actor_loop),
            max_command_bytes=max_command_bytes,
            compress=compresses,
        )

    def __repr__(self) -> str:
        return f"<Replica {self.replica_id} of shard {self.shard_id}>"

    # -- commands -----------------------------------------------------------------------------------------------

    def propose(self, command: bytes, *, timeout: float = DEFAULT_TIMEOUT) -> ActorFuture[Any]:
        """Have a command applied by all replicas; the result is that of this host's state machine.

        The future is set when the command is durable on a majority and applied here. Any replica takes proposals:
        one that does not lead sends them on to the leader.
        """
        future: ActorFuture[Any] = ActorFuture()
        if self._fits((command,), future):
            self._put(Proposal((command,), future, _deadline(timeout), single=True))
        return future

    def propose_many(
        self, commands: Sequence[bytes], *, timeout: float = DEFAULT_TIMEOUT
    ) -> ActorFuture[list[Any]]:
        """Propose commands together, which is much cheaper than one by one; the future has the list of results.

        They stay in order, and next to one another unless a leader changes meanwhile.
        """
        future: ActorFuture[list[Any]] = ActorFuture()
        commands = list(commands)
        if not commands:
            future.set([])
        elif self._fits(commands, future):
            self._put(Proposal(commands, future, _deadline(timeout), single=False))
        return future

    def _put_compressed(self, proposal: Proposal) -> None:
        """In the client's thread, as it takes its time."""
        proposal.compress()
        self._node.queue.put(proposal)

    def _fits(self, commands: Sequence[bytes], future: ActorFuture[Any]) -> bool:
        for command in commands:
            if type(command) is not bytes:
                future.fail(
                    ConfigError("command", type(command).__name__, "a command is bytes: encode it first")
                )
                return False
            if len(command) > self._max_command_bytes:
                future.fail(
                    RequestDropped(
                        f"a command of {len(command)} bytes is larger than {self._max_command_bytes}: make it "
                        "smaller, or raise the host's max_command_bytes"
                    )
                )
                return False
        return True

    def session(
        self, *, token: bytes | None = None, timeout: float = DEFAULT_TIMEOUT
    ) -> ActorFuture[Session]:
        """Open a client session, whose commands are applied exactly once each, however often they are repeated.

        It repeats them itself until their deadlines (thesis §6.3). With a `token`, go on with that session, at this
        host: `Session.token` says what it is. The shard remembers 4096 sessions, and forgets the one that was not used
        for longest. State machines on disk keep none (`ConfigError`).
        """
        if self._node.snapshots.on_disk:
            future: ActorFuture[Session] = ActorFuture()
            name = DiskStateMachine.__name__
            future.fail(ConfigError("session", self.shard_id, f"a {name} keeps no sessions: propose without"))
            return future
        return open_session(self._endpoint, token=token, timeout=timeout)

    # -- reads --------------------------------------------------------------------------------------------------

    def read(self, query: Any, *, timeout: float = DEFAULT_TIMEOUT) -> ActorFuture[Any]:
        """Ask the state machine, linearizably: the answer reflects all that was committed before the call.

        Any replica answers, from its own state machine, after a word from the leader. With the option
        `read_mode="safe"`, the default, that costs the leader a round of heartbeats, which the reads of one moment
        share, and no write (thesis §6.4). With `read_mode="lease"` it costs nothing at the leader, and the way there
        and back elsewhere (§6.4.1); but then it is linearizable only as long as no clock of the shard's hosts runs away
        from the others, and no process stands still, by more than the election timeout allows: a leader that was
        stopped may answer from an old state after it wakes up.
        """
        future: ActorFuture[Any] = ActorFuture()
        self._node.requests.put(ReadRequest(query, future, _deadline(timeout)))
        return future

    def stale_read(self, query: Any, *, timeout: float = DEFAULT_TIMEOUT) -> ActorFuture[Any]:
        """Ask the state machine as it is here and now: costs no message, and waits for nothing but its turn.

        The answer may be older than what the same client has seen before, by as much as this replica is behind: any
        time at all where it is cut off.
        """
        future: ActorFuture[Any] = ActorFuture()
        self._node.requests.put(ReadRequest(query, future, _deadline(timeout), stale=True))
        return future

    # -- who leads, and who belongs -----------------------------------------------------------------------------

    def transfer_leadership(self, target: int, *, timeout: float = DEFAULT_TIMEOUT) -> ActorFuture[int]:
        """Let `target`, a voter, become leader; the future is set, with its id, once this replica sees it lead.

        Proposals are refused with `TransferInProgress` meanwhile, an election timeout at most (thesis §3.10). It fails
        as soon as the leader, here or elsewhere, refuses it or gives it up, and when somebody else is elected; to ask
        for the present leader calls off a transfer that is on its way.
        """
        future: ActorFuture[int] = ActorFuture()
        if is_whole(target, 1, MAX_SIGNED):
            self._node.requests.put(TransferRequest(target, future, _deadline(timeout)))
        else:
            future.fail(ConfigError("target", target, "must be a replica id, a whole number from 1 up"))
        return future

    def add_replica(
        self, replica_id: int, address: str, *, timeout: float = DEFAULT_TIMEOUT
    ) -> ActorFuture[Any]:
        """Add a voter, or promote an observer; the future has the new `Membership`."""
        return self.change_membership([Change(ChangeType.ADD_VOTER, replica_id, address)], timeout=timeout)

    def add_observer(
        self, replica_id: int, address: str, *, timeout: float = DEFAULT_TIMEOUT
    ) -> ActorFuture[Any]:
        """Add a replica that receives everything and never votes."""
        return self.change_membership([Change(ChangeType.ADD_OBSERVER, replica_id, address)], timeout=timeout)

    def add_witness(
        self, replica_id: int, address: str, *, timeout: float = DEFAULT_TIMEOUT
    ) -> ActorFuture[Any]:
        """Add a replica that votes and keeps no commands."""
        return self.change_membership([Change(ChangeType.ADD_WITNESS, replica_id, address)], timeout=timeout)

    def remove_replica(self, replica_id: int, *, timeout: float = DEFAULT_TIMEOUT) -> ActorFuture[Any]:
        """Remove a replica for good: its id is never used again."""
        return self.change_membership([Change(ChangeType.REMOVE, replica_id)], timeout=timeout)

    def change_membership(
        self,
        changes: Sequence[Change],
        *,
        transition: Transition = Transition.AUTO,
        change_id: int = 0,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> ActorFuture[Any]:
        """Change several replicas at once, by joint consensus (thesis §4.3); the future has the new `Membership`.

        `change_id` is the one of the membership that the change was made for, where changes are ordered. Fails with
        `MembershipRejected`, which names the rule, or why it cannot be now.
        """
        future: ActorFuture[Any] = ActorFuture()
        try:
            _check_changes(changes, self._node.raft.membership.addresses)
        except DrakkarError as error:
            future.fail(error)
            return future
        payload = ConfigChange(tuple(changes), transition, change_id).encode()
        kinds = bytes([EntryKind.CONFIG_CHANGE])
        self._node.queue.put(Proposal((payload,), future, _deadline(timeout), single=True, kinds=kinds))
        return future

    # -- snapshots ----------------------------------------------------------------------------------------------

    def snapshot(
        self,
        *,
        export_to: str | os.PathLike[str] | None = None,
        compaction_overhead: int | None = None,
        timeout: float = 60.0,
    ) -> ActorFuture[int]:
        """Take a snapshot now, and give up the log behind it; the future has its index, when it is durable.

        Where nothing was applied since the last one, that one's. `compaction_overhead` is how many entries stay, if
        not as many as the option of that name says. With `export_to`, a copy for safekeeping, or for `import` after a
        disaster, is written to that file, which must not be there yet, and nothing else changes. Proposals go on; see
        `StateMachine` for what waits. A witness has none.
        """
        future: ActorFuture[int] = ActorFuture()
        if compaction_overhead is not None:
            try:
                check_whole("compaction_overhead", compaction_overhead, 0)
            except ConfigError as error:
                future.fail(error)
                return future
        path = Path(export_to).absolute() if export_to is not None else None
        self._node.requests.put(SnapshotRequest(future, _deadline(timeout), compaction_overhead, path))
        return future

    # -- itself -------------------------------------------------------------------------------------------------

    def status(self) -> Status:
        """Where the replica stands, as of a moment ago. Returns at once."""
        return self._node.status()

    def when_applied(self, index: int, *, timeout: float = DEFAULT_TIMEOUT) -> ActorFuture[int]:
        """Wait until this replica's state machine has applied the log up to `index`; the future has how far it is."""
        future: ActorFuture[int] = ActorFuture()
        self._node.requests.put(AppliedRequest(index, future, _deadline(timeout)))
        return future

    def stop(self, *, timeout: float = 10.0) -> None:
        """Stop this replica; the others of its shard go on. Not from the loop.

        Blocks until it has stopped, and its state machine is at work no more; raises `pykka.Timeout` where that takes
        longer than `timeout` seconds.
        """
        until = time.monotonic() + timeout
        self.ref.stop(timeout=timeout)
        self._node.over.get(timeout=max(0.0, until - time.monotonic()))


def _deadline(timeout: float) -> float:
    check_timeout(timeout)
    return time.monotonic() + timeout


def _check_changes(changes: Sequence[Change], known: Mapping[int, str]) -> None:
    """What is logged is logged for good, so an address that is none must not come so far."""
    for change in changes:
        check_whole("replica_id", change.replica, 1, MAX_SIGNED)
        if type(change.address) is not str:
            raise ConfigError("address", change.address, "must be a text, 'host:port'")
        if change.address:
            parse_address(change.address)
        elif change.type in _ADDITIONS and change.replica not in known:
            raise ConfigError("address", "", f"say where the new replica {change.replica} is to be found")
        if change.type is ChangeType.REMOVE and change.replica not in known:
            # The log would take it, and nobody could ever use that id.
            raise MembershipRejected(
                f"replica {change.replica} is none of the members that are known here: {sorted(known)}"
            )
