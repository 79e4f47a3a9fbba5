"""Which class of a model is which of a data set."""

import numpy as np
import pytest
import torch
from nets import Listed
from PIL import Image
from torch import nn

from attribkit.errors import InputError, UnknownNameError
from attribkit.models.building import described
from attribkit.models.labels import imagenet_labels
from attribkit.training import accuracy
from attribkit.training.naming import class_numbers, matched

FASHION = ["T-shirt/top", "Trouser", "Ankle boot"]


def numbers(names, labels, count=None, used=None):
    used = np.arange(len(names)) if used is None else np.asarray(used)
    return class_numbers(names, labels, count or len(labels or names), used, data="D", model="M").tolist()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["Ankle boot", "T-shirt/top"], [2, 0]),
        (["ankle_boot", "T-shirt-top", "TROUSER"], [2, 0, 1]),
        (["Zebra", ""], [None, None]),
    ],
)
def test_names_are_found_as_folders_write_them(names, expected):
    assert matched(names, FASHION) == expected


def test_an_exact_name_goes_before_one_in_other_letters():
    assert matched(["a_b", "a-b"], ["a-b", "a_b"]) == [1, 0]
    with pytest.raises(InputError, match=r"class 'a b' may be any of the model's 'a-b', 'a_b'"):
        matched(["a b"], ["a-b", "a_b"])


def test_imagenets_numbers_and_synonyms():
    labels = imagenet_labels()
    assert matched(["n01440764", "Tinca tinca", "n15075141"], labels) == [0, 0, 999]
    cranes = [index for index, label in enumerate(labels) if label == "crane"]
    assert len(cranes) == 2
    assert matched(["crane", "n01440764", "crane"], labels) == [cranes[0], 0, cranes[1]]
    with pytest.raises(InputError, match="class 'crane' may be any of"):
        matched(["crane"], labels)
    assert matched(["n01440764"], FASHION) == [None]


def test_numbers_are_by_name_else_by_order():
    assert numbers(["Trouser", "Ankle boot"], FASHION) == [1, 2]
    assert numbers(["x", "y", "z"], None) == [0, 1, 2]
    assert numbers(["0", "1", "2"], FASHION) == [0, 1, 2]
    assert numbers(["x", "y", "z"], ["0", "1", "2"]) == [0, 1, 2]
    assert numbers(["0", "1"], ["0", "1", "2"]) == [0, 1]
    assert numbers(["x", "y"], FASHION, count=2) == [0, 1]  # labels of another classifier are none
    assert numbers(["Zebra", "Trouser"], FASHION, used=[1]) == [-1, 1]


@pytest.mark.parametrize(
    ("names", "labels", "count", "error", "message"),
    [
        (["Trousers", "Ankle boot"], FASHION, 3, UnknownNameError, "D: class 'Trousers' is not among the 3 class names"
         " of M: did you mean 'Trouser'?"),
        (["x", "y"], None, 3, InputError, "D has 2 classes and M 3: M has no class names"),
        (["0", "1"], FASHION, 3, InputError, "D has 2 classes and M 3: D has no class names"),
        (["a b", "c"], ["a-b", "a_b"], 2, InputError, "D: class 'a b' may be any of"),
    ],
)  # fmt: skip
def test_what_cannot_be_matched_is_one_line(names, labels, count, error, message):
    with pytest.raises(error) as caught:
        numbers(names, labels, count)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


class Brightness(nn.Module):
    """Three classes: dark, grey and bright."""

    num_classes = 3

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.pretrained_cfg = {"input_size": (1, 8, 8), "mean": (0.0,), "std": (1.0,), "crop_pct": 1.0}

    def forward(self, x):
        return -self.scale * 50 * (x.mean(dim=(1, 2, 3))[:, None] - torch.tensor([0.0, 0.5, 1.0])).abs()


def test_accuracy_does_not_depend_on_the_order_of_the_folders():
    shades = {"dark": 0, "grey": 128, "bright": 255}
    loaded = described("brightness", Brightness(), "built", list(shades))
    for names in (("bright", "dark", "grey"), ("grey", "bright"), ("dark",)):
        source = Listed([Image.new("L", (8, 8), shades[n]) for n in names], list(range(len(names))), names)
        found = accuracy(loaded, source)
        assert (found.images, found.top1) == (len(names), 0.0)
        assert found.loss < 1e-3
    wrong = Listed([Image.new("L", (8, 8))] * 2, [0, 1], ("dark", "brigth"))
    with pytest.raises(UnknownNameError, match=r"listed: class 'brigth' is not among .* did you mean 'bright'"):
        accuracy(loaded, wrong)
    assert accuracy(loaded, wrong, limit=1).top1 == 0.0  # of that class no image is looked at
