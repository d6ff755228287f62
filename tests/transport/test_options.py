"""What can be set about a transport."""

import math
from dataclasses import fields

import pytest
from drakkar.handlers.errors import ConfigError
from drakkar.transport.options import Options

from tests.transport.support import Host, bulk, heartbeat, on_loop, running, until
from tests.transport.test_streams import Receiver, send


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("queue_bytes", 0),
        ("queue_messages", -1),
        ("queue_messages", 0.5),
        ("max_incoming", True),
        ("backoff_last", "2"),
        ("answer_timeout", math.nan),
        ("frame_limit", math.inf),
        ("keepalive", 0.0),
        ("frame_limit", 100),
        ("frame_limit", 1 << 33),
    ],
)
def test_an_option_out_of_its_bounds_names_itself(option: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        Options(**{option: value})  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"{option}={value!r}: ")


def test_infinity_is_no_limit() -> None:
    unlimited = Options(queue_messages=math.inf, stream_bytes_per_second=math.inf)  # type: ignore[arg-type]
    assert unlimited.queue_messages == unlimited.stream_bytes_per_second == math.inf


@on_loop
async def test_hosts_without_any_limit_exchange_messages_and_streams() -> None:
    limits = {field.name: math.inf for field in fields(Options) if field.name != "frame_limit"}
    options = Options(**limits)  # type: ignore[arg-type]
    drained: list[int] = []
    a = Host(options=options, drained=lambda _, shards: drained.extend(shards))
    b = Receiver(options=options)
    async with running(a, b):
        shards = list(range(1, 11))
        assert [a.transport.room(b.address, shard) for shard in shards] == [0] * 10
        await until(lambda: drained == shards)
        a.send(b, *(bulk(1 << 20, number) for number in range(20)), heartbeat(1))
        assert a.transport.room(b.address, 1) > 1 << 40
        await until(lambda: len(b.received) == 21)
        await send(a, b)
    assert (a.lost, a.counters.dropped, b.counters.streams_received) == ([], 0, 1)
