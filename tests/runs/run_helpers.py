"""Small data sets, a small model and a comparison of stores, for the tests of runs and the script that kills them."""

import dataclasses
import io
import tarfile

import numpy as np
import torch
from PIL import Image
from torch import nn

from attribkit.models.building import LoadedModel
from attribkit.store import open_store

SIDE = 16


def pixels(seed, brightest=256):
    return np.random.default_rng(seed).integers(0, brightest, (SIDE, SIDE, 3), dtype=np.uint8)


def picture(path, seed=0, brightest=256):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, brightest)).save(path)
    return path


def pictures(folder, count):
    for i in range(count):
        picture(folder / f"{i:03d}.png", i)
    return folder


def png(seed):
    data = io.BytesIO()
    Image.fromarray(pixels(seed)).save(data, "png")
    return data.getvalue()


def archive(path, members, mode="w"):
    """Write a tar file of ``(name, bytes)``."""
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def preprocess(image):
    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32).copy()).permute(2, 0, 1) / 64 - 2


def five():
    """Five classes, with rectifiers, a max pool and batch norm."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(64, 5)
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return net


def loaded(model=None, preprocess=preprocess):
    model = model if model is not None else five().eval()
    return LoadedModel("helper", model, preprocess, lambda x: x, None, (3, SIDE, SIDE), "here", "as it is")


def rows(store):
    """Return everything a store's records hold, ready to be compared: maps and scores to the last bit."""
    found = []
    for record in open_store(store):
        fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if f.name != "_store"}
        values = record.values
        fields["values"] = None if values is None else (values.dtype, values.shape, values.numpy().tobytes())
        fields["extras"] = {name: tensor.tolist() for name, tensor in record.extras.items()}
        found.append(fields)
    return found


def reasons(store):
    """Return ``{image: {method: error}}`` of what failed."""
    found = {}
    for record in open_store(store):
        if record.status != "done":
            found.setdefault(record.image, {})[record.method] = record.error
    return found
