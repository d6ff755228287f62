"""How addresses are written and compared."""

import pytest
from drakkar.handlers.errors import TransportError
from drakkar.transport.addresses import canonical, parse_address, same_host
from drakkar.transport.tcp import TcpTransport


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        ("10.0.0.1:7000", ("10.0.0.1", 7000)),
        ("db-1.example:1", ("db-1.example", 1)),
        ("[::1]:65535", ("::1", 65535)),
        ("[fe80::1%eth0]:0", ("fe80::1%eth0", 0)),
    ],
)
def test_an_address_has_a_host_and_a_port(address: str, parsed: tuple[str, int]) -> None:
    assert parse_address(address) == parsed


@pytest.mark.parametrize(
    "address",
    [
        "",
        "10.0.0.1",
        ":7000",
        "a:",
        "a:b",
        "a:70000",
        "a:-1",
        "::1:7000",
        "[::1]",
        "[a]:1",
        "a b:1",
        "a:1 ",
        "a\x1b[2J:1",
        "a\x00:1",
    ],
)
def test_what_is_no_address_is_refused_with_the_remedy(address: str) -> None:
    with pytest.raises(TransportError) as caught:
        TcpTransport(address, deliver=print, unreachable=print)
    assert repr(address) in str(caught.value)
    assert any(
        remedy in str(caught.value) for remedy in ("write it as", "a port up to 65535", "must be an IPv6")
    )


def test_an_address_is_no_longer_than_a_name_can_be() -> None:
    assert parse_address(f"{'a' * 253}:65535")[1] == 65535
    with pytest.raises(TransportError, match="'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'… has 260 characters"):
        parse_address(f"{'a' * 254}:65535")


@pytest.mark.parametrize(
    ("one", "other"),
    [("[::1]:1", "[0:0::1]:1"), ("Db-1.Example:1", "db-1.example.:1"), ("[::ffff:1]:01", "[::FFFF:0001]:1")],
)
def test_an_address_has_one_canonical_spelling(one: str, other: str) -> None:
    assert canonical(one) == canonical(other)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        pytest.param("node:7000", "NODE.:7000", True, id="a name in two spellings"),
        pytest.param("[::1]:7000", "[0:0::1]:7000", True, id="an IP address in two spellings"),
        pytest.param("node:7000", "node:7001", False, id="two ports"),
        pytest.param("no address", "no address", True, id="the same that is none"),
        pytest.param("no address", "node:7000", False, id="one that is none"),
    ],
)
def test_addresses_that_name_one_host(one: str, other: str, same: bool) -> None:
    assert same_host(one, other) is same
