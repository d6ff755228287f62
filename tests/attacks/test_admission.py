"""Who takes places that members need: strangers that say nothing, too little, or too much."""

import time

import pytest

from tests.actors.support import until
from tests.attacks import forge
from tests.attacks.forge import STRANGER, crowd

pytestmark = pytest.mark.xdist_group("attacks")

SILENT = 300
LATE_S = 2.0
"""A member that comes meanwhile is let in within so many seconds. Without an attack it takes some hundredths."""


def _member_is_let_in(target, number=2):
    """How long a member takes that dials anew; as its host does, it tries again where it is not let in."""
    began = time.monotonic()
    while True:
        try:
            with forge.introduced(
                target.members[1],
                target.members[number],
                host_id=target.ask(number, "host_id"),
                run=forge.Run(*target.ask(number, "run")),
                **target.member(number),
            ):
                return time.monotonic() - began
        except (OSError, PermissionError):
            assert time.monotonic() < began + 30, "a member is kept out"
            time.sleep(0.03)


def _silent(_address, _number):
    return b""


def _one_byte(_address, _number):
    return b"D"


def _half(address, _number):
    return forge.hello(address)[:-1]


def _half_a_handshake(_address, _number):
    return b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100)


@pytest.mark.parametrize(
    ("name", "greet", "source"),
    [
        pytest.param("silent connections", _silent, STRANGER, id="silent", marks=pytest.mark.slow),
        pytest.param("silent connections from the members' own address", _silent, "127.0.0.1", id="near"),
        pytest.param("half an introduction each", _half, STRANGER, id="half", marks=pytest.mark.slow),
        pytest.param(
            "one byte each from the members' own address",
            _one_byte,
            "127.0.0.1",
            id="byte",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_connections_without_an_introduction(plain, name, greet, source):
    _crowd(plain, name, greet, source=source)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "greet"), [("silent connections", _silent), ("half a handshake each", _half_a_handshake)]
)
def test_connections_without_an_introduction_where_there_is_tls(secure, name, greet):
    _crowd(secure, name, greet)


@pytest.mark.slow
def test_silent_connections_from_many_addresses(secure):
    sources = [f"127.0.8.{n}" for n in range(1, 251)]
    _crowd(secure, "silent connections from 250 addresses", _silent, sources=sources)


def _crowd(target, name, greet, **options):
    calm = _member_is_let_in(target)
    with target.attack(name) as seen:
        with crowd(list(target.members.values()), SILENT, greet=greet, **options) as strangers:
            seen.watch()
            until(lambda: strangers.opened >= SILENT)  # else the attack was none
            took = _member_is_let_in(target)
        seen.note(f"a member was let in within {took:.2f} s ({calm:.2f} s before)")
    assert took < LATE_S


@pytest.mark.slow
def test_a_member_comes_back_meanwhile(either):
    """All places are taken, and a host is restarted."""
    _comes_back(either, "silent", _silent)


@pytest.mark.slow
def test_a_member_comes_back_among_hosts_that_have_introduced_themselves(plain):
    def introduced(address, number):
        return forge.hello(address, f"{STRANGER}:{number % 60000 + 1}")

    _comes_back(plain, "introduced", introduced)


def _comes_back(target, name, greet):
    with target.attack(f"{name} strangers while a member is restarted") as seen:
        with crowd(list(target.members.values()), SILENT, greet=greet):
            seen.watch()
            target.kill(2)
            target.start_again(2)
            began = time.monotonic()
            commit = target.status(1)["commit"]
            while target.status(2)["applied"] < commit:
                assert time.monotonic() < began + 30, "the member is kept out"
                time.sleep(0.05)
            took = time.monotonic() - began
        seen.note(f"it had caught up {took:.2f} s after its start")
    assert took < 8


@pytest.mark.slow
def test_a_stranger_of_a_thousand_names(plain):
    """Without TLS a name costs nothing: introduced strangers take no places of members."""

    _introduce_strangers(
        plain, "introduced strangers of 1,000 names", 1000, lambda n: f"10.1.{n >> 8 & 255}.{n & 255}"
    )


@pytest.mark.slow
def test_strangers_whose_names_must_be_looked_up(plain):
    """Each name that is new takes a look-up, in threads that are not those of members' names."""

    name = "introductions by names that must be looked up"
    _introduce_strangers(plain, name, 60, lambda n: f"host-{n}.stranger.invalid")


def _introduce_strangers(target, attack, count, name_of):
    """So many connections at any time, each by another name, beside which a member is let in."""

    def greet(address, number):
        return forge.hello(address, f"{name_of(number)}:7000")

    with target.attack(attack) as seen:
        with crowd([target.members[1]], count, greet=greet) as strangers:
            seen.watch(3)
            took = _member_is_let_in(target)
        seen.note(f"{strangers.opened} were opened; a member was let in within {took:.2f} s")
    assert took < LATE_S


@pytest.mark.slow
def test_a_byte_now_and_then(plain):
    """The deadline of an introduction is for the whole of it: a byte puts it off for no one."""
    began = time.monotonic()
    with forge.Link(plain.members[1]) as link:
        for byte in forge.hello(plain.members[1]):
            if not link.send(bytes([byte])) or link.closed(0.2):
                break
        else:
            pytest.fail("the introduction took as long as it liked")
        assert 0.5 < time.monotonic() - began < 8
    with forge.introduced(plain.members[1]):  # the control: at once, it is taken
        pass
