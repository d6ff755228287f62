"""What hosts can do by remote calls: floods of all that a record can say, and calls that keep to no rule.

Each is tried by hosts that are no members, without TLS and with a valid certificate. Some are tried by a member as well. The innocent commit, and
clients of another host ask an actor of the host under attack.
"""

import threading
from contextlib import ExitStack, contextmanager

import cbor2
import pytest
from drakkar.actors.remote.loads import MAX_BYTES_OF_ONE
from drakkar.actors.remote.records import Answer, Ask, Died, Lookup, Target, encode
from drakkar.transport.call_frames import calls_body
from drakkar.transport.calls import WINDOW_RECORDS
from drakkar.transport.frames import FrameKind, encode_frame
from drakkar.transport.hello import CALLS_FEATURE

from tests.actors.support import until
from tests.attacks import forge
from tests.attacks.calls import FLOODS, MIB, CallFlood, Say, Sink, frames_of
from tests.attacks.cluster import Target as Hosts
from tests.attacks.forge import STRANGER, Attackers, Flood, Run
from tests.ports import free_ports

pytestmark = pytest.mark.xdist_group("attacks")

ACTORS = {"open": {"proxy": True}, "never": {"kind": "never"}, "blocked": {"kind": "blocked"}, "guarded": {}}
FRIEND = "teller.example"
QUICK = {"questions to actors that do not exist", "questions to an actor that never answers"}
BY_A_MEMBER = (
    "messages to an actor",
    "questions to an actor",
    "questions to an actor that never answers",
    "questions to actors that do not exist",
    "watches",
    "answers that nobody asked for",
    "values of hundreds of references",
    "values of a megabyte",
)


def actors_of(target):
    """Where the actors of host 1 are that may be attacked; they are published the first time."""
    there = target.ask(1, "published")
    for name, options in ACTORS.items():
        if name not in there:
            # Without TLS there is no telling who asks, so no `acl`.
            acl = [FRIEND] if name == "guarded" and target.tls else None
            target.ask(1, "publish", name=name, acl=acl, **options)
    return {name: target.ask(1, "place", name=name) for name in ACTORS}


@contextmanager
def stranger(target, **options):
    """A host that is no member: how it dials, and what listens at its address and takes the answers."""
    address = f"{STRANGER}:{free_ports(1, STRANGER)[0]}"
    tls = target.authority and target.authority.issue(STRANGER)
    with Sink(address, tls=tls, **options) as sink:
        yield {"as_address": address, "host_id": sink.host_id, "tls": target.outsider}, sink


def member(target, number=3):
    """How one dials that speaks in the name of a member."""
    return {
        "as_address": target.members[number],
        "host_id": target.ask(number, "host_id"),
        "run": Run(*target.ask(number, "run")),
        "first": forge.shard(1, number, target.members),
        **target.member(number),
    }


def rest(target):
    """Wait until what strangers did before is paid for: until then the host under attack reads nothing of other ones."""
    with forge.introduced(target.members[1], f"{STRANGER}:9", tls=target.outsider) as link:
        link.send(encode_frame(FrameKind.PING))
        assert link.next().kind == FrameKind.PONG


def flood(target, name, who="", **link):
    """Measure a flood by one host."""
    rest(target)
    say = Say(actors_of(target))
    flooding = CallFlood(target.members[1], lambda: FLOODS[name](say), **link)
    pauses = target.counter(1, "transport: pauses")
    with target.attack(f"{name}{who}", calls=True) as seen:
        with Attackers(flooding):
            seen.watch(1.5)
        seen.note(f"{flooding.records:,} records were sent")
    held_up = target.counter(1, "transport: pauses") > pauses
    came = flooding.records > 50 or flooding.bytes > 2 * MIB
    assert came or held_up, "the flood did not come: the attack was none"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in FLOODS]
)
def test_a_flood_of_records_by_a_host_that_is_no_member(plain, name):
    with stranger(plain) as (link, _):
        flood(plain, name, **link)
    until(lambda: plain.ask(1, "questions") == [0, 0])


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_of_records_with_a_valid_certificate(secure, name):
    with stranger(secure) as (link, _):
        flood(secure, name, **link)
    until(lambda: secure.ask(1, "questions") == [0, 0])


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_A_MEMBER)
def test_a_flood_of_records_by_a_member(tmp_path, name):
    """Hosts of its own: what an attacker says in a member's name is not forgotten."""
    with Hosts(tmp_path / "target") as target:
        flood(target, name, ", by a member", **member(target))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["questions to an actor", "lookups", "questions for all names", "watches of actors that do not exist"],
)
def test_a_flood_by_a_host_that_takes_no_answers(plain, name):
    """Nothing listens at its address, so each answer is in vain."""
    flood(plain, name, ", whose answers nobody takes", as_address=f"{STRANGER}:1")


# ---- the legal effect, without which a flood would show nothing


def test_the_same_bytes_legal_have_their_effect(either):
    """A host that is no member finds an actor by its name, asks it, and hears the answer on the connection back."""
    actors_of(either)
    with (
        stranger(either, keeps=True) as (dialed, sink),
        forge.introduced(either.members[1], dialed.pop("as_address"), **dialed) as link,
    ):
        heard = sink.heard
        link.send(*frames_of(calls_body([encode(Lookup(1, "open"))])))
        until(lambda: heard)
        target = Target(*cbor2.loads(heard[0].value)[0])
        assert list(target) == either.ask(1, "place", name="open")
        link.send(*frames_of(calls_body([encode(Ask(2, target, 5000, b"\x07"))])))
        until(lambda: len(heard) == 2)
        assert heard[1] == Answer(2, b"\x07")


# ---- who may


@pytest.mark.slow
def test_an_acl_is_not_got_round(secure):
    """By a number that was told, by a name, by a list of names, by a watch, in all names that the attacker's certificate is for."""
    places = actors_of(secure)
    guarded = Target(*places["guarded"])
    with (
        stranger(secure, keeps=True) as (dialed, sink),
        forge.introduced(secure.members[1], dialed.pop("as_address"), **dialed) as link,
    ):
        say, heard = Say(places), sink.heard
        refused = [*say.asks_without_leave()[:3], encode(Lookup(200, "guarded"))]
        link.send(
            *frames_of(calls_body([*refused, cbor2.dumps([9, 201]), cbor2.dumps([10, 202, list(guarded)])]))
        )
        until(lambda: len(heard) == 6)
    assert "guarded" not in cbor2.loads(heard.pop(4).value)
    failures = [record.reason if isinstance(record, Died) else record.failure for record in heard]
    assert [failure.type for failure in failures] == ["drakkar.NotAllowed"] * 5


@pytest.mark.slow
def test_a_host_without_a_certificate_calls_nobody(secure):
    frames = b"".join(frames_of(calls_body(Say(actors_of(secure)).asks_that_hang())))

    def again():
        with forge.Link(secure.members[1], tls=secure.stranger, timeout=0.5) as link:
            link.send(forge.hello(secure.members[1]), frames)
            link.closed(0.5)

    with (
        secure.attack("calls without a certificate", calls=True) as seen,
        Attackers(*[again] * 4) as attackers,
    ):
        seen.watch(1.5)
        assert secure.ask(1, "questions")[0] <= 2, "one was taken: those of the innocent are answered at once"
        until(lambda: attackers.rounds > 10)


# ---- calls that keep to no rule


@pytest.mark.slow
def test_calls_that_do_not_wait_for_credit(either):
    """A receiver that has taken calls gives credit at once, and one that could not is not read on: so nothing piles up."""
    say = Say(actors_of(either))
    frames = b"".join(
        b"".join(frames_of(calls_body(say.asks_that_hang()))) for _ in range(WINDOW_RECORDS // 128 + 1)
    )
    with either.attack("calls that do not wait for credit", calls=True) as seen:
        flooding = [
            Flood(either.members[1], frames, as_address=f"{STRANGER}:{n}", read=False, tls=either.outsider)
            for n in (1, 2)
        ]
        with Attackers(*flooding):
            seen.watch(1.5)
    until(lambda: either.ask(1, "questions") == [0, 0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "credit that brings nothing",
        "credit for what was not sent",
        "half a credit",
        "answers in place of credit",
    ],
)
def test_credit_that_is_none(plain, name):
    """What a host says that was dialed, since it had asked something."""
    said = {
        "credit that brings nothing": encode_frame(FrameKind.CALLS, bytes(16)) * 500,
        "credit for what was not sent": encode_frame(FrameKind.CALLS, (1 << 40).to_bytes(8) * 2),
        "half a credit": encode_frame(FrameKind.CALLS, bytes(8)) * 100,
        "answers in place of credit": encode_frame(FrameKind.CALLS, calls_body([encode(Answer(1, b"\x01"))]))
        * 100,
    }[name]
    address = f"{STRANGER}:{free_ports(1, STRANGER)[0]}"
    asking = encode_frame(FrameKind.CALLS, calls_body([cbor2.dumps([9, 1])]))
    with (
        plain.attack(name, calls=True) as seen,
        forge.Callee(address, said, features=(CALLS_FEATURE,)) as callee,
        forge.introduced(plain.members[1], address, host_id=callee.host_id) as link,
    ):
        over = threading.Event()

        def ask():
            while not over.wait(0.05):
                link.send(asking)

        asks = threading.Thread(target=ask, daemon=True)
        asks.start()
        callee.wait(5)
        seen.watch(2)
        over.set()
        asks.join()
        seen.note(f"dialed {callee.dialed} times, took {callee.sent / MIB:.1f} MiB")


@pytest.mark.slow
def test_large_calls_in_parts_that_never_end(either):
    """Each connection has a part of the memory for unfinished messages, and no more."""
    body = calls_body([cbor2.dumps([2, 1, [1, 1], 1000, bytes(MIB - 200)])])
    begun = b"".join(list(frames_of(body))[:-1])
    with (
        either.attack("large calls in parts that never end", memory_mib=128, calls=True) as seen,
        ExitStack() as links,
    ):
        for number in range(40):
            try:
                link = links.enter_context(
                    forge.introduced(either.members[1], f"{STRANGER}:{number + 1}", tls=either.outsider)
                )
            except (OSError, PermissionError):
                break
            link.socket.settimeout(0.2)
            link.send(begun)
        seen.watch(1.5)
        seen.note(f"{number + 1} connections were taken")
    assert number >= 7, "hardly any connection was taken: the attack was none"


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\x9a" + (1 << 31).to_bytes(4), id="a list of two billion records"),
        pytest.param(b"\x81\x9b" + (1 << 62).to_bytes(8), id="a record of as many fields as there are"),
        pytest.param(
            b"\x81\x85\x02\x01\x82\x01\x01\x19\x03\xe8\x5b" + (1 << 40).to_bytes(8),
            id="a value of a terabyte",
        ),
        pytest.param(b"\x98\xff" + b"\x82\x0b\x01" * 255, id="more records than a frame has"),
        pytest.param(b"\x81" * 120_000 + b"\x80", id="lists in lists"),
        pytest.param(calls_body([cbor2.dumps([1, [1, 1]])]), id="a record without its last field"),
        pytest.param(calls_body([cbor2.dumps([2, -1, [1, 1], 1, b""])]), id="a number below zero"),
        pytest.param(calls_body([cbor2.dumps([8, 1, "x" * 100_000])]), id="a name of 100,000 characters"),
        pytest.param(
            calls_body([cbor2.dumps([3, 1, [1, 1], 1, ["a"] * 17, b"", b""])]), id="a path that is too long"
        ),
    ],
)
def test_records_that_are_none_end_the_connection_and_nothing_else(plain, body):
    malformed = plain.counter(1, "transport: malformed")
    frames = b"".join(frames_of(body))

    def again():
        with forge.introduced(plain.members[1], f"{STRANGER}:5") as link:
            link.send(frames)
            assert link.closed(5)

    with plain.attack("malformed calls", calls=True) as seen, Attackers(again):
        seen.watch(1.2)
    assert plain.counter(1, "transport: malformed") > malformed


# ---- memory


@pytest.mark.slow
def test_large_messages_to_an_actor_that_hangs(tmp_path):
    """They wait in its inbox, which is bounded in bytes too. Hosts of its own, since they wait for ever."""
    with Hosts(tmp_path / "target", tls=True) as target, stranger(target) as (link, _):
        flooding = CallFlood(target.members[1], Say(actors_of(target)).large_tells, **link)
        with target.attack("megabytes to an actor that hangs", memory_mib=128, calls=True) as seen:
            with Attackers(flooding):
                seen.watch(6)
            seen.note(f"{flooding.records} MiB were sent")
        assert flooding.bytes > 3 * MAX_BYTES_OF_ONE, "it was hardly more than what is allowed"


@pytest.mark.slow
def test_hosts_without_number_that_ask(secure):
    """Each has a name of its own and leaves a question behind: what is known of them goes with their connections."""
    asking = b"".join(frames_of(calls_body(Say(actors_of(secure)).asks_that_hang()[:4])))
    count = iter(range(1, 60_000))

    def again():
        with forge.introduced(secure.members[1], f"{STRANGER}:{next(count)}", tls=secure.outsider) as link:
            link.send(asking)
            link.socket.settimeout(0.05)
            link.closed(0.05)

    with secure.attack("hosts without number that ask", memory_mib=32, calls=True) as seen:
        with Attackers(*[again] * 3) as attackers:
            seen.watch(3)
        seen.note(f"{attackers.rounds} hosts")
    until(lambda: secure.ask(1, "questions") == [0, 0])
