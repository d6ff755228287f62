"""Whether a snapshot that another host announces has room on this host's disk, beside what its log needs and other snapshots."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from drakkar.handlers.errors import DiskFull

__all__ = ["DiskReservation", "SnapshotRoom"]


@dataclass(eq=False, slots=True)
class DiskReservation:
    """The room for one snapshot that arrives."""

    rest: int
    """Bytes of it that are not written yet."""
    member: bool
    """Its sender is a member of a shard of this host. Others must leave room for what members have announced."""


class SnapshotRoom:
    """The reservations of all snapshots that arrive at a host. From any thread."""

    def __init__(self, free_bytes: Callable[[], float], reserve: int) -> None:
        """`free_bytes` may block and raise `OSError`. `reserve`: bytes of the disk that snapshots leave free."""
        self._free_bytes, self._reserve = free_bytes, reserve
        self._lock = threading.Lock()
        self._reservations: set[DiskReservation] = set()

    def reserve(self, size: int, *, member: bool) -> DiskReservation:
        """Keep room for a snapshot of `size` bytes. Raises `DiskFull` where there is none; its text is for this host's own log."""
        reservation = DiskReservation(size, member)
        with self._lock:
            self._check(reservation)
            self._reservations.add(reservation)
        return reservation

    @contextmanager
    def writing(self, reservation: DiskReservation, size: int) -> Iterator[None]:
        """Write `size` bytes of a snapshot in the block. Raises `DiskFull` where others have taken its room meanwhile."""
        with self._lock:
            self._check(reservation)
        yield
        with self._lock:
            reservation.rest -= size

    def give_back(self, reservation: DiskReservation) -> None:
        """End a reservation: the snapshot is written, or given up. A second call does nothing."""
        with self._lock:
            self._reservations.discard(reservation)

    def _check(self, reservation: DiskReservation) -> None:
        ahead = sum(
            each.rest for each in self._reservations - {reservation} if each.member or not reservation.member
        )
        needed, free = reservation.rest + ahead + self._reserve, self._free_bytes()
        if needed > free:
            raise DiskFull(
                f"the disk has {free:.0f} bytes free, and {needed} are needed: for the {reservation.rest} that this snapshot still "
                f"has, for the {ahead} of others that arrive, and for the log"
            )
