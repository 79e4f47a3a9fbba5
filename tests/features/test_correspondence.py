import csv
import json
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

from attribkit.errors import InputError, InputTypeError, UnknownNameError
from attribkit.features import box_in_input, check_boxes, correspondence, read_boxes
from attribkit.features._correspondence import sign_distances

pytestmark = pytest.mark.usefixtures("one_thread")
BOXES = [[0, 0, 3, 3], [1, 2, 4, 5], [5, 5, 9, 9], [0, 7, 3, 10]]


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 12),
        nn.ReLU(),
        nn.Linear(12, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    ).double()


@pytest.fixture
def images():
    return torch.randn(4, 1, 10, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_distances_of_changes_by_hand():
    changes = torch.tensor([[1.0, -2.0, 0.0, 3.0], [5.0, 2.0, 0.0, 0.0], [-1.0, -1.0, 1.0, 9.0]])
    # 0 equals 0, and differs from either sign
    assert sign_distances(changes, [(0, 1), (0, 2), (1, 2)]).tolist() == [0.5, 0.5, 1.0]
    assert sign_distances(changes, [(0, 0)]).tolist() == [0.0]
    assert sign_distances(-changes, [(0, 1)]).tolist() == [0.5]


def test_against_brute_force(images):
    model = network()
    parts = {"one": BOXES, "other": [[2, 2, 5, 6]] * 4}
    found = correspondence(model, images, parts, trials=3, seed=5, fill=0.25, batch_size=3)
    assert found.layers == ("2", "6")  # the top pool, and the last linear layer before the classifier
    rows = {(r["layer"], r["part"], r["masks"]): r for r in found.summary()}
    for layer, stop in (("2", 3), ("6", 7)):
        for part, boxes in parts.items():
            changes = []
            for image, (top, left, bottom, right) in zip(images, boxes, strict=True):
                masked = image.clone()
                for y in range(top, bottom):
                    for x in range(left, right):
                        masked[0, y, x] = 0.25
                changes.append((model[:stop](image[None]) - model[:stop](masked[None])).flatten().tolist())
            total, each = 0.0, []
            for i in range(4):
                for j in range(4):
                    if i != j:
                        differ = sum(np.sign(a) != np.sign(b) for a, b in zip(changes[i], changes[j], strict=True))
                        total += differ / len(changes[i])
                        each += [differ / len(changes[i])] if i < j else []
            row = rows[layer, part, "part"]
            assert row["delta"] == pytest.approx(total, abs=1e-12)
            assert row["mean"] == pytest.approx(total / 12, abs=1e-12)
            assert row["standard_error"] == pytest.approx(np.std(each, ddof=1) / 6**0.5, abs=1e-12)
            assert row["count"] == 6
    assert found.pairs == tuple(combinations(range(4), 2))


def test_random_masks_are_seeded_and_of_the_same_sizes(images):
    parts = {"part": BOXES}
    one = correspondence(network(), images, parts, trials=4, seed=1)
    two = correspondence(network(), images, parts, trials=4, seed=1)
    three = correspondence(network(), images, parts, trials=4, seed=2)
    assert np.array_equal(one.random["part"], two.random["part"])
    assert not np.array_equal(one.random["part"], three.random["part"])
    assert one.random["part"].shape == (2, 4, 6)
    assert np.array_equal(one.distances["part"], three.distances["part"])


def test_random_masks_of_the_images_size_are_the_part_itself(images):
    # a mask as large as the image has one place only: the control must equal the part
    found = correspondence(network(), images, {"all": [[0, 0, 10, 10]] * 4}, trials=2)
    for trial in range(2):
        assert np.array_equal(found.random["all"][:, trial], found.distances["all"])


def test_random_places_are_uniform_over_all_inside():
    from attribkit.features._correspondence import _elsewhere

    generator = torch.Generator().manual_seed(0)
    boxes = np.asarray([[0, 0, 2, 3]] * 4000)
    found = _elsewhere(boxes, torch.zeros(1, 1, 4, 5), generator)
    assert set(map(tuple, (found[:, 2:] - found[:, :2]).tolist())) == {(2, 3)}
    places, counts = np.unique(found[:, :2], axis=0, return_counts=True)
    assert len(places) == 9
    assert counts.min() > 350
    assert counts.max() < 540


def test_no_controls(images):
    found = correspondence(network(), images, {"part": BOXES}, trials=0)
    assert {row["masks"] for row in found.summary()} == {"part"}
    assert found.plot().axes


def test_table_and_figure(images, tmp_path):
    found = correspondence(network(), images, {"a": BOXES, "b": BOXES}, trials=2)
    with open(found.to_csv(tmp_path / "t.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    expected = found.summary()
    assert len(rows) == len(expected) == 2 * 5
    for row, one in zip(rows, expected, strict=True):
        assert (row["layer"], row["part"], row["masks"]) == (one["layer"], one["part"], one["masks"])
        assert [float(row[k]) for k in ("mean", "standard_error", "delta")] == [
            one[k] for k in ("mean", "standard_error", "delta")
        ]
    figure = found.plot()
    assert sum(bool(axes.images) for axes in figure.axes) == 4
    assert all(axes.images or axes.lines for axes in figure.axes)


def test_nothing_is_left_behind(images):
    model, kept = network().train(), images.clone()
    state = torch.get_rng_state()
    correspondence(model, images, {"part": BOXES}, trials=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, kept)
    assert all(module.training and not module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("parts", "error", "says"),
    [
        ({}, InputError, "empty"),
        ([BOXES], InputTypeError, "must map"),
        ({"p": BOXES[:2]}, InputError, "one box an image"),
        ({"p": [[0, 0, 3]] * 4}, InputTypeError, "four ints"),
        ({"p": [[0, 0, 3, 11]] * 4}, InputError, "beyond"),
        ({"p": [[3, 0, 3, 5]] * 4}, InputError, "top < bottom"),
    ],
)
def test_bad_boxes(images, parts, error, says):
    with pytest.raises(error, match=says):
        correspondence(network(), images, parts)


def test_other_bad_input(images):
    with pytest.raises(InputError, match="two images"):
        correspondence(network(), images[:1], {"p": BOXES[:1]})
    with pytest.raises(UnknownNameError):
        correspondence(network(), images, {"p": BOXES}, layers=["fc99"])
    with pytest.raises(InputError, match="trials"):
        correspondence(network(), images, {"p": BOXES}, trials=-1)


GOOD = {"a.png": {"eye": [1, 2, 3, 4]}, "b.png": {"eye": [0, 0, 5, 5]}}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([1], "must map images"),
        ({"a.png": {"eye": [1, 2, 3, 4]}}, "at least two"),
        ({**GOOD, "c.png": {"eye": [0, 0, 5, 5]}}, "no image is called 'c.png'"),
        ({"a.png": {"eye": [1, 2, 3, 4]}, "b.png": {}}, "b.png: must map parts"),
        ({"a.png": {"eye": [1, 2, 3, 4]}, "b.png": {"nose": [0, 0, 5, 5]}}, "the same"),
        ({"a.png": {"eye": [1, 2, 3]}, "b.png": {"eye": [0, 0, 5, 5]}}, "a.png, eye: a box is"),
        ({"a.png": {"eye": [1, 2, 3, True]}, "b.png": {"eye": [0, 0, 5, 5]}}, "four ints"),
        ({"a.png": {"eye": [-1, 2, 3, 4]}, "b.png": {"eye": [0, 0, 5, 5]}}, "0 ≤ top"),
    ],
)
def test_the_file_of_boxes_is_checked(tmp_path, content, says):
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=says) as caught:
        read_boxes(path, ["a.png", "b.png"])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_good_file_and_no_file(tmp_path):
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(GOOD))
    assert (
        read_boxes(path)
        == check_boxes(GOOD)
        == {
            "a.png": {"eye": (1, 2, 3, 4)},
            "b.png": {"eye": (0, 0, 5, 5)},
        }
    )
    with pytest.raises(InputError, match="cannot be read"):
        read_boxes(tmp_path / "none.json")
    path.write_text("{")
    with pytest.raises(InputError, match="is no JSON"):
        read_boxes(path)


def test_boxes_go_through_the_preprocessing():
    def halves(image):  # the lower half of the rows, at half the size
        pixels = torch.from_numpy(np.array(image.convert("L"))).double()
        return (pixels[None, 10::2, ::2] / 255 - 0.5) / 0.25

    assert box_in_input(halves, (30, 20), (12, 4, 16, 10)) == (1, 2, 3, 5)
    assert box_in_input(halves, (30, 20), (4, 0, 20, 30)) == (0, 0, 5, 15)
    with pytest.raises(InputError, match="cut away"):
        box_in_input(halves, (30, 20), (0, 0, 8, 8))
    with pytest.raises(InputError, match="beyond"):
        box_in_input(halves, (30, 20), (0, 0, 21, 8))
