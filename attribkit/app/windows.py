"""Where the windows of an occlusion lie: what the page needs to show the one under the pointer."""

from __future__ import annotations

from typing import Any

from attribkit.builtin.occlusion import _window, starts


def windows(size: tuple[int, int], options: dict[str, Any]) -> dict[str, list[int]]:
    """Return where an occlusion's windows begin and end.

    Parameters
    ----------
    size
        The image's width and height.
    options
        The occlusion's options.

    Returns
    -------
    dict
        ``tops``, ``bottoms``, ``lefts`` and ``rights``, in pixels.
    """
    width, height = size
    sides = [
        min(w, side) for w, side in zip(_window(options.get("window"), height, width), (height, width), strict=True)
    ]
    steps = [options.get("stride") or max(1, side // 2) for side in sides]
    tops, lefts = starts(height, sides[0], steps[0]), starts(width, sides[1], steps[1])
    return {
        "tops": tops,
        "bottoms": [min(top + sides[0], height) for top in tops],
        "lefts": lefts,
        "rights": [min(left + sides[1], width) for left in lefts],
    }
