"""Addresses of hosts: "host:port". Pure functions, from any thread."""

import ipaddress
import re
from functools import lru_cache
from typing import Final

from drakkar.handlers.errors import TransportError

__all__ = ["canonical", "parse_address", "peer_name", "same_host"]

_ADDRESS: Final = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<name>[^\[\]:\s]+)):(?P<port>[0-9]{1,5})")

_MAX_ADDRESS: Final = 253 + len(":65535")
"""Characters: a name in the DNS has up to 253. Addresses of hosts that no one knows are remembered by the thousand."""


def parse_address(address: str) -> tuple[str, int]:
    """Split "host:port", "10.0.0.1:7000" or "[::1]:7000" into host and port.

    Raises `TransportError` with the address and the remedy.
    """
    if isinstance(address, str) and len(address) > _MAX_ADDRESS:
        raise TransportError(
            f"address {address[:30]!r}… has {len(address)} characters: use one of up to {_MAX_ADDRESS}"
        )
    # What cannot be printed would reach terminals by way of the log.
    match = _ADDRESS.fullmatch(address) if isinstance(address, str) and address.isprintable() else None
    if match is None:
        raise TransportError(f"address {address!r}: write it as 'host:port', an IPv6 address as '[::1]:7000'")
    port = int(match["port"])
    if port > 0xFFFF:
        raise TransportError(f"address {address!r}: choose a port up to 65535")
    if match["v6"] is not None:
        try:
            ipaddress.IPv6Address(match["v6"])
        except ValueError as error:
            raise TransportError(
                f"address {address!r}: the text in brackets must be an IPv6 address: {error}"
            ) from error
    return match["v6"] or match["name"], port


def canonical(address: str) -> str:
    """Return the one spelling of `address` that is used to compare addresses.

    Raises `TransportError` where `address` is not one.
    """
    host, port = parse_address(address)
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return f"{host.lower().removesuffix('.')}:{port}"
    return f"[{ip.compressed}]:{port}" if ip.version == 6 else f"{ip}:{port}"


@lru_cache(4096)
def peer_name(address: str) -> str:
    """Do as `canonical`, but return what is no address as it is: each attempt to dial it reports that."""
    try:
        return canonical(address)
    except TransportError:
        return address


def same_host(one: str, other: str) -> bool:
    """Return whether two addresses name one host, however they are spelt."""
    return one == other or peer_name(one) == peer_name(other)
