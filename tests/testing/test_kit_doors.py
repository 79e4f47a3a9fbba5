"""The three doors: results, expected failures, determinism, and nothing left behind."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mutants import ScaledByBatchSize, SignLost
from right_methods import InputXGradient

from attribkit import testing
from attribkit.cli import main
from attribkit.errors import InputError, UnknownNameError
from attribkit.testing import (
    CheckFailed,
    CheckFailedWarning,
    all_checks,
    check_method,
    parametrize_with_checks,
    run_check,
)

FAST = {"examples": 2}


class Expecting(ScaledByBatchSize):
    name = "expecting"
    expected_failures = {"check_batch_independence": "it is scaled by the batch size"}


class Reexpecting(InputXGradient):
    name = "reexpecting"
    expected_failures = {"check_shape": "it was wrong once"}


@pytest.fixture
def few_checks(monkeypatch):
    """Let every method be held to five checks only."""
    kept = ("check_batch_independence", "check_declaration", "check_shape", "check_finite", "check_signed")
    known = all_checks()
    monkeypatch.setattr("attribkit.testing.registry.all_checks", lambda: {name: known[name] for name in kept})


def test_importing_the_kit_imports_nothing_heavy():
    code = (
        "import sys, attribkit.testing; attribkit.testing.parametrize_with_checks; "
        "print([name for name in ('torch', 'numpy', 'pytest', 'hypothesis') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_hypothesis_it_says_what_to_install():
    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "from attribkit.testing import check_method, all_checks\n"
        "from attribkit.errors import AttribkitError\n"
        "try: check_method('gradient')\n"
        "except AttribkitError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "attribkit.testing needs hypothesis: pip install hypothesis pytest"


def test_public_names():
    for name in testing.__all__:
        assert getattr(testing, name) is not None
    assert testing.check_shape is all_checks()["check_shape"].function
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = testing.nothing


def test_check_method_returns_results(few_checks):
    results = check_method(InputXGradient, **FAST)
    assert [result.check for result in results] == sorted(all_names(), key=[r.check for r in results].index)
    assert {result.status for result in results} == {"passed"}
    assert all(result.method == "input_x_gradient" and result.claim and not result.message for result in results)
    by_name = {result.check: result.examples for result in results}
    assert by_name["check_shape"] == 2
    assert by_name["check_declaration"] == 0


def all_names():
    return ["check_batch_independence", "check_declaration", "check_finite", "check_shape", "check_signed"]


def test_check_method_raises_with_a_runnable_example(few_checks):
    with pytest.raises(CheckFailed) as caught:
        check_method(ScaledByBatchSize, examples=5)
    (failed,) = (result for result in caught.value.results if result.status == "failed")
    assert failed.check == "check_batch_independence"
    text = str(caught.value)
    assert text.startswith("plain: 1 of 4 checks failed: check_batch_independence")
    assert "has another map in a batch" in text
    namespace: dict = {}
    exec(compile(failed.example, "example", "exec"), namespace)
    with pytest.raises(AssertionError, match="in a batch"):
        testing.check_batch_independence(
            ScaledByBatchSize(), namespace["model"], namespace["inputs"], namespace["target"]
        )


def test_an_exception_is_a_failure_that_says_where(few_checks):
    class Broken(InputXGradient):
        def attribute(self, model, inputs, target, **options):
            return model.no_such_layer(inputs)

    results = check_method(Broken(), on_fail=None, **FAST)
    message = next(result.message for result in results if result.check == "check_shape")
    assert message.startswith("AttributeError: 'Network' object has no attribute 'no_such_layer'")
    with pytest.raises(AssertionError):
        check_method(Broken(), **FAST)


@pytest.mark.parametrize(("at", "shrink"), [(1, True), (1, False), (2, False), (2, True), (3, True), (5, True)])
def test_ctrl_c_comes_out(at, shrink):
    """Also after a failure: while it is made smaller, or replayed."""

    class Interrupted(InputXGradient):
        calls = 0

        def attribute(self, model, inputs, target, **options):
            self.calls += 1
            if self.calls == at:
                raise KeyboardInterrupt
            return super().attribute(model, inputs, target).sum(1)

    method = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        run_check(all_checks()["check_shape"], method, shrink=shrink)
    assert method.calls == at


@pytest.mark.parametrize("error", [SystemExit("bye"), GeneratorExit("bye")])
def test_what_ends_a_program_is_a_failure_of_the_check(few_checks, error):
    class Exits(InputXGradient):
        def attribute(self, model, inputs, target, **options):
            raise error

        @property
        def expected_failures(self):
            if self.asked:
                raise error
            self.asked = True
            return {}

        asked = False

    results = check_method(Exits(), on_fail=None, **FAST)
    assert {result.check: result.status for result in results} == dict.fromkeys(all_names(), "failed")
    for result in results:
        assert result.message.startswith(f"{type(error).__name__}: bye (in ")


@pytest.mark.parametrize("given", [{}, {"check_batch_independence": "given"}])
def test_expected_failures(few_checks, given):
    method = Expecting if not given else ScaledByBatchSize
    results = check_method(method, expected_failures=given, **FAST)
    (expected,) = (result for result in results if result.reason)
    assert (expected.check, expected.status) == ("check_batch_independence", "xfail")
    assert expected.reason == (given or Expecting.expected_failures)["check_batch_independence"]
    assert expected.message
    (unexpected,) = (result for result in check_method(Reexpecting, **FAST) if result.reason)
    assert (unexpected.check, unexpected.status) == ("check_shape", "xpass")


def test_expected_failures_must_be_checks():
    with pytest.raises(UnknownNameError, match=r"expected_failures names 'check_shap'.*check_shape"):
        check_method("gradient", expected_failures={"check_shap": "?"})


def test_on_fail(few_checks):
    with pytest.warns(CheckFailedWarning, match="1 of 5 checks failed"):
        results = check_method(SignLost, on_fail="warn", **FAST)
    assert [result.check for result in results if result.status == "failed"] == ["check_signed"]
    assert len(check_method(SignLost, on_fail=None, **FAST)) == 5
    with pytest.raises(InputError, match="on_fail"):
        check_method(SignLost, on_fail="explode")
    with pytest.raises(InputError, match="examples must be a positive int, got 0"):
        check_method(SignLost, examples=0)


def test_same_seed_same_failure():
    check = all_checks()["check_batch_independence"]
    first, second = (run_check(check, ScaledByBatchSize(), examples=10, seed=3) for _ in range(2))
    assert (first.message, first.example) == (second.message, second.example)


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(5)
    random.seed(5)
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
    threads = torch.get_num_threads()
    for name in ("check_deterministic", "check_shape"):
        run_check(all_checks()[name], InputXGradient(), examples=30)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state())) == before[1:]  # noqa: NPY002
    assert torch.get_num_threads() == threads
    assert list(tmp_path.iterdir()) == []


def parameters(decorator):
    """Return what a decorator of `pytest.mark.parametrize` holds, by id."""
    return {each.id: each for each in decorator.args[1]}


def test_parametrize_marks_expected_failures():
    found = parameters(parametrize_with_checks([Expecting, InputXGradient]))
    marks = found["expecting-check_batch_independence"].marks
    assert [(mark.name, mark.kwargs) for mark in marks] == [
        ("xfail", {"reason": "it is scaled by the batch size", "strict": False})
    ]
    assert not found["input_x_gradient-check_batch_independence"].marks
    by_call = parametrize_with_checks([InputXGradient], expected_failures=lambda method: {"check_shape": method.name})
    (mark,) = parameters(by_call)["input_x_gradient-check_shape"].marks
    assert mark.kwargs["reason"] == "input_x_gradient"


def test_parametrized_check_raises():
    found = parameters(parametrize_with_checks([ScaledByBatchSize, InputXGradient], **FAST))
    method, check = found["plain-check_batch_independence"].values
    with pytest.raises(CheckFailed, match="An example:"):
        check(method)
    method, check = found["input_x_gradient-check_batch_independence"].values
    check(method)
    assert check.__name__ == "check_batch_independence"


@pytest.fixture
def run(tmp_path, monkeypatch, few_checks):
    monkeypatch.chdir(tmp_path)
    return lambda *args: CliRunner().invoke(main, ["check", *map(str, args)], prog_name="attribkit")


def test_command_passes(run):
    done = run("gradient", "--examples", 2, "--seed", 4)
    assert done.exit_code == 0, done.output
    assert "gradient (seed 4)" in done.output
    assert "all 5 checks passed, 2 examples each" in done.output


def test_command_fails_and_prints_the_example(run, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_faults.py").write_text(
        "from mutants import ScaledByBatchSize, Plain\nfrom test_kit_doors import Expecting\n"
    )
    done = run("my_faults:ScaledByBatchSize", "--examples", 3)
    assert done.exit_code == 1
    assert "FAILED" in done.output
    assert "class Network(nn.Module)" in done.output
    assert "plain: 1 of 4 checks failed" in done.output
    done = run("my_faults:Expecting", "--examples", 2)
    assert done.exit_code == 0, done.output
    assert "failed, as expected" in done.output
    assert "it is scaled by the batch size" in done.output


def test_command_json(run, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_more_faults.py").write_text("from mutants import ScaledByBatchSize\n")
    done = run("my_more_faults:ScaledByBatchSize", "gradient", "--examples", 3, "--json")
    assert done.exit_code == 1
    results = json.loads(done.stdout)
    assert {each["method"] for each in results} == {"plain", "gradient"}
    (failed,) = (each for each in results if each["status"] == "failed")
    assert failed["check"] == "check_batch_independence"
    assert "seed_weights" in failed["example"]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["no_such_method"], 1, "no_such_method"),
        (["no_such_module:Method"], 1, "cannot be imported"),
        (["json:dumps"], 1, "is no attribkit.Method"),
        (["gradient", "--examples", "0"], 2, "--examples"),
        ([], 2, "METHOD"),
    ],
)
def test_command_wrong_usage(run, args, code, words):
    done = run(*args)
    assert done.exit_code == code
    assert words in done.output + done.stderr
