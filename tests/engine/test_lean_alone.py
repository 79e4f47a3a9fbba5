"""On the way back signals are overwritten where nobody can see it; and what else the lean steps do with memory."""

from __future__ import annotations

import copy
import ctypes
import itertools
import math
import mmap
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

import attribkit as ak
from attribkit.engine.invert import leaf, vocabulary
from attribkit.engine.lean import alone, bits, record, store, weighted
from attribkit.engine.tree import paths_of
from attribkit.engine.walk import Walk

pytestmark = pytest.mark.usefixtures("one_thread", "lean_everywhere")
METHODS = ["gradient", "guided_backprop", "deconvnet"]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.fixture
def small(monkeypatch):
    """Small signals count as large ones do otherwise, and go in blocks and in parts of the batch."""
    monkeypatch.setattr(record, "SMALL", 1)
    monkeypatch.setattr(store, "LARGE", 2048)
    monkeypatch.setattr(store, "_advise", lambda: None)
    monkeypatch.setattr(bits, "BLOCK", 64)
    monkeypatch.setattr(weighted, "SCALED", 64)


class Model(nn.Module):
    """A function between layers: the convolution after it hands it a signal that nobody else holds."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        self.last, self.head, self.function = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(256, 3), function

    def forward(self, x):
        return self.head(self.last(self.function(self.norm(self.conv(x)))).flatten(1))


def image(*shape, seed=1):
    return torch.randn(shape or (2, 3, 8, 8), generator=torch.Generator().manual_seed(seed))


def autograd(model):
    x = image().requires_grad_()
    return torch.autograd.grad(model(x)[:, 1].sum(), x)[0]


class Hands(torch.autograd.Function):
    """The sum of its inputs; to each of them it hands what a function makes of the signal."""

    @staticmethod
    def forward(ctx, hand, *inputs):
        ctx.hand, ctx.count = hand, len(inputs)
        return sum(inputs)

    @staticmethod
    def backward(ctx, signal):
        return None, *[ctx.hand(signal)] * ctx.count


def watched(watch, function=F.relu):
    """Somebody watches the signal at a function's output."""
    return lambda keep: lambda x: (maps := function(x), watch(maps, keep))[0]


def handed(make):
    """A function in the graph hands on what somebody keeps."""
    return lambda keep: lambda x: Hands.apply(lambda signal: make(signal, keep), F.relu(x))


def convolved(x):
    return F.conv2d(x, torch.linspace(-1, 1, 144).reshape(4, 4, 3, 3), padding=1)


SEEN = {
    "a hook keeps it": watched(lambda maps, keep: maps.register_hook(keep)),
    "a hook keeps a part": watched(lambda maps, keep: maps.register_hook(lambda signal: keep(signal[1:]))),
    "a hook keeps an alias": watched(lambda maps, keep: maps.register_hook(lambda signal: keep(signal.data))),
    "its memory": watched(lambda maps, keep: maps.register_hook(lambda signal: keep(signal.untyped_storage()))),
    "numpy": watched(lambda maps, keep: maps.register_hook(lambda signal: keep(signal.numpy()))),
    "dlpack": watched(lambda maps, keep: maps.register_hook(lambda signal: keep(np.from_dlpack(signal)))),
    "in parts": watched(lambda maps, keep: maps.register_hook(keep), lambda x: torch.cat([*map(F.relu, x.chunk(2))])),
    "a node's hook": watched(lambda maps, keep: maps.grad_fn.register_hook(lambda _, signals: keep(signals[0]))),
    "one before": watched(lambda maps, keep: maps.grad_fn.register_prehook(lambda signals: keep(signals[0]))),
    "a module's": lambda keep: (own := nn.ReLU(), own.register_full_backward_hook(lambda *call: keep(call[2][0])))[0],
    "a convolution": lambda keep: lambda x: (maps := convolved(x), maps.register_hook(keep), F.relu(maps))[2],
    "convolved, too": lambda keep: lambda x: convolved(F.relu(x)) + F.relu(x),
    "convolved twice": lambda keep: (
        lambda x: F.relu(Hands.apply(lambda signal: signal, convolved(x), convolved(x * 2)))
    ),
    "two branches": lambda keep: lambda x: F.max_pool2d(x, 3, 1, 1) + F.relu(x),
    "a residual sum": lambda keep: lambda x: x + F.relu(x),
    "handed to two": lambda keep: lambda x: Hands.apply(lambda signal: signal, F.max_pool2d(x, 3, 1, 1), F.relu(x)),
    "a function keeps it": handed(lambda signal, keep: (signal, keep(signal))[0]),
    "a part of more": handed(lambda signal, keep: (more := torch.cat([signal, signal]), keep(more))[0][:2]),
    "numpy's": handed(lambda signal, keep: torch.from_numpy((array := signal.numpy().copy(), keep(array))[0])),
    "a parameter": handed(lambda signal, keep: (own := nn.Parameter(signal * 2), keep(own))[0].detach()),
    "an activation": lambda keep: lambda x: (keep(x.detach()), Hands.apply(lambda _: x.detach(), F.relu(x)))[1],
}
OTHERS = {
    "nobody": lambda keep: F.relu,
    "x + x": lambda keep: lambda x: F.relu(x + x) + F.relu(x) * 2,
    "one value for many": lambda keep: lambda x: F.relu(x.mean((2, 3), keepdim=True).expand_as(x)) + F.relu(x),
    "one signal for many": lambda keep: lambda x: F.relu(F.relu(x).sum((2, 3), keepdim=True) - x),
    "chunks": lambda keep: lambda x: torch.cat([F.relu(part) for part in F.relu(x * 2).chunk(2, 1)], 1),
    "in place": lambda keep: lambda x: F.relu_(F.relu6(x) - 0.5),
    "channels last": lambda keep: lambda x: F.relu(F.relu6(x.contiguous(memory_format=torch.channels_last))),
    "norms": lambda keep: lambda x: F.batch_norm(x, torch.zeros(4), torch.ones(4) * 2) + F.leaky_relu(x, 0.2),
    **{str(d): lambda keep, d=d: lambda x: F.relu6(F.leaky_relu(F.relu(x.to(d))) * 4).float() for d in DTYPES},
    "retained": watched(lambda maps, keep: maps.retain_grad()),
}


def look(build, method, answer=None):
    """Return the map with what was kept as it was then, and what was kept as it is after the call."""
    kept = []
    model = Model(build(lambda thing: kept.append((thing, copy.deepcopy(thing))))).eval()
    with pytest.MonkeyPatch.context() as patch:
        if answer is not None:
            patch.setattr(alone.Alone, "__call__", lambda self, found: answer)
        values = ak.attribute(model, image(), method, 1).values
    assert not any(value for module in model.modules() for name, value in vars(module).items() if "forward" in name)
    return [values.tolist(), *[before.tolist() for _, before in kept]], [now.tolist() for now, _ in kept]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SEEN | OTHERS)
def test_what_others_can_see_stays(name, method, small):
    found, now = look(build := (SEEN | OTHERS)[name], method)
    assert now == found[1:]
    assert found == look(build, method, answer=False)[0]
    if method == "gradient":
        torch.testing.assert_close(torch.tensor(found[0]), autograd(Model(build(lambda thing: None)).eval()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SEEN)
def test_it_would_be_seen(name, method, small):
    """With every signal overwritten each of these must be noticed, or the test above proves nothing."""
    found, now = look(SEEN[name], method, answer=True)
    assert now != found[1:] or found != look(SEEN[name], method, answer=False)[0]


def test_the_callers_signal_stays_and_what_it_asks_for_on_the_way(small):
    def two_heads(x):
        maps = F.relu(x * 1)
        return maps, F.relu(maps * 2 - 1), F.relu(1 - maps)

    model, signal, results = nn.Module(), image(2, 4, 8, 8, seed=2), []
    model.forward = two_heads
    for run in (two_heads, Walk(model, vocabulary=vocabulary(), lean=True).run):
        x = leaf(image(2, 4, 8, 8))
        maps, *heads = run(x)
        results.append(torch.autograd.grad(heads, [x, maps], [signal, signal]))
    assert all(map(torch.equal, *results))
    assert torch.equal(signal, image(2, 4, 8, 8, seed=2))


def test_second_derivatives(small):
    """A signal that is itself part of a graph is not written to."""
    model, results = Model(lambda x: F.relu(x) * F.leaky_relu(x)).eval().double(), []
    for keep_less in (True, False):
        x = leaf(image().double())
        score = Walk(model, vocabulary=vocabulary(), lean=keep_less).run(x.clone()).square().sum()
        (gradient,) = torch.autograd.grad(score, x, create_graph=True)
        results.append(torch.autograd.grad(gradient.square().sum(), x)[0])
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_an_inverse_layer_may_keep_its_signals_and_hand_them_on(small):
    kept = []

    class Keeps(ak.InverseLayer):
        def carry(self, signal, site):
            kept.append((signal, signal.clone()))
            return signal

    class Mine(ak.InverseMethod):
        name, summary, inverse_layers = "mine", "passes by a clamp", {nn.ReLU6: Keeps()}

    ak.attribute(Model(nn.Sequential(nn.LeakyReLU(0.1), nn.ReLU6())).eval(), image(), Mine, 1)
    assert [torch.equal(*pair) for pair in kept] == [True]


def test_an_attribution_within_another_way_back_and_in_threads(small, monkeypatch):
    model, take, barrier = Model(lambda x: F.relu6(F.relu(x) * 4)).eval(), np.take, threading.Barrier(2)

    def run(number):
        return ak.attribute(model, image(seed=number), "guided_backprop", 1).values.tolist()

    def meet(*args, **kwargs):  # each thread has written its block of masks before either reads its own
        take(*args, **kwargs)
        barrier.wait(timeout=20)

    expected = [run(number) for number in range(2)]
    (_, within), _ = look(watched(lambda maps, keep: maps.register_hook(lambda _: keep(np.array(run(1))))), "gradient")
    assert within == expected[1]
    monkeypatch.setattr(np, "take", meet)
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(run, range(2))) == expected


ODD = {
    "negated": lambda signal: torch._neg_view(signal.clone()),
    "zeros without memory": lambda signal: torch._efficientzerotensor(signal.shape),
    "made in inference mode": torch.inference_mode()(lambda signal: signal * 2),
    "in disguise": lambda signal: TwoTensor(signal, signal),
    "copied when written to": torch._lazy_clone,
    "one number": lambda signal: signal.square().mean().expand(signal.shape).data,
}


@pytest.mark.parametrize("name", ODD)
def test_odd_signals(name, small):
    for function in (F.relu, F.leaky_relu, lambda x: F.batch_norm(x, torch.zeros(4), torch.ones(4) * 2)):
        model = Model(lambda x, function=function: Hands.apply(ODD[name], function(x))).eval()
        torch.testing.assert_close(ak.attribute(model, image(), "gradient", 1).values, autograd(model))
    if name == "one number":  # the only one that a clamp in place would meet
        assert np.any(look(lambda keep: lambda x: Hands.apply(ODD[name], F.relu(x)), "deconvnet")[0][0])


@pytest.mark.parametrize("method", METHODS)
def test_a_sparse_signal(method, small):
    model, index = nn.Sequential(nn.ReLU(), nn.Module()), torch.tensor([[0, 7, 2], [3, 5, 1]])
    model[1].forward = lambda x: torch.gather(F.linear(x.flatten(1), torch.eye(192)), 1, index, sparse_grad=True)
    found = ak.attribute(model.eval(), image().abs(), method, 1).values.flatten(1)
    assert torch.equal(found, F.one_hot(index[:, 1], 192).float())


@pytest.mark.parametrize("method", METHODS)
def test_what_nobody_holds_is_overwritten(method):
    """Nothing else would tell that another torch counts otherwise."""
    block = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), *block, *block, nn.AvgPool2d(64), nn.Flatten()).eval()
    places = []

    def watch(module, args, output):
        output.register_hook(lambda signal: places.append(signal.data_ptr()))

    for module in set(model):
        module.register_forward_hook(watch)
    ak.attribute(model, torch.randn(1, 1, 256, 256), method, 1)
    same = [before == after for before, after in itertools.pairwise(places[2:])]  # from the last rectifier's output on
    assert same == [True, True, False, True, True, False, True]


@pytest.mark.parametrize(("wide", "to", "same"), [(4, 4, True), (4, 8, False), (8, 4, False)])
def test_a_convolution_in_parts_overwrites_what_nobody_holds(wide, to, same, monkeypatch):
    """Where what comes out takes as much memory in the same way."""
    monkeypatch.setattr(store, "LARGE", 1 << 20)
    convolutions = nn.Conv2d(1, wide, 3, padding=1), nn.Conv2d(wide, to, 3, padding=1), nn.Conv2d(to, 1, 3)
    model = nn.Sequential(*convolutions, nn.Flatten()).eval()
    places = []
    for module in convolutions[:2]:
        module.register_forward_hook(
            lambda module, args, output: output.register_hook(lambda signal: places.append(signal.data_ptr())) and None
        )
    x = torch.randn(3, 1, 256, 256)
    found = ak.attribute(model, x, "gradient", 1).values
    assert (places[0] == places[1]) == same
    x.requires_grad_()
    torch.testing.assert_close(found, torch.autograd.grad(model(x)[:, 1].sum(), x)[0])


def test_holders_are_counted_where_nobody_looks_on(monkeypatch):
    found = alone.Alone()
    for watched in (torch.autograd.graph.save_on_cpu(), torch.utils._python_dispatch.TorchDispatchMode()):
        with watched:
            found.prepare()
        assert found._fewest is None
    monkeypatch.setattr(alone, "holders", lambda signal, counts=[5, 6]: counts.pop())
    found.prepare()
    assert not any(map(found, [5, 6]))


@pytest.fixture
def advice(monkeypatch):
    """Tensors of a few pages are large; what the system is asked for."""
    asked = []
    monkeypatch.setattr(store, "LARGE", 4 * mmap.PAGESIZE)
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 14, raising=False)
    monkeypatch.setattr(store, "_advise", lambda: lambda *call: asked.append(call))
    return asked


def test_pages_lie_within_large_tensors_on_the_cpu(advice):
    for fresh in (torch.empty(mmap.PAGESIZE - 1), torch.empty(1 << 20, device="meta")):
        assert store.on_large_pages(fresh) is fresh
    assert not advice
    for offset in (0, 1, 1000):
        fresh = torch.empty(6 * mmap.PAGESIZE // 4 + offset)[offset:]
        assert store.on_large_pages(fresh) is fresh
        (start, size, kind), first, end = advice.pop(), fresh.data_ptr(), fresh.data_ptr() + fresh.numel() * 4
        assert (kind, start % mmap.PAGESIZE, size % mmap.PAGESIZE) == (mmap.MADV_HUGEPAGE, 0, 0)
        assert first <= start < first + mmap.PAGESIZE
        assert end - mmap.PAGESIZE < start + size <= end


@pytest.mark.parametrize("method", METHODS)
def test_results_are_the_same_on_large_pages(method, monkeypatch, advice):
    model, x = Model(nn.Sequential(nn.ReLU(), nn.MaxPool2d(8), nn.ReLU6(), nn.LeakyReLU())).eval(), image(4, 3, 64, 64)
    found = ak.attribute(model, x, method, 1).values
    assert advice
    monkeypatch.setattr(store, "LARGE", 1 << 25)
    torch.testing.assert_close(found, ak.attribute(model, x, method, 1).values)


@pytest.mark.parametrize("missing", [None, "constant", "function"])
def test_where_there_are_no_large_pages(missing, monkeypatch):
    if missing == "constant":
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    monkeypatch.setattr(ctypes, "CDLL", (lambda name: object()) if missing == "function" else ctypes.CDLL)
    store._advise.cache_clear()
    try:
        assert store.on_large_pages(torch.empty(store.LARGE // 4)).fill_(1).sum() == store.LARGE // 4
        assert missing is None or store._advise() is None
    finally:
        store._advise.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [8, 63, 64, 65, 128, 135, 200])
def test_bits_across_blocks(count, dtype, small):
    values, signal = (image(count, seed=seed).to(dtype) for seed in (1, 2))
    for place, odd in enumerate([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0]):
        values[place :: 7 + place], signal[place :: 9 + place] = odd, odd
    masks = {
        bits.above(values, 0): values > 0,
        bits.not_zero(values): values != 0,
        bits.not_zero(values, below=1): (values != 0) & (values < 1),
        bits.between(values, 0, 1): (values > 0) & (values < 1),
    }
    for packed, mask in masks.items():
        assert np.array_equal(np.unpackbits(packed.numpy(), count=count), mask.numpy())
        for positive, passing in ((False, signal), (True, signal.clamp(min=0))):
            own = signal.clone()
            for out in (torch.full_like(signal, 7), own):  # a result of its own, or the signal's place
                bits.gated(own, packed, out, positive=positive)
                torch.testing.assert_close(out, torch.where(mask, passing, 0), rtol=0, atol=0, equal_nan=True)


class Own(nn.Sequential):
    def named_modules(self, memo=None, prefix="", remove_duplicate=True):
        yield prefix, self
        yield f"{prefix}.own", self[0]


def trees():
    shared, deep = nn.ReLU(), nn.ReLU()
    for _ in range(40):
        deep = nn.Sequential(deep)
    ring, several = nn.Sequential(nn.Sequential(shared), nn.ReLU()), nn.ModuleDict({"a": nn.Sequential(deep, shared)})
    ring[0].add_module("back", ring)
    ring[0].register_module("none", None)
    several.update({"b": shared, "c": several["a"], "d": nn.ReLU()})
    odd = nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU()))
    odd[1].named_modules = lambda memo=None, prefix="", remove_duplicate=True: iter([(f"{prefix}!", odd[1])])
    return [shared, deep, ring, several, odd, Own(shared), nn.Sequential(nn.ReLU(), Own(shared))]


def test_paths_are_those_of_named_modules():
    for model in trees():
        assert list(paths_of(model).items()) == [(module, path) for path, module in model.named_modules()]
