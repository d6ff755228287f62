"""Certificates for a trial: an authority of one's own, and what it signs for each host."""

import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from drakkar.handlers.errors import ConfigError

__all__ = ["Made", "make_certificates"]

_AUTHORITY: Final = "ca"
"""The name of its files."""
_GOOD_FOR: Final = timedelta(days=365)
"""Certificates of hosts."""
_AUTHORITY_GOOD_FOR: Final = timedelta(days=3650)
"""The authority. Its end takes three steps on all hosts, and that of a host's certificate two files of one host."""
_CLOCKS_DIFFER: Final = timedelta(hours=1)
"""How far the clock of a host may be behind the one of this machine."""
_NAME: Final = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class _Signer:
    """The authority, with its key."""

    certificate: x509.Certificate
    key: EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class Made:
    """What `make_certificates` has made, and until when it is good."""

    new_authority: bool
    """False: the one that was there has signed the certificates."""
    authority: datetime
    hosts: Mapping[str, datetime]


def make_certificates(folder: Path, hosts: Sequence[str]) -> Made:
    """Make a certificate for each host, signed by the authority in the folder, which is made too where there is none.

    Writes ca.pem, ca.key, and for each host HOST.pem and HOST.key. A certificate is good for a year, but not longer than the
    authority, which is good for ten. Overwrites nothing: raises `ConfigError` for a file that
    exists, and for a host that is no DNS name and no IP address, and has written nothing then.
    """
    names = {host: _general_name(host) for host in hosts}
    for host in hosts:
        for path in (folder / f"{host}.pem", folder / f"{host}.key"):
            if path.exists():
                raise ConfigError("HOST", host, f"has {path} already: move it away to have another made")
    folder.mkdir(parents=True, exist_ok=True)
    signer, is_new = _authority(folder)
    ends = {}
    for host, name in names.items():
        key = generate_private_key(SECP256R1())
        certificate = _sign(signer, key, host, name)
        _write(folder / f"{host}.key", _private(key), 0o600)
        _write(folder / f"{host}.pem", certificate.public_bytes(Encoding.PEM), 0o644)
        ends[host] = certificate.not_valid_after_utc
    return Made(is_new, signer.certificate.not_valid_after_utc, ends)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _NAME.fullmatch(host) or host == _AUTHORITY:
        raise ConfigError("HOST", host, "must be a DNS name or an IP address, without a port")
    return x509.DNSName(host)


# ---- the authority


def _authority(folder: Path) -> tuple[_Signer, bool]:
    """Return the authority of a folder, and whether it was made now."""
    certificate, key = folder / f"{_AUTHORITY}.pem", folder / f"{_AUTHORITY}.key"
    if certificate.exists() and key.exists():
        return _read_authority(certificate, key), False
    for path in (certificate, key):
        if path.exists():
            raise ConfigError(
                "DIR",
                str(folder),
                f"has {path.name} alone: name another directory, or put the other file back",
            )
    made = _make_authority()
    _write(key, _private(made.key), 0o600)
    _write(certificate, made.certificate.public_bytes(Encoding.PEM), 0o644)
    return made, True


def _read_authority(certificate: Path, key: Path) -> _Signer:
    try:
        found = load_pem_private_key(key.read_bytes(), password=None)
        signer = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (ValueError, TypeError) as error:
        raise ConfigError(
            "DIR", str(certificate.parent), f"has an authority that cannot be read: {error}"
        ) from error
    if not isinstance(found, EllipticCurvePrivateKey) or found.public_key() != signer.public_key():
        raise ConfigError(
            "DIR", str(certificate.parent), "has an authority that this command did not make: name another"
        )
    if (end := signer.not_valid_after_utc) <= datetime.now(UTC):
        raise ConfigError(
            "DIR",
            str(certificate.parent),
            f"has an authority that has expired, on {end:%Y-%m-%d}: name another directory for a new one",
        )
    return _Signer(signer, found)


def _make_authority() -> _Signer:
    key = generate_private_key(SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Drakkar trial authority")])
    start = datetime.now(UTC) - _CLOCKS_DIFFER
    public = key.public_key()
    certificate = (
        x509.CertificateBuilder(
            name, name, public, x509.random_serial_number(), start, start + _AUTHORITY_GOOD_FOR
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _Signer(certificate, key)


# ---- the certificate of a host


def _sign(
    signer: _Signer, key: EllipticCurvePrivateKey, host: str, name: x509.GeneralName
) -> x509.Certificate:
    authority, public = signer.certificate, key.public_key()
    start = datetime.now(UTC) - _CLOCKS_DIFFER
    end = min(start + _GOOD_FOR, authority.not_valid_after_utc)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
    builder = x509.CertificateBuilder(
        authority.subject, subject, public, x509.random_serial_number(), start, end
    )
    for extension, critical in (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage(signs=False), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), False),
        (x509.SubjectAlternativeName([name]), False),
        (x509.SubjectKeyIdentifier.from_public_key(public), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key()), False),
    ):
        builder = builder.add_extension(extension, critical)
    return builder.sign(signer.key, hashes.SHA256())


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


# ---- files


def _private(key: EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, content: bytes, mode: int) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:  # noqa: PTH123
        file.write(content)
