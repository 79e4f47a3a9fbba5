"""Opening images: folders, idx files, torchvision's data sets; and what damaged files are answered with."""

import gzip
import struct
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from attribkit.datasets import FASHION_LABELS, open_images, opening, read_idx, splits
from attribkit.errors import ImageError, InputError, UnknownNameError


def idx(values, magic=None):
    header = magic or bytes([0, 0, 8, values.ndim])
    return header + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def digits(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 5, 4), dtype=np.uint8)


@pytest.fixture
def mnist(tmp_path):
    """A folder with idx files, gzipped and not, dashes and dots in their names."""
    for stem, count in (("train", 7), ("t10k", 3)):
        dot = "-" if stem == "train" else "."
        (tmp_path / f"{stem}-images{dot}idx3-ubyte").write_bytes(idx(digits(count)))
        labels = (np.arange(count) % 3).astype(np.uint8)
        (tmp_path / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels), mtime=0))
    return tmp_path


def picture(path, colour=(200, 30, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), colour).save(path)
    return path


@pytest.mark.parametrize(("split", "part", "count"), [("train", "train", 7), ("test", "test", 3), (None, "test", 3)])
def test_idx_folder(split, part, count, mnist):
    source = open_images(mnist, split)
    assert len(source) == count == len(source.ids) == len(set(source.ids))
    assert source.name == f"{mnist} ({part})"
    assert np.array_equal(np.asarray(source.load(2)), digits(count)[2])
    assert source.load(2).mode == "L"
    assert source.labels == ("0", "1", "2")
    assert [source.label(i) for i in range(3)] == [0, 1, 2]
    assert source.classes().tolist() == [i % 3 for i in range(count)]
    assert np.array_equal(source.pixels, digits(count))
    assert splits(mnist) == ("train", "test")


def test_idx_names_of_classes(mnist):
    (mnist / "labels.txt").write_text("nought\none\ntwo\n")
    assert open_images(mnist).labels == ("nought", "one", "two")
    (mnist / "labels.txt").write_text("nought\none\n")
    with pytest.raises(ImageError, match=r"labels-idx1-ubyte\.gz: holds the label 2; there are 2 class names"):
        open_images(mnist)


def test_idx_without_labels(mnist):
    (mnist / "t10k-labels-idx1-ubyte.gz").unlink()
    source = open_images(mnist, "test")
    assert source.labels is None
    assert source.label(0) is None
    with pytest.raises(InputError, match="its images have no classes"):
        source.classes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it begins with nothing"),
        (b"\x89PNG\r\n\x1a\n", "is not an idx file of unsigned bytes: it begins with 89 50 4e 47"),
        (idx(digits(2), magic=b"\0\0\x0d\x03"), "is not an idx file of unsigned bytes"),
        (b"\0\0\x08\x03\0\0", "truncated within its header"),
        (idx(digits(2))[:-1], "its header says 40 bytes of data, there are 39"),
        (idx(digits(2)) + b"x", "its header says 40 bytes of data, there are more"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "are refused"),
        (gzip.compress(idx(digits(2))[:-1], mtime=0), "its header says 40 bytes of data, there are 39"),
        (gzip.compress(idx(digits(900)), mtime=0)[:-12], "is damaged or truncated"),
        (
            gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 2**20, 8, 8), mtime=0),
            "truncated: its header says 67,108,864 bytes",
        ),
        (b"\x1f\x8bnonsense", "is damaged or truncated"),
    ],
)
def test_damaged_idx_files_are_named(content, message, mnist):
    path = mnist / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        read_idx(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    with pytest.raises(ImageError, match="train-images"):
        open_images(mnist, "train")


def test_idx_labels_must_be_as_many_as_images(mnist):
    (mnist / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(6, np.uint8)), mtime=0))
    with pytest.raises(ImageError, match=r"train-labels-idx1-ubyte\.gz: holds 6 labels for 7 images"):
        open_images(mnist, "train")
    (mnist / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((0, 5, 4), np.uint8)))
    with pytest.raises(InputError, match="holds no image: 0×5×4"):
        open_images(mnist, "train")
    (mnist / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((3, 5), np.uint8)))
    with pytest.raises(ImageError, match="holds 3×5 values, not images"):
        open_images(mnist, "train")


def test_folder_of_classes(tmp_path):
    for name in ("zebra/1.png", "ape/b.png", "ape/deep/a.png"):
        picture(tmp_path / name)
    source = open_images(str(tmp_path))
    assert source.labels == ("ape", "zebra")
    assert source.ids == ("ape/b.png", "ape/deep/a.png", "zebra/1.png")
    assert [source.label(i) for i in range(3)] == [0, 0, 1]
    assert source.load(0).size == (8, 6)
    assert source.pixels is None
    assert splits(tmp_path) == ()


def test_loose_images_have_no_classes(tmp_path):
    picture(tmp_path / "x.png")
    picture(tmp_path / "sub" / "a.png")
    source = open_images(tmp_path)
    assert source.ids == ("sub/a.png", "x.png")
    assert source.labels is None
    assert source.label(0) is None


def test_folder_with_parts(tmp_path):
    for part in ("train", "val"):
        picture(tmp_path / part / "a" / f"{part}.png")
        picture(tmp_path / part / "b" / "1.png")
    assert splits(tmp_path) == ("train", "val")
    assert open_images(tmp_path).ids[0] == "a/val.png"
    assert open_images(tmp_path, "train").ids[0] == "a/train.png"
    assert open_images(tmp_path, "validation").name == f"{tmp_path} (val)"
    with pytest.raises(InputError, match="has no part 'test'; it has train and val"):
        open_images(tmp_path, "test")
    picture(tmp_path / "train" / "loose.png")  # of one part: it has no classes, the other has
    assert open_images(tmp_path, "train").labels is None


def test_a_class_called_train_is_a_class(tmp_path):
    for name in ("bus", "train"):
        picture(tmp_path / name / "1.png")
    assert splits(tmp_path) == ()
    assert open_images(tmp_path).labels == ("bus", "train")


def test_a_damaged_image_among_others(tmp_path):
    picture(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "2.png").write_bytes(b"no image")
    source = open_images(tmp_path)
    assert source.load(0).size == (8, 6)
    with pytest.raises(ImageError, match=r"2\.png: is not an image"):
        source.load(1)
    with pytest.raises(IndexError):
        source.load(2)


def test_the_sample_comes_with_the_package():
    source = open_images("fashion-sample")
    assert len(source) == 1000
    assert source.labels == FASHION_LABELS
    assert source.load(0).size == (28, 28)
    # Its first ten labels, and how the classes are spread: facts of the data set.
    assert source.classes()[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    assert np.bincount(source.classes()).tolist() == [107, 105, 111, 93, 115, 87, 97, 95, 95, 95]
    assert splits("fashion-sample") == ("test",)
    with pytest.raises(InputError, match="fashion-sample has no part 'train'; it has test"):
        open_images("fashion-sample", "train")


def test_fashion_mnist_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "FASHION_FOLDER", tmp_path / "absent")
    with pytest.raises(InputError, match="apt install dataset-fashion-mnist"):
        open_images("fashion-mnist")
    monkeypatch.setattr(opening, "FASHION_FOLDER", tmp_path)
    with pytest.raises(InputError, match="holds no idx files"):
        open_images("fashion-mnist")


def test_torchvision_data_sets_on_disk(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for stem, count in (("train", 6), ("t10k", 4)):
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(idx(digits(count)))
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(idx((np.arange(count) % 10).astype(np.uint8)))
    name = f"torchvision/MNIST:{tmp_path}"
    source = open_images(name)
    assert source.name == f"{name} (test)"
    assert len(source) == 4
    assert source.label(3) == 3
    assert source.labels[3] == "3 - three"
    assert np.array_equal(np.asarray(source.load(1)), digits(4)[1])
    assert len(open_images(name, "train")) == 6
    assert splits(name) == ("train", "test")


@pytest.mark.parametrize(
    ("source", "split", "error", "message"),
    [
        ("nowhere", None, InputError, "data 'nowhere': there is no such folder"),
        (__file__, None, InputError, "is not a folder"),
        ("fashion-sample", "tset", UnknownNameError, "split 'tset' is not known: did you mean 'test'?"),
        ("torchvision/CIFAR11:.", None, UnknownNameError, "no data set of images 'CIFAR11': did you mean 'CIFAR10'"),
        ("torchvision/CIFAR10", None, InputError, "say where it lies: torchvision/CIFAR10:FOLDER"),
        ("torchvision/CIFAR10:nowhere", None, InputError, "there is no folder 'nowhere'"),
        ("torchvision/CIFAR10:.", None, InputError, "torchvision cannot open it: Dataset not found"),
        ("torchvision/ImageFolder:.", None, UnknownNameError, "no data set of images 'ImageFolder'"),
    ],
)
def test_bad_sources_are_one_line(source, split, error, message):
    with pytest.raises(error) as caught:
        open_images(source, split)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_folder(tmp_path):
    with pytest.raises(ImageError, match="holds no image"):
        open_images(tmp_path)
    (tmp_path / "a").mkdir()
    picture(tmp_path / "b" / "1.png")
    with pytest.raises(ImageError, match="a: holds no image"):
        open_images(tmp_path)


def test_no_torch_is_needed():
    code = (
        "import sys, attribkit.datasets as d; d.open_images('fashion-sample').load(0); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_patterns_lists_and_tar_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        picture(tmp_path / "in" / f"{number}.png", (number, 0, 0))
    (tmp_path / "L.txt").write_text("in/2.png\nin/0.png\nin/gone.png\nin/2.png\n")
    with tarfile.open("x-0.tar", "w") as tar:
        tar.add("in/1.png", "key.png")
    for source, ids, reds in (
        ("in/[01].png", ("in/0.png", "in/1.png"), [0, 1]),
        ("L.txt", ("in/2.png", "in/0.png", "in/gone.png"), [2, 0]),
        ("x-{0..0}.tar", ("x-0.tar/key.png",), [1]),
    ):
        opened = open_images(source)
        assert opened.ids == ids
        assert [opened.load(i).getpixel((0, 0))[0] for i in range(len(reds))] == reds
        assert opened.label(0) is None
    with pytest.raises(ImageError, match=r"^in/gone\.png: no such file"):
        open_images("L.txt").load(2)
    with pytest.raises(ImageError, match=r"^in/\*\.gif: no file fits this pattern"):
        open_images("in/*.gif")
    with pytest.raises(InputError, match="has no part 'val'"):
        open_images("L.txt", "val")
