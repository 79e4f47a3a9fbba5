import csv
import math

import numpy as np
import pytest
import torch
from torch import nn

from attribkit.errors import InputError, InputTypeError, ModelError, UnknownNameError
from attribkit.features import invariance, transform

pytestmark = pytest.mark.usefixtures("one_thread")


class PowerSpectrum(nn.Module):
    """Exactly invariant to circular shifts: the amplitudes of the Fourier transform."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()
        self.head = nn.Linear(64, 3).double()

    def forward(self, x):
        return self.head(self.relu(torch.fft.fft2(x).abs().flatten(1)))


class Rows(nn.Module):
    """Its first layer is the image itself, its second the sum of each row."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, bias=False).double()
        nn.init.ones_(self.conv.weight)
        self.relu = nn.ReLU()
        self.head = nn.Linear(8, 2, bias=False).double()
        self.sums = nn.Identity()

    def forward(self, x):
        return self.head(self.sums(self.relu(self.conv(x)).sum((1, 3))))


def by_hand(image, down, scale, degrees, fill):
    """Bilinear interpolation, pixel by pixel."""
    height, width = image.shape
    out = np.zeros_like(image)
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    for i in range(height):
        for j in range(width):
            y, x = i - (height - 1) / 2 - down, j - (width - 1) / 2
            u = (x * s + y * c) / scale + (height - 1) / 2
            v = (x * c - y * s) / scale + (width - 1) / 2
            for a in (math.floor(u), math.floor(u) + 1):
                for b in (math.floor(v), math.floor(v) + 1):
                    weight = (1 - abs(u - a)) * (1 - abs(v - b))
                    inside = 0 <= a < height and 0 <= b < width
                    if fill == "edge":
                        value = image[min(max(a, 0), height - 1), min(max(b, 0), width - 1)]
                    else:
                        value = image[a, b] if inside else fill
                    out[i, j] += weight * value
    return out


LAYERS = ["relu", "sums"]


@pytest.fixture
def noise():
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("fill", [0.7, "edge"])
@pytest.mark.parametrize(
    ("down", "scale", "degrees"), [(1.3, 1.0, 0.0), (0.0, 1.7, 0.0), (0.0, 0.6, 33.0), (-2.0, 1.1, 200.0)]
)
def test_transform_is_bilinear_interpolation(noise, fill, down, scale, degrees):
    found = transform(noise[:, :, :, :6], down=down, scale=scale, degrees=degrees, fill=fill)
    expected = by_hand(noise[0, 0, :, :6].numpy(), down, scale, degrees, fill)
    np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=1e-12)


def test_whole_shifts_and_quarter_turns_move_pixels_exactly(noise):
    assert torch.equal(transform(noise), noise)
    shifted = transform(noise, down=3, fill=9.0)
    assert torch.equal(shifted[..., 3:, :], noise[..., :5, :])
    assert torch.equal(shifted[..., :3, :], torch.full_like(noise[..., :3, :], 9.0))
    for quarter in (1, 2, 3):  # rot90 turns counter-clockwise, as degrees do
        assert torch.equal(transform(noise, degrees=90 * quarter), torch.rot90(noise, quarter, (2, 3)))


def test_transforming_normalised_values_is_normalising_transformed_ones(noise):
    mean, std = 0.4, 0.2
    one = (transform(noise, scale=0.7, degrees=20, fill=0.5) - mean) / std
    other = transform((noise - mean) / std, scale=0.7, degrees=20, fill=(0.5 - mean) / std)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "wrong", [{"scale": 0}, {"scale": -1}, {"down": math.nan}, {"fill": "black"}, {"fill": [0.0, 1.0]}]
)
def test_transform_refuses(noise, wrong):
    with pytest.raises(InputError):
        transform(noise, **wrong)


def test_a_model_that_is_translation_invariant_has_distance_zero():
    # one bright pixel on zeros: shifted with zeros coming in, it is the circular shift of the image
    image = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    image[0, 0, 3, 4] = 5.0
    found = invariance(PowerSpectrum(), image, [1], layers=["relu"], translations=[-3, 0, 4], scales=[], rotations=[])
    np.testing.assert_allclose(found.curves["translation"].distances, 0, atol=1e-12)
    assert np.ptp(found.curves["translation"].probability) < 1e-12
    assert list(found.curves) == ["translation"]


def test_a_known_first_layer_gives_the_known_curve(noise):
    model, images = Rows(), noise.abs()
    amounts = {"translations": [0, 2, -1.5], "scales": [1.0, 1.3], "rotations": [90]}
    found = invariance(model, images, [0, 1], layers=LAYERS, **amounts)
    for name, amounts in (("translation", [0, 2, -1.5]), ("scale", [1.0, 1.3]), ("rotation", [90])):
        argument = {"translation": 0, "scale": 1, "rotation": 2}[name]
        for a, amount in enumerate(amounts):
            for n in range(2):
                steps = [0.0, 1.0, 0.0]
                steps[argument] = amount
                moved = by_hand(images[n, 0].numpy(), *steps, 0.0)
                clean = images[n, 0].numpy()
                curve = found.curves[name]
                assert curve.distances[0, n, a] == pytest.approx(np.linalg.norm(moved - clean), abs=1e-12)
                assert curve.distances[1, n, a] == pytest.approx(np.linalg.norm((moved - clean).sum(1)), abs=1e-12)
                logits = model.head.weight.detach().numpy() @ moved.sum(1)
                expected = np.exp(logits)[n] / np.exp(logits).sum()
                assert curve.probability[n, a] == pytest.approx(expected, abs=1e-12)
    np.testing.assert_allclose(found.norms[0], images.flatten(1).norm(dim=1).numpy())


def test_classes_are_the_models_answers_where_none_are_given(noise):
    model = Rows()
    found = invariance(model, noise, translations=[0], scales=[], rotations=[], labels=["no", "yes"])
    answers = model(noise).argmax(1)
    assert found.classes.tolist() == answers.tolist()
    assert found.names == tuple(["no", "yes"][i] for i in answers)


def test_batches_change_nothing_and_neither_does_the_call(noise):
    model = Rows().train()
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    kept = noise.clone()
    one = invariance(model, noise, batch_size=1)
    two = invariance(model, noise, batch_size=50)
    for name in ("translation", "scale", "rotation"):
        np.testing.assert_allclose(one.curves[name].distances, two.curves[name].distances, atol=1e-12)
    assert model.training
    assert torch.equal(noise, kept)
    assert not noise.requires_grad
    assert torch.equal(model.conv.weight.grad, torch.ones_like(model.conv.weight))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model._forward_hooks
    assert not model.conv._forward_hooks


def test_the_table_holds_the_curves(noise, tmp_path):
    found = invariance(
        Rows(), noise, [0, 1], ids=["a", "b"], layers=LAYERS, translations=[0, 1], scales=[2], rotations=[10, 20]
    )
    with open(found.to_csv(tmp_path / "x.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (2 + 1 + 2)
    for row in rows:
        curve = found.curves[row["transform"]]
        n, a = ["a", "b"].index(row["image"]), list(curve.amounts).index(float(row["amount"]))
        assert float(row["probability"]) == curve.probability[n, a]
        assert float(row["distance:relu"]) == curve.distances[0, n, a]
        assert float(row["norm:sums"]) == found.norms[1, n]
        assert int(row["class"]) == n


def test_the_figure_has_no_empty_panel(noise):
    found = invariance(Rows(), noise, [0, 1], layers=LAYERS)
    figure = found.plot()
    assert len(figure.axes) == 3 * 4
    assert all(axes.lines or axes.images for axes in figure.axes)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"classes": [0]}, InputError, "classes"),
        ({"classes": [0, 2]}, InputError, "2 classes|has 2"),
        ({"classes": [0.0, 1.0]}, InputError, "ints"),
        ({"layers": ["nowhere"]}, UnknownNameError, "nowhere"),
        ({"layers": []}, InputError, "at least one"),
        ({"layers": 3}, InputTypeError, "layers"),
        ({"scales": [0.0]}, InputError, "scale"),
        ({"translations": ["far"]}, InputTypeError, "translation"),
        ({"translations": [], "scales": [], "rotations": []}, InputError, "left out"),
        ({"fill": "grey"}, InputError, "fill"),
    ],
)
def test_bad_input_is_said_in_one_line(noise, change, error, says):
    with pytest.raises(error, match=says) as caught:
        invariance(Rows(), noise, **change)
    assert "\n" not in str(caught.value)


def test_a_model_without_rectifier_needs_layers(noise):
    with pytest.raises(ModelError, match="name the layers"):
        invariance(nn.Sequential(nn.Flatten(), nn.Linear(64, 2).double()), noise)
