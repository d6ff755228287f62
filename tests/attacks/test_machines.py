"""State machines that hang: by a bug of theirs, or by a command that one client sends."""

import pytest

from tests.actors.support import until

pytestmark = [pytest.mark.xdist_group("attacks"), pytest.mark.slow]

SHARDS = range(20, 25)
"""One more than a host has workers."""


def test_five_state_machines_that_hang(shared):
    target = shared.get(tls=False, machine="hanging")
    for shard in SHARDS:
        target.open_shard(shard, "hanging")
    with target.attack("five state machines that hang, on all hosts") as seen:
        before = target.ask(1, "read", shard=SHARDS[0])
        target.ask(1, "propose", shard=SHARDS[0], command="legal")  # the control
        assert target.ask(1, "read", shard=SHARDS[0]) == before + 1
        for shard in SHARDS:
            with pytest.raises(RuntimeError, match=r"OutcomeUnknown|Timeout|RequestDropped"):
                target.ask(1, "propose", shard=shard, command="hang", within=0.2)
        until(lambda: target.rate(0.3)[0] > 0)
        seen.watch(2)
        assert target.status(1, 1)["leader"] == 1
    hanging = [target.ask(1, "hang", shard=shard) for shard in SHARDS]
    assert all(hanging) or until(lambda: all(target.ask(1, "hang", shard=shard) for shard in SHARDS), 20)
