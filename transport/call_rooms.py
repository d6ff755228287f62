"""How full the lanes for calls are, as any thread may ask: a call that finds no room fails at once, in its own thread.

A record takes its place before it is on its way to the loop, and gives it back when it has left the host, or was handed
back. So what the loop has not seen yet is bounded too, and what has a place is never refused later.

Why this is right with any number of threads: all figures are read and changed by holders of one lock alone. The GIL
would not do, since `+=` on an attribute reads and then writes, and another thread may run in between: then two records
would have one place, or a place would be lost for ever. The lock is held for some additions a record. Its holder waits for
nothing and calls nothing of others, so the loop, which takes it too, waits for it no longer than for the GIL. What is
read without it, `records` and `bytes`, is for people to look at.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final
from weakref import WeakValueDictionary

from drakkar.handlers.errors import SystemBusy
from drakkar.transport.addresses import peer_name
from drakkar.transport.call_frames import check_record
from drakkar.transport.options import Options

__all__ = ["MAX_WAIT_SHARE", "CallRoom", "CallRooms"]

MAX_WAIT_SHARE: Final = 0.25
"""The part of its timeout that a question may have to wait in the lane: more records may come before those that wait leave, and
it waits again on its way and in the inbox of its actor."""


class CallRooms:
    """The rooms of the lanes to all hosts. From any thread."""

    def __init__(self, options: Options, clock: Callable[[], float] = time.monotonic) -> None:
        self.options: Final = options
        self.clock: Final = clock
        self.lock: Final = threading.Lock()
        self.refused = 0
        """Records that found no room, and questions that would have been answered too late, over all lanes."""
        self._rooms: WeakValueDictionary[str, CallRoom] = WeakValueDictionary()
        """Those that a lane or a caller has: a host that asks may say another address each time."""

    def of(self, address: str) -> "CallRoom":
        """Return the room of the lane to the host at `address`."""
        name = peer_name(address)
        with self.lock:
            room = self._rooms.get(name)
            if room is None:
                self._rooms[name] = room = CallRoom(self, address)
            return room

    def count_refused(self, count: int) -> None:
        """So many records were refused for another reason than a full lane."""
        with self.lock:
            self.refused += count


class CallRoom:
    """How many records, and bytes, wait for one host: in its lane, or on their way there. From any thread."""

    __slots__ = ("__weakref__", "_moves_since", "_rooms", "_since", "address", "bytes", "records")

    def __init__(self, rooms: CallRooms, address: str) -> None:
        self._rooms = rooms
        self.address: Final = address
        self.records = 0
        self.bytes = 0
        self._since: deque[float] = deque()
        """When each record came that waits."""
        self._moves_since = math.inf
        """When the first one left by the connection that there is. Before that, the host may be dialed only now."""

    def admit(self, record: bytes, within: float = math.inf) -> None:
        """Take a place for a record that is sent with `TcpTransport.send_calls(…, admitted=True)` then, in the loop.

        `within`: seconds that a question has. Where the ones before it wait so long for their turn that all would be
        answered too late, it is refused: else a host that is asked more than it can do would answer nobody in time.

        Raises `SystemBusy` where there is no place, and `TransportError` for what the receiver would not take. If it
        cannot be sent after all, `give_back` its place.
        """
        check_record(record, self._rooms.options.longest_call)
        waited = self._waited()
        if waited > within * MAX_WAIT_SHARE:
            self._rooms.count_refused(1)
            raise SystemBusy(
                f"{self.records} calls wait for {self.address}, which takes them more slowly than they come: the first of "
                f"them for {waited:.2f} s, so no answer is to be expected within {within:g} s: ask less often, or raise the "
                "timeout"
            )
        if not self.take((len(record),)):
            raise self._busy()

    def take(self, sizes: Sequence[int]) -> int:
        """Take places for records of these sizes, in order, until one finds none; return how many have one.

        A record of any size finds room where nothing waits.
        """
        rooms = self._rooms
        max_records, max_bytes = rooms.options.call_records, rooms.options.call_bytes
        with rooms.lock:
            for count, size in enumerate(sizes):
                if self.records and (self.records >= max_records or self.bytes + size > max_bytes):
                    rooms.refused += len(sizes) - count
                    return count
                self.records += 1
                self.bytes += size
                self._since.append(rooms.clock())
        return len(sizes)

    def give_back(self, records: int, size: int) -> None:
        """Give back the places of so many records, of so many bytes together, that are not queued: the last ones that came."""
        with self._rooms.lock:
            self._free(records, size, self._since.pop)

    def left(self, records: int, size: int) -> None:
        """So many records have left, the first ones of the lane."""
        with self._rooms.lock:
            self._free(records, size, self._since.popleft)
            self._moves_since = min(self._moves_since, self._rooms.clock())

    def dropped(self, records: int, size: int) -> None:
        """So many records, the first ones, are handed back."""
        with self._rooms.lock:
            self._free(records, size, self._since.popleft)

    def disconnected(self) -> None:
        """The connection has ended: until the next one takes records, their waiting says nothing."""
        with self._rooms.lock:
            self._moves_since = math.inf

    def _free(self, records: int, size: int, forget: Callable[[], object]) -> None:
        self.records -= records
        self.bytes -= size
        for _ in range(records):
            forget()

    def _waited(self) -> float:
        """Return for how many seconds the first record has waited while records could leave."""
        with self._rooms.lock:
            if not self._since:
                return 0.0
            return max(0.0, self._rooms.clock() - max(self._since[0], self._moves_since))

    def _busy(self) -> SystemBusy:
        options = self._rooms.options
        return SystemBusy(
            f"{self.records} calls of {self.bytes} bytes wait for {self.address}, and {options.call_records} of "
            f"{options.call_bytes} bytes may: wait a little and try again, or raise call_records or call_bytes"
        )
