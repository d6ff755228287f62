"""A leader that says that this replica holds what its log lacks, or has otherwise: who of them is right is asked first.

No correct leader says so of a replica that has kept its promises, so one of them has lost something: a directory was
restored from an older copy, say, or swapped with another. Or the message is wrong. A claim alone ends no replica.
So the one that doubts asks its leader, by a number that only the leader hears. Where that confirms what it said, our own
log contradicts it: this replica must stop, and keep its disk. The leader counts it no more and sends it nothing in this term.
The thesis says nothing about it: its servers never lose what they have written.
"""

from drakkar.handlers.errors import ProtocolViolation
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.core import RaftCore
from drakkar.handlers.raft.entries import Entries
from drakkar.handlers.raft.heard_state import Doubt
from drakkar.handlers.raft.lives import Standing

__all__ = ["contradiction", "doubt", "freeze", "learn_commit", "on_answer", "on_doubt"]


# -- the follower --------------------------------------------------------------------------------------------------


def contradiction(raft: RaftCore, message: Message) -> int:
    """The first index, of those that are committed here, at which an append has another term than our log; 0 for none.

    What is compacted away can no more be compared.
    """
    log = raft.log
    previous = log.term(message.log_index) if message.log_index <= log.committed else 0
    if previous and message.log_term and previous != message.log_term:
        return message.log_index
    for run in Entries.of(message.entries).runs:
        for index in range(max(run.first, log.first_index), min(run.last, log.committed) + 1):
            if log.term(index) != run.term:
                return index
    return 0


def learn_commit(raft: RaftCore, message: Message) -> None:
    """Take in a commit index that a leader has clipped to what it knows us to hold; ask it where we do not.

    It may have been meant for an earlier life, which held other entries than these. So where replicas have homes, no more is
    committed than what this leader has sent to this life.
    """
    newborn = raft.lives.home and raft.lives.own.standing is Standing.NEWBORN
    if message.commit > raft.log.last_index and not newborn:
        doubt(raft, message, message.commit)
    else:
        held = raft.heard.matched if raft.lives.home else raft.log.last_index
        raft.log.commit_to(min(message.commit, held))


def doubt(raft: RaftCore, message: Message, index: int) -> None:
    """Ask the leader about `index`, at which it contradicts our log: its last word is not taken for granted."""
    raft.fault("contradicts what is committed here, or was acknowledged")
    asked = raft.heard.doubt
    if asked is None or (asked.leader, asked.term) != (message.sender, raft.term):
        asked = raft.heard.doubt = Doubt(message.sender, raft.term, raft.random.getrandbits(62) | 1)
    raft.reply(
        message,
        MessageType.CONTRADICTION,
        log_index=index,
        log_term=raft.log.term(index),
        commit=raft.log.committed,
        hint=asked.number,
    )


def on_answer(raft: RaftCore, answer: Message) -> None:
    """The leader says what it has there. Raises `ProtocolViolation` where it confirms: this replica must stop."""
    asked, raft.heard.doubt = raft.heard.doubt, None
    if asked is None or (asked.leader, asked.term, asked.number) != (answer.sender, raft.term, answer.hint):
        raft.heard.doubt = asked
        raft.fault("answered a question that was not asked")
        return
    if answer.reject:
        return
    mine = raft.log.term(answer.log_index)
    if mine == answer.log_term:
        return
    here = f"is of term {mine} here" if mine else f"is not here: this log ends at {raft.log.last_index}"
    raise ProtocolViolation(
        f"leader {asked.leader} of term {asked.term} holds entry {answer.log_index} of term {answer.log_term}, which "
        f"replica {raft.id} had acknowledged or committed; it {here}. One of the two was started in a directory that was "
        "restored from an older copy, or is another's. Keep both directories, compare them with `drakkar inspect`, and see "
        "which disk is mounted where; if the others hold all that was acknowledged, remove this replica and add a new one"
    )


# -- the leader ----------------------------------------------------------------------------------------------------


def on_doubt(raft: RaftCore, ask: Message) -> None:
    """A peer contradicts what this leader is said to have told it. Where that is so, it is frozen; it may be right, too."""
    peer = raft.progress[ask.sender]
    index, term = ask.log_index, raft.log.term(ask.log_index)
    lost = not ask.log_term and index <= peer.match
    differs = bool(ask.log_term and term) and ask.log_term != term
    if lost or differs:
        there = f"is of term {ask.log_term} there" if differs else "is not there any more"
        freeze(
            raft,
            ask.sender,
            f"entry {index} of term {term} {there}: its directory was restored from an older copy, or is another's",
        )
    raft.reply(
        ask,
        MessageType.CONTRADICTION_RESP,
        log_index=index,
        log_term=term,
        hint=ask.hint,
        reject=not (lost or differs),
    )


def freeze(raft: RaftCore, replica: int, why: str) -> None:
    """Count a peer no more in this term and send it nothing: what it says contradicts this leader's log."""
    peer = raft.progress[replica]
    if not peer.frozen:
        peer.frozen = why
        raft.warn(f"replica {replica} is not counted and sent nothing more in term {raft.term}: {why}")
