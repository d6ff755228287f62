"""What the tests of the runtime share."""

import pytest
from drakkar.actors.runtime.loop import TrioLoop

from tests.actors.runtime.support import TIMEOUT_S, Gate, Held


@pytest.fixture
def loop():
    with TrioLoop() as loop:
        yield loop


@pytest.fixture
def held(loop):
    """An actor that holds the loop up, so that the test can fill inboxes at leisure; and what lets it go on."""
    gate = Gate()
    Held.start(loop=loop).tell(gate)
    assert gate.reached.wait(TIMEOUT_S)
    yield gate
    gate.opened.set()
