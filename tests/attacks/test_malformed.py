"""What no correct host says: bytes that are no frames, and introductions that are none."""

import os
import struct

import cbor2
import pytest
from drakkar.transport.frames import FrameKind, encode_frame

from tests.attacks import forge
from tests.attacks.forge import frame, row, rows

pytestmark = pytest.mark.xdist_group("attacks")


def _malformed():
    """Bytes that no correct host sends, once it is introduced, by what is wrong with them."""
    big = 1 << 30
    deep = b"\x81" * 5000 + b"\x00"
    bulk = struct.pack(">I", 5)
    return {
        "another magic": frame(3, magic=b"HT"),
        "another framing": frame(3, framing=9),
        "a wrong sum of the header": frame(3, head_sum=1),
        "a wrong sum of the body": frame(3, b"body", body_sum=1),
        "a length of a gigabyte": frame(2, length=big),
        "random bytes": os.urandom(4096),
        "a HTTP request": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "no control part": encode_frame(FrameKind.MESSAGES, b"\x00"),
        "a control part longer than its frame": encode_frame(
            FrameKind.MESSAGES, struct.pack(">I", 999) + b"\x80"
        ),
        "a control part longer than allowed": forge.raw_control(bytes(70_000)),
        "a control part that is no list": forge.raw_control(cbor2.dumps({})),
        "deep lists": forge.raw_control(deep),
        "a list of a length that never comes": forge.raw_control(b"\x9b" + struct.pack(">Q", 1 << 40)),
        "a string of a length that never comes": forge.raw_control(b"\x5b" + struct.pack(">Q", 1 << 62)),
        "an indefinite list": forge.raw_control(b"\x9f\xff"),
        "a tag": forge.raw_control(cbor2.dumps(cbor2.CBORTag(35, "(a+)+$"))),
        "a big number": forge.raw_control(cbor2.dumps([row(term=1 << 900)])),
        "bytes behind the list": forge.raw_control(cbor2.dumps([row()]) + b"\x00"),
        "a row of thirteen fields": rows(row()[:-1]),
        "a negative number": rows(row(term=-1)),
        "a fraction": rows(row(term=1.5)),
        "a boolean for a number": rows(row(term=True)),
        "a number for a boolean": rows(row(reject=1)),
        "a type beyond all": rows(row(type=1 << 16)),
        "a payload too large": rows(row(payload=bytes(9 << 10))),
        "a payload of a tag": rows(row(payload=cbor2.dumps(cbor2.CBORTag(0, "2020-01-01T00:00:00Z")))),
        "a payload with a key of nine bytes": rows(row(payload=cbor2.dumps({1 << 60: 1}))),
        "runs that are not there": rows(row(runs=3)),
        "runs without an end": rows(row(runs=1 << 40)),
        "a run that is none": rows(row(runs=1), bulk=bulk + b"12345"),
        "bulk of no message": rows(row(), bulk=b"x"),
        "a snapshot that is none": rows(row(snapshot=[1, 2])),
        "a snapshot of a membership that is none": rows(row(snapshot=[1, 1, 0, False, 0, [1]])),
        "a part without bytes": encode_frame(FrameKind.PART, bytes(8)),
        "a part of a gigabyte": forge.part(big, 0, b"x"),
        "a part that begins in the middle": forge.part(100, 50, b"x"),
        "more than was said": forge.part(2, 0, b"xxxx"),
        "a SHARD that is none": encode_frame(FrameKind.SHARD, cbor2.dumps([1])),
        "a SHARD of a founding of one byte": encode_frame(
            FrameKind.SHARD, cbor2.dumps([1, 2, b"x", 0, [], 0, 1])
        ),
        "a SHARD of a standing that is none": encode_frame(
            FrameKind.SHARD, cbor2.dumps([1, 2, b"", 77, [], 0, 1])
        ),
        "a SHARD of a founder that is none": encode_frame(
            FrameKind.SHARD, cbor2.dumps([1, 2, b"", 0, [[1, 2]], 0, 1])
        ),
    }


@pytest.mark.parametrize("where", [pytest.param("plain", marks=pytest.mark.slow), "secure"])
def test_malformed_bytes(where, request):
    """Each ends its connection at once, and is counted; the host and its shards go on."""
    either, said = request.getfixturevalue(where), _malformed()
    with either.attack(f"{len(said)} sorts of malformed frames", memory_mib=32) as seen:
        before, failed = (either.counter(1, f"transport: {name}") for name in ("malformed", "failed"))
        for name, data in said.items():
            with forge.introduced(either.members[1], tls=either.outsider) as link:
                link.send(data)
                assert link.closed(), name
        assert either.counter(1, "transport: malformed") >= before + len(said)
        assert either.counter(1, "transport: failed") == failed
        seen.watch(0.5)
    with forge.introduced(either.members[1], tls=either.outsider) as link:
        link.send(encode_frame(FrameKind.PING, b"control"))
        assert bytes(link.next().body) == b"control"


def _first_frames():
    """What comes in place of an introduction."""
    good = forge.hello("127.0.0.1:1")
    row_of_hello = [4, 0, "default", "127.0.9.9:1", "127.0.0.1:1", [], "id", 1, [1]]

    def changed(at, value):
        row = list(row_of_hello)
        row[at] = value
        return encode_frame(FrameKind.HELLO, cbor2.dumps(row))

    return {
        "a message": rows(row()),
        "a frame of 64 MiB": frame(1, length=64 << 20),
        "a frame of 5 KiB": frame(1, bytes(5 << 10)),
        "an introduction of six fields": encode_frame(FrameKind.HELLO, cbor2.dumps(row_of_hello[:6])),
        "an address that is none": changed(3, "nowhere"),
        "an address of two lines": changed(3, "a\nb:1"),
        "an empty host id": changed(6, ""),
        "a host id of 3,000 characters": changed(6, "h" * 3000),
        "no nonces": changed(8, []),
        "a run of 2**64": changed(7, (1 << 64) - 1),
        "a version of 2**40": changed(0, 1 << 40),
        "a deployment that is a number": changed(2, 7),
        "another deployment": forge.hello("127.0.0.1:1", deployment_id="other"),
        "another version": forge.hello("127.0.0.1:1", version=(99, 0)),
        "another host": good,
        "a stream's first piece": encode_frame(FrameKind.STREAM_PIECE, bytes(9)),
    }


@pytest.mark.slow
def test_malformed_introductions(secure):
    with secure.attack("introductions that are none", memory_mib=16) as seen:
        for name, data in _first_frames().items():
            with forge.Link(secure.members[1], tls=secure.outsider) as link:
                link.send(data)
                assert link.closed(), name
        seen.watch(0.5)
    with forge.introduced(secure.members[1], tls=secure.outsider):
        pass
