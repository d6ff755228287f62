"""Invariants of a leader: its view of the peers, what it sends them, and transfers."""

from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.progress import Progress, ProgressState
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.ready import Refusal
from drakkar.handlers.raft.state import State
from drakkar.handlers.testing.history import History, LastSeen, Violation

__all__ = ["check_flow", "check_heartbeat", "check_leader", "check_refusal"]


def check_leader(history: History, raft: Raft, seen: LastSeen) -> None:
    """A leader only appends to its log, and its view of each peer is right."""
    if raft.log.last_index < seen.last and seen.state is State.LEADER and raft.term == seen.term:
        raise Violation("INV2 a leader only appends", f"{raft!r} had {seen.last} entries")
    for replica, peer in raft.progress.items():
        known = seen.peers.get(replica)
        now = (peer.match, peer.next, peer.state)
        if now != known or peer.inflight:
            _check_peer(history, raft, replica, peer, known, seen)
            seen.peers[replica] = now
    _check_transfer(history, raft, seen)


def _check_peer(
    history: History,
    raft: Raft,
    replica: int,
    peer: Progress,
    known: tuple[int, int, ProgressState] | None,
    seen: LastSeen,
) -> None:
    last = raft.log.last_index
    met = raft.lives.met.get(replica)
    home = met.home if met is not None else 0
    if home != seen.peer_homes.get(replica, 0):
        seen.peer_homes[replica], known = home, None
    if not peer.match < peer.next <= last + 1:
        raise Violation("INV12 match < next <= last + 1", f"{raft!r} of {replica}: {peer}")
    if known is not None:
        if peer.match < known[0]:
            raise Violation("INV12 match never falls", f"{raft!r} of {replica}: {peer}, was {known[0]}")
        if known[2] is not peer.state:
            history.happened[f"progress went from {known[2].name} to {peer.state.name}"] += 1
    follows = peer.match >= raft.log.first_index and not history.has_left(replica, raft.term)
    holding = history.homes_that_hold(replica, peer.match, raft.log.term(peer.match))
    if follows and not any(home in (0, where) for where in holding):
        raise Violation("INV12 match is durable at the peer", f"{raft!r} of {replica}: {peer}")
    if peer.state is not ProgressState.REPLICATE and peer.inflight:
        raise Violation("INV13 only REPLICATE sends ahead", f"{raft!r} of {replica}: {peer}")
    if len(peer.inflight) > raft.config.max_inflight_messages:
        raise Violation("INV13 the window is bounded", f"{raft!r} of {replica}: {peer}")
    if (peer.pending_snapshot > 0) is not (peer.state is ProgressState.SNAPSHOT):
        raise Violation("INV13 a snapshot is pending in SNAPSHOT", f"{raft!r} of {replica}: {peer}")
    window = peer.inflight.indexes
    if window and (window[0] <= peer.match or sorted(set(window)) != list(window)):
        raise Violation("INV13 the window rises above match", f"{raft!r} of {replica}: {window}, {peer}")


def check_flow(raft: Raft, message: Message, seen: LastSeen) -> None:
    """A leader sends entries or a snapshot only within the limits of flow control."""
    known = seen.peers.get(message.to)  # its last view of the peer
    peer, max_bytes = raft.progress.get(message.to), raft.config.max_inflight_bytes or 0
    if peer is None:
        return  # it was removed, and this message says so
    if message.type is MessageType.INSTALL_SNAPSHOT:
        if known is not None and known[0] == peer.match and known[2] is ProgressState.SNAPSHOT:
            raise Violation("INV13 a snapshot travels alone", f"{raft!r} sends {message}: {peer}")
    elif peer.state is ProgressState.SNAPSHOT:
        raise Violation("INV13 a snapshot travels alone", f"{raft!r} sends {message}: {peer}")
    if message.entries and peer.state is ProgressState.PROBE and peer.probe_sent:
        raise Violation("INV13 one probe at a time", f"{raft!r} sends {message}: {peer}")
    if peer.full and message.type is MessageType.REPLICATE:  # a snapshot that it asks for may come at once
        before, last = seen.probed.get(message.to, (-raft.config.election_ticks,) * 2)
        seen.probed[message.to] = last, raft.timers.ticks
        # Where it waits for its lane one may go late, and the next one in time; but not a third one.
        since = last if raft.lanes is None else before
        if raft.timers.ticks - since < raft.config.election_ticks:
            raise Violation("INV13 a peer without room is probed slowly", f"{raft!r} sends {message}: {peer}")
    if message.entries and 0 < max_bytes <= peer.inflight.bytes:
        raise Violation("INV13 the window is bounded", f"{raft!r} sends {message}: {peer}")


def _check_transfer(history: History, raft: Raft, seen: LastSeen) -> None:
    target = raft.transfer.target
    if target and target == seen.transfer:
        if raft.log.last_index != seen.last:
            raise Violation("INV28 a transfer stops proposals", f"{raft!r} transfers to {target}")
        if raft.timers.ticks - seen.transfer_since > raft.config.election_ticks + 1:
            raise Violation("INV28 a transfer ends in time", f"{raft!r} transfers to {target}")
    elif target:
        history.happened["a transfer began"] += 1
        if not raft.transfer.askers:
            history.happened["a leader without room handed over"] += 1
            if raft.progress[target].full:
                raise Violation("INV28 a successor has room", f"{raft!r} hands over to {target}")
        seen.transfer_since = raft.timers.ticks
    elif seen.transfer:
        history.happened["a transfer was given up"] += 1
    seen.transfer = target


def check_refusal(raft: Raft, because: Refusal) -> None:
    """A proposal is refused because of a transfer only if there is one."""
    if because is Refusal.TRANSFERRING and not raft.transfer.target:
        raise Violation("INV28 only a transfer stops proposals", repr(raft))


def check_heartbeat(raft: Raft, message: Message) -> None:
    """The commit index in a heartbeat is at most what the peer is known to hold when it is made.

    It may wait for a write, and the peer begin another life meanwhile. Its receiver commits no more than what it knows to be
    its leader's (`Heard.matched`).
    """
    peer = raft.progress.get(message.to)
    if peer is not None and message.commit > peer.match:
        raise Violation("INV6 a heartbeat commits only what matches", f"{message}: {peer}")
