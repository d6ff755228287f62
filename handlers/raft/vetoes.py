"""Vetoes: handlers of one's own refuse a proposal, a read or a transfer with a text, at any replica.

The proposer is told as of any refusal, also where the request was forwarded: REFUSED goes back to the replica that it came from.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from drakkar.handlers.checks import check_type
from drakkar.handlers.errors import ConfigError
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft import proposals
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.entries import Entries
from drakkar.handlers.raft.ready import Dropped, Refusal
from drakkar.handlers.raft.refusals import plain
from drakkar.handlers.raft.runs import Entry, Run

__all__ = ["veto"]


def veto(raft: RaftCore, message: Message, why: Any, only: Callable[[Entry], bool] | None) -> Message | None:
    """Refuse a request, or some of its entries; return what is left of it. See `Raft.veto`."""
    check_type("why", why, str, "a text")
    text = plain(why)
    if message.type is MessageType.PROPOSE:
        return _veto_proposals(raft, message, text, only)
    if only is not None:
        raise ConfigError("only", message.type, "goes with a PROPOSE, which has entries")
    if message.type is MessageType.READ_INDEX:
        refused = Dropped(message.type, Refusal.VETOED, message.hint, message.hint_high, text=text)
    elif message.type is MessageType.LEADER_TRANSFER:
        refused = Dropped(message.type, Refusal.VETOED, key=message.hint, text=text)
    else:
        raise ConfigError(
            "message",
            message.type,
            "only a PROPOSE, READ_INDEX or LEADER_TRANSFER can be refused with a text",
        )
    raft.refuse(message.sender, refused)
    return None


def _veto_proposals(
    raft: RaftCore, ask: Message, text: str, only: Callable[[Entry], bool] | None
) -> Message | None:
    kept: list[Run] = []
    count = 0
    for run in Entries.of(ask.entries).runs:
        for part, refused in _parts(run, only):
            if refused:
                proposals.refuse_run(raft, ask, part, Refusal.VETOED, text=text)
                count += len(part)
            else:
                kept.append(part)
    if not count:
        return ask
    return replace(ask, entries=Entries(kept)) if kept else None


def _parts(run: Run, only: Callable[[Entry], bool] | None) -> list[tuple[Run, bool]]:
    """The run, cut where vetoed entries begin or end: the parts in order, and whether each is refused."""
    if only is None:
        return [(run, True)]
    refused = [bool(only(run.entry(run.first + place))) for place in range(len(run))]
    parts, start = [], 0
    for place in range(1, len(run) + 1):
        if place == len(run) or refused[place] != refused[start]:
            parts.append((run.slice(run.first + start, run.first + place), refused[start]))
            start = place
    return parts
