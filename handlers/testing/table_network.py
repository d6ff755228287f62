"""Nodes without Raft in memory, and the network between them: peers come and go as those of table actors do.

node.ready() ─► a link, in the order of sending ─► arrives once, or is lost ─► the receiver's step
a tick of a node ─► what it knows of a peer has been wrong for long enough ─► PEER_UP or PEER_DOWN
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from random import Random
from typing import Any, TypeAlias, cast

from drakkar.handlers.errors import ConfigError
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.table import HandlerTable
from drakkar.handlers.table_node import NodeReady, TableNode
from drakkar.handlers.testing.effects import SeenEffects
from drakkar.handlers.testing.extension_checks import check_extensions
from drakkar.handlers.testing.links import arrived

__all__ = ["Member", "Peers", "TableNetwork", "Tables"]

Tables: TypeAlias = "HandlerTable | Mapping[str, HandlerTable]"
"""The table of all nodes, or those of each by name."""
Peers: TypeAlias = "Mapping[str, Iterable[str]] | None"
"""Who knows whom, by name. None: all know one another."""


class Known:
    """What a node knows of a peer."""

    __slots__ = ("due", "found", "gone", "ticks")

    def __init__(self) -> None:
        self.found = 0
        """The life of the peer that it has found; 0: none. Then messages wait, unless the peer is gone."""
        self.gone = False
        """It was told that the peer is down, and not yet that it is up again. Messages are dropped."""
        self.ticks = 0
        """Ticks of the node since what it knows is wrong."""
        self.due = 0
        """Ticks after which it is told."""


class Member(SeenEffects):
    """One node, over all its lives: `tells`, `events` and `answers` are what its handlers have asked for."""

    def __init__(self, name: str, make: Callable[[], TableNode]) -> None:
        super().__init__()
        self.name = name
        self._make = make
        self.life = 0
        self.start()

    def start(self) -> None:
        """Begin a life, in the first state, with extensions that are made anew."""
        self.life += 1
        self.node = self._make()
        self.up, self.paused = True, False
        self.known = {peer: Known() for peer in self.node.peers}

    @property
    def runs(self) -> bool:
        """Whether it is up, and not paused."""
        return self.up and not self.paused


class TableNetwork:
    """Nodes, their links, and what they know of their peers. Nothing happens but by these methods."""

    def __init__(
        self, names: Iterable[str], handlers: Tables, state: Any, *, peers: Peers = None, seed: int = 0
    ) -> None:
        """See `TableCluster`. The nodes look for their peers."""
        self.random = Random(seed)
        self.lost: list[Message] = []
        """Messages that did not arrive, newest last."""
        self.seen: list[Message] = []
        """All messages of peers that have arrived, newest last."""
        self._numbers = count()
        self._links: dict[tuple[str, str], deque[tuple[int, int, Message]]] = {}
        """What is in transit: its number in the order of sending; the life of the receiver for which it is, 0 as long as that is
        not found; and the message."""
        self._cut: set[tuple[str, str]] = set()
        self._dropping: Counter[MessageType] = Counter()
        self._loss = self._reordering = 0.0
        self.nodes: dict[str, Member] = {}
        every = tuple(names)
        for name in every:
            known = every if peers is None else tuple(peers.get(name, ()))
            _check_peers(name, known, every)
            self.nodes[name] = _member(name, handlers, state, [peer for peer in known if peer != name])

    def __getitem__(self, name: str) -> TableNode:
        """Return the node of this name; of one that is down, the one that it was."""
        return self.nodes[name].node

    # -- nodes --------------------------------------------------------------------------------------------------

    def crash(self, name: str) -> None:
        """Stop a node. Its state is lost, and so is what is on its way there, or waits for a peer that it has not found."""
        self.nodes[name].up = False
        for link in [link for link in self._links if link[0] == name]:
            self._links[link] = deque(sent for sent in self._links[link] if sent[1])

    def restart(self, name: str) -> None:
        """Start a node again, in its first state. It finds its peers anew: until then what it sends waits."""
        self.crash(name)
        self.nodes[name].start()

    def pause(self, name: str) -> None:
        """Let a node stand still, as if its process were stopped: messages wait for it, and its peers think that it is gone."""
        self.nodes[name].paused = True

    def resume(self, name: str) -> None:
        """Let a paused node go on."""
        self.nodes[name].paused = False

    # -- links --------------------------------------------------------------------------------------------------

    @property
    def network(self) -> list[Message]:
        """What is in transit, in the order of sending."""
        waiting = (sent for link in self._links.values() for sent in link)
        return [message for _, _, message in sorted(waiting, key=lambda sent: sent[0])]

    def cut(self, one: str, other: str) -> None:
        """Cut the link between two nodes, in both directions."""
        self._cut |= {(one, other), (other, one)}

    def cut_one_way(self, sender: str, receiver: str) -> None:
        """Lose what one node sends to another. Both will think that the other is gone."""
        self._cut.add((sender, receiver))

    def isolate(self, *names: str) -> None:
        """Cut the links between these nodes and all others."""
        for one in names:
            for other in self.nodes:
                if other not in names:
                    self.cut(one, other)

    def heal(self) -> None:
        """Repair all links. No message is lost or overtaken any more."""
        self._cut.clear()
        self._dropping.clear()
        self.faults()

    def drop_next(self, type_: MessageType, messages: int = 1) -> None:
        """Lose so many messages of a type."""
        self._dropping[type_] += messages

    def faults(self, *, loss: float = 0.0, reordering: float = 0.0) -> None:
        """Set the probabilities that a message is lost, and that one of another link overtakes it."""
        self._loss, self._reordering = loss, reordering

    def deliver_one(self) -> bool:
        """Deliver or lose the next message; return whether it arrived. False also if none is in transit."""
        self._collect()
        links = self._deliverable()
        return bool(links) and self._deliver(self._choose(links))

    def _deliverable(self) -> list[tuple[str, str]]:
        """The links whose first message can arrive, or be lost, now: its peer was found, and is not paused."""
        return [
            (sender, receiver)
            for (sender, receiver), link in self._links.items()
            if link and link[0][1] and not self.nodes[receiver].paused
        ]

    def _choose(self, links: list[tuple[str, str]]) -> tuple[str, str]:
        if self._reordering and self.random.random() < self._reordering:
            return self.random.choice(links)
        return min(links, key=lambda link: self._links[link][0][0])

    def _deliver(self, link: tuple[str, str]) -> bool:
        _, life, message = self._links[link].popleft()
        receiver = self.nodes[link[1]]
        there = receiver.up and receiver.life == life and link[0] in receiver.known
        if not there or self._is_lost(link, message):
            self._lose(message)
            return False
        self.seen.append(message)
        self._step(receiver, arrived(message))
        return True

    def _is_lost(self, link: tuple[str, str], message: Message) -> bool:
        if self._dropping[message.type] > 0:
            self._dropping[message.type] -= 1
            return True
        return link in self._cut or bool(self._loss and self.random.random() < self._loss)

    def _lose(self, message: Message) -> None:
        self.lost.append(message)

    # -- steps ----------------------------------------------------------------------------------------------------

    def _step(self, member: Member, message: Message) -> None:
        """Let a node answer a message."""
        member.node.step(message)
        self._stepped(member)

    def _tick(self, member: Member) -> None:
        """Let a tick of a node pass. It is told what has become of its peers then."""
        member.node.tick()
        self._stepped(member)
        self._look_for_peers(member)

    def _stepped(self, member: Member) -> None:
        """A node has taken a step: check its extensions, and take what it hands out."""
        check_extensions(member.node)
        self._take_from(member)

    def _collect(self) -> None:
        for member in self.nodes.values():
            if member.runs:
                self._take_from(member)

    def _take_from(self, member: Member) -> None:
        if not member.node.has_ready:
            return
        ready = member.node.ready()
        for message in ready.messages:
            self._send(member, cast("Any", message.to), message)
        self._handed_out(member, ready)

    def _send(self, member: Member, peer: str, message: Message) -> None:
        known = member.known[peer]
        if known.gone:
            self._lose(message)
        else:
            link = self._links.setdefault((member.name, peer), deque())
            link.append((next(self._numbers), known.found, message))

    def _handed_out(self, member: Member, ready: NodeReady) -> None:
        member.note(ready)

    # -- peers ----------------------------------------------------------------------------------------------------

    def _look_for_peers(self, member: Member) -> None:
        for peer, known in member.known.items():
            there = self._is_there(member.name, peer)
            right = there and known.found == self.nodes[peer].life
            if right or (known.gone and not there):
                known.ticks = 0
                continue
            up = there and not known.found
            if not known.ticks:
                known.due = self._news_after(up=up)
            known.ticks += 1
            if known.ticks >= known.due:
                (self._tell_up if up else self._tell_down)(member, peer)

    def _is_there(self, name: str, peer: str) -> bool:
        return self.nodes[peer].runs and self._cut.isdisjoint({(name, peer), (peer, name)})

    def _news_after(self, *, up: bool) -> int:
        """How many ticks later a node is told that a peer is up, or down."""
        raise NotImplementedError

    def _tell_up(self, member: Member, peer: str) -> None:
        life = self.nodes[peer].life
        known = member.known[peer]
        known.found, known.gone, known.ticks = life, False, 0
        link = self._links.get((member.name, peer), ())
        self._links[member.name, peer] = deque((number, to or life, message) for number, to, message in link)
        self._step(member, _news(MessageType.PEER_UP, member.name, peer, "found"))

    def _tell_down(self, member: Member, peer: str) -> None:
        known = member.known[peer]
        known.found, known.gone, known.ticks = 0, True, 0
        for _, _, message in self._links.pop((member.name, peer), ()):
            self._lose(message)
        why = "out of reach" if self.nodes[peer].up else "it was stopped"
        self._step(member, _news(MessageType.PEER_DOWN, member.name, peer, why))


def _member(name: str, handlers: Tables, state: Any, peers: list[str]) -> Member:
    table = handlers if isinstance(handlers, HandlerTable) else handlers[name]
    first = state[name] if isinstance(state, Mapping) else state
    return Member(name, lambda: TableNode(name, table.copy(), first, peers))


def _check_peers(name: str, peers: Iterable[str], names: Iterable[str]) -> None:
    for peer in peers:
        if peer not in names:
            raise ConfigError(f"peers[{name!r}]", peer, f"must be a node of this cluster: {', '.join(names)}")


def _news(type_: MessageType, name: str, peer: str, why: str) -> Message:
    return Message(type_, to=cast("Any", name), sender=cast("Any", peer), payload=why)
