"""The simulator finds bugs: each mutant breaks a rule, and one of the checks that it names fails."""

import pytest

from tests.simulation import failover_mutants, identity_mutants, life_mutants, record_mutants  # noqa: F401  # they add their own
from tests.simulation.mutants import MUTANTS

OFTEN = 3
"""Every third of those that are found soon runs in `make test`, all the others in `make check`."""


@pytest.mark.timeout(600)  # some take dozens of schedules, and a core may be slow
@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(
            mutant, id=mutant.name, marks=[pytest.mark.slow] if mutant.rare or number % OFTEN else []
        )
        for number, mutant in enumerate(MUTANTS)
    ],
)
def test_a_broken_rule_is_found(mutant):
    found = mutant.find()
    assert found, f"{mutant.name}: not found in {mutant.seeds} schedules, so the simulator has a gap"
    seed, outcome = found
    assert outcome.check.startswith(mutant.checks), (
        f"{mutant.name}: seed {seed} was found by another check: {outcome.check}\n{outcome.error}"
    )


def test_there_are_mutants_of_many_rules():
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= 30
