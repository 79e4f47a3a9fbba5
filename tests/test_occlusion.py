"""Occlusion against Captum, and against brute force where Captum refuses (stride above the window)."""

from __future__ import annotations

import math

import captum.attr
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attribkit as ak
from attribkit.builtin.occlusion import windows

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 1e-4  # Captum sums in float32


class Small(nn.Module):
    """Cheap, but every pixel matters and none like another: the head sees places."""

    def __init__(self, height, width, classes=4):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        rows, columns = math.ceil(height / 2) // 2, math.ceil(width / 2) // 2
        self.head = nn.Linear(4 * rows * columns, classes)

    def forward(self, x):
        return self.head(self.pool(self.relu(self.conv(x))).flatten(1))


def case(height, width, batch=2):
    torch.manual_seed(height * 100 + width)
    net = Small(height, width).double().eval()
    nn.init.normal_(net.head.weight, std=0.3)
    return net, torch.randn(batch, 3, height, width, dtype=torch.float64), torch.tensor([2, 0, 3, 1])[:batch]


def starts(size, window, stride):
    """0, stride, 2 stride, ... until the image is covered; none beyond it."""
    found = [0]
    while found[-1] + window < size and found[-1] + stride < size:
        found.append(found[-1] + stride)
    return found


def brute_force(score, x, window, stride, fill=0.0):
    """Return the values and each window's score, from ``score``: images -> [N] or [N, ...]."""
    size = x.shape[2:]
    window = [min(window, length) for length in size]
    rows, columns = (starts(length, edge, stride) for length, edge in zip(size, window, strict=True))
    clean = score(x)
    drop, covered, scores = torch.zeros_like(x), torch.zeros_like(x), []
    with torch.no_grad():
        for row in rows:
            for column in columns:
                place = (..., slice(row, row + window[0]), slice(column, column + window[1]))
                occluded = x.clone()
                occluded[place] = fill
                scores.append(score(occluded))
                if clean.dim() == 1:
                    drop[place] += (clean - scores[-1]).view(-1, 1, 1, 1)
                    covered[place] += 1
    values = torch.where(covered > 0, drop / covered.clamp(min=1), torch.zeros_like(drop))
    return values, torch.stack(scores, 1).unflatten(1, (len(rows), len(columns)))


def logit(net, classes):
    return lambda x: net(x).detach().gather(1, classes[:, None])[:, 0]


def assert_close(values, expected, tolerance=TOLERANCE):
    assert values.shape == expected.shape
    assert values.dtype == expected.dtype
    for sample, reference in zip(values, expected, strict=True):
        assert reference.abs().max() > 0
        assert (sample - reference).abs().max() <= tolerance * reference.abs().max()


GRID = [(window, stride) for window in (1, 7, 32) for stride in (1, 5, 8, 16)]
SIZES = [(24, 24), (37, 22), (19, 40)]  # one that some windows divide, two that none does


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("window", "stride"), [pair for pair in GRID if pair[1] <= pair[0]])
def test_equals_captum(window, stride, size):
    net, x, classes = case(*size)
    theirs = captum.attr.Occlusion(net).attribute(
        x,
        sliding_window_shapes=(3, min(window, size[0]), min(window, size[1])),
        strides=(3, min(stride, size[0]), min(stride, size[1])),
        target=classes,
        perturbations_per_eval=64,
    )
    ours = ak.attribute(net, x, method="occlusion", target=classes, window=window, stride=stride)
    assert_close(ours.values, theirs.detach().double())
    torch.testing.assert_close(ours.scores, logit(net, classes)(x), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("window", "stride"), [pair for pair in GRID if pair[1] > pair[0]])
def test_equals_brute_force_where_windows_leave_gaps(window, stride, size):
    net, x, classes = case(*size)
    expected, score_map = brute_force(logit(net, classes), x, window, stride)
    ours = ak.attribute(net, x, method="occlusion", target=classes, window=window, stride=stride)
    assert_close(ours.values, expected)
    covered = torch.zeros(size, dtype=torch.bool)
    for row in starts(size[0], window, stride):
        for column in starts(size[1], window, stride):
            covered[row : row + window, column : column + window] = True
    assert not covered.all()
    assert not ours.values[:, :, ~covered].any()
    assert_close(ours.extras["score_map"], score_map)


@pytest.mark.parametrize("size", [(48, 33), (33, 70)])
def test_the_largest_window_on_images_larger_than_it(size):
    net, x, classes = case(*size, batch=3)
    for stride in (5, 16):
        theirs = captum.attr.Occlusion(net).attribute(
            x, sliding_window_shapes=(3, 32, 32), strides=(3, stride, stride), target=classes, perturbations_per_eval=64
        )
        ours = ak.attribute(net, x, method="occlusion", target=classes, window=32, stride=stride)
        assert_close(ours.values, theirs.detach().double())


@pytest.mark.parametrize(("window", "stride"), [(7, 5), (5, 7), (12, 4)])
@pytest.mark.parametrize("score", ["logit", "probability"])
def test_score_map_and_label_map(window, stride, score):
    """The paper's maps: the score of the explained class, and the most probable class, for each place of the patch."""
    net, x, classes = case(23, 30)
    net.head.weight.data *= 3  # so that the label changes somewhere

    def scores(images):
        outputs = net(images).detach()
        return (outputs if score == "logit" else outputs.softmax(1)).gather(1, classes[:, None])[:, 0]

    values, score_map = brute_force(scores, x, window, stride)
    _, labels = brute_force(lambda images: net(images).detach()[:, :, None], x, window, stride)
    label_map = labels.squeeze(-1).argmax(-1)
    assert len(label_map.unique()) > 1
    ours = ak.attribute(
        net, x, method="occlusion", target=classes, window=window, stride=stride, score=score, fill=0.0
    )  # fmt: skip
    assert_close(ours.values, values)
    assert_close(ours.extras["score_map"], score_map)
    assert torch.equal(ours.extras["label_map"].long(), label_map)
    if score == "probability":
        assert ours.extras["score_map"].min() >= 0
        assert ours.extras["score_map"].max() <= 1


def test_unit_map_is_the_total_activity_of_a_feature_map():
    net, x, classes = case(23, 30)

    def activity(images):
        return net.relu(net.conv(images)).detach()[:, 3].sum((1, 2))

    _, expected = brute_force(activity, x, 6, 4)
    ours = ak.attribute(
        net, x, method="occlusion", target=classes, window=6, stride=4, unit_layer="relu", unit_channel=3
    )
    assert expected.std() > 0
    assert_close(ours.extras["unit_map"], expected, 1e-10)
    assert_close(ours.values, brute_force(logit(net, classes), x, 6, 4)[0], 1e-10)
    without = ak.attribute(net, x, method="occlusion", target=classes, window=6, stride=4)
    assert "unit_map" not in without.extras


def test_unit_map_without_a_channel_is_each_samples_most_active_map():
    net, x, classes = case(23, 30)
    net.conv.bias.data.zero_()
    x[1] *= torch.tensor([3.0, -1.0, 0.2])[:, None, None]
    with torch.no_grad():
        best = net.relu(net.conv(x)).sum((2, 3)).argmax(1)
    assert best[0] != best[1]

    def activity(images):
        maps = net.relu(net.conv(images)).detach().sum((2, 3))
        return maps.gather(1, best[:, None])[:, 0]

    ours = ak.attribute(net, x, method="occlusion", target=classes, window=6, stride=4, unit_layer="relu")
    assert_close(ours.extras["unit_map"], brute_force(activity, x, 6, 4)[1], 1e-10)


def test_a_unit_as_target_keeps_its_place():
    """The unit is the strongest of the clean image, also where the patch makes another one the strongest."""
    net, x, _ = case(23, 30)
    with torch.no_grad():
        best = net.conv(x)[:, 1].flatten(1).argmax(1)

    def at_best(images):
        return net.conv(images).detach()[:, 1].flatten(1).gather(1, best[:, None])[:, 0]

    def strongest(images):
        return net.conv(images).detach()[:, 1].flatten(1).amax(1)

    expected = brute_force(at_best, x, 6, 3)[0]
    assert (expected - brute_force(strongest, x, 6, 3)[0]).abs().max() > 1e-3
    ours = ak.attribute(net, x, method="occlusion", target=ak.Unit("conv", 1), window=6, stride=3)
    assert_close(ours.values, expected, 1e-10)


def test_the_arg_max_is_the_clean_images():
    net, x, _ = case(23, 30)
    net.head.weight.data *= 3
    classes = net(x).argmax(1)
    ours = ak.attribute(net, x, method="occlusion", window=8, stride=4)
    assert_close(ours.values, brute_force(logit(net, classes), x, 8, 4)[0], 1e-10)
    assert torch.equal(torch.as_tensor(ours.target), classes)


def test_a_callable_as_target():
    net, x, _ = case(20, 20)

    def difference(outputs):
        return outputs[:, 0] - 2 * outputs[:, 1]

    expected = brute_force(lambda images: difference(net(images).detach()), x, 5, 5)[0]
    ours = ak.attribute(net, x, method="occlusion", target=difference, window=5, stride=5)
    assert_close(ours.values, expected, 1e-10)


@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [((224, 224), 32, 16), ((224, 288), 32, 16), ((28, 28), 4, 2), ((57, 50), 8, 4)],  # 57x50: 50 / 7 rounded up
)
def test_defaults(size, window, stride):
    torch.manual_seed(1)
    net = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(3, 2, 3, 2), nn.AdaptiveMaxPool2d(1), nn.Flatten()).double()
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    default = ak.attribute(net, x, method="occlusion", target=1)
    rows, columns = (len(starts(length, window, stride)) for length in size)
    assert default.extras["score_map"].shape == default.extras["label_map"].shape == (1, rows, columns)
    expected, score_map = brute_force(lambda images: net(images).detach()[:, 1], x, window, stride)
    assert_close(default.values, expected)
    assert_close(default.extras["score_map"], score_map)


@pytest.mark.parametrize("options", [{}, {"window": 7}, {"window": (8, 3), "stride": (5, 2)}, {"window": 64}])
def test_where_the_windows_lie(options):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 20 * 30, 2)).eval()
    x = torch.rand(1, 3, 20, 30)
    scores = ak.attribute(model, x, "occlusion", target=1, **options).extras["score_map"][0]
    (tops, bottoms), (lefts, rights) = windows(20, 30, **options)
    for i, (top, bottom) in enumerate(zip(tops, bottoms, strict=True)):
        for j, (left, right) in enumerate(zip(lefts, rights, strict=True)):
            covered = x.clone()
            covered[..., top:bottom, left:right] = 0
            torch.testing.assert_close(scores[i, j], model(covered)[0, 1])
    assert scores.shape == (len(tops), len(lefts))


@pytest.mark.parametrize("fill", [0.75, -2.0])
def test_fill(fill):
    net, x, classes = case(21, 26)
    theirs = captum.attr.Occlusion(net).attribute(
        x, sliding_window_shapes=(3, 6, 6), strides=(3, 4, 4), target=classes, baselines=fill, perturbations_per_eval=16
    )
    ours = ak.attribute(net, x, method="occlusion", target=classes, window=6, stride=4, fill=fill)
    assert_close(ours.values, theirs.detach().double())
    zero = ak.attribute(net, x, method="occlusion", target=classes, window=6, stride=4)
    assert (ours.values - zero.values).abs().max() > 0.1 * zero.values.abs().max()


def test_a_window_larger_than_the_image_hides_all_of_it():
    net, x, classes = case(20, 24)
    score = logit(net, classes)
    drop = (score(x) - score(torch.zeros_like(x))).view(-1, 1, 1, 1).expand_as(x)
    ours = ak.attribute(net, x, method="occlusion", target=classes, window=500, stride=3)
    assert_close(ours.values, drop, 1e-12)
    assert ours.extras["score_map"].shape == (2, 1, 1)
    # Larger than one side only: cut there, still sliding along the other.
    wide = ak.attribute(net, x, method="occlusion", target=classes, window=22, stride=1)
    assert wide.extras["score_map"].shape == (2, 1, 3)
    assert_close(wide.values, brute_force(score, x, 22, 1)[0], 1e-12)


def test_batches_do_not_mix_and_batch_size_changes_nothing():
    net, x, classes = case(21, 26, batch=3)
    together = ak.attribute(net, x, method="occlusion", target=classes, window=6, stride=4)
    for index in range(3):
        alone = ak.attribute(
            net, x[index : index + 1], method="occlusion", target=int(classes[index]), window=6, stride=4
        )
        assert_close(alone.values, together.values[index : index + 1], 1e-12)
    for batch_size in (1, 2, 100):
        split = ak.attribute(net, x, method="occlusion", target=classes, window=6, stride=4, batch_size=batch_size)
        assert_close(split.values, together.values, 1e-12)
        assert torch.equal(split.extras["label_map"], together.extras["label_map"])


def test_float32_and_identical_images():
    net, x, _ = case(21, 26)
    net, x = net.float(), F.pad(x[:1], (0, 0)).float().repeat(2, 1, 1, 1)
    found = ak.attribute(net, x, method="occlusion", target=1, window=6, stride=4)
    assert found.values.dtype == torch.float32
    assert found.values.abs().max() > 0
    torch.testing.assert_close(found.values[0], found.values[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 0}, "window"),
        ({"window": -3}, "window"),
        ({"stride": 0}, "stride"),
        ({"score": "odds"}, "probability"),
        ({"unit_layer": "rellu", "unit_channel": 0}, "relu"),
        ({"unit_layer": "relu", "unit_channel": 4}, "relu"),
        ({"unit_channel": 0}, "unit_layer"),
        ({"windw": 3}, "window"),
    ],
)
def test_wrong_options_are_refused(options, words):
    net, x, classes = case(20, 24)
    with pytest.raises(ak.AttribkitError, match=words) as caught:
        ak.attribute(net, x, method="occlusion", target=classes, **options)
    assert "\n" not in str(caught.value)
