"""What all tests share."""

from collections.abc import Iterator

import pytest
from drakkar.handlers.messages import MessageType


@pytest.fixture
def types_of_one_test() -> Iterator[None]:
    """Message types are process-wide: those that this test defines, by any number, are forgotten after it."""
    known = dict(MessageType.known)
    yield
    MessageType.known.clear()
    MessageType.known.update(known)
