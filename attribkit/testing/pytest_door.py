"""The door for pytest: one test for each method and check."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attribkit.errors import AttribkitError


def parametrize_with_checks(
    methods: Iterable[Any],
    *,
    examples: int = 25,
    seed: int = 0,
    expected_failures: Mapping[str, str] | Callable[[Any], Mapping[str, str]] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a test that takes ``method`` and ``check``: it runs once for each method and each of its checks.

    ``check(method)`` runs the check and raises `AssertionError` where it fails. Checks expected to fail are marked
    ``xfail``, not strictly: one that passes shows as ``XPASS``.

    Parameters
    ----------
    methods
        Names, classes or instances of methods.
    examples, seed
        As for `check_method`.
    expected_failures
        As for `check_method`, or a callable that returns it for a method.

    Examples
    --------
    >>> @parametrize_with_checks([MyMethod])
    ... def test_conformance(method, check):
    ...     check(method)
    """
    try:
        import pytest
    except ImportError as error:
        raise AttribkitError("parametrize_with_checks needs pytest: pip install hypothesis pytest") from error
    from attribkit.api import find_method
    from attribkit.testing.registry import Check, checks_for, known_failures
    from attribkit.testing.runner import CheckFailed, run_check

    def bound(check: Check) -> Callable[[Any], None]:
        def run(method: Any) -> None:
            __tracebackhide__ = True
            result = run_check(check, method, examples=examples, seed=seed)
            if result.status == "failed":
                raise CheckFailed(result.describe(), [result])

        run.__name__ = check.name
        run.__doc__ = check.claim
        return run

    parameters = []
    for given in methods:
        method = find_method(given)
        extra = expected_failures(method) if callable(expected_failures) else expected_failures
        reasons = known_failures(method, {} if extra is None else extra)
        for check in checks_for(method):
            reason = reasons.get(check.name)
            marks = [pytest.mark.xfail(reason=reason, strict=False)] if reason else []
            name = method.name or type(method).__name__
            parameters.append(pytest.param(method, bound(check), id=f"{name}-{check.name}", marks=marks))
    return pytest.mark.parametrize(("method", "check"), parameters)
