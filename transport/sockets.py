"""The sockets of this process's connections and listeners. A forked child closes its copies at once.

Otherwise a child would keep the port, and connections that nothing serves, for as long as it lives.
"""

import contextlib
import os
import selectors
import socket
from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary, WeakSet

import trio

__all__ = ["track", "track_listener", "track_selector"]

_tracked: Final[WeakSet[trio.socket.SocketType | socket.socket]] = WeakSet()
_listeners: "Final[WeakKeyDictionary[socket.socket, tuple[str, int]]]" = WeakKeyDictionary()
"""With their addresses, since one may be in the middle of its end when the process forks."""
_selectors: Final[WeakSet[selectors.BaseSelector]] = WeakSet()
_OWN_FILES: Final = Path("/proc/self/fd")
_ALL_INTERFACES: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104  # compared with, and not bound to


def track(connection: trio.socket.SocketType | socket.socket) -> None:
    """Close a socket in forked children, without a word to its peer and to trio, which go on with the parent's."""
    _tracked.add(connection)


def track_listener(listener: socket.socket) -> None:
    """Do as `track`, and close in forked children also what it has accepted, and was not tracked yet."""
    _listeners[listener] = listener.getsockname()[:2]
    _tracked.add(listener)


def track_selector(selector: selectors.BaseSelector) -> None:
    """Close a selector in forked children."""
    _selectors.add(selector)


def _close_copies() -> None:
    ours = set(_listeners.values())
    for selector in list(_selectors):
        selector.close()
    _selectors.clear()
    for tracked in list(_tracked):
        with contextlib.suppress(OSError):
            number = tracked.detach()
            if number >= 0:
                os.close(number)
    _tracked.clear()
    _listeners.clear()
    if ours:
        with contextlib.suppress(FileNotFoundError):  # not on Linux
            _close_accepted(ours)


def _close_accepted(ours: set[tuple[str, int]]) -> None:
    """Close what the loop's thread had accepted, at these addresses, so shortly before the fork that it was not tracked."""
    for link in list(_OWN_FILES.iterdir()):
        with contextlib.suppress(OSError):  # it is none, or not connected any more
            if not str(link.readlink()).startswith("socket:"):
                continue
            found = socket.socket(fileno=int(link.name))
            try:
                name = found.getsockname()
            finally:
                found.detach()
            if isinstance(name, tuple) and any(_is_at(name, address) for address in ours):
                os.close(int(link.name))


def _is_at(name: tuple[str, int], address: tuple[str, int]) -> bool:
    return name[1] == address[1] and (name[0] == address[0] or address[0] in _ALL_INTERFACES)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_copies)
