"""Proposals on their way: from the inbox into the log, and their results back into the clients' futures."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from drakkar.actors.machine.compression import encode
from drakkar.actors.machine.decoding import command_size
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.handlers.errors import OutcomeUnknown, Refused, RequestDropped
from drakkar.handlers.raft.entries import MAX_ENTRIES, Run

__all__ = ["PendingProposals", "Proposal"]


class Proposal:
    """Commands that a client waits for together. A `single` one's future gets its result, others the list of results."""

    # Not a NamedTuple: every command makes one, and a tuple with names takes twice as long to make.
    __slots__ = ("commands", "count", "deadline", "future", "kinds", "single", "size")

    def __init__(
        self,
        commands: Sequence[bytes],
        future: ActorFuture[Any],
        deadline: float,
        single: bool,
        kinds: bytes = b"",
    ) -> None:
        self.commands, self.future, self.deadline = commands, future, deadline
        self.single, self.kinds = single, kinds
        self.count = len(commands)
        self.size = len(commands[0]) if single else sum(map(len, commands))
        """Bytes of all commands, compressed where they are."""

    def compress(self) -> None:
        """Compress those of its commands that get smaller by it."""
        self.commands, self.kinds = encode(self.commands)
        self.size = sum(map(len, self.commands))

    @property
    def decoded_size(self) -> int:
        """Bytes of all commands, once they are decoded."""
        return sum(map(command_size, self.kinds, self.commands)) if self.kinds else self.size


class _Dropped(NamedTuple):
    error: Exception


class _Batch:
    """Proposals that went to the leader together, under consecutive keys."""

    __slots__ = ("count", "deadline", "first", "items", "parts", "term")

    def __init__(self, first: int, items: list[Proposal], count: int, term: int) -> None:
        self.first, self.items, self.count, self.term = first, items, count, term
        self.deadline = min(item.deadline for item in items)
        self.parts: _Parts | None = None
        """Set where outcomes come in parts. Usually they come all at once."""


class _Parts:
    """Outcomes that come one by one, by their place in the batch. A proposal is answered with its last one."""

    __slots__ = ("_items", "_missing", "_outcomes", "_starts")

    def __init__(self, items: list[Proposal]) -> None:
        self._items = items
        self._missing = [len(item.commands) for item in items]
        self._starts = list(accumulate(self._missing[:-1], initial=0))
        self._outcomes: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self._outcomes)

    def note(self, place: int, outcome: Any) -> None:
        """Note an outcome. Only the first one of each place counts."""
        if place in self._outcomes:
            return
        self._outcomes[place] = outcome
        at = bisect_right(self._starts, place) - 1
        self._missing[at] -= 1
        if not self._missing[at]:
            start = self._starts[at]
            item = self._items[at]
            _settle([item], [self._outcomes[start + each] for each in range(len(item.commands))])


class PendingProposals:
    """What was proposed here and is not answered yet. All methods are for the loop's thread.

    The log carries the origin and the key of each proposal. The origin is a number that only this replica has, and only
    until it restarts. So a proposal is recognised when it is applied, whichever leader logged it.
    """

    def __init__(self, origin: int, *, max_run_bytes: int) -> None:
        self.origin = origin
        self._max_run_bytes = max_run_bytes
        self._next_key = 1
        self._term = 0
        self._batches: dict[int, _Batch] = {}
        self._firsts: list[int] = []
        self._commands = 0

    def __len__(self) -> int:
        """How many commands are not answered yet. From any thread."""
        return self._commands

    def add(self, proposals: Iterable[Proposal], now: float, term: int) -> list[Run]:
        """Note proposals, and return them as runs of bounded size for the core. Those that are too late fail.

        Commands that are compressed count as what they are once they are decoded, since the leader has that examined. A run has
        at most twice `max_run_bytes`, or one command.
        `term` is that of the leader to which they go; `now` is in seconds of the node's clock.
        """
        self._term = term
        runs: list[Run] = []
        items: list[Proposal] = []
        payloads: list[bytes] = []
        kinds = bytearray()
        size = 0
        for proposal in proposals:
            if proposal.deadline <= now:
                proposal.future.try_fail(
                    RequestDropped(
                        "its deadline passed before the replica, which is busy, took it: repeat it"
                    )
                )
                continue
            if size > self._max_run_bytes:
                runs += self._note_batch(items, payloads, bytes(kinds), size)
                items, payloads, kinds, size = [], [], bytearray(), 0
            items.append(proposal)
            if proposal.kinds:
                kinds += bytes(len(payloads) - len(kinds)) + proposal.kinds
            payloads += proposal.commands
            if kinds:
                kinds += bytes(len(payloads) - len(kinds))
            size += proposal.decoded_size
        if items:
            runs += self._note_batch(items, payloads, bytes(kinds), size)
        return runs

    def _note_batch(self, items: list[Proposal], payloads: list[bytes], kinds: bytes, size: int) -> list[Run]:
        first = self._next_key
        count = len(payloads)
        self._next_key += count
        self._batches[first] = _Batch(first, items, count, self._term)
        self._firsts.append(first)
        self._commands += count
        whole = Run(0, 0, payloads, kinds, self.origin, first)
        # Usually it fits. A large `propose_many` does not, and one message could not carry it to the leader.
        fits = size <= 2 * self._max_run_bytes and count <= MAX_ENTRIES
        if fits:
            return [whole]
        parts = whole.parts(self._max_run_bytes)
        return [*parts] if whole.plain else [cut for part in parts for cut in _cut(part, self._max_run_bytes)]

    def run_of(self, key: int) -> Run | None:
        """The run of a proposal of one entry, to be proposed again; None if it is answered already."""
        found = self._find(key)
        if found is None:
            return None
        item, place = found
        return Run(0, 0, [item.commands[place]], item.kinds[place : place + 1], self.origin, key)

    def is_late(self, key: int, now: float) -> bool:
        """Whether a proposal has no answer yet, and its deadline has passed."""
        found = self._find(key)
        return found is not None and found[0].deadline <= now

    def _find(self, key: int) -> tuple[Proposal, int] | None:
        """The proposal with a key, and the place of that entry in it; None if it is answered already."""
        batch = self._holder(key)
        if batch is None:
            return None
        place = key - batch.first
        for item in batch.items:
            if place < item.count:
                return item, place
            place -= item.count
        return None

    def applied(self, run: Run, results: Sequence[Any]) -> None:
        """The entries of `run` were applied with these results."""
        batch = self._batches.get(run.key)
        if batch is not None and batch.count == len(results) and batch.parts is None:
            self._forget(batch)
            _settle(batch.items, results)
        else:
            self._note(run.key, results)

    def dropped(self, key: int, count: int, error: Exception) -> None:
        """Fail proposals that surely have no effect."""
        self._note(key, [_Dropped(error)] * count)

    def resolve(self, key: int, result: Any) -> None:
        """Answer one proposal whose result does not come from the state machine."""
        self._note(key, [result])

    def _note(self, key: int, outcomes: Sequence[Any]) -> None:
        for offset, outcome in enumerate(outcomes):
            batch = self._holder(key + offset)
            if batch is None:
                continue
            if batch.parts is None:
                batch.parts = _Parts(batch.items)
            batch.parts.note(key + offset - batch.first, outcome)
            if len(batch.parts) == batch.count:
                self._forget(batch)

    def _holder(self, key: int) -> _Batch | None:
        at = bisect_right(self._firsts, key) - 1
        batch = self._batches[self._firsts[at]] if at >= 0 else None
        return batch if batch is not None and key < batch.first + batch.count else None

    def _forget(self, batch: _Batch) -> None:
        del self._batches[batch.first]
        self._commands -= batch.count
        at = bisect_left(self._firsts, batch.first)
        del self._firsts[at]

    def overtaken(self, term: int) -> None:
        """Fail what went to leaders of terms older than `term`, of which an entry was applied now.

        Terms never fall along the log, so nothing that those leaders logged can follow. But what was forwarded to one of
        them may still be under way, and may be logged by the next leader: so the outcome is unknown.
        """
        if not self._firsts or self._batches[self._firsts[0]].term >= term:
            return
        error = OutcomeUnknown(
            "the leader that it was proposed to was replaced, probably before it was committed; read the state "
            "before proposing it again"
        )
        for batch in [batch for batch in self._batches.values() if batch.term < term]:
            self._forget(batch)
            for item in batch.items:
                item.future.try_fail(error)

    def expire(self, now: float, late: Callable[[], OutcomeUnknown]) -> None:
        """Fail those whose deadline has passed: `late()` says why. They may still be committed."""
        error: OutcomeUnknown | None = None
        for batch in [batch for batch in self._batches.values() if batch.deadline <= now]:
            error = error or late()
            for item in batch.items:
                if item.deadline <= now:
                    item.future.try_fail(error)
            open_ = [item.deadline for item in batch.items if not item.future.done]
            if open_:
                batch.deadline = min(open_)
            else:
                self._forget(batch)

    def fail_all(self, error: Exception) -> None:
        """Fail all, as the replica ends. What it proposed may still be committed by the others."""
        batches, self._batches, self._firsts, self._commands = self._batches, {}, [], 0
        for batch in batches.values():
            for item in batch.items:
                item.future.try_fail(error)


def _cut(run: Run, limit: int) -> Iterator[Run]:
    """Cut a run into some whose commands have at most `limit` bytes once they are decoded, or one command."""
    start = size = 0
    for place, command in enumerate(map(command_size, run.kinds, run.payloads)):
        if place > start and size + command > limit:
            yield _between(run, start, place)
            start, size = place, 0
        size += command
    yield _between(run, start, len(run))


def _between(run: Run, start: int, stop: int) -> Run:
    return Run(0, 0, run.payloads[start:stop], run.kinds[start:stop], run.origin, run.key + start)


def _settle(items: list[Proposal], results: Sequence[Any]) -> None:
    """Give each proposal its part of the results."""
    place = 0
    for item in items:
        if item.single:
            result = results[place]
            place += 1
            if type(result) is _Dropped:
                item.future.try_fail(result.error)
            elif isinstance(result, Refused):
                item.future.try_fail(result)
            else:
                item.future.try_set(result)
            continue
        end = place + len(item.commands)
        _settle_list(item, list(results[place:end]))
        place = end


def _settle_list(item: Proposal, part: list[Any]) -> None:
    lost = next((one for one in part if type(one) is _Dropped), None)
    if lost is None:
        item.future.try_set(part)
    else:
        item.future.try_fail(_what_became_of(part, lost))


def _what_became_of(part: list[Any], lost: _Dropped) -> Exception:
    done = sum(type(one) is not _Dropped for one in part)
    if not done:
        return lost.error
    return OutcomeUnknown(
        f"{done} of {len(part)} commands were applied or refused, and the others were not: {lost.error}"
    )
