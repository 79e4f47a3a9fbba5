"""What the name occlusion promises: a patch slides over the image, and the map is the mean drop of the score."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attribkit.method import Method
from attribkit.testing.case import Case
from attribkit.testing.raw import explain, largest, require_equal, resolve
from attribkit.testing.registry import check

__all__ = ["check_equals_brute_force", "check_fill_like_the_image", "check_window_of_the_whole_image"]


def _with_options(case: Case) -> tuple[nn.Module, Tensor, Any, dict[str, Any]]:
    """Return the case with options for occlusion; one in four leaves them to their defaults."""
    first, second, third, fourth = case.extra
    height, width = case.net.shape[1:]
    window = (1 + first % (height + 1), 1 + second % (width + 1))
    stride = (1 + third % (window[0] + 2), 1 + third // 10 % (window[1] + 2))  # windows may leave gaps
    options: dict[str, Any] = {"window": window, "stride": stride, "fill": (0.0, 0.5, -1.0)[fourth % 3]}
    return (*case.arguments(), options if fourth % 4 else {})


def _patches(inputs: Tensor, window: Any, stride: Any) -> list[tuple[slice, slice]]:
    """Return the windows: from 0 by the stride until the image is covered, cut off at its border."""
    if window is None:
        side = -(-min(inputs.shape[-2:]) // 7)
        window = (side, side)
    window = tuple(min(side, size) for side, size in zip(window, inputs.shape[-2:], strict=True))
    stride = stride or tuple(max(1, side // 2) for side in window)
    along = []
    for size, side, step in zip(inputs.shape[-2:], window, stride, strict=True):
        count = 1
        while (count - 1) * step + side < size:
            count += 1
        along.append([slice(i * step, min(i * step + side, size)) for i in range(count)])
    return [(down, across) for down in along[0] for across in along[1]]


def _drops(model: nn.Module, inputs: Tensor, target: Any, options: dict[str, Any]) -> Tensor:
    """Return the map worked out: one image at a time, one window at a time, pixel by pixel."""
    resolved = resolve(model, inputs, target)
    total, count = torch.zeros_like(inputs), torch.zeros_like(inputs)
    with torch.no_grad():
        clean = resolved.scores(model, inputs)
        for down, across in _patches(inputs, options.get("window"), options.get("stride")):
            for i in range(len(inputs)):
                occluded = inputs[i : i + 1].clone()
                occluded[:, :, down, across] = options.get("fill", 0.0)
                drop = clean[i] - resolved.scores(model, occluded, torch.tensor([i]))[0]
                total[i, :, down, across] += drop
                count[i, :, down, across] += 1
    return torch.where(count > 0, total / count.clamp(min=1), torch.zeros_like(total))


@check("occlusion", cases={"extra": 4, "most": 3, "most_images": 2}, arguments=_with_options)
def check_equals_brute_force(
    method: Method, model: nn.Module, inputs: Tensor, target: Any, options: dict[str, Any]
) -> None:
    """The map is the mean drop over the windows that cover a pixel, each score computed on its own."""
    expected = _drops(model, inputs, target, options)
    found = explain(method, model, inputs, target, **options)
    with torch.no_grad():
        size = largest(resolve(model, inputs, target).scores(model, inputs))
    what = f"with {options or 'default options'} the map"
    require_equal(found, expected, what, names="by brute force", atol=1e-10 * (1 + size))


@check("occlusion", cases={"extra": 4}, arguments=_with_options)
def check_fill_like_the_image(
    method: Method, model: nn.Module, inputs: Tensor, target: Any, options: dict[str, Any]
) -> None:
    """The map is zero wherever every window that covers a pixel hides pixels that equal the fill."""
    x = inputs.clone()
    x[..., x.shape[-1] // 2 :] = options.get("fill", 0.0)
    unchanged = torch.ones(x.shape[-2:], dtype=torch.bool)
    for down, across in _patches(x, options.get("window"), options.get("stride")):
        if across.start < x.shape[-1] // 2:
            unchanged[down, across] = False
    found = explain(method, model, x, target, **options)
    with torch.no_grad():
        size = largest(resolve(model, x, target).scores(model, x))
    kept = found[..., unchanged]
    what = f"with {options or 'default options'} nothing is hidden there, yet the map"
    require_equal(kept, torch.zeros_like(kept), what, names="no drop is", atol=1e-10 * (1 + size))


@check("occlusion", cases={})
def check_window_of_the_whole_image(method: Method, model: nn.Module, inputs: Tensor, target: Any) -> None:
    """A patch as large as the image, or larger, gives one number everywhere: the drop to the score of the fill."""
    resolved = resolve(model, inputs, target)
    with torch.no_grad():
        drop = resolved.scores(model, inputs) - resolved.scores(model, torch.full_like(inputs, 0.25))
    expected = drop[:, None, None, None].expand_as(inputs)
    for window in (inputs.shape[-2:], (inputs.shape[-2] + 3, inputs.shape[-1] + 1)):
        found = explain(method, model, inputs, target, window=tuple(window), fill=0.25)
        require_equal(found, expected, f"with window {tuple(window)} the map", names="the whole drop is", atol=1e-9)
