import csv

import numpy as np
import pytest
import torch
from torch import nn

from attribkit.errors import InputTypeError, ModelError
from attribkit.features import diagnose
from attribkit.features._filters import BANDS, aliasing, band_areas, band_shares, power, rms

pytestmark = pytest.mark.usefixtures("one_thread")


def grating(side, vertical, horizontal, phase=0.0):
    y, x = np.mgrid[:side, :side]
    return np.cos(2 * np.pi * (vertical * y + horizontal * x) + phase)


def network(weight, stride=1, groups=1, bias=None):
    count, channels, *kernel = weight.shape
    convolution = nn.Conv2d(channels * groups, count, kernel, stride=stride, groups=groups).double()
    with torch.no_grad():
        convolution.weight.copy_(torch.from_numpy(weight))
        convolution.bias.copy_(torch.zeros(count) if bias is None else torch.tensor(bias))
    return nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.LazyLinear(2).double())


def ready(model, inputs):
    torch.manual_seed(0)
    model(inputs)
    return model


@pytest.fixture
def weight():
    return np.random.default_rng(0).normal(size=(5, 3, 7, 7))


@pytest.mark.parametrize(
    ("f", "band"),
    [((0, 0), "low"), ((4, 0), "low"), ((0, 12), "mid"), ((8, 8), "mid"), ((16, 4), "high"), ((32, 32), "high")],
)
def test_a_grating_has_all_its_energy_in_its_band(f, band):
    # on the grid's own side a grating is one frequency and its mirror
    filters = grating(64, f[0] / 64, f[1] / 64, 0.3)[None, None]
    shares = band_shares(power(filters))
    assert shares[band][0] == pytest.approx(1, abs=1e-12)
    assert sum(share[0] for share in shares.values()) == pytest.approx(1, abs=1e-12)


def test_an_impulse_has_the_shares_of_white_noise():
    filters = np.zeros((1, 2, 5, 5))
    filters[0, 1, 2, 2] = 3.0
    areas = band_areas(64)
    assert sum(areas.values()) == pytest.approx(1)
    for band, share in band_shares(power(filters)).items():
        assert share[0] == pytest.approx(areas[band], abs=1e-12)
    # every frequency is answered alike: the ratio is 1, the share the area outside the square
    ratio, share = aliasing(power(filters), (2, 2))
    assert ratio[0] == pytest.approx(1, abs=1e-12)
    assert share[0] == pytest.approx(1 - 33 * 33 / 64**2, abs=1e-12)


def test_the_spectrum_is_the_fourier_transform(weight):
    spectrum = power(weight)
    y, x = np.mgrid[:7, :7]
    for v, h in ((0, 0), (5, 60), (31, 1)):
        wave = np.exp(-2j * np.pi * (v * y + h * x) / 64)
        expected = (np.abs((weight * wave).sum((2, 3))) ** 2).sum(1)
        np.testing.assert_allclose(spectrum[:, v, h], expected, rtol=1e-10)
    np.testing.assert_allclose(spectrum.sum((1, 2)), 64**2 * (weight**2).sum((1, 2, 3)))  # Parseval


def test_power_is_the_amplitude_of_the_answer_to_a_grating_of_the_best_colour(weight):
    v, h = 9 / 64, 22 / 64
    spectrum = power(weight)
    y, x = np.mgrid[:7, :7]
    waves = (weight * np.exp(2j * np.pi * (v * y + h * x))).sum((2, 3))  # each channel's complex response
    for k in range(5):
        colour = np.conj(waves[k]) / np.linalg.norm(waves[k])
        amplitudes, phases = np.abs(colour), np.angle(colour)
        picture = np.stack([a * grating(71, v, h, p) for a, p in zip(amplitudes, phases, strict=True)])
        answer = torch.conv2d(torch.from_numpy(picture[None]), torch.from_numpy(weight[k : k + 1]))[0, 0].numpy()
        # 64 positions each way are whole periods: the mean square of a cosine is half its amplitude squared
        amplitude = np.sqrt(2 * (answer[:64, :64] ** 2).mean())
        assert amplitude == pytest.approx(np.sqrt(spectrum[k, 9, 22]), rel=1e-10)


def test_aliasing_by_hand():
    low, high = grating(64, 2 / 64, 0)[None], grating(64, 0, 30 / 64)[None]
    filters = np.stack([low, high, low + 2 * high])
    ratio, share = aliasing(power(filters), (2, 2))
    np.testing.assert_allclose(share, [0, 1, 4 / 5], atol=1e-12)
    assert ratio[0] == pytest.approx(0, abs=1e-12)
    assert ratio[2] == pytest.approx(np.sqrt(4 / 1 * 33**2 / (64**2 - 33**2)), rel=1e-10)
    _, across = aliasing(power(filters), (2, 1))  # rows are subsampled, columns are not
    np.testing.assert_allclose(across, [0, 0, 0], atol=1e-12)
    ratio, share = aliasing(power(filters), (1, 1))
    assert ratio.tolist() == share.tolist() == [0, 0, 0]


def test_dead_and_dominating_filters(tmp_path):
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(8, 1, 5, 5))
    weight -= weight.mean((1, 2, 3), keepdims=True)
    weight /= np.sqrt((weight**2).mean((1, 2, 3), keepdims=True))
    weight[2] *= 5  # dominates
    weight[4] *= 0.01  # weak
    weight[6] = -np.abs(weight[6])  # never active on images that are positive
    images = torch.rand(6, 1, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = ready(network(weight, stride=2), images)
    found = diagnose(model, images, batch_size=4)
    assert (found.layer, found.rectifier, found.stride, found.images) == ("0", "1", (2, 2), 6)
    assert found.dominating.tolist() == [2]
    assert found.weak.tolist() == [4]
    assert found.silent.tolist() == [6]
    assert found.dead.tolist() == [4, 6]
    with torch.no_grad():
        peaks = model[1](model[0](images)).movedim(1, 0).flatten(1).amax(1)
    np.testing.assert_array_equal(found.peak, peaks.numpy())
    np.testing.assert_allclose(found.rms, rms(weight))
    words = " ".join(found.verdict())
    assert "of 8 filters 1 never active at 1 on 6 images, 1 with an RMS below 0.1" in words
    assert "(4, 6)" in words
    assert "1 filter dominates (above 3 times the median) (2)" in words
    with open(found.to_csv(tmp_path / "d.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(r["filter"]) for r in rows if r["dead"] == "1"] == [4, 6]
    assert [float(r["rms"]) for r in rows] == found.rms.tolist()
    assert [float(r["peak"]) for r in rows] == found.peak.tolist()
    for band in BANDS:
        assert [float(r[f"{band}_share"]) for r in rows] == found.shares[band].tolist()
    assert [r["preferred"] for r in rows] == found.preferred.tolist()


def test_preferred_bands_and_a_gap():
    filters = np.stack([grating(16, 1 / 16, 0), grating(16, 0, 7 / 16), grating(16, 3 / 16, 0), grating(16, 1 / 16, 0)])
    images = torch.zeros(1, 1, 20, 20, dtype=torch.float64)
    model = ready(network(filters[:, None]), images)
    found = diagnose(model, images, active=False)
    assert found.preferred.tolist() == ["low", "high", "mid", "low"]
    assert "The middle frequencies are covered: by preferred band 2 low, 1 mid, 1 high" in found.verdict()[2]
    model = ready(network(filters[[0, 1, 1, 0], None]), images)
    found = diagnose(model, images, active=False)
    assert found.verdict()[2].startswith(
        "Few filters prefer middle frequencies: by preferred band 2 low, 0 mid, 2 high"
    )
    assert found.verdict()[3] == "No aliasing: the stride is 1."
    assert "activity was not measured" in found.verdict()[0]
    assert np.isnan(found.peak).all()


def test_a_filter_of_zeros_is_weak_and_breaks_nothing(tmp_path):
    weight = np.random.default_rng(0).normal(size=(3, 1, 3, 3))
    weight[1] = 0
    images = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = diagnose(ready(network(weight, stride=2), images), images)
    assert found.weak.tolist() == [1]
    assert found.preferred[1] == ""
    assert len(found.verdict()) == 4
    assert len(found.plot().axes) == 4
    assert found.to_csv(tmp_path / "x.csv").read_text().count("nan") == 2  # its two measures of aliasing


@pytest.mark.parametrize(("groups", "stride"), [(1, 4), (2, (2, 3)), (4, 1)])
def test_groups_strides_and_channels(groups, stride):
    weight = np.random.default_rng(0).normal(size=(8, 4 // groups, 4, 6))
    images = torch.rand(2, 4, 13, 13, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = diagnose(ready(network(weight, stride, groups), images), images)
    assert found.weight.shape == weight.shape
    assert found.groups == groups
    assert np.isfinite(found.aliasing_ratio).all()
    assert sum(found.shares.values()) == pytest.approx(np.ones(8))
    figure = found.plot()
    assert all(axes.images or axes.patches for axes in figure.axes)


def test_nothing_is_left_behind(weight):
    images = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = ready(network(weight), images).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    one, two = diagnose(model, images), diagnose(model, images)
    np.testing.assert_array_equal(one.peak, two.peak)
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_bad_input():
    with pytest.raises(ModelError, match=r"no nn\.Conv2d"):
        diagnose(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.zeros(1, 1, 2, 2))
    with pytest.raises(InputTypeError, match="float dtype"):
        diagnose(nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 2, 2, dtype=torch.long))
