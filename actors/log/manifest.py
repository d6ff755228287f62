"""The manifest of a log, the file `LOG`: whose log it is, and which segments belong to it.

It holds its text twice, and is written in place, one copy after the other: that takes no space on a full disk, and a
crash leaves one of the copies whole.
"""

import json
from typing import Any, Final, NamedTuple
from zlib import crc32

from drakkar.actors.log.data_dir import REMEDY
from drakkar.actors.log.files import Files
from drakkar.handlers.errors import ConfigError, CorruptData

__all__ = ["COPY_BYTES", "MANIFEST", "NEW_MANIFEST", "Listed", "Manifest"]

MANIFEST: Final = "LOG"
NEW_MANIFEST: Final = "LOG.new"
"""Its name until it is whole for the first time."""
FORMAT: Final = 2
"""The first format was LMDB's."""
COPY_BYTES: Final = 4096
"""Bytes of a copy, filled up with spaces: a block of its own."""


class Listed(NamedTuple):
    """The segments that belong to the log."""

    first: int = 1
    last: int = 1
    sequence: int = 1
    """The number of the first record in the first segment."""


class Manifest:
    """The manifest of one log. All methods raise `OSError`."""

    def __init__(self, files: Files, owner: str) -> None:
        """`owner` names the host to which the log belongs."""
        self._files, self._owner = files, owner
        self.listed = Listed()
        """What is in it. Used by one job at a time."""
        self._copies = (0, COPY_BYTES)
        """Where the copies begin, in the order in which they are written: last the one that is known to be whole."""

    @property
    def exists(self) -> bool:
        """Whether there is a log in the folder."""
        return MANIFEST in self._files.names()

    def create(self) -> None:
        """List the first segment, durably. A crash leaves the whole manifest or none."""
        self._files.allocate(NEW_MANIFEST, 2 * COPY_BYTES, filled=False)
        self._files.put(NEW_MANIFEST, 0, 2 * self._copy())
        self._files.rename(NEW_MANIFEST, MANIFEST)

    def save(self, first: int, last: int, sequence: int) -> None:
        """List these segments from now on, durably."""
        self.listed = Listed(first, last, sequence)
        copy = self._copy()
        for begin in self._copies:
            self._files.put(MANIFEST, begin, copy)

    def load(self) -> Listed:
        """Return what it lists. Raises `ConfigError` for another format or owner, and `CorruptData`."""
        if not self.exists:
            raise CorruptData(f"{self._files.path} lacks {MANIFEST}, which names its segments: {REMEDY}")
        content = self._files.read(MANIFEST, 0, 2 * COPY_BYTES)
        try:
            fields = self._fields(content[:COPY_BYTES])
            self._copies = COPY_BYTES, 0
        except (CorruptData, ConfigError) as problem:
            try:
                fields = self._fields(content[COPY_BYTES:])
            except (CorruptData, ConfigError):
                raise problem from None
            self._copies = 0, COPY_BYTES
        owner, *numbers = fields.values()
        if owner != self._owner:
            raise self._refused(
                f"holds the log of host {owner!r}, and this data directory is that of host {self._owner!r}: {REMEDY}"
            )
        self.listed = first, last, sequence = Listed(*numbers)
        if set(map(type, numbers)) != {int} or not 1 <= first <= last < 1 << 32 or sequence < 1:
            raise self._damaged(f"names segments {first!r} to {last!r}")
        return self.listed

    def _copy(self) -> bytes:
        fields = {"format": FORMAT, "host_id": self._owner, **self.listed._asdict()}
        fields["checksum"] = _checksum(fields)
        return json.dumps(fields, indent=2).encode().ljust(COPY_BYTES - 1) + b"\n"

    def _fields(self, copy: bytes) -> dict[str, Any]:
        """Return what a copy holds: the owner, and the fields of `Listed`."""
        try:
            fields: Any = json.loads(copy)
            found, checksum = fields["format"], fields.pop("checksum", None)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._damaged(f"cannot be read ({error!r})") from error
        if found != FORMAT:
            raise self._refused(
                f"holds a log of format {found!r}, and this version reads {FORMAT}: use the version that wrote it"
            )
        names = ("host_id", *Listed._fields)
        if checksum != _checksum(fields) or not fields.keys() >= set(names):
            raise self._damaged("does not match its checksum")
        return {name: fields[name] for name in names}

    def _damaged(self, problem: str) -> CorruptData:
        return CorruptData(f"{self._files.path}/{MANIFEST} {problem}: {REMEDY}")

    def _refused(self, problem: str) -> ConfigError:
        return ConfigError("data_dir", str(self._files.path), problem)


def _checksum(fields: dict[str, Any]) -> int:
    return crc32(json.dumps(fields).encode())
