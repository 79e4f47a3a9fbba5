"""From results to the page's parts: which pictures a method gets, and what is said beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from attribkit.report import figures
from attribkit.report.parts import Figure, MethodSection

if TYPE_CHECKING:
    from attribkit.attribution import Attribution

_IN_COLOUR = frozenset({"deconvnet", "guided_backprop"})
"""Methods whose signal is worth looking at as an image of its own."""


def method_section(
    result: Attribution,
    *,
    summary: str,
    target: str,
    score: str,
    probability: str = "",
    seconds: float | None,
    labels: Sequence[str] | None = None,
    predicted: int | None = None,
    index: int = 0,
    source: str = "",
    group: str = "",
    value: float | None = None,
    longest: int | None = None,
) -> MethodSection:
    """Draw what one method said about one image.

    Parameters
    ----------
    result
        The attribution.
    summary
        The method's one-line summary.
    target, score, probability
        What is explained, how high it scored and, of a class, how probable the model finds it, in words.
    seconds
        How long it took.
    labels
        The classes' names, by index.
    predicted
        The most probable class of the whole image: it takes the calmest colour of a class map.
    index
        Which sample of the attribution.
    source, group
        Where the method was published, and what it came with.
    value
        The score as a number, by which images are sorted.
    longest
        No side of a picture is longer, in pixels: larger maps are averaged.
    """
    return MethodSection(
        name=result.method,
        title=method_title(result.method),
        summary=summary,
        target=target,
        score=score,
        probability=probability,
        seconds=seconds,
        # of a method without inverse layers there is nothing to say, whatever it does to the network by itself
        coverage=result.coverage.sentence if getattr(result.coverage, "applies", True) else "",
        figures=tuple(method_figures(result, target, labels, predicted, index, longest)),
        value=value,
        source=source,
        group=group,
    )


def method_title(name: str) -> str:
    """Return a method's name as it is read: ``guided_backprop`` is "Guided backprop"."""
    words = name.replace("_", " ").replace(".", " · ")
    return words[:1].upper() + words[1:]


def method_figures(
    result: Attribution,
    target: str,
    labels: Sequence[str] | None = None,
    predicted: int | None = None,
    index: int = 0,
    longest: int | None = None,
) -> list[Figure]:
    """Return the pictures of one sample of an attribution: what every method gets, and what only some have.

    Parameters
    ----------
    result
        The attribution.
    target
        What is explained, in words.
    labels, predicted, index, longest
        As for `method_section`.
    """
    values = array(result.values[index])
    title = method_title(result.method)
    signed = figures.signed_map(values, longest)
    size = (signed.height, signed.width)
    layer = figures.magnitude_layer(values, longest)
    found = [
        Figure(
            "signed", "Signed map", signed, f"{title} for {target}: {strongest_place(values.sum(axis=0), signed=True)}"
        ),
        Figure(
            "magnitude",
            "Over the photograph",
            layer,
            f"{title} for {target}, strength over the photograph: {strongest_place(figures.magnitude(values))}",
        ),
    ]
    if result.method in _IN_COLOUR:
        picture = figures.reconstruction(values, longest)
        look = "colour" if values.shape[0] == 3 else "grey"
        found.append(Figure("colour", f"In {look}", picture, f"{title} for {target}, drawn as a {look} image"))
    scores = result.extras.get("score_map")
    if scores is not None:
        picture = figures.score_map(array(scores[index]), size)
        alt = f"Score of {target} for each position of the patch, from {picture.low:.3g} to {picture.high:.3g}"
        found.append(Figure("score", "Score with the patch there", picture, alt))
    classes = result.extras.get("label_map")
    if classes is not None:
        drawn = figures.class_map(array(classes[index]), size, labels, first=predicted)
        parts = ", ".join(f"{entry.name} at {entry.count}" for entry in drawn.legend)
        alt = f"Most probable class for each position of the patch: {parts}"
        found.append(Figure("classes", "Most probable class", drawn, alt, drawn.legend))
    return found


def array(tensor: Any) -> figures.Array:
    """Return a tensor (of any device and float type) or an array as a numpy array."""
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.double()  # numpy knows no bfloat16
        tensor = tensor.numpy()
    return np.asarray(tensor)


_ROWS = ("top", "middle", "bottom")
_COLUMNS = ("left", "centre", "right")


def strongest_place(heat: figures.Array, signed: bool = False) -> str:
    """Say in words where a map [H, W] is strong: what the alternative text can tell of the picture."""
    heat = np.nan_to_num(heat, nan=0.0, posinf=0.0, neginf=0.0)
    strength = np.abs(heat)
    total = float(strength.sum())
    if total == 0.0:
        return "every value is zero"
    cells = [np.array_split(band, 3, axis=1) for band in np.array_split(strength, 3, axis=0)]
    sums = np.array([[float(cell.sum()) for cell in row] for row in cells])
    row, column = divmod(int(sums.argmax()), 3)
    place = "centre" if (row, column) == (1, 1) else f"{_ROWS[row]} {_COLUMNS[column]}"
    text = f"strongest in the {place} ninth ({100 * sums.max() / total:.0f} % of the total)"
    if signed:
        text += f"; {100 * float(heat.clip(min=0).sum()) / total:.0f} % of the total is positive"
    return text
