"""Shorter ways through convolutions: the same sums, taken where torch's way is long, and nowhere else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import attribkit as ak
from attribkit.engine.lean import convolutions, shortcuts, store
from attribkit.engine.lean.shortcuts import Settings, blocks, product_back, product_up, scattered, scattered_by_pixels

pytestmark = pytest.mark.usefixtures("one_thread", "lean_everywhere")

has_vectors = pytest.mark.skipif(
    not shortcuts.has_vectors(), reason="torch has no vector instructions of oneDNN's on this machine"
)


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def single(*shape, seed=0):
    return noise(*shape, seed=seed, dtype=torch.float32)


def oracle(x, weight, stride, padding=0):
    """The output of a convolution, a signal at it, and what autograd makes of that."""
    x = x.clone().requires_grad_()
    output = F.conv2d(x, weight, stride=stride, padding=padding)
    signal = noise(*output.shape, seed=2, dtype=x.dtype)
    return output.detach(), signal, torch.autograd.grad(output, x, signal)[0]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * float(expected.abs().max() + 1))
    assert found.stride() == expected.stride()


# -- the sums ----------------------------------------------------------------------------------------------------------


@st.composite
def convolution(draw):
    """Sizes, kernel, padding by dimension, one stride, channels and samples; at least one window."""
    kernel = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    padding = draw(st.tuples(st.integers(0, 8), st.integers(0, 8)))
    least = [max(1, k - 2 * p) for k, p in zip(kernel, padding, strict=True)]
    size = tuple(draw(st.integers(low, low + 12)) for low in least)
    return size, kernel, padding, draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 3))


@settings(deadline=None, max_examples=200)
@given(convolution(), st.sampled_from([1, 1 << 22]))
def test_blocks_are_the_derivative(case, part):
    """For kernels, strides and paddings of any size, windows that leave borders out included."""
    size, kernel, padding, stride, channels, count = case
    weight = noise(4, channels, *kernel, seed=1)
    _, signal, expected = oracle(noise(count, channels, *size), weight, stride, padding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shortcuts, "_PART", part)
        found = blocks(signal, weight, Settings((stride, stride), padding, size))
    close(found, expected)


@settings(deadline=None)
@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.integers(1, 3),
)
def test_scattered_products_are_the_derivative(size, stride, count):
    weight = noise(4, 3, 1, 1, seed=1)
    _, signal, expected = oracle(noise(count, 3, *size), weight, stride)
    for way in (scattered, scattered_by_pixels):
        close(way(signal, weight, Settings(stride, (0, 0), size)), expected)


@pytest.mark.parametrize("count", [1, 3])
def test_products_are_the_convolution_and_its_derivative(count):
    x, weight = noise(count, 6, 5, 7), noise(4, 6, 1, 1, seed=1)
    output, signal, expected = oracle(x, weight, 1)
    close(product_up(x, weight, Settings((1, 1), (0, 0), (5, 7))), output)
    close(product_back(signal, weight, Settings((1, 1), (0, 0), (5, 7))), expected)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_no_number_goes_torchs_way(value):
    """The kernel of the blocks has zeros where torch's has nothing, and they would make it spread."""
    weight, signal = single(4, 3, 3, 3), single(1, 4, 6, 6)
    case = Settings((2, 2), (1, 1), (12, 12))
    assert blocks(signal, weight, case) is not None
    signal[0, 1, 2, 3] = value
    assert blocks(signal, weight, case) is None


@has_vectors
def test_an_infinite_signal_reaches_the_windows_that_it_is_in():
    layer = nn.Conv2d(3, 8, 7, 2, 3)

    class Model(nn.Module):
        def forward(self, x):
            y = layer(x)
            return (y.flatten(1) * torch.where(torch.arange(y[0].numel()) == 5000, float("inf"), 1)).sum(1)[:, None]

    x = single(1, 3, 224, 224).requires_grad_()
    (expected,) = torch.autograd.grad(Model()(x).sum(), x)
    model = Model()
    found = [ak.attribute(model, x.detach(), "gradient", 0).values for _ in range(3)][-1]
    assert 0 < int((~expected.isfinite()).sum()) < 200
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


# -- where they are taken ----------------------------------------------------------------------------------------------

PHOTO = (1, 3, 224, 224)
TAKEN = {
    "ResNet's first": (PHOTO, nn.Conv2d(3, 64, 7, 2, 3), (blocks,)),
    "AlexNet's first": (PHOTO, nn.Conv2d(3, 64, 11, 4, 2), (blocks,)),
    "patches of a ViT": (PHOTO, nn.Conv2d(3, 192, 16, 16), (blocks,)),
    "MobileNet's first": (PHOTO, nn.Conv2d(3, 32, 3, 2, 1), ()),
    "VGG's first": (PHOTO, nn.Conv2d(3, 64, 3, 1, 1), ()),
    "many channels": ((2, 64, 56, 56), nn.Conv2d(64, 128, 3, 2, 1), ()),
    "two strides": (PHOTO, nn.Conv2d(3, 64, 7, (2, 3), 3), ()),
    "dilated": (PHOTO, nn.Conv2d(3, 64, 7, 2, 3, dilation=2), ()),
    "grouped": (PHOTO, nn.Conv2d(3, 63, 7, 2, 3, groups=3), ()),
    "small": ((1, 3, 64, 64), nn.Conv2d(3, 64, 7, 2, 3), ()),
    "float64": (PHOTO, nn.Conv2d(3, 64, 7, 2, 3).double(), ()),
    "channels last": (PHOTO, nn.Conv2d(3, 64, 7, 2, 3).to(memory_format=torch.channels_last), ()),
    "a shortcut of ResNet": ((1, 64, 56, 56), nn.Conv2d(64, 128, 1, 2), (scattered, scattered_by_pixels)),
    "a shortcut with padding": ((1, 64, 56, 56), nn.Conv2d(64, 128, 1, 2, 1), ()),
    "large maps": ((4, 16, 112, 112), nn.Conv2d(16, 96, 1), (product_back,)),
    "too large for a trial": ((64, 3, 224, 224), nn.Conv2d(3, 64, 7, 2, 3), ()),
    "large maps, few places": ((32, 192, 28, 28), nn.Conv2d(192, 32, 1), ()),
    "maps of few channels": ((1, 16, 112, 112), nn.Conv2d(16, 16, 1), ()),
    "large maps, grouped": ((4, 16, 112, 112), nn.Conv2d(16, 96, 1, groups=2), ()),
    "large maps, channels last": (
        (4, 16, 112, 112),
        nn.Conv2d(16, 96, 1).to(memory_format=torch.channels_last),
        (),
    ),
}


def step_of(x, layer):
    names = ("stride", "padding", "dilation", "groups", "bias")
    return convolutions.Convolution(x, layer.weight, {name: getattr(layer, name) for name in names})


@has_vectors
@pytest.mark.parametrize("name", TAKEN)
def test_it_is_taken_where_torchs_way_is_long(name):
    shape, layer, ways = TAKEN[name]
    found = step_of(torch.zeros(shape, dtype=layer.weight.dtype), layer).shortcut
    assert (() if found is None else found.ways_back) == ways
    assert (found.ways_up if found else ()) == ((product_up,) if ways == (product_back,) else ())


@has_vectors
def test_an_image_with_channels_last_goes_torchs_way():
    _, layer, _ = TAKEN["ResNet's first"]
    assert step_of(torch.zeros(PHOTO).contiguous(memory_format=torch.channels_last), layer).shortcut is None


@pytest.mark.parametrize("name", ["ResNet's first", "a shortcut of ResNet", "large maps"])
def test_a_wish_for_coarser_products_is_none_for_coarser_convolutions(name):
    shape, layer, _ = TAKEN[name]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert step_of(torch.zeros(shape), layer).shortcut is None
    finally:
        torch.set_float32_matmul_precision(before)


@has_vectors
def test_blocks_are_for_onednn():
    shape, layer, _ = TAKEN["ResNet's first"]
    torch._C._set_mkldnn_enabled(False)
    try:
        assert step_of(torch.zeros(shape), layer).shortcut is None
    finally:
        torch._C._set_mkldnn_enabled(True)


def test_blocks_are_for_machines_that_have_vectors(monkeypatch):
    shape, layer, _ = TAKEN["ResNet's first"]
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert step_of(torch.zeros(shape), layer).shortcut is None


SIGNALS = {
    "channels last": lambda signal: signal.contiguous(memory_format=torch.channels_last),
    "negated": lambda signal: torch._neg_view(-signal),
    "expanded": lambda signal: signal[:, :, :1, :1].expand_as(signal),
}


@has_vectors
@torch.no_grad()
@pytest.mark.parametrize("kind", SIGNALS)
def test_signals_that_lie_otherwise_go_torchs_way(kind, monkeypatch):
    """And come out as they would have."""
    _, layer, _ = TAKEN["ResNet's first"]
    step, weight = step_of(torch.zeros(PHOTO), layer), layer.weight.detach()
    asked = []
    monkeypatch.setattr(shortcuts, "way_for", lambda *_, **kwargs: asked.append(kind))
    signal = single(1, 64, 112, 112)
    step.back(signal, (weight,))
    assert asked.pop() == kind
    other = SIGNALS[kind](signal)
    expected = step._back(other.clone(memory_format=torch.contiguous_format), weight)
    assert torch.equal(step.back(other, (weight,)), expected)
    assert not asked


def test_second_derivatives_go_torchs_way(monkeypatch):
    _, layer, _ = TAKEN["a shortcut of ResNet"]
    step = step_of(torch.zeros(1, 64, 56, 56), layer)
    monkeypatch.setattr(shortcuts, "way_for", lambda *_, **kwargs: pytest.fail("asked"))
    signal = single(1, 128, 28, 28).requires_grad_()
    with torch.enable_grad():
        assert step.back(signal, (layer.weight.detach(),)).requires_grad


INVALID = {
    "no stride": ({"stride": 0}, 64, "stride"),
    "too many strides": ({"stride": (2, 2, 2)}, 64, "stride"),
    "too many paddings": ({"padding": (2, 2, 2)}, 64, "padding"),
    "other channels": ({}, 63, "channels"),
}


@pytest.mark.parametrize("kernel", [1, 7])
@pytest.mark.parametrize("name", INVALID)
def test_what_torch_refuses_is_refused_by_torch(name, kernel):
    kwargs, channels, word = INVALID[name]
    weight = torch.zeros(32, channels, kernel, kernel)

    class Model(nn.Module):
        def forward(self, x):
            return F.conv2d(x, weight, **kwargs).mean((2, 3))

    with pytest.raises(RuntimeError, match=word) as ours:
        ak.attribute(Model(), torch.zeros(4, 64, 56, 56), "gradient", 0)
    with pytest.raises(RuntimeError) as torchs:
        Model()(torch.zeros(4, 64, 56, 56))
    assert str(torchs.value) in str(ours.value)


# -- through the front door --------------------------------------------------------------------------------------------


class Stem(nn.Module):
    """What the three ways are for, one after the other."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16)
        self.wide, self.narrow = nn.Conv2d(16, 96, 1, bias=False), nn.Conv2d(96, 16, 1)
        self.down = nn.Conv2d(16, 32, 1, 2)

    def forward(self, x):
        y = self.narrow(self.wide(self.norm(self.first(x)).relu()).relu())
        return self.down(y).mean((2, 3))


@pytest.fixture
def taken(monkeypatch):
    """Every way counts as torch's to the bit; which were taken, in order."""
    names = []

    def way_for(torchs, ways, settings, maps, weight, *, library):
        names.append(ways[0].__name__)
        return ways[0]

    monkeypatch.setattr(shortcuts, "way_for", way_for)
    return names


@has_vectors
@pytest.mark.parametrize("method", ["gradient", "guided_backprop", "deconvnet"])
def test_attributions_are_those_without_shortcuts(method, taken, monkeypatch):
    model, x = Stem().eval(), single(8, 3, 224, 224)
    found = ak.attribute(model, x, method, 1)
    assert taken == ["product_up", "scattered", "product_back", "product_back", "blocks"]
    monkeypatch.setattr(shortcuts, "shortcut", lambda *_: None)
    expected = ak.attribute(model, x, method, 1)
    for mine, other in ((found.scores, expected.scores), (found.values, expected.values)):
        torch.testing.assert_close(mine, other, rtol=0, atol=2e-6 * float(other.abs().max()))
    assert len(taken) == 5


@pytest.mark.parametrize("threads", [1, 2])
def test_all_calls_give_autograds_bits(threads):
    """The first goes torch's way, the second makes the trials and goes by what they find, as the third does."""
    torch.set_num_threads(threads)  # set back by the fixture
    model, x = Stem().eval(), single(8, 3, 224, 224).requires_grad_()
    scores = model(x)[:, 1]
    (expected,) = torch.autograd.grad(scores.sum(), x)
    for _ in range(3):
        found = ak.attribute(model, x.detach(), "gradient", 1)
        assert torch.equal(found.scores, scores)
        assert torch.equal(found.values, expected)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(64, 128, 256, 32), (4, 128, 1, 112), (2, 16, 96, 160)])
def test_scores_are_the_models_to_the_bit(shape, threads):
    """Of large 1×1 convolutions torch adds in another order for another batch; a maximum shows it."""
    count, channels, out, size = shape
    torch.manual_seed(0)
    layers = nn.Conv2d(3, channels, 1), nn.ReLU(), nn.Conv2d(channels, out, 1, bias=False)
    model = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten()).eval()
    x = torch.randn(count, 3, size, size)
    torch.set_num_threads(threads)  # set back by the fixture
    for _ in range(3):
        assert torch.equal(ak.attribute(model, x, "gradient", 0).scores, model(x)[:, 0].detach())


def test_a_bias_is_added_by_torch(taken):
    """Ours would be added after rounding."""
    x = single(8, 16, 112, 112)
    for bias in (True, False):
        assert "product_up" not in taken
        model = nn.Sequential(nn.Conv2d(16, 96, 1, bias=bias), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
        ak.attribute(model, x, "gradient", 1)
    assert "product_up" in taken


@has_vectors
def test_a_large_image_goes_in_bands():
    """So that nothing of the signal's size is there besides."""
    weight = noise(64, 3, 7, 7)
    _, signal, expected = oracle(noise(1, 3, 512, 64), weight, 2, 3)
    sizes, real = [], F.conv2d
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shortcuts, "_PART", signal.numel() * 8 // 16)
        patch.setattr(F, "conv2d", lambda x, *args, **kwargs: sizes.append(x.numel()) or real(x, *args, **kwargs))
        found = blocks(signal, weight, Settings((2, 2), (3, 3), (512, 64)))
    assert len(sizes) == 16
    assert max(sizes) <= signal.numel() // 16 + 3 * 64 * 32
    close(found, expected)


def test_large_products_lie_on_large_pages(monkeypatch):
    asked = []
    monkeypatch.setattr(store, "_advise", lambda: lambda *call: asked.append(call))
    product_up(single(8, 16, 112, 112), single(96, 16, 1, 1), Settings((1, 1), (0, 0), (112, 112)))
    assert [size for _, size, _ in asked] == [pytest.approx(8 * 96 * 112 * 112 * 4, abs=2 * 4096)]
