"""Who answers what in Raft, on one screen. Read this first.

A column for each state, a row for each message type. A cell is the function that answers, or the reason why
nothing does: `Ignore` where the message is legal and late, `Never` where no correct peer sends it, and where nothing
may ever be registered. Before the table the guards are asked, which settle what is the same in every state.
"""

import reprlib
from typing import Any, Final

from drakkar.handlers.errors import HandlerTableError
from drakkar.handlers.messages import MessageType
from drakkar.handlers.raft import (
    clock,
    election,
    limits,
    membership,
    query,
    reads,
    replication,
    snapshot,
    transfer,
)
from drakkar.handlers.raft.quiesce import mind_quiesce
from drakkar.handlers.raft.state import State
from drakkar.handlers.raft.terms import (
    reconcile_terms,
    refuse_misdelivered,
    refuse_strangers,
    tell_the_removed,
)
from drakkar.handlers.table import HandlerTable, Ignore, Never

__all__ = ["GUARDS", "RAFT", "checked_handlers", "raft_handlers"]

GUARDS: Final = (
    refuse_misdelivered,
    tell_the_removed,
    refuse_strangers,
    replication.hear_refusal,
    transfer.hear_refusal,
    reconcile_terms,
    mind_quiesce,
)

HOST: Final = Ignore("between hosts, not for the core")
LEADERS: Final = Ignore("only a leader has use for it")
CARRIER: Final = Ignore("it only carries a term, which the guards have seen")
SPARE: Final = Ignore("reserved: hosts batch their reads themselves")
LATE: Final = Ignore("the election that it answers is over")
UNASKED: Final = Ignore("this campaign has dropped its reads")
LEADING: Final = Ignore("it leads already")
BUSY: Final = Ignore("it campaigns already")
NO_CANDIDATE: Final = Ignore("only a voter campaigns (thesis §4.2.1)")
NO_OFFICE: Final = Ignore("there is no leader who could hand over")
NOT_MINE: Final = Ignore("transfers are a voter's business")

ONE_LEADER: Final = Never("a term has at most one leader (thesis §3.4)")
NO_PEERS: Final = Never("only a leader follows its peers' progress")
NEVER_RUNS: Final = Never("observers and witnesses never campaign (thesis §4.2.1)")
NO_BALLOT: Final = Never("only a campaign counts votes, and each phase its own")
NO_DATA: Final = Never("a witness has no commands to take, read or show (thesis §11.7.2)")

M = MessageType

# fmt: off
RAFT: Final = (
    # message                  FOLLOWER                       PRE_CANDIDATE                         CANDIDATE                             LEADER                         OBSERVER                       WITNESS
    (M.LOCAL_TICK,             clock.tick_voter,              clock.tick_voter,                     clock.tick_voter,                     clock.tick_leader,             clock.tick_onlooker,           clock.tick_onlooker),
    (M.ELECTION,               election.campaign,             election.campaign,                    election.campaign,                    LEADING,                       NEVER_RUNS,                    NEVER_RUNS),
    (M.LEADER_HEARTBEAT,       LEADERS,                       LEADERS,                              LEADERS,                              replication.beat,              LEADERS,                       LEADERS),
    (M.CONFIG_CHANGE_EVENT,    membership.change_membership,  membership.change_membership,         membership.change_membership,         membership.change_membership,  membership.change_membership,  membership.change_membership),
    (M.NO_OP,                  CARRIER,                       CARRIER,                              CARRIER,                              CARRIER,                       CARRIER,                       CARRIER),
    (M.PING,                   HOST,                          HOST,                                 HOST,                                 HOST,                          HOST,                          HOST),
    (M.PONG,                   HOST,                          HOST,                                 HOST,                                 HOST,                          HOST,                          HOST),
    (M.PROPOSE,                replication.forward_proposal,  replication.refuse_proposal,          replication.refuse_proposal,          replication.log_proposal,      replication.forward_proposal,  NO_DATA),
    (M.SNAPSHOT_STATUS,        NO_PEERS,                      NO_PEERS,                             NO_PEERS,                             snapshot.note_status,          LEADERS,                       LEADERS),
    (M.UNREACHABLE,            NO_PEERS,                      NO_PEERS,                             NO_PEERS,                             replication.lose_peer,         LEADERS,                       LEADERS),
    (M.CHECK_QUORUM,           LEADERS,                       LEADERS,                              LEADERS,                              clock.check_quorum,            LEADERS,                       LEADERS),
    (M.BATCHED_READ_INDEX,     SPARE,                         SPARE,                                SPARE,                                SPARE,                         SPARE,                         SPARE),
    (M.REPLICATE,              replication.append,            replication.append_as_follower,       replication.append_as_follower,       ONE_LEADER,                    replication.append,            replication.append),
    (M.REPLICATE_RESP,         NO_PEERS,                      NO_PEERS,                             NO_PEERS,                             replication.count_ack,         NO_PEERS,                      NO_PEERS),
    (M.REQUEST_VOTE,           election.grant_vote,           election.grant_vote,                  election.grant_vote,                  election.grant_vote,           election.grant_vote,           election.grant_vote),
    (M.REQUEST_VOTE_RESP,      LATE,                          LATE,                                 election.count_vote,                  LATE,                          NO_BALLOT,                     NO_BALLOT),
    (M.INSTALL_SNAPSHOT,       snapshot.install,              snapshot.install_as_follower,         snapshot.install_as_follower,         ONE_LEADER,                    snapshot.install,              snapshot.install),
    (M.HEARTBEAT,              replication.follow_beat,       replication.follow_beat_as_follower,  replication.follow_beat_as_follower,  ONE_LEADER,                    replication.follow_beat,       replication.follow_beat),
    (M.HEARTBEAT_RESP,         NO_PEERS,                      NO_PEERS,                             NO_PEERS,                             replication.count_beat,        NO_PEERS,                      NO_PEERS),
    (M.READ_INDEX,             reads.forward_read,            reads.refuse_read,                    reads.refuse_read,                    reads.serve_read,              reads.forward_read,            NO_DATA),
    (M.READ_INDEX_RESP,        reads.publish,                 UNASKED,                              UNASKED,                              ONE_LEADER,                    reads.publish,                 NO_DATA),
    (M.QUIESCE,                HOST,                          HOST,                                 HOST,                                 HOST,                          HOST,                          HOST),
    (M.SNAPSHOT_RECEIVED,      snapshot.recovered,            snapshot.recovered,                   snapshot.recovered,                   snapshot.recovered,            snapshot.recovered,            snapshot.recovered),
    (M.LEADER_TRANSFER,        transfer.forward,              NO_OFFICE,                            NO_OFFICE,                            transfer.begin,                NOT_MINE,                      NOT_MINE),
    (M.TIMEOUT_NOW,            transfer.time_out_now,         BUSY,                                 BUSY,                                 LEADING,                       NO_CANDIDATE,                  NO_CANDIDATE),
    (M.RATE_LIMIT,             LEADERS,                       LEADERS,                              LEADERS,                              limits.note_follower_size,     LEADERS,                       LEADERS),
    (M.REQUEST_PRE_VOTE,       election.grant_pre_vote,       election.grant_pre_vote,              election.grant_pre_vote,              election.grant_pre_vote,       election.grant_pre_vote,       election.grant_pre_vote),
    (M.REQUEST_PRE_VOTE_RESP,  NO_BALLOT,                     election.count_pre_vote,              NO_BALLOT,                            NO_BALLOT,                     NO_BALLOT,                     NO_BALLOT),
    (M.LOG_QUERY,              query.answer_query,            query.answer_query,                   query.answer_query,                   query.answer_query,            query.answer_query,            NO_DATA),
)
# fmt: on


_BUILT_IN: Final = HandlerTable(State, RAFT, GUARDS)


def raft_handlers() -> HandlerTable:
    """A fresh copy of the built-in table, to use as it is or to extend.

    table = raft_handlers()

    @table.on(AUDIT_PING)
    def answer(raft, message):
        raft.send(Message(AUDIT_PONG, to=message.sender, payload=raft.log.committed))

    raft = Raft(config, log, handlers=table)
    """
    return _BUILT_IN.copy()


def checked_handlers(table: Any) -> HandlerTable:
    """Return `table` if a `Raft` can use it. Raises `HandlerTableError` otherwise, with the remedy."""
    remedy = "make one with raft_handlers() and extend that"
    if not isinstance(table, HandlerTable):
        raise HandlerTableError(f"handlers={reprlib.repr(table)} is no HandlerTable: {remedy}")
    table.check(State)
    if missing := set(_BUILT_IN.types) - set(table.types):
        raise HandlerTableError(
            f"the handler table has no row of {', '.join(map(str, sorted(missing)))}: {remedy}"
        )
    for type_ in table.types:
        if not isinstance(type_, MessageType):
            raise HandlerTableError(
                f"{type_!r} cannot travel between replicas: define a type with MessageType.define(name, number)"
            )
    return table
