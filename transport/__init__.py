"""Carries messages between hosts: frames, connections, TLS and streams. Knows no rule of Raft, and stores nothing.

What an application may use is exported here; modules of this package import each other's files.
"""

from drakkar.handlers.backoff import Backoff
from drakkar.transport.liveness import HostState, HostStateChanged
from drakkar.transport.options import Counters, Options
from drakkar.transport.peer import PeerStatus
from drakkar.transport.streams import StreamSink, StreamSource
from drakkar.transport.tcp import TcpTransport
from drakkar.transport.tls import TlsConfig

__all__ = [
    "Backoff",
    "Counters",
    "HostState",
    "HostStateChanged",
    "Options",
    "PeerStatus",
    "StreamSink",
    "StreamSource",
    "TcpTransport",
    "TlsConfig",
]
