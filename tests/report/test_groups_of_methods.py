"""Methods on the page: by what they came with, each with where it was published, and a list of many at the top."""

import io

import numpy as np
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

import attribkit as ak
from attribkit import plugins
from attribkit.cli import main
from attribkit.report import figures
from attribkit.report.page import render_page
from attribkit.report.parts import About, ImageSection, MethodSection, TopClass

ABOUT = About("resnet18", "random", "attribkit explain cat.png")


def section(*methods):
    picture = figures.photograph(Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)))
    return ImageSection("cat", "cat.png", picture, picture, (8, 8), (TopClass(1, "tabby", 0.9),), methods)


def method(name, group, **more):
    return MethodSection(name, name.capitalize(), f"What {name} does", target="tabby", group=group, **more)


def test_methods_stand_under_what_they_came_with():
    page = render_page(
        ABOUT,
        [
            section(
                method("one", "attribkit 1", source="Somebody & <Else>, 2020, §3"),
                method("two", "shelf 2"),
                method("three", "shelf 2", error="it does not take this model"),
            )
        ],
    )
    places = [page.index(text) for text in ("attribkit 1<", ">One<", "shelf 2<", ">Two<", ">Three<")]
    assert places == sorted(places)
    assert page.count('<h3 class="group">') == 2
    assert '<p class="source">Somebody &amp; &lt;Else&gt;, 2020, §3</p>' in page
    assert page.count('<p class="source">') == 1
    assert "it does not take this model" in page
    assert '<nav class="methods"' not in page


def test_methods_of_one_origin_need_no_heading():
    page = render_page(ABOUT, [section(method("one", "attribkit 1"), method("two", "attribkit 1"))])
    assert '<h3 class="group">' not in page
    assert '<h3 class="name" id="image-1-2">Two</h3>' in page


def test_many_methods_are_listed_first_and_every_link_leads_to_one():
    groups = ["attribkit 1"] * 4 + ["shelf 2"] * 4
    page = render_page(ABOUT, [section(*(method(f"m{i}", group) for i, group in enumerate(groups)))] * 2)
    assert page.count('<nav class="methods"') == 2
    for image in (1, 2):
        for number in range(1, 9):
            assert page.count(f'href="#image-{image}-{number}"') == 2  # here and in the matrix
            assert page.count(f'id="image-{image}-{number}"') == 1


class Refuses(ak.Method):
    name = "refuses"
    summary = "Refuses"
    source = "Nobody, Nothing, 1999"

    def attribute(self, model, inputs, target, **options):
        raise ak.AttribkitError("never")


class RefusesInputs(Refuses):
    name = "refuses_inputs"

    def attribute(self, model, inputs, target, **options):
        from attribkit.errors import InputError

        raise InputError("this model has no layer for it")


def model():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)).eval()
    made.default_cfg = {"input_size": (3, 16, 16)}
    return made


def test_all_means_every_method_and_one_that_refuses_is_one_failure_among_others(tmp_path, monkeypatch):
    known = plugins.manager().methods
    entry = known["gradient"]
    for refusing in (Refuses, RefusesInputs):
        made = type(entry)(
            refusing.name, entry.plugin, None, refusing, summary=refusing.summary, source=refusing.source
        )
        monkeypatch.setitem(known, refusing.name, made)
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    picture = io.BytesIO()
    Image.fromarray(noise).save(picture, "PNG")
    (tmp_path / "cat.png").write_bytes(picture.getvalue())
    result = CliRunner().invoke(
        main, ["explain", "cat.png", "--model", f"{__name__}:model", "--method", "all", "--out", "out"]
    )
    assert result.exit_code == 1, result.output
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for name, each in known.items():
        assert (tmp_path / "out" / f"cat.{name}.png").exists() == (not name.startswith("refuses"))
        assert each.source.replace("&", "&amp;") in page
    assert "this model has no layer for it" in page
    assert page.count("<strong>Failed.</strong>") == 2
    wrong = ["explain", "cat.png", "--model", f"{__name__}:model", "--method", "refuses_inputs,gradient"]
    refused = CliRunner().invoke(main, wrong)
    assert refused.exit_code == 1
    assert not (tmp_path / "attribkit-report").exists()  # asked for by name, it is a wrong use
