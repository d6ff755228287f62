r"""The key-value store of `examples.kv` with its data in SQLite: after a restart, nothing is replayed.

    python -m examples.disk_kv --replica 1 --data-dir d1 --redis 10.0.0.1:6379 \
        --members 1=10.0.0.1:7001,2=10.0.0.2:7001,3=10.0.0.3:7001

Commands, command line and clients are the same. The index of the last applied entry is stored in the same transaction
as its effects, so a crash cannot separate the two.

From top to bottom: the database; a table that looks like a dictionary, which is all that the commands of
`examples.kv` need; the state machine; the command line.
"""

import sqlite3
import struct
import sys
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from drakkar.actors import DiskStateMachine

from examples import kv
from examples.resp import Reply

# In WAL mode a reader sees the state at which it began, and no writer waits for it. NORMAL does not sync at a commit:
# after a power failure the last transactions may be missing, each as a whole, and the log still has their entries.
OPEN: Final = """
    PRAGMA journal_mode = WAL;
    PRAGMA journal_size_limit = 67108864;
    BEGIN IMMEDIATE;
    CREATE TABLE IF NOT EXISTS pairs (key BLOB PRIMARY KEY, value BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS state (one INTEGER PRIMARY KEY, applied INTEGER, count INTEGER, syncs INTEGER);
    INSERT OR IGNORE INTO state VALUES (1, 0, 0, 0);
    COMMIT;
"""


def connect(path: Path) -> sqlite3.Connection:
    """Open the file, with explicit transactions. Any thread may use the connection, one at a time."""
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False)


class Pairs(MutableMapping[bytes, bytes]):
    """The keys and values in the table, as a dictionary."""

    def __init__(self, db: sqlite3.Connection, count: int) -> None:
        self._db = db
        self._count = count
        """The number of pairs. SQLite would read the whole table to count them."""

    def __getitem__(self, key: bytes) -> bytes:
        found: tuple[bytes] | None = self._db.execute(
            "SELECT value FROM pairs WHERE key = ?", (key,)
        ).fetchone()
        if found is None:
            raise KeyError(key)
        return found[0]

    def __setitem__(self, key: bytes, value: bytes) -> None:
        if not self._db.execute("UPDATE pairs SET value = ? WHERE key = ?", (value, key)).rowcount:
            self._db.execute("INSERT INTO pairs VALUES (?, ?)", (key, value))
            self._count += 1

    def __delitem__(self, key: bytes) -> None:
        if not self._db.execute("DELETE FROM pairs WHERE key = ?", (key,)).rowcount:
            raise KeyError(key)
        self._count -= 1

    def __iter__(self) -> Iterator[bytes]:
        return (key for (key,) in self._db.execute("SELECT key FROM pairs"))

    def __len__(self) -> int:
        return self._count

    def clear(self) -> None:
        """Remove all pairs at once."""
        self._db.execute("DELETE FROM pairs")
        self._count = 0


class DiskKeyValue(DiskStateMachine):
    """Keys and values in one SQLite file, with the index of the last entry that was applied to them."""

    def __init__(self, path: Path) -> None:
        """Remember `path`; `open` opens the file or creates it."""
        self._path = path
        self._db: sqlite3.Connection | None = None
        self._commands = kv.KeyValue()

    @property
    def _opened(self) -> sqlite3.Connection:
        assert self._db is not None, "open() must be called first"
        return self._db

    def open(self) -> int:
        """Open the file or create it; return the index of the last applied entry."""
        self.close()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._db = connect(self._path)
        self._db.executescript(OPEN)
        return self._reload()

    def close(self) -> None:
        """Close the file."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _reload(self) -> int:
        applied, count = _progress(self._opened)
        self._commands.data = Pairs(self._opened, count)
        return applied

    # -- Writes and reads

    def apply_entries(self, entries: Sequence[tuple[int, bytes]]) -> Sequence[Reply]:
        """Apply a batch and store the index of its last entry, in one transaction."""
        with self._transaction():
            replies = [self._commands.apply(command) for _, command in entries]
            self._store_progress(entries[-1][0], len(self._commands.data))
        return replies

    def query(self, query: Sequence[Sequence[Any]]) -> list[Reply]:
        """Answer several read commands from one and the same state."""
        return self._commands.query(query)

    def sync(self) -> None:
        """Return once everything that was applied is durable."""
        with self._transaction(durable=True):
            # Syncing a commit syncs all earlier ones, which are in the same file. A commit needs a change to be written.
            self._opened.execute("UPDATE state SET syncs = syncs + 1")

    def _store_progress(self, applied: int, count: int) -> None:
        self._opened.execute("UPDATE state SET applied = ?, count = ?", (applied, count))

    @contextmanager
    def _transaction(self, *, durable: bool = False) -> Iterator[None]:
        """Do all of the block or nothing of it; with `durable`, its effects are on the disk at the end."""
        with self._opened as db:
            db.execute("PRAGMA synchronous = FULL" if durable else "PRAGMA synchronous = NORMAL")
            db.execute("BEGIN IMMEDIATE")
            yield

    # -- Snapshots: the index and the number of pairs, then the pairs, each after its two lengths

    def capture(self) -> Callable[[BinaryIO], None]:
        """Freeze the state in a read transaction, and return a function that writes it, pair by pair."""
        db = connect(self._path)
        db.execute("BEGIN")
        progress = _progress(db)  # a read transaction shows the state of its first read to its end

        def write(sink: BinaryIO) -> None:
            with closing(db):
                sink.write(_HEAD.pack(*progress))
                pairs = db.execute("SELECT key, value FROM pairs")
                sink.writelines(_LENGTHS.pack(len(key), len(value)) + key + value for key, value in pairs)

        return write

    def load(self, source: BinaryIO) -> None:
        """Replace everything in one transaction. A crash within it leaves the old state."""
        with self._transaction(durable=True):
            applied, count = _HEAD.unpack(_exactly(source, _HEAD.size))
            self._opened.execute("DELETE FROM pairs")
            self._opened.executemany("INSERT INTO pairs VALUES (?, ?)", _read_pairs(source, count))
            self._store_progress(applied, count)
        self._reload()


_HEAD: Final = struct.Struct(">QQ")
_LENGTHS: Final = struct.Struct(">II")


def _progress(db: sqlite3.Connection) -> tuple[int, int]:
    applied, count = db.execute("SELECT applied, count FROM state").fetchone()
    return applied, count


def _read_pairs(source: BinaryIO, count: int) -> Iterator[tuple[bytes, bytes]]:
    for _ in range(count):
        key, value = _LENGTHS.unpack(_exactly(source, _LENGTHS.size))
        yield _exactly(source, key), _exactly(source, value)


def _exactly(source: BinaryIO, size: int) -> bytes:
    data = source.read(size)
    if len(data) < size:
        raise EOFError(f"the snapshot is cut off: {size - len(data)} bytes are missing")
    return data


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one host. The SQLite file is next to the data directory that holds the log."""
    return kv.main(arguments, machine=lambda data_dir: DiskKeyValue(data_dir.with_suffix(".sqlite")))


if __name__ == "__main__":
    sys.exit(main())
