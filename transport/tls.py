"""Mutual TLS: both ends of a connection show a certificate, and check the one of the other.

OpenSSL checks that the authority signed it. For which host it was made is compared here, on both ends by one rule: a
host that dials knows the name before the introduction, and one that is dialed only after it.
"""

import ssl
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias, TypeVar
from weakref import WeakSet

from drakkar.handlers.checks import check_switch, check_type
from drakkar.handlers.errors import ConfigError, TransportError
from drakkar.transport.addresses import canonical, parse_address
from drakkar.transport.certificates import (
    Certificate,
    expiry_of_certificates,
    expiry_of_lists,
    size_of_certificates,
)
from drakkar.transport.options import Log
from drakkar.transport.records import HANDSHAKE_LIMIT, MeasuredTls
from drakkar.transport.reminders import Reminders

__all__ = ["Credentials", "Tls", "TlsConfig"]

T = TypeVar("T")
Names: TypeAlias = Mapping[str, str | Collection[str]] | Callable[[str, tuple[str, ...]], bool]

_CERTIFICATES: Final = "a file of certificates in PEM format"
_KEY_EXCHANGE: Final = "prime256v1"
"""The one group in which keys are exchanged. By default OpenSSL takes ffdhe8192 too where the other side asks for it, and
before it has shown any certificate: that is 0.1 s of the loop for each handshake. All versions of OpenSSL have this group, also
those that are limited to FIPS 140, so hosts that offer others first agree on it, with one more round trip."""
_MAX_CHAIN_BYTES: Final = HANDSHAKE_LIMIT - (2 << 10)
"""All else in a handshake takes about one KiB."""
_REVOCATIONS: Final = "a file of revocation lists in PEM format, and of nothing else"


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """The certificates of a host: files in PEM format. It needs the extra `tls`: pip install 'drakkar[tls]'.

    One authority signs the certificates of all hosts. A host shows its certificate when it dials and when it is
    dialed, so the certificate must be valid for servers and for clients.

    A host looks at the files every few seconds, and takes changed ones without a restart; `NodeHost.reload_tls` does so
    at once.

    Raises `ConfigError` for an option of the wrong type.
    """

    ca: str | Path
    """The certificate of the authority, or of several. A peer must show a certificate that one of them signed."""
    cert: str | Path
    """The certificate of this host, followed by the intermediate ones up to the authority, if any."""
    key: str | Path
    """The private key of `cert`, not encrypted."""
    check_hostname: bool = True
    """A host must show a certificate for the name, or the IP address, in the address by which it introduces itself, and
    by which it was dialed.

    Without this check, any host with a certificate of the authority may speak for any other.
    """
    names: Names | None = field(default=None, hash=False)
    """For certificates that do not have the hosts' names. Either by address of a host, the name or names of which one must
    be in its certificate: addresses that are not in the mapping follow the rule of `check_hostname`. Or a function of an
    address and of the names in a certificate, which returns whether that certificate may speak for the address; it is
    called in the host's loop, often, and must return at once.

    A name is a DNS name, an IP address, a URI or an e-mail address among the subject's alternative names, or "CN=..." for
    its common name.
    """
    revoked: str | Path | None = None
    """Revocation lists of the authorities that signed the hosts' certificates: one of each, or no certificate of that
    authority is taken. A list that has expired lets no certificate in either."""
    allowed: Collection[str] | None = field(default=None, hash=False)
    """Names of certificates that are taken at all: one of these must be in the certificate, written as there. None: any.

    List the hosts here unless the authority makes certificates for them alone: docs/security.md says what others could do.
    """

    def __post_init__(self) -> None:
        for option in ("ca", "cert", "key", "revoked"):
            if option != "revoked" or self.revoked is not None:
                check_type(f"tls.{option}", getattr(self, option), (str, PathLike), "the path of a file")
        check_switch("tls.check_hostname", self.check_hostname)
        _check_names(self.names)
        if self.allowed is not None:
            _check_texts("tls.allowed", self.allowed)

    def stamp(self) -> tuple[object, ...]:
        """Return what changes when one of the files does."""
        return tuple(_stamp(Path(path)) for path in (self.ca, self.cert, self.key, self.revoked) if path)

    def load(self) -> "Credentials":
        """Read the files. From any thread. Raises `ConfigError` that names a missing or invalid one."""
        stamp = self.stamp()  # before: what changes meanwhile is read again
        server, client = self.server_context(), self.client_context()
        authorities = _read("ca", self.ca, _CERTIFICATES)
        own = _read("cert", self.cert, _CERTIFICATES)
        _check_chain(self.cert, own)
        lists = b"" if self.revoked is None else _read("revoked", self.revoked, _REVOCATIONS)
        expiries = {
            "ca": _parse("ca", self.ca, _CERTIFICATES, lambda: expiry_of_certificates(authorities)),
            "cert": _parse("cert", self.cert, _CERTIFICATES, lambda: expiry_of_certificates(own)),
        }
        if self.revoked is not None:
            expiries["revoked"] = _parse(
                "revoked", self.revoked, _REVOCATIONS, lambda: expiry_of_lists(lists)
            )
        return Credentials(
            self,
            server,
            client,
            trust=(authorities, lists, _copy(self.allowed), _copy(self.names), self.check_hostname),
            expiries=expiries,
            own=_parse("cert", self.cert, _CERTIFICATES, lambda: Certificate.of_file(own)),
            stamp=stamp,
        )

    def server_context(self) -> ssl.SSLContext:
        """Return the context for accepted connections. Raises `ConfigError` that names a missing or invalid file."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # A resumed session would not check the certificate again.
        context.num_tickets = 0
        context.sslobject_class = MeasuredTls
        return self._load(context)

    def client_context(self) -> ssl.SSLContext:
        """Return the context for dialing. Raises `ConfigError` that names a missing or invalid file."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # `Tls` compares the names, for both ends
        return self._load(context)

    def _load(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_ecdh_curve(_KEY_EXCHANGE)
        context.verify_mode = ssl.CERT_REQUIRED
        _try("ca", self.ca, _CERTIFICATES, context.load_verify_locations)
        if self.revoked is not None:
            _try("revoked", self.revoked, _REVOCATIONS, context.load_verify_locations)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        # The certificate is loaded by itself first, to tell a bad certificate from a bad key.
        _try(
            "cert",
            self.cert,
            "a certificate in PEM format",
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations,
        )
        # Without a password OpenSSL would ask for one on the terminal, and block the host.
        _try(
            "key",
            self.key,
            f"the private key of {self.cert}, in PEM format and not encrypted",
            lambda key: context.load_cert_chain(self.cert, key, password=""),
        )
        return context


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a `TlsConfig` and its files say at one moment."""

    config: TlsConfig
    server: ssl.SSLContext
    """For accepted connections."""
    client: ssl.SSLContext
    """For dialing."""
    trust: tuple[Any, ...]
    """Everything by which certificates of others are judged. Where it changes, those that were let in are judged anew."""
    expiries: Mapping[str, float]
    """By option, when the first certificate or list of its file expires: seconds since 1970."""
    own: Certificate
    """What this host shows."""
    stamp: tuple[object, ...]
    """Of the files, shortly before they were read."""


class Ended(Protocol):
    """A connection that can be ended from outside."""

    def end(self, why: str) -> None:
        """Let it end soon, as lost for this reason."""


class Tls:
    """The TLS of a host: what it shows, and which certificates it takes for which hosts. For the loop's thread only."""

    def __init__(self, config: TlsConfig, log: Log) -> None:
        """Raises `ConfigError` that names a missing or invalid file."""
        self._log = log
        self._reminders = Reminders()
        self.connections: WeakSet[Ended] = WeakSet()
        """Those that stand, or are being made."""
        self.credentials = config.load()

    def use(self, credentials: Credentials) -> bool:
        """Use other certificates for new connections. Return whether all old ones are ended, to judge their hosts anew."""
        anew = credentials.trust != self.credentials.trust
        self.credentials = credentials
        if anew:
            for connection in list(self.connections):
                connection.end("this host trusts other certificates than before, and checks all of them anew")
        return anew

    def speaks_for(self, certificate: Certificate, address: str) -> bool:
        """Return whether a host with this certificate may speak as the one at `address`."""
        return self.objection(certificate, address) is None

    def objection(self, certificate: Certificate, address: str) -> str | None:
        """Return why a host with this certificate is not taken for the one at `address`; None where it is."""
        config = self.credentials.config
        if config.allowed is not None and not any(map(certificate.has, config.allowed)):
            return (
                f"the certificate of {address} is for {certificate}, and none of its names is in tls.allowed"
            )
        try:
            return _mismatch(config, certificate, address)
        except TransportError as error:
            return str(error)
        except Exception:  # noqa: BLE001  # a function of the user: its mistake must let none in, and end no task
            if self._reminders.due("names"):
                self._log.exception(
                    "tls.names failed for %s and the certificate for %s", address, certificate
                )
            return (
                f"the certificate of {address} cannot be judged: tls.names failed at the host that judges it"
            )


def _mismatch(config: TlsConfig, certificate: Certificate, address: str) -> str | None:
    if not config.check_hostname:
        return None
    names = config.names
    if callable(names):
        if names(address, certificate.names):
            return None
        return (
            f"the certificate of {address} is for {certificate}, and tls.names does not take it for {address}"
        )
    wanted = _listed({canonical(key): value for key, value in (names or {}).items()}.get(canonical(address)))
    if wanted:
        if any(map(certificate.has, wanted)):
            return None
        return (
            f"the certificate of {address} is for {certificate}, and not for {' or '.join(map(repr, wanted))}, which "
            "tls.names says: give it that certificate, or correct tls.names"
        )
    host, _ = parse_address(address)
    if certificate.is_for(host):
        return None
    return (
        f"the certificate of {address} is for {certificate}, and not for {host!r}: give each host a certificate for the "
        "name in its address, or say in tls.names which name it has"
    )


def _listed(names: str | Collection[str] | None) -> Collection[str]:
    if names is None:
        return ()
    return (names,) if isinstance(names, str) else names


def _check_names(names: object) -> None:
    if names is None or callable(names):
        return
    check_type("tls.names", names, Mapping, "a mapping from addresses to names, or a function")
    assert isinstance(names, Mapping)
    for address, wanted in names.items():
        try:
            canonical(address)
        except TransportError as error:
            raise ConfigError("tls.names", address, f"is no address of a host: {error}") from error
        _check_texts("tls.names", [wanted] if isinstance(wanted, str) else wanted)


def _check_texts(option: str, names: object) -> None:
    if isinstance(names, str) or not isinstance(names, Collection) or not names:
        raise ConfigError(option, names, "must be a list of one name of a certificate or more")
    for name in names:
        check_type(option, name, str, "a list of texts")


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """Return inode, time and size; None where the file is missing."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _parse(option: str, path: str | Path, remedy: str, parse: Callable[[], T]) -> T:
    """Return what `parse` does. Raises `ConfigError` where the contents of a file are not what they should be."""
    try:
        return parse()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"tls.{option}", str(path), f"name {remedy}; this file is not one ({error})"
        ) from error


def _check_chain(path: str | Path, pem: bytes) -> None:
    """Raise `ConfigError` where other hosts would end the handshake, and this one would not hear why."""
    size = _parse("cert", path, _CERTIFICATES, lambda: size_of_certificates(pem))
    if size > _MAX_CHAIN_BYTES:
        raise ConfigError(
            "tls.cert",
            str(path),
            f"its certificates have {size} bytes, and hosts take {_MAX_CHAIN_BYTES}: name a file of the host's own certificate and "
            "of those between it and the authority alone",
        )


def _copy(names: Names | Collection[str] | None) -> object:
    """Return what does not change with `names`."""
    if isinstance(names, Mapping):
        return {address: frozenset(_listed(wanted)) for address, wanted in names.items()}
    return frozenset(names) if isinstance(names, Collection) else names


def _read(option: str, path: str | Path, remedy: str) -> bytes:
    contents: list[bytes] = []
    _try(option, path, remedy, lambda path: contents.append(Path(path).read_bytes()))
    return contents[0]


def _try(option: str, path: str | Path, remedy: str, load: Callable[[str], None]) -> None:
    """Load one file. Raises `ConfigError` that names the option, the file, and what it should contain."""
    try:
        Path(path).open("rb").close()
        load(str(path))
    except ssl.SSLError as error:
        reason = error.reason or error
        raise ConfigError(
            f"tls.{option}", str(path), f"name {remedy}; this file is not one ({reason})"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"tls.{option}", str(path), f"name {remedy}; this file cannot be read: {error.strerror}"
        ) from error
