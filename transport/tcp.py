"""Messages between hosts over TCP: one listener, one outgoing connection to each peer, and limits on everything."""

import errno
import ipaddress
import logging
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from random import Random
from secrets import randbits, token_hex
from typing import Any, Final, TypeVar

import trio
from drakkar.handlers.checks import check_whole
from drakkar.handlers.errors import ConfigError, TransportError
from drakkar.handlers.messages import Message
from drakkar.transport.addresses import canonical, parse_address, peer_name
from drakkar.transport.admission import Admission
from drakkar.transport.budgets import LoopTime, Work
from drakkar.transport.call_rooms import CallRoom, CallRooms
from drakkar.transport.frames import FIRST_FREE_KIND, FrameError, encode_frame
from drakkar.transport.hello import (
    ALIVE_FEATURE,
    CALLS_FEATURE,
    PROTOCOL_VERSION,
    Identity,
    Run,
    encode_hello,
)
from drakkar.transport.inbound import Inbound
from drakkar.transport.incoming_streams import IncomingStreams
from drakkar.transport.known_hosts import KnownHosts, RunMemory
from drakkar.transport.liveness import HostState, HostStateChanged, Liveness, encode_alive
from drakkar.transport.lookups import Lookups, use_lookups
from drakkar.transport.options import Counters, Log, Options
from drakkar.transport.outgoing_streams import OutgoingStreams
from drakkar.transport.peer import Peer, PeerStatus
from drakkar.transport.reminders import Reminders
from drakkar.transport.renewal import Renewal
from drakkar.transport.resolver import Resolver
from drakkar.transport.shard_frames import ShardHello
from drakkar.transport.sockets import track_listener
from drakkar.transport.streams import StreamSink, StreamSource
from drakkar.transport.tls import Credentials, Tls, TlsConfig

__all__ = ["TcpTransport"]

T = TypeVar("T")

MAX_CALLED_HOSTS: Final = 1024
"""Hosts that are no members, and that actors of this host call: each costs a connection and a task until `idle_timeout`."""
HEARTBEAT_S: Final = 100e-6
"""Seconds of loop time that a host costs in a tick: a heartbeat to it and one from it, and their answers."""
HEARTBEATS_SHARE: Final = 0.2
"""The share of the loop's time that heartbeats may take for long: two thousand a second."""
HEARTBEATS_SAVED_S: Final = 0.2
"""Seconds of it that are saved up at most."""
HEARTBEATS_OF_MEMBERS_S: Final = HEARTBEATS_SAVED_S / 2
"""Seconds of it that others leave to members: these come first, however many others are watched."""


class TcpTransport:
    """Sends messages to other hosts, and delivers theirs.

    For the trio loop's thread only. Messages may be lost, but not altered. Those of types that are not
    bulk (`Traits.bulk`) arrive over one connection in the order in which they were sent, and so do the bulk messages of
    one shard; the former may overtake the latter.

    `address` is the address that this host advertises: others dial it and know this host by it. `listen_address` is
    where it listens, where that differs: behind a NAT, or "0.0.0.0:7000" for all interfaces. Port 0 takes a free port,
    which `address` shows once `serve` has started.

    `deliver` is called with the sender's address and its messages, in order.
    `unreachable` is called with the address of a peer each time that its connection is lost or cannot be made, which
    also drops what waits for it; never for lack of room.
    `drained` is called with the address of a peer and the shards that `room` refused, in the order in which they were
    refused, once there is room for them.
    `handed_back` is called with the address of a peer and bulk messages that were not sent, from within `send` where
    they do not fit. Without it they are dropped, and counted.
    All four must return soon and raise nothing.
    `called` is called with the address of a host and records of remote calls that it sent, in order, each a list that
    begins with the number of its kind; nothing else about them is checked. The host has introduced itself, and need not
    be a member. Of records that are of no use tell `charge_calls`. It raises `FrameError` for one that no host sends: then the
    connection is closed. Without `called` this host takes no calls, and says so to others.
    `calls_handed_back` is called with the address of a peer and records that were not sent, and why: the connection was
    lost, or cannot be made, or the peer takes no calls. These surely have no effect. They are the last that were
    queued, as the same objects and in order; whether those before them were received is not known. Where there is no
    connection, `unreachable` is called next.
    Both must return soon, and raise nothing else.
    `at_round_end` calls a function at the end of the caller's round: `send` then only queues, and a peer is written to
    once a round. Without it `send` writes at once. `run_now` calls a function, and does what it caused at once;
    `deliver` and `called` are called inside it.
    `greeted` is called with address and host id of a host whose connection for messages was accepted, and `parted`
    with its address when that has ended, unless another one has taken its place where the host spells its address likewise;
    and with whether the host is not connected any more, under any spelling. `introduced` is
    called with a host's address and what it says of its replica of a shard: before the first of the replica's messages, and
    again when that has changed. `introduction` returns what this host says of its own, as `encode_shard` does; None for a
    shard that needs none.
    `host_changed` is called where what is known of another host's life has changed. `gone` is called with the canonical address,
    the host id and the run of one whose process has ended: once a run, and when the last of its messages was delivered. See
    `liveness`. Both must return soon.
    `frames` has receivers for further kinds of frames. They are called with the sender's address and the body, which
    must be copied to be kept.
    `streams` is called when a stream begins, with the sender's address, the header, and whether the sender has shown that it
    is a member of a shard of this host; it returns the sink. It must return soon. It raises `TransportError`, whose text the
    sender gets, or another `DrakkarError`, to refuse the stream. Without `streams`, all streams are refused.
    `log` writes the log lines, such as an adapter that names this host in them; by default the logger
    `drakkar.transport` does.

    The host has an identity of its own that no other has, in its first run, unless `identify` gives it another.

    Raises `TransportError` for an invalid address, and `ConfigError` for a kind of frame that is not free and for TLS
    files that cannot be used.
    """

    def __init__(
        self,
        address: str,
        *,
        deliver: Callable[[str, list[Message]], None],
        unreachable: Callable[[str], None],
        drained: Callable[[str, Sequence[int]], None] | None = None,
        handed_back: Callable[[str, list[Message]], None] | None = None,
        at_round_end: Callable[[Callable[[], object]], None] | None = None,
        run_now: Callable[[Callable[[], object]], None] | None = None,
        deployment_id: str = "default",
        listen_address: str | None = None,
        tls: TlsConfig | None = None,
        greeted: Callable[[str, str], None] | None = None,
        parted: Callable[[str, bool], None] | None = None,
        introduced: Callable[[str, ShardHello], None] | None = None,
        introduction: Callable[[int], bytes | None] | None = None,
        host_changed: Callable[[HostStateChanged], None] | None = None,
        gone: Callable[[str, str, int], None] | None = None,
        frames: Mapping[int, Callable[[str, memoryview], None]] | None = None,
        streams: Callable[[str, bytes, bool], StreamSink] | None = None,
        called: Callable[[str, list[list[Any]]], None] | None = None,
        calls_handed_back: Callable[[str, list[bytes], TransportError], None] | None = None,
        version: tuple[int, int] = PROTOCOL_VERSION,
        features: Iterable[str] = (),
        random: Random | None = None,
        options: Options | None = None,
        log: Log | None = None,
    ) -> None:
        if listen_address is not None:
            _check_listen_address(listen_address)
        if canonical(address).startswith(("0.0.0.0:", "[::]:")):
            raise TransportError(
                f"address {address!r}: others cannot dial it; advertise an address of this host, and give this one "
                "as listen_address"
            )
        self.counters = Counters()
        self.options = options or Options()
        host_id, run = token_hex(16), Run.first(randbits(63))
        known = {*features, ALIVE_FEATURE, *(() if called is None else (CALLS_FEATURE,))}
        self._identity = Identity(address, deployment_id, version, frozenset(known), host_id, run)
        self._known = KnownHosts(host_id, run, timeout=self.options.run_timeout)
        self._liveness = Liveness(changed=self._report_change, gone=self._report_gone)
        self._known.on_replaced = self._liveness.replaced
        self._on_change, self._on_gone = host_changed or _nothing, gone or _nothing
        self._work = Work()
        self._heartbeats = LoopTime(HEARTBEATS_SHARE, HEARTBEATS_SAVED_S, self._work.clock())
        encode_hello(self._identity.hello(address))  # raises now, and not at the first connection
        self._listen_address = listen_address or address
        self._log = log or logging.getLogger("drakkar.transport")
        self._on_unreachable, self._on_drained, self._on_handed_back = unreachable, drained, handed_back
        self._on_calls_handed_back = calls_handed_back
        self._call_rooms = CallRooms(self.options)
        self._introduction = introduction or _nothing
        self._at_round_end = at_round_end
        self._unwritten: list[Peer] = []
        """What was queued for these in this round is written at its end."""
        frames = dict(frames or {})
        for kind in frames:
            _check_kind(kind)
        self._tls = None if tls is None else Tls(tls, self._log)
        self._renewal = (
            None
            if self._tls is None
            else Renewal(self._tls, self._log, address=lambda: self.address, used=self._revive_all)
        )
        self._random = random or Random()
        self._outgoing_streams = OutgoingStreams(
            self.options, self.counters, self._tls, self._log, self._known.admit
        )
        self._admission = Admission(self.options, self.counters)
        self._resolver = Resolver(self._reserve)
        self._inbound = Inbound(
            admission=self._admission,
            resolver=self._resolver,
            identity=lambda: self._identity,
            options=self.options,
            counters=self.counters,
            tls=self._tls,
            log=self._log,
            streams=IncomingStreams(streams, self.options, self.counters, self._log),
            known=self._known,
            liveness=self._liveness,
            work=self._work,
            deliver=deliver if run_now is None else partial(_call_now, run_now, deliver),
            called=called if run_now is None or called is None else partial(_call_now, run_now, called),
            connected=self._revive,
            redial=self._redial,
            greeted=greeted or _nothing,
            parted=parted or _nothing,
            introduced=introduced or _nothing,
            frames=frames,
            start_soon=self._start_soon,
        )
        self._peers: dict[str, Peer] = {}
        """By canonical address: two connections to one host would take each other's place there, again and again."""
        self._kept: frozenset[str] = frozenset()
        """See `keep`."""
        self._members: frozenset[str] | None = None
        """The canonical addresses of members; None where that was not said."""
        self._lookups: Lookups | None = None
        self._reminders_of_others = Reminders()
        """Of warnings about peers that are no members."""
        self._nursery: trio.Nursery | None = None
        self._ended = False

    def identify(
        self,
        host_id: str,
        run: Run,
        known: RunMemory | None = None,
        on_change: Callable[[RunMemory], None] | None = None,
    ) -> None:
        """Say which host this is, and which run of it; before `serve`.

        `known`: the runs of other hosts that were heard of before. `on_change` is called in the loop's thread with all of
        them when one has changed; it must return soon and raise nothing.
        """
        self._identity = replace(self._identity, host_id=host_id, run=run)
        self._known.host_id, self._known.run, self._known.on_change = host_id, run, on_change
        self._known.remember(known or {})

    @property
    def host_id(self) -> str:
        """The identity of this host, which its data directory keeps."""
        return self._identity.host_id

    @property
    def start(self) -> tuple[int, int]:
        """Count and nonce of this run of the host."""
        return self._identity.run.start

    @property
    def run(self) -> int:
        """The nonce of this run of the host, which no other run of any host has."""
        return self._identity.run.nonces[0]

    @property
    def address(self) -> str:
        """The address that this host advertises."""
        return self._identity.address

    @property
    def certificate_seconds(self) -> float:
        """Seconds until the certificate of this host expires, less than 0 after that; infinite without TLS. From any thread."""
        return inf if self._tls is None else self._tls.credentials.expiries["cert"] - time.time()

    @property
    def credentials(self) -> Credentials:
        """The certificates in use. From any thread. Raises `ConfigError` where this host has no TLS."""
        return self._with_tls().credentials

    def use_certificates(self, credentials: Credentials, instead_of: Credentials) -> bool:
        """Use other certificates from now on, and return True. Where they trust others than before, all connections are made anew.

        `instead_of` is what was in use before they were read. Where it is not any more, nothing changes, and False is returned:
        others have been read meanwhile, so read them again.

        Raises `ConfigError` where this host has no TLS.
        """
        return self._with_tls().use(credentials, instead_of=instead_of)

    def _with_tls(self) -> Renewal:
        if self._renewal is None:
            raise ConfigError("tls", None, "this host was made without: make it anew with a TlsConfig")
        return self._renewal

    # ---- sending

    def send(self, address: str, messages: Sequence[Message]) -> int:
        """Queue messages for the host at `address`; never blocks. Return how many were dropped.

        A message is dropped where its lane is full, unless it is bulk and `handed_back` takes it, and where it cannot
        be encoded, which is logged as an error. One call with many messages makes one frame, which is cheaper than one
        call for each.

        Before `serve` has started, messages wait; after it has ended, they are dropped.
        """
        if not messages:
            return 0
        if self._ended:
            self.counters.dropped += len(messages)
            return len(messages)
        return self._write_soon(self._peer(address)).offer(messages)

    def send_calls(
        self,
        address: str,
        records: Sequence[bytes],
        *,
        admitted: bool = False,
        now: bool = False,
        answers: bool = False,
    ) -> int:
        """Queue records of remote calls for the host at `address`, in order. Return how many found no room: the last ones.

        Never blocks. A record is an encoded CBOR list that begins with the number of its kind. `admitted`: each was
        admitted by `call_room` before, in this thread or another, and finds room; its place is given back in any case.
        `now`: they are written at once, and not at the end of the round: for a caller that has joined those of the round itself.
        `answers`: they are nothing but answers. Hosts that are sent no more than those are dialed for their own sake, and give way to
        each other where they are many; those that are called give way to each other alone.
        What was queued leaves this host, or is given back to `calls_handed_back`. Before `serve` has started, records
        wait; after it has ended, none has room.

        Raises `TransportError`, and queues nothing, where the host is connected and takes no calls, for a record
        that is no list, has more than `Options.call_limit` bytes, or more than 8,192 values, and where this host waits for
        so many others that no further one can be called.
        """
        if not records:
            return 0
        if self._ended:
            self._call_rooms.count_refused(len(records))
            if admitted:
                self.call_room(address).give_back(len(records), sum(map(len, records)))
            return len(records)
        if not answers:
            try:
                self._call(address)
            except TransportError:
                if admitted:
                    self.call_room(address).give_back(len(records), sum(map(len, records)))
                raise
        peer = self._peer(address)
        refused = peer.offer_calls(records, admitted=admitted)
        if now:
            peer.push()
        else:
            self._write_soon(peer)
        return refused

    def away(self, address: str) -> str:
        """Return why the host at `address` could not be reached, until the next attempt is due; "" at all other times.

        Where the connection was refused, that is said for `backoff_first` alone: records that are sent after that have the host
        dialed at once. All others that are sent meanwhile wait for the next attempt.
        """
        peer = self._peers.get(peer_name(address))
        return "" if peer is None else peer.away

    def unreached(self, address: str) -> str:
        """Return why the last attempt to reach the host at `address` failed, or that it takes no calls; "" where neither is known.

        For a caller that would not be told of what is handed back. From any thread.
        """
        peer = self._peers.get(peer_name(address))
        return "" if peer is None else peer.unreached

    def knock(self, address: str) -> None:
        """See soon whether a host that is `unreached` can be reached now, though there is nothing to send."""
        peer = self._peers.get(peer_name(address))
        if peer is not None:
            peer.knock()

    def call_room(self, address: str) -> CallRoom:
        """Return the room for calls to the host at `address`, where a thread learns at once whether there is any.

        From any thread. Keep it for as long as records that it has admitted are on their way to `send_calls`.
        """
        return self._call_rooms.of(address)

    @property
    def refused_calls(self) -> int:
        """Records of remote calls that found no room. From any thread."""
        return self._call_rooms.refused

    def recall(self, address: str, message: Message) -> int:
        """Drop a message that was sent to the host at `address`, and all that equal it, where they still wait here.

        Return how many were dropped. Not for bulk. What the kernel has taken cannot be recalled.
        """
        peer = self._peers.get(peer_name(address))
        return 0 if peer is None else peer.recall(message)

    def introduce(self, address: str, shard: int) -> None:
        """Send the host at `address` what `introduction` says of a shard, unless it was sent on this connection."""
        if not self._ended and not self._write_soon(self._peer(address)).introduce(shard):
            self.counters.dropped += 1

    def reintroduce(self, shard: int) -> None:
        """Send all hosts what `introduction` says of a shard, before the next message of the shard."""
        for peer in self._peers.values():
            peer.reintroduce(shard)

    def host_id_at(self, address: str) -> str:
        """Return the id of the host that introduced itself last as the one at `address`; "" if none did."""
        return self._known.host_id_at(address)

    def _start_soon(self, async_fn: Callable[..., Awaitable[object]], *args: object) -> None:
        """Start a task that ends with `serve`."""
        if self._nursery is not None:
            self._nursery.start_soon(async_fn, *args)

    def charge(self, address: str, count: int) -> None:
        """Say that so many messages of the host at `address` were of no use here.

        A host that sends too many of them is read more slowly. Call it in `deliver` where that shows at once: then they are
        charged with the time that they took.
        """
        self._inbound.frames.charge(address, count)

    def charge_calls(self, address: str, count: int) -> None:
        """Say that so many of the calls that `called` is handed are of no use here.

        A host that sends too many of them gets credit for further ones later. Call it in `called`.
        """
        self._inbound.frames.charge_calls(address, count)

    @property
    def unfinished_bytes(self) -> int:
        """Bytes of large messages that are being received. From any thread."""
        return self._inbound.frames.unfinished_bytes

    def members(self, addresses: Iterable[str]) -> None:
        """Say where the members of this host's shards live, instead of what was said before: places are kept free for them.

        Their names are resolved in the background. Raises `TransportError` for an invalid address.
        """
        self._members = members = frozenset(map(canonical, addresses))
        self._resolver.set_members(members)
        self._known.set_members(members)
        self._liveness.set_members(members - {canonical(self.address)})
        self._want_tracked()
        self._tell_lookups()

    def _tell_lookups(self) -> None:
        if self._lookups is not None and self._members is not None:
            self._lookups.set_members(self, (parse_address(address)[0] for address in self._members))

    def moved(self, before: str, after: str) -> None:
        """Say that a shard reaches a member at another address than before. Call it before `members` with the new one.

        Raises `TransportError` for an invalid address.
        """
        self._known.move(canonical(before), canonical(after))

    def _reserve(self, addresses: frozenset[str], ips: frozenset[str]) -> None:
        self._admission.reserve(addresses - {canonical(self.address)}, ips)

    def is_at_home(self, address: str) -> bool:
        """Return whether the host that has introduced itself at `address` has shown that it is there.

        Its certificate says so; or, without TLS, its connection comes from an IP address that `address` leads to. False if
        no connection for its messages is open.
        """
        return self._inbound.is_at_home(address)

    @property
    def certified(self) -> bool:
        """Whether each host that connects has shown a certificate for the address by which it introduced itself."""
        return self._tls is not None

    def proves(self, speaker: str, address: str) -> bool:
        """Return whether the host that introduced itself at `speaker` has shown a certificate that is for `address` too.

        False where it is not connected, and without TLS.
        """
        return self._inbound.proves(speaker, address)

    def is_certified_as(self, address: str, names: Iterable[str]) -> bool:
        """Return whether the host that introduced itself at `address` has shown a certificate with one of these names.

        A name is one that is written in the certificate, or a host name or IP address that it is for. False where the host is not
        connected, and without TLS.
        """
        return self._inbound.is_certified_as(address, names)

    def reachable(self, address: str) -> bool:
        """Return whether the host at `address` is connected, or was not tried yet."""
        peer = self._peers.get(peer_name(address))
        return peer is None or peer.reachable

    def room(self, address: str, shard: int, least: int = 1) -> int:
        """Return how many bytes of bulk of a shard the peer at `address` takes now: `least` or more, or 0.

        `UNLIMITED` where nothing waits: one message of any size passes. 0 without a connection, which is then dialed.
        A shard that was told 0 is told by `drained` when there is room again. Then one message of any size passes too,
        where it asks for as much as that takes.
        """
        return 0 if self._ended else self._peer(address).room(shard, least)

    def waiting(self, address: str, shard: int) -> int:
        """Return how many bulk messages of a shard wait for the peer at `address` and have not left this host."""
        peer = self._peers.get(peer_name(address))
        return 0 if peer is None else peer.waiting(shard)

    def send_frame(self, address: str, kind: int, body: bytes) -> bool:
        """Queue a frame of a kind of your own; return whether there was room for it.

        It keeps its order with the messages that are not bulk.

        Raises `ConfigError` for a kind that is not from 16 to 255, and `TransportError` for a body that is too long.
        """
        _check_kind(kind)
        if len(body) > self.options.frame_limit:
            raise TransportError(
                f"a frame of {len(body)} bytes is longer than {self.options.frame_limit}: send it in parts"
            )
        if self._ended:
            self.counters.dropped += 1
            return False
        return self._write_soon(self._peer(address)).offer_frame(encode_frame(kind, body))

    async def send_stream(self, address: str, header: bytes, source: StreamSource) -> None:
        """Send all bytes of `source` to the host at `address`, on a connection of their own.

        Returns once the receiver has confirmed that it stored everything. `header` tells the receiver what comes, in
        64 KiB at most. To be awaited by a task of the loop; cancelling it closes the connection.

        Raises `TransportError` with the address, the number of bytes sent and the reason: the receiver refused or
        failed, the connection was lost, `source` failed (then it is the `__cause__`), or the transport stopped. After
        all bytes were sent, the receiver may have stored them all the same. Raises at once where
        `max_outgoing_streams` are being sent, and where `serve` is not running.
        """
        if self._nursery is None:
            raise TransportError(f"the stream to {address} was not sent: {self.address} does not serve")
        await self._outgoing_streams.send(address, header, source, self._identity)

    def peers(self) -> dict[str, PeerStatus]:
        """Return the state of each peer to which something was sent lately, by address as it was spelt first. From any thread."""
        return {peer.address: peer.status() for peer in self._peers.copy().values()}

    def _peer(self, address: str) -> Peer:
        peer = self._peers.get(peer_name(address))
        if peer is None:
            self._make_room()
            peer = Peer(
                address,
                identity=lambda: self._identity,
                options=self.options,
                counters=self.counters,
                log=self._log,
                unreachable=self._report_unreachable,
                drained=self._report_drained,
                handed_back=self._report_handed_back if self._on_handed_back else None,
                calls_handed_back=self._report_calls_handed_back,
                call_room=self.call_room(address),
                at_once=self._at_round_end is None,
                tls=self._tls,
                known=self._known,
                liveness=self._liveness,
                work=self._work,
                introduction=self._introduction,
                random=self._random,
                reminders=self._shared_reminders,
            )
            peer.wanted = self._is_wanted(peer.name)
            self._peers[peer.name] = peer
            if self._nursery is not None:
                self._nursery.start_soon(self._run_peer, peer)
        return peer

    def _make_room(self) -> None:
        """Where many hosts are dialed for their own sake, end the peer of one that has gone, or that was used longest ago.

        A host that asks is answered at the address that it says, and it may say another one each time. As many are dialed as may be
        connected: so those that are, and wait for answers, need not give way to each other.
        """
        most = self.options.max_incoming
        if len(self._peers) >= most:
            others = [peer for peer in self._peers.values() if self._is_other(peer.name) and not peer.called]
            if len(others) >= most:
                self._end_peer(min(others, key=lambda peer: (self._inbound.has(peer.name), peer.used_at)))

    def _call(self, address: str) -> None:
        """Note that this host calls another one. Where it calls many, end the peer of the one that was used longest ago.

        Raises `TransportError` where something is waited for from each of them.
        """
        name = peer_name(address)
        peer = self._peers.get(name)
        if peer is not None and peer.called:
            return
        if self._members is not None and name not in self._members and len(self._peers) >= MAX_CALLED_HOSTS:
            called = [peer for peer in self._peers.values() if peer.called and peer.name not in self._members]
            if len(called) >= MAX_CALLED_HOSTS:
                self._end_one_of(called)
        self._peer(address).called = True

    def _end_one_of(self, called: list[Peer]) -> None:
        free = [peer for peer in called if not self._is_tracked(peer.name)]
        if not free:
            raise TransportError(
                f"something is waited for from {len(called)} hosts, and no more can be called: unwatch actors of some"
            )
        self._end_peer(min(free, key=lambda peer: peer.used_at))

    def _end_peer(self, peer: Peer) -> None:
        del self._peers[peer.name]
        peer.end()

    def _is_other(self, name: str) -> bool:
        """Return whether no member lives at a canonical address, and no one watches the host there."""
        return self._members is not None and name not in self._members and not self._is_tracked(name)

    def _shared_reminders(self, name: str) -> Reminders | None:
        return self._reminders_of_others if self._is_other(name) else None

    async def _run_peer(self, peer: Peer) -> None:
        try:
            with peer.life:
                await peer.run()
        finally:
            if self._peers.get(peer.name) is peer:
                del self._peers[peer.name]
            peer.hand_back_calls(TransportError(f"{self.address} stops"))

    def _write_soon(self, peer: Peer) -> Peer:
        """Let what is queued for a peer be written at the end of the round, if there are rounds."""
        if self._at_round_end is not None and not peer.write_is_due:
            peer.write_is_due = True
            if not self._unwritten:
                self._at_round_end(self._write)
            self._unwritten.append(peer)
        return peer

    def _write(self) -> None:
        unwritten, self._unwritten = self._unwritten, []
        for peer in unwritten:
            peer.push()

    def _report_unreachable(self, address: str) -> None:
        self._report("that it is unreachable", self._on_unreachable, address)

    def _report_drained(self, address: str, shards: Sequence[int]) -> None:
        if self._on_drained is not None:
            self._report("that it has room again", self._on_drained, address, shards)

    def _report_handed_back(self, address: str, messages: list[Message]) -> None:
        if self._on_handed_back is not None:
            self._report("what was not sent", self._on_handed_back, address, messages)

    def _report_calls_handed_back(self, address: str, records: list[bytes], why: TransportError) -> None:
        if self._on_calls_handed_back is not None:
            self._report("which calls were not sent", self._on_calls_handed_back, address, records, why)

    def _report(self, what: str, callback: Callable[..., None], address: str, *args: object) -> None:
        try:
            callback(address, *args)
        except Exception:  # noqa: BLE001  # logged; it must not stop the sending to others
            self.counters.failed += 1
            self._log.exception("this host failed to handle, of %s, %s", address, what)

    def _revive_all(self) -> None:
        """Let peers be dialed at once that have refused this host's old certificate, or whose own it has refused."""
        for peer in self._peers.values():
            peer.revive()

    def _revive(self, name: str) -> None:
        peer = self._peers.get(name)
        if peer is not None:
            peer.revive()

    def _redial(self, name: str) -> None:
        peer = self._peers.get(name)
        if peer is not None:
            peer.redial()

    # ---- the lives of other hosts

    def watch_host(self, address: str) -> HostState:
        """Exchange heartbeats with the host at `address`, as with members; return its state.

        It is dialed, and its connection is kept, until `unwatch_host` was called as often. Raises `TransportError` for an invalid
        address.
        """
        name = canonical(address)
        self._liveness.watch(name)
        self._want_tracked()
        if self._nursery is not None and self._is_tracked(name):
            self._peer(address)
        return self._liveness.life(name).state

    def unwatch_host(self, address: str) -> None:
        """Undo one `watch_host`. Raises `TransportError` for an invalid address, and `ConfigError` where there was none."""
        if not self._liveness.unwatch(canonical(address)):
            raise ConfigError("address", address, "is not watched: call watch_host before each unwatch_host")
        self._want_tracked()

    def keep(self, addresses: Iterable[str]) -> None:
        """Say which hosts wait for something of this one, instead of what was said before.

        They are dialed, and the connections to them are kept, for what they will be sent. No heartbeats are exchanged with them for
        that: who waits for nothing but bytes is noticed to be away when its connections are. Raises `TransportError` for an invalid
        address.
        """
        names = {canonical(address): address for address in addresses}
        self._kept = frozenset(names)
        self._want_tracked()
        if self._nursery is not None:
            for name in self._kept - self._peers.keys():
                self._peer(names[name])

    def tick(self) -> None:
        """A tick has passed: send a heartbeat to all hosts that are members or watched, and look who has not answered.

        So one whose loop is stalled sends none, and takes none of the others for dead for what it did not hear meanwhile.
        Where hosts are so many, and ticks so short, that heartbeats would take too much of the loop, some ticks do not count: first
        for those that are watched only, and for members where these alone are too many.
        """
        if self._nursery is None or self._liveness.silent:
            return
        now = self._work.clock()
        if self._heartbeats.wait(now):
            return
        members, all_ = self._liveness.members, self._liveness.tracked
        self._heartbeats.spend(len(members) * HEARTBEAT_S, now)
        due = members
        if len(all_) > len(members) and self._heartbeats.has(HEARTBEATS_OF_MEMBERS_S, now):
            self._heartbeats.spend((len(all_) - len(members)) * HEARTBEAT_S, now)
            due = all_
        heartbeat = encode_alive(self._liveness.tick(due))
        for name in due:
            if self._is_tracked(name):
                self._write_soon(self._peer(name)).beat(heartbeat)

    def silence(self, silent: bool) -> None:
        """Send and answer no heartbeats while `silent`, since this host is as good as dead: its disk hangs, say.

        It counts no ticks meanwhile: it cannot tell how others are, and keeps what it knew.
        """
        self._liveness.silent = silent

    @property
    def is_silent(self) -> bool:
        """It sends and answers no heartbeats now. From any thread."""
        return self._liveness.silent

    def host_state(self, address: str) -> HostState:
        """Return what is known of the life of the host at `address`: UNKNOWN unless it is a member or watched. From any thread."""
        return self._liveness.life(peer_name(address)).state

    def is_gone(self, address: str) -> bool:
        """Return whether the process that was last known at `address` has surely ended. For the loop's thread."""
        return self._liveness.has_gone(peer_name(address))

    def host_states(self) -> Counter[HostState]:
        """Return how many of the hosts that are members or watched are in which state. From any thread."""
        return self._liveness.states()

    def _is_tracked(self, name: str) -> bool:
        return name in self._liveness.tracked and name != peer_name(self.address)

    def _is_wanted(self, name: str) -> bool:
        return self._is_tracked(name) or (name in self._kept and name != peer_name(self.address))

    def _want_tracked(self) -> None:
        for peer in self._peers.values():
            peer.wanted = self._is_wanted(peer.name)

    def _report_change(self, event: HostStateChanged) -> None:
        self.counters.state_changes += 1
        self._log.log(
            logging.WARNING if event.state is HostState.DEAD else logging.INFO,
            "run %d of the host %.12s at %s is %s: %s",
            event.run,
            event.host_id,
            event.address,
            event.state.value,
            event.why,
        )
        self._report("that its state has changed", lambda _: self._on_change(event), event.address)

    def _report_gone(self, address: str, host_id: str, run: int) -> None:
        self.counters.gone += 1
        self._inbound.drop_gone(address)
        self._report("that it is gone", self._on_gone, address, host_id, run)

    # ---- serving

    async def serve(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen, and exchange messages, until cancelled; then everything is closed. Reports the address at the start.

        Raises `TransportError` where it cannot listen.
        """
        if self._nursery is not None:
            raise TransportError(f"{self.address} serves already: make another transport for another address")
        with use_lookups(self) as lookups:
            self._lookups = lookups
            self._tell_lookups()
            try:
                await self._serve(task_status)
            finally:
                self._lookups = None

    async def _serve(self, task_status: trio.TaskStatus[str]) -> None:
        listeners = await self._listen()
        async with trio.open_nursery() as nursery:
            self._nursery, self._ended = nursery, False
            try:
                for peer in self._peers.values():
                    nursery.start_soon(self._run_peer, peer)
                self._watch_certificates(nursery, listeners)
                task_status.started(self.address)
                nursery.start_soon(self._resolver.run)
                await self._inbound.run(listeners)
            finally:
                self._nursery, self._ended = None, True
                self._outgoing_streams.stop()

    def _watch_certificates(self, nursery: trio.Nursery, listeners: Sequence[socket.socket]) -> None:
        if self._renewal is not None:
            nursery.start_soon(self._renewal.run)
        elif not all(map(_is_loopback, listeners)):
            self._log.warning(
                "listens on %s without TLS: each process that reaches this port can read and change what is replicated, and "
                "keep shards without a leader. Give all hosts tls (docs/security.md), or listen on a network of theirs alone",
                self._listen_address,
            )

    async def _listen(self) -> list[socket.socket]:
        host, port = parse_address(self._listen_address)
        try:
            opened = await trio.open_tcp_listeners(port, host=host)
        except OSError as error:
            raise TransportError(f"cannot listen on {self._listen_address}: {_remedy(error)}") from error
        listeners = [socket.socket(fileno=each.socket.detach()) for each in opened]
        for listener in listeners:
            listener.setblocking(False)
            track_listener(listener)
        advertised, advertised_port = parse_address(self.address)
        if advertised_port == 0:
            port = listeners[0].getsockname()[1]
            name = f"[{advertised}]" if ":" in advertised else advertised
            self._identity = replace(self._identity, address=f"{name}:{port}")
        return listeners


def _call_now(
    run_now: Callable[[Callable[[], object]], None],
    function: Callable[[str, list[T]], None],
    address: str,
    what_came: list[T],
) -> None:
    """Call a function by `run_now`. A `FrameError` is the fault of the other host, and none of this one's: it ends the connection."""
    faults: list[FrameError] = []

    def call() -> None:
        try:
            function(address, what_came)
        except FrameError as fault:
            faults.append(fault)

    run_now(call)
    if faults:
        raise faults[0]


def _is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def _check_listen_address(address: str) -> None:
    try:
        parse_address(address)
    except TransportError as error:
        raise TransportError(f"listen_address: {error}") from error


def _nothing(*_: object) -> None:
    return None


def _check_kind(kind: int) -> None:
    check_whole("kind of frame", kind, FIRST_FREE_KIND, 0xFF)


def _remedy(error: OSError) -> str:
    """Return what is wrong with an address to listen on, and what to do about it."""
    cause: BaseException = error
    while not isinstance(cause, socket.gaierror) and cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, socket.gaierror):
        return f"the name cannot be resolved ({cause.strerror}); check it, or give an IP address"
    match error.errno:
        case errno.EADDRINUSE:
            return "the port is taken; stop the process that has it, or choose another port"
        case errno.EADDRNOTAVAIL:
            return "no interface of this machine has the address; give one that it has as listen_address"
        case errno.EACCES:
            return "this user may not use the port; choose one from 1024 up"
        case errno.EMFILE | errno.ENFILE:
            return "this process, or its machine, has too many files open; raise the limit (ulimit -n)"
        case _:
            return f"{error.strerror or error}; give an address of this machine as listen_address"
