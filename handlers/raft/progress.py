"""What a leader knows of one peer, and how much it may send to it (thesis §3.5, §10.2.1).

A leader does not know at first how far a peer's log agrees with its own, and it cannot know whether a peer that
is silent is slow, cut off or gone. So each peer is in one of three states, as in etcd and dragonboat:

    PROBE      where the logs part is unknown, or a message may have been lost: send one message, wait for news
    REPLICATE  the logs agree: send ahead without waiting for answers, as far as the window reaches
    SNAPSHOT   the peer needs entries that are compacted away: send a snapshot and nothing else meanwhile

    PROBE     -> REPLICATE  an accept shows where the logs agree
    REPLICATE -> PROBE      a rejection, or a connection that failed: what was sent ahead may be lost
    either    -> SNAPSHOT   the entry that the peer needs next is compacted away, or it asked for a snapshot
    SNAPSHOT  -> PROBE      the transport says that the snapshot was delivered, or that it failed
    SNAPSHOT  -> REPLICATE  the peer's own accept says that it has caught up

The leader decides on the moves between states, since it alone knows its log and its term. How a move is made,
and that it leaves nothing behind, is written here. Always true, for messages in any order:

1. `match` < `next`, and `match` never falls: a leader makes new progress for a new term, it never resets one.
2. The window holds indexes above `match` only, strictly rising, and is empty unless the state is REPLICATE.
3. A snapshot is pending in SNAPSHOT and in no other state.

A progress belongs to its `Raft`: use it from that thread alone.
"""

from collections import deque
from enum import IntEnum

__all__ = ["Inflight", "Progress", "ProgressState"]


class ProgressState(IntEnum):
    """How a leader sends to a peer."""

    PROBE = 0
    REPLICATE = 1
    SNAPSHOT = 2


class Inflight:
    """The messages with entries that a peer has not answered yet, bounded in number and in bytes.

    It remembers for each its last index and its size, in the order of sending. The message that crosses the bound
    of bytes is still let through, so that one larger than the bound can be sent at all.
    """

    __slots__ = ("_sent", "bytes", "max_bytes", "max_messages")

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self.max_messages = max_messages
        """May be changed at any time; 0 stops sending until it is raised (raft-rs' rule)."""
        self.max_bytes = max_bytes
        """0 is no limit."""
        self.bytes = 0
        """The sizes of all messages in the window."""
        self._sent: deque[tuple[int, int]] = deque()

    def __len__(self) -> int:
        return len(self._sent)

    def __bool__(self) -> bool:
        return bool(self._sent)

    @property
    def count(self) -> int:
        """How many messages are in the window."""
        return len(self._sent)

    @property
    def full(self) -> bool:
        """Nothing more may be sent until the peer answers."""
        return len(self._sent) >= self.max_messages or 0 < self.max_bytes <= self.bytes

    @property
    def indexes(self) -> tuple[int, ...]:
        """The last index of each message, oldest first: for tests and traces."""
        return tuple(last_index for last_index, _ in self._sent)

    def add(self, last_index: int, size: int) -> None:
        """Note a message whose last entry is at `last_index`; ask `full` before sending it."""
        assert not self.full, f"the window is full with {self.count} messages of {self.bytes} bytes"
        assert not self._sent or last_index > self._sent[-1][0], (
            f"{last_index} is not above {self._sent[-1][0]}"
        )
        self._sent.append((last_index, size))
        self.bytes += size

    def free_to(self, index: int) -> None:
        """Forget all messages up to `index`: the peer has them."""
        sent = self._sent
        while sent and sent[0][0] <= index:
            self.bytes -= sent.popleft()[1]

    def clear(self) -> None:
        """Forget all messages: they count as lost."""
        self._sent.clear()
        self.bytes = 0


class Progress:
    """One peer as its leader sees it."""

    __slots__ = (
        "active",
        "delayed_status",
        "group",
        "inflight",
        "match",
        "next",
        "pending_snapshot",
        "probe_sent",
        "requested_snapshot",
        "sent_commit",
        "state",
    )

    def __init__(
        self,
        *,
        match: int = 0,
        next: int = 1,  # noqa: A002  # the protocol's own word, and harmless as a keyword
        max_inflight_messages: int = 256,
        max_inflight_bytes: int = 0,
        active: bool = False,
    ) -> None:
        assert 0 <= match < next, f"match={match} is not below next={next}"
        self.match = match
        """The highest index that the peer is known to hold durably."""
        self.next = next
        """The index of the first entry to send."""
        self.state = ProgressState.PROBE
        self.active = active
        """Heard from since the last CheckQuorum; only an active peer is sent a snapshot."""
        self.pending_snapshot = 0
        """The index of the snapshot that is being sent; 0 for none."""
        self.requested_snapshot = 0
        """The index that the peer wants a snapshot to reach; 0 for none (raft-rs)."""
        self.probe_sent = False
        """In PROBE: a message with entries was sent, so wait for its answer, or for one to a heartbeat."""
        self.inflight = Inflight(max_inflight_messages, max_inflight_bytes)
        self.sent_commit = 0
        """The highest commit index that was sent to the peer and is not known to be lost (etcd)."""
        self.group = 0
        """The group of the peer, for group commit; 0 for none (raft-rs)."""
        self.delayed_status: tuple[int, bool] | None = None
        """A report about the snapshot that waits: ticks until it counts, and whether it is a failure."""

    @property
    def paused(self) -> bool:
        """No message with entries may be sent now."""
        if self.state is ProgressState.REPLICATE:
            return self.inflight.full
        return self.probe_sent or self.state is ProgressState.SNAPSHOT

    def _enter(self, state: ProgressState, pending_snapshot: int = 0) -> None:
        """Change the state, and leave nothing of the old one behind: what stays would count for ever."""
        self.state = state
        self.pending_snapshot = pending_snapshot
        self.probe_sent = False
        self.delayed_status = None
        self.inflight.clear()

    def become_probe(self) -> None:
        """Send one message at a time, from the first entry that the peer may lack.

        After a snapshot that is the one behind it: unless it is known to have failed, the peer may well have it.
        """
        self.next = max(self.match, self.pending_snapshot) + 1
        self._forget_sent_commit()
        self._enter(ProgressState.PROBE)

    def become_replicate(self) -> None:
        """Send ahead from the entry after `match`: the logs are known to agree there."""
        self.next = self.match + 1
        self._enter(ProgressState.REPLICATE)

    def become_snapshot(self, index: int) -> None:
        """Send nothing but the snapshot up to `index`, which is on its way.

        `next` stays until the snapshot's fate is known (dragonboat's rule; etcd moves it at once).
        """
        assert index > 0, "a snapshot has an index"
        self._enter(ProgressState.SNAPSHOT, index)
        self._note_request(self.requested_snapshot)

    def accepted(self, index: int) -> bool:
        """Note that the peer holds all entries up to `index`, durably. Returns whether that is news.

        Duplicates and late answers change nothing. News unpause the peer and free the window; the change of state
        that they may call for is the caller's, who has to mark the peer as active, too.
        """
        if index <= self.match:
            return False
        self.match = index
        self.next = max(self.next, index + 1)
        self.probe_sent = False
        self.inflight.free_to(index)
        return True

    def rejected(self, rejected: int, hint: int) -> bool:
        """Step back, as the peer has no entry that agrees with ours at `rejected`. Returns whether that is news.

        `hint` is the highest index at which the logs may still agree, after both sides have searched by term.

        An answer is late, and changes nothing, where it names an index that the peer accepted since or, in PROBE,
        another than the one last probed. Otherwise `next` steps back, in PROBE behind the hint and in REPLICATE,
        where many messages may be out, to `match` + 1; then the caller calls `become_probe`. It is etcd's rule.
        Never below `match` + 1, a floor that dragonboat lacks: a peer does not lose what it accepted.
        """
        if self.state is ProgressState.REPLICATE:
            if rejected <= self.match:
                return False
            self.next = self.match + 1
        else:
            if rejected != self.next - 1:
                return False
            self.next = max(self.match + 1, min(rejected, hint + 1))
            self.probe_sent = False
        self._forget_sent_commit()
        return True

    def asked(self, index: int) -> None:
        """Note that the peer asks for a snapshot up to `index` or beyond, and takes in nothing else meanwhile.

        So what was sent ahead is lost. A peer that still asks does so in place of every other answer, so an
        acknowledgement takes the request back: 0.
        """
        self._note_request(index)
        if not self.requested_snapshot:
            return
        self.probe_sent = False
        if self.state is ProgressState.REPLICATE:
            self.become_probe()

    def _note_request(self, index: int) -> None:
        """What is on its way already is not asked for again."""
        self.requested_snapshot = index if index > self.pending_snapshot else 0

    def sent(self, count: int, size: int) -> None:
        """Note that a message went out with the `count` entries from `next` on, of `size` bytes together.

        An empty message neither pauses nor takes a place in the window. Ask `paused` before sending another;
        nothing is sent in SNAPSHOT.
        """
        assert self.state is not ProgressState.SNAPSHOT, "no entries are sent while a snapshot is on its way"
        if not count:
            return
        if self.state is ProgressState.PROBE:
            self.probe_sent = True
        else:
            self.next += count
            self.inflight.add(self.next - 1, size)

    def heard(self) -> None:
        """Note an answer to a heartbeat: the peer is there, so a probe that is still unanswered counts as lost.

        It asks for no snapshot any more: else it would have asked in place of this answer.
        """
        self.active = True
        self.probe_sent = False
        self.requested_snapshot = 0

    def unreachable(self) -> None:
        """Note that the connection failed, so that what was sent ahead may be lost.

        Only REPLICATE sends ahead; the other two states wait for an answer anyway.
        """
        if self.state is ProgressState.REPLICATE:
            self.become_probe()

    def snapshot_done(self, rejected: bool) -> None:
        """Note that the snapshot was delivered, or that it failed; ignored where none is on its way.

        The peer stays paused until it is heard: after a success its own answer tells more, and after a failure an
        attempt at once would fail again.
        """
        if self.state is not ProgressState.SNAPSHOT:
            return
        if rejected:
            self.pending_snapshot = 0
        self.become_probe()
        self.probe_sent = True
        self.requested_snapshot = 0  # a peer that still wants one will say so

    def delay_status(self, ticks: int, rejected: bool) -> None:
        """Let `snapshot_done(rejected)` come into force `ticks` from now, unless the peer's own answer is faster.

        A later report replaces an earlier one; ignored where no snapshot is on its way (dragonboat's rule).
        """
        if self.state is ProgressState.SNAPSHOT:
            self.delayed_status = (ticks, rejected)

    def tick(self) -> bool:
        """One tick of the leader has passed. Returns whether a delayed report came into force."""
        if self.delayed_status is None:
            return False
        ticks, rejected = self.delayed_status
        if ticks > 1:
            self.delayed_status = (ticks - 1, rejected)
            return False
        self.snapshot_done(rejected)
        return True

    def lacks_commit(self, commit: int) -> bool:
        """Whether a message that says `commit` would let the peer commit more (etcd's rule).

        Not where it was told so already, nor where it was told all that the entries sent to it allow.
        """
        return self.sent_commit < min(commit, self.next - 1)

    def _forget_sent_commit(self) -> None:
        """Count as lost what was sent beyond `next`, and so the commit indexes that came with it."""
        self.sent_commit = min(self.sent_commit, self.next - 1)

    def __str__(self) -> str:
        """One line with only what says something."""
        parts = [f"{self.state.name} match={self.match} next={self.next}"]
        if self.pending_snapshot:
            parts.append(f"snapshot={self.pending_snapshot}")
        if self.delayed_status is not None:
            ticks, rejected = self.delayed_status
            parts.append(f"{'failed' if rejected else 'delivered'}-in={ticks}")
        if self.inflight:
            parts.append(f"inflight={self.inflight.count}/{self.inflight.bytes}B")
        numbers = ((name, getattr(self, name)) for name in ("requested_snapshot", "sent_commit", "group"))
        parts.extend(f"{name}={value}" for name, value in numbers if value)
        parts.extend(flag for flag in ("paused", "active") if getattr(self, flag))
        return " ".join(parts)

    def __repr__(self) -> str:
        return f"Progress({self})"
