"""Several threads on one model, and what is freed after a call."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from traces import METHODS, OPTIONS, assert_same, make_inputs, make_net, state

import attribkit as ak

pytestmark = pytest.mark.usefixtures("one_thread")

PATIENCE = 20.0  # seconds until a thread that waits for another gives up


def call(net, x, method, target=1):
    return ak.attribute(net, x, method=method, target=target, **OPTIONS.get(method, {}))


def together(*works):
    """Run the works in threads that start at the same moment; return their results, or raise what they raised."""
    gate = threading.Barrier(len(works))

    def run(work):
        gate.wait(PATIENCE)
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result() for future in [pool.submit(run, work) for work in works]]


@pytest.mark.parametrize("training", [True, False])
def test_threads_get_what_each_would_get_alone(training):
    net = make_net()
    if not training:
        net.eval()
    jobs = [(method, make_inputs(seed), target) for seed, method in enumerate(METHODS) for target in (1, "unit")]
    jobs = [(method, x, ak.Unit("block.conv2", 3) if target == "unit" else 1) for method, x, target in jobs]
    alone = [call(net, x, method, target).values for method, x, target in jobs]
    before = state(net, *(x for _, x, _ in jobs))

    def work(job):
        return [call(net, job[1], job[0], job[2]).values for _ in range(6)]

    for expected, found in zip(alone, together(*(lambda job=job: work(job) for job in jobs)), strict=True):
        assert expected.any()
        for values in found:
            assert torch.equal(values, expected)
    assert_same(state(net, *(x for _, x, _ in jobs)), before)


def test_a_plain_run_beside_is_undisturbed():
    """Another thread's own forward and backward through the same eval-mode model must see the model as it is."""
    net = make_net().eval()
    x = make_inputs(5).detach()
    stop = threading.Event()

    def plain():
        leaf = x.clone().requires_grad_()
        scores = net(leaf)
        return scores.detach(), torch.autograd.grad(scores[:, 1].sum(), leaf)[0]

    expected = plain()

    def watch():
        runs = 0
        while not stop.is_set():
            scores, gradient = plain()
            assert torch.equal(scores, expected[0])
            assert torch.equal(gradient, expected[1])
            runs += 1
        return runs

    def disturb():
        try:
            for method in METHODS * 8:
                call(net, make_inputs(6), method)
        finally:
            stop.set()

    runs, _ = together(watch, disturb)
    assert runs >= 10


class Gate(nn.Module):
    """Lets a thread wait in the middle of the model."""

    def __init__(self):
        super().__init__()
        self.waits = {}

    def forward(self, x):
        reached, go_on = self.waits.get(threading.get_ident(), (None, None))
        if reached is not None:
            reached.set()
            assert go_on.wait(PATIENCE)
        return x


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.gate, self.relu = nn.Conv2d(3, 4, 3), Gate(), nn.ReLU(inplace=True)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(144, 3)

    def forward(self, x):
        return self.head(self.drop(self.relu(self.gate(self.conv(x))).flatten(1)))


@pytest.mark.parametrize("first_out", ["first", "second"])
@pytest.mark.parametrize("failing", [None, "first", "second"])
@pytest.mark.parametrize("method", ["deconvnet", "gradient"])
def test_training_flags_come_back_when_the_last_of_overlapping_calls_ends(method, first_out, failing):
    net, x = Gated().train(), make_inputs().detach()
    net.relu.eval()
    flags = {name: module.training for name, module in net.named_modules()}
    expected = call(net, x, method).values

    events = {who: (threading.Event(), threading.Event()) for who in ("first", "second")}
    found, errors = {}, {}

    def work(who):
        net.gate.waits[threading.get_ident()] = events[who]
        try:
            target = (lambda outputs: 1 / 0) if who == failing else 1
            found[who] = call(net, x, method, target).values
        except ZeroDivisionError as error:
            errors[who] = error

    threads = {who: threading.Thread(target=work, args=(who,)) for who in events}
    try:
        for who in ("first", "second"):
            threads[who].start()
            assert events[who][0].wait(PATIENCE), f"the {who} call did not reach the middle of the model"
        last_out = "second" if first_out == "first" else "first"
        events[first_out][1].set()
        threads[first_out].join(PATIENCE)
        assert not threads[first_out].is_alive()
        assert not any(module.training for module in net.modules()), "the other call still needs the eval mode"
        events[last_out][1].set()
        threads[last_out].join(PATIENCE)
        assert not threads[last_out].is_alive()
    finally:
        for _, go_on in events.values():
            go_on.set()
    assert {name: module.training for name, module in net.named_modules()} == flags
    assert set(errors) == ({failing} if failing else set())
    assert set(found) == {"first", "second"} - set(errors)
    for values in found.values():
        assert torch.equal(values, expected)


class Spy(nn.Module):
    """Weak references to what passes through: to the storages, for a graph may hold those behind another tensor."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def forward(self, x):
        y = x * 1
        self.seen += [weakref.ref(tensor.untyped_storage()) for tensor in (x, y)]
        return y


def spied_net(seen):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        Spy(seen),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        Spy(seen),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(36, 3),
        Spy(seen),
    )


@pytest.fixture
def without_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("target", [1, None, "unit"])
@pytest.mark.parametrize("method", METHODS)
def test_everything_is_freed_when_the_call_ends(method, target):
    """Without help from the garbage collector: no cycle holds a tensor or the graph."""
    call(spied_net([]), torch.randn(2, 3, 8, 8), method)  # torch imports more of itself at first, which is a cycle
    seen = []
    net, x = spied_net(seen), torch.randn(2, 3, 8, 8)
    target = ak.Unit("3", 1) if target == "unit" else target
    found = call(net, x, method, target)
    assert seen
    assert all(reference() is None for reference in seen), "activations live on although the call has ended"
    inputs, values = weakref.ref(x), weakref.ref(found.values)
    del x
    assert inputs() is None
    del found
    assert values() is None
    model = weakref.ref(net)
    del net
    assert model() is None, "something still holds the model"


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("method", METHODS)
def test_everything_is_freed_after_an_error(method):
    class Failing(nn.Module):
        def forward(self, x):
            raise ZeroDivisionError

    seen = []
    net, x = spied_net(seen), torch.randn(2, 3, 8, 8)
    net.append(Failing())
    with pytest.raises(ZeroDivisionError):
        call(net, x, method)
    assert seen
    assert all(reference() is None for reference in seen)


@pytest.mark.usefixtures("without_collector")
def test_tensors_do_not_accumulate():
    net, x = make_net(), make_inputs()

    def count():
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    def round_of_calls():
        for method in METHODS:
            call(net, x, method)
            ak.inspect(net, x, method=method)
        for method in METHODS[:3]:
            ak.project(net, x, "block.conv2", [0, 1], method=method)

    round_of_calls()
    before = count()
    for _ in range(3):
        round_of_calls()
    assert count() <= before


def test_calls_within_calls():
    """A model that explains another one, or itself, on the way up: each call is its own."""
    inner, x = make_net(), make_inputs().detach()
    expected_inner = call(inner, x, "deconvnet").values

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.found = inner, []

        def forward(self, y):
            self.found.append(call(self.inner, x, "deconvnet").values)
            return F.relu(self.inner(y) - 0.1)

    class Same(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, y):
            return F.relu(self.inner(y) - 0.1)

    outer = Outer()
    for method in METHODS[:3]:
        found = call(outer, x, method)
        assert torch.equal(found.values, call(Same(), x, method).values)
    names = [[site.name for site in ak.inspect(net, x).sites] for net in (outer, Same())]
    assert names[0] == names[1]  # what the inner call ran is none of the outer model's doing
    assert len(outer.found) == 4
    for values in outer.found:
        assert torch.equal(values, expected_inner)
