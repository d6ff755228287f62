"""What operators ask of a node beside transfers and snapshots: its committed log, and where voters stand."""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from drakkar.actors.node.requests import LogQuery
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.actors.runtime.log_lines import Lines
from drakkar.handlers.errors import ConfigError, DrakkarError, RequestDropped, SystemBusy
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.config import RaftConfig
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.ready import LogQueryResult

__all__ = ["LogQueries", "answer_with", "assign_groups", "check_groups_in_use", "warn_of_missing_groups"]

MAX_LOG_QUERIES: Final = 1_000


def warn_of_missing_groups(raft: Raft, lines: Lines) -> None:
    """Log what group commit costs while some voters have no group: all of them must be up to commit."""
    missing = [voter for voter in raft.voters if not raft.groups.get(voter)]
    if raft.config.group_commit and missing:
        lines.warning(
            "voters %s have no group, so that with group_commit all voters must be up to commit: call "
            "Replica.assign_groups at every replica",
            missing,
        )


def check_groups_in_use(config: RaftConfig, groups: Mapping[int, int]) -> None:
    """Refuse groups that would have no effect. Raises `ConfigError`."""
    if groups and not config.group_commit:
        raise ConfigError("groups", dict(groups), "need group_commit=True, on all replicas of the shard")


def assign_groups(raft: Raft, groups: Mapping[int, int], lines: Lines) -> None:
    """Say where replicas stand.

    Raises `ConfigError`, and changes nothing, for what is no replica id or no group, and without `group_commit`.
    """
    check_groups_in_use(raft.config, groups)
    raft.assign_groups(groups)
    warn_of_missing_groups(raft, lines)


def answer_with(future: ActorFuture[Any], function: Callable[..., Any], *args: Any) -> None:
    """Set `future` to what the core's function returns. A `DrakkarError` is the client's, and ends nothing."""
    try:
        result = function(*args)
    except DrakkarError as error:
        future.try_fail(error)
    else:
        future.try_set(result)


class LogQueries:
    """Queries of the committed log, of which the core answers one with each `Ready`. For the loop's thread."""

    def __init__(self, raft: Raft) -> None:
        self._raft = raft
        self._waiting: deque[LogQuery] = deque()
        self._asked: LogQuery | None = None
        self._result: LogQueryResult | None = None
        """The answer to `_asked`, which the core hands out with its next `Ready`; None while the entries are not loaded."""

    def __len__(self) -> int:
        return len(self._waiting) + (self._asked is not None)

    def add(self, query: LogQuery) -> None:
        """Let a query wait for its turn."""
        if len(self) >= MAX_LOG_QUERIES:
            query.future.try_fail(SystemBusy(f"{MAX_LOG_QUERIES} log queries wait already: wait for some"))
        else:
            self._waiting.append(query)

    @property
    def due(self) -> bool:
        """Whether one waits that the core can be asked now."""
        if not self._waiting or self._asked is not None:
            return False
        # A handler of the application's own may have asked the core, which then takes no other.
        raft = self._raft
        return raft.outbox.log_query is None and raft.waiting_query is None

    def ask_next(self) -> None:
        """Ask the core the next one, unless an answer is still to come."""
        if not self.due:
            return
        query = self._waiting.popleft()
        self._raft.step(
            Message(MessageType.LOG_QUERY, sender=query.first, to=query.end, hint=query.max_bytes)
        )
        self._result = self._raft.outbox.log_query
        if self._result is None and self._raft.waiting_query is None:
            query.future.try_fail(
                RequestDropped("this replica's handler for log queries does not answer them")
            )
        else:
            self._asked = query

    def answered(self, result: LogQueryResult) -> None:
        """Take an answer of the core, which may be for a handler of the application's own."""
        query = self._asked
        if query is None or (self._result is not None and result is not self._result):
            return
        self._asked = self._result = None
        if result.out_of_range:
            query.future.try_fail(
                RequestDropped(
                    f"entries {query.first} to {query.end - 1} cannot be read here: this replica holds the committed "
                    f"entries {result.first_index} to {result.end - 1}"
                )
            )
        else:
            query.future.try_set(result.entries)

    def expire(self, now: float) -> None:
        """Answer those whose deadline has passed."""
        if not self:
            return
        if self._asked is not None and self._asked.deadline <= now:
            # Its answer is still to come, and is dropped then.
            self._asked.future.try_fail(
                RequestDropped("the disk did not give the entries by the deadline: ask again")
            )
        late = RequestDropped(f"by the deadline, {len(self)} log queries waited for the disk: ask again")
        for query in self._waiting:
            if query.deadline <= now:
                query.future.try_fail(late)
        self._waiting = deque(query for query in self._waiting if not query.future.done)

    def fail_all(self, error: Exception) -> None:
        """Answer all, as the replica ends."""
        for query in (*self._waiting, *([self._asked] if self._asked else [])):
            query.future.try_fail(error)
        self._waiting.clear()
