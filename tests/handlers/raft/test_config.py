"""Every option is documented, checked, and says what to write instead."""

import ast
import inspect
import logging
from collections import Counter
from dataclasses import FrozenInstanceError, fields, replace
from enum import IntEnum
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from drakkar.handlers.errors import ConfigError, DrakkarError
from drakkar.handlers.raft import config as module
from drakkar.handlers.raft.config import RaftConfig

NUMBERS = [field.name for field in fields(RaftConfig) if field.type in (int, int | None)]
SWITCHES = [field.name for field in fields(RaftConfig) if field.type is bool]
MODES = ["read_mode", "entry_compression", "snapshot_compression"]
OPTIONS = [field.name for field in fields(RaftConfig)]

NARROWED: dict[str, tuple[int, int, dict[str, Any]]] = {
    "election_ticks": (3, 1_000_000, {}),
    "heartbeat_ticks": (1, 499_999, {"election_ticks": 1_000_000}),
    "min_election_ticks": (10, 999_999, {"max_election_ticks": 1_000_000}),
    "max_election_ticks": (11, 1_000_000, {}),
    "max_in_mem_log_bytes": (129, 2**63 - 1, {}),
    "max_inflight_bytes": (1, 2**63 - 1, {"max_message_bytes": 1}),
    "max_apply_bytes": (1, 2**63 - 1, {}),
}
"""Where a rule between options, or a meaning of its own for 0, narrows the bounds; and what that rule looks at."""


def configured(**options: Any) -> RaftConfig:
    return RaftConfig(**{"replica_id": 1, **options})


def refusal(**options: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        configured(**options)
    return caught.value


def documented_options() -> dict[str, str]:
    """The docstrings that stand below the options in the source."""
    body = next(
        node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.ClassDef)
    ).body
    found = {}
    for option, text in pairwise(body):
        if isinstance(option, ast.AnnAssign) and isinstance(option.target, ast.Name):
            assert isinstance(text, ast.Expr), f"{option.target.id} has no docstring"
            found[option.target.id] = ast.literal_eval(text.value)
    return found


def test_every_option_is_a_number_a_switch_or_a_mode() -> None:
    assert sorted([*NUMBERS, *SWITCHES, *MODES]) == sorted(OPTIONS)
    assert set(NUMBERS) == set(module._BOUNDS)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_is_documented_with_its_default(option: str) -> None:
    text = documented_options()[option]
    assert text[0].isupper()
    assert len(text) > 40
    assert "default" in text.lower() or option == "replica_id"


@pytest.mark.parametrize(
    ("option", "wrong"),
    [
        (option, wrong)
        for option in NUMBERS
        for wrong in (True, "3", 1.5, None, [1])
        if (option, wrong) != ("max_inflight_bytes", None)
    ],
)
def test_a_number_is_an_integer_and_no_switch(option: str, wrong: Any) -> None:
    error = refusal(**{option: wrong})
    assert (error.option, error.value) == (option, wrong)
    assert str(error).startswith(f"{option}={wrong!r}: must be a whole number from ")
    assert f"not {type(wrong).__name__}" in str(error)


@pytest.mark.parametrize("option", NUMBERS)
def test_a_number_out_of_its_bounds_is_refused_with_the_bounds(option: str) -> None:
    low, high = module._BOUNDS[option]
    for wrong in (low - 1, high + 1, -(10**30)):
        error = refusal(**{option: wrong})
        shown = "2**63 - 1" if high == (1 << 63) - 1 else high
        assert str(error) == f"{option}={wrong}: must be a whole number from {low} to {shown}"
        assert (error.option, error.value) == (option, wrong)


@pytest.mark.parametrize("option", NUMBERS)
def test_both_bounds_of_a_number_are_allowed(option: str) -> None:
    low, high, others = NARROWED.get(option, (*module._BOUNDS[option], {}))
    for value in (low, high):
        assert getattr(configured(**{**others, option: value}), option) == value


@pytest.mark.parametrize(
    "option",
    [
        "min_election_ticks",
        "max_election_ticks",
        "snapshot_entries",
        "snapshot_bytes",
        "max_in_mem_log_bytes",
        "max_uncommitted_bytes",
        "apply_unpersisted_limit",
    ],
)
def test_zero_is_the_default_where_it_means_that_there_is_no_such_limit(option: str) -> None:
    assert configured(**{option: 0}) == configured()


@pytest.mark.parametrize("option", SWITCHES)
@pytest.mark.parametrize("wrong", [0, 1, "yes", None], ids=repr)
def test_a_switch_is_true_or_false(option: str, wrong: Any) -> None:
    assert (
        str(refusal(**{option: wrong}))
        == f"{option}={wrong!r}: must be True or False, not {type(wrong).__name__}"
    )


@pytest.mark.parametrize("option", SWITCHES)
def test_a_switch_can_be_switched(option: str) -> None:
    for value in (True, False):
        assert getattr(configured(**{option: value}), option) is value


@pytest.mark.parametrize("wrong", ["eventual", "Safe", True, 0, None, ["safe"]], ids=repr)
def test_a_read_mode_is_one_of_two_words(wrong: Any) -> None:
    assert str(refusal(read_mode=wrong)) == f"read_mode={wrong!r}: must be 'safe' or 'lease'"


def test_the_defaults_are_calm() -> None:
    config = RaftConfig(replica_id=7)
    assert (config.shard_id, config.election_ticks, config.heartbeat_ticks) == (1, 10, 1)
    assert config.check_quorum
    assert config.pre_vote
    assert config.step_down_on_removal
    assert config.read_mode == "safe"
    assert (config.max_message_bytes, config.max_inflight_messages, config.max_pending_reads) == (
        2**20,
        256,
        4096,
    )


def test_a_replica_id_is_required_and_options_have_names() -> None:
    with pytest.raises(TypeError, match="replica_id"):
        RaftConfig()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional"):
        RaftConfig(1)  # type: ignore[misc]
    with pytest.raises(TypeError, match="election_tick"):
        configured(election_tick=10)


def test_a_config_never_changes() -> None:
    with pytest.raises(FrozenInstanceError):
        configured().priority = 3  # type: ignore[misc]
    assert replace(configured(), priority=3) == configured(priority=3)
    assert hash(configured()) == hash(configured())


def test_a_changed_copy_is_checked_again() -> None:
    with pytest.raises(ConfigError, match="election_ticks=1"):
        replace(configured(), election_ticks=1)


def test_a_named_number_is_a_number() -> None:
    class Replica(IntEnum):
        FIRST = 1

    assert configured(replica_id=Replica.FIRST).replica_id == 1


def test_a_config_error_is_both_ours_and_a_value_error() -> None:
    error = refusal(replica_id=0)
    assert isinstance(error, ValueError)
    assert isinstance(error, DrakkarError)


@pytest.mark.parametrize(
    ("options", "option", "value", "words"),
    [
        pytest.param(
            {"election_ticks": 2, "heartbeat_ticks": 1},
            "election_ticks",
            2,
            ["more than 2 * heartbeat_ticks = 2", "10 or more"],
            id="one lost heartbeat would do",
        ),
        pytest.param(
            {"heartbeat_ticks": 5},
            "election_ticks",
            10,
            ["heartbeat_ticks = 10", "50 or more"],
            id="slow heartbeats",
        ),
        pytest.param(
            {"min_election_ticks": 9},
            "min_election_ticks",
            9,
            ["at least election_ticks = 10"],
            id="Q4 min below T",
        ),
        pytest.param(
            {"min_election_ticks": 15, "max_election_ticks": 15},
            "max_election_ticks",
            15,
            ["from 15 to below 15", "16 or more"],
            id="Q4 min = max",
        ),
        pytest.param(
            {"max_election_ticks": 10},
            "max_election_ticks",
            10,
            ["from 10 to below 10", "11 or more"],
            id="max = T",
        ),
        pytest.param(
            {"min_election_ticks": 20},
            "max_election_ticks",
            0,
            ["from 20 to below 20", "21 or more"],
            id="min = 2T",
        ),
        pytest.param(
            {"read_mode": "lease", "check_quorum": False},
            "read_mode",
            "lease",
            ["check_quorum=True"],
            id="a lease without an end",
        ),
        pytest.param(
            {"is_observer": True, "is_witness": True}, "is_witness", True, ["is_observer"], id="two roles"
        ),
        pytest.param(
            {"is_witness": True, "snapshot_entries": 100},
            "snapshot_entries",
            100,
            ["must be 0 for a witness"],
            id="a witness has nothing to save",
        ),
        pytest.param(
            {"is_witness": True, "snapshot_bytes": 1 << 20},
            "snapshot_bytes",
            1 << 20,
            ["must be 0 for a witness"],
            id="a witness has nothing to save, however large its log",
        ),
        pytest.param(
            {"max_in_mem_log_bytes": 128},
            "max_in_mem_log_bytes",
            128,
            ["0 (no limit)", "129"],
            id="no entry fits",
        ),
        pytest.param(
            {"max_inflight_bytes": 4095, "max_message_bytes": 4096},
            "max_inflight_bytes",
            4095,
            ["0 (no limit)", "max_message_bytes = 4096"],
            id="no message fits",
        ),
    ],
)
def test_options_that_exclude_each_other_are_refused(
    options: dict[str, Any], option: str, value: Any, words: list[str]
) -> None:
    error = refusal(**options)
    assert (error.option, error.value) == (option, value)
    assert str(error).startswith(f"{option}={value!r}: ")
    for word in words:
        assert word in str(error)


@pytest.mark.parametrize(
    "options",
    [
        {"election_ticks": 3},
        {"election_ticks": 5, "heartbeat_ticks": 2},
        {"election_ticks": 20, "heartbeat_ticks": 2},
        {"min_election_ticks": 10, "max_election_ticks": 11},
        {"min_election_ticks": 19},
        {"read_mode": "lease"},
        {"is_witness": True},
        {"is_observer": True, "snapshot_entries": 100},
        {"max_inflight_bytes": 4096, "max_message_bytes": 4096},
        {"max_inflight_bytes": 1, "max_message_bytes": 0},
        {"max_uncommitted_bytes": 1},
    ],
    ids=str,
)
def test_options_that_go_together_are_taken(options: dict[str, Any]) -> None:
    config = configured(**options)
    assert {name: getattr(config, name) for name in options} == options


def test_an_apply_limit_of_nothing_is_that_of_a_message() -> None:
    assert configured(max_apply_bytes=0, max_message_bytes=77).max_apply_bytes == 77
    assert configured(max_apply_bytes=5, max_message_bytes=77).max_apply_bytes == 5


def test_without_a_limit_of_bytes_in_flight_there_is_one_that_takes_a_message() -> None:
    assert configured().max_inflight_bytes == 8 << 20
    assert configured(max_inflight_bytes=None, max_message_bytes=9 << 20).max_inflight_bytes == 9 << 20
    assert configured(max_inflight_bytes=0).max_inflight_bytes == 0
    assert configured(max_inflight_bytes=5, max_message_bytes=1).max_inflight_bytes == 5


def test_an_election_timeout_near_the_heartbeat_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        configured(election_ticks=10)
        configured(election_ticks=20, heartbeat_ticks=2)
        assert not caplog.records
        configured(replica_id=3, shard_id=4, election_ticks=9)
    [record] = caplog.records
    assert record.name == "drakkar.handlers.raft.config"
    assert "replica 3 of shard 4: election_ticks=9" in record.getMessage()
    assert "10 * heartbeat_ticks=1" in record.getMessage()


@pytest.mark.parametrize(
    ("options", "low", "high"),
    [
        pytest.param({}, 10, 20, id="from T to below 2T"),
        pytest.param({"election_ticks": 5}, 5, 10, id="another T"),
        pytest.param({"min_election_ticks": 12}, 12, 20, id="min alone"),
        pytest.param({"max_election_ticks": 13}, 10, 13, id="max alone"),
        pytest.param({"min_election_ticks": 30, "max_election_ticks": 34}, 30, 34, id="both"),
        pytest.param({"min_election_ticks": 10, "max_election_ticks": 11}, 10, 11, id="Q4 always the same"),
    ],
)
def test_election_timeouts_are_drawn_evenly(options: dict[str, Any], low: int, high: int) -> None:
    """Thesis §3.4: the first possible one at T, the last at 2T - 1."""
    config, random = configured(**options), Random(20)
    drawn = Counter(config.randomized_timeout(random) for _ in range(500 * (high - low)))
    assert sorted(drawn) == list(range(low, high))
    assert all(350 < times < 650 for times in drawn.values()) or high - low == 1
    assert config.election_range == (low, high)


def test_the_same_seed_draws_the_same_timeouts() -> None:
    """A simulation is replayed by its seed."""
    config = configured()
    first, second = Random(3), Random(3)
    assert [config.randomized_timeout(first) for _ in range(50)] == [
        config.randomized_timeout(second) for _ in range(50)
    ]
