"""What a first layer's numbers mean, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from attribkit.features import _filters

if TYPE_CHECKING:
    from attribkit.features._diagnosis import Diagnosis

#: Fewer filters than this share preferring the middle band is a gap between low and high.
_GAP = 0.1
#: A median aliasing ratio above this means that what is above the limit counts as much as half of what is below.
_ALIASED = 0.5


def sentences(found: Diagnosis) -> list[str]:
    """Return the findings as sentences: activity, size, frequencies, aliasing."""
    return [_activity(found), _size(found), _bands(found), _aliasing(found)]


def _activity(found: Diagnosis) -> str:
    from attribkit.features._diagnosis import WEAK

    count = len(found.rms)
    weak = f"{len(found.weak)} with an RMS below {WEAK:g} of the median"
    if not found.images:
        return f"Dead filters: activity was not measured; of {count} filters {weak}."
    looked = f"never active at {found.rectifier} on {found.images} image{'s' * (found.images != 1)}"
    verdict = "dead filters" if len(found.dead) else "no dead filter"
    return f"{verdict.capitalize()}: of {count} filters {len(found.silent)} {looked}, {weak}{_listed(found.dead)}."


def _size(found: Diagnosis) -> str:
    from attribkit.features._diagnosis import DOMINANT, RADIUS

    median = float(np.median(found.rms))
    most = (
        f"the largest RMS is {found.rms.max() / median:.3g} times the median of {median:.3g}"
        if median
        else (f"the median RMS is 0, the largest {found.rms.max():.3g}")
    )
    some = f"{len(found.dominating)} filters dominate" if len(found.dominating) != 1 else "1 filter dominates"
    verdict = some if len(found.dominating) else "no filter dominates"
    over = int((found.rms > RADIUS * (1 + 1e-3)).sum())
    return (
        f"{verdict.capitalize()} (above {DOMINANT:g} times the median){_listed(found.dominating)}: {most}; {over}"
        f" exceed the paper's radius of {RADIUS:g}."
    )


def _bands(found: Diagnosis) -> str:
    counts = {band: int((found.preferred == band).sum()) for band in found.shares}
    areas = _filters.band_areas(max(_filters.GRID, *found.weight.shape[-2:]))
    shares = ", ".join(
        f"{band} {100 * float(np.nanmean(share)):.0f} % (white noise {100 * areas[band]:.0f} %)"
        for band, share in found.shares.items()
    )
    gap = counts["mid"] < _GAP * len(found.rms)
    verdict = "few filters prefer middle frequencies" if gap else "the middle frequencies are covered"
    preferring = ", ".join(f"{count} {band}" for band, count in counts.items())
    return f"{verdict.capitalize()}: by preferred band {preferring}; mean share of energy {shares}."


def _aliasing(found: Diagnosis) -> str:
    stride = found.stride[0] if found.stride[0] == found.stride[1] else found.stride
    if max(found.stride) == 1:
        return "No aliasing: the stride is 1."
    ratio = float(np.nanmedian(found.aliasing_ratio))
    limit = " and ".join(f"{1 / (2 * s):.3g}" for s in dict.fromkeys(found.stride))
    verdict = "aliasing" if ratio > _ALIASED else "little aliasing"
    return (
        f"{verdict.capitalize()} at stride {stride}: the median filter answers gratings above the limit of {limit}"
        f" cycles a pixel {ratio:.2g} times as strongly as those below (mean share of energy above it"
        f" {100 * float(np.nanmean(found.aliased_share)):.0f} %)."
    )


def _listed(which: object) -> str:
    numbers = np.asarray(which).tolist()
    shown = ", ".join(map(str, numbers[:8])) + (", …" if len(numbers) > 8 else "")
    return f" ({shown})" if numbers else ""
