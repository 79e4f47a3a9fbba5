"""What the randomised networks show, in plain words: the numbers choose them."""

from __future__ import annotations

from attribkit_quantus.results import Evaluation
from attribkit_quantus.statistics import Interval

BARELY, LITTLE, PARTLY = 0.8, 0.5, 0.2
"""The lowest rank correlation of which each word is used; below the last, a method simply reacts."""
STILL = 1e-3
"""A max-sensitivity below which a map does not depend on the image: deconvnet without max pools."""
SAME = 0.1
"""A further fall smaller than this is called barely any."""


def verdict(found: Evaluation) -> list[str]:
    """Return sentences on how the maps reacted to randomised upper layers; none where that was not looked at."""
    cascade = found.cascade
    if cascade is None or not found.randomised:
        return []
    upper = cascade.depths[cascade.upper]
    which = _layers(cascade.layers[: upper.count])
    same = found.same_class[cascade.upper]
    lines = [
        f"With the upper {upper.count} of {len(cascade.layers)} layers random ({which}), {found.model} gives "
        f"{same:.0%} of the images the class it gave before."
    ]
    unmoved: list[str] = []
    for method in found.methods:
        if method not in found.randomised:
            continue
        signed, _ = found.along(method)
        here = signed[cascade.upper]
        if here.n == 0:
            lines.append(f"{method}: its maps are constant, so that no rank correlation can be taken.")
            continue
        lines.append(
            f"{method} {reaction(here.mean)}: the rank correlation of its maps with what they were is {span(here)}."
        )
        if here.mean >= LITTLE:
            unmoved.append(method)
            noise = found.interval(method, "sensitivity")
            if noise is not None and noise.mean < STILL:
                lines[-1] += " Nor does it react to noise in the image: nothing of the image is in these maps."
            first, top = signed[0], cascade.depths[0]
            if here.mean < BARELY and cascade.upper > 0 and first.mean - here.mean < SAME:
                lines[-1] += (
                    f" Nearly all of the fall is due to {_layers(cascade.layers[: top.count])}, after which it is "
                    f"{number(first.mean)}; to the upper layers below, {method} barely reacts."
                )
    if unmoved:
        many = len(unmoved) > 1
        lines.append(
            f"So {listed(unmoved)} say{'' if many else 's'} little of what the network's upper layers have learned: "
            f"{'their' if many else 'its'} maps cannot tell why it chose a class."
        )
    return lines


def reaction(correlation: float) -> str:
    """Return the words for a rank correlation with the map of the network as it was."""
    if correlation >= BARELY:
        return "barely reacts"
    if correlation >= LITTLE:
        return "reacts little"
    return "reacts in part" if correlation >= PARTLY else "reacts"


def span(interval: Interval, digits: int = 2) -> str:
    """Return a mean with its interval as it is read; the mean alone where there is no interval."""
    mean = number(interval.mean, digits)
    if interval.low != interval.low:
        return mean
    return f"{mean} ({number(interval.low, digits)} to {number(interval.high, digits)})"


def number(value: float, digits: int = 2) -> str:
    """Return a number with a true minus sign, none before zero; a dash for what is none."""
    if value != value:
        return "–"
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def listed(names: list[str]) -> str:
    """Return names as a list in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _layers(names: tuple[str, ...]) -> str:
    return listed(list(names)) if len(names) <= 4 else f"{names[0]} down to {names[-1]}"
