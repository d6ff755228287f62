"""What certificates say: for which names they were made, and when they expire. Pure functions, from any thread."""

import ipaddress
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Self

from drakkar.handlers.errors import ConfigError

__all__ = ["Certificate", "expiry_of_certificates", "expiry_of_lists", "size_of_certificates"]

_CERTIFICATE: Final = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_LIST: Final = re.compile(b"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)
_NEVER: Final = datetime(9999, 1, 1, tzinfo=UTC)
_NAMES_SHOWN: Final = 5
_LABEL: Final = re.compile(r"[a-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Certificate:
    """The names in the certificate of the other side. OpenSSL has checked who signed it, and that it is valid now."""

    dns: tuple[str, ...] = ()
    """Its DNS names, which may have `*` as the first label."""
    ips: tuple[str, ...] = ()
    """Its IP addresses."""
    others: tuple[str, ...] = ()
    """Its URIs and e-mail addresses, and the common names of its subject as "CN=..."."""

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Self:
        """Read what `ssl.SSLObject.getpeercert` returns."""
        names: dict[str, list[str]] = {"DNS": [], "IP Address": [], "URI": [], "email": []}
        for kind, name in fields.get("subjectAltName", ()):
            if kind in names:
                names[kind].append(name.strip())
        common = [
            f"CN={value}" for part in fields.get("subject", ()) for key, value in part if key == "commonName"
        ]
        return cls(tuple(names["DNS"]), tuple(names["IP Address"]), (*names["URI"], *names["email"], *common))

    @classmethod
    def of_file(cls, pem: bytes) -> Self:
        """Read the first certificate of a file. Raises `ConfigError` without the extra."""
        x509 = _x509()
        found = x509.load_pem_x509_certificates(pem)[0]
        try:
            names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            names = x509.SubjectAlternativeName([])
        of = names.get_values_for_type
        common = (
            f"CN={each.value}" for each in found.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        )
        return cls(
            tuple(of(x509.DNSName)),
            tuple(map(str, of(x509.IPAddress))),
            (*of(x509.UniformResourceIdentifier), *of(x509.RFC822Name), *common),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """All names in it."""
        return self.dns + self.ips + self.others

    def is_for(self, host: str) -> bool:
        """Return whether it was made for a host, by its DNS name or its IP address (RFC 9525, section 6).

        A common name counts for nothing here.
        """
        ip = _ip(host)
        if ip is not None:
            return any(_ip(each) == ip for each in self.ips)
        name = _ascii(host)
        return name is not None and any(_matches(pattern, name) for pattern in self.dns)

    def has(self, name: str) -> bool:
        """Return whether a name is in it, as it is written there: `*` stands for itself."""
        ip = _ip(name)
        if ip is not None:
            return any(_ip(each) == ip for each in self.ips)
        return name in self.others or _folded(name) in map(_folded, self.dns)

    def __str__(self) -> str:
        names = self.names
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        return ", ".join(map(repr, names[:_NAMES_SHOWN])) + more or "no name"


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.partition("%")[0])  # without the interface of a link-local one
    except ValueError:
        return None


def _ascii(host: str) -> str | None:
    """Return a host's name as certificates write it; None where there is no such spelling."""
    if host.isascii():
        return _folded(host)
    try:
        return _folded(host.encode("idna").decode())
    except UnicodeError:
        return None


def _folded(name: str) -> str:
    return name.lower().removesuffix(".")


def _matches(pattern: str, name: str) -> bool:
    """Return whether a DNS name of a certificate stands for `name`.

    A `*` stands for one label, and only where it is the whole first one, before two or more others.
    """
    pattern = _folded(pattern)
    label, _, parent = name.partition(".")
    if not _LABEL.fullmatch(label):
        return False
    return pattern in {name, f"*.{parent}" if "." in parent else name}


# ---- files


def expiry_of_certificates(pem: bytes) -> float:
    """Return when the first of some certificates expires, in seconds since 1970. Raises `ConfigError` without the extra."""
    x509 = _x509()
    ends: list[datetime] = [each.not_valid_after_utc for each in x509.load_pem_x509_certificates(pem)]
    return min(ends).timestamp()


def size_of_certificates(pem: bytes) -> int:
    """Return how many bytes some certificates take in a handshake."""
    return sum(
        len(ssl.PEM_cert_to_DER_cert(each)) for each in _CERTIFICATE.findall(pem.decode(errors="replace"))
    )


def expiry_of_lists(pem: bytes) -> float:
    """Do as `expiry_of_certificates` for revocation lists, of which one without a date expires never.

    Raises `ValueError` where there is none, and where there are certificates too, which OpenSSL would trust.
    """
    x509 = _x509()
    if b"CERTIFICATE-----" in pem:
        raise ValueError("there are certificates in it")
    ends: list[datetime] = [
        x509.load_pem_x509_crl(each).next_update_utc or _NEVER for each in _LIST.findall(pem)
    ]
    return min(ends).timestamp()


def _x509() -> Any:
    try:
        from cryptography import x509  # noqa: PLC0415  # an extra: only hosts with TLS need it
    except ImportError as error:
        raise ConfigError("tls", "", "needs a library more: pip install 'drakkar[tls]'") from error
    return x509
