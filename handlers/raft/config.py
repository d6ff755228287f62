"""The options of one replica: what each means, its unit, its bounds and its default.

What a whole host shares is no replica's option and stands at the host: the length of a tick, directories,
addresses, TLS, the queues between threads, numbers of workers. How the log is stored, and written beside the
core, is no option at all: `Ready` is always handed out once and reported back later.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from random import Random
from typing import Final, Literal, get_args

from drakkar.handlers.checks import MAX_SIGNED, check_choice, check_switch, check_whole
from drakkar.handlers.errors import ConfigError

__all__ = ["Compression", "RaftConfig", "ReadMode"]

_log: Final = logging.getLogger(__name__)

ReadMode = Literal["safe", "lease"]
Compression = Literal["none", "zlib"]

_MAX_TICKS: Final = 1_000_000
"""More than a day of ticks of 100 ms: a larger number most likely means milliseconds."""

_MIB: Final = 1 << 20

_INFLIGHT: Final = 8 * _MIB
"""Enough for 50 ms at 1 Gbit/s, and a quarter of what may wait for a host by default."""

_BOUNDS: Final[Mapping[str, tuple[int, int]]] = {
    "replica_id": (1, MAX_SIGNED),
    "shard_id": (0, MAX_SIGNED),
    "election_ticks": (1, _MAX_TICKS),
    "heartbeat_ticks": (1, _MAX_TICKS),
    "min_election_ticks": (0, _MAX_TICKS),
    "max_election_ticks": (0, _MAX_TICKS),
    "priority": (-MAX_SIGNED - 1, MAX_SIGNED),
    "snapshot_entries": (0, MAX_SIGNED),
    "snapshot_bytes": (0, MAX_SIGNED),
    "compaction_overhead": (0, MAX_SIGNED),
    "max_in_mem_log_bytes": (0, MAX_SIGNED),
    "max_message_bytes": (0, MAX_SIGNED),
    "max_apply_bytes": (0, MAX_SIGNED),
    "max_uncommitted_bytes": (0, MAX_SIGNED),
    "max_inflight_messages": (1, MAX_SIGNED),
    "max_inflight_bytes": (0, MAX_SIGNED),
    "apply_unpersisted_limit": (0, MAX_SIGNED),
    "max_pending_reads": (1, MAX_SIGNED),
}
"""Least and greatest value of every option that is a number; rules between options stand in the checks below."""

_SMALLEST_LOG: Final = 129
"""Dragonboat's least limit of the log in memory: one byte beside the 128 that an entry takes there."""

_CALM_RATIO: Final = 10
"""Dragonboat's advice; thesis §3.9 wants a broadcast to be an order of magnitude faster than an election timeout."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RaftConfig:
    """How one replica behaves. Immutable; checked when it is made.

    Only `replica_id` has no default. Sizes in bytes count `ENTRY_OVERHEAD` for each entry beside its payload.
    Numbers are at most 2**63 - 1, which serves as "no limit" where 0 means something else; ticks at most a million.

    Raises `ConfigError` for a value of the wrong type or out of bounds, and for options that exclude each other;
    it names the option, the value and what to write instead.
    """

    replica_id: int
    """The number of this replica within its shard: 1 to 2**63 - 1. A removed id is never used again."""

    shard_id: int = 1
    """The shard, a group of replicas, that it belongs to: 0 to 2**63 - 1. Default 1."""

    election_ticks: int = 10
    """T, the election timeout in ticks: more than 2 * `heartbeat_ticks`, better at least ten times. Default 10.

    A follower that hears nothing campaigns after T to 2T ticks, drawn anew each time; a leader that hears from no
    majority for T ticks steps down; a leadership transfer is given up after T. Should be equal on all replicas.
    """

    heartbeat_ticks: int = 1
    """Ticks between two heartbeats of a leader: 1 or more. Default 1."""

    min_election_ticks: int = 0
    """Least election timeout that is drawn, in ticks: T or more; 0, the default, is T."""

    max_election_ticks: int = 0
    """End of the draw, in ticks, itself not drawn: above `min_election_ticks`; 0, the default, is 2T.

    Unequal ranges let some replicas campaign before others; an equal one for all makes split votes likely.
    """

    check_quorum: bool = True
    """A leader that hears from no majority for T ticks steps down, and a follower that hears its leader refuses
    to vote (thesis §6.2, §4.2.3). Default on: a leader that is cut off should not keep its clients waiting.
    """

    pre_vote: bool = True
    """Ask whether an election could be won before starting one (thesis §9.6). Default on.

    Keeps a replica that comes back from a partition from deposing a leader that works. Should be equal on all
    replicas of a shard.
    """

    read_mode: ReadMode = "safe"
    """How a leader makes sure that a linearizable read is one: "safe" or "lease". Default "safe".

    "safe" asks a majority whether the leader still is one (thesis §6.4). "lease" trusts clocks instead (§6.4.1):
    faster, needs `check_quorum`, and may read old data where a process is paused, or where the clocks of two hosts
    drift apart by more than a tenth. Must be equal on all replicas of a shard: those that restart refuse to vote
    for T ticks, since they cannot remember whose lease they have confirmed. Until it restarts, a replica with other
    options keeps the leases that it has confirmed all the same.
    """

    priority: int = 0
    """Which replica should lead among those with logs of equal length: -2**63 to 2**63 - 1, higher is preferred. Default 0.

    A voter refuses a candidate of lower priority than its own, unless the candidate's log is longer (raft-rs).
    """

    is_observer: bool = False
    """Join without a vote: receive the log, count for nothing. Not together with `is_witness`. Default off."""

    is_witness: bool = False
    """Vote and count, but keep no commands (thesis §11.7.2). Not together with `is_observer`. Default off."""

    quiesce: bool = False
    """Fall silent after 20T ticks without requests, until one comes. Default off.

    Useful for thousands of idle shards. Works only if all replicas of the shard have it.
    """

    ordered_config_change: bool = False
    """A membership change must name the change that it follows, so that two operators cannot cross each other.
    Default off. Must be equal on all replicas of a shard, since each of them judges it.
    """

    strict_membership_changes: bool = False
    """A leader refuses a membership change after which it could not reach a quorum, as far as it knows now, unless the change
    is forced (etcd's strict reconfiguration check). Default off; on a host on.
    """

    snapshot_entries: int = 0
    """Take a snapshot each time that so many entries were applied, of any kind: 0 or more; 0, the default, is never.

    Must be 0 for a witness, which has nothing to save.
    """

    snapshot_bytes: int = 0
    """Take a snapshot also when the entries since the last one have so many bytes, and no less than that snapshot: 0 or more;
    0, the default, is never.

    So a large state is not written again for every few bytes: what is written for snapshots is at most about as much as the
    log. No more than half of these bytes are kept behind a snapshot, whatever `compaction_overhead` says. Must be 0 for a
    witness.
    """

    compaction_overhead: int = 0
    """Entries to keep behind a snapshot: 0 or more. Default 0.

    A follower that lags by no more than these is sent entries, which is cheaper than the whole snapshot. With
    `snapshot_bytes` there may be fewer.
    """

    disable_auto_compactions: bool = False
    """Compact the log only on request, not after each snapshot. Default off."""

    max_in_mem_log_bytes: int = 0
    """Reject proposals once unapplied log bytes, here or at a follower, exceed this: 129 or more; 0, the default, is unlimited.

    Once the limit was exceeded, proposals are taken again below 70 percent of it.
    """

    max_message_bytes: int = _MIB
    """Bytes of entries in one message: 0 or more; 0 is one entry a message. One entry always fits. Default 1 MiB.

    Large enough that a message's fixed costs vanish, small enough that it holds a heartbeat up for about 10 ms
    on a 1 Gbit/s line, a tenth of a tick.
    """

    max_apply_bytes: int = _MIB
    """Bytes of committed entries handed to the state machine at once: 0 or more. One entry always fits.

    0 means `max_message_bytes`, and the attribute then has that value. Default 1 MiB: the workers are shared, so a batch
    that takes long to apply delays other shards.
    """

    max_uncommitted_bytes: int = 0
    """Reject proposals at a leader once its unapplied payload bytes, with the new ones, exceed this: 0 or more; 0, the
    default, is unlimited.

    A leader with nothing unapplied takes a proposal of any size. Overhead does not count here, so proposals without a
    payload always pass. raft-rs wants no less than `max_message_bytes`; nothing depends on that.
    """

    max_inflight_messages: int = 256
    """Messages with entries that a leader sends to a peer ahead of its answers: 1 or more. Default 256."""

    max_inflight_bytes: int | None = None
    """Bytes of entries that a leader sends to a peer ahead of its answers: `max_message_bytes` or more.

    0 is no limit but `max_inflight_messages`. None, the default, means 8 MiB, or `max_message_bytes` where
    that is more; the attribute then has that value. It is well below what may wait for a host
    (`queue_bytes`), which all replicas share. A command of any size passes while less than the limit is out.
    """

    disable_proposal_forwarding: bool = False
    """A follower refuses proposals, rather than forward them to its leader. Default off."""

    disable_conf_change_validation: bool = False
    """A leader logs membership changes unchecked, also two at a time. Default off; for tests, and for hosts that check
    before they propose.
    """

    step_down_on_removal: bool = True
    """A leader that is removed, or loses its vote, becomes a follower when the change is applied (thesis §4.2.2).
    Default on; off, it goes on leading a shard that it does not belong to until it is stopped.
    """

    skip_commit_broadcast: bool = False
    """Let followers learn a new commit index with the next entries or heartbeat, not at once. Default off.

    Saves messages where followers serve no reads; a follower's answers come later (raft-rs).
    """

    commit_notices: bool = False
    """Tell followers of a new commit index by a COMMIT, which is not answered, where no REPLICATE does.
    Default off; on a host on.

    The host must step COMMIT_DUE about a millisecond after it finds `Raft.commit_untold` true. With
    `skip_commit_broadcast` a COMMIT goes only where it cannot wait: see `notices`.
    """

    batch_append: bool = False
    """Join entries to a message for the same peer that has not left yet, if they follow it. Default off (raft-rs).
    """

    apply_unpersisted_limit: int = 0
    """Entries that a leader may apply ahead of its own disk, once a majority holds them durably: 0 or more.

    0, the default, applies only what is durable here. More lowers latency where the leader's disk is the slow one
    (raft-rs).
    """

    notify_commit: bool = False
    """Tell a proposal's future as soon as it is committed, before it is applied. Default off."""

    wait_ready: bool = False
    """Starting the replica waits until it has applied again what it knew as committed. Default off."""

    group_commit: bool = False
    """Commit only what replicas of at least two groups hold, where groups are assigned (raft-rs). Default off."""

    entry_compression: Compression = "none"
    """Whether this replica's host compresses the commands that are proposed at it: "none" or "zlib". Default "none".

    A command that gets smaller travels and is stored compressed. Every replica decodes it before it applies it; this
    option need not be equal on all. Worth it for large commands of text over slow lines; it costs 2 to 10 ms a megabyte
    where a command is proposed, and where it is applied.
    """

    snapshot_compression: Compression = "none"
    """Whether this host compresses the snapshots that it writes: "none" or "zlib". Default "none".

    Every host reads both. It costs the thread that writes a snapshot some 10 ms a megabyte.
    """

    max_pending_reads: int = 4096
    """Reads that may wait for a majority's answer or a leader's first commit: 1 or more. Default 4096.

    One more is refused.
    """

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            if field.name in _BOUNDS:
                check_whole(field.name, value, *_BOUNDS[field.name])
            elif field.type is bool:
                check_switch(field.name, value)
        check_choice("read_mode", self.read_mode, get_args(ReadMode))
        check_choice("entry_compression", self.entry_compression, get_args(Compression))
        check_choice("snapshot_compression", self.snapshot_compression, get_args(Compression))
        _check_clock(self)
        _check_role(self)
        _check_sizes(self)
        if self.max_inflight_bytes is None:
            object.__setattr__(self, "max_inflight_bytes", max(_INFLIGHT, self.max_message_bytes))
        if self.max_apply_bytes == 0:
            object.__setattr__(self, "max_apply_bytes", self.max_message_bytes)

    @property
    def election_range(self) -> tuple[int, int]:
        """From where to where election timeouts are drawn, in ticks; the end is not drawn."""
        return (
            self.min_election_ticks or self.election_ticks,
            self.max_election_ticks or 2 * self.election_ticks,
        )

    def randomized_timeout(self, random: Random) -> int:
        """Draw an election timeout in ticks, each of `election_range` equally likely (thesis §3.4)."""
        return random.randrange(*self.election_range)


def _check_clock(config: RaftConfig) -> None:
    ticks, heartbeat = config.election_ticks, config.heartbeat_ticks
    if ticks <= 2 * heartbeat:
        raise ConfigError(
            "election_ticks",
            ticks,
            f"must be more than 2 * heartbeat_ticks = {2 * heartbeat}, or one lost heartbeat causes an election; "
            f"take {_CALM_RATIO * heartbeat} or more",
        )
    low, high = config.election_range
    if low < ticks:
        raise ConfigError("min_election_ticks", low, f"must be 0 or at least election_ticks = {ticks}")
    if high <= low:
        raise ConfigError(
            "max_election_ticks",
            config.max_election_ticks,
            f"timeouts are drawn from {low} to below {high} ticks, which is empty: make it {low + 1} or more",
        )
    if ticks < _CALM_RATIO * heartbeat:
        _log.warning(
            "replica %d of shard %d: election_ticks=%d is less than %d * heartbeat_ticks=%d: a few lost heartbeats "
            "cause an election",
            config.replica_id,
            config.shard_id,
            ticks,
            _CALM_RATIO,
            heartbeat,
        )


def _check_role(config: RaftConfig) -> None:
    if config.is_observer and config.is_witness:
        raise ConfigError(
            "is_witness", True, "not together with is_observer: a witness votes, an observer does not"
        )
    for option in ("snapshot_entries", "snapshot_bytes"):
        if config.is_witness and getattr(config, option):
            raise ConfigError(
                option, getattr(config, option), "must be 0 for a witness, which has nothing to save"
            )
    if config.read_mode == "lease" and not config.check_quorum:
        raise ConfigError(
            "read_mode", config.read_mode, "needs check_quorum=True, which is what makes a leader's lease end"
        )


def _check_sizes(config: RaftConfig) -> None:
    if 0 < config.max_in_mem_log_bytes < _SMALLEST_LOG:
        raise ConfigError(
            "max_in_mem_log_bytes",
            config.max_in_mem_log_bytes,
            f"must be 0 (no limit) or at least {_SMALLEST_LOG}, so that one entry fits",
        )
    if config.max_inflight_bytes and config.max_inflight_bytes < config.max_message_bytes:
        raise ConfigError(
            "max_inflight_bytes",
            config.max_inflight_bytes,
            f"must be 0 (no limit) or at least max_message_bytes = {config.max_message_bytes}",
        )
