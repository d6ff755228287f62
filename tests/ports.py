"""Free ports for tests, also for those of several processes at a time.

They are below the ports that the system gives to outgoing connections. A process that dials a free port of its own machine
again and again may be given that very port for its own end, is then connected with itself, and the port is taken for the
listener of before. Each test process draws from a part of its own, so that no two are given the same port.
"""

import os
import random
import socket
from contextlib import suppress

_FIRST, _END = 15_000, 32_000
_PARTS = 8
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _PARTS
_SIZE = (_END - _FIRST) // _PARTS
_PORTS = range(_FIRST + _WORKER * _SIZE, _FIRST + (_WORKER + 1) * _SIZE)
_given: set[int] = set()


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Ports on which no process listens, and that were given to no other test of this process."""
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, suppress(OSError):
            if port not in _given:
                probe.bind((host, port))
                found.append(port)
        if len(found) == count:
            _given.update(found)
            return found
    raise AssertionError(f"no {count} ports of {_PORTS} are free")


def free_addresses(count: int) -> list[str]:
    """Addresses on loopback with such ports."""
    return [f"127.0.0.1:{port}" for port in free_ports(count)]
