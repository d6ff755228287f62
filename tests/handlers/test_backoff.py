"""How long a host waits before the next attempt."""

from itertools import pairwise
from random import Random

from drakkar.handlers.backoff import Backoff


def delays(seed: int, count: int) -> list[float]:
    backoff = Backoff(0.05, 2.0, Random(seed))
    return [backoff.next() for _ in range(count)]


def test_waits_double_up_to_a_limit_and_are_cut_by_up_to_half() -> None:
    for at, delay in enumerate(delays(1, 2000)):
        whole = min(0.05 * 2.0 ** min(at, 10), 2.0)
        assert whole / 2 <= delay <= whole


def test_two_hosts_do_not_wait_equally_long() -> None:
    assert len({round(delay, 6) for seed in range(50) for delay in delays(seed, 4)}) > 190


def test_waits_begin_anew_after_a_reset() -> None:
    backoff = Backoff(0.05, 2.0, Random(1))
    assert any(later > earlier for earlier, later in pairwise([backoff.next() for _ in range(5)]))
    backoff.reset()
    assert (backoff.failures, backoff.next() <= 0.05) == (0, True)
