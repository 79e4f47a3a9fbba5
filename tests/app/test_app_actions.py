"""What the page's controls do, without a browser: sessions, what they show, and what is taken away."""

import html
import io
import json
import re
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import attribkit
from attribkit.app import actions, pages, results, saving
from attribkit.app.changes import Field
from attribkit.app.kept import Kept
from attribkit.app.session import Session, Superseded
from attribkit.app.shelf import Shelf, Shown
from attribkit.app.top import Mined
from attribkit.app.view import TABS, UPLOADED
from attribkit.errors import AttribkitError, InputError, MethodError
from attribkit.models.loading import LoadedModel

FASHION = {"model": "zfnet-fashion", "picture": "fashion-0"}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shelf():
    return Shelf()


@pytest.fixture
def session(shelf):
    session = Session(shelf)
    assert session.open(FASHION) == []
    return session


def after(changes):
    """Return the last content of every part that an action changed."""
    found = {}
    for change in changes:
        found |= change
    return found


def seen(session, changes):
    """Return what the page shows in the end: of an action, and of what is computed then."""
    return after(changes) | after(actions.computed(session))


def test_the_first_page_shows_a_picture_that_the_model_knows(shelf):
    session = Session(Shelf(["zfnet-fashion"]))
    shown = seen(session, actions.opened(session, {}))
    assert session.view.picture == "fashion-0"
    assert "Ankle boot" in shown["answer"]
    assert shown["maps"].count("ak-done") == 4
    assert "ak-working" not in shown["maps"]
    assert shown["notice"] == "\n" or not shown["notice"].strip()


def test_another_model_brings_a_picture_that_it_knows_but_keeps_an_upload(session, tmp_path):
    session.choose_model("timm/test_vit")
    assert session.view.picture == "photograph"
    session.choose_model("zfnet-fashion")
    assert session.view.picture == "fashion-0"
    Image.new("RGB", (60, 60), "red").save(tmp_path / "red.png")
    session.upload(str(tmp_path / "red.png"))
    session.choose_model("timm/test_vit")
    assert session.view.picture == UPLOADED
    assert session.subject.picture.name == "red.png"


def test_what_fails_leaves_everything_as_it_was(session, tmp_path):
    before, subject = session.view, session.subject
    (tmp_path / "bad.png").write_bytes(b"no picture")
    for wrong in (
        lambda: session.choose_model("timm/resnet81"),
        lambda: session.choose_model("zfnet-fashion", "none.pt"),
        lambda: session.choose_sample("cat"),
        lambda: session.upload(str(tmp_path / "bad.png")),
        lambda: session.choose_class(10),
        lambda: session.choose_layer("relu9"),
        lambda: session.choose_channel(10**6),
        lambda: session.change(window=1),
    ):
        with pytest.raises(AttribkitError):
            wrong()
    assert (session.view, session.subject) == (before, subject)


def test_a_wrong_model_is_said_and_the_choice_goes_back(session):
    changes = actions.model_chosen(session, "timm/resnet81", "")
    made = []
    with pytest.raises(AttribkitError, match="unknown model 'timm/resnet81'"):
        made.extend(changes)
    assert made[-1]["model"].value == "zfnet-fashion"


def test_a_link_of_an_uploaded_picture_says_what_it_lacks_and_waits_for_it(shelf, tmp_path):
    session = Session(shelf)
    (complaint,) = session.open({**FASHION, "picture": UPLOADED, "target": "3", "layer": "relu3", "channel": "5"})
    assert "no link can hold" in complaint
    Image.new("L", (60, 60), 90).save(tmp_path / "mine.png")
    session.upload(str(tmp_path / "mine.png"))
    assert (session.view.target, session.layer, session.channel) == (3, "relu3", 5)
    session.upload(str(tmp_path / "mine.png"))  # another picture: its own class
    assert session.view.target is None
    assert "picture=upload" in session.query()


def test_a_link_that_asks_for_too_much_shows_what_it_can(shelf):
    session = Session(shelf)
    wrong = {**FASHION, "picture": "cat", "methods": "gradient,magic", "layer": "relu9", "sign": "none"}
    complaints = "\n".join(session.open(wrong))
    for part in ("picture 'cat'", "no method 'magic'", "relu9", "sign must be one of"):
        assert part in complaints
    assert session.view.methods == ("gradient",)
    assert session.layer in session.shown.layers
    (refused,) = Session(shelf).open({"model": "os:getcwd"})
    assert "attribkit app --model" in refused


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"target": "99999"}, "class 99999 is out of range: zfnet-fashion has 10 classes, 0 to 9"),
        ({"target": "-1"}, "target"),
        ({"channel": "99999"}, "feature map 99999 is out of range: relu2 has 64, 0 to 63"),
        ({"layer": "relu5", "channel": "64"}, "feature map 64 is out of range: relu5 has 64"),
        ({"layer": "relu9"}, "layer 'relu9' is not called"),
        ({"projector": "occlusion"}, "'occlusion' cannot project a unit; those that can: deconvnet"),
        ({"projector": "magic"}, "no method 'magic'"),
        ({"methods": "magic"}, "no method 'magic'"),
    ],
)
@pytest.mark.parametrize("default", [True, False])
def test_what_a_link_gets_wrong_gives_way_to_what_is_there(default, wrong, words):
    session = Session(Shelf(["zfnet-fashion"] if default else ["timm/test_vit", "zfnet-fashion"]))
    shown = seen(session, actions.opened(session, {**FASHION, "tab": "units", **wrong}))
    assert words in html.unescape(shown["notice"])
    view = session.view
    assert (view.model, view.target, view.channel) == ("zfnet-fashion", None, None)
    assert session.layer == ("relu5" if wrong.get("layer") == "relu5" else "relu2")
    assert view.projector == "deconvnet"
    assert "Ankle boot" in shown["answer"]
    assert np.abs(session.unit().found.values).sum() > 0


def test_display_draws_again_and_computes_nothing(session, monkeypatch):
    seen(session, actions.opened(session, FASHION))
    monkeypatch.setattr(attribkit, "attribute", lambda *_, **__: pytest.fail("it was computed again"))
    drawn = set()
    for opacity, sign, percentile in ((0.85, "signed", 99.5), (0.3, "signed", 99.5), (0.3, "positive", 90.0)):
        drawn.add(after(actions.displayed(session, opacity, sign, percentile))["maps"])
    assert len(drawn) == 3
    assert not after(actions.displayed(session, 0.3, "positive", 90.0))
    with pytest.raises(InputError, match="opacity"):
        after(actions.displayed(session, 2, "positive", 90.0))


def test_a_method_that_fails_costs_its_own_map_alone(session, monkeypatch):
    right = attribkit.attribute

    def broken(*args, method, **more):
        if method == "gradient":
            raise MethodError("gradient: <b>it broke</b>")
        return right(*args, method=method, **more)

    monkeypatch.setattr(attribkit, "attribute", broken)
    session.choose_methods(["gradient", "deconvnet"])
    drawn = seen(session, actions.class_chosen(session, 3))["maps"]
    assert "&lt;b&gt;it broke&lt;/b&gt;" in drawn
    assert drawn.count("ak-done") == 1


def test_what_is_no_longer_asked_is_not_shown(session):
    session.choose_methods(["gradient", "guided_backprop"])
    after(actions.class_chosen(session, 3))
    first = actions.computed(session)
    assert "ak-working" in next(first)["maps"]
    second = seen(session, actions.class_chosen(session, 4))
    assert [change for change in first if "maps" in change] == []
    assert "Dress" not in second["maps"]


def test_a_click_that_was_overtaken_by_a_later_one_does_nothing(session):
    assert after(actions.picked(session, "class", "3", 20.0))
    assert not after(actions.picked(session, "class", "4", 10.0))
    assert session.target == 3
    assert after(actions.picked(session, "channel", "4", 10.0))  # of another kind
    assert after(actions.picked(session, "class", "4", 30.0))
    assert session.target == 4


def test_two_sessions_at_once_see_their_own(shelf):
    alone = {}
    for number in (3, 4):
        session = Session(shelf)
        session.open({**FASHION, "target": str(number), "methods": "deconvnet,guided_backprop"})
        alone[number] = after(actions._maps(session))["maps"]
    together = {}

    def look(number):
        session = Session(shelf)
        session.open({**FASHION, "target": str(number), "methods": "deconvnet,guided_backprop"})
        together[number] = after(actions._maps(session))["maps"]

    threads = [threading.Thread(target=look, args=(number,)) for number in (3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    strip = re.compile(r"[\d.]+ s<")
    assert {n: strip.sub("", text) for n, text in alone.items()} == {
        n: strip.sub("", text) for n, text in together.items()
    }


def test_units_show_the_projection_its_field_and_the_top_patches(shelf, folders):
    session = Session(shelf, Mined(folders["features"]))
    shown = seen(session, actions.opened(session, {**FASHION, "tab": "units", "layer": "relu5", "channel": "1"}))
    assert shown["channel"].value == 1
    assert "Receptive field: rows" in shown["unit"]
    assert shown["unit"].count("Patch of image") == 9
    assert "It holds" not in shown["unit"]
    session.choose_channel(2)
    assert "no patches for this feature map; it holds relu5" in pages.unit(session)
    session.choose_model("timm/test_vit")
    assert "The folder of features is of zfnet-fashion" in pages.unit(session)


def test_the_top_patches_are_those_in_the_folder(folders):
    record = json.loads((folders["features"] / "features.json").read_text())
    hits = record["layers"]["relu5"]["features"]["1"]
    patches = Mined(folders["features"]).patches("relu5", 1)
    assert [(patch.image, patch.value) for patch in patches] == [(hit["image"], hit["value"]) for hit in hits]
    assert Mined(folders["features"]).patches("relu5", 9) == []
    assert Mined(folders["features"]).patches("relu9", 1) == []


def test_a_folder_that_holds_no_features_is_refused(tmp_path):
    with pytest.raises(InputError, match="attribkit features writes"):
        Mined(tmp_path)
    for text in ("{", "[]", '{"layers": {}}'):
        (tmp_path / "features.json").write_text(text)
        with pytest.raises(InputError, match="damaged"):
            Mined(tmp_path)


@pytest.mark.parametrize("model", ["timm/test_vit", "timm/test_resnet"])
def test_tokens_and_maps_can_be_looked_at_layer_by_layer(shelf, model):
    session = Session(shelf)
    assert session.open({"model": model, "picture": "photograph"}) == []
    for layer in session.shown.layers:
        session.choose_layer(layer)
        maps = session.feature_maps()
        assert maps.maps.shape[0] == len(maps.order) == len(maps.places)
        strongest = [float(maps.maps[c].max()) for c in maps.order]
        assert strongest == sorted(strongest, reverse=True) or model == "timm/test_vit"  # its class token is not drawn
        unit = session.unit()
        expected = attribkit.project(session.shown.loaded.model, session.subject.inputs, layer, [session.channel])
        assert np.array_equal(unit.found.values, expected.values[0, 0].double().numpy())
        assert "Random weights" in pages.answer(session)
        pages.unit(session)


def test_occlusion_reports_its_steps_and_can_be_stopped(session, monkeypatch):
    session.change(tab="occlusion")
    assert "<progress" in after(results.occlusion_asked(session, 8, 1))["occlusion"]
    texts = []
    for change in actions.computed(session):
        texts.append(change["occlusion"])
        if "steps" in texts[-1]:
            results.stopped(session)
    assert any("<progress" in text for text in texts)
    assert "Nothing computed yet" in texts[-1]
    assert "was stopped" in change["notice"]
    assert "Nothing computed yet" in after(actions.computed(session))["occlusion"]  # until it is asked for again
    shown = seen(session, results.occlusion_asked(session, 28, None))
    data = json.loads(re.search(r'data-windows="([^"]*)"', shown["occlusion"])[1].replace("&#34;", '"'))
    result = attribkit.attribute(
        session.shown.loaded.model, session.subject.inputs, "occlusion", target=session.target, window=28
    )
    assert np.allclose(data["scores"], result.extras["score_map"][0].numpy(), rtol=1e-4)
    monkeypatch.setattr(attribkit, "attribute", lambda *_, **__: pytest.fail("it was computed again"))
    assert after(actions.computed(session))["occlusion"] == shown["occlusion"]
    with pytest.raises(InputError, match="window must be between"):
        after(results.occlusion_asked(session, 2, None))


def test_an_occlusion_that_is_stopped_before_it_began_is_not_done(session):
    session.change(tab="occlusion")
    after(results.occlusion_asked(session, 28, None))
    results.stopped(session)
    assert "Nothing computed yet" in after(actions.computed(session))["occlusion"]
    assert "data-windows" in seen(session, actions.class_chosen(session, 3))["occlusion"]


@pytest.mark.parametrize("tab", TABS)
def test_what_is_computed_changes_no_control(session, tab):
    shown = after(actions.opened(session, {**FASHION, "tab": tab, "window": "28"}))
    assert isinstance(shown["target"], Field)
    assert all(isinstance(content, str) for change in actions.computed(session) for content in change.values())


@pytest.mark.parametrize("key", ["deconvnet", "occlusion", "unit"])
def test_the_code_makes_the_map_and_the_figure_that_the_page_saves(session, key, tmp_path, monkeypatch):
    session.open({**FASHION, "window": "40", "stride": "20", "sign": "negative", "opacity": "0.6", "target": "7"})
    item = next(item for item in saving.items(session) if item.key == key)
    code = saving.code(session, item)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "snippet", "exec"), {})
    (tmp_path / "page.safetensors").write_bytes(saving.numbers(item))
    page = attribkit.Attribution.load("page.safetensors")
    made = attribkit.Attribution.load(f"{item.stem}.safetensors")
    assert torch.equal(page.values, made.values)
    assert page.values.abs().sum() > 0
    assert torch.equal(page.scores, made.scores)
    assert (tmp_path / f"{item.stem}.png").read_bytes() == saving.picture(session, item)
    assert Image.open(io.BytesIO(saving.picture(session, item))).format == "PNG"


def test_the_code_of_an_upload_and_a_checkpoint_names_their_files(folders, tmp_path, monkeypatch):
    session = Session(Shelf(checkpoints=folders["checkpoints"]))
    session.open({**FASHION, "weights": "shifted.pt", "methods": "gradient"})
    Image.effect_noise((60, 60), 80).save(tmp_path / 'my "own".png')
    session.upload(str(tmp_path / 'my "own".png'))
    item = saving.items(session)[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(saving.code(session, item), "snippet", "exec"), {})
    assert torch.equal(attribkit.Attribution.load("gradient.safetensors").values, item.compute().result.values)


def test_names_from_outside_are_text_in_the_page(session, tmp_path):
    path = tmp_path / "<img src=x onerror=alert(1)>.png"
    Image.new("L", (60, 60), 90).save(path)
    session.upload(str(path))
    labels = [f"<script>{i}</script>" for i in range(10)]
    loaded = session.shown.loaded
    hostile = LoadedModel(
        "<b>model</b>",
        loaded.model,
        loaded.preprocess,
        loaded.denormalize,
        labels,
        loaded.input_size,
        "<i>w</i>",
        "<u>",
    )
    session.subject.shown = Shown(hostile)
    session.subject.kept = Kept(8)
    session.subject.__dict__.pop("answer", None)
    written = [pages.answer(session), pages.facts(session), pages.unit(session), pages.link(session)]
    written += [after(actions._maps(session))["maps"], after(results.occlude(session))["occlusion"]]
    written += [pages.code(saving.code(session, saving.items(session)[0])), pages.notice(["<script>"], ["<script>"])]
    text = "".join(written)
    for wrong in ("<script", "<img src=x", "<b>model", "<i>w", "<u>"):
        assert wrong not in text
    assert "&lt;script&gt;" in text


def test_a_model_without_class_scores_shows_its_features(monkeypatch):
    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.act = nn.ReLU()

        def forward(self, x):
            return self.act(self.conv(x))

    loaded = LoadedModel(
        "dense", Dense().eval(), lambda picture: torch.ones(3, 16, 16), lambda x: x, None, (3, 16, 16), "random"
    )
    monkeypatch.setattr("attribkit.models.loading.load_model", lambda *_, **__: loaded)
    session = Session(Shelf(["dense"]))
    shown = seen(session, actions.opened(session, {}))
    assert "No class scores" in shown["answer"]
    assert "no class to explain" in shown["maps"]
    assert seen(session, actions.tab_chosen(session, "units"))["unit"]
    assert "nothing to occlude" in seen(session, actions.tab_chosen(session, "occlusion"))["occlusion"]
    assert [item.key for item in saving.items(session)] == ["unit"]
    with pytest.raises(InputError, match="no class scores"):
        after(actions.class_chosen(session, 0))


def test_of_two_models_the_one_asked_for_last_is_shown(monkeypatch):
    began, go = threading.Event(), threading.Event()
    shelf = Shelf()
    right = shelf.get

    def slow(model, checkpoint=""):
        if model == "timm/test_vit":
            began.set()
            assert go.wait(30)
        return right(model, checkpoint)

    session = Session(shelf)
    session.open(FASHION)
    monkeypatch.setattr(shelf, "get", slow)
    raised = []

    def choose():
        try:
            session.choose_model("timm/test_vit")
        except Superseded as error:
            raised.append(error)

    thread = threading.Thread(target=choose)
    thread.start()
    assert began.wait(30)
    session.choose_model("timm/test_resnet")
    session.choose_methods(["deconvnet"])
    go.set()
    thread.join(60)
    assert len(raised) == 1
    assert (session.view.model, session.view.methods) == ("timm/test_resnet", ("deconvnet",))


def test_what_is_changed_while_a_model_loads_stays(monkeypatch):
    shelf = Shelf()
    session = Session(shelf)
    session.open(FASHION)
    right = shelf.get

    def get(model, checkpoint=""):
        session.choose_methods(["gradient"])
        return right(model, checkpoint)

    monkeypatch.setattr(shelf, "get", get)
    session.choose_model("timm/test_resnet")
    assert (session.view.model, session.view.methods) == ("timm/test_resnet", ("gradient",))
