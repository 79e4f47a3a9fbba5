"""Make the sound files of ``corpus``; what fuzzing put there is left.

Usage: ``PYTHONPATH=tests/store python tests/fuzz/make_corpus.py``.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import shutil
import struct
import tarfile
import tempfile
from pathlib import Path

import torch
from fuzz_targets import CORPUS, STATE_IDENTITY, TARGETS, picture
from store_helpers import METHODS, whole
from torch import nn

import attribkit as ak
from attribkit.engine.units import Grid
from attribkit.features._topk import Top
from attribkit.features.crops import Crops
from attribkit.features.mined import MinedLayer, Progress
from attribkit.models import zfnet
from attribkit.store.index import index_path
from attribkit.store.layout import SHARDS
from attribkit.training.recipe import Recipe
from attribkit.training.steps import Plateau
from attribkit.training.storage import Position, save_state, save_tensors


def make(folder: Path) -> dict[str, dict[str, bytes]]:
    """Return the files, by target and name."""
    torch.manual_seed(0)
    found: dict[str, dict[str, bytes]] = {name: {} for name in TARGETS}
    store = whole(folder / "store", count=4, size=4)
    index = index_path(store).read_bytes()
    shard = next((store / SHARDS).glob("*.safetensors")).read_bytes()
    found["store_index"]["whole"] = found["store_resumed"]["whole"] = index
    found["store_shard"]["whole"] = shard
    assert METHODS[0] == "gradient"

    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()
    x = torch.randn(2, 3, 4, 4)
    for name, options in (
        ("classes", {"method": "occlusion", "window": 2}),
        ("unit", {"method": "deconvnet", "target": ak.Unit("0", 1, (0, 1))}),
    ):
        found["attribution"][name] = ak.attribute(net, x, **options).save(folder / "a").read_bytes()
    units = ak.project(net, x, "0", [0, 1]).save(folder / "a")
    found["attribution"]["units"] = units.read_bytes()

    state = net.state_dict()
    save_tensors(folder / "w", state, {})
    found["checkpoint_safetensors"]["plain"] = (folder / "w").read_bytes()
    for name, content, options in (
        ("plain", state, {}),
        ("wrapped", {"epoch": 3, "state_dict": state, "args": ["a", 1.5]}, {}),
        ("legacy", state, {"_use_new_zipfile_serialization": False}),
    ):
        torch.save(content, folder / "w", **options)
        found["checkpoint_torch"][name] = (folder / "w").read_bytes()
    found["checkpoint_torch"]["pickle"] = pickle.dumps({"w": [1.0, 2.0]}, 2)

    top = Top(torch.rand(3, 2), torch.tensor([[0, 1]] * 3), torch.tensor([[5, -1 + 1]] * 3))
    layer = MinedLayer("conv1", "NCHW", (0, 1, 4), Grid(3, 3, 0, 9), top)
    Progress(torch.tensor([True, False]), {"conv1": layer}, {1: "damaged"}).save(folder / "m", {"top": 2})
    found["mined"]["state"] = (folder / "m").read_bytes()
    shape = (2, 2, 3, 4, 4)
    Crops(
        (0, 4), torch.randn(shape), torch.zeros(shape, dtype=torch.uint8), torch.zeros(2, 2, 4, dtype=torch.int32)
    ).save(folder / "c", "label")
    found["crops"]["crops"] = (folder / "c").read_bytes()
    parts = {"eye": [0, 1, 2, 3], "nose": [4, 4, 9, 9]}
    parts = {"eye": [0, 1, 2, 3], "nose": [4, 4, 9, 9]}
    found["boxes"]["boxes"] = json.dumps({f"{n}.png": parts for n in "abc"}).encode()
    found["labels"]["labels"] = "cat\ndog\nname with spaces\nnaïve 猫\n".encode()

    plain = b"\0\0\x08\x03" + struct.pack(">III", 2, 3, 3) + bytes(range(18))
    found["idx"] = {"plain": plain, "gzipped": gzip.compress(plain, mtime=0), "labels": b"\0\0\x08\x01\0\0\0\2\1\2"}
    formats = {"png": ("PNG", {}), "jpeg": ("JPEG", {}), "gif": ("GIF", {}), "bmp": ("BMP", {}), "tiff": ("TIFF", {}),
               "tiff-lzw": ("TIFF", {"compression": "tiff_lzw"}),
               "webp": ("WEBP", {"lossless": True}), "ppm": ("PPM", {}),
               "jp2": ("JPEG2000", {}), "avif": ("AVIF", {})}  # fmt: skip
    for name, (kind, options) in formats.items():
        found["image"][name] = picture(kind, **options)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in ("a.png", "../../b.png"):
            member = tarfile.TarInfo(name)
            member.size = len(found["image"]["png"])
            archive.addfile(member, io.BytesIO(found["image"]["png"]))
    found["tar"]["two"] = packed.getvalue().rstrip(b"\0") + bytes(1024)

    network = nn.Linear(3, 2)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    position = Position(Plateau(0.1), 1, 2, [1.0, 2, 3, 4], [{"epoch": 1, "lr": 0.1}])
    save_state(folder / "s", STATE_IDENTITY, network, optimiser, torch.zeros(3, 1, 1), position)
    found["run_state"]["state"] = (folder / "s").read_bytes()
    options = {"width": 0.01, "img_size": 64}
    about = {
        "recipe": Recipe(model_options=options, size=64, resize=72).to_dict(),
        "labels": ["a", "b"],
        "data_config": {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9,
                        "crop_mode": "center", "interpolation": "bilinear"},
        "epochs": 1,
    }  # fmt: skip
    save_tensors(folder / "r", {"fc8.bias": torch.zeros(2)}, about)
    found["run_weights"]["misfit"] = (folder / "r").read_bytes()
    slim = zfnet(num_classes=2, **options).state_dict()
    save_tensors(folder / "r", {name: tensor.half() for name, tensor in slim.items()}, about)
    found["run_weights"]["whole"] = (folder / "r").read_bytes()
    return found


def main() -> None:
    """Write the files."""
    folder = Path(tempfile.mkdtemp())
    try:
        for target, files in make(folder).items():
            (CORPUS / target).mkdir(parents=True, exist_ok=True)
            for name, data in files.items():
                (CORPUS / target / name).write_bytes(data)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
