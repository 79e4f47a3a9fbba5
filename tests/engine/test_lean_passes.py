"""Passes that are made again without the model's code give what the model gives, or are not made again."""

import contextlib
import copy
import gc
import threading
import weakref
from collections import OrderedDict

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torchvision.transforms import v2

import attribkit as ak
from attribkit import targets
from attribkit.engine import invert
from attribkit.engine.hooks import hooked, others
from attribkit.engine.lean import passes, pixels, replay
from attribkit.engine.table import Table
from attribkit.engine.walk import Walk
from attribkit.testing import seed_weights
from attribkit.testing.checks.frontdoor import _in_threads

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = ["gradient", "guided_backprop", "deconvnet"]


@pytest.fixture
def walks(monkeypatch):
    """Count the passes in which the model's code runs."""
    count = []
    run = Walk.run
    monkeypatch.setattr(Walk, "run", lambda self, *args, **kwargs: count.append(self) or run(self, *args, **kwargs))
    return count


@pytest.fixture(autouse=True)
def _nothing_known():
    passes._passes.clear()
    yield
    passes._passes.clear()


def library(cls):
    """Return a class as if it came from a library."""
    cls.__module__ = cls.forward.__module__ = "timm.models.for_a_test"
    return cls


def plain():
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, 2)]
    return nn.Sequential(*layers, nn.ReLU6(), nn.Flatten(), nn.Dropout(), nn.Linear(216, 5))


def no_head():
    return nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.1), nn.Conv2d(4, 5, 30))


def mean_at_the_end():
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Tanh())


NETWORKS = {
    "plain": plain,
    "no head": no_head,
    "mean at the end": mean_at_the_end,
    "resnet18": lambda: torchvision.models.resnet18(weights=None, num_classes=5),
    "mobilenetv2": lambda: timm.create_model("mobilenetv2_035", num_classes=5),
    "repvgg": lambda: timm.create_model("repvgg_a0", num_classes=5),
    "alexnet": lambda: torchvision.models.alexnet(weights=None, num_classes=5),
}


def network(name):
    return seed_weights(NETWORKS[name](), 0).eval()


def batch(name="plain", seed=0, count=2):
    size = {"alexnet": 64, "plain": 30}.get(name, 32)
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def scores_of(outputs):
    """Return scores of outputs that need not be [N, classes]."""
    return outputs.flatten(1)[:, 1] * 2 - outputs.flatten(1)[:, 0]


def ordinary(model, x, method, target, **options):
    """Explain by passes of the model's own."""
    passes.forget(model)
    found = ak.attribute(model, x, method, target, **options)
    passes.forget(model)
    return found


def noted(model, x, method="guided_backprop", target=scores_of):
    """Have a pass noted."""
    passes.forget(model)
    for _ in range(2):
        ak.attribute(model, x, method, target)
    return known(model)


def known(model):
    """Return what is known of the last case."""
    return list(passes._passes[model].cases.values())[-1]


def same(found, expected):
    return (
        torch.equal(found.values, expected.values)
        and torch.equal(found.scores, expected.scores)
        and str(found.target) == str(expected.target)
        and found.coverage == expected.coverage
        and found.coverage.left == expected.coverage.left
    )


# -- what is made again ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_it_gives_the_same_to_the_bit(walks, name, method):
    model = network(name)
    images = [batch(name, seed) for seed in range(4)]
    expected = [ordinary(model, x, method, scores_of) for x in images]
    del walks[:]
    found = [ak.attribute(model, x, method, scores_of) for x in images]
    assert len(walks) == 2
    assert known(model).replay is not None
    assert all(map(same, found, expected))
    assert found[2].values.abs().max() > 0
    if method != "deconvnet":  # which asks the pools' switches alone
        assert not torch.equal(found[2].values, found[3].values)


@pytest.mark.parametrize("target", [None, 3, torch.tensor([4, 0]), lambda y: y[:, 1] - y[:, 2]], ids=str)
def test_every_target_but_a_unit(walks, target):
    model, x = network("plain"), batch()
    noted(model, batch(seed=1))
    del walks[:]
    found = ak.attribute(model, x, "guided_backprop", target)
    assert not walks
    assert same(found, ordinary(model, x, "guided_backprop", target))
    unit = ak.Unit("4", 1)
    for _ in range(3):
        last = ak.attribute(model, x, "guided_backprop", unit)
    assert len(walks) == 4
    assert same(last, ordinary(model, x, "guided_backprop", unit))


def test_each_size_method_and_batch_is_noted_by_itself(walks):
    model = network("mean at the end")
    sizes = [(1, 3, 16, 16), (2, 3, 16, 16), (2, 3, 16, 20)]
    inputs = [torch.randn(size) for size in sizes]
    for _ in range(2):
        for x in inputs:
            for method in METHODS[:2]:
                ak.attribute(model, x, method, 1)
    assert len(walks) == 12
    found = {(i, method): ak.attribute(model, x, method, 1) for i, x in enumerate(inputs) for method in METHODS[:2]}
    assert len(walks) == 12
    for (i, method), each in found.items():
        assert same(each, ordinary(model, inputs[i], method, 1))


def test_rows_go_through_in_batches(walks):
    model, x = network("plain"), batch(count=8)
    expected = ordinary(model, x, "gradient", 1)
    del walks[:]
    found = ak.attribute(model, x, "gradient", 1, batch_size=2)
    assert len(walks) == 2
    assert torch.allclose(found.values, expected.values, atol=1e-6)


def test_the_weights_are_read_where_they_are(walks):
    model, x = network("resnet18"), batch("resnet18")
    noted(model, x)
    other = seed_weights(copy.deepcopy(model), 1)
    with torch.no_grad():
        for name, value in other.state_dict().items():
            model.state_dict()[name].copy_(value)
    del walks[:]
    found = ak.attribute(model, x, "guided_backprop", scores_of)
    assert not walks
    assert same(found, ordinary(other, x, "guided_backprop", scores_of))


def test_a_model_in_training_mode_stays_so(walks):
    model, x = network("plain"), batch()
    expected = ordinary(model, x, "guided_backprop", 1)
    noted(model, x)
    model.train()
    del walks[:]
    assert same(ak.attribute(model, x, "guided_backprop", 1), expected)
    assert not walks
    assert all(module.training for module in model.modules())


def test_inputs_and_generators_are_left_alone():
    model, x = network("no head"), batch("no head").requires_grad_()  # it begins in place
    noted(model, x)
    before, state = x.detach().clone(), torch.get_rng_state()
    with torch.no_grad():
        ak.attribute(model, x, "guided_backprop", scores_of)
        assert not torch.is_grad_enabled()
    assert torch.equal(x, before)
    assert x.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_target_may_write_to_the_outputs_and_may_raise(walks):
    def writes(outputs):
        outputs.mul_(2)
        return outputs[:, 1]

    model, x = network("plain"), batch()
    expected = ordinary(model, x, "gradient", writes)
    noted(model, x, "gradient")
    del walks[:]
    assert same(ak.attribute(model, x, "gradient", writes), expected)
    with pytest.raises(ZeroDivisionError):
        ak.attribute(model, x, "gradient", lambda outputs: 1 / 0)
    assert same(ak.attribute(model, x, "gradient", writes), expected)
    assert not walks


def test_a_target_may_ask_for_another_map_of_the_model():
    model, x = network("plain"), batch()
    inner = []

    def asks(outputs):
        inner.append(ak.attribute(model, x, "gradient", 2).values)
        return outputs[:, 1]

    expected = ordinary(model, x, "gradient", 1).values, ordinary(model, x, "gradient", 2).values
    noted(model, x, "gradient")
    assert torch.equal(ak.attribute(model, x, "gradient", asks).values, expected[0])
    assert torch.equal(inner[0], expected[1])


class Sums(nn.Sequential):
    """Values added to themselves and to what has become of them, in place and not."""

    def forward(self, x):
        a = self[0](x)
        a = a + a
        b = self[1](a)
        b += a
        c = torch.add(b, self[1](b))
        return self[2](c.add_(b)).mean((2, 3))


library(Sums)


@pytest.mark.parametrize("method", METHODS)
def test_sums(walks, method):
    model = seed_weights(Sums(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()), 0).eval()
    x = batch()
    expected = ordinary(model, x, method, 1)
    noted(model, x, method)
    del walks[:]
    assert same(ak.attribute(model, x, method, 1), expected)
    assert not walks


@library
class SharedSignals(nn.Module):
    """Two branches whose rectifiers get the same signal, as it is or in another shape."""

    def __init__(self, shaped):
        super().__init__()
        self.left, self.right, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
        self.shaped = shaped

    def forward(self, x):
        left, right = F.relu(self.left(x)), F.relu(self.right(x))
        if self.shaped:
            return (left.flatten(1) + right.flatten(1))[:, :5]
        return self.last(left + right).mean((2, 3))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shaped", [False, True])
def test_a_signal_that_two_get_is_not_written_to(walks, method, shaped):
    model, x = seed_weights(SharedSignals(shaped), 0).eval(), batch()
    expected = ordinary(model, x, method, 1)
    noted(model, x, method)
    del walks[:]
    assert same(ak.attribute(model, x, method, 1), expected)
    assert not walks


@pytest.mark.parametrize("method", METHODS)
def test_maps_that_lie_pixel_by_pixel(monkeypatch, walks, method):
    monkeypatch.setattr(pixels, "LARGE_ENOUGH", 0)
    monkeypatch.setattr(pixels, "SCALED", 0)
    monkeypatch.setattr(pixels, "WORTH", 100)
    body = [
        nn.Conv2d(3, 16, 3, bias=False),
        nn.Conv2d(16, 16, 3, groups=16, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
    ]
    model = nn.Sequential(*body, nn.Conv2d(16, 8, 1, bias=False), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1352, 5))
    model = seed_weights(model, 0).eval()
    x = batch()
    expected = ordinary(model, x, method, 1)
    for _ in range(3):
        ak.attribute(model, x, method, 1)
    made = known(model).replay
    assert sum(each.output in each.inputs for each in made.steps) == 1  # before the max pool
    del walks[:]
    assert same(ak.attribute(model, x, method, 1), expected)
    assert not walks


def test_bits_and_small_integers_are_all_that_is_kept():
    model, x = network("plain"), batch()
    going = noted(model, x).replay
    gc.collect()
    before = {id(tensor) for tensor in gc.get_objects() if type(tensor) is torch.Tensor}
    made = going.up(x)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = [tensor for _, _, tensors in made.taken for tensor in tensors]
    besides = [tensor for tensor in kept if tensor.untyped_storage().data_ptr() not in own]
    assert len(besides) == 3
    assert {tensor.dtype for tensor in besides} == {torch.uint8}
    gc.collect()
    large = [tensor for tensor in gc.get_objects() if type(tensor) is torch.Tensor and id(tensor) not in before]
    maps = [tuple(t.shape) for t in large if t.dtype == torch.float32 and t.ndim == 4 and len(t) == 2]
    assert maps == []


# -- what is not -------------------------------------------------------------------------------------------------------


def new_parameter(model):
    model[0].weight = nn.Parameter(2 * model[0].weight)


def other_memory(model):
    model[0].weight.data = 2 * model[0].weight.data


CHANGES = {
    "a module in another's place": lambda model: model.__setitem__(2, nn.LeakyReLU(0.5)),
    "a setting": lambda model: setattr(model[4], "stride", (3, 3)),
    "padding": lambda model: setattr(model[3], "padding", 1),
    "eps": lambda model: setattr(model[1], "eps", 0.5),
    "a new parameter": new_parameter,
    "other memory": other_memory,
    "a hook": lambda model: model[2].register_forward_hook(lambda module, args, output: output * 3),
    "a hook before": lambda model: model[4].register_forward_pre_hook(lambda module, args: (args[0] * 3,)),
    "a forward of its own": lambda model: setattr(model[2], "forward", F.elu),
    "one module less": lambda model: model.__delitem__(2),
    "double": lambda model: model.double(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_has_changed_runs(walks, change):
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3), nn.Conv2d(4, 6, 3), nn.ReLU()]
    model, x = seed_weights(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 0).eval(), batch()
    before = ordinary(model, x, "guided_backprop", 1).values
    noted(model, x)
    CHANGES[change](model)
    x = x.to(next(model.parameters()).dtype)
    del walks[:]
    found = ak.attribute(model, x, "guided_backprop", 1)
    assert len(walks) == 1
    assert same(found, ordinary(model, x, "guided_backprop", 1))
    assert not torch.equal(found.values, before.to(x.dtype))
    for _ in range(3):  # noted anew, or not
        assert torch.equal(ak.attribute(model, x, "guided_backprop", 1).values, found.values)


def test_a_method_of_a_class_that_is_exchanged_is_seen(monkeypatch, walks):
    model, x = network("resnet18"), batch("resnet18")
    noted(model, x)
    original = torchvision.models.ResNet._forward_impl
    monkeypatch.setattr(torchvision.models.ResNet, "_forward_impl", lambda self, x: 3 * original(self, x))
    expected = ordinary(model, x, "guided_backprop", 1)
    monkeypatch.undo()
    noted(model, x)
    monkeypatch.setattr(torchvision.models.ResNet, "_forward_impl", lambda self, x: 3 * original(self, x))
    assert same(ak.attribute(model, x, "guided_backprop", 1), expected)


class Own(nn.Module):
    """A model of the user's own."""

    def __init__(self):
        super().__init__()
        self.conv, self.factor = nn.Conv2d(3, 4, 3), [1.0]
        seed_weights(self, 0).eval()

    def forward(self, x):
        return F.relu(self.conv(x)).mean((2, 3)) * self.factor[0]


@library
class Branches(Own):
    def forward(self, x):
        x = self.conv(x)
        return F.relu(x).mean((2, 3)) if float(x.detach().sum()) > 0 else F.relu(-x).mean((2, 3))


@library
class Counts(Own):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return F.relu(self.conv(x)).mean((2, 3)) * self.calls


@library
class Changes(Own):
    def forward(self, x):
        self.last = float(len(x)) + getattr(self, "last", 0)
        return F.relu(self.conv(x)).mean((2, 3)) * self.last


@library
class Statistics(Own):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x):
        x = F.relu(self.conv(x)).amax((2, 3))
        return F.batch_norm(x, self.mean, self.var, training=True) * self.mean


@library
class Gated(Own):
    def forward(self, x):
        return F.silu(self.conv(x)).mean((2, 3))


@library
class TwoBranches(Own):
    def forward(self, x):
        x = self.conv(x)
        return torch.cat([x.mean((2, 3)), F.relu(x).amax((2, 3))], 1)


@library
class Large(Own):
    def forward(self, x):
        return F.relu(self.conv(x.sigmoid())).mean((2, 3))


@library
class Constant(Own):
    def forward(self, x):
        return F.relu(self.conv(x)).mean((2, 3)) + torch.from_numpy(__import__("numpy").ones(4, "float32"))


@pytest.mark.parametrize("kind", [Own, Branches, Counts, Changes, Statistics, Gated, TwoBranches, Large, Constant])
def test_what_cannot_be_made_again_runs(monkeypatch, walks, kind):
    monkeypatch.setattr("attribkit.engine.lean.recorder.MOST", 1000)
    model, x = kind(), batch()
    for seed in range(4):
        x = batch(seed=seed)
        model.last = 0
        if seed == 3:
            model.factor[0] = 2.0
        found = ak.attribute(model, x, "guided_backprop", 1)
        model.last = 0
        assert same(found, ordinary(copy.deepcopy(model), x, "guided_backprop", 1))
    del walks[:]
    ak.attribute(model, x, "guided_backprop", 1)
    assert len(walks) == 1


@pytest.mark.parametrize("name", ["efficientnet_b0", "densenet121"])
def test_a_large_last_part_is_not_left_to_autograd(name):
    model = timm.create_model(name, num_classes=5).eval()
    assert noted(model, torch.randn(1, 3, 64, 64), "gradient", 1).replay is None


class Mode(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


WATCHED = {
    "a mode": Mode,
    "hooks on what is saved": lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "anomaly mode": lambda: torch.autograd.set_detect_anomaly(True),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("how", WATCHED)
def test_whoever_looks_on_sees_the_model_run(walks, how):
    model, x = network("plain"), batch()
    noted(model, x)
    del walks[:]
    with WATCHED[how]():
        ak.attribute(model, x, "guided_backprop", 1)
    assert len(walks) == 1


def test_a_method_of_somebody_elses_runs(walks):
    class Twice(ak.InverseLayer):
        def carry(self, signal, site):
            return 2 * signal

    class Method(ak.InverseMethod):
        name = "twice"
        inverse_layers = {"rectifier": Twice()}

    model, x = network("plain"), batch()
    for _ in range(4):
        ak.attribute(model, x, Method, 1)
    assert len(walks) == 4


def test_a_pass_that_fails_is_made_by_the_model(monkeypatch, walks):
    model, x = network("plain"), batch()
    expected = ordinary(model, x, "guided_backprop", 1)
    noted(model, x)

    def fails(self, x):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(replay.Replay, "up", fails)
    del walks[:]
    assert same(ak.attribute(model, x, "guided_backprop", 1), expected)
    assert len(walks) == 1
    assert known(model).replay is None
    monkeypatch.undo()
    ak.attribute(model, x, "guided_backprop", 1)
    assert known(model).replay is None  # nor is it noted again


def test_one_thread_at_a_time(walks):
    model, x = network("plain"), batch()
    expected = ordinary(model, x, "guided_backprop", 1)
    made = noted(model, x).replay
    with made.mine:
        del walks[:]
        assert same(ak.attribute(model, x, "guided_backprop", 1), expected)
        assert len(walks) == 1
    found, errors = [], []

    def work():
        try:
            found.extend(ak.attribute(model, x, "guided_backprop", 1) for _ in range(10))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(found) == 40
    assert all(same(each, expected) for each in found)


def test_the_lock_is_given_back_whatever_happens(walks):
    model, x = network("plain"), batch()
    made = noted(model, x).replay

    def interrupted(outputs):
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        ak.attribute(model, x, "guided_backprop", interrupted)
    assert not made.mine.locked()


def test_a_model_goes_when_nobody_else_holds_it():
    model, x = network("resnet18"), batch("resnet18")
    noted(model, x)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert not passes._passes


def test_so_many_models_and_cases_are_kept():
    models = [network("mean at the end") for _ in range(passes.MODELS + 2)]
    for model in models:
        noted(model, batch(), "gradient", 1)
    assert [model in passes._passes for model in models] == [False] * 2 + [True] * passes.MODELS
    for width in range(8, 8 + passes.CASES + 3):
        ak.attribute(models[-1], torch.randn(1, 3, 8, width), "gradient", 1)
    assert len(passes._passes[models[-1]].cases) == passes.CASES


def test_nothing_is_left_to_autograd_in_a_pass_that_is_noted():
    model, x = network("plain"), batch()
    walk, _ = invert.up(model, invert.leaf(x), Table({}), None, lean=True, least=1 << 30)
    assert walk.lean.left
    assert not walk.lean.used
    made = noted(model, x, "gradient", 1).replay
    assert len(made.steps) == 8
    assert not made.tail


# -- memory that several look at ---------------------------------------------------------------------------------------


def residual(body, skip):
    """Return a block of a library's that adds what becomes of its input by two ways."""
    block = torchvision.models.resnet.BasicBlock(3, 3)
    block.conv1, block.downsample = body, skip
    block.bn1, block.relu, block.conv2, block.bn2 = (nn.Identity() for _ in range(4))
    return block


def begins_by_view():
    return nn.Sequential(nn.Flatten(1, 1), nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(3136, 5))


def view_of_the_input():
    skip = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(1))
    return nn.Sequential(residual(nn.Flatten(1), skip), nn.Linear(2700, 5))


def view_before_its_base_is_written_to():
    block = residual(nn.Flatten(1), nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(1)))
    return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), block, nn.Linear(2700, 5))


def view_written_to():
    body = nn.Sequential(nn.Flatten(1), nn.ReLU(inplace=True))
    return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), residual(body, nn.Flatten(1)), nn.Linear(2700, 5))


@library
class ViewThenBase(nn.Module):
    """A view that is read after what lies below it has been rectified in place."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(3136, 5)

    def forward(self, x):
        x = self.conv(x)
        view = x.flatten(1)
        return self.head(torch.add(view, F.relu(x, inplace=True).flatten(1)))


@library
class ViewThenSum(nn.Module):
    """A view that is read after something has been added in place to what lies below it."""

    def __init__(self):
        super().__init__()
        self.conv, self.other, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(3136, 5)

    def forward(self, x):
        below = self.conv(x)
        view = below.flatten(1)
        below += self.other(x)
        return self.head(torch.add(view, view))


VIEWS = [
    begins_by_view,
    view_of_the_input,
    view_before_its_base_is_written_to,
    view_written_to,
    ViewThenBase,
    ViewThenSum,
]


@pytest.mark.filterwarnings("ignore::attribkit.errors.CoverageWarning")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", VIEWS)
def test_views(make, method):
    model, x = seed_weights(make(), 0).eval(), batch()
    before = x.clone()
    try:
        expected = ordinary(model, x, method, 1)
    except RuntimeError as error:  # then each time
        for _ in range(4):
            with pytest.raises(type(error)):
                ak.attribute(model, x, method, 1)
        return
    for _ in range(4):
        assert same(ak.attribute(model, x, method, 1), expected)
    assert torch.equal(x, before)


def test_the_input_lies_where_torch_lets_tensors_begin():
    model = seed_weights(nn.Sequential(nn.Flatten(), nn.Linear(507, 40), nn.ReLU(), nn.Linear(40, 5)), 0).eval()
    x = torch.randn(7, 3, 13, 13)[1:4]
    assert x.data_ptr() % 64
    expected = ordinary(model, x, "gradient", 1)
    assert noted(model, x, "gradient", 1).replay is not None
    assert same(ak.attribute(model, x, "gradient", 1), expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rectifier", [nn.ReLU, nn.SiLU])  # the latter has no step of its own
def test_an_inverse_layer_in_the_last_part_acts(method, rectifier):
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6), rectifier(), nn.Linear(6, 5)]
    model, x = seed_weights(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *head), 0).eval(), batch()
    expected = ordinary(model, x, method, 1)
    assert (noted(model, x, method).replay is not None) == (method == "gradient")
    assert same(ak.attribute(model, x, method, 1), expected)


@pytest.mark.parametrize("target", [1, lambda outputs: outputs.mul_(2).sum(1)], ids=["class", "writes"])
def test_a_last_part_that_autograd_cannot_go_back_through(target):
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Hardtanh(inplace=True)]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *head[: 5 if target == 1 else 4])
    model, x = seed_weights(model, 0).eval(), batch()
    expected = ordinary(model, x, "gradient", target)
    for _ in range(5):
        assert same(ak.attribute(model, x, "gradient", target), expected)
    assert known(model).replay is None


def test_a_target_that_writes_to_the_weights_meets_torchs_error():
    model, x = network("resnet18"), batch("resnet18")
    weight = model.conv1.weight.detach().clone()

    def writes(outputs):
        with torch.no_grad():
            model.conv1.weight.mul_(2)
        return outputs[:, 1]

    noted(model, x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        ak.attribute(model, x, "guided_backprop", writes)
    assert torch.equal(model.conv1.weight, weight)


def test_a_target_with_code_of_its_own_is_guarded():
    model, x = network("plain"), batch()

    def meddles(outputs):
        model.train()
        model[0].weight.requires_grad_(False)
        return outputs[:, 1]

    for _ in range(4):
        ak.attribute(model, x, "gradient", meddles)
        ak.attribute(model, x, "gradient", targets.CallableTarget(2, function=meddles))
        assert not any(module.training for module in model.modules())
        assert model[0].weight.requires_grad


def test_an_observer_that_writes_to_its_buffers_unseen(walks):
    observer = torch.ao.quantization.FusedMovingAvgObsFakeQuantize()
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), observer)
    model, x = seed_weights(model, 0).eval(), batch()
    before = {name: value.clone() for name, value in observer.state_dict().items()}
    for _ in range(4):
        ak.attribute(model, x, "gradient", 1)
    assert len(walks) == 4
    for name, value in observer.state_dict().items():
        assert torch.equal(value, before[name]), name


# -- functions of the user's -------------------------------------------------------------------------------------------


def test_a_method_on_an_instance_is_code_of_the_users(walks):
    model, x = network("resnet18"), batch("resnet18")
    factor, original = [1.0], model._forward_impl
    model._forward_impl = lambda x: original(x) * factor[0]
    for _ in range(3):
        ak.attribute(model, x, "gradient", 1)
    factor[0] = 3.0
    del walks[:]
    assert same(ak.attribute(model, x, "gradient", 1), ordinary(model, x, "gradient", 1))
    assert len(walks) == 2


def test_a_function_of_the_users_in_a_module_of_a_library(walks):
    factor = [1.0]
    calls = v2.Lambda(lambda x: x * factor[0])
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), calls).eval()
    for _ in range(4):
        ak.attribute(model, batch(), "gradient", 1)
    assert len(walks) == 4


def test_functions_exchanged_between_calls(monkeypatch):
    model, x = network("mean at the end"), batch()
    for scale in (2.0, 5.0):  # the second function may come to lie where the first was
        noted(model, x, "gradient", 1)
        with monkeypatch.context() as patch:
            patch.setattr(nn.Flatten, "forward", lambda self, x, scale=scale: scale * x.flatten(1))
            found = ak.attribute(model, x, "gradient", 1)
            assert same(found, ordinary(model, x, "gradient", 1))
            for _ in range(3):
                assert same(ak.attribute(model, x, "gradient", 1), found)
        plain = ak.attribute(model, x, "gradient", 1)
        assert not same(plain, found)
        assert same(plain, ordinary(model, x, "gradient", 1))
        noted(model, x, "gradient", 1)
        with monkeypatch.context() as patch:
            patch.setattr(F, "relu", lambda x, inplace=False, scale=scale: x * scale)
            assert same(ak.attribute(model, x, "gradient", 1), ordinary(model, x, "gradient", 1))


def test_a_changed_model_lets_go_of_its_old_weights():
    model, x = network("resnet18"), batch("resnet18")
    noted(model, x)
    gone = weakref.ref(model.fc.weight.untyped_storage())
    model.fc = nn.Linear(512, 5)
    ak.attribute(model, torch.randn(1, 3, 40, 40), "gradient", 1)
    gc.collect()
    assert gone() is None


def test_another_threads_hooks_are_none_of_the_users():
    model, x = network("plain"), batch()
    at_work, done = threading.Event(), threading.Event()

    def waits(outputs):
        at_work.set()
        done.wait(10)
        return outputs[:, 1]

    thread = threading.Thread(target=lambda: ak.attribute(model, batch(count=1), "gradient", waits))
    hook = model[4].register_forward_hook(lambda module, args, output: None)
    hook.remove()
    thread.start()
    assert at_work.wait(10)
    with hooked(list(model.modules()), lambda *call: None, lambda *call: None):  # as that thread's walk has them
        assert noted(model, x).replay is not None
        assert not len(list(others(model[4]._forward_hooks)))
    done.set()
    thread.join()


def test_hooks_may_come_and_go_in_another_thread_while_they_are_looked_at():
    hooks, stop, errors = OrderedDict(), threading.Event(), []

    def come_and_go():
        while not stop.is_set():
            for number in range(50):
                hooks[number] = None
            hooks.clear()

    def look():
        try:
            for _ in range(20000):
                others(hooks)
        except RuntimeError as error:
            errors.append(error)
        finally:
            stop.set()

    _in_threads([come_and_go, look], None)
    assert not errors


def test_one_that_failed_for_a_while_is_tried_again(monkeypatch):
    model, x = network("plain"), batch()
    end = passes.Noting.end
    monkeypatch.setattr(passes.Noting, "end", lambda self, walk, output: None)
    assert noted(model, x).replay is None
    monkeypatch.setattr(passes.Noting, "end", end)
    ak.attribute(model, x, "guided_backprop", 1)
    assert known(model).replay is not None


def test_the_way_back_takes_no_more_memory_than_the_models_own():
    layers = [layer for i in range(6) for layer in (nn.Conv2d(3 if i == 0 else 16, 16, 3, padding=1), nn.ReLU())]
    model = seed_weights(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 0).eval()
    x = torch.randn(8, 3, 64, 64)

    def peak():
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            ak.attribute(model, x, "guided_backprop", 1)
        events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
        now = most = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            now += event.nbytes()
            most = max(most, now)
        return most

    ak.attribute(model, x[:1], "guided_backprop", 1)
    first = peak()
    ak.attribute(model, x, "guided_backprop", 1)
    assert known(model).replay is not None
    assert peak() <= 1.02 * first
