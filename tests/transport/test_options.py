"""What can be set about a transport."""

import math

import pytest
from drakkar.handlers.errors import ConfigError
from drakkar.transport.options import Options


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
