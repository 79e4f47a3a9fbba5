"""The oracle itself, on nets small enough to compute by hand, and against Captum where Captum is right."""

from __future__ import annotations

import warnings

import captum.attr
import oracle
import pytest
import torch
import torch.nn.functional as F
from oracle import Place, explain
from timm.layers import activations, activations_me
from timm.models.metaformer import StarReLU
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


class Net(nn.Module):
    """x [N, 2] -> 3 hidden values -> the activation -> 1 score. With x = (2, -1) the hidden values are (2, -1, 1)."""

    def __init__(self, act):
        super().__init__()
        self.first, self.last = nn.Linear(2, 3, bias=False).double(), nn.Linear(3, 1, bias=False).double()
        self.act = act.double() if isinstance(act, nn.Module) else act
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
            self.last.weight.copy_(torch.tensor([[1.0, 1.0, -1.0]]))

    def forward(self, x):
        return self.last(self.act(self.first(x)))


X = torch.tensor([[2.0, -1.0]], dtype=torch.float64)
HIDDEN = torch.tensor([[2.0, -1.0, 1.0]], dtype=torch.float64)

RELUS = {
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU in place": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "Tensor.relu": lambda x: x.relu(),
    "Tensor.relu_": lambda x: x.relu_(),
}


@pytest.mark.parametrize("writing", RELUS)
def test_relu_by_hand(writing):
    net = Net(RELUS[writing])
    # The signal at the activation's output is (1, 1, -1); its input is positive at the first and third.
    by_hand = {"gradient": [0.0, -1.0], "guided_backprop": [1.0, 0.0], "deconvnet": [1.0, 1.0]}
    for method, expected in by_hand.items():
        found = explain(net, X, method)
        assert found.values.tolist() == [expected], method
        assert found.scores.tolist() == [1.0]
        assert found.rectifiers == 1


RECTIFIERS = {
    "nn.ReLU6": nn.ReLU6(),
    "F.relu6 in place": lambda x: F.relu6(x, inplace=True),
    "nn.Hardtanh from 0": nn.Hardtanh(0.0, 1.5),
    "F.hardtanh_": lambda x: F.hardtanh_(x, 0.0, 1.5),
    "nn.LeakyReLU": nn.LeakyReLU(0.1),
    "F.leaky_relu in place": lambda x: F.leaky_relu(x, 0.1, inplace=True),
    "nn.PReLU": nn.PReLU(),
    "nn.PReLU per channel": nn.PReLU(3),
    "Tensor.prelu": lambda x: x.prelu(torch.tensor([0.3], dtype=x.dtype)),
    "nn.RReLU": nn.RReLU(),
    "F.rrelu_": lambda x: F.rrelu_(x),
    "nn.ELU": nn.ELU(),
    "F.elu_": F.elu_,
    "nn.SELU": nn.SELU(),
    "torch.selu_": torch.selu_,
    "nn.CELU": nn.CELU(0.5),
    "torch.celu_": torch.celu_,
    "nn.GELU": nn.GELU(),
    "nn.GELU tanh": nn.GELU(approximate="tanh"),
    "nn.SiLU in place": nn.SiLU(inplace=True),
    "nn.Mish": nn.Mish(),
    "nn.Hardswish in place": nn.Hardswish(inplace=True),
    "nn.Softplus": nn.Softplus(beta=2.0),
    "timm Swish in place": activations.Swish(inplace=True),
    "timm Mish": activations.Mish(),
    "timm HardSwish": activations.HardSwish(),
    "timm HardMish": activations.HardMish(inplace=True),
    "timm GELU": activations.GELU(),
    "timm GELUTanh": activations.GELUTanh(),
    "timm QuickGELU": activations.QuickGELU(),
    "timm PReLU": activations.PReLU(),
    "timm SwishMe": activations_me.SwishMe(),
    "timm MishMe": activations_me.MishMe(),
    "timm HardSwishMe": activations_me.HardSwishMe(),
    "timm HardMishMe": activations_me.HardMishMe(),
}


@pytest.mark.parametrize("writing", RECTIFIERS)
def test_every_rectifier_by_its_derivative(writing):
    net = Net(RECTIFIERS[writing]).eval()
    hidden = HIDDEN.clone().requires_grad_()
    (slope,) = torch.autograd.grad(net.act(hidden.clone()).sum(), hidden)
    assert len(set(slope[0].tolist())) >= 2  # not the identity
    signal = torch.tensor([[1.0, 1.0, -1.0]], dtype=torch.float64)
    expected = {
        "gradient": slope * signal,
        "guided_backprop": slope * signal.clamp(min=0),
        "deconvnet": signal.clamp(min=0),
    }
    for method in oracle.METHODS:
        found = explain(net, X, method)
        assert found.rectifiers == 1
        torch.testing.assert_close(found.values, expected[method] @ net.first.weight.detach(), rtol=1e-14, atol=1e-14)


GATES = {
    "nn.Sigmoid": nn.Sigmoid(),
    "nn.Hardsigmoid": nn.Hardsigmoid(),
    "nn.Tanh": nn.Tanh(),
    "nn.Hardtanh": nn.Hardtanh(-3.0, 3.0),
    "nn.Softmax": nn.Softmax(1),
    "timm Sigmoid in place": activations.Sigmoid(inplace=True),
    "timm Tanh": activations.Tanh(),
    "timm HardSigmoid": activations.HardSigmoid(),
    "timm HardSigmoid in place": activations.HardSigmoid(inplace=True),
    "timm HardSigmoidMe": activations_me.HardSigmoidMe(),
    "x * sigmoid(x)": lambda x: x * x.sigmoid(),
}


@pytest.mark.parametrize("writing", GATES)
def test_gates_stay_plain(writing):
    found = [explain(Net(GATES[writing]), X * torch.tensor([1, 4]), method) for method in oracle.METHODS]
    assert found[0].values.abs().sum() > 0
    for other in found:
        assert torch.equal(other.values, found[0].values)
        assert other.rectifiers == 0


def test_a_rectifier_called_by_another_activation_is_the_rectifier():
    net = Net(StarReLU())  # 1 * relu(x)^2 + 0: the square's slope 2 relu(x) meets the signal above the ReLU
    assert explain(net, X, "deconvnet").values.tolist() == [[4.0, 0.0]]  # (4, 0, -2) clamped, transposed
    assert explain(net, X, "gradient").values.tolist() == [[2.0, -2.0]]  # (4, 0, -2) masked, transposed
    assert explain(net, X, "deconvnet").rectifiers == 1


def test_the_classes_are_given_back():
    before = activations.Swish.forward, F.local_response_norm, nn.Module.__call__
    explain(Net(activations.Swish()), X, "deconvnet", Place("first", 0, layout="NC"))
    with pytest.raises(ZeroDivisionError):
        explain(Net(lambda x: 1 / 0), X, "deconvnet", Place("first", 0, layout="NC"))
    assert (activations.Swish.forward, F.local_response_norm, nn.Module.__call__) == before


def test_skip_branches_and_reuse_by_hand():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x):  # one column; the act is used twice and both inputs are ready before either call
            left, right = x - 2, -x
            return self.act(left) * 3 - self.act(right) + x

    x = torch.tensor([[3.0], [-1.0]])
    assert explain(Skip(), x, "gradient", 0).values.tolist() == [[4.0], [2.0]]  # 3 + 1; -1 * -1 + 1
    assert explain(Skip(), x, "guided_backprop", 0).values.tolist() == [[4.0], [1.0]]  # the right branch is clamped
    assert explain(Skip(), x, "deconvnet", 0).values.tolist() == [[4.0], [4.0]]
    assert explain(Skip(), x, "deconvnet", 0).rectifiers == 2


def test_in_place_on_a_skip_branch_is_seen_by_the_skip():
    class Skip(nn.Module):
        def forward(self, x):
            h = x * 1
            return F.silu(h, inplace=True) * -2 + h  # h is silu(x) by then: the sum is -silu(x)

    x = torch.tensor([[3.0]], dtype=torch.float64)
    assert explain(Skip(), x, "gradient", 0).values.item() < 0
    assert explain(Skip(), x, "deconvnet", 0).values.item() == 0


def test_an_in_place_operation_on_a_view_is_refused():
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.ReLU(inplace=True))
    with pytest.raises(NotImplementedError, match="view"):
        explain(net, torch.randn(1, 1, 2, 2), "deconvnet", 0)


def test_overlapping_pools_add_and_lrn_is_skipped():
    x = torch.tensor([[[[1.0, 5.0, 2.0]]]], dtype=torch.float64)
    net = nn.Sequential(nn.MaxPool2d((1, 2), stride=1), nn.Flatten(), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        net[3].weight.copy_(torch.tensor([[2.0, 3.0]]))
    assert explain(net, x, "deconvnet").values.flatten().tolist() == [0.0, 5.0, 0.0]  # 2 + 3 at the shared maximum
    norm = nn.Sequential(nn.LocalResponseNorm(3, alpha=0.5), nn.ReLU(), nn.Flatten())
    pixels = torch.tensor([1.0, 2.0, -3.0, 4.0], dtype=torch.float64).view(1, 4, 1, 1)
    for method in ("gradient", "guided_backprop"):
        plain = pixels.clone().requires_grad_()
        (expected,) = torch.autograd.grad(norm(plain)[0, 1], plain)
        assert torch.equal(explain(norm, pixels, method, 1).values, expected)
        assert (expected != 0).sum() == 3
    assert explain(norm, pixels, "deconvnet", 1).values.flatten().tolist() == [0.0, 1.0, 0.0, 0.0]


def test_units_by_hand():
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(inplace=True)).double()
    nn.init.constant_(net[0].weight, 2.0)
    x = torch.tensor([[[[3.0, -4.0], [3.0, 1.0]]]], dtype=torch.float64)

    def values(method, layer, position):
        return explain(net, x, method, Place(layer, 0, position)).values.flatten().tolist()

    assert values("gradient", "1", "max") == [2.0, 0.0, 0.0, 0.0]  # the first of the two maxima
    assert values("deconvnet", "1", "max") == [12.0, 0.0, 0.0, 0.0]  # its activation 6, times 2
    assert values("deconvnet", "1", "all") == [12.0, 0.0, 12.0, 4.0]
    assert values("guided_backprop", "1", "all") == [2.0, 0.0, 2.0, 2.0]
    assert values("guided_backprop", "1", (0, 1)) == [0.0] * 4
    # The convolution's own value, not what the in-place ReLU made of it afterwards.
    assert explain(net, x, "gradient", Place("0", 0, (0, 1))).scores.tolist() == [-8.0]
    assert values("deconvnet", "0", (0, 1)) == [0.0, -16.0, 0.0, 0.0]


def test_layouts():
    tokens = torch.arange(24.0, dtype=torch.float64).view(2, 3, 4)
    assert explain(nn.Identity(), tokens, "gradient", Place("", 1, 2, "NTC")).values.nonzero().tolist() == [
        [0, 2, 1],
        [1, 2, 1],
    ]
    maps = torch.arange(24.0, dtype=torch.float64).view(1, 2, 3, 4)
    assert explain(nn.Identity(), maps, "gradient", Place("", 3, (1, 0), "NHWC")).values.nonzero().tolist() == [
        [0, 1, 0, 3]
    ]
    assert explain(nn.Identity(), maps, "gradient", Place("", 3, "max", "NHWC")).scores.tolist() == [23.0]


@pytest.mark.parametrize("outputs", [lambda y: (y, None), lambda y: [y], lambda y: {"logits": y}, lambda y: y])
def test_targets_and_outputs(outputs):
    class Wrapped(nn.Module):
        def forward(self, x):
            return outputs(x.flatten(1) * 2)

    x = torch.tensor([[1.0, 3.0], [5.0, 4.0]])
    assert explain(Wrapped(), x, "gradient").values.tolist() == [[0.0, 2.0], [2.0, 0.0]]
    assert explain(Wrapped(), x, "gradient", torch.tensor([0, 1])).values.tolist() == [[2.0, 0.0], [0.0, 2.0]]
    assert explain(Wrapped(), x, "gradient", 0).scores.tolist() == [2.0, 10.0]
    first = explain(Wrapped(), x, "gradient", lambda y: 3 * oracle._logits(y)[:, 0])
    assert first.values.tolist() == [[6.0, 0.0], [6.0, 0.0]]


def test_equals_captum_where_every_rectifier_is_its_own_module():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, stride=2),
        nn.ReLU(), nn.Flatten(), nn.Linear(72, 20), nn.ReLU(), nn.Linear(20, 5),
    ).double().eval()  # fmt: skip
    x, classes = torch.randn(3, 3, 16, 16, dtype=torch.float64), torch.tensor([4, 0, 2])
    pairs = {"guided_backprop": captum.attr.GuidedBackprop, "deconvnet": captum.attr.Deconvolution}
    for method, peer in pairs.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = peer(net).attribute(x.clone(), target=classes).detach()
        ours = explain(net, x, method, classes).values
        assert theirs.abs().max() > 1e-6
        assert (ours - theirs).abs().max() <= 1e-14 * theirs.abs().max()


def test_a_sum_in_place_on_a_view_hides_no_rectifier():
    class Slices(nn.Module):
        def forward(self, x):
            h = x.relu() * torch.tensor([[-1.0, 2.0, 3.0]])
            h[:, :2] += x[:, 1:]
            return F.silu(h, inplace=True)

    class Apart(nn.Module):
        def forward(self, x):
            h = x.relu() * torch.tensor([[-1.0, 2.0, 3.0]])
            return F.silu(torch.cat([h[:, :2] + x[:, 1:], h[:, 2:]], 1))

    x = torch.tensor([[1.0, -2.0, 3.0]])
    for method in oracle.METHODS:
        target = lambda out: out @ torch.tensor([1.0, -1.0, 1.0])  # noqa: E731
        found, expected = (explain(net, x, method, target) for net in (Slices(), Apart()))
        assert found.rectifiers == expected.rectifiers == 2
        assert found.values.abs().max() > 0
        torch.testing.assert_close(found.values, expected.values)


def test_operations_on_parameters_alone_are_not_in_the_way():
    class Bias(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.tensor([[[-1.0, 2.0, 3.0]]]))
            self.net = nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True))  # in place on a view

        def forward(self, x):
            return (x * self.net(self.table)).relu()

    model = Bias()
    found = explain(model, torch.tensor([[1.0, 2.0, -3.0]]), "guided_backprop", lambda out: out.sum(1))
    assert found.values.tolist() == [[0.0, 2.0, 0.0]]
    assert found.rectifiers == 1
    assert model.table.requires_grad
