"""Old entries that are large and not in the page cache: replicas apply and send them, and the loop does not wait for the disk."""

import os

from drakkar.handlers.raft.entries import EntryKind

from tests.actors.support import TIMEOUT_S, Hosts, contents, until

CALM = {"election_ticks": 50, "snapshot_entries": 0}
SIZE = 4 << 20
COUNT = 5


def drop_page_cache(path):
    """Let the next reads of these files go to the disk. A file system may refuse it: then they are only large."""
    for file in sorted(path.rglob("*.segment")):
        handle = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def test_a_follower_that_is_far_behind_catches_up_from_what_is_on_the_disk(tmp_path):
    """The others have restarted, so that nothing of it is in their memory: they first apply it again themselves."""
    written = [bytes([number]) * SIZE for number in range(COUNT)]
    with Hosts(data=tmp_path) as hosts:
        hosts.run(config=CALM)
        hosts.stop(3)
        leader = hosts.leader()
        for command in written:
            hosts[leader].propose(command, timeout=TIMEOUT_S).get(timeout=TIMEOUT_S)
        for number in (1, 2):
            hosts.stop(number)
        drop_page_cache(tmp_path)
        hosts.run(numbers=[1, 2], config=CALM)
        leader = hosts.leader()
        assert contents(hosts[leader]) == written
        drop_page_cache(tmp_path)
        hosts.run(numbers=[3], config=CALM)
        last = hosts[leader].status().commit
        until(lambda: hosts[3].status().applied >= last)
        assert contents(hosts[3]) == written
        assert hosts[leader].counters["reads that waited for the disk"] >= 2 * COUNT
        assert commands(hosts[leader], last) == written


def commands(replica, last):
    """Read the whole committed log by queries."""
    found, index = [], 1
    while index <= last:
        page = replica.query_log(index, last + 1, max_bytes=8 << 20, timeout=TIMEOUT_S).get(timeout=TIMEOUT_S)
        found += [entry.payload for entry in page if entry.kind is EntryKind.COMMAND]
        index = page[-1].index + 1
    return found
