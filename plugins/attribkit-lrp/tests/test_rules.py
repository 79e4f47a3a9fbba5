"""Each rule is its equation, worked out contribution by contribution."""

import pytest
import torch
import torch.nn.functional as F
from attribkit_lrp.composites import Composite, table
from attribkit_lrp.rules import AlphaBeta, Box, Epsilon, Flat, Gamma, Pass, Rule, WSquare, ZPlus
from torch import nn

import attribkit as ak
from attribkit.errors import InputError

EPS = 1e-6


def seeded(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stable(z):
    return z + (EPS if z >= 0 else -EPS)


def parts(x, w, b):
    """Return the positive and the negative contributions of one output, and the bias as the last."""
    products = [float(xi * wi) for xi, wi in zip(x, w, strict=True)]
    return [max(p, 0) for p in products], [min(p, 0) for p in products], max(float(b), 0), min(float(b), 0)


def expected(rule, x, w, b, relevance):
    """Return the relevance [inputs] by the rule's equation, output by output."""
    w, b = w.detach(), b.detach()
    total = [0.0] * len(x)
    for wj, bj, rj in zip(w, b, relevance, strict=True):
        z = float(wj @ x + bj)
        up, down, b_up, b_down = parts(x, wj, bj)
        if isinstance(rule, Epsilon):
            shares = [float(wi * xi) / stable(z) for wi, xi in zip(wj, x, strict=True)]
        elif isinstance(rule, ZPlus):
            shares = [p / stable(sum(up) + b_up) for p in up]
        elif isinstance(rule, AlphaBeta):
            over, under = stable(sum(up) + b_up), stable(sum(down) + b_down)
            shares = [rule.alpha * p / over - rule.beta * n / under for p, n in zip(up, down, strict=True)]
        elif isinstance(rule, Gamma):
            favoured = 1 + rule.gamma
            if z > 0:
                # positive inputs with positive weights and negative ones with negative weights are favoured
                terms = [favoured * p + n for p, n in zip(up, down, strict=True)]
                bias = float(bj) + rule.gamma * b_up
            else:
                terms = [p + favoured * n for p, n in zip(up, down, strict=True)]
                bias = float(bj) + rule.gamma * b_down
            shares = [t / stable(sum(terms) + bias) for t in terms]
        elif isinstance(rule, WSquare):
            squares = [float(wi) ** 2 for wi in wj]
            shares = [s / stable(sum(squares) + float(bj) ** 2) for s in squares]
        elif isinstance(rule, Flat):
            shares = [1 / stable(len(x))] * len(x)
        else:
            low, high = float(rule.low), float(rule.high)
            terms = [
                float(wi * xi) - low * max(float(wi), 0) - high * min(float(wi), 0)
                for wi, xi in zip(wj, x, strict=True)
            ]
            shares = [t / stable(sum(terms) + float(bj) - b_up - b_down) for t in terms]
        total = [t + s * float(rj) for t, s in zip(total, shares, strict=True)]
    return torch.tensor(total, dtype=torch.float64)


RULES = [Epsilon(), ZPlus(), AlphaBeta(), AlphaBeta(1.0, 0.0), Gamma(), Gamma(2.0), WSquare(), Flat(), Box(-3.0, 3.0)]


class Only(Composite):
    name = "only"
    summary = "One rule for everything"

    def __init__(self, rule):
        self.inverse_layers = table(rule, rule)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{type(rule).__name__}-{vars(rule)}")
def test_a_linear_layer_shares_by_the_equation(rule):
    layer = nn.Linear(12, 3).double()
    with torch.no_grad():
        layer.weight.copy_(seeded(3, 12, seed=1))
        layer.bias.copy_(seeded(3, seed=2))
    model, x = nn.Sequential(nn.Flatten(), layer).eval(), seeded(1, 3, 2, 2)
    for k in range(3):
        found = ak.attribute(model, x, Only(rule), k).values.flatten()
        start = model(x)[0].detach() * F.one_hot(torch.tensor(k), 3)
        assert torch.allclose(
            found, expected(rule, x.flatten(), layer.weight, layer.bias, start), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{type(rule).__name__}-{vars(rule)}")
@pytest.mark.parametrize("transposed", [False, True])
def test_a_convolution_is_the_linear_layer_that_it_is(rule, transposed):
    if transposed:
        conv = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
        size = 3
    else:
        conv, size = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, dilation=1), 5
    norm = nn.BatchNorm2d(6)
    with torch.no_grad():
        conv.weight.copy_(seeded(*conv.weight.shape, seed=1))
        conv.bias.copy_(seeded(6, seed=2))
        norm.running_mean.copy_(seeded(6, seed=3))
        norm.running_var.copy_(seeded(6, seed=4) ** 2 + 0.5)
        norm.weight.copy_(seeded(6, seed=5))
        norm.bias.copy_(seeded(6, seed=6))
    model, x = nn.Sequential(conv, norm).double().eval(), seeded(1, 4, size, size)

    # the merged pair written out as one matrix
    with torch.no_grad():
        b = model(torch.zeros_like(x)).flatten()
        units = torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape[1:])
        w = (model(units).flatten(1) - b).T
        relevance = seeded(len(b), seed=7)

    def target(outputs):
        # its derivative, times the output, is the relevance
        return (outputs.flatten(1) * (relevance / model(x).detach().flatten())).sum(1)

    found = ak.attribute(model, x, Only(rule), target).values.flatten()
    if isinstance(rule, Flat):
        # what has no weight is outside the receptive field; at the border fewer inputs share
        merged = nn.Sequential(conv)
        with torch.no_grad():
            conv.weight.fill_(1.0)
            conv.bias.zero_()
            w = merged(units).flatten(1).T
        want = (w / (w.sum(1, keepdim=True) + EPS)).T @ relevance
    else:
        want = expected(rule, x.flatten(), w, b, relevance)
        if isinstance(rule, Box):
            assert not torch.allclose(want, torch.zeros_like(want))
    assert torch.allclose(found, want, rtol=1e-8, atol=1e-10)


class Residual(nn.Module):
    """Two convolutions with batch norm and a sum, an average pool, a linear layer; nothing has a bias."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(a, 4, 3, padding=1, bias=False) for a in (3, 4))
        self.norm1, self.norm2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3, bias=False)

    def forward(self, x):
        x = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(x))
        y += x
        return self.fc(F.adaptive_avg_pool2d(F.relu_(y), 1).flatten(1))


@pytest.mark.parametrize("name", ["lrp_epsilon", "lrp_epsilon_plus_flat", "lrp_epsilon_alpha2_beta1"])
def test_without_biases_relevance_is_conserved(name):
    torch.manual_seed(0)
    model = Residual().double().eval()
    for norm in (model.norm1, model.norm2):
        with torch.no_grad():
            norm.weight.copy_(seeded(4).abs() + 0.5)
    found = ak.attribute(model, seeded(2, 3, 6, 6), name, torch.tensor([0, 2]))
    assert torch.allclose(found.values.sum((1, 2, 3)), found.scores, rtol=2e-3)


def test_the_epsilon_rule_of_a_rectifier_network_is_input_times_gradient():
    torch.manual_seed(0)
    conv, fc = nn.Conv2d(3, 4, 3, bias=False), nn.Linear(64, 3, bias=False)
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), fc).double().eval()
    x = seeded(2, 3, 6, 6)
    found = ak.attribute(model, x, "lrp_epsilon", 1, epsilon=1e-12).values
    gradient = ak.attribute(model, x, "gradient", 1).values
    assert torch.allclose(found, x * gradient, rtol=1e-6, atol=1e-9)


def test_a_batch_norm_not_fed_by_a_convolution_is_passed():
    torch.manual_seed(0)
    norm, fc = nn.BatchNorm2d(3), nn.Linear(48, 3, bias=False)
    with torch.no_grad():
        norm.running_mean.copy_(seeded(3))
    x = seeded(1, 3, 4, 4)
    found = ak.attribute(nn.Sequential(norm, nn.Flatten(), fc).double().eval(), x, "lrp_epsilon", 1)
    assert torch.allclose(found.values.sum(), found.scores[0], rtol=1e-4)


def test_two_batch_norms_on_one_convolution_are_not_merged():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.one, self.two = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.conv(x)
            return torch.cat([self.one(x), self.two(x)], 1).mean((2, 3))

    torch.manual_seed(0)
    model, x = Twice().double().eval(), seeded(1, 3, 4, 4)
    found = ak.attribute(model, x, "lrp_epsilon", 1)
    z = model.conv(x)[:, 1]
    relevance = z / stable(z.mean()) / 16 * found.scores
    want = x * model.conv.weight[1] * (relevance / (z + EPS * z.sign()))[:, None]
    assert torch.allclose(found.values, want, rtol=1e-6)


def test_softmax_keeps_its_derivative_and_sigmoid_passes():
    class Gated(ak.InverseMethod):
        name = "gated"
        summary = "Only gates"
        inverse_layers = {"gate": Pass()}

    x = seeded(1, 3, 2, 2)
    plain = ak.attribute(nn.Sequential(nn.Flatten(), nn.Softmax(1)), x, "gradient", 1).values
    assert torch.equal(ak.attribute(nn.Sequential(nn.Flatten(), nn.Softmax(1)), x, Gated(), 1).values, plain)
    passed = ak.attribute(nn.Sequential(nn.Flatten(), nn.Sigmoid()), x, Gated(), 1).values
    assert passed.flatten().tolist() == [0.0, 1.0, *[0.0] * 10]


def test_a_unit_starts_as_its_activation():
    torch.manual_seed(0)
    model, x = Residual().double().eval(), seeded(1, 3, 6, 6)
    found = ak.attribute(model, x, "lrp_epsilon", ak.Unit("conv2", 1, (2, 3)))
    assert torch.allclose(found.values.sum(), found.scores[0], rtol=1e-3)


def test_bad_options_are_refused():
    with pytest.raises(InputError, match="alpha - beta must be 1"):
        AlphaBeta(2.0, 2.0)
    with pytest.raises(NotImplementedError, match="does not define relevance"):
        Rule().relevance(None, None, None)
