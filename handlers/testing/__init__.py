"""For tests of protocols and of handlers of your own.

`drain` steps one replica, `Cluster` tells stories. A scenario in ten lines:

    from drakkar.handlers.testing import Cluster

    def test_a_leader_that_was_cut_off_takes_over_what_the_new_one_committed():
        cluster = Cluster(3, seed=1)
        cluster.elect(1)
        cluster.isolate(1)
        cluster.propose(1, b"lost")            # reaches nobody
        cluster.elect(2)
        cluster.propose(2, b"kept")
        cluster.heal()
        cluster.tick(2)                        # heartbeats tell 1 that its term is over
        assert cluster.applied(1) == [b"kept"]

`Cluster.storm` lets all faults loose on a shard with handlers of your own, and checks Raft's invariants, and yours,
after every step:

    def test_audits_harm_nobody():
        def audit(raft, random):
            raft.send(Message(AUDIT_PING, to=random.choice(raft.peers)))
        Cluster(3, handlers=table).storm(range(5), traffic=audit)

Everything is deterministic: the same calls with the same seed give the same messages in the same order. Below it all,
`simulation` runs a shard in simulated time by a `plan`, and `invariants` says what must hold after every step.
"""

from drakkar.handlers.testing.cluster import Cluster, Drained, Node, drain
from drakkar.handlers.testing.invariants import Violation

__all__ = ["Cluster", "Drained", "Node", "Violation", "drain"]
