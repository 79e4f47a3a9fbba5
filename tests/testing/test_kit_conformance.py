"""The default methods keep what they claim, and right methods of other natures raise no false alarm."""

from __future__ import annotations

import os

import pytest
from right_methods import RIGHT

import attribkit as ak
from attribkit.testing import checks_for, parametrize_with_checks
from attribkit.testing.registry import EXACT

EXAMPLES = int(os.environ.get("KIT_EXAMPLES", "20"))
SEED = int(os.environ.get("KIT_SEED", "0"))


@parametrize_with_checks(EXACT, examples=EXAMPLES, seed=SEED)
def test_default_methods(method, check):
    check(method)


@parametrize_with_checks([name for name in EXACT if name != "occlusion"], examples=EXAMPLES, seed=SEED)
@pytest.mark.usefixtures("lean_everywhere")
def test_default_methods_by_lean_steps_alone(method, check):
    check(method)


@parametrize_with_checks(RIGHT, examples=max(2, EXAMPLES // 3), seed=SEED)
def test_right_methods(method, check):
    check(method)


def test_right_methods_are_of_different_nature():
    assert len(RIGHT) >= 8
    tags = set().union(*(method.tags for method in RIGHT))
    assert {"inverse", "perturbation", "signed", "linear_in_seed", "deterministic", "homogeneous"} <= tags


@pytest.mark.parametrize("method", [ak.Method, *RIGHT], ids=lambda method: method.name or "Method")
def test_what_every_method_is_held_to(method):
    names = {check.name for check in checks_for(method())}
    assert names >= {
        "check_batch_independence",
        "check_batch_permutation",
        "check_current_input",
        "check_declaration",
        "check_dtype_and_device",
        "check_fault_leaves_nothing",
        "check_finite",
        "check_front_door",
        "check_generators_untouched",
        "check_inputs_untouched",
        "check_model_untouched",
        "check_precision",
        "check_right_class",
        "check_right_unit",
        "check_save_and_load",
        "check_shape",
        "check_target_used",
        "check_unit_used",
        "check_writings",
    }


def test_default_methods_are_held_to_their_definitions():
    exact = {
        "gradient": {"check_equals_autograd", "check_finite_differences", "check_additivity"},
        "guided_backprop": {"check_equals_guided_backprop", "check_homogeneity", "check_plain_without_rectifiers"},
        "deconvnet": {"check_equals_deconvnet", "check_switches", "check_unpool_adds", "check_adjointness"},
        "occlusion": {"check_equals_brute_force", "check_fill_like_the_image", "check_window_of_the_whole_image"},
    }
    for name, expected in exact.items():
        method = ak.methods()[name].load()()
        assert expected <= {check.name for check in checks_for(method)}, name
