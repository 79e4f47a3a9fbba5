"""Methods along a path: against Captum, by hand, and by completeness."""

import captum.attr
import numpy as np
import pytest
import torch
from nets import CLASSES, images, net
from torch import nn

import attribkit as ak
from attribkit.errors import InputError

RULES = {
    "gauss_legendre": "gausslegendre",
    "riemann_left": "riemann_left",
    "riemann_middle": "riemann_middle",
    "riemann_right": "riemann_right",
    "riemann_trapezoid": "riemann_trapezoid",
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("steps", [2, 7, 50])
def test_integrated_gradients_equal_captums(rule, steps):
    model, x, start = net(), images(), images(1, seed=5)
    found = ak.attribute(model, x, "integrated_gradients", CLASSES, baseline=start, steps=steps, rule=rule)
    oracle = captum.attr.IntegratedGradients(model)
    expected, delta = oracle.attribute(
        x, start.expand_as(x), CLASSES, n_steps=steps, method=RULES[rule], return_convergence_delta=True
    )
    if rule == "riemann_trapezoid":  # Captum's weights sum to 1 - 1 / steps, so that it misses even a straight line
        assert torch.allclose(found.values * (1 - 1 / steps), expected, rtol=1e-5, atol=1e-8)
        return
    # Captum's weights are float32 numbers
    assert torch.allclose(found.values, expected, rtol=1e-6, atol=1e-8)
    assert torch.allclose(found.extras["convergence_delta"], delta.double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_a_straight_line_is_integrated_exactly_by_every_rule(rule):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(300, 4)).double(), images()
    for steps in (2, 5):
        found = ak.attribute(model, x, "integrated_gradients", CLASSES, steps=steps, rule=rule)
        assert found.extras["convergence_delta"].abs().max() < 1e-12


def test_the_map_is_complete_as_the_steps_grow():
    model, x = net(smooth=True), images()
    few, many = (ak.attribute(model, x, "integrated_gradients", CLASSES, steps=k) for k in (2, 40))
    assert few.extras["convergence_delta"].abs().max() > 1e-4
    # a max pool has kinks, so that even Gauss and Legendre converge slowly
    assert many.extras["convergence_delta"].abs().max() < 0.1 * few.extras["convergence_delta"].abs().max()
    with torch.no_grad():
        gain = (model(x) - model(0 * x)).gather(1, CLASSES[:, None])[:, 0]
    assert torch.allclose(many.values.sum((1, 2, 3)) - gain, many.extras["convergence_delta"], atol=1e-12)


def test_a_smooth_score_is_integrated_exactly():
    class Cubic(nn.Module):
        def forward(self, x):
            return torch.stack([(x**3).flatten(1).sum(1), (x**2).flatten(1).sum(1)], 1)

    x = images()
    found = ak.attribute(Cubic(), x, "integrated_gradients", 0, steps=2)
    assert torch.allclose(found.values, x**3, rtol=1e-12)
    assert found.extras["convergence_delta"].abs().max() < 1e-10


@pytest.mark.parametrize("base", ["gradient", "guided_backprop", "deconvnet"])
def test_any_method_in_the_place_of_the_gradient(base):
    model, x = net(), images()
    found = ak.attribute(model, x, "integrated_gradients", CLASSES, base=base, steps=3, rule="riemann_middle").values
    expected = x * sum(ak.attribute(model, x * (i + 0.5) / 3, base, CLASSES).values for i in range(3)) / 3
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)
    product = ak.attribute(model, x, "input_x_gradient", CLASSES, base=base).values
    assert torch.allclose(product, x * ak.attribute(model, x, base, CLASSES).values)


@pytest.mark.parametrize("method", ["integrated_gradients", "expected_gradients", "smooth_grad", "var_grad"])
def test_memory_is_bounded_and_the_bound_changes_nothing(method):
    model, x = net(), images()
    seen = []
    handle = model.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    maps = []
    for rows in (1, 4, 1000):
        seen.clear()
        maps.append(ak.attribute(model, x, method, CLASSES, rows=rows).values)
        assert max(seen) == max(min(rows, 150), len(x))  # the score of the images themselves is one run
    handle.remove()
    assert torch.allclose(maps[0], maps[1], rtol=1e-9, atol=1e-12)
    assert torch.allclose(maps[0], maps[2], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["integrated_gradients", "expected_gradients", "smooth_grad", "var_grad"])
def test_copies_keep_each_samples_own_unit(method):
    model, x = net(), images()
    unit = ak.Unit("3", 2)
    together = ak.attribute(model, x, method, unit, rows=5).values
    alone = [ak.attribute(model, x[i : i + 1], method, unit, rows=3).values for i in range(len(x))]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-9, atol=1e-12)
    assert together.abs().sum() > 0


def test_expected_gradients_worked_out_one_by_one():
    model, x, background = net(), images(), images(4, seed=9)
    found = ak.attribute(model, x, "expected_gradients", CLASSES, background=background, samples=11, seed=3)
    generator = torch.Generator().manual_seed(3)
    chosen = torch.randint(4, (11,), generator=generator)
    places = torch.rand(11, generator=generator, dtype=torch.float64)
    expected, gain = torch.zeros_like(x), torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        scores = [model(each).gather(1, CLASSES[:, None])[:, 0] for each in (x, *(b.expand_as(x) for b in background))]
    for b, place in zip(chosen.tolist(), places, strict=True):
        start = background[b]
        gradient = ak.attribute(model, start + place * (x - start), "gradient", CLASSES).values
        expected += (x - start) * gradient / 11
        gain += (scores[0] - scores[1 + b]) / 11
    assert torch.allclose(found.values, expected, rtol=1e-9, atol=1e-12)
    assert torch.allclose(found.extras["convergence_delta"], expected.sum((1, 2, 3)) - gain, atol=1e-10)


def test_expected_gradients_from_one_image_approach_integrated_gradients():
    model, x, start = net(smooth=True), images(1), images(1, seed=9)
    exact = ak.attribute(model, x, "integrated_gradients", 1, baseline=start, steps=200).values
    errors = [
        float((ak.attribute(model, x, "expected_gradients", 1, background=start, samples=k).values - exact).norm())
        for k in (20, 2000)
    ]
    assert errors[1] < 0.1 * float(exact.norm())
    assert errors[1] < errors[0]


def test_gradient_shap_agrees_in_expectation():
    model, x, background = net(smooth=True), images(1), images(3, seed=9)
    ours = ak.attribute(model, x, "expected_gradients", 1, background=background, samples=3000, rows=300).values
    state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002  Captum draws from the global one
    try:
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        theirs = captum.attr.GradientShap(model).attribute(x, background, n_samples=3000, stdevs=0.0, target=1)
    finally:
        torch.set_rng_state(state[0])
        np.random.set_state(state[1])  # noqa: NPY002
    assert (ours - theirs).norm() < 0.1 * theirs.norm()


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("integrated_gradients", {"steps": 0}, "steps must be at least 1, got 0"),
        ("integrated_gradients", {"steps": 2.5}, "steps must be an int, got 2.5"),
        ("integrated_gradients", {"rule": "simpson"}, "rule must be .* got 'simpson'"),
        ("integrated_gradients", {"rule": "riemann_trapezoid", "steps": 1}, "of two steps or more"),
        ("integrated_gradients", {"baseline": torch.zeros(4)}, r"baseline has shape \(4,\)"),
        ("integrated_gradients", {"base": "nothing"}, "base='nothing' is no method"),
        ("integrated_gradients", {"base": "integrated_gradients"}, "would never end"),
        ("integrated_gradients", {"base": 3}, "base must be a method's name, class or instance, got 3"),
        ("integrated_gradients", {"rows": 0}, "rows must be at least 1"),
        ("expected_gradients", {"background": torch.zeros(2, 1, 4, 4)}, r"background must be images \[B, 3, 10, 10\]"),
        ("expected_gradients", {"samples": 0}, "samples must be at least 1"),
        ("smooth_grad", {"noise": -1}, "noise must be a finite number of at least 0, got -1"),
        ("var_grad", {"deviation": "much"}, "deviation must be a number, got 'much'"),
        ("smooth_grad", {"seed": -1}, "seed must be at least 0"),
    ],
)
def test_bad_options_are_refused_in_one_line(method, options, message):
    with pytest.raises(InputError, match=message) as caught:
        ak.attribute(net(), images(), method, CLASSES, **options)
    assert "\n" not in str(caught.value)
