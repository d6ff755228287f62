"""Mutual TLS: both ends of a connection show a certificate, and check the one of the other."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from drakkar.handlers.errors import ConfigError

__all__ = ["TlsConfig"]


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """The certificates of a host: three files in PEM format.

    One authority signs the certificates of all hosts. A host shows its certificate when it dials and when it is
    dialed, so the certificate must be valid for servers and for clients.
    """

    ca: str | Path
    """The certificate of the authority, or of several. A peer must show a certificate that one of them signed."""
    cert: str | Path
    """The certificate of this host, followed by the intermediate ones up to the authority, if any."""
    key: str | Path
    """The private key of `cert`, not encrypted."""
    check_hostname: bool = True
    """A host that is dialed must show a certificate for the name, or the IP address, that was dialed.

    Without this check, any host with a certificate of the authority may answer for any other.
    """

    def server_context(self) -> ssl.SSLContext:
        """Return the context for accepted connections. Raises `ConfigError` that names a missing or invalid file."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        return self._load(context)

    def client_context(self) -> ssl.SSLContext:
        """Return the context for dialing. Raises `ConfigError` that names a missing or invalid file."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = self.check_hostname
        return self._load(context)

    def _load(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        _try("ca", self.ca, "a file of certificates in PEM format", context.load_verify_locations)
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
