"""PySyncObj as the target of a load: the established Raft library in Python, tuned as well as it can be.

What it promises differs from what Drakkar promises, so the table says which journal was measured:

- As it ships, its journal is a file mapped into memory, and nothing makes the system write that to the disk: it
  outlives the process, but not the machine. There is no option for it.
- So a second variant flushes the journal (msync) before anything leaves the host, by a transport of the benchmark's
  own. Then what a host acknowledges, and what a leader counts, is durable, as it is in Drakkar, and all that came in
  one turn of its loop shares a flush. (Its file of term and vote is still not flushed.)

Neither system takes snapshots during a run. No election is measured on PySyncObj, so its hosts wait for a
leader for longer than any machine keeps one from running: by default 0.4 s are enough for another election, which
discards commands that are under way, and with them ends the run.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, replicated
from pysyncobj.transport import TCPTransport

from tests.benchmarks.load import Done

_PATIENCE: Final = {"raftMinTimeout": 3.0, "raftMaxTimeout": 6.0, "connectionTimeout": 6.0}
"""Seconds without a leader before an election, and without a word before a connection is given up."""


class _FlushingTransport(TCPTransport):
    """Sends nothing before the journal is on disk."""

    def send(self, node: Any, message: Any) -> Any:
        self._syncObj.flush_journal()
        return super().send(node, message)


class _CountingObject(SyncObj):
    """Counts its commands."""

    def __init__(self, address: str, partners: list[str], conf: SyncObjConf, transport: type) -> None:
        self._flushed = 0
        self._count = 0
        super().__init__(address, partners, conf, transportClass=transport)

    @replicated
    def apply(self, command: bytes) -> int:
        self._count += 1
        return self._count

    def flush_journal(self) -> None:
        """Make what was added to the journal durable."""
        journal = self._SyncObj__raftLog
        end = journal._FileJournal__currentOffset
        if end != self._flushed:
            journal.flush()
            self._flushed = end


class PySyncObjTarget:
    """One host of three. `flush` chooses the variant; the rest are options of `SyncObjConf`."""

    def __init__(
        self,
        replica_id: int,
        members: Mapping[int, str],
        data_dir: str,
        *,
        flush: bool = False,
        **options: Any,
    ) -> None:
        Path(data_dir).mkdir()
        never = 1 << 30
        conf = SyncObjConf(
            journalFile=str(Path(data_dir) / "journal"),
            logCompactionMinEntries=never,
            logCompactionMinTime=never,
            **_PATIENCE,
            **options,
        )
        partners = [address for replica, address in members.items() if replica != replica_id]
        transport = _FlushingTransport if flush else TCPTransport
        self._object = _CountingObject(members[replica_id], partners, conf, transport)

    def leads(self) -> bool:
        return bool(self._object._isLeader() and self._object.isReady())

    def propose(self, commands: Sequence[bytes], done: Done) -> None:
        """Propose one command; there is no way to propose several together."""
        (command,) = commands

        def answered(_result: object, reason: int) -> None:
            done(None if reason == FAIL_REASON.SUCCESS else RuntimeError(f"FAIL_REASON {reason}"))

        self._object.apply(command, callback=answered)

    def propose_and_wait(self, command: bytes) -> None:
        self._object.apply(command, sync=True, timeout=10)

    def stop(self) -> None:
        self._object.destroy_synchronous()
