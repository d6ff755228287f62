"""The commands of text scenarios: each does something to a `Cluster` and says what came of it.

Messages are told when they arrive or are lost; what they changed follows, indented: who became what, what was applied,
which reads may be served, which requests were dropped.
"""

import inspect

from drakkar.handlers import (
    Change,
    ChangeType,
    ConfigChange,
    ConfigError,
    Entry,
    HardState,
    Membership,
    MemoryLog,
    MessageType,
    Transition,
)
from drakkar.handlers.testing import Cluster
from drakkar.handlers.testing.printer import (
    print_entries,
    print_log,
    print_membership,
    print_message,
    print_progress,
    print_replica,
)

INDENT = "  "
OPTIONS = {"true": True, "false": False}
CHANGES = {
    "add": ChangeType.ADD_VOTER,
    "observe": ChangeType.ADD_OBSERVER,
    "witness": ChangeType.ADD_WITNESS,
    "remove": ChangeType.REMOVE,
}


class Mistake(Exception):
    """A command that makes no sense: the author's error, not the program's."""


def number(word):
    if not word.isdecimal():
        raise Mistake(f"{word!r} is no number")
    return int(word)


def numbers(word):
    return [number(part) for part in word.split(",")]


def option(word):
    """The value of a `RaftConfig`'s option."""
    return int(word) if word.lstrip("-").isdecimal() else OPTIONS.get(word, word)


class Which:
    """Messages in the network: `1->2`, `->2`, `1->` (all where it is missing), a type, and how many of them."""

    def __init__(self, words):
        self.sender = self.to = self.type = None
        self.count = None
        types = {str(type_): type_ for type_ in MessageType.known.values()}
        for word in words:
            if "->" in word:
                self.sender, self.to = (number(end) if end else None for end in word.split("->", 1))
            elif word in types:
                self.type = types[word]
            elif word.isdecimal():
                self.count = int(word)
            else:
                raise Mistake(f"{word!r} is neither a link such as 1->2, nor a message type, nor a count")

    def first(self, network):
        """The first of these messages that waits, or None."""
        return next((message for message in network if self._fits(message)), None)

    def _fits(self, message):
        return (
            self.sender in (None, message.sender)
            and self.to in (None, message.to)
            and self.type in (None, message.type)
        )


class Story:
    """One scenario as far as it was told."""

    def __init__(self):
        self._cluster = None
        self._told = {}

    def do(self, line):
        """Obey a command; returns the lines that it gives."""
        name, *words = line.split()
        command = getattr(self, f"do_{name}", None)
        if command is None:
            known = ", ".join(sorted(each[3:] for each in dir(self) if each.startswith("do_")))
            raise Mistake(f"there is no command {name!r}: there are {known}")
        options = dict(word.split("=", 1) for word in words if "=" in word)
        words = [word for word in words if "=" not in word]
        try:
            inspect.signature(command).bind(*words, **options)
        except TypeError as error:
            raise Mistake(f"{line!r}: {error}; {name}: {inspect.getdoc(command)}") from None
        if self._cluster is None and name != "nodes":
            raise Mistake(f"{name!r} comes before `nodes`, which makes the shard")
        return list(command(*words, **options))

    # -- the shard ------------------------------------------------------------------------------------------------

    def do_nodes(self, voters, *, observers="", witnesses="", leader="", **options):
        """nodes VOTERS [observers=4,5] [witnesses=6] [leader=1] [option=value ...]: a new shard; `RaftConfig`'s options.

        A leader has won its election, and all have applied its empty entry.
        """
        count = number(voters)
        membership = Membership(
            range(1, count + 1),
            numbers(observers) if observers else (),
            numbers(witnesses) if witnesses else (),
        )
        given = {name: option(value) for name, value in options.items()}
        try:
            self._cluster = Cluster(membership, auto_deliver=False, **given)
        except (ConfigError, TypeError) as error:
            raise Mistake(error) from None
        self._told.clear()
        if leader:
            self._cluster.elect(self._replica(leader))
            self._cluster.deliver()
            list(self._changes())
            yield from (print_replica(node.raft) for node in self._cluster.nodes.values())
        yield from self._changes()

    def do_disk(self, replica, *terms, term="", commit="0"):
        """disk REPLICA TERM ... [term=N] [commit=N]: let it start from a disk with entries of these terms.

        Its own term is that of the last entry, unless it is given.
        """
        id_ = self._replica(replica)
        entries = [Entry(term=number(each), payload=b"x") for each in terms]
        own = number(term) if term else max((entry.term for entry in entries), default=0)
        log = MemoryLog(entries, HardState(own, 0, number(commit)), self._cluster.membership)
        return self._start(id_, log)

    def do_add(self, replica):
        """add REPLICA: start a further replica with an empty disk."""
        return self._start(number(replica), None)

    def _start(self, replica, log):
        self._cluster.add(replica, log)
        self._told.pop(replica, None)
        return self._changes()

    def do_crash(self, *replicas):
        """crash REPLICA ...: stop them; what is not on their disks is lost."""
        for replica in replicas:
            self._cluster.crash(self._replica(replica))
        return ()

    def do_gone(self, replica, *told):
        """gone REPLICA [OTHER ...]: these, or all others that run, are told that its process is gone."""
        self._cluster.report_gone(self._replica(replica), *map(self._replica, told))
        return self._changes()

    def do_restart(self, *replicas):
        """restart REPLICA ...: start them again from their disks."""
        for replica in replicas:
            id_ = self._replica(replica)
            self._cluster.restart(id_)
            self._told.pop(id_, None)
        return self._changes()

    def do_compact(self, replica, index):
        """compact REPLICA INDEX: take a snapshot there and give up the log up to it."""
        self._cluster.compact(self._replica(replica), number(index))
        return self._changes()

    def do_notices(self):
        """notices: a millisecond passes, after which leaders tell of commits that no append has told of."""
        self._cluster.tell_commits()
        yield from self._changes()

    def do_fill(self, *replicas):
        """fill REPLICA ...: their disks have no room for entries any more."""
        for replica in replicas:
            self._cluster.fill_disk(self._replica(replica))
            yield from self._changes()

    def do_free(self, *replicas):
        """free REPLICA ...: their disks have room again."""
        for replica in replicas:
            self._cluster.free_disk(self._replica(replica))
            yield from self._changes()

    # -- requests ---------------------------------------------------------------------------------------------------

    def do_elect(self, replica):
        """elect REPLICA: let it campaign now; all leases are over."""
        self._cluster.elect(self._replica(replica))
        return self._changes()

    def do_propose(self, replica, *commands):
        """propose REPLICA COMMAND ...: propose these at a replica, as one batch."""
        self._cluster.propose(self._replica(replica), *(command.encode() for command in commands))
        return self._changes()

    def do_change(self, replica, *words, transition="auto", force="false"):
        """change REPLICA [add|observe|witness|remove ID] ... [transition=auto|implicit|explicit] [force=true]; none: leave."""
        verbs, ids = words[::2], words[1::2]
        if len(verbs) != len(ids) or not set(verbs) <= CHANGES.keys():
            raise Mistake(f"{' '.join(words)!r} is no list of changes such as `add 4 remove 2`")
        if transition.upper() not in Transition.__members__:
            raise Mistake(f"there is no transition {transition!r}: there are auto, implicit, explicit")
        changes = tuple(Change(CHANGES[verb], number(id_)) for verb, id_ in zip(verbs, ids, strict=True))
        change = ConfigChange(changes, Transition[transition.upper()], forced=bool(option(force)))
        self._cluster.change(self._replica(replica), change)
        return self._changes()

    def do_read(self, replica, context):
        """read REPLICA CONTEXT: ask for a linearizable read; the context is a number of its own."""
        self._cluster.read(self._replica(replica), number(context))
        return self._changes()

    def do_transfer(self, replica, target):
        """transfer REPLICA TARGET: ask a replica that another become leader."""
        self._cluster.transfer(self._replica(replica), number(target))
        return self._changes()

    # -- time and the network -----------------------------------------------------------------------------------------

    def do_tick(self, count="1", *replicas):
        """tick [COUNT [REPLICA ...]]: let time pass; messages wait in the network."""
        for _ in range(number(count)):
            self._cluster.tick(1, *map(self._replica, replicas))
            yield from self._changes()

    def do_run(self, count="1", *replicas):
        """run [COUNT [REPLICA ...]]: after each tick deliver all, and tell only what changed."""
        for _ in range(number(count)):
            yield from self.do_tick("1", *replicas)
            yield from self.do_settle()

    def do_settle(self):
        """settle: deliver until the network is quiet, and tell only what changed."""
        while self._cluster.network:
            self._cluster.deliver_one()
            yield from self._changes()
        self._cluster.check()

    def do_deliver(self, *words):
        """deliver [A->B] [TYPE] [COUNT]: deliver these messages, and those that come of them; all if none is named."""
        which = Which(words)
        while which.count != 0 and (message := which.first(self._cluster.network)):
            self._to_the_front(message)
            arrived = self._cluster.deliver_one()
            yield print_message(message) + ("" if arrived else " (lost)")
            yield from (INDENT + line for line in self._changes())
            which.count = which.count and which.count - 1
        self._cluster.check()

    def do_drop(self, *words):
        """drop [A->B] [TYPE] [COUNT]: lose these messages of those that wait."""
        which = Which(words)
        while which.count != 0 and (message := which.first(self._cluster.network)):
            self._to_the_front(message)
            self._cluster.drop_next(message.type)
            self._cluster.deliver_one()
            yield f"{print_message(message)} (lost)"
            which.count = which.count and which.count - 1

    def do_repeat(self, *words):
        """repeat [A->B] [TYPE]: the network holds the first such message once more, behind all others."""
        message = Which(words).first(self._cluster.network)
        if message is None:
            raise Mistake(f"no such message waits: {' '.join(words)}")
        self._cluster.network.append(message)
        return ()

    def _to_the_front(self, message):
        network = self._cluster.network
        at = next(place for place, each in enumerate(network) if each is message)
        del network[at]
        network.appendleft(message)

    def do_cut(self, one, other):
        """cut A B: no message passes between these two."""
        self._cluster.cut(self._replica(one), self._replica(other))
        return ()

    def do_isolate(self, *replicas):
        """isolate REPLICA ...: no message passes between these and all others."""
        self._cluster.isolate(*map(self._replica, replicas))
        return ()

    def do_heal(self):
        """heal: all messages pass again."""
        self._cluster.heal()
        return ()

    # -- what is to be seen -------------------------------------------------------------------------------------------

    def do_show(self, *replicas):
        """show [REPLICA ...]: what they are, and their logs."""
        for id_ in [self._replica(replica) for replica in replicas] or self._cluster.nodes:
            raft = self._cluster[id_]
            yield f"{print_replica(raft)} {print_log(raft)}" + (
                "" if self._cluster.nodes[id_].up else " (down)"
            )

    def do_progress(self, replica):
        """progress LEADER: the membership, and how far each peer is."""
        yield from print_progress(self._cluster[self._replica(replica)])

    def do_network(self):
        """network: the messages that wait."""
        yield from map(print_message, self._cluster.network)

    def _replica(self, word):
        id_ = number(word)
        if id_ not in self._cluster.nodes:
            raise Mistake(f"there is no replica {id_}: there are {', '.join(map(str, self._cluster.nodes))}")
        return id_

    def _changes(self):
        """What changed since it was last told, replica by replica."""
        for id_, node in self._cluster.nodes.items():
            told = self._told.setdefault(id_, Told())
            yield from (f"{id_} {change}" for change in told.news(node))


class Told:
    """What was told of a replica."""

    def __init__(self):
        self._standing, self._snapshot, self._applied = "", 0, 0

    def news(self, node):
        """What changed since, without the replica's number."""
        _, standing = print_replica(node.raft).split(" ", 1)
        if standing != self._standing:
            yield standing
            self._standing = standing
        snapshot = node.log.snapshot
        if snapshot.index != self._snapshot:
            yield f"has a snapshot of {snapshot.index}/{snapshot.term} with members {print_membership(snapshot.membership)}"
            self._snapshot = snapshot.index
        if applied := node.applied[self._applied :]:
            yield f"applies {print_entries(applied)}"
            self._applied = len(node.applied)
        for change in node.changes:
            yield (
                f"refuses the change: {change.rejected}"
                if change.rejected
                else f"has members {print_membership(change.membership)}"
            )
        for read in node.reads:
            yield f"may serve read {read.context[0]} at {read.index}"
        for dropped in node.dropped:
            lacks = f", lacks {' '.join(map(str, dropped.replicas))}" if dropped.replicas else ""
            yield f"drops a {dropped.type}: {dropped.because.name}{lacks}"
        for requests in (node.changes, node.reads, node.dropped):
            requests.clear()
