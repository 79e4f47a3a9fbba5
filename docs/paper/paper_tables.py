"""Tables 3 and 4 to 7, small: what needs training."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from paper_shared import fashion, figure, markdown, numbers, run_file, sample

import attribkit as ak
from attribkit import features
from attribkit.datasets import FASHION_FOLDER, open_images
from attribkit.training import Recipe
from attribkit.training import ablation as train_variants
from attribkit.training import probe as fit_probes


def few_images(folder: Path) -> tuple[str, str]:
    """Write a small data set into a folder and return it, and what it is: part of Fashion-MNIST, or the sample."""
    if FASHION_FOLDER.is_dir():
        parts = {"train": (open_images("fashion-mnist", "train"), 0, 4000)}
        parts["t10k"] = (open_images("fashion-mnist", "test"), 0, 1000)
        what = "the first 4,000 training and 1,000 test images of Fashion-MNIST"
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
    recipe = Recipe(
        model_options={"width": 0.125, "in_chans": 1, "img_size": 56},
        epochs=8,
        lr=0.003,  # at 0.01 the small networks without conv3 and conv4 do not leave the start
        batch_size=32,
        size=56,
        resize=56,
        init="scaled",
        flip=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        data, what = few_images(Path(folder))
        rows = train_variants(data, Path(folder) / "runs", recipe)
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
    layers = ("pool1", "pool2", "relu3", "relu4", "pool5", "relu6", "relu7")
    counts = (5, 15, 50)
    before = features.find_snapshots(run_file("epoch-000.safetensors", "the network before training"))[0]
    networks = {"trained": fashion(), "untrained": ak.load_model("zfnet-fashion", weights=before)}
    found = {
        (name, row.layer, row.per_class): row
        for name, loaded in networks.items()
        for row in fit_probes(loaded, sample(), layers=layers, per_class=counts, max_features=1500)
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
