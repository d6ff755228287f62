"""What can go wrong with an actor of another host, beside what its own methods raise."""

import pykka
from drakkar.actors.remote.failures import failure
from drakkar.handlers.errors import DrakkarError, OutcomeUnknown, RequestDropped, TransportError

__all__ = ["AnswerTimeout", "HostGone", "NameTaken", "NotAllowed", "UnknownName"]


class UnknownName(DrakkarError, LookupError):
    """No actor is published under the name at the host that was asked. It may have ended, or not have started yet."""


class NameTaken(RequestDropped):
    """The name belongs to another actor. Nothing was changed. `name`, and the `holder`: that actor, or the address of its host."""

    def __init__(self, name: str, holder: str, remedy: str) -> None:
        super().__init__(name, holder, remedy)
        self.name, self.holder, self.remedy = name, holder, remedy

    def __str__(self) -> str:
        return f"the name {self.name!r} belongs to {self.holder}: {self.remedy}"


class NotAllowed(DrakkarError):
    """The other host does not let this one do that: the actor's `acl` leaves it out, or a proxy does not reach what it names."""


class HostGone(TransportError):
    """The other host cannot be reached.

    Raised for a message, it says that this surely had no effect: it had not left this host. As the reason of an `ActorDied` it says that
    the actor is out of reach, since the connection was lost or the host hangs or has ended: the actor may be alive.
    """


class AnswerTimeout(OutcomeUnknown, pykka.Timeout):
    """No answer came by the deadline. The message may have been handled, or may still be; `pykka.Timeout` catches it too."""


for _cls in (UnknownName, NameTaken, NotAllowed, HostGone, AnswerTimeout):
    failure(f"drakkar.{_cls.__name__}")(_cls)
