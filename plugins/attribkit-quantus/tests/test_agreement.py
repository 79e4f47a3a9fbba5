"""The measures of `attribkit evaluate` give the numbers of Quantus's, where Quantus has the same measure."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attribkit_quantus import explain_func, faithfulness, grids, measures
from attribkit_quantus.randomisation import plan
from attribkit_quantus.scoring import scores
from attribkit_quantus.statistics import rank_correlation
from evaluated_nets import CLASSES, images, net

import attribkit as ak

quantus = pytest.importorskip("quantus", reason="Quantus is not installed: agreement with it is not tested")
pytestmark = pytest.mark.filterwarnings("ignore")

QUIET = {"disable_warnings": True, "display_progressbar": False}


@pytest.fixture
def case():
    model, x = net(1), images(3, 1)
    tensor, classes = torch.as_tensor(x), torch.as_tensor(CLASSES)
    values = ak.attribute(model, tensor, "gradient", classes).values
    return model, x, tensor, classes, values


def ask(metric, model, x, values=None, **more):
    """Return what a metric of Quantus finds for the gradient's maps."""
    given = None if values is None else values.numpy().copy()
    return metric(
        model=model, x_batch=x, y_batch=CLASSES, a_batch=given, device="cpu",
        explain_func=explain_func, explain_func_kwargs={"method": "gradient"}, **more,
    )  # fmt: skip


def score(model, softmax):
    def of(x, classes):
        found = scores(model, x, len(x))
        return (found.softmax(1) if softmax else found).gather(1, classes[:, None])[:, 0]

    return of


def test_deletion_is_pixel_flipping_to_the_mean_colour(case):
    model, x, tensor, classes, values = case
    metric = quantus.PixelFlipping(features_in_step=16, perturb_baseline=0.0, normalise=False, abs=False, **QUIET)
    theirs = np.array(ask(metric, model, x, values, softmax=True))
    place = faithfulness.places(measures.heatmap(values, "signed"))
    ours = faithfulness.deletion(score(model, True), tensor, classes, place, steps=16)
    np.testing.assert_allclose(ours[:, 1:].numpy(), theirs, rtol=1e-4)  # theirs leaves the start out
    absolute = faithfulness.places(measures.heatmap(values, "absolute"))
    metric = quantus.PixelFlipping(features_in_step=16, perturb_baseline=0.0, normalise=False, abs=True, **QUIET)
    theirs = np.array(ask(metric, model, x, values, softmax=True))
    ours = faithfulness.deletion(score(model, True), tensor, classes, absolute, steps=16)
    np.testing.assert_allclose(ours[:, 1:].numpy(), theirs, rtol=1e-4)


def test_patches_fall_as_in_region_perturbation(case):
    model, x, tensor, classes, values = case
    metric = quantus.RegionPerturbation(
        patch_size=4, regions_evaluation=16, perturb_baseline=0.0, normalise=False, **QUIET
    )
    theirs = np.array(ask(metric, model, x, values, softmax=False))
    place = faithfulness.places(faithfulness.patch_sums(values.sum(1), 4))
    place = place.repeat_interleave(4, 1).repeat_interleave(4, 2)
    curve = faithfulness.replaced(
        score(model, False), tensor, classes, torch.zeros_like(tensor), place, list(range(17))
    )
    np.testing.assert_allclose((curve[:, :1] - curve[:, 1:]).numpy(), theirs, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(faithfulness.mean_drop(curve) * 17 / 16, theirs.mean(1), rtol=1e-4)


def test_randomised_layers_and_rank_correlation(case):
    model, x, tensor, classes, values = case
    # the same new weights as Quantus draws, one layer after the other
    theirs = ask(quantus.MPRT(seed=7, normalise=False, abs=False, **QUIET), model, x)
    cascade = plan(model, tensor[:1], 10)
    assert tuple(theirs)[1:] == cascade.layers
    shadow = net(1)
    before = values.flatten(1).numpy()
    for name in cascade.layers:
        with torch.random.fork_rng():
            torch.manual_seed(8)
            shadow.get_submodule(name).reset_parameters()
        after = ak.attribute(shadow, tensor, "gradient", classes).values
        np.testing.assert_allclose(rank_correlation(before, after.flatten(1).numpy()), theirs[name], rtol=1e-6)


def test_rank_correlation_with_many_equal_values():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 3, size=(4, 50)).astype(float), rng.integers(0, 5, size=(4, 50)).astype(float)
    theirs = [quantus.similarity_func.correlation_spearman(first, second) for first, second in zip(a, b, strict=True)]
    np.testing.assert_allclose(rank_correlation(a, b), theirs)


def test_max_sensitivity_with_the_same_noise(case):
    model, x, tensor, classes, values = case
    patterns = iter(measures.unit_noise(tensor, 4, 5).numpy())
    span = x.max((1, 2, 3), keepdims=True) - x.min((1, 2, 3), keepdims=True)

    def noise(arr, indices, **kwargs):
        return (arr.reshape(x.shape) + 0.02 * span * (2 * next(patterns) - 1)).reshape(arr.shape).astype(np.float32)

    metric = quantus.MaxSensitivity(nr_samples=4, perturb_func=noise, normalise=False, abs=False, **QUIET)
    theirs = ask(metric, model, x, values)
    ours = measures.max_sensitivity(
        lambda y: ak.attribute(model, y, "gradient", classes).values, tensor, values, repeats=4, radius=0.02, seed=5
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_complexity_and_sparseness(case):
    model, x, _, _, values = case
    theirs = ask(quantus.Complexity(normalise=False, **QUIET), model, x, values)
    np.testing.assert_allclose(measures.complexity(values), theirs, rtol=1e-5)
    theirs = ask(quantus.Sparseness(normalise=False, **QUIET), model, x, values)
    np.testing.assert_allclose(measures.sparseness(values), theirs, rtol=1e-4)  # theirs adds 1e-7 to every value


@pytest.mark.parametrize("cell", range(4))
def test_the_share_in_a_cell_is_attribution_localisation(case, cell):
    model, x, _, _, values = case
    inside = np.zeros((3, 1, 16, 16), dtype=bool)
    row, column = divmod(cell, 2)
    inside[:, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = True
    metric = quantus.AttributionLocalisation(positive_attributions=True, abs=False, normalise=False, **QUIET)
    theirs = ask(metric, model, x, values, s_batch=inside)
    np.testing.assert_allclose(grids.shares(values.sum(1), cell, 2).numpy(), theirs, rtol=1e-5)
