"""What the tests of the runtime share."""

import pytest
from drakkar.actors.runtime.loop import TrioLoop

from tests.actors.runtime.support import TIMEOUT_S, Gate, Held


@pytest.fixture
def loop():
    with TrioLoop() as loop:
        yield loop


@pytest.fixture
def held(loop, monkeypatch):
    """An actor that holds the loop up, so that the test can fill inboxes at leisure; and what lets it go on.

    The round that it holds up ends with what the test makes ready, and not when 2 ms are over.
    """
    monkeypatch.setattr("drakkar.actors.runtime.scheduler._ROUND_S", TIMEOUT_S)
    gate = Gate()
    Held.start(loop=loop).tell(gate)
    assert gate.reached.wait(TIMEOUT_S)
    yield gate
    gate.opened.set()
