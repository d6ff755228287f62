"""The key-value example: its state machine, its Redis front, its command line."""

import io
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cbor2
import hiredis
import pytest
import redis
import trio
import trio.testing
from drakkar.handlers.errors import NotLeader, OutcomeUnknown, ReplicaStopped, SystemBusy
from drakkar.handlers.raft.state import State
from redis.backoff import NoBackoff
from redis.retry import Retry

from examples.kv import MAX_APPENDED, KeyValue, glob, main
from examples.resp import OK, Failure, ProtocolError, Requests, pieces
from examples.resp_commands import COMMANDS, Limits
from examples.resp_front import Front, Lane
from tests.ports import free_ports

ROOT = Path(__file__).parents[2]


def do(machine: KeyValue, *command: Any) -> Any:
    return machine.apply(cbor2.dumps(command))


def ask(machine: KeyValue, *question: Any) -> Any:
    return machine.query([question])[0]


# -- The state machine


def test_what_is_set_is_there_until_it_is_deleted():
    kv = KeyValue()
    assert do(kv, "SET", b"a", b"1") == OK
    assert do(kv, "MSET", b"b", b"2", b"c", b"3") == OK
    assert ask(kv, "MGET", b"c", b"nothing", b"a") == [b"3", None, b"1"]
    assert ask(kv, "EXISTS", b"a", b"a", b"nothing") == 2
    assert do(kv, "DEL", b"a", b"a", b"nothing", b"b") == 2
    assert (ask(kv, "GET", b"a"), ask(kv, "DBSIZE")) == (None, 1)
    assert do(kv, "FLUSHALL") == OK
    assert ask(kv, "DBSIZE") == 0


@pytest.mark.parametrize(
    ("before", "options", "reply", "after"),
    [
        pytest.param(None, ["NX"], OK, b"new", id="NX sets a key that is not there"),
        pytest.param(b"old", ["NX"], None, b"old", id="NX leaves a key that is there"),
        pytest.param(None, ["XX"], None, None, id="XX makes no key"),
        pytest.param(b"old", ["XX"], OK, b"new", id="XX sets a key that is there"),
        pytest.param(None, ["GET"], None, b"new", id="GET has nothing to return and sets"),
        pytest.param(b"old", ["GET"], b"old", b"new", id="GET returns what was there"),
        pytest.param(b"old", ["GET", "NX"], b"old", b"old", id="GET with NX returns what stays there"),
        pytest.param(b"", ["NX"], None, b"", id="an empty value is a value"),
    ],
)
def test_set_options(before, options, reply, after):
    kv = KeyValue()
    if before is not None:
        do(kv, "SET", b"k", before)
    assert do(kv, "SET", b"k", b"new", *options) == reply
    assert ask(kv, "GET", b"k") == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, 1),
        (b"41", 42),
        (b"-1", 0),
        (b"0", 1),
        (b"-9223372036854775808", -9223372036854775807),
        (b"9223372036854775806", 9223372036854775807),
        (b"9223372036854775807", "ERR increment or decrement would overflow"),
        (b"9223372036854775808", "ERR value is not an integer"),
        (b"-9223372036854775809", "ERR value is not an integer"),
        *(
            (each, "ERR value is not an integer")
            for each in (b"", b"x", b" 1", b"01", b"+1", b"-0", b"1.0", b"1\n")
        ),
    ],
)
def test_incr_counts_whole_numbers_of_64_bits_and_refuses_all_else(before, after):
    kv = KeyValue()
    if before is not None:
        do(kv, "SET", b"n", before)
    reply = do(kv, "INCR", b"n", 1)
    if isinstance(after, str):
        assert isinstance(reply, Failure)
        assert reply.startswith(after)
        assert ask(kv, "GET", b"n") == before
    else:
        assert reply == after
        assert ask(kv, "GET", b"n") == b"%d" % after


def test_append_stops_at_the_limit_that_its_command_names():
    kv = KeyValue()
    assert do(kv, "APPEND", b"k", b"abc", 5) == 3
    assert do(kv, "APPEND", b"k", b"de", 5) == 5
    refused = do(kv, "APPEND", b"k", b"f", 5)
    assert isinstance(refused, Failure)
    assert "6 bytes" in refused
    assert "limit of 5" in refused
    assert ask(kv, "GET", b"k") == b"abcde"


def test_a_transaction_cannot_make_a_large_value_longer_again_and_again():
    """Each read between two of them would hold another value: gigabytes, by a command of some kilobytes."""
    kv = KeyValue()
    limit = 1000
    do(kv, "SET", b"k", bytes(limit - 100))
    pair = [cbor2.dumps(["APPEND", b"k", b"x", limit]), cbor2.dumps(["GET", b"k"])]
    replies = kv.apply(cbor2.dumps(["EXEC", *pair * 50]))
    made = [reply for reply in replies[::2] if not isinstance(reply, Failure)]
    assert sum(made) <= MAX_APPENDED * limit < sum(made) + limit
    assert "more than 2000 bytes in one transaction" in replies[-2]
    assert len({id(reply) for reply in replies[1::2]}) == len(made)
    assert replies[-1] == bytes(limit - 100) + b"x" * len(made)
    assert do(kv, "APPEND", b"k", b"x", limit) == limit - 100 + len(made) + 1


@pytest.mark.parametrize(
    ("pattern", "fits", "fits_not"),
    [
        (b"*", [b"", b"a", b"a\nb"], []),
        (b"a?c", [b"abc", b"a\nc"], [b"ac", b"abbc"]),
        (b"user:*:name", [b"user:1:name", b"user::name:name"], [b"user:1:names", b"user:name"]),
        (b"*a*b*", [b"ab", b"xaxbx"], [b"ba"]),
        (b"*ab", [b"ab", b"abab", b"aab"], [b"aba"]),
        (b"[a-c]x", [b"ax", b"bx"], [b"dx", b"-x"]),
        (b"[c-a]x", [b"bx"], [b"dx"]),
        (b"[^a-c]x", [b"dx"], [b"ax"]),
        (b"[a\\]]", [b"]", b"a"], [b"\\"]),
        (b"[a-]", [b"a", b"-"], [b"b"]),
        (b"\\*", [b"*"], [b"a"]),
        (b"a.c", [b"a.c"], [b"abc"]),
        (b"[", [b"["], [b""]),
        (b"[[a]", [b"[", b"a"], [b"b"]),
        (b"x\\", [b"x\\"], [b"x"]),
    ],
)
def test_keys_patterns_mean_what_they_mean_to_redis(pattern, fits, fits_not):
    kv = KeyValue()
    for key in (*fits, *fits_not):
        do(kv, "SET", key, b"")
    assert sorted(ask(kv, "KEYS", pattern)) == sorted(fits)


@pytest.mark.timeout(20)
def test_a_hostile_pattern_takes_no_time():
    assert glob(b"*a" * 200 + b"*b").fullmatch(b"a" * 50_000) is None


@pytest.mark.parametrize("count", [0, 1, 5000])
def test_a_snapshot_holds_everything(count):
    kv, copy = KeyValue(), KeyValue()
    for number in range(count):
        do(kv, "SET", b"key %d" % number, bytes(number % 1000))
    do(copy, "SET", b"from before", b"")
    file = io.BytesIO()
    kv.save(file)
    file.seek(0)
    copy.load(file)
    assert copy.data == kv.data
    assert not file.read()


# -- Bytes to requests, replies to bytes


def wire(*arguments: bytes) -> bytes:
    return hiredis.pack_command(arguments)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_requests_are_found_however_the_stream_is_cut(size):
    # The values look like headers, on purpose.
    wanted = [
        [b"SET", b"k", b"*9999999\r\n$3"],
        [b"GET", b"*12345678"],
        [b"APPEND", b"k", b"\r\n" * 50 + b"*"],
        [b"PING"],
    ]
    stream = b"".join(wire(*request) for request in wanted)
    requests = Requests(limit=10_000)
    found = [each for at in range(0, len(stream), size) for each in requests.feed(stream[at : at + size])]
    assert requests.broken is None
    assert found == wanted
    assert requests.buffered == 0


def test_lines_are_requests_too():
    requests = Requests(limit=1000)
    assert requests.feed(b"PING\r\nSET a  b\r\n\r\nGE") == [[b"PING"], [b"SET", b"a", b"b"]]
    assert requests.feed(b"T a\n") == [[b"GET", b"a"]]
    assert requests.feed(wire(b"ECHO", b"x")) == [[b"ECHO", b"x"]]
    assert requests.feed(b"PING\r\n" + wire(b"ECHO", b"x")) == [[b"PING"], [b"ECHO", b"x"]]
    assert requests.feed(b"*2\r\n$4\r\nECHO\r\n") == []
    assert requests.feed(b"PING\r\n") == []
    assert "arrays of bulk strings" in str(requests.broken)


def test_the_two_bytes_that_end_a_string_may_be_any():
    """As in Redis itself. What comes after them is looked at all the same."""
    requests = Requests(limit=1000)
    assert requests.feed(b"*1\r\n$1\r\nabc" + wire(b"PING")) == [[b"a"], [b"PING"]]
    assert requests.broken is None


@pytest.mark.parametrize(
    ("stream", "complaint"),
    [
        pytest.param(b"*100000\r\n", "100000 parts", id="a claim of too many parts"),
        pytest.param(b"*2\r\n$1\r\na\r\n*1000000000\r\n", "array of bulk strings", id="the same, within"),
        pytest.param(b"*1\r\n" * 2000, "array of bulk strings", id="nested"),
        pytest.param(b"*10000\r\n", "10000 parts: send at most 9999", id="one part too many"),
        pytest.param(b"*9999\r\n*9999\r\n", "array of bulk strings", id="large arrays, nested"),
        pytest.param(b"*99999\r\n*99999\r\n", "99999 parts", id="larger ones"),
        pytest.param(b"~1\r\n", "array of bulk strings", id="a set"),
        pytest.param(b">1\r\n", "array of bulk strings", id="a push"),
        pytest.param(b"|1\r\n", "array of bulk strings", id="an attribute"),
        pytest.param(b"*1\r\n|99999999\r\n", "array of bulk strings", id="a large attribute, within"),
        pytest.param(b"%1\r\n%1\r\n", "array of bulk strings", id="maps, nested"),
        pytest.param(b"*2\r\n%1\r\n%1\r\n+a\r\n+b\r\n", "array of bulk strings", id="the same, within"),
        pytest.param(b"*-1\r\n", "array of bulk strings", id="a null array"),
        pytest.param(b"*1\r\n$-1\r\n", "array of bulk strings", id="a null"),
        pytest.param(b"*2\r\n$1\r\nabcd", "arrays of bulk strings", id="a string that goes on"),
        pytest.param(b"*2\r\n$1\r\nabc*999\r\n", "array of bulk strings", id="an array after one"),
        pytest.param(
            b"*2\r\n$200\r\n" + bytes(200) + b"bc*999\r\n", "array of bulk strings", id="after a long one"
        ),
        pytest.param(b"$1\r\na\r\n", "array of bulk strings", id="a string alone"),
        pytest.param(b"*1\r\n$1x", "array of bulk strings", id="a length that is none"),
        pytest.param(b"*1\r\n*1\r\n$1\r\na\r\n", "array of bulk strings", id="an array in an array"),
        pytest.param(b"*2\r\n$1\r\na\r\n$-1\r\n", "array of bulk strings", id="a null in an array"),
        pytest.param(b":1\r\n", "array of bulk strings", id="a number"),
        pytest.param(b"-ERR I am a server\r\n", "array of bulk strings", id="an error"),
        pytest.param(b"\x16\x03\x01\x02\x00", "arrays of bulk strings", id="TLS"),
        pytest.param(b"*1\r\n$99999999999999999999\r\n", "length", id="an impossible length"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: a\r\n\r\nFLUSHALL\r\n", "not a web server", id="a web page"),
        pytest.param(b"*1\r\n$200000\r\n" + bytes(110_000), "more than 100000 bytes", id="too large"),
        pytest.param(b"a" * 70_000, "no end", id="an endless line"),
    ],
)
def test_what_is_no_request_breaks_the_conversation(stream, complaint):
    requests = Requests(limit=100_000)
    for at in range(0, len(stream), 500):
        assert requests.feed(stream[at : at + 500]) == []
        if requests.broken:
            break
    assert isinstance(requests.broken, ProtocolError)
    assert complaint in str(requests.broken)


@pytest.mark.parametrize("size", range(1, 12))
def test_a_claim_of_too_many_parts_is_noticed_however_it_is_cut(size):
    requests = Requests(limit=100_000)
    claim = b"*1000000000\r\n"
    for at in range(0, len(claim), size):
        if requests.broken is None:
            assert requests.feed(claim[at : at + size]) == []
    assert "parts" in str(requests.broken)


def test_requests_before_the_broken_one_are_found():
    requests = Requests(limit=1000)
    assert requests.feed(wire(b"PING") + b"!garbage\r\n") == [[b"PING"]]
    assert requests.broken is not None


@pytest.mark.parametrize("resp3", [False, True])
def test_replies_are_read_back_as_they_were(resp3):
    reply = [b"value", b"", "OK", 7, -1, None, [b"nested", []], {"key": [1]}]
    reader = hiredis.Reader()
    reader.feed(b"".join(pieces(reply, resp3=resp3)))
    mapped = {b"key": [1]} if resp3 else [b"key", [1]]
    assert reader.gets() == [b"value", b"", b"OK", 7, -1, None, [b"nested", []], mapped]


def test_an_error_reply_is_one_line():
    assert b"".join(pieces(Failure("ERR a\r\nb"))) == b"-ERR a b\r\n"


# -- The front, over real sockets


class FakeReplica:
    """A replica of one, without a log. It notes what it is asked, and fails as `trouble` says."""

    def __init__(self, *trouble: Exception) -> None:
        self.machine = KeyValue()
        self.trouble = list(trouble)
        self.asked: list[tuple[str, int]] = []
        self.gate: trio.Event | None = None

    async def _pass(self, what: str, count: int) -> None:
        self.asked.append((what, count))
        if self.gate is not None:
            await self.gate.wait()
        if self.trouble:
            raise self.trouble.pop(0)

    async def propose_many(self, commands: list[bytes], timeout: float) -> list[Any]:  # noqa: ASYNC109
        await self._pass("write", len(commands))
        return [self.machine.apply(command) for command in commands]

    async def read(self, query: Any, timeout: float) -> Any:  # noqa: ASYNC109
        await self._pass("read", len(query))
        return self.machine.query(query)

    def status(self) -> Any:
        return SimpleNamespace(state=State.FOLLOWER, leader_id=2, term=7, commit=42, applied=41)


@asynccontextmanager
async def running(replica: Any = None, **limits: Any) -> AsyncIterator[int]:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    front = Front(replica or FakeReplica(), Limits(**limits), {"tcp_port": 1})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(front.serve, listeners)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


class Talker:
    """A client that sends what it is told, byte for byte."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream, self.reader = stream, hiredis.Reader()

    async def say(self, *requests: bytes) -> None:
        await self.stream.send_all(b"".join(requests))

    async def hear(self, count: int = 1) -> list[Any]:
        heard: list[Any] = []
        while len(heard) < count:
            while len(heard) < count and (reply := self.reader.gets()) is not False:
                heard.append(str(reply) if isinstance(reply, hiredis.ReplyError) else reply)
            if len(heard) < count:
                chunk = await self.stream.receive_some()
                assert chunk, f"disconnected after {heard}"
                self.reader.feed(chunk)
        return heard

    async def is_disconnected(self) -> bool:
        return await self.stream.receive_some() == b""


@asynccontextmanager
async def talking(port: int) -> AsyncIterator[Talker]:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        yield Talker(stream)


def front_test(scenario: Callable[[Talker, FakeReplica], Any], *, trouble: Any = (), **limits: Any) -> None:
    async def main() -> None:
        replica = FakeReplica(*trouble)
        with trio.fail_after(20):
            async with running(replica, **limits) as port, talking(port) as talker:
                await scenario(talker, replica)

    trio.run(main)


def test_a_pipeline_is_answered_in_order_and_travels_together():
    async def scenario(talker, replica):
        await talker.say(
            wire(b"SET", b"a", b"1"),
            wire(b"INCR", b"a"),
            wire(b"APPEND", b"a", b"0"),
            wire(b"GET", b"a"),
            wire(b"EXISTS", b"a"),
            wire(b"PING"),
            wire(b"DEL", b"a"),
            wire(b"GET", b"a"),
        )
        assert await talker.hear(8) == [b"OK", 2, 2, b"20", 1, b"PONG", 1, None]
        assert replica.asked == [("write", 3), ("read", 2), ("write", 1), ("read", 1)]

    front_test(scenario)


def lane_of_one(replica: FakeReplica, **options: Any) -> Lane:
    async def request(commands: list[bytes], timeout: float) -> list[Any]:  # noqa: ASYNC109
        return await replica.propose_many(commands, timeout=timeout)

    lane = Lane(request, limits=Limits(), may_repeat=(), **options)
    lane.WIDTH = 1  # type: ignore[misc]
    return lane


def test_what_several_clients_ask_meanwhile_travels_together():
    async def main() -> None:
        replica = FakeReplica()
        with trio.fail_after(20):
            lane = lane_of_one(replica, max_weight=100)
            replica.gate = trio.Event()
            command = cbor2.dumps(["INCR", b"n", 1])
            replies: dict[int, Any] = {}

            async def ask_for(client: int) -> None:
                replies[client] = await lane.order([command] * client)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(lane.run)
                async with trio.open_nursery() as clients:
                    for client in (1, 2, 3):
                        clients.start_soon(ask_for, client)
                        await trio.testing.wait_all_tasks_blocked()
                    replica.gate.set()
                nursery.cancel_scope.cancel()
            assert replica.asked == [("write", 1), ("write", 5)]
            assert replies == {1: [1], 2: [2, 3], 3: [4, 5, 6]}

    trio.run(main)


def test_a_lane_carries_no_more_at_once_than_its_weight_allows():
    async def main() -> None:
        replica = FakeReplica()
        with trio.fail_after(20):
            command = cbor2.dumps(["INCR", b"n", 1])
            lane = lane_of_one(replica, max_weight=2 * len(command))
            async with trio.open_nursery() as nursery:
                async with trio.open_nursery() as clients:
                    for _ in range(5):
                        clients.start_soon(lane.order, [command])
                    clients.start_soon(lane.order, [command] * 9)
                    await trio.testing.wait_all_tasks_blocked()
                    nursery.start_soon(lane.run)
                nursery.cancel_scope.cancel()
            assert sorted(count for _, count in replica.asked) in ([1, 2, 2, 9], [1, 1, 1, 2, 9])

    trio.run(main)


def test_a_request_that_is_stuck_does_not_hold_up_the_others():
    async def main() -> None:
        stuck = trio.Event()

        async def request(items: list[bytes], timeout: float) -> list[Any]:  # noqa: ASYNC109
            if items == [b"stuck"]:
                stuck.set()
                await trio.sleep(timeout)
                raise OutcomeUnknown("nothing was heard of it")
            return items

        lane = Lane(request, limits=Limits(timeout=60, attempt=60), max_weight=1, may_repeat=())
        lane.WIDTH = 1  # type: ignore[misc]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lane.run)
            nursery.start_soon(lane.order, [b"stuck"])
            await stuck.wait()
            with trio.fail_after(10):
                assert await lane.order([b"other"]) == [b"other"]
            nursery.cancel_scope.cancel()

    trio.run(main)


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        ([b"GET"], "ERR wrong number of arguments for 'get' command"),
        ([b"get", b"a", b"b"], "ERR wrong number of arguments for 'get' command"),
        ([b"SET", b"a"], "ERR wrong number of arguments for 'set' command"),
        ([b"MSET", b"a", b"1", b"b"], "ERR wrong number of arguments for 'mset' command"),
        ([b"DBSIZE", b"x"], "ERR wrong number of arguments for 'dbsize' command"),
        ([b"PING", b"a", b"b"], "ERR wrong number of arguments for 'ping' command"),
        ([b"LPUSH", b"a", b"b\r\n"], "ERR unknown command 'LPUSH', with args beginning with: 'a' 'b??'"),
        ([b"SET", b"a", b"1", b"EX", b"10"], "never expire"),
        ([b"SET", b"a", b"1", b"MAYBE"], "ERR syntax error"),
        ([b"SET", b"a", b"1", b"nx", b"xx"], "ERR syntax error"),
        ([b"FLUSHALL", b"LATER"], "ERR syntax error"),
        ([b"SELECT", b"1"], "ERR DB index is out of range"),
        ([b"HELLO", b"4"], "NOPROTO"),
        ([b"HELLO", b"3", b"AUTH", b"a", b"b"], "no users and passwords"),
        ([b"HELLO", b"2", b"FOO"], "ERR syntax error"),
        ([b"CLIENT", b"KILL"], "ERR unknown subcommand"),
        ([b"CLIENT", b"SETNAME"], "ERR unknown subcommand"),
        ([b"CONFIG", b"SET", b"save", b""], "ERR unknown subcommand"),
        ([b"COMMAND", b"NONSENSE"], "ERR unknown subcommand"),
        ([b"SET", b"a", b"x" * 101], "of 101 bytes is over the limit of 100"),
        ([b"GET", b"k" * 101], "of 101 bytes is over the limit of 100"),
        ([b"MGET", *[b"k" * 99] * 9], "891 bytes"),
        ([b"SET", b"a", bytes(3 << 20)], "of 3145728 bytes is over the limit of 100"),
        ([b"KEYS", b"*" * 2000], "pattern of 2000 bytes"),
    ],
)
def test_a_wrong_command_is_told_so_and_the_connection_goes_on(request_, complaint):
    async def scenario(talker, replica):
        await talker.say(wire(b"SET", b"k", b"1"), wire(*request_), wire(b"INCR", b"k"))
        first, error, last = await talker.hear(3)
        assert complaint in error
        assert (first, last) == (b"OK", 2)
        assert [what for what, _ in replica.asked] == ["write", "write"]

    front_test(scenario, max_value=100)


def test_a_failing_write_leaves_its_neighbours_alone():
    async def scenario(talker, _replica):
        await talker.say(wire(b"SET", b"k", b"x"), wire(b"INCR", b"k"), wire(b"APPEND", b"k", b"y"))
        first, error, last = await talker.hear(3)
        assert (first, last) == (b"OK", 2)
        assert error.startswith("ERR value is not an integer")

    front_test(scenario)


def test_garbage_is_answered_and_ends_only_that_connection():
    async def scenario(talker, replica):
        port = talker.stream.socket.getpeername()[1]
        await talker.say(wire(b"SET", b"k", b"1"), b"!\r\n")
        assert (await talker.hear(2))[1].startswith("ERR Protocol error")
        assert await talker.is_disconnected()
        async with talking(port) as other:
            await other.say(wire(b"GET", b"k"))
            assert await other.hear() == [b"1"]

    front_test(scenario)


def test_a_transaction_is_one_command_of_the_log_with_its_reads():
    async def scenario(talker, replica):
        await talker.say(
            wire(b"MULTI"),
            wire(b"SET", b"k", b"x"),
            wire(b"INCR", b"k"),
            wire(b"GET", b"k"),
            wire(b"KEYS", b"*"),
            wire(b"EXEC"),
            wire(b"GET", b"k"),
        )
        *said, done, after = await talker.hear(7)
        assert said == [b"OK", *[b"QUEUED"] * 4]
        assert (done[0], done[2:], after) == (b"OK", [b"x", [b"k"]], b"x")
        assert str(done[1]).startswith("ERR value is not an integer")
        assert replica.asked == [("write", 1), ("read", 1)]

    front_test(scenario)


@pytest.mark.parametrize(
    ("said", "reply"),
    [
        ([[b"EXEC"]], "ERR EXEC without MULTI"),
        ([[b"DISCARD"]], "ERR DISCARD without MULTI"),
        ([[b"MULTI"], [b"MULTI"]], "ERR MULTI calls can not be nested"),
        ([[b"MULTI"], [b"SET", b"k", b"1"], [b"NONSENSE"], [b"EXEC"]], "EXECABORT"),
        ([[b"MULTI"], [b"SET", b"k", b"1"], [b"PING"], [b"EXEC"]], "EXECABORT"),
        ([[b"MULTI"], *[[b"SET", b"k", b"x" * 90]] * 9, [b"EXEC"]], "EXECABORT"),
    ],
)
def test_a_transaction_with_something_wrong_does_nothing(said, reply):
    async def scenario(talker, replica):
        await talker.say(*(wire(*request) for request in said))
        assert str((await talker.hear(len(said)))[-1]).startswith(reply)
        await talker.say(wire(b"DISCARD"), wire(b"PING"))
        assert (await talker.hear(2))[1] == b"PONG"
        assert replica.asked == []

    front_test(scenario, max_value=100)


def test_quit_is_the_last_thing_answered():
    async def scenario(talker, replica):
        await talker.say(wire(b"PING"), wire(b"QUIT"), wire(b"SET", b"k", b"1"))
        assert await talker.hear(2) == [b"PONG", b"OK"]
        assert await talker.is_disconnected()
        assert replica.asked == []

    front_test(scenario)


def test_one_client_too_many_is_turned_away():
    async def scenario(talker, replica):
        port = talker.stream.socket.getpeername()[1]
        await talker.say(wire(b"PING"))
        await talker.hear()
        async with talking(port) as other:
            assert (await other.hear())[0].startswith("ERR max number of clients reached")
            assert await other.is_disconnected()
        await talker.say(wire(b"PING"))
        assert await talker.hear() == [b"PONG"]

    front_test(scenario, max_clients=1)


def test_info_names_the_role_the_leader_the_term_and_the_indexes():
    async def scenario(talker, replica):
        await talker.say(wire(b"INFO"), wire(b"INFO", b"replication"))
        whole, part = await talker.hear(2)
        fields = dict(line.split(":", 1) for line in whole.decode().splitlines() if ":" in line)
        wanted = {"role": "follower", "leader": "2", "term": "7", "commit_index": "42", "applied_index": "41"}
        assert fields.items() >= wanted.items()
        assert fields["tcp_port"] == "1"
        assert part.decode().splitlines() == ["# Replication", *(f"{name}:{wanted[name]}" for name in wanted)]

    front_test(scenario)


def test_what_redis_tools_ask_when_they_connect_is_answered():
    async def scenario(talker, replica):
        await talker.say(
            wire(b"COMMAND", b"COUNT"),
            wire(b"COMMAND", b"DOCS"),
            wire(b"COMMAND"),
            wire(b"COMMAND", b"INFO", b"get", b"nothing"),
            wire(b"CONFIG", b"GET", b"save"),
            wire(b"CONFIG", b"GET", b"appendonly"),
            wire(b"CLIENT", b"SETNAME", b"me"),
            wire(b"CLIENT", b"GETNAME"),
            wire(b"SELECT", b"0"),
            wire(b"ECHO", b"x"),
            wire(b"PING", b"y"),
        )
        count, docs, commands, some, *rest = await talker.hear(11)
        assert (count, docs) == (len(COMMANDS), [])
        assert {each[0] for each in commands} == {name.lower() for name in COMMANDS}
        assert some == [[b"get", 2, [b"readonly"], 1, 1, 1, [], [], [], []], None]
        assert rest == [[b"save", b""], [b"appendonly", b"yes"], b"OK", b"me", b"OK", b"x", b"y"]

    front_test(scenario)


def test_hello_switches_the_dialect():
    async def scenario(talker, _replica):
        await talker.say(wire(b"GET", b"k"), wire(b"HELLO", b"3"), wire(b"GET", b"k"), wire(b"HELLO", b"2"))
        before, three, after, two = await talker.hear(4)
        assert (before, after) == (None, None)
        assert three[b"proto"] == 3
        assert b"proto" in two

    front_test(scenario)


@pytest.mark.parametrize(
    ("request_", "reply", "trouble"),
    [
        pytest.param(
            wire(b"INCR", b"k"), 1, [NotLeader(1), SystemBusy("full")], id="a write that surely was not"
        ),
        pytest.param(
            wire(b"GET", b"k"), None, [NotLeader(1), OutcomeUnknown("late")], id="a read after any error"
        ),
    ],
)
def test_while_there_is_no_leader_clients_wait_instead_of_failing(request_, reply, trouble):
    async def scenario(talker, replica):
        await talker.say(request_)
        assert await talker.hear() == [reply]
        assert len(replica.asked) == 3

    front_test(scenario, trouble=trouble)


def test_who_waited_long_enough_is_told_that_nothing_happened():
    async def scenario(talker, _replica):
        await talker.say(wire(b"INCR", b"k"))
        assert (await talker.hear())[0].startswith("CLUSTERDOWN not executed")

    front_test(scenario, trouble=[NotLeader(1)] * 1000, timeout=0.1)


def test_a_client_that_does_not_read_is_not_read_from():
    async def scenario(talker, replica):
        replica.machine.data[b"k"] = bytes(512 << 10)
        with trio.move_on_after(0.5) as waiting:
            await talker.say(*[wire(b"KEYS", b"*"), wire(b"GET", b"k")] * 200_000)
        assert waiting.cancelled_caught
        assert len(replica.asked) < 1000

    front_test(scenario)


@pytest.mark.parametrize(
    ("trouble", "reply"),
    [
        (OutcomeUnknown("the leader went away"), "UNKNOWN"),
        (ReplicaStopped("it was stopped"), "CLUSTERDOWN not executed"),
    ],
)
def test_a_write_that_may_have_happened_is_never_repeated(trouble, reply):
    async def scenario(talker, replica):
        await talker.say(wire(b"INCR", b"k"), wire(b"INCR", b"k"))
        for error in await talker.hear(2):
            assert error.startswith(reply)
            assert str(trouble) in error
        assert replica.asked == [("write", 2)]
        await talker.say(wire(b"INCR", b"k"))
        assert await talker.hear() == [1]

    front_test(scenario, trouble=[trouble])


def test_the_redis_package_drives_it():
    def drive(port: int) -> None:
        for protocol in (2, 3, None):
            with redis.Redis(port=port, protocol=protocol, socket_timeout=10) as client:
                assert client.flushall()
                assert client.ping()
                assert client.set("a", "1")
                assert client.set("a", "2", nx=True) is None
                assert client.incr("a") == 2
                assert client.incr("a", 5) == 7
                assert client.decr("a", 5) == 2
                assert client.append("a", "0") == 2
                assert client.get("a") == b"20"
                assert client.mset({"b": "x", "c": "y"})
                assert client.mget("c", "nothing", "b") == [b"y", None, b"x"]
                assert client.exists("a", "b", "nothing") == 2
                assert sorted(client.keys("[ab]")) == [b"a", b"b"]
                assert client.dbsize() == 3
                assert client.delete("a", "b") == 2
                assert client.info()["leader"] == 2
                assert "get" in client.command()
                assert client.config_get("save") == {"save": ""}
                with client.pipeline(transaction=False) as pipe:
                    for number in range(500):
                        pipe.set(f"n{number}", number).get(f"n{number}")
                    replies = pipe.execute()
                with client.pipeline() as transaction:
                    assert transaction.set("t", "1").get("t").incr("t").execute() == [True, b"1", 2]
                assert replies[1::2] == [b"%d" % number for number in range(500)]
                with pytest.raises(redis.ResponseError, match="not an integer"):
                    client.incr("c")

    async def main() -> None:
        with trio.fail_after(60):
            async with running() as port:
                await trio.to_thread.run_sync(drive, port)

    trio.run(main)


# -- The command line


def kv(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "examples.kv", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


GOOD = {
    "--replica": "1",
    "--members": "1=127.0.0.1:7001,2=127.0.0.1:7002",
    "--data-dir": "never-made",
    "--redis": "127.0.0.1:0",
}


def with_option(name: str, value: str) -> list[str]:
    return [each for option in (GOOD | {name: value}).items() for each in option]


@pytest.mark.parametrize(
    ("name", "value", "complaints"),
    [
        ("--replica", "3", ["--replica 3", "1, 2", "add it"]),
        ("--replica", "0", ["'0' is not a replica id", "from 1 up"]),
        ("--members", "127.0.0.1:7001", ["127.0.0.1:7001", "ID=HOST:PORT"]),
        ("--members", "1=a:1,1=b:1", ["names replica 1 twice"]),
        ("--members", "1=a:1,2=a:1", ["names a:1 twice"]),
        ("--members", "1=a:70000", ["'a:70000'", "from 1 to 65535", "65535"]),
        ("--redis", "6379", ["'6379' is not an address", "HOST:PORT"]),
        ("--max-value", "0", ["'0'", "from 1 to 2097152"]),
        ("--max-value", "much", ["'much'", "from 1 to 2097152"]),
        ("--timeout", "nan", ["'nan'"]),
        ("--tls-ca", "ca.pem", ["--tls-ca, --tls-cert and --tls-key belong together"]),
        ("--tls-cert", "a.pem", ["give all three, or none"]),
        ("--tls-key", "a.key", ["give all three, or none"]),
        ("--colour", "red", ["--colour"]),
    ],
)
def test_a_wrong_option_is_named_with_its_value_and_the_remedy(name, value, complaints, capsys):
    with pytest.raises(SystemExit) as ended:
        main(with_option(name, value))
    told = capsys.readouterr()
    assert ended.value.code == 2
    assert told.out == ""
    for complaint in complaints:
        assert complaint in told.err
    assert not (ROOT / "never-made").exists()


def test_a_wrong_option_ends_the_process():
    ended = kv(*with_option("--replica", "3"))
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "--replica 3" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_taken_redis_port_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = kv(*with_option("--redis", where), "--data-dir", str(tmp_path / "d"))
    assert ended.returncode == 1
    assert where in ended.stderr
    assert "choose another port" in ended.stderr
    assert "Traceback" not in ended.stderr


# -- One host, as a process


class OneHost:
    """A cluster of one, in a process of its own."""

    def __init__(self, data_dir: Path, raft_port: int, *options: str, program: str = "") -> None:
        start = ("-c", program) if program else ("-m", "examples.kv")
        where = {
            "--replica": "1",
            "--members": f"1=127.0.0.1:{raft_port}",
            "--data-dir": str(data_dir),
            "--redis": "127.0.0.1:0",
        }
        self.process = subprocess.Popen(
            [sys.executable, *start, *chain.from_iterable(where.items()), *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> redis.Redis:
        assert self.process.stdout is not None
        ready = self.process.stdout.readline()
        found = re.search(r"ready: replica 1, redis on 127.0.0.1:(\d+), raft on 127.0.0.1:\d+", ready)
        assert found, (ready, self.end())
        return redis.Redis(
            host="127.0.0.1", port=int(found[1]), socket_timeout=20, retry=Retry(NoBackoff(), 0)
        )

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.end()

    def end(self) -> tuple[int, str]:
        _, complaint = self.process.communicate(timeout=30)
        return self.process.returncode, complaint


@pytest.fixture
def raft_port() -> int:
    return free_ports(1)[0]


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_what_was_acknowledged_is_there_after_the_process_ended(tmp_path, raft_port, asked):
    host = OneHost(tmp_path / "d", raft_port)
    with host as client, client:
        assert client.set("a", "1")
        assert client.append("a", "2") == 2
        host.process.send_signal(asked)
        status, complaint = host.end()
    assert status == (-asked if asked == signal.SIGKILL else 0)
    assert "Traceback" not in complaint
    with OneHost(tmp_path / "d", raft_port) as client, client:
        assert client.get("a") == b"12"


def test_a_host_whose_replica_fails_says_so_and_ends(tmp_path, raft_port):
    program = (
        "import sys; from examples import kv\n"
        "def fail(*_): raise RuntimeError('the state machine broke')\n"
        "kv.KeyValue.apply = fail\n"
        "sys.exit(kv.main(sys.argv[1:]))"
    )
    host = OneHost(tmp_path / "d", raft_port, program=program)
    with host as client, client:
        with pytest.raises(redis.RedisError):
            client.set("a", "1")
        status, complaint = host.end()
    assert status == 1
    assert "kv: error: replica 1 failed" in complaint
    assert "the state machine broke" in complaint


def test_a_data_directory_of_another_replica_is_refused(tmp_path, raft_port):
    ours, foreign, file = tmp_path / "ours", tmp_path / "foreign", tmp_path / "file"
    host = OneHost(ours, raft_port)
    with host as client, client:
        assert client.ping()
        host.process.terminate()
        assert host.end()[0] == 0
    foreign.mkdir()
    (foreign / "diary").write_text("private")
    file.write_text("private")
    for directory, options, complaint in (
        (ours, ("--deployment", "other"), "'other'"),
        (foreign, (), "diary"),
        (file, (), "is a file"),
    ):
        status, said = OneHost(directory, raft_port, *options).end()
        assert status == 1
        assert "kv: error:" in said
        assert complaint in said
        assert str(directory) in said
        assert "Traceback" not in said
    assert (foreign / "diary").read_text() == file.read_text() == "private"


def test_a_taken_raft_port_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, said = OneHost(tmp_path / "d", port).end()
    assert status == 1
    assert f"127.0.0.1:{port}" in said
    assert "taken" in said
    assert "Traceback" not in said


def test_a_command_that_finds_no_leader_is_answered_and_the_connection_goes_on(tmp_path, raft_port):
    alone = ("--members", f"1=127.0.0.1:{raft_port},2=127.0.0.1:1", "--timeout", "0.3")
    with OneHost(tmp_path / "d", raft_port, *alone) as client, client:
        for _ in range(2):
            with pytest.raises(redis.ResponseError, match="not executed"):
                client.set("a", "1")
        assert client.ping()
        assert client.info()["leader"] == 0
