import csv

import numpy as np
import pytest
import torch
from torch import nn

import attribkit as ak
from attribkit.errors import ImageError, InputError, UnknownNameError
from attribkit.features import Inputs, occlusion_study

pytestmark = pytest.mark.usefixtures("one_thread")


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(320, 3))
    return model.double()


@pytest.fixture
def images():
    return torch.randn(6, 2, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_against_brute_force(images):
    model, image = network(), images[:1]
    found = occlusion_study(model, image, 2, window=(5, 4), stride=(3, 4), fill=0.5)
    assert found.layer == "3"
    with torch.no_grad():
        maps = model[:4](image)[0]
        clean = model(image).softmax(1)[0]
    assert found.channel == int(maps.sum((1, 2)).argmax())
    assert found.clean_activity == pytest.approx(float(maps.sum((1, 2)).max()), abs=1e-12)
    assert found.clean_probability == pytest.approx(float(clean[2]), abs=1e-12)
    assert found.windows.shape == (4, 3, 4)
    assert found.windows[-1, -1].tolist() == [9, 8, 12, 12]  # cut off at the border
    for r in range(4):
        for s in range(3):
            covered = image.clone()
            covered[..., 3 * r : 3 * r + 5, 4 * s : 4 * s + 4] = 0.5
            with torch.no_grad():
                answer = model(covered).softmax(1)[0]
                activity = model[:4](covered)[0, found.channel].sum()
            assert found.windows[r, s, :2].tolist() == [3 * r, 4 * s]
            assert found.probability[r, s] == pytest.approx(float(answer[2]), abs=1e-12)
            assert found.labels[r, s] == int(answer.argmax())
            assert found.activity[r, s] == pytest.approx(float(activity), abs=1e-12)
    expected = ak.attribute(model, image, "deconvnet", ak.Unit("3", found.channel)).values[0]
    np.testing.assert_allclose(found.projection, expected.float().numpy(), atol=1e-6)


def test_the_other_images_are_those_that_drive_the_map_most(images):
    model = network()
    found = occlusion_study(model, images[:1], others=Inputs(images[1:]), keep=2, channel=1)
    with torch.no_grad():
        peaks = model[:4](images[1:])[:, 1].flatten(1).amax(1)
    best = peaks.argsort(descending=True)[:2].tolist()
    assert found.other_ids == tuple(map(str, best))
    for m, i in enumerate(best):
        assert torch.equal(found.others[m], images[1 + i])
        expected = ak.attribute(model, images[[1 + i]], "deconvnet", ak.Unit("3", 1)).values[0]
        np.testing.assert_allclose(found.other_projections[m], expected.float().numpy(), atol=1e-6)


def test_defaults(images):
    model = network()
    found = occlusion_study(model, images[:1], labels=["a", "b", "c"])
    assert found.target == int(model(images[:1]).argmax())
    assert (found.windows[0, 0] == [0, 0, 2, 2]).all()  # a seventh of 12, rounded up; half of it the step
    assert found.windows.shape[:2] == (11, 11)
    assert found.name(1) == "b"
    assert found.other_ids == ()


def test_the_table(images, tmp_path):
    found = occlusion_study(network(), images[:1], labels=["a", "b", "c"], stride=4)
    with open(found.to_csv(tmp_path / "o.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == found.labels.size
    assert [float(r["activity"]) for r in rows] == found.activity.flatten().tolist()
    assert [float(r["probability"]) for r in rows] == found.probability.flatten().tolist()
    assert [r["name"] for r in rows] == ["abc"[i] for i in found.labels.flatten()]
    boxes = [[int(r[k]) for k in ("top", "left", "bottom", "right")] for r in rows]
    assert boxes == found.windows.reshape(-1, 4).tolist()


@pytest.mark.parametrize("others", [None, 3])
def test_the_figure_has_no_empty_panel(images, others):
    source = None if others is None else images[1:]
    figure = occlusion_study(network(), images[:1], others=source).plot()
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    assert len(panels) == (5 if others is None else 6)
    assert all(axes.images for axes in panels)


def test_nothing_is_left_behind_and_it_is_repeatable(images):
    model, kept = network().train(), images.clone()
    one = occlusion_study(model, images[:1], others=images[1:])
    two = occlusion_study(model, images[:1], others=images[1:])
    np.testing.assert_array_equal(one.activity, two.activity)
    np.testing.assert_array_equal(one.other_projections, two.other_projections)
    assert torch.equal(images, kept)
    assert all(m.training and not m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"target": 3}, InputError, "out of range"),
        ({"channel": 5}, InputError, "has 5 channels"),
        ({"layer": "none"}, UnknownNameError, "none"),
        ({"window": 0}, InputError, "window"),
        ({"keep": -1}, InputError, "keep"),
    ],
)
def test_bad_input(images, change, error, says):
    with pytest.raises(error, match=says):
        occlusion_study(network(), images[:1], **change)


def test_one_image_only(images):
    with pytest.raises(InputError, match="one image"):
        occlusion_study(network(), images)


def test_what_is_wrong_with_other_images_is_found_before_the_square_slides(images, tmp_path, monkeypatch):
    (tmp_path / "0.png").write_bytes(b"no image")
    others = Inputs(str(tmp_path), lambda image: images[0])
    monkeypatch.setattr(ak, "attribute", lambda *args, **given: pytest.fail("the square slid"))
    with pytest.raises(ImageError, match=r"0\.png"):
        occlusion_study(network(), images[:1], others=others)
