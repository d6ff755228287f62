"""Small tools of the host tests: waiting with a limit, state machines with a handle, three hosts on loopback."""

import random
import threading
import time
from unittest import mock

import pykka
from drakkar.actors.host.host import NodeHost
from drakkar.actors.host.options import IN_MEMORY
from drakkar.actors.machine.state_machine import StateMachine
from drakkar.handlers.errors import DrakkarError, OutcomeUnknown, SystemBusy
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import founding
from drakkar.handlers.raft.lives import Standing
from drakkar.handlers.raft.state import State

from tests.ports import free_addresses

TIMEOUT_S = 20.0
"""Seconds after which a test is stuck."""

TICK = 0.02
"""Seconds a tick in most tests: an election takes 0.2 to 0.4 s then."""


def until(condition, timeout=TIMEOUT_S):
    """Poll until a condition holds that no event reports, and return its value."""
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        pause.wait(0.005)
    return value


def settled(future, timeout=TIMEOUT_S):
    """Wait for an outcome: the value, or the exception."""
    try:
        return future.get(timeout=timeout)
    except pykka.Timeout:
        raise
    except Exception as error:  # noqa: BLE001  # it is the outcome
        return error


def unless_busy(ask, timeout=TIMEOUT_S):
    """Ask until the host takes the request, as its disk may be slow for a while, and return the value."""
    future = until(lambda: None if isinstance(settled(it := ask(), timeout), SystemBusy) else it, timeout)
    return future.get(timeout=timeout)


def hand_over(replica, target):
    """Ask a replica to have `target` lead, until it does: on a busy machine another one may be elected instead."""

    def asked():
        outcome = settled(replica.transfer_leadership(target, timeout=2.0))
        assert outcome == target or isinstance(outcome, DrakkarError)
        return outcome == target

    until(asked)
    return target


class Ledger(StateMachine):
    """Remembers all commands, in order; answers each by its number. The query None asks for all, a number for one."""

    def __init__(self):
        self.commands = []

    def apply(self, command):
        self.commands.append(command)
        return len(self.commands)

    def query(self, query):
        return list(self.commands) if query is None else self.commands[query]

    def save(self, sink):
        raise NotImplementedError

    def load(self, source):
        raise NotImplementedError


class InlineLedger(Ledger):
    """As `Ledger`, on the loop."""

    blocks = False


class Gated(Ledger):
    """As `Ledger`, but waits at a gate where it is told to; made by a test, which keeps the handle."""

    def __init__(self, *, apply_waits=False, query_waits=False):
        super().__init__()
        self.apply_waits, self.query_waits = apply_waits, query_waits
        self.arrived = threading.Event()
        self.gate = threading.Event()

    def _wait(self):
        self.arrived.set()
        assert self.gate.wait(TIMEOUT_S)

    def apply(self, command):
        if self.apply_waits:
            self._wait()
        return super().apply(command)

    def query(self, query):
        if self.query_waits:
            self._wait()
        return super().query(query)


class Failing(Ledger):
    """Fails where it is told to, with what it is told to."""

    def __init__(self, where, error):
        super().__init__()
        self.where, self.error = where, error

    def apply(self, command):
        if self.where == "apply" and command == b"fail":
            raise self.error
        return super().apply(command)

    def query(self, query):
        if self.where == "query":
            raise self.error
        return super().query(query)


class InlineFailing(Failing):
    """As `Failing`, on the loop."""

    blocks = False


class Notices(pykka.ThreadingActor):
    """Keeps what it is told, for a test to look at."""

    def __init__(self):
        super().__init__()
        self.events = []
        self._changed = threading.Condition()

    def on_receive(self, message):
        with self._changed:
            self.events.append(message)
            self._changed.notify_all()

    def wait_for(self, wanted, timeout=TIMEOUT_S):
        """Return the first event for which `wanted(event)` holds. From the test's thread."""
        with self._changed:
            found = self._changed.wait_for(lambda: [each for each in self.events if wanted(each)], timeout)
        assert found, f"it did not come; what came: {self.events}"
        return found[0]


def kept(ref):
    """The `Notices` behind a ref, whose methods the test may call."""
    return ref._actor_weakref()


class Hosts:
    """Hosts on loopback that know of each other; a context manager that stops them."""

    def __init__(self, count=3, *, data=None, tick_interval=TICK, **options):
        self.addresses = free_addresses(count)
        self.data = data
        self.options = {"tick_interval": tick_interval, **options}
        self.hosts = {}
        self.replicas = {}

    @property
    def members(self):
        return dict(enumerate(self.addresses, start=1))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for number in list(self.hosts):
            self.stop(number)

    def __getitem__(self, number):
        return self.replicas[number]

    def start(self, number, **options):
        data = IN_MEMORY if self.data is None else self.data / str(number)
        host = NodeHost(self.addresses[number - 1], data, **{**self.options, **options})
        self.hosts[number] = host
        return host

    def stop(self, number):
        self.replicas.pop(number, None)
        self.hosts.pop(number).stop()

    def run(self, machine=Ledger, *, shard_id=1, numbers=None, **options):
        """Start a replica of a shard on every host, or on some, and return them by number."""
        started = {}
        for number in numbers or self.members:
            if number not in self.hosts:
                self.start(number)
            started[number] = self.hosts[number].start_replica(
                machine, shard_id=shard_id, replica_id=number, members=self.members, **options
            )
        self.replicas.update(started)
        return started

    def leader(self, replicas=None):
        """Wait until a replica leads that most others follow, and return its number.

        The log says of the voters among them where they live: before, one may be unable to vote, and entries will follow.
        """
        replicas = self.replicas if replicas is None else replicas
        again = 0.0

        def led():
            nonlocal again
            known = [replica.status() for replica in replicas.values()]
            if time.monotonic() > again and begin_first_election(replicas.values(), known):
                again = time.monotonic() + 0.2
            for status in known:
                followers = [
                    one for one in known if (one.leader_id, one.term) == (status.replica_id, status.term)
                ]
                unsettled = [
                    one
                    for one in known
                    if one.standing < Standing.SETTLED and one.replica_id in status.voters
                ]
                if unsettled:
                    continue
                if 2 * len(followers) > len(status.voters) and status.replica_id in replicas:
                    return status.replica_id
            return None

        return until(led)

    def others(self, number):
        return [other for other in sorted(self.replicas) if other != number]


def founded_by_a_majority():
    """Within it, a shard of which a minority of the founders has not started waits for none of these."""
    return mock.patch.object(founding, "_LISTEN_TIMEOUTS", 0)


def begin_first_election(replicas, known):
    """Have one replica of a shard that had no election yet campaign, so that a test waits for no election timeout."""
    if any(status.term > 1 or status.leader_id for status in known):
        return False
    voters = [
        replica
        for replica, status in zip(replicas, known, strict=True)
        if status.replica_id in status.voters
        and status.standing is not Standing.NEWBORN
        and status.state is State.FOLLOWER
    ]
    if voters:
        one = random.choice(voters)
        one.ref.tell(Message(MessageType.ELECTION, sender=one.replica_id))
    return bool(voters)


def commit(replica, command, timeout=TIMEOUT_S):
    """Propose until it is committed. Only for commands that may be applied twice, where an outcome is unknown."""
    deadline = time.monotonic() + timeout
    while True:
        outcome = settled(replica.propose(command, timeout=2.0))
        if not isinstance(outcome, DrakkarError):
            return outcome
        assert time.monotonic() < deadline, outcome
        assert outcome.outcome_known or isinstance(outcome, OutcomeUnknown), outcome


def contents(replica, timeout=TIMEOUT_S):
    """Read all commands of a ledger, until the read succeeds."""

    def read():
        outcome = settled(replica.read(None, timeout=2.0))
        return None if isinstance(outcome, DrakkarError) else (outcome,)

    return until(read, timeout)[0]
