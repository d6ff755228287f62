"""The kinds of entries of a log: those of Raft, and those of records of your own."""

from typing import ClassVar, Final

from drakkar.handlers.checks import is_text, is_whole
from drakkar.handlers.errors import CorruptData, HandlerTableError
from drakkar.handlers.numbered import Numbered, clash

__all__ = ["MAX_KIND_NAME", "EntryKind"]

MAX_KIND_NAME: Final = 64
"""Characters of its name, which hosts tell one another when they introduce their replicas."""


class EntryKind(Numbered):
    """What an entry of the log is for: one byte with a name. It works as an enum that users extend.

    `EntryKind.define("audit.mark", 200)` adds a kind of your own, for records: entries that a handler proposes and that reach
    the `@delivers` methods of an `Extension`. Only COMMAND, ENCODED and SESSION reach the state machine.

    `EntryKind(200)` looks up a kind by number (`ValueError` if unknown), `EntryKind["NO_OP"]` by name (`KeyError` if unknown).
    Kinds are shared by the whole process. Define yours when your module is imported; do not define kinds from two threads at
    once.
    """

    what: ClassVar[str] = "entry kind"
    known: ClassVar[dict[int, "EntryKind"]] = {}
    """All kinds, by number."""
    FIRST_FREE: ClassVar[int] = 128
    """The lowest number for kinds of users; lower ones are Raft's."""

    COMMAND: ClassVar["EntryKind"]
    NO_OP: ClassVar["EntryKind"]
    """The empty entry with which a leader begins its term (thesis §6.4)."""
    CONFIG_CHANGE: ClassVar["EntryKind"]
    SESSION: ClassVar["EntryKind"]
    """A command, or the opening or closing of a session, under a client's series number (thesis §6.3)."""
    METADATA: ClassVar["EntryKind"]
    """Stands for an entry whose content a witness does not keep."""
    ENCODED: ClassVar["EntryKind"]
    """A command that its proposer has compressed; hosts decode it before they apply it."""
    SETTLED: ClassVar["EntryKind"]
    """Says on which host a replica lives from here on; see `raft.lives`."""

    @classmethod
    def define(cls, name: str, number: int) -> "EntryKind":
        """Add a kind of your own, and return it.

        `number` is from 128 to 255. It stands in logs and is sent over the wire, so all hosts must agree on it, for as long as a
        log may hold it; `name`, of at most 64 printable characters, is for people. Defining the same kind again returns it.

        Raises `HandlerTableError` for another name or number, and if either belongs to another kind.
        """
        if not is_text(name, MAX_KIND_NAME):
            raise HandlerTableError(
                f"an entry kind has the name {name!r:.100}: choose 1 to {MAX_KIND_NAME} printable characters"
            )
        if not is_whole(number, cls.FIRST_FREE, 0xFF):
            raise HandlerTableError(
                f"entry kind {name!r} has number {number!r}: choose a whole number from {cls.FIRST_FREE} to 255"
            )
        known: EntryKind | None = clash(cls, name, number)
        return cls._add(name, number) if known is None else known

    @classmethod
    def of_log(cls, number: int) -> "EntryKind":
        """Return the kind that a log has under this number. It may be one that this process has not defined: "kind 200".

        Raises `CorruptData` for a number that is neither Raft's nor free for users.
        """
        known = cls.known.get(number)
        if known is not None:
            return known
        if not cls.FIRST_FREE <= number <= 0xFF:
            raise CorruptData(f"an entry has the kind {number}, which is none")
        return cls._make(f"kind {number}", number)

    @classmethod
    def _add(cls, name: str, number: int) -> "EntryKind":
        added = cls.known[number] = cls._make(name, number)
        return added


_BUILT_IN: Final = ("COMMAND", "NO_OP", "CONFIG_CHANGE", "SESSION", "METADATA", "ENCODED", "SETTLED")
for _number, _name in enumerate(_BUILT_IN):
    setattr(EntryKind, _name, EntryKind._add(_name, _number))
