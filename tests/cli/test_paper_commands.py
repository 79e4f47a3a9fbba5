import csv
import json

import numpy as np
import pytest
import tinynets
import torch
from cli_helpers import error_of
from PIL import Image
from safetensors.torch import save_file

from attribkit.cli._paper import open_session, sized
from attribkit.datasets import open_images

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = ("--model", "tinynets:five")


@pytest.fixture
def folder(tmp_path):
    """Write images of noise in five class folders and return their folder."""
    rng = np.random.default_rng(0)
    for name in "abcde":
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(2):
            pixels = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    return tmp_path / "data"


@pytest.fixture
def snapshots(tmp_path):
    path = tmp_path / "run" / "snapshots"
    path.mkdir(parents=True)
    for epoch in (1, 12):
        state = {k: (v * (1 + 0.1 * epoch)).half() for k, v in tinynets.five().state_dict().items()}
        save_file(state, path / f"epoch-{epoch:03d}.safetensors")
    return tmp_path / "run"


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def whole(path):
    """Check that a picture can be decoded and is no blank sheet."""
    with Image.open(path) as image:
        return len(np.unique(np.asarray(image.convert("L")))) > 2


def test_evolution(run, folder, snapshots):
    result = run(
        "evolution", snapshots, *MODEL, "--data", folder, "--layer", "1", "--layer", "2", "--channel", 3, "--out", "o"
    )
    assert result.exit_code == 0, result.output
    assert "1: " in result.stdout
    for layer in "12":
        rows = table(f"o/evolution-{layer}.csv")
        assert [(row["epoch"], row["channel"]) for row in rows] == [("1", "3"), ("12", "3")]
        assert {row["image"][0] for row in rows} <= set("abcde")
        assert whole(f"o/evolution-{layer}.png")
    assert len(table("o/evolution-1.csv")) == 2


def test_evolution_takes_the_first_maps(run, folder, snapshots):
    files = sorted((snapshots / "snapshots").iterdir())
    result = run("evolution", *files, *MODEL, "--data", folder, "--layer", "1", "--limit", 3)
    assert result.exit_code == 0, result.output
    assert {row["channel"] for row in table("attribkit-evolution/evolution-1.csv")} == set("0123")


def test_evolution_without_snapshots(run, folder, tmp_path):
    (tmp_path / "none").mkdir()
    result = run("evolution", tmp_path / "none", *MODEL, "--data", folder, "--layer", "1")
    assert "holds none" in error_of(result)
    assert not (tmp_path / "attribkit-evolution").exists()


def test_invariance(run, folder):
    options = ("--translations", "-2,0,2", "--scales", "0.5:1.5:3", "--rotations", "90", "--out", "o")
    result = run("invariance", *MODEL, "--data", folder, "--image", "b/1.png", "--image", 9, *options)
    assert result.exit_code == 0, result.output
    assert "classes are the data's" in result.stdout
    rows = table("o/invariance.csv")
    assert [row["class"] for row in rows] == ["1"] * 7 + ["4"] * 7
    assert [float(row["amount"]) for row in rows[:7]] == [-2, 0, 2, 0.5, 1, 1.5, 90]
    neutral = [row for row in rows if (row["transform"], float(row["amount"])) in (("translation", 0), ("scale", 1))]
    assert len(neutral) == 4
    assert all(float(row["distance:2"]) == 0 for row in neutral)
    assert whole("o/invariance.png")


def test_invariance_of_unlabelled_images(run, picture, tmp_path):
    picture("pictures/one.png")
    result = run(
        "invariance",
        *MODEL,
        "--data",
        tmp_path / "pictures",
        "--translations",
        "0,1",
        "--scales",
        "",
        "--rotations",
        "",
    )
    assert result.exit_code == 0, result.output
    assert "classes are the model's answers" in result.stdout
    assert {row["transform"] for row in table("attribkit-invariance/invariance.csv")} == {"translation"}


@pytest.mark.parametrize(("option", "value"), [("--fill", "grey"), ("--rotations", "a,b"), ("--scales", "0:1:1")])
def test_invariance_usage(run, folder, option, value):
    result = run("invariance", *MODEL, "--data", folder, option, value)
    assert result.exit_code == 2
    assert option in result.stderr


@pytest.fixture
def garments(tmp_path):
    """Write two of fashion-sample's images of each of three classes, in class folders, and return their folder."""
    source = open_images("fashion-sample")
    classes = source.classes()
    for name in ("Ankle boot", "Bag", "T-shirt/top"):
        folder = tmp_path / "garments" / name.replace("/", "-")
        folder.mkdir(parents=True)
        for row in np.flatnonzero(classes == source.labels.index(name))[:2]:
            source.load(int(row)).save(folder / f"{row}.png")
    return tmp_path / "garments"


STILL = ("--translations", "0", "--scales", "", "--rotations", "")


def test_invariance_matches_classes_by_name(run, garments):
    result = run("invariance", "--model", "zfnet-fashion", "--data", garments, *STILL, "--out", "o")
    assert result.exit_code == 0, result.output
    assert "classes are the data's" in result.stdout
    rows = table("o/invariance.csv")
    # the folders' order is another than the model's, in which T-shirt/top is the first and Ankle boot the last
    assert [(row["class"], row["name"]) for row in rows] == [
        *[("9", "Ankle boot")] * 2,
        *[("8", "Bag")] * 2,
        ("0", "T-shirt/top"),
    ]
    # by the folders' order it would be right of none; it errs on the second boot only
    assert [float(row["probability"]) > 0.99 for row in rows] == [True, False, True, True, True]


def test_invariance_of_classes_that_the_model_has_not(run, garments, folder):
    (garments / "Bag").rename(garments / "Bags")
    arguments = ("invariance", "--model", "zfnet-fashion", *STILL)
    assert "class 'Bags' is not among the 10 class names of zfnet-fashion: did you mean 'Bag'" in error_of(
        run(*arguments, "--data", garments)
    )
    one = run(*arguments, "--data", garments, "--image", "0")
    assert "classes are the data's" in one.stdout  # that of the image asked for is known
    other = run(*arguments, "--data", folder)  # a to e
    assert "classes are the model's answers" in other.stdout


def test_class_names_are_the_models_before_the_datas(garments, folder):
    session = open_session({"model": "zfnet-fashion", "weights": None, "device": "cpu"})
    names = tuple(session.labels)
    assert names[0] == "T-shirt/top"
    source = open_images(folder)
    source.labels = tuple("abcdefghij")  # as many as the model's
    assert sized(session, source) == names
    session.labels = None
    assert sized(session, source) == source.labels
    assert sized(session, open_images(garments)) is None
    session.labels = ["another", "model's"]
    assert sized(session, source) == source.labels


def test_invariance_of_an_image_that_is_not_there(run, folder):
    result = run("invariance", *MODEL, "--data", folder, "--image", "b/7.png")
    assert "did you mean 'b/" in error_of(result)


def test_occlusion_study(run, folder, picture):
    result = run("occlusion-study", picture(), *MODEL, "--data", folder, "--target", 2, "--stride", 8, "--out", "o")
    assert result.exit_code == 0, result.output
    assert "c: probability" in result.stdout
    rows = table("o/occlusion-study.csv")
    assert [(row["top"], row["left"]) for row in rows[:4]] == [("0", "0"), ("0", "8"), ("0", "16"), ("8", "0")]
    assert whole("o/occlusion-study.png")
    result = run("occlusion-study", "d/0.png", *MODEL, "--data", folder, "--keep", 0, "--out", "p")
    assert result.exit_code == 0, result.output
    assert len(table("p/occlusion-study.csv")) == 11 * 11  # windows of 4, by 2, over 24


def test_correspondence(run, folder, tmp_path):
    boxes = {f"{name}/0.png": {"eye": [2, 2, 8, 8], "nose": [10, 4, 16, 12]} for name in "abd"}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    result = run(
        "correspondence", *MODEL, "--data", folder, "--boxes", "boxes.json", "--trials", 2, "--layer", "2", "--out", "o"
    )
    assert result.exit_code == 0, result.output
    rows = table("o/correspondence.csv")
    assert [(r["part"], r["masks"], r["count"]) for r in rows] == [
        ("eye", "part", "3"),
        ("nose", "part", "3"),
        ("eye", "random", "6"),
        ("nose", "random", "6"),
        ("all parts", "random", "12"),
    ]
    assert f"{float(rows[0]['mean']):.3f}" in result.stdout
    assert whole("o/correspondence.png")
    boxes["zebra.png"] = boxes["a/0.png"]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    result = run("correspondence", *MODEL, "--data", folder, "--boxes", "boxes.json")
    assert "no image is called 'zebra.png'" in error_of(result)


def test_diagnose(run, folder):
    result = run("diagnose", *MODEL, "--data", folder, "--out", "o")
    assert result.exit_code == 0, result.output
    assert "on 10 images" in result.stdout
    rows = table("o/diagnosis.csv")
    expected = tinynets.five()[0].weight.detach().double().square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(torch.tensor([float(row["rms"]) for row in rows]).double(), expected)
    assert whole("o/diagnosis.png")
    result = run("diagnose", *MODEL, "--out", "p")
    assert "activity was not measured" in result.stdout
    assert {row["peak"] for row in table("p/diagnosis.csv")} == {""}
    assert run("diagnose", *MODEL, "--limit", 3).exit_code == 2


def test_the_same_command_writes_the_same_files(run, folder, tmp_path):
    for out in ("one", "two"):
        assert run("diagnose", *MODEL, "--data", folder, "--out", out).exit_code == 0
    for name in ("diagnosis.csv", "diagnosis.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


COMMANDS = [
    ("evolution", "RUN", "--data", "DATA", "--layer", "1"),
    ("invariance", "--data", "DATA"),
    ("occlusion-study", "0", "--data", "DATA"),
    ("correspondence", "--data", "DATA", "--boxes", "boxes.json"),
    ("diagnose", "--data", "DATA"),
    ("probe", "--data", "DATA", "--layer", "1"),
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=[given[0] for given in COMMANDS])
def test_a_folder_that_cannot_be_written_is_found_out_first(run, folder, snapshots, tmp_path, arguments):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "boxes.json").write_text(json.dumps({f"{n}/0.png": {"eye": [2, 2, 8, 8]} for n in "ab"}))
    given = [{"DATA": folder, "RUN": snapshots}.get(word, word) for word in arguments]
    message = error_of(run(*given, "--model", "nomodule:none", "--out", "file/out"))
    assert "the output folder 'file/out' cannot be" in message
    assert "nomodule" in error_of(run(*given, "--model", "nomodule:none", "--out", "new/out"))
    assert not (tmp_path / "new").exists()
