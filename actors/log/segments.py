"""The segments of a log: files of a fixed size, made ahead of need, dropped as a whole, and used again.

    0001.segment … 0007.segment   in use, the last one is being written
    0008.segment                  the next one, ready
    spare-1, spare-2              the reserve: files that are allocated, for the time when the disk is full
    LOG                           the manifest: which segments belong to the log

Making, dropping and renaming files happens in the background, one job after the other. A new segment is in `LOG`
before it is written to, and a dropped one leaves `LOG` before its file is used again. So a file that is missing is found.
"""

import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from struct import Struct
from typing import Final
from zlib import crc32

from drakkar.actors.log.data_dir import LOST_AND_FOUND, REMEDY
from drakkar.actors.log.disk_errors import NO_SPACE, explain
from drakkar.actors.log.driver import Driver
from drakkar.actors.log.files import Files
from drakkar.actors.log.manifest import MANIFEST, NEW_MANIFEST, Manifest
from drakkar.actors.log.records import find_record
from drakkar.actors.runtime.log_lines import HostLines, Lines
from drakkar.handlers.errors import ConfigError, CorruptData, StorageFailed

__all__ = ["HEADER_BYTES", "RESERVE_BYTES", "SEGMENT_BYTES", "Segment", "Segments"]

_SPARE: Final = "spare-"
_OURS: Final = re.compile(rf"[0-9a-f]{{16}}\.segment|{_SPARE}[0-9]+|{re.escape(NEW_MANIFEST)}")
"""Names of files that may be deleted."""

_HEADER: Final = Struct("<8s16sQQII")
"""Magic, owner, number, bytes of the file, salt, checksum."""
_MAGIC: Final = b"drakkar2"
HEADER_BYTES: Final = 64
"""Where the first record of a segment begins."""

RESERVE: Final = 2
"""Spare files that are kept: one for what must be written on a full disk, one for moving what is needed to get room."""
SEGMENT_BYTES: Final = 16 << 20
"""Bytes of a file of a host's log."""
RESERVE_BYTES: Final = (1 + RESERVE) * SEGMENT_BYTES
"""What a log may still have to allocate, before it has its next segment and its reserve: others leave that much free."""
_MAX_SPARES: Final = RESERVE + 2
_RETRY_S: Final = 1.0
"""Seconds between two tries to make a segment on a full disk."""


@dataclass(slots=True)
class Segment:
    """A file of the log."""

    number: int
    size: int
    """Bytes of the file."""
    salt: int
    sequence: int = 0
    """The number of the first record in it, as soon as that is known."""
    end: int = HEADER_BYTES
    """Where the next record begins."""

    @property
    def name(self) -> str:
        """The name of its file."""
        return segment_name(self.number)

    @property
    def rest(self) -> int:
        """Bytes that are left for records."""
        return self.size - self.end


def segment_name(number: int) -> str:
    """Return the name of the file of a segment."""
    return f"{number:016x}.segment"


class Segments:
    """The segments of one log. For the log's thread; what blocks is done in the background."""

    def __init__(self, files: Files, owner: str, segment_bytes: int, lines: Lines | None = None) -> None:
        """`owner` names the host to which the log belongs."""
        self.files = files
        self.lines = lines or HostLines().of("drakkar.actors.log")
        self._owner_hash, self._size = blake2b(owner.encode(), digest_size=16).digest(), segment_bytes
        self.manifest = Manifest(files, owner)
        self.in_use: deque[Segment] = deque()
        """The oldest first; the last one is being written."""
        self.disk_bytes = 0
        """Bytes of the segments in use."""
        self.next: Segment | None = None
        self.no_space: OSError | None = None
        """Why no segment can be made, while the disk is full."""
        self._spares: list[str] = []
        self._new_spares = 0
        """Dropped segments that are being renamed."""
        self._spare_number = 0
        self._job_waits = False
        """A file is being made."""
        self._wanted = 0
        """Bytes of the next segment, if a record waits for it that is larger than a standard one."""
        self._cleaning_segment = 0
        """The segment that was made of the last spare file."""
        self._tried = 0.0
        self._driver: Driver
        self._ready: Callable[[], None]
        self._failed: Callable[[BaseException], None]

    def start(
        self, driver: Driver, *, ready: Callable[[], None], failed: Callable[[BaseException], None]
    ) -> None:
        """Make files from now on: `ready` is called when there is a new segment, `failed` when the disk fails."""
        self._driver, self._ready, self._failed = driver, ready, failed
        self._prepare()

    # -- opening --------------------------------------------------------------------------------------------------

    def create(self) -> None:
        """Begin a new log. Files of a start that was cut short are deleted. Raises `ConfigError`, `OSError`."""
        names = [name for name in self.files.names() if name != LOST_AND_FOUND]
        foreign = [name for name in names if not _OURS.fullmatch(name)]
        if foreign:
            raise ConfigError(
                "data_dir",
                str(self.files.path),
                f"holds {foreign[0]}, which is no part of a log: name an empty or a new directory",
            )
        for name in names:
            self.files.remove(name)
        self.files.allocate(segment_name(1), self._size, filled=True)
        self._write_header(1, self._size)
        self.manifest.create()

    def load(self) -> None:
        """Find the segments of the log. Changes nothing. Raises `ConfigError`, `CorruptData`, `OSError`."""
        names = self.files.names()
        first, last, sequence = self.manifest.load()
        for number in range(first, last + 1):
            name = segment_name(number)
            if name not in names:
                raise CorruptData(
                    f"{self.files.path} lacks {name}, though the log consists of segments {first:x} to {last:x}: {REMEDY}"
                )
            self._use(self._opened(number))
        self.in_use[0].sequence = sequence
        for name in names:
            if name.endswith(".segment") and _OURS.fullmatch(name) and int(name[:16], 16) > last:
                self._check_unlisted(name, last)

    def _check_unlisted(self, name: str, last: int) -> None:
        """Raise `CorruptData` if a file behind the last segment holds records: a crash leaves none there."""
        try:
            segment = self._opened(int(name[:16], 16))
        except CorruptData:
            return  # it was not ready
        data = memoryview(self.files.read(name, 0, segment.size))
        record = find_record(data, HEADER_BYTES, segment.number, segment.salt)
        if record is not None and not record.damaged:
            raise CorruptData(
                f"{self.files.path}/{MANIFEST} names no segment after {last:x}, but {name} holds records, so it is "
                f"an old copy: {REMEDY}"
            )

    def settle(self, active: Segment) -> None:
        """Go on behind what was found: `active` is the last segment that holds records. Deletes files that are no longer needed."""
        while self.in_use[-1].number > active.number + 1:
            self.disk_bytes -= self.in_use.pop().size
        if self.in_use[-1].number > active.number:
            self.next = self.in_use.pop()
            self.disk_bytes -= self.next.size
        self.manifest.save(self.in_use[0].number, (self.next or active).number, self.in_use[0].sequence)
        listed = {segment.name for segment in (*self.in_use, *([self.next] if self.next else ()))}
        for name in self.files.names():
            if name in listed or not _OURS.fullmatch(name):
                continue
            if (
                name.startswith(_SPARE)
                and self.files.size(name) == self._size
                and len(self._spares) < _MAX_SPARES
            ):
                self._spares.append(name)
                self._spare_number = max(self._spare_number, int(name[len(_SPARE) :]))
            else:
                self.files.remove(name)

    def _opened(self, number: int) -> Segment:
        name = segment_name(number)
        head = self.files.read(name, 0, _HEADER.size)
        if len(head) < _HEADER.size:
            raise CorruptData(
                f"{self.files.path}/{name} has {len(head)} bytes, and lacks its header: {REMEDY}"
            )
        magic, owner, stored, size, salt, checksum = _HEADER.unpack(head)
        if checksum != crc32(head[:-4]) or magic != _MAGIC:
            raise CorruptData(f"{self.files.path}/{name}, offset 0: the header is damaged: {REMEDY}")
        if owner != self._owner_hash or stored != number:
            raise CorruptData(
                f"{self.files.path}/{name} belongs to another log, or is segment {stored:x} of this one: {REMEDY}"
            )
        found = self.files.size(name)
        if found != size:
            raise CorruptData(f"{self.files.path}/{name} has {found} bytes, and not {size}: {REMEDY}")
        return Segment(number, size, salt)

    # -- writing --------------------------------------------------------------------------------------------------

    @property
    def active(self) -> Segment:
        """The segment that is being written."""
        return self.in_use[-1]

    def _use(self, segment: Segment) -> None:
        self.in_use.append(segment)
        self.disk_bytes += segment.size

    @property
    def standard_bytes(self) -> int:
        """Bytes of a segment that does not hold a record larger than that."""
        return self._size

    def advance(self, size: int, sequence: int, *, moving: bool = False) -> bool:
        """Make `active` a segment with room for record `sequence` of `size` bytes; all before it must be durable.

        Return False if there is none yet: `ready` is called when there is. `moving`: the record serves to drop a segment,
        so it may use the last spare file too. No other record may, until another segment is dropped.
        """
        while self.active.rest < size:
            if self.next is None:
                self._wanted = HEADER_BYTES + size
                self._prepare(reserve=RESERVE - 1 - moving)
            if self.next is None or (self._is_for_cleaning(self.next) and not moving):
                return False
            self._use(self.next)
            self.active.sequence = sequence
            self.next = None
        self._wanted = 0
        if self.next is None:
            self._prepare()
        return True

    @property
    def only_for_cleaning(self) -> bool:
        """Whether the active segment is the last of the reserve. It serves to move what is needed, so that others are dropped."""
        return self._is_for_cleaning(self.active)

    def _is_for_cleaning(self, segment: Segment) -> bool:
        return segment.number == self._cleaning_segment and not self._spares

    def retry(self) -> None:
        """Try again to make what is missing, if the disk was full, and some time has passed."""
        if self.no_space is not None:
            self._prepare()

    def room(self, size: int) -> bool:
        """Return whether a record of `size` bytes can be written without the reserve."""
        rests = [self.active.rest, self.next.rest if self.next is not None else 0]
        if self.no_space is not None:
            # A part of the reserve that is in use already is not for entries.
            return len(self._spares) >= RESERVE and size <= max(rests)
        return size <= sum(rests) or self.files.free_bytes() > size + self._size

    def drop_oldest(self) -> None:
        """Give back the oldest segment, of which nothing is needed any more."""
        oldest = self.in_use.popleft()
        self.disk_bytes -= oldest.size
        self.files.forget(oldest.name)
        keep = oldest.size == self._size and len(self._spares) + self._new_spares < _MAX_SPARES
        spare = self._new_spare_name() if keep else None
        self._new_spares += keep
        self._driver.background(
            partial(self._drop, oldest.name, self.in_use[0], spare), partial(self._on_dropped, spare)
        )

    def _drop(self, name: str, oldest: Segment, spare: str | None) -> None:
        self.manifest.save(oldest.number, self.manifest.listed.last, oldest.sequence)
        if spare is None:
            self.files.remove(name)
        else:
            self.files.rename(name, spare)

    def _on_dropped(self, spare: str | None, outcome: BaseException | None) -> None:
        if isinstance(outcome, BaseException):
            self._failed(outcome)
            return
        if spare is not None:
            self._new_spares -= 1
            self._spares.append(spare)
        self._ready()
        self._prepare()

    # -- making files -----------------------------------------------------------------------------------------------

    def _prepare(self, *, reserve: int = RESERVE) -> None:
        """Begin to make the next file that is missing: first the next segment, then the reserve.

        At least `reserve` spare files are left. If none is missing, a disk that was full may have room again: what it lacked may
        have come from dropped segments, and then no file is made that would show it.
        """
        if self._job_waits:
            return
        if self.next is None:
            size = max(self._wanted, self._size)
            spare = self._spares.pop() if len(self._spares) > reserve and size == self._size else None
            if spare is not None or self._may_allocate():
                number = self.active.number + 1
                if spare is not None and not self._spares:
                    self._cleaning_segment = number
                self._job_waits = True
                self._driver.background(
                    partial(self._add, spare, number, size), partial(self._on_made, spare)
                )
        elif len(self._spares) < RESERVE:
            if self._may_allocate():
                name = self._new_spare_name()
                self._job_waits = True
                self._driver.background(
                    partial(self.files.allocate, name, self._size, filled=False),
                    partial(self._on_spare, name),
                )
        elif self.no_space is not None and self.files.free_bytes() > self._size:
            self._has_space()

    def _may_allocate(self) -> bool:
        """Return whether the disk may have room; on a full one, it is tried again now and then."""
        now = time.monotonic()
        if self.no_space is not None and now - self._tried < _RETRY_S:
            return False
        self._tried = now
        return True

    def _add(self, spare: str | None, number: int, size: int) -> Segment:
        """Make the file of a segment, or take a spare file for it, and list it, durably.

        Raises `OSError` if there is no room for it; then nothing has changed. Raises `StorageFailed` for any later error;
        then it is not known what is on the disk.
        """
        name = segment_name(number)
        if spare is None:
            self.files.allocate(name, size, filled=size == self._size)
        else:
            self.files.rename(spare, name)
        try:
            made = self._write_header(number, size)
            first, _, sequence = self.manifest.listed
            self.manifest.save(first, number, sequence)
        except OSError as error:
            raise StorageFailed(f"{name} cannot be made: {explain(error)}") from error
        return made

    def _write_header(self, number: int, size: int) -> Segment:
        salt = self.files.salt()
        head = _HEADER.pack(_MAGIC, self._owner_hash, number, size, salt, 0)[:-4]
        self.files.put(segment_name(number), 0, head + crc32(head).to_bytes(4, "little"))
        return Segment(number, size, salt)

    def _on_made(self, spare: str | None, outcome: Segment | BaseException) -> None:
        self._job_waits = False
        if not isinstance(outcome, Segment):
            if spare is not None:
                self._spares.append(spare)
            self._on_error(outcome)
            return
        self.next = outcome
        if spare is None:
            self._has_space()
        self._ready()
        self._prepare()

    def _on_spare(self, name: str, outcome: BaseException | None) -> None:
        self._job_waits = False
        if outcome is not None:
            self._on_error(outcome)
            return
        self._spares.append(name)
        self._has_space()
        self._ready()
        self._prepare()

    def _on_error(self, error: BaseException) -> None:
        if not isinstance(error, OSError) or error.errno not in NO_SPACE:
            self._failed(error)
            return
        if self.no_space is None:
            self.lines.warning(
                "%s: %s. New entries are refused once %d bytes are written, until there is room",
                self.files.path,
                explain(error),
                self.active.rest + (self.next.rest if self.next is not None else 0),
            )
        self.no_space = error
        # What waits may use the reserve.
        self._ready()

    def _has_space(self) -> None:
        if self.no_space is not None:
            self.lines.warning("%s: the disk has room again", self.files.path)
            self.no_space = None

    def _new_spare_name(self) -> str:
        self._spare_number += 1
        return f"{_SPARE}{self._spare_number}"
