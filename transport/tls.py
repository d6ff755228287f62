"""Mutual TLS: both ends of a connection show a certificate, and check the other's."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from drakkar.handlers.errors import ConfigError

__all__ = ["TlsConfig"]


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """Where the certificates of a host are: three files in PEM format.

    Every host has a certificate that is signed by the same authority. It is shown to whoever dials, and to whoever is
    dialed, so it must be good for servers and for clients.
    """

    ca: str | Path
    """The certificate of the authority, or several of them: only what they signed is let in."""
    cert: str | Path
    """The certificate of this host, followed by those between it and the authority, if any."""
    key: str | Path
    """The private key of `cert`, not encrypted."""
    check_hostname: bool = True
    """Whoever is dialed must show a certificate for the very name, or IP address, that was dialed.

    Without, any host of the authority may answer for any other.
    """

    def server_context(self) -> ssl.SSLContext:
        """Make what accepting connections needs. Raises `ConfigError` naming the file that is missing or no good."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        return self._load(context)

    def client_context(self) -> ssl.SSLContext:
        """Make what dialing needs. Raises `ConfigError` naming the file that is missing or no good."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = self.check_hostname
        return self._load(context)

    def _load(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        _try("ca", self.ca, "a file of certificates in PEM format", context.load_verify_locations)
        # The certificate is tried alone first, to tell a bad one from a bad key.
        _try(
            "cert",
            self.cert,
            "a certificate in PEM format",
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations,
        )
        # Without a password OpenSSL would ask for one on the terminal, and the host would stand still.
        _try(
            "key",
            self.key,
            f"the private key of {self.cert}, in PEM format and not encrypted",
            lambda key: context.load_cert_chain(self.cert, key, password=""),
        )
        return context


def _try(option: str, path: str | Path, remedy: str, load: Callable[[str], None]) -> None:
    """Load one file, or say which it is, and what it should be."""
    try:
        Path(path).open("rb").close()
        load(str(path))
    except ssl.SSLError as error:
        reason = error.reason or error
        raise ConfigError(f"tls.{option}", str(path), f"name {remedy}; this is none ({reason})") from error
    except OSError as error:
        raise ConfigError(
            f"tls.{option}", str(path), f"name {remedy}; it cannot be read: {error.strerror}"
        ) from error
