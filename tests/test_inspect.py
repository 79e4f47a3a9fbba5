"""Inspection: what is listed, under which name and kind, and what is said of each site; without weights too."""

from __future__ import annotations

import json
import time

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import BatchNormAct2d
from torch import nn

import attribkit as ak
from attribkit.engine.layers import GatedRectify

pytestmark = pytest.mark.usefixtures("one_thread")
X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Everything(nn.Module):
    """One of most kinds of operation, each as a module or as a function."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.fused = BatchNormAct2d(8)
        self.lrn = nn.LocalResponseNorm(3)
        self.pool = nn.MaxPool2d(2)
        self.norm = nn.LayerNorm(8)
        self.fc1, self.gelu, self.fc2 = nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.gate = nn.Sigmoid()
        self.flat = nn.Flatten()
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.bn(self.conv1(x)))
        x = self.lrn(self.fused(x))
        x = self.pool(x) + F.avg_pool2d(x, 2)
        x = x * self.gate(x.mean((2, 3), keepdim=True))
        y = self.norm(x.permute(0, 2, 3, 1))
        y = self.fc2(self.gelu(self.fc1(y)))
        y = y.flatten(1, 2)
        y = y + self.attn(y, y, y)[0]
        y = y.clamp(min=-3)
        return self.head(self.flat(y.transpose(1, 2).mean(2)))


NAMES = [  # name, kind, operation, output shape, layout
    ("conv1", "conv", "Conv2d", (2, 8, 16, 16), "NCHW"),
    ("bn", "batch_norm", "BatchNorm2d", (2, 8, 16, 16), "NCHW"),
    ("relu", "rectifier", "relu()", (2, 8, 16, 16), "NCHW"),
    ("fused.batch_norm", "batch_norm", "batch_norm()", (2, 8, 16, 16), "NCHW"),
    ("fused.act", "rectifier", "ReLU", (2, 8, 16, 16), "NCHW"),
    ("lrn", "contrast_norm", "LocalResponseNorm", (2, 8, 16, 16), "NCHW"),
    ("pool", "max_pool", "MaxPool2d", (2, 8, 8, 8), "NCHW"),
    ("avg_pool2d", "avg_pool", "avg_pool2d()", (2, 8, 8, 8), "NCHW"),
    ("add", "sum", "add()", (2, 8, 8, 8), "NCHW"),
    ("mean", "mean", "mean()", (2, 8, 1, 1), "NCHW"),
    ("gate", "gate", "Sigmoid", (2, 8, 1, 1), "NCHW"),
    ("mul", "product", "mul()", (2, 8, 8, 8), "NCHW"),
    ("norm", "norm", "LayerNorm", (2, 8, 8, 8), "NHWC"),
    ("fc1", "linear", "Linear", (2, 8, 8, 12), "NHWC"),
    ("gelu", "rectifier", "GELU", (2, 8, 8, 12), "NHWC"),
    ("fc2", "linear", "Linear", (2, 8, 8, 8), "NHWC"),
    ("flatten", "flatten", "flatten()", (2, 64, 8), "NTC"),
    ("attn", "attention", "MultiheadAttention", (2, 64, 8), "NTC"),
    ("add_1", "sum", "add()", (2, 64, 8), "NTC"),
    ("clamp", "nonlinear", "clamp()", (2, 64, 8), "NTC"),
    ("mean_1", "mean", "mean()", (2, 8), "NC"),
    ("flat", "flatten", "Flatten", (2, 8), "NC"),
    ("head", "linear", "Linear", (2, 5), "NC"),
]
REASONS = {
    "gate": "a gate is never rectified",
    "clamp": "written inline, not one of the rectifiers",
    "norm": "no inverse layer for norm",
    "mul": "no inverse layer for product",
    "attn": "no inverse layer for attention",
}


@pytest.fixture(scope="module")
def everything():
    torch.manual_seed(0)
    return Everything().eval()


def test_names_kinds_operations_and_shapes_in_order(everything):
    inspection = ak.inspect(everything, X)
    found = [(s.name, s.kind, s.op, s.output_shape) for s in inspection.sites]
    assert found == [row[:4] for row in NAMES]
    assert inspection["conv1"].input_shape == (2, 3, 16, 16)
    assert inspection["pool"].input_shape == (2, 8, 16, 16)
    with pytest.raises(KeyError):
        inspection["conv9"]


def test_layouts(everything):
    found = {s.name: s.layout for s in ak.inspect(everything, X).sites}
    assert found == {name: layout for name, *_, layout in NAMES}


@pytest.mark.parametrize(
    ("method", "rewritten"),
    [
        ("gradient", set()),
        ("occlusion", set()),
        ("guided_backprop", {"rectifier"}),
        ("deconvnet", {"rectifier", "max_pool", "contrast_norm"}),
    ],
)
def test_what_a_method_rewrites_and_why_not_the_rest(everything, method, rewritten):
    inspection = ak.inspect(everything, X, method=method)
    for site in inspection.sites:
        assert site.rewritten == (site.kind in rewritten), site
        outcome = inspection.outcome(site)
        assert outcome
        if site.rewritten:
            assert "plain" not in outcome
    coverage = inspection.coverage
    assert coverage.rewritten == sum(kind in rewritten for _, kind, *_ in NAMES)
    if not rewritten:
        assert coverage.left == ()
        return
    left = dict(coverage.left)
    for name, reason in REASONS.items():
        assert reason in left[name]
        assert reason in inspection.outcome(inspection[name])
    # everything that is not linear is accounted for: rewritten, or listed with a reason
    nonlinear = {"rectifier", "gate", "max_pool", "norm", "contrast_norm", "product", "attention", "nonlinear"}
    assert set(left) == {name for name, kind, *_ in NAMES if kind in nonlinear - rewritten}
    assert coverage.gates == 1
    assert coverage.plain == len(left) - 1


def test_coverage_is_that_of_an_attribution(everything):
    for method in ("gradient", "guided_backprop", "deconvnet"):
        assert ak.attribute(everything, X, method=method).coverage == ak.inspect(everything, X, method).coverage


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ("gradient", "gradient rewrites no operation."),
        (
            "guided_backprop",
            "guided_backprop rewrote all 3 rectifiers; 6 other non-linear operations kept the ordinary derivative; "
            "1 gate kept the ordinary derivative, as gates do.",
        ),
        (
            "deconvnet",
            "deconvnet rewrote all 3 rectifiers, the 1 contrast norm, the 1 max pool; 4 other non-linear operations "
            "kept the ordinary derivative; 1 gate kept the ordinary derivative, as gates do.",
        ),
    ],
)
def test_the_sentence(everything, method, sentence):
    coverage = ak.inspect(everything, X, method=method).coverage
    assert coverage.sentence == str(coverage) == sentence
    assert json.loads(json.dumps(coverage.to_dict()))["sentence"] == sentence


def test_the_sentence_where_only_some_are_rewritten():
    class First(ak.InverseMethod):
        name = "first"
        summary = "Rectifies the signal behind one class of rectifiers"
        inverse_layers = {nn.GELU: GatedRectify()}

    coverage = ak.inspect(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.ReLU()), X, method=First).coverage
    assert coverage.kinds["rectifier"] == (1, 2)
    assert (
        coverage.sentence
        == "first rewrote 1 of 2 rectifiers; 1 other non-linear operation kept the ordinary derivative."
    )


class Watch(ak.InverseLayer):
    """Notes what comes by."""

    observer = True

    def __init__(self):
        self.seen = []

    def carry(self, signal, site):
        self.seen.append(site.name)
        return site.plain(signal)


def test_a_site_that_is_only_observed_is_not_rewritten(everything):
    watch = Watch()

    class Guided(ak.InverseMethod):
        name = "guided"
        summary = "Guided backprop that watches the pools"
        inverse_layers = {"rectifier": GatedRectify(), "max_pool": watch, "flatten": watch}

    found = ak.attribute(everything, X, Guided, target=0)
    assert watch.seen == ["flat", "flatten", "pool"]
    assert torch.equal(found.values, ak.attribute(everything, X, "guided_backprop", target=0).values)
    inspection = ak.inspect(everything, X, Guided)
    assert found.coverage == inspection.coverage
    assert found.coverage.rewritten == found.coverage.kinds["rectifier"][0] == 3
    assert found.coverage.kinds["max_pool"] == (0, 1)
    assert dict(found.coverage.left)["pool"] == "guided only observes it"
    assert "pool" not in found.coverage.sentence
    lines = {line.split()[0]: line for line in str(inspection).splitlines() if line.split()}
    assert lines["pool"].endswith("Watch")
    assert lines["flat"].endswith("Watch")
    assert not inspection["pool"].rewritten


@pytest.mark.filterwarnings("error::attribkit.CoverageWarning")
@pytest.mark.parametrize("target", [0, ak.Unit("conv1", 1)])
def test_a_method_that_only_observes_rewrites_nothing_and_is_not_blamed_for_it(everything, target):
    class Watching(ak.InverseMethod):
        name = "watching"
        summary = "The gradient, its rectifiers watched"
        inverse_layers = {"rectifier": Watch()}

    found = ak.attribute(everything, X, Watching, target, strict=True)
    torch.testing.assert_close(found.values, ak.attribute(everything, X, "gradient", target).values)
    assert not found.coverage.applies
    assert found.coverage.sentence == "watching rewrites no operation."


@pytest.mark.parametrize("watches_first", [True, False])
@pytest.mark.parametrize("target", [0, ak.Unit("lrn", 1)])
def test_of_several_walks_the_one_that_rewrites_is_reported(everything, target, watches_first):
    class Watching(ak.InverseMethod):
        inverse_layers = {"max_pool": Watch()}

    class Both(ak.Method):
        name = "both"
        summary = "Guided backprop, with a walk that watches before or after it"

        def attribute(self, model, inputs, target):
            walks = [Watching(), ak.methods()["guided_backprop"].load()()]
            maps = [walk.attribute(model, inputs, target) for walk in walks[:: 1 if watches_first else -1]]
            return maps[1 if watches_first else 0]

    assert ak.attribute(everything, X, Both, target).coverage.kinds == (
        ak.attribute(everything, X, "guided_backprop", target).coverage.kinds
    )


def test_the_table_and_the_plain_data(everything):
    inspection = ak.inspect(everything, X, method="deconvnet")
    text = str(inspection)
    assert max(map(len, text.splitlines()[:-1])) < 140
    for name, kind, operation, shape, _ in NAMES:
        if kind not in ("flatten", "mean"):
            (line,) = [line for line in text.splitlines() if line.split() and line.split()[0] == name]
            assert kind in line
            assert operation in line
            assert "×".join(map(str, shape)) in line
    assert text.endswith(inspection.coverage.sentence)
    assert "flat " in inspection.table(everything=True)
    data = json.loads(json.dumps(inspection.to_dict()))
    assert [site["name"] for site in data["sites"]] == [row[0] for row in NAMES]
    assert data["coverage"]["rewritten"] == 5


def test_every_layer_takes_a_unit(everything):
    """Whatever `layers` lists is a layer of `Unit`, and the useful ones are among them."""
    inspection = ak.inspect(everything, X)
    assert set(inspection.useful_layers) < set(inspection.layers)
    for layer in inspection.layers:
        found = ak.attribute(everything, X, method="gradient", target=ak.Unit(layer, 1))
        assert found.values.any(), layer


def test_a_wrong_name_suggests_near_ones(everything):
    for wrong, near in (("conv", "conv1"), ("fused.activation", "fused.act"), ("add_2", "add_1"), ("Relu", "relu")):
        with pytest.raises(ak.AttribkitError, match=rf"'{near}'") as caught:
            ak.attribute(everything, X, target=ak.Unit(wrong, 0))
        assert repr(wrong) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_useful_layers():
    """Those of timm's ``feature_info`` where there is one, else convolutions and pools."""
    for name, layers in (
        ("test_vit", [f"blocks.{i}" for i in range(6)]),
        ("test_convnext", [f"stages.{i}" for i in range(4)]),
    ):
        model = timm.create_model(name).eval()
        assert ak.inspect(model, torch.zeros(1, 3, 160, 160)).useful_layers == layers
    model = torchvision.models.alexnet(num_classes=3)
    assert ak.inspect(model, torch.zeros(1, 3, 64, 64)).useful_layers == [
        f"features.{i}" for i in (0, 2, 3, 5, 6, 8, 10, 12)
    ]


def test_inspection_leaves_the_model_and_the_grad_mode_alone(everything):
    model = Everything().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ak.inspect(model, X, method="deconvnet")
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.is_grad_enabled()


# -- the meta device -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [None, "gradient", "guided_backprop", "deconvnet"])
def test_the_meta_device_gives_the_same_inspection(everything, method):
    with torch.device("meta"):
        model, x = Everything().eval(), torch.empty(X.shape)
    found, expected = ak.inspect(model, x, method), ak.inspect(everything, X, method)
    assert found.to_dict() == expected.to_dict()


def test_attribution_on_the_meta_device():
    with torch.device("meta"):
        model, x = torchvision.models.resnet18(num_classes=4), torch.empty(2, 3, 64, 64)
    for method in ("gradient", "guided_backprop", "deconvnet"):
        for target in (None, 2, torch.tensor([1, 3]), ak.Unit("layer2", 5), lambda scores: scores[:, 0]):
            found = ak.attribute(model, x, method=method, target=target)
            assert found.values.is_meta
            assert found.values.shape == x.shape


def test_a_model_of_billions_of_parameters_in_seconds():
    with torch.device("meta"):
        model = timm.create_model("vit_7b_patch16_dinov3")
        x = torch.empty(1, 3, 256, 256)
    assert sum(p.numel() for p in model.parameters()) > 6.5e9
    start = time.perf_counter()
    inspection = ak.inspect(model, x, method="guided_backprop")
    assert time.perf_counter() - start < 20  # about one on an idle machine
    assert inspection.coverage.kinds["rectifier"] == (40, 40)
    assert inspection["blocks.39.mlp.act"].output_shape == (1, 261, 8192)
    assert inspection.useful_layers == [f"blocks.{i}" for i in range(40)]
