"""`FromHost`: a message with the host that it came from, for actors of this package that must know."""

from typing import Any, NamedTuple

import pykka

__all__ = ["FromHost", "is_told_of_hosts"]


class FromHost(NamedTuple):
    """What an actor is given in place of each message of another host, where its class has `told_of_hosts = True`."""

    address: str
    """Under TLS the host has shown a certificate for it; without, it has only said so."""
    message: Any


def is_told_of_hosts(ref: pykka.ActorRef[Any]) -> bool:
    """Return whether the actor is given its messages so. A host cannot forge that: it sends none of these."""
    return getattr(ref.actor_class, "told_of_hosts", False) is True
