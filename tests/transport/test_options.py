"""What can be set about a transport."""

import pytest
from drakkar.handlers.errors import ConfigError
from drakkar.transport.options import Options


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("queue_bytes", 0),
        ("queue_messages", -1),
        ("keepalive", 0.0),
        ("frame_limit", 100),
        ("frame_limit", 1 << 33),
    ],
)
def test_an_option_out_of_its_bounds_names_itself(option: str, value: float) -> None:
    with pytest.raises(ConfigError) as caught:
        Options(**{option: value})  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"{option}={value!r}: ")
