"""Actors of three real processes that call each other, while hosts are killed, stopped, paused and cut off.

The quick tests share three hosts; each has actors of its own. What is counted holds on every machine; seconds are bounded
generously.
"""

import itertools
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from tests.actors.support import until
from tests.ports import free_addresses
from tests.process import namespaces
from tests.process.behind import ONE_HEAP, certificates
from tests.process.calls_messages import KINDS
from tests.process.proxy import Proxies
from tests.process.support import Cluster, HostProcess

pytestmark = pytest.mark.xdist_group("actors")

HOME, OTHER, THIRD = HOSTS = (1, 2, 3)
"""Where the actors are that are called, mostly, and who calls them."""
LONG_S = 120.0
"""Seconds after which an order is stuck."""
SOON_S = 4.0
"""Seconds for what happens at once, on a machine that does other things too. Attempts to connect are two seconds apart at most."""
SILENT_S = 20.0
"""Seconds within which a connection is given up on which nothing comes: twice as many as that takes."""
MIB = 1 << 20
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


def three_hosts(directory, *, within=lambda _: (), members=None, **settings):
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
            **settings,
        )
        for number in HOSTS
    )


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with three_hosts(tmp_path_factory.mktemp("actors")) as hosts:
        yield hosts


@pytest.fixture
def hosts(running):
    running.start(*(number for number in HOSTS if not running.hosts[number].alive))
    for number in HOSTS:
        running.do(number, "forget_notices")
        running.do(number, "forget_asked")
    return running


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


# ---- as pykka has them


def test_actors_of_all_kinds_answer_other_processes_as_local_ones_do(hosts, kind):
    name = hosts.publish(kind, callers=(OTHER, THIRD))
    value = {"a": [1, None, 1.5, "x"], "@": {"b": True}}
    for caller in (OTHER, THIRD):
        assert hosts.ask(caller, name, "echo", value) == value
        assert hosts.do(caller, "call", name=name, method="echo", arguments=[value]) == value
        assert hosts.do(caller, "on_the_loop", name=name, method="echo", arguments=[7]) == [7, 7]
        assert name in hosts.do(caller, "names", address=hosts.address(HOME))
    assert hosts.do(OTHER, "attribute", name=name, attribute="limit") == 5
    assert hosts.do(OTHER, "attribute", name=name, attribute="limit", value=9) == 9
    assert hosts.do(THIRD, "attribute", name=name, attribute="limit") == 9
    assert hosts.do(OTHER, "find", address=hosts.address(HOME), name=name)["class"] == KINDS[kind].__name__


def test_what_a_method_raises_cannot_return_or_never_returns(hosts, kind):
    for ways in ("ask", "call"):
        name = hosts.publish(kind)
        assert hosts.error(OTHER, ways, name=name, method="overdraw", arguments=["ann"])[0] == "Overdrawn"
        error, text = hosts.error(OTHER, ways, name=name, method="fail")
        assert (error, text) == ("RemoteError", "tests.process.calls_messages.Unregistered: no")
        error, text = hosts.error(OTHER, ways, name=name, method="unsendable")
        assert error == "ValueRefused"
        assert "answer['deep'][0]" in text
        error, text = hosts.error(OTHER, ways, name=name, method="hang", within=0.2)
        assert error == "AnswerTimeout"
        assert "may have handled" in text
        if kind == "thread":  # it is held up as it would be by a question of its own host
            hosts.do(HOME, "let_go", name=name)
        assert hosts.ask(OTHER, name, "echo", "still here") == "still here"


@pytest.mark.parametrize("method", ["_private", "stop", "on_receive", "actor_ref", "actor_inbox", "actor_loop", "start_actor"])
def test_a_proxy_reaches_what_the_class_itself_says_and_nothing_private(hosts, kind, method):
    name = hosts.publish(kind)
    assert hosts.error(OTHER, "call", name=name, method=method)[0] == "AttributeError"


def test_a_proxy_is_only_where_it_was_published(hosts):
    plain, listed = hosts.publish(proxy=False), hosts.publish(proxy=["kind"])
    assert hosts.error(OTHER, "call", name=plain, method="kind")[0] == "TypeError"
    assert hosts.do(OTHER, "call", name=listed, method="kind") == "Threaded"
    assert hosts.error(OTHER, "call", name=listed, method="echo")[0] == "AttributeError"


def test_an_unknown_name_and_an_unknown_host_are_clear_errors_at_once(hosts):
    began = time.monotonic()
    error, text = hosts.error(OTHER, "find", address=hosts.address(HOME), name="nobody")
    assert (error, "'nobody'" in text) == ("UnknownName", True)
    (nowhere,) = free_addresses(1)
    error, text = hosts.error(OTHER, "find", address=nowhere, name="nobody")
    assert (error, "refused" in text) == ("HostGone", True)
    assert time.monotonic() < began + SOON_S


def test_an_actor_whose_number_is_guessed_is_not_reached(hosts):
    name = hosts.publish()
    where = hosts.do(OTHER, "find", address=hosts.address(HOME), name=name)
    for run, number in ((where["run"], where["number"] ^ 1), (where["run"] ^ 1, where["number"])):
        hosts.do(OTHER, "guess", address=hosts.address(HOME), run=run, number=number, key="guess")
        assert hosts.ask_fails(OTHER, "guess", "echo", 1)[0] == "ActorDeadError"
        assert not hosts.do(OTHER, "alive", name="guess")


# ---- deadlines


@pytest.mark.parametrize("block", [True, False], ids=["in a thread", "by a future"])
def test_a_question_ends_at_its_deadline_and_not_before(hosts, kind, block):
    name = hosts.publish(kind)
    came = hosts.do(OTHER, "took", name=name, method="hang", within=0.4, block=block)
    assert came["error"] == "AnswerTimeout"
    assert 0.39 <= came["seconds"] < 0.4 + SOON_S / 2
    hosts.until_held(OTHER, asked=0, deadlines=0)
    late = "remote answers that came too late"
    before = hosts.do(OTHER, "counters").get(late, 0)
    hosts.do(HOME, "let_go", name=name)
    until(lambda: hosts.do(OTHER, "counters").get(late, 0) == before + 1)
    hosts.until_held(HOME, questions=0)


def test_the_answer_to_a_question_that_has_ended_is_not_taken_for_that_to_another(hosts):
    """Also where nothing was waited for in between, so that this host has let all go that it knew of the other."""
    first, second = hosts.publish("trio"), hosts.publish("trio")
    late = "remote answers that came too late"
    before = hosts.do(OTHER, "counters").get(late, 0)
    hosts.until_held(OTHER, links=0)
    assert hosts.ask_fails(OTHER, first, "hang", within=0.1)[0] == "AnswerTimeout"
    hosts.until_held(OTHER, links=0)
    hosts.hang(OTHER, second, 1)
    hosts.do(HOME, "let_go", name=first)
    until(lambda: hosts.do(OTHER, "counters").get(late, 0) > before or hosts.outcomes(OTHER) != {"open": 1})
    assert hosts.outcomes(OTHER) == {"open": 1}
    hosts.do(HOME, "let_go", name=second)
    until(lambda: hosts.outcomes(OTHER) == {"answered": 1})


# ---- order, and at most once


@pytest.mark.parametrize("kind", ["thread", "trio"])
def test_what_each_thread_tells_comes_in_order_and_once(hosts, kind):
    name = hosts.publish(kind, callers=(OTHER, THIRD))
    count, threads = 1000, 3
    with ThreadPoolExecutor(2) as pool:
        floods = [
            pool.submit(hosts.do, caller, "flood", name=name, count=count, threads=threads, prefix=f"{caller}.")
            for caller in (OTHER, THIRD)
        ]
        for flood in floods:
            flood.result()
    until(lambda: _count(hosts.seen(HOME, name)) == 2 * threads * count)
    for each in hosts.seen(HOME, name).values():
        assert each == {"numbers": list(range(count)), "twice": 0, "late": 0}


def _count(seen):
    return sum(len(each["numbers"]) for each in seen.values())


def test_a_full_lane_is_busy_at_once_in_the_callers_thread_and_loses_nothing(hosts):
    name, elsewhere = hosts.publish(), hosts.publish(at=THIRD)
    size, bound = 64 << 10, 8 * MIB
    hosts.hosts[HOME].pause()
    try:
        filled = hosts.do(OTHER, "fill", name=name, size=size, most=1000)
        assert hosts.ask(OTHER, elsewhere, "echo", 1) == 1, "it is the lane to one host alone"
    finally:
        hosts.hosts[HOME].resume()
    assert "wait for" in filled["text"]
    assert filled["slowest"] < SOON_S / 4, "it waited for room"
    # What fits into the lane, and what was on its way without credit.
    assert bound <= (filled["told"] + 1) * (size + 100) <= bound + MIB
    until(lambda: _count(hosts.seen(HOME, name)) == filled["told"])
    assert hosts.seen(HOME, name)["filler"] == {"numbers": list(range(filled["told"])), "twice": 0, "late": 0}
    assert hosts.ask(OTHER, name, "echo", 1) == 1


def test_an_actor_that_hangs_has_so_many_questions_of_one_host_and_others_are_asked(hosts, kind):
    """The others are told that it is busy, at once, and not at their deadlines."""
    name, beside = hosts.publish(kind, callers=(OTHER, THIRD)), hosts.publish(kind, callers=(OTHER,))
    hosts.do(OTHER, "ask_many", name=name, method="hang", count=1500, within=LONG_S)
    until(lambda: hosts.outcomes(OTHER) == {"open": 1000, "busy": 500})
    assert hosts.ask(OTHER, beside, "echo", 1) == 1
    hosts.hang(THIRD, name, 5)
    assert hosts.held(HOME, "questions") == hosts.held(HOME, "questions by actor") == 1005
    hosts.do(HOME, "let_go", name=name)
    until(lambda: hosts.outcomes(OTHER) == {"answered": 1000, "busy": 500})
    hosts.until_held(HOME, questions=0)


# ---- references and watches


def test_a_thousand_references_travel_in_one_message_and_come_back_as_what_they_were(hosts):
    keeper = hosts.publish("thread")
    hosts.do(OTHER, "end_spawned")
    hosts.until_held(OTHER, actors=0)
    assert hosts.do(OTHER, "refs_in_one_message", name=keeper, count=1000)
    assert hosts.do(HOME, "ask_kept", name=keeper) == list(range(1000))
    assert hosts.held(OTHER, "actors") == 1000, "each has one number, however often it was sent"
    hosts.do(OTHER, "end_spawned")
    hosts.until_held(OTHER, actors=0)


def test_a_reference_is_of_use_to_a_third_host(hosts):
    keeper = hosts.publish("thread", callers=(OTHER, THIRD))
    assert hosts.do(OTHER, "refs_in_one_message", name=keeper, count=20)
    assert hosts.do(THIRD, "take", name=keeper) == 20
    assert hosts.do(THIRD, "ask_taken", name=keeper) == list(range(20))
    hosts.do(OTHER, "end_spawned")
    assert hosts.error(THIRD, "ask_taken", name=keeper)[0] == "ActorDeadError"


def test_a_thousand_watches_tell_of_a_thousand_ends_once_each(hosts):
    spawner, count, ended = hosts.publish("trio"), 1000, 100
    assert hosts.do(OTHER, "watch_spawned", name=spawner, count=count) == count
    hosts.until_held(HOME, watches=count)
    watchers = hosts.held(HOME, "watchers")
    assert hosts.do(OTHER, "unwatch_spawned", name=spawner, count=ended) == ended
    hosts.until_held(HOME, watches=count - ended)
    assert hosts.held(HOME, "watchers") == watchers - ended
    hosts.do(HOME, "end_spawned")
    told = hosts.notices(OTHER, count - ended, timeout=SILENT_S)
    assert (told["count"], told["actors"]) == (count - ended, count - ended)
    assert told["reasons"] == {"NoneType": count - ended}
    hosts.until_held(HOME, watches=0)
    hosts.until_held(OTHER, watched=0)


def test_a_watch_tells_with_what_an_actor_failed(hosts, kind):
    name = hosts.publish(kind)
    hosts.do(OTHER, "watch", name=name)
    hosts.do(OTHER, "tell", name=name, method="overdraw", arguments=["ann"])
    told = hosts.notices(OTHER, 1)
    assert told["reasons"] == {"Overdrawn": 1}
    assert not hosts.do(OTHER, "alive", name=name)
    assert hosts.ask_fails(OTHER, name, "echo", 1)[0] == "ActorDeadError"
    assert hosts.error(OTHER, "find", address=hosts.address(HOME), name=name)[0] == "UnknownName"


@pytest.mark.parametrize("kind", ["trio", "table"])
def test_one_that_ends_answers_those_who_wait(hosts, kind):
    name = hosts.publish(kind)
    hosts.hang(OTHER, name, 10)
    hosts.until_held(HOME, questions=10)
    hosts.do(HOME, "end", name=name)
    until(lambda: hosts.outcomes(OTHER) == {"dead": 10})
    hosts.until_held(HOME, questions=0)


def test_an_actor_under_the_same_name_is_another_one(hosts, kind):
    name = hosts.publish(kind)
    old = hosts.do(OTHER, "find", address=hosts.address(HOME), name=name, key="old")
    hosts.do(HOME, "end", name=name)
    hosts.do(HOME, "publish", name=name, kind=kind)
    assert hosts.ask_fails(OTHER, "old", "echo", 1)[0] == "ActorDeadError"
    new = hosts.do(OTHER, "find", address=hosts.address(HOME), name=name)
    assert new["run"] == old["run"]
    assert new["number"] != old["number"]
    assert hosts.ask(OTHER, name, "echo", 1) == 1
    assert hosts.seen(HOME, name) == {}, "what was for the other one is not for it"


# ---- a host ends


def _lost(hosts, name, way):
    """What is waited for ends soon, with the truth about it."""
    until(lambda: "open" not in hosts.outcomes(OTHER), SOON_S)
    told = hosts.notices(OTHER, 1)
    assert told["count"] == 1
    if way == "killed":
        assert hosts.outcomes(OTHER) == {"unknown": 20}, "they had left"
        assert told["reasons"] == {"HostGone": 1}
    else:  # the actors of its loop end with it, and may still say so
        assert set(hosts.outcomes(OTHER)) <= {"unknown", "dead"}
    hosts.until_held(OTHER, asked=0, watched=0, deadlines=0)
    began = time.monotonic()
    error, text = hosts.ask_fails(OTHER, name, "echo", 1)
    assert (error, "not reached" in text) == ("HostGone", True)
    assert time.monotonic() < began + SOON_S
    hosts.until_held(OTHER, links=0, hosts=0)


def _again(hosts, name, before):
    """The name is free after a restart, and old references are of no use."""
    assert hosts.error(OTHER, "find", address=hosts.address(HOME), name=name)[0] == "UnknownName"
    hosts.do(HOME, "publish", name=name, kind="trio")
    error, text = hosts.ask_fails(OTHER, name, "echo", 1)
    assert (error, "earlier run" in text) == ("ActorDeadError", True)
    hosts.do(OTHER, "forget_notices")
    hosts.do(OTHER, "watch", name=name)
    assert hosts.notices(OTHER, 1)["reasons"] == {"ActorDeadError": 1}
    after = hosts.do(OTHER, "find", address=hosts.address(HOME), name=name)
    assert after["run"] != before["run"]
    assert hosts.ask(OTHER, name, "echo", 1) == 1


@pytest.mark.parametrize("way", ["killed", "stopped"])
def test_the_host_of_an_actor_ends_and_comes_back(hosts, way):
    name = hosts.publish("trio")
    before = hosts.do(OTHER, "find", address=hosts.address(HOME), name=name)
    hosts.do(OTHER, "watch", name=name)
    hosts.hang(OTHER, name, 20)
    hosts.until_held(HOME, questions=20, watches=1)
    if way == "killed":
        hosts.kill(HOME)
    else:
        assert hosts.hosts[HOME].stop() == 0
    _lost(hosts, name, way)
    hosts.start(HOME)
    _again(hosts, name, before)


def test_the_host_of_a_caller_is_killed_and_nothing_of_it_is_left(hosts):
    """Its questions and watches end where the actor lives; what the actor answers later goes nowhere, and is counted."""
    hanging, spawner = hosts.publish("trio"), hosts.publish("trio")
    hosts.until_held(HOME, questions=0, watches=0)
    hosts.do(OTHER, "watch_spawned", name=spawner, count=200)
    hosts.hang(OTHER, hanging, 50)
    hosts.until_held(HOME, questions=50, watches=200)
    alone = hosts.held(HOME, "watchers") - 200
    hosts.kill(OTHER)
    hosts.until_held(HOME, questions=0, watches=0)
    assert hosts.held(HOME, "watchers") == alone, "an actor would tell one that is gone of its end"
    back = "transport: calls handed back"
    before = hosts.do(HOME, "counters")[back]
    hosts.do(HOME, "let_go", name=hanging)
    until(lambda: hosts.do(HOME, "counters")[back] == before + 50)
    hosts.until_held(HOME, links=0, hosts=0, waiting=0)
    hosts.start(OTHER)
    hosts.do(OTHER, "find", address=hosts.address(HOME), name=hanging)
    assert hosts.ask(OTHER, hanging, "echo", 1) == 1
    hosts.do(HOME, "end_spawned")


def test_a_name_is_taken_over_by_another_host(hosts):
    """References to the one before do not lead to the new one."""
    name = hosts.publish("trio")
    hosts.do(OTHER, "find", address=hosts.address(HOME), name=name, key="old")
    hosts.kill(HOME)
    hosts.do(THIRD, "publish", name=name, kind="trio")
    hosts.do(OTHER, "find", address=hosts.address(THIRD), name=name)
    assert hosts.ask(OTHER, name, "echo", 1) == 1
    assert hosts.ask_fails(OTHER, "old", "echo", 1)[0] == "HostGone"


# ---- a host is silent


@pytest.mark.slow
def test_the_host_of_an_actor_is_paused(hosts):
    """Heartbeats tell long before the connection is given up. It was wrong: the actor lives, and can be watched again."""
    name = hosts.publish("trio")
    hosts.do(OTHER, "watch", name=name)
    hosts.until_held(HOME, watches=1)
    began = time.monotonic()
    hosts.hosts[HOME].pause()
    try:
        told = hosts.notices(OTHER, 1, timeout=SILENT_S)
        assert time.monotonic() - began < 5.0, "the heartbeats were of no use"
        assert told["reasons"] == {"HostGone": 1}
        assert "perhaps alive" in told["texts"][0]
        assert hosts.ask_fails(OTHER, name, "echo", 1, within=0.3)[0] in {"AnswerTimeout", "OutcomeUnknown"}
    finally:
        hosts.hosts[HOME].resume()
    until(lambda: hosts.do(OTHER, "took", name=name, method="echo", arguments=[1]).get("value") == 1)
    for _ in range(3):
        hosts.do(OTHER, "watch", name=name)
        hosts.do(OTHER, "unwatch", name=name)
    hosts.do(OTHER, "watch", name=name)
    hosts.until_held(HOME, watches=1)
    hosts.do(HOME, "end", name=name)
    assert hosts.notices(OTHER, 2)["reasons"] == {"HostGone": 1, "NoneType": 1}
    hosts.until_held(OTHER, watched=0)


@pytest.mark.slow
def test_the_host_of_a_caller_is_paused(hosts):
    """It is given up, and what the actor has answered meanwhile is not lost without a word: its questions end at their deadlines."""
    name = hosts.publish("trio")
    hosts.hang(OTHER, name, 20, within=3.0)
    hosts.until_held(HOME, questions=20)
    hosts.hosts[OTHER].pause()
    try:
        hosts.do(HOME, "let_go", name=name)
        hosts.until_held(HOME, questions=0)
    finally:
        hosts.hosts[OTHER].resume()
    until(lambda: "open" not in hosts.outcomes(OTHER))
    assert set(hosts.outcomes(OTHER)) <= {"answered", "unknown"}
    assert hosts.ask(OTHER, name, "echo", 1) == 1
    hosts.until_held(OTHER, asked=0, deadlines=0)


# ---- connections are cut


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
            )
            for number in HOSTS
        )
        yield stack.enter_context(hosts), proxies


@pytest.fixture(scope="module")
def cuttable(tmp_path_factory):
    with behind_proxies(tmp_path_factory.mktemp("cut")) as made:
        yield made


@pytest.fixture
def cut(cuttable):
    hosts, proxies = cuttable
    for number in HOSTS:
        hosts.do(number, "forget_notices")
        hosts.do(number, "forget_asked")
    return hosts, proxies


CUTS = {
    "the way to the actor": ((HOME,), "HostGone", False),
    "the way back": ((OTHER,), "AnswerTimeout", True),
    "both ways": ((HOME, OTHER), "HostGone", False),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CUTS)
def test_connections_are_cut_and_refused_for_a_while(cut, name):
    hosts, proxies = cut
    at, error, has_effect = CUTS[name]
    actor = hosts.publish("trio")
    hosts.do(OTHER, "watch", name=actor)
    hosts.hang(OTHER, actor, 20)
    hosts.until_held(HOME, questions=20)
    with proxies.refusing(at):
        until(lambda: "open" not in hosts.outcomes(OTHER), SOON_S)
        assert hosts.outcomes(OTHER) == {"unknown": 20}
        assert hosts.notices(OTHER, 1)["reasons"] == {"HostGone": 1}
        said, _ = hosts.ask_fails(OTHER, actor, "keep", [1, 2], within=0.5)
        assert said == error
    until(lambda: hosts.do(OTHER, "took", name=actor, method="echo", arguments=[1]).get("value") == 1)
    assert (hosts.ask(OTHER, actor, "give") == [1, 2]) == has_effect
    hosts.do(OTHER, "watch", name=actor)
    hosts.do(HOME, "let_go", name=actor)
    hosts.do(HOME, "end", name=actor)
    assert hosts.notices(OTHER, 2, timeout=SILENT_S)["reasons"] == {"HostGone": 1, "NoneType": 1}
    hosts.until_held(OTHER, asked=0, watched=0, deadlines=0)
    hosts.until_held(HOME, questions=0, watches=0)


@pytest.mark.slow
def test_a_watch_that_is_begun_while_the_way_back_is_cut_is_told_of_something(cut):
    """That it was lost, or that the actor has ended: a watcher that waits for ever would be the worst."""
    hosts, proxies = cut
    actor = hosts.publish("trio")
    with proxies.refusing((OTHER,)):
        hosts.do(OTHER, "watch", name=actor)
        assert hosts.ask_fails(OTHER, actor, "echo", 1, within=0.5)[0] in {"AnswerTimeout", "OutcomeUnknown"}
        hosts.do(HOME, "end", name=actor)
    assert hosts.notices(OTHER, 1, timeout=2 * SILENT_S)["count"] == 1


@pytest.mark.slow
def test_what_is_held_back_on_its_way_comes_late_and_once(cut):
    hosts, proxies = cut
    actor = hosts.publish("trio")
    assert hosts.ask(OTHER, actor, "echo", 1) == 1
    with proxies.frozen((HOME,)):
        hosts.do(OTHER, "ask_many", name=actor, method="kind", count=20, within=0.3)
        until(lambda: hosts.outcomes(OTHER) == {"unknown": 20}, SOON_S)
        hosts.do(OTHER, "flood", name=actor, count=100, threads=1, prefix="frozen ")
    until(lambda: _count(hosts.seen(HOME, actor)) == 100)
    assert hosts.seen(HOME, actor)["frozen 0"] == {"numbers": list(range(100)), "twice": 0, "late": 0}
    hosts.until_held(OTHER, asked=0, deadlines=0)


def judge(sent, seen):
    """Each number came once at most, in order; what was answered had its effect, and what surely had none has none."""
    for sender, outcomes in sent.items():
        came = seen.get(sender, {"numbers": [], "twice": 0, "late": 0})
        assert (came["twice"], came["late"]) == (0, 0), f"{sender}: {came['twice']} came twice, {came['late']} late"
        there = set(came["numbers"])
        for number, outcome in outcomes.items():
            if outcome == "answered":
                assert int(number) in there, f"{number} of {sender} was answered, and never came"
            if outcome in {"gone", "busy", "dead"}:
                assert int(number) not in there, f"{number} of {sender} had surely no effect ({outcome}), and has one"
        assert there <= set(map(int, outcomes)), f"{sender} never said some of these"


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", KINDS)
def test_each_message_has_its_effect_at_most_once_whatever_happens_to_connections(tmp_path, kind):
    seed = random.SystemRandom().randrange(1 << 32)
    draw = random.Random(seed)
    print(f"seed {seed}")
    with behind_proxies(tmp_path, seed) as (hosts, proxies):
        name = hosts.publish(kind, callers=(OTHER, THIRD))
        for caller in (OTHER, THIRD):
            hosts.do(caller, "send", name=name, threads=2, prefix=f"{caller}.")
        faults = ["reset", "reset", "refuse", "freeze", "pause"] * 5
        draw.shuffle(faults)
        for fault in faults:
            _progress(hosts)
            victims = draw.sample(HOSTS, draw.choice((1, 1, 2)))
            match fault:
                case "reset":
                    proxies.reset(victims)
                case "refuse":
                    with proxies.refusing(victims):
                        time.sleep(draw.uniform(0.0, 0.5))
                case "freeze":
                    with proxies.frozen(victims):
                        time.sleep(draw.uniform(0.0, 1.5))
                case "pause":
                    hosts.hosts[victims[0]].pause()
                    time.sleep(draw.uniform(0.0, 1.0))
                    hosts.hosts[victims[0]].resume()
        _progress(hosts)
        sent = {}
        for caller in (OTHER, THIRD):
            sent |= hosts.do(caller, "sent")
        assert hosts.ask(OTHER, name, "echo", 1) == 1
        judge(sent, hosts.seen(HOME, name))
        came = [outcome for outcomes in sent.values() for outcome in outcomes.values()]
        counts = {outcome: came.count(outcome) for outcome in sorted(set(came))}
        print(counts)
        assert counts["answered"] > 1000
        assert min(counts.get(outcome, 0) for outcome in ("gone", "unknown", "told")) > 0, counts
        for number in HOSTS:
            hosts.until_held(number, asked=0, deadlines=0, waiting=0, questions=0)


def _progress(hosts, count=50):
    """Wait until so many more were answered, of each host."""
    for caller in (OTHER, THIRD):
        wanted = hosts.do(caller, "answered") + count
        until(lambda caller=caller, wanted=wanted: hosts.do(caller, "answered") >= wanted, LONG_S)


@pytest.mark.parametrize(
    ("outcomes", "seen", "verdict"),
    [
        ({"0": "answered", "1": "gone", "2": "unknown"}, ([0], 0, 0), None),
        ({"0": "answered", "1": "gone", "2": "unknown"}, ([0, 2], 0, 0), None),
        ({"0": "told", "1": "told"}, ([1], 0, 0), None),
        ({"0": "answered"}, ([], 0, 0), "was answered, and never came"),
        ({"0": "gone"}, ([0], 0, 0), "surely no effect"),
        ({"0": "busy"}, ([0], 0, 0), "surely no effect"),
        ({"0": "told"}, ([0], 1, 0), "1 came twice"),
        ({"0": "told"}, ([0], 0, 1), "1 late"),
        ({"0": "told"}, ([0, 1], 0, 0), "never said"),
    ],
)
def test_the_judge_finds_what_is_wrong_and_nothing_else(outcomes, seen, verdict):
    numbers, twice, late = seen
    came = {"a": {"numbers": numbers, "twice": twice, "late": late}}
    if verdict is None:
        judge({"a": outcomes}, came)
    else:
        with pytest.raises(AssertionError, match=verdict):
            judge({"a": outcomes}, came)


@pytest.mark.slow
def test_a_host_whose_network_is_gone(tmp_path):
    """No packet comes through, and none is refused: only time tells."""
    if reason := namespaces.why_not():
        pytest.skip(reason)
    with ExitStack() as stack:
        network = stack.enter_context(namespaces.Network(HOSTS))
        members = {number: network.address(number) for number in HOSTS}
        hosts = stack.enter_context(three_hosts(tmp_path, within=network.within, members=members))
        name = hosts.publish("trio", callers=(OTHER, THIRD))
        hosts.do(OTHER, "watch", name=name)
        hosts.hang(OTHER, name, 20)
        hosts.until_held(HOME, questions=20, watches=1)
        with network.cut([OTHER]):
            assert hosts.ask_fails(OTHER, name, "echo", 1, within=0.5)[0] in {"AnswerTimeout", "OutcomeUnknown"}
            assert hosts.notices(OTHER, 1, timeout=SILENT_S)["reasons"] == {"HostGone": 1}
            until(lambda: hosts.outcomes(OTHER) == {"unknown": 20}, SILENT_S)
            hosts.until_held(HOME, timeout=2 * SILENT_S, questions=0, watches=0)
            assert hosts.ask(THIRD, name, "echo", 1) == 1
        until(lambda: hosts.do(OTHER, "took", name=name, method="echo", arguments=[1]).get("value") == 1, LONG_S)
        with network.split([OTHER, THIRD]):
            assert hosts.ask_fails(THIRD, name, "echo", 1, within=0.5)[0] in {"AnswerTimeout", "OutcomeUnknown"}
        until(lambda: hosts.do(THIRD, "took", name=name, method="echo", arguments=[1]).get("value") == 1, LONG_S)


# ---- memory


@pytest.fixture
def measured(tmp_path):
    with three_hosts(tmp_path) as hosts:
        yield hosts


def _grown(hosts, before):
    """The MiB by which each host has grown at most."""
    return {number: hosts.do(number, "peak") - before[number] for number in HOSTS}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["thread", "trio"])
def test_thousands_of_questions_to_an_actor_that_hangs_take_little_memory(measured, kind):
    hosts = measured
    name = hosts.publish(kind, callers=(OTHER, THIRD))
    sizes = {number: hosts.do(number, "memory") for number in HOSTS}
    for caller in (OTHER, THIRD):
        for _ in range(10):
            hosts.do(caller, "ask_many", name=name, method="hang", count=2000, within=1000.0)
        until(lambda caller=caller: hosts.outcomes(caller)["open"] == 1000)
    assert hosts.held(HOME, "questions") == 2000
    assert max(_grown(hosts, sizes).values()) < 96
    hosts.do(HOME, "let_go", name=name)
    until(lambda: "open" not in hosts.outcomes(OTHER) and "open" not in hosts.outcomes(THIRD))
    for number in HOSTS:
        hosts.until_held(number, asked=0, deadlines=0, questions=0)


@pytest.mark.slow
@pytest.mark.parametrize("size", [100, 64 << 10], ids=["small ones", "large ones"])
def test_messages_to_an_actor_that_hangs_are_bounded_in_number_and_bytes(measured, size):
    """What finds no place is dropped, and counted: its senders asked for no answer."""
    hosts = measured
    name = hosts.publish("thread", callers=(OTHER, THIRD))
    hosts.hang(OTHER, name, 1)
    hosts.until_held(HOME, questions=1)
    sizes = {number: hosts.do(number, "memory") for number in HOSTS}
    count = 3000 if size > 1000 else 20_000
    hosts.do(THIRD, "flood", name=name, count=count, threads=1, prefix="many ", size=size)
    hosts.ask_fails(THIRD, name, "echo", 1, within=5.0)  # it has come behind all of them
    dropped = hosts.do(HOME, "counters").get("remote messages dropped", 0)
    assert dropped > 0
    assert max(_grown(hosts, sizes).values()) < 128
    hosts.do(HOME, "let_go", name=name)
    until(lambda: _count(hosts.seen(HOME, name)) == count - dropped)


# ---- who may


@pytest.mark.slow
def test_an_actor_is_for_the_hosts_of_its_acl_alone(tmp_path):
    """The name is hidden from others, and a reference that they were given is of no use to them."""
    (tmp_path / "tls").mkdir()
    with three_hosts(tmp_path, tls=certificates(tmp_path / "tls")) as hosts:
        name = hosts.publish("trio", acl=["127.0.0.1"])
        assert hosts.ask(OTHER, name, "echo", 1) == 1
        guarded = hosts.publish("trio", callers=(), acl=["teller.example"])
        assert hosts.error(OTHER, "find", address=hosts.address(HOME), name=guarded)[0] == "NotAllowed"
        assert guarded not in hosts.do(OTHER, "names", address=hosts.address(HOME))
        where = hosts.do(HOME, "place", name=guarded)
        hosts.do(OTHER, "guess", address=hosts.address(HOME), key="guess", **where)
        assert hosts.ask_fails(OTHER, "guess", "echo", 1)[0] == "NotAllowed"
        assert hosts.do(HOME, "seen", name=guarded) == {}

