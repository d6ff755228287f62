"""A shard whose replicas live on hosts, with messages that can be held up, and directories that can be emptied."""

from random import Random

from drakkar.handlers import (
    Entry,
    Life,
    Lives,
    Meeting,
    Membership,
    MemoryLog,
    Message,
    Raft,
    RaftConfig,
    Standing,
    State,
)
from drakkar.handlers import MessageType as T
from drakkar.handlers.raft.confchange import initial_log

FOUNDING = b"f" * 16


def config(replica, **options):
    options = {"pre_vote": False, "check_quorum": False, **options}
    return RaftConfig(replica_id=replica, shard_id=7, **options)


class Host:
    """One replica of the shard: its disk, and its core while it is up."""

    def __init__(self, replica, home, log, *, handlers=None, **options):
        self.log, self.home = log, home
        options = config(replica, **options)
        self.raft = Raft(options, log, handlers=handlers, random=Random(replica), home=home)


class Shard:
    """Replicas that found a shard together, unless told otherwise. Nothing is delivered before `settle_down`."""

    def __init__(
        self, *members, observers=(), standing=Standing.NEWBORN, up=None, greetings=False, **options
    ):
        """Greetings of newborns are lost, unless told otherwise: it then takes a tick until one is settled."""
        self.greetings = greetings
        self.members, self.options = Membership(members, observers), options
        self.hosts: dict[int, Host] = {}
        self.wire: list[tuple[Life, Message]] = []
        self.apart: set[frozenset[int]] = set()
        self.met: dict[tuple[int, int], Meeting] = {}
        self.homes = 0
        for replica in members if up is None else up:
            self.start(replica, standing=standing)

    def first_log(self, standing=Standing.NEWBORN):
        state, run = initial_log(self.members)
        entries = [run.entry(1)]
        return MemoryLog(entries, state, self.members, lives=Lives(FOUNDING, standing))

    def start(self, replica, *, standing=Standing.NEWBORN, log=None, home=0, **options):
        """Start on a host of its own, with an empty directory unless a `log` is given."""
        self.homes += 1
        log = self.first_log(standing) if log is None else log
        self.hosts[replica] = Host(
            replica, home or 100 * replica + self.homes, log, **{**self.options, **options}
        )
        return self.raft(replica)

    def join(self, replica):
        """Start a replica that is to join: it knows no member, and of no founding."""
        return self.start(replica, log=MemoryLog(lives=Lives(standing=Standing.NEWBORN)))

    def restart(self, replica):
        host = self.hosts[replica]
        return self.start(replica, log=host.log, home=host.home)

    def wipe(self, replica):
        """Start anew with an empty directory. What was sent is still on its way."""
        return self.start(replica)

    def stop(self, replica):
        return self.hosts.pop(replica)

    def raft(self, replica):
        return self.hosts[replica].raft

    def cut(self, *pairs):
        self.apart |= {frozenset(pair) for pair in pairs}

    def isolate(self, replica):
        self.cut(*((replica, other) for other in range(1, 10) if other != replica))

    def heal(self):
        self.apart.clear()

    # -- work ------------------------------------------------------------------------------------------------------

    def work(self, replica):
        """Do what the core asks for, and put its messages on the wire."""
        host = self.hosts[replica]
        raft = host.raft
        while raft.has_ready:
            ready = raft.ready()
            host.log.save(ready)
            raft.persisted(ready)
            for message in [*ready.messages, *ready.messages_after_save]:
                self.wire.append((raft.life, message))
            if ready.snapshot is not None:
                raft.applied(ready.snapshot.index)
                raft.step(Message(T.SNAPSHOT_RECEIVED, sender=replica, snapshot=ready.snapshot))
            if ready.committed:
                raft.applied(ready.committed[-1].index)

    def deliver(self, life, message):
        """Hand one message over, unless its sender is refused."""
        raft = self.raft(message.to)
        if self._greets(message) and not self.greetings:
            return
        meeting = raft.meet(message.sender, life, message.term if message.type.traits.stamped else 0)
        self.met[message.sender, message.to] = meeting
        if raft.lets_in(meeting, message, life):
            raft.step(message, None if meeting is Meeting.WELCOME else life)

    def _greets(self, message):
        sender = self.hosts.get(message.sender)
        greeted = {} if sender is None else sender.raft.lives.greeted
        return message.type is T.HEARTBEAT and message.hint and message.hint == greeted.get(message.to)

    def settle_down(self, *, keep=(), lose=lambda _message: False):
        """Deliver until nothing is left; messages to the replicas `keep` stay on the wire, some are lost."""
        for _ in range(10_000):
            for replica in list(self.hosts):
                self.work(replica)
            due = [sent for sent in self.wire if sent[1].to not in keep]
            if not due:
                return
            self.wire = [sent for sent in self.wire if sent[1].to in keep]
            for life, message in due:
                open_ = frozenset((message.sender, message.to)) not in self.apart
                if open_ and message.to in self.hosts and not lose(message):
                    self.deliver(life, message)
        raise AssertionError("it never settles down")

    def tick(self, times=1, *replicas):
        for _ in range(times):
            for replica in replicas or list(self.hosts):
                self.raft(replica).tick()
            self.settle_down()

    def listen(self):
        """Let newborns wait as long as they do for founders that say nothing."""
        self.settle_down()
        for host in self.hosts.values():
            host.raft.timers.ticks += 2 * host.raft.config.election_ticks
        self.tick()

    def elect(self, replica):
        """Let a replica campaign; True if it leads now."""
        self.raft(replica).step(Message(T.ELECTION, sender=replica))
        self.settle_down()
        return self.raft(replica).state is State.LEADER

    def propose(self, replica, payload=b"x"):
        """Have a leader log a command; return its index."""
        raft = self.raft(replica)
        raft.step(Message(T.PROPOSE, sender=replica, entries=(Entry(payload=payload),)))
        self.settle_down()
        return raft.log.last_index

    # -- what is seen ----------------------------------------------------------------------------------------------

    def standings(self):
        return "".join(self.raft(replica).life.standing.name[0] for replica in sorted(self.hosts))

    def leader(self):
        leaders = [r for r, host in self.hosts.items() if host.raft.state is State.LEADER]
        return leaders[0] if len(leaders) == 1 else leaders or None

    def holds(self, replica, payload):
        log = self.raft(replica).log
        return payload in [e.payload for e in log.entries(log.first_index, log.last_index + 1)]


def founded(*members, leader=1, **options):
    """A shard that was founded, and is led by `leader`; all replicas have settled."""
    shard = Shard(*members, **options)
    shard.settle_down()
    assert shard.elect(leader)
    shard.tick(3)
    assert set(shard.standings()) == {"S"}
    return shard
