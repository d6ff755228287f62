"""Makes nodes for tests, each on a loop of its own."""

import pytest
from drakkar.actors.runtime.loop import TrioLoop
from drakkar.actors.runtime.workers import WorkerPool

from tests.actors.node.support import ALONE, Node
from tests.actors.support import InlineLedger


@pytest.fixture
def loop():
    with TrioLoop() as loop:
        yield loop


@pytest.fixture
def pool():
    pool = WorkerPool(2)
    yield pool
    pool.stop()


@pytest.fixture
def node(loop, pool):
    """Make a node: `node(machine, members=…, option=…)`."""

    def make(machine=None, *, members=ALONE, max_reads=100, handlers=None, role=None, **config):
        return Node(loop, pool, machine or InlineLedger(), members, max_reads, handlers, role, config)

    return make
