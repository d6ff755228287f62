"""What a client of the key-value example may cost: places, memory and time have bounds, and bytes are no commands."""

import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any

import cbor2
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from examples import resp_front
from examples.kv import KeyValue
from examples.kv_commands import MAX_PATTERN, decode
from examples.resp import ANNOUNCED_BYTES, OK, PART_OVERHEAD, Failure, ProtocolError, Requests
from examples.resp_commands import COMMANDS, MAX_NAME, Client, Kind, Limits, plan
from examples.resp_front import Front
from tests.actors.support import Hosts, commit
from tests.examples.test_disk_kv import contents as contents_on_disk
from tests.examples.test_disk_kv import opened
from tests.examples.test_kv import FakeReplica, Talker, ask, do, front_test, talking, wire

TIMEOUT_S = 20


@asynccontextmanager
async def serving(**limits: Any) -> AsyncIterator[tuple[int, Front]]:
    with trio.fail_after(TIMEOUT_S):
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        front = Front(FakeReplica(), Limits(**limits))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(front.serve, listeners)
            yield listeners[0].socket.getsockname()[1], front
            nursery.cancel_scope.cancel()


async def until(true: Any) -> None:
    while not true():  # noqa: ASYNC110  # counters are numbers without events
        await trio.sleep(0.001)


async def works(talker: Talker) -> None:
    await talker.say(wire(b"SET", b"k", b"v"), wire(b"GET", b"k"))
    assert await talker.hear(2) == [b"OK", b"v"]


async def say_until_disconnected(talker: Talker, data: bytes) -> None:
    with suppress(trio.BrokenResourceError):
        while True:
            await talker.say(data)


async def read_all(talker: Talker) -> None:
    with suppress(trio.BrokenResourceError):
        while await talker.stream.receive_some():
            pass


# -- Time


def test_a_client_that_sends_nothing_is_disconnected_and_one_that_talks_stays():
    async def main() -> None:
        began = trio.current_time()  # before the front's own clock of it begins
        async with serving(idle=0.3) as (port, front), talking(port) as idle, talking(port) as busy:
            async with trio.open_nursery() as nursery:

                async def wait_for_the_end() -> None:
                    assert await idle.is_disconnected()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(wait_for_the_end)
                while True:
                    await works(busy)
                    await trio.sleep(0.05)
            assert trio.current_time() - began >= 0.3
            await works(busy)
            assert list(front._clients) != []

    trio.run(main)


def test_a_client_that_takes_no_reply_is_disconnected():
    async def main() -> None:
        async with serving(idle=0.3) as (port, front), talking(port) as deaf:
            await works(deaf)
            front.replica.machine.data[b"k"] = bytes(512 << 10)
            await say_until_disconnected(deaf, wire(b"GET", b"k") * 10_000)
            await until(lambda: not front._clients)
            async with talking(port) as other:
                await other.say(wire(b"PING"))
                assert await other.hear() == [b"PONG"]

    trio.run(main)


# -- Places


def test_silent_connections_keep_no_client_out():
    """Also where they send the beginning of a request, and come again and again."""

    async def main() -> None:
        async with serving(max_clients=3) as (port, front), AsyncExitStack() as stack:
            talker = await stack.enter_async_context(talking(port))
            await works(talker)
            for count in range(6):
                silent = await stack.enter_async_context(talking(port))
                await silent.say(b"*1\r\n$4\r\nPI")
                await until(lambda count=count: front.counts["connections"] == count + 2)
            late = await stack.enter_async_context(talking(port))
            await works(late)
            await works(talker)
            assert front.counts["evicted_connections"] == 5
            assert front.counts["rejected_connections"] == 0

    trio.run(main)


def test_clients_that_have_said_something_keep_their_places():
    async def main() -> None:
        async with serving(max_clients=2) as (port, front), talking(port) as one, talking(port) as two:
            await works(one)
            await works(two)
            async with talking(port) as three:
                assert (await three.hear())[0].startswith("ERR max number of clients reached")
                assert await three.is_disconnected()
            await works(one)
            await works(two)
            assert front.counts["evicted_connections"] == 0

    trio.run(main)


# -- Memory


@pytest.mark.parametrize("size", [*range(1, 24), 1000])
@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        (b"$", "length of 1048577 bytes"),
        (b"=", "array of bulk strings"),
        (b"!", "array of bulk strings"),
    ],
)
def test_an_absurd_length_is_refused_before_a_byte_of_it_comes(size, kind, complaint):
    requests = Requests(limit=1 << 20)
    claim = b"*2\r\n$3\r\nGET\r\n" + kind + b"1048577\r\n"
    for at in range(0, len(claim), size):
        if requests.broken is None:
            assert requests.feed(claim[at : at + size]) == []
    assert isinstance(requests.broken, ProtocolError)
    assert complaint in str(requests.broken)


@pytest.mark.parametrize("parts", [1, 999, 9999])
def test_what_is_announced_takes_little_memory_and_counts_with_what_has_come(parts):
    requests = Requests(limit=1 << 20)
    tracemalloc.start()
    try:
        assert requests.feed(b"*%d\r\n$900000\r\n" % parts) == []
        assert tracemalloc.get_traced_memory()[1] < 2000 + parts * ANNOUNCED_BYTES
        assert tracemalloc.get_traced_memory()[0] <= requests.buffered + 2000
        assert requests.buffered < 400 + parts * ANNOUNCED_BYTES
        assert requests.feed(bytes(500_000)) == []
        assert requests.buffered < 500_100 + parts * (ANNOUNCED_BYTES + PART_OVERHEAD)
        assert requests.feed(bytes(400_000) + b"\r" + b"\n$2\r\nab\r" * (parts - 1)) == []
        assert tracemalloc.get_traced_memory()[0] <= requests.buffered + 10_000
    finally:
        tracemalloc.stop()
    assert requests.feed(b"\n") == [[bytes(900_000)] + [b"ab"] * (parts - 1)]
    assert requests.buffered == 0


def test_a_large_string_is_not_searched_for_what_looks_like_items():
    requests = Requests(limit=1 << 20)
    admit = requests._admit
    looks = b"$-1\r\n*9\r\n+" * 100
    requests.feed(b"*2\r\n$4\r\nECHO\r\n$%d\r\n" % (len(looks) * 500))
    requests._admit = None
    parse, parsed = requests._parse, []
    requests._parse = lambda data: parsed.append(data) or parse(data)
    for _ in range(499):
        assert requests.feed(looks) == []
    assert len(parsed) == 499
    requests._admit = admit
    assert requests.feed(looks + b"\r\n") == [[b"ECHO", looks * 500]]


@pytest.mark.parametrize("kind", [b"+", b"-", b":", b"$", b"(", b"_"])
@pytest.mark.parametrize("before", [b"*2\r\n$1\r\na\r\n", b"*2\r\n$1\r\nabc", b"*2\r\n"])
def test_a_line_that_does_not_end_is_refused_at_its_beginning(before, kind):
    """hiredis would read it from its beginning with each byte that comes."""
    requests = Requests(limit=1 << 20)
    assert requests.feed(before + kind) == []
    assert requests.feed(b"\r\r") == []
    assert "array of bulk strings" in str(requests.broken)


@pytest.mark.parametrize("digits", [19, 20, 21, 5000])
def test_no_number_of_digits_is_too_large_to_be_refused(digits):
    requests = Requests(limit=1 << 20)
    assert requests.feed(b"*1\r\n$" + b"9" * digits + b"\r\n") == []
    assert requests.broken is not None


def test_a_value_as_long_as_is_allowed_passes_though_it_looks_like_an_absurd_length():
    value = b"$99999999999\r\n*99999999999\r\n" * 40_000
    requests = Requests(limit=len(value) + 1000)
    stream = wire(b"SET", b"k", value)
    found = [each for at in range(0, len(stream), 4093) for each in requests.feed(stream[at : at + 4093])]
    assert requests.broken is None
    assert found == [[b"SET", b"k", value]]


def test_a_client_that_announces_an_absurd_length_is_told_at_once_and_disconnected():
    async def scenario(talker, replica):
        await talker.say(wire(b"PING"), b"*2\r\n$3\r\nGET\r\n$99999999999\r\n")
        pong, error = await talker.hear(2)
        assert pong == b"PONG"
        assert error.startswith("ERR Protocol error: a string with a length of 99999999999 bytes")
        assert await talker.is_disconnected()

    front_test(scenario)


def test_where_requests_are_too_large_together_the_largest_loses(monkeypatch):
    monkeypatch.setattr(resp_front, "MAX_BUFFERED", 3 << 20)

    async def main() -> None:
        async with serving() as (port, front), talking(port) as small, talking(port) as large:
            await small.say(b"*2\r\n$4\r\nECHO\r\n$500000\r\n" + bytes(400_000))
            await until(lambda: front._buffered >= 400_000)
            await large.say(b"*2\r\n$4\r\nECHO\r\n$9000000\r\n")
            await say_until_disconnected(large, bytes(1 << 16))
            await small.say(bytes(100_000) + b"\r\n")
            assert await small.hear() == [bytes(500_000)]
            await until(lambda: len(front._clients) == 1)
            assert front._buffered == 0

    trio.run(main)


def test_another_one_is_disconnected_where_it_holds_more(monkeypatch):
    monkeypatch.setattr(resp_front, "MAX_BUFFERED", 3 << 20)

    async def main() -> None:
        async with serving() as (port, front), talking(port) as small, talking(port) as large:
            await large.say(b"*2\r\n$4\r\nECHO\r\n$9000000\r\n" + bytes(2_500_000))
            await until(lambda: front._buffered >= 2_500_000)
            await small.say(b"*2\r\n$4\r\nECHO\r\n$1000000\r\n" + bytes(1_000_000) + b"\r\n")
            assert await small.hear() == [bytes(1_000_000)]
            assert front.counts["evicted_connections"] == 1
            await say_until_disconnected(large, bytes(1000))
            await until(lambda: len(front._clients) == 1)

    trio.run(main)


def test_an_open_transaction_counts_as_a_request_that_waits(monkeypatch):
    monkeypatch.setattr(resp_front, "MAX_BUFFERED", 1 << 20)

    async def main() -> None:
        async with serving() as (port, front), talking(port) as client, talking(port) as large:
            for one in (client, large):
                await one.say(wire(b"MULTI"), wire(b"INCR", b"k"))
                assert await one.hear(2) == [b"OK", b"QUEUED"]
            assert 0 < front._buffered < 1000
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_all, large)
                await say_until_disconnected(large, wire(b"DBSIZE") * 1000)
            await client.say(wire(b"EXEC"))
            assert await client.hear() == [[1]]
            assert front._buffered == 0

    trio.run(main)


def test_a_transaction_has_a_bound_in_bytes():
    """That of one command of the log, however small its commands are; what is over it is refused, and so is EXEC."""

    async def main() -> None:
        async with serving(max_value=1000) as (port, front), talking(port) as client:
            await client.say(wire(b"MULTI"), *[wire(b"SET", b"k", bytes(900))] * 9, wire(b"EXEC"))
            answers = await client.hear(11)
            assert answers[1:9] == [b"QUEUED"] * 8
            assert answers[9].startswith("ERR the transaction is over the limit of 8000 bytes")
            assert answers[10].startswith("EXECABORT")
            assert front.replica.machine.data == {}

    trio.run(main)


def test_clients_that_do_not_read_keep_only_so_much_and_the_one_with_the_most_loses(monkeypatch):
    """Replies hold values that the store itself has replaced since. Before they are sent they are no bytes yet."""
    monkeypatch.setattr(resp_front, "MAX_UNREAD", 30 << 20)
    monkeypatch.setattr(resp_front, "LOOK_S", 0.05)

    async def main() -> None:
        async with serving() as (port, front), talking(port) as deaf, talking(port) as slow:
            front.replica.machine.data[b"k"] = bytes(1 << 20)
            await slow.say(wire(b"GET", b"k") * 20)
            await until(lambda: sum(client.unread for client in front._clients) == 20 << 20)
            await deaf.say(wire(b"GET", b"k") * 25)
            await until(lambda: front.counts["evicted_connections"] == 1)
            assert await slow.hear(20) == [bytes(1 << 20)] * 20
            await works(slow)
            assert [client.unread for client in front._clients] == [0]

    trio.run(main)


@pytest.mark.parametrize(
    "request_", [[b"CLIENT", b"SETNAME"], [b"HELLO", b"3", b"SETNAME"]], ids=["CLIENT", "HELLO"]
)
def test_the_name_of_a_connection_has_a_bound(request_):
    async def scenario(talker, _replica):
        await talker.say(wire(*request_, b"n" * (MAX_NAME + 1)), wire(b"CLIENT", b"GETNAME"))
        error, name = await talker.hear(2)
        assert f"over the limit of {MAX_NAME}" in error
        assert name is None
        await talker.say(wire(b"CLIENT", b"SETNAME", b"n" * MAX_NAME), wire(b"CLIENT", b"GETNAME"))
        assert await talker.hear(2) == [b"OK", b"n" * MAX_NAME]

    front_test(scenario)


# -- Commands

NO_COMMANDS = [
    pytest.param(b"", id="nothing"),
    pytest.param(b"\xff\xff garbage", id="garbage"),
    pytest.param(cbor2.dumps(7), id="a number"),
    pytest.param(cbor2.dumps([]), id="an empty list"),
    pytest.param(cbor2.dumps(["DROP", b"k"]), id="an unknown name"),
    pytest.param(cbor2.dumps([b"SET", b"k", b"v"]), id="a name of bytes"),
    pytest.param(cbor2.dumps([["SET"], b"k", b"v"]), id="a list as name"),
    pytest.param(cbor2.dumps(["SET", b"k", b"v"]) + b"x", id="bytes behind it"),
    pytest.param(cbor2.dumps(["SET", b"k", b"v"])[:-1], id="cut short"),
    pytest.param(cbor2.dumps(["SET", b"k"]), id="too few arguments"),
    pytest.param(cbor2.dumps(["SET", b"k", 7]), id="a number as value"),
    pytest.param(cbor2.dumps(["SET", b"k", b"v", "EX"]), id="an unknown option"),
    pytest.param(cbor2.dumps(["SET", b"k", b"v", b"NX"]), id="an option of bytes"),
    pytest.param(cbor2.dumps(["MSET", b"k"]), id="a key without a value"),
    pytest.param(cbor2.dumps(["DEL", ["k"]]), id="a list as key"),
    pytest.param(cbor2.dumps(["INCR", b"k", 1.5]), id="half a number"),
    pytest.param(cbor2.dumps(["INCR", b"k", True]), id="a truth as number"),
    pytest.param(cbor2.dumps(["INCR", b"k", 1 << 64]), id="a number of 65 bits"),
    pytest.param(cbor2.dumps(["APPEND", b"k", b"v", None]), id="no limit"),
    pytest.param(cbor2.dumps(["FLUSHALL", b"k"]), id="too many arguments"),
    pytest.param(cbor2.dumps(["KEYS", b"*" * (MAX_PATTERN + 1)]), id="a long pattern"),
    pytest.param(cbor2.dumps(["EXEC", "SET"]), id="a transaction of text"),
    pytest.param(
        cbor2.dumps(["EXEC", cbor2.dumps(["SET", b"k", b"new"]), b"garbage"]), id="garbage in a transaction"
    ),
    pytest.param(cbor2.dumps(["EXEC", cbor2.dumps(["EXEC"])]), id="a transaction in a transaction"),
    pytest.param(cbor2.dumps(cbor2.CBORTag(258, ["FLUSHALL"])), id="a tag"),
    pytest.param(b"\x81" * 100_000, id="deep nesting"),
]


@pytest.mark.parametrize("command", NO_COMMANDS)
def test_bytes_that_are_no_command_are_answered_and_change_nothing(command):
    kv = KeyValue()
    assert do(kv, "SET", b"k", b"old") == OK
    reply = kv.apply(command)
    assert isinstance(reply, Failure)
    assert reply.startswith("ERR not a command of this store, so nothing was changed")
    assert ask(kv, "GET", b"k") == b"old"


ARGUMENTS = st.one_of(
    st.binary(max_size=20), st.sampled_from([b"NX", b"XX", b"GET", b"-9223372036854775808", b"7"])
)


@given(
    name=st.sampled_from(sorted(COMMANDS)), arguments=st.lists(ARGUMENTS, max_size=5), queued=st.booleans()
)
def test_what_the_front_proposes_is_a_command_whatever_clients_send(name, arguments, queued):
    front, client = SimpleNamespace(limits=Limits(), role=lambda: "leader", info=dict), Client(number=1)
    requests = [[b"MULTI"], [name, *arguments], [b"EXEC"]] if queued else [[name, *arguments]]
    for kind, item in [plan(front, client, request) for request in requests]:
        if kind is Kind.WRITE:
            decode(item)
        elif kind is Kind.HERE:
            item()


def test_a_replica_whose_log_holds_garbage_answers_it_and_goes_on():
    """On three hosts: what stops one replica at its log would stop all of them."""
    with Hosts() as hosts:
        replicas = hosts.run(KeyValue)
        leader = replicas[hosts.leader()]
        assert commit(leader, cbor2.dumps(["SET", b"k", b"v"])) == OK
        for command in (b"\xff garbage", cbor2.dumps(["INCR", b"k"]), b"\x81" * 10_000):
            reply = commit(leader, command)
            assert isinstance(reply, Failure)
        for replica in replicas.values():
            assert replica.read([["GET", b"k"]]).get(timeout=TIMEOUT_S) == [b"v"]


def test_the_store_on_disk_goes_on_too(tmp_path):
    with opened(tmp_path / "kv.sqlite") as machine:
        good, bad = cbor2.dumps(["SET", b"k", b"v"]), b"\xff garbage"
        replies = machine.apply_entries([(1, good), (2, bad), (3, good)])
        assert [isinstance(reply, Failure) for reply in replies] == [False, True, False]
        assert contents_on_disk(machine) == {b"k": b"v"}
