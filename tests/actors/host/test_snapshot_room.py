"""Room on the disk for snapshots that arrive."""

import pytest
from drakkar.actors.host.snapshot_room import SnapshotRoom
from drakkar.handlers.errors import DiskFull

RESERVE = 100


class Disk:
    def __init__(self, free):
        self.free = free
        self.room = SnapshotRoom(lambda: self.free, RESERVE)

    def write(self, reservation, size):
        with self.room.writing(reservation, size):
            self.free -= size


def test_what_fits_beside_the_reserve_is_taken_and_not_a_byte_more():
    disk = Disk(1000)
    disk.room.give_back(disk.room.reserve(900, member=True))
    with pytest.raises(
        DiskFull, match="has 1000 bytes free, and 1001 are needed: for the 901 that this snapshot"
    ):
        disk.room.reserve(901, member=True)


def test_what_was_announced_is_kept_free_until_it_is_written_or_given_up():
    disk = Disk(1000)
    first = disk.room.reserve(600, member=True)
    disk.write(first, 500)
    with pytest.raises(DiskFull, match="for the 100 of others"):
        disk.room.reserve(301, member=True)
    second = disk.room.reserve(300, member=True)
    disk.write(first, 100)
    disk.room.give_back(first)
    disk.write(second, 300)
    assert disk.free == RESERVE


def test_a_snapshot_ends_where_others_have_taken_its_room_meanwhile():
    disk = Disk(1000)
    reservation = disk.room.reserve(600, member=True)
    disk.write(reservation, 100)
    disk.free -= 301
    with pytest.raises(DiskFull, match="are needed"):
        disk.write(reservation, 100)
    disk.free += 1
    disk.write(reservation, 500)


def test_members_find_the_room_that_others_have_announced_and_those_end():
    disk = Disk(1000)
    other = disk.room.reserve(900, member=False)
    with pytest.raises(DiskFull):
        disk.room.reserve(1, member=False)
    member = disk.room.reserve(500, member=True)
    with pytest.raises(DiskFull, match="for the 500 of others"):
        disk.write(other, 1)
    disk.write(member, 500)


def test_a_write_that_fails_counts_for_nothing_and_a_reservation_may_be_given_back_twice():
    disk = Disk(1000)
    reservation = disk.room.reserve(900, member=True)
    with pytest.raises(OSError, match="full"), disk.room.writing(reservation, 900):
        raise OSError("full")
    assert reservation.rest == 900
    disk.room.give_back(reservation)
    disk.room.give_back(reservation)
    disk.room.reserve(900, member=True)
