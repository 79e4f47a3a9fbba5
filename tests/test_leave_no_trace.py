"""After any call, returned or raised, everything is as it was."""

from __future__ import annotations

import contextlib
import gc
import random
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from traces import METHODS, OPTIONS, Net, assert_same, make_inputs, make_net, state

import attribkit as ak
from attribkit import progress

pytestmark = pytest.mark.usefixtures("one_thread")

MODULES = [name for name, _ in Net().named_modules()]


class Boom(Exception):
    pass


def call(net, x, method, target=1, **options):
    return ak.attribute(net, x, method=method, target=target, **OPTIONS.get(method, {}), **options)


def test_the_state_sees_every_kind_of_trace():
    """Each of these must be noticed, or the tests below prove nothing."""

    def changed(change):
        net, x = make_net(), make_inputs()
        before = state(net, x)
        undo = change(net, x)
        try:
            with pytest.raises(AssertionError):
                assert_same(state(net, x), before)
        finally:
            if callable(undo):
                undo()

    # In brackets, for only a callable is taken for the way to undo it.
    changed(lambda net, x: [net.block.conv1.register_forward_hook(lambda *args: None)])
    changed(lambda net, x: [net.block.conv1.register_full_backward_hook(lambda *args: None).remove()])  # leaves a flag
    changed(lambda net, x: setattr(net.block.relu, "inplace", False))
    changed(lambda net, x: [net.drop.eval()])
    changed(lambda net, x: setattr(net, "act", nn.ReLU()))
    changed(lambda net, x: [net.head.bias.data.add_(1)])
    changed(lambda net, x: [net.block.norm.running_mean.add_(1)])
    changed(lambda net, x: [net.stem.weight.requires_grad_()])
    changed(lambda net, x: [net.head.weight.grad.add_(1)])
    changed(lambda net, x: setattr(net.stem.bias, "grad", torch.zeros(4)))
    changed(lambda net, x: setattr(net.stem, "forward", net.stem.forward))
    changed(lambda net, x: [x.data.add_(1)])
    changed(lambda net, x: setattr(x, "grad", None))
    changed(lambda net, x: [x.requires_grad_(False)])
    changed(lambda net, x: [x.register_hook(lambda grad: None)])
    changed(lambda net, x: [torch.rand(1)])
    changed(lambda net, x: [np.random.rand()])  # noqa: NPY002
    changed(lambda net, x: [random.random()])
    changed(lambda net, x: nn.modules.module.register_module_forward_hook(lambda *args: None).remove)
    modes = torch.no_grad(), torch.inference_mode(), torch.overrides.BaseTorchFunctionMode()
    for mode in modes:
        changed(lambda net, x, mode=mode: [mode.__enter__()] and (lambda: mode.__exit__(None, None, None)))


def test_nothing_is_not_a_trace():
    net, x = make_net(), make_inputs()
    before = state(net, x)
    assert_same(state(net, x), before)


TARGETS = {
    "class": 1,
    "arg-max": None,
    "tensor": torch.tensor([0, 4]),
    "unit": ak.Unit("block.norm", 2),
    "callable": lambda outputs: outputs[:, 0] * 2,
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("method", METHODS)
def test_after_a_call(method, target):
    net, x = make_net(), make_inputs()
    before = state(net, x)
    found = call(net, x, method, TARGETS[target])
    assert_same(state(net, x), before)
    assert found.values.any()
    assert not found.values.requires_grad
    assert not found.scores.requires_grad
    assert found.values.grad_fn is None
    again = call(net, x, method, TARGETS[target])
    assert torch.equal(again.values, found.values)


def test_after_inspect_and_project():
    net, x = make_net(), make_inputs()
    before = state(net, x)
    for method in (None, *METHODS):
        ak.inspect(net, x, method=method)
        assert_same(state(net, x), before)
    for method in METHODS[:3]:
        ak.project(net, x, "block.conv2", [0, 3], method=method)
        assert_same(state(net, x), before)


@pytest.mark.parametrize("method", METHODS)
def test_the_model_runs_in_eval_mode(method):
    """The dropout of a model in training mode must not be felt, nor its statistics be moved."""
    net, x = make_net(), make_inputs()
    in_training = call(net, x, method).values
    net.eval()
    assert torch.equal(call(net, x, method).values, in_training)


@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt])
@pytest.mark.parametrize("where", MODULES)
@pytest.mark.parametrize("method", METHODS)
def test_after_an_error_in_the_forward_of_each_module(method, where, error):
    net, x = make_net(), make_inputs()
    module, ran = net.get_submodule(where), []
    plain = module.forward

    def forward(*args):
        ran.append(plain(*args))
        raise error("raised in forward")

    module.forward = forward
    before = state(net, x)
    for target in (1, ak.Unit("head", 0)) if where else (1,):  # the model need not run on behind a unit
        with pytest.raises(error, match="raised in forward"):
            call(net, x, method, target)
        assert_same(state(net, x), before)
    assert ran
    with pytest.raises(error):
        ak.inspect(net, x, method=method)
    assert_same(state(net, x), before)
    del module.forward
    assert torch.equal(call(net, x, method).values, call(make_net(), x, method).values)


class RaisesInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise Boom("raised in backward")


@pytest.mark.parametrize("where", ["stem", "block", "block.relu", "pool", "head"])
@pytest.mark.parametrize("method", METHODS[:3])
def test_after_an_error_in_a_backward(method, where):
    net, x = make_net(), make_inputs()
    module = net.get_submodule(where)
    plain = module.forward
    module.forward = lambda *args: RaisesInBackward.apply(plain(*args))
    before = state(net, x)
    with pytest.raises(Boom, match="raised in backward"):
        call(net, x, method)
    assert_same(state(net, x), before)


class RaisesInCarry(ak.InverseLayer):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def carry(self, signal, site):
        if site.name == "block.relu":
            raise self.error("raised in carry")
        return site.plain(signal)


@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt])
def test_after_an_error_in_an_inverse_layer(error):
    class Failing(ak.InverseMethod):
        name = "failing"
        summary = "raises on the way down"
        inverse_layers = {"rectifier": RaisesInCarry(error)}

    net, x = make_net(), make_inputs()
    before = state(net, x)
    with pytest.raises(error, match="raised in carry"):
        call(net, x, Failing)
    assert_same(state(net, x), before)


HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


class Refusing(OrderedDict):
    """A module's hooks, to which no further one can be added."""

    error = None

    def __setitem__(self, key, value):
        if self.error is not None:
            raise self.error("raised while attaching")
        super().__setitem__(key, value)


@pytest.mark.parametrize("hooks", HOOKS)
@pytest.mark.parametrize("method", METHODS)
def test_after_an_error_while_attaching(method, hooks):
    raised = 0
    for where in MODULES:
        for error in (Boom, KeyboardInterrupt):
            net, x = make_net(), make_inputs()

            module = net.get_submodule(where)
            refusing = Refusing(getattr(module, hooks))
            refusing.error = error
            setattr(module, hooks, refusing)
            before = state(net, x)
            for target in (1, ak.Unit("block.conv1", 0)):
                message = None
                try:
                    call(net, x, method, target)
                except (Boom, KeyboardInterrupt) as caught:
                    message = str(caught)
                assert message in (None, "raised while attaching")
                raised += message is not None
                assert_same(state(net, x), before)
    if method != "occlusion":
        assert raised > 0, "the walk attaches no hook: inject elsewhere"


def test_after_refused_arguments():
    net, x = make_net(), make_inputs()
    before = state(net, x)
    for arguments in ({"target": 99}, {"target": ak.Unit("nowhere", 0)}, {"options": 1}, {"method": "none"}):
        with pytest.raises(ak.AttribkitError):
            ak.attribute(net, x, **arguments)
        assert_same(state(net, x), before)


def test_after_a_strict_refusal_and_a_warning():
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3)), make_inputs()
    before = state(net, x)
    with pytest.raises(ak.AttribkitError):
        ak.attribute(net, x, method="deconvnet", strict=True)
    assert_same(state(net, x), before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ak.CoverageWarning):
            ak.attribute(net, x, method="guided_backprop")
    assert_same(state(net, x), before)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, contextlib.nullcontext])
@pytest.mark.parametrize("method", METHODS)
def test_inside_modes_without_grad(method, mode):
    net, x = make_net(), make_inputs()
    expected = {name: call(net, x, method, TARGETS[name]) for name in TARGETS}
    with mode():
        inputs = make_inputs() if mode is contextlib.nullcontext else make_inputs().detach().clone()
        assert inputs.is_inference() == (mode is torch.inference_mode)
        for name, target in TARGETS.items():
            for given in (x, inputs):
                modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
                found = call(net, given, method, target)
                assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == modes
                assert torch.equal(found.values, expected[name].values)
        with pytest.raises(ak.AttribkitError):
            call(net, x, method, 99)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == modes
    torch.randn(2, requires_grad=True).sum().backward()  # grad works as before


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_starts_in_place_does_not_change_the_inputs(method):
    torch.manual_seed(0)
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
    x = make_inputs().detach()
    kept = x.clone()
    assert (x < 0).any()
    before = state(net, x)
    for target in TARGETS.values():
        if not isinstance(target, ak.Unit):
            assert call(net, x, method, target).values.any()
    assert call(net, x, method, ak.Unit("0", 1)).values.any()
    ak.inspect(net, x, method=method)
    assert torch.equal(x, kept)
    assert_same(state(net, x), before)


class Hiding(nn.Module):
    """Keeps a part where no module is looked for, but names its parameters."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.parts = [nn.Conv2d(3, 5, 3)]

    def named_parameters(self, *args, **kwargs):
        return self.parts[0].named_parameters(*args, **kwargs)

    def forward(self, x):
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        return self.parts[0](x).relu().mean((2, 3))


@pytest.mark.parametrize("method", METHODS)
def test_parameters_that_only_the_model_names(method):
    net, x = Hiding(), make_inputs()
    call(net, x, method)
    assert all(parameter.requires_grad for parameter in net.parameters())


class Restless(nn.Module):
    """Draws random numbers and keeps records as it runs, also in eval mode."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu = nn.Conv2d(3, 2, 3), nn.ReLU()
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("last", torch.zeros(2))

    def forward(self, x):
        self.calls += 1
        torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
        x = self.relu(self.conv(x)).mean((2, 3))
        self.last = x.detach().mean(0)
        return x


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_draws_random_numbers_and_keeps_records(method):
    net, x = Restless(), make_inputs()
    before = state(net, x)
    net(x)
    with pytest.raises(AssertionError):
        assert_same(state(net, x), before)
    net = Restless()
    before = state(net, x)
    for target in (1, ak.Unit("relu", 0)):
        call(net, x, method, target)
        assert_same(state(net, x), before)


class _Interrupted:
    """Progress bars that raise at a step, as Ctrl-C does at a moment of its choice."""

    def __init__(self, step):
        self.left = step

    def add_task(self, description, *, total):
        return 0

    def advance(self, task):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt

    def remove_task(self, task):
        pass


@pytest.mark.parametrize("engine", ["incremental", "full"])
@pytest.mark.parametrize("step", range(5))
def test_after_an_interrupt_that_somebody_keeps(step, engine):
    """What a kept traceback holds on to ends long after the call: then, too, torch's modes are the caller's."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(196, 3)).eval()
    x = torch.rand(1, 3, 30, 30)
    before = state(net, x)
    options = {"window": 3, "stride": 3, "engine": engine, "max_batch_bytes": 200_000}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = None
        try:
            with progress.told(_Interrupted(step)):
                ak.attribute(net, x, "occlusion", 1, **options)
        except KeyboardInterrupt as error:
            kept = error
    assert kept is not None
    assert_same(state(net, x), before)
    del kept
    gc.collect()
    assert_same(state(net, x), before)
    assert torch.is_grad_enabled()
    assert torch._C._is_torch_function_enabled()


class Writes(nn.Module):
    """Writes to itself in its forward, in the way that ``how`` names."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.conv = nn.Conv2d(3, 4, 3)
        self.p, self.q = nn.Parameter(torch.rand(4) + 1), nn.Parameter(torch.rand(4) + 1)
        self.register_buffer("seen", torch.empty(0))
        self.register_buffer("runs", torch.zeros(2))
        self.register_buffer("eye", torch.eye(4).to_sparse())
        self.register_buffer("rows", torch.eye(4).to_sparse_csr())

    def forward(self, x):
        y = torch.relu(self.conv(x))
        self.runs.add_(1)
        if self.how == "resizes a buffer":
            self.seen.resize_(4).copy_(y.detach().amax((0, 2, 3)))
        elif self.how == "gives a buffer other memory":
            self.seen.data = torch.ones(7)
        elif self.how == "writes to many at once":
            with torch.no_grad():
                torch._foreach_mul_([self.p, self.q], 0.5)
        elif self.how == "takes a step":
            with torch.enable_grad():
                loss = (self.p * self.q).sum()
                gradients = torch.autograd.grad(loss, [self.p, self.q])
            self.p.grad, self.q.grad = gradients
            torch.optim.Adam([self.p, self.q], lr=0.1, foreach=True).step()
        elif self.how == "replaces a parameter":
            self.p = nn.Parameter(self.p.detach() * 0.5)
        elif self.how == "replaces a buffer":
            self.runs = torch.ones(3)
        elif self.how == "writes to a sparse buffer":
            self.eye.mul_(2)
            self.rows.values().mul_(2)
        scores = y.mean((2, 3)) * self.p * self.q
        return torch.sparse.mm(self.eye, scores.T).T + torch.sparse.mm(self.rows, scores.T).T


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    "how",
    [
        "resizes a buffer",
        "gives a buffer other memory",
        "writes to many at once",
        "takes a step",
        "replaces a parameter",
        "replaces a buffer",
        "writes to a sparse buffer",
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_writes_to_itself(method, how, fails):
    model, x = Writes(how).eval(), torch.randn(2, 3, 8, 8)
    target = (lambda outputs: outputs.no_such_attribute) if fails else 1
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {name: (tensor.shape, tensor.to_dense().detach().clone()) for name, tensor in tensors.items()}
    with pytest.raises(AttributeError) if fails else contextlib.nullcontext():
        ak.attribute(model, x, method, target, **OPTIONS.get(method, {}))
    after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        assert tensor is tensors[name]
        assert tensor.shape == before[name][0]
        assert torch.equal(tensor.to_dense(), before[name][1])
        assert tensor.grad is None


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_a_sparse_parameter():
    model = Writes("").eval()
    model.eye = None
    del model._buffers["eye"]
    model.eye = nn.Parameter(torch.eye(4).to_sparse())
    found = ak.attribute(model, torch.randn(2, 3, 8, 8), "gradient", 1)
    assert found.values.any()
    assert torch.equal(model.eye.detach().to_dense(), torch.eye(4))
