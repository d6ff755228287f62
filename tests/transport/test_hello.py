"""The introduction: what it says, and which hosts refuse each other."""

from contextlib import suppress
from typing import Any

import cbor2
import pytest
import trio
from drakkar.handlers.errors import TransportError
from drakkar.transport.frames import SMALL_FRAME_LIMIT, FrameError, FrameKind, FrameReader, encode_frame
from drakkar.transport.hello import (
    MAX_HOST_ID,
    Hello,
    decode_hello,
    decode_reason,
    encode_hello,
    encode_reason,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ports import free_ports
from tests.transport.support import QUICK, FakePeer, Host, hello, listening, on_loop, running, until, warnings

HELLO = Hello((1, 7), "prod", "[::1]:7000", "db-1:7000", frozenset({"streams", "actors"}))


def hello_body(frame: bytes) -> memoryview:
    ((kind, inner),) = FrameReader(SMALL_FRAME_LIMIT).feed(frame)
    assert kind == FrameKind.HELLO
    return inner


def test_a_hello_arrives_as_it_was_sent() -> None:
    assert decode_hello(hello_body(encode_hello(HELLO))) == HELLO


def test_fields_that_a_later_version_appends_to_a_hello_are_passed_over() -> None:
    row = [1, 9, "prod", "a:1", "b:1", [], "what is yet to come", 42]
    assert decode_hello(memoryview(cbor2.dumps(row))) == Hello((1, 9), "prod", "a:1", "b:1")


@pytest.mark.parametrize(
    "row",
    [
        {},
        [1, 0, "d", "a:1", "b:1"],
        [1, -1, "d", "a:1", "b:1", []],
        [1, 0, b"d", "a:1", "b:1", []],
        [1, 0, "d", 7, "b:1", []],
        [1, 0, "d", "a:1", None, []],
        [1, 0, "d", "a:1", "b:1", "streams"],
        [1, 0, "d", "a:1", "b:1", [1]],
        ["1", 0, "d", "a:1", "b:1", []],
    ],
    ids=repr,
)
def test_a_hello_with_wrong_fields_is_malformed(row: Any) -> None:
    with pytest.raises(FrameError):
        decode_hello(memoryview(cbor2.dumps(row)))


@on_loop
async def test_a_host_id_that_is_too_long_is_refused_with_its_length_and_counted() -> None:
    a = Host()
    async with running(a):
        await FakePeer.introduced(a, host_id="h" * MAX_HOST_ID)
        for count in (MAX_HOST_ID + 1, 3000):
            fake = await FakePeer.dial(a)
            await fake.send(encode_hello(hello(a.address, host_id="h" * count)))
            frame = await fake.next_frame()
            assert frame.kind == FrameKind.REFUSED
            assert f"has {count} characters, and 64 are allowed" in decode_reason(frame.body)
            await fake.closed()
    assert a.counters.malformed == 2


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_hello_or_malformed(data: bytes) -> None:
    with suppress(FrameError):
        decode_hello(memoryview(data))


def test_a_hello_too_long_to_be_read_is_refused_by_the_sender() -> None:
    with pytest.raises(TransportError, match="shorten the deployment id"):
        encode_hello(Hello((1, 0), "x" * SMALL_FRAME_LIMIT, "a:1", "b:1"))


def test_any_reason_arrives_fit_to_be_logged() -> None:
    def reason(frame: bytes) -> str:
        return decode_reason(FrameReader(SMALL_FRAME_LIMIT).feed(frame)[0].body)

    assert reason(encode_reason("wrong version")) == "wrong version"
    assert len(reason(encode_reason("é" * 100_000))) < SMALL_FRAME_LIMIT
    assert reason(encode_frame(FrameKind.REFUSED, b"two\nlines\x1b[31m\xff")) == "two?lines?[31m\ufffd"


# ---- hosts that do not belong together


async def refusal(a: Host, b: Host, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Let a dial b, which fails; return the warnings of both."""
    async with running(a, b):
        a.send(b)
        await until(lambda: a.lost)
        await until(lambda: b.counters.refused)
        assert not a.connected(b)
    assert (a.counters.refused, b.counters.refused) == (1, 1)
    assert b.received == []
    return warnings(caplog)


@on_loop
async def test_another_deployment_is_refused_and_both_sides_say_why(caplog: pytest.LogCaptureFixture) -> None:
    said = await refusal(Host(deployment_id="blue"), Host(deployment_id="green"), caplog)
    assert len(said) == 2
    assert all(
        "deployment 'blue'" in text and "'green'" in text and "same deployment_id" in text for text in said
    )


@on_loop
async def test_another_major_version_is_refused_and_both_sides_say_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    a, b = Host(version=(1, 4)), Host(version=(2, 0))
    said = await refusal(a, b, caplog)
    assert len(said) == 2
    for text in said:
        assert f"{a.address} speaks protocol version 1.4, and {b.address} speaks 2.0" in text
        assert f"upgrade {a.address}" in text


def hello_of_version_1(address: str, dialed: str) -> bytes:
    """What a host of the first version sends, byte by byte."""
    return encode_frame(FrameKind.HELLO, cbor2.dumps([1, 0, "default", address, dialed, []]))


@on_loop
async def test_a_caller_of_version_1_is_refused_and_both_sides_say_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    a = Host()
    async with running(a):
        old = await FakePeer.dial(a)
        await old.send(hello_of_version_1("10.7.7.7:7", a.address))
        frame = await old.next_frame()
        assert frame.kind == FrameKind.REFUSED
        told = decode_reason(frame.body)
        await old.closed()
    assert told == (
        f"10.7.7.7:7 speaks protocol version 1.0, and {a.address} speaks 4.3: the major versions must be equal; "
        "upgrade 10.7.7.7:7"
    )
    assert [text for text in warnings(caplog) if told in text]
    assert a.counters.refused == 1
    assert a.received == []


@on_loop
async def test_a_callee_of_version_1_is_refused_and_both_sides_say_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Even where it answers the HELLO of a later version."""
    told: list[str] = []

    async def lenient(caller: FakePeer) -> None:
        introduction = decode_hello((await caller.next_frame()).body)
        await caller.send(hello_of_version_1(introduction.dialed, introduction.dialed))
        frame = await caller.next_frame()
        assert frame.kind == FrameKind.REFUSED
        told.append(decode_reason(frame.body))

    a = Host()
    async with listening(lenient) as address, running(a):
        a.send(address)
        await until(lambda: told)
        await until(lambda: a.lost)
        assert f"upgrade {address}" in a.transport.peers()[address].error
    assert f"{address} speaks protocol version 1.0, and {a.address} speaks 4.3" in told[0]
    assert [text for text in warnings(caplog) if told[0] in text]


@on_loop
async def test_what_a_host_of_version_1_says_when_it_refuses_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def refuse(caller: FakePeer) -> None:
        version = decode_hello((await caller.next_frame()).body).version
        await caller.send(encode_reason(f"you speak protocol version {version[0]}.{version[1]}, and I 1.0"))

    a = Host()
    async with listening(refuse) as address, running(a):
        a.send(address)
        await until(lambda: a.counters.refused)
    assert [text for text in warnings(caplog) if "protocol version 4.3, and I 1.0" in text]


@on_loop
async def test_another_minor_version_is_welcome_and_features_are_told() -> None:
    a, b = Host(version=(1, 0)), Host(version=(1, 9), features=["streams"])
    async with running(a, b):
        a.send(b)
        await until(lambda: b.received)
        assert a.transport.peers()[b.address].features == {"streams", "alive"}


@on_loop
async def test_a_host_under_another_address_is_refused_and_both_sides_say_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A message for one host must not reach another that took over its port, or is misnamed in the membership."""
    port = free_ports(1)[0]
    a, b = Host(), Host("10.1.2.3:7000", listen_address=f"127.0.0.1:{port}")
    async with running(a, b):
        a.send(f"127.0.0.1:{port}")
        await until(lambda: a.lost)
        await until(lambda: b.counters.refused)
    said = warnings(caplog)
    assert len(said) == 2
    assert all(f"dialed 127.0.0.1:{port}" in text and "10.1.2.3:7000" in text for text in said)


@on_loop
async def test_a_caller_checks_the_address_itself_where_the_callee_is_lenient() -> None:
    """An old or foreign host may answer a HELLO that it should refuse."""
    said: list[str] = []

    async def lenient(caller: FakePeer) -> None:
        await caller.next_frame()
        await caller.send(encode_hello(hello("10.9.9.9:1", address="10.7.7.7:7")))
        said.append(decode_reason((await caller.next_frame()).body))

    a = Host()
    async with listening(lenient) as address, running(a):
        a.send(address)
        await until(lambda: said)
        await until(lambda: a.lost)
    assert "10.7.7.7:7" in said[0]
    assert a.counters.refused == 1


@on_loop
async def test_a_refused_host_waits_longer_before_it_dials_again() -> None:
    a, b = Host(deployment_id="blue"), Host(deployment_id="green")
    async with running(a, b):
        a.send(b)
        await until(lambda: a.lost)
        a.send(b)
        with trio.move_on_after(QUICK.backoff_last * 4) as window:
            await until(lambda: a.counters.refused > 1)
    assert window.cancelled_caught


@on_loop
async def test_addresses_are_compared_as_addresses_not_as_text() -> None:
    port = free_ports(1)[0]
    a, b = Host(), Host(f"LOCALHOST.:{port}", listen_address=f"127.0.0.1:{port}")
    async with running(a, b):
        a.send(f"localhost:{port}")
        await until(lambda: b.received)


def test_a_deployment_id_too_long_to_be_told_is_refused() -> None:
    with pytest.raises(TransportError, match="shorten the deployment id"):
        Host(deployment_id="x" * 5000)
