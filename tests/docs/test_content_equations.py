"""The equations of docs/methods.md, written out by hand, give attribkit's maps.

Nothing here comes from torch's own derivatives, convolutions or pools: operations are matrices and loops over places,
so that a mistake shared with autograd would show. Symbols are the page's: z = Wx + b, r = σ(z), p_j = max r_i over the
window, s_j the switch, R the signal.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

import attribkit as ak

TOLERANCE = 1e-12
CLASS = 1


class Tiny(nn.Module):
    """conv, relu, overlapping max pool, contrast norm, conv, batch norm, relu, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 3, 3, padding=1)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(3, 2)
        self.norm1 = nn.LocalResponseNorm(2)
        self.conv2 = nn.Conv2d(3, 4, 2)
        self.bn2 = nn.BatchNorm2d(4)
        self.relu2 = nn.ReLU()
        self.fc = nn.Linear(4 * 2 * 3, 3)

    def forward(self, x):
        x = self.norm1(self.pool1(self.relu1(self.conv1(x))))
        return self.fc(self.relu2(self.bn2(self.conv2(x))).flatten(1))


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model():
    made = Tiny().double().eval()
    with torch.no_grad():
        for seed, parameter in enumerate(made.parameters()):
            parameter.copy_(random(*parameter.shape, seed=seed))
        made.bn2.running_mean.copy_(random(4, seed=20))
        made.bn2.running_var.copy_(random(4, seed=21).abs() + 0.5)
    return made


@pytest.fixture(scope="module")
def x():
    return random(1, 2, 7, 9, seed=30)


# -- the operations, by hand -------------------------------------------------------------------------------------------


def places(height, width):
    return list(itertools.product(range(height), range(width)))


def matrix(conv, shape):
    """W as a matrix [outputs, inputs], and the shape of the output: one entry for each weight and place."""
    weight, (channels, height, width) = conv.weight.detach(), shape
    kernel, pad = conv.kernel_size[0], conv.padding[0]
    rows, columns = height + 2 * pad - kernel + 1, width + 2 * pad - kernel + 1
    found = torch.zeros(len(weight), rows, columns, channels, height, width, dtype=weight.dtype)
    for k, (y, x), c, (dy, dx) in itertools.product(
        range(len(weight)), places(rows, columns), range(channels), places(kernel, kernel)
    ):
        at = (y + dy - pad, x + dx - pad)
        if 0 <= at[0] < height and 0 <= at[1] < width:
            found[k, y, x, c, at[0], at[1]] = weight[k, c, dy, dx]
    return found.reshape(len(weight) * rows * columns, -1), (len(weight), rows, columns)


def pooled(r, size, stride):
    """p_j and s_j, the place of the first maximum of window j."""
    rows, columns = ((side - size) // stride + 1 for side in r.shape[1:])
    p = r.new_zeros(r.shape[0], rows, columns)
    switches = {}
    for c, (y, x) in itertools.product(range(len(r)), places(rows, columns)):
        window = [(y * stride + dy, x * stride + dx) for dy, dx in places(size, size)]
        best = max(window, key=lambda at: (r[c, at[0], at[1]].item(), -window.index(at)))
        p[c, y, x], switches[c, y, x] = r[c, best[0], best[1]], (c, *best)
    return p, switches


def unpooled(signal, switches, shape):
    """R_i = Σ over j with s_j = i of R_j: windows overlap, so that some places are met more than once."""
    found = signal.new_zeros(shape)
    for j, i in switches.items():
        found[i] += signal[j]
    return found


class Forward:
    """One forward pass of `Tiny`, everything kept."""

    def __init__(self, model, x):
        self.model, x = model, x[0]
        self.w1, shape1 = matrix(model.conv1, x.shape)
        bias = model.conv1.bias.detach().repeat_interleave(shape1[1] * shape1[2])
        self.z1 = (self.w1 @ x.flatten() + bias).view(shape1)
        self.r1 = self.z1.clamp(min=0)
        self.p1, self.switches = pooled(self.r1, 3, 2)
        self.n1, self.n1_back = contrast_norm(self.p1, model.norm1)
        self.w2, shape2 = matrix(model.conv2, self.n1.shape)
        bias = model.conv2.bias.detach().repeat_interleave(shape2[1] * shape2[2])
        conv2 = (self.w2 @ self.n1.flatten() + bias).view(shape2)
        bn = model.bn2
        self.scale = (bn.weight.detach() / torch.sqrt(bn.running_var + bn.eps))[:, None, None]
        self.z2 = self.scale * (conv2 - bn.running_mean[:, None, None]) + bn.bias.detach()[:, None, None]
        self.r2 = self.z2.clamp(min=0)
        self.scores = model.fc.weight.detach() @ self.r2.flatten() + model.fc.bias.detach()

    def back(self, signal, rectifier, *, skip_norm, from_fc=True):
        """Carry a signal at the scores (or at relu2's output) to the pixels."""
        if from_fc:
            signal = self.model.fc.weight.detach().T @ signal
        signal = rectifier(self.z2, signal.view(self.z2.shape)) * self.scale
        signal = (self.w2.T @ signal.flatten()).view(self.n1.shape)
        signal = signal if skip_norm else self.n1_back(signal)
        signal = rectifier(self.z1, unpooled(signal, self.switches, self.z1.shape))
        return (self.w1.T @ signal.flatten()).view(1, 2, 7, 9)


def contrast_norm(p, layer):
    """torch's own definition: p over (k + α/n · the sum of squares of n maps around)^β, and its derivative by hand."""
    n, alpha, beta, k = layer.size, layer.alpha, layer.beta, layer.k
    near = [range(max(0, c - n // 2), min(len(p), c + (n - 1) // 2 + 1)) for c in range(len(p))]
    base = torch.stack([k + alpha / n * sum(p[d] ** 2 for d in near[c]) for c in range(len(p))])

    def back(signal):
        found = signal / base**beta
        for c, d in itertools.product(range(len(p)), range(len(p))):
            if d in near[c]:
                found[d] = found[d] - signal[c] * p[c] * beta * base[c] ** (-beta - 1) * alpha / n * 2 * p[d]
        return found

    return p / base**beta, back


def one(number, size=3):
    found = torch.zeros(size, dtype=torch.float64)
    found[number] = 1
    return found


def assert_equal(found, expected):
    assert expected.abs().max() > 0, "zeros compare nothing"
    assert (expected != 0).double().mean() > 0.1
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


# -- the page's equations ----------------------------------------------------------------------------------------------


RECTIFIERS = {
    "gradient": lambda z, signal: (z > 0) * signal,
    "guided_backprop": lambda z, signal: (z > 0) * signal.clamp(min=0),
    "deconvnet": lambda z, signal: signal.clamp(min=0),
}


def test_the_forward_pass_by_hand_is_the_models(model, x):
    by_hand = Forward(model, x)
    assert_equal(by_hand.scores, model(x)[0].detach())
    shared = [s for s in by_hand.switches.values() if list(by_hand.switches.values()).count(s) > 1]
    assert shared, "no switch is shared by two windows, so that nothing is said about overlaps"
    assert (by_hand.z1 < 0).any()
    assert 0 < (by_hand.z2 > 0).double().mean() < 1


@pytest.mark.parametrize("method", RECTIFIERS)
def test_a_class_score(model, x, method):
    expected = Forward(model, x).back(one(CLASS), RECTIFIERS[method], skip_norm=method == "deconvnet")
    found = ak.attribute(model, x, method, CLASS)
    assert_equal(found.values, expected)
    assert found.values.min() < 0 < found.values.max()  # signed, the deconvnet too


def test_the_methods_differ_here(model, x):
    maps = [ak.attribute(model, x, method, CLASS).values for method in RECTIFIERS]
    for a, b in itertools.combinations(maps, 2):
        assert (a - b).abs().max() > 0.01 * a.abs().max()


@pytest.mark.parametrize("position", ["max", (1, 2), "all"])
@pytest.mark.parametrize("method", RECTIFIERS)
def test_a_unit_starts_as_1_and_for_the_deconvnet_as_its_own_activation(model, x, method, position):
    by_hand, channel = Forward(model, x), 2
    start = torch.zeros_like(by_hand.r2)
    if position == "all":
        start[channel] = 1
    else:
        at = divmod(int(by_hand.r2[channel].argmax()), by_hand.r2.shape[2]) if position == "max" else position
        start[channel, at[0], at[1]] = 1
    if method == "deconvnet":
        start = start * by_hand.r2
    expected = by_hand.back(start, RECTIFIERS[method], skip_norm=method == "deconvnet", from_fc=False)
    assert_equal(ak.attribute(model, x, method, ak.Unit("relu2", channel, position)).values, expected)


@pytest.mark.parametrize(
    ("activation", "derivative"),
    [
        (nn.LeakyReLU(0.2), lambda z: (1 + 4 * (z > 0).to(z)) / 5),
        (nn.ReLU6(), lambda z: ((z > 0) & (z < 6)).double()),
        (nn.SiLU(), lambda z: torch.sigmoid(z) * (1 + z * (1 - torch.sigmoid(z)))),
        (nn.GELU(), lambda z: 0.5 * (1 + torch.erf(z / 2**0.5)) + z * torch.exp(-(z**2) / 2) / (2 * math.pi) ** 0.5),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_other_rectifiers_have_their_own_derivative(activation, derivative):
    first, second = nn.Linear(4 * 6, 16).double(), nn.Linear(16, 2).double()
    with torch.no_grad():
        for seed, parameter in enumerate([*first.parameters(), *second.parameters()]):
            parameter.copy_(random(*parameter.shape, seed=seed))
    model, x = nn.Sequential(nn.Flatten(), first, activation, second).eval(), random(1, 1, 4, 6, seed=9)
    z, start = (first(x.flatten(1))[0]).detach(), second.weight.detach()[1]
    rules = {
        "gradient": derivative(z) * start,
        "guided_backprop": derivative(z) * start.clamp(min=0),
        "deconvnet": start.clamp(min=0),
    }
    for method, signal in rules.items():
        expected = (first.weight.detach().T @ signal).view_as(x)
        assert_equal(ak.attribute(model, x, method, 1).values, expected)


@pytest.mark.parametrize(
    ("window", "stride", "fill"), [((3, 4), (2, 3), 0.0), ((5, 5), (1, 2), -0.5), ((2, 2), (3, 3), 0)]
)
def test_occlusion(model, x, window, stride, fill):
    height, width = x.shape[-2:]

    def starts(size, side, step):
        found = [0]
        while found[-1] + side < size and found[-1] + step < size:
            found.append(found[-1] + step)
        return found

    with torch.no_grad():
        clean = model(x)[0, CLASS]
        drops, covered = torch.zeros(height, width, dtype=x.dtype), torch.zeros(height, width, dtype=x.dtype)
        rows, columns = starts(height, window[0], stride[0]), starts(width, window[1], stride[1])
        scores = torch.zeros(len(rows), len(columns), dtype=x.dtype)
        for (i, top), (j, left) in itertools.product(enumerate(rows), enumerate(columns)):
            occluded = x.clone()
            occluded[:, :, top : top + window[0], left : left + window[1]] = fill
            scores[i, j] = model(occluded)[0, CLASS]
            drops[top : top + window[0], left : left + window[1]] += clean - scores[i, j]
            covered[top : top + window[0], left : left + window[1]] += 1
    expected = torch.where(covered > 0, drops / covered.clamp(min=1), 0.0).expand(1, 2, -1, -1)
    found = ak.attribute(model, x, "occlusion", CLASS, window=window, stride=stride, fill=fill)
    assert_equal(found.values, expected)
    assert_equal(found.extras["score_map"][0], scores)


def test_the_default_window_is_a_seventh_and_its_stride_half_of_that(model, x):
    found = ak.attribute(model, x, "occlusion", CLASS).values
    side = math.ceil(min(x.shape[-2:]) / 7)
    assert torch.equal(found, ak.attribute(model, x, "occlusion", CLASS, window=side, stride=max(1, side // 2)).values)
