"""Running checks over drawn examples: deterministic by seed, shrunk to a small example, nothing left behind."""

from __future__ import annotations

import json
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

from attribkit.errors import AttribkitError, InputError
from attribkit.method import Method
from attribkit.testing.case import Case
from attribkit.testing.raw import CheckError, own_generators
from attribkit.testing.registry import Check, checks_for, known_failures
from attribkit.testing.switches import own_switches

Status = Literal["passed", "failed", "xfail", "xpass"]

#: What a check may raise to fail: all but Ctrl-C, which ends the run, and what a test runner throws through it.
_FAILURES = (Exception, SystemExit, GeneratorExit)


class CheckFailed(AssertionError):
    """Some checks failed; ``results`` holds what came of every check."""

    def __init__(self, message: str, results: Sequence[CheckResult]) -> None:
        super().__init__(message)
        self.results = list(results)


class CheckFailedWarning(UserWarning):
    """The same as a warning (``on_fail="warn"``)."""


@dataclass(frozen=True)
class CheckResult:
    """What came of one check of one method.

    Attributes
    ----------
    method, check : str
        Their names.
    claim : str
        What the check claims, in one line.
    status : {"passed", "failed", "xfail", "xpass"}
        ``xfail``: it failed, as was expected; ``xpass``: it was expected to fail and passed, which is worth a look but
        no failure.
    examples : int
        How many examples were run.
    seconds : float
        How long it took.
    message : str
        What was found, empty if it passed.
    example : str
        The smallest failing example that was found, as runnable Python code.
    reason : str
        Why it was expected to fail.
    seed : int
        The seed the examples were drawn with.
    """

    method: str
    check: str
    claim: str
    status: Status
    examples: int
    seconds: float
    message: str = ""
    example: str = ""
    reason: str = ""
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict for JSON."""
        return asdict(self)

    def describe(self) -> str:
        """Return what failed and the example, as text."""
        text = f"{self.check} ({self.claim})\n{self.message}"
        return f"{text}\n\nAn example:\n\n{self.example}" if self.example else text


@dataclass
class _Failure:
    error: BaseException
    case: Case | None


@contextmanager
def _no_files() -> Iterator[None]:
    """Keep hypothesis's own notes out of the current folder."""
    try:
        from hypothesis import configuration
    except ImportError as error:
        raise AttribkitError("attribkit.testing needs hypothesis: pip install hypothesis pytest") from error

    before = getattr(configuration, "__hypothesis_home_directory", None)
    with tempfile.TemporaryDirectory() as folder:
        configuration.set_hypothesis_home_dir(folder)
        try:
            yield
        finally:
            configuration.set_hypothesis_home_dir(before)


@contextmanager
def _quiet() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks this small are slower with more
    try:
        with own_generators(), _no_files(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)


def _search(check: Check, method: Method, examples: int, seed: int, *, shrink: bool) -> tuple[int, _Failure | None]:
    """Run a check on drawn examples; return how many and the smallest failure found."""
    import hypothesis

    from attribkit.testing import strategies

    last: list[_Failure] = []
    count = 0

    def run(case: Case) -> None:
        nonlocal count
        count += not last
        try:
            with own_switches():
                check.run(method, case)
        except _FAILURES as error:
            last[:] = [_Failure(error, case)]
            raise CheckError(_one_line(error)) from None

    phases = [hypothesis.Phase.generate, hypothesis.Phase.shrink]
    profile = hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=False,
        report_multiple_bugs=False,
        print_blob=False,
        verbosity=hypothesis.Verbosity.quiet,
        phases=phases if shrink else phases[:1],
        suppress_health_check=[each for each in hypothesis.HealthCheck if each.name != "filter_too_much"],
    )
    drawn = hypothesis.given(strategies.cases(**dict(check.cases or {})))(run)
    try:
        hypothesis.seed(seed)(profile(drawn))()
    except CheckError:
        pass
    except Exception:
        # a failure that does not come again at the same example: hypothesis calls it flaky; the first one stands
        if not last:
            raise
    return count, last[0] if last else None


def run_check(
    check: Check, method: Method, *, examples: int = 25, seed: int = 0, reason: str = "", shrink: bool = True
) -> CheckResult:
    """Run one check.

    Parameters
    ----------
    check
        The check.
    method
        The method's instance.
    examples
        How many examples to draw.
    seed
        What they are drawn with.
    reason
        Why a failure is expected; empty: it is not.
    shrink
        Whether to look for a smaller failing example.
    """
    begin = time.perf_counter()
    failure: _Failure | None = None
    count = 0
    with _quiet():
        if check.cases is None:
            try:
                with own_switches():
                    check.run(method, None)
            except _FAILURES as error:
                failure = _Failure(error, None)
        else:
            # of a failure that is expected no smaller example is wanted: looking for one takes most of the time
            count, failure = _search(check, method, examples, seed, shrink=shrink and not reason)
    status: Status = ("xfail" if reason else "failed") if failure else ("xpass" if reason else "passed")
    return CheckResult(
        method.name or type(method).__name__,
        check.name,
        check.claim,
        status,
        count,
        time.perf_counter() - begin,
        message=_message(failure.error) if failure else "",
        example=failure.case.code() if failure and failure.case is not None else "",
        reason=reason,
        seed=seed,
    )


def _message(error: BaseException) -> str:
    """Return what to say of a failure: a claim's message, or an exception and where in the method it came from."""
    if isinstance(error, AssertionError) and str(error):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    outside = [f for f in frames if "attribkit/testing" not in f.filename.replace("\\", "/")]
    place = f" (in {outside[-1].name}, line {outside[-1].lineno}: {outside[-1].line})" if outside else ""
    return f"{_one_line(error)}{place}"


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def run_checks(
    method: Any,
    *,
    examples: int = 25,
    seed: int = 0,
    expected_failures: Mapping[str, str] | None = None,
    shrink: bool = True,
    on_result: Callable[[CheckResult], None] | None = None,
) -> list[CheckResult]:
    """Run every check that a method is held to and return what came of each.

    Parameters
    ----------
    method
        A method's name, class or instance.
    examples, seed, expected_failures
        As for `check_method`.
    shrink
        Whether to look for smaller failing examples.
    on_result
        Called with each result as it comes.
    """
    from attribkit.api import find_method

    if isinstance(examples, bool) or not isinstance(examples, int) or examples < 1:
        raise InputError(f"examples must be a positive int, got {examples!r}")
    found = find_method(method)
    reasons = known_failures(found, {} if expected_failures is None else expected_failures)
    results = []
    for check in checks_for(found):
        results.append(
            run_check(check, found, examples=examples, seed=seed, reason=reasons.get(check.name, ""), shrink=shrink)
        )
        if on_result is not None:
            on_result(results[-1])
    return results


def check_method(
    method: Any,
    *,
    examples: int = 25,
    seed: int = 0,
    expected_failures: Mapping[str, str] | None = None,
    on_fail: Literal["raise", "warn"] | None = "raise",
) -> list[CheckResult]:
    """Hold a method to everything that its tags claim, over drawn networks, images and targets.

    Parameters
    ----------
    method
        A method's name, class or instance.
    examples
        How many examples to draw for each check.
    seed
        What they are drawn with; the same seed draws the same examples anywhere.
    expected_failures
        Checks that the method cannot pass, each with the reason; they join the method's own ``expected_failures``. One
        that passes all the same is reported as ``xpass`` and is no failure.
    on_fail
        ``"raise"``: raise `CheckFailed` after all checks have run; ``"warn"``: warn; None: only return the results.

    Returns
    -------
    list of CheckResult

    Raises
    ------
    CheckFailed
        At least one check failed that was not expected to; the message holds the smallest example found for each.
    UnknownNameError
        ``expected_failures`` names a check that does not exist.
    """
    if on_fail not in ("raise", "warn", None):
        raise InputError(f"on_fail must be 'raise', 'warn' or None, got {on_fail!r}")
    results = run_checks(method, examples=examples, seed=seed, expected_failures=expected_failures)
    failed = [result for result in results if result.status == "failed"]
    if failed and on_fail is not None:
        names = ", ".join(result.check for result in failed)
        head = f"{failed[0].method}: {len(failed)} of {len(results)} checks failed: {names}"
        text = "\n\n".join([head, *(result.describe() for result in failed)])
        if on_fail == "raise":
            raise CheckFailed(text, results)
        warnings.warn(text, CheckFailedWarning, stacklevel=2)
    return results


def to_json(results: Sequence[CheckResult]) -> str:
    """Return results as JSON text."""
    return json.dumps([result.to_dict() for result in results], indent=1)
