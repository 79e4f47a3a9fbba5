"""Image classifiers of Hugging Face, built from a config: their outputs are objects with ``.logits``."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from torch import nn

import attribkit as ak

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
NETS = {  # name of the family -> config, rectifiers
    "ViT": (VIT, 2),
    "ResNet": ({"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}, 7),
    "ConvNext": ({"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, 2),
    "Swin": (SWIN, 2),
    "MobileNetV2": ({"depth_multiplier": 0.35}, 35),
}


def build(name, **changes):
    settings = {**NETS[name][0], "num_labels": 4, **changes}
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**settings)
    net = getattr(transformers, f"{name}ForImageClassification")(config).double().eval()
    for parameter in net.parameters():
        if parameter.ndim < 2 or parameter.std() < 0.05:
            nn.init.normal_(parameter, 0.5 if parameter.ndim < 2 else 0.0, 0.2)
    return net


@pytest.mark.parametrize("method", oracle.METHODS)
@pytest.mark.parametrize("name", NETS)
def test_image_classifiers(name, method):
    net, rectifiers = build(name), NETS[name][1]
    assert not isinstance(net(X), torch.Tensor)
    for target in (None, 1, torch.tensor([3, 0])):
        found = ak.attribute(net, X, method=method, target=target)
        reference = oracle.explain(net, X, method, target)
        scale = reference.values.abs().max()
        assert scale > 0
        assert (found.values - reference.values).abs().max() <= 1e-9 * scale
        assert found.coverage.kinds["rectifier"] == (rectifiers if method != "gradient" else 0, rectifiers)


def test_occlusion_and_the_most_probable_class():
    net = build("ViT")
    found = ak.attribute(net, X, method="occlusion", window=16, stride=16)
    logits = net(X).logits
    assert torch.equal(found.target, logits.argmax(1))
    hidden = X.clone()
    hidden[:, :, :16, :16] = 0
    drop = (logits - net(hidden).logits).gather(1, found.target[:, None])[:, 0]
    torch.testing.assert_close(found.values[:, 0, 0, 0], drop.detach())


@pytest.mark.parametrize("interpolate", [True, False])
def test_further_arguments_of_the_forward(interpolate):
    net = build("ViT")
    x = X if not interpolate else torch.randn(2, 3, 32, 64, dtype=torch.float64)
    found = ak.attribute(
        net, x, method="gradient", target=1, forward_kwargs={"interpolate_pos_encoding": interpolate}, batch_size=1
    )
    leaf = x.clone().requires_grad_()
    score = net(leaf, interpolate_pos_encoding=interpolate).logits[:, 1].sum()
    torch.testing.assert_close(found.values, torch.autograd.grad(score, leaf)[0])


def test_tuples_instead_of_objects():
    net = build("ViT")
    expected = ak.attribute(net, X, method="guided_backprop", target=2)
    found = ak.attribute(net, X, method="guided_backprop", target=2, forward_kwargs={"return_dict": False})
    assert torch.equal(found.values, expected.values)


def test_tokens_by_place():
    net = build("ViT")
    layer = "vit.layers.0.mlp.fc1"
    assert ak.inspect(net, X).shapes[layer] == (2, 17, 32)
    by_place = ak.attribute(net, X, method="gradient", target=ak.Unit(layer, 5, (1, 2)))
    by_token = ak.attribute(net, X, method="gradient", target=ak.Unit(layer, 5, 1 + 4 + 2))
    assert by_place.target.layout == "NTC"
    assert by_place.values.any()
    assert torch.equal(by_place.values, by_token.values)


SIGMA = {
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu_new": lambda x: x * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_fast": lambda x: x * 0.5 * (1 + torch.tanh(0.7978845608 * x * (1 + 0.044715 * x * x))),
    "gelu_accurate": lambda x: x * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu": nn.functional.gelu,
    "gelu_pytorch_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "silu": nn.functional.silu,
    "relu": torch.relu,
    "mish": nn.functional.mish,
}


@pytest.mark.parametrize("name", SIGMA)
def test_their_activation_classes_are_rectifiers(name):
    """Also those that are written from tanh or sigmoid: the signal behind each is rectified, once."""
    torch.manual_seed(0)
    act = transformers.activations.ACT2FN[name]
    net = nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), act, nn.Linear(8, 3)).double().eval()
    for method in ("guided_backprop", "deconvnet"):
        found = ak.attribute(net, X, method=method, target=1)
        z = net[1](net[0](X)).detach().requires_grad_()
        signal = net[3].weight[1].clamp(min=0).expand(2, 8)
        if method == "guided_backprop":
            (signal,) = torch.autograd.grad(SIGMA[name](z), z, signal)
        expected = (signal @ net[1].weight).reshape(X.shape)
        assert expected.abs().max() > 0
        torch.testing.assert_close(found.values, expected.detach(), rtol=1e-9, atol=1e-12)
        assert (found.coverage.kinds["rectifier"], found.coverage.gates) == ((1, 1), 0)
