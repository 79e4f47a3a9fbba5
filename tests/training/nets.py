"""Small data and networks for the tests of training."""

import gzip
import struct

import numpy as np
import torch
from torch import nn

from attribkit.datasets import ImageSource, open_images
from attribkit.training import Recipe


def write_idx(path, values):
    """Write an idx file of bytes; gzipped where the name says so."""
    data = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def stripes(count, classes=3, side=12, seed=0, noise=40):
    """Return grey images [N, side, side] with a bright band whose place is the class, and the classes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    images = rng.integers(0, noise, (count, side, side))
    width = side // classes
    for image, label in zip(images, labels, strict=True):
        image[label * width : (label + 1) * width] += 180
    return images.astype(np.uint8), labels.astype(np.uint8)


def idx_folder(folder, train=48, test=24, **kw):
    """Write an idx data set into a folder and return it."""
    folder.mkdir(exist_ok=True)
    for stem, count, seed in (("train", train, 1), ("t10k", test, 2)):
        images, labels = stripes(count, seed=seed, **kw)
        write_idx(folder / f"{stem}-images-idx3-ubyte", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte.gz", labels)
    return str(folder)


class TinyNet(nn.Module):
    """A convolution, dropout and a linear layer; cheap enough to train in a test."""

    def __init__(self, classes=3, drop=0.5, channels=1):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, stride=2)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(3)
        self.drop = nn.Dropout(drop)
        self.fc = nn.Linear(36, classes)

    def forward(self, x):
        return self.fc(self.drop(torch.flatten(self.pool(self.relu(self.conv(x / 64))), 1)))


def tiny(seed=0, **kw):
    """Return a `TinyNet` with weights drawn from a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinyNet(**kw)


def recipe(**kw):
    """Return a recipe that `TinyNet` and the stripes go with."""
    return Recipe(**{"size": 10, "resize": 12, "epochs": 3, "batch_size": 8, "flip": True, "seed": 5, **kw})


class Listed(ImageSource):
    """A source of given pictures."""

    def __init__(self, pictures, classes, names, name="listed"):
        self.name, self._pictures, self._classes, self.labels = name, pictures, classes, names
        self.ids = tuple(map(str, range(len(pictures))))

    def load(self, index):
        return self._pictures[index]

    def label(self, index):
        return self._classes[index]


__all__ = ["Listed", "TinyNet", "idx_folder", "open_images", "recipe", "stripes", "tiny", "write_idx"]
