"""Which checks there are and which of them a method is held to: its tags, its name and its table decide."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from attribkit.errors import InputError, UnknownNameError, did_you_mean

if TYPE_CHECKING:
    from attribkit.method import Method
    from attribkit.testing.case import Case

#: What a method may say of itself, and what that means. The last four are names of exact definitions: a method that
#: bears one as its name or as a tag is held to that definition.
TAGS: dict[str, str] = {
    "deterministic": "the same inputs give the same map, whatever the global generators' states",
    "signed": "the map of a negated score is the negated map (on networks without rectifiers)",
    "homogeneous": "a score multiplied by a positive number multiplies the map by it",
    "linear_in_seed": "the map of a weighted sum of scores is the weighted sum of their maps",
    "inverse": "a signal is carried back through the network, each operation in its place",
    "perturbation": "only scores of changed images are used, no derivatives",
    "thread_safe": "several threads may use one model at once",
    "gradient": "exactly the gradient",
    "guided_backprop": "exactly guided backprop",
    "deconvnet": "exactly the deconvnet",
    "occlusion": "exactly occlusion, with the options window, stride and fill",
}
EXACT = ("gradient", "guided_backprop", "deconvnet", "occlusion")
_IMPLIED = {
    "gradient": {"linear_in_seed"},
    "occlusion": {"linear_in_seed"},
    "guided_backprop": {"homogeneous"},
    "deconvnet": {"homogeneous"},
    "linear_in_seed": {"homogeneous"},
    "inverse": {"thread_safe"},
    "perturbation": {"thread_safe"},
}


def claims(method: Method) -> frozenset[str]:
    """Return what a method claims: its tags, its name if that is an exact definition's, and what they imply."""
    from attribkit.method import tags_of  # here: it imports torch, and naming the checks does not

    found = {*tags_of(method), *(name for name in EXACT if name == method.name)}
    waiting = list(found)
    while waiting:
        more = _IMPLIED.get(waiting.pop(), set()) - found
        found |= more
        waiting += more
    return frozenset(found)


@dataclass(frozen=True)
class Check:
    """One claim and the function that tests it.

    Attributes
    ----------
    name : str
        The function's name, ``check_…``.
    function : callable
        ``function(method, …)`` raises `AssertionError` where the claim does not hold.
    claim : str
        The claim in one line.
    tags : frozenset of str
        The check is for methods that claim one of these; empty: for every method.
    cases : dict or None
        Keyword arguments of `strategies.cases`; None: the check needs no example.
    arguments : callable
        Turns a `Case` into what the function takes after the method.
    applies : callable
        ``applies(method, claims)``: whether the claim makes sense for a method that has the tags.
    """

    name: str
    function: Callable[..., None]
    claim: str
    tags: frozenset[str] = frozenset()
    cases: Mapping[str, Any] | None = field(default=None, hash=False)
    arguments: Callable[[Case], tuple[Any, ...]] = field(default=lambda case: case.arguments(), hash=False)
    applies: Callable[[Method, frozenset[str]], bool] = field(default=lambda method, claims: True, hash=False)

    def run(self, method: Method, case: Case | None) -> None:
        """Run the check on one case."""
        self.function(method, *(self.arguments(case) if case is not None else ()))


_CHECKS: dict[str, Check] = {}


def check(
    *tags: str,
    cases: Mapping[str, Any] | None = None,
    arguments: Callable[[Case], tuple[Any, ...]] | None = None,
    applies: Callable[[Method, frozenset[str]], bool] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a check; its name and the first line of its docstring are what reports show."""
    given: dict[str, Any] = {"arguments": arguments, "applies": applies}

    def register(function: Callable[..., None]) -> Callable[..., None]:
        name = function.__name__
        if not name.startswith("check_") or not function.__doc__ or set(tags) - set(TAGS):
            raise InputError(f"{name} is no check: it needs a name check_…, a docstring and known tags")
        claim = inspect.cleandoc(function.__doc__).partition("\n\n")[0].replace("\n", " ")
        options = {key: value for key, value in given.items() if value is not None}
        _CHECKS[name] = Check(name, function, claim, frozenset(tags), cases, **options)
        return function

    return register


def whole_case(case: Case) -> tuple[Case]:
    """Hand a check the case itself."""
    return (case,)


def all_checks() -> dict[str, Check]:
    """Return every check by name."""
    from attribkit.testing import checks  # noqa: F401  importing them registers them

    return dict(_CHECKS)


def checks_for(method: Method) -> Iterator[Check]:
    """Yield the checks that a method is held to.

    Parameters
    ----------
    method
        An instance of a `attribkit.Method`.
    """
    claimed = claims(method)
    for each in all_checks().values():
        if (not each.tags or each.tags & claimed) and each.applies(method, claimed):
            yield each


def known_failures(method: Method, given: Mapping[str, str]) -> dict[str, str]:
    """Return the checks that a method need not pass, each with its reason: its own and those given.

    Raises
    ------
    UnknownNameError
        There is no such check.
    InputError
        They are no dict of strings, or a reason is empty.
    """
    from attribkit.method import checked_failures, failures_of

    found = {**failures_of(method), **checked_failures(given)}
    known = all_checks()
    for name in found:
        if name not in known:
            raise UnknownNameError(f"expected_failures names {name!r}, which is no check; {did_you_mean(name, known)}")
    return found
