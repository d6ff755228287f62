"""Actors of three real processes that call each other, while connections are cut, and while one of them hangs: what is lost, and what it costs."""

import random
import time
from contextlib import ExitStack

import pytest

from tests.actors.support import until
from tests.process import namespaces
from tests.process.actors import (
    HOME,
    HOSTS,
    LONG_S,
    OTHER,
    SILENT_S,
    SOON_S,
    THIRD,
    TICK_S,
    behind_proxies,
    how_many,
    judge,
    three_hosts,
)
from tests.process.behind import certificates
from tests.process.calls_messages import KINDS

# ---- connections are cut


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
        _until_reached(hosts, number)
    return hosts, proxies


def _until_reached(hosts, number):
    """Wait until a host can call the others, and they can answer."""
    for other in HOSTS:
        order = {"do": "names", "address": hosts.address(other), "within": 1.0}
        until(lambda order=order: "value" in hosts.hosts[number].ask(answer_timeout=LONG_S, **order), LONG_S)


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
        if HOME in at:  # of two connections one may have been lost before the other
            until(lambda: not hosts.do(OTHER, "connected", address=hosts.address(HOME)), SOON_S)
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
        assert hosts.ask_fails(OTHER, actor, "echo", 1, within=0.5)[0] in {
            "AnswerTimeout",
            "OutcomeUnknown",
            "HostGone",
        }
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
    until(lambda: how_many(hosts.seen(HOME, actor)) == 100)
    assert hosts.seen(HOME, actor)["frozen 0"] == {"numbers": list(range(100)), "twice": 0, "late": 0}
    hosts.until_held(OTHER, asked=0, deadlines=0)


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
            assert hosts.ask_fails(OTHER, name, "echo", 1, within=0.5)[0] in {
                "AnswerTimeout",
                "OutcomeUnknown",
                "HostGone",
            }
            assert hosts.notices(OTHER, 1, timeout=SILENT_S)["reasons"] == {"HostGone": 1}
            until(lambda: hosts.outcomes(OTHER) == {"unknown": 20}, SILENT_S)
            hosts.until_held(HOME, timeout=2 * SILENT_S, questions=0, watches=0)
            assert hosts.ask(THIRD, name, "echo", 1) == 1
        until(
            lambda: hosts.do(OTHER, "took", name=name, method="echo", arguments=[1]).get("value") == 1, LONG_S
        )
        with network.split([OTHER, THIRD]):
            assert hosts.ask_fails(THIRD, name, "echo", 1, within=0.5)[0] in {
                "AnswerTimeout",
                "OutcomeUnknown",
                "HostGone",
            }
        until(
            lambda: hosts.do(THIRD, "took", name=name, method="echo", arguments=[1]).get("value") == 1, LONG_S
        )


# ---- memory


@pytest.fixture
def measured(tmp_path):
    # Tens of thousands of questions at once keep a loop busy, and are no matter of who lives.
    with three_hosts(tmp_path, tick=10 * TICK_S) as hosts:
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
        until(lambda caller=caller: hosts.outcomes(caller).get("open") == 1000, SILENT_S)
        assert set(hosts.outcomes(caller)) == {"open", "busy"}
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
    until(lambda: how_many(hosts.seen(HOME, name)) == count - dropped)


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
