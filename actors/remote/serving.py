"""What this host does for the actors of others: their messages go to its own, and the answers go back.

Each message is for one run of this host and one actor of it. What cannot be delivered is answered at once, with a reason.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Final, Protocol

import pykka
from drakkar.actors.remote import records
from drakkar.actors.remote.errors import UnknownName
from drakkar.actors.remote.published import Published, PublishedActor
from drakkar.actors.remote.records import Call, Failure, Record, Target
from drakkar.actors.remote.values import References, ValueRefused, pack, pack_failure, unpack
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.actors.runtime.inbox import reply_error
from drakkar.actors.runtime.log_lines import Lines
from drakkar.actors.runtime.monitor import ActorDied, unwatch, watch
from drakkar.handlers.errors import DrakkarError, SystemBusy
from pykka._envelope import Envelope
from pykka.messages import ProxyCall, ProxyGetAttr, ProxySetAttr

__all__ = ["Serving"]

MAX_INBOX: Final = 10_000
"""Messages that may wait for an actor whose own inbox has no bound, as a pykka `ThreadingActor`'s has none."""
MAX_QUESTIONS: Final = 4_000
"""Questions of one host that have no answer yet."""
MAX_QUESTIONS_TO_ONE: Final = 1_000
"""Questions of one host for one actor that have no answer yet: one that hangs does not take the places of others."""
MAX_WATCHES: Final = 10_000
"""Actors that one host watches here."""
