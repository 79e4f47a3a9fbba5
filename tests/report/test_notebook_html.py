"""What results show of themselves in a notebook: whole, escaped, small HTML that needs nothing but itself."""

import dataclasses
import re
from types import SimpleNamespace

import pytest
import torch
from test_page import Page
from torch import nn

import attribkit as ak
from attribkit.engine.coverage import Coverage
from attribkit.report import notebook

HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>&amp;"


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Sigmoid(), nn.Flatten(), nn.Linear(36, 5)
    ).eval()


def attribution(count, target=None, units=None, side=8):
    shape = (count, 3, side, side) if units is None else (count, len(units), 3, side, side)
    target = torch.arange(count) if target is None and units is None else target if units is None else units
    scores = torch.arange(count if units is None else count * len(units), dtype=torch.float32)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return ak.Attribution(
        values, "gradient", target, scores.reshape(shape[: 1 if units is None else 2]), Coverage("gradient")
    )


def parsed(html):
    """The page, after what holds for every fragment."""
    page = Page(html)
    tags = {tag for tag, _ in page.elements}
    assert tags <= {"div", "p", "strong", "table", "tr", "th", "td", "img", "br", "span", "progress"}
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("src", "data:").startswith("data:")
        style = attributes.get("style", "")
        # text and paper keep the notebook's own colours, in dark themes too
        assert not re.search(r"(^|;)color:", style)
        assert "background:" not in style.replace("background:none", "")
    assert all("alt" in image and "width" in image for image in page.all("img"))
    return page


def test_maps_with_their_target_score_and_scale():
    result = ak.attribute(net(), torch.randn(2, 3, 8, 8), "gradient", torch.tensor([3, 1]))
    page = parsed(result._repr_html_())
    maps = [image for image in page.all("img") if image["alt"].startswith("Signed map")]
    assert [image["alt"] for image in maps] == ["Signed map, class 3", "Signed map, class 1"]
    assert len(page.all("img")) == 4  # each with its colour scale
    words = page.words()
    from attribkit.report.figures import robust_limit

    for row in range(2):
        limit = robust_limit(result.values[row].double().sum(0).numpy())
        assert f"−{limit:.3g} +{limit:.3g}" in words
        assert f"score {float(result.scores[row]):.3g}".replace("-", "−") in words
    assert result.coverage.sentence in words


def test_of_many_maps_the_first_and_small():
    count = notebook.SHOWN + 3
    html = attribution(count, side=300)._repr_html_()
    page = parsed(html)
    maps = [image for image in page.all("img") if image["alt"].startswith("Signed map")]
    assert len(maps) == notebook.SHOWN
    assert {image["width"] for image in maps} == {"112"}
    assert "class 3" in page.words()
    assert "3 more not shown" in page.words()
    assert len(html) < 400_000
    assert len(attribution(1, side=600)._repr_html_()) < 150_000


def test_a_projection_is_a_grid():
    units = (ak.Unit(HOSTILE, 0), ak.Unit("conv1", 1), ak.Unit("conv1", 2))
    page = parsed(attribution(2, units=units)._repr_html_())
    assert len(page.all("th")) == 3
    assert len(page.all("tr")) == 3
    assert f"unit 0 of {HOSTILE}" in " ".join(page.text)
    assert "score 5" in page.words()
    many = parsed(attribution(2, units=(ak.Unit("conv1", 0),) * 40)._repr_html_())
    assert len(many.all("th")) == notebook.SHOWN
    assert "68 more not shown" in many.words()


def test_a_unit_and_a_callable_as_targets():
    unit = ak.Unit("0", 2, (1, 1))
    page = parsed(ak.attribute(net(), torch.randn(1, 3, 8, 8), "gradient", unit)._repr_html_())
    assert "unit 2 of 0" in page.words()
    page = parsed(attribution(1, target=HOSTILE)._repr_html_())
    assert HOSTILE in " ".join(page.text)


@pytest.mark.parametrize("fill", [0.0, float("nan"), 1e300])
def test_maps_that_are_all_alike(fill):
    result = attribution(1)
    result.values = torch.full((1, 3, 8, 8), fill, dtype=torch.float64)
    words = parsed(result._repr_html_()).words()
    assert ("every value is zero" in words) == (fill != 1e300)


def test_coverage_in_numbers_and_reasons():
    coverage = ak.attribute(net(), torch.randn(1, 3, 8, 8), "guided_backprop").coverage
    page = parsed(coverage._repr_html_())
    words = page.words()
    assert coverage.sentence in words
    assert "rewritten by guided_backprop" in words
    cells = re.findall(r"<td[^>]*>(.*?)</td>", coverage._repr_html_())
    rows = {row[0]: row[1:] for row in zip(*[iter(cells[: 3 * len(coverage.kinds)])] * 3, strict=True)}
    assert rows["rectifier"] == ("1", "1")
    assert rows["max pool"] == ("1", "–")
    assert "a gate is never rectified" in words
    assert parsed(Coverage("occlusion", applies=False)._repr_html_()).all("table") == []
    assert HOSTILE in " ".join(parsed(Coverage(HOSTILE, left=((HOSTILE, HOSTILE),))._repr_html_()).text)


def test_an_inspection_lists_what_its_text_lists():
    found = ak.inspect(net(), torch.randn(1, 3, 8, 8), "guided_backprop")
    page = parsed(found._repr_html_())
    header, rows, hidden = found.cells()
    assert len(page.all("tr")) == 1 + len(rows)
    assert len(page.all("th")) == len(header) == 5
    assert f"{hidden} more that only move values" in page.words()
    assert found.coverage.sentence in page.words()
    for name, *_ in rows:
        assert name in str(found)
    assert len(parsed(ak.inspect(net(), torch.randn(1, 3, 8, 8))._repr_html_()).all("th")) == 4


def test_a_model_in_a_few_rows():
    loaded = ak.load_model("zfnet-fashion")
    words = parsed(loaded._repr_html_()).words()
    for part in ("zfnet-fashion", "ZFNet", f"{sum(p.numel() for p in loaded.model.parameters()):,} parameters"):
        assert part in words
    assert "10: T-shirt" in words
    bare = dataclasses.replace(loaded, labels=None, weights=HOSTILE, name=HOSTILE)
    assert "no names known" in parsed(bare._repr_html_()).words()


def test_a_method_in_a_few_rows(monkeypatch):
    info = ak.methods()["occlusion"]
    words = parsed(info._repr_html_()).words()
    for part in (info.summary, info.source, "attribkit", "window=None", "fill=0.0"):
        assert part in words
    assert "options none" in parsed(ak.methods()["gradient"]._repr_html_()).words()

    def broken(self):
        raise ak.AttribkitError("cannot be imported")

    monkeypatch.setattr(type(info._entry), "load", broken)
    assert "not known: cannot be imported" in parsed(ak.methods()["occlusion"]._repr_html_()).words()


def test_a_record_of_a_store():
    from attribkit.store.records import Record

    values = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    store = SimpleNamespace(tensor=lambda record, name: {"values": values}[name])
    done = Record(HOSTILE, "guided_backprop", 7, 2.5, "done", None, 0, 0, "shard", 0, 0, None, store)
    page = parsed(done._repr_html_())
    assert HOSTILE in " ".join(page.text)
    assert "Guided backprop class 7 score 2.5" in page.words().replace("· ", "")
    assert len(page.all("img")) == 2
    unit = dataclasses.replace(done, target=ak.Unit("conv1", 3), score=None)
    words = parsed(unit._repr_html_()).words()
    assert "unit 3 of conv1" in words
    assert "score" not in words
    failed = dataclasses.replace(done, target=None, score=None, status="failed", error="the file is empty")
    page = parsed(failed._repr_html_())
    assert "Guided backprop failed: the file is empty" in page.words()
    assert page.all("img") == []
