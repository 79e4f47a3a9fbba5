"""The shelf's equations in docs/methods.md, written out by hand, give the maps of the distributions under plugins/.

Each distribution has tests of its own against another library; here the page's formulas are taken literally. The
classes are imported from the checkout, so that nothing need be installed.
"""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path

import pytest
import torch
from test_content_equations import assert_equal, matrix, random, unpooled
from test_content_equations import pooled as pool
from torch import nn

import attribkit as ak

ROOT = Path(__file__).parents[2]
CLASS = 1


class Net(nn.Module):
    """conv, relu, conv, relu, overlapping max pool, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 3, 3, padding=1)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(3, 4, 2)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(3, 2)
        self.fc = nn.Linear(4 * 2 * 3, 3)

    def forward(self, x):
        return self.fc(self.pool2(self.relu2(self.conv2(self.relu1(self.conv1(x))))).flatten(1))


@pytest.fixture(scope="module")
def model():
    made = Net().double().eval()
    with torch.no_grad():
        for seed, parameter in enumerate(made.parameters()):
            parameter.copy_(random(*parameter.shape, seed=seed))
    return made


@pytest.fixture(scope="module")
def x():
    return random(1, 2, 6, 8, seed=30)


@pytest.fixture
def shelf(monkeypatch):
    def take(distribution, module):
        monkeypatch.syspath_prepend(str(ROOT / "plugins" / f"attribkit-{distribution}" / "src"))
        return importlib.import_module(f"attribkit_{distribution}.{module}")

    return take


def gradient(model, x, number=CLASS):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model(x)[:, number].sum(), x)[0]


# -- class activation maps ---------------------------------------------------------------------------------------------


def bilinear(values, height, width):
    """Enlarge [h, w]: pixel i lies at (i + 1/2)·h/H − 1/2 of the small map, places beyond its border at the border."""

    def weights(size, to):
        found = torch.zeros(to, size, dtype=values.dtype)
        for i in range(to):
            at = min(max((i + 0.5) * size / to - 0.5, 0), size - 1)
            low = min(int(at), size - 1)
            found[i, low] += 1 - (at - low)
            found[i, min(low + 1, size - 1)] += at - low
        return found

    return weights(values.shape[0], height) @ values @ weights(values.shape[1], width).T


@pytest.mark.parametrize("name", ["GradCam", "GradCamPlusPlus", "LayerCam"])
def test_class_activation_maps(model, x, shelf, name):
    activations = model.relu2(model.conv2(model.relu1(model.conv1(x)))).detach().requires_grad_()
    score = model.fc(model.pool2(activations).flatten(1))[0, CLASS]
    (g,) = torch.autograd.grad(score, activations)
    a, g = activations.detach()[0], g[0]
    if name == "GradCam":
        found = (g.mean((1, 2), keepdim=True) * a).sum(0)
    elif name == "LayerCam":
        found = (g.clamp(min=0) * a).sum(0)
    else:
        alpha = torch.where(g == 0, 0.0, g**2 / (2 * g**2 + g**3 * a.sum((1, 2), keepdim=True) + 1e-6))
        found = ((alpha * g.clamp(min=0)).sum((1, 2), keepdim=True) * a).sum(0)
    expected = bilinear(found.clamp(min=0), *x.shape[-2:])
    method = getattr(shelf("cam", "methods"), name)()
    assert_equal(ak.attribute(model, x, method, CLASS, layer="relu2").heatmap()[0], expected)


# -- relevance propagation ---------------------------------------------------------------------------------------------


def stabilised(z):
    return z + 1e-6 * torch.where(z < 0, -1.0, 1.0).to(z)


def plus(t):
    return t.clamp(min=0)


def minus(t):
    return t.clamp(max=0)


def epsilon(w, b, x, signal):
    return x * (w.T @ (signal / stabilised(w @ x + b)))


def signed(w, b, x, signal, same, other):
    shared = signal / stabilised(same(w) @ plus(x) + other(w) @ minus(x) + same(b))
    return plus(x) * (same(w).T @ shared) + minus(x) * (other(w).T @ shared)


def z_plus(w, b, x, signal):
    return signed(w, b, x, signal, plus, minus)


def alpha_beta(w, b, x, signal):
    return 2 * signed(w, b, x, signal, plus, minus) - signed(w, b, x, signal, minus, plus)


def gamma(w, b, x, signal):
    z = w @ x + b

    def more(t):
        return t + 0.25 * plus(t)

    def less(t):
        return t + 0.25 * minus(t)

    return signed(w, b, x, signal * (z > 0), more, less) + signed(w, b, x, signal * (z < 0), less, more)


def flat(w, b, x, signal):
    ones = (w != 0).to(w)
    return ones.T @ (signal / stabilised(ones @ torch.ones_like(x)))


def box(w, b, x, signal):
    low, high = x.min(), x.max()
    ones = torch.ones_like(x)
    z = w @ x + b - (plus(w) @ ones * low + plus(b)) - (minus(w) @ ones * high + minus(b))
    shared = signal / stabilised(z)
    return x * (w.T @ shared) - low * (plus(w).T @ shared) - high * (minus(w).T @ shared)


RULES = {  # first convolution, second convolution; the linear layer has ε everywhere
    "LrpEpsilon": (epsilon, epsilon),
    "LrpEpsilonPlusFlat": (flat, z_plus),
    "LrpEpsilonGammaBox": (box, gamma),
    "LrpEpsilonAlpha2Beta1": (alpha_beta, alpha_beta),
}


@pytest.mark.parametrize("name", RULES)
def test_relevance_propagation(model, x, shelf, name):
    first, second = RULES[name]
    w1, shape1 = matrix(model.conv1, x.shape[1:])
    w2, shape2 = matrix(model.conv2, shape1)
    b1, b2 = (
        conv.bias.detach().repeat_interleave(shape[1] * shape[2])
        for conv, shape in ((model.conv1, shape1), (model.conv2, shape2))
    )
    r1 = plus(w1 @ x.flatten() + b1)
    r2 = plus(w2 @ r1 + b2).view(shape2)
    p, switches = pool(r2, 3, 2)
    w, b = model.fc.weight.detach(), model.fc.bias.detach()
    scores = w @ p.flatten() + b
    signal = torch.zeros_like(scores)
    signal[CLASS] = scores[CLASS]  # the relevance starts as the score
    signal = epsilon(w, b, p.flatten(), signal).view(p.shape)
    signal = unpooled(signal, switches, shape2).flatten()  # max pools keep their derivative, rectifiers hand it on
    expected = first(w1, b1, x.flatten(), second(w2, b2, r1, signal)).view_as(x)
    found = ak.attribute(model, x, getattr(shelf("lrp", "composites"), name)(), CLASS).values
    assert (found - expected).abs().max() <= 1e-9 * expected.abs().max()  # sums near zero are divided by
    assert (expected != 0).double().mean() > 0.5


# -- paths and noise ---------------------------------------------------------------------------------------------------


def test_integrated_gradients(model, x, shelf):
    start, steps = random(1, 2, 6, 8, seed=31), 7
    mean = sum(gradient(model, start + (i + 0.5) / steps * (x - start)) for i in range(steps)) / steps
    expected = (x - start) * mean
    method = shelf("paths", "paths").IntegratedGradients()
    found = ak.attribute(model, x, method, CLASS, baseline=start, steps=steps, rule="riemann_middle")
    assert_equal(found.values, expected)
    with torch.no_grad():
        delta = expected.sum() - (model(x) - model(start))[0, CLASS]
    torch.testing.assert_close(found.extras["convergence_delta"][0], delta)


def test_input_x_gradient(model, x, shelf):
    found = ak.attribute(model, x, shelf("paths", "paths").InputXGradient(), CLASS).values
    assert_equal(found, x * gradient(model, x))


def test_noise(model, x, shelf):
    """The copies are drawn by torch's own normal generator from the seed: all else is the page's formula."""
    samples, deviation = 5, 0.3
    generator = torch.Generator().manual_seed(4)
    drawn = torch.randn(samples, *x.shape[1:], generator=generator, dtype=torch.float64)
    maps = torch.cat([gradient(model, x + deviation * noise) for noise in drawn])
    options = {"samples": samples, "deviation": deviation, "seed": 4}
    noise = shelf("paths", "noise")
    assert_equal(ak.attribute(model, x, noise.SmoothGrad(), CLASS, **options).values[0], maps.mean(0))
    variance = ((maps - maps.mean(0)) ** 2).sum(0) / samples
    found = ak.attribute(model, x, noise.VarGrad(), CLASS, **options).values[0]
    torch.testing.assert_close(found, variance, rtol=1e-9, atol=1e-12 * float(variance.max()))


def test_expected_gradients(model, x, shelf):
    background, samples = random(4, 2, 6, 8, seed=40), 6
    method = shelf("paths", "paths").ExpectedGradients()
    found = ak.attribute(model, x, method, CLASS, background=background, samples=samples, seed=3).values
    generator = torch.Generator().manual_seed(3)
    chosen = torch.randint(len(background), (samples,), generator=generator)
    alphas = torch.rand(samples, generator=generator, dtype=torch.float64)
    terms = [
        (x - background[k]) * gradient(model, background[k] + alpha * (x - background[k]))
        for k, alpha in zip(chosen, alphas, strict=True)
    ]
    assert_equal(found, sum(terms) / samples)


def test_every_table_of_the_page_names_a_method_there_is():
    """The methods that docs/methods.md gives an equation for are those of the distributions, and all of them."""
    page = (ROOT / "docs" / "methods.md").read_text("utf-8")
    for distribution in ("cam", "lrp", "paths"):
        source = (
            ROOT / "plugins" / f"attribkit-{distribution}" / "src" / f"attribkit_{distribution}" / "__init__.py"
        ).read_text()
        names = [
            line.strip().split('"')[1]
            for line in itertools.takewhile(lambda text: text != "}", source.split("_METHODS = {")[1].splitlines())
            if line.startswith('    "') and line.endswith("(")
        ]
        assert names
        assert not [name for name in names if f"`{name}`" not in page]
