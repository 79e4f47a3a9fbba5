"""Methods around an image: against Captum's noise tunnel given the same noise, and by hand."""

from unittest import mock

import captum.attr
import pytest
import torch
from nets import CLASSES, images, net

import attribkit as ak


def drawn(samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((samples, 3, 10, 10), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("method", "theirs"), [("smooth_grad", "smoothgrad"), ("var_grad", "vargrad")])
def test_given_the_same_noise_the_map_is_that_of_captums_noise_tunnel(method, theirs):
    model, x, samples = net(), images(), 13
    found = ak.attribute(model, x, method, CLASSES, samples=samples, deviation=0.3).values
    noise = 0.3 * drawn(samples).repeat(len(x), 1, 1, 1)  # Captum's copies of one image follow each other
    with mock.patch("torch.normal", return_value=noise):
        expected = captum.attr.NoiseTunnel(captum.attr.Saliency(model)).attribute(
            x.clone().requires_grad_(), nt_type=theirs, nt_samples=samples, stdevs=0.3, target=CLASSES, abs=False
        )
    assert expected.abs().max() > 0
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("base", ["gradient", "guided_backprop", "input_x_gradient"])
def test_worked_out_copy_by_copy(base):
    model, x = net(), images()
    spread = (x.amax((1, 2, 3)) - x.amin((1, 2, 3)))[:, None, None, None]
    maps = [ak.attribute(model, x + 0.15 * spread * n, base, CLASSES).values for n in drawn(6, seed=2)]
    stacked = torch.stack(maps)
    smooth = ak.attribute(model, x, "smooth_grad", CLASSES, samples=6, seed=2, base=base, rows=4).values
    assert torch.allclose(smooth, stacked.mean(0), rtol=1e-9, atol=1e-12)
    variance = ak.attribute(model, x, "var_grad", CLASSES, samples=6, seed=2, base=base, rows=4).values
    assert torch.allclose(variance, stacked.var(0, correction=0), rtol=1e-9, atol=1e-12)


def test_without_noise_the_mean_is_the_gradient_and_the_variance_zero():
    model, x = net(), images()
    smooth = ak.attribute(model, x, "smooth_grad", CLASSES, noise=0.0).values
    assert torch.allclose(smooth, ak.attribute(model, x, "gradient", CLASSES).values)
    assert ak.attribute(model, x, "var_grad", CLASSES, noise=0).values.abs().max() < 1e-20


def test_another_seed_gives_another_map():
    model, x = net(), images()
    one, other = (ak.attribute(model, x, "smooth_grad", CLASSES, seed=seed).values for seed in (0, 1))
    assert (one - other).abs().max() > 1e-6
