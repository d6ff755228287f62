"""What a host says of its replicas: how it travels, and when it is said."""

from contextlib import suppress
from typing import Any

import cbor2
import pytest
import trio
from drakkar.handlers.messages import Message
from drakkar.handlers.raft.lives import Life, Standing
from drakkar.transport.frames import FrameError, FrameKind, encode_frame
from drakkar.transport.message_frames import encode_messages
from drakkar.transport.options import Options
from drakkar.transport.shard_frames import MAX_FOUNDERS, MAX_KINDS, ShardHello, decode_shard, encode_shard
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transport.support import QUICK, FakePeer, Host, bulk, heartbeat, on_loop, running, until, warnings

KINDS = {200: "audit.mark", 128: "court.verdict"}
HELLO = ShardHello(7, 2, b"f" * 16, Standing.SETTLED, {1: "a:1", 2: "b:1"}, 3, 5, KINDS)


def test_an_introduction_arrives_as_it_was_sent() -> None:
    assert decode_shard(encode_shard(HELLO)) == HELLO
    assert decode_shard(encode_shard(ShardHello(7, 2))) == ShardHello(7, 2)
    assert HELLO.life(99) == Life(b"f" * 16, 99, Standing.SETTLED, kinds=frozenset(KINDS))


ROW = [7, 2, b"f" * 16, 2, [[1, "a:1"], [2, "b:1"]], 3, 5]


def test_fields_that_a_later_version_appends_are_passed_over() -> None:
    row = [*ROW, [[128, "court.verdict"], [200, "audit.mark"]], "what is yet to come"]
    assert decode_shard(cbor2.dumps(row)) == HELLO


def test_a_host_of_version_4_2_tells_no_kinds_which_is_not_that_it_has_none() -> None:
    told = decode_shard(cbor2.dumps(ROW))
    assert told.kinds is None
    assert told.life(99).kinds is None
    assert decode_shard(cbor2.dumps([*ROW, []])).life(99).kinds == frozenset()


def test_all_kinds_that_there_can_be_fit_an_introduction() -> None:
    kinds = dict.fromkeys(range(128, 256), "k" * 64)
    assert len(kinds) == MAX_KINDS
    assert decode_shard(encode_shard(ShardHello(7, 2, kinds=kinds))).kinds == kinds


def test_more_founders_than_a_frame_lists_are_left_out() -> None:
    many = {replica: f"h{replica}:1" for replica in range(1, MAX_FOUNDERS + 5)}
    assert len(decode_shard(encode_shard(ShardHello(1, 1, founders=many))).founders) == MAX_FOUNDERS


def test_of_the_founders_that_a_host_of_version_4_0_lists_the_first_are_taken() -> None:
    pairs = [[replica, f"h{replica}:1"] for replica in range(1, 1001)]
    told = decode_shard(cbor2.dumps([7, 2, b"f" * 16, 2, pairs, 3, 5])).founders
    assert told == {replica: f"h{replica}:1" for replica in range(1, MAX_FOUNDERS + 1)}


def test_an_introduction_that_takes_long_to_decode_is_malformed_at_once() -> None:
    with pytest.raises(FrameError, match="bytes, and 131072 are allowed"):
        decode_shard(cbor2.dumps([[0] * 10] * 20_000))


@pytest.mark.parametrize(
    "row",
    [
        {},
        [7, 2, b"", 0, [], 0],
        [7, 0, b"", 0, [], 0, 0],
        [-1, 2, b"", 0, [], 0, 0],
        [7, 2, b"short", 0, [], 0, 0],
        [7, 2, "", 0, [], 0, 0],
        [7, 2, b"", 9, [], 0, 0],
        [7, 2, b"", False, [], 0, 0],
        [7, 2, b"", 0, {}, 0, 0],
        [7, 2, b"", 0, [[1]], 0, 0],
        [7, 2, b"", 0, [["1", "a:1"]], 0, 0],
        [7, 2, b"", 0, [[1, "two\nlines:1"]], 0, 0],
        [7, 2, b"", 0, [[1, "\x1b[2J:1"]], 0, 0],
        [7, 2, b"", 0, [[1, "a" * 400]], 0, 0],
        [7, 2, b"", 0, [], None, 0],
        [7, 2, b"", 0, [], 0, None],
        [1 << 63, 2, b"", 0, [], 0, 0],
        [7, 1 << 63, b"", 0, [], 0, 0],
        [7, 2, b"", 0, [[1 << 63, "a:1"]], 0, 0],
        [7, 2, b"", 0, [], 1 << 63, 0],
        [7, 2, b"", 0, [], 0, 1 << 62],
        [7, 2, b"", 0, [], 0, 0, {200: "a"}],
        [7, 2, b"", 0, [], 0, 0, [[200]]],
        [7, 2, b"", 0, [], 0, 0, [[127, "a"]]],
        [7, 2, b"", 0, [], 0, 0, [[256, "a"]]],
        [7, 2, b"", 0, [], 0, 0, [["200", "a"]]],
        [7, 2, b"", 0, [], 0, 0, [[200, b"a"]]],
        [7, 2, b"", 0, [], 0, 0, [[200, "a" * 65]]],
        [7, 2, b"", 0, [], 0, 0, [[200, "two\nlines"]]],
        [7, 2, b"", 0, [], 0, 0, [[200, "a"]] * 129],
    ],
    ids=repr,
)
def test_an_introduction_with_wrong_fields_is_malformed(row: Any) -> None:
    with pytest.raises(FrameError):
        decode_shard(cbor2.dumps(row))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_an_introduction_or_malformed(data: bytes) -> None:
    with suppress(FrameError):
        decode_shard(data)


# ---- when it is said


class Introducing(Host):
    """A host that notes introductions and messages in the order in which they come."""

    def __init__(self, address: str = "127.0.0.1:0", **settings: Any) -> None:
        self.heard: list[Any] = []
        self.standing = Standing.NEWBORN
        super().__init__(
            address,
            greeted=lambda address, host_id: self.heard.append((address, host_id)),
            introduced=lambda _, hello: self.heard.append(hello),
            introduction=self.introduction,
            **settings,
        )

    def introduction(self, shard: int) -> bytes | None:
        return encode_shard(ShardHello(shard, 1, standing=self.standing)) if shard < 90 else None

    def deliver(self, _address: str, messages: list[Message]) -> None:
        self.heard += [(message.shard, message.term or message.entries[0].index) for message in messages]


def of(shard: int, number: int) -> Message:
    message = heartbeat(number)
    message.shard = shard
    return message


@on_loop
async def test_each_shard_is_introduced_once_for_a_connection_before_its_first_message() -> None:
    a, b = Introducing(), Introducing()
    async with running(a, b):
        a.send(b, of(1, 1), of(1, 2), of(2, 3))
        await until(lambda: len(b.heard) == 6)
        a.send(b, of(1, 4), of(99, 5))
        await until(lambda: len(b.heard) == 8)
        greeting, *heard = b.heard
        assert greeting == (a.address, a.transport.host_id)
        assert heard == [
            ShardHello(1, 1, standing=Standing.NEWBORN),
            (1, 1),
            (1, 2),
            ShardHello(2, 1, standing=Standing.NEWBORN),
            (2, 3),
            (1, 4),
            (99, 5),
        ]
        assert b.transport.host_id_at(a.address) == a.transport.host_id


@on_loop
async def test_what_has_changed_is_said_before_the_next_message_and_not_without_one() -> None:
    a, b = Introducing(), Introducing()
    async with running(a, b):
        a.send(b, of(1, 1))
        await until(lambda: len(b.heard) == 3)
        a.standing = Standing.SETTLED
        a.transport.reintroduce(1)
        a.send(b, of(2, 2), of(1, 3))
        await until(lambda: len(b.heard) == 7)
        assert b.heard[5:] == [ShardHello(1, 1, standing=Standing.SETTLED), (1, 3)]


@on_loop
async def test_it_is_said_anew_on_each_connection() -> None:
    a, b = Introducing(), Introducing()
    async with running(a, b):
        for number in (1, 2, 3):
            before = len(b.heard)
            a.send(b, of(1, number))
            await until(lambda before=before: len(b.heard) == before + 3)
            assert b.heard[-2:] == [ShardHello(1, 1, standing=Standing.NEWBORN), (1, number)]
            (caller,) = b.transport._inbound._callers.values()
            caller.give_up()
            await until(lambda number=number: a.counters.lost == number)


@on_loop
async def test_it_is_said_anew_after_a_connection_that_was_not_used_any_more() -> None:
    a, b = Introducing(options=Options(idle_timeout=0.05, keepalive=0.05)), Introducing()
    async with running(a, b):
        for number in (1, 2, 3):
            before = len(b.heard)
            a.send(b, of(1, number))
            await until(lambda before=before: len(b.heard) == before + 3)
            await until(lambda: not a.connected(b))


@on_loop
async def test_a_host_can_be_told_without_a_message() -> None:
    a, b = Introducing(), Introducing()
    async with running(a, b):
        for _ in range(2):
            a.transport.introduce(b.address, 1)
            await until(lambda: len(b.heard) == 2)
        a.send(b, of(1, 1))
        await until(lambda: len(b.heard) == 3)
        assert b.heard[1:] == [ShardHello(1, 1, standing=Standing.NEWBORN), (1, 1)]


@on_loop
async def test_bulk_is_never_ahead_of_the_introduction() -> None:
    a, b = Introducing(), Introducing()
    async with running(a, b):
        large = [bulk(300_000, number) for number in (1, 2, 3)]
        a.send(b, *large)
        await until(lambda: len(b.heard) == 5)
        assert b.heard[1:] == [ShardHello(0, 1, standing=Standing.NEWBORN), (0, 1), (0, 2), (0, 3)]


@on_loop
async def test_where_the_introduction_does_not_fit_its_messages_are_not_sent_either() -> None:
    back: list[Message] = []
    tight = Options(control_bytes=1, backoff_first=1000, backoff_last=1000)
    a = Introducing(options=tight, handed_back=lambda _, messages: back.extend(messages))
    async with running(a):
        assert a.send("127.0.0.1:1", of(1, 1)) == 1, "the introduction alone fills the lane"
        assert a.send("127.0.0.1:1", of(2, 1), bulk(1)) == 1
        assert [message.entries for message in back] == [bulk(1).entries]


@on_loop
async def test_a_malformed_introduction_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    a = Host(options=QUICK)
    async with running(a):
        fake = await FakePeer.introduced(a)
        await fake.send(encode_frame(FrameKind.SHARD, b"\xa0"))
        await fake.closed()
        assert a.counters.malformed == 1
        other = await FakePeer.introduced(a)
        await other.send(
            encode_frame(FrameKind.SHARD, encode_shard(HELLO)) + encode_messages([heartbeat(1)])[0]
        )
        with trio.fail_after(5):
            await until(lambda: a.received)
    assert any("a SHARD is not a list" in text for text in warnings(caplog))
