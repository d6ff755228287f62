"""Actors of three real processes that call each other, while hosts are killed, stopped and paused.

The tests share three hosts; each has actors of its own. What is counted holds on every machine; seconds are bounded generously.
"""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.actors.support import until
from tests.ports import free_addresses
from tests.process.actors import HOME, HOSTS, LONG_S, OTHER, SILENT_S, SOON_S, THIRD, how_many, three_hosts
from tests.process.calls_messages import KINDS

pytestmark = pytest.mark.xdist_group("actors")

MIB = 1 << 20


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


@pytest.mark.parametrize(
    "method", ["_private", "stop", "on_receive", "actor_ref", "actor_inbox", "actor_loop", "start_actor"]
)
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
    for run, actor in ((where["run"], where["actor"] ^ 1), (where["run"] ^ 1, where["actor"])):
        hosts.do(OTHER, "guess", address=hosts.address(HOME), run=run, actor=actor, key="guess")
        assert hosts.ask_fails(OTHER, "guess", "echo", 1)[0] == "ActorDeadError"
        assert not hosts.do(OTHER, "alive", name="guess")


# ---- deadlines


def _astray(hosts, *numbers):
    """Answers that are not taken any more: dropped where the actor lives, given back by the transport, or come too late."""
    counters = [hosts.do(number, "counters") for number in numbers or (HOME, OTHER)]
    names = ("remote answers dropped", "transport: calls handed back", "remote answers that came too late")
    return sum(each.get(name, 0) for each in counters for name in names)


@pytest.mark.parametrize("block", [True, False], ids=["in a thread", "by a future"])
def test_a_question_ends_at_its_deadline_and_not_before(hosts, kind, block):
    name = hosts.publish(kind)
    came = hosts.do(OTHER, "took", name=name, method="hang", within=0.4, block=block)
    assert came["error"] == "AnswerTimeout"
    assert 0.39 <= came["seconds"] < 0.4 + SOON_S / 2
    hosts.until_held(OTHER, asked=0, deadlines=0)
    before = _astray(hosts)
    hosts.do(HOME, "let_go", name=name)
    until(lambda: _astray(hosts) == before + 1)
    hosts.until_held(HOME, questions=0)


def test_the_answer_to_a_question_that_has_ended_is_not_taken_for_that_to_another(hosts):
    first, second = hosts.publish("trio"), hosts.publish("trio")
    before = _astray(hosts)
    assert hosts.ask_fails(OTHER, first, "hang", within=0.1)[0] == "AnswerTimeout"
    hosts.hang(OTHER, second, 1)
    hosts.do(HOME, "let_go", name=first)
    until(lambda: _astray(hosts) > before or hosts.outcomes(OTHER) != {"open": 1})
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
            pool.submit(
                hosts.do, caller, "flood", name=name, count=count, threads=threads, prefix=f"{caller}."
            )
            for caller in (OTHER, THIRD)
        ]
        for flood in floods:
            flood.result()
    until(lambda: how_many(hosts.seen(HOME, name)) == 2 * threads * count)
    for each in hosts.seen(HOME, name).values():
        assert each == {"numbers": list(range(count)), "twice": 0, "late": 0}


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
    until(lambda: how_many(hosts.seen(HOME, name)) == filled["told"])
    assert hosts.seen(HOME, name)["filler"] == {"numbers": list(range(filled["told"])), "twice": 0, "late": 0}
    assert hosts.ask(OTHER, name, "echo", 1) == 1


def test_an_actor_that_hangs_has_so_many_questions_of_one_host_and_others_are_asked(hosts, kind):
    """The others are told that it is busy, at once, and not at their deadlines."""
    name, beside = hosts.publish(kind, callers=(OTHER, THIRD)), hosts.publish(kind, callers=(OTHER,))
    hosts.do(OTHER, "ask_many", name=name, method="hang", count=1500, within=LONG_S)
    hosts.until_told(OTHER, open=1000, busy=500)
    assert hosts.ask(OTHER, beside, "echo", 1) == 1
    hosts.hang(THIRD, name, 5)
    hosts.until_held(HOME, questions=1005)
    hosts.do(HOME, "let_go", name=name)
    hosts.until_told(OTHER, answered=1000, busy=500)
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
    assert hosts.do(OTHER, "unwatch_spawned", name=spawner, count=ended) == ended
    hosts.until_held(HOME, watches=count - ended)
    hosts.do(HOME, "end_spawned")
    told = hosts.notices(OTHER, count - ended, timeout=SILENT_S)
    assert (told["count"], told["actors"]) == (count - ended, count - ended)
    assert told["reasons"] == {"NoneType": count - ended}
    hosts.until_held(HOME, watches=0)
    hosts.until_held(OTHER, watched=0)


@pytest.mark.parametrize("kind", ["thread", "trio"])
def test_a_watch_tells_with_what_an_actor_failed(hosts, kind):
    name = hosts.publish(kind)
    hosts.do(OTHER, "watch", name=name)
    hosts.do(OTHER, "tell", name=name, method="overdraw", arguments=["ann"])
    told = hosts.notices(OTHER, 1)
    assert told["reasons"] == {"Overdrawn": 1}
    assert not hosts.do(OTHER, "alive", name=name)
    assert hosts.ask_fails(OTHER, name, "echo", 1)[0] == "ActorDeadError"
    assert hosts.error(OTHER, "find", address=hosts.address(HOME), name=name)[0] == "UnknownName"


def test_a_mistake_of_a_handler_does_not_end_a_table_actor(hosts):
    name = hosts.publish("table")
    hosts.do(OTHER, "watch", name=name)
    hosts.do(OTHER, "tell", name=name, method="overdraw", arguments=["ann"])
    assert hosts.ask_fails(OTHER, name, "overdraw", "ann")[0] == "Overdrawn"
    assert hosts.ask(OTHER, name, "echo", 1) == 1
    assert hosts.do(OTHER, "notices")["count"] == 0
    hosts.do(HOME, "end", name=name)
    assert hosts.notices(OTHER, 1)["reasons"] == {"NoneType": 1}


@pytest.mark.parametrize("kind", ["trio", "table"])
def test_one_that_ends_answers_those_who_wait(hosts, kind):
    name = hosts.publish(kind)
    hosts.hang(OTHER, name, 10)
    hosts.until_held(HOME, questions=10)
    hosts.do(HOME, "end", name=name)
    hosts.until_told(OTHER, dead=10)
    hosts.until_held(HOME, questions=0)


def test_an_actor_under_the_same_name_is_another_one(hosts, kind):
    name = hosts.publish(kind)
    old = hosts.do(OTHER, "find", address=hosts.address(HOME), name=name, key="old")
    hosts.do(HOME, "end", name=name)
    hosts.do(HOME, "publish", name=name, kind=kind)
    assert hosts.ask_fails(OTHER, "old", "echo", 1)[0] == "ActorDeadError"
    new = hosts.do(OTHER, "find", address=hosts.address(HOME), name=name)
    assert new["run"] == old["run"]
    assert new["actor"] != old["actor"]
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


def _again(hosts, name, before):
    """The name is free after a restart, and old references are of no use."""

    def sought():
        return hosts.error(OTHER, "find", address=hosts.address(HOME), name=name)[0]

    # An attempt to connect that began before the host listened may fail what is asked during it.
    until(lambda: sought() != "HostGone", SOON_S)
    assert sought() == "UnknownName"
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
    hosts.kill(OTHER)
    hosts.until_held(HOME, questions=0, watches=0)
    before = _astray(hosts, HOME)
    hosts.do(HOME, "let_go", name=hanging)
    until(lambda: _astray(hosts, HOME) == before + 50)
    hosts.until_held(HOME, waiting=0)
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
    until(lambda: hosts.do(OTHER, "states")[hosts.address(HOME)] == "alive")
    began = time.monotonic()
    hosts.hosts[HOME].pause()
    try:
        told = hosts.notices(OTHER, 1, timeout=SILENT_S)
        assert time.monotonic() - began < 5.0, "the heartbeats were of no use"
        assert told["reasons"] == {"HostGone": 1}
        assert "not known" in told["texts"][0], "it may live, as it does"
        assert hosts.ask_fails(OTHER, name, "echo", 1, within=0.3)[0] in {
            "AnswerTimeout",
            "OutcomeUnknown",
            "HostGone",
        }
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
