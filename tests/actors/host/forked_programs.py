"""Programs that tests start: one that runs a host, forks and waits; and a host in a child of multiprocessing."""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from drakkar.actors import NodeHost

from tests.actors.support import TICK, Ledger, commit


def run_a_host(address, data_dir, answers):
    with NodeHost(address, data_dir, tick_interval=TICK) as host:
        replica = host.start_replica(Ledger, shard_id=1, replica_id=1, members={1: address})
        answers.put(commit(replica, b"1"))


def main():
    address, data_dir = sys.argv[1:]
    host = NodeHost(address, data_dir, tick_interval=TICK)
    replica = host.start_replica(Ledger, shard_id=1, replica_id=1, members={1: address})
    commit(replica, b"1")
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main()
