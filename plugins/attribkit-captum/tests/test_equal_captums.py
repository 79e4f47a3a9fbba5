"""Each method is Captum's own map, called directly with the defaults that the plugin makes spelled out."""

import captum.attr as ca
import captum_calls
import pytest
import torch
from attribkit_captum.found import snake_case
from attribkit_captum.known import KNOWN
from captum_calls import grid, seeded
from captum_nets import CLASSES, images, net

import attribkit as ak

MASKS = {n: grid(torch.empty(1, 3, 12, 12), n) for n in (2, 3)}  # patches of four pixels, the least there are


@pytest.mark.parametrize("name", captum_calls.DIRECT)
def test_equal(name, monkeypatch):
    # of images this small the grids that the plugin makes have three patches along a side
    monkeypatch.setattr(captum_calls, "grid", lambda x, patches: grid(x, min(patches, 3)))
    model, x = net(), images()
    own = {"layer": "3"} if name == "guided_grad_cam" else {}
    found = ak.attribute(model, x, f"captum.{name}", CLASSES, **own).values
    expected = captum_calls.DIRECT[name](model, x, CLASSES, "3")
    assert expected.abs().max() > 0
    # what Captum sums up is in float32
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-7 * float(expected.abs().max()))


def test_every_algorithm_that_is_known_is_compared():
    assert set(captum_calls.DIRECT) == {snake_case(name) for name in KNOWN}


def test_options_go_through():
    model, x = net(), images()
    signed = ak.attribute(model, x, "captum.saliency", CLASSES, abs=False).values
    assert torch.allclose(signed, ak.attribute(model, x, "gradient", CLASSES).values, rtol=1e-12)
    window = {"sliding_window_shapes": (1, 3, 5), "strides": (1, 2, 4), "baselines": 0.5}
    found = ak.attribute(model, x, "captum.occlusion", CLASSES, **window).values
    expected = ca.Occlusion(model).attribute(x, target=CLASSES, **window)
    assert torch.allclose(found, expected.double(), rtol=1e-6)
    half = ak.attribute(model, x, "captum.occlusion", CLASSES, sliding_window_shapes=(3, 6, 4)).values
    expected = ca.Occlusion(model).attribute(x, (3, 6, 4), target=CLASSES, strides=(3, 3, 2))
    assert torch.allclose(half, expected.double(), rtol=1e-6)
    local = ak.attribute(model, x, "captum.deep_lift", CLASSES, multiply_by_inputs=False).values
    product = ak.attribute(model, x, "captum.deep_lift", CLASSES).values
    assert torch.allclose(local * x, product)


@pytest.mark.parametrize("name", ["integrated_gradients", "deep_lift", "gradient_shap", "deep_lift_shap", "lrp"])
def test_the_convergence_delta_is_an_extra(name):
    model, x = net(), images()
    found = ak.attribute(model, x, f"captum.{name}", CLASSES, return_convergence_delta=True)
    delta = found.extras["convergence_delta"]
    draws = {"gradient_shap": 5, "deep_lift_shap": 2}.get(name)
    assert delta.shape == ((3,) if draws is None else (3, draws))
    assert torch.equal(found.values, ak.attribute(model, x, f"captum.{name}", CLASSES).values)
    if name == "deep_lift":
        with torch.no_grad():
            gain = (model(x) - model(0 * x)).gather(1, CLASSES[:, None])[:, 0]
        assert torch.allclose(found.values.sum((1, 2, 3)) - gain, delta, atol=1e-9)


def test_baselines_and_masks_of_each_sample_follow_their_samples():
    model, x = net(), images()
    mask = torch.stack([MASKS[2][0], MASKS[2][0].flip(1), (MASKS[2][0] + 1) % 4])
    options = {"baselines": images(seed=4), "feature_mask": mask}
    found = ak.attribute(model, x, "captum.shapley_value_sampling", CLASSES, **options).values
    for i in range(3):
        own = {name: value[i : i + 1] for name, value in options.items()}
        alone = ak.attribute(model, x[i : i + 1], "captum.shapley_value_sampling", CLASSES[i : i + 1], **own).values
        assert torch.allclose(found[i : i + 1], alone, rtol=1e-6)


def test_a_single_image_exchanges_patches_with_itself():
    model, x = net(), images(1)
    found = ak.attribute(model, x, "captum.feature_permutation", 2).values
    moved = x.roll((6, 6), (2, 3))
    with torch.no_grad():
        for patch in range(9):
            inside = MASKS[3] == patch
            drop = (model(x) - model(torch.where(inside, moved, x)))[0, 2]
            assert torch.allclose(found[inside.expand_as(found)], drop)
    assert found.abs().max() > 0


@pytest.mark.parametrize("inner", ["deep_lift", "captum.input_x_gradient", "guided_grad_cam", "occlusion"])
@pytest.mark.filterwarnings("ignore:.*Setting", "ignore:.*Input Tensor")
def test_noise_around_other_methods(inner):
    model, x = net(), images(2)
    own = {"sliding_window_shapes": (3, 6, 6), "strides": (3, 3, 3)} if inner == "occlusion" else {}
    found = ak.attribute(
        model,
        x,
        "captum.noise_tunnel",
        CLASSES[:2],
        attribution_method=inner,
        attribution_options=own,
        nt_samples=3,
        stdevs=0.1,
        seed=5,
    ).values
    name = {"deep_lift": "DeepLift", "captum.input_x_gradient": "InputXGradient"}.get(inner, "GuidedGradCam")
    name = "Occlusion" if inner == "occlusion" else name
    for i in range(2):
        seeded(5)
        made = getattr(ca, name)(*((model, model[3]) if name == "GuidedGradCam" else (model,)))
        expected = ca.NoiseTunnel(made).attribute(
            x[i : i + 1].clone().requires_grad_(), nt_samples=3, stdevs=0.1, target=CLASSES[i : i + 1], **own
        )
        assert torch.allclose(found[i : i + 1], expected.detach().double(), rtol=1e-6, atol=1e-10)
