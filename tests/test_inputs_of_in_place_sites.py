"""A layer that needs the input sees, at a site that works in place, the values before."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attribkit as ak


class _Saw(ak.InverseLayer):
    needs = frozenset({"input"})

    def __init__(self):
        self.seen = None

    def carry(self, signal, site):
        self.seen = [value.clone() for value in site.inputs]
        return site.plain(signal)


class _Method(ak.InverseMethod):
    name = "saw"
    summary = "Notes what went in"


class _Net(nn.Module):
    def __init__(self, step):
        super().__init__()
        self.conv, self.relu, self.step = nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True), step

    def forward(self, x):
        return self.step(self, self.conv(x), x).flatten(1)


def _iadd(net, y, x):
    y += x
    return y


@pytest.mark.parametrize(
    ("kind", "step", "count"),
    [
        ("sum", _iadd, 2),
        ("sum", lambda net, y, x: y.add_(x), 2),
        ("rectifier", lambda net, y, x: net.relu(y), 1),
        ("rectifier", lambda net, y, x: F.relu_(y), 1),
    ],
)
def test_the_input_of_an_in_place_site_is_the_value_before(kind, step, count):
    torch.manual_seed(0)
    model, x = _Net(step).double().eval(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    saw, method = _Saw(), _Method()
    method.inverse_layers = {kind: saw}
    found = ak.attribute(model, x, method, 5)
    assert len(saw.seen) == count
    assert torch.equal(saw.seen[0], model.conv(x))
    assert torch.equal(found.values, ak.attribute(model, x, "gradient", 5).values)
