r"""The key-value store of `examples.kv` with its data in SQLite: a restart goes on where it was, and replays nothing.

    python -m examples.disk_kv --replica 1 --data-dir d1 --redis 10.0.0.1:6379 \
        --members 1=10.0.0.1:7001,2=10.0.0.2:7001,3=10.0.0.3:7001

The same commands, the same command line, the same Redis. What makes it work is one row of one table: how far the log
was applied changes in the same transaction as what was applied, so that no crash can part them.

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

# In WAL mode whoever reads sees the moment at which it began, and no writer waits for it. NORMAL syncs nothing at a
# commit: after a power failure the last ones may be missing, each of them whole, and the log has them.
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
    """Open the file. Transactions begin where they are begun, and any one thread at a time may use it."""
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False)


class Pairs(MutableMapping[bytes, bytes]):
    """Keys and values in a table, as a dictionary."""

    def __init__(self, db: sqlite3.Connection, count: int) -> None:
        self._db = db
        self._count = count
        """Kept, because SQLite would go through the whole table for it."""

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
    """Keys and values in one SQLite file, with the index of the last command that they reflect."""

    def __init__(self, path: Path) -> None:
        """Touch nothing yet: `open` opens the file at `path`, or makes it."""
        self._path = path
        self._db: sqlite3.Connection | None = None
        self._commands = kv.KeyValue()

    @property
    def _opened(self) -> sqlite3.Connection:
        assert self._db is not None, "open() comes first"
        return self._db

    def open(self) -> int:
        """Open the file, or make it."""
        self.close()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._db = connect(self._path)
        self._db.executescript(OPEN)
        return self._begin_anew()

    def close(self) -> None:
        """Let go of the file."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _begin_anew(self) -> int:
        applied, count = _progress(self._opened)
        self._commands.data = Pairs(self._opened, count)
        return applied

    # -- Writes and reads

    def apply_entries(self, entries: Sequence[tuple[int, bytes]]) -> Sequence[Reply]:
        """Apply a batch and note how far it goes, in one transaction."""
        with self._transaction():
            replies = [self._commands.apply(command) for _, command in entries]
            self._note(entries[-1][0], len(self._commands.data))
        return replies

    def query(self, query: Sequence[Sequence[Any]]) -> list[Reply]:
        """Answer several questions, all about the same state."""
        return self._commands.query(query)

    def sync(self) -> None:
        """Return when all that was applied is durable."""
        with self._transaction(durable=True):
            # When a commit is synced, so are those before it, being in the same file; but there must be a change.
            self._opened.execute("UPDATE state SET syncs = syncs + 1")

    def _note(self, applied: int, count: int) -> None:
        self._opened.execute("UPDATE state SET applied = ?, count = ?", (applied, count))

    @contextmanager
    def _transaction(self, *, durable: bool = False) -> Iterator[None]:
        """All that is done within, or nothing of it; if `durable`, it is on the disk at the end."""
        with self._opened as db:
            db.execute("PRAGMA synchronous = FULL" if durable else "PRAGMA synchronous = NORMAL")
            db.execute("BEGIN IMMEDIATE")
            yield

    # -- Snapshots: how far and how many, then the pairs, each behind its lengths

    def capture(self) -> Callable[[BinaryIO], None]:
        """Fix the state by a read transaction of its own, and return what writes it, a pair at a time."""
        db = connect(self._path)
        db.execute("BEGIN")
        progress = _progress(db)  # with its first read, a transaction sees what it will see to its end

        def write(sink: BinaryIO) -> None:
            with closing(db):
                sink.write(_HEAD.pack(*progress))
                pairs = db.execute("SELECT key, value FROM pairs")
                sink.writelines(_LENGTHS.pack(len(key), len(value)) + key + value for key, value in pairs)

        return write

    def load(self, source: BinaryIO) -> None:
        """Replace everything, in one transaction: who crashes within it finds the old state."""
        with self._transaction(durable=True):
            applied, count = _HEAD.unpack(_exactly(source, _HEAD.size))
            self._opened.execute("DELETE FROM pairs")
            self._opened.executemany("INSERT INTO pairs VALUES (?, ?)", _read_pairs(source, count))
            self._note(applied, count)
        self._begin_anew()


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
        raise EOFError(f"the snapshot ends {size - len(data)} bytes before its end: have it sent again")
    return data


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one host: its log in the data directory, and the file beside that."""
    return kv.main(arguments, machine=lambda data_dir: DiskKeyValue(data_dir.with_suffix(".sqlite")))


if __name__ == "__main__":
    sys.exit(main())
