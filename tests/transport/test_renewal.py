"""Certificates are replaced, revoked and expire while hosts run."""

import logging
import ssl
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from drakkar.handlers.errors import ConfigError
from drakkar.transport import renewal
from drakkar.transport.certificates import Certificate
from drakkar.transport.options import Options
from drakkar.transport.renewal import Renewal
from drakkar.transport.tcp import TcpTransport
from drakkar.transport.tls import Credentials, Tls, TlsConfig

from tests.transport.support import Host, bulk, heartbeat, on_loop, running, until
from tests.transport.test_tls import Files, said

LOG = logging.getLogger("drakkar.transport")
DAY = 24 * 3600.0


@pytest.fixture
def ours(tmp_path: Path) -> Files:
    return Files(tmp_path)


def revocations(files: Files, *certificates: Path | str, days: float = 30) -> Path:
    """Write the revocation list of an authority."""
    authority = x509.load_pem_x509_certificate(files.ca.read_bytes())
    now = datetime.now(UTC)
    made = x509.CertificateRevocationListBuilder(authority.subject, now - timedelta(1), now + timedelta(days))
    for path in certificates:
        revoked = x509.load_pem_x509_certificate(Path(path).read_bytes())
        made = made.add_revoked_certificate(
            x509.RevokedCertificateBuilder(revoked.serial_number, now - timedelta(1)).build()
        )
    key = serialization.load_pem_private_key(files.authority.private_key_pem.bytes(), password=None)
    signed = made.sign(key, hashes.SHA256())  # type: ignore[arg-type]
    path = files.folder / "revoked.pem"
    path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    return path


async def exchange(a: Host, b: Host) -> None:
    count = len(b.received)
    a.send(b, heartbeat(1))
    await until(lambda: len(b.received) > count)


def renew(host: Host, config: TlsConfig) -> None:
    assert host.transport.use_certificates(config.load(), host.transport.credentials)


# ---- which certificates are taken


@on_loop
async def test_a_revoked_certificate_is_not_taken(ours: Files, caplog: pytest.LogCaptureFixture) -> None:
    bad, good = ours.config(), ours.config(into="good")
    revoked = revocations(ours, bad.cert)
    a, b, c = (
        Host(tls=TlsConfig(each.ca, each.cert, each.key, revoked=revoked)) for each in (good, good, bad)
    )
    async with running(a, b, c):
        await exchange(a, b)
        c.send(b)
        await until(lambda: b.counters.refused)
        a.send(c)
        await until(lambda: a.counters.refused)
    assert len(b.received) == 1
    assert any(
        "the other side's certificate is not taken: certificate revoked" in text for text in said(caplog)
    )


def test_a_revocation_list_must_be_one(ours: Files) -> None:
    mixed = ours.folder / "mixed.pem"
    mixed.write_bytes(revocations(ours).read_bytes() + ours.ca.read_bytes())
    for bad in (ours.folder / "nowhere.pem", ours.config().key, ours.ca, mixed):
        with pytest.raises(ConfigError) as caught:
            Tls(ours.config(revoked=bad), LOG)
        assert caught.value.option == "tls.revoked"
        assert str(bad) in str(caught.value)


@on_loop
async def test_only_allowed_names_are_taken(ours: Files, caplog: pytest.LogCaptureFixture) -> None:
    a, c = Host(tls=ours.config()), Host(tls=ours.config())
    b = Host(tls=ours.config(allowed=["127.0.0.1"]))
    picky = Host(tls=ours.config(allowed=["db-1.example", "db-2.example"]))
    async with running(a, b, c, picky):
        await exchange(a, b)
        a.send(picky)
        await until(lambda: a.lost)
        picky.send(c)
        await until(lambda: picky.lost)
    assert not picky.received
    assert not c.received
    assert any("is for '127.0.0.1', and none of its names is in tls.allowed" in text for text in said(caplog))


# ---- for which hosts they are


async def gets_in(caller: TlsConfig, callee: TlsConfig) -> bool:
    a, b = Host(tls=caller), Host(tls=callee)
    async with running(a, b):
        a.send(b)
        await until(lambda: a.lost or b.received)
    return bool(b.received)


@on_loop
async def test_the_names_of_hosts_can_be_given(ours: Files) -> None:
    odd = ours.config("db-2.example")
    one, of_it = ours.config(), {"127.0.0.1:7": "db-7.example", "[::1]:7": ["db-8.example"]}
    assert not await gets_in(odd, one)

    async def runs_with(names: Any) -> bool:
        """Whether a host with another name than its address gets in, where the callee is told `names`."""
        a = Host(tls=TlsConfig(odd.ca, odd.cert, odd.key))
        async with running(a):
            b = Host(tls=TlsConfig(one.ca, one.cert, one.key, names=names(a.address)))
            async with running(b):
                a.send(b)
                await until(lambda: a.lost or b.received)
        return bool(b.received)

    assert await runs_with(lambda it: {it: "db-2.example"} | of_it)
    assert await runs_with(lambda it: {it: ["db-1.example", "DB-2.example"]})
    assert not await runs_with(lambda it: {it: "db-1.example"})
    assert not await runs_with(lambda _: of_it)
    assert await runs_with(lambda it: lambda address, names: address == it and "db-2.example" in names)
    assert not await runs_with(lambda it: lambda address, names: False)


@on_loop
async def test_a_function_that_fails_lets_none_in_and_ends_nothing(
    ours: Files, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = Host(tls=ours.config(names=lambda address, names: 1 / 0)), Host(tls=ours.config())
    async with running(a, b):
        for caller, callee in ((a, b), (b, a)):
            caller.send(callee)
            await until(lambda lost=caller.lost: lost)
    assert not a.received
    assert not b.received
    assert len([text for text in said(caplog) if text.startswith("tls.names failed for")]) == 1
    assert any("tls.names failed at the host that judges it" in text for text in said(caplog))
    assert not any("ZeroDivision" in text for text in said(caplog))
    assert "ZeroDivisionError" in caplog.text
    assert a.counters.failed == 0


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("ca", None),
        ("cert", 7),
        ("key", b"key.pem"),
        ("revoked", 7),
        ("check_hostname", "no"),
        ("names", "127.0.0.1"),
        ("names", {"no address": "db-1"}),
        ("names", {"10.0.0.1:7": 7}),
        ("names", {"10.0.0.1:7": []}),
        ("names", {"10.0.0.1:7": [7]}),
        ("allowed", "db-1"),
        ("allowed", []),
        ("allowed", [b"db-1"]),
    ],
)
def test_a_wrong_option_is_named(option: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        TlsConfig(**{"ca": "ca", "cert": "cert", "key": "key"} | {option: value})
    assert caught.value.option == f"tls.{option}"


# ---- without a restart


@on_loop
async def test_new_connections_show_a_new_certificate_and_old_ones_stay(ours: Files) -> None:
    config = ours.config(into="new")
    a, b, c = (Host(tls=ours.config()) for _ in range(3))
    async with running(a, b, c):
        await exchange(a, b)
        renew(b, config)
        assert b.transport.credentials.config is config
        await exchange(a, b)
        assert a.counters.connects == 1
        await exchange(c, b)
        assert shown(c, b) == serial(config.cert) != shown(a, b)


def shown(caller: Host, callee: Host) -> int:
    """The serial number of the certificate that a caller was shown."""
    (connection,) = (
        each
        for each in caller.transport._tls.connections  # type: ignore[union-attr]
        if each.proves(callee.address)  # type: ignore[attr-defined]
    )
    return int(connection.stream.getpeercert()["serialNumber"], 16)  # type: ignore[attr-defined]


def spoil(file: Path) -> None:
    file.write_text("half a key")


def serial(cert: Path | str) -> int:
    return x509.load_pem_x509_certificate(Path(cert).read_bytes()).serial_number


@on_loop
async def test_a_host_that_is_revoked_while_it_is_connected_is_cut_and_others_come_back(
    ours: Files, caplog: pytest.LogCaptureFixture
) -> None:
    bad = ours.config()
    good = ours.config(into="good", revoked=revocations(ours))
    a, b, c = Host(tls=good), Host(tls=good), Host(tls=bad)
    async with running(a, b, c):
        await exchange(a, b)
        await exchange(c, b)
        await exchange(b, a)
        revocations(ours, bad.cert)
        renew(b, good)
        await until(lambda: a.lost and c.lost and b.lost)
        await exchange(a, b)
        await exchange(b, a)
        c.send(b)
        await until(lambda: c.counters.connect_failures + c.counters.lost > 1)
        assert not c.connected(b)
    assert (
        any("other certificates than before" in peer.error for peer in b.transport.peers().values()) or b.lost
    )


@on_loop
async def test_changed_files_are_taken_without_a_call(
    ours: Files, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(renewal, "LOOK_EVERY_S", 0.01)
    config = ours.config(into="changing")
    cert, key = Path(config.cert), Path(config.key)
    a, b = Host(tls=ours.config()), Host(tls=config)
    first = b.transport._tls.credentials  # type: ignore[union-attr]
    async with running(a, b):
        await exchange(a, b)
        spoil(key)
        await until(lambda: said(caplog))
        (text,) = said(caplog)
        assert "keeps the certificates that it has, since changed files cannot be used: tls.key" in text
        assert b.transport._tls.credentials is first  # type: ignore[union-attr]
        ours.config(into="changing")
        await until(lambda: b.transport._tls.credentials is not first)  # type: ignore[union-attr]
        await exchange(a, b)
        c = Host(tls=ours.config())
        async with running(c):
            await exchange(c, b)
            assert shown(c, b) == serial(cert)


def test_files_are_taken_once_two_looks_have_found_them_alike(
    ours: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While they are being written, they may be half of each."""
    tls = Tls(ours.config(), LOG)
    looks = [tls.credentials.stamp, ("half",), ("whole",), ("whole",), ("whole",)]
    taken_after: list[int] = []

    async def look(_: Renewal) -> tuple[object, ...]:
        if not looks:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        return looks.pop(0)

    async def take(_: Renewal, seen: tuple[object, ...]) -> None:
        assert seen == ("whole",)
        await trio.lowlevel.checkpoint()
        taken_after.append(len(looks))

    async def scenario() -> None:
        with trio.move_on_after(10 * renewal.LOOK_EVERY_S):
            await Renewal(tls, LOG, address=str, used=list).run()

    # Without the thread that reads the files: the clock would not wait for it.
    monkeypatch.setattr(Renewal, "_look", look)
    monkeypatch.setattr(Renewal, "_take_changed_files", take)
    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))
    assert taken_after[0] == 1


@pytest.mark.parametrize("fails", [False, True])
def test_files_are_not_used_where_others_were_put_in_place_while_they_were_read(
    ours: Files, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fails: bool
) -> None:
    """They may be older."""
    config = ours.config(into="changing")
    tls = Tls(config, LOG)
    watch = Renewal(tls, LOG, address=lambda: "127.0.0.1:1", used=list)
    load, newest = TlsConfig.load, []

    def replace() -> None:
        ours.config(into="changing")
        newest.append(load(config))
        assert watch.use(newest[0], instead_of=watch.credentials)

    def slow(config: TlsConfig) -> Credentials:
        read = load(config)
        trio.from_thread.run_sync(replace)
        if fails:
            raise ConfigError("tls.key", str(config.key), "cannot be read")
        return read

    monkeypatch.setattr(TlsConfig, "load", slow)
    trio.run(watch._take_changed_files, ("changed",))
    assert [tls.credentials] == newest
    assert not said(caplog)


def test_no_session_is_resumed(ours: Files) -> None:
    """One that was would not show a certificate, which may be revoked by now."""
    server_context, client_context = ours.config().server_context(), ours.config().client_context()
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    client = client_context.wrap_bio(to_client, to_server)
    for side in (client, server, client, server):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()
    server.write(b"x")
    assert client.read(1) == b"x"
    assert client.session is not None
    assert not client.session.has_ticket


def test_a_host_without_tls_has_no_certificates_to_replace(ours: Files) -> None:
    plain = TcpTransport("127.0.0.1:0", deliver=print, unreachable=print)
    with pytest.raises(ConfigError, match="made without"):
        _ = plain.credentials
    loaded = ours.config().load()
    with pytest.raises(ConfigError, match="made without"):
        plain.use_certificates(loaded, loaded)


@on_loop
async def test_a_host_whose_certificate_was_wrong_is_reached_at_once_with_a_right_one(
    ours: Files, caplog: pytest.LogCaptureFixture
) -> None:
    """It would try again in 30 seconds only."""
    slow = Options(backoff_refused=60)
    a, b = Host(tls=ours.config("db-2.example"), options=slow), Host(tls=ours.config())
    async with running(a, b):
        (text,) = said(caplog)
        assert text.startswith(
            f"other hosts will refuse this one: the certificate of {a.address} is for 'db-2.example'"
        )
        a.send(b)
        await until(lambda: a.lost)
        caplog.clear()
        renew(a, ours.config())
        a.send(b)
        await until(lambda: b.received)
    assert not said(caplog)


def test_the_names_in_a_file_are_those_that_others_see(tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert(
        "db-1.example", "*.example.com", "10.0.0.1", "::1", "db@example.com", common_name="db"
    )
    found = Certificate.of_file(issued.cert_chain_pems[0].bytes())
    assert found == Certificate(
        ("db-1.example", "*.example.com"), ("10.0.0.1", "::1"), ("db@example.com", "CN=db")
    )


# ---- expiry


def made_for(files: Files, days: float, **changed: Any) -> TlsConfig:
    end = datetime.now(UTC) + timedelta(days)
    issued = files.authority.issue_cert("127.0.0.1", not_after=end)
    cert, key = files.folder / "short.pem", files.folder / "short.key"
    cert.write_bytes(issued.cert_chain_pems[0].bytes())
    issued.private_key_pem.write_to_path(key)
    return TlsConfig(files.ca, cert, key, **changed)


def test_a_certificate_that_expires_soon_is_told_once_a_day(
    ours: Files, caplog: pytest.LogCaptureFixture
) -> None:
    now = time.time()
    tls = Tls(made_for(ours, 16), LOG)
    watch = Renewal(tls, LOG, address=str, used=print, clock=lambda: now)
    watch._warn_of_expiry()
    assert not said(caplog)
    now += 2.5 * DAY
    watch._warn_of_expiry()
    watch._warn_of_expiry()
    (text,) = said(caplog)
    assert f"tls.cert={ours.folder / 'short.pem'} expires in 13 days, at 20" in text
    assert "takes it without a restart" in text
    now += 1.1 * DAY
    watch._warn_of_expiry()
    assert len(said(caplog)) == 2
    now += 20 * DAY
    watch._warn_of_expiry()
    assert "short.pem has expired, at 20" in said(caplog)[-1]


def test_a_revocation_list_that_expires_is_told(ours: Files, caplog: pytest.LogCaptureFixture) -> None:
    tls = Tls(made_for(ours, 300, revoked=revocations(ours, days=3)), LOG)
    Renewal(tls, LOG, address=str, used=print)._warn_of_expiry()
    (text,) = said(caplog)
    assert "revoked.pem expires in 3 days" in text


def test_the_seconds_that_are_left_can_be_read(ours: Files) -> None:
    plain = TcpTransport("127.0.0.1:0", deliver=print, unreachable=print)
    assert plain.certificate_seconds == float("inf")
    secure = TcpTransport("127.0.0.1:0", deliver=print, unreachable=print, tls=made_for(ours, 7))
    assert 6.9 * DAY < secure.certificate_seconds < 7 * DAY


def test_without_the_library_the_remedy_is_told(ours: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    config = ours.config()
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(ConfigError, match=r"pip install 'drakkar\[tls\]'"):
        config.load()


# ---- one with TLS, and one without


@on_loop
async def test_a_plain_host_that_meets_tls_is_told_so(ours: Files, caplog: pytest.LogCaptureFixture) -> None:
    secure, plain = Host(tls=ours.config()), Host()
    async with running(secure, plain):
        plain.send(secure, bulk(10))
        await until(lambda: plain.counters.refused and secure.counters.refused)
        told = "the host that dialed speaks no TLS, and the one that it dialed only TLS"
        assert len([text for text in said(caplog) if told in text]) == 2
        secure.send(plain, bulk(10))
        await until(lambda: plain.counters.refused == secure.counters.refused == 2)
        told = "the host that dialed speaks TLS, and the one that it dialed does not"
        assert len([text for text in said(caplog) if told in text]) == 2
    assert not plain.received
    assert not secure.received


@on_loop
async def test_without_tls_others_than_this_machine_are_warned_of(
    ours: Files, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(Host(), Host("[::1]:0"), Host(tls=ours.config(), listen_address="0.0.0.0:0")):
        assert not said(caplog)
    async with running(Host(listen_address="0.0.0.0:0")):
        (text,) = said(caplog)
    assert "listens on 0.0.0.0:0 without TLS: each process that reaches this port can" in text
    assert "docs/security.md" in text


def test_another_authority_is_a_change_of_trust(ours: Files) -> None:
    tls = Tls(ours.config(), LOG)
    assert not tls.use(ours.config().load())
    ours.ca.write_bytes(ours.ca.read_bytes() + trustme.CA().cert_pem.bytes())
    assert tls.use(ours.config().load())
    assert tls.use(ours.config(allowed=["127.0.0.1"]).load())


def test_names_that_are_changed_in_place_are_a_change_of_trust(ours: Files) -> None:
    names, allowed = {"10.0.0.1:1": ["db-1"]}, {"127.0.0.1"}
    config = ours.config(names=names, allowed=allowed)
    tls = Tls(config, LOG)
    assert not tls.use(config.load())
    names["10.0.0.1:1"].append("db-2")
    assert tls.use(config.load())
    allowed.add("db-3")
    assert tls.use(config.load())
    assert not tls.use(config.load())


def test_what_only_openssl_can_read_is_named(ours: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is stricter. A host that runs goes on with what it has."""

    def strict(_: bytes) -> list[x509.Certificate]:
        raise ValueError("a serial number of 0")

    monkeypatch.setattr(x509, "load_pem_x509_certificates", strict)
    with pytest.raises(ConfigError, match="a serial number of 0") as caught:
        ours.config().load()
    assert caught.value.option == "tls.ca"
