"""How addresses are written and compared."""

import pytest
from drakkar.handlers.errors import TransportError
from drakkar.transport.addresses import canonical, parse_address
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
    ["", "10.0.0.1", ":7000", "a:", "a:b", "a:70000", "a:-1", "::1:7000", "[::1]", "[a]:1", "a b:1", "a:1 "],
)
def test_what_is_no_address_is_refused_with_the_remedy(address: str) -> None:
    with pytest.raises(TransportError) as caught:
        TcpTransport(address, deliver=print, unreachable=print)
    assert repr(address) in str(caught.value)
    assert any(
        remedy in str(caught.value) for remedy in ("write it as", "a port up to 65535", "must be an IPv6")
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [("[::1]:1", "[0:0::1]:1"), ("Db-1.Example:1", "db-1.example.:1"), ("[::ffff:1]:01", "[::FFFF:0001]:1")],
)
def test_an_address_has_one_canonical_spelling(one: str, other: str) -> None:
    assert canonical(one) == canonical(other)
