"""Occlusion with fewer windows: what was looked at is exact, what was not has an honest estimate."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

import attribkit as ak
from attribkit.engine.incremental import Incremental
from attribkit.errors import InputError, InputTypeError


class Weighted(nn.Module):
    """Two scores: the sum of the pixels by given weights, and its negative."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, x):
        total = (x * self.weights).sum((1, 2, 3))
        return torch.stack([total, -total], 1)


def bump(side, centre, width):
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (2 * width**2)).double()


def occlude(model, images, approximate, **options):
    options = {"target": 0, "window": 16, "stride": 4, "engine": "full", **options}
    return ak.attribute(model, images, "occlusion", approximate=approximate, **options)


@pytest.fixture
def smooth():
    return Weighted(bump(64, (20, 36), 8.0)).eval()


def test_a_smooth_score_needs_fewer_windows(smooth):
    images = torch.ones(2, 1, 64, 64, dtype=torch.float64) * torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)
    whole, some = occlude(smooth, images, None), occlude(smooth, images, 0.05)
    seen, error = some.extras["seen"], some.extras["error_map"]
    assert seen.shape == whole.extras["score_map"].shape
    assert 0.05 < seen.double().mean() < 0.8
    wrong = (some.extras["score_map"] - whole.extras["score_map"]).abs()
    largest = (whole.scores[:, None, None] - whole.extras["score_map"]).abs().amax((1, 2), keepdim=True)
    assert (wrong[seen] == 0).all()
    assert (error[seen] == 0).all()
    assert (error <= 0.05 * largest).all()
    assert wrong.max() > 0
    assert (wrong <= 0.1 * largest).all()
    assert (some.values - whole.values).abs().max() <= 0.1 * whole.values.abs().max()


def test_where_scores_jump_nearly_every_window_is_looked_at():
    torch.manual_seed(2)
    weights = torch.randn(64, 64, dtype=torch.float64)
    weights[:, 32:] = 0.0
    model = Weighted(weights).eval()
    images = torch.ones(1, 1, 64, 64, dtype=torch.float64)
    whole, some = occlude(model, images, None, stride=2), occlude(model, images, 0.1, stride=2)
    seen = some.extras["seen"][0].double()
    assert seen[:, :12].mean() > 0.95
    assert seen[:, -7:].mean() < 0.5
    wrong = (some.extras["score_map"] - whole.extras["score_map"]).abs().max()
    assert wrong <= 0.2 * (whole.scores - whole.extras["score_map"]).abs().max()


def test_an_object_anywhere_is_found():
    images = torch.ones(1, 1, 64, 64, dtype=torch.float64)
    for centre in [(2, 61), (33, 30), (47, 12)]:
        weights = torch.zeros(64, 64, dtype=torch.float64)
        weights[centre] = 1.0
        some = occlude(Weighted(weights).eval(), images, 0.3)
        assert some.heatmap()[0][centre] > 0.5


def test_windows_that_do_not_overlap_are_all_looked_at(smooth):
    images = torch.rand(1, 1, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    some, whole = occlude(smooth, images, 0.9, stride=16), occlude(smooth, images, None, stride=16)
    assert some.extras["seen"].all()
    assert torch.equal(some.values, whole.values)


def test_time_ends_it(smooth):
    class Slow(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += len(x)
            time.sleep(0.002 * len(x))
            return smooth(x)

    slow = Slow().eval()
    images = torch.ones(1, 1, 64, 64, dtype=torch.float64)
    hurried = occlude(slow, images, "0.05s", stride=2)
    seen = hurried.extras["seen"]
    assert 0 < seen.double().mean() < 0.5
    assert hurried.extras["error_map"][~seen].max() > 0
    assert occlude(slow, images, "60 s", stride=8).extras["seen"].all()


def test_labels_are_the_nearest_and_activity_is_filled_in():
    torch.manual_seed(0)
    model = (
        nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 32 * 32, 4)).double().eval()
    )
    images = torch.rand(2, 1, 32, 32, dtype=torch.float64)
    options = {"window": 8, "stride": 2, "unit_layer": "0", "unit_channel": 1}
    whole, some = occlude(model, images, None, **options), occlude(model, images, 0.3, **options)
    seen = some.extras["seen"]
    assert not seen.all()
    assert torch.equal(some.extras["label_map"][seen], whole.extras["label_map"][seen])
    assert set(some.extras["label_map"].flatten().tolist()) <= set(whole.extras["label_map"].flatten().tolist())
    assert torch.equal(some.extras["unit_map"][seen], whole.extras["unit_map"][seen])
    assert (some.extras["unit_map"][~seen] != 0).all()


def test_both_engines_look_at_the_same_windows():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 256, 4)
    )
    images = torch.rand(3, 3, 32, 32)
    full, fast = (occlude(model.eval(), images, 0.2, engine=e, window=8, stride=2) for e in ("full", "incremental"))
    assert fast.extras["incremental"].all()
    assert torch.equal(full.extras["seen"], fast.extras["seen"])
    assert not full.extras["seen"].all()
    assert torch.allclose(full.values, fast.values, atol=1e-6)


def test_of_every_image_a_window_is_compared_with_the_model(monkeypatch):
    seen, compared = [], set()
    original = Incremental._check

    def check(self, image, places, leaves):
        seen.append(image)
        if set(image.places) & set(places):
            compared.add(id(image))
        original(self, image, places, leaves)

    monkeypatch.setattr(Incremental, "_check", check)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 1024, 4)).eval()
    found = occlude(model, torch.rand(6, 3, 32, 32), 0.9, engine="incremental", window=8, stride=1)
    assert found.extras["incremental"].all()
    assert found.extras["seen"].double().mean() < 0.2
    assert len({id(image) for image in seen}) >= 6
    assert {id(image) for image in seen} == compared


@pytest.mark.parametrize(
    ("approximate", "error", "words"),
    [
        (0, InputError, "between 0 and 1.*got 0"),
        (1.5, InputError, "between 0 and 1.*got 1.5"),
        ("soon", InputError, "seconds such as '20s', got 'soon'"),
        ("-3s", InputError, "got '-3s'"),
        (True, InputTypeError, "a number or seconds"),
        ([0.1], InputTypeError, "a number or seconds"),
    ],
)
def test_bad_limits(smooth, approximate, error, words):
    with pytest.raises(error, match=words):
        occlude(smooth, torch.ones(1, 1, 64, 64, dtype=torch.float64), approximate)
