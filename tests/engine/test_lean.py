"""The lean way back: equal to autograd's, keeps what it says, and stands aside where it is not wanted.

Equal is to the bit, but for what goes in parts of the batch.
"""

from __future__ import annotations

import copy
import gc
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import attribkit as ak
from attribkit.engine.invert import leaf, vocabulary
from attribkit.engine.lean import bits, convolutions, pools, record, store, weighted
from attribkit.engine.lean.record import _Lean
from attribkit.engine.lean.standin import StandIn
from attribkit.engine.walk import Walk

pytestmark = pytest.mark.usefixtures("one_thread", "lean_everywhere")


def autograd(function, x, dtype=torch.float32):
    """What a function and its derivative are without us: output, gradient and the signal it was made with."""
    x = x.to(dtype).clone(memory_format=torch.preserve_format).requires_grad_()
    output = function(x.clone(memory_format=torch.preserve_format))
    signal = torch.sin(torch.arange(output.numel(), dtype=dtype)).reshape(output.shape)
    return output.detach(), torch.autograd.grad(output, x, signal)[0], signal


class Calls(nn.Module):
    """A model that is one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def lean(function, x, dtype=torch.float32):
    """The same by a lean walk; and whether a lean step did it."""
    x = x.to(dtype).clone(memory_format=torch.preserve_format).requires_grad_()
    walk = Walk(Calls(function), vocabulary=vocabulary(), lean=True)
    output = walk.run(x.clone(memory_format=torch.preserve_format))
    signal = torch.sin(torch.arange(output.numel(), dtype=dtype)).reshape(output.shape)
    return output.detach(), torch.autograd.grad(output, x, signal)[0], walk.lean.used


def weights(*shape):
    return torch.sin(torch.arange(float(torch.Size(shape).numel()))).reshape(shape)


C = 6
W, DEPTHWISE, GROUPED, B = weights(4, C, 3, 3), weights(C, 1, 3, 3), weights(4, C // 2, 3, 2), weights(4)
MEAN, VAR, SCALE, SHIFT = weights(C), weights(C) + 1.5, weights(C) * 2, weights(C)

KNOWN = {
    "conv": lambda x: F.conv2d(x, W.to(x.dtype), B.to(x.dtype), padding=1),
    "conv of stride 2": lambda x: F.conv2d(x, W.to(x.dtype), stride=2, padding=(1, 0), dilation=(1, 2)),
    "depthwise conv": lambda x: torch.conv2d(x, DEPTHWISE.to(x.dtype), None, 1, 1, 1, C),
    "grouped conv": lambda x: F.conv2d(x, GROUPED.to(x.dtype), B.to(x.dtype), groups=2),
    "conv 1x1": lambda x: F.conv2d(x, W[:, :, :1, :1].to(x.dtype)),
    "batch norm": lambda x: F.batch_norm(x, *(t.to(x.dtype) for t in (MEAN, VAR, SCALE, SHIFT)), eps=1e-3),
    "batch norm without weight": lambda x: F.batch_norm(x, MEAN.to(x.dtype), VAR.to(x.dtype)),
    "relu": F.relu,
    "relu in place": lambda x: F.relu(x * 1, inplace=True),
    "torch.relu_": lambda x: torch.relu_(x * 1),
    "Tensor.relu": torch.Tensor.relu,
    "relu6": lambda x: F.relu6(x * 4),
    "relu6 in place": lambda x: F.relu6(x * 4, inplace=True),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.25),
    "leaky relu": lambda x: F.leaky_relu(x, 0.2),
    "leaky relu in place": lambda x: F.leaky_relu(x * 1, 0.2, inplace=True),
    "max pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max pool without stride": lambda x: torch.max_pool2d(x, (2, 3)),
    "max pool, dilated": lambda x: F.max_pool2d(x, 2, 1, 0, dilation=(3, 2), ceil_mode=True),
    "avg pool": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    "avg pool without stride": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "adaptive avg pool": lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
}
LAYOUTS = {
    "channels first": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "one sample": lambda x: x[:1],
    "one sample, odd stride": lambda x: x[:1].as_strided((1, *x.shape[1:]), (7, *x.stride()[1:])),
}


def image(*shape):
    """Values of either sign, with ties and zeros."""
    torch.manual_seed(0)
    return (torch.randn(shape) * 4).round() / 4


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", KNOWN)
def test_equals_autograd_to_the_bit(name, dtype, layout):
    x = LAYOUTS[layout](image(3, C, 11, 10))
    value, gradient, _ = autograd(KNOWN[name], x, dtype)
    found, mine, used = lean(KNOWN[name], x, dtype)
    assert used
    assert torch.equal(found, value)
    assert found.stride() == value.stride()
    assert torch.equal(mine, gradient)


SETTINGS_OF_TORCH = {
    "conv": lambda x, two: F.conv2d(x, W, None, two),
    "conv's padding": lambda x, two: F.conv2d(x, W, None, 1, (two, two)),
    "max pool": F.max_pool2d,
    "max pool's stride": lambda x, two: F.max_pool2d(x, 3, two),
    "avg pool": F.avg_pool2d,
    "avg pool's stride": lambda x, two: F.avg_pool2d(x, 3, two),
}


@pytest.mark.parametrize("two", [np.int64(2), torch.tensor(2)], ids=["numpy's", "a tensor"])
@pytest.mark.parametrize("name", SETTINGS_OF_TORCH)
def test_settings_that_torch_takes_are_left_to_autograd(name, two):
    x = image(2, C, 9, 9)
    _, gradient, _ = autograd(lambda x: SETTINGS_OF_TORCH[name](x, two), x)
    _, mine, used = lean(lambda x: SETTINGS_OF_TORCH[name](x, two), x)
    assert not used
    assert torch.equal(mine, gradient)


@pytest.mark.parametrize("bias", [None, B])
@pytest.mark.parametrize("rows", [1, 5])
def test_linear_equals_autograd_to_the_bit(rows, bias):
    def linear(x):
        return F.linear(x, weights(4, 7), bias)

    value, gradient, _ = autograd(linear, image(rows, 7))
    found, mine, used = lean(linear, image(rows, 7))
    assert used
    assert torch.equal(found, value)
    assert torch.equal(mine, gradient)


def test_what_torch_refuses_is_refused_in_its_words():
    with pytest.raises(TypeError, match="no len"):
        lean(lambda x: F.adaptive_avg_pool2d(x, np.int64(2)), image(2, C, 9, 9))


def test_what_is_no_number_passes_as_it_does_in_autograd():
    x = torch.tensor([float("nan"), 1.0, -1.0, 0.0, float("inf"), -float("inf")] * 8).reshape(1, 1, 6, 8)
    # of the clamps torch's derivative is another for elements that do not fill a vector: these do
    clamps = [F.relu6, lambda x: F.hardtanh(x, -0.5, 0.5), lambda x: F.hardtanh_(x, -0.5, 0.5)]
    for function in (F.relu, lambda x: F.leaky_relu(x, 0.1), lambda x: F.max_pool2d(x, 2), *clamps):
        _, gradient, _ = autograd(function, x)
        _, mine, used = lean(function, x)
        assert used
        assert torch.equal(mine, gradient)


def test_an_infinite_signal_is_stopped():
    x = image(1, 2, 4, 4).requires_grad_()
    walk = Walk(Calls(F.relu), vocabulary=vocabulary(), lean=True)
    (found,) = torch.autograd.grad(walk.run(x.clone()), x, torch.full((1, 2, 4, 4), float("inf")))
    assert torch.equal(found, torch.where(x > 0, float("inf"), 0.0))


# -- in parts ----------------------------------------------------------------------------------------------------------


def test_in_parts_as_as_a_whole(monkeypatch):
    """Large maps go in parts of the batch: small ones here, with the limits set low; not to the bit on any machine."""
    monkeypatch.setattr(store, "LARGE", 4096)
    monkeypatch.setattr(pools, "_PART", 4096)
    monkeypatch.setattr(bits, "BLOCK", 64)
    monkeypatch.setattr(weighted, "SCALED", 64)
    step = convolutions.Convolution(image(7, C, 11, 10), W, {**SETTINGS, "bias": None})
    assert step.rows == 1
    for name in ("conv", "conv of stride 2", "max pool", "max pool, dilated", "relu", "relu6"):
        x = image(7, C, 11, 10)
        value, gradient, _ = autograd(KNOWN[name], x, torch.float64)
        found, mine, used = lean(KNOWN[name], x, torch.float64)
        assert used
        torch.testing.assert_close(found, value, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(mine, gradient, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["batch norm", "batch norm without weight"])
@pytest.mark.parametrize("shape", [(9, C), (3, C, 7), (3, C, 5, 4), (3, C, 4, 4, 2), (3, C, 1, 1), (1, C, 5, 4)])
def test_large_signals_are_scaled_to_the_bit(shape, name, dtype, monkeypatch):
    """By one factor after the other, as torch does it, in the memory that is there or in new one."""
    monkeypatch.setattr(weighted, "SCALED", 1)
    monkeypatch.setattr(weighted, "_batch_norm_backward", None)  # not asked
    for alone in (1, record.SMALL):
        monkeypatch.setattr(record, "SMALL", alone)
        _, gradient, _ = autograd(lambda x: KNOWN[name](x) * 3, image(*shape), dtype)
        _, mine, used = lean(lambda x: KNOWN[name](x) * 3, image(*shape), dtype)
        assert used
        assert torch.equal(mine, gradient)


def test_a_variance_below_zero_makes_what_torch_makes_of_it(monkeypatch):
    """No number, and no warning."""
    monkeypatch.setattr(weighted, "SCALED", 1)

    def norm(x):
        return F.batch_norm(x, MEAN, torch.tensor([-1.0, 0, math.inf, math.nan, 1e-40, 1e38]))

    _, gradient, _ = autograd(norm, image(3, C, 5, 4))
    _, mine, used = lean(norm, image(3, C, 5, 4))
    assert used
    assert gradient.isnan().any()
    torch.testing.assert_close(mine, gradient, rtol=0, atol=0, equal_nan=True)


def test_large_signals_with_channels_last_are_scaled_to_the_bit(monkeypatch):
    monkeypatch.setattr(weighted, "SCALED", 1)
    monkeypatch.setattr(weighted, "_batch_norm_backward", None)
    x = image(3, C, 5, 4).contiguous(memory_format=torch.channels_last)
    function = KNOWN["batch norm"]
    signals = [image(3, C, 5, 4).cos().contiguous(memory_format=torch.channels_last) for _ in range(2)]
    expected = x.clone().requires_grad_()
    function(expected).backward(signals[0])
    mine = x.clone().requires_grad_()
    Walk(Calls(function), vocabulary=vocabulary(), lean=True).run(mine).backward(signals[1])
    assert torch.equal(mine.grad, expected.grad)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("channels", [1, C])
def test_large_maps_lie_as_torch_lays_them(channels, memory_format, layout, monkeypatch):
    monkeypatch.setattr(store, "LARGE", 4096)
    weight = W[:, :channels].contiguous(memory_format=memory_format)
    x = LAYOUTS[layout](image(7, channels, 11, 10))

    def function(x):
        return F.gelu(F.conv2d(x, weight, padding=1))

    value, gradient, _ = autograd(function, x)
    found, mine, used = lean(function, x)
    assert used
    assert found.stride() == value.stride()
    assert mine.stride() == gradient.stride()
    torch.testing.assert_close(mine, gradient, rtol=1e-5, atol=1e-6)


def test_a_signal_that_lies_otherwise_comes_out_as_torch_lays_it():
    """What lies below adds in the order of memory."""
    torch.manual_seed(0)
    x = torch.randn(2, 8, 17, 18).contiguous(memory_format=torch.channels_last)
    for rectify in (lambda x: F.hardtanh(x, -0.3, 6.0), F.relu6, F.relu, F.leaky_relu):

        def function(x, rectify=rectify):
            return F.layer_norm(rectify(F.gelu(x, approximate="tanh")), (18,)).flatten(1).cumsum(1)

        _, gradient, _ = autograd(function, x)
        _, mine, used = lean(function, x)
        assert used
        assert torch.equal(mine, gradient)


SETTINGS = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1}


def test_a_convolution_of_one_by_one_stays_whole(monkeypatch):
    monkeypatch.setattr(store, "LARGE", 1)
    x = image(7, C, 11, 10)
    assert convolutions.Convolution(x, W[:, :, :1, :1], {**SETTINGS, "bias": None}).rows == 7


# -- bits and stand-ins ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 7, 8, 9, 63, 64, 1000])
def test_bits_by_torch_are_those_by_numpy(count):
    values = image(count)
    values[count // 2] = float("nan")
    masks = {
        bits.above(values, 0): values > 0,
        bits.not_zero(values): values != 0,
        bits.not_zero(values, below=1): (values != 0) & (values < 1),
        bits.between(values, 0, 1): (values > 0) & (values < 1),
    }
    for packed, mask in masks.items():
        assert packed.numel() == -(-count // 8)
        assert torch.equal(bits.unpacked(packed, count), mask.to(torch.uint8))
        assert torch.equal(bits.unpack_by_torch(packed, count), mask.to(torch.uint8))
        assert torch.equal(bits.unpack_by_torch(bits.pack_by_torch(mask), count), mask.to(torch.uint8))


@pytest.mark.parametrize("function", [F.relu, lambda x: F.max_pool2d(x, 2)])
def test_what_is_large_enough_for_memory_of_its_own(function):
    x = image(2, 64, 96, 80)
    _, gradient, _ = autograd(function, x)
    _, mine, used = lean(function, x)
    assert used
    assert torch.equal(mine, gradient)


def test_a_stand_in_takes_no_memory_where_the_signal_has_room():
    x, signal = image(3, 4, 5, 6), image(3, 8, 5, 6)
    found = StandIn.of(x).beside(signal)
    assert (found.shape, found.stride(), found.data_ptr()) == (x.shape, x.stride(), signal.data_ptr())
    small = StandIn.of(signal).beside(x)
    assert (small.shape, small.stride()) == (signal.shape, signal.stride())
    assert small.data_ptr() != x.data_ptr()
    expanded = StandIn.of(x).beside(x.new_ones(()).expand(x.shape))
    assert expanded.stride() == x.stride()


# -- what is kept ------------------------------------------------------------------------------------------------------


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU6(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 64, 5),
    ).eval()


def kept_bytes(model, run):
    """Bytes of the tensors saved for the way back, each storage once, the model's own left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    sizes, alive = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)  # or its address could be another's later
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(sizes.values())


@pytest.mark.parametrize("method", ["gradient", "guided_backprop", "deconvnet"])
def test_bits_and_small_integers_are_all_that_is_kept(method):
    model, x = network(), torch.randn(4, 3, 32, 32)
    rectified = (16 * 32 * 32 + 16 * 16 * 16) // 8 * (method != "deconvnet")
    pooled = 16 * 16 * 16
    assert (
        kept_bytes(model, lambda: ak.attribute(model, x, method, 1)) <= 4 * (rectified + pooled) + 256
    )  # the score's own


@pytest.mark.parametrize("method", ["gradient", "guided_backprop", "deconvnet"])
def test_an_activation_goes_when_the_forward_pass_has_left_it(method):
    """Of ten maps of one size never more than four are there at once, on the way up and on the way back."""
    layers = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(5)]
    model = nn.Sequential(nn.Conv2d(3, 8, 1), *layers, nn.Flatten(), nn.Linear(8 * 1024, 3)).eval()
    x, most = torch.randn(1, 3, 32, 32), 0

    def count(module, *call):
        nonlocal most
        most = max(most, sum(type(t) is torch.Tensor and t.numel() == 8 * 1024 for t in gc.get_objects()))

    for module in model.modules():
        module.register_forward_hook(count)
    ak.attribute(model, x, method, 1)
    assert 2 <= most <= 4


# -- where it stands aside ---------------------------------------------------------------------------------------------


class Weighted(nn.Module):
    """A convolution whose weight is computed."""

    def __init__(self):
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))

    def forward(self, x):
        return self.conv(x)


ASIDE = {
    "a computed weight": Weighted,
    "a weight made of the input": lambda: Calls(lambda x: F.conv2d(x, x.mean((0, 2, 3)).reshape(1, 3, 1, 1))),
    "batch statistics": lambda: Calls(lambda x: F.batch_norm(x, None, None, training=True)),
    "a view changed in place": lambda: Calls(lambda x: torch.relu_((x * 1)[:, 1:])),
    "same padding": lambda: Calls(lambda x: F.conv2d(x, torch.ones(2, 3, 3, 3), padding="same")),
    "one element left": lambda: Calls(lambda x: F.adaptive_avg_pool2d(x, 1)),
    "another convolution": lambda: Calls(lambda x: F.conv_transpose2d(x, torch.ones(3, 2, 2, 2))),
    "a smooth rectifier": lambda: Calls(F.silu),
    "a negative slope": lambda: Calls(lambda x: F.leaky_relu(x, -0.5)),
    "without gradients": lambda: Calls(lambda x: x + F.relu(x.detach())),
    "autocast": lambda: Calls(lambda x: autocast(x)),
    "checkpoint": lambda: Calls(lambda x: checkpoint(F.relu, x, use_reentrant=False)),
    "torch.func": lambda: Calls(lambda x: torch.func.vmap(F.relu)(x)),
}


def autocast(x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return F.conv2d(x, torch.ones(2, 3, 3, 3)).float()


@pytest.mark.parametrize("name", ASIDE)
def test_what_is_not_known_is_left_to_autograd(name):
    model, x = ASIDE[name]().eval(), image(2, 3, 8, 8)
    _, gradient, _ = autograd(model, x)
    mine = x.clone().requires_grad_()
    walk = Walk(model, vocabulary=vocabulary(), lean=True)
    output = walk.run(mine.clone())
    signal = torch.sin(torch.arange(output.numel(), dtype=output.dtype)).reshape(output.shape)
    assert not walk.lean.used
    assert torch.equal(torch.autograd.grad(output, mine, signal)[0], gradient)


def test_a_function_mode_of_somebody_else_keeps_it_out():
    class Doubling(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            return found * 2 if func is F.relu else found

    x = image(2, 3, 8, 8)
    with Doubling():
        _, gradient, _ = autograd(F.relu, x)
        _, mine, used = lean(F.relu, x)
    assert not used
    assert torch.equal(mine, gradient)


class LooksInside(nn.Module):
    """Differentiates on its way up: with respect to its input, or to its weights."""

    def __init__(self, by, backward, swallow=False):
        super().__init__()
        self.by, self.backward, self.swallow, self.runs = by, backward, swallow, 0
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        nn.init.normal_(self.conv.weight)
        self.head = nn.Linear(4, 3)

    def inner(self, x):
        maps = F.relu(self.conv(x))
        wanted = x if self.by == "input" else self.conv.weight
        if self.backward:
            before, self.conv.weight.grad = self.conv.weight.grad, None
            maps.square().sum().backward(retain_graph=True)
            found, self.conv.weight.grad = self.conv.weight.grad, before
            return maps * found.mean()
        (found,) = torch.autograd.grad(maps.square().sum(), wanted, create_graph=True)
        return maps * found.mean()

    def forward(self, x):
        self.runs += 1
        try:
            maps = self.inner(x)
        except BaseException:
            if not self.swallow:
                raise
            maps = torch.zeros(len(x), 4, 8, 8)
        return self.head(maps.mean((2, 3)))


@pytest.mark.parametrize("swallow", [False, True])
@pytest.mark.parametrize(("by", "backward"), [("input", False), ("weight", False), ("weight", True)])
def test_a_model_that_differentiates_gets_its_graph(by, backward, swallow):
    torch.manual_seed(0)
    model, x = LooksInside(by, backward, swallow).eval(), torch.randn(2, 3, 8, 8)
    mine = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(copy.deepcopy(model)(mine)[:, 1].sum(), mine)
    found = ak.attribute(model, x, "gradient", 1)
    assert model.runs == 2  # once leanly, in vain
    assert expected.any()
    assert torch.equal(found.values, expected)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_unit_of_a_model_that_goes_on_without_its_graph():
    """The walk ends at the unit's layer, after the model has caught what should have ended it."""
    torch.manual_seed(0)
    model, x = LooksInside("input", backward=False, swallow=True).eval(), torch.randn(2, 3, 8, 8)
    mine, unit = x.clone().requires_grad_(), ak.Unit("head", 1)
    scores = copy.deepcopy(model)(mine)[:, 1]
    (expected,) = torch.autograd.grad(scores.sum(), mine)
    found = ak.attribute(model, x, "gradient", unit)
    assert torch.equal(found.scores, scores)
    assert torch.equal(found.values, expected)


def test_second_derivatives_of_a_lean_graph_are_right():
    """Nobody asks for them of ours, but what is in a graph must not be wrong."""
    model, x = network().double(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    found = []
    for keep_less in (True, False):
        mine = leaf(x)
        scores = Walk(model, vocabulary=vocabulary(), lean=keep_less).run(mine.clone())[:, 1].square().sum()
        (gradient,) = torch.autograd.grad(scores, mine, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), mine)[0])
    assert found[1].any()
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-14)


def test_weights_changed_in_between_are_noticed():
    model, x = network(), leaf(torch.randn(1, 3, 32, 32))
    output = Walk(model, vocabulary=vocabulary(), lean=True).run(x.clone())
    with torch.no_grad():
        model[4].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(output.sum(), x)


def test_hooks_on_tensors_see_and_change_the_signal():
    class Hooked(nn.Sequential):
        def forward(self, x):
            maps = self[0](x)
            maps.register_hook(lambda signal: signal * 3)
            return self[1](maps)

    net = network()
    model, x = Hooked(net[:4], net[4:]).eval(), torch.randn(2, 3, 32, 32)
    mine = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(mine)[:, 1].sum(), mine)
    assert torch.equal(ak.attribute(model, x, "gradient", 1).values, expected)


def test_an_inverse_layer_of_somebody_else_gets_plain_and_switches():
    seen = {}

    class Looks(ak.InverseLayer):
        def carry(self, signal, site):
            seen[site.kind] = (site.switches, site.params, site.input_shapes)
            return site.plain(signal)

    class All(ak.InverseMethod):
        name, summary = "all", "the ordinary derivative by another door"
        inverse_layers = {kind: Looks() for kind in ("conv", "batch_norm", "rectifier", "max_pool", "linear")}

    model, x = network(), torch.randn(2, 3, 32, 32)
    found = ak.attribute(model, x, All, 1)
    assert torch.equal(found.values, ak.attribute(model, x, "gradient", 1).values)
    assert set(seen) == {"conv", "batch_norm", "rectifier", "max_pool", "linear"}
    expected = F.max_pool2d(model[:3](x), 2, return_indices=True)[1]
    assert torch.equal(seen["max_pool"][0], expected)
    assert seen["max_pool"][1]["kernel_size"] == 2
    assert seen["conv"][1]["weight"].shape == (16, 3, 3, 3)
    assert kept_bytes(model, lambda: ak.attribute(model, x, All, 1)) < 2 * 20000


def test_what_an_inverse_layer_reads_of_a_call_is_its_own():
    """Lists of settings are as they were at the call, and nobody is touched by what is written to them."""
    seen = []

    class Writes(ak.InverseLayer):
        def carry(self, signal, site):
            seen.append((site.params["stride"], site.params["stride"]))
            seen[-1][0].append(9)
            return site.plain(signal)

    class Mine(ak.InverseMethod):
        name, summary, inverse_layers = "mine", "writes to settings", {"conv": Writes(), "max_pool": Writes()}

    class Lists(nn.Module):
        kept = [2, 2]

        def forward(self, x):
            own = [2, 2]
            x = F.conv2d(F.max_pool2d(x, 2, stride=own), W, None, self.kept)
            own[0] = 1
            return x.flatten(1)

    ak.attribute(Lists().eval(), image(2, C, 16, 16), Mine, 1)
    assert Lists.kept == [2, 2]
    assert [second for _, second in seen] == [[2, 2], [2, 2]]


def test_lean_functions_are_in_the_graph():
    """The figures above would be right, too, where nothing is lean."""
    output = Walk(network(), vocabulary=vocabulary(), lean=True).run(leaf(torch.randn(1, 3, 32, 32)).clone())
    assert isinstance(output.grad_fn, _Lean._backward_cls)
