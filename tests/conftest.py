"""What all tests share."""

from collections.abc import Iterator

import pytest
from drakkar.handlers.entry_kinds import EntryKind
from drakkar.handlers.messages import MessageType
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is. A test that is stuck has a timeout.
settings.register_profile("drakkar", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("drakkar")


@pytest.fixture
def types_of_one_test() -> Iterator[None]:
    """Message types and entry kinds are process-wide: those that this test defines, by any number, are forgotten after it."""
    known = [(numbered.known, dict(numbered.known)) for numbered in (MessageType, EntryKind)]
    yield
    for now, before in known:
        now.clear()
        now.update(before)
