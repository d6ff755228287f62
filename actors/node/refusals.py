"""Why a request is refused: the errors that clients get, and what they can do about it."""

from typing import Final

from drakkar.actors.runtime.futures import brief
from drakkar.handlers.errors import (
    ActorFailed,
    DrakkarError,
    MembershipRejected,
    NotLeader,
    OutcomeUnknown,
    RequestDropped,
    SystemBusy,
    TransferInProgress,
)
from drakkar.handlers.messages import MessageType
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.ready import Refusal

__all__ = ["error_for", "reason_to_wait", "refusal_of_the_table", "snapshot_failure"]

MAX_PENDING: Final = 1 << 20
"""Commands without an answer that one replica may have. Usually the bounds of the leader's log are reached first."""


_NO_LEADER: Final = {Refusal.NO_LEADER, Refusal.CAMPAIGNING, Refusal.STEPPED_DOWN}
_BUSY: Final = {Refusal.TOO_MANY_UNCOMMITTED, Refusal.TOO_MANY_READS}
_REJECTED: Final = {Refusal.CHANGE_PENDING, Refusal.CHANGE_INVALID}


def error_for(raft: Raft, because: Refusal) -> DrakkarError:
    """Return the error for a request of this replica's clients that the core, here or at the leader, has dropped."""
    if because in _NO_LEADER:
        return NotLeader(raft.id, raft.leader_id, because.value)
    if because in _BUSY:
        return SystemBusy(f"{because.value}: wait a little and repeat it")
    if because in _REJECTED:
        return MembershipRejected(because.value)
    if because is Refusal.TRANSFERRING:
        return TransferInProgress("a leadership transfer is in progress: propose again in a moment")
    if because is Refusal.TRANSFER_TIMED_OUT:
        return OutcomeUnknown(f"{because.value}; it may still be elected")
    return RequestDropped(because.value)


def refusal_of_the_table(raft: Raft, type_: MessageType) -> RequestDropped | None:
    """Return the error for a request whose message meets no handler in the present state; None if it meets one."""
    cell = raft.handlers[raft.state][type_]
    if callable(cell):
        return None
    state = raft.state.name.lower()
    article = "an" if state[0] in "aeiou" else "a"
    why = f"replica {raft.id} of shard {raft.config.shard_id} is {article} {state}: {cell.because}; ask another replica"
    if (
        type_ is MessageType.LEADER_TRANSFER
    ):  # it is the leader's to do, and a client that knows it may ask it
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
    failed = ActorFailed(f"the snapshot could not be written: {brief(error)}")
    failed.__cause__ = error
    failed.outcome_known = True
    return failed
