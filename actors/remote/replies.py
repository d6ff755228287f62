"""The way back from this host's actors to those of others: answers, refusals, and notices of ends.

An actor answers in a thread of its own, and must not suffer from what goes wrong on the way: nothing here raises.
"""

import threading
from collections import Counter
from typing import Any, Final

import pykka
from drakkar.actors.remote.clients import Client, Pending
from drakkar.actors.remote.failures import Failure, encode_failure
from drakkar.actors.remote.records import Answer, Died, Failed, FailKind, Record
from drakkar.actors.remote.values import Refs, pack
from drakkar.actors.runtime.log_lines import Lines
from drakkar.handlers.errors import DrakkarError, SystemBusy, TransportError

__all__ = ["DROPPED_ANSWERS", "DROPPED_MESSAGES", "REFUSED", "Replies"]

DROPPED_MESSAGES: Final = "remote messages dropped"
DROPPED_ANSWERS: Final = "remote answers dropped"
REFUSED: Final = "remote questions refused"
_SHORT_TEXT: Final = 500
"""Characters of the text of an exception that would be too long otherwise."""


class Replies:
    """Sends what goes back. From any thread, but for `insist`."""

    def __init__(self, refs: Refs, longest_value: int, counters: Counter[str], lines: Lines) -> None:
        """`longest_value`: maximum bytes of an answer."""
        self._refs, self._longest, self._counters, self._lines = refs, longest_value, counters, lines
        self._lock = threading.Lock()
        """Of what is counted here, in any thread."""

    def count(self, what: str) -> None:
        """One more of these."""
        with self._lock:
            self._counters[what] += 1

    def dropped(self, address: str, error: Exception) -> None:
        """A message of a host, which asked for no answer, did not reach its actor."""
        self.count(DROPPED_MESSAGES)
        self._lines.debug("dropped a message from %s: %s", address, error)

    def answer(self, pending: Pending, value: Any, error: BaseException | None) -> None:
        """Send what an actor has answered, unless it is not waited for any more."""
        client, question = pending.client, pending.number
        if not client.close(pending):
            self.count(DROPPED_ANSWERS)
            return
        if error is None:
            try:
                data = pack(value, self._refs, what="answer", limit=self._longest)
            except Exception as refused:  # noqa: BLE001  # a property of a message may raise anything
                # Not kept in a variable: its traceback would keep this call, and so the value, until garbage is collected.
                self.fail(client, question, refused, FailKind.RAISED)
            else:
                self.send(client, question, Answer(question, data))
            return
        ended = isinstance(error, pykka.ActorDeadError) and not pending.actor.ref.is_alive()
        self.fail(client, question, error, FailKind.DEAD if ended else FailKind.RAISED)

    def refuse(self, client: Client, question: int, error: Exception, kind: FailKind) -> None:
        """Say why a question does not reach its actor. Where in this host that was found out is no concern of the asker's."""
        self.count(REFUSED)
        self.send(client, question, Failed(question, kind, encode_failure(error, self._refs, traced=False)))

    def fail(self, client: Client, question: int, error: BaseException, kind: FailKind) -> None:
        """Answer a question with an exception."""
        self.send(client, question, Failed(question, kind, encode_failure(error, self._refs)))

    def send(self, client: Client, question: int, record: Record) -> None:
        """Send what answers a question. One for which there is no room is lost, as on the way."""
        error = _put(client, record)
        if type(error) is TransportError:  # it is too long
            told = record.failure if isinstance(record, Failed) else encode_failure(error, self._refs)
            kind = record.kind if isinstance(record, Failed) else FailKind.RAISED
            error = _put(client, Failed(question, kind, _shortened(told)))
        if error is not None:
            self.count(DROPPED_ANSWERS)
            self._lines.debug("dropped an answer to %s: %s", client.link.address, error)

    def insist(self, client: Client, record: Died | Failed) -> None:
        """Send what the host would wait for in vain: where there is no room, later. In the thread of the loop."""
        error = _put(client, record)
        if type(error) is TransportError and isinstance(record, Died) and record.reason is not None:
            error = _put(client, record._replace(reason=_shortened(record.reason)))
        if isinstance(error, SystemBusy):
            client.unsaid.append(record)

    def failure(self, error: BaseException | None) -> Failure | None:
        """Return an exception as it travels, if there is one."""
        return None if error is None else self.failure_of(error)

    def failure_of(self, error: BaseException) -> Failure:
        """Return an exception as it travels."""
        return encode_failure(error, self._refs)


def _put(client: Client, record: Record) -> DrakkarError | None:
    try:
        client.link.put(record)
    except DrakkarError as error:
        # Else it would keep the record, by its traceback, and its traceback the caller that keeps it, until garbage is collected.
        return error.with_traceback(None)
    return None


def _shortened(failure: Failure) -> Failure:
    """Return what is left of an exception where little is allowed: its text, and no traceback."""
    return failure._replace(text=failure.text[:_SHORT_TEXT], traceback="")
