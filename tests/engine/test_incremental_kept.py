"""A program found out in one call serves the next, as long as the model is what it was."""

import gc
import weakref

import pytest
import torch
from torch import nn

import attribkit as ak
from attribkit.engine import fingerprint, known
from attribkit.engine.incremental import NotReplayable, engine, kept_programs, plan

OPTIONS = {"window": 8, "stride": 8, "target": 1}


class Net(nn.Module):
    """Convolutions, a batch norm, and what a forward pass may read besides: an attribute, a list, a plain tensor."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.more = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)
        self.factor = 1.0
        self.settings = {"shift": [0.0]}
        self.plain = torch.ones(8, 1, 1)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu() * self.factor + self.settings["shift"][0]
        return self.head((self.more(x) * self.plain).relu().mean((2, 3)))


@pytest.fixture(autouse=True)
def library(monkeypatch):
    """Take the classes of this file for a library's."""
    monkeypatch.setattr(known, "_LIBRARIES", known._LIBRARIES | {__name__})


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def image():
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def recorded(monkeypatch):
    """Count the forward passes that are recorded."""
    count = []
    record = engine.record
    monkeypatch.setattr(engine, "record", lambda *args: count.append(1) or record(*args))
    return count


def explain(model, image, **options):
    return ak.attribute(model, image, "occlusion", **{**OPTIONS, **options})


def right(model, image, **options):
    """Explain, and compare with the whole model's scores."""
    ours, full = explain(model, image, **options), explain(model, image, engine="full", **options)
    assert bool(ours.extras["incremental"].all())
    maps = ours.extras["score_map"], full.extras["score_map"]
    for a, b in (maps, (ours.scores, full.scores), (ours.values, full.values)):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_the_next_image_needs_no_recording(model, image, recorded):
    right(model, image)
    assert len(recorded) == 2
    for seed in range(3):
        right(model, torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed)), fill=0.5)
    assert len(recorded) == 2


def test_the_next_call_says_the_same_to_the_bit(model, image, recorded):
    first, second = explain(model, image), explain(model, image)
    assert len(recorded) == 2  # of the first call alone
    assert torch.equal(first.values, second.values)
    assert torch.equal(first.extras["score_map"], second.extras["score_map"])
    uncovered = explain(nn.Sequential(model, nn.Identity()), image)  # another model, to which no earlier call was made
    assert torch.equal(first.values, uncovered.values)


def test_what_was_replayed_wrongly_leaves_no_score_behind(model, image, monkeypatch):
    """Not the clean score either, which every drop is measured from."""
    full = explain(model, image, engine="full")
    finish = plan.Plan.finish

    def wrong(self, values, count):  # the clean image within the tolerance of a comparison, all others far from it
        return [leaf * (1 + 1e-6 if count == 1 else 2) for leaf in finish(self, values, count)]

    monkeypatch.setattr(plan.Plan, "finish", wrong)
    with pytest.warns(ak.IncrementalWarning, match="differ"):
        found = explain(model, image)
    assert not found.extras["incremental"].any()
    assert torch.equal(found.values, full.values)


def _other_hook(model):
    model.conv.register_forward_hook(lambda module, inputs, output: output * 2)


def _other_forward(model):
    model.head.forward = lambda x: x[:, :4] * 3


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.conv.weight.data.mul_(2),  # not counted by torch
        lambda model: model.conv.weight.data.numpy().fill(0.1),
        lambda model: model.conv.weight.data.copy_(model.conv.weight.data.flip(0)),
        lambda model: model.norm.running_mean.add_(1),
        lambda model: model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()}),
        lambda model: setattr(model, "more", nn.Conv2d(8, 8, 5, padding=2)),
        lambda model: setattr(model, "factor", 2.0),
        lambda model: model.settings.update(shift=[1.0]),
        lambda model: model.settings["shift"].__setitem__(0, 1.0),
        lambda model: model.plain.mul_(3),
        lambda model: setattr(model.norm, "eps", 1.0),
        _other_hook,
        _other_forward,
    ],
)
def test_a_model_that_was_changed_is_recorded_again(model, image, recorded, change):
    right(model, image)
    before = explain(model, image)
    with torch.no_grad():
        change(model)
    right(model, image)
    assert len(recorded) == 4
    assert not torch.allclose(explain(model, image).values, before.values)


def test_other_windows_and_sizes_and_kinds_are_recorded_again(model, image, recorded):
    for case in (
        lambda: right(model, image, window=16),
        lambda: right(model, image[..., :24]),
        lambda: right(model, image, target=ak.Unit("more", 2, "all")),
    ):
        right(model, image)
        known = len(recorded)
        case()
        assert len(recorded) == known + 2
    right(model.double(), image.double())


def test_what_cannot_be_seen_on_the_model_shows_in_the_results(image, recorded):
    """A forward pass that reads a global: the program's results differ from the model's, and it is recorded again."""
    world = {"factor": 1.0}

    class Worldly(Net):
        def forward(self, x):
            return super().forward(x) * world["factor"]

    torch.manual_seed(0)
    model = Worldly().eval()
    right(model, image)
    world["factor"] = 3.0
    right(model, image)
    assert len(recorded) == 4
    world["factor"] = 5.0
    right(model, torch.cat([image, image.flip(3)]))
    assert len(recorded) == 6


@pytest.mark.parametrize("again", [True, False])
def test_the_most_active_unit_is_not_an_old_programs(image, monkeypatch, again):
    """Neither where the forward pass is recorded again nor where it is run in full."""
    world = {"factor": 1.0}

    class Worldly(Net):
        def forward(self, x):
            return self.head(self.more((self.conv(x) * world["factor"]).relu()).mean((2, 3)))

    torch.manual_seed(0)
    model, options = Worldly().eval(), {"unit_layer": "more"}
    before = explain(model, image, **options)
    world["factor"] = -3.0
    if not again:
        monkeypatch.setattr(engine.Incremental, "_recorded", _refused)
    ours, full = explain(model, image, **options), explain(model, image, engine="full", **options)
    assert bool(ours.extras["incremental"].all()) == again
    assert not torch.allclose(before.extras["unit_map"], full.extras["unit_map"], rtol=0.1)
    torch.testing.assert_close(ours.extras["unit_map"], full.extras["unit_map"], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(ours.values, full.values, rtol=1e-4, atol=1e-5)


def _refused(*arguments):
    raise NotReplayable("for the sake of a test")


def test_a_pass_that_returns_something_else_is_recorded_again(image, recorded):
    world = {"tuple": False}

    class Worldly(Net):
        def forward(self, x):
            out = super().forward(x)
            return (out, out) if world["tuple"] else out

    model = Worldly().eval()
    right(model, image)
    world["tuple"] = True
    right(model, image)
    assert len(recorded) == 4


def test_a_model_of_no_use_after_a_change_says_so(model, image):
    right(model, image)
    model.norm.train()  # only for this layer's forward pass: attribute() runs it in eval mode
    right(model, image)
    model.more = nn.Sequential(model.more, nn.LazyLinear(32))
    model.more[1] = _Random()
    with pytest.warns(ak.IncrementalWarning, match="random numbers"):
        explain(model, image, engine="incremental")


class _Random(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


def test_a_callers_function_is_asked_every_time(model, image, recorded):
    for factor in (1.0, 2.0):
        explain(model, image, target=lambda out, factor=factor: out[:, 1] * factor)
    assert len(recorded) == 4


def test_models_die_and_only_the_last_are_kept(image):
    models = [Net().eval() for _ in range(kept_programs.MODELS + 2)]
    for model in models:
        explain(model, image)
    assert [model in kept_programs._programs for model in models] == [False] * 2 + [True] * kept_programs.MODELS
    watched = weakref.ref(models[-1])
    del model, models
    gc.collect()
    assert watched() is None
    assert not len(kept_programs._programs)


def test_code_of_the_users_own_is_recorded_each_time(model, image, recorded, monkeypatch):
    """A closure, a class attribute or a global may matter at a few windows alone: nothing is kept of such models."""
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    right(plain, image)
    hook = plain[0].register_forward_hook(lambda module, inputs, output: output.clamp(max=1))
    right(plain, image)
    assert plain in kept_programs._programs  # of the call before: it is not taken for the same
    right(plain, image)
    assert len(recorded) == 6
    hook.remove()
    traced = torch.fx.symbolic_trace(plain)
    explain(traced, image)
    assert traced not in kept_programs._programs
    monkeypatch.undo()
    explain(model, image)
    assert model not in kept_programs._programs


@pytest.mark.parametrize("seed", range(4))
def test_a_reused_program_is_compared_before_any_window_is_looked_at(image, recorded, seed):
    """Also where few windows are looked at."""
    world = {"factor": 1.0}

    class Worldly(Net):
        def forward(self, x):
            return super().forward(x) * world["factor"]

    torch.manual_seed(seed)
    model, options = Worldly().eval(), {"window": 8, "stride": 4, "approximate": 0.5}
    explain(model, image, **options)
    world["factor"] = 3.0
    ours = explain(model, image, **options)
    full = explain(model, image, engine="full", window=8, stride=4)
    seen = ours.extras["seen"]
    torch.testing.assert_close(ours.extras["score_map"][seen], full.extras["score_map"][seen], rtol=1e-5, atol=1e-5)
    assert len(recorded) == 4


def test_a_parameter_that_knows_its_model(image):
    class Placed(Net):
        def __init__(self):
            super().__init__()
            self.place = nn.Parameter(torch.ones(8, 1, 1))
            self.place.owner = self

        def forward(self, x):
            return self.head((self.conv(x).relu() + self.place).mean((2, 3)))

    model = Placed().eval()
    explain(model, image)
    assert model in kept_programs._programs
    watched = weakref.ref(model)
    del model
    gc.collect()
    assert watched() is None


def test_what_many_calls_leave_is_bounded(model, image, monkeypatch):
    monkeypatch.setattr(plan, "SIDES", 20)
    for seed in range(12):
        image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
        explain(model, image, window=8, stride=2, approximate=0.05)
    (_, _, program) = kept_programs._programs[model]
    assert 0 < len(program.plan._sides) <= 20


def test_an_attribute_that_cannot_be_looked_at(model, image, recorded):
    class Lazy:
        @property
        def __dict__(self):
            raise LookupError("outside of its context")

    model.proxy = Lazy()
    right(model, image)
    right(model, image)
    model.proxy = [[[[[1]]]]]  # deeper than is looked
    right(model, image)
    right(model, image)
    assert len(recorded) == 8


def test_large_models_are_not_kept(model, image, recorded, monkeypatch):
    monkeypatch.setattr(kept_programs, "BYTES", 1000)
    right(model, image)
    right(model, image)
    assert len(recorded) == 4


def test_fingerprints_of_all_kinds_of_tensors():
    odd = nn.Module()
    odd.register_buffer("flags", torch.tensor([True, False, True, True]))
    odd.register_buffer("halves", torch.ones(5, dtype=torch.float16))
    odd.register_buffer("numbers", torch.ones(3, dtype=torch.complex64))
    odd.register_buffer("empty", torch.ones(0))
    odd.register_buffer("strided", torch.ones(300, 400).t())
    odd.register_buffer("large", torch.ones(200_001, dtype=torch.uint8))
    odd.nothing = torch.tensor([])
    assert fingerprint.fingerprint(odd) == kept_programs.fingerprint(odd)
    for name, buffer in odd.named_buffers():
        before = fingerprint.fingerprint(odd)
        buffer.data[..., -1:] = 0
        assert (fingerprint.fingerprint(odd) != before) == (name != "empty"), name
    odd.register_buffer("sparse", torch.eye(3).to_sparse())
    assert fingerprint.fingerprint(odd) != kept_programs.fingerprint(odd)  # cannot be told, so never the same


def test_fingerprints_tell_places():
    for change in (lambda weight: weight.mul_(2), lambda weight: weight.neg_()):  # the uppermost bits of all
        double = nn.Conv2d(16, 64, 4, bias=False).double()
        before = fingerprint.fingerprint(double)
        change(double.weight.data)
        assert fingerprint.fingerprint(double) != before
    pair = nn.ModuleList([nn.Linear(30, 20, bias=False), nn.Linear(30, 20, bias=False), nn.Linear(200, 300)])
    before = fingerprint.fingerprint(pair)
    one, other = (layer.weight.data.clone() for layer in pair[:2])
    pair[0].weight.data.copy_(other)
    pair[1].weight.data.copy_(one)
    assert fingerprint.fingerprint(pair) != before
    before = fingerprint.fingerprint(pair)
    pair[2].weight.data.copy_(pair[2].weight.data.roll(1, 0))
    assert fingerprint.fingerprint(pair) != before
