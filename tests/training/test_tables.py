"""The paper's tables: variants of the network, and classifiers on frozen features."""

import csv

import numpy as np
import pytest
import torch
from nets import Listed, idx_folder, recipe, stripes, tiny
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from attribkit.datasets import open_images
from attribkit.errors import InputError, UnknownNameError
from attribkit.models.building import described
from attribkit.training import Recipe, ablation, probe
from attribkit.training.classifiers import fit_linear
from attribkit.training.generalisation import draw_folds, layer_features, write_probe
from attribkit.training.variants import VARIANTS, build_variant, find_variants


def test_variants_of_the_paper_have_its_shapes():
    sizes = {}
    for variant in VARIANTS:
        with torch.device("meta"):
            net = build_variant(variant, Recipe(init="model"), 1000, 3)
            out = net(torch.zeros(1, 3, 224, 224))
        assert out.shape == (1, 1000)
        sizes[variant.name] = sum(p.numel() for p in net.parameters())
    conv34 = (256 * 384 * 9 + 384) + (384 * 384 * 9 + 384)
    conv5 = (384 - 256) * 256 * 9  # reads conv2's 256 maps instead of 384
    fc6, fc7, fc8 = 9216 * 4096 + 4096, 4096 * 4096 + 4096, 4096 * 1000
    assert sizes["full"] == 62_357_608
    assert sizes["no-3-4"] == sizes["full"] - conv34 - conv5
    assert sizes["no-7"] == sizes["full"] - fc7
    assert sizes["no-6-7"] == sizes["full"] - fc6 - fc7 - fc8 + 9216 * 1000
    assert sizes["no-3-4-6-7"] == sizes["no-6-7"] - conv34 - conv5
    shapes = {"fc-2048": 2048, "fc-8192": 8192}
    for name, units in shapes.items():
        change = 9216 * units + units + units * units + units + units * 1000 - (fc6 + fc7 + fc8)
        assert sizes[name] == sizes["full"] + change
    maps = 256 * 512 * 9 + 512 + 512 * 1024 * 9 + 1024 + 1024 * 512 * 9 + 512 + 512 * 36 * 4096
    assert sizes["maps-512-1024-512"] == sizes["full"] - conv34 - (384 * 256 * 9 + 256) - 9216 * 4096 + maps


def test_variants_are_drawn_from_the_seed():
    asked = Recipe(size=48, resize=48, model_options={"width": 0.05, "hidden": 100}, seed=2)
    (variant,) = find_variants(("no-7",))
    one, two = (build_variant(variant, asked, 3, 1) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert isinstance(one.fc7, nn.Identity)
    assert isinstance(one.drop7, nn.Identity)
    assert one.fc8.in_features == one.fc6.out_features
    with pytest.raises(UnknownNameError, match="there is no variant 'no7': did you mean 'no-7'"):
        find_variants(("no7",))
    with pytest.raises(InputError, match="variants are of zfnet, not of resnet18"):
        build_variant(variant, Recipe(model="resnet18"), 3, 1)


def test_ablation_compares_runs_of_one_recipe(tmp_path):
    data = idx_folder(tmp_path / "data", train=30, test=9)
    asked = recipe(size=64, resize=66, epochs=1, init="scaled", model_options={"width": 0.05, "hidden": 60})
    rows = ablation(data, tmp_path / "out", asked, variants=["full", "no-3-4-6-7"])
    assert [row.variant for row in rows] == ["full", "no-3-4-6-7"]
    assert rows[1].parameters < rows[0].parameters
    for row in rows:
        weights = load_file(tmp_path / "out" / row.variant / "weights.safetensors")
        assert row.parameters == sum(value.numel() for value in weights.values())
        assert 0 <= row.train_error <= 1
        assert row.test_error is not None
    with open(tmp_path / "out" / "ablation.csv", newline="") as file:
        assert [row["variant"] for row in csv.DictReader(file)] == ["full", "no-3-4-6-7"]
    assert (tmp_path / "out" / "ablation.png").stat().st_size > 1000
    assert ablation(data, tmp_path / "out", asked, variants=["full", "no-3-4-6-7"]) == rows  # nothing is trained again


def loaded(classes=3):
    net = tiny(drop=0.0, classes=classes)
    net.pretrained_cfg = {"input_size": (1, 12, 12), "mean": (0.0,), "std": (1 / 255,), "crop_pct": 1.0,
                          "interpolation": "bilinear", "crop_mode": "center"}  # fmt: skip
    net.num_classes = classes
    return described("tiny", net, "built")


def striped(count, seed, name="stripes"):
    images, labels = stripes(count, seed=seed)
    return Listed([Image.fromarray(image) for image in images], labels.tolist(), ("a", "b", "c"), name)


@pytest.mark.parametrize("classifier", ["softmax", "svm"])
def test_separable_data_is_separated(classifier):
    rows = probe(
        loaded(), striped(36, 1), striped(15, 2), layers=["relu", "pool"], per_class=[4, None], folds=3,
        classifier=classifier,
    )  # fmt: skip
    assert [(row.layer, row.per_class, row.folds) for row in rows] == [
        ("relu", 4, 3), ("relu", None, 1), ("pool", 4, 3), ("pool", None, 1)]  # fmt: skip
    assert all(row.error == row.std == 0 for row in rows)
    assert [row.features for row in rows] == [100, 100, 36, 36]
    assert [row.train_images for row in rows] == [12, 36, 12, 36]


def test_labels_that_mean_nothing_cannot_be_learnt():
    rng = np.random.default_rng(0)

    def noise(count):
        pictures = [Image.fromarray(rng.integers(0, 256, (12, 12), dtype=np.uint8)) for _ in range(count)]
        return Listed(pictures, [k % 3 for k in range(count)], ("a", "b", "c"))

    (row,) = probe(loaded(), noise(60), noise(150), layers=["pool"], per_class=[15], folds=4)
    assert 0.5 < row.error < 0.8
    assert row.std > 0


def test_features_are_those_of_a_plain_forward():
    model = loaded()
    source = striped(7, 3)
    caught = {}
    found = layer_features(model, source, ["conv", "fc"], np.array([5, 2, 2]), batch_size=2)
    handles = [
        getattr(model.model, name).register_forward_hook(
            lambda module, args, out, name=name: caught.update({name: out})
        )
        for name in ("conv", "fc")
    ]
    with torch.no_grad():
        model.model(torch.stack([model.preprocess(source.load(row)) for row in (5, 2, 2)]))
    for handle in handles:
        handle.remove()
    for name, value in found.items():
        torch.testing.assert_close(value, caught[name].flatten(1), rtol=1e-6, atol=1e-5)
    pooled = layer_features(model, source, ["conv"], np.array([5]), max_features=20)["conv"]
    cells = nn.functional.adaptive_avg_pool2d(caught["conv"][:1], 2)
    torch.testing.assert_close(pooled, cells.flatten(1), rtol=1e-6, atol=1e-5)


def test_the_model_is_left_as_it_was():
    model = loaded()
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    model.model.train()
    probe(model, striped(12, 1), layers=["pool"], per_class=[2], folds=2)
    assert model.model.training
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())
    assert not any(module._forward_hooks for module in model.model.modules())


@pytest.mark.parametrize("per_class", [1, 4, None])
@pytest.mark.parametrize("held", [True, False])
def test_folds_never_test_what_they_train_with(per_class, held):
    classes = np.array([0] * 7 + [1] * 130 + [2] * 9)
    plan = draw_folds(classes, per_class, 4, 0, held=held)
    assert len(plan) == (1 if per_class is None and not held else 4)
    for fit, out in plan:
        assert not set(fit) & set(out)
        assert len(set(fit)) == len(fit)
        counts = np.bincount(classes[fit], minlength=3).tolist()
        if per_class is not None:
            assert counts == [per_class] * 3
        elif not held:
            assert counts == [7, 130, 9]
        tested = np.bincount(classes[out], minlength=3)
        assert tested.max() <= (50 if held else 0)
        assert tested.min() >= (1 if held else 0)
    if len(plan) > 1:
        assert len({tuple(sorted(fit)) for fit, _ in plan}) == len(plan)


def test_the_classifiers_are_at_their_optimum():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=generator, dtype=torch.float64) * 3 + 5
    y = torch.randint(0, 3, (60,), generator=generator)
    for kind in ("softmax", "svm"):
        found = fit_linear(x, y, 3, kind=kind, decay=0.1, steps=500)
        weight, bias = (value.clone().requires_grad_() for value in (found.weight, found.bias))
        scores = ((x - x.mean(0)) / x.std(0, correction=0)) @ weight + bias
        signs = torch.full((60, 3), -1.0, dtype=torch.float64)
        signs[range(60), y] = 1
        losses = {
            "softmax": -scores.log_softmax(1)[range(60), y].mean(),
            "svm": (1 - signs * scores).relu().square().sum() / 60,
        }
        (losses[kind] + 0.05 * weight.square().sum()).backward()
        assert max(weight.grad.abs().max(), bias.grad.abs().max()) < 1e-4
        assert torch.equal(found.predict(x), scores.argmax(1))
    same = torch.cat([x, torch.ones(60, 1, dtype=torch.float64)], dim=1)
    assert torch.equal(fit_linear(same, y, 3).predict(same), fit_linear(x, y, 3).predict(x))


def test_probe_writes_a_table_and_curves(tmp_path):
    rows = probe(loaded(), striped(24, 1), striped(9, 2), layers=["pool"], per_class=[2, None], folds=2)
    write_probe(tmp_path / "new", rows)
    with open(tmp_path / "new" / "probe.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["per_class"] for row in table] == ["2", "all"]
    assert [float(row["error"]) for row in table] == [row.error for row in rows]
    assert (tmp_path / "new" / "probe.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("kw", "message"),
    [
        ({"per_class": [9]}, "class 0 has 4 images; 9 a class to train with and one to test with need 10"),
        ({"per_class": [0]}, "per_class=0 must be at least 1"),
        ({"per_class": []}, "per_class names no number of images"),
        ({"layers": []}, "layers must name at least one layer"),
        ({"classifier": "tree"}, "classifier='tree' must be softmax or svm"),
        ({"folds": 0}, "folds=0"),
        ({"layers": ["rleu"]}, "'rleu'"),
        ({"test": open_images("fashion-sample")}, "are not those of"),
    ],
)
def test_bad_arguments_are_one_line(kw, message):
    with pytest.raises(InputError) as caught:
        probe(loaded(), striped(12, 1), **{"layers": ["pool"], "per_class": [1], **kw})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
