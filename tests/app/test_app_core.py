"""What the app knows without a browser: views, links, pictures, the shelf of models, jobs and drawings."""

import io
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from attribkit.app import drawing, links, pictures
from attribkit.app.jobs import Job, Stopped
from attribkit.app.kept import Kept
from attribkit.app.shelf import Shelf
from attribkit.app.subject import Found
from attribkit.app.view import SIGNS, TABS, Display, View
from attribkit.errors import AttribkitError, CheckpointError, ImageError, InputError, UnknownNameError
from attribkit.progress import track
from attribkit.report import figures

DEFAULT = View(model="zfnet-fashion", picture="fashion-0")

names = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_characters=","), min_size=1, max_size=12)
displays = st.builds(
    Display,
    opacity=st.integers(0, 20).map(lambda n: n / 20),
    sign=st.sampled_from(SIGNS),
    percentile=st.integers(100, 200).map(lambda n: n / 2),
)
maybe = st.none() | st.integers(0, 2000)
sides = st.none() | st.integers(4, 512)
views = st.builds(
    View,
    model=names,
    weights=names,
    picture=names,
    target=maybe,
    methods=st.lists(names.map(str.strip).filter(bool), unique=True, max_size=4).map(tuple),
    tab=st.sampled_from(TABS),
    layer=st.none() | names,
    channel=maybe,
    projector=names,
    window=sides,
    stride=sides,
    display=displays,
)


@given(views)
def test_a_link_restores_every_view(view):
    from urllib.parse import parse_qsl

    query = dict(parse_qsl(links.to_query(view, DEFAULT), keep_blank_values=True))
    assert links.from_query(query, DEFAULT) == (view, [])


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"opacity": "2"}, "opacity must be between 0 and 1"),
        ({"opacity": "nan"}, "opacity must be between 0 and 1"),
        ({"opacity": "much"}, "opacity is 'much', which is no number"),
        ({"sign": "both"}, "sign must be one of"),
        ({"percentile": "3"}, "percentile must be between"),
        ({"channel": "-1"}, "channel must be 0 or more"),
        ({"channel": "1.5"}, "channel is '1.5', which is no whole number"),
        ({"window": "1"}, "window must be between 4 and 512"),
        ({"stride": "9" * 4000}, "stride"),
        ({"tab": "secret"}, "tab must be one of"),
    ],
)
def test_a_wrong_value_in_a_link_is_said_and_the_default_taken(query, words):
    view, complaints = links.from_query({**query, "unheard": "of"}, DEFAULT)
    assert view == DEFAULT
    assert len(complaints) == 1
    assert words in complaints[0]
    assert len(complaints[0]) < 200


def test_the_samples_are_the_photograph_and_one_image_of_each_class():
    found = pictures.samples()
    assert len(found) == 11
    assert [picture.kind for picture in found.values()].count("fashion") == 10
    for picture in found.values():
        scope = {}
        exec(f"{picture.imports}\n{picture.code}", scope)  # the code in a snippet opens the same picture
        assert np.array_equal(np.asarray(scope["picture"]), np.asarray(picture.open()))
    with pytest.raises(UnknownNameError, match="no sample picture 'fashion-999'"):
        pictures.sample("fashion-999")


@pytest.mark.parametrize(
    ("content", "limits", "words"),
    [
        (b"", {}, "the file is empty"),
        (b"not a picture", {}, "is not an image"),
        (b"x" * 101, {"limit": 100}, "is larger than"),
        ("png", {"pixels": 100}, "20×10 pixels; at most"),
        ("cut", {}, "damaged or truncated"),
    ],
)
def test_an_upload_that_cannot_be_used_is_refused_in_one_line(tmp_path, content, limits, words):
    path = tmp_path / "mine.png"
    if isinstance(content, str):
        noise = np.random.default_rng(0).integers(0, 256, (10, 20, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        if content == "cut":
            path.write_bytes(path.read_bytes()[:-80])
    else:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=words) as caught:
        pictures.uploaded(path, **limits)
    assert str(caught.value).startswith("mine.png: ")
    assert "\n" not in str(caught.value)


def test_an_upload_is_kept_when_its_file_is_gone(tmp_path):
    path = tmp_path / "mine.png"
    Image.new("RGB", (20, 10), "red").save(path)
    picture = pictures.uploaded(path)
    path.unlink()
    assert picture.open().getpixel((0, 0)) == (255, 0, 0)
    assert picture.name == "mine.png"


@pytest.mark.parametrize(
    "name", ["os:getcwd", "attribkit.models:zfnet", "run/../../etc", "run//tmp", "./x:y", "hub/some", "", "timm/", "/"]
)
def test_the_page_cannot_ask_for_code_or_paths(name, monkeypatch):
    monkeypatch.setattr("attribkit.models.loading.load_model", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(InputError):
        Shelf().get(name)


def test_what_was_named_on_the_command_line_may_be_anything(monkeypatch):
    asked = []
    monkeypatch.setattr("attribkit.models.loading.load_model", lambda *a, **k: asked.append((a, k)) or _Loaded())
    shelf = Shelf(["my.module:build", "run/mine"], weights="w.pt")
    shelf.get("my.module:build")
    shelf.get("run/mine")
    assert asked == [(("my.module:build",), {"weights": "w.pt"}), (("run/mine",), {"weights": None})]
    assert shelf.choices[:2] == ["my.module:build", "run/mine"]
    assert shelf.arguments("my.module:build") == ['"my.module:build"', 'weights="w.pt"']


def test_published_weights_are_taken_only_when_that_was_asked_for():
    assert Shelf().arguments("timm/resnet18") == ['"timm/resnet18"']
    assert Shelf(pretrained=True).arguments("timm/resnet18") == ['"timm/resnet18"', 'weights="pretrained"']
    assert Shelf(pretrained=True).arguments("zfnet-fashion") == ['"zfnet-fashion"']


def test_checkpoints_are_those_of_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("attribkit.models.loading.load_model", lambda *a, **k: _Loaded())
    (tmp_path / "in").mkdir()
    for name in ("in/b.pt", "in/a.safetensors", "in/notes.txt", "out.pt"):
        (tmp_path / name).write_bytes(b"")
    shelf = Shelf(checkpoints=tmp_path / "in")
    assert shelf.checkpoints == ["a.safetensors", "b.pt"]
    assert shelf.get("zfnet-fashion", "b.pt").weights_file == tmp_path / "in" / "b.pt"
    for name in ("../out.pt", str(tmp_path / "out.pt"), "notes.txt"):
        with pytest.raises(CheckpointError, match="no checkpoint is called"):
            shelf.get("zfnet-fashion", name)
    with pytest.raises(CheckpointError):
        Shelf().get("zfnet-fashion", "b.pt")
    with pytest.raises(InputError, match="no folder"):
        Shelf(checkpoints=tmp_path / "out.pt")


def test_a_model_is_loaded_once_for_all_and_the_last_few_are_kept(monkeypatch):
    loads = []
    began, go = threading.Event(), threading.Event()

    def load(name, weights=None):
        loads.append(name)
        if name == "timm/slow":
            began.set()
            assert go.wait(20)
        if name == "timm/bad":
            raise AttribkitError("it cannot be built")
        return _Loaded()

    monkeypatch.setattr("attribkit.models.loading.load_model", load)
    shelf = Shelf(kept=2)
    found = []
    threads = [threading.Thread(target=lambda: found.append(shelf.get("timm/slow"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert began.wait(20)
    other = shelf.get("timm/other")  # somebody else's model is not waited for
    go.set()
    for thread in threads:
        thread.join(20)
    assert loads == ["timm/slow", "timm/other"]
    assert len({id(one) for one in found}) == 1
    assert shelf.get("timm/other") is other
    shelf.get("timm/third")
    assert shelf.get("timm/other") is other  # of two, the one that was asked for last
    shelf.get("timm/slow")
    assert loads == ["timm/slow", "timm/other", "timm/third", "timm/slow"]
    for _ in range(2):
        with pytest.raises(AttribkitError, match="cannot be built"):
            shelf.get("timm/bad")


def test_a_job_tells_how_far_it_has_come():
    allowed = threading.Semaphore(0)

    def work():
        found = 0
        for item in track([1, 2, 3, 4], "adding"):
            assert allowed.acquire(timeout=20)
            found += item
        return found

    job = Job(work)
    seen = []
    for step in job.steps(every=0.01):
        seen.append((step.done, step.total))
        if step.total and len(seen) % 3 == 0:
            allowed.release()
    assert job.result() == 10
    assert seen == sorted(seen)
    assert {(1, 4), (2, 4), (3, 4)} <= set(seen)
    assert seen[-1] == (4, 4)


def test_a_job_can_be_stopped_and_tells_its_errors():
    begun = threading.Event()

    def endless():
        for _ in track(iter(int, 1), "endless", total=10**9):
            begun.set()

    job = Job(endless)
    steps = job.steps(every=0.01)
    next(steps)
    assert begun.wait(20)
    steps.close()  # nobody looks any more
    with pytest.raises(Stopped):
        job.result()

    failing = Job(lambda: 1 // 0)
    assert list(failing.steps())[-1].total == 0
    with pytest.raises(ZeroDivisionError):
        failing.result()


def test_signs_and_percentiles_are_what_they_say():
    values = np.array([[[1.0, -2.0]], [[3.0, -1.0]], [[-1.0, 0.5]]])
    assert drawing.strength(values, "signed").tolist() == [[3.0, -2.5]]
    assert drawing.strength(values, "positive").tolist() == [[3.0, 0.0]]
    assert drawing.strength(values, "negative").tolist() == [[0.0, 2.5]]
    assert drawing.strength(values, "absolute").tolist() == [[5.0, 3.5]]
    same = np.full((3, 1, 2), 2.0)  # the occlusion's map, the same in every channel
    assert drawing.strength(same, "signed").tolist() == [[2.0, 2.0]]
    heat = np.concatenate([np.zeros(900), np.arange(1, 101)])
    assert figures.robust_limit(heat, 100) == 100
    assert figures.robust_limit(heat, 50) == pytest.approx(50.5)
    assert figures.robust_limit(np.zeros(4), 99) == 0.0


def test_opacity_goes_from_the_picture_to_the_map():
    view = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    values = np.random.default_rng(1).normal(size=(3, 8, 8))
    alone = np.asarray(drawing.draw(view, values, Display(opacity=0)))
    assert np.array_equal(alone, np.asarray(view.convert("L").convert("RGB")))
    full = np.asarray(drawing.draw(view, values, Display(opacity=1)))
    assert np.array_equal(full, np.asarray(drawing.draw(Image.new("RGB", (8, 8)), values, Display(opacity=1))))
    half = np.asarray(drawing.draw(view, values, Display(opacity=0.5))).astype(int)
    low, high = np.minimum(alone, full).astype(int), np.maximum(alone, full).astype(int)
    assert ((half >= low - 1) & (half <= high + 1)).all()
    figure = Image.open(io.BytesIO(drawing.figure(view, values, Display(), "A title " * 20, "details")))
    assert figure.width >= drawing.LEAST
    assert figure.height > figure.width


class _Loaded:
    """Stands for a loaded model."""

    weights = "random"

    class model:
        @staticmethod
        def to(device):
            """Stay where it is."""


def test_what_was_not_used_for_the_longest_goes():
    kept = Kept(2)
    assert [kept.get_or(key, lambda key=key: key.upper()) for key in ("a", "b")] == ["A", "B"]
    assert kept.get_or("a", lambda: "anew") == "A"
    kept.put("c", "C")
    assert (kept.get("a"), kept.get("b"), kept.get("c")) == ("A", None, "C")


def test_a_drawing_is_that_of_its_own_map():
    """Two results never share a drawing, even when the second lies where the first one was."""
    first, second = Found(None, 1.0), Found(None, 1.0)
    assert first != second
    assert len({("drawn", first), ("drawn", second)}) == 2
