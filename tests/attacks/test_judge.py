"""What an attack may cost the innocent, as docs/security.md says."""

import pytest

from tests.attacks.cluster import Figures

CALM = {"before": 800.0, "during": 700.0, "after": 800.0}


def judge(*, pace=True, **figures):
    attacked = Figures("an attack", tls=False, memory_budget_mib=64, log_budget_kib=64, **CALM | figures)
    attacked.judge(pace=pace)


@pytest.mark.parametrize(
    "figures",
    [
        pytest.param({}, id="it costs little"),
        pytest.param({"during": 400.0}, id="half of the commits"),
        pytest.param({"before": 600.0, "during": 401.0, "after": 1000.0}, id="half of the average"),
        pytest.param({"after": 401.0}, id="half of the pace is back"),
        pytest.param({"pace": False, "during": 1.0, "after": 1.0}, id="they go on, beside other tests"),
        pytest.param({"memory_mib": 64.0, "log_kib": 64.0, "left": 10}, id="all that is allowed"),
        pytest.param(
            {"calls_before": 600.0, "calls_during": 400.0, "calls_after": 1000.0}, id="half of the calls"
        ),
    ],
)
def test_what_is_bearable(figures):
    judge(**figures)


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"pace": False, "during": 0.0}, "were stopped"),
        ({"pace": False, "memory_mib": 65.0}, "memory grew"),
        ({"during": 399.0}, "slowed down"),
        ({"before": 600.0, "during": 399.0, "after": 1000.0}, "slowed down"),
        ({"after": 399.0}, "slowed down, 15 s later"),
        ({"memory_mib": 65.0}, "memory grew"),
        ({"log_kib": 65.0}, "log grew"),
        ({"left": 11}, "descriptors were left open"),
        ({"pace": False, "calls_before": 600.0}, "were stopped"),
        ({"calls_before": 600.0, "calls_during": 299.0, "calls_after": 600.0}, "slowed down"),
        ({"calls_before": 600.0, "calls_during": 600.0, "calls_after": 299.0}, "slowed down, 15 s later"),
    ],
)
def test_what_is_not(figures, words):
    with pytest.raises(AssertionError, match=words):
        judge(**figures)
