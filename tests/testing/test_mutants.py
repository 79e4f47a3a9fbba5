"""The kit bites: every mutant is caught by the check named for it."""

from __future__ import annotations

import os

import pytest
from mutants import MUTANTS

from attribkit.testing import all_checks, checks_for, run_check, run_checks, switches

EXAMPLES = int(os.environ.get("MUTANT_EXAMPLES", "40"))


LEAVE_SOMETHING = (
    "GradModeLeft",
    "default_dtype_left",
    "deterministic_mode_left",
    "deterministic_mode_switched_off",
    "numpy_seeded",
    "threads_left",
)


@pytest.mark.parametrize("name", LEAVE_SOMETHING)
def test_a_fault_left_behind_reaches_no_other_check(name):
    before = switches.states()
    with MUTANTS[name].make() as method:
        results = run_checks(method, examples=3, shrink=False)
    assert switches.states() == before
    failed = {result.check for result in results if result.status == "failed"}
    assert "check_generators_untouched" in failed
    assert failed <= {"check_generators_untouched", "check_fault_leaves_nothing"}


def test_there_are_enough():
    assert len(MUTANTS) >= 25
    assert {mutant.caught_by for mutant in MUTANTS.values()} <= set(all_checks())


def test_every_check_catches_a_mutant():
    assert set(all_checks()) - {mutant.caught_by for mutant in MUTANTS.values()} == set()


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught_by_its_check(name):
    mutant = MUTANTS[name]
    with mutant.make() as method:
        assert mutant.caught_by in [check.name for check in checks_for(method)], "the method is not held to that check"
        result = run_check(all_checks()[mutant.caught_by], method, examples=EXAMPLES, shrink=False)
    print(result.message)
    assert result.status == "failed"
    assert result.message


if os.environ.get("MUTANTS_WHOLE_KIT"):  # make mutants

    @pytest.mark.parametrize("name", MUTANTS)
    def test_whole_kit_on(name):
        with MUTANTS[name].make() as method:
            results = run_checks(method, examples=EXAMPLES, shrink=False)
        failed = [result.check for result in results if result.status == "failed"]
        print(f"\n{name}: {', '.join(failed)}")
        assert MUTANTS[name].caught_by in failed
