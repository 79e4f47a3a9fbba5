"""The zoo: one model of each of timm's families on the meta device, and the tools of the run (``make zoo``) themselves.

The whole run takes too long for every day. Its results are in ``docs/zoo.md``, which must have every family.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from timm.layers import activations
from torch import nn
from zoo import __main__ as main
from zoo import meta, names, page, real
from zoo.activity import unaccounted, watch
from zoo.journal import Journal

import attribkit as ak
from attribkit.engine.layers import GatedRectify

PAGE = Path(__file__).parents[1] / "docs" / "zoo.md"
# Recurrent layers are taken apart step by step on the meta device: a smaller image has fewer steps.
SMALLER = {"sequencer": (3, 32, 32)}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small models: two threads would mostly wait for each other
    yield
    torch.set_num_threads(threads)


def rows() -> dict[str, list[str]]:
    """Return the cells of the page's rows by family."""
    lines = PAGE.read_text().partition("## By family")[2].partition("\n## ")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {row[0]: row for row in cells[1:]}


def test_no_family_is_missing_from_the_page():
    missing = sorted(set(names.families()) - set(rows()))
    assert not missing, f"docs/zoo.md has no row for {', '.join(missing)}: run make zoo"


def test_the_page_reports_no_failure():
    for one, row in rows().items():
        passed, members = row[1].split(" of ")
        assert int(passed) == int(members) > 0, one
        assert row[7] == "0" or float(row[7]) <= real.TOLERANCE, one
    assert "## Failures" not in PAGE.read_text()


@pytest.mark.parametrize("one", names.families())
def test_a_family_on_meta(one):
    name = re.match("`(.*?)`", rows()[one][2]).group(1)
    assert names.family(name) == one
    assert meta.check(name, SMALLER.get(one))["failures"] == []


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "test_nfnet", "ghostnet_050"])
def test_a_small_model_with_real_numbers(name):
    record = real.check(name)
    assert record["failures"] == []
    assert record["rectifiers"] > 0
    assert set(record["errors"]) == {"gradient", "guided_backprop", "deconvnet", "autograd", "occlusion"}
    assert max(record["errors"].values()) <= real.TOLERANCE


def test_a_model_that_is_wrong_is_found_out(monkeypatch):
    class Missed(ak.InverseMethod):
        name = "guided_backprop"
        inverse_layers = {re.compile("act1"): GatedRectify()}  # the stem's, of 12

    original = ak.attribute

    def attribute(model, x, method, **options):
        return original(model, x, Missed() if method == "guided_backprop" else method, **options)

    monkeypatch.setattr(ak, "attribute", attribute)
    assert any("guided_backprop: relative error" in failure for failure in real.check("test_resnet")["failures"])
    assert "guided_backprop: 1 of 12 sites of kind rectifier are rewritten" in meta.check("test_resnet")["failures"]


class Everything(nn.Module):
    """Each way in which the observer counts an operation."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.swish, self.gate, self.act = activations.Swish(), activations.HardSigmoid(), nn.ReLU()

    def forward(self, x):
        x = self.act(self.act(self.conv(x)) - 1)
        x = self.swish(x) * self.gate(x) + F.gelu(x) * x.sigmoid()
        x = F.max_pool2d(F.relu6(x), 2).abs()
        return F.normalize(x.flatten(1) * x.mean((1, 2, 3), keepdim=True).flatten(1).softmax(1))


def test_every_operation_is_accounted_for():
    model = Everything().eval()
    x = torch.randn(1, 3, 8, 8)
    activity, output = watch(model, x)
    assert output.shape == (1, 36)
    assert activity.rectifiers == 5
    assert activity.whole_calls == {"swish": 1, "gate": 1}
    sites = ak.inspect(model, x).sites
    assert unaccounted(activity, sites) == []
    for kind, complaint in {
        "rectifier": "relu without a site",
        "gate": "sigmoid without a site",
        "max_pool": "max_pool2d_with_indices without a site",
        "nonlinear": "abs without a site",
    }.items():
        others = [site for site in sites if site.kind != kind]
        assert any(complaint in problem for problem in unaccounted(activity, others)), kind
    whole = [site for site in sites if site.name != "swish"]
    assert unaccounted(activity, whole) == ["swish: 1 calls of a whole rectifier, 0 sites"]
    assert unaccounted(activity, [*sites, ak.inspect(model, x)["gelu"]]) == [
        "gelu: a rectifier's site (gelu()) without an operation"
    ]
    assert nn.Module.__call__.__name__ == "_wrapped_call_impl"


def test_what_is_degenerate_is_drawn():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Linear(2, 2))
    nn.init.zeros_(model[2].weight)
    before = model[0].weight.clone(), model[1].weight.clone()
    real.randomise(model)
    assert model[2].weight.abs().min() > 0
    assert model[1].bias.abs().min() > 0
    assert model[1].running_mean.abs().min() > 0
    assert torch.equal(model[0].weight, before[0])
    assert torch.equal(model[1].weight, before[1])  # ones: not degenerate


def test_a_zero_reference_is_a_failure():
    zero, one = torch.zeros(3).double(), torch.ones(3).double()
    assert real.compare(zero, zero, "x")[1] == ["x: the reference is zero or not finite (largest value 0.0)"]
    assert real.compare(one, one * float("nan"), "x")[1] != []
    assert real.compare(one, one, "x") == (0, [])
    assert real.compare(one, one * (1 + 1e-8), "x")[1] == ["x: relative error 1.0e-08"]
    assert real.compare(one * float("nan"), one, "x")[1] != []


def test_a_journal_goes_on_where_it_was(tmp_path):
    journal = Journal(tmp_path / "deep" / "real.jsonl")
    assert journal.read() == {}
    journal.add({"name": "a", "failures": ["once"]})
    journal.add({"name": "b", "failures": []})
    with journal.path.open("a") as file:
        file.write('{"name": "c", "fail')  # cut short
    assert set(Journal(journal.path).read()) == {"a", "b"}
    journal.add({"name": "a", "failures": []})
    assert {name: record["failures"] for name, record in journal.read().items()} == {"a": [], "b": []}
    of_another_engine = {"name": "d", "failures": [], "versions": {**journal.versions, "sources": "other"}}
    with journal.path.open("a") as file:
        file.write(json.dumps(of_another_engine) + "\n")
    assert set(journal.read()) == {"a", "b"}
    assert set(Journal(journal.path, any_sources=True).read()) == {"a", "b", "d"}


def test_no_page_is_written_of_half_a_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(main, "OUT", tmp_path)
    monkeypatch.setattr(main, "PAGE", main.ROOT / "docs" / "none.md")
    assert main.main(["page"]) == 1
    assert (
        f"{len(names.own_names())} models on the meta device and {len(names.families())} families"
        in capsys.readouterr().out
    )
    assert not main.PAGE.exists()
    everything = {name: {} for name in names.own_names()}
    assert main.unfinished(everything, everything) == ""
    del everything["vgg11"]
    assert main.unfinished(everything, everything).startswith("1 models on the meta device and 0 families")


def test_the_page_says_what_failed_and_what_was_not_run(tmp_path):
    record = meta.check("test_resnet")
    found = real.check("test_resnet") | {"failures": ["deconvnet: relative error 1.0e-01"], "note": "made | smaller"}
    page.write(tmp_path / "zoo.md", {"test_resnet": record}, {"test_resnet": found}, {"timm": "1", "torch": "2"})
    text = (tmp_path / "zoo.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| resnet |")]
    assert "**fails**: deconvnet: relative error 1.0e-01" in row
    assert "rectifier: 12, max pool: 1 (deconvnet)" in row
    assert row.count("|") == 10
    assert sum(line.endswith("| not run |") for line in text.splitlines()) == len(names.families()) - 1
    assert "- `test_resnet`: deconvnet: relative error 1.0e-01" in text
    assert [path.name for path in tmp_path.iterdir()] == ["zoo.md"]
