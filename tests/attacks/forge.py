"""Connections to a host on which anything can be said. What is not forged on purpose is legal.

Blocking sockets: an attack is a thread or a few, and no trio is needed to be rude.
"""

import os
import selectors
import socket
import ssl
import struct
import threading
import time
import zlib
from contextlib import contextmanager, suppress

import cbor2
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.entries import Entry
from drakkar.handlers.raft.lives import Standing, founding_id
from drakkar.transport.addresses import parse_address
from drakkar.transport.frames import FrameKind, FrameReader, encode_frame
from drakkar.transport.hello import PROTOCOL_VERSION, Hello, Run, decode_hello, decode_reason, encode_hello
from drakkar.transport.message_frames import encode_messages
from drakkar.transport.shard_frames import ShardHello, encode_shard

from tests.actors.support import until

STRANGER = "127.0.9.9"
"""Where strangers come from: an address of this machine that no member has."""
UNKNOWN_KIND = 200
"""A kind of frame that no version defines, and no application of these hosts."""
TIMEOUT_S = 5.0


# ---- frames


def frame(kind, body=b"", *, magic=b"DK", framing=1, length=None, body_sum=None, head_sum=None):
    """A frame of which each field of the header can be forged."""
    length = len(body) if length is None else length
    body_sum = zlib.crc32(body) if body_sum is None else body_sum
    start = struct.pack(">2sBBII", magic, framing, kind, length, body_sum)
    return start + struct.pack(">I", zlib.crc32(start) if head_sum is None else head_sum) + body


def hello(dialed, address=f"{STRANGER}:1", **fields):
    """The introduction of a host that no one has seen before."""
    settings = {
        "version": PROTOCOL_VERSION,
        "deployment_id": "default",
        "host_id": os.urandom(16).hex(),
        "run": Run.first(1),
    }
    return encode_hello(Hello(address=address, dialed=dialed, **{**settings, **fields}))


def messages(*said):
    """Legal messages, as the library writes them."""
    return b"".join(encode_messages(said))


ROW = {
    "type": int(MessageType.HEARTBEAT), "to": 1, "sender": 2, "shard": 1, "term": 1, "log_term": 0, "log_index": 0,
    "commit": 0, "reject": False, "hint": 0, "hint_high": 0, "runs": 0, "snapshot": None, "payload": None,
}  # fmt: skip


def row(**fields):
    """A message as it travels, any field of which can be forged."""
    assert not fields.keys() - ROW.keys()
    return list({**ROW, **fields}.values())


def rows(*said, bulk=b""):
    """A MESSAGES frame of such rows."""
    return raw_control(cbor2.dumps(list(said)), bulk)


def raw_control(control, bulk=b""):
    return encode_frame(FrameKind.MESSAGES, struct.pack(">I", len(control)), control, bulk)


def part(total, offset, data):
    return encode_frame(FrameKind.PART, struct.pack(">II", total, offset), data)


def shard(number, replica, members, **fields):
    """The introduction of a replica of a shard that was founded by `members`, as those who know the members can make it."""
    settings = {"founding": founding_id(number, members), "standing": Standing.INHERITED, "founders": members}
    return encode_frame(FrameKind.SHARD, encode_shard(ShardHello(number, replica, **{**settings, **fields})))


def propose(sender, to, command, number=1):
    return Message(
        MessageType.PROPOSE, to=to, sender=sender, shard=number, entries=(Entry(0, 0, payload=command),)
    )


# ---- connections


class Link:
    """One connection to a host. `source`: the address it comes from."""

    def __init__(self, address, *, tls=None, source=STRANGER, timeout=TIMEOUT_S, receive_bytes=None):
        self.address = address
        self._reader = FrameReader()
        self._waiting = []
        plain = socket.socket()
        try:
            plain.settimeout(timeout)
            if receive_bytes:
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            plain.bind((source, 0))
            plain.connect(parse_address(address))
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            name = parse_address(address)[0]
            self.socket = plain if tls is None else tls.wrap_socket(plain, server_hostname=name)
        except BaseException:
            plain.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def send(self, *frames):
        """Send all, and return whether the host let us."""
        try:
            self.socket.sendall(b"".join(frames))
        except OSError:
            return False
        return True

    def next(self, within=TIMEOUT_S):
        """The next frame; None where the host closed the connection. Raises `TimeoutError`."""
        until = time.monotonic() + within
        while not self._waiting:
            self.socket.settimeout(max(0.001, until - time.monotonic()))
            try:
                data = self.socket.recv(1 << 16)
            except TimeoutError:
                raise
            except (OSError, ssl.SSLError):
                return None
            if not data:
                return None
            self._waiting += self._reader.feed(data)
        return self._waiting.pop(0)

    def closed(self, within=TIMEOUT_S):
        """Whether the host ends the connection within so many seconds; and what it said of the reason in `said`."""
        self.said = ""
        with suppress(TimeoutError):
            while (got := self.next(within)) is not None:
                if got.kind == FrameKind.REFUSED:
                    self.said = decode_reason(got.body)
            return True
        return False

    def introduce(self, as_address=f"{STRANGER}:1", **fields):
        """Introduce oneself; return the host's answer, as a frame, or None."""
        self.send(hello(self.address, as_address, **fields))
        try:
            return self.next()
        except TimeoutError:
            return None


def introduced(address, as_address=f"{STRANGER}:1", *, tls=None, source=STRANGER, **fields):
    """A connection on which the host has answered with its own introduction. Raises `PermissionError` where it does not."""
    link = Link(address, tls=tls, source=source)
    answer = link.introduce(as_address, **fields)
    if answer is None or answer.kind != FrameKind.HELLO:
        link.close()
        why = "it closed the connection" if answer is None else decode_reason(answer.body)
        raise PermissionError(f"{address} does not take {as_address}: {why}")
    return link


def say_until(connect, frames, happened):
    """Send frames in the place of a member until `happened()`.

    The member's host comes back to its place, and ends the connection of the one that took it, perhaps before that was heard.
    """

    def said():
        with connect() as link:
            link.send(frames)
            while not link.closed(within=0.1):
                if happened():
                    return True
        return happened()

    until(said)


# ---- attacks that go on for a while


class Attackers:
    """Threads that do something again and again until the attack is over. A context manager.

    They yield the processor to the hosts: real attackers have machines of their own.
    """

    def __init__(self, *again):
        self._over = threading.Event()
        self.rounds = 0
        self._again = again
        self._threads = [threading.Thread(target=self._run, args=(each,), daemon=True) for each in again]

    def _run(self, again):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        while not self._over.is_set():
            try:
                again()
                self.rounds += 1
            except (OSError, ssl.SSLError):  # refused, or cut: that is what the hosts are to do
                self._over.wait(0.01)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        for thread in self._threads:
            thread.join(2 * TIMEOUT_S)
        for again in self._again:
            getattr(again, "close", int)()


class Flood:
    """Sends the same bytes over one connection, as fast as they are taken, and dials again when it is cut."""

    def __init__(self, address, frames, *, as_address=f"{STRANGER}:1", first=b"", read=True, **link):
        """`frames`: bytes, or a function that makes them anew. `first` is sent before them on each connection; without `read`, what the host answers is left lying."""
        self._address, self._as, self._link = address, as_address, link
        self._first, self._frames, self._reads = first, frames, read
        self._open = None

    def __call__(self):
        try:
            if self._open is None:
                self._open = introduced(self._address, self._as, **self._link)
                self._open.socket.settimeout(0.5)
                self._open.socket.sendall(self._first)
            self._open.socket.sendall(self._frames() if callable(self._frames) else self._frames)
            if self._reads:
                self._read()
        except TimeoutError:
            # The host does not read now, which is its right. How much of a frame it has is not known: begin anew.
            self.close()
        except (OSError, ssl.SSLError):
            self.close()
            raise

    def _read(self):
        self._open.socket.setblocking(False)
        try:
            if self._open.socket.recv(1 << 16) == b"":
                raise ConnectionResetError
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        finally:
            self._open.socket.settimeout(0.5)

    def close(self):
        if self._open is not None:
            self._open.close()
            self._open = None


class Callee:
    """A host that others dial: it answers with its introduction, and then with the same bytes again and again."""

    def __init__(self, address, flood, *, tls=None, features=()):
        """`tls`: the files of its certificate, as arguments of a `TlsConfig`. `features`: those that it announces."""
        self.address, self.host_id = address, os.urandom(16).hex()
        self.dialed = self.sent = 0
        self._flood, self._over = flood, threading.Event()
        self._features = frozenset(features)
        self._came = threading.Event()
        self._tls = None
        if tls:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(tls["cert"], tls["key"])
        self._listener = socket.create_server(parse_address(address))
        self._listener.settimeout(0.1)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join(2 * TIMEOUT_S)
        self._listener.close()

    def wait(self, within):
        """Wait until a host has dialed."""
        assert self._came.wait(within), "no host dialed"

    def _run(self):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        while not self._over.is_set():
            with suppress(OSError, ssl.SSLError):
                accepted, _ = self._listener.accept()
                with accepted:
                    accepted.settimeout(0.5)
                    self._answer(self._tls.wrap_socket(accepted, server_side=True) if self._tls else accepted)

    def _answer(self, caller):
        with caller:
            reader, frames = FrameReader(), []
            while not frames:
                frames = reader.feed(caller.recv(1 << 16))
            introduction = decode_hello(frames[0].body)
            answer = {"host_id": self.host_id, "features": self._features}
            caller.sendall(hello(introduction.address, self.address, **answer))
            self.dialed += 1
            self._came.set()
            self._go_on(caller, reader)

    def _go_on(self, caller, reader):
        while not self._over.is_set():
            caller.sendall(self._flood)
            self.sent += len(self._flood)


class Crowd:
    """Connections held without a word, and opened again when they are closed."""

    def __init__(self, addresses, count, *, source=STRANGER, greet=None, sources=None):
        """`greet`: what each says, made anew for each connection; `sources`: several addresses to come from, in turn."""
        self._addresses, self._count, self._greet = addresses, count, greet
        self._sources = sources or [source]
        self.opened = 0
        self._selector = selectors.DefaultSelector()
        self._held = dict.fromkeys(addresses, 0)

    def again(self):
        for address in self._addresses:
            while self._held[address] < self._count:
                if not self._open(address):
                    break
        for key, _ in self._selector.select(0.02):
            self._read(key)

    def _open(self, address):
        made = socket.socket()
        try:
            made.settimeout(1)
            made.bind((self._sources[self.opened % len(self._sources)], 0))
            made.connect(parse_address(address))
            if self._greet:
                made.sendall(self._greet(address, self.opened))
            made.setblocking(False)
        except OSError:
            made.close()
            return False
        self.opened += 1
        self._held[address] += 1
        self._selector.register(made, selectors.EVENT_READ, address)
        return True

    def _read(self, key):
        with suppress(BlockingIOError):
            try:
                gone = key.fileobj.recv(1 << 16) == b""
            except BlockingIOError:
                raise
            except OSError:
                gone = True
            if gone:
                self._selector.unregister(key.fileobj)
                key.fileobj.close()
                self._held[key.data] -= 1

    @property
    def held(self):
        return sum(self._held.values())

    def close(self):
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()
        self._selector.close()


@contextmanager
def crowd(*args, **options):
    """Such a crowd, by a thread of its own."""
    one = Crowd(*args, **options)
    try:
        with Attackers(one.again):
            yield one
    finally:
        one.close()
