"""Make the pictures and the numbers of docs/paper: ``make figures``, or ``python docs/paper/make_figures.py NAME…``.

Everything comes from what attribkit ships (the sample photograph, 1,000 images of Fashion-MNIST, zfnet-fashion and the
record of its training) and from EfficientNet-Lite0 where the extra ``imagenet`` is installed. Pictures go to
``images/``; numbers go into the pages, between ``<!-- numbers: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import copy
import csv
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))

import drawing
import paper_shared
import paper_tables  # noqa: F401 (registers its tables)
from paper_shared import (
    FIGURES,
    fashion,
    figure,
    inputs,
    markdown,
    numbers,
    one_of_each,
    options,
    photograph,
    run_file,
    sample,
    save,
)

import attribkit as ak
from attribkit import features
from attribkit.errors import AttribkitError

LAYERS = ("relu1", "relu2", "relu3", "relu5")
MAPS = 4
EPOCHS = 8
#: A middle layer of EfficientNet-Lite0: its top one sees the whole image, and its projections show little.
PHOTOGRAPH_LAYER = "blocks.3"


@figure
def deconvnet_layer() -> None:
    """Fig. 1."""
    save(drawing.layer(), "deconvnet-layer")


@figure
def training() -> None:
    """§3: the run that zfnet-fashion comes from."""
    from matplotlib.figure import Figure

    rows = training_log()
    epochs = [int(row["epoch"]) for row in rows]
    drawn = Figure(figsize=(8.5, 3.2), layout="constrained")
    error, loss = drawn.subplots(1, 2)
    for axes, what, scale in ((error, "error", 100.0), (loss, "loss", 1.0)):
        for part, look in (("train", {"color": "#0072B2"}), ("val", {"color": "#D55E00", "ls": "--"})):
            values = [scale * float(row[f"{part}_{what}"]) for row in rows]
            name = {"train": "training (with dropout)", "val": "validation"}[part]
            axes.plot(epochs, values, label=name, marker="o", ms=3, **look)
        for before, row in itertools.pairwise(rows):
            if row["lr"] != before["lr"]:
                axes.axvline(int(row["epoch"]) - 0.5, color="#bbbbbb", lw=1, ls=":")
        axes.set_xlabel("epoch (dotted: the learning rate changed)", fontsize=9)
        axes.set_title("error in %" if what == "error" else "cross-entropy", fontsize=10)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8, frameon=False)
    save(drawn, "training")
    last = rows[-1]
    numbers(
        "training",
        f"{len(rows)} epochs; the last one: training error {100 * float(last['train_error']):.2f} %, validation error"
        f" {100 * float(last['val_error']):.2f} %; the best validation error is"
        f" {min(100 * float(row['val_error']) for row in rows):.2f} %.",
    )


def training_log() -> list[dict[str, str]]:
    """Return the rows of the training log, one an epoch."""
    with open(run_file("*log.csv", "the training log")[0], newline="") as file:
        return list(csv.DictReader(file))


def with_convolutions(file: Path) -> torch.nn.Module:
    """Return zfnet-fashion with a snapshot's convolutions, which are all of it that is shipped."""
    model = copy.deepcopy(fashion().model)
    kept = {name: tensor.float() for name, tensor in load_file(file).items() if name.startswith("conv")}
    model.load_state_dict({**model.state_dict(), **kept})
    return model


@figure
def evolution() -> None:
    """Fig. 4."""
    found = features.find_snapshots(run_file("epoch-*.safetensors", "the snapshots"))
    chosen = {epoch: with_convolutions(file) for epoch, file in found.items()}
    if options.run is None:
        chosen[len(training_log())] = fashion().model
    epochs = list(chosen)
    if len(epochs) > EPOCHS:
        # the early ones lie close together, the late ones apart, as in the paper
        places = sorted({round((len(epochs) - 1) * (i / (EPOCHS - 1))) for i in range(EPOCHS)})
        chosen = {epochs[i]: chosen[epochs[i]] for i in places}
        epochs = list(chosen)
    rows = []
    for layer in LAYERS:
        count = fashion().model.get_submodule(layer.replace("relu", "conv")).out_channels
        spread = [round(i * (count - 1) / (MAPS - 1)) for i in range(MAPS)]
        data = features.evolution(chosen, inputs(500), layer, spread, model=fashion())
        save(data.plot(), f"evolution-{layer}")
        jumps = [int(n) for n in data.jumps.sum(1)[1:]]
        rows.append([layer, *jumps, f"{data.settled.mean():.1f}"])
    numbers(
        "evolution", markdown(["layer", *(f"to epoch {e}" for e in epochs[1:]), "mean epoch of the last jump"], rows)
    )


@figure
def invariance() -> None:
    """Fig. 5, on zfnet-fashion."""
    x, truth, names = one_of_each(("Trouser", "Bag", "Ankle boot", "Dress", "Sneaker"))
    data = features.invariance(fashion().model, x, truth, fill="edge", ids=names, labels=sample().labels)
    save(data.plot(fashion().denormalize), "invariance")
    rows = []
    for name, amount in (
        ("translation", 3.0),
        ("translation", 28.0),
        ("scale", 0.9),
        ("scale", 1.5),
        ("rotation", 90.0),
    ):
        curve = data.curves[name]
        a = int(abs(curve.amounts - amount).argmin())
        shares = [float((curve.distances[i, :, a] / data.norms[i]).mean()) for i in range(len(data.layers))]
        rows.append([f"{name} {curve.amounts[a]:g}", *shares, float(curve.probability[:, a].mean())])
    header = ["transform", *(f"distance / length at {layer}" for layer in data.layers), "probability"]
    numbers("invariance", markdown(header, rows))


@figure
def invariance_photograph() -> None:
    """Fig. 5, on the sample photograph."""
    loaded, x = photograph()
    data = features.invariance(loaded.model, x, None, fill="edge", labels=loaded.labels)
    save(data.plot(loaded.denormalize), "invariance-photograph")


@figure
def occlusion() -> None:
    """Fig. 6, on zfnet-fashion."""
    x, truth, names = one_of_each(("Ankle boot",))
    colours = fashion().denormalize
    grey = (0.5 - colours.mean[0]) / colours.std[0]  # the mean colour is nearly the background's black
    data = features.occlusion_study(
        fashion().model, x, truth[0], others=inputs(), stride=4, window=20, fill=grey, labels=sample().labels
    )
    save(data.plot(fashion().denormalize), "occlusion")
    lowest = float(data.probability.min())
    numbers(
        "occlusion",
        f"Image {names[0]}: the probability of {data.name(data.target)} falls from {data.clean_probability:.3g} to"
        f" {lowest:.3g} at the worst place, the activity of map {data.channel} of {data.layer} from"
        f" {data.clean_activity:.3g} to {data.activity.min():.3g}.",
    )


@figure
def occlusion_photograph() -> None:
    """Fig. 6, on the sample photograph."""
    loaded, x = photograph()
    count = ak.inspect(loaded.model, x).shapes[PHOTOGRAPH_LAYER][1]
    strongest = int(ak.project(loaded.model, x, PHOTOGRAPH_LAYER, range(count), method="gradient").scores[0].argmax())
    data = features.occlusion_study(
        loaded.model, x, layer=PHOTOGRAPH_LAYER, channel=strongest, window=56, stride=14, labels=loaded.labels
    )
    save(data.plot(loaded.denormalize), "occlusion-photograph")
    numbers(
        "occlusion-photograph",
        f"The sample photograph: the probability of {data.name(data.target)} falls from {data.clean_probability:.3g} to"
        f" {data.probability.min():.3g} at the worst place, the activity of map {data.channel} of {data.layer} from"
        f" {data.clean_activity:.3g} to {data.activity.min():.3g}.",
    )


@figure
def correspondence() -> None:
    """Table 1, on five boots."""
    boxes = features.read_boxes(Path(__file__).with_name("boots.json"), sample().ids)
    rows = [list(sample().ids).index(name) for name in boxes]
    x = torch.cat([inputs().one(row) for row in rows])
    parts = {
        part: [
            features.box_in_input(fashion().preprocess, sample().load(row).size, boxes[name][part], f"{name}, {part}")
            for row, name in zip(rows, boxes, strict=True)
        ]
        for part in next(iter(boxes.values()))
    }
    data = features.correspondence(fashion().model, x, parts, trials=50, ids=list(boxes))
    save(data.plot(fashion().denormalize), "correspondence")
    keys = {(r["layer"], r["part"], r["masks"]): r for r in data.summary()}
    lines = []
    for part, masks in [*((part, "part") for part in parts), ("all parts", "random")]:
        name = part if masks == "part" else "random, all sizes"
        cells = [keys[layer, part, masks] for layer in data.layers]
        lines.append([name, *(f"{cell['mean']:.3f} ± {cell['standard_error']:.3f}" for cell in cells)])
    numbers("correspondence", markdown(["masked", *data.layers], lines))


@figure
def diagnosis() -> None:
    """§4.1, on zfnet-fashion and on EfficientNet-Lite0 where it is installed."""
    data = features.diagnose(fashion().model, inputs())
    save(data.plot(), "diagnosis")
    numbers("diagnosis", "\n".join(f"- {sentence}" for sentence in data.verdict()))


@figure
def diagnosis_photograph() -> None:
    """§4.1, on EfficientNet-Lite0 (its weights alone)."""
    loaded, x = photograph()
    data = features.diagnose(loaded.model, x, active=False)
    save(data.plot(), "diagnosis-efficientnet")
    numbers("diagnosis-efficientnet", "\n".join(f"- {sentence}" for sentence in data.verdict()))


@figure
def untrained() -> None:
    """Projections of a trained network beside those of the same network before training."""
    from matplotlib.figure import Figure

    from attribkit.features.draw._base import bare, photograph, projection

    before = features.find_snapshots(run_file("epoch-000.safetensors", "the network before training"))[0]
    networks = {"untrained": ak.load_model("zfnet-fashion", weights=before).model, "trained": fashion().model}
    x, _, _ = one_of_each(("Ankle boot", "Bag", "Trouser", "Sandal", "Shirt", "Dress"))
    drawn = Figure(figsize=(1.35 * len(x) + 0.9, 1.35 * 5 + 0.4), layout="constrained")
    grid = drawn.subplots(5, len(x))
    for column in range(len(x)):
        bare(grid[0, column]).imshow(photograph(x[column], fashion().denormalize))
    grid[0, 0].set_ylabel("image", fontsize=9)
    row = 1
    for name, model in networks.items():
        for layer in ("pool2", "pool5"):
            totals = ak.project(model, x, layer, range(24)).scores.argmax(1)
            for column in range(len(x)):
                values = ak.project(model, x[column : column + 1], layer, [int(totals[column])]).values[0, 0]
                bare(grid[row, column]).imshow(projection(values.numpy()), vmin=0, vmax=1)
            grid[row, 0].set_ylabel(f"{name},\n{layer}", fontsize=9)
            row += 1
    save(drawn, "untrained")


@figure
def feature_maps() -> None:
    """Fig. 2."""
    (paper_shared.HERE / "images").mkdir(exist_ok=True)
    for layer in ("pool2", "pool5"):
        features.figure(paper_shared.HERE / "images" / f"features-{layer}.png", fashion(), sample(), layer, maps=9)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the figures named, or all of them; return 1 when one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FIGURES)}")
    parser.add_argument("--weights", help="weights of zfnet-fashion other than the shipped ones")
    parser.add_argument("--run", help="the folder of its training run: log.csv and snapshots")
    options = parser.parse_args(arguments, paper_shared.options)
    unknown = [name for name in options.names if name not in FIGURES]
    if unknown:
        parser.error(f"no figure is called {unknown[0]!r}: {', '.join(FIGURES)}")
    torch.manual_seed(0)
    failed = []
    for name in options.names or FIGURES:
        began = time.monotonic()
        try:
            FIGURES[name]()
        except AttribkitError as error:
            failed.append(name)
            print(f"{name}: not made: {error}", file=sys.stderr)
        else:
            print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
