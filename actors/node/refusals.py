"""Why a request is refused: the errors that clients get, and what they can do about it."""

from collections.abc import Sequence
from typing import Final

from drakkar.actors.machine.applied import ApplyFailed
from drakkar.actors.runtime.futures import in_full
from drakkar.handlers.errors import (
    ActorFailed,
    DiskFull,
    DrakkarError,
    MembershipRejected,
    NotLeader,
    OutcomeUnknown,
    RequestDropped,
    SystemBusy,
    TransferInProgress,
    Vetoed,
)
from drakkar.handlers.messages import MessageType
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.ready import Refusal

__all__ = [
    "error_for",
    "reason_to_wait",
    "refusal_of_the_table",
    "snapshot_failure",
    "state_machine_failure",
]

MAX_PENDING: Final = 1 << 20
"""Commands without an answer that one replica may have. Usually the bounds of the leader's log are reached first."""


_NO_LEADER: Final = {Refusal.NO_LEADER, Refusal.CAMPAIGNING, Refusal.STEPPED_DOWN}
_BUSY: Final = {Refusal.TOO_MANY_UNCOMMITTED, Refusal.TOO_MANY_READS}
_REJECTED: Final = {Refusal.CHANGE_PENDING, Refusal.CHANGE_INVALID}


def error_for(raft: Raft, because: Refusal, replicas: Sequence[int] = (), text: str = "") -> DrakkarError:
    """Return the error for a request of this replica's clients that the core, here or at the leader, has dropped.

    `replicas` and `text` are those of `Dropped`.
    """
    if because in _NO_LEADER:
        return NotLeader(raft.id, raft.leader_id, because.value)
    if because in _BUSY:
        return SystemBusy(f"{because.value}: wait a little and repeat it")
    if because is Refusal.QUORUM_UNREACHABLE:
        return MembershipRejected(_unreachable(replicas))
    if because is Refusal.VOTER_UNSETTLED:
        return MembershipRejected(_unsettled(replicas))
    if because in _REJECTED:
        return MembershipRejected(because.value)
    if because is Refusal.DISK_FULL:
        return DiskFull(
            f"{because.value}: nothing was logged; propose again later, or free space on the host of replica {raft.leader_id}"
        )
    if because is Refusal.TRANSFERRING:
        return TransferInProgress("a leadership transfer is in progress: propose again in a moment")
    if because is Refusal.TRANSFER_TIMED_OUT:
        return OutcomeUnknown(f"{because.value}; it may still be elected")
    if because is Refusal.VETOED:
        return Vetoed(text or because.value)
    if because is Refusal.KIND_MISSING:
        return RequestDropped(_kind_missing(replicas))
    return RequestDropped(because.value)


def _kind_missing(replicas: Sequence[int]) -> str:
    """Return what a record lacks, and the remedy."""
    lacking = f"; those that have not: {', '.join(map(str, replicas))}" if replicas else ""
    return f"{Refusal.KIND_MISSING.value}{lacking}: start all replicas with a table that uses the extension, and repeat it"


def _unreachable(replicas: Sequence[int]) -> str:
    """Return what a membership change lacks, and how to get it done."""
    return (
        f"{Refusal.QUORUM_UNREACHABLE.value}, so that nothing more would be committed: the leader does not hear replicas "
        f"{', '.join(map(str, replicas))}, or they lag. Start them; add a new one as an observer first, and make it a voter "
        "when it has caught up. force=True makes the change all the same"
    )


def _unsettled(replicas: Sequence[int]) -> str:
    """Return for whom a membership change waits, and how to get it done; nothing forces it."""
    return (
        f"{Refusal.VOTER_UNSETTLED.value}: the leader waits for replicas {', '.join(map(str, replicas))}. Start them, with "
        "their host at the address that the membership has for them, and repeat this change; or remove them first"
    )


def refusal_of_the_table(raft: Raft, type_: MessageType) -> RequestDropped | None:
    """Return the error for a request whose message meets no handler in the present state; None if it meets one."""
    cell = raft.handlers[raft.state][type_]
    if callable(cell):
        return None
    state = raft.state.name.lower()
    article = "an" if state[0] in "aeiou" else "a"
    why = f"replica {raft.id} of shard {raft.config.shard_id} is {article} {state}: {cell.because}; ask another replica"
    # It is the leader's to do, and a client that knows it may ask it.
    if type_ is MessageType.LEADER_TRANSFER:
        return NotLeader(raft.id, raft.leader_id, why)
    return RequestDropped(why)


def reason_to_wait(raft: Raft, pending: int) -> SystemBusy | None:
    """Return why no further proposal is taken now, though the replica could; `pending` counts commands on their way."""
    if raft.rate_limit.limited:
        return SystemBusy(
            "the state machine, here or on a follower, is too far behind: wait and propose again"
        )
    if pending >= MAX_PENDING:
        return SystemBusy(f"{pending} commands are on their way: wait for some, and propose again")
    return None


def snapshot_failure(error: BaseException) -> DrakkarError:
    """Return the error for a client whose snapshot could not be written because of `error`."""
    if isinstance(error, DrakkarError):
        return error
    failed = ActorFailed(f"the snapshot could not be written: {in_full(error)}")
    failed.__cause__ = error
    failed.outcome_known = True
    return failed


def state_machine_failure(replica: str, error: BaseException) -> ActorFailed:
    """Return the error with which a replica stops whose state machine failed with `error`."""
    if not isinstance(error, ApplyFailed):
        failed = ActorFailed(f"{replica} stops, since its state machine failed: {in_full(error)}")
        failed.__cause__ = error
        return failed
    failed = ActorFailed(
        f"{replica} stops, since its state machine failed: {error}. Every replica whose state machine is deterministic "
        "stops at this entry, and again after a restart: mend the state machine, which may refuse a wrong command by "
        "raising Refused, and start all replicas with it. If others went on, it does not depend on the state and the "
        "command alone: mend that, then replace this replica by a new one"
    )
    failed.__cause__ = error.__cause__
    return failed
