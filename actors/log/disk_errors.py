"""What a disk's errors mean, and what to do about each: the one place where an `OSError` of a disk becomes a text."""

import errno
import os
from typing import Final

__all__ = ["NO_RESOURCES", "NO_SPACE", "explain"]

NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""There is no room now, and there may be again."""
NO_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""This process, or its machine, lacks something that has nothing to do with the disk."""

_READ_ONLY: Final = "it is mounted for reading only, often after an error of the disk, so see the system's log; then mount it for writing"
_REMEDIES: Final = {
    errno.ENOSPC: "the disk is full, so free some space",
    errno.EDQUOT: "the quota of this user is used up, so free some space, or raise it",
    errno.EFBIG: "no file may be that large here, so raise the limit of this process (ulimit -f), or use another file system",
    errno.EROFS: _READ_ONLY,
    errno.ENOMEM: "the machine, or the limit of this process, has no memory left, so free some, or raise the limit",
    errno.EACCES: "this user may not use it, so change its owner or its permissions",
    errno.EPERM: "this user may not use it, so change its owner or its permissions",
    errno.EMFILE: "this process has too many files open, so raise its limit (ulimit -n)",
    errno.ENFILE: "all processes of this machine together have too many files open, so raise its limit (fs.file-max)",
    errno.EIO: "the disk failed, so see the system's log, and replace it",
    errno.ENOTDIR: "a part of the path is a file, so name a directory",
    errno.EISDIR: "it is a directory, so name a file",
    errno.ENOENT: "it does not exist, so perhaps its disk is not mounted, or it was deleted",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ELOOP: "symbolic links lead in a circle, so name what they should lead to",
    errno.ESTALE: "its network file system has lost it, so mount that anew",
}
_UNKNOWN: Final = "see to its disk and its owner"


def explain(error: OSError) -> str:
    """Return what the system says, and the remedy: "No space left on device: free some space"."""
    number = error.errno or 0
    said = error.strerror or (os.strerror(number) if number else str(error))
    return f"{said}: {_REMEDIES.get(number, _UNKNOWN)}"
