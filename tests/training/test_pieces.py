"""Parts of the recipe, each against a plain computation."""

import math

import numpy as np
import pytest
import torch
from nets import Listed, stripes, tiny
from PIL import Image
from torch import nn

from attribkit.datasets import open_images
from attribkit.errors import InputError, ModelError
from attribkit.models import zfnet
from attribkit.models.building import described
from attribkit.training import Recipe, accuracy
from attribkit.training.evaluation import error_counts
from attribkit.training.pixels import Augmentation, Pixels, ahead, centre_crop, order, ten_crops
from attribkit.training.steps import Plateau, initialise, renormalise


def test_renormalise_scales_back_only_what_exceeds_the_radius():
    net = tiny()
    with torch.no_grad():
        for number, factor in enumerate((0.1, 0.3, 5.0, 2.0)):
            weight = net.conv.weight[number]
            weight.mul_(factor * 0.1 / weight.square().mean().sqrt())
        net.fc.weight.fill_(3.0)
    before = net.conv.weight.detach().clone()
    renormalise(net, 0.1)
    after = net.conv.weight.detach()
    assert torch.equal(after[:2], before[:2])
    rms = after[2:].double().square().mean(dim=(1, 2, 3)).sqrt()
    assert torch.allclose(rms, torch.full((2,), 0.1, dtype=torch.float64), rtol=1e-6)
    assert torch.allclose(after[2] / after[2].norm(), before[2] / before[2].norm())
    assert bool((net.fc.weight == 3.0).all())


@pytest.mark.parametrize("how", ["paper", "he", "scaled"])
def test_initial_weights_have_the_stated_spread(how):
    with torch.random.fork_rng():
        net = zfnet(10, in_chans=1, img_size=64, width=0.5, hidden=1000)
        torch.manual_seed(1)
        initialise(net, how, spread=50.0)
    full = {"conv1": 147, "conv2": 2400, "conv3": 2304, "conv5": 3456, "fc7": 4096}
    for name, fan_in in full.items():
        weight = getattr(net, name).weight
        own = weight[0].numel()
        stds = {"paper": 0.01, "scaled": 0.01 * math.sqrt(fan_in / own), "he": math.sqrt(2 / own)}
        expected = stds[how] / (50.0 if how == "he" and name == "conv1" else 1.0)
        assert float(weight.detach().std()) == pytest.approx(expected, rel=0.06)
        assert not getattr(net, name).bias.any()


def test_scaled_weights_at_full_size_are_the_papers():
    with torch.random.fork_rng():
        one, two = (zfnet(1000, width=1.0, hidden=64, img_size=224) for _ in range(2))
    del one.fc6, one.fc7, one.fc8, two.fc6, two.fc7, two.fc8  # hidden=64 is not the paper's
    for net, how in ((one, "paper"), (two, "scaled")):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            initialise(net, how)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_scaled_weights_need_zfnets_layers():
    with pytest.raises(InputError, match="ZFNet has no layer 'conv' to scale by"):
        initialise(tiny(), "scaled")


def test_plateau():
    recipe = Recipe(lr=1.0, patience=1, anneal=0.1, min_lr=0.05, min_delta=0.01)
    plateau = Plateau(1.0)
    seen = [(plateau.update(error, recipe), plateau.lr) for error in (0.5, 0.495, 0.4, 0.4, 0.4, 0.4, 0.4)]
    # 0.495 is not better by 0.01; 0.4 is; the second 0.4 after it is one more than the patience.
    assert seen[:4] == [(True, 1.0)] * 4
    assert seen[4] == (True, pytest.approx(0.1))
    assert seen[5] == (True, pytest.approx(0.1))
    assert seen[6] == (False, pytest.approx(0.01))
    assert Plateau.from_dict(plateau.to_dict()) == plateau
    assert Plateau.from_dict(Plateau(0.3).to_dict()) == Plateau(0.3)


def test_ten_crops_are_corners_centre_and_their_mirrors():
    image = torch.arange(5 * 7).view(1, 1, 5, 7)
    crops = ten_crops(image, 3)
    places = [(0, 0), (0, 4), (2, 0), (2, 4), (1, 2)]
    for crop, mirror, (top, left) in zip(crops[:5], crops[5:], places, strict=True):
        assert torch.equal(crop, image[..., top : top + 3, left : left + 3])
        assert torch.equal(mirror, crop.flip(-1))
    assert torch.equal(crops[4], centre_crop(image, 3))


def test_augmentation_is_a_function_of_seed_epoch_and_number():
    images = torch.arange(6 * 8 * 8).view(6, 1, 8, 8)
    draw = Augmentation(6, 2, True, 3, 1)
    all_at_once = draw(images, np.arange(6), 6)
    for number in range(6):
        assert torch.equal(draw(images[[number]], np.array([number]), 6)[0], all_at_once[number])
        top, left = int(draw.top[number]), int(draw.left[number])
        crop = images[number, :, top : top + 6, left : left + 6]
        assert torch.equal(all_at_once[number], crop.flip(-1) if draw.flip[number] else crop)
    assert torch.equal(Augmentation(6, 2, True, 3, 1)(images, np.arange(6), 6), all_at_once)
    assert not torch.equal(Augmentation(6, 2, True, 3, 2)(images, np.arange(6), 6), all_at_once)
    many = Augmentation(3000, 2, True, 0, 1)
    assert set(many.top) == set(many.left) == {0, 1, 2}
    assert 0.45 < many.flip.mean() < 0.55
    assert sorted(order(50, 0, 1)) == list(range(50))
    assert order(50, 0, 1).tolist() != order(50, 0, 2).tolist()


def test_a_mean_image_is_subtracted_where_it_was():
    images = torch.randint(0, 256, (4, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mean = torch.arange(64.0).view(1, 8, 8)
    draw, numbers = Augmentation(4, 3, True, 0, 1), np.arange(4)
    whole = images.float() - mean
    assert torch.equal(draw(images, numbers, 5, mean), draw(whole, numbers, 5))


@pytest.mark.parametrize("resize", [12, 20, 30])
def test_bytes_are_resized_as_pillow_resizes(resize):
    raw, labels = stripes(6, noise=256)
    raw = raw[:, :, :9]  # not square: the centre is cut out
    source = Listed([Image.fromarray(image) for image in raw], labels.tolist(), ("a", "b", "c"))
    by_pillow = Pixels(source, np.arange(6), resize, 1).take(np.array([4, 0]))
    source.pixels = raw
    by_torch = Pixels(source, np.arange(6), resize, 1).take(np.array([4, 0]))
    assert by_torch.shape == (2, 1, resize, resize)
    assert (by_torch.int() - by_pillow.int()).abs().max() <= 1  # torch rounds in another place
    assert (by_torch.int() - by_pillow.int()).abs().float().mean() < 0.05


def test_colour_bytes_become_pillows_grey():
    rng = np.random.default_rng(0)
    source = Listed([], [], None)
    source.pixels = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    source.ids = ("0", "1", "2")
    found = Pixels(source, np.arange(3), 8, 1).take(np.arange(3))
    for values, image in zip(found, source.pixels, strict=True):
        assert np.array_equal(values[0].numpy(), np.asarray(Image.fromarray(image).convert("L")))


def test_images_are_decoded_once_where_they_fit():
    class Counted(Listed):
        loads = 0

        def load(self, index):
            Counted.loads += 1
            return super().load(index)

    source = Counted([Image.new("L", (9, 9), 7 * k) for k in range(4)], [0] * 4, ("a",))
    for budget, loads in ((4 * 64, 4), (4 * 64 - 1, 8)):
        Counted.loads = 0
        pixels = Pixels(source, np.arange(4), 8, 1, budget)
        first, second = pixels.take(np.arange(4)), pixels.take(np.arange(4))
        assert torch.equal(first, second)
        assert first[:, 0, 4, 4].tolist() == [0, 7, 14, 21]
        assert Counted.loads == loads


def test_batches_made_ahead_keep_their_order_and_errors():
    batches = [np.array([k]) for k in range(20)]
    assert [int(batch[0]) for batch in ahead(lambda b: b * 2, batches, 3)] == [2 * k for k in range(20)]

    def broken(batch):
        if batch[0] == 5:
            raise ValueError("five")
        return batch

    with pytest.raises(ValueError, match="five"):
        list(ahead(broken, batches, 3))


def test_error_counts_by_hand():
    p = torch.tensor([[0.5, 0.3, 0.1, 0.05, 0.03, 0.02], [0.02, 0.5, 0.3, 0.1, 0.05, 0.03]])
    counts = error_counts(p, torch.tensor([1, 0]))
    assert counts[:2].tolist() == [2, 1]
    assert float(counts[2]) == pytest.approx(-math.log(0.3) - math.log(0.02), rel=1e-6)
    assert float(counts[3]) == 2


class Reader(nn.Module):
    """Says how bright the left half of its input is against the top quarter."""

    num_classes = 2

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.pretrained_cfg = {"input_size": (1, 8, 8), "mean": (0.0,), "std": (1.0,), "crop_pct": 0.5,
                               "interpolation": "bilinear", "crop_mode": "center"}  # fmt: skip

    def forward(self, x):
        parts = x[..., :4].mean(dim=(1, 2, 3)), x[..., :2, :].mean(dim=(1, 2, 3))
        return self.scale * 4 * torch.stack(parts, dim=1)


def test_accuracy_by_one_and_ten_crops_is_the_plain_computation():
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)) for _ in range(11)]
    classes = [int(k) for k in rng.integers(0, 2, 11)]
    source = Listed(pictures, classes, ("left", "top"))
    loaded = described("reader", Reader(), "built")
    images = torch.stack([torch.from_numpy(np.array(p))[None] / 255 for p in pictures])
    target = torch.tensor(classes)
    with torch.no_grad():
        one = Reader()(images[..., 4:12, 4:12]).double().softmax(1)
        ten = sum(Reader()(crop).double().softmax(1) for crop in ten_crops(images, 8)) / 10
    for crops, p in ((1, one), (10, ten)):
        found = accuracy(loaded, source, crops=crops, batch_size=4)
        assert found.images == 11
        assert found.top1 == pytest.approx(float((p.argmax(1) != target).double().mean()))
        assert 0 < found.top1 < 1
        assert found.top5 == 0
        assert found.loss == pytest.approx(float(-p[range(11), target].log().mean()), rel=1e-5)
    assert not torch.allclose(one, ten)
    assert accuracy(loaded, source, limit=3).images == 3


def test_accuracy_refuses_what_cannot_be_measured():
    loaded = described("reader", Reader(), "built")
    picture = Image.new("L", (16, 16))
    with pytest.raises(InputError, match="its images have no classes"):
        accuracy(loaded, Listed([picture], [None], None))
    with pytest.raises(InputError, match="listed has 3 classes and reader 2: reader has no class names"):
        accuracy(loaded, Listed([picture], [2], ("a", "b", "c")))
    with pytest.raises(InputError, match="crops=3 must be 1 or 10"):
        accuracy(loaded, open_images("fashion-sample"), crops=3, limit=1)
    loaded.preprocess.transform = lambda image: torch.zeros(1, 8, 8)
    with pytest.raises(ModelError, match="ten crops need a preprocessing"):
        accuracy(loaded, Listed([picture], [1], ("a", "b")), crops=10)
