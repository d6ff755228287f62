"""Who answers what in Raft, on one screen. Read this first.

A column for each state, a row for each message type. A cell is the function that answers, or the reason why
nothing does: `Ignore` where the message is legal and late, `Never` where no correct peer means it for that state, so
nothing may ever be registered. Before the table the guards are asked, which settle what is the same in every state. `TRAITS` says
what is true of all messages of a type, and `DECIDED_BESIDE` which decisions ask for the state without being a cell.
"""

import reprlib
from types import MappingProxyType
from typing import Any, Final

from drakkar.handlers.errors import HandlerTableError
from drakkar.handlers.messages import PEER_NEWS, MessageType
from drakkar.handlers.raft import (
    clock,
    divergence,
    election,
    failover,
    flow,
    founding,
    heartbeat,
    limits,
    loading,
    membership,
    notices,
    proposals,
    query,
    reads,
    refusals,
    replication,
    room,
    snapshot,
    transfer,
)
from drakkar.handlers.raft.quiesce import track_activity
from drakkar.handlers.raft.state import State
from drakkar.handlers.raft.terms import (
    reconcile_terms,
    reject_misdelivered,
    reject_non_members,
    reject_removed_replicas,
)
from drakkar.handlers.table import HandlerTable, Ignore, Never
from drakkar.handlers.traits import Term, Traits

__all__ = ["DECIDED_BESIDE", "GUARDS", "RAFT", "TRAITS", "checked_handlers", "raft_handlers"]

GUARDS: Final = (
    reject_misdelivered,
    reject_removed_replicas,
    reject_non_members,
    track_activity,  # before the terms: one that wakes up protects its leader as if it had just heard it
    reconcile_terms,
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
NO_VOTER: Final = Ignore("only a voter transfers the leadership")
NOT_ASKED: Final = Ignore("a witness forwards no transfer, so none is refused")
NO_NEWBORN: Final = Ignore("it was a newborn when it asked, and has been told since")
NO_FOUNDER: Final = Ignore("only a voter founds a shard")
ASLEEP: Final = Ignore("a guard, `track_activity`, takes it: sleep is no state of its own")

ONE_LEADER: Final = Never("a term has at most one leader (thesis §3.4)")
NO_PEERS: Final = Never("only a leader follows its peers' progress")
NEVER_RUNS: Final = Never("observers and witnesses never campaign (thesis §4.2.1)")
NO_BALLOT: Final = Never("only a campaign counts votes, and each phase its own")
NO_DATA: Final = Never("a witness has no commands to take, read or show (thesis §11.7.2)")

M = MessageType

# fmt: off
RAFT: Final = (
    # message                  FOLLOWER                      PRE_CANDIDATE                           CANDIDATE                               LEADER                                  OBSERVER                      WITNESS
    (M.LOCAL_TICK,             clock.tick_voter,             clock.tick_voter,                       clock.tick_voter,                       clock.tick_leader,                      clock.tick_non_voter,         clock.tick_non_voter),
    (M.ELECTION,               election.campaign,            election.campaign,                      election.campaign,                      LEADING,                                NEVER_RUNS,                   NEVER_RUNS),
    (M.LEADER_HEARTBEAT,       LEADERS,                      LEADERS,                                LEADERS,                                heartbeat.heartbeat,                    LEADERS,                      LEADERS),
    (M.CONFIG_CHANGE_EVENT,    membership.change_membership, membership.change_membership,           membership.change_membership,           membership.change_membership_as_leader, membership.change_membership, membership.change_membership),
    (M.NO_OP,                  CARRIER,                      CARRIER,                                CARRIER,                                CARRIER,                                CARRIER,                      CARRIER),
    (M.PING,                   HOST,                         HOST,                                   HOST,                                   HOST,                                   HOST,                         HOST),
    (M.PONG,                   HOST,                         HOST,                                   HOST,                                   HOST,                                   HOST,                         HOST),
    (M.PROPOSE,                proposals.forward,            proposals.refuse,                       proposals.refuse,                       proposals.append,                        proposals.forward,            NO_DATA),
    (M.SNAPSHOT_STATUS,        NO_PEERS,                     NO_PEERS,                               NO_PEERS,                               snapshot.note_status,                   LEADERS,                      LEADERS),
    (M.UNREACHABLE,            NO_PEERS,                     NO_PEERS,                               NO_PEERS,                               replication.peer_unreachable,           LEADERS,                      LEADERS),
    (M.CHECK_QUORUM,           LEADERS,                      LEADERS,                                LEADERS,                                clock.check_quorum,                     LEADERS,                      LEADERS),
    (M.BATCHED_READ_INDEX,     SPARE,                        SPARE,                                  SPARE,                                  SPARE,                                  SPARE,                        SPARE),
    (M.REPLICATE,              replication.append,           replication.append_as_follower,         replication.append_as_follower,         ONE_LEADER,                             replication.append,           replication.append),
    (M.REPLICATE_RESP,         NO_PEERS,                     NO_PEERS,                               NO_PEERS,                               replication.on_append_response,         NO_PEERS,                     NO_PEERS),
    (M.REQUEST_VOTE,           election.grant_vote,          election.grant_vote,                    election.grant_vote,                    election.grant_vote,                    election.grant_vote,          election.grant_vote),
    (M.REQUEST_VOTE_RESP,      LATE,                         LATE,                                   election.count_vote,                    LATE,                                   NO_BALLOT,                    NO_BALLOT),
    (M.INSTALL_SNAPSHOT,       snapshot.install,             snapshot.install_as_follower,           snapshot.install_as_follower,           ONE_LEADER,                             snapshot.install,             snapshot.install),
    (M.HEARTBEAT,              heartbeat.handle_heartbeat,   heartbeat.handle_heartbeat_as_follower, heartbeat.handle_heartbeat_as_follower, ONE_LEADER,                             heartbeat.handle_heartbeat,   heartbeat.handle_heartbeat),
    (M.HEARTBEAT_RESP,         NO_PEERS,                     NO_PEERS,                               NO_PEERS,                               heartbeat.on_heartbeat_response,        NO_PEERS,                     NO_PEERS),
    (M.READ_INDEX,             reads.forward,                reads.refuse,                           reads.refuse,                           reads.serve,                            reads.forward,                NO_DATA),
    (M.READ_INDEX_RESP,        reads.publish,                UNASKED,                                UNASKED,                                ONE_LEADER,                             reads.publish,                NO_DATA),
    (M.QUIESCE,                ASLEEP,                       ASLEEP,                                 ASLEEP,                                 ASLEEP,                                 ASLEEP,                       ASLEEP),
    (M.SNAPSHOT_RECEIVED,      snapshot.recovered,           snapshot.recovered,                     snapshot.recovered,                     snapshot.recovered_as_leader,           snapshot.recovered,           snapshot.recovered),
    (M.LEADER_TRANSFER,        transfer.forward,             transfer.refuse,                        transfer.refuse,                        transfer.begin,                         NO_VOTER,                     NO_VOTER),
    (M.TIMEOUT_NOW,            transfer.time_out_now,        BUSY,                                   BUSY,                                   LEADING,                                NO_CANDIDATE,                 NO_CANDIDATE),
    (M.RATE_LIMIT,             LEADERS,                      LEADERS,                                LEADERS,                                limits.note_follower_size,              LEADERS,                      LEADERS),
    (M.REQUEST_PRE_VOTE,       election.grant_pre_vote,      election.grant_pre_vote_and_give_way,   election.grant_pre_vote,                election.grant_pre_vote,                election.grant_pre_vote,      election.grant_pre_vote),
    (M.REQUEST_PRE_VOTE_RESP,  NO_BALLOT,                    election.count_pre_vote,                NO_BALLOT,                              NO_BALLOT,                              NO_BALLOT,                    NO_BALLOT),
    (M.LOG_QUERY,              query.answer_query,           query.answer_query,                     query.answer_query,                     query.answer_query,                     query.answer_query,           NO_DATA),
    (M.PROPOSE_REFUSED,        refusals.report_refusal,      refusals.report_refusal,                refusals.report_refusal,                refusals.report_refusal,                refusals.report_refusal,      NO_DATA),
    (M.READ_REFUSED,           refusals.report_refusal,      refusals.report_refusal,                refusals.report_refusal,                refusals.report_refusal,                refusals.report_refusal,      NO_DATA),
    (M.TRANSFER_REFUSED,       refusals.report_refusal,      refusals.report_refusal,                refusals.report_refusal,                refusals.report_refusal,                refusals.report_refusal,      NOT_ASKED),
    (M.REMOVAL_QUERY,          membership.confirm_removal,   membership.confirm_removal,             membership.confirm_removal,             membership.answer_removal_query,        membership.confirm_removal,   membership.confirm_removal),
    (M.REMOVED,                snapshot.learn_of_removal,    snapshot.learn_of_removal,              snapshot.learn_of_removal,              snapshot.learn_of_removal,              snapshot.learn_of_removal,    snapshot.learn_of_removal),
    (M.SNAPSHOT_REQUEST,       NO_PEERS,                     NO_PEERS,                               NO_PEERS,                               snapshot.on_snapshot_request,           NO_PEERS,                     NO_PEERS),
    (M.DISK_HUNG,              LEADERS,                      LEADERS,                                LEADERS,                                election.step_down,                     LEADERS,                      LEADERS),
    (M.LOG_FULL,               NO_PEERS,                     NO_PEERS,                               NO_PEERS,                               replication.on_log_full,                NO_PEERS,                     NO_PEERS),
    (M.DISK_FULL,              room.note_full,               room.note_full,                         room.note_full,                         room.note_full_as_leader,               room.note_full,               room.note_full),
    (M.DISK_ROOM,              room.note_room,               room.note_room,                         room.note_room,                         room.note_room,                         room.note_room,               room.note_room),
    (M.ENTRIES_LOADED,         loading.go_on,                loading.go_on,                          loading.go_on,                          loading.go_on_as_leader,                loading.go_on,                loading.go_on),
    (M.COMMIT,                 notices.learn,                notices.learn_as_follower,              notices.learn_as_follower,              ONE_LEADER,                             notices.learn,                notices.learn),
    (M.COMMIT_DUE,             LEADERS,                      LEADERS,                                LEADERS,                                notices.on_due,                         LEADERS,                      LEADERS),
    (M.LANE_DRAINED,           LEADERS,                      LEADERS,                                LEADERS,                                flow.lane_drained,                      LEADERS,                      LEADERS),
    (M.NOT_SENT,               flow.not_sent,                flow.not_sent,                          flow.not_sent,                          flow.not_sent_as_leader,                flow.not_sent,                NO_DATA),
    (M.NEWBORN,                founding.answer_newborn,      founding.answer_newborn,                founding.answer_newborn,                founding.answer_newborn,                founding.answer_newborn,      founding.answer_newborn),
    (M.NEWBORN_RESP,           founding.on_newborn_response, NO_NEWBORN,                             NO_NEWBORN,                             NO_NEWBORN,                             NO_FOUNDER,                   founding.on_newborn_response),
    (M.CONTRADICTION,          NO_PEERS,                     NO_PEERS,                               NO_PEERS,                               divergence.on_doubt,                    NO_PEERS,                     NO_PEERS),
    (M.CONTRADICTION_RESP,     divergence.on_answer,         LATE,                                   LATE,                                   LATE,                                   divergence.on_answer,         divergence.on_answer),
    (M.LEADER_GONE,            failover.leader_gone,         BUSY,                                   BUSY,                                   LEADING,                                failover.forget_leader,       failover.forget_leader),
)

TRAITS: Final = MappingProxyType({
    # message                 term                local       sender                                 leaves            wakes        lane
    M.LOCAL_TICK:             Traits(Term.NONE,    local=True,                                                          wakes=False),
    M.ELECTION:               Traits(Term.NONE,    local=True,                                                          wakes=False),
    M.LEADER_HEARTBEAT:       Traits(Term.NONE,    local=True,                                                          wakes=False),
    M.CONFIG_CHANGE_EVENT:    Traits(Term.NONE,    local=True),
    M.NO_OP:                  Traits(Term.SENDERS,                                                    after_write=True),
    M.PING:                   Traits(Term.NONE),
    M.PONG:                   Traits(Term.NONE),
    M.PROPOSE:                Traits(Term.NONE,                                                                                     bulk=True, weight=3),
    M.SNAPSHOT_STATUS:        Traits(Term.NONE,    local=True, from_members=True,                                       wakes=False),
    M.UNREACHABLE:            Traits(Term.NONE,    local=True, from_members=True,                                       wakes=False),
    M.CHECK_QUORUM:           Traits(Term.NONE,    local=True,                                                          wakes=False),
    M.BATCHED_READ_INDEX:     Traits(Term.NONE,    local=True),
    M.REPLICATE:              Traits(Term.SENDERS,             from_leader=True, from_any_host=True,                                bulk=True),
    M.REPLICATE_RESP:         Traits(Term.SENDERS,             from_members=True,                     after_write=True),
    M.REQUEST_VOTE:           Traits(Term.CHOSEN,              asks_for_vote=True, from_any_host=True, after_write=True),
    M.REQUEST_VOTE_RESP:      Traits(Term.SENDERS,             from_members=True,                     after_write=True),
    M.INSTALL_SNAPSHOT:       Traits(Term.SENDERS,             from_leader=True, from_any_host=True,                                bulk=True),
    M.HEARTBEAT:              Traits(Term.SENDERS,             from_leader=True, from_any_host=True,                    wakes=False),
    M.HEARTBEAT_RESP:         Traits(Term.SENDERS,             from_members=True,                                       wakes=False),
    M.READ_INDEX:             Traits(Term.NONE),
    M.READ_INDEX_RESP:        Traits(Term.SENDERS,             from_members=True),
    M.QUIESCE:                Traits(Term.NONE,                                                                         wakes=False),
    M.SNAPSHOT_RECEIVED:      Traits(Term.NONE,    local=True),
    M.LEADER_TRANSFER:        Traits(Term.NONE,                from_members=True),
    M.TIMEOUT_NOW:            Traits(Term.SENDERS, perishable=True),
    M.RATE_LIMIT:             Traits(Term.SENDERS,             from_members=True,                                       wakes=False),
    M.REQUEST_PRE_VOTE:       Traits(Term.CHOSEN,              asks_for_vote=True, from_any_host=True, after_write=True),
    M.REQUEST_PRE_VOTE_RESP:  Traits(Term.CHOSEN,              from_members=True,                     after_write=True),
    M.LOG_QUERY:              Traits(Term.NONE,    local=True),
    M.PROPOSE_REFUSED:        Traits(Term.NONE,                from_members=True),
    M.READ_REFUSED:           Traits(Term.NONE,                from_members=True),
    M.TRANSFER_REFUSED:       Traits(Term.NONE,                from_members=True),
    M.REMOVAL_QUERY:          Traits(Term.TOLD,                                  from_any_host=True,                    wakes=False),
    M.REMOVED:                Traits(Term.TOLD,                                  from_any_host=True),
    M.SNAPSHOT_REQUEST:       Traits(Term.SENDERS,             from_members=True,                     after_write=True),
    M.DISK_HUNG:              Traits(Term.NONE,    local=True,                                                          wakes=False),
    M.LOG_FULL:               Traits(Term.SENDERS,             from_members=True,                     after_write=True),
    M.DISK_FULL:              Traits(Term.NONE,    local=True,                                                          wakes=False),
    M.DISK_ROOM:              Traits(Term.NONE,    local=True),
    M.ENTRIES_LOADED:         Traits(Term.NONE,    local=True,                                                          wakes=False),
    M.COMMIT:                 Traits(Term.SENDERS,             from_leader=True, from_any_host=True,                    wakes=False),
    M.COMMIT_DUE:             Traits(Term.NONE,    local=True,                                                          wakes=False),
    M.LANE_DRAINED:           Traits(Term.NONE,    local=True, from_members=True,                                       wakes=False),
    M.NOT_SENT:               Traits(Term.NONE,    local=True,                                                          wakes=False),
    M.NEWBORN:                Traits(Term.TOLD,                                  from_any_host=True),
    M.NEWBORN_RESP:           Traits(Term.TOLD,                from_members=True),
    M.CONTRADICTION:          Traits(Term.SENDERS,             from_members=True),
    M.CONTRADICTION_RESP:     Traits(Term.SENDERS,             from_members=True),
    M.LEADER_GONE:            Traits(Term.NONE,    local=True,                                                          wakes=False),
})
# fmt: on
for _type, _traits in TRAITS.items():
    _type.traits = _traits


DECIDED_BESIDE: Final = MappingProxyType(
    {
        "core.RaftCore.become_leader": "the moves between states are checked where they are made",
        "core.RaftCore._leave_for": "the moves between states are checked where they are made",
        "core.RaftCore.switch_membership": "a membership may change what this replica is, and any message may bring it",
        "core.RaftCore.promotable": "depends on the membership and the log, and so does who may campaign",
        "raft.Raft.persisted": "a report of the host, not a message: only a leader counts its own copy",
        "raft.Raft.commit_untold": "a question of the host: only a leader tells of commits",
        "raft.Raft._apply_ahead": "what `ready` hands out, after any message",
        "membership.is_dispensable": "a question of the host: a leader that was removed counts for itself who knows it",
        "raft.Raft.snapshot_point": "a question of the host: a witness has no state to save",
        "core.RaftCore._reset": "whether it led is asked where any leadership ends",
        "permissions._expects_leader": "who may say a message depends on the host that brings it, before the table is asked",
        "records.propose": "a call of a handler, which is told why at once: a witness keeps no records",
        "extension_states.encode": "a question of the host: the extensions of a witness have no state of the log",
        "commit.assign_groups": "a call of the host: only a leader counts copies",
        "commit.groups_consistent": "a call of the host: only a leader knows",
        "election.forget_leader": "a call of the host: a leader cannot forget itself",
        "snapshot._reason_not_to_ask": "a call of the host: a leader has no one to ask",
        "election._count": "an answer may end the campaign that it is counted for",
        "election.learn_commit": "part of answering any vote request, which every state does alike but for this",
        "sending._send_now": "appends are put off until `ready`, when the leadership may be over",
        "membership.leave_when_due": "at each tick and after each apply, which is a report of the host",
        "raft.Raft._hand_out_lives": "no message: a leader's appends keep their order, and that it is settled is in its log too",
        "settling._greet": "a meeting is the host's word: only a leader settles",
        "settling._is_older": "a meeting with a replica, which its host reports: only a leader can show that it was late",
        "settling._lives_elsewhere": "a meeting: a replica that neither leads nor campaigns counts no answers",
        "settling._forget": "a meeting: only a leader has progress to forget",
        "settling.settle_due": "after a meeting, an answer or an apply, in any state",
        "quiesce._may_sleep": "sleep is no state of its own, but goes beside the six; who campaigns or is waited for stays awake",
        "core.RaftCore.wake": "any message may wake, and a leader must not take the silence for a lost quorum",
        "terms.reject_removed_replicas": "depends on the sender, so it is a guard",
    }
)
"""Where the state is asked outside the table, and why no cell can decide it."""

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
        if type_ in PEER_NEWS:
            raise HandlerTableError(
                f"{type_} is news for nodes without Raft, and never comes to a replica: take its row out; "
                "a leader hears of a peer that cannot be reached by UNREACHABLE, which you can wrap"
            )
    return table
