"""Files in memory that lose a part of a write in a crash."""

from drakkar.actors.log.files import MemoryFiles

PIECE = 64
"""Bytes that are written as a whole or not at all. A real disk's sector has more, and would tear few short records."""


class TearableFiles(MemoryFiles):
    def __init__(self):
        super().__init__()
        self.tearing = None
        """The random numbers by which the next writes are torn; None: they are not."""

    def write(self, name, offset, data):
        if self.tearing is None:
            super().write(name, offset, data)
            return
        begins = [0, *range(PIECE - offset % PIECE, len(data), PIECE)]
        kept = self.tearing.sample(begins, self.tearing.randrange(len(begins)))
        for begin in kept:
            end = min(begin + PIECE - (offset + begin) % PIECE, len(data))
            super().write(name, offset + begin, data[begin:end])
        raise OSError("the host crashes in this write")
