"""Small files of JSON in the data directory of a host, and how they are made durable."""

import json
import os
from pathlib import Path
from typing import Any

from drakkar.actors.runtime.forks import Descriptor
from drakkar.handlers.errors import CorruptData

__all__ = ["read_json", "replace_json", "sync_directory", "write_json"]


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable. Otherwise a crash can lose a file whose content was synced."""
    with Descriptor.open(path, os.O_RDONLY | os.O_DIRECTORY) as handle:
        os.fsync(handle)


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Return the fields of a file; empty where it holds another value. Raises `CorruptData`, with `remedy`, where it is no JSON."""
    try:
        fields: Any = json.loads(path.read_bytes())
    except ValueError as error:
        raise CorruptData(f"{path} is not JSON ({error}): {remedy}") from error
    return fields if type(fields) is dict else {}


def write_json(path: Path, fields: dict[str, Any]) -> None:
    """Write a file, durably. A power failure meanwhile may leave any part of it."""
    rest = memoryview(json.dumps(fields, indent=2).encode() + b"\n")
    with Descriptor.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644) as handle:
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    sync_directory(path.parent)


def replace_json(path: Path, fields: dict[str, Any]) -> None:
    """Write a file, durably, in place of the one that is there. A power failure leaves one of the two."""
    new = path.with_name(f"{path.name}.new")
    write_json(new, fields)
    new.replace(path)
    sync_directory(path.parent)
