"""The files `RUN` and `HOSTS` of a data directory: how often its host has started, and which runs of others it has heard of.

`RUN` is raised at each start. A copy of the directory that another machine uses, or that is put back later, then has a run
that does not follow the one that other hosts remember. A directory of a version before has none, and begins with run 1.
"""

from collections.abc import Mapping
from pathlib import Path
from secrets import randbits
from typing import Final

from drakkar.actors.log.json_files import read_json, replace_json
from drakkar.handlers.checks import MAX_SIGNED, is_whole
from drakkar.handlers.errors import CorruptData

__all__ = ["HOSTS", "RUN", "RUN_FILES", "raise_run", "read_known_runs", "write_known_runs"]

RUN: Final = "RUN"
HOSTS: Final = "HOSTS"
RUN_FILES: Final = frozenset({RUN, f"{RUN}.new", HOSTS, f"{HOSTS}.new"})
"""The names of both, and of both while they are written."""
MAX_NONCES: Final = 64
"""Starts whose nonces are kept: so many may pass unseen, and a copy is still told from the original."""

_RUN_REMEDY: Final = (
    "put it back as it was, or replace the replicas of this host by new ones in an empty directory"
)
_HOSTS_REMEDY: Final = "delete it, and this host learns anew which runs of other hosts are the last"


def raise_run(directory: Path) -> tuple[int, tuple[int, ...]]:
    """Begin the next run of a host, durably; return its number, and the nonces of it and of those before, the newest first.

    Raises `CorruptData` where the file is damaged; `OSError`.
    """
    path = directory / RUN
    count, nonces = _read_run(path) if path.exists() else (0, [])
    nonces = [randbits(63), *nonces][:MAX_NONCES]
    replace_json(path, {"count": count + 1, "nonces": nonces})
    return count + 1, tuple(nonces)


def _read_run(path: Path) -> tuple[int, list[int]]:
    fields = read_json(path, _RUN_REMEDY)
    count, nonces = fields.get("count"), fields.get("nonces")
    if type(nonces) is not list or not is_whole(count, 1, MAX_SIGNED - 1) or not _are_nonces(nonces):
        raise CorruptData(f"{path} does not have the fields of a run: {_RUN_REMEDY}")
    return count, nonces


def _are_nonces(nonces: list[object]) -> bool:
    return bool(nonces) and all(is_whole(nonce, 0, MAX_SIGNED) for nonce in nonces)


def read_known_runs(directory: Path) -> dict[str, tuple[int, int, str]]:
    """Return number and nonce of the last run that was heard of, and where, by host id; "" in a file of a version before.

    Raises `CorruptData` for a damaged file.
    """
    path = directory / HOSTS
    if not path.exists():
        return {}
    return {host_id: _known_run(run, path) for host_id, run in read_json(path, _HOSTS_REMEDY).items()}


def _known_run(run: object, path: Path) -> tuple[int, int, str]:
    if isinstance(run, list) and len(run) in {2, 3}:
        count, nonce, address = (*run, "")[:3]
        if is_whole(count, 0, MAX_SIGNED) and is_whole(nonce, 0, MAX_SIGNED) and isinstance(address, str):
            return count, nonce, address
    raise CorruptData(
        f"{path} names the run {run!r:.60}, which is no pair of numbers and an address: {_HOSTS_REMEDY}"
    )


def write_known_runs(directory: Path, runs: Mapping[str, tuple[int, int, str]]) -> None:
    """Write them, durably. Raises `OSError`."""
    replace_json(directory / HOSTS, {host_id: list(run) for host_id, run in runs.items()})
