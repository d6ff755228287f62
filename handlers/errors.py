"""What can go wrong, by whose fault, and whether a proposal may have been committed all the same."""

from typing import Any

__all__ = [
    "ActorFailed",
    "AlreadySet",
    "ConfigError",
    "CorruptData",
    "DeadlockError",
    "DrakkarError",
    "HandlerTableError",
    "LoopError",
    "MembershipRejected",
    "NotLeader",
    "OutcomeUnknown",
    "ProtocolViolation",
    "ReplicaStopped",
    "RequestDropped",
    "ResultLost",
    "SessionExpired",
    "SessionRefused",
    "StorageFailed",
    "SystemBusy",
    "TransferInProgress",
    "TransportError",
]


class DrakkarError(Exception):
    """The base of all errors of this package.

    Every error carries the answer to the one question that whoever proposed has: may I just send it again?
    """

    outcome_known: bool = True
    """True: the proposal surely had no effect, and is safe to repeat. False: it may still be committed."""


class ConfigError(DrakkarError, ValueError):
    """The caller's fault: an option out of its bounds. Names the option, the value and the bounds."""

    def __init__(self, option: str, value: Any, remedy: str) -> None:
        super().__init__(option, value, remedy)
        self.option, self.value, self.remedy = option, value, remedy

    def __str__(self) -> str:
        return f"{self.option}={self.value!r}: {self.remedy}"


class HandlerTableError(DrakkarError):
    """The caller's fault: a mistake in a handler table. Names the cell or the function, and what to do."""


class RequestDropped(DrakkarError):
    """A request that was refused before it reached the log: it surely has no effect. Repeat it freely."""


class NotLeader(RequestDropped):
    """There is no leader to take the request, or the one asked cannot. Nothing was logged: repeat it freely."""

    def __init__(self, replica: int, leader: int = 0, detail: str = "") -> None:
        super().__init__(replica, leader, detail)
        self.replica, self.leader, self.detail = replica, leader, detail

    def __str__(self) -> str:
        remedy = (
            f"ask replica {self.leader}" if self.leader else "no leader is known yet, so wait and repeat it"
        )
        return f"replica {self.replica} cannot take the request: {self.detail or remedy}"


class SystemBusy(RequestDropped):
    """A bounded queue is full. Nothing was logged: wait a little, then repeat it."""


class TransferInProgress(RequestDropped):
    """A leadership transfer is in progress, so the leader takes no proposals. Repeat the request in a moment."""


class MembershipRejected(RequestDropped):
    """The membership change breaks a rule, which the message names. The membership is as it was."""


class ReplicaStopped(DrakkarError):
    """The replica was stopped, or failed, before the request was handed to it: it surely has no effect."""


class OutcomeUnknown(DrakkarError):
    """The proposal may or may not have been committed, and it may be committed yet.

    Read the state before repeating it, or use a client session, which makes repeating it safe.
    """

    outcome_known = False


class SessionRefused(DrakkarError):
    """The request does not agree with what the shard knows of the client's session; the message says in what.

    It was not applied now. Whether it was by an earlier request cannot be said in general, so read the state.
    """

    outcome_known = False


class SessionExpired(SessionRefused):
    """The shard knows no such session: it was closed, or forgotten since others were used more recently.

    So an open command of it may or may not have been applied, and whether it was cannot be found out through the
    session any more. It will not be applied later, though.
    """


class ResultLost(SessionRefused):
    """The command was applied, once. Its result was for the first request only, since it could not be kept."""


class ActorFailed(DrakkarError):
    """The actor failed while, or before, it handled the message; `__cause__` is what it failed with."""

    outcome_known = False


class AlreadySet(DrakkarError, RuntimeError):
    """The caller's fault: the future holds an outcome already. Where two may race to set it, use `try_set`."""


class DeadlockError(DrakkarError, RuntimeError):
    """The caller's fault: to wait here would stop the very thread that is waited for. Await it, or use a callback."""


class LoopError(DrakkarError, RuntimeError):
    """The loop does not run: it was not started, is stopping, or has ended. Names the loop and what to do."""


class CorruptData(DrakkarError):
    """Stored data does not match its checksum, or contradicts itself. Names the file and the index."""


class StorageFailed(DrakkarError):
    """The disk failed a write, so nothing that waits for it, or comes later, becomes durable until a restart.

    What was being written may or may not be found there; whatever was reported durable is.
    """

    outcome_known = False


class TransportError(DrakkarError):
    """The peer's or the network's fault: a connection, a frame or a handshake that cannot be used."""


class ProtocolViolation(DrakkarError):
    """An invariant of safety would break, so the replica stops rather than go on (a bug, or lost data).

    For example, a leader says that an entry is committed which this log does not hold, although it
    acknowledged it once: the data directory was wiped or rolled back.
    """
