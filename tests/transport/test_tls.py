"""Mutual TLS: a host without a certificate of the authority is refused."""

import logging
import socket
import ssl
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.lowlevel
import trustme
from drakkar.handlers.errors import ConfigError, TransportError
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.entries import Entry
from drakkar.transport.addresses import parse_address
from drakkar.transport.connection import Connection
from drakkar.transport.frames import FrameKind, encode_frame
from drakkar.transport.hello import PROTOCOL_VERSION, Hello, encode_hello
from drakkar.transport.options import Counters, Options
from drakkar.transport.tcp import TcpTransport
from drakkar.transport.tls import TlsConfig

from tests.transport.support import on_loop


class Files:
    """The files of one authority, and of hosts whose certificates it signed."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.folder = folder
        self.ca = folder / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca)

    def config(self, name: str = "127.0.0.1", *, into: str = "", **changed: object) -> TlsConfig:
        """Issue a certificate for a name, into files of this name or another one."""
        issued = self.authority.issue_cert(name)
        cert, key = self.folder / f"{into or name}.pem", self.folder / f"{into or name}.key"
        cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key)
        return TlsConfig(**{"ca": self.ca, "cert": cert, "key": key} | changed)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("theirs"))


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as a warning."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


QUICK = Options(backoff_first=0.01, backoff_last=0.02)
MESSAGE = Message(MessageType.REPLICATE, sender=1, entries=(Entry(1, 1, payload=bytes(1 << 20)),))


class Host:
    def __init__(self, tls: TlsConfig | None, options: Options = QUICK) -> None:
        self.received: list[Message] = []
        self.lost: list[str] = []
        self.transport = TcpTransport(
            "127.0.0.1:0",
            deliver=lambda _, messages: self.received.extend(messages),
            unreachable=self.lost.append,
            tls=tls,
            options=options,
        )


async def exchange(a: Host, b: Host) -> None:
    """Let a send to b until it is there, or a is told that it cannot."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for host in (a, b):
                await nursery.start(host.transport.serve)
            a.transport.send(b.transport.address, [MESSAGE])
            while not (b.received or (a.lost and b.transport.counters.refused)):  # noqa: ASYNC110  # no event
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()


def test_hosts_of_one_authority_exchange_messages(ours: Files) -> None:
    a, b = Host(ours.config()), Host(ours.config())
    trio.run(exchange, a, b)
    assert b.received == [MESSAGE]
    assert a.lost == []


def test_control_overtakes_bulk_that_is_encrypted_and_bulk_keeps_its_order(ours: Files) -> None:
    a, b = Host(ours.config()), Host(ours.config())
    sent = [Message(MessageType.REPLICATE, sender=1, term=at, entries=MESSAGE.entries) for at in range(1, 21)]
    vote = Message(MessageType.REQUEST_VOTE, sender=1, term=9)

    async def scenario() -> None:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for host in (a, b):
                    await nursery.start(host.transport.serve)
                a.transport.send(b.transport.address, sent)
                while not b.received:  # no event
                    await trio.lowlevel.checkpoint()
                assert a.transport.waiting(b.transport.address, 0)
                a.transport.send(b.transport.address, [vote])
                while len(b.received) < 21:  # noqa: ASYNC110  # no event
                    await trio.sleep(0.001)
                nursery.cancel_scope.cancel()

    trio.run(scenario)
    assert b.received.index(vote) < 15
    assert [message for message in b.received if message != vote] == sent


def test_what_travels_is_encrypted(ours: Files) -> None:
    """A listener between the two sees neither the deployment nor a payload."""
    seen = bytearray()

    async def relay(source: trio.abc.ReceiveStream, sink: trio.abc.SendStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in source:
                seen.extend(data)
                await sink.send_all(data)

    async def scenario() -> None:
        a, b = Host(ours.config()), Host(ours.config())
        secret = Message(MessageType.HEARTBEAT, sender=1, payload="very secret")

        async def between(caller: trio.SocketStream) -> None:
            host, port = parse_address(b.transport._listen_address)
            async with await trio.open_tcp_stream(host, port) as callee, trio.open_nursery() as both:
                both.start_soon(relay, caller, callee)
                both.start_soon(relay, callee, caller)

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
                where = f"127.0.0.1:{listener.socket.getsockname()[1]}"
                (probe,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
                behind = f"127.0.0.1:{probe.socket.getsockname()[1]}"
                await probe.aclose()
                b.transport = TcpTransport(
                    where,
                    listen_address=behind,
                    deliver=lambda _, messages: b.received.extend(messages),
                    unreachable=print,
                    tls=ours.config(),
                )
                nursery.start_soon(trio.serve_listeners, between, [listener])
                for host in (a, b):
                    await nursery.start(host.transport.serve)
                a.transport.send(where, [secret])
                while not b.received:  # noqa: ASYNC110  # no event
                    await trio.sleep(0.001)
                nursery.cancel_scope.cancel()

    trio.run(scenario)
    assert len(seen) > 1000
    assert b"secret" not in seen
    assert b"default" not in seen


def test_a_host_of_another_authority_is_not_talked_to_and_both_sides_say_why(
    ours: Files, theirs: Files, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = Host(ours.config()), Host(theirs.config())
    trio.run(exchange, a, b)
    assert b.received == []
    assert a.transport.counters.refused == 1
    mine, its = sorted(said(caplog))
    assert "cannot reach" in mine
    assert "self-signed certificate" in mine
    assert "may not trust the certificate" in its


def test_a_host_of_another_authority_is_not_let_in_and_both_sides_say_why(
    ours: Files, theirs: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Although it trusts ours."""
    both = tmp_path / "both.pem"
    both.write_bytes(ours.ca.read_bytes() + theirs.ca.read_bytes())
    a, b = Host(theirs.config(ca=both)), Host(ours.config())
    trio.run(exchange, a, b)
    assert b.received == []
    assert b.transport.counters.accepted == 0
    mine, its = sorted(said(caplog))
    assert "cannot reach" in mine
    assert "may not trust the certificate of this host" in mine
    assert "self-signed certificate" in its


def test_a_host_without_a_certificate_is_refused(ours: Files, caplog: pytest.LogCaptureFixture) -> None:
    """Even one that trusts our authority."""

    async def scenario() -> None:
        b = Host(ours.config())
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                address = await nursery.start(b.transport.serve)
                host, port = parse_address(address)
                nameless = ssl.create_default_context(cafile=str(ours.ca))
                async with await trio.open_tcp_stream(host, port) as stream:
                    secure = trio.SSLStream(stream, nameless, server_hostname=host)
                    await secure.send_all(
                        encode_hello(Hello(PROTOCOL_VERSION, "default", "10.0.0.9:1", address))
                    )
                    with pytest.raises(trio.BrokenResourceError):
                        await secure.receive_some()
                while not b.transport.counters.refused:  # noqa: ASYNC110  # no event
                    await trio.sleep(0.001)
                assert b.transport.counters.accepted == 0
                nursery.cancel_scope.cancel()

    trio.run(scenario)
    assert any("PEER_DID_NOT_RETURN_A_CERTIFICATE" in text for text in said(caplog))


def test_a_host_without_tls_is_refused(ours: Files) -> None:
    a, b = Host(None), Host(ours.config())
    trio.run(exchange, a, b)
    assert b.received == []
    assert b.transport.counters.refused + b.transport.counters.malformed >= 1


def test_a_host_that_is_dialed_must_have_a_certificate_for_the_name(
    ours: Files, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = Host(ours.config()), Host(ours.config("db-2.example"))
    trio.run(exchange, a, b)
    assert b.received == []
    mine, its, before = sorted(said(caplog))
    assert before.startswith("other hosts will refuse this one: the certificate of ")
    assert f"the certificate of {b.transport.address} is for 'db-2.example', and not for '127.0.0.1'" in mine
    assert "is for 'db-2.example', and not for '127.0.0.1'" in its
    assert b.transport.counters.accepted == 0


def test_a_host_that_dials_must_have_a_certificate_for_the_name_by_which_it_introduces_itself(
    ours: Files, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = Host(ours.config("db-2.example")), Host(ours.config())
    trio.run(exchange, a, b)
    assert b.received == []
    assert (b.transport.counters.accepted, b.transport.counters.refused) == (0, 1)
    mine, its, before = sorted(said(caplog))
    assert before.startswith("other hosts will refuse this one: the certificate of ")
    assert f"the certificate of {a.transport.address} is for 'db-2.example', and not for '127.0.0.1'" in mine
    assert "closed the connection from" in its
    assert "is for 'db-2.example', and not for '127.0.0.1'" in its


def test_the_name_is_not_checked_where_that_is_asked_for(ours: Files) -> None:
    a = Host(ours.config(check_hostname=False))
    b = Host(ours.config("db-2.example", check_hostname=False))
    trio.run(exchange, a, b)
    assert b.received == [MESSAGE]


def test_a_tls_host_answers_pings_and_notices_silence(ours: Files) -> None:
    quick = Options(keepalive=0.02, answer_timeout=0.5)

    async def scenario() -> None:
        a, b = Host(ours.config(), quick), Host(ours.config(), quick)
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for host in (a, b):
                    await nursery.start(host.transport.serve)
                a.transport.send(b.transport.address, [MESSAGE])
                while True:
                    await trio.sleep(0.001)
                    status = a.transport.peers()[b.transport.address]
                    if status.rtt is not None and a.transport.counters.received_bytes > 500:
                        break
                assert a.transport.counters.lost == 0
                nursery.cancel_scope.cancel()

    trio.run(scenario)


def test_a_host_without_a_place_says_so_and_that_is_no_refusal(ours: Files) -> None:
    async def scenario() -> None:
        others = Options(backoff_first=0.01, backoff_last=1000, backoff_refused=1000)
        a, b, c = (
            Host(ours.config(), others),
            Host(ours.config(), Options(max_incoming=1)),
            Host(ours.config()),
        )
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for host in (a, b):
                    await nursery.start(host.transport.serve)
                c_serves = trio.CancelScope()

                async def serve_c(*, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
                    with c_serves:
                        await c.transport.serve(task_status=task_status)

                await nursery.start(serve_c)
                c.transport.send(b.transport.address, [MESSAGE])
                while not b.received:  # noqa: ASYNC110  # no event
                    await trio.sleep(0.001)
                while a.transport.counters.connect_failures < 5:
                    a.transport.send(b.transport.address, [MESSAGE])
                    await trio.sleep(0.001)
                assert "no members of its shards" in a.transport.peers()[b.transport.address].error
                c_serves.cancel()
                while len(b.received) < 2:
                    a.transport.send(b.transport.address, [MESSAGE])
                    await trio.sleep(0.001)
                nursery.cancel_scope.cancel()
        assert a.transport.counters.refused == b.transport.counters.refused == 0
        assert b.transport.counters.full >= 5

    trio.run(scenario)


def test_a_host_that_ends_the_connection_in_the_handshake_has_not_refused_the_certificate(
    ours: Files, caplog: pytest.LogCaptureFixture
) -> None:
    """As one does that has no place: it judges the certificate later."""

    async def read_and_close(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.aclose()

    async def scenario() -> None:
        a = Host(ours.config())
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                await nursery.start(a.transport.serve)
                (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
                nursery.start_soon(partial(trio.serve_listeners, read_and_close, [listener]))
                address = f"127.0.0.1:{listener.socket.getsockname()[1]}"
                while a.transport.counters.connect_failures < 5:
                    a.transport.send(address, [MESSAGE])
                    await trio.sleep(0.001)
                assert a.transport.counters.refused == 0
                nursery.cancel_scope.cancel()

    trio.run(scenario)
    assert "closed the connection during the handshake" in said(caplog)[0]


# ---- files


def test_a_missing_file_is_named(ours: Files) -> None:
    good = ours.config()
    for option in ("ca", "cert", "key"):
        config = ours.config(**{option: ours.folder / "nowhere.pem"})
        for make in (config.server_context, config.client_context):
            with pytest.raises(ConfigError) as caught:
                make()
            assert caught.value.option == f"tls.{option}"
            assert "nowhere.pem" in str(caught.value)
            assert "No such file" in str(caught.value)
    assert good.server_context().verify_mode == ssl.CERT_REQUIRED


def test_a_file_of_the_wrong_kind_is_named(ours: Files, tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("this is no certificate")
    for option in ("ca", "cert", "key"):
        with pytest.raises(ConfigError) as caught:
            ours.config(**{option: junk}).server_context()
        assert caught.value.option == f"tls.{option}"
        assert "junk.pem" in str(caught.value)


def test_a_key_of_another_certificate_is_named(ours: Files, theirs: Files) -> None:
    with pytest.raises(ConfigError) as caught:
        ours.config(key=theirs.config().key).client_context()
    assert caught.value.option == "tls.key"
    assert "KEY_VALUES_MISMATCH" in str(caught.value)


def test_an_encrypted_key_is_refused_and_no_password_is_asked_for(ours: Files, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    plain = serialization.load_pem_private_key(Path(ours.config().key).read_bytes(), password=None)
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        plain.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ConfigError, match="not encrypted"):
        ours.config(key=locked).client_context()


def test_certificates_that_no_host_takes_are_refused_before_they_are_used(ours: Files) -> None:
    config = ours.config(into="bundle")
    bundle = Path(config.cert)
    bundle.write_bytes(bundle.read_bytes() + ours.ca.read_bytes() * 40)
    with pytest.raises(
        ConfigError, match=r"its certificates have \d{5} bytes, and hosts take 14336: name a file"
    ):
        config.load()


def test_a_transport_with_bad_files_is_not_made(ours: Files, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tls\.ca"):
        Host(ours.config(ca=tmp_path / "nowhere.pem"))


def test_a_frame_is_no_client_hello() -> None:
    """What `test_a_host_without_tls_is_refused` relies on: neither protocol is taken for the other."""
    assert encode_frame(FrameKind.PING)[:1] != b"\x16"


@pytest.mark.parametrize("server_side", [False, True], ids=["that dialed", "that was dialed"])
@on_loop
async def test_a_host_that_ends_a_connection_before_it_speaks_in_the_handshake_has_lost_it_for_its_own_reason(
    ours: Files, server_side: bool
) -> None:
    here, there = socket.socketpair()
    with here, there:
        context = ssl.create_default_context()
        if server_side:
            there.sendall(client_hello(context))
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            ours.authority.issue_cert("127.0.0.1").configure_cert(context)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(here))
        name = None if server_side else "127.0.0.1"
        secure = trio.SSLStream(stream, context, server_hostname=name, server_side=server_side)
        connection = Connection(secure, Counters(), 1 << 20)
        connection.end("it trusts others now")
        with pytest.raises(TransportError, match="it trusts others now"):
            await connection.secure()


def client_hello(context: ssl.SSLContext) -> bytes:
    """What a host that dials says first."""
    said = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), said, server_hostname="127.0.0.1")
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return said.read()
