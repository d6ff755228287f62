"""Invariants of commit notices: what a COMMIT may say, what it does, and what has to be told at once."""

from collections.abc import Iterable
from typing import Any, Final

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.lives import Life
from drakkar.handlers.raft.progress import Progress, ProgressState
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.ready import Ready
from drakkar.handlers.raft.state import State
from drakkar.handlers.testing.history import History, Violation

__all__ = ["NoticeChecks"]

M = MessageType

_ENDS_LEADERSHIP: Final = frozenset({M.CHECK_QUORUM, M.DISK_HUNG, M.CONFIG_CHANGE_EVENT})
"""What may let a leader step down in its own term."""


class NoticeChecks:
    """The checks of all notices of one simulated shard. Its methods raise `Violation`."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._committed: dict[int, int] = {}
        """The highest commit index that each replica ever had."""
        self._asleep: set[int] = set()

    def watch(self, raft: Raft) -> None:
        """Observe what a core takes in, sends and hands out from now on."""
        step, send, ready = raft.step, raft.send, raft.ready
        # Term, peer, its home, and last index of the proposals that peers forwarded.
        forwarded: list[tuple[int, int, int, int]] = []
        self._asleep.discard(raft.id)

        def watched_step(message: Message, life: Life | None = None) -> Any:
            before = _picture(raft)
            owed = _owed(raft) if message.type in _ENDS_LEADERSHIP else {}
            peers, due = raft.progress, frozenset(raft.appends_due)
            answer = step(message, life)
            if message.type is M.CONFIG_CHANGE_EVENT and raft.state is State.LEADER:
                self._check_removed(raft, peers, due, message.log_index)
            self._check_sleep(raft)
            self._committed[raft.id] = max(raft.log.committed, self._committed.get(raft.id, 0))
            if message.type is M.COMMIT:
                self._check_heard(raft, message, before)
            elif (
                message.type is M.PROPOSE
                and message.sender not in (0, raft.id)
                and raft.log.last_index > before[-1]
            ):
                forwarded.append(
                    (raft.term, message.sender, _home(raft, message.sender), raft.log.last_index)
                )
            if raft.state is not State.LEADER:
                self._check_told(raft, owed, "its leadership ended")
            return answer

        def watched_send(message: Message) -> None:
            send(message)
            if message.type is M.COMMIT:
                self._check_notice(raft, message)
            elif message.type is M.REPLICATE and message.entries and message.commit != raft.log.committed:
                raise Violation("INV38 entries carry the whole commit index", f"{raft!r} sends {message}")
            elif message.type is M.TIMEOUT_NOW:
                self._check_told(raft, _owed(raft), f"before {message}")

        def watched_ready() -> Ready:
            handed_out = ready()
            forwarded[:] = self._check_forwarders(raft, forwarded)
            return handed_out

        raft.step = watched_step  # type: ignore[method-assign]
        raft.send = watched_send  # type: ignore[method-assign]
        raft.ready = watched_ready  # type: ignore[method-assign]

    def _check_notice(self, raft: Raft, message: Message) -> None:
        """What a leader tells is committed, and durable at the receiver, whose log is known to agree."""
        peer = raft.progress[message.to]
        if peer.state is not ProgressState.REPLICATE:
            raise Violation(
                "INV36 a notice goes only where the logs agree", f"{raft!r} sends {message}: {peer}"
            )
        if message.commit > min(peer.match, raft.log.committed):
            raise Violation(
                "INV36 a notice says only what the peer holds", f"{raft!r} sends {message}: {peer}"
            )
        self._history.happened["a commit was told by a notice"] += 1

    def _check_heard(self, raft: Raft, message: Message, before: tuple[int, ...]) -> None:
        """A leader's notice counts as heard; one of an older term changes nothing."""
        if message.term < raft.term:
            self._history.happened["a notice of an older term came"] += 1
            if _picture(raft) != before:
                raise Violation(
                    "INV36 an older notice changes nothing", f"{raft!r} was {before} before {message}"
                )
        elif raft.leader_id == message.sender and raft.timers.election_elapsed:
            raise Violation("INV36 a notice shows that the leader is alive", f"{raft!r} after {message}")

    def _check_told(self, raft: Raft, owed: dict[int, int], when: str) -> None:
        told = {
            (message.to, message.commit)
            for message in raft.outbox.messages
            if message.type in (M.COMMIT, M.REPLICATE)
        }
        for replica, commit in owed.items():
            if not any(to == replica and known >= commit for to, known in told):
                raise Violation(
                    "INV37 what is owed is told in time", f"{raft!r} owes {replica} {commit}: {when}"
                )
            self._history.happened[f"a commit was told in time: {when.split(maxsplit=1)[0]}"] += 1

    def _check_removed(
        self, raft: Raft, before: dict[int, Progress], due: frozenset[int], index: int
    ) -> None:
        """A peer that a change removes was told that it is committed, if it was sent the change.

        Nothing is sent to it any more. Of those that are `due`, `ready` has put off the append, for want of room.
        """
        for replica in before.keys() - raft.progress.keys():
            peer = before[replica]
            waits = peer.paused or peer.busy or replica in due
            if waits and not raft.config.commit_notices:
                continue  # only an append could tell it, and none can be sent
            reached = peer.match if waits else peer.next - 1
            if peer.state is ProgressState.REPLICATE and peer.sent_commit < index <= reached:
                raise Violation("INV37 a removed peer was told", f"{raft!r} of {replica}, {index}: {peer}")

    def _check_forwarders(
        self, raft: Raft, forwarded: Iterable[tuple[int, int, int, int]]
    ) -> list[tuple[int, int, int, int]]:
        """Return the forwarded proposals whose peers are not told yet, as they do not hold them or are none any more."""
        waiting = []
        for term, replica, home, index in forwarded:
            peer = raft.progress.get(replica)
            if (
                term != raft.term
                or peer is None
                or home != _home(raft, replica)  # another life of it has asked for nothing
                or raft.state is not State.LEADER
                or index <= peer.sent_commit
            ):
                continue
            waiting.append((term, replica, home, index))
            hurry = raft.config.commit_notices and peer.state is ProgressState.REPLICATE
            if hurry and index <= min(peer.match, raft.log.committed):
                raise Violation(
                    "INV37 a forwarder is told at once", f"{raft!r} of {replica}, {index}: {peer}"
                )
        return waiting

    def _check_sleep(self, raft: Raft) -> None:
        """A leader falls asleep only when all peers that it has heard lately know what is committed."""
        sleeps = raft.quiesce.quiesced and raft.state is State.LEADER
        if not sleeps:
            self._asleep.discard(raft.id)
        elif raft.id not in self._asleep:
            self._asleep.add(raft.id)
            self._history.happened["a leader fell asleep"] += 1
            since = raft.timers.ticks - raft.config.election_ticks
            for replica, tick in self._history.seen[raft.id].heard.items():
                known = self._committed.get(replica, 0)
                behind = tick >= since and replica in raft.progress and known < raft.log.committed
                if behind and raft.config.commit_notices:
                    raise Violation(
                        "INV37 a shard sleeps when all know its commits", f"{raft!r}: {replica} knows {known}"
                    )


def _home(raft: Raft, replica: int) -> int:
    """Return where a peer lives by what it said last."""
    met = raft.lives.met.get(replica)
    return met.home if met is not None else 0


def _picture(raft: Raft) -> tuple[int, ...]:
    return raft.term, raft.leader_id, raft.log.committed, raft.timers.election_elapsed, raft.log.last_index


def _owed(raft: Raft) -> dict[int, int]:
    """What a leader with notices has to tell now, by peer."""
    if raft.state is not State.LEADER or not raft.config.commit_notices:
        return {}
    owed = {replica: peer.notice_owed(raft.log.committed) for replica, peer in raft.progress.items()}
    return {replica: commit for replica, commit in owed.items() if commit}
