"""`deconvnet` is the deconvolutional network of the paper: the same net, built by hand layer by layer in reverse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attribkit as ak

pytestmark = pytest.mark.usefixtures("one_thread")

STACKS = {
    # strides that leave a remainder, so that the transpose needs an output padding
    "strides": lambda: [
        nn.Conv2d(3, 6, 5, stride=2, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, stride=3),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(5),
    ],
    "in place": lambda: [
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3),
        nn.Conv2d(6, 6, 3, padding="same"),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Dropout(inplace=True),
        nn.LazyLinear(12),
        nn.ReLU(inplace=True),
        nn.Linear(12, 5),
    ],
    "groups and dilation": lambda: [
        nn.Conv2d(3, 6, 3, groups=3),
        nn.LeakyReLU(0.2),
        nn.Conv2d(6, 8, (3, 2), dilation=(2, 3), padding=(2, 0), stride=(1, 2), groups=2),
        nn.ELU(),
        nn.MaxPool2d((2, 3), padding=(1, 0), ceil_mode=True),
        nn.Conv2d(8, 8, 1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ],
    "normalisations": lambda: [
        nn.Conv2d(3, 8, 4, padding=2),
        nn.ReLU(),
        nn.LocalResponseNorm(5, alpha=0.1, k=2.0),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 4, 3),
        nn.LocalResponseNorm(3, alpha=0.5),
        nn.BatchNorm2d(4),
        nn.GELU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.LazyLinear(5),
        nn.BatchNorm1d(5),
    ],
    "transposed convolution": lambda: [
        nn.Conv2d(3, 5, 3, stride=2),
        nn.ReLU6(),
        nn.ConvTranspose2d(5, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(4, ceil_mode=True),
        nn.Flatten(),
        nn.LazyLinear(5),
    ],
}


class Explicit:
    """Both ways through a stack, written out: up with the switches kept, down by the transposed layers."""

    def __init__(self, net, x):
        self.net, self.inputs, self.outputs, self.switches = net, [], [], {}
        with torch.no_grad():
            for index, layer in enumerate(net):
                self.inputs.append(x.clone())
                if isinstance(layer, nn.MaxPool2d):
                    x, self.switches[index] = F.max_pool2d(
                        x,
                        layer.kernel_size,
                        layer.stride,
                        layer.padding,
                        ceil_mode=layer.ceil_mode,
                        return_indices=True,
                    )
                else:
                    x = layer(x.clone())
                self.outputs.append(x.clone())

    def down(self, signal, top):
        """Carry ``signal``, given at the output of layer ``top``, to the pixels."""
        with torch.no_grad():
            for index in range(top, -1, -1):
                signal = self.inverse(index, signal)
        return signal

    def inverse(self, index, signal):
        layer, shape = self.net[index], self.inputs[index].shape
        match layer:
            case nn.Conv2d():
                padding = layer.padding
                if padding == "same":
                    padding = [d * (k - 1) // 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
                reached = [
                    (signal.shape[2 + i] - 1) * layer.stride[i]
                    - 2 * padding[i]
                    + layer.dilation[i] * (layer.kernel_size[i] - 1)
                    + 1
                    for i in range(2)
                ]
                missing = [shape[2 + i] - reached[i] for i in range(2)]
                return F.conv_transpose2d(
                    signal, layer.weight, None, layer.stride, padding, missing, layer.groups, layer.dilation
                )
            case nn.ConvTranspose2d():
                return F.conv2d(signal, layer.weight, None, layer.stride, layer.padding)
            case nn.Linear():
                return signal @ layer.weight
            case nn.MaxPool2d():
                unpool = nn.MaxUnpool2d(layer.kernel_size, layer.stride, layer.padding)
                return unpool(signal, self.switches[index], output_size=shape)
            case nn.AvgPool2d():
                k = layer.kernel_size
                even = torch.full((shape[1], 1, k, k), 1 / k**2, dtype=signal.dtype)
                spread = F.conv_transpose2d(signal, even, stride=layer.stride, groups=shape[1])
                return F.pad(spread, (0, shape[3] - spread.shape[3], 0, shape[2] - spread.shape[2]))
            case nn.AdaptiveAvgPool2d():
                return signal.expand(shape) / (shape[2] * shape[3])
            case nn.BatchNorm1d() | nn.BatchNorm2d():
                scale = layer.weight / torch.sqrt(layer.running_var + layer.eps)
                return signal * scale.view(-1, *[1] * (signal.dim() - 2))
            case nn.LocalResponseNorm() | nn.Dropout():
                return signal
            case nn.Flatten():
                return signal.reshape(shape)
            case nn.ReLU() | nn.ReLU6() | nn.LeakyReLU() | nn.ELU() | nn.SiLU() | nn.GELU():
                return signal.clamp(min=0)
        raise AssertionError(f"no inverse written for {layer}")


def build(name):
    torch.manual_seed(3)
    net, x = nn.Sequential(*STACKS[name]()).double().eval(), torch.randn(2, 3, 21, 18, dtype=torch.float64)
    with torch.no_grad():
        net(x.clone())  # materialises the lazy layers
    net.double()
    for module in net:
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return net, x


def assert_same(values, expected, where=""):
    assert expected.abs().max() > 0, where
    assert (values - expected).abs().max() <= 1e-12 * expected.abs().max(), where


@pytest.mark.parametrize("stack", STACKS)
def test_class_scores(stack):
    net, x = build(stack)
    explicit = Explicit(net, x)
    classes = torch.tensor([3, 1])
    expected = explicit.down(F.one_hot(classes, 5).double(), len(net) - 1)  # the signal starts as 1
    found = ak.attribute(net, x, method="deconvnet", target=classes)
    assert_same(found.values, expected)
    assert_same(found.scores, explicit.outputs[-1][torch.arange(2), classes])


@pytest.mark.parametrize("stack", STACKS)
def test_units_at_every_layer(stack):
    net, x = build(stack)
    explicit, alive = Explicit(net, x), 0
    for index, activation in enumerate(explicit.outputs):
        if isinstance(net[index], nn.Flatten):
            continue
        for channel in (0, activation.shape[1] - 1):
            feature_map = activation[:, channel].reshape(len(x), -1)
            for position in ("max", "all"):
                kept = torch.ones_like(feature_map)
                if position == "max":
                    first = [row.index(max(row)) for row in feature_map.tolist()]
                    kept = F.one_hot(torch.tensor(first), feature_map.shape[1]).double()
                seed = torch.zeros_like(activation)  # the activation itself, all others zero
                seed[:, channel] = (feature_map * kept).view_as(seed[:, channel])
                unit = ak.Unit(layer=str(index), channel=channel, position=position)
                found = ak.attribute(net, x, method="deconvnet", target=unit)
                expected, where = explicit.down(seed, index), (index, net[index], channel, position)
                torch.testing.assert_close(found.scores, seed.flatten(1).sum(1), rtol=1e-12, atol=1e-15)
                if expected.any():
                    alive += 1
                    assert_same(found.values, expected, where)
                else:  # a dead unit, or one whose negative activation is clamped at its own rectifier
                    assert not found.values.any(), where
    assert alive >= 2 * len(net)


def test_a_unit_starts_as_its_activation_also_when_negative():
    net = nn.Sequential(nn.Conv2d(1, 1, 2, bias=False), nn.ReLU()).double()
    nn.init.ones_(net[0].weight)
    x = -torch.ones(1, 1, 3, 3, dtype=torch.float64)
    found = ak.attribute(net, x, method="deconvnet", target=ak.Unit("0", 0, (1, 1)))
    assert found.values[0, 0].tolist() == [[0, 0, 0], [0, -4, -4], [0, -4, -4]]


def test_overlapping_pools_add_at_a_shared_switch():
    net = nn.Sequential(
        nn.ReLU(), nn.MaxPool2d((1, 2), stride=1), nn.Flatten(), nn.Linear(3, 1, bias=False)
    ).double()  # fmt: skip
    with torch.no_grad():
        net[3].weight.copy_(torch.tensor([[2.0, 3.0, 7.0]]))
    x = torch.tensor([[[[1.0, 5.0, 2.0, 4.0]]]], dtype=torch.float64)  # windows (1 5) (5 2) (2 4)
    found = ak.attribute(net, x, method="deconvnet", target=0)
    assert found.values.flatten().tolist() == [0.0, 5.0, 0.0, 7.0]  # 2 + 3 at the maximum that two windows share
    tied = torch.tensor([[[[1.0, 1.0, 1.0, 1.0]]]], dtype=torch.float64)  # the first of each window
    found = ak.attribute(net, tied, method="deconvnet", target=0)
    assert found.values.flatten().tolist() == [2.0, 3.0, 7.0, 0.0]


def test_zfnets_pools_overlap_and_add():
    """3x3 windows with stride 2 and ceil mode, against a loop over the windows."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), nn.Flatten(), nn.Linear(32, 1)).double()
    x = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    signal = net[3].weight.detach().view(2, 4, 4)
    expected, shared = torch.zeros(2, 8, 8, dtype=torch.float64), torch.zeros(2, 8, 8)
    for channel in range(2):
        for row in range(4):
            for column in range(4):
                window = x[0, channel, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3].relu()
                flat = window.flatten().tolist()
                down, right = divmod(flat.index(max(flat)), window.shape[1])  # the first on ties
                expected[channel, 2 * row + down, 2 * column + right] += signal[channel, row, column]
                shared[channel, 2 * row + down, 2 * column + right] += 1
    assert shared.max() > 1
    found = ak.attribute(net, x, method="deconvnet", target=0)
    assert_same(found.values[0], expected.clamp(min=0))
