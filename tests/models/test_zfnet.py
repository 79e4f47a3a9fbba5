"""ZFNet is the paper's network, and one of timm's."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings

import pytest
import timm
import torch
from torch import nn

from attribkit.errors import InputError, ModelError
from attribkit.models import ZFNet, zfnet

MODULES = [
    *("conv1", "relu1", "pool1", "norm1", "conv2", "relu2", "pool2", "norm2"),
    *("conv3", "relu3", "conv4", "relu4", "conv5", "relu5", "pool5"),
    *("fc6", "relu6", "drop6", "fc7", "relu7", "drop7", "fc8"),
]
SHAPES = {
    "conv1": (96, 110, 110),
    "pool1": (96, 55, 55),
    "conv2": (256, 26, 26),
    "pool2": (256, 13, 13),
    "conv3": (384, 13, 13),
    "conv4": (384, 13, 13),
    "conv5": (256, 13, 13),
    "pool5": (256, 6, 6),
    "fc6": (4096,),
    "fc7": (4096,),
    "fc8": (1000,),
}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return zfnet().eval()


def test_modules_in_order(model: nn.Module) -> None:
    assert [name for name, _ in model.named_children()] == MODULES
    assert [name for name, _ in model.named_modules()] == ["", *MODULES]


def test_parameters(model: nn.Module) -> None:
    assert sum(parameter.numel() for parameter in model.parameters()) == 62_357_608
    weighted = [name for name in MODULES if name.startswith(("conv", "fc"))]
    assert list(model.state_dict()) == [f"{name}.{part}" for name in weighted for part in ("weight", "bias")]


def test_shapes_and_order_of_execution(model: nn.Module) -> None:
    seen: dict[str, tuple[int, ...]] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, output, name=name: seen.update({name: tuple(output.shape[1:])}))
        for name, module in model.named_children()
    ]
    with torch.no_grad():
        scores = model(torch.zeros(2, 3, 224, 224))
    for hook in hooks:
        hook.remove()
    assert scores.shape == (2, 1000)
    assert list(seen) == MODULES
    assert {name: seen[name] for name in SHAPES} == SHAPES


def test_layers(model: ZFNet) -> None:
    assert (model.conv1.kernel_size, model.conv1.stride, model.conv1.padding) == ((7, 7), (2, 2), (1, 1))
    assert (model.conv2.kernel_size, model.conv2.stride, model.conv2.padding) == ((5, 5), (2, 2), (0, 0))
    for conv in (model.conv3, model.conv4, model.conv5):
        assert (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
    for pool in (model.pool1, model.pool2, model.pool5):
        assert (pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode) == (3, 2, 0, True)
    for norm in (model.norm1, model.norm2):
        assert (norm.size, norm.alpha, norm.beta, norm.k) == (5, 1e-4, 0.75, 2)
    assert model.drop6.p == model.drop7.p == 0.5
    assert all(module.groups == 1 for module in model.modules() if isinstance(module, nn.Conv2d))


def test_initial_weights(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        else:
            spread = 5 * 0.01 / parameter.numel() ** 0.5
            assert abs(parameter.mean().item()) < spread, name
            assert parameter.std().item() == pytest.approx(0.01, abs=2 * spread), name


def test_reduced_variant() -> None:
    small = zfnet(10, in_chans=1, width=0.125, hidden=512, img_size=(64, 96), drop_rate=0.1)
    assert isinstance(small, ZFNet)
    assert small.conv1.weight.shape == (12, 1, 7, 7)
    assert small.fc7.weight.shape == (64, 64)
    assert small.drop6.p == 0.1
    assert small(torch.zeros(2, 1, 64, 96)).shape == (2, 10)


@pytest.mark.parametrize("side", [47, 48, 50, 63, 64, 111, 112, 128, 223, 225, 256])
def test_any_large_enough_size_fits(side: int) -> None:
    small = zfnet(3, width=0.02, hidden=100, img_size=side).eval()
    assert small(torch.zeros(1, 3, side, side)).shape == (1, 3)


def test_smallest_size_is_where_torch_refuses() -> None:
    with pytest.raises(InputError, match=r"img_size=\(46, 46\) is too small"):
        zfnet(img_size=46)
    with pytest.raises(RuntimeError):
        zfnet(3, width=0.02, img_size=47).eval()(torch.zeros(1, 3, 46, 46))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": -1}, "num_classes=-1 must be at least 0"),
        ({"in_chans": 0}, "in_chans=0"),
        ({"width": 0}, "width=0 above 0"),
        ({"drop_rate": 1.5}, "drop_rate=1.5 must lie in 0…1"),
        ({"img_size": (64, 64, 3)}, "must be a height and a width"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        zfnet(**options)


def test_timm_builds_it() -> None:
    assert timm.is_model("zfnet")
    assert "zfnet" in timm.list_models()
    built = timm.create_model("zfnet", pretrained=False, num_classes=7, in_chans=2, drop_rate=0.25, width=0.05)
    assert type(built) is ZFNet
    assert built.fc8.out_features == built.num_classes == 7
    assert built.conv1.in_channels == 2
    assert built.drop7.p == 0.25
    assert built.pretrained_cfg["input_size"] == (3, 224, 224)
    assert built.default_cfg["classifier"] == "fc8"
    assert built.default_cfg["first_conv"] == "conv1"


def test_inputs_are_roughly_pixel_values_about_zero() -> None:
    config = timm.data.resolve_model_data_config(zfnet(width=0.02))
    transform = timm.data.create_transform(**config, is_training=False)
    from PIL import Image

    black, white = (transform(Image.new("RGB", (300, 260), colour)) for colour in ("black", "white"))
    assert black.shape == (3, 224, 224)
    assert black.min() >= -128
    assert (white - black).allclose(torch.tensor(255.0))
    assert transform.transforms[0].size == 256


def test_pretrained_is_refused() -> None:
    with pytest.raises(ModelError, match="zfnet: there are no pretrained weights"):
        timm.create_model("zfnet", pretrained=True)


def test_feature_maps_by_stride() -> None:
    maps = timm.create_model("zfnet", features_only=True, width=0.05)
    assert maps.feature_info.reduction() == [2, 4, 8, 16, 32]
    outputs = maps(torch.zeros(1, 3, 224, 224))
    assert [output.shape[-1] for output in outputs] == [110, 55, 26, 13, 6]
    assert [output.shape[1] for output in outputs] == maps.feature_info.channels()


def test_heads() -> None:
    small = zfnet(5, width=0.05).eval()
    assert isinstance(small, ZFNet)
    x = torch.randn(2, 3, 224, 224)
    features = small.forward_features(x)
    assert torch.equal(small.forward_head(features), small(x))
    hidden = small.forward_head(features, pre_logits=True)
    assert hidden.shape == (2, small.head_hidden_size)
    assert torch.equal(small.get_classifier()(hidden), small(x))
    small.reset_classifier(3)
    assert small(x).shape == (2, 3)
    assert list(small.state_dict())[-2:] == ["fc8.weight", "fc8.bias"]
    small.reset_classifier(0)
    assert torch.equal(small(x), hidden)
    with pytest.raises(InputError, match="global_pool='avg'"):
        small.reset_classifier(3, "avg")


def test_a_second_import_does_not_warn() -> None:
    import attribkit.models._zfnet as module

    before = dict(vars(module))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            importlib.reload(module)
    finally:
        vars(module).update(before)
    assert timm.is_model("zfnet")


def test_torch_fx_traces_it() -> None:
    graph = torch.fx.symbolic_trace(zfnet(4, width=0.05).eval())
    assert graph(torch.zeros(1, 3, 224, 224)).shape == (1, 4)


def test_importing_attribkit_imports_no_torch_but_models_registers() -> None:
    code = (
        "import sys, attribkit; print('torch' in sys.modules, 'timm' in sys.modules);"
        "import attribkit.models, timm; print(timm.is_model('zfnet'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True"]
