"""What all tests share."""

from collections.abc import Iterator

import pytest
from drakkar.handlers.messages import MessageType
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is. A test that is stuck has a timeout.
settings.register_profile("drakkar", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("drakkar")


@pytest.fixture
def types_of_one_test() -> Iterator[None]:
    """Message types are process-wide: those that this test defines, by any number, are forgotten after it."""
    known = dict(MessageType.known)
    yield
    MessageType.known.clear()
    MessageType.known.update(known)
