"""What must hold after every step of every replica, whatever happens (Raft paper figure 3, thesis figure 3.2).

The checks see what no replica sees: all disks, all logs, and all that ever happened. Each is named, so that a test
can say which of them a bug must trip. They only look; nothing that they do changes what happens next.
"""

from bisect import bisect_left
from collections import Counter
from typing import Any, Final, Protocol

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.entries import EntryKind, Run
from drakkar.handlers.raft.log import Storage
from drakkar.handlers.raft.progress import Progress, ProgressState
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.ready import Dropped, Ready, Refusal
from drakkar.handlers.raft.state import HardState, Membership, Snapshot, State
from drakkar.handlers.table import Never
from drakkar.handlers.traits import Term

__all__ = ["Invariants", "Violation", "Witnessed"]

M = MessageType

PRE_VOTES: Final = frozenset({M.REQUEST_PRE_VOTE, M.REQUEST_PRE_VOTE_RESP})
ONLOOKERS: Final = frozenset({State.OBSERVER, State.WITNESS})
ANSWERS: Final = frozenset({M.REPLICATE_RESP, M.HEARTBEAT_RESP, M.SNAPSHOT_REQUEST})
KEPT_BY_WITNESSES: Final = frozenset({EntryKind.METADATA, EntryKind.CONFIG_CHANGE})

EXPECTED_FAULTS: Final = frozenset({"answer from a non-member", "addressed to another replica"})
"""What a late message after a membership change is counted as, with no bug anywhere."""


class Violation(AssertionError):
    """An invariant broke: `check` is its name."""

    def __init__(self, check: str, what: str) -> None:
        super().__init__(f"{check}: {what}")
        self.check = check
        self.what = what


class Witnessed(Protocol):
    """What the checks look at: one replica, its core in its present life, and what its disk holds."""

    id: int
    raft: Raft
    up: bool

    @property
    def storage(self) -> Storage:
        """What is durable, also while the replica is down."""
        ...


class _Seen:
    """What was seen of one replica."""

    __slots__ = (
        "applied",
        "applying",
        "base",
        "changes",
        "committed",
        "first",
        "heard",
        "last",
        "leading_since",
        "membership",
        "peers",
        "picture",
        "settled",
        "state",
        "term",
        "terms",
        "transfer",
        "transfer_since",
        "vote",
    )

    def __init__(self, raft: Raft) -> None:
        log = raft.log
        self.state, self.term, self.vote = raft.state, raft.term, raft.vote
        self.committed, self.applied, self.applying = log.committed, log.applied, log.applying
        self.first, self.last = log.first_index, log.last_index
        self.settled = log.committed  # when entries were handed out last
        self.membership = raft.membership
        self.picture: tuple[Any, ...] = ()
        # The log as it was handed out: the term before its first entry, and that of each one behind.
        self.base = log.first_index - 1
        self.terms = [log.term(index) for index in range(self.base, log.last_index + 1)]
        self.changes = [entry.index for entry in log.changes(log.first_index, log.last_index + 1)]
        self.transfer = self.transfer_since = self.leading_since = 0
        self.heard: dict[int, int] = {}
        self.peers: dict[int, tuple[int, int, ProgressState]] = {}

    def term_at(self, index: int) -> int:
        at = index - self.base
        return self.terms[at] if 0 <= at < len(self.terms) else 0


class Invariants:
    """The checks of one simulated shard. Raises `Violation` from whichever call shows that one is broken."""

    def __init__(self, replicas: dict[int, Any]) -> None:
        """`replicas` are all that there are, by id: `Witnessed`; may grow."""
        self.replicas: dict[int, Witnessed] = replicas
        self.seen: dict[int, _Seen] = {}
        self.happened: Counter[str] = Counter()
        """How often each rare thing happened."""
        self.leaders: dict[int, int] = {}
        self.votes: dict[tuple[int, int], int] = {}
        self.told_term: dict[int, int] = {}
        self.entries: dict[tuple[int, int], tuple[int, int, bytes]] = {}
        self.committed: list[int] = [0]
        """The term of each committed entry, by index."""
        self.committed_in: list[int] = [0]
        """The term of the leader that committed it: never falls."""
        self.memberships: dict[int, Membership] = {}
        self.newest: Membership | None = None
        """The newest membership that is in effect anywhere."""
        self.reads: dict[tuple[int, int, int], int] = {}
        self.asked_to_lead: set[tuple[int, int]] = set()
        """The replicas that a leader asked to campaign at once, with its term."""
        self.proposals: dict[tuple[int, int], int] = {}
        """Where each proposal was applied, by origin and key; 0 if whoever made it was told that it is dropped."""

    # -- what the simulation reports ----------------------------------------------------------------------------

    def started(self, replica: Witnessed) -> None:
        """A replica begins a life, from its disk."""
        raft = replica.raft
        self.seen[replica.id] = seen = _Seen(raft)
        if raft.term < self.told_term.get(replica.id, 0):
            raise Violation("INV8 terms never fall", f"{raft!r} told of term {self.told_term[replica.id]}")
        if raft.term < raft.log.last_term:
            raise Violation("INV8 terms never fall", f"{raft!r} has an entry of term {raft.log.last_term}")
        if raft.log.committed < replica.storage.hard_state.commit:
            raise Violation("INV6 the commit index never falls", f"{raft!r}: {replica.storage.hard_state}")
        known = self.memberships.get(raft.membership.change_id, raft.membership)
        if raft.membership != known:
            raise Violation("V8 one membership an index", f"{raft!r} has {raft.membership}, it was {known}")
        if len(self.committed) == 1 and seen.base == 0:
            # The first membership stands, committed, at the head of each log.
            self.committed += seen.terms[1 : seen.committed + 1]
            self.committed_in += seen.terms[1 : seen.committed + 1]
        self._check_prefix(raft, seen.committed)
        self._forget_untold(raft)
        previous = seen.terms[0]
        for entry in raft.log.entries(seen.base + 1, seen.last + 1):
            self._check_entry(raft, entry.index, entry.term, previous, entry.kind, entry.payload)
            previous = entry.term
        if len(seen.changes) > 1 and seen.committed < seen.changes[-2]:
            # It would count the votes of members of long ago.
            raise Violation(
                "INV18 only the newest change is uncommitted",
                f"{raft!r} starts with changes at {seen.changes}",
            )
        self._watch(replica)

    def _forget_untold(self, raft: Raft) -> None:
        """A term that a crash wiped out was known to nobody else, nor were the entries of its only voter."""
        untold = [key for key in self.entries if key[1] > raft.term and self.leaders.get(key[1]) == raft.id]
        for key in untold:
            del self.entries[key]
        for term in [term for term, leader in self.leaders.items() if leader == raft.id and term > raft.term]:
            del self.leaders[term]

    def _watch(self, replica: Witnessed) -> None:
        """See what the core is asked, and what it hands out, whoever its host is."""
        raft = replica.raft
        step, ready, send, refuse = raft.step, raft.ready, raft.send, raft.refuse
        depth = 0  # a handler may step a message of its own

        def watched_step(message: Message) -> Any:
            nonlocal depth
            if message.type is M.READ_INDEX and message.sender in (0, replica.id):
                self.reads[replica.id, message.hint, message.hint_high] = len(self.committed) - 1
            elif message.type is M.TIMEOUT_NOW:
                self.asked_to_lead.add((replica.id, message.term))
            elif message.type is M.CONFIG_CHANGE_EVENT:
                self.turned(replica)  # what one turn commits before a change is for the members before it
            before = self._before(replica, message)
            depth += 1
            answer = step(message)
            depth -= 1
            if before is not None:
                self._check_unmoved(raft, message, before)
            if not depth:
                self.turned(replica)  # many messages may come in one turn, and many changes be applied
            return answer

        def watched_send(message: Message) -> None:
            if message.type is M.TIMEOUT_NOW and message.to != raft.transfer.target:
                raise Violation(
                    "INV28 only the successor is asked to campaign", f"{raft!r} asks {message.to}"
                )
            if message.type in (M.REPLICATE, M.INSTALL_SNAPSHOT):
                self._check_flow(raft, message, self.seen[replica.id].peers.get(message.to))
            granted = message.type is M.REQUEST_PRE_VOTE_RESP and not message.reject
            if granted and _in_lease(raft):
                raise Violation("INV20 a lease protects its leader", f"{raft!r} answers {message}")
            send(message)

        def watched_refuse(asker: int, refused: Dropped) -> None:
            if refused.type is M.PROPOSE:
                self._check_refusal(raft, refused.because)
            refuse(asker, refused)

        def watched_ready() -> Ready:
            handed_out = ready()
            self._check_handed_out(replica, handed_out)
            return handed_out

        raft.step = watched_step  # type: ignore[method-assign]
        raft.ready = watched_ready  # type: ignore[method-assign]
        raft.send = watched_send  # type: ignore[method-assign]
        raft.refuse = watched_refuse  # type: ignore[method-assign]
        self._watch_campaigns(raft)

    def _watch_campaigns(self, raft: Raft) -> None:
        """See each when it begins: it may be over by the end of the turn."""
        ask, stand = raft.become_pre_candidate, raft.become_candidate

        def watched_ask() -> None:
            self._check_campaign(raft)
            ask()

        def watched_stand() -> None:
            self._check_campaign(raft)
            stand()

        raft.become_pre_candidate = watched_ask  # type: ignore[method-assign]
        raft.become_candidate = watched_stand  # type: ignore[method-assign]

    @staticmethod
    def _check_refusal(raft: Raft, because: Refusal) -> None:
        if because is Refusal.TRANSFERRING and not raft.transfer.target:
            raise Violation("INV28 only a transfer stops proposals", repr(raft))

    def sent(self, replica: Witnessed, message: Message) -> None:
        """A message leaves its host."""
        type_ = message.type
        if type_ >= M.FIRST_FREE:
            return
        if type_.traits.local or message.sender != replica.id or message.to in (0, replica.id):
            raise Violation("INV23 what may be sent", str(message))
        if (not message.term) is not (type_.traits.term is Term.NONE):
            raise Violation("INV23 what may be sent", f"its term is not as it must be: {message}")
        if message.term and type_ not in PRE_VOTES:
            self._check_durable(replica, message)
        if type_ is M.HEARTBEAT:
            self._check_heartbeat(replica.raft, message)

    def _before(self, replica: Witnessed, message: Message) -> tuple[Any, ...] | None:
        """A message is about to be stepped; what is returned is for `_check_unmoved`."""
        raft = replica.raft
        # Not the answers: they go to whoever asked, who may be something else by now.
        from_leader = message.type.traits.from_leader or message.type is M.READ_INDEX_RESP
        current = from_leader and message.term == raft.term
        if current and isinstance(raft.handlers[raft.state][message.type], Never):
            raise Violation("INV19 a cell that cannot be reached", f"{raft!r} gets {message}")
        if message.type is M.REQUEST_PRE_VOTE:
            return raft.term, raft.vote, raft.log.last_index, raft.timers.election_elapsed, raft.state
        if message.type is M.REQUEST_VOTE:
            protected = _in_lease(raft) and not message.hint and message.term > raft.term
            return (raft.term,) if protected else None
        if message.type in ANSWERS and message.term == raft.term:
            self.seen[replica.id].heard[message.sender] = raft.timers.ticks
        return None

    def _check_unmoved(self, raft: Raft, message: Message, before: tuple[Any, ...]) -> None:
        """The message was stepped."""
        if message.type is M.REQUEST_PRE_VOTE:
            # A candidate may learn from it that a membership change is committed, and give up.
            elapsed = raft.timers.election_elapsed if raft.state is before[-1] else before[3]
            after = raft.term, raft.vote, raft.log.last_index, elapsed
            if after != before[:4]:
                raise Violation("INV16 a pre-vote changes nothing", f"{before} became {after} by {message}")
        else:
            self.happened["a vote was refused within the lease"] += 1
            if raft.term != before[0]:
                raise Violation(
                    "INV20 a lease protects its leader", f"{raft!r} left term {before[0]} for {message}"
                )

    def ticked(self, replica: Witnessed) -> None:
        """A tick has passed at a replica."""
        raft, seen = replica.raft, self.seen[replica.id]
        if raft.state is not State.LEADER or not raft.config.check_quorum or raft.quiesce.on:
            return
        oldest = raft.timers.ticks - 2 * raft.config.election_ticks - 1
        if seen.leading_since > oldest:
            return
        heard = [peer for peer, tick in seen.heard.items() if tick >= oldest]
        if not _is_quorum(raft.membership, {raft.id, *heard}):
            raise Violation(
                "INV20 a leader without a quorum steps down",
                f"{raft!r} heard {seen.heard} at {raft.timers.ticks}",
            )

    def turned(self, replica: Witnessed) -> None:
        """A replica has done something."""
        raft, seen = replica.raft, self.seen[replica.id]
        log = raft.log
        picture = (
            raft.state,
            raft.term,
            raft.vote,
            log.committed,
            log.applied,
            log.applying,
            log.first_index,
            log.last_index,
            raft.membership,
            len(raft.faults),
        )
        if picture != seen.picture:
            seen.picture = picture
            self._check_indexes(raft, seen)
            self._check_vote(raft, seen)
            self._check_faults(raft)
            self._check_membership(raft, seen)
            if raft.state is not seen.state or raft.term != seen.term:
                self._check_transition(raft, seen)
            if log.committed > seen.committed:
                self._check_commit(raft, seen)
        if raft.state is State.LEADER:
            self._check_leader(raft, seen)
        seen.state, seen.term, seen.vote = raft.state, raft.term, raft.vote
        seen.committed, seen.applied = log.committed, log.applied
        seen.first, seen.last = log.first_index, log.last_index
        seen.membership = raft.membership

    # -- one replica --------------------------------------------------------------------------------------------

    def _check_indexes(self, raft: Raft, seen: _Seen) -> None:
        log = raft.log
        if log.committed < seen.committed:
            raise Violation("INV6 the commit index never falls", f"{raft!r} had {seen.committed}")
        if log.applied < seen.applied:
            raise Violation("INV7 what is applied stays so", f"{raft!r} had applied {seen.applied}")
        if not log.applied <= log.applying <= log.committed <= log.last_index:
            raise Violation("INV7 applied, handed out, committed, last", f"{raft!r}, applying {log.applying}")
        if log.first_index > log.last_index + 1 or log.first_index < seen.first:
            raise Violation("INV24 the log has no gap", repr(raft))

    def _check_vote(self, raft: Raft, seen: _Seen) -> None:
        if raft.term < seen.term:
            raise Violation("INV8 terms never fall", f"{raft!r} was at {seen.term}")
        if raft.term == seen.term and seen.vote not in (0, raft.vote):
            raise Violation("INV8 a vote stands for its term", f"{raft!r} had voted for {seen.vote}")

    def _check_faults(self, raft: Raft) -> None:
        unexpected = raft.faults.keys() - EXPECTED_FAULTS
        if unexpected:
            raise Violation("INV19 no fault among correct replicas", f"{raft!r}: {sorted(unexpected)}")

    def _check_transition(self, raft: Raft, seen: _Seen) -> None:
        state = raft.state
        if state is State.LEADER:
            self._check_election(raft, seen)
        if seen.state is State.LEADER and state is not State.LEADER:
            self.happened["a leader stepped down" if raft.term == seen.term else "a leader was deposed"] += 1
        if seen.state is State.PRE_CANDIDATE and state in (State.FOLLOWER, State.PRE_CANDIDATE):
            self.happened["a pre-vote was not won"] += 1
        if seen.state is State.CANDIDATE and state is not State.LEADER:
            self.happened["an election was not won"] += 1

    @staticmethod
    def _check_campaign(raft: Raft) -> None:
        log = raft.log
        unapplied = [change.index for change in log.changes(log.applied + 1, log.committed + 1)]
        if unapplied or raft.log.pending_snapshot is not None:
            raise Violation(
                "INV18 nobody campaigns with an unapplied change", f"{raft!r}, changes at {unapplied}"
            )
        if raft.base_state in ONLOOKERS or not raft.membership.is_voter(raft.id):
            raise Violation("INV17 only voters campaign", repr(raft))

    def _check_election(self, raft: Raft, seen: _Seen) -> None:
        first = self.leaders.setdefault(raft.term, raft.id)
        if first != raft.id:
            raise Violation("INV1 one leader a term", f"{first} and {raft.id} lead term {raft.term}")
        if raft.base_state in ONLOOKERS or not raft.membership.is_voter(raft.id):
            raise Violation("INV17 only voters lead", repr(raft))
        electors = {raft.id} | {
            id_ for (id_, term), vote in self.votes.items() if term == raft.term and vote == raft.id
        }
        if not _is_quorum(raft.membership, electors):
            raise Violation("INV1 a majority elects", f"{raft!r}, by {electors} of {raft.membership}")
        self.happened["an election was won"] += 1
        seen.leading_since = raft.timers.ticks
        seen.transfer = 0
        seen.heard = {}
        seen.peers = {}
        self._check_complete(raft)

    def _check_complete(self, raft: Raft) -> None:
        """Logs match, so that the newest entry committed in an earlier term stands for all before it."""
        last = bisect_left(self.committed_in, raft.term) - 1
        if raft.log.first_index - 1 <= last and raft.log.term(last) != self.committed[last]:
            raise Violation(
                "INV4 a leader has all that is committed",
                f"{raft!r} has term {raft.log.term(last)} at {last}, where {self.committed[last]} is committed",
            )

    # -- the log ------------------------------------------------------------------------------------------------

    def _check_handed_out(self, replica: Witnessed, ready: Ready) -> None:
        raft, seen = replica.raft, self.seen[replica.id]
        self.turned(replica)
        if ready.snapshot is not None:
            self._take_snapshot(raft, seen, ready.snapshot)
        for run in ready.entries.runs:
            self._take_run(raft, seen, run)
        seen.settled = raft.log.committed
        for run in ready.committed.runs:
            self._check_applying(raft, seen, run)
            self._check_applied_once(raft, run)
        if ready.committed:
            self._check_applying_durable(raft, ready.committed.runs[-1].last)
        for dropped in ready.dropped:
            if dropped.type is M.PROPOSE:
                self._note_dropped(raft, dropped)
        for read in ready.reads:
            asked = self.reads.pop((raft.id, *read.context), None)
            if asked is not None and read.index < asked:
                raise Violation(
                    "INV21 a read sees all that was committed before it",
                    f"{raft!r} reads at {read.index}, when {asked} was committed",
                )

    def _take_snapshot(self, raft: Raft, seen: _Seen, snapshot: Snapshot) -> None:
        self.happened["a snapshot was installed"] += 1
        if snapshot.index < seen.settled:
            raise Violation("INV6 the commit index never falls", f"{raft!r} installs {snapshot.index}")
        if self._committed_term(snapshot.index) != snapshot.term:
            raise Violation("INV24 a snapshot holds what is committed", f"{raft!r} installs {snapshot}")
        newest = max((change for change in self.memberships if change <= snapshot.index), default=0)
        if snapshot.membership.change_id != newest:
            raise Violation("INV24 a snapshot holds the newest membership", f"{raft!r} installs {snapshot}")
        seen.base, seen.terms, seen.changes = snapshot.index, [snapshot.term], []
        seen.applying = snapshot.index

    def _take_run(self, raft: Raft, seen: _Seen, run: Run) -> None:
        last = seen.base + len(seen.terms) - 1
        if run.first <= last:
            self._check_cut(raft, seen, run)
        elif run.first != last + 1:
            raise Violation("INV24 the log has no gap", f"{raft!r} hands out {run} behind {last}")
        previous = seen.terms[-1]
        if run.term < previous or run.term > raft.term:
            raise Violation("INV3 terms never fall along a log", f"{raft!r}: {run} behind term {previous}")
        for index in range(run.first, run.last + 1):
            kind, payload = run.kind(index), run.payloads[index - run.first]
            self._check_entry(raft, index, run.term, previous, kind, payload)
            seen.terms.append(run.term)
            previous = run.term
            if kind == EntryKind.CONFIG_CHANGE:
                self._check_single(raft, seen, index, run.term)
                seen.changes.append(index)

    def _check_cut(self, raft: Raft, seen: _Seen, run: Run) -> None:
        self.happened["a conflict was cut off"] += 1
        if run.first <= seen.settled:
            raise Violation(
                "INV14 what is committed is never cut off", f"{raft!r} cuts {run.first}, {seen.settled} is"
            )
        if seen.term_at(run.first) == run.term:
            raise Violation("INV14 what agrees is left alone", f"{raft!r} writes {run.first} again")
        if raft.state is State.LEADER and seen.state is State.LEADER and raft.term == seen.term:
            raise Violation("INV2 a leader only appends", f"{raft!r} replaces {run.first}")
        del seen.terms[run.first - seen.base :]
        if seen.changes and seen.changes[-1] >= run.first:
            self.happened["a membership change was cut off"] += 1
            seen.changes = [at for at in seen.changes if at < run.first]

    def _check_entry(
        self, raft: Raft, index: int, term: int, previous: int, kind: EntryKind, payload: bytes
    ) -> None:
        if raft.base_state is State.WITNESS:
            if kind not in KEPT_BY_WITNESSES or (kind == EntryKind.METADATA and payload):
                raise Violation(
                    "INV17 a witness keeps no commands", f"{raft!r} stores {kind.name} at {index}"
                )
        elif kind == EntryKind.METADATA:
            raise Violation("INV17 only witnesses do without commands", f"{raft!r} at {index}")
        known = self.entries.get((index, term))
        if known is None:
            if kind != EntryKind.METADATA:
                self.entries[index, term] = (previous, kind, payload)
        elif known[0] != previous or (kind != EntryKind.METADATA and known[1:] != (kind, payload)):
            raise Violation(
                "INV3 logs match", f"{raft!r} has another entry {index} of term {term}, or before it"
            )

    def _check_single(self, raft: Raft, seen: _Seen, index: int, term: int) -> None:
        """A leader adds no change while another is under way."""
        open_ = [at for at in seen.changes if at > raft.log.applied]
        if raft.state is State.LEADER and term == raft.term and open_:
            raise Violation("INV15 one change at a time", f"{raft!r} logs one at {index}, open: {open_}")

    def _check_applying(self, raft: Raft, seen: _Seen, run: Run) -> None:
        if run.first != seen.applying + 1:
            raise Violation(
                "INV5 applied once and in order", f"{raft!r} applies {run} behind {seen.applying}"
            )
        seen.applying = run.last
        for index in range(run.first, run.last + 1):
            if self._committed_term(index) != run.term:
                raise Violation(
                    "INV5 all apply the same",
                    f"{raft!r} applies {index} of term {run.term}, committed is {self._committed_term(index)}",
                )
            kind, payload = run.kind(index), run.payloads[index - run.first]
            known = self.entries.get((index, run.term))
            if kind != EntryKind.METADATA and known is not None and known[1:] != (kind, payload):
                raise Violation("INV5 all apply the same", f"{raft!r} applies something else at {index}")

    def _check_applying_durable(self, raft: Raft, last: int) -> None:
        if raft.state is State.LEADER:
            last -= raft.config.apply_unpersisted_limit
        if last >= raft.log.first_index and not self._holds(raft.id, last, raft.log.term(last)):
            raise Violation("INV7 what is applied is durable", f"{raft!r} applies {last}")

    def _check_applied_once(self, raft: Raft, run: Run) -> None:
        """A witness does not know whose they are."""
        for index in range(run.first, run.last + 1) if run.origin else ():
            key = (run.origin, run.key + index - run.first)
            if run.kind(index) == EntryKind.COMMAND and self.proposals.setdefault(key, index) != index:
                raise Violation(
                    "INV22 a proposal has one outcome",
                    f"{raft!r} applies at {index} what was applied at {self.proposals[key]}, 0 being dropped",
                )

    def _note_dropped(self, raft: Raft, dropped: Dropped) -> None:
        for key in range(dropped.key, dropped.key + dropped.count):
            index = self.proposals.setdefault((dropped.origin, key), 0)
            if index:
                raise Violation(
                    "INV22 a proposal has one outcome",
                    f"{raft!r} drops what was applied at {index}: {dropped}",
                )

    def _committed_term(self, index: int) -> int:
        return self.committed[index] if index < len(self.committed) else 0

    # -- commits ------------------------------------------------------------------------------------------------

    def _check_prefix(self, raft: Raft, upto: int) -> None:
        """What a replica takes for committed is what was committed."""
        index = min(upto, len(self.committed) - 1)
        if index >= raft.log.first_index - 1 and raft.log.term(index) != self.committed[index]:
            raise Violation(
                "INV5 what is committed stays so",
                f"{raft!r} has term {raft.log.term(index)} at {index}, committed is {self.committed[index]}",
            )

    def _check_commit(self, raft: Raft, seen: _Seen) -> None:
        self._check_prefix(raft, raft.log.committed)
        new = raft.log.committed
        if new < len(self.committed):
            return
        # It may have lost its office in the very turn in which it committed.
        office = raft.term if raft.state is State.LEADER else seen.term
        if State.LEADER not in (raft.state, seen.state) or self.leaders.get(office) != raft.id:
            raise Violation("INV11 leaders commit", f"{raft!r} commits what no leader has committed")
        term = raft.log.term(new)
        if term != office:
            raise Violation("INV11 counting commits the own term", f"{raft!r} commits {new} of term {term}")
        if not self._is_held(raft.membership, new, term):
            raise Violation(
                "INV11 a majority holds it durably", f"{raft!r} commits {new}, on disk at {self._disks(new)}"
            )
        self.committed += [raft.log.term(index) for index in range(len(self.committed), new + 1)]
        self.committed_in += [office] * (len(self.committed) - len(self.committed_in))
        for other in self.replicas.values():
            if other.up and other.raft.state is State.LEADER and other.raft.term > office:
                self._check_complete(other.raft)

    def _is_held(self, membership: Membership, index: int, term: int) -> bool:
        return _is_quorum(membership, {id_ for id_ in self.replicas if self._holds(id_, index, term)})

    def _holds(self, replica: int, index: int, term: int) -> bool:
        """Whether the replica would still have the entry after a crash at this moment."""
        known = self.replicas.get(replica)
        if known is None:
            return False
        storage = known.storage
        if index < storage.first_index:
            return index < storage.first_index - 1 or storage.term(index) == term
        return storage.term(index) == term

    def _disks(self, index: int) -> dict[int, int]:
        return {id_: known.storage.term(index) for id_, known in self.replicas.items()}

    # -- a leader -----------------------------------------------------------------------------------------------

    def _check_leader(self, raft: Raft, seen: _Seen) -> None:
        if raft.log.last_index < seen.last and seen.state is State.LEADER and raft.term == seen.term:
            raise Violation("INV2 a leader only appends", f"{raft!r} had {seen.last} entries")
        for replica, peer in raft.progress.items():
            known = seen.peers.get(replica)
            now = (peer.match, peer.next, peer.state)
            if now != known or peer.inflight:
                self._check_peer(raft, replica, peer, known)
                seen.peers[replica] = now
        self._check_transfer(raft, seen)

    def _check_peer(
        self, raft: Raft, replica: int, peer: Progress, known: tuple[int, int, ProgressState] | None
    ) -> None:
        last = raft.log.last_index
        if not peer.match < peer.next <= last + 1:
            raise Violation("INV12 match < next <= last + 1", f"{raft!r} of {replica}: {peer}")
        if known is not None:
            if peer.match < known[0]:
                raise Violation("INV12 match never falls", f"{raft!r} of {replica}: {peer}, was {known[0]}")
            if known[2] is not peer.state:
                self.happened[f"progress went from {known[2].name} to {peer.state.name}"] += 1
        follows = peer.match >= raft.log.first_index and not self._has_left(replica, raft.term)
        if follows and not self._holds(replica, peer.match, raft.log.term(peer.match)):
            raise Violation("INV12 match is durable at the peer", f"{raft!r} of {replica}: {peer}")
        if peer.state is not ProgressState.REPLICATE and peer.inflight:
            raise Violation("INV13 only REPLICATE sends ahead", f"{raft!r} of {replica}: {peer}")
        if len(peer.inflight) > raft.config.max_inflight_messages:
            raise Violation("INV13 the window is bounded", f"{raft!r} of {replica}: {peer}")
        if (peer.pending_snapshot > 0) is not (peer.state is ProgressState.SNAPSHOT):
            raise Violation("INV13 a snapshot is pending in SNAPSHOT", f"{raft!r} of {replica}: {peer}")
        window = peer.inflight.indexes
        if window and (window[0] <= peer.match or sorted(set(window)) != list(window)):
            raise Violation("INV13 the window rises above match", f"{raft!r} of {replica}: {window}, {peer}")

    @staticmethod
    def _check_flow(raft: Raft, message: Message, known: tuple[int, int, ProgressState] | None) -> None:
        """Something is about to leave: as much as may be under way, and nothing where an answer is awaited."""
        peer, most = raft.progress.get(message.to), raft.config.max_inflight_bytes
        if peer is None:
            return  # it was removed, and is told so
        if message.type is M.INSTALL_SNAPSHOT:
            if known is not None and known[0] == peer.match and known[2] is ProgressState.SNAPSHOT:
                raise Violation("INV13 a snapshot travels alone", f"{raft!r} sends {message}: {peer}")
        elif peer.state is ProgressState.SNAPSHOT:
            raise Violation("INV13 a snapshot travels alone", f"{raft!r} sends {message}: {peer}")
        if message.entries and peer.state is ProgressState.PROBE and peer.probe_sent:
            raise Violation("INV13 one probe at a time", f"{raft!r} sends {message}: {peer}")
        if message.entries and 0 < most <= peer.inflight.bytes:
            raise Violation("INV13 the window is bounded", f"{raft!r} sends {message}: {peer}")

    def _has_left(self, replica: int, term: int) -> bool:
        """Whether a replica follows a newer leader, which may have replaced what it held."""
        known = self.replicas.get(replica)
        return known is None or known.storage.hard_state.term > term

    def _check_transfer(self, raft: Raft, seen: _Seen) -> None:
        target = raft.transfer.target
        if target and target == seen.transfer:
            if raft.log.last_index != seen.last:
                raise Violation("INV28 a transfer stops proposals", f"{raft!r} transfers to {target}")
            if raft.timers.ticks - seen.transfer_since > raft.config.election_ticks + 1:
                raise Violation("INV28 a transfer ends in time", f"{raft!r} transfers to {target}")
        elif target:
            self.happened["a transfer began"] += 1
            seen.transfer_since = raft.timers.ticks
        elif seen.transfer:
            self.happened["a transfer was given up"] += 1
        seen.transfer = target

    # -- membership ---------------------------------------------------------------------------------------------

    def _check_membership(self, raft: Raft, seen: _Seen) -> None:
        before, after = seen.membership, raft.membership
        if after is before:
            return
        seen.membership = after
        if after.change_id > raft.log.committed:
            raise Violation("INV15 a change takes effect when it is committed", f"{raft!r}: {after}")
        if raft.state is State.LEADER:
            seen.leading_since = raft.timers.ticks  # another quorum is to be heard
            seen.peers = {id_: known for id_, known in seen.peers.items() if id_ in raft.progress}
        known = self.memberships.get(after.change_id)
        if known is not None:
            if known != after:
                raise Violation(
                    "V8 one membership an index", f"{raft!r} has {after}, elsewhere it is {known}"
                )
            return
        self.memberships[after.change_id] = after
        roles = (after.voters, after.observers, after.witnesses)
        listed = [id_ for role in roles for id_ in role]
        addresses = [after.addresses[id_] for id_ in sorted(after.everybody)]
        unique = len(set(listed)) == len(listed) and len(set(addresses)) == len(addresses)
        if not after.voters or not unique or after.everybody & frozenset(after.removed):
            raise Violation("INV25 a membership is sound", f"{raft!r}: {after}")
        if self.newest is None or after.change_id > self.newest.change_id:
            self.newest = after
        if before.everybody and not _overlap(before, after):
            raise Violation("INV15 successive quorums meet", f"{raft!r}: {before} to {after}")
        if after.joint:
            self.happened["a joint membership was entered"] += 1

    # -- messages -----------------------------------------------------------------------------------------------

    def _check_durable(self, replica: Witnessed, message: Message) -> None:
        """A crash right now must not make it untrue."""
        state: HardState = replica.storage.hard_state
        term, type_ = message.term, message.type
        if state.term < term:
            raise Violation("INV10 durable before it is told", f"the term of {message}: {state}")
        self.told_term[replica.id] = max(term, self.told_term.get(replica.id, 0))
        if type_ is M.REQUEST_VOTE or (type_ is M.REQUEST_VOTE_RESP and not message.reject):
            vote = replica.id if type_ is M.REQUEST_VOTE else message.to
            if state.term == term and state.vote != vote:
                raise Violation("INV10 durable before it is told", f"the vote of {message}: {state}")
            if self.votes.setdefault((replica.id, term), vote) != vote:
                raise Violation("INV9 one vote a term", f"{message}, after {self.votes[replica.id, term]}")
            if type_ is M.REQUEST_VOTE and message.hint and (replica.id, term - 1) not in self.asked_to_lead:
                raise Violation("INV28 only who was asked campaigns at once", str(message))
        elif type_ is M.REPLICATE_RESP and not message.reject:
            self._check_accept(replica, message)

    @staticmethod
    def _check_accept(replica: Witnessed, message: Message) -> None:
        """What it says to hold is on disk, and is what it holds."""
        storage, log, index = replica.storage, replica.raft.log, message.log_index
        own = log.term(index)
        if storage.hard_state.term > message.term and (own == 0 or own > message.term):
            return  # a newer leader has replaced it in the same turn, and that is durable as well
        if index > storage.last_index:
            raise Violation(
                "INV10 durable before it is told", f"{message}, the disk ends at {storage.last_index}"
            )
        known = own and index >= storage.first_index and replica.raft.term == message.term
        if known and storage.term(index) != own:
            raise Violation(
                "INV10 durable before it is told",
                f"{message}, of term {own}; on disk is one of term {storage.term(index)}",
            )

    def _check_heartbeat(self, raft: Raft, message: Message) -> None:
        peer = raft.progress.get(message.to)
        leads = raft.state is State.LEADER and raft.term == message.term
        if leads and peer is not None and message.commit > peer.match:
            raise Violation("INV6 a heartbeat commits what matches", f"{message}: {peer}")


def _in_lease(raft: Raft) -> bool:
    """Whether it has heard its leader lately, and may depose it on no other's word."""
    known = raft.config.check_quorum and raft.leader_id
    return bool(known) and raft.timers.election_elapsed < raft.config.election_ticks


def _halves(membership: Membership) -> tuple[set[int], set[int]]:
    return {*membership.voters, *membership.witnesses}, set(membership.outgoing)


def _is_quorum(membership: Membership, replicas: set[int]) -> bool:
    """Counted anew: what the core counts with must not be its own judge."""
    return all(2 * len(replicas & half) > len(half) for half in _halves(membership) if half)


def _overlap(before: Membership, after: Membership) -> bool:
    """Whether each quorum of one has a replica in common with each of the other."""
    (old, old_outgoing), (new, new_outgoing) = _halves(before), _halves(after)
    if new_outgoing:
        return new_outgoing == old or (new, new_outgoing) == (old, old_outgoing)
    if old_outgoing:
        return new == old
    return len(old ^ new) <= 1
