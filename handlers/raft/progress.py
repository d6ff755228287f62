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
    any       -> PROBE      the peer has no room for entries (LOG_FULL): it is probed once in an election timeout

The leader decides on the moves between states, since it alone knows its log and its term. How a move is made,
and that it leaves nothing behind, is written here. Always true, for messages in any order:

1. `match` < `next`, and `match` never falls: a leader makes new progress for a new term, it never resets one.
2. The window holds indexes above `match` only, strictly rising, and is empty unless the state is REPLICATE.
3. A snapshot is pending in SNAPSHOT and in no other state.

A progress belongs to its `Raft`: use it from that thread alone.
"""

from collections import deque
from enum import IntEnum
from typing import Final

__all__ = ["Inflight", "Progress", "ProgressState"]


NEVER: Final = 1 << 30
"""A number of rounds that stands for "not heard at all"."""


class ProgressState(IntEnum):
    """How a leader sends to a peer."""

    PROBE = 0
    REPLICATE = 1
    SNAPSHOT = 2


class Inflight:
    """The messages with entries that a peer has not answered yet, bounded in number and in bytes.

    It remembers for each its last index, its size and its number, in the order of sending. The message that crosses
    the bound of bytes is still let through, so that one larger than the bound can be sent at all.
    """

    __slots__ = ("_sent", "bytes", "max_bytes", "max_messages")

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self.max_messages = max_messages
        """May be changed at any time; 0 stops sending until it is raised (raft-rs' rule)."""
        self.max_bytes = max_bytes
        """0 is no limit."""
        self.bytes = 0
        """The sizes of all messages in the window."""
        self._sent: deque[tuple[int, int, int]] = deque()

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
        """The last index of each message, oldest first."""
        return tuple(last_index for last_index, _, _ in self._sent)

    def holds(self, last_index: int, number: int) -> bool:
        """Whether the message with that last index and that number is in the window."""
        return any(last == last_index and own == number for last, _, own in self._sent)

    def add(self, last_index: int, size: int, number: int = 0) -> None:
        """Note a message whose last entry is at `last_index`; ask `full` before sending it.

        With lanes, `number` tells it from others with the same entries.
        """
        assert not self.full, f"the window is full with {self.count} messages of {self.bytes} bytes"
        assert not self._sent or last_index > self._sent[-1][0], (
            f"{last_index} is not above {self._sent[-1][0]}"
        )
        self._sent.append((last_index, size, number))
        self.bytes += size

    def free_to(self, index: int) -> None:
        """Forget all messages up to `index`: the peer has them."""
        sent = self._sent
        while sent and sent[0][0] <= index:
            self.bytes -= sent.popleft()[1]

    def forget_behind(self, index: int) -> None:
        """Forget the messages that reach beyond `index`: they were not sent."""
        sent = self._sent
        while sent and sent[-1][0] > index:
            self.bytes -= sent.pop()[1]

    def clear(self) -> None:
        """Forget all messages: they count as lost."""
        self._sent.clear()
        self.bytes = 0


class Progress:
    """One peer as its leader sees it."""

    __slots__ = (
        "active",
        "awaits",
        "busy",
        "commit",
        "cut_off",
        "delayed_status",
        "frozen",
        "full",
        "goals",
        "group",
        "handed",
        "inflight",
        "lost_until",
        "match",
        "next",
        "numbered",
        "pending_snapshot",
        "probe_sent",
        "queued",
        "requested_snapshot",
        "sent_commit",
        "silent",
        "silent_rounds",
        "state",
        "was_active",
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
        self.was_active = False
        """Heard from between the last CheckQuorum and the one before it."""
        self.silent_rounds = NEVER
        """Rounds of CheckQuorum that began since its last answer; `NEVER` or more if there was none.

        A peer that was just added, or that has just been woken, counts as `active` without an answer; but not here.
        """
        self.cut_off = False
        """A connection to it was lost, or could not be made, since its last answer."""
        self.goals = (next - 1, next - 1)
        """The commit index when this round of CheckQuorum began, and when the last one did; at first, the end of the
        leader's log."""
        self.pending_snapshot = 0
        """The index of the snapshot that is being sent; 0 for none."""
        self.requested_snapshot = 0
        """The index that the peer wants a snapshot to reach; 0 for none (raft-rs)."""
        self.probe_sent = False
        """In PROBE: a message with entries was sent, so wait for its answer, or for one to a heartbeat."""
        self.full = False
        """The peer had no room for entries when it last accepted: it is probed slowly, see `retry`."""
        self.busy = False
        """The lane to the peer had no room: nothing bulk is sent before it has drained (`lanes`)."""
        self.frozen = ""
        """Why the peer is not counted, and is sent nothing, in this term; empty where it is (`divergence`)."""
        self.inflight = Inflight(max_inflight_messages, max_inflight_bytes)
        self.sent_commit = 0
        """The highest commit index that was sent to the peer and is not known to be lost (etcd)."""
        self.commit = 0
        """The highest commit index of its own that the peer has told."""
        self.awaits = 0
        """The index of the last proposal that the peer forwarded: a client waits there for the result. 0 for none.

        A client may wait for an earlier one as well: until this index, the peer is told of each commit at once.
        """
        self.group = 0
        """The group of the peer, for group commit; 0 for none (raft-rs)."""
        self.delayed_status: tuple[int, bool] | None = None
        """A report about the snapshot that waits: ticks until it counts, and whether it is a failure."""
        self.numbered = 0
        """How many appends were sent to the peer in this term: each carries its number. This and all below
        only with lanes."""
        self.handed = 0
        """The number of the last append that the host was handed; it may still wait in the lane."""
        self.lost_until = 0
        """Appends up to this number count as lost or as answered: that the peer did not hear them is no news."""
        self.queued = 0
        """Bytes of appends, an empty one counts 1, that were sent since the host was last handed something:
        no lane knows of them."""
        self.silent = 0
        """Heartbeats that were sent while something was `unanswered`, since the last answer to an append."""

    @property
    def paused(self) -> bool:
        """No message with entries may be sent now."""
        if self.state is ProgressState.REPLICATE:
            return self.inflight.full
        return self.probe_sent or self.state is ProgressState.SNAPSHOT

    @property
    def heard_lately(self) -> bool:
        """It answered in this round of CheckQuorum or in the last one."""
        return self.silent_rounds < 2

    @property
    def reachable(self) -> bool:
        """It was heard lately, and no connection to it was lost since."""
        return self.heard_lately and not self.cut_off

    @property
    def caught_up(self) -> bool:
        """It holds all that was committed before the last two rounds of CheckQuorum."""
        return self.match >= self.goals[1]

    @property
    def unanswered(self) -> bool:
        """Whether an append is out whose answer would tell something, so that it must not stay out for ever.

        To a peer without room the clock sends the next probe.
        """
        if self.state is ProgressState.REPLICATE:
            return bool(self.inflight)
        return self.state is ProgressState.PROBE and self.numbered > self.lost_until and not self.full

    def _enter(self, state: ProgressState, pending_snapshot: int = 0) -> None:
        """Change the state, and leave nothing of the old one behind: what stays would count for ever."""
        self.state = state
        self.lost_until = self.numbered
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
        another than the one last probed. A peer without room is probed anew by the clock alone. Otherwise `next`
        steps back: in PROBE behind the hint; in REPLICATE, where many messages may be out, to `match` + 1, and
        then the caller calls `become_probe`. It is etcd's rule.
        Never below `match` + 1, a floor that dragonboat lacks: a peer does not lose what it accepted.
        """
        if rejected <= self.match and (self.full or self.state is ProgressState.REPLICATE):
            return False
        if self.state is ProgressState.REPLICATE:
            self.next = self.match + 1
        else:
            if rejected != self.next - 1:
                return False
            self.next = max(self.match + 1, min(rejected, hint + 1))
            self.unpause()
            self.lost_until = self.numbered
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

        An empty message takes no place in the window, and pauses only a peer without room. Ask `paused` before
        sending another; nothing is sent in SNAPSHOT.
        """
        assert self.state is not ProgressState.SNAPSHOT, "no entries are sent while a snapshot is on its way"
        if not count:
            self.probe_sent |= self.full  # also an empty one tells whether there is room
            return
        if not self.inflight:  # so none of the appends before it had entries that are not answered
            self.lost_until = max(self.lost_until, self.numbered - 1)
        if self.state is ProgressState.PROBE:
            self.probe_sent = True
        else:
            self.next += count
            self.inflight.add(self.next - 1, size, self.numbered)

    def begin_round(self, commit: int, *, active: bool) -> None:
        """Note that a round of CheckQuorum begins when `commit` is committed; `active` for the leader itself."""
        self.goals = (commit, self.goals[0])
        self.was_active, self.active = self.active, active
        self.silent_rounds += 1

    def note_answer(self) -> None:
        """Note an answer of the peer, to whatever it was."""
        self.active = True
        self.silent_rounds = 0
        self.cut_off = False

    def connection_lost(self) -> None:
        """Note that the connection to the peer is lost, or cannot be made: it is `reachable` again with its next answer."""
        self.cut_off = True

    def heard(self) -> None:
        """Note an answer to a heartbeat, without lanes.

        The peer is there, so a probe that is still unanswered counts as lost.
        """
        self.present()
        self.unpause()

    def present(self) -> None:
        """Note that the peer is there, and asks for no snapshot any more.

        Else it would have asked in place of this answer.
        """
        self.note_answer()
        self.requested_snapshot = 0

    def unpause(self) -> None:
        """Let a probe go: none is out, or it counts as lost.

        But not to a peer without room, which would be sent the same entries with every heartbeat.
        """
        self.probe_sent &= self.full

    def ran_full(self) -> None:
        """Note that the peer has no room for entries. In PROBE or SNAPSHOT: what was sent ahead is lost.

        The next accept says that it has room again; that is the caller's to note.
        """
        assert self.state is not ProgressState.REPLICATE, "a peer without room is sent nothing ahead"
        self.full = self.probe_sent = True

    def retry(self) -> None:
        """Let one more probe go to a peer without room."""
        self.probe_sent = False

    def unreachable(self) -> None:
        """Note that the connection failed, so that what was sent ahead may be lost.

        Only REPLICATE sends ahead; the other two states wait for an answer anyway.
        """
        if self.state is ProgressState.REPLICATE:
            self.become_probe()

    def start_over(self, next: int) -> None:  # noqa: A002  # the protocol's own word
        """Note that the peer has begun another life: it holds nothing, and what was sent to it is lost.

        The numbers of its appends run on, since the messages that bear them may still be handed back.
        """
        self._enter(ProgressState.PROBE)
        self.match, self.next = 0, next
        self.full = self.busy = False
        self.frozen = ""
        self.requested_snapshot = self.sent_commit = self.commit = self.awaits = self.silent = 0
        self.active = True

    # -- with lanes -----------------------------------------------------------------------------------------------

    def number(self, size: int) -> int:
        """Return the number of the append with `size` bytes of entries that is sent now."""
        self.numbered += 1
        self.queued += size or 1  # an empty one also makes a lane hold something
        return self.numbered

    def handed_out(self, *, held: bool) -> None:
        """Note that the host is handed all that was sent; with `held` it keeps it until a write is done."""
        self.queued = 0
        if not held:
            self.handed = self.numbered

    def lost(self) -> None:
        """Note that what is out is lost: the connection is, or a later heartbeat came where an append did not.

        A lane without a connection has no room, and will say so itself.
        """
        self.lost_until = self.numbered
        self.busy = False
        if self.state is ProgressState.REPLICATE:
            self.become_probe()
        else:
            self.unpause()

    def handed_back(self, before: int, count: int, number: int) -> None:
        """Note that the lane did not send an append: its `count` entries behind `before` are to be sent later.

        They go once it has drained. Later ones for the same peer are handed back as well, or refused by the
        peer for the gap before them. One that was given up already, and may have been sent again, takes nothing back.
        """
        if self.state is ProgressState.REPLICATE:
            if self.inflight.holds(before + count, number):
                self.next = max(self.match, before) + 1
                self.inflight.forget_behind(self.next - 1)
                self._forget_sent_commit()
        elif number == self.numbered:
            self.unpause()
        self.lost_until = max(self.lost_until, number)
        self.busy = True

    def snapshot_handed_back(self) -> None:
        """Note that the lane did not send the snapshot: it, or entries, are to be sent once the lane has drained."""
        self.snapshot_done(rejected=True)
        self.unpause()
        self.busy = True

    def heartbeat_sent(self) -> None:
        """Count how long the answer to an append is out."""
        self.silent = self.silent + 1 if self.unanswered else 0

    # -- snapshots ------------------------------------------------------------------------------------------------

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

    @property
    def waits_for_commit(self) -> bool:
        """Whether a proposal that the peer forwarded may be committed, without the peer having been told."""
        return self.awaits > self.sent_commit

    def notice_owed(self, commit: int) -> int:
        """The commit index that a COMMIT should tell the peer where `commit` is the leader's; 0 where there is no need.

        Not more than the peer is known to hold; and nothing while it is not clear where the logs part, since an append
        goes then, and tells it.
        """
        if self.state is not ProgressState.REPLICATE:
            return 0
        owed = min(self.match, commit)
        return owed if owed > self.sent_commit else 0

    def _forget_sent_commit(self) -> None:
        """What was sent beyond `next` counts as lost. So do the commit indexes that came with it."""
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
        if self.numbered:
            parts.append(f"numbered={self.numbered}")
        numbers = ((name, getattr(self, name)) for name in ("requested_snapshot", "sent_commit", "group"))
        parts.extend(f"{name}={value}" for name, value in numbers if value)
        parts.extend(flag for flag in ("full", "busy", "frozen", "paused", "active") if getattr(self, flag))
        return " ".join(parts)

    def __repr__(self) -> str:
        return f"Progress({self})"
