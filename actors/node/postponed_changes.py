"""Membership changes that a leader refused, and that are proposed again with the next tick, since it was early for them.

One whose voters the leader does not hear, or has not settled, is given up after a while.
"""

from collections.abc import Callable
from typing import Final

from drakkar.handlers.errors import DrakkarError
from drakkar.handlers.raft.entries import Run
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.ready import Dropped, Refusal

__all__ = ["PostponedChanges"]

_MAX_ELECTIONS: Final = {
    Refusal.QUORUM_UNREACHABLE: 1,  # the leader may have been elected, or have connected, just now; or a host is late
    Refusal.VOTER_UNSETTLED: 5,  # it may have been added just now, and be starting
}
"""For how many election timeouts a change is tried again, by why it was refused."""


class PostponedChanges:
    """For the loop's thread."""

    def __init__(self, raft: Raft, run_of: Callable[[int], Run | None]) -> None:
        """`run_of` returns the proposal with a key; None if it is answered already."""
        self._raft, self._run_of = raft, run_of
        self._errors: dict[int, DrakkarError] = {}
        """What the clients of those that are to be proposed again are told if their deadlines pass before, by key."""
        self._tries: dict[int, int] = {}
        """How often changes were refused for want of voters, by key. One that is refused only so is soon given up."""

    def __bool__(self) -> bool:
        """Whether there are any, or were at the last tick."""
        return bool(self._errors or self._tries)

    def take(self, dropped: Dropped, error: DrakkarError) -> bool:
        """Return whether a change that was refused is proposed again; if not, its client is to be told the error."""
        if not self._is_early(dropped):
            self._tries.pop(dropped.key, None)
            return False
        self._errors[dropped.key] = error
        return True

    def _is_early(self, dropped: Dropped) -> bool:
        if dropped.because is Refusal.CHANGE_PENDING:
            # A leader may apply a change later than this replica, which has told its client already that it is made.
            return self._raft.leader_id != self._raft.id
        tries = self._tries[dropped.key] = self._tries.get(dropped.key, 0) + 1
        return tries <= _MAX_ELECTIONS.get(dropped.because, 0) * self._raft.config.election_ticks

    def late(self, is_late: Callable[[int], bool]) -> list[tuple[int, DrakkarError]]:
        """Return those whose deadlines have passed before they are proposed again, by key: they surely have no effect."""
        late = [(key, error) for key, error in self._errors.items() if is_late(key)]
        for key, _ in late:
            del self._errors[key]
        return late

    def due(self) -> list[Run]:
        """Return what is to be proposed again, once a tick."""
        errors, self._errors = self._errors, {}
        runs = {key: self._run_of(key) for key in errors}
        self._tries = {key: tries for key, tries in self._tries.items() if runs.get(key) is not None}
        return [run for run in runs.values() if run is not None]
