"""Projections on rectangles: equal to autograd's maps everywhere, borders and branches included."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attribkit as ak
from attribkit.engine import projection, tape
from attribkit.engine.layers import GatedRectify
from attribkit.engine.patches import Axis, Patch

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = ["gradient", "guided_backprop", "deconvnet"]


class Net(nn.Module):
    """Branches, sums, concatenations, strides, dilation, groups, pools that overlap, all kinds of rectifiers."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 5, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu1 = nn.ReLU(inplace=True)
        self.pool1 = nn.MaxPool2d(3, 2, padding=1)
        self.left = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.right = nn.Conv2d(4, 4, (1, 3), padding=(0, 2), dilation=(1, 2), bias=False)
        self.gelu = nn.GELU()
        self.norm = nn.LocalResponseNorm(3, alpha=0.1)
        self.conv2 = nn.Conv2d(8, 6, 3, stride=(2, 1))
        self.lrelu = nn.LeakyReLU(0.1)
        self.avg = nn.AvgPool2d(3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(6, 6, 1, stride=2)
        self.prelu = nn.PReLU(6)
        self.relu6 = nn.ReLU6()

    def forward(self, x, normed=False):
        x = self.pool1(self.relu1(self.bn1(self.conv1(F.pad(x, (0, 1, 2, -1))))))
        if normed:
            x = self.norm(x)
        left = self.left(x)
        left += x  # in place, and an identity branch
        x = torch.cat([self.gelu(left), torch.add(self.right(x), x, alpha=0.5)], 1)
        x = self.lrelu(self.conv2(x))
        x = F.silu(x, inplace=True) + 1
        x = self.prelu(self.conv3(self.avg(x)))
        return self.relu6(x)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(3)
    model = Net().double().eval()
    nn.init.uniform_(model.bn1.running_var, 0.5, 2)
    nn.init.uniform_(model.bn1.weight, -1, 2)
    nn.init.normal_(model.bn1.running_mean)
    return model


@pytest.fixture
def used(monkeypatch):
    """How often the maps came from rectangles (True) and from autograd (False)."""
    seen = []
    original = projection._on_rectangles

    def noted(*args):
        found = original(*args)
        seen.append(found is not None)
        return found

    monkeypatch.setattr(projection, "_on_rectangles", noted)
    return seen


def one_by_one(model, x, layer, channels, method, position):
    units = [ak.Unit(layer, channel, position) for channel in channels]
    return torch.stack([ak.attribute(model, x, method=method, target=unit).values for unit in units], 1)


LAYERS = ["conv1", "relu1", "pool1", "left", "gelu", "conv2", "lrelu", "avg", "conv3", "prelu", "relu6"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer", LAYERS)
def test_every_unit_equals_autograds(net, used, layer, method):
    """Each sample's strongest position, corners and edges."""
    torch.manual_seed(4)
    x = torch.randn(2, 2, 45, 39, dtype=torch.float64)
    rows, columns = ak.inspect(net, x).shapes[layer][-2:]
    alive = 0
    for position in ["max", (0, 0), (0, columns - 1), (rows - 1, columns // 2), (rows // 2, 0)]:
        found = ak.project(net, x, layer, [1, 0, 3, 3], method=method, position=position)
        expected = one_by_one(net, x, layer, [1, 0, 3, 3], method, position)
        torch.testing.assert_close(found.values, expected, rtol=1e-12, atol=1e-14 * float(expected.abs().max()))
        assert torch.equal(found.values != 0, expected != 0)
        alive += bool(expected.any())
    assert alive > 2
    assert used == [True] * len(used)


@pytest.mark.parametrize("elements", [1, 1 << 40])
def test_however_many_at_once(net, monkeypatch, elements):
    x = torch.randn(3, 2, 45, 39, dtype=torch.float64)
    channels = [0, 1, 2, 3, 4, 5, 0, 1]
    expected = one_by_one(net, x, "conv2", channels, "deconvnet", "max")
    monkeypatch.setattr(projection, "_ELEMENTS", elements)
    found = ak.project(net, x, "conv2", channels, method="deconvnet")
    torch.testing.assert_close(found.values, expected, rtol=1e-12, atol=1e-14)


def test_contrast_normalisation_is_skipped(used):
    torch.manual_seed(5)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.LocalResponseNorm(3, alpha=0.5), nn.Conv2d(4, 3, 3)).double()
    x = torch.randn(2, 1, 20, 17, dtype=torch.float64)
    found = ak.project(net, x, "3", [0, 2], method="deconvnet")
    torch.testing.assert_close(
        found.values, one_by_one(net, x, "3", [0, 2], "deconvnet", "max"), rtol=1e-12, atol=1e-14
    )
    assert used == [True]
    ak.project(net, x, "3", [0, 2], method="gradient")  # its derivative reaches over channels: autograd's
    assert used == [True, False]


def small(*more):
    torch.manual_seed(6)
    layers = OrderedDict(conv1=nn.Conv2d(1, 3, 3), relu1=nn.ReLU())
    layers.update({f"more{i}": module for i, module in enumerate(more)}, conv2=nn.Conv2d(3, 4, 3))
    return nn.Sequential(layers).double().eval()


class Double(nn.Module):
    def forward(self, x):
        return x * x


class Hooked(nn.Module):
    def forward(self, x):
        if x.requires_grad:
            x.register_hook(lambda signal: 2 * signal)
        return x


class Checkpointed(nn.Module):
    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(torch.relu, x, use_reentrant=False)


class Halved(ak.InverseLayer):
    def carry(self, signal, site):
        return site.plain(signal) / 2


class Loud(GatedRectify):
    def carry(self, signal, site):
        return 3 * super().carry(signal, site)


class HalvedMethod(ak.InverseMethod):
    name = "halved"
    inverse_layers = {"rectifier": Halved()}


class LoudMethod(ak.InverseMethod):
    name = "loud"
    inverse_layers = {"rectifier": Loud()}


@pytest.mark.parametrize(
    ("net", "method"),
    [
        (small(Double()), "gradient"),
        (small(Hooked()), "guided_backprop"),
        (small(Checkpointed()), "guided_backprop"),
        (small(nn.AvgPool2d(2, ceil_mode=True)), "deconvnet"),
        (small(nn.AdaptiveMaxPool2d(9)), "deconvnet"),
        (small(nn.ConvTranspose2d(3, 3, 2)), "deconvnet"),
        (small(nn.GroupNorm(1, 3)), "deconvnet"),
        (small(nn.BatchNorm2d(3, track_running_stats=False)), "deconvnet"),
        (small(), HalvedMethod),
        (small(), LoudMethod),
    ],
)
def test_what_is_not_known_is_left_to_autograd(net, method, used):
    x = torch.randn(2, 1, 21, 17, dtype=torch.float64)
    found = ak.project(net, x, "conv2", [0, 3], method=method)
    expected = one_by_one(net, x, "conv2", [0, 3], method, "max")
    torch.testing.assert_close(found.values, expected, rtol=1e-12, atol=1e-14)
    assert not any(used)


def test_all_positions_and_flat_layers_are_left_to_autograd(used):
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4 * 4, 5)).double()
    x = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    for layer, position in (("1", "all"), ("3", "max")):
        found = ak.project(net, x, layer, [0, 1], position=position)
        torch.testing.assert_close(
            found.values, one_by_one(net, x, layer, [0, 1], "deconvnet", position), rtol=1e-12, atol=1e-14
        )
    assert used == []


def test_in_single_precision(used):
    torch.manual_seed(8)
    net = small(nn.MaxPool2d(2)).float()
    x = torch.randn(1, 1, 40, 40)
    found = ak.project(net, x, "conv2", range(4), method="deconvnet").values
    expected = one_by_one(net, x, "conv2", range(4), "deconvnet", "max")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
    assert used == [True]


def test_one_unit_of_a_layer_that_is_the_first(used):
    net = nn.Sequential(nn.Conv2d(1, 2, 3)).double()
    x = torch.randn(1, 1, 5, 5, dtype=torch.float64)
    found = ak.project(net, x, "0", [1], method="gradient", position=(2, 0))
    expected = torch.zeros_like(x)
    expected[..., 2:5, 0:3] = net[0].weight.detach()[1]
    assert torch.equal(found.values[:, 0], expected)
    assert used == [True]


# -- patches -----------------------------------------------------------------------------------------------------------


def full(patch):
    """Return the patch's values on the whole map."""
    rows, columns = patch.rows, patch.columns
    out = torch.zeros(*patch.values.shape[:2], rows.size, columns.size, dtype=torch.float64)
    for j, values in enumerate(patch.values):
        for r in range(rows.length):
            for c in range(columns.length):
                y, x = rows.starts[j] + r, columns.starts[j] + c
                if 0 <= y < rows.size and 0 <= x < columns.size:
                    out[j, :, y, x] = values[:, r, c]
    return out


def patches():
    torch.manual_seed(9)
    for rows in (Axis((-2, 3), 4, 6), Axis((0, 2), 3, 6), Axis((0, 0), 6, 6), Axis((-3, -1), 9, 6)):
        for columns in (Axis((1, 4), 3, 5), Axis((-1, -1), 4, 5), Axis((0, 0), 5, 5)):
            values = torch.randn(2, 3, rows.length, columns.length, dtype=torch.float64)
            yield Patch(values, rows, columns, spills=True)


def test_patches_do_what_whole_maps_do():
    maps = torch.randn(1, 3, 6, 5, dtype=torch.float64)
    for patch in patches():
        same = patch.values.clone()
        assert torch.equal(full(patch.fitted()), full(patch))
        clean = Patch(patch.values.clone(), patch.rows, patch.columns, spills=True).clean()
        assert torch.equal(full(clean), full(patch))
        assert clean.values.sum() == pytest.approx(float(full(patch).sum()))
        assert torch.equal(full(Patch(patch.crop(maps), patch.rows, patch.columns)), maps * (full(patch) != 0))
        assert torch.equal(full(patch.times(maps)), full(patch) * maps)
        for other in patches():
            shared = Patch(patch.values, patch.rows, patch.columns, spills=True, owned=False)
            expected = full(patch) + full(other)  # beforehand: the other one may be written to
            assert torch.equal(full(shared.plus(other)), expected)
        assert torch.equal(patch.values, same)  # nothing that is shared was written to


def test_the_order_of_a_tape_is_the_way_back(net):
    x = torch.randn(1, 2, 45, 39, dtype=torch.float64, requires_grad=True)
    found = tape.read(net.conv2(torch.cat([net.left(net.pool1(net.conv1(x)))] * 2, 1)), x)
    assert [step.inputs for step in found.steps] == [(1,), (2, 2), (3,), (4,), (5,)]
    with pytest.raises(tape.Unknown, match="MulBackward0"):
        tape.read(net.conv1(x) * net.conv1(x), x)


@pytest.mark.parametrize("pad", [(-1, -1, -1, -1), (-1, 0, 0, 0), (1, -2, -1, 2), (0, 0, -1, -1)])
@pytest.mark.parametrize("method", METHODS)
def test_maps_that_are_cut_on_the_way(pad, method, used):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.ZeroPad2d(pad), nn.Conv2d(4, 3, 3), nn.ReLU())
    model = model.double().eval()
    x = torch.randn(1, 2, 12, 11, dtype=torch.float64)
    for layer in ("2", "4"):
        found = ak.project(model, x, layer, [0, 1, 2], method).values
        for channel in range(3):
            expected = ak.attribute(model, x, method, ak.Unit(layer, channel)).values
            assert expected.any()
            torch.testing.assert_close(found[:, channel], expected, rtol=1e-12, atol=1e-12)
    assert used == [True, True]


def test_a_sum_that_makes_another_dtype_is_left_to_autograd(used):
    class Promotes(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.end = nn.Conv2d(2, 4, 3), nn.Identity()

        def forward(self, x):
            return self.end(self.conv(x) + torch.ones(1, 4, 1, 1, dtype=torch.float64))

    torch.manual_seed(0)
    model, x = Promotes().eval(), torch.rand(1, 2, 12, 12)
    found = ak.project(model, x, "end", [0, 1], "gradient", (3, 3)).values
    assert used == [False]
    for channel in range(2):
        expected = ak.attribute(model, x, "gradient", ak.Unit("end", channel, (3, 3))).values
        assert expected.any()
        torch.testing.assert_close(found[:, channel], expected, rtol=1e-6, atol=1e-7)


class WrittenOver(nn.Module):
    """Writes over what autograd keeps of its rectifier: autograd alone refuses to go back."""

    def __init__(self, rectifier, write):
        super().__init__()
        self.conv1, self.rectifier, self.write = nn.Conv2d(2, 3, 3), rectifier, write
        self.conv2 = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        y = self.rectifier(self.conv1(x))
        self.write(y)
        return self.conv2(y)


def add(y):
    y += 1


def times(y):
    y.mul_(torch.tensor(0.5).to(y))


def first(y):
    y[:, 0] = 0


@pytest.mark.parametrize("method", [*METHODS, HalvedMethod])
@pytest.mark.parametrize("write", [add, times, first])
@pytest.mark.parametrize("rectifier", [nn.ReLU(), nn.LeakyReLU(0.1, inplace=True)])
def test_values_that_are_written_over(rectifier, write, method):
    torch.manual_seed(0)
    model = WrittenOver(rectifier, write).double().eval()
    x = torch.randn(2, 2, 9, 8, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        model(x.clone().requires_grad_()).sum().backward()
    for position in ("max", "all", (2, 3)):
        found = ak.project(model, x, "conv2", [0, 3], method, position)
        expected = one_by_one(model, x, "conv2", [0, 3], method, position)
        assert expected.any()
        torch.testing.assert_close(found.values, expected, rtol=1e-12, atol=1e-14)


class Refused(RuntimeError):
    """Not torch's own."""


def test_an_inverse_layers_own_error_comes_out_at_once():
    calls = []

    class Refusing(ak.InverseLayer):
        def carry(self, signal, site):
            calls.append(site.name)
            raise Refused("no way back")

    class RefusingMethod(ak.InverseMethod):
        name = "refusing"
        inverse_layers = {"rectifier": Refusing()}

    with pytest.raises(Refused, match="no way back"):
        ak.project(small(), torch.randn(1, 1, 21, 17, dtype=torch.float64), "conv2", [0], RefusingMethod)
    assert len(calls) == 1
