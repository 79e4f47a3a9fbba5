"""Trials: a way is taken where it gives torch's bits, from the second call on, and for what was tried alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from attribkit.engine.lean import trials
from attribkit.engine.lean.shortcuts import Settings

pytestmark = pytest.mark.usefixtures("one_thread", "lean_everywhere")

SETTINGS = Settings((1, 1), (0, 0), (6, 5))


def torchs(maps, weight, settings):
    return F.conv2d(maps, weight)


def same(maps, weight, settings):
    return torchs(maps, weight, settings)


def other(maps, weight, settings):
    """One bit off in one place."""
    found = torchs(maps, weight, settings)
    found[0, 0, 0, 0] = found[0, 0, 0, 0].nextafter(torch.tensor(torch.inf))
    return found


def none(maps, weight, settings):
    return None


@pytest.fixture(autouse=True)
def nothing_known():
    trials._trial.cache_clear()
    yield
    trials._trial.cache_clear()


def tensors(count=2, begin=0):
    x, weight = torch.randn(count * 90 + begin)[begin:], torch.randn(12)
    return x.view(count, 3, 6, 5), weight.view(4, 3, 1, 1)


def calls(ways, number=3, *, library=True, settings=SETTINGS, tensors_=None):
    """Which way each of some calls goes."""
    maps, weight = tensors_ or tensors()
    return [trials.way_for(torchs, ways, settings, maps, weight, library=library) for _ in range(number)]


def test_the_first_call_goes_torchs_way_and_later_ones_another():
    assert calls((same,)) == [None, same, same]


@pytest.mark.parametrize("way", [other, none])
def test_a_way_to_other_bits_is_not_taken(way):
    assert calls((way,), 4) == [None] * 4


def test_the_first_way_to_the_same_bits_is_taken():
    assert calls((none, other, same, torchs)) == [None, same, same]


def test_one_trial_is_made():
    counted = []

    def way(*args):
        counted.append(args)
        return torchs(*args)

    calls((way,), 5)
    assert len(counted) == 1


def test_a_trial_is_for_its_case():
    assert calls((same,)) == [None, same, same]
    assert calls((same,), 1, library=False) == [None]
    assert calls((same,), 1, settings=Settings((1, 1), (0, 0), (5, 6))) == [None]
    assert calls((same,), 1, tensors_=tensors(3)) == [None]
    assert calls((other,), 1) == [None]
    torch.set_num_threads(2)  # set back by the fixture
    assert calls((same,), 1) == [None]
    torch.set_num_threads(1)
    assert calls((same,), 1) == [same]


@pytest.mark.parametrize("which", ["maps", "weight"])
def test_what_begins_elsewhere_in_memory_goes_torchs_way(which):
    maps, weight = tensors(begin=1) if which == "maps" else tensors()
    if which == "weight":
        weight = torch.randn(13)[1:].view(4, 3, 1, 1)
    assert calls((same,), 4, tensors_=(maps, weight)) == [None] * 4
    assert calls((same,), tensors_=(maps.clone(), weight.clone())) == [None, same, same]


def test_the_callers_random_numbers_stay_theirs():
    given = tensors()
    before = torch.get_rng_state()
    calls((same,), tensors_=given)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_noise_is_float32_on_the_cpu_whatever_the_default(monkeypatch):
    seen = []

    def way(maps, weight, settings):
        seen.extend((maps.dtype, maps.device.type, weight.dtype, weight.device.type))
        return torchs(maps, weight, settings)

    given = tensors()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            calls((way,), tensors_=given)
    finally:
        torch.set_default_dtype(before)
    assert seen == [torch.float32, "cpu"] * 2


def test_no_two_channels_of_large_noise_are_alike():
    noise = trials.noise(torch.Size([2, 32, 56, 56]), torch.Generator().manual_seed(0))
    assert noise.data_ptr() % 64 == 0
    assert noise.dtype is torch.float32
    assert -0.5 <= noise.min() < -0.49
    assert 0.49 < noise.max() < 0.5
    assert abs(noise.mean()) < 0.01
    assert len(noise.view(64, -1)[:, 0].unique()) == 64
    for other in range(1, 64):
        assert not torch.equal(noise.view(64, -1)[0], noise.view(64, -1)[other])
