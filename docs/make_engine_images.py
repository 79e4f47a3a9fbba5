"""Make the pictures of docs/engine.md: ``python docs/make_engine_images.py [NAME…]``.

Every picture is drawn from what the engine itself reports or keeps in a real run, on networks that come with attribkit
or have random weights. Pictures go to ``images/engine-NAME.png``; the numbers that the page quotes go between its
markers.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import torchvision
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "benchmarks"))

from bench_tools import kept
from picture_tools import BLUE, GREEN, GREY, ORANGE, RED, SIGNED, chart, efficientnet, numbers, photograph, view

import attribkit as ak
from attribkit.builtin.occlusion import starts
from attribkit.datasets import open_images
from attribkit.engine.incremental import Incremental
from attribkit.engine.incremental.plan import COVERED
from attribkit.engine.invert import leaf, vocabulary
from attribkit.engine.patches import Axis, Patch
from attribkit.engine.tape import read
from attribkit.engine.walk import Walk

PICTURES: dict[str, Callable[[], None]] = {}
WINDOW, STRIDE = 32, 16


def picture(function: Callable[[], None]) -> Callable[[], None]:
    """Register a picture under its function's name."""
    PICTURES[function.__name__.replace("_", "-")] = function
    return function


def zfnet() -> tuple[nn.Module, Tensor]:
    """Return zfnet-fashion and the first of the images that come with attribkit."""
    loaded = ak.load_model("zfnet-fashion")
    return loaded.model, loaded.preprocess(open_images("fashion-sample").load(0))[None]


# -- sites -------------------------------------------------------------------------------------------------------------


@picture
def walk() -> None:
    """The sites of one forward pass, in their order, with what the deconvnet attaches to each."""
    model, x = zfnet()
    found = ak.inspect(model, x, "deconvnet")
    sites = [site for site in found.sites if site.kind not in ("flatten", "dropout")]
    colours = {"Rectify": RED, "Unpool": BLUE, "PassThrough": GREEN, None: "#d0d0d0"}
    says = {
        "Rectify": "Rectify: max(R, 0)",
        "Unpool": "Unpool: through the switches",
        "PassThrough": "PassThrough: R as it is",
        None: "no inverse layer: the ordinary derivative",
    }
    figure = Figure(figsize=(8.6, 4.6), layout="constrained")
    axes = figure.subplots()
    for row, site in enumerate(sites):
        layer = type(site.inverse_layer).__name__ if site.inverse_layer else None
        size = math.prod(site.output_shape[1:])
        axes.barh(row, size, color=colours[layer], height=0.74)
        axes.text(size * 1.15, row, " × ".join(map(str, site.output_shape[1:])), va="center", fontsize=8)
    axes.set_yticks(range(len(sites)), [f"{site.name}   ({site.kind})" for site in sites], fontsize=8)
    axes.set_ylim(len(sites) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.set_xlim(3, 6e6)
    axes.set_xlabel("elements of the site's output (logarithmic)", fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    handles = [Rectangle((0, 0), 1, 1, color=colours[key]) for key in colours]
    axes.legend(handles, [says[key] for key in colours], fontsize=8, frameon=False, loc="lower right")
    chart(figure, "engine-walk")


@picture
def rectifiers() -> None:
    """What an inverse layer at a rectifier returns, for every input and every signal: measured, not drawn."""
    side = 161
    at = torch.linspace(-2, 2, side, dtype=torch.float64)
    signal, x = torch.meshgrid(at.flip(0), at, indexing="ij")
    figure = Figure(figsize=(8.6, 5.4), layout="constrained")
    grid = figure.subplots(2, 3, sharex=True, sharey=True)
    for row, (name, activation) in enumerate((("ReLU", nn.ReLU()), ("SiLU", nn.SiLU()))):
        for axes, method in zip(grid[row], ("gradient", "guided_backprop", "deconvnet"), strict=True):
            # a network of the rectifier alone: its score is signal · σ(x), whose derivative at σ's output is the signal
            found = ak.attribute(
                activation, x.reshape(-1, 1, 1, 1), method, lambda out: out.flatten() * signal.flatten()
            )
            image = axes.imshow(
                found.values.reshape(side, side).numpy(), cmap=SIGNED, vmin=-2, vmax=2, extent=(-2, 2, -2, 2)
            )
            axes.set_title(f"{name}, {method}", fontsize=10)
            axes.set_xticks([-2, 0, 2])
            axes.set_yticks([-2, 0, 2])
    for axes in grid[1]:
        axes.set_xlabel("x, the rectifier's input", fontsize=9)
    for axes in grid[:, 0]:
        axes.set_ylabel("R at its output", fontsize=9)
    figure.colorbar(image, ax=grid, label="R at its input", shrink=0.6)
    chart(figure, "engine-rectifiers")


# -- rectangles on the way back ----------------------------------------------------------------------------------------


def way_back(model: nn.Module, x: Tensor, layer: str, unit: ak.Unit) -> list[tuple[str, Patch]]:
    """Return the signal's rectangle after each step of the way back, as the engine carries it: operation and patch."""
    method = ak.methods()["deconvnet"].load()()
    tracked = leaf(x)
    forward = Walk(model, method.table(), vocabulary(), layers=[layer], stop=True)
    forward.run(tracked.clone())
    value = forward.catch(layer).value
    map_ = value[0, unit.channel]
    row, column = divmod(int(map_.argmax()), map_.shape[1])
    seed = torch.zeros(1, value.shape[1], 1, 1, dtype=x.dtype)
    seed[0, unit.channel] = map_.max().detach()
    waiting = {0: Patch(seed, Axis((row,), 1, value.shape[2]), Axis((column,), 1, value.shape[3]))}
    tape, found = read(value, tracked), [(layer, waiting[0])]
    with torch.no_grad():
        for number, step in enumerate(tape.steps):
            here = waiting.pop(number, None)
            if here is None:
                continue
            for place, patch in zip(step.inputs, step.rule(here, step.sizes), strict=True):
                if place in waiting:
                    raise RuntimeError("a branch: this picture is of a chain")
                waiting[place] = patch
                if (patch.rows, patch.columns) != (found[-1][1].rows, found[-1][1].columns):
                    found.append(("", patch))
    return found


def strongest(model: nn.Module, x: Tensor, layer: str) -> int:
    """Return the feature map of a layer with the strongest activation."""
    outputs: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.no_grad():
        model(x)
    hook.remove()
    return int(outputs[0][0].amax((1, 2)).argmax())


@picture
def rectangles() -> None:
    """Projecting one unit: the part of each map that the signal can reach on its way to the pixels."""
    torch.manual_seed(0)
    model, x = ak.models.zfnet().eval(), photograph()
    layer = "relu4"
    best = strongest(model, x, layer)
    steps = way_back(model, x, layer, ak.Unit(layer, best))
    values = ak.project(model, x, layer, [best]).values[0, 0]
    figure = Figure(figsize=(8.6, 1.9), layout="constrained")
    grid = figure.subplots(1, len(steps))
    for axes, (_, patch) in zip(grid, steps, strict=True):
        height, width = patch.rows.size, patch.columns.size
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        axes.set_aspect("equal")
        axes.add_patch(
            Rectangle(
                (patch.columns.starts[0], patch.rows.starts[0]),
                patch.columns.length,
                patch.rows.length,
                color=ORANGE,
                lw=0,
            )
        )
        share = patch.rows.length * patch.columns.length / (height * width)
        axes.set_title(f"{patch.rows.length} × {patch.columns.length}", fontsize=9)
        axes.set_xlabel(f"of {height} × {width}\n{100 * share:.0f} %", fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
    last = steps[-1][1]
    outside = values.clone()
    top, left = last.rows.starts[0], last.columns.starts[0]
    outside[:, max(top, 0) : top + last.rows.length, max(left, 0) : left + last.columns.length] = 0
    if outside.any():
        raise RuntimeError("the projection is not zero outside the rectangle")
    figure.suptitle(f"Signal of one unit of {layer}, from the unit (left) to the pixels (right)", fontsize=10)
    chart(figure, "engine-rectangles")


# -- incremental occlusion ---------------------------------------------------------------------------------------------


def recorded(model: nn.Module, x: Tensor) -> Incremental:
    """Return the engine's own program for every window on an image."""
    sides = []
    for size in x.shape[-2:]:
        begin = starts(size, WINDOW, STRIDE)
        sides.append((begin, [min(at + WINDOW, size) for at in begin]))
    with torch.no_grad():
        return Incremental(model, x, (sides[0], sides[1]), 0.0, 1 << 28)


def maps_of(plan: Any) -> list[int]:
    """Return the values on which rectangles are known, in the order of the program."""
    return [0, *(node.outputs[0] for number, node in enumerate(plan.graph.nodes) if number in plan.rules)]


def every_map(plan: Any, image: Tensor) -> dict[int, Tensor]:
    """Run the whole program on one image, without rectangles."""
    values = {0: image}
    for node in plan.graph.nodes[: plan.tail]:
        values.update(plan.call(node, values, 1))
    return values


@picture
def occlusion() -> None:
    """One window: what it changes in the feature maps, by running the model twice, and the engine's rectangles."""
    model, x = efficientnet().model, photograph()
    made = recorded(model, x)
    plan = made.plan
    place = (6, 6)
    occluded = made.occluded(x, [place])
    with torch.no_grad():
        clean, changed = every_map(plan, x), every_map(plan, occluded)
    known, shown = maps_of(plan), []
    for size in (224, 112, 56, 28, 14, 7):  # the last map of each size
        shown.append([i for i in known if plan.graph.values[i].shape[-1] == size][-1 if size != 224 else 0])
    figure = Figure(figsize=(8.6, 2.1), layout="constrained")
    grid = figure.subplots(1, len(shown))
    for axes, index in zip(grid, shown, strict=True):
        difference = (changed[index] - clean[index]).abs().mean(1)[0]
        (top, bottom), (left, right) = (
            (plan.spans[axis][index][0][place[axis]], plan.spans[axis][index][1][place[axis]]) for axis in (0, 1)
        )
        outside = difference.clone()
        outside[top:bottom, left:right] = 0
        if float(outside.max()) > 1e-5 * float(difference.max()):
            raise RuntimeError("something changed outside the rectangle")
        if index == 0:
            axes.imshow(np.asarray(view().convert("L")), cmap="gray", extent=(0, 224, 224, 0))
        else:
            side = difference.shape[-1]
            axes.imshow(difference.numpy(), cmap="Blues", extent=(0, side, side, 0), interpolation="nearest")
        frame = Rectangle((left, top), right - left, bottom - top, fill=index == 0, ec=RED, fc="#808080", lw=1.6)
        frame.set_clip_on(False)
        axes.add_patch(frame)
        height, width = plan.lengths[0][index], plan.lengths[1][index]
        share = (bottom - top) * (right - left) / (height * width)
        axes.set_title("image" if index == 0 else f"{plan.graph.values[index].shape[1]} maps", fontsize=9)
        axes.set_xlabel(f"{bottom - top} × {right - left}\nof {height} × {width}: {100 * share:.0f} %", fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
    chart(figure, "engine-occlusion")


@picture
def growth() -> None:
    """How the changed share of the maps grows with depth, over all windows, and what that saves."""
    torch.manual_seed(0)
    networks = {
        "zfnet": (ak.models.zfnet().eval(), BLUE, "-"),
        "resnet18": (torchvision.models.resnet18(weights=None).eval(), ORANGE, "--"),
        "tf_efficientnet_lite0": (efficientnet().model, GREEN, "-."),
        "vgg11": (torchvision.models.vgg11(weights=None).eval(), RED, ":"),
    }
    figure = Figure(figsize=(8.6, 3.4), layout="constrained")
    axes = figure.subplots()
    lines = ["| network | times fewer |", "| --- | ---: |"]
    for name, (model, colour, style) in networks.items():
        made = recorded(model, photograph())
        plan, shares = made.plan, []
        for index in maps_of(plan):
            share = 1.0
            for axis in (0, 1):
                lows, highs = plan.spans[axis][index]
                mean = sum(high - low for low, high in zip(lows, highs, strict=True)) / len(lows)
                share *= mean / plan.lengths[axis][index]
            shares.append(100 * share)
        axes.plot(np.linspace(0, 1, len(shares)), shares, color=colour, ls=style, lw=1.8, label=name)
        lines.append(f"| {name} | {plan.gain():.1f} |")
    axes.axhline(100 * COVERED, color=GREY, lw=1)
    axes.text(0.005, 100 * COVERED + 1.5, "from here on whole maps are computed", fontsize=8, color="#555555")
    axes.set_xlabel("the feature maps from the image (0) to the last one (1), in the order of the program", fontsize=9)
    axes.set_ylabel("changed share, mean\nover the windows, %", fontsize=9)
    axes.set_ylim(0, 103)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(0.02, 0.8))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    chart(figure, "engine-growth")
    numbers("growth", "\n".join(lines))


# -- the lean way back -------------------------------------------------------------------------------------------------


@picture
def lean() -> None:
    """Bytes kept for the way back, for one image of 224 × 224."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, 224, 224)
    bare = ak.models.zfnet()
    bare.norm1, bare.norm2 = nn.Identity(), nn.Identity()
    networks = {
        "zfnet": ak.models.zfnet(),
        "zfnet, no norms": bare,
        "vgg11": torchvision.models.vgg11(weights=None),
        "resnet18": torchvision.models.resnet18(weights=None),
        "tf_efficientnet_lite0": efficientnet().model,
    }

    def by_autograd(model: nn.Module) -> None:
        given = x.clone().requires_grad_()
        torch.autograd.grad(model(given)[0, 0], given)

    figure = Figure(figsize=(8.6, 3.2), layout="constrained")
    axes = figure.subplots()
    looks = {
        "autograd": BLUE,
        "attribkit, gradient": ORANGE,
        "attribkit, deconvnet": GREEN,
    }
    lines = ["| MB kept | " + " | ".join(networks) + " |", "| --- |" + " ---: |" * len(networks)]
    found: dict[str, list[float]] = {name: [] for name in looks}
    for model in networks.values():
        model.eval().requires_grad_(False)  # no parameter's derivative is asked for
        found["autograd"].append(kept(model, lambda m=model: by_autograd(m)))
        for method in ("gradient", "deconvnet"):
            work = kept(model, lambda m=model, name=method: ak.attribute(m, x, name, 0))
            found[f"attribkit, {method}"].append(work)
    for k, (name, colour) in enumerate(looks.items()):
        values = [count / 1e6 for count in found[name]]
        axes.bar(np.arange(len(networks)) + 0.26 * (k - 1), values, 0.25, color=colour, label=name)
        for i, value in enumerate(values):
            axes.text(i + 0.26 * (k - 1), value * 1.06, f"{value:.2g}", ha="center", fontsize=7)
        lines.append(f"| {name} | " + " | ".join(f"{value:.3g}" for value in values) + " |")
    axes.set_yscale("log")
    axes.set_ylabel("MB kept (logarithmic)", fontsize=9)
    axes.set_xticks(range(len(networks)), networks, fontsize=9)
    axes.legend(fontsize=8, frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    chart(figure, "engine-lean")
    numbers("lean", "\n".join(lines))


if __name__ == "__main__":
    matplotlib.rcParams["svg.hashsalt"] = "attribkit"
    torch.set_num_threads(1)  # so that sums are added in one order
    for name in sys.argv[1:] or PICTURES:
        PICTURES[name]()
        print(f"made {name}", flush=True)
