"""What connections may cost: loop time for useless messages, with a clock turned by hand, and room for large ones."""

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from drakkar.handlers.errors import TransportError
from drakkar.handlers.messages import Message, MessageType
from drakkar.transport.budgets import (
    AFTERWARDS,
    CALL_S,
    CALLS_SAVED_S,
    CALLS_SHARE,
    FRUITFUL_BYTES,
    FRUITLESS_S,
    LATE_S,
    LONGEST_CALLS_S,
    LONGEST_TURN_S,
    MAX_ACCOUNTS,
    MEMBERS_PART,
    OTHERS_SAVED_S,
    OTHERS_SHARE,
    OWN_SHARE,
    PACE_MESSAGES,
    PACE_S,
    PROGRESS_BYTES,
    SAVED_S,
    SERVED,
    TRAFFIC_S,
    WANTED_BYTES_PER_SECOND,
    Account,
    LoopTime,
    MemoryReservation,
    Room,
    Rooms,
    Work,
)

from tests.transport.support import on_loop


class Clock:
    """Seconds, as a test wants them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def member() -> bool:
    return True


def stranger() -> bool:
    return False


def turn(account: Account, clock: Clock, seconds: float, *, units: int = 1, useless: int = 0) -> float:
    """One turn of a connection: it takes so long, and brings so many messages. Return the pause after it."""
    account.begin()
    clock.now += seconds
    account.charge(useless)
    return account.end(units)


def paused(accounts: list[Account], clock: Clock, seconds: float, *, turns: float = 0.001) -> float:
    """Let connections send nothing but useless messages for so long; return the share of the time that they took."""
    until, spent = clock.now + seconds, 0.0
    free = dict.fromkeys(accounts, clock.now)
    while clock.now < until:
        account = min(free, key=free.__getitem__)
        clock.now = max(clock.now, free[account])
        spent += turns
        free[account] = clock.now + turns + turn(account, clock, turns, units=100, useless=100)
    return spent / seconds


# ---- loop time


def test_loop_time_grows_with_the_time_up_to_what_may_be_saved() -> None:
    budget = LoopTime(0.1, 0.5, 0.0)
    budget.spend(0.7, 0.0)
    assert budget.wait(0.0) == pytest.approx(2.0)
    assert budget.wait(1.5) == pytest.approx(0.5)
    assert budget.wait(2.5) == 0.0
    budget.spend(0.6, 100.0)
    assert budget.wait(100.0) == pytest.approx(1.0)


def test_loop_time_that_is_given_back_is_saved_up_to_the_bound() -> None:
    budget = LoopTime(0.1, 0.5, 0.0)
    budget.spend(-10.0, 0.0)
    budget.spend(0.6, 0.0)
    assert budget.wait(0.0) == pytest.approx(1.0)


def test_useful_messages_are_never_charged() -> None:
    clock = Clock()
    account = Work(clock).account("a:1", stranger)
    assert {turn(account, clock, 0.01, units=500) for _ in range(1000)} == {0.0}


@pytest.mark.parametrize(("is_member", "share"), [(member, OWN_SHARE), (stranger, OWN_SHARE)])
def test_a_connection_that_sends_nothing_useful_has_its_share_of_the_loop(
    is_member: Callable[[], bool], share: float
) -> None:
    clock = Clock()
    account = Work(clock).account("a:1", is_member)
    paused([account], clock, 60.0)  # what is saved up is gone then
    assert paused([account], clock, 600.0) == pytest.approx(share, rel=0.05)


def test_all_hosts_that_are_no_members_share_one_budget() -> None:
    clock = Clock()
    work = Work(clock)
    accounts = [work.account(f"a:{number}", stranger) for number in range(50)]
    paused(accounts, clock, 60.0)
    assert paused(accounts, clock, 600.0) == pytest.approx(OTHERS_SHARE, rel=0.1)


@pytest.mark.parametrize(("is_member", "share"), [(member, OWN_SHARE), (stranger, OWN_SHARE)])
@pytest.mark.parametrize("size", [0, FRUITFUL_BYTES // 8, FRUITFUL_BYTES // 2])
def test_reads_that_complete_nothing_have_their_share_too(
    is_member: Callable[[], bool], share: float, size: int
) -> None:
    clock = Clock()
    account = Work(clock).account("a:1", is_member)
    cost = FRUITLESS_S * (1 - size / FRUITFUL_BYTES)
    reads = int(2 / cost)
    for _ in range(2):  # what is saved up is gone the second time
        began = clock.now
        for _ in range(reads):
            turn(account, clock, FRUITLESS_S / 100, units=0)
            clock.now += account.fruitless(size)
    assert reads * cost / (clock.now - began) == pytest.approx(share, rel=0.05)


def test_reads_of_many_bytes_are_not_charged_though_they_complete_nothing() -> None:
    account = Work(Clock()).account("a:1", stranger)
    assert {account.fruitless(FRUITFUL_BYTES) for _ in range(100_000)} == {0.0}


@pytest.mark.parametrize("late", [0, 1])
def test_a_turn_that_brings_nothing_earns_nothing(late: int) -> None:
    clock = Clock()
    account = Work(clock).account("a:1", member)
    turn(account, clock, 2 * SAVED_S, useless=1)
    assert account.wait() == pytest.approx(SAVED_S / OWN_SHARE)
    account.charge(late)
    turn(account, clock, 1.0, units=0)
    owed = SAVED_S + late * 2 * SAVED_S  # as much as the one before
    assert account.wait() == pytest.approx(owed / OWN_SHARE - 1.0)


def test_a_member_is_not_held_up_by_what_other_hosts_have_spent() -> None:
    clock = Clock()
    work = Work(clock)
    bad, good, new = (
        work.account(name, kind) for name, kind in (("a:1", stranger), ("b:1", member), ("c:1", stranger))
    )
    while not turn(bad, clock, 0.01, units=100, useless=100):
        pass
    assert turn(good, clock, 0.001, units=100, useless=100) == 0.0
    # Another stranger is not held up either, as long as all that it sends is of use.
    assert turn(new, clock, 0.001, units=100) == 0.0
    assert turn(new, clock, 0.001, units=100, useless=100) > 0.0


def test_a_busy_connection_may_send_half_as_much_that_is_useless() -> None:
    clock = Clock()
    account = Work(clock).account("a:1", member)
    assert {turn(account, clock, 0.001, units=100, useless=50) for _ in range(10_000)} == {0.0}
    while not turn(account, clock, 0.001, units=100, useless=70):
        pass


def test_useful_messages_earn_credit() -> None:
    clock = Clock()
    account = Work(clock).account("a:1", member)
    for _ in range(100):
        assert turn(account, clock, SAVED_S, useless=1) == 0.0
        assert turn(account, clock, SAVED_S) == 0.0


def test_a_turn_of_useful_and_useless_messages_costs_the_share_of_the_useless() -> None:
    clock = Clock()
    account = Work(clock).account("a:1", member)
    seconds = 2 * SAVED_S  # three quarters of it are charged, and one is earned
    assert turn(account, clock, seconds, units=4, useless=3) == pytest.approx(
        (seconds / 2 - SAVED_S) / OWN_SHARE, abs=1e-6
    )
    assert turn(account, clock, 1.0, units=4, useless=3) > 0.0


def test_what_a_node_finds_useless_later_is_charged_with_the_next_turn() -> None:
    clock = Clock()
    account = Work(clock).account("a:1", member)
    late = int(SAVED_S / LATE_S)
    turn(account, clock, 0.0)
    account.charge(late + 1000)
    assert turn(account, clock, 0.0) == pytest.approx(1000 * LATE_S / OWN_SHARE, rel=0.01)


def test_the_turns_of_a_large_message_are_charged_when_it_is_found_useless() -> None:
    clock = Clock()
    account = Work(clock).account("a:1", member)
    for _ in range(9):
        account.begin()
        clock.now += SAVED_S
        assert account.end(0, incomplete=True) == 0.0
    assert turn(account, clock, SAVED_S, useless=1) == pytest.approx(9 * SAVED_S / OWN_SHARE)


def test_a_large_message_that_never_ends_was_useless() -> None:
    clock = Clock()
    work = Work(clock)
    account = work.account("a:1", member)
    for _ in range(10):
        account.begin()
        clock.now += SAVED_S
        account.end(0, incomplete=True)
    account.abandon()
    # The next connection of the host goes on with the account.
    assert turn(work.account("a:1", member), clock, 0.0, useless=1) == pytest.approx(9 * SAVED_S / OWN_SHARE)


# ---- messages for one shard


def bring(
    account: Account, shards: range, count: int, type_: MessageType = MessageType.HEARTBEAT, **fields: Any
) -> float:
    """A turn brings so many messages for each of these shards. Return for how long the connection rests."""
    account.begin()
    account.count([Message(type_, shard=shard, **fields) for shard in shards] * count)
    account.end(count * len(shards))
    return account.rest()


def test_more_messages_for_one_shard_than_any_needs_are_left_for_later() -> None:
    clock = Clock()
    account = Work(clock).account("a:1", member)
    assert bring(account, range(7, 8), PACE_MESSAGES) == 0.0
    clock.now += PACE_S / 2
    assert bring(account, range(7, 8), 1) == pytest.approx(PACE_S / 2)
    clock.now += PACE_S / 2
    assert account.rest() == 0.0
    assert bring(account, range(7, 8), PACE_MESSAGES) == 0.0
    assert bring(account, range(7, 8), 1) == pytest.approx(PACE_S)


def test_proposals_count_for_what_they_have_the_receiver_do() -> None:
    fits = PACE_MESSAGES // 3
    for count, rests in ((fits, 0.0), (fits + 1, PACE_S)):
        account = Work(Clock()).account("a:1", member)
        assert bring(account, range(7, 8), count, MessageType.PROPOSE) == pytest.approx(rests)


def test_any_number_of_messages_may_come_for_many_shards() -> None:
    account = Work(Clock()).account("a:1", member)
    assert bring(account, range(1, 101), PACE_MESSAGES) == 0.0


def test_the_next_connection_of_a_host_goes_on_with_what_is_counted() -> None:
    work = Work(Clock())
    account = work.account("a:1", member)
    bring(account, range(7, 8), PACE_MESSAGES)
    account.abandon()
    assert work.account("a:1", member).rest() == 0.0
    assert bring(work.account("a:1", member), range(7, 8), 1) > 0.0
    assert work.account("a:1", member).rest() > 0.0
    assert work.account("b:1", member).rest() == 0.0


def test_what_ended_connections_said_of_many_shards_takes_no_memory() -> None:
    work = Work(Clock())
    account = work.account("a:1", stranger)
    bring(account, range(10_000), 1)
    account.abandon()
    assert not account._pace._counts


# ---- calls


def call(account: Account, count: int, seconds: float = 0.0) -> float:
    """So many calls come and take so many seconds. Return for how long there is no credit for more."""
    account._clock.now += seconds
    account.called(count, seconds)
    return account.calls_wait()


def pair() -> tuple[Clock, Account, Account]:
    """A host that calls, and another one."""
    clock = Clock()
    work = Work(clock)
    return clock, work.account("a:1", member), work.account("b:1", stranger)


def test_one_host_may_call_as_often_as_the_loop_can_where_nobody_else_is_served() -> None:
    _, account, other = pair()
    bring(other, range(300), 10)  # heartbeats
    bring(other, range(7, 8), SERVED - 1, MessageType.REPLICATE)
    for _ in range(100):
        assert call(account, 20, 0.013) == 0.0


@pytest.mark.parametrize(
    "serve",
    [
        lambda other: bring(other, range(SERVED), 1, MessageType.REPLICATE),
        lambda other: bring(other, range(SERVED), 1, MessageType.HEARTBEAT_RESP, hint=1),  # of reads
        lambda other: call(other, SERVED),
    ],
)
def test_while_others_are_served_the_calls_of_one_host_have_a_share_of_the_loop(serve) -> None:
    clock, account, other = pair()
    serve(other)
    assert call(account, 1, CALLS_SAVED_S / 2) == 0.0, "so much is saved up"
    wait = call(account, 1, 0.02)
    left = CALLS_SAVED_S * (1 - (1 + AFTERWARDS) / 2) + 0.02 * CALLS_SHARE
    assert wait == pytest.approx((0.02 * (1 + AFTERWARDS) - left) / CALLS_SHARE)
    assert (account.rest(), other.calls_wait()) == (0.0, 0.0), "its messages are read on, and others' calls"
    clock.now += wait + 1e-9
    assert account.calls_wait() == 0.0


@pytest.mark.parametrize(
    ("seconds", "afterwards"),
    [pytest.param(0.02, 0.01, id="dear values"), pytest.param(0.0002, 20 * CALL_S, id="calls as usual")],
)
def test_a_host_that_calls_for_long_beside_others_has_its_share_and_no_more(
    seconds: float, afterwards: float
) -> None:
    clock, account, other = pair()
    busy, began = 0.0, clock.now
    while clock.now < began + 10:
        call(other, SERVED)
        wait = call(account, 20, seconds)
        busy += seconds + afterwards
        clock.now += max(wait, afterwards)
    assert busy / (clock.now - began) == pytest.approx(CALLS_SHARE, rel=0.05)


def test_what_a_host_called_before_others_came_is_not_held_against_it() -> None:
    clock, account, other = pair()
    for _ in range(10):
        assert call(account, 20, 0.01) == 0.0
    call(other, SERVED)
    assert account.calls_wait() == 0.0
    assert call(account, 20, 2 * CALLS_SAVED_S) > 0.0
    clock.now += 3 * TRAFFIC_S
    assert call(account, 20, 2 * CALLS_SAVED_S) == 0.0, "the others have gone"


def test_what_comes_late_does_not_make_the_others_forgotten() -> None:
    """What came with an introduction counts from when that was read."""
    clock, account, other = pair()
    call(other, SERVED)
    clock.now -= 2 * TRAFFIC_S
    bring(other, range(1), 1, MessageType.REPLICATE)
    clock.now += 2 * TRAFFIC_S
    assert call(account, 1, 2 * CALLS_SAVED_S) > 0.0


def test_calls_in_the_middle_of_a_large_message_count_as_others_do() -> None:
    _, account, other = pair()
    call(other, SERVED)
    account.begin()
    account.end(0, incomplete=True)
    assert call(account, 1, 2 * CALLS_SAVED_S) > 0.0


def test_a_turn_in_which_the_process_was_stopped_keeps_no_host_out() -> None:
    clock, account, other = pair()
    clock.now += 60
    call(other, SERVED)
    account.called(1, 60.0)
    assert account.calls_wait() <= LONGEST_CALLS_S / CALLS_SHARE
    assert turn(other, clock, 60.0, useless=1) <= LONGEST_TURN_S / OWN_SHARE


def call_uselessly(account: Account, seconds: float, count: int = 1, useless: int = 1) -> float:
    """As `call`; so many of them are of no use."""
    account.useless_calls += useless
    return call(account, count, seconds)


@pytest.mark.parametrize(
    ("is_member", "saved", "share"), [(member, SAVED_S, OWN_SHARE), (stranger, OTHERS_SAVED_S, OTHERS_SHARE)]
)
def test_calls_of_no_use_have_a_budget_of_their_own_whoever_else_is_served(is_member, saved, share) -> None:
    clock = Clock()
    work = Work(clock)
    account, twin = work.account("a:1", is_member), work.account("b:1", is_member)
    cost, spent = 0.01 * (1 + AFTERWARDS), 0.0
    while not (wait := call_uselessly(account, 0.01, 10, 10)):
        spent += cost
        clock.now -= 0.01
    assert saved - cost <= spent <= saved
    assert wait == pytest.approx((spent + cost - saved) / share, abs=0.011)
    assert (account.wait(), account.rest()) == (0.0, 0.0), "it is read on"
    assert (call(twin, 10, 0.01), turn(account, clock, saved / 2, useless=1)) == (0.0, 0.0), (
        "nor are others held up"
    )
    clock.now += wait
    assert account.calls_wait() == 0.0


def test_calls_pay_for_what_is_of_no_use_among_them() -> None:
    clock = Clock()
    account = Work(clock).account("a:1", member)
    for _ in range(int(SAVED_S / (0.001 * (1 + AFTERWARDS)))):
        assert call_uselessly(account, 0.01, 10, 1) == 0.0


def test_a_turn_neither_pays_for_its_calls_nor_earns_by_them() -> None:
    for useless_calls, useless in ((0, 0), (1, 0), (0, 1)):
        clock = Clock()
        account = Work(clock).account("a:1", member)
        turn(account, clock, SAVED_S, useless=1)
        account.begin()
        call_uselessly(account, SAVED_S, useless=useless_calls)
        account.charge(useless)
        assert account.end(1) == 0.0
        clock.now -= SAVED_S
        assert turn(account, clock, 0.01, useless=1) == pytest.approx(0.01 / OWN_SHARE, abs=0.011)


def test_the_memory_of_accounts_is_bounded() -> None:
    work = Work(Clock())
    for number in range(2 * MAX_ACCOUNTS):
        work.account(f"a:{number}", stranger)
    assert len(work._own) == MAX_ACCOUNTS


def test_whether_a_host_is_a_member_is_asked_again_each_time() -> None:
    clock = Clock()
    known: list[str] = []
    account = Work(clock).account("a:1", lambda: bool(known))
    known.append("a:1")
    assert turn(account, clock, OTHERS_SAVED_S * 3, units=1, useless=1) == 0.0


# ---- room


@on_loop
async def test_room_is_taken_in_turn_and_one_message_alone_may_exceed_it() -> None:
    room = Room(100)
    order: list[int] = []

    async def take(size: int) -> None:
        await room.take(size)
        order.append(size)

    async with trio.open_nursery() as nursery:
        for size in (60, 300, 10):
            nursery.start_soon(take, size)
            await trio.testing.wait_all_tasks_blocked()
        assert (order, room.taken, room.wanted) == ([60], 60, True)
        room.give_back(60)
        await trio.testing.wait_all_tasks_blocked()
        assert (order, room.taken) == ([60, 300], 300)
        room.give_back(300)
    assert (order, room.taken, room.wanted) == ([60, 300, 10], 10, False)


@on_loop
async def test_one_who_no_longer_waits_is_in_nobodys_way() -> None:
    room = Room(100)
    await room.take(60)
    with trio.move_on_after(0):
        await room.take(50)
    await room.take(40)
    assert (room.taken, room.wanted) == (100, False)


def reservations(
    limit: int, clock: Clock, *kinds: Callable[[], bool], timeout: float = 10.0
) -> list[MemoryReservation]:
    rooms = Rooms(limit, timeout, clock)
    return [rooms.reservation(kind) for kind in kinds]


@on_loop
async def test_hosts_that_are_no_members_take_no_room_of_the_members() -> None:
    first, second, third = reservations(800, Clock(), stranger, stranger, member, timeout=0.01)
    await first.hold(90, 0)
    with pytest.raises(TransportError, match=r"no room for a message of 90 bytes within 0\.01 s"):
        await second.hold(90, 0)
    await third.hold(int(800 * MEMBERS_PART), 0)
    first.end()
    await second.hold(90, 0)
    assert (first.size, second.size, third.size) == (0, 90, 700)


@on_loop
async def test_what_is_complete_gives_its_room_back() -> None:
    (reservation,) = reservations(800, Clock(), member)
    await reservation.hold(500, 0)
    await reservation.hold(700, 0)
    await reservation.hold(200, 0)
    assert reservation._rooms.taken == 200
    await reservation.hold(0, 0)
    reservation.end()
    assert reservation._rooms.taken == 0


@on_loop
async def test_what_is_in_the_room_must_make_progress() -> None:
    clock = Clock()
    (reservation,) = reservations(100 << 20, clock, member)
    await reservation.hold(60 << 20, 0)
    for number in range(1, 100):
        clock.now += 9.0
        await reservation.hold(60 << 20, number * PROGRESS_BYTES)
    clock.now += 9.0
    await reservation.hold(60 << 20, 100 * PROGRESS_BYTES - 1)
    reservation.excuse(5.0)
    clock.now += 5.0
    await reservation.hold(60 << 20, 100 * PROGRESS_BYTES - 1)
    clock.now += 9.0
    with pytest.raises(TransportError, match="does not go on"):
        await reservation.hold(60 << 20, 100 * PROGRESS_BYTES - 1)


@on_loop
async def test_what_comes_slowly_leaves_the_room_where_others_wait_for_it() -> None:
    clock = Clock()
    first, second = reservations(80 << 20, clock, member, member)
    size = 60 << 20
    await first.hold(size, 0)
    clock.now += 9.0 + size / WANTED_BYTES_PER_SECOND
    first._due = clock.now + 10.0
    clock.now += 2.0
    await first.hold(size, 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(second.hold, size, 0)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(TransportError, match="comes too slowly"):
            await first.hold(size, 2)
        first.end()
    assert second.size == size
