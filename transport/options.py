"""What can be set about a transport, and what it counts."""

import logging
from dataclasses import dataclass, fields
from math import inf
from typing import TypeAlias

from drakkar.handlers.checks import check_number, check_whole
from drakkar.handlers.errors import TransportError
from drakkar.transport.call_frames import LIST_HEAD
from drakkar.transport.frames import FRAME_LIMIT, FrameError
from drakkar.transport.hello import RefusedError

__all__ = ["Counters", "Log", "Options"]

Log: TypeAlias = logging.Logger | logging.LoggerAdapter[logging.Logger]
"""What writes the log lines of a host."""


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a host's transport: limits in bytes and counts, times in seconds.

    Limits are 1 or more, times and bandwidths 0.001 or more; `math.inf` means unlimited.

    Give all hosts the same keep-alive times, frame limit and call limit.

    Raises `ConfigError` for a value out of its bounds.
    """

    queue_bytes: int = 32 << 20
    """Maximum bytes of bulk, of all shards together, that wait for one peer. One message may exceed it."""
    control_bytes: int = 4 << 20
    """Maximum bytes of control that wait for one peer. A single larger message is accepted when nothing waits."""
    queue_messages: int = 8192
    """Maximum messages that wait for one peer, of bulk and of control each."""
    call_bytes: int = 8 << 20
    """Maximum bytes of remote calls that wait for one peer; more fail with `SystemBusy`. One call may exceed it."""
    call_records: int = 10_000
    """Maximum remote calls, answers and the like that wait for one peer; more fail with `SystemBusy`."""
    call_limit: int = 1 << 20
    """Maximum bytes of one remote call or answer, sent or received; never more than `frame_limit`."""
    frame_limit: int = FRAME_LIMIT
    """Maximum bytes of one frame, sent or received; from 64 KiB to 4 GiB."""
    unfinished_bytes: int = 256 << 20
    """Maximum bytes of large messages that are being received, over all connections; further ones wait. An eighth is for hosts
    that are no members of this host's shards. One message may exceed either part alone."""
    max_incoming: int = 256
    """Maximum hosts that are connected to this one. Each member of its shards has a place of its own: others share the rest,
    at least an eighth. Where members alone are more, they are all let in."""
    max_incoming_per_source: int = 64
    """How many hosts that are no members of its shards may be connected from one IP address, or one IPv6 network (/64)."""
    max_introducing: int = 128
    """Maximum connections to this host that have not introduced themselves. A further one takes the place of another."""
    max_introducing_per_source: int = 32
    """How many of these from one IP address, or one IPv6 network (/64)."""
    introduce_timeout: float = 3.0
    """How long a host that connects to this one has for TLS and its introduction; for its first frame, or its first record of TLS,
    a second at most."""
    connect_timeout: float = 5.0
    """For a connection that this host opens: the connection, TLS and the introduction together."""
    send_timeout: float = 10.0
    """For the kernel to take each 256 KiB."""
    keepalive: float = 3.0
    """Between two PINGs on a connection."""
    answer_timeout: float = 5.0
    """How much later than expected a sign of life may come."""
    run_timeout: float = 1.0
    """How long a host's older run may take to answer, before a connection of a newer one is taken. Where it answers, one of
    the two is a copy of the other's data directory."""
    idle_timeout: float = 300.0
    """A peer is forgotten, and its connection closed, when nothing was sent to it for so long."""
    backoff_first: float = 0.05
    """The wait after the first failure. It doubles with each further one, and is cut by up to half at random."""
    backoff_last: float = 2.0
    """The longest wait after a failure."""
    backoff_refused: float = 10.0
    """The wait after a refusal, cut by up to half at random. A refusal lasts until a setting is changed."""
    max_incoming_streams: int = 16
    """Maximum streams that other hosts send to this one at the same time. A host without a place for a further one tries again for
    its `connect_timeout`. A single host has three quarters of these places at most; hosts that are no members of this host's
    shards have half of them, and a quarter from one source. A member that sends none yet always has one more."""
    max_outgoing_streams: int = 8
    """Maximum streams that this host sends at the same time, three quarters of them to one host. Further ones are refused."""
    stream_timeout: float = 60.0
    """In each such time of waiting for a stream, 64 KiB of it must come, or the rest. The receiver has as long to store it,
    and a second more for each MiB."""
    stream_bytes_per_second: float = 64 << 20
    """Maximum bandwidth of all streams together that this host sends."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is float:
                check_number(field.name, value, 0.001)
            elif value != inf:
                check_whole(field.name, value, 1)
        # The length field of a frame has 32 bits.
        check_whole("frame_limit", self.frame_limit, 1 << 16, (1 << 32) - 1)

    @property
    def longest_call(self) -> int:
        """Maximum bytes of one remote call or answer: `call_limit`, as far as a frame may have so many."""
        return min(self.call_limit, self.frame_limit - LIST_HEAD)


@dataclass(slots=True)
class Counters:
    """What happened since the start, over all peers."""

    sent: int = 0
    """Messages and small frames, as heartbeats, that were given to the kernel. It is not known whether they arrived."""
    received: int = 0
    """Messages that were delivered."""
    sent_bytes: int = 0
    received_bytes: int = 0
    dropped: int = 0
    """Messages that were not sent: their lane was full, the peer unreachable, or they cannot be encoded."""
    handed_back: int = 0
    """Bulk messages that were not sent, and given back: their lane was full, or the connection was lost."""
    recalled: int = 0
    """Messages that their sender had dropped again while they waited."""
    calls_sent: int = 0
    """Remote calls, answers and the like that were given to the kernel. It is not known whether they arrived."""
    calls_received: int = 0
    """Those that were handed over here."""
    calls_handed_back: int = 0
    """Those that were not sent, and given back: there was no connection, it was lost, or the peer takes none."""
    busy: int = 0
    """How many times a shard was told that there is no room for its bulk, though there was a connection."""
    unknown_types: int = 0
    """Messages received and dropped, since no type of that number is defined here."""
    local_types: int = 0
    """Messages received and dropped, since no peer may send their type."""
    anonymous: int = 0
    """Messages received and dropped, since they name no sender."""
    unknown_frames: int = 0
    """Frames received and dropped, since their kind is not known here."""
    gone_messages: int = 0
    """Messages and frames received and dropped, since the run of their host is gone, or over."""
    state_changes: int = 0
    """How many times another host came to another state: unknown, alive, suspect or dead."""
    gone: int = 0
    """Runs of other hosts whose process has ended, as this host has seen."""
    useless: int = 0
    """Messages and frames received that were of no use: for shards that are not here, of older terms, and the like."""
    pauses: int = 0
    """How many times a connection was not read for a while, since too many of its messages were of no use, or for one shard."""
    malformed: int = 0
    """Connections closed because of malformed bytes from the peer."""
    refused: int = 0
    """Introductions that failed, on either side: version, deployment, address, a copied data directory, or TLS."""
    full: int = 0
    """Hosts that introduced themselves to this one and found no place."""
    evicted: int = 0
    """Connections to this host that lost their place to others before they had introduced themselves."""
    late: int = 0
    """Connections to this host that did not introduce themselves in time."""
    connects: int = 0
    """Connections for messages that this host opened."""
    connect_failures: int = 0
    """Connections for messages that this host failed to open."""
    lost: int = 0
    """Connections for messages that this host opened and lost."""
    accepted: int = 0
    """Connections for messages that other hosts opened to this one."""
    failed: int = 0
    """Failures of this host's own code while it handled a peer's bytes: bugs, each logged with its traceback."""
    streams_sent: int = 0
    """Streams that their receivers confirmed as stored."""
    streams_received: int = 0
    """Streams that were stored here."""
    streams_failed: int = 0
    """Streams, sent or received, that were refused, interrupted or cancelled."""
    stream_bytes_sent: int = 0
    """Bytes of streams that were given to the kernel."""
    stream_bytes_received: int = 0
    """Bytes of streams that their sinks took."""

    def count_fault(self, error: TransportError) -> None:
        """Count the end of a connection, where one of the two hosts is at fault and not the network."""
        if isinstance(error, FrameError):
            self.malformed += 1
        elif isinstance(error, RefusedError):
            self.refused += 1
