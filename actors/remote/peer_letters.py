"""Letters between table actors of different hosts: the name by which all hosts know them, and where one comes from."""

from typing import Any

from drakkar.actors.remote.message_classes import message
from drakkar.actors.runtime.letters import Heard, Letter

__all__ = ["stamped"]

message("drakkar.peer")(Letter)


def stamped(value: Any, address: str) -> Any:
    """Return what a host has sent; a letter with the address of that host, which no letter can say of itself."""
    return Heard(value, address) if type(value) is Letter else value
