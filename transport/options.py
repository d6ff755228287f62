"""What can be set about a transport, and what it counts."""

from dataclasses import dataclass, fields
from math import inf

from drakkar.handlers.checks import check_number, check_whole
from drakkar.handlers.errors import TransportError
from drakkar.transport.frames import FRAME_LIMIT, FrameError
from drakkar.transport.hello import RefusedError

__all__ = ["Counters", "Options"]


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a host's transport: limits in bytes and counts, times in seconds.

    Limits are 1 or more, times and bandwidths 0.001 or more; `math.inf` means unlimited.

    Give all hosts the same keep-alive times and frame limit.

    Raises `ConfigError` for a value out of its bounds.
    """

    queue_bytes: int = 64 << 20
    """Maximum bytes that wait for one peer. A single larger message is accepted when the queue is empty."""
    queue_messages: int = 8192
    """Maximum messages that wait for one peer."""
    frame_limit: int = FRAME_LIMIT
    """Maximum bytes of one frame, sent or received; from 64 KiB to 4 GiB."""
    max_incoming: int = 256
    """Maximum connections that other hosts open to this one."""
    connect_timeout: float = 5.0
    """For the connection, TLS and the introduction together."""
    send_timeout: float = 10.0
    """For the kernel to take each 256 KiB."""
    keepalive: float = 3.0
    """Between two PINGs on a connection."""
    answer_timeout: float = 5.0
    """How much later than expected a sign of life may come."""
    idle_timeout: float = 300.0
    """A peer is forgotten, and its connection closed, when nothing was sent to it for so long."""
    backoff_first: float = 0.05
    """The wait after the first failure. It doubles with each further one, and is cut by up to half at random."""
    backoff_last: float = 2.0
    """The longest wait after a failure."""
    backoff_refused: float = 10.0
    """The wait after a refusal, cut by up to half at random. A refusal lasts until a setting is changed."""
    max_incoming_streams: int = 16
    """Maximum streams that other hosts send to this one at the same time. Further ones are refused."""
    max_outgoing_streams: int = 8
    """Maximum streams that this host sends at the same time. Further ones are refused."""
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


@dataclass(slots=True)
class Counters:
    """What happened since the start, over all peers."""

    sent: int = 0
    """Messages that were given to the kernel. It is not known whether they arrived."""
    received: int = 0
    """Messages that were delivered."""
    sent_bytes: int = 0
    received_bytes: int = 0
    dropped: int = 0
    """Messages that were not sent: the queue was full, the peer unreachable, or they cannot be encoded."""
    unknown_types: int = 0
    """Messages received and dropped, since no type of that number is defined here."""
    local_types: int = 0
    """Messages received and dropped, since no peer may send their type."""
    anonymous: int = 0
    """Messages received and dropped, since they name no sender."""
    unknown_frames: int = 0
    """Frames received and dropped, since their kind is not known here."""
    malformed: int = 0
    """Connections closed because of malformed bytes from the peer."""
    refused: int = 0
    """Introductions that failed, on either side: version, deployment, address, too many connections, or TLS."""
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
