"""The file `MOVES` of a data directory: at which other addresses its host may start.

The address in `IDENTITY` changes only to one that a shard has committed for a replica of this host, or that an operator has
set with the tool. So a wrong address in a script starts no host under a name by which no one knows it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from drakkar.actors.log.json_files import read_json, replace_json
from drakkar.handlers.errors import CorruptData

__all__ = ["MOVES", "MOVES_FILES", "read_moves", "write_moves"]

MOVES: Final = "MOVES"
MOVES_FILES: Final = frozenset({MOVES, f"{MOVES}.new"})
"""Its name, and its name while it is written."""

_REMEDY: Final = "delete it, and set the address of this host with `drakkar renumber`"


def read_moves(directory: Path) -> frozenset[str]:
    """Return the canonical addresses at which the host may start next, beside its own. Raises `CorruptData`."""
    path = directory / MOVES
    if not path.exists():
        return frozenset()
    addresses = read_json(path, _REMEDY).get("addresses")
    if type(addresses) is not list or not all(type(address) is str for address in addresses):
        raise CorruptData(f"{path} does not list addresses: {_REMEDY}")
    return frozenset(addresses)


def write_moves(directory: Path, addresses: Iterable[str]) -> None:
    """Write them, durably. Raises `OSError`."""
    replace_json(directory / MOVES, {"addresses": sorted(addresses)})
