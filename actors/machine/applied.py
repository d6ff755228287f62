"""The state that a replica has applied: its state machine, its client sessions, and the last entry in both."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import iscoroutine
from typing import Any, Final

from drakkar.actors.machine import content
from drakkar.actors.machine.compression import decode
from drakkar.actors.machine.content import Facts, WriteContent
from drakkar.actors.machine.sessions import FENCE, SessionTable
from drakkar.actors.machine.state_machine import (
    ConcurrentStateMachine,
    DiskStateMachine,
    StateMachine,
    refusal,
)
from drakkar.actors.runtime.futures import ActorFuture, in_full
from drakkar.actors.runtime.log_lines import HostLines, Lines
from drakkar.actors.snapshots.store import SnapshotReader, Snapshots
from drakkar.handlers.errors import ActorFailed, CorruptData, Refused, SessionRefused
from drakkar.handlers.raft.entries import EntryKind, Run
from drakkar.handlers.raft.state import Snapshot

__all__ = ["AppliedState", "ApplyFailed"]

_COMMAND: Final = int(EntryKind.COMMAND)
_ENCODED: Final = int(EntryKind.ENCODED)
_SESSION: Final = int(EntryKind.SESSION)


class ApplyFailed(ActorFailed):
    """The state machine failed at an entry, which the text names. `__cause__` is its exception."""


class AppliedState:
    """A state machine, its client sessions, and the last entry that it holds. For one thread at a time."""

    def __init__(self, machine: StateMachine, shard_id: int, lines: Lines | None = None) -> None:
        self.machine = machine
        self.disk = machine if isinstance(machine, DiskStateMachine) else None
        """The state machine, if it keeps its state on a disk of its own."""
        self._lines = lines or HostLines().of("drakkar.actors.machine")
        self.sessions = SessionTable()
        self.sessions.lines = self._lines
        self.index = 0
        """The last entry that the state machine holds. One on disk may hold more than it was given since its start."""
        self._shard_id = shard_id
        self._opened = False
        self._takes_batches = getattr(machine.apply_many, "__func__", None) is not StateMachine.apply_many

    # -- entries and queries ------------------------------------------------------------------------------------

    def apply(self, run: Run) -> Sequence[Any]:
        """Apply committed entries, which follow those applied before; return one result for each.

        The result of an entry that is no command, or that the state machine holds already, is None, and that of a
        command that it refused is a `Refused`. That of a `FENCE` is its index. Raises `CorruptData` for an entry that cannot
        be decoded, and `ApplyFailed` for any other exception of the state machine: the replica must end then.
        """
        if self.disk is not None:
            return self._apply_on_disk(self.disk, run)
        self.index = run.last
        if run.plain and self._takes_batches:
            with _naming("apply_many", run.first, run.last):
                return _checked(self.machine.apply_many(run.payloads), len(run.payloads))
        results: list[Any] = []
        try:
            self._apply_each(run, results)
            return _checked(results, len(run.payloads))
        except CorruptData:
            raise
        except BaseException as error:
            at = min(run.first + len(results), run.last)
            raise _failure("apply", at, at, error) from error

    def _apply_each(self, run: Run, results: list[Any]) -> None:
        """Apply one entry after the other, and add their results."""
        if not run.plain:
            for place, kind in enumerate(run.kinds):
                results.append(self._apply_entry(run, place, kind))
            return
        apply, note = self.machine.apply, results.append
        for command in run.payloads:
            try:
                note(apply(command))
            except Refused as error:
                note(refusal(error))

    def _apply_entry(self, run: Run, place: int, kind: int) -> Any:
        if kind == _COMMAND:
            return self._apply_command(run.payloads[place])
        if kind == _SESSION:
            result = self.sessions.apply(run.payloads[place], self._apply_command)
            return run.first + place if run.payloads[place] == FENCE else result
        # Decoded one at a time, since a command may be large. Membership changes and the like are the core's.
        return self._apply_command(_decoded(run, place)) if kind == _ENCODED else None

    def _apply_command(self, command: bytes) -> Any:
        try:
            result = self.machine.apply(command)
        except Refused as error:
            return refusal(error)
        return refusal(result) if isinstance(result, Refused) else result

    def _apply_on_disk(self, machine: DiskStateMachine, run: Run) -> Sequence[Any]:
        """Apply the entries that it does not hold yet; those that it holds were answered before the restart."""
        results: list[Any] = [None] * len(run.payloads)
        places, entries = [], []
        for place in range(max(self.index + 1 - run.first, 0), len(run.payloads)):
            kind = run.kinds[place] if run.kinds else _COMMAND
            if kind in (_COMMAND, _ENCODED):
                command = run.payloads[place] if kind == _COMMAND else _decoded(run, place)
                places.append(place)
                entries.append((run.first + place, command))
            elif kind == _SESSION and run.payloads[place] == FENCE:
                results[place] = run.first + place
            elif kind == _SESSION:
                results[place] = SessionRefused(
                    "a state machine on disk keeps no sessions: propose without one"
                )
        if entries:
            with _naming("apply_entries", entries[0][0], entries[-1][0]):
                answers = _checked(machine.apply_entries(entries), len(entries))
            for place, answer in zip(places, answers, strict=True):
                results[place] = answer
            self.index = entries[-1][0]
        return results

    def query(self, query: Any, future: ActorFuture[Any]) -> None:
        """Answer a question by the future; an exception of the state machine is an answer too."""
        if future.done:  # its deadline passed while it waited
            return
        try:
            answer = self.machine.query(query)
        except Exception as error:  # noqa: BLE001  # it is the answer
            future.try_fail(error)
        except BaseException as error:  # noqa: BLE001  # a SystemExit must end neither the asker nor the worker
            failed = ActorFailed(f"the state machine answered a query by raising {in_full(error)}")
            failed.__cause__ = error
            failed.outcome_known = True  # a question changes nothing
            future.try_fail(failed)
        else:
            future.try_set(answer)

    # -- snapshots ----------------------------------------------------------------------------------------------

    def load(self, snapshot: Snapshot, snapshots: Snapshots, *, log_end: int | None = None) -> bytes:
        """Replace the state by that of a snapshot, unless the state machine on disk holds that much by itself.

        Returns the encoded state of the extensions, which is their node's to load; no bytes if none has any.

        The first call opens a state machine on disk; `log_end` is the last entry of the log then, None if unknown. A
        snapshot with index 0 and a witness's snapshot leave the state as it is. Raises `CorruptData` if snapshot, log
        and state machine do not belong together, and any exception of the state machine.
        """
        if self.disk is not None and not self._opened:
            self._open(self.disk, log_end)
        if not snapshot.has_content:
            return b""
        with snapshots.open(snapshot.payload.decode()) as source:
            return self._take_over(source, snapshot.index)

    def _open(self, machine: DiskStateMachine, log_end: int | None) -> None:
        self._opened = True
        self.index = machine.open()
        if log_end is not None and self.index > log_end:
            raise CorruptData(
                f"the state machine holds the log up to {self.index}, and the log ends at {log_end}: they do not belong "
                "together. If the log was lost, replace this replica by a new one; if it was imported, remove the state "
                "machine's own data, which the import brings"
            )

    def _take_over(self, source: SnapshotReader, index: int) -> bytes:
        facts = Facts.decode(source.facts)
        if facts.shard_id != self._shard_id:
            raise CorruptData(f"the snapshot at {index} is of shard {facts.shard_id}, not {self._shard_id}")
        holds_it = self.disk is not None and self.index >= facts.machine_index
        if not facts.has_content and not holds_it:
            raise CorruptData(
                f"the state machine holds the log up to {self.index}, and the log begins after {facts.machine_index}: "
                "its own data was lost or restored from an older copy; replace this replica by a new one"
            )
        sessions = content.read_sessions(source) if facts.has_content else self.sessions
        extensions = content.read_extensions(source) if facts.extensions else b""
        if not holds_it:
            self.machine.load(source)
            self.sessions, self.index = sessions, facts.machine_index
            self.sessions.lines = self._lines
        return extensions

    def facts(self, *, has_content: bool = True) -> Facts:
        """Return the facts of a snapshot of this state."""
        return Facts(self._shard_id, self.index, has_content)

    def writer(self) -> WriteContent:
        """Return a function that writes this state, and that of the extensions, as the content of a snapshot.

        The state of a `ConcurrentStateMachine` is fixed now, and another thread may write it while entries are applied.
        That of any other must be written before anything else is done with it.
        """
        machine, sessions = self.machine, self.sessions.encode()
        fixed = machine.capture() if isinstance(machine, ConcurrentStateMachine) else machine.save
        return content.whole_content(sessions, fixed)


def _checked(results: Sequence[Any], commands: int) -> Sequence[Any]:
    if len(results) != commands:
        raise ValueError(f"it returned {len(results)} results for {commands} commands: return one for each")
    if results and iscoroutine(results[0]):
        raise TypeError("it returned a coroutine, which nothing runs: write it with `def`, not `async def`")
    return results


@contextmanager
def _naming(method: str, first: int, last: int) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        raise _failure(method, first, last, error) from error


def _failure(method: str, first: int, last: int, error: BaseException) -> ApplyFailed:
    entries = f"entry {first}" if first == last else f"entries {first} to {last}"
    if isinstance(error, Refused):
        return ApplyFailed(
            f"{method} raised {in_full(error)} at {entries}, which does not say which command is refused: return the "
            "Refused in the place of that command's result"
        )
    return ApplyFailed(f"{method} failed at {entries}: {in_full(error)}")


def _decoded(run: Run, place: int) -> bytes:
    try:
        return decode(run.payloads[place])
    except CorruptData as error:
        raise CorruptData(f"entry {run.first + place}: {error}") from error
