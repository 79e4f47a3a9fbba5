"""A finished run, loaded to be explained."""

import numpy as np
import pytest
import torch
from nets import idx_folder, recipe

from attribkit.datasets import open_images
from attribkit.errors import CheckpointError
from attribkit.training import accuracy, load_run, train

OPTIONS = {"width": 0.02, "hidden": 60}


@pytest.mark.parametrize("mean", ["channel", "pixel"])
def test_a_run_is_loaded_as_it_was_evaluated(mean, tmp_path):
    data = idx_folder(tmp_path / "data", train=30, test=12, side=40)
    asked = recipe(size=64, resize=70, epochs=2, init="scaled", mean=mean, model_options=OPTIONS)
    result = train(data, tmp_path / "run", asked, snapshots=(1,))
    loaded = load_run(tmp_path / "run")
    assert loaded.labels == ["0", "1", "2"]
    assert loaded.input_size == (1, 64, 64)
    assert not loaded.model.training
    found = accuracy(loaded, open_images(data, "test"))
    assert found.top1 == result.test["top1"]
    seen = loaded.preprocess(open_images(data, "test").load(0))
    assert -150 < float(seen.min()) < float(seen.max()) < 256
    assert ("less the training set's mean image" in loaded.preprocessing) == (mean == "pixel")
    earlier = load_run(result.weights, tmp_path / "run" / "snapshots" / "epoch-001.safetensors")
    assert not torch.equal(earlier.model.fc8.weight, loaded.model.fc8.weight)
    assert np.isfinite(float(earlier.model(seen[None]).detach().sum()))


def test_what_is_no_run_is_said(tmp_path):
    with pytest.raises(CheckpointError, match="holds no weights of a finished run"):
        load_run(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: holds no weights of a finished run"):
        load_run(tmp_path)
