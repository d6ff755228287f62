"""Who is who, where there is TLS: no certificate speaks for another name than its own."""

import datetime as dt
import socket

import pytest
from drakkar.handlers.messages import MessageType
from drakkar.transport.frames import FrameKind

from tests.attacks import forge
from tests.attacks.cluster import Authority, context
from tests.attacks.forge import STRANGER

pytestmark = pytest.mark.xdist_group("attacks")


def _as_member(target, tls, number=2):
    """Introduce oneself as a member, word for word as its host does."""
    return forge.introduced(
        target.members[1],
        target.members[number],
        host_id=target.ask(number, "host_id"),
        run=forge.Run(*target.ask(number, "run")),
        tls=tls,
    )


def _refused(target, tls, number=2):
    try:
        _as_member(target, tls, number).close()
    except (OSError, PermissionError):
        return True
    return False


EXPIRED = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)


@pytest.fixture
def impostors(secure, tmp_path):
    """TLS contexts by what is wrong with them."""
    other = Authority(tmp_path / "other")
    return {
        "no certificate": context(),
        "a certificate of another authority": other.client("127.0.1.2"),
        "a certificate of another name": secure.outsider,
        "a certificate whose common name alone is right": secure.authority.client(
            STRANGER, common_name="127.0.1.2"
        ),
        "a certificate for all names of a domain": secure.authority.client("*.0.1.2"),
        "a certificate of another member": context(secure.files[3]),
        "an expired certificate": secure.authority.client("127.0.1.2", not_after=EXPIRED),
    }


def test_no_other_certificate_speaks_for_a_member(secure, impostors):
    with secure.attack("a host without the certificate of the name that it gives") as seen:
        before = secure.status()["term"]
        for how, tls in impostors.items():
            assert _refused(secure, tls), how
        seen.watch(1)
        assert secure.status()["term"] == before
    _as_member(secure, context(secure.files[2])).close()


@pytest.mark.slow
def test_as_many_impostors_as_there_are_connections(secure, impostors):
    with (
        secure.attack("impostors that come again and again") as seen,
        forge.Attackers(*[lambda tls=tls: _as_member(secure, tls).close() for tls in impostors.values()]),
    ):
        seen.watch(3)


@pytest.mark.slow
def test_plain_bytes_where_there_is_tls(secure):
    """And the other way round: neither is taken, and the host says that one of the two has no tls."""
    with secure.attack("plain hosts where there is TLS") as seen:
        for _ in range(20):
            with forge.Link(secure.members[1]) as link:
                assert link.introduce(secure.members[2]) is None or link.closed()
        seen.watch(1)
    assert "tls" in secure.hosts[1].log().lower()


@pytest.mark.slow
def test_tls_where_there_is_none(plain, secure):
    with plain.attack("TLS hosts where there is no TLS") as seen:
        for _ in range(20):
            with pytest.raises((OSError, PermissionError)):
                forge.introduced(plain.members[1], tls=secure.outsider)
        seen.watch(1)
    assert "tls" in plain.hosts[1].log().lower()


@pytest.mark.slow
def test_bytes_after_the_handshake_that_are_no_tls(secure):
    """A connection that was admitted is cut in the middle: the records that follow are noise."""
    with secure.attack("noise in the middle of TLS") as seen:
        for _ in range(10):
            link = _as_member(secure, context(secure.files[2]))
            with socket.socket(fileno=link.socket.detach()) as bare:
                bare.sendall(b"\x17\x03\x03\x40\x00" + bytes(64))
        seen.watch(1)


# ---- what goes into a log


@pytest.mark.slow
def test_no_stranger_writes_lines_into_the_log(plain):
    """Names and reasons of strangers are logged as text of one line, without control characters."""
    evil = "x\r\n2026-01-01 00:00:00 CRITICAL forged: all is lost\x1b[2J"
    with plain.attack("line ends and escape sequences in names") as seen:
        for number, fields in enumerate(
            (
                {"deployment_id": evil},
                {"as_address": f"{evil}:1"},
                {"host_id": evil},
                {"features": frozenset([evil])},
            )
        ):
            with forge.Link(plain.members[1]) as link:
                link.introduce(**{"as_address": f"{STRANGER}:{number + 1}", **fields})
                link.send(
                    forge.frame(FrameKind.REFUSED, evil.encode()),
                )
        with forge.introduced(plain.members[1]) as link:
            link.send(forge.shard(1, 9, {1: evil, 2: evil}, founding=b"y" * 16))
            link.send(forge.rows(forge.row(type=int(MessageType.HEARTBEAT), sender=9)))
            seen.watch(1)
    log = (plain.directory / "1.log").read_bytes()
    assert b"\x1b" not in log
    assert not [line for line in log.splitlines() if line.startswith(b"2026-01-01 00:00:00 CRITICAL")]
