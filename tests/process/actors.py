"""Three hosts with published actors, each a process of its own, and the judge of what their callers were told."""

import itertools
import random
from contextlib import ExitStack, contextmanager

from tests.actors.support import until
from tests.ports import free_addresses
from tests.process.behind import ONE_HEAP
from tests.process.proxy import Proxies
from tests.process.support import Cluster, HostProcess

HOME, OTHER, THIRD = HOSTS = (1, 2, 3)
"""Where the actors are that are called, mostly, and who calls them."""
LONG_S = 120.0
"""Seconds after which an order is stuck."""
SOON_S = 4.0
"""Seconds for what happens at once, on a machine that does other things too. Attempts to connect are two seconds apart at most."""
TICK_S = 0.2
"""A host is dead that has not answered for ten of these: so long none is kept waiting by what else the machine does."""
SILENT_S = 20.0
"""Seconds within which a connection is given up on which nothing comes: twice as many as that takes."""
_numbers = itertools.count(1)


class Actors(Cluster):
    """Hosts with published actors."""

    def do(self, number, do, **order):
        """Give an order, and return what came of it. Raises `AssertionError` for an error."""
        answer = self.hosts[number].ask(do, answer_timeout=LONG_S, **order)
        assert "value" in answer, f"host {number}: {do} {order}: {answer}\n{self.hosts[number].log()}"
        return answer["value"]

    def error(self, number, do, **order):
        """Give an order that must fail; return the name of the error, and its text."""
        answer = self.hosts[number].ask(do, answer_timeout=LONG_S, **order)
        assert "error" in answer, f"host {number}: {do} {order}: {answer}"
        return answer["error"], answer["text"]

    def address(self, number):
        return self.hosts[number].address

    def publish(self, kind="thread", *, at=HOME, callers=(OTHER,), **options):
        """Start and publish an actor under a new name, and have others find it; return the name."""
        name = f"{kind} {next(_numbers)}"
        self.do(at, "publish", name=name, kind=kind, **options)
        for caller in callers:
            self.do(caller, "find", address=self.address(at), name=name)
        return name

    def ask(self, caller, name, method, *arguments, **options):
        return self.do(caller, "ask", name=name, method=method, arguments=list(arguments), **options)

    def ask_fails(self, caller, name, method, *arguments, **options):
        return self.error(caller, "ask", name=name, method=method, arguments=list(arguments), **options)

    def hang(self, caller, name, count, within=LONG_S):
        """Have so many questions without an answer."""
        self.do(caller, "forget_asked")
        assert self.do(caller, "ask_many", name=name, method="hang", count=count, within=within) == 0

    def outcomes(self, caller):
        return self.do(caller, "asked")

    def until_told(self, caller, **wanted):
        """Wait until all that a caller asked has come to this."""
        seen = {}

        def told():
            seen.clear()
            seen.update(self.outcomes(caller))
            return seen == wanted

        try:
            until(told)
        except AssertionError:
            raise AssertionError(
                f"host {caller} was to be told {wanted}, and was told {seen}\n{self.hosts[caller].log()}"
            ) from None

    def seen(self, at, name):
        return self.do(at, "seen", name=name)

    def held(self, number, what):
        return self.do(number, "held")[what]

    def until_held(self, number, timeout=SILENT_S, **wanted):
        """Wait until a host holds so much, and no more or less."""
        seen = {}

        def holds():
            seen.update(self.do(number, "held"))
            return all(seen[what] == count for what, count in wanted.items())

        try:
            until(holds, timeout)
        except AssertionError:
            raise AssertionError(f"host {number} was to hold {wanted}, and holds {seen}") from None

    def notices(self, caller, count, timeout=SOON_S):
        """Wait until so many notices came; return what they say."""
        until(lambda: self.do(caller, "notices")["count"] >= count, timeout)
        return self.do(caller, "notices")


def three_hosts(directory, *, within=lambda _: (), members=None, tick=TICK_S, **settings):
    directory.mkdir(exist_ok=True)
    members = members or dict(zip(HOSTS, free_addresses(3), strict=True))
    return Actors(
        HostProcess(
            number,
            members,
            directory,
            within=within(number),
            program="tests.process.actors_host",
            environment=ONE_HEAP,
            tick=tick,
            **settings,
        )
        for number in HOSTS
    )


@contextmanager
def behind_proxies(directory, seed=1):
    """Hosts that reach one another through proxies, and those."""
    addresses = free_addresses(6)
    fronts, backs = (dict(zip(HOSTS, half, strict=True)) for half in (addresses[:3], addresses[3:]))
    routes = {number: (fronts[number], backs[number]) for number in HOSTS}
    with ExitStack() as stack:
        proxies = stack.enter_context(Proxies(routes, random.Random(seed)))
        hosts = Actors(
            HostProcess(
                number,
                fronts,
                directory,
                program="tests.process.actors_host",
                environment=ONE_HEAP,
                listen=backs[number],
                tick=TICK_S,
            )
            for number in HOSTS
        )
        yield stack.enter_context(hosts), proxies


def how_many(seen):
    """How many numbers came."""
    return sum(len(each["numbers"]) for each in seen.values())


def judge(sent, seen):
    """Each number came once at most, in order; what was answered had its effect, and what surely had none has none."""
    for sender, outcomes in sent.items():
        came = seen.get(sender, {"numbers": [], "twice": 0, "late": 0})
        assert (came["twice"], came["late"]) == (0, 0), (
            f"{sender}: {came['twice']} came twice, {came['late']} late"
        )
        there = set(came["numbers"])
        for number, outcome in outcomes.items():
            if outcome == "answered":
                assert int(number) in there, f"{number} of {sender} was answered, and never came"
            if outcome in {"gone", "busy", "dead"}:
                assert int(number) not in there, (
                    f"{number} of {sender} had surely no effect ({outcome}), and has one"
                )
        assert there <= set(map(int, outcomes)), f"{sender} never said some of these"
