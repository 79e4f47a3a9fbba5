"""A finished run, loaded to be explained."""

import numpy as np
import pytest
import torch
from nets import idx_folder, recipe
from PIL import Image
from safetensors.torch import load_file, save_file

from attribkit.datasets import open_images
from attribkit.errors import CheckpointError, InputError
from attribkit.models import zfnet
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


def noise(folder, side, counts):
    """Write photographs of noise, not square, in class folders of parts."""
    rng = np.random.default_rng(0)
    for part, count in counts.items():
        for label, brightest in (("dark", 200), ("light", 256)):
            (folder / part / label).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, brightest, (side, side + 7 + number % 3, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / label / f"{number}.png")
    return str(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a function that gives a finished run with a mean, its data and its result; trained once a mean."""
    folder = tmp_path_factory.mktemp("runs")
    data = noise(folder / "data", 50, {"train": 8, "test": 12})
    made = {}

    def runs(mean, resize=71):
        if (mean, resize) not in made:
            asked = recipe(
                size=64, resize=resize, epochs=2, init="he", mean=mean, batch_size=8, model_options=OPTIONS, lr=0.003
            )
            made[mean, resize] = train(data, folder / f"{mean}-{resize}", asked)
        return made[mean, resize], data

    return runs


# for 64 of 99 pixels timm finds 98: 64 / (64 / 99) is just below 99
@pytest.mark.parametrize(("mean", "resize"), [("channel", 71), ("channel", 99), ("pixel", 71), ("pixel", 99)])
def test_accuracy_gives_the_figures_that_the_run_has(mean, resize, runs):
    result, data = runs(mean, resize)
    loaded, test = load_run(result.folder), open_images(data, "test")
    for crops, top1 in ((1, "top1"), (10, "top1_ten_crops")):
        found = accuracy(loaded, test, crops=crops)
        assert found.images == result.test["images"] == 24
        assert found.top1 == result.test[top1]


@pytest.mark.parametrize("mean", ["channel", "pixel"])
def test_accuracy_shows_the_network_what_the_trainer_showed_it(mean, tmp_path, monkeypatch):
    """Figures may agree by chance: the ten batches of input are the same to the bit."""
    data = noise(tmp_path / "data", 50, {"train": 4, "test": 3})
    seen = []

    def watched(module, args):
        if not module.training and len(args[0]) == 6:  # the test images; there are 2 to validate with
            seen.append(args[0].clone())

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = zfnet(2, img_size=64, **OPTIONS)
    network.register_forward_pre_hook(watched)
    asked = recipe(size=64, resize=99, epochs=1, mean=mean, val_fraction=0.25, model_options=OPTIONS)
    train(data, tmp_path / "run", asked, network=network)
    trained, seen[:] = list(seen), []
    loaded = load_run(tmp_path / "run")
    loaded.model.register_forward_pre_hook(watched)
    for crops in (1, 10):
        accuracy(loaded, open_images(data, "test"), crops=crops)
    assert len(trained) == len(seen) == 11
    for one, other in zip(trained, seen, strict=True):
        torch.testing.assert_close(one.contiguous(), other, rtol=0, atol=1e-4 if mean == "channel" else 0)


@pytest.mark.parametrize("mean", ["channel", "pixel"])
def test_denormalize_gives_the_picture_back(mean, runs):
    result, data = runs(mean)
    loaded, image = load_run(result.folder), open_images(data, "test").load(1)
    shown = loaded.denormalize(loaded.preprocess(image)[None])
    assert shown.shape == (1, 3, 64, 64)
    width = int(71 * image.width / image.height)
    left, top = round((width - 71) / 2) + round((71 - 64) / 2), round((71 - 64) / 2)
    resized = np.asarray(image.resize((width, 71), Image.Resampling.BILINEAR))
    expected = torch.from_numpy(resized[top : top + 64, left : left + 64].copy()).permute(2, 0, 1) / 255
    torch.testing.assert_close(shown[0], expected, rtol=0, atol=1e-5)


def test_the_mean_image_is_added_where_it_is_known_to_belong(runs):
    result, _ = runs("pixel")
    denormalize, image = load_run(result.folder).denormalize, load_file(result.folder / "mean.safetensors")["mean"]
    torch.testing.assert_close(denormalize(torch.zeros(3, 71, 71)), image / 255)
    torch.testing.assert_close(denormalize(torch.zeros(2, 3, 64, 64))[1], image[:, 4:68, 4:68] / 255)
    assert float(image.std(dim=(1, 2)).min()) > 1  # it is no plain colour
    colour = image.mean(dim=(1, 2), keepdim=True).expand(-1, 20, 30) / 255
    torch.testing.assert_close(denormalize(torch.zeros(3, 20, 30)), colour)
    assert denormalize(torch.zeros(3, 64, 64).double()).dtype == torch.float64
    assert "image=3×71×71" in repr(denormalize)
    with pytest.raises(InputError, match=r"denormalize takes \[..., 3, H, W\]"):
        denormalize(torch.zeros(1, 64, 64))


@pytest.mark.parametrize("held", [{"mean": torch.zeros(3, 70, 71)}, {"other": torch.zeros(3, 71, 71)},
                                  {"mean": torch.full((3, 71, 71), torch.nan)}])  # fmt: skip
def test_a_mean_image_that_is_none_is_refused(held, runs, tmp_path):
    result, _ = runs("pixel")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "weights.safetensors").write_bytes(result.weights.read_bytes())
    save_file(held, tmp_path / "run" / "mean.safetensors")
    with pytest.raises(CheckpointError, match=r"mean\.safetensors: holds no mean image of 3×71×71 numbers"):
        load_run(tmp_path / "run")
