"""What makes a host work for nothing: as many messages, frames and connections of no use to it as it takes."""

import datetime as dt
import os
import socket
import ssl
import struct

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from drakkar.handlers.messages import MessageType
from drakkar.transport.addresses import parse_address
from drakkar.transport.frames import FrameKind, encode_frame

from tests.actors.support import until
from tests.attacks import forge
from tests.attacks.cluster import context
from tests.attacks.forge import STRANGER, UNKNOWN_KIND, Attackers, Flood, row, rows

pytestmark = pytest.mark.xdist_group("attacks")

MANY = 512
"""Messages a frame: more would be refused by no one, but hosts send no more."""
_AS_LARGE_AS_ALLOWED = cbor2.dumps([[0] * 500 for _ in range(16)])


def _told(target, **fields):
    """What an outsider says of its replica, who knows how the shard was founded."""
    return forge.shard(1, fields.pop("replica", 9), target.members, **fields)


def _replicas_of_another_founding(_target):
    address = "10.0.0.1:" + "1" * 4
    founders = dict.fromkeys(range(1, 200), address)
    return b"".join(
        forge.shard(1, int.from_bytes(os.urandom(6)) + 10, founders, founding=os.urandom(16))
        for _ in range(20)
    )


def _shards_with_a_thousand_founders(_target):
    founders = {replica: f"{replica}.{'long' * 20}.example:7000" for replica in range(1, 1001)}
    return lambda: forge.shard(int.from_bytes(os.urandom(6)), 1, founders, founding=os.urandom(16))


FLOODS = {
    "messages of a shard that is not here": lambda target: rows(*[row(shard=77)] * MANY),
    "messages of a replica that did not introduce itself": lambda target: rows(*[row(sender=8)] * MANY),
    "messages of an older term": lambda target: rows(
        *[row(type=int(MessageType.REPLICATE), sender=9, term=1)] * MANY
    ),
    "answers of a replica that is no member": lambda target: rows(
        *[row(type=int(MessageType.HEARTBEAT_RESP), sender=9, term=1)] * MANY
    ),
    "requests for pre-votes": lambda target: rows(
        *[row(type=int(MessageType.REQUEST_PRE_VOTE), sender=9, term=1)] * MANY
    ),
    "news of a removal": lambda target: rows(*[row(type=int(MessageType.REMOVED), sender=9)] * MANY),
    "questions of a replica that was born now": lambda target: rows(
        *[row(type=int(MessageType.NEWBORN), sender=9)] * MANY
    ),
    "questions of a replica that may be removed": lambda target: rows(
        *[row(type=int(MessageType.REMOVAL_QUERY), sender=9)] * MANY
    ),
    "messages of an unknown type": lambda target: rows(*[row(type=60_000)] * MANY),
    "messages of a type that no peer may send": lambda target: rows(
        *[row(type=int(MessageType.UNREACHABLE))] * MANY
    ),
    "messages with payloads as large as allowed": lambda target: rows(
        *[row(shard=1, sender=9, payload=_AS_LARGE_AS_ALLOWED)] * 7
    ),
    "pings": lambda target: encode_frame(FrameKind.PING, b"x" * 8) * 1000,
    "empty frames of an unknown kind": lambda target: encode_frame(UNKNOWN_KIND) * 1000,
    "introductions of a replica": lambda target: _told(target) * 200,
    "introductions of replicas of another founding": _replicas_of_another_founding,
    "introductions of other shards, with a thousand founders each": _shards_with_a_thousand_founders,
    "empty lists of messages": lambda target: forge.raw_control(b"\x80") * 1000,
}
WITH_A_CERTIFICATE = (
    "messages of a shard that is not here",
    "introductions of a replica",
    "questions of a replica that was born now",
    "questions of a replica that may be removed",
)
SHORT = {"messages of a shard that is not here", "messages of an older term"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in SHORT else pytest.mark.slow) for name in FLOODS]
)
def test_a_flood_of_useless_messages(plain, name):
    _flood(plain, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_A_CERTIFICATE)
def test_a_flood_of_useless_messages_with_a_valid_certificate(secure, name):
    _flood(secure, name)


def _flood(target, name):
    counted = "transport: received bytes"
    flood = FLOODS[name](target)
    with target.attack(name) as seen:
        control = target.counter(1, counted)
        with Attackers(
            *[
                Flood(
                    target.members[1],
                    flood,
                    as_address=f"{STRANGER}:{n}",
                    first=_told(target),
                    tls=target.outsider,
                )
                for n in (1, 2)
            ]
        ):
            seen.watch()
            until(lambda: target.counter(1, counted) - control > 10_000)  # else the attack was none
        seen.note(f"{(target.counter(1, counted) - control) / (1 << 20):.1f} MiB came")


# ---- one frame that takes long


@pytest.mark.parametrize(
    ("name", "body"),
    [
        (
            "an introduction of a replica of 60 MiB",
            lambda: (FrameKind.SHARD, cbor2.dumps([[0] * 10] * (5 << 20))),
        ),
        ("a message of 60 MiB of entries that are none", lambda: (FrameKind.MESSAGES, _long_run())),
    ],
)
@pytest.mark.slow
def test_one_frame_that_takes_long(secure, name, body):
    kind, data = body()
    with (
        secure.attack(name, memory_mib=256) as seen,
        forge.introduced(secure.members[1], tls=secure.outsider) as link,
    ):
        link.socket.settimeout(3)
        link.send(encode_frame(kind, data))
        seen.watch()
    assert seen.figures.gap < 0.5


def _long_run():
    run = b"\x00" * (60 << 20)
    control = cbor2.dumps([row(type=int(MessageType.REPLICATE), sender=9, runs=1)])
    return struct.pack(">I", len(control)) + control + struct.pack(">I", len(run)) + run


# ---- connections


def _connect_and_close(target):
    def again():
        with socket.socket() as made:
            made.bind((STRANGER, 0))
            made.connect(parse_address(target.members[1]))

    return again


def _handshake(target, tls):
    def again():
        forge.Link(target.members[1], tls=tls, timeout=0.5).close()

    return again


def _introduce_and_leave(target):
    def again():
        with forge.Link(target.members[1], tls=target.outsider, timeout=0.5) as link:
            link.send(forge.hello(target.members[1]))

    return again


@pytest.mark.slow
def test_connections_that_come_and_go(plain):
    with plain.attack("connections that come and go") as seen:
        with Attackers(*[_connect_and_close(plain) for _ in range(2)]) as attackers:
            seen.watch()
            until(lambda: attackers.rounds > 20)
        seen.note(f"{attackers.rounds} connections")


@pytest.mark.slow
def test_handshakes_without_a_certificate(secure):
    with secure.attack("handshakes without a certificate") as seen:
        with Attackers(*[_handshake(secure, secure.stranger) for _ in range(4)]) as attackers:
            seen.watch(2)
            until(lambda: attackers.rounds > 20)
        seen.note(f"{attackers.rounds} handshakes")


DEAREST = "ffdhe8192"
"""Of the groups in which OpenSSL exchanges keys, the one that costs a server most: 500 times as much as the cheapest."""


def _first_record(group):
    """What a client says first that exchanges keys in this group alone."""
    tls = context()
    tls.minimum_version = ssl.TLSVersion.TLSv1_3
    tls.set_ecdh_curve(group)
    said = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        tls.wrap_bio(ssl.MemoryBIO(), said).do_handshake()
    return said.read()


def _answered(target, said):
    """Return whether the host answers with a handshake of its own, and does not just close the connection."""
    with socket.socket() as made:
        made.settimeout(3)
        made.bind((STRANGER, 0))
        made.connect(parse_address(target.members[1]))
        made.sendall(said)
        return made.recv(1 << 16)[:1] == b"\x16"


def test_handshakes_that_ask_for_the_dearest_key_exchange(secure):
    """The host computes its share before it has seen any certificate."""
    dear = _first_record(DEAREST)
    assert _answered(secure, _first_record("prime256v1"))
    with secure.attack("handshakes that ask for the dearest key exchange") as seen:
        with Attackers(*[lambda: _answered(secure, dear)] * 8) as attackers:
            seen.watch(2)
            until(lambda: attackers.rounds > 20)
        seen.note(f"{attackers.rounds} handshakes")
    assert not _answered(secure, dear)


def _many_certificates(folder, count):
    """How a client connects that shows so many certificates, each of which may be the issuer of each."""
    key, name = (
        Ed25519PrivateKey.generate(),
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a")]),
    )
    now = dt.datetime.now(dt.UTC)
    day = dt.timedelta(1)
    shown = folder / "many.pem"
    with shown.open("wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        for number in range(1, count + 1):
            made = x509.CertificateBuilder(name, name, key.public_key(), number, now - day, now + day)
            file.write(made.sign(key, None).public_bytes(Encoding.PEM))
    return context({"cert": shown, "key": None})


def test_handshakes_with_hundreds_of_certificates(secure, tmp_path):
    """All that OpenSSL takes: 100 KiB, of which none is trusted. To find that out takes it 0.1 s."""
    tls = _many_certificates(tmp_path, 490)
    with secure.attack("handshakes with hundreds of certificates") as seen:
        with Attackers(*[_shown(secure, tls)] * 8) as attackers:
            seen.watch(2)
            until(lambda: attackers.rounds > 20)
        seen.note(f"{attackers.rounds} handshakes")
    with pytest.raises((OSError, ssl.SSLError)), forge.introduced(secure.members[1], tls=tls):
        pass
    forge.introduced(secure.members[1], tls=secure.outsider).close()


def _shown(target, tls):
    def again():
        with forge.Link(target.members[1], tls=tls, timeout=1) as link:
            link.closed(1)

    return again


@pytest.mark.slow
def test_records_of_one_byte(secure):
    """A frame is begun, and the rest of it comes in records of a byte each."""
    begun = forge.frame(FrameKind.MESSAGES, length=300 << 10)

    def again():
        with forge.introduced(secure.members[1], f"{STRANGER}:7", tls=secure.outsider) as link:
            link.send(begun)
            for _ in range(10_000):
                if not link.send(b"x"):
                    break

    with secure.attack("records of one byte") as seen:
        with Attackers(*[again] * 2) as attackers:
            seen.watch(2)
        seen.note(f"{attackers.rounds} connections")
    assert secure.counter(1, "transport: malformed") > 0


@pytest.mark.slow
def test_introductions_that_come_and_go(either):
    with either.attack("introductions that come and go") as seen:
        with Attackers(*[_introduce_and_leave(either) for _ in range(4)]) as attackers:
            seen.watch(2)
            until(lambda: attackers.rounds > 20)
        seen.note(f"{attackers.rounds} introductions")
