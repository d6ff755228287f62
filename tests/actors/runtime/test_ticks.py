"""Ticks: as many as the clock says, but no more at once than a timer can bear."""

from drakkar.actors.runtime.ticks import MAX_AT_ONCE, Ticks


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_whole_ticks_count_and_what_is_left_counts_later():
    clock = Clock()
    ticks = Ticks(0.5, clock)
    assert (ticks.passed(), ticks.next) == (0, 100.5)
    clock.now = 101.75
    assert (ticks.passed(), ticks.next) == (3, 102.0)
    clock.now = 102.0
    assert ticks.passed() == 1


def test_a_long_pause_is_not_made_up_for():
    clock = Clock()
    ticks = Ticks(0.5, clock)
    clock.now += 3600.25
    assert ticks.passed() == MAX_AT_ONCE
    assert (ticks.passed(), ticks.next) == (0, clock.now + 0.5)


def test_where_nothing_waits_all_of_them_count():
    clock = Clock()
    ticks = Ticks(0.5, clock)
    for _ in range(5):
        clock.now += 0.375
        ticks.idle()
    clock.now += 3600
    assert ticks.idle() == 7200


def test_a_clock_that_goes_back_counts_nothing():
    clock = Clock()
    ticks = Ticks(0.5, clock)
    clock.now -= 10
    assert ticks.passed() == 0
