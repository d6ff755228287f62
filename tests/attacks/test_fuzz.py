"""The fuzz of the decoders, in a small measure; `make fuzz` goes on for as long as it is told to."""

from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.attacks import fuzz_calls
from tests.attacks.fuzz_connection import Victim
from tests.attacks.fuzz_decoders import DECODERS
from tests.attacks.fuzz_seeds import SEEDS

patient = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
EXTREMES = [0, 1, 0x17, 0x18, 0x19, 0x1A, 0x1B, 0x3B, 0x5B, 0x7F, 0x80, 0x9B, 0xBB, 0xC2, 0xF6, 0xFF]


@pytest.fixture(scope="module", autouse=True)
def _no_loop_is_left() -> Iterator[None]:
    yield
    fuzz_calls.end()


@st.composite
def changed(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A good input, a few bytes of which were replaced, cut out, or put in."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.sampled_from([0, 1, 1, 1, 4, 8])))
        data[at:end] = bytes(
            draw(st.lists(st.one_of(st.sampled_from(EXTREMES), st.integers(0, 255)), max_size=9))
        )
    return bytes(data)


@pytest.mark.parametrize("name", DECODERS)
def test_good_inputs_pass(name: str) -> None:
    for seed in SEEDS[name]():
        DECODERS[name](seed)


@pytest.mark.parametrize("name", DECODERS)
def test_any_bytes_are_decoded_or_refused(name: str) -> None:
    @patient
    @given(st.binary(max_size=300))
    def fuzz(data: bytes) -> None:
        DECODERS[name](data)

    fuzz()


@pytest.mark.parametrize("name", DECODERS)
def test_changed_inputs_are_decoded_or_refused(name: str) -> None:
    @patient
    @given(changed(SEEDS[name]()))
    def fuzz(data: bytes) -> None:
        DECODERS[name](data)

    fuzz()


@pytest.mark.xdist_group("attacks")
def test_a_host_takes_no_harm_from_a_peer_that_says_what_it_likes() -> None:
    with Victim() as victim:

        @settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
        @given(st.binary(max_size=400))
        def fuzz(data: bytes) -> None:
            victim.hear(data)

        fuzz()
        for seed in range(40):
            victim.hear(bytes([seed]) + Random(seed).randbytes(300))
        wanted = {"a newer term", "more entries", "applied entries", "LEADER"}
        assert all(victim.seen[what] for what in wanted), victim.seen
