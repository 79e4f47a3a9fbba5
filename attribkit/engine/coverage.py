"""Coverage: which sites a method rewrote and which it left to plain backprop, in numbers and one sentence."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from attribkit.engine.ops import NONLINEAR
from attribkit.engine.sites import Site


@dataclass(frozen=True)
class Coverage:
    """What a method did to the sites of one forward pass.

    Attributes
    ----------
    method : str
        The method's name.
    rewritten : int
        Sites with an inverse layer, observers not counted.
    plain : int
        Non-linear sites left to plain backprop, gates not counted.
    gates : int
        Gates (sigmoid, softmax, …), which are never rectified.
    kinds : dict
        Op kind to ``(rewritten, total)``.
    left : tuple of (str, str)
        Name and reason of each non-linear site left plain, gates included.
    applies : bool
        Whether the method works by inverse layers at all.
    complete : bool
        Whether the forward pass ran to its end (a unit's target may stop it at its layer).
    ordinary : bool
        Whether every inverse layer attached computes the ordinary derivative by another route (unpooling), so that the
        map is the plain gradient all the same.
    """

    method: str
    rewritten: int = 0
    plain: int = 0
    gates: int = 0
    kinds: dict[str, tuple[int, int]] = field(default_factory=dict)
    left: tuple[tuple[str, str], ...] = ()
    applies: bool = True
    complete: bool = True
    ordinary: bool = False

    @property
    def sentence(self) -> str:
        """Say it in plain words."""
        if not self.applies:
            return f"{self.method} rewrites no operation."
        if not any(done for done, _ in self.kinds.values()):
            return f"{self.method} met no operation it has an inverse layer for: the map is the plain gradient."
        done = ", ".join(
            f"{_counted(count, total)} {_named(kind, total)}" for kind, (count, total) in self.kinds.items() if count
        )
        if self.ordinary:
            return f"{self.method} rewrote {done}, by the ordinary derivative: the map is the plain gradient."
        rest = []
        if self.plain:
            rest.append(
                f"{self.plain} other non-linear operation{'s' * (self.plain != 1)} kept the ordinary derivative"
            )
        if self.gates:
            rest.append(f"{self.gates} gate{'s' * (self.gates != 1)} kept the ordinary derivative, as gates do")
        return f"{self.method} rewrote {done}" + ("; " + "; ".join(rest) if rest else "") + "."

    def __str__(self) -> str:
        return self.sentence

    def _repr_html_(self) -> str:
        from attribkit.report.notebook import coverage_html

        return coverage_html(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers and the sentence, ready for JSON."""
        return {
            "rewritten": self.rewritten,
            "plain": self.plain,
            "gates": self.gates,
            "kinds": {kind: list(pair) for kind, pair in self.kinds.items()},
            "sentence": self.sentence,
        }


def _counted(count: int, total: int) -> str:
    if count < total:
        return f"{count} of {total}"
    return "the 1" if total == 1 else f"all {total}"


def _named(kind: str, total: int) -> str:
    singular = kind.replace("_", " ")
    return singular if total == 1 else singular + "s"


def summarise(method: str, sites: Sequence[Site], *, applies: bool, complete: bool = True) -> Coverage:
    """Count what was done at each site.

    Parameters
    ----------
    method
        The method's name.
    sites
        The sites of one forward pass, with the inverse layers attached to them.
    applies
        Whether the method works by inverse layers.
    complete
        Whether the pass ran to its end.
    """
    kinds: dict[str, tuple[int, int]] = {}
    left = []
    for site in sites:
        done, total = kinds.get(site.kind, (0, 0))
        kinds[site.kind] = (done + site.rewritten, total + 1)
        if applies and not site.rewritten and (why := reason(site, method)):
            left.append((site.name, why))
    rewritten = sum(site.rewritten for site in sites)
    gates = kinds.get("gate", (0, 0))
    plain = sum(total - done for kind, (done, total) in kinds.items() if kind in NONLINEAR and kind != "gate")
    return Coverage(
        method,
        rewritten=rewritten,
        plain=plain,
        gates=gates[1] - gates[0],
        kinds=kinds,
        left=tuple(left),
        applies=applies,
        complete=complete,
        ordinary=rewritten > 0 and all(site.ordinary for site in sites),
    )


def reason(site: Site, method: str) -> str:
    """Say why a site keeps its ordinary derivative; empty for linear operations, whose derivative is exact."""
    if site.detached and site.kind in NONLINEAR:
        return "computed without gradients, so that no signal passes"
    if site.transformed and site.kind in NONLINEAR:
        return "inside a transform of torch.func, which no inverse layer enters"
    if site.kind == "gate":
        return "a gate is never rectified"
    if site.kind == "nonlinear":
        return "written inline, not one of the rectifiers"
    if site.kind in NONLINEAR and site.inverse_layer is not None:
        return f"{method} only observes it"
    if site.kind in NONLINEAR:
        return f"{method} has no inverse layer for {site.kind.replace('_', ' ')}"
    return ""


@dataclass
class Log:
    """What the walks of one call did; a method that makes several reports the first.

    One that rewrote something goes before those that did not, then one that ran to its end before those that did not.
    """

    sites: list[Site] | None = None
    complete: bool = False
    rewritten: int = 0

    def add(self, sites: list[Site], rewritten: int, *, complete: bool) -> None:
        """Note one walk with a table."""
        if self.sites is None or (rewritten > 0, complete) > (self.rewritten > 0, self.complete):
            self.sites, self.complete = sites, complete
        self.rewritten = max(self.rewritten, rewritten)


_local = threading.local()


@contextmanager
def logging() -> Iterator[Log]:
    """Collect what every walk of this thread does until the context ends."""
    before = getattr(_local, "log", None)
    log = _local.log = Log()
    try:
        yield log
    finally:
        _local.log = before


def note(sites: list[Site], rewritten: int, *, complete: bool) -> None:
    """Report a walk with a table to the call under way, if any."""
    log = getattr(_local, "log", None)
    if log is not None:
        log.add(sites, rewritten, complete=complete)
