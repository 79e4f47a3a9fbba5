"""Incremental occlusion against the whole model at every position, in float64, and what must fall back."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attribkit as ak
from attribkit.engine import occluded
from attribkit.engine.incremental import NotReplayable
from attribkit.engine.incremental.graph import compare
from attribkit.engine.incremental.record import record
from attribkit.engine.incremental.spans import Window, equal_runs, runs
from attribkit.errors import IncrementalWarning

pytestmark = pytest.mark.usefixtures("one_thread")


class Net(nn.Module):
    """Runs a function of (model, x) for a body, then a head that sees places."""

    def __init__(self, body, layers=(), channels=4, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.layers = nn.ModuleList(layers)
        self.body = body
        self.head = nn.LazyLinear(5)

    def forward(self, x):
        return self.head(self.body(self, self.stem(x)).flatten(1))


def make(body, *layers, size=(22, 19), batch=1, seed=0):
    torch.manual_seed(seed)
    net = Net(body, [layer() for layer in layers], seed=seed)
    x = torch.randn(batch, 3, *size, dtype=torch.float64)
    net = net.double()
    net(x)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias.data, module.weight.data):
                tensor.normal_()
            module.running_var.uniform_(0.5, 2)
    return net.eval(), x


def both(net, x, *, window=5, stride=3, target=2, **options):
    """Return the result of incremental inference, which must not fall back, and the full one."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ak.attribute(
            net, x, "occlusion", target, window=window, stride=stride, engine="incremental", fill=0.7, **options
        )
    full = ak.attribute(net, x, "occlusion", target, window=window, stride=stride, engine="full", fill=0.7, **options)
    assert found.extras["incremental"].all()
    assert not full.extras["incremental"].any()
    return found, full


def assert_same(found, full):
    assert full.extras["score_map"].std() > 0
    for key in full.extras.keys() - {"incremental", "label_map"}:
        torch.testing.assert_close(found.extras[key], full.extras[key], rtol=1e-10, atol=1e-11)
    assert torch.equal(found.extras["label_map"], full.extras["label_map"])
    torch.testing.assert_close(found.values, full.values, rtol=1e-9, atol=1e-11)


def conv(*arguments, **keywords):
    return lambda: nn.Conv2d(*arguments, **keywords)


def chain(net, x):
    for layer in net.layers:
        x = layer(x)
    return x


CHAINS = {
    "stride, dilation, groups": [
        conv(4, 6, 3, stride=2, padding=2, dilation=2, groups=2),
        nn.ReLU,
        conv(6, 4, (1, 3), padding=(0, 1)),
    ],
    "bottlenecks": [conv(4, 8, 1), nn.ReLU6, conv(8, 8, 3, padding=1, groups=8), nn.Hardswish, conv(8, 4, 1, stride=2)],
    "even kernels without padding": [conv(4, 4, 4, stride=3), nn.SiLU, conv(4, 4, 2)],
    "more padding than reach": [conv(4, 4, 1, padding=2), nn.LeakyReLU],
    "max pools": [lambda: nn.MaxPool2d(3, 2), lambda: nn.MaxPool2d(3, 2, padding=1), nn.GELU],
    "ceil max pools": [lambda: nn.MaxPool2d(3, 2, ceil_mode=True), lambda: nn.MaxPool2d(2, 3, ceil_mode=True)],
    "dilated max pool": [lambda: nn.MaxPool2d((3, 2), (1, 2), padding=(1, 0), dilation=(2, 1))],
    "average pools": [lambda: nn.AvgPool2d(3, 2, padding=1), lambda: nn.AvgPool2d(2, 1)],
    "average pools that do not count padding": [lambda: nn.AvgPool2d(3, 2, padding=1, count_include_pad=False)],
    "ceil average pools": [
        lambda: nn.AvgPool2d(3, 2, padding=1, ceil_mode=True),
        lambda: nn.AvgPool2d(3, 2, ceil_mode=True),
    ],
    "batch norms": [lambda: nn.BatchNorm2d(4), nn.ReLU, conv(4, 6, 3, bias=False), lambda: nn.BatchNorm2d(6), nn.ELU],
    "contrast norms": [
        lambda: nn.LocalResponseNorm(3, 0.3, 0.75, 2.0),
        conv(4, 6, 3),
        lambda: nn.LocalResponseNorm(4, 0.5, 0.6, 1.5),
    ],
    "padding on its own": [
        lambda: nn.ZeroPad2d((1, 2, 3, 0)),
        conv(4, 4, 3, stride=2),
        lambda: nn.ConstantPad2d(1, 0.5),
    ],
    "adaptive pools": [lambda: nn.AdaptiveAvgPool2d((5, 4)), lambda: nn.AdaptiveMaxPool2d(3)],
    "unknown operations": [lambda: nn.ReflectionPad2d(1), conv(4, 4, 3), lambda: nn.InstanceNorm2d(4)],
    "transposed convolution": [lambda: nn.ConvTranspose2d(4, 3, 3, stride=2), nn.ReLU],
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize(("window", "stride"), [(5, 3), (2, 4)])
def test_chains(name, window, stride):
    assert_same(*both(*make(chain, *CHAINS[name]), window=window, stride=stride))


def residual(net, x):
    y = net.layers[0](x)
    x = x + net.layers[1](y) * 0.5
    return F.relu(torch.cat([x, net.layers[2](x), y[:, :, :, :]], 1))


def in_place(net, x):
    y = net.layers[0](x)
    y.relu_()
    y += x
    x = x.sigmoid_()
    y.mul_(x).add_(1.0)
    return F.relu(net.layers[1](y), inplace=True)


def gated(net, x):
    x = net.layers[0](x).relu()
    return x * net.layers[1](x.mean((2, 3), keepdim=True)).sigmoid()


def channels_last_norm(net, x):
    return F.layer_norm(x.permute(0, 2, 3, 1), (4,)).permute(0, 3, 1, 2)


def constants(net, x):
    mask = torch.zeros(x.shape[-2:], dtype=x.dtype)
    mask[::2] = 1.0  # written in place, but no pixel plays a part in it
    return x * mask + torch.linspace(0, 1, 4, dtype=x.dtype).view(1, 4, 1, 1)


def folded_into_rows(net, x):
    tokens = x.flatten(2).transpose(1, 2)
    return torch.softmax(tokens @ tokens.transpose(1, 2), -1) @ tokens


def written_slices(net, x):
    y = x.clone()
    y[:, 1] = 0.0
    return y


BODIES = {
    "residual": (residual, [conv(4, 4, 3, padding=1), conv(4, 4, 5, padding=2), conv(4, 3, 1)]),
    "in place": (in_place, [conv(4, 4, 3, padding=1), conv(4, 4, 3)]),
    "gated": (gated, [conv(4, 4, 3), conv(4, 4, 1)]),
    "norm over channels": (channels_last_norm, []),
    "constants": (constants, []),
    "attention": (folded_into_rows, []),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies(name):
    body, layers = BODIES[name]
    assert_same(*both(*make(body, *layers)))


def test_several_images_units_and_probabilities():
    net, x = make(residual, *BODIES["residual"][1], batch=3)
    target = torch.tensor([0, 3, 1])
    assert_same(*both(net, x, target=target))
    assert_same(*both(net, x, target=target, score="probability"))
    assert_same(*both(net, x, target=target, unit_layer="layers.0", unit_channel=1))
    assert_same(*both(net, x, target=target, unit_layer="layers.2"))
    assert_same(*both(net, x, target=ak.Unit("layers.1", 2)))
    assert_same(*both(net, x, target=lambda outputs: outputs[:, 1] * outputs[:, 0]))


def test_outputs_of_any_shape():
    net, x = make(residual, *BODIES["residual"][1])

    class Wrapped(nn.Module):
        def forward(self, x):
            return {"other": [net.stem(x)], "logits": net(x)}

    assert_same(*both(Wrapped().eval(), x))
    dense = nn.Sequential(net.stem, nn.ReLU()).eval()
    found = ak.attribute(
        dense, x, "occlusion", lambda y: y[:, 1].amax((1, 2)), window=5, stride=3, engine="incremental"
    )
    full = ak.attribute(dense, x, "occlusion", lambda y: y[:, 1].amax((1, 2)), window=5, stride=3, engine="full")
    assert found.extras["incremental"].all()
    torch.testing.assert_close(found.values, full.values, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("max_batch_bytes", [1, 100_000])
def test_little_memory_changes_nothing(max_batch_bytes):
    net, x = make(residual, *BODIES["residual"][1])
    assert_same(*both(net, x, max_batch_bytes=max_batch_bytes))


def test_the_models_tensors_are_only_read():
    net, x = make(chain, *CHAINS["batch norms"])
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    given = x.clone()
    both(net, x)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert torch.equal(x, given)


def branches(net, x):
    return x * 2 if x.sum() > 0 else x


def draws(net, x):
    return x + torch.randn_like(x)


def drops(net, x):
    return F.dropout(x, 0.5, training=True)


def mixes(net, x):
    return x - x.mean(0, keepdim=True)


def by_numpy(net, x):
    return x * float(x.detach().numpy().max())


def batch_statistics(net, x):
    return F.batch_norm(x, None, None, training=True)


REFUSED = {
    "branches on values": (branches, "values"),
    "draws": (draws, "random"),
    "drops": (drops, "random"),
    "mixes samples": (mixes, "differ"),
    "leaves torch": (by_numpy, "out of torch"),
    "batch statistics": (batch_statistics, "differ"),
    "writes to slices": (written_slices, "shares"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_falls_back_and_says_so(name):
    body, words = REFUSED[name]
    net, x = make(body)
    with pytest.warns(IncrementalWarning, match=words):
        found = ak.attribute(net, x, "occlusion", 2, window=5, stride=3, engine="incremental")
    assert not found.extras["incremental"].any()


def test_auto_falls_back_in_silence():
    net, x = make(branches)
    found = ak.attribute(net, x, "occlusion", 2, window=5, stride=3)
    full = ak.attribute(net, x, "occlusion", 2, window=5, stride=3, engine="full")
    assert torch.equal(found.values, full.values)


def test_auto_runs_the_model_where_nothing_is_saved():
    """Every window changes every position from the first operation on, and there is no batch norm to fold."""
    net = nn.Sequential(nn.InstanceNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)).double()
    torch.manual_seed(0)
    x = torch.randn(1, 3, 12, 12, dtype=torch.float64)
    net(x)
    options = {"window": 3, "stride": 3, "fill": 0.7}
    auto = ak.attribute(net.eval(), x, "occlusion", 2, **options)
    asked = ak.attribute(net, x, "occlusion", 2, engine="incremental", **options)
    assert not auto.extras["incremental"].any()
    assert asked.extras["incremental"].all()
    torch.testing.assert_close(auto.values, asked.values, rtol=1e-9, atol=1e-11)


def test_a_wrong_plan_is_found_out(monkeypatch):
    """A kernel that is a little off: the comparison with the model's own scores catches it, also with engine="auto"."""
    from attribkit.engine.incremental.kernels import Convolution

    right = Convolution.__call__
    monkeypatch.setattr(Convolution, "__call__", lambda self, *a: right(self, *a) * (1 + 1e-6))
    net, x = make(residual, *BODIES["residual"][1])
    with pytest.warns(IncrementalWarning, match="differ"):
        found = ak.attribute(net, x, "occlusion", 2, window=5, stride=3, engine="auto")
    assert torch.equal(found.values, ak.attribute(net, x, "occlusion", 2, window=5, stride=3, engine="full").values)


@pytest.mark.parametrize("options", [{"engine": "fast"}, {"max_batch_bytes": 0}, {"max_batch_bytes": "much"}])
def test_wrong_options(options):
    net, x = make(residual, *BODIES["residual"][1])
    with pytest.raises(ak.AttribkitError, match=next(iter(options))):
        ak.attribute(net, x, "occlusion", 2, window=5, stride=3, **options)


def test_recordings_that_differ_are_refused():
    def counting(x):
        return x.repeat(1, 1, 1, len(x) + 1)

    x = torch.randn(3, 1, 4, 4)
    with pytest.raises(NotReplayable):
        compare(record(counting, x[:2].clone()), record(counting, x.clone()))


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3, 7])
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_spans_of_windows(kernel, stride, padding, dilation):
    """A convolution of ones with one stretch changed: the outputs that change lie in the span, and start and end it."""
    size = 17
    out = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    window = Window(kernel, stride, padding, dilation, size, out)
    weight = torch.ones(1, 1, kernel)
    for low in range(size):
        for high in range(low + 1, size + 1):
            x = torch.zeros(1, 1, size)
            x[..., low:high] = 1
            changed = F.conv1d(x, weight, None, stride, padding, dilation)[0, 0].nonzero().flatten().tolist()
            (first,), (last,) = window.changed(([low], [high]))
            assert 0 <= first < last <= out
            if changed:
                assert first <= changed[0]
                assert changed[-1] < last
                assert dilation > 1 or (first, last) == (changed[0], changed[-1] + 1)


def test_runs():
    assert runs([0, 2, 4, 5, 6]) == [(0, 3, 2), (3, 5, 1)]
    assert runs([7]) == [(0, 1, 0)]
    assert equal_runs([1, 1, 2, 2, 2, 1]) == [(0, 2), (2, 5), (5, 6)]


def test_the_clean_map_of_a_sum_that_is_overwritten_in_place():
    """hardswish_ after a sum runs on full maps, which are put together from the sum's clean map as it was before."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
            self.conv3, self.fc = nn.Conv2d(6, 4, 2, stride=2), nn.Linear(4, 3)

        def forward(self, x):
            x = F.relu(self.conv1(x))
            x = F.hardswish(self.conv2(x) + x, inplace=True)
            return self.fc(F.max_pool2d(self.conv3(x), 3, 2, 1).mean((2, 3)))

    torch.manual_seed(0)
    net, x = Net().double().eval(), torch.randn(2, 3, 24, 24, dtype=torch.float64)
    options = {"window": 3, "stride": 3}
    found = ak.attribute(net, x, "occlusion", 1, engine="incremental", **options)
    full = ak.attribute(net, x, "occlusion", 1, engine="full", **options)
    assert found.extras["incremental"].all()
    torch.testing.assert_close(found.values, full.values, rtol=0, atol=1e-12)


def test_what_was_no_use_is_not_tried_again_unasked(monkeypatch):
    class Random(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x).mean((2, 3)) + 0 * torch.rand(len(x), 4)

    recorded = []
    original = occluded.Incremental
    monkeypatch.setattr(occluded, "Incremental", lambda *args: recorded.append(1) or original(*args))
    model, x = Random().eval(), torch.randn(1, 3, 32, 32)
    for _ in range(3):
        found = ak.attribute(model, x, "occlusion", target=0, window=8)
        assert not found.extras["incremental"].any()
    assert len(recorded) == 1
    ak.attribute(model, x, "occlusion", target=0, window=10)
    assert len(recorded) == 2
    with pytest.warns(IncrementalWarning, match="random"):
        ak.attribute(model, x, "occlusion", target=0, window=8, engine="incremental")


def test_reasons_that_lie_in_forward_kwargs_are_not_remembered():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 32 * 32, 3)

        def forward(self, x, scale=None):
            scores = self.fc(F.relu(self.conv(x)).flatten(1))
            return scores if scale is None else scores * scale[:, None]

    model, x = Scaled().eval(), torch.randn(2, 3, 32, 32)
    scaled = ak.attribute(model, x, "occlusion", 0, window=8, forward_kwargs={"scale": torch.ones(2)})
    assert not scaled.extras["incremental"].any()
    assert ak.attribute(model, x, "occlusion", 0, window=8).extras["incremental"].all()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("approximate", [None, 0.3])
def test_the_warning_points_at_whoever_called(count, approximate):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.Flatten(), nn.Linear(4 * 30 * 30, 3)).eval()
    model[1].forward = lambda x: F.dropout(x, training=True)
    with pytest.warns(IncrementalWarning, match="random") as caught:
        ak.attribute(
            model,
            torch.randn(count, 3, 32, 32),
            "occlusion",
            0,
            window=8,
            engine="incremental",
            approximate=approximate,
        )
    assert [warning.filename for warning in caught] == [__file__]
