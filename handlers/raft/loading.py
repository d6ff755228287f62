"""Entries that the host must read from its disk first (raft-rs: "the log is temporarily unavailable").

The core reads older entries on the loop, which must not wait for a disk. So `Storage.runs` may raise `EntriesNotLoaded`,
and the host reads them elsewhere. Until it says ENTRIES_LOADED, all that needs them waits, and nothing else does:

    a peer          is sent no entries; its progress stays as it is
    the next ones   to be applied are not handed out
    a log query     is not answered
    a voter         does not campaign while it does not know whether a membership change waits to be applied
    a witness       is told nothing while its leader does not know which voters stay

Then each asks again, in the order in which they began to wait. What was read may be gone by then, or is for another: then
the rest waits on. The last two ask anew with the next tick or heartbeat. Terms never have to be read.
"""

from drakkar.handlers.messages import Message
from drakkar.handlers.raft import query, sending
from drakkar.handlers.raft.core import RaftCore

__all__ = ["go_on", "go_on_as_leader"]


def go_on(raft: RaftCore, _event: Message) -> None:
    """Let `ready` hand out entries to apply, and answer a query, if that waited."""
    raft.log.loaded()
    query.answer_waiting_query(raft)


def go_on_as_leader(raft: RaftCore, event: Message) -> None:
    """A leader also sends the peers that waited what they lack."""
    go_on(raft, event)
    waiting, raft.awaiting_load = raft.awaiting_load, {}
    for replica in waiting:
        sending.fill_window(raft, replica)
