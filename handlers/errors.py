"""The errors of this package: who is at fault, and whether a proposal may have been committed all the same."""

from typing import Any

__all__ = [
    "ActorFailed",
    "AlreadySet",
    "ConfigError",
    "CorruptData",
    "DeadlockError",
    "DiskFull",
    "DrakkarError",
    "ExtensionFailed",
    "ForkedError",
    "HandlerTableError",
    "LoopError",
    "MembershipRejected",
    "MissingExtension",
    "NotLeader",
    "OutcomeUnknown",
    "ProtocolViolation",
    "Refused",
    "ReplicaStopped",
    "RequestDropped",
    "ResultLost",
    "SessionExpired",
    "SessionRefused",
    "StorageFailed",
    "SystemBusy",
    "TransferInProgress",
    "TransportError",
    "Vetoed",
]


class DrakkarError(Exception):
    """The base of all errors of this package.

    `outcome_known` answers the question that matters after a failed proposal: is it safe to send it again?
    """

    outcome_known: bool = True
    """True: the proposal surely has no effect, so it is safe to repeat it. False: it may still be committed."""


class ConfigError(DrakkarError, ValueError):
    """The caller's fault: an option or argument out of its bounds. Names the option, the value and the bounds."""

    def __init__(self, option: str, value: Any, remedy: str) -> None:
        super().__init__(option, value, remedy)
        self.option, self.value, self.remedy = option, value, remedy

    def __str__(self) -> str:
        return f"{self.option}={self.value!r}: {self.remedy}"


class HandlerTableError(DrakkarError):
    """The caller's fault: a mistake in a handler table or a message type. Names the cell or function, and the remedy."""


class RequestDropped(DrakkarError):
    """The request was refused before it reached the log, so it surely has no effect. It is safe to repeat it."""


class NotLeader(RequestDropped):
    """No leader took the request. Nothing was logged, so it is safe to repeat it. `leader` is 0 if none is known."""

    def __init__(self, replica: int, leader: int = 0, detail: str = "") -> None:
        super().__init__(replica, leader, detail)
        self.replica, self.leader, self.detail = replica, leader, detail

    def __str__(self) -> str:
        remedy = (
            f"ask replica {self.leader}" if self.leader else "no leader is known yet, so wait, then repeat it"
        )
        return f"replica {self.replica} cannot take the request: {self.detail or remedy}"


class SystemBusy(RequestDropped):
    """A bounded queue is full. Nothing was logged: wait a moment, then repeat the request."""


class DiskFull(RequestDropped):
    """A disk has no room: the leader's for a proposal, or a host's for a snapshot that another one sends.

    Nothing was logged: repeat a proposal when there is room, or with another leader. A leader without room hands over to a
    voter that has room. If none has, free some space; no restart is needed.
    """


class TransferInProgress(RequestDropped):
    """A leadership transfer is in progress, so the leader takes no proposals. Repeat the request in a moment."""


class MembershipRejected(RequestDropped):
    """The membership change breaks a rule, which the text names. The membership is unchanged."""


class Vetoed(RequestDropped):
    """A handler of the application refused the request, with this text: see `Raft.veto`. Repeated, it would be refused again."""


class ReplicaStopped(DrakkarError):
    """The replica was stopped, or failed, before it took the request. The request surely has no effect."""


class OutcomeUnknown(DrakkarError):
    """The proposal may have been committed, or may still be committed later.

    Read the state before you repeat it, or use a client session, which makes it safe to repeat.
    """

    outcome_known = False


class Refused(DrakkarError):
    """The state machine refused the command. The command is committed, and every replica refused it alike.

    For a state machine to raise, before it changes anything: `raise Refused("there is no such account")`. The text is
    the outcome of the command, also for a client session that asks again. Nothing else of the exception is kept, so
    what a subclass adds does not reach the proposer.
    """


class SessionRefused(DrakkarError):
    """The request contradicts what the shard knows of the client's session; the text says how.

    This request was not applied. An earlier request with the same command may have been, so read the state.
    """

    outcome_known = False


class SessionExpired(SessionRefused):
    """The shard does not know the session: it was closed, or evicted because others were used more recently.

    A command that was still open may have been applied, and the session can no longer tell. It will not be applied
    later.
    """


class ResultLost(SessionRefused):
    """The command was applied or refused, once, but its result is lost: it could not be kept for a repeated request."""


class ActorFailed(DrakkarError):
    """The actor failed before or while it handled the message; `__cause__` is the exception that ended it."""

    outcome_known = False


class AlreadySet(DrakkarError, RuntimeError):
    """The caller's fault: the future already has an outcome. If two callers may race to set it, use `try_set`."""


class DeadlockError(DrakkarError, RuntimeError):
    """The caller's fault: waiting here would block the thread that must set the outcome. Await it or use a callback.

    In a state machine: what it would wait for comes only when it returns, or never.
    """


class LoopError(DrakkarError, RuntimeError):
    """The loop does not run: it was not started, is stopping, or has ended. Names the loop and the remedy."""


class ForkedError(DrakkarError, RuntimeError):
    """The caller's fault: this process was forked from the one that runs what it asks for, and has only a dead copy of it.

    `pid` is this process, `owner` the one that runs it. For a request that was made before the fork, `outcome_known`
    is False: it may have its effect in the owner.
    """

    def __init__(self, what: str, pid: int, owner: int) -> None:
        super().__init__(what, pid, owner)
        self.what, self.pid, self.owner = what, pid, owner

    def __str__(self) -> str:
        return (
            f"process {self.pid} was forked from process {self.owner}, which runs {self.what}: use it there, or make hosts "
            "and loops of its own in this process, after the fork"
        )


class CorruptData(DrakkarError):
    """Stored or received data does not match its checksum, or contradicts itself. The text says which data."""


class StorageFailed(DrakkarError):
    """The disk, or this process, cannot write or read a file now. The text names the file, the reason and the remedy.

    Where writing to the log failed, nothing more becomes durable until the host is restarted. The failed write may or
    may not be on disk; all that was reported as durable is. A file of a snapshot is written or read anew.
    """

    outcome_known = False


class TransportError(DrakkarError):
    """The fault of a peer or the network: a connection, a frame or a handshake cannot be used."""


class ProtocolViolation(DrakkarError):
    """A safety invariant would break, so the replica stops: there is a bug, or data was lost.

    Example: a leader has committed an entry that this replica acknowledged once, but its log no longer holds the
    entry, because its data directory was deleted or rolled back.
    """


class ExtensionFailed(DrakkarError):
    """A method of an extension failed where half-done state would diverge, so the replica stops; `__cause__` says why.

    `class_name` and `method` name it; `index` is the entry, or the last entry of the snapshot.
    """

    outcome_known = False

    def __init__(self, class_name: str, method: str, index: int, why: str = "") -> None:
        super().__init__(class_name, method, index, why)
        self.class_name, self.method, self.index, self.why = class_name, method, index, why

    def __str__(self) -> str:
        return f"{self.class_name}.{self.method} failed at index {self.index}: {self.why}"


class MissingExtension(DrakkarError):
    """The log, or a snapshot, has what is for an extension that this replica's table does not have, so the replica stops.

    It would lead one day without that state. `index` is the entry, or the last entry of the snapshot; `what` names the kind of the
    entry, or the extension.
    """

    outcome_known = False

    def __init__(self, index: int, what: str) -> None:
        super().__init__(index, what)
        self.index, self.what = index, what

    def __str__(self) -> str:
        return (
            f"index {self.index} has {self.what}, which no extension of this replica's table takes: start it with a table that uses "
            "this extension, as the other replicas do"
        )
