"""Clients with sessions: what they ask is repeated, here and there, until they hear what became of it, and done once."""

from drakkar.actors.machine.sessions import REGISTER, encode_request
from drakkar.handlers.errors import SessionExpired, SessionRefused
from drakkar.handlers.testing.history import Violation
from drakkar.handlers.testing.plan import REQUEST_TIMEOUT_S, TICK

from tests.simulation.linearizability import Operation
from tests.simulation.store import command

MOST_ATTEMPTS = 8
"""After which a client gives up, and its session; not once all is healed."""
MOST_UNCONFIRMED = 2
"""Results, at most, that a client has not said it has: that of its last command may be one of them."""
_LONGEST_PAUSE = 2 * TICK


class SessionClient:
    """Appends to registers, one command after the other, in a session for as long as that lasts."""

    def __init__(self, simulation, number, random):
        self.number = number
        self.busy = False
        self._simulation, self._random = simulation, random
        self._sessions = 0
        """Opened or tried: none of their ids is used twice."""
        self._session = 0
        """Its id; 0 while there is none."""
        self._series = 0
        self._host = None
        """The one that was asked last."""

    def append(self, host, key, argument, seconds):
        """Have something appended, at that host first; each attempt has so many seconds."""
        self.busy = True
        self._key, self._argument, self._seconds = key, argument, seconds
        self._operation = None
        self._attempts = 0
        self._attempt(host)

    # -- one attempt after the other ----------------------------------------------------------------------------

    def _attempt(self, host):
        self._attempts += 1
        self._host = host
        if not self._session:
            self._sessions += 1
            # Another one each time: an old request may open its session late.
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
        # In the end it must not be impatience that keeps it from hearing anything.
        seconds = REQUEST_TIMEOUT_S if self._simulation.over else self._seconds
        self._host.submit("session", request, seconds, answer)

    def _begin(self):
        self._series += 1
        confirmed = max(self._series - self._random.randint(1, MOST_UNCONFIRMED), 0)
        content = command(self._key, "add", self._argument)
        self._request = encode_request(self._session, self._series, confirmed, content)
        self._operation = Operation(
            self.number, self._key, "add", self._argument, invoked=self._simulation.now
        )
        self._tell(self._operation)

    def _go_on(self):
        if self._attempts >= MOST_ATTEMPTS and not self._simulation.over:
            self._end()
        else:
            self._simulation.after(self._random.randint(1, _LONGEST_PAUSE), self._attempt_elsewhere)

    def _attempt_elsewhere(self):
        """In the end at the leader: others may be no members, or send nothing on."""
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

    # -- what it hears ------------------------------------------------------------------------------------------

    def _opened(self, wanted, outcome, value):
        self._tell(f"session {wanted:x}: {outcome} {value}")
        if outcome == "done" and value == wanted:
            self._note("a session was opened")
            self._session, self._series = wanted, 0
            self._attempts = 0
        self._go_on()

    def _answered(self, outcome, value):
        self._tell(f"command {self._series} of session {self._session:x}: {outcome} {value}")
        if outcome != "done":
            self._go_on()
        elif isinstance(value, SessionExpired):
            self._note("a session had expired")
            self._end()
        elif isinstance(value, SessionRefused):
            broken = Violation("V9 a session is refused nothing", f"command {self._series}: {value}")
            self._simulation.after(0, _fail, broken)
        else:
            self._operation.result, self._operation.returned = value, self._simulation.now
            self._finish()

    def _end(self):
        """Nobody knows what became of it, and the session is over."""
        self._session = 0
        self._finish()

    def _finish(self):
        self.busy = False
        if self._operation is not None:
            self._simulation.history.append(self._operation)

    def _note(self, what):
        self._simulation.invariants.happened[what] += 1

    def _tell(self, what):
        told = what if isinstance(what, Operation) else f"client {self.number}: {what}"
        self._simulation.trace.append((self._simulation.now, "?", told))


def _fail(violation):
    """Not where the answer is heard: whoever gives it does not let anything through."""
    raise violation
