"""What can go wrong with an actor of another host, beside what its own methods raise."""

import pykka
from drakkar.actors.remote.failures import failure
from drakkar.handlers.errors import ConfigError, DrakkarError, OutcomeUnknown, TransportError

__all__ = ["AnswerTimeout", "HostGone", "NameTaken", "NotAllowed", "UnknownName"]


class UnknownName(DrakkarError, LookupError):
    """No actor is published under the name at the host that was asked. It may have ended, or not have started yet."""


class NameTaken(ConfigError):
    """Another actor that lives has the name. Unpublish that one first, or choose another name."""


class NotAllowed(DrakkarError):
    """The other host does not let this one do that: the actor's `acl` leaves it out, or a proxy does not reach what it names."""


class HostGone(TransportError):
    """The other host cannot be reached, or the connection was lost. The message surely had no effect: it had not left."""


class AnswerTimeout(OutcomeUnknown, pykka.Timeout):
    """No answer came by the deadline. The message may have been handled, or may still be; `pykka.Timeout` catches it too."""


for _cls in (UnknownName, NameTaken, NotAllowed, HostGone, AnswerTimeout):
    failure(f"drakkar.{_cls.__name__}")(_cls)
