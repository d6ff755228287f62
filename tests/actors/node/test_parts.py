"""The parts of a node, each by itself: what it remembers, what it answers, and when."""

import logging
from dataclasses import replace

import pytest
from drakkar.actors.node.applied import AppliedRequests
from drakkar.actors.node.completions import Saved
from drakkar.actors.node.disk_watch import DiskWatch
from drakkar.actors.node.persistence import Persistence
from drakkar.actors.node.refusals import error_for
from drakkar.actors.node.removal import Removal
from drakkar.actors.node.requests import AppliedRequest, TransferRequest
from drakkar.actors.node.router import MAX_LEARNED_ADDRESSES, Router
from drakkar.actors.node.transfers import Transfers
from drakkar.actors.runtime.futures import ActorFuture
from drakkar.actors.runtime.inbox import Inbox
from drakkar.actors.runtime.log_lines import HostLines
from drakkar.handlers.errors import (
    ActorFailed,
    DiskFull,
    MembershipRejected,
    NotLeader,
    OutcomeUnknown,
    ReplicaStopped,
    RequestDropped,
    StorageFailed,
    SystemBusy,
    TransferInProgress,
    Vetoed,
)
from drakkar.handlers.messages import Message, MessageType
from drakkar.handlers.raft.config import RaftConfig
from drakkar.handlers.raft.entries import ENTRY_OVERHEAD, Entries, Run
from drakkar.handlers.raft.lanes import UNLIMITED
from drakkar.handlers.raft.memory_log import MemoryLog
from drakkar.handlers.raft.raft import Raft
from drakkar.handlers.raft.ready import Ready, Refusal
from drakkar.handlers.raft.state import HardState, Membership, Snapshot

M = MessageType
THREE = {1: "one:1", 2: "two:2", 3: "three:3"}
T = 10


def raft(**options):
    config = RaftConfig(replica_id=1, election_ticks=T, max_election_ticks=2 * T, **options)
    return Raft(config, MemoryLog(membership=Membership(voters=THREE)))


def outcome(request):
    """What a request's future has; None as long as it waits."""
    if not request.future.done:
        return None
    value, error = request.future.outcome()
    return value if error is None else error


# -- The disk


def test_a_disk_hangs_when_a_write_takes_longer_than_the_timeout_and_until_it_is_done(caplog):
    disk = DiskWatch(HostLines("mine").of("drakkar.test"), timeout_ticks=3)
    assert [disk.tick(0, 0) for _ in range(5)] == [False, False, False, True, True]
    assert caplog.text.count("mine: the disk has not finished a write") == 1
    assert not disk.tick(5, 0), "another write, which began a moment ago"
    assert caplog.text.count("mine: the disk writes again") == 1
    assert not disk.tick(None, 0)
    assert disk.ticks == 7


def test_a_disk_that_does_the_writes_of_others_first_does_not_hang():
    disk = DiskWatch(HostLines("mine").of("drakkar.test"), timeout_ticks=3)
    assert not any(disk.tick(0, written) for written in (1, 1, 1, 2, 2, 2, 2)), "the queue is long, and moves"
    assert disk.tick(0, 2), "it has stopped"
    assert not disk.tick(0, 3)


def test_a_disk_that_nothing_waits_for_never_hangs():
    disk = DiskWatch(HostLines("mine").of("drakkar.test"), timeout_ticks=3)
    assert not any(disk.tick(None, 0) for _ in range(100))


# -- The log store


class Store:
    """Takes requests, and completes them when the test says so."""

    def __init__(self):
        self.requests, self.durable, self.inbox = [], [], Inbox("mine", 10)
        self.full = False
        self.persistence = Persistence(
            raft(),
            append=self.append,
            inbox=self.inbox,
            durable=lambda ready: self.durable.append(ready.number),
        )

    def append(self, request):
        if self.full:
            raise SystemBusy("the store is full")
        self.requests.append(request)

    def finish(self, at=0, error=None):
        self.requests[at].done(error)
        self.persistence.on_saved(self.inbox.take_completion())


def work(number, *, commit=None, writes=True):
    state = HardState(1, 1, commit) if commit is not None else None
    entries = Entries([Run(number, 1, [b"x"])]) if writes else Entries()
    return Ready(number=number, hard_state=state, entries=entries, must_save=writes)


def test_work_is_completed_in_order_though_its_writes_are_done_in_another():
    store = Store()
    for number in (1, 2, 3):
        assert store.persistence.save(work(number), tick=number)
    store.finish(at=1)
    assert store.durable == [1, 2], "a write that is done has all before it done"
    assert store.persistence.waits_since == 3
    store.finish(at=0)
    assert store.durable == [1, 2]
    store.finish(at=2)
    assert store.durable == [1, 2, 3]
    assert store.persistence.waits_since is None


def test_work_without_a_write_waits_for_the_writes_before_it():
    store = Store()
    assert store.persistence.save(work(1, writes=False), tick=0)
    assert store.durable == [1], "nothing is before it"
    store.persistence.save(work(2), tick=0)
    store.persistence.save(work(3, writes=False), tick=0)
    assert store.durable == [1]
    store.finish()
    assert store.durable == [1, 2, 3]


def test_a_commit_index_alone_is_not_written_but_goes_with_the_next_write():
    store = Store()
    store.persistence.save(work(1, commit=7, writes=False), tick=0)
    assert store.requests == []
    store.persistence.save(work(2), tick=0)
    assert store.requests[0].hard_state.commit == 7
    store.persistence.save(work(3), tick=0)
    assert store.requests[1].hard_state is None, "it is on its way"
    store.persistence.save_state_due()
    assert len(store.requests) == 2


def test_work_that_a_full_store_refuses_is_stalled_and_waits_since_it_was_first_tried():
    store = Store()
    store.full = True
    ready = work(1)
    assert not store.persistence.save(ready, tick=4)
    assert not store.persistence.save(ready, tick=9)
    assert store.persistence.stalled is ready
    assert store.persistence.waits_since == 4
    assert store.inbox.outstanding == 0, "nothing was ordered"
    store.full = False
    assert store.persistence.save(ready, tick=10)
    assert store.inbox.outstanding == 1
    assert store.persistence.stalled is None
    assert store.persistence.waits_since == 10


def test_a_write_that_failed_ends_the_replica():
    store = Store()
    store.persistence.save(work(1), tick=0)
    with pytest.raises(ActorFailed, match="could not be made durable: the disk is broken"):
        store.persistence.on_saved(Saved(work(1), StorageFailed("the disk is broken")))
    assert store.durable == []


# -- Messages on their way out


class Post:
    def __init__(self):
        self.sent, self.streamed, self.recalled = [], [], []
        self.rooms, self.waits = {"two:2": 5000}, {"two:2": 3}
        self.router = Router(
            raft(),
            self,
            send_snapshot=lambda address, message: self.streamed.append((address, message.to)),
            lines=HostLines().of("drakkar.test", 1, 1),
        )

    def send(self, address, messages):
        self.sent.append((address, [each.to for each in messages]))

    def recall(self, address, message):
        self.recalled.append((address, message))

    def lane_room(self, address, shard, least):
        self.least = least
        return self.rooms[address]

    def lane_waiting(self, address, shard):
        return self.waits[address]


def test_messages_for_one_host_leave_together():
    post = Post()
    post.router.send([Message(M.HEARTBEAT, to=to) for to in (2, 3, 2)])
    assert post.sent == [("two:2", [2, 2]), ("three:3", [3])]


def test_a_snapshot_travels_in_a_stream_unless_it_is_a_witnesses():
    post = Post()
    for witness in (False, True):
        snapshot = Snapshot(5, 1, Membership(voters=THREE), witness=witness)
        post.router.send([Message(M.INSTALL_SNAPSHOT, to=2, snapshot=snapshot)])
    assert post.streamed == [("two:2", 2)]
    assert post.sent == [("two:2", [2])]


def test_a_message_for_an_unknown_address_is_dropped_and_counted_and_named_once(caplog):
    caplog.set_level(logging.INFO)
    post = Post()
    post.router.send([Message(M.HEARTBEAT, to=9)] * 3)
    assert post.sent == []
    assert post.router.undeliverable == 3
    assert caplog.text.count("replica 1 of shard 1: does not know the address of replica 9") == 1
    post.router.learn(9, "nine:9")
    post.router.send([Message(M.HEARTBEAT, to=9)])
    assert post.sent == [("nine:9", [9])]


def test_the_membership_knows_better_than_a_learned_address_and_the_oldest_of_those_goes():
    post = Post()
    post.router.learn(2, "elsewhere:2")
    post.router.send([Message(M.HEARTBEAT, to=2)])
    assert post.sent == [("two:2", [2])]
    for replica in range(10, 10 + MAX_LEARNED_ADDRESSES):
        post.router.learn(replica, "somewhere:1")
    assert 2 not in post.router.learned_addresses
    assert len(post.router.learned_addresses) == MAX_LEARNED_ADDRESSES


def append_of(size, to=2):
    return Message(M.REPLICATE, to=to, entries=Entries([Run(1, 1, [bytes(size - ENTRY_OVERHEAD)])]))


def test_a_core_is_told_of_the_lane_to_the_host_of_its_peer():
    post = Post()
    assert (post.router.room(2), post.router.waiting(2)) == (5000, 3)
    post.router.learn(9, "two:2")
    assert post.router.room(9, 100) == 5000
    assert post.least == 100


def test_a_message_is_recalled_from_the_host_that_it_was_sent_to():
    """Also where its receiver is no member any more."""
    post = Post()
    order, never_sent = Message(M.TIMEOUT_NOW, to=2, sender=1), Message(M.TIMEOUT_NOW, to=9, sender=1)
    post.router.send([order])
    post.router._raft.membership = Membership()
    post.router.recall([order, never_sent])
    assert post.recalled == [("two:2", order)]


def test_a_message_is_recalled_that_waits_for_a_write():
    post = Post()
    order, beat = Message(M.TIMEOUT_NOW, to=2, sender=1), Message(M.HEARTBEAT, to=2)
    post.router.hold([order, beat])
    post.router.recall([replace(order)])
    anew = replace(order)
    post.router.hold([anew])
    post.router.send([order, beat])
    assert post.sent == [("two:2", [2])]
    post.router.send([anew])
    assert post.sent == [("two:2", [2])] * 2


def test_all_is_taken_for_a_replica_whose_address_is_not_known():
    post = Post()
    assert (post.router.room(9), post.router.waiting(9)) == (UNLIMITED, 0)


def test_what_waits_for_a_write_counts_as_in_the_lane_until_it_is_sent():
    post = Post()
    messages = [append_of(1000), append_of(500), append_of(100, to=3), Message(M.HEARTBEAT, to=2)]
    post.router.hold(messages)
    assert (post.router.room(2), post.router.waiting(2)) == (3500, 5)
    post.rooms["two:2"] = UNLIMITED
    assert post.router.room(2, 100) == (1 << 20) - 1500
    assert post.least == 1600
    post.rooms["two:2"] = 1000
    assert post.router.room(2) == 0
    post.router.send(messages)
    assert (post.router.room(2), post.router.waiting(2)) == (1000, 3)


def test_a_message_without_entries_that_waits_for_a_write_makes_an_empty_lane_hold_something():
    post = Post()
    post.rooms["two:2"] = UNLIMITED
    post.router.hold([Message(M.REPLICATE, to=2)])
    assert post.router.room(2) == (1 << 20) - 1


# -- Removed


def test_a_removed_replica_stays_until_a_quorum_knows_it_and_tells_why_it_takes_nothing():
    core = raft()
    removal = Removal(core, HostLines().of("drakkar.test"))
    assert removal.notice() is None
    assert not removal.is_over(hung=True), "a member stays"
    core.membership = Membership(voters={2: "two:2"}, removed=frozenset({1}))
    news = removal.notice()
    assert type(news) is ReplicaStopped
    assert "replica 1 of shard 1 was removed from its shard" in str(news)
    assert removal.reason is news
    assert removal.notice() is None, "it is news once only"
    assert not removal.is_over(hung=False)
    assert removal.is_over(hung=True), "its vote is of no use"
    core.heard.removal_confirmed = True
    assert removal.is_over(hung=False)


# -- Transfers


def transfer(target, deadline=100.0):
    return TransferRequest(target, ActorFuture(), deadline)


def test_transfers_are_bounded(monkeypatch):
    monkeypatch.setattr("drakkar.actors.node.transfers.MAX_TRANSFERS", 2)
    transfers = Transfers(raft())
    requests = [transfer(2) for _ in range(3)]
    for request in requests:
        transfers.begin(request)
    assert [type(outcome(request)) for request in requests] == [type(None), type(None), SystemBusy]
    assert len(transfers) == 2


def test_a_transfer_is_over_when_its_target_leads_or_a_later_term_has_another_leader():
    core = raft()
    core.become_follower(5, 3)
    transfers = Transfers(core)
    first, second = transfer(2), transfer(1)
    transfers.begin(first)
    transfers.begin(second)
    core.become_follower(6, 0)
    transfers.settle()
    assert outcome(first) is outcome(second) is None, "the election goes on"
    core.become_follower(6, 2)
    transfers.settle()
    assert outcome(first) == 2
    assert "replica 2 was elected instead" in str(outcome(second))
    assert len(transfers) == 0


def test_a_transfer_ends_by_its_deadline_with_an_unknown_outcome():
    transfers = Transfers(raft())
    early, late = transfer(2, deadline=1.0), transfer(2, deadline=2.0)
    transfers.begin(early)
    transfers.begin(late)
    transfers.expire(1.0)
    assert type(outcome(early)) is OutcomeUnknown
    assert outcome(late) is None


# -- Waiting for an index


def test_who_waits_for_an_index_is_answered_when_it_is_reached_or_by_the_deadline_and_few_may_wait():
    waits = AppliedRequests(max_requests=2)
    requests = [
        AppliedRequest(index, ActorFuture(), deadline) for index, deadline in ((5, 9.0), (6, 2.0), (1, 9.0))
    ]
    for request in requests:
        waits.add(request)
    assert type(outcome(requests[2])) is SystemBusy
    waits.answer(5, 1.0, lambda index: RequestDropped(f"no {index}"))
    assert (outcome(requests[0]), outcome(requests[1])) == (5, None)
    waits.answer(5, 2.0, lambda index: RequestDropped(f"no {index}"))
    assert type(outcome(requests[1])) is RequestDropped
    assert str(outcome(requests[1])) == "no 6"
    assert len(waits) == 0


# -- Refusals


@pytest.mark.parametrize("because", Refusal, ids=lambda refusal: refusal.name)
def test_each_refusal_has_an_error_whose_class_says_whether_it_may_be_repeated(because):
    expected = {
        "NO_LEADER": NotLeader,
        "CAMPAIGNING": NotLeader,
        "STEPPED_DOWN": NotLeader,
        "TRANSFERRING": TransferInProgress,
        "TRANSFER_TIMED_OUT": OutcomeUnknown,
        "TOO_MANY_UNCOMMITTED": SystemBusy,
        "TOO_MANY_READS": SystemBusy,
        "DISK_FULL": DiskFull,
        "CHANGE_PENDING": MembershipRejected,
        "CHANGE_INVALID": MembershipRejected,
        "QUORUM_UNREACHABLE": MembershipRejected,
        "VOTER_UNSETTLED": MembershipRejected,
        "VETOED": Vetoed,
    }
    error = error_for(raft(), because)
    assert type(error) is expected.get(because.name, RequestDropped)
    assert error.outcome_known is (because is not Refusal.TRANSFER_TIMED_OUT)


def test_a_client_is_told_what_a_handler_says_that_refused_it_and_nothing_else():
    assert str(error_for(raft(), Refusal.VETOED, text="no swearing")) == "no swearing"
    assert str(error_for(raft(), Refusal.VETOED)) == "a handler refused it"


def test_a_client_is_told_which_replicas_lack_a_kind():
    error = str(error_for(raft(), Refusal.KIND_MISSING, (2, 3)))
    assert error.startswith(f"{Refusal.KIND_MISSING.value}; those that have not: 2, 3: start all replicas")
    assert "start all replicas with a table that uses the extension" in error
