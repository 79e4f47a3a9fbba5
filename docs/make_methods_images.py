"""Make the pictures of docs/methods.md and docs/faq.md: ``python docs/make_methods_images.py [NAME…]``.

Everything shows the sample photograph and EfficientNet-Lite0 (extra ``imagenet``). The pictures of the shelf need its
distributions (``make shelf``). Pictures go to ``images/methods-NAME.png``; the numbers that the pages quote go between
their markers. Takes some minutes on one core, mostly for Score-CAM and Shapley values.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from picture_tools import (
    Panel,
    colours,
    efficientnet,
    heat,
    numbers,
    photograph,
    rank_correlation,
    signed,
    strip,
    two_digits,
    view,
)

import attribkit as ak

#: Another class to explain, that nothing in the photograph belongs to.
OTHER = "coffee mug"
#: What occlusion takes in its pictures: the defaults at 224 pixels.
OCCLUSION = {"window": 32, "stride": 16}
PICTURES: dict[str, Callable[[], None]] = {}


def picture(function: Callable[[], None]) -> Callable[[], None]:
    """Register a picture under its function's name."""
    PICTURES[function.__name__.replace("_", "-")] = function
    return function


@cache
def explained(method: str, target: int | None = None, **options: object) -> ak.Attribution:
    """Return the attribution of the photograph's most probable class, or of another one."""
    return ak.attribute(efficientnet().model, photograph(), method, target, **options)


def label(number: int) -> str:
    return efficientnet().labels[number]


def other() -> int:
    return next(i for i, name in enumerate(efficientnet().labels) if name == OTHER)


def own() -> int:
    return int(explained("gradient").target)


def photograph_panel() -> Panel:
    with torch.no_grad():
        p = float(efficientnet().model(photograph()).softmax(1)[0, own()])
    return Panel(view(), "the photograph", f"{label(own())}, {100 * p:.0f} %")


def row_of(method: str, **options: object) -> list[Panel]:
    """The photograph, the map of its class twice (summed, in colours), and the map of a class that is not there."""
    found, absent = explained(method, **options), explained(method, other(), **options)
    correlation = rank_correlation(found.heatmap(), absent.heatmap())
    return [
        photograph_panel(),
        Panel(signed(found.heatmap()[0]), f"for {label(own())}", "summed over channels"),
        Panel(colours(found.values[0]), f"for {label(own())}", "the three channels"),
        Panel(signed(absent.heatmap()[0]), f"for {OTHER}", f"rank correlation {two_digits(correlation)}"),
    ]


@picture
def gradient() -> None:
    strip([row_of("gradient")], "methods-gradient")


@picture
def guided_backprop() -> None:
    strip([row_of("guided_backprop")], "methods-guided-backprop")


@picture
def deconvnet() -> None:
    strip([row_of("deconvnet")], "methods-deconvnet")


@picture
def units() -> None:
    """The deconvnet as it was meant, for the strongest unit of a layer: where its projection is not zero, and that."""
    model, x = efficientnet().model, photograph()
    patches, projections = [], []
    for layer in ("blocks.0", "blocks.1", "blocks.2", "blocks.3"):
        channels = ak.inspect(model, x).shapes[layer][1]
        best = int(ak.project(model, x, layer, range(channels), method="gradient").scores[0].argmax())
        values = ak.attribute(model, x, "deconvnet", ak.Unit(layer, best)).values[0]
        top, left, side = square(values)
        patches.append(
            Panel(view().crop((left, top, left + side, top + side)), "the photograph there", f"{side} pixels")
        )
        part = values[:, top : top + side, left : left + side]
        projections.append(Panel(colours(part), layer, f"feature map {best}"))
    strip([patches, projections], "methods-units")


def square(values: Tensor) -> tuple[int, int, int]:
    """Return top, left and side of the smallest square that holds all values [C, H, W] that are not zero."""
    _, rows, columns = values.nonzero().unbind(1)
    side = int(max(rows.max() - rows.min(), columns.max() - columns.min())) + 1
    room = values.shape[-1] - side
    return min(int(rows.min()), room), min(int(columns.min()), room), side


@picture
def occlusion() -> None:
    found = explained("occlusion", **OCCLUSION, score="probability")
    absent = explained("occlusion", other(), **OCCLUSION)
    logit = explained("occlusion", **OCCLUSION)
    correlation = rank_correlation(logit.heatmap(), absent.heatmap())
    strip(
        [
            [
                photograph_panel(),
                Panel(signed(logit.heatmap()[0]), f"for {label(own())}", "drop of the logit"),
                Panel(signed(found.heatmap()[0]), f"for {label(own())}", "drop of the probability"),
                Panel(signed(absent.heatmap()[0]), f"for {OTHER}", f"rank correlation {two_digits(correlation)}"),
            ]
        ],
        "methods-occlusion",
    )


# -- what the maps do when layers are randomised -----------------------------------------------------------------------


def randomised(parts: tuple[str, ...]) -> nn.Module:
    """Return the model with the weights of some parts drawn anew, with the mean and the deviation they had."""
    model = copy.deepcopy(efficientnet().model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and name.startswith(parts):
                noise = torch.randn(module.weight.shape, generator=generator)
                module.weight.copy_(module.weight.mean() + module.weight.std() * noise)
    return model


PARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("trained", ()),
    ("classifier random", ("classifier",)),
    ("… and conv_head, blocks.6", ("classifier", "conv_head", "blocks.6")),
    ("everything random", ("",)),
)


@picture
def randomisation() -> None:
    """Explain the same class with ever more layers drawn anew."""
    rows, lines = [], ["| | " + " | ".join(name for name, _ in PARTS[1:]) + " |", "| --- |" + " ---: |" * 3]
    for method, options in (
        ("gradient", {}),
        ("guided_backprop", {}),
        ("deconvnet", {}),
        ("occlusion", {"window": 32, "stride": 32}),
    ):
        maps = [
            ak.attribute(randomised(parts) if parts else efficientnet().model, photograph(), method, own(), **options)
            for _, parts in PARTS
        ]
        panels, cells = [], []
        for (name, _), found in zip(PARTS, maps, strict=True):
            correlation = rank_correlation(found.heatmap(), maps[0].heatmap())
            note = method if found is maps[0] else f"rank correlation {two_digits(correlation)}"
            panels.append(Panel(signed(found.heatmap()[0]), name, note))
            cells.append(two_digits(correlation))
        rows.append(panels)
        lines.append(f"| `{method}` | " + " | ".join(cells[1:]) + " |")
    strip(rows, "methods-randomisation", most=300_000)
    numbers("randomisation", "\n".join(lines))


@picture
def classes() -> None:
    """No picture: how much the map of another class differs."""
    lines = ["| method | rank correlation |", "| --- | ---: |"]
    for method in ("gradient", "guided_backprop", "deconvnet", "occlusion"):
        options = OCCLUSION if method == "occlusion" else {}
        maps = [explained(method, target, **options).heatmap() for target in (None, other())]
        lines.append(f"| `{method}` | {two_digits(rank_correlation(*maps))} |")
    numbers("classes", "\n".join(lines))


# -- the shelf ---------------------------------------------------------------------------------------------------------


def shelf(
    name: str, methods: dict[str, tuple[str, dict[str, object], Callable[[ak.Attribution], Tensor], object]]
) -> None:
    """Draw a row of the shelf's methods: caption, options, what of the attribution is drawn, and how."""
    panels = [photograph_panel()]
    for method, (note, options, part, draw) in methods.items():
        panels.append(Panel(draw(part(explained(method, **options))), method.removeprefix("captum."), note))  # type: ignore[operator]
    half = (len(panels) + 1) // 2
    strip([panels] if len(panels) < 6 else [panels[:half], panels[half:]], name)


def summed(found: ak.Attribution) -> Tensor:
    return found.heatmap()[0]


@picture
def cam() -> None:
    maps = {name: ("", {}, summed, heat) for name in ("grad_cam", "grad_cam_plus_plus", "layer_cam", "score_cam")}
    shelf("methods-cam", {**maps, "guided_grad_cam": ("summed over channels", {}, summed, signed)})


@picture
def lrp() -> None:
    bounds = {"low": -1.0, "high": 1.0}
    shelf(
        "methods-lrp",
        {
            "lrp_epsilon": ("", {}, summed, signed),
            "lrp_epsilon_plus_flat": ("", {}, summed, signed),
            "lrp_epsilon_gamma_box": ("low −1, high 1", bounds, summed, signed),
            "lrp_epsilon_alpha2_beta1": ("", {}, summed, signed),
        },
    )


@picture
def paths() -> None:
    shelf(
        "methods-paths",
        {
            "input_x_gradient": ("", {}, summed, signed),
            "integrated_gradients": ("from 0, 50 steps", {}, summed, signed),
            "expected_gradients": ("from noise, 50 draws", {}, summed, signed),
            "smooth_grad": ("50 copies, noise 0.15", {}, summed, signed),
            "var_grad": ("50 copies, noise 0.15", {}, summed, heat),
        },
    )


@picture
def captum() -> None:
    shelf(
        "methods-captum",
        {
            "captum.saliency": ("", {}, summed, heat),
            "captum.gradient_shap": ("", {}, summed, signed),
            "captum.feature_ablation": ("7 × 7 patches", {}, summed, signed),
            "captum.shapley_value_sampling": ("4 × 4 patches", {}, summed, signed),
            "captum.deep_lift": ("from 0", {}, summed, signed),
        },
    )


@picture
def shelf_numbers() -> None:
    """No picture: how much the shelf's maps of another class, and of a random classifier, differ."""
    names = [
        "grad_cam",
        "grad_cam_plus_plus",
        "layer_cam",
        "score_cam",
        "guided_grad_cam",
        "lrp_epsilon",
        "lrp_epsilon_plus_flat",
        "lrp_epsilon_gamma_box",
        "lrp_epsilon_alpha2_beta1",
        "input_x_gradient",
        "integrated_gradients",
        "expected_gradients",
        "smooth_grad",
        "var_grad",
    ]
    model = randomised(("classifier",))
    lines = [f"| method | {OTHER} | classifier random |", "| --- | ---: | ---: |"]
    for name in names:
        options = {"low": -1.0, "high": 1.0} if name == "lrp_epsilon_gamma_box" else {}
        first = explained(name, **options).heatmap()
        others = (explained(name, other(), **options), ak.attribute(model, photograph(), name, own(), **options))
        cells = [two_digits(rank_correlation(first, found.heatmap())) for found in others]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    with torch.no_grad():
        trained, random = (float(m(photograph())[0, own()]) for m in (efficientnet().model, model))
    lines += ["", f"The score of {label(own())}: {two_digits(trained)}, with a random classifier {two_digits(random)}."]
    numbers("shelf", "\n".join(lines))


if __name__ == "__main__":
    torch.set_num_threads(1)  # so that sums are added in one order
    for name in sys.argv[1:] or PICTURES:
        PICTURES[name]()
        print(f"made {name}", flush=True)
