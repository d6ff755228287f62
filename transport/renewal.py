"""Certificates are replaced without a restart, and those that expire soon are told of."""

import time
from collections.abc import Callable
from typing import Final

import trio
from drakkar.handlers.errors import ConfigError
from drakkar.transport.options import Log
from drakkar.transport.tls import Credentials, Tls

__all__ = ["Renewal"]

LOOK_EVERY_S: Final = 5.0
TELL_AGAIN_S: Final = 24 * 3600.0
TELL_AHEAD_S: Final = 14 * 24 * 3600.0
"""How long before its end a certificate is told of."""


class Renewal:
    """Looks at the files of a host's certificates. For the loop's thread only."""

    def __init__(
        self,
        tls: Tls,
        log: Log,
        *,
        address: Callable[[], str],
        used: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`address` returns the one of this host. `used` is called when there are new certificates. `clock`: seconds since 1970."""
        self._tls, self._log, self._clock = tls, log, clock
        self._address, self._used = address, used
        self._told_at: float | None = None
        self._unusable: tuple[object, ...] = ()
        """The stamp of files that were found to be so."""

    @property
    def credentials(self) -> Credentials:
        """What is used now. From any thread."""
        return self._tls.credentials

    async def run(self) -> None:
        """Take changed files, and warn of expiry, until cancelled.

        Files are taken once two looks have found them alike, and not while they are being written.
        """
        self._warn_of_name()
        seen = await self._look()
        while True:
            self._warn_of_expiry()
            await trio.sleep(LOOK_EVERY_S)
            before, seen = seen, await self._look()
            if seen == before and seen not in {self.credentials.stamp, self._unusable}:
                await self._take_changed_files(seen)

    async def _look(self) -> tuple[object, ...]:
        # On a thread, which may stay behind: the files may be on a file system that hangs.
        return await trio.to_thread.run_sync(self.credentials.config.stamp, abandon_on_cancel=True)

    async def _take_changed_files(self, seen: tuple[object, ...]) -> None:
        used = self.credentials
        try:
            credentials = await trio.to_thread.run_sync(used.config.load, abandon_on_cancel=True)
        except ConfigError as error:
            if self.credentials is used:
                self._unusable = seen
                self._log.warning(
                    "keeps the certificates that it has, since changed files cannot be used: %s", error
                )
            return
        self.use(credentials, instead_of=used)

    def use(self, credentials: Credentials, *, instead_of: Credentials) -> bool:
        """Use these from now on, if `instead_of` is still used; return whether it was.

        `instead_of` is what was used before these were read. Where it is not any more, others were put in its place while
        they were read, and these may be older.
        """
        if self.credentials is not instead_of:
            return False
        anew = self._tls.use(credentials)
        self._log.info(
            "uses new certificates%s", "; all connections are closed, and made anew with them" if anew else ""
        )
        self._told_at = None
        self._warn_of_name()
        self._warn_of_expiry()
        self._used()
        return True

    def _warn_of_name(self) -> None:
        """Warn where other hosts will refuse this one, as far as it can tell."""
        why = self._tls.objection(self._tls.credentials.own, self._address())
        if why is not None:
            self._log.warning("other hosts will refuse this one: %s", why)

    def _warn_of_expiry(self) -> None:
        """Warn, once a day, of what expires within two weeks or has expired."""
        now = self._clock()
        if self._told_at is not None and now < self._told_at + TELL_AGAIN_S:
            return
        self._told_at = now
        credentials = self._tls.credentials
        for option, end in credentials.expiries.items():
            if end < now + TELL_AHEAD_S:
                self._log.warning(
                    "tls.%s=%s %s: replace the file, and this host takes it without a restart",
                    option,
                    getattr(credentials.config, option),
                    _when(end, now),
                )


def _when(end: float, now: float) -> str:
    date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(end))
    if end <= now:
        return f"has expired, at {date}, so other hosts refuse this one or are refused"
    return f"expires in {(end - now) / 86400:.0f} days, at {date}"
