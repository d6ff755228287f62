"""Invariants of lanes: room, order, and that nothing is sent twice without a reason.

A leader may send entries again only when something happened since it sent them that lets them count as lost:
a message between the two was lost or overtaken, one of them stopped, the peer rejected or dropped something,
or the transport said so. That is known here, but not to the leader.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.entries import Entries
from drakkar.handlers.raft.lives import Life
from drakkar.handlers.raft.progress import Progress, ProgressState
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.state import State
from drakkar.handlers.testing.history import LastSeen, Violation

__all__ = ["LaneChecks"]

M = MessageType

_REASONS: Final = frozenset({M.LOG_FULL, M.SNAPSHOT_REQUEST, M.SNAPSHOT_STATUS, M.UNREACHABLE, M.NOT_SENT})
"""What a leader hears that is a reason to send entries again."""
_DRAINED: Final = frozenset({M.LANE_DRAINED, M.UNREACHABLE})
"""What a leader hears when it is to ask the lane of a busy peer again."""


@dataclass(slots=True)
class _Flow:
    """What a leader sends to one peer in one term."""

    term: int
    progress: Progress
    first: int = 1
    last: int = 0
    """The entries that were sent since the last reason to send any again: none where `last` is below `first`."""
    number: int = 0
    """The number of the last append that was sent."""
    base: int = 0
    """The number of the oldest append with entries that is not answered: the loss of one before it means nothing."""
    entered: int = 0
    """The number of the last append that the host sent."""
    left: int = 0
    """The highest number of an append that waits in the lane no more."""
    heard: int = 0
    """The number of the last append when the last reason came: that one up to here was lost is no news any more."""
    room: int | None = None
    """What the lane answered when it was asked for room; None if it was not asked since the last append."""
    asked: int = 0
    """How often the lane was asked for room."""
    lost: dict[int, int] = field(default_factory=dict)
    """Appends that were lost, or overtaken, and of which the leader has not heard that they were not heard.

    Their numbers, each with the index of its last entry; 0 where there is none or it is not known.
    """

    newest: dict[int, int] = field(default_factory=dict)
    """The number of the newest append that ends at an index."""

    def forget(self) -> None:
        self.first, self.last = 1, 0


class LaneChecks:
    """The checks of all lanes of one simulated shard. Its methods raise `Violation`."""

    def __init__(self) -> None:
        self._flows: dict[tuple[int, int], _Flow] = {}

    def _flow(self, raft: Raft, replica: int) -> _Flow | None:
        """What this leader sends to a peer; None to one that it no longer knows."""
        progress = raft.progress.get(replica)
        if progress is None or raft.state is not State.LEADER:
            return None
        flow = self._flows.get((raft.id, replica))
        if flow is None or flow.term != raft.term or flow.progress is not progress:
            flow = self._flows[raft.id, replica] = _Flow(raft.term, progress)
        return flow

    def watch(self, raft: Raft, seen: LastSeen) -> None:
        """Observe every message that a core takes in and sends from now on."""
        step, send = raft.step, raft.send

        def watched_step(message: Message, life: Life | None = None) -> Any:
            check = self._expectation(raft, message)
            self._hears(raft, message)
            answer = step(message, life)
            _note_step(raft, message, seen)
            if check is not None:
                check()
            return answer

        def watched_send(message: Message) -> None:
            if message.type is M.REPLICATE:
                self._sends(raft, message)
            elif message.type is M.HEARTBEAT_RESP:
                _check_heard(raft, message, seen)
            elif message.type is M.REPLICATE_RESP and not message.reject:
                _check_vouched(raft, message, seen)
            send(message)

        raft.step = watched_step  # type: ignore[method-assign]
        raft.send = watched_send  # type: ignore[method-assign]
        self._watch_room(raft)

    def _watch_room(self, raft: Raft) -> None:
        lanes = raft.lanes
        assert lanes is not None
        room = lanes.room

        def watched_room(replica: int, least: int = 1) -> int:
            answer = room(replica, least)
            flow = self._flow(raft, replica)
            if flow is not None:
                flow.room = answer
                flow.asked += 1
            return answer

        lanes.room = watched_room  # type: ignore[method-assign]

    # -- reasons to send again --------------------------------------------------------------------------------------

    def lost(self, message: Message) -> None:
        """A message was lost."""
        self.disturbed(message.sender, message.to)
        flow = self._flows.get((message.sender, message.to))
        if flow is not None and message.type is M.REPLICATE and message.term == flow.term:
            entries = Entries.of(message.entries)
            flow.lost[message.hint] = message.log_index + len(entries) if entries else 0

    def overtook(self, message: Message) -> None:
        """A message overtook another one, or was overtaken."""
        self.disturbed(message.sender, message.to)
        flow = self._flows.get((message.sender, message.to))
        if flow is not None and message.type is M.HEARTBEAT and message.term == flow.term:
            flow.lost.setdefault(message.log_term, 0)

    def disturbed(self, one: int, other: int) -> None:
        """What one of two replicas sent to the other may count as lost, since something was lost or overtaken."""
        for pair in ((one, other), (other, one)):
            if pair in self._flows:
                self._flows[pair].forget()

    def stopped(self, replica: int) -> None:
        """A replica stopped, or dropped messages: what it had received may be lost."""
        for pair, flow in self._flows.items():
            if replica in pair:
                flow.forget()

    def _hears(self, raft: Raft, message: Message) -> None:
        """A replica is about to step a message."""
        flow = self._flow(raft, message.sender)
        if flow is None or 0 < message.term < raft.term:  # the answer to an older term is no reason
            return
        rejected = message.type is M.REPLICATE_RESP and message.reject
        # The answer to an older append than the probe that is out shows that the probe was not needed.
        late = message.type is M.REPLICATE_RESP and flow.progress.state is not ProgressState.REPLICATE
        # It may have been an empty append that was lost; its number counts for all that is out.
        unheard = message.type is M.HEARTBEAT_RESP and message.reject and message.log_term >= flow.base
        unheard = unheard and message.log_term in flow.lost
        if unheard:
            del flow.lost[message.log_term]
        if message.type in _REASONS or rejected or late or unheard:
            flow.heard = flow.number
            flow.forget()

    # -- what a leader does at once ---------------------------------------------------------------------------------

    def _expectation(self, raft: Raft, message: Message) -> Callable[[], None] | None:
        """What must be true when a leader has stepped this message."""
        if message.type is M.NOT_SENT and message.payload.type is M.PROPOSE:
            return _expect_refusals(raft, message.payload)
        flow = self._flow(raft, message.sender)
        if flow is None:
            return None
        if message.type in _DRAINED and flow.progress.busy:
            return partial(self._check_asked, raft, flow, flow.asked, message)
        if (
            message.type is M.NOT_SENT
            and message.payload.type in (M.REPLICATE, M.INSTALL_SNAPSHOT)
            and message.payload.term == raft.term
        ):
            return partial(self._check_handed_back, raft, flow, message, flow.progress.inflight.indexes)
        unheard = message.type is M.HEARTBEAT_RESP and message.reject and message.term == raft.term
        news = unheard and message.log_term > flow.heard
        if news and flow.lost.get(message.log_term, 0) in flow.progress.inflight.indexes:
            return partial(self._check_gave_up, raft, flow, message)
        return None

    def _check_asked(self, raft: Raft, flow: _Flow, asked: int, message: Message) -> None:
        if flow.progress.busy and flow.asked == asked:
            raise Violation(
                "INV39 a busy peer goes on when its lane has drained",
                f"{raft!r} after {message}: {flow.progress}",
            )

    def _check_handed_back(self, raft: Raft, flow: _Flow, message: Message, window: tuple[int, ...]) -> None:
        sent, peer = message.payload, flow.progress
        count = len(Entries.of(sent.entries))
        last = sent.log_index + count
        if sent.snapshot is not None:
            wrong = peer.pending_snapshot == sent.snapshot.index
        elif count and flow.newest.get(last) != sent.hint:
            wrong = peer.inflight.indexes != window  # its entries were sent again since
        else:
            wrong = count > 0 and last in peer.inflight.indexes
        if wrong:
            raise Violation(
                "INV40 what is handed back counts as not sent", f"{raft!r} after {message}: {peer}"
            )

    def _check_gave_up(self, raft: Raft, flow: _Flow, message: Message) -> None:
        if raft.state is State.LEADER and flow.progress.state is ProgressState.REPLICATE:
            raise Violation("INV41 what was lost is sent again", f"{raft!r} after {message}: {flow.progress}")

    # -- what a leader sends ----------------------------------------------------------------------------------------

    def _sends(self, raft: Raft, message: Message) -> None:
        """A leader sends an append."""
        flow = self._flow(raft, message.to)
        if flow is None:
            return
        if message.hint != flow.number + 1:
            raise Violation("INV30 appends are numbered", f"{raft!r} sends {message} after {flow.number}")
        flow.number = message.hint
        size, room = Entries.of(message.entries).size, flow.room
        if room is None or room < max(size, 1):
            raise Violation(
                "INV32 nothing is sent beyond the room", f"{raft!r} sends {message}, room is {room}"
            )
        flow.room = None
        runs = Entries.of(message.entries).runs
        if runs:
            flow.newest[runs[-1].last] = message.hint
        if not runs or flow.progress.full:  # a peer without room drops what it is sent, and is asked again
            return
        if not flow.progress.inflight:
            flow.base = message.hint
        first, last = runs[0].first, runs[-1].last
        if flow.first <= last and first <= flow.last:
            raise Violation(
                "INV31 nothing is sent twice without a reason",
                f"{raft!r} sends {message}, has sent {flow.first}..{flow.last}: {flow.progress}",
            )
        flow.first = first if flow.last < flow.first else min(first, flow.first)
        flow.last = max(last, flow.last)

    def overflowed(self, message: Message, size: int, capacity: int) -> None:
        """A message does not fit into the lane that its sender asked for room."""
        raise Violation(
            "INV32 nothing is sent beyond the room", f"{message}, beside {size} of {capacity} bytes"
        )

    def enters(self, message: Message) -> None:
        """A host sends an append."""
        flow = self._flows.get((message.sender, message.to))
        if flow is None or message.term != flow.term or not message.hint:
            return
        if message.hint <= flow.entered:
            raise Violation("INV30 appends go out in order", f"{message} after {flow.entered}")
        flow.entered = message.hint

    def left(self, message: Message) -> None:
        """A message waits in its sender's lane no more."""
        flow = self._flows.get((message.sender, message.to))
        if flow is not None and message.type is M.REPLICATE and message.term == flow.term:
            flow.left = max(flow.left, message.hint)

    def check_heartbeat(self, raft: Raft, message: Message) -> None:
        """A heartbeat names the number of an append that has left, so that one that was not heard is lost."""
        flow = self._flow(raft, message.to)
        if flow is not None and message.term == raft.term and message.log_term > flow.left:
            raise Violation(
                "INV33 a heartbeat names what has left",
                f"{raft!r} sends {message}, number {flow.left} has left: {flow.progress}",
            )


def _expect_refusals(raft: Raft, proposals: Message) -> Callable[[], None]:
    """Each run of proposals that is handed back is reported to who proposed it."""
    own = len(raft.outbox.dropped), len(raft.outbox.messages)

    def check() -> None:
        told = len(raft.outbox.dropped) - own[0] + len(raft.outbox.messages) - own[1]
        if told < len(Entries.of(proposals.entries).runs):
            raise Violation("INV40 what is handed back counts as not sent", f"{raft!r}: {proposals}")

    return check


def _note_step(raft: Raft, message: Message, seen: LastSeen) -> None:
    """A replica has stepped a message."""
    if message.term != raft.term or message.sender != raft.leader_id:
        return
    if message.type is M.REPLICATE:
        term, number = seen.heard_append
        seen.heard_append = raft.term, max(message.hint, number if term == raft.term else 0)
    elif message.type is M.READ_INDEX_RESP:
        seen.vouched = max(seen.vouched, message.log_index)


def _check_heard(raft: Raft, message: Message, seen: LastSeen) -> None:
    """A follower says in its answer to a heartbeat whether it has heard the append that the heartbeat names."""
    term, number = seen.heard_append
    heard = number if term == raft.term else 0
    if message.reject is not (message.log_term > heard):
        raise Violation(
            "INV34 a follower says what it has heard", f"{raft!r} sends {message}, has heard {heard}"
        )


def _check_vouched(raft: Raft, message: Message, seen: LastSeen) -> None:
    """What a follower acknowledges is committed there as far as its leader vouched for it."""
    vouched = min(seen.vouched, message.log_index)
    if raft.log.committed < vouched:
        raise Violation(
            "INV35 a follower commits what its leader vouched for",
            f"{raft!r} sends {message}, vouched for is {vouched}",
        )
