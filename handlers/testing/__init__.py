"""Tools to test protocols and your own handlers.

`drain` persists and applies what one replica hands out; `Cluster` runs scenarios. A scenario in ten lines:

    from drakkar.handlers.testing import Cluster

    def test_a_leader_that_was_cut_off_takes_over_what_the_new_one_committed():
        cluster = Cluster(3, seed=1)
        cluster.elect(1)
        cluster.isolate(1)
        cluster.propose(1, b"lost")            # reaches no other replica
        cluster.elect(2)
        cluster.propose(2, b"kept")
        cluster.heal()
        cluster.tick(2)                        # heartbeats tell 1 that its term is over
        assert cluster.applied(1) == [b"kept"]

`Cluster.storm` runs a shard with your handlers under random faults, and checks Raft's invariants, and yours, after
every step:

    def test_audits_do_no_harm():
        def audit(raft, random):
            raft.send(Message(AUDIT_PING, to=random.choice(raft.peers)))
        Cluster(3, handlers=table).storm(range(5), traffic=audit)

`TableCluster` does the same for nodes without Raft: scenarios, in which peers come and go, and storms.

Everything is deterministic: the same calls with the same seed give the same messages in the same order. `storm` is built
on `simulation`, which runs a shard in simulated time as a `plan` says, and on `invariants`, which checks every step.
"""

from drakkar.handlers.testing.cluster import Cluster, Drained, Node, drain
from drakkar.handlers.testing.history import Violation
from drakkar.handlers.testing.table_cluster import TableCluster

__all__ = ["Cluster", "Drained", "Node", "TableCluster", "Violation", "drain"]
