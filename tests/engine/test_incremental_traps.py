"""Incremental occlusion where it once went wrong or gave up without need."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attribkit as ak
from attribkit.engine.incremental import NotReplayable, plan
from attribkit.engine.incremental.graph import compare
from attribkit.engine.incremental.record import record
from attribkit.errors import IncrementalWarning

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = {"window": 5, "stride": 3}


class Around(nn.Module):
    """Runs a function of (network, x)."""

    def __init__(self, function, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 4, 3),
            nn.Flatten(),
            nn.LazyLinear(5),
        )
        self.net(torch.zeros(1, 3, 24, 24))
        self.net.to(dtype)
        self.function = function
        self.eval()

    def forward(self, x):
        return self.function(self.net, x)


def image(count=1, dtype=torch.float32):
    return torch.randn(count, 3, 24, 24, generator=torch.Generator().manual_seed(1)).to(dtype)


def both(net, x, target=0, *, engine="incremental", **options):
    """Return the maps of scores of incremental inference, which must not warn, and of the model itself."""
    options = OPTIONS | options
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ak.attribute(net, x, "occlusion", target, engine=engine, **options)
    full = ak.attribute(net, x, "occlusion", target, engine="full", **options)
    return found, full


def assert_same(found, full, *, incremental=True, tolerance=1e-5):
    assert bool(found.extras["incremental"].all()) is incremental
    scores, expected = found.extras["score_map"], full.extras["score_map"]
    torch.testing.assert_close(
        scores, expected, rtol=0, atol=tolerance * float(expected.nan_to_num().abs().max()), equal_nan=True
    )


def autocast(net, x):
    with torch.autocast("cpu", torch.bfloat16):
        return net(x)


@pytest.mark.parametrize("function", [autocast, lambda net, x: autocast(net, x).float()])
def test_coarse_numbers_in_the_forward_pass_are_no_reason_to_warn(function):
    net = Around(function)
    norm = nn.BatchNorm2d(8).eval()  # folded, it rounds otherwise
    norm.running_var.fill_(0.7)
    net.net.insert(1, norm)
    assert_same(*both(net, image(), engine="auto"), incremental=False)


def test_autocast_around_a_call_is_not_remembered_for_calls_without():
    net = Around(lambda net, x: net(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(*both(net, image(), engine="auto"), incremental=False)
    assert_same(*both(net, image(), engine="auto"))


def test_results_are_compared_as_finely_as_the_model_computes():
    x = image(dtype=torch.float64)
    assert_same(*both(Around(lambda net, x: net(x.float()).double()), x))
    assert_same(*both(Around(lambda net, x: net(x.double()).float(), torch.float64), image()))


@pytest.mark.parametrize("number", [float("-inf"), float("nan")])
def test_classes_that_are_ruled_out(number):
    ruled_out = torch.tensor([0, 0, number, 0, 0])
    assert_same(*both(Around(lambda net, x: net(x) + ruled_out), image(2)))


@pytest.mark.parametrize("count", [1, 2])
def test_a_target_that_looks_at_what_a_hook_has_put_aside(count):
    net, aside = Around(lambda net, x: net(x)), {}
    net.net[3].register_forward_hook(lambda module, inputs, output: aside.update(output=output))

    def mean(outputs):
        return aside["output"].mean((1, 2, 3))

    assert_same(*both(net, image(count), mean, engine="auto"), incremental=False)
    # nothing is wrong with the model: other targets are found incrementally
    assert_same(*both(net, image(count), lambda outputs: outputs[:, 1], engine="auto"))


def test_an_error_in_a_callable_target_comes_out():
    def broken(outputs):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ak.attribute(Around(lambda net, x: net(x)), image(), "occlusion", broken, **OPTIONS)


def viewed(net, x):
    x = net[0](x)
    other = x.view_as(x)
    F.relu(x, inplace=True)
    del x
    return net[2:](other)


def detached(net, x):
    x = net[0](x)
    other = x.detach()
    third = other.detach()
    other.relu_()
    third.mul_(2)
    return net[2:](x + other)


@pytest.mark.parametrize("function", [viewed, detached])
def test_other_names_of_what_is_written_in_place(function):
    assert_same(*both(Around(function), image()))


def test_a_name_of_part_of_what_is_written_is_still_refused():
    def function(x):
        x = x * 2
        part, other = x[:, :1], x.detach()
        other.relu_()
        return x + part

    with pytest.raises(NotReplayable, match="shares"):
        record(function, image(2))


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)])
def test_what_is_not_a_number_stays_so(layer):
    # the norm of an occluded place is 0; an activation right after a convolution must not make it a number again
    def function(net, x):
        return net[2:](F.relu(layer(x / x.norm(dim=1, keepdim=True))))

    found, full = both(Around(function), image())
    assert full.extras["score_map"].isnan().any()
    assert_same(found, full)


@pytest.mark.parametrize("wrong_by", [1e-4, 1e-2])
def test_rounding_is_no_reason_to_warn_unasked(monkeypatch, caplog, wrong_by):
    net = Around(lambda net, x: net(x))
    right = plan.Plan.finish
    monkeypatch.setattr(plan.Plan, "finish", lambda *arguments: [y * (1 + wrong_by) for y in right(*arguments)])
    caplog.set_level("INFO", "attribkit.builtin.occlusion")
    if wrong_by < 1e-3:
        assert_same(*both(net, image(), engine="auto"), incremental=False)
        assert "differ from the model's own" in caplog.text
    else:
        with pytest.warns(IncrementalWarning, match="differ from the model's own"):
            ak.attribute(net, image(), "occlusion", 0, **OPTIONS)
    with pytest.warns(IncrementalWarning, match="differ from the model's own"):
        ak.attribute(net, image(), "occlusion", 0, engine="incremental", **OPTIONS)
    monkeypatch.undo()
    assert_same(*both(net, image(), engine="auto"))


def test_outputs_that_nothing_takes_are_not_kept():
    def function(x):
        return torch.native_group_norm(x, None, None, len(x), 4, 36, 2, 1e-5)[0]

    x = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    graph = compare(record(function, x[:2].clone()), record(function, x.clone()))
    spans = ([0, 3], [3, 6])
    program = plan.Plan(graph, spans, spans)
    (node,) = graph.nodes
    assert len(node.outputs) == 3
    assert list(program.call(node, {0: x}, 3)) == node.outputs[:1]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "target",
    [
        lambda outputs: outputs[0].mul_(2)[:, 1],
        lambda outputs: (outputs[1].mul_(0), outputs[0][:, 1])[1],
        lambda outputs: outputs[1].mul_(2)[:, 1].sum((1, 2)),
    ],
)
def test_a_target_that_writes_to_what_it_reads(target, count):
    """What it gets is its own: neither the image nor a map that other windows are made of."""
    net = Around(lambda net, x: (net(x), net[:2](x), x))
    x = torch.randn(count, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    for which in (lambda o: target(o), lambda o: target((o[0], o[2]))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IncrementalWarning)
            ours, again = (ak.attribute(net, x, "occlusion", which, **OPTIONS) for _ in range(2))
        full = ak.attribute(net, x, "occlusion", which, engine="full", **OPTIONS)
        torch.testing.assert_close(ours.values, full.values, rtol=1e-4, atol=1e-4 * float(full.values.abs().max()))
        assert torch.equal(ours.values, again.values)


# -- what happens at one window of a hundred, which is not among those compared ----------------------------------------


class Rare(nn.Module):
    """Runs a function of (modules, x)."""

    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)
        self.eval()

    def forward(self, x):
        return self.function(self.parts, x)


def object_on_black():
    x = torch.zeros(1, 3, 50, 50)
    x[:, :, 21:24, 31:34] = 1
    return x


def assert_all_windows(net, *, incremental=True):
    options = {"window": 5, "stride": 5, "engine": "auto"}
    options["engine"] = "incremental" if incremental else "auto"
    found, full = both(net, object_on_black(), **options)
    assert found.extras["incremental"].tolist() == [incremental]
    ours, theirs = found.extras["score_map"], full.extras["score_map"]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, equal_nan=True)
    return theirs[0, 4, 6], theirs[0, 0, 0]


def seen(x):
    """What is not black, [N, pixels]."""
    return x.amax(1).flatten(1) > 0


NO_NUMBERS = {
    "softmax of nothing": lambda y, x: (
        y.flatten(2) * y.flatten(2).mean(1).masked_fill(~seen(x), -torch.inf).softmax(-1)[:, None]
    ).sum(-1),
    "layer norm of nothing": lambda y, x: (
        y.mean((2, 3)) * F.layer_norm(x, x.shape[1:], eps=0.0).amax((1, 2, 3))[:, None]
    ),
    "a quotient": lambda y, x: torch.addcdiv(
        y.mean((2, 3)), x.sum((1, 2, 3))[:, None], x.pow(2).sum((1, 2, 3))[:, None]
    ),
    "a constant": lambda y, x: torch.where(seen(x).any(1)[:, None], y.mean((2, 3)), torch.nan),
}


@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.ReLU6(), nn.Hardsigmoid()], ids=lambda layer: type(layer).__name__
)
@pytest.mark.parametrize("name", NO_NUMBERS)
def test_what_becomes_no_number_at_one_window_stays_so(name, activation):
    torch.manual_seed(0)
    net = Rare(
        lambda parts, x: parts[1](NO_NUMBERS[name](parts[0](x), x)),
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Sequential(nn.Linear(8, 16), activation, nn.Linear(16, 4)),
    )
    there, elsewhere = assert_all_windows(net)
    assert there.isnan()
    assert elsewhere.isfinite()


def test_comparisons_in_place_write_numbers():
    torch.manual_seed(0)

    def darkness(parts, x):
        brightest = x.amax((1, 2, 3))
        dark = brightest.clone().lt_(0.5) + brightest.clone().le_(0.1)
        return parts[0](x).mean((2, 3)) + dark[:, None]

    there, elsewhere = assert_all_windows(Rare(darkness, nn.Conv2d(3, 4, 3)), incremental=False)
    assert there > elsewhere + 1.5


def test_one_infinity_stays_one_in_a_large_convolution():
    torch.manual_seed(0)

    def network(parts, x):
        y = parts[0](x)
        wild = F.pad(1 / x.amax((1, 2, 3), keepdim=True), (30, 19, 30, 19))
        return parts[1](torch.cat([y[:, :1] + wild, y[:, 1:]], 1)).sigmoid().mean((2, 3))

    net = Rare(network, nn.Conv2d(3, 128, 3, padding=1), nn.Conv2d(128, 128, 3, padding=1))
    there, _ = assert_all_windows(net)
    assert there.isfinite()


@pytest.mark.parametrize("value", [1e20, torch.inf, torch.nan])
def test_contrast_norm_beside_what_has_no_square(value):
    torch.manual_seed(0)

    def network(parts, x):
        y = parts[0](x)
        dark = (x.amax((1, 2, 3)) < 0.5)[:, None, None, None]
        first = torch.where(dark, value, y[:, :1])
        return parts[1](F.local_response_norm(torch.cat([first, y[:, 1:]], 1), 5)[:, 4:]).mean((2, 3))

    there, _ = assert_all_windows(Rare(network, nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(28, 4, 3)))
    assert there.isfinite()


def test_the_logarithm_of_a_small_sigmoid():
    conv = nn.Conv2d(3, 4, 5, padding=2)
    nn.init.constant_(conv.weight, 30.0)
    nn.init.constant_(conv.bias, -88.5)
    there, _ = assert_all_windows(Rare(lambda parts, x: parts[0](x).sigmoid().log().amax((2, 3)), conv))
    assert -90 < there < -88


def test_places_of_maxima_that_are_returned():
    torch.manual_seed(0)

    def network(parts, x):
        values, places = F.max_pool2d(x, 2, return_indices=True)
        return parts[0](values).mean((2, 3)), places

    net, x = Rare(network, nn.Conv2d(3, 4, 3)), image()
    found, full = both(net, x, lambda outputs: outputs[0][:, 1])
    assert found.extras["incremental"].tolist() == [True]
    torch.testing.assert_close(found.extras["score_map"], full.extras["score_map"], rtol=1e-5, atol=1e-6)
