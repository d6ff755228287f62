"""Clients with sessions. They repeat a command at different replicas until they know its outcome; it is applied once."""

from drakkar.actors.machine.sessions import REGISTER, encode_request
from drakkar.handlers.errors import SessionExpired, SessionRefused
from drakkar.handlers.testing.history import Violation
from drakkar.handlers.testing.plan import REQUEST_TIMEOUT_S, TICK

from tests.simulation.linearizability import Operation
from tests.simulation.store import command

MAX_ATTEMPTS = 8
"""After so many attempts a client gives up its command and its session, unless the faults are over."""
MAX_UNCONFIRMED = 2
"""The largest number of results that a client has not confirmed, that of its last command included."""
_MAX_PAUSE = 2 * TICK
"""The longest pause between two attempts, in units of time."""


class SessionClient:
    """A client that appends to registers, one command after the other, in a session; it opens a new one if needed."""

    def __init__(self, simulation, number, random):
        self.number = number
        self.busy = False
        self._simulation, self._random = simulation, random
        self._sessions = 0
        """The number of sessions that it tried to open. No session id is used twice."""
        self._session = 0
        """The id of the session; 0 if there is none."""
        self._series = 0
        self._host = None
        """The host of the last attempt."""

    def append(self, host, key, argument, seconds):
        """Append to a register, first at `host`. Each attempt times out after `seconds`."""
        self.busy = True
        self._key, self._argument, self._seconds = key, argument, seconds
        self._operation = None
        self._attempts = 0
        self._attempt(host)

    # -- attempts ------------------------------------------------------------------------------------------------

    def _attempt(self, host):
        self._attempts += 1
        self._host = host
        if not self._session:
            self._sessions += 1
            # A new id each time, since an old request may still open its session later.
            wanted = self.number << 32 | self._sessions
            self._submit(
                encode_request(wanted, REGISTER, 0, b""), lambda *heard: self._opened(wanted, *heard)
            )
            return
        if self._operation is None:
            self._begin()
        elif self._attempts > 1:
            self._note("a command of a session was repeated")
        self._submit(self._request, self._answered)

    def _submit(self, request, answer):
        # When the faults are over, the timeout must be long enough for an answer.
        seconds = REQUEST_TIMEOUT_S if self._simulation.over else self._seconds
        self._host.submit("session", request, seconds, answer)

    def _begin(self):
        self._series += 1
        confirmed = max(self._series - self._random.randint(1, MAX_UNCONFIRMED), 0)
        content = command(self._key, "add", self._argument)
        self._request = encode_request(self._session, self._series, confirmed, content)
        self._operation = Operation(
            self.number, self._key, "add", self._argument, invoked=self._simulation.now
        )
        self._simulation.history.append(self._operation)
        self._trace(self._operation)

    def _go_on(self):
        if self._attempts >= MAX_ATTEMPTS and not self._simulation.over:
            self._end()
        else:
            self._simulation.after(self._random.randint(1, _MAX_PAUSE), self._attempt_elsewhere)

    def _attempt_elsewhere(self):
        """When the faults are over, ask the leader: others may not be members, or may not forward."""
        hosts = self._simulation.with_sessions()
        if self._simulation.over:
            hosts = [host for host in hosts if host is self._simulation.leader()]
        elif len(hosts) > 1:
            hosts = [host for host in hosts if host is not self._host]
        if hosts:
            self._attempt(self._random.choice(hosts))
        else:
            self._attempts += 1
            self._go_on()

    # -- answers ------------------------------------------------------------------------------------------------

    def _opened(self, wanted, outcome, value):
        self._trace(f"session {wanted:x}: {outcome} {value}")
        if outcome == "done" and value == wanted:
            self._note("a session was opened")
            self._session, self._series = wanted, 0
            self._attempts = 0
        self._go_on()

    def _answered(self, outcome, value):
        self._trace(f"command {self._series} of session {self._session:x}: {outcome} {value}")
        if outcome != "done":
            self._go_on()
        elif isinstance(value, SessionExpired):
            self._note("a session had expired")
            self._end()
        elif isinstance(value, SessionRefused):
            broken = Violation("V9 no command of a session is refused", f"command {self._series}: {value}")
            self._simulation.after(0, _fail, broken)
        else:
            self._operation.result, self._operation.returned = value, self._simulation.now
            self.busy = False

    def _end(self):
        """Give up the session. The outcome of its command stays unknown."""
        self._session = 0
        self.busy = False

    def _note(self, what):
        self._simulation.invariants.happened[what] += 1

    def _trace(self, what):
        text = what if isinstance(what, Operation) else f"client {self.number}: {what}"
        self._simulation.trace.append((self._simulation.now, "?", text))


def _fail(violation):
    """Raise a violation outside the callback of an answer, which would swallow it."""
    raise violation
