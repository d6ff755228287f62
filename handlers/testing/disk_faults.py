"""Faults of whole disks: directories that are emptied, put back from an older copy, swapped and cloned.

A host is started again in the same way as before: it finds an empty directory, an old one, or that of another host.
"""

from collections.abc import Callable
from typing import Final

from drakkar.handlers.testing.directories import Directory
from drakkar.handlers.testing.plan import TICK
from drakkar.handlers.testing.shard import SimulatedShard
from drakkar.handlers.testing.simulated_host import SimulatedHost

__all__ = ["DiskFaults"]

_AWAY_ELECTIONS: Final = 6
"""Election timeouts for which those stay away that know more: founders listen for two, and then elect."""


class DiskFaults(SimulatedShard):
    """A shard whose disks are exchanged. Its public methods are events that a plan can name."""

    lost_at: int | None = None
    """When the disks of a quorum were emptied; None: that did not happen."""

    def wipe(self, replica: int, time: int) -> None:
        """Empty the disk of a replica, which starts again `time` units later."""
        host = self._host(replica)
        if host is not None:
            self._wipe([host], time)

    def wipe_several(self, side: int, time: int) -> None:
        """Empty the disks of the replicas with a bit in `side`, as many as the shard can spare."""
        self._wipe([host for host in self.hosts.values() if side >> (host.id % 8) & 1], time)

    def wipe_quorum(self, choice: int, time: int) -> None:
        """Empty the disks of a quorum of the voters at once, or of more of them: only where the plan says so.

        An odd `choice` keeps the others down, so that the emptied ones found the shard a second time before they hear of them.
        """
        voters = sorted({*self._newest.voters, *self._newest.witnesses})
        if self.over or not self.plan.loses_quorum or self.invariants.lost is not None:
            return
        count = len(voters) // 2 + 1 + choice % (len(voters) - len(voters) // 2)
        first = choice % len(voters)
        emptied = {*[*voters, *voters][first : first + count]}
        for host in list(self.hosts.values()):
            if host.id in emptied:
                self._empty(host, time)
            elif choice % 2 and host.up:
                self.crash_for(host, 1.0, time + _AWAY_ELECTIONS * host.raft.config.election_ticks * TICK)
        self.invariants.lose_quorum()
        self.lost_at = self.now

    def _wipe(self, hosts: list[SimulatedHost], time: int) -> None:
        for host in hosts:
            if not self.over and self._can_spare(host):
                self._empty(host, time)

    def _can_spare(self, host: SimulatedHost) -> bool:
        """Whether the shard promises that nothing is lost with this disk.

        Not while a change of the voters is on its way, or a copy is refused; nor that of a replica that was added and of
        which it is not committed yet where it lives.
        """
        newest, identity = self._newest, self.invariants.identity
        seen = self.invariants.seen.values()
        if host.id not in newest.everybody or any(other.directory.copied for other in self.hosts.values()):
            return False
        if newest.joint or any(each.changes and each.changes[-1] > newest.change_id for each in seen):
            return False
        if host.id not in self._first.everybody and not identity.is_settled(host.id):
            return False
        return not identity.forgets_too_much([host.id])

    def _empty(self, host: SimulatedHost, time: int) -> None:
        self.faults["emptied disk"] += 1
        identity = self.invariants.identity
        self._stop(host, 0.0)
        identity.emptying(host)
        host.directory = self.directories.make()
        host.empty_disk()
        identity.was_emptied(host)
        self.note("#", f"the disk of {host.id} is emptied, its home is {host.directory.home} now")
        self.after(time, self._restart, host, host.life)

    def restore(self, replica: int, gap: int, time: int) -> None:
        """Let a replica crash, start again, and find the disk that it had before the crash: then it is refused.

        It is put back `gap` units after the crash, if all others have heard of the newer run, and emptied `time` units
        later. Without that no host could tell the copy from the disk that it replaces.
        """
        host = self._host(replica)
        if host is None or not host.up or self.over or not self._can_spare(host) or host.directory.copied:
            return
        directory, put_back = host.directory, host.copy_disk()
        self.crash_for(host, 1.0, gap // 2)
        self.after(gap, self._put_back, host, directory, directory.runs, put_back, time)

    def _put_back(
        self, host: SimulatedHost, directory: Directory, runs: int, put_back: Callable[[], None], time: int
    ) -> None:
        others = [other for other in self.hosts.values() if other is not host]
        heard = all(other.directory.heard.get(directory.home, 0) > runs for other in others)
        if self.over or host.directory is not directory or not heard or not self._can_spare(host):
            return
        self.faults["restored copy"] += 1
        identity = self.invariants.identity
        self._stop(host, 0.0)
        identity.emptying(host)
        host.directory = Directory(directory.home, runs, copied=True, heard=dict(directory.heard))
        put_back()
        identity.was_emptied(host)
        self.note("#", f"an older copy of the disk of {host.id} is put back")
        self._start(host)
        self.after(time, self._give_up_copy, host, host.directory)

    def _give_up_copy(self, host: SimulatedHost, directory: Directory) -> None:
        """The operator empties what is refused, and the replica begins anew."""
        if host.directory is directory:
            self._empty(host, 1)

    def give_up_copies(self) -> None:
        """Empty all disks that are refused."""
        for host in self.hosts.values():
            if host.directory.copied:
                self._empty(host, 1)

    def swap(self, one: int, other: int, time: int) -> None:
        """Swap the directories of two hosts, for some time. A directory that names another address is refused at the start."""
        hosts = [host for host in (self._host(one), self._host(other)) if host is not None and host.up]
        if len(hosts) == 2 and hosts[0] is not hosts[1]:
            for host in hosts:
                self.invariants.happened["the directory of another host was refused"] += 1
                self.crash_for(host, 0.0, time)

    def clone(self, replica: int) -> None:
        """Start a second host with a copy of a directory: each peer asks the first one, which answers, so it is refused."""
        host = self._host(replica)
        if host is None or not self.is_awake(host):
            return
        for peer in self.hosts.values():
            if peer is not host and peer.up and self.is_reachable(peer.id, host.id):
                self.invariants.happened["a clone was refused"] += 1
