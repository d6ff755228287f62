"""The simulator finds what it is for: each deliberate break of a rule trips one of the checks that are named for it."""

import pytest

from tests.simulation.mutants import MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_broken_rule_is_found(mutant):
    found = mutant.find()
    assert found, f"{mutant.name}: a hole in the simulator, since {mutant.seeds} schedules went well"
    seed, outcome = found
    assert outcome.check.startswith(mutant.checks), (
        f"{mutant.name}: seed {seed} was found by another check: {outcome.check}\n{outcome.error}"
    )


def test_there_are_mutants_of_many_rules():
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= 30
