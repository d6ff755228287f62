"""In which order the requests of many replicas are written."""

from dataclasses import dataclass

from drakkar.actors.log.fair_queue import FairQueue
from hypothesis import given
from hypothesis import strategies as st

A, B, C = (1, 1), (2, 1), (3, 1)


@dataclass(slots=True)
class Item:
    key: tuple
    room: int
    number: int = 0
    turn: int = 0


def queue_of(*items, together=0):
    queue = FairQueue(together)
    for number, (key, room) in enumerate(items):
        queue.put(Item(key, room, number))
    return queue


def taken(queue):
    return [queue.popleft().key for _ in range(len(queue))]


def test_a_replica_with_nothing_waiting_comes_before_the_backlog_of_another():
    queue = queue_of(*[(A, 1000)] * 50)
    queue.popleft()
    queue.put(Item(B, 10))
    assert taken(queue)[:2] == [B, A]


def test_replicas_with_a_backlog_share_by_bytes():
    queue = queue_of(*[(A, 1000)] * 10, *[(B, 250)] * 40)
    first = taken(queue)[:25]
    assert (first.count(A), first.count(B)) == (5, 20)


def test_one_that_was_quiet_for_long_has_saved_no_turns():
    queue = queue_of((B, 10), *[(A, 1000)] * 20)
    for _ in range(10):
        queue.popleft()
    for _ in range(10):
        queue.put(Item(B, 1000))
    assert taken(queue)[:6].count(A) >= 3


def test_what_can_be_written_together_stays_in_its_order():
    queue = queue_of((A, 400), (A, 400), (B, 10), together=1000)
    queue.put(Item(C, 500))
    queue.put(Item(B, 10))
    assert taken(queue) == [A, A, B, C, B]
    queue.put(Item(A, 600))
    queue.put(Item(A, 600))
    queue.put(Item(B, 10))
    assert taken(queue) == [B, A, A]


def test_alone_all_come_in_order_and_what_is_put_last_comes_after_all_that_wait():
    queue = queue_of((A, 5), (B, 5), (C, 5))
    assert taken(queue) == [A, B, C]
    queue = queue_of((A, 500), (A, 500))
    queue.put_last(Item(C, 0))
    queue.put(Item(B, 10))
    assert taken(queue) == [B, A, A, C]


def test_what_is_gone_leaves_nothing_behind():
    for empty in (FairQueue.clear, taken):
        queue = queue_of((A, 1000), (B, 10))
        empty(queue)
        assert not queue._turns
        queue.put(Item(A, 10))
        queue.put(Item(B, 20))
        assert taken(queue) == [A, B]


steps = st.lists(
    st.one_of(st.none(), st.tuples(st.sampled_from([A, B, C]), st.integers(0, 5000))), max_size=60
)


@given(steps)
def test_those_of_one_replica_keep_their_order_and_nothing_is_lost(steps):
    queue, put, got = FairQueue(8000), [], []
    for number, step in enumerate(steps):
        if step is not None:
            queue.put(Item(*step, number))
            put.append((step[0], number))
        elif queue:
            item = queue.popleft()
            got.append((item.key, item.number))
    got += [(item.key, item.number) for item in [queue.popleft() for _ in range(len(queue))]]
    assert sorted(got) == sorted(put)
    for key in (A, B, C):
        assert [each for each in got if each[0] == key] == [each for each in put if each[0] == key]
