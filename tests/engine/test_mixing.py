"""Models that make one image's scores of the others too: occlusion keeps the caller's batch together."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attribkit as ak
from attribkit.engine.mixing import mixes

pytestmark = pytest.mark.usefixtures("one_thread")

WINDOW, STRIDE, SIZE = 4, 3, 16
ONE_SIZE = "one batch size"


class Net(nn.Module):
    """Weighs its features by what a function makes of all of them."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.conv, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 4)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.head(self.function(self, F.relu(self.conv(x))))


MIXED = {
    "batch statistics": lambda net, y: F.batch_norm(y, None, None, training=True).relu().mean((2, 3)),
    "a mean over the batch": lambda net, y: (y * y.mean(0, keepdim=True).sigmoid()).mean((2, 3)),
    "control flow": lambda net, y: (y if y.mean() > 0.3 else -y).mean((2, 3)),
    "a number taken out": lambda net, y: y.mean((2, 3)) * y.max().item(),
    ONE_SIZE: lambda net, y: y.reshape(3, 6, -1).mean(2),
    "the order of the batch": lambda net, y: y.mean((2, 3)).cumsum(0).flip(0),
}
APART = {
    "each for itself": lambda net, y: y.mean((2, 3)),
    "a number of its own": lambda net, y: y.mean((2, 3)) * net.scale.item(),
    "a mean over each image": lambda net, y: (y * y.mean((1, 2, 3), keepdim=True)).mean((2, 3)),
}


def model_of(function):
    return Net(function).double().eval()


def images(count):
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def window_by_window(net, x, target):
    """The definition, with one window at a time filled in every image of the batch."""
    clean, total, count = net(x)[:, target].detach(), torch.zeros_like(x), torch.zeros(SIZE, SIZE, dtype=x.dtype)
    for top in range(0, SIZE - WINDOW + 1, STRIDE):
        for left in range(0, SIZE - WINDOW + 1, STRIDE):
            place = (..., slice(top, top + WINDOW), slice(left, left + WINDOW))
            occluded = x.clone()
            occluded[place] = 0
            total[place] += (clean - net(occluded)[:, target].detach())[:, None, None, None]
            count[place[1:]] += 1
    return total / count.clamp(min=1)


@pytest.mark.filterwarnings("ignore::attribkit.errors.IncrementalWarning")
@pytest.mark.parametrize("engine", ["auto", "full"])
@pytest.mark.parametrize(
    ("name", "count"),
    [(name, count) for name in (*MIXED, *APART) for count in (1, 3) if (name, count) != (ONE_SIZE, 1)],
)
def test_equals_the_definition_on_the_callers_batch(name, count, engine):
    net, x = model_of((MIXED | APART)[name]), images(count)
    expected = window_by_window(net, x, 1)
    assert expected.any()
    for bytes_ in (None, 1):  # whatever fits into a batch
        options = {"window": WINDOW, "stride": STRIDE, "engine": engine, "max_batch_bytes": bytes_}
        found = ak.attribute(net, x, "occlusion", 1, **options).values
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore::attribkit.errors.IncrementalWarning")
def test_fewer_windows_of_a_batch_that_stays_together():
    net, x = model_of(MIXED["a mean over the batch"]), images(3)
    options = {"window": WINDOW, "stride": STRIDE}
    full = ak.attribute(net, x, "occlusion", 1, **options)
    fewer = ak.attribute(net, x, "occlusion", 1, approximate=1e-9, **options)
    torch.testing.assert_close(fewer.extras["score_map"], full.extras["score_map"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", APART)
def test_what_does_not_mix_shares_batches(name):
    rows = []
    net, x = model_of(APART[name]), images(1)
    net.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    ak.attribute(net, x, "occlusion", 1, window=WINDOW, stride=STRIDE, engine="full")
    assert max(rows) == 25


@pytest.mark.parametrize("name", [*MIXED, *APART])
def test_whether_a_model_mixes(name):
    net, x = model_of((MIXED | APART)[name]), images(3)
    others = torch.cat([x[:1], images(4)[3:]])
    assert mixes(net, x, others) is (name in MIXED)


def test_a_fault_of_the_model_comes_out():
    def broken(x):
        if len(x) == 3:
            raise ValueError("broken")
        return x.sum((1, 2, 3))

    with pytest.raises(ValueError, match="broken"):
        mixes(broken, images(3), images(2))
    assert mixes(broken, images(2), images(3))  # it does not take every batch


def test_no_numbers_are_alike():
    nothing = torch.full((2, 1), torch.nan, dtype=torch.float64)
    assert not mixes(lambda x: x.sum((2, 3)) * nothing[:1], images(2), images(1))
    assert mixes(lambda x: x.sum((2, 3)) * nothing[:1].nan_to_num(len(x)), images(2), images(1))


class Chooses(nn.Module):
    """Asks torch to run one of two functions."""

    def forward(self, x):
        return torch.cond(x.mean() > 0, lambda y: y * 2, lambda y: y * 3, (x,)).sum((2, 3))


@pytest.mark.parametrize("engine", ["auto", "full"])
def test_functions_that_torch_chooses_among(engine):
    x = images(1)
    expected = window_by_window(Chooses(), x, 1)
    found = ak.attribute(Chooses(), x, "occlusion", 1, window=WINDOW, stride=STRIDE, engine=engine).values
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_model_that_fails_for_being_watched():
    calls = []

    def network(x):
        calls.append(len(x))
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            return x @ torch.zeros(1, 1)  # sizes that do not fit
        return x.mean((2, 3))

    assert mixes(network, images(3), images(2))  # for all that is known
    assert calls == [3, 3]


class Refused(Exception):
    """A model's own error."""


def test_a_model_that_refuses_a_batch_whenever_it_gets_it():
    def network(x):
        if len(x) == 2:
            raise Refused("two are a crowd")
        return x.mean((2, 3))

    assert mixes(network, images(3), images(2))


@pytest.mark.parametrize("at", [0, 1])
def test_an_error_that_comes_once_comes_out(at):
    """At the first pass, which is watched, and at the one on the other batch."""
    calls = []

    def network(x):
        calls.append(len(x))
        if len(calls) == at + 1:
            raise Refused(f"once, at {len(x)} images")
        return x.mean((2, 3))

    with pytest.raises(Refused, match=f"once, at {3 - at} images"):
        mixes(network, images(3), images(2))
