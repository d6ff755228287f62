"""What can go wrong with an actor of another host, beside what its own methods raise."""

import pykka
from drakkar.handlers.errors import ConfigError, DrakkarError, OutcomeUnknown, TransportError

__all__ = ["AnswerTimeout", "HostGone", "NameTaken", "UnknownName"]


class UnknownName(DrakkarError, LookupError):
    """No actor is published under the name at the host that was asked. It may have ended, or not have started yet."""


class NameTaken(ConfigError):
    """Another actor that lives has the name. Unpublish that one first, or choose another name."""


class HostGone(TransportError):
    """The other host cannot be reached, or the connection was lost. The message surely had no effect: it had not left."""


class AnswerTimeout(OutcomeUnknown, pykka.Timeout):
    """No answer came by the deadline. The message may have been handled, or may still be; `pykka.Timeout` catches it too."""
