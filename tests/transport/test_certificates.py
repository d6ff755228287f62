"""For which hosts a certificate was made: our answer is the one of OpenSSL."""

import ssl
from functools import cache
from pathlib import Path

import pytest
import trustme
from drakkar.transport.certificates import Certificate

NAMES = [
    "db-1.example.com",
    "DB-2.Example.com",
    "*.example.com",
    "*.com",
    "10.0.0.1",
    "2001:db8::1",
    "xn--bcher-kva.example",
    "localhost",
]
HOSTS = [
    "db-1.example.com",
    "db-2.example.com",
    "db-1.EXAMPLE.com",
    "db-1.example.com.evil.org",
    "a.db-1.example.com",
    "example.com",
    "evil.com",
    "10.0.0.1",
    "10.0.0.2",
    "2001:0db8:0::1",
    "2001:db8::2",
    "b\u00fccher.example",
    "localhost",
    "db-1",
]


@cache
def authority() -> trustme.CA:
    return trustme.CA()


def shake_hands(name: str, host: str | None) -> Certificate | None:
    """What a client reads in a certificate for `name`; None where OpenSSL does not take it for `host`."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued = issue(name)
    issued.configure_cert(server_context)
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = host is not None
    authority().configure_trust(client_context)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    client = client_context.wrap_bio(to_client, to_server, server_hostname=host)
    for _ in range(3):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLCertVerificationError as error:
                assert "match" in str(error)  # noqa: PT017  # the name is all that differs
                return None
    return Certificate.read(client.getpeercert() or {})


@cache
def issue(name: str) -> trustme.LeafCert:
    return authority().issue_cert(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_certificate_is_for_the_hosts_for_which_openssl_takes_it(name: str) -> None:
    certificate = shake_hands(name, None)
    assert certificate is not None
    ours = {host for host in HOSTS if certificate.is_for(host)}
    assert ours == {host for host in HOSTS if shake_hands(name, host) is not None}


@pytest.mark.parametrize(
    "host",
    [
        "",
        ".",
        "*.example.com",
        ".example.com",
        "a..example.com",
        "\x1b.example.com",
        "\u2025",
        "db-1.example.com\x00.evil",
    ],
)
def test_what_is_no_host_has_no_certificate(host: str) -> None:
    assert not Certificate(("*.example.com", "", "*", "*."), ("",)).is_for(host)


def test_a_name_is_of_its_kind() -> None:
    """A DNS name that looks like an IP address is none, and neither is a common name."""
    odd = Certificate(dns=("10.0.0.1", "*.0.0.1"), ips=("db-1.example.com",), others=("CN=db-1.example.com",))
    assert not odd.is_for("10.0.0.1")
    assert not odd.is_for("db-1.example.com")


def test_all_names_are_read(tmp_path: Path) -> None:
    fields = {
        "subject": ((("organizationName", "Ours"),), (("commonName", "db-1"),)),
        "subjectAltName": (
            ("DNS", "db-1.example.com"),
            ("IP Address", "2001:DB8:0:0:0:0:0:1"),
            ("URI", "spiffe://ours/db-1"),
            ("email", "db@example.com"),
            ("othername", "<unsupported>"),
        ),
    }
    certificate = Certificate.read(fields)
    assert certificate.is_for("db-1.example.com")
    assert certificate.is_for("2001:db8::1")
    assert certificate.others == ("spiffe://ours/db-1", "db@example.com", "CN=db-1")
    assert all(map(certificate.has, (*certificate.names, "2001:db8::1", "DB-1.example.com")))
    assert not certificate.has("db-1")
    assert str(Certificate()) == "no name"
    assert str(Certificate(dns=tuple(f"db-{number}" for number in range(100)))).endswith("'db-4' and 95 more")
