"""Operations too small for steps are left to autograd, and modules that only hand on are not watched."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attribkit as ak
from attribkit.builtin.guided_backprop import GuidedBackprop
from attribkit.engine import invert
from attribkit.engine.hooks import those_that_compute
from attribkit.engine.layers import PassThrough
from attribkit.engine.lean.record import _Lean
from attribkit.engine.table import Table
from attribkit.engine.walk import Walk
from attribkit.testing import images, seed_weights

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = ["gradient", "guided_backprop", "deconvnet"]


def network():
    """Return a network whose first maps are large for LEAST = 1000 and whose last are small."""
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(4), nn.Conv2d(4, 4, 3), nn.ReLU6(True)]
    return seed_weights(nn.Sequential(*layers, nn.Flatten(), nn.Linear(144, 5)), 0).eval()


def steps_in(output):
    """Return the kinds of the steps in a graph."""
    found, waiting, seen = [], [output.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node) is _Lean._backward_cls:
            found.append(type(node.step).__name__)
        waiting += [below for below, _ in node.next_functions]
    return sorted(found)


def up(least, table=None, size=34):
    """Return the output and the walk of a pass on a leaf [1, 3, size, size]."""
    x = images((1, 3, size, size), seed=0).float().requires_grad_()
    walk, output = invert.up(network(), x, table or Table({}), None, lean=True, least=least)
    return output, walk


@pytest.mark.parametrize(
    ("least", "steps", "left"),
    [
        (0, ["BatchNorm", "Convolution", "Convolution", "Hardtanh", "Linear", "MaxPool", "ReLU"], False),
        (1000, ["BatchNorm", "Convolution", "MaxPool", "ReLU"], True),
        (3 * 34 * 34, ["BatchNorm", "Convolution", "MaxPool", "ReLU"], True),
        (3 * 34 * 34 + 1, ["BatchNorm", "MaxPool", "ReLU"], True),
        (1 << 20, [], True),
    ],
)
def test_an_input_of_so_many_elements_has_a_step(least, steps, left):
    output, walk = up(least)
    assert steps_in(output) == steps
    assert walk.lean.left is left


def test_an_inverse_layer_has_its_step_however_small():
    output, _ = up(1 << 20, GuidedBackprop().table())
    assert steps_in(output) == ["Hardtanh", "ReLU"]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("target", [2, ak.Unit("4", 1), lambda y: y.sum(1)], ids=["class", "unit", "callable"])
def test_the_map_is_the_same_to_the_bit(monkeypatch, name, target):
    x = images((2, 3, 34, 34), seed=0).float()
    found = []
    for least in (0, 1000, 1 << 30):
        monkeypatch.setattr(invert, "LEAST", least)
        found.append(ak.attribute(network(), x, name, target).values)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert found[0].abs().max() > 0


class WritesOver(nn.Module):
    """Adds to what autograd has kept of its second convolution."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.relu = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU()
        self.runs = 0
        seed_weights(self, 0).eval()

    def forward(self, x):
        self.runs += 1
        y = self.first(x)
        z = self.relu(self.second(y))
        y.add_(1)
        return z.mean((2, 3)) + y.mean((2, 3))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("target", [1, ak.Unit("relu", 1), lambda y: y[:, 1] * 2], ids=["class", "unit", "callable"])
def test_a_model_may_write_over_what_autograd_keeps(monkeypatch, name, target):
    x = images((2, 3, 12, 12), seed=0).float()
    model = WritesOver()
    found = ak.attribute(model, x, name, target)
    again = 0 if isinstance(target, ak.Unit) else 1  # a unit's pass ends before
    assert model.runs == 1 + again
    monkeypatch.setattr(invert, "LEAST", 0)
    expected = ak.attribute(model, x, name, target)
    assert model.runs == 2 + again
    assert torch.equal(found.values, expected.values)
    assert torch.equal(found.scores, expected.scores)
    assert found.coverage == expected.coverage


def test_other_errors_come_out_of_the_first_way_back():
    class Breaks(ak.InverseLayer):
        def carry(self, signal, site):
            raise RuntimeError("no way back")

    class Method(ak.InverseMethod):
        name = "breaks"
        inverse_layers = {"max_pool": Breaks()}

    model = WritesOver()
    model.relu = nn.MaxPool2d(2)
    with pytest.raises(RuntimeError, match="no way back"):
        ak.attribute(model, images((1, 3, 12, 12), seed=0).float(), Method, 1)
    assert model.runs == 1


# -- modules that hand on ----------------------------------------------------------------------------------------------


class Nested(nn.Module):
    """Modules that hand on around one that computes."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Identity(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
        self.skip = nn.Identity()

    def forward(self, x):
        return F.relu(self.skip(self.body(x))).mean((2, 3))


def watched(model, table=None):
    walk = Walk(model, table or Table({}), invert.vocabulary())
    return [walk.paths[module] for module in those_that_compute(model, walk.paths, walk)]


def test_they_are_not_watched():
    assert watched(Nested()) == ["", "body.1.0", "body.1.1"]
    assert watched(nn.Sequential(nn.Sequential(nn.ReLU()))) == ["", "0.0"]


def test_sites_have_the_same_names_and_layers_are_still_there():
    model, x = Nested().eval(), torch.randn(1, 3, 8, 8)
    quiet, asked = Walk(model), Walk(model, layers=["skip"])
    for walk in (quiet, asked):
        walk.run(x)
    assert [site.name for site in quiet.sites] == [site.name for site in asked.sites]
    assert [site.name for site in quiet.sites] == ["body.1.0", "body.1.1", "relu", "mean"]
    assert asked.captured["skip"].value.shape == (1, 4, 6, 6)
    assert quiet.shapes == {}
    assert {"body", "body.0", "body.1", "skip"} <= set(asked.shapes)
    unit = ak.attribute(model, x, "guided_backprop", ak.Unit("body.0", 1, (2, 2))).values
    assert unit[0, 1, 2, 2] == 1


def test_one_with_an_inverse_layer_or_something_of_its_own_is_watched():
    everything = ["", "body", "body.0", "body.1", "body.1.0", "body.1.1", "skip"]
    assert watched(Nested(), Table({re.compile("skip"): PassThrough()})) == everything
    assert watched(Nested(), Table({nn.Identity: PassThrough()})) == ["", "body.0", "body.1.0", "body.1.1", "skip"]
    assert watched(Nested(), Table({nn.Module: PassThrough()})) == everything
    model = Nested()
    model.skip.forward = F.relu
    model.body.register_forward_hook(lambda module, args, output: F.relu(output))
    assert watched(model) == ["", "body", "body.1.0", "body.1.1", "skip"]
    walk = Walk(model)
    walk.run(torch.randn(1, 3, 8, 8))
    assert [site.name for site in walk.sites] == ["body.1.0", "body.1.1", "body.relu", "skip.relu", "relu", "mean"]


def test_an_inverse_layer_on_a_module_that_hands_on_acts():
    class Thrice(ak.InverseLayer):
        ordinary = False

        def carry(self, signal, site):
            return 3 * signal

    class Method(ak.InverseMethod):
        name = "thrice"
        inverse_layers = {nn.Identity: Thrice()}

    model, x = Nested().eval(), torch.randn(1, 3, 8, 8)
    found = ak.attribute(model, x, Method, 1).values
    assert torch.allclose(found, 9 * ak.attribute(model, x, "gradient", 1).values)
