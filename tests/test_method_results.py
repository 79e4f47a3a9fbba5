"""What a method in free form returns: what is refused, and how batches are joined."""

import pytest
import torch
from torch import nn

import attribkit as ak
from attribkit.errors import MethodError

X = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Returning(ak.Method):
    name = "returning"
    summary = "What it is told to return"

    def __init__(self, result):
        self.result = result

    def attribute(self, model, inputs, target):
        return self.result(inputs)


def explained(result, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(48, 7))
    return ak.attribute(net, X, Returning(result), **options)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda x: None, r"returned NoneType for inputs of shape \(5, 3, 4, 4\)"),
        (lambda x: x.sum(1), r"returned \(5, 4, 4\) for inputs of shape \(5, 3, 4, 4\)"),
        (lambda x: (x, {}, {}), "returned 3 things; a map, or a map and a dict of extras"),
        (lambda x: (x, [x]), "returned extras that are no dict of tensors"),
        (lambda x: (x, {"x": 1.0}), "returned extras that are no dict of tensors"),
    ],
)
def test_what_is_no_map_is_refused(result, message):
    with pytest.raises(MethodError, match=f"method 'returning' {message}$"):
        explained(result)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_batches_are_joined(batch_size):
    extras = {"per sample": lambda x: x.sum((1, 2)), "one for all": lambda x: torch.arange(3.0)}
    found = explained(lambda x: (x.double(), {k: f(x) for k, f in extras.items()}), batch_size=batch_size)
    assert found.values.dtype == X.dtype
    assert torch.equal(found.values, X)
    for name, function in extras.items():
        torch.testing.assert_close(found.extras[name], function(X))
    torch.manual_seed(0)
    scores = nn.Linear(48, 7)(X.clamp(min=0).flatten(1))
    torch.testing.assert_close(found.scores, scores.amax(1).detach())
    assert torch.equal(found.target, scores.argmax(1))


def test_the_copy_is_the_methods_own():
    kept = X.clone()
    found = explained(lambda x: x.zero_())
    assert not found.values.any()
    assert torch.equal(X, kept)


class Buffered(nn.Module):
    """Writes its result into a buffer of its own and hands that out."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 7)
        self.register_buffer("out", torch.zeros(5, 7))
        self.eval()

    def logits(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))

    def forward(self, x):
        self.out = self.out[: len(x)].clone()
        return self.out.copy_(self.logits(x))


TABLES = ("gradient", "guided_backprop", "deconvnet")


@pytest.mark.parametrize("method", TABLES)
def test_scores_are_nobody_elses_memory(method):
    """The model's buffers are put back after the call: scores that lay there would go with them."""
    net = Buffered()
    found = ak.attribute(net, X, method, lambda outputs: outputs[:, 3])
    torch.testing.assert_close(found.scores, net.logits(X)[:, 3].detach())


def test_what_a_method_keeps_is_copied():
    kept = {}

    def result(x):
        kept["map"], kept["extra"] = torch.ones_like(x), torch.ones(5)
        return kept["map"], {"extra": kept["extra"]}

    found = explained(result)
    found.values.zero_()
    found.extras["extra"].zero_()
    assert bool(kept["map"].all())
    assert bool(kept["extra"].all())


@pytest.mark.parametrize("method", TABLES)
def test_a_callers_function_is_asked_once(method):
    net, asked = Buffered(), []

    def twice(outputs):
        asked.append(len(outputs))
        return outputs.mul_(2)[:, 3]

    found = ak.attribute(net, X, method, twice)
    assert asked == [5]
    plain = ak.attribute(net, X, method, lambda outputs: 2 * outputs[:, 3])
    assert torch.equal(found.scores, plain.scores)
    torch.testing.assert_close(found.values, plain.values)


def test_scores_may_be_complex():
    net = Buffered()
    x = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(net.logits(x)[:, 3].to(torch.complex64), x, torch.ones(5, dtype=torch.complex64))
    found = ak.attribute(net, X, "gradient", lambda outputs: outputs[:, 3].to(torch.complex64))
    torch.testing.assert_close(found.values, expected)
