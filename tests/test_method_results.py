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
