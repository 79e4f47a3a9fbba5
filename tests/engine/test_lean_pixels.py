"""Maps that lie pixel by pixel: the same bits as torch's, and nobody but the steps gets to see them so."""

from __future__ import annotations

import functools
import re

import pytest
import timm.layers
import torch
import torch.nn.functional as F
from torch import nn

import attribkit as ak
from attribkit.engine.known import is_known
from attribkit.engine.layers import PassThrough
from attribkit.engine.lean import convolutions, leads, passes, pixels, rectifiers, shortcuts, trials, weighted
from attribkit.engine.lean.pixels import PixelConvolution
from attribkit.engine.walk import Walk

pytestmark = [
    pytest.mark.usefixtures("one_thread", "lean_everywhere", "small_ones"),
    pytest.mark.skipif(
        not shortcuts.has_vectors(), reason="torch has no vector instructions of oneDNN's on this machine"
    ),
]

METHODS = ["gradient", "guided_backprop", "deconvnet"]
CHANNELS = 8


@pytest.fixture
def small_ones(monkeypatch):
    """Take small maps for large ones, and what is laid out anew for worth it."""
    monkeypatch.setattr(pixels, "WORTH", 1e9)
    monkeypatch.setattr(pixels, "LARGE_ENOUGH", 0)
    monkeypatch.setattr(pixels, "SCALED", 0)
    monkeypatch.setattr(weighted, "SCALED", 0)


@pytest.fixture(autouse=True)
def taken_for_known(monkeypatch):
    """Take models with modules of this file for models of known libraries, but for the test that says otherwise."""
    monkeypatch.setattr(pixels, "is_known", lambda modules: True)


@pytest.fixture
def taken(monkeypatch):
    """Which convolutions have been taken pixel by pixel, by their kernels' sizes."""
    seen = []
    run = PixelConvolution.run

    def noted(self, call):
        seen.append(tuple(self.kept[0].shape[2:]))
        return run(self, call)

    monkeypatch.setattr(PixelConvolution, "run", noted)
    return seen


@pytest.fixture
def forced(monkeypatch):
    """Take convolutions pixel by pixel whatever their last bits: which are the same depends on the machine."""

    class Taken:
        def __init__(self, torchs, ways, *sizes, **how):
            self.ways = ways

        def tried(self):
            return self.ways[0]

    monkeypatch.setattr(pixels, "trial_of", Taken)


def close(found, expected):
    assert expected.any()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Block(nn.Module):
    """Expands, convolves each channel for itself, projects; as MobileNetV2 does it, with whatever is in the middle."""

    def __init__(self, middle=None, *, act=nn.ReLU6, stride=1, dilation=1):
        super().__init__()
        wide = 2 * CHANNELS
        self.expand = nn.Conv2d(CHANNELS, wide, 1, bias=False)
        self.bn1, self.act1 = nn.BatchNorm2d(wide), act()
        self.depthwise = nn.Conv2d(wide, wide, 3, stride, dilation, dilation, wide, bias=False)
        self.bn2, self.act2 = nn.BatchNorm2d(wide), act()
        self.middle = middle if middle is None or isinstance(middle, nn.Module) else Calls(middle)
        self.project = nn.Conv2d(wide, CHANNELS, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(CHANNELS)
        self.stride = stride

    def forward(self, x):
        y = self.act1(self.bn1(self.expand(x)))
        y = self.act2(self.bn2(self.depthwise(y)))
        y = y if self.middle is None else self.middle(y)
        y = self.bn3(self.project(y))
        return y + x if self.stride == 1 else y


def net(*blocks):
    model = nn.Sequential(
        nn.Conv2d(3, CHANNELS, 3, padding=1, bias=False),
        nn.BatchNorm2d(CHANNELS),
        nn.ReLU6(),
        *blocks,
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * CHANNELS, 5),
    )
    return drawn(model)


def drawn(model):
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
            module.reset_parameters()
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


def images(seed=0, size=20):
    return torch.randn(2, 3, size, size - 2, generator=torch.Generator().manual_seed(seed))


def autograds(model, x, target=1):
    x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(model(x)[:, target].sum(), x)
    return found


def explained(model, x, method="gradient", target=1):
    """The map of the third call: the first tries nothing, the second does."""
    for _ in range(2):
        ak.attribute(model, x, method, target)
    return ak.attribute(model, x, method, target).values


# -- the same bits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardtanh])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_gradient_is_autograds_to_the_bit(act, inplace, stride, taken):
    def made():
        return act(inplace=inplace)

    model, x = net(Block(act=made), Block(act=made, stride=stride), Block(act=made)), images()
    expected = autograds(model, x)
    for call in range(4):
        found = ak.attribute(model, x, "gradient", 1).values
        assert torch.equal(found, expected)
        assert found.is_contiguous()
        assert call or not taken  # later on it depends on the machine


@pytest.mark.usefixtures("forced")
def test_a_chain_stays_as_it_is(taken):
    model, x = net(Block(stride=2), Block()), images()
    close(explained(model, x), autograds(model, x))
    # the first expansion comes before the first convolution that is worth it; from there on nothing is laid out anew
    assert taken == 2 * [(1, 1), (3, 3), (1, 1), (1, 1), (3, 3), (1, 1)]


@pytest.mark.parametrize("method", ["guided_backprop", "deconvnet"])
def test_the_other_methods_maps_are_the_same(method, monkeypatch, taken):
    model, x = net(Block(), Block(act=nn.ReLU)), images()
    found = explained(model, x, method)
    monkeypatch.setattr(pixels, "LARGE_ENOUGH", 1 << 40)
    taken.clear()
    expected = explained(model, x, method)
    assert not taken
    assert torch.equal(found, expected)


@pytest.mark.usefixtures("forced")
def test_signals_lie_as_the_maps_do(monkeypatch, taken):
    """Steps of maps that lie pixel by pixel get signals so, whoever hands them on, all others in torch's order."""
    seen = set()
    for kind in (convolutions.Convolution, PixelConvolution, weighted.BatchNorm, rectifiers.PiecewiseLinear):

        def back(step, signal, kept, alone=False, *, kind=kind, original=kind.back):
            order = torch.channels_last if step.by_pixels else torch.contiguous_format
            seen.add((kind.__name__, step.by_pixels))
            assert signal.is_contiguous(memory_format=order)
            return original(step, signal, kept, alone)

        monkeypatch.setattr(kind, "back", back)
    explained(net(Block(), Block(nn.MaxPool2d(3, 1, 1), stride=2), Block()), images())
    assert taken
    both = {(name, by_pixels) for name in ("BatchNorm", "PiecewiseLinear") for by_pixels in (False, True)}
    assert seen == {("Convolution", False), ("PixelConvolution", True), *both}


# -- convolutions that come before such maps ---------------------------------------------------------------------------


def begun_by(first, *between, channels=CHANNELS):
    """A model whose first convolution comes before one that convolves each channel for itself."""
    return drawn(nn.Sequential(
        first, *between, nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels), nn.ReLU6(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 5),
    ))  # fmt: skip


def norm_and_act(act=nn.ReLU6):
    return nn.BatchNorm2d(CHANNELS), act()


@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6, nn.LeakyReLU, lambda: nn.ReLU(inplace=True)])
@pytest.mark.parametrize("method", METHODS)
def test_a_convolution_before_them_gives_the_same_bits(act, method, monkeypatch):
    model, x = begun_by(nn.Conv2d(3, CHANNELS, 3, 2, 1, bias=False), *norm_and_act(act)), images()
    found = [ak.attribute(model, x, method, 1).values for _ in range(4)]
    monkeypatch.setattr(pixels, "LARGE_ENOUGH", 1 << 40)
    expected = ak.attribute(model, x + 0, method, 1).values
    assert all(torch.equal(each, expected) for each in found)
    assert method != "gradient" or torch.equal(expected, autograds(model, x))


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("kernel", [1, 5])
def test_a_convolution_before_them_lays_out_its_own_input(kernel, taken, monkeypatch):
    model, x = begun_by(nn.Conv2d(3, CHANNELS, kernel, padding=kernel // 2, bias=False), *norm_and_act()), images()
    anew, real = set(), pixels.by_pixels

    def noted(tensor):
        if not tensor.is_contiguous(memory_format=torch.channels_last):
            anew.add(tuple(tensor.shape))
        return real(tensor)

    monkeypatch.setattr(pixels, "by_pixels", noted)
    for call in range(3):
        ak.attribute(model, x, "gradient", 1)
        assert taken == call * [(kernel, kernel), (3, 3)]
    assert tuple(x.shape) in anew
    assert (len(x), CHANNELS, *x.shape[2:]) not in anew
    close(explained(model, x), autograds(model, x))


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize(("first", "between"), [
    (nn.Conv2d(3, CHANNELS, 5, 4, 2, bias=False), norm_and_act()),  # less comes out than went in
    (nn.Conv2d(3, CHANNELS, 5, padding=2), norm_and_act()),
    (nn.Conv2d(3, CHANNELS, 5, padding=4, dilation=2, bias=False), norm_and_act()),
    (nn.Conv2d(3, CHANNELS, 5, padding=2, bias=False), norm_and_act(nn.SiLU)),
    (nn.Conv2d(3, CHANNELS, 5, padding=2, bias=False), (nn.MaxPool2d(2),)),
    (nn.Conv2d(3, 6, 5, padding=2, groups=3, bias=False), (nn.BatchNorm2d(6), nn.ReLU6())),
])  # fmt: skip
def test_others_do_not(first, between, taken):
    model, x = begun_by(first, *between, channels=first.out_channels), images()
    for _ in range(2):
        close(explained(model, x), autograds(model, x))
    assert set(taken) == {(3, 3)}


@pytest.mark.usefixtures("forced")
def test_one_among_such_maps_gets_its_input_as_torch_lays_it(taken):
    middle = [nn.Conv2d(CHANNELS, 2 * CHANNELS, 5, padding=2, bias=False), nn.BatchNorm2d(2 * CHANNELS), nn.ReLU()]
    depthwise = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS, bias=False)
    model, x = begun_by(depthwise, *norm_and_act(), *middle, channels=2 * CHANNELS), images()
    model = nn.Sequential(nn.Conv2d(3, CHANNELS, 1), *model)
    for _ in range(2):
        close(explained(model, x), autograds(model, x))
    assert set(taken) == {(3, 3)}


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("shorter", [True, False])
def test_one_with_a_shorter_way_of_its_own_keeps_it(shorter, taken, monkeypatch):
    model, x = begun_by(nn.Conv2d(3, CHANNELS, 5, padding=2, bias=False), *norm_and_act()), images()
    way = shortcuts.Shortcut(None) if shorter else None
    monkeypatch.setattr(shortcuts, "shortcut", lambda *_: way)
    close(explained(model, x), autograds(model, x))
    assert ((5, 5) in taken) is not shorter


@pytest.mark.usefixtures("forced")
def test_other_weights_are_met_anew(taken):
    model, x = begun_by(nn.Conv2d(3, CHANNELS, 5, padding=2, bias=False), *norm_and_act()), images()
    kept = []  # or the new weights might lie where the old ones did
    for _ in range(3):
        taken.clear()
        for call in range(3):  # the first of a new size is not tried at all, the first with new weights as it was
            close(ak.attribute(model, x, "gradient", 1).values, autograds(model, x))
            assert ((5, 5) in taken) is (call > 0)
        kept.append(model[0].weight)
        model[0].weight = nn.Parameter(model[0].weight + 0.1)


def test_a_way_that_turns_out_to_be_in_vain_is_not_gone_again(taken, monkeypatch):
    """The convolution of each channel for itself has other bits: its input is laid out as torch would have it."""

    class Some:
        def __init__(self, torchs, ways, settings, *sizes, **how):
            self.way = ways[0] if settings.groups == 1 else None

        def tried(self):
            return self.way

    monkeypatch.setattr(pixels, "trial_of", Some)
    model, x = begun_by(nn.Conv2d(3, CHANNELS, 5, padding=2, bias=False), *norm_and_act()), images()
    expected = autograds(model, x)
    for _ in range(6):
        close(ak.attribute(model, x, "gradient", 1).values, expected)
    assert taken == [(5, 5)]
    assert [known.replay is not None for known in passes._passes[model].cases.values()] == [True]


class Reads(nn.Module):
    """Does something beside with the map that a convolution of each channel for itself gets."""

    def __init__(self, does, channels=CHANNELS):
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(3, channels, 5, padding=2, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.does = does

    def forward(self, x):
        return self.does(self, x)


def reads_before(model, x):
    y = model.first(x)
    mean = y.mean()
    return model.depthwise(y) + mean


def reads_after(model, x):
    y = model.first(x)
    z = model.depthwise(y)
    return z + torch.cat([y[:, :4], y[:, 4:]], 1)


def keeps(model, x):
    y = model.first(x)
    model.__dict__["kept"] = y
    return model.depthwise(y)


def twice(model, x):
    return model.depthwise(model.first(x)) + F.silu(model.first(x * 0.5))


def drops(model, x):
    return model.depthwise(F.dropout(model.first(x), training=False))


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("does", [reads_before, reads_after, keeps, twice, drops])
def test_nor_is_one_whose_map_somebody_else_wants(does, taken, monkeypatch):
    monkeypatch.setattr(pixels, "WORTH", 1 / 4)  # what was in vain does not count against the others
    model, x = net(Block(), Block(), Block(), Block()), images()
    model = drawn(nn.Sequential(Reads(does), *model[3:]))
    expected = autograds(model, x)
    close(ak.attribute(model, x, "gradient", 1).values, expected)
    assert not taken
    for call in range(6):
        taken.clear()
        close(ak.attribute(model, x, "gradient", 1).values, expected)
        assert ((5, 5) in taken) is (call == 0)
        assert len(taken) > 8
    assert model not in pixels._in_vain


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("does", [reads_before, drops])
def test_what_was_in_vain_does_not_count(does, taken, monkeypatch):
    counts, done = [], pixels.Pixels.close
    monkeypatch.setattr(pixels.Pixels, "close", lambda self: done(self) or counts.append((self._saved, self._spent)))
    x = images()
    model = drawn(nn.Sequential(Reads(does), *net(Block())[3:])).requires_grad_(False)
    for seed in range(3):  # each time in a pass of its own: what is made again is not counted
        ak.attribute(model, x, "gradient", lambda outputs, seed=seed: outputs[:, seed])
        passes._passes.clear()
    assert (5, 5) in taken
    assert counts[0] == (0, 0)
    assert counts[1] == counts[2]
    assert min(counts[2]) > 0


def test_maps_are_followed_by_themselves_not_by_their_addresses():
    known = {}
    follower = leads.Leads(known)
    x, weight = images(), torch.ones(4, 3, 1, 1)
    place = (weight.data_ptr(), x.shape)
    step = weighted.BatchNorm.__new__(weighted.BatchNorm)
    assert not follower.begins(x, weight)
    output = torch.ones(2)
    follower.follow(step, x, output)
    number, other = id(output), torch.ones(2)
    follower._maps[id(other)] = follower._maps[number]  # as if the other had come to lie where the first has been
    follower.arrives(other)
    assert not follower.ends(other)
    follower.close()
    assert not known
    follower.arrives(output)
    assert not follower.begins(x, weight)  # not in the pass that finds it
    follower.close()
    assert known == {place: True}
    assert follower.begins(x, weight)
    assert not follower.begins(x[:1], weight)


def test_so_many_are_remembered_and_what_was_in_vain_stays_so():
    known = {}
    x, weights = images(), torch.ones(leads.MOST + 3, 4, 3, 1, 1)
    step = weighted.BatchNorm.__new__(weighted.BatchNorm)
    for weight in weights:
        follower, output = leads.Leads(known), torch.ones(2)
        follower.begins(x, weight)
        follower.follow(step, x, output)
        follower.arrives(output)
        follower.close()
    assert list(known) == [(weight.data_ptr(), x.shape) for weight in weights[3:]]
    follower, output = leads.Leads(known), torch.ones(2)
    assert follower.begins(x, weights[-1])
    follower.follow(step, x, output)
    assert follower.ends(output)
    assert not follower.ends(output)
    follower.arrives(output)
    follower.close()
    assert follower.any_in_vain
    assert known[weights[-1].data_ptr(), x.shape] is False


@pytest.mark.usefixtures("forced")
def test_a_dilated_kernel(taken, monkeypatch):
    monkeypatch.setattr(pixels.Pixels, "give_up", lambda self: None)
    model, x = net(Block(stride=2), Block(dilation=2), Block()), images()
    close(explained(model, x), autograds(model, x))
    assert taken.count((3, 3)) == 2 * 2


def test_another_size_and_another_batch():
    model = net(Block(), Block())
    for x in (images(), images(1, 15), images(2, 20)[:1], images(3, 24)):
        assert torch.equal(explained(model, x), autograds(model, x))


# -- everybody else ----------------------------------------------------------------------------------------------------


class Looks(nn.Module):
    """Applies a function, and notes how what it is given lies in memory."""

    def __init__(self, function):
        super().__init__()
        self.function, self.seen = function, []

    def forward(self, x):
        y = self.function(x)
        self.seen.append(x.stride())
        return y


def in_numpy(x):
    return x * float(x.detach().numpy().reshape(-1)[5])


def by_strides(x):
    return x.as_strided(x.shape, x.stride())


def hooked(x):
    x.register_hook(lambda grad: grad.view(-1).view(grad.shape) * 2)
    return x.view(x.shape)


def added_to_itself(x):
    y = x + x  # lies as it does
    return y.view(2, -1).view(x.shape)


def added_in_place(x):
    x += 1
    return x.view(x.shape)


def added_from_elsewhere(x):
    return (x + torch.ones(x.shape)).view(x.shape)


def through_out(x):
    with torch.no_grad():
        out = torch.empty_like(x)
        torch.mul(x.detach(), 2, out=out)
    return x * out.view(x.shape)


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view(-1).view(x.shape) * 3

    @staticmethod
    def backward(ctx, signal):
        return signal * 3


CONSUMERS = {
    "view": lambda x: x.view(2, -1).view(x.shape),
    "flatten": lambda x: F.layer_norm(x.flatten(1), (x[0].numel(),)).view(x.shape),
    "mean": lambda x: x - x.mean((2, 3), keepdim=True),
    "squeeze and excite": lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "silu": F.silu,
    "pad": lambda x: F.pad(x, (1, 0, 0, 0))[..., 1:],
    "cat": lambda x: torch.cat([x[:, :3], x[:, 3:]], 1),
    "index": lambda x: x.flip(1) + x[:, :1],
    "max pool": lambda x: F.max_pool2d(x, 3, 1, 1),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2)[..., ::2, ::2],
    "aten": torch.ops.aten.silu.default,
    "contiguous": lambda x: x.contiguous().view(x.shape),
    "method by keyword": lambda x: torch.relu(input=x).view(x.shape),
    "in training": lambda x: F.batch_norm(x, None, None, training=True),
    "dense convolution": lambda x: F.conv2d(x, torch.ones(x.shape[1], x.shape[1], 3, 3) / 9, padding=1),
    "with bias": lambda x: F.conv2d(x, torch.ones(x.shape[1], 1, 3, 3), torch.ones(x.shape[1]), 1, 1, 1, x.shape[1]),
    "numpy": in_numpy,
    "strides": by_strides,
    "hook": hooked,
    "itself": added_to_itself,
    "in place": added_in_place,
    "elsewhere": added_from_elsewhere,
    "weighted": lambda x: torch.add(x, x, alpha=2).view(x.shape),
    "out": through_out,
    "own function": Own.apply,
    "checkpoint": lambda x: torch.utils.checkpoint.checkpoint(
        lambda y: y.view(-1).view(y.shape), x, use_reentrant=False
    ),
}


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("name", CONSUMERS)
def test_all_other_functions_get_maps_as_torch_lays_them_out(name, taken, monkeypatch):
    looks = Looks(CONSUMERS[name])
    model, x = net(Block(), Block(looks), Block()), images()
    expected = autograds(model, x)
    (as_it_lies,) = set(looks.seen)
    found = explained(model, x)
    assert taken
    assert set(looks.seen) == {as_it_lies}
    close(found, expected)


@pytest.mark.usefixtures("forced")
def test_hooks_and_attributes_of_the_model_get_them_so(taken):
    kept = []

    class Keeps(nn.Module):
        def forward(self, x):
            kept.append(x)
            return x

    strides = []
    model, x = net(Block(), Block(Keeps()), Block()), images()
    model[3].depthwise.register_forward_hook(lambda module, args, output: strides.append(output.stride()))
    expected = autograds(model, x)
    close(explained(model, x), expected)
    assert taken
    assert len(set(strides)) == 1
    assert {y.stride() for y in kept} == {(16 * 20 * 18, 20 * 18, 18, 1)}
    for y in kept:
        close(y.detach(), kept[0].detach())


@pytest.mark.usefixtures("forced")
def test_an_exception_leaves_none(taken):
    kept = []

    class Fails(nn.Module):
        failing = False

        def forward(self, x):
            kept.append(x)
            if self.failing:
                raise ValueError("on purpose")
            return x

    fails = Fails()
    model, x = net(Block(), Block(fails)), images()
    explained(model, x)
    assert taken
    kept.clear()
    fails.failing = True
    with pytest.raises(ValueError, match="on purpose"):
        ak.attribute(model, x, "gradient", 1)
    assert [y.is_contiguous() for y in kept] == [True]


@pytest.mark.usefixtures("forced")
def test_what_the_model_returns(taken):
    class Returns(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = net(Block(), Block())[:5]

        def forward(self, x):
            return self.body(x)

    model, x = Returns().eval(), images()
    seen = []

    def score(output):
        seen.append(output.stride())
        return output.view(2, -1).sum(1)

    y = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(y).view(2, -1).sum(), y)
    close(explained(model, x, target=score), expected)
    assert taken
    assert len(set(seen)) == 1


class Opaque(nn.ReLU):
    """Rectifies by no rectifier of torch's, so that the module is one operation as a whole."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        y = F.conv2d(x, torch.ones(x.shape[1], 1, 3, 3), None, 1, 1, 1, x.shape[1])
        self.seen.append(y.stride())
        return torch.where(y > 0, y, 0 * y)


class Whole(timm.layers.Swish):
    """Known as one operation as a whole, although it is written from others."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        y = F.relu(x)
        self.seen.append(y.stride())
        return y


class SkipsTheMiddle(ak.InverseMethod):
    name = "skips_the_middle"
    inverse_layers = {re.compile(r"4\.middle"): PassThrough()}


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("kind", [Opaque, Whole])
def test_modules_that_are_one_operation(kind, taken):
    whole = kind()
    model, x = net(Block(), Block(whole), Block()), images()
    close(explained(model, x), autograds(model, x))
    assert taken
    assert len(set(whole.seen)) == 1


@pytest.mark.usefixtures("forced")
def test_modules_that_are_taken_for_one_operation():
    looks = Looks(lambda x: 1 * x)
    model = net(Block(), Block(looks), Block())
    explained(model, images(), SkipsTheMiddle)
    assert len(set(looks.seen)) == 1


@pytest.mark.usefixtures("forced")
def test_what_is_caught_of_a_layer_is_laid_out_as_torch_does(monkeypatch, taken):
    caught = []
    catch = Walk.catch

    def noted(self, layer):
        found = catch(self, layer)
        caught.append(found.value.is_contiguous())
        return found

    monkeypatch.setattr(Walk, "catch", noted)
    explained(net(Block(), Block()), images(), target=ak.Unit("4.bn2", 1))
    assert taken
    assert caught == [True] * 3


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer", ["4.depthwise", "4.bn2", "4.act2", "4", "3.add"])
def test_units(layer, method, monkeypatch, taken):
    model, x = net(Block(act=nn.ReLU), Block(act=nn.ReLU), Block()), images()
    for position in ("max", "all", (8, 7)):
        unit = ak.Unit(layer, 2, position)
        with monkeypatch.context() as patch:
            patch.setattr(pixels, "LARGE_ENOUGH", 1 << 40)
            expected = explained(model, x, method, unit)
        assert not taken
        found = explained(model, x, method, unit)
        assert taken
        taken.clear()
        pixels._starts.pop(model)
        close(found, expected)


def viewed(x):
    return x.view(x.size(0), -1).view(x.size(0), x.size(1), x.size(2), x.size(3))


@pytest.mark.usefixtures("forced")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_a_function_that_nobody_sees_and_that_fails_for_it(taken):
    """Function modes do not see what is scripted: the pass is made again, in torch's order."""
    model, x = net(Block(), Block(torch.jit.script(viewed))), images()
    close(explained(model, x), autograds(model, x))
    assert taken
    assert model in pixels._in_vain
    taken.clear()
    close(explained(model, x), autograds(model, x))
    assert not taken


@pytest.mark.usefixtures("forced")
def test_an_error_of_the_models_own_comes_out(taken):
    calls = []

    class Fails(nn.Module):
        def forward(self, x):
            calls.append(x)
            return x.view(7) if len(calls) > 3 else x

    model, x = net(Block(stride=2), Block(), Block(Fails())), images()
    explained(model, x)
    assert taken
    with pytest.raises(RuntimeError, match=r"shape '\[7\]' is invalid"):
        ak.attribute(model, x, "gradient", 1)
    assert len(calls) == 5


# -- where they are not taken ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["pixels_up", "pixels_back"])
def test_other_bits_are_refused(way, monkeypatch, taken):
    right = getattr(pixels, way)
    monkeypatch.setattr(pixels, way, lambda *args: right(*args) * (1 + 1e-6))
    model, x = net(Block(), Block()), images()
    assert torch.equal(explained(model, x), autograds(model, x))
    assert not taken


@pytest.mark.usefixtures("forced")
def test_a_norm_of_other_bits_gets_them_as_torch_lays_them_out(monkeypatch, taken):
    monkeypatch.setattr(pixels, "_is_same_norm", lambda *args: False)
    seen = []
    run = weighted.BatchNorm.run

    def noted(self, call):
        seen.append(call.args[0].is_contiguous())
        return run(self, call)

    monkeypatch.setattr(weighted.BatchNorm, "run", noted)
    model, x = net(Block(), Block()), images()
    close(explained(model, x), autograds(model, x))
    assert taken
    assert all(seen)


@pytest.mark.usefixtures("forced")
def test_where_it_is_not_worth_it(monkeypatch, taken):
    """Every convolution's output goes to a function that takes it in torch's order only."""
    monkeypatch.setattr(pixels, "WORTH", 1 / 4)
    model, x = net(Block(act=nn.SiLU), Block(act=nn.SiLU)), images()
    expected = autograds(model, x)
    close(explained(model, x), expected)
    assert taken
    assert model in pixels._in_vain
    taken.clear()
    close(explained(model, x), expected)
    assert not taken


@pytest.mark.usefixtures("forced")
def test_it_may_be_worth_it_to_the_end_but_not_to_a_layer(monkeypatch, taken):
    monkeypatch.setattr(pixels, "WORTH", 1 / 8)
    model, x = net(Block(stride=2), Block(), Block()), images()
    near = ak.Unit("3.bn2", 1)
    explained(model, x, target=near)
    assert taken
    taken.clear()
    explained(model, x, target=near)
    assert not taken
    explained(model, x)
    assert taken


def test_no_more_than_some_sizes_are_tried(monkeypatch):
    tried = []
    run = trials.Trial._run
    monkeypatch.setattr(trials.Trial, "_run", lambda self: tried.append(self._case.maps) or run(self))
    monkeypatch.setattr(trials, "_trial", functools.lru_cache(maxsize=256)(trials.Trial))
    model = net(Block(stride=2), Block())
    for _ in range(3):
        for size in range(20, 20 + pixels.SIZES + 3):
            assert torch.equal(ak.attribute(model, images(size=size), "gradient", 1).values,
                               autograds(model, images(size=size)))  # fmt: skip
    assert len({maps[2:] for maps in tried}) >= pixels.SIZES
    assert not [maps for maps in tried if maps[2] >= 20 + pixels.SIZES]


class Strips(nn.Module):
    """Convolves over all rows and over all columns: the sum of the two repeats both."""

    def forward(self, x):
        (_, channels, height, width) = x.shape
        rows = F.conv2d(x, torch.linspace(-1, 1, height * channels).view(channels, 1, height, 1), groups=channels)
        columns = F.conv2d(x, torch.linspace(-1, 1, width * channels).view(channels, 1, 1, width), groups=channels)
        return rows + columns


@pytest.mark.usefixtures("forced")
def test_sums_that_repeat(monkeypatch, taken):
    repeated = []
    meets = pixels.Pixels.meets

    def noted(self, function, args, kwargs):
        both = len(args) == 2 and all(map(self.holds, args))
        found = meets(self, function, args, kwargs)
        if both:
            repeated.append((args[0].shape != args[1].shape, found))
        return found

    monkeypatch.setattr(pixels.Pixels, "meets", noted)
    model, x = net(Block(stride=2), Block(Strips()), Block()), images()
    close(explained(model, x), autograds(model, x))
    assert taken
    assert set(repeated) == {(True, False)}


@pytest.mark.usefixtures("forced")
def test_a_kernel_over_all_of_a_map(taken):
    """What is of one place lies in either order at once, by other strides."""

    def everything(x):
        return x * F.conv2d(x, torch.ones(x.shape[1], 1, *x.shape[2:]) / 9, groups=x.shape[1]).sigmoid()

    model, x = net(Block(stride=2), Block(everything), Block()), images()
    close(explained(model, x), autograds(model, x))
    assert (10, 9) not in taken


class Doubled(ak.InverseLayer):
    def carry(self, signal, site):
        return 2 * signal.view(-1).view(signal.shape)


class Doubles(ak.InverseMethod):
    name = "doubles"
    inverse_layers = {"rectifier": Doubled()}


def test_inverse_layers_of_others_get_signals_in_torchs_order(taken):
    assert explained(net(Block(), Block()), images(), Doubles).any()
    assert not taken


@pytest.mark.usefixtures("forced")
def test_models_with_code_of_their_own_or_with_hooks_are_left_to_torch(monkeypatch, taken):
    monkeypatch.setattr(pixels, "is_known", is_known)
    x = images()
    explained(net(Block(stride=2), Block()), x)
    assert not taken
    wide = 2 * CHANNELS
    library = nn.Sequential(
        nn.Conv2d(3, wide, 3, padding=1, bias=False),
        *[nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()] * 2,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(wide, 5),
    ).eval()
    handle = library[3].register_forward_hook(lambda module, args, output: None)
    explained(library, x)
    assert not taken
    handle.remove()
    handle = library[3].register_full_backward_hook(lambda module, before, after: None)
    explained(library, x)
    assert not taken
    handle.remove()
    close(explained(library, x), autograds(library, x))
    assert taken


@pytest.mark.usefixtures("forced")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's compiler looks at it
@pytest.mark.parametrize("where", ["in place", "wrapped"])
def test_models_with_compiled_modules_are_left_to_torch(where, taken):
    middle = Calls(torch.sigmoid)
    if where == "in place":
        middle.compile(backend="eager")
    else:
        middle = torch.compile(middle, backend="eager")
    model, x = net(Block(stride=2), Block(middle), Block()), images()
    close(explained(model, x), autograds(model, x))
    assert not taken


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize(
    "look",
    [
        lambda x: torch.func.grad(lambda scale: (x * scale).sigmoid().mean())(torch.ones(())),
        lambda x: torch.func.vjp(lambda scale: (x * scale).sigmoid().mean(), torch.ones(()))[1](torch.ones(()))[0],
        lambda x: torch.func.vmap(lambda scale: (x * scale).mean())(torch.ones(2))[0],
    ],
)
def test_a_map_that_a_transformed_function_closes_over(look, taken, monkeypatch):
    monkeypatch.setattr(pixels.Pixels, "give_up", lambda self: None)
    model, x = net(Block(stride=2), Block(lambda x: x * look(x).detach()), Block()), images()
    close(explained(model, x), autograds(model, x))
    assert taken


@pytest.mark.usefixtures("forced")
def test_a_map_that_is_looked_at_in_inference_mode_first(taken):
    seen = []

    class Looked(nn.Module):
        def forward(self, x):
            with torch.inference_mode():
                x.mean()
            seen.append(x.is_inference())
            return x * x.sigmoid()

    model, x = net(Block(stride=2), Block(Looked()), Block()), images()
    close(explained(model, x), autograds(model, x))
    assert taken
    assert not any(seen)


def test_maps_that_the_model_lays_out_itself_are_left_so(taken):
    model = net(Block(), Block()).to(memory_format=torch.channels_last)
    x = images().contiguous(memory_format=torch.channels_last)
    assert torch.equal(explained(model, x), autograds(model, x))
    model = net(Block(), Block())
    assert torch.equal(explained(model, x), autograds(model, x))
    assert not taken


def test_doubles_are_left_to_torch(taken):
    model, x = net(Block(), Block()).double(), images().double()
    assert torch.equal(explained(model, x), autograds(model, x))
    assert not taken


def test_coarser_convolutions_are_left_to_torch(monkeypatch, taken):
    monkeypatch.setattr(pixels, "is_exact", lambda: False)
    explained(net(Block(), Block()), images())
    assert not taken
