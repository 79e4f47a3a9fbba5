"""What a call may not change, as one comparable value; and a net on which every part of it can be seen."""

from __future__ import annotations

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

METHODS = ("gradient", "guided_backprop", "deconvnet", "occlusion")
OPTIONS = {"occlusion": {"window": 4, "stride": 2}}


class Block(nn.Module):
    """A reused in-place ReLU, a skip branch, a functional ReLU."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.conv1(x))
        out = self.norm(self.conv2(out))
        return self.relu(out + F.relu(x))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.act = nn.SiLU(inplace=True)
        self.block = Block()
        self.pool = nn.MaxPool2d(2)
        self.drop = nn.Dropout(0.5, inplace=True)
        self.head = nn.Linear(36, 5)

    def forward(self, x):
        x = self.pool(self.block(self.act(self.stem(x))))
        return self.head(self.drop(x.flatten(1)))


def make_net(seed=0):
    """A net in no uniform state: training flags, frozen parameters, gradients and hooks here and there."""
    torch.manual_seed(seed)
    net = Net()
    net.train()
    net.block.norm.eval()
    net.pool.eval()
    net.stem.weight.requires_grad_(False)
    net.head.weight.grad = torch.randn_like(net.head.weight)
    net.block.conv1.bias.grad = torch.zeros_like(net.block.conv1.bias)
    net.block.relu.register_forward_hook(_users_hook)
    net.head.register_forward_pre_hook(_users_hook)
    net.stem.note = "an attribute of the user's"
    return net


def make_inputs(seed=1):
    """A leaf that requires grad and has a gradient."""
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    x.grad = torch.full_like(x, 0.25)
    return x


def _users_hook(module, *args):
    return None


def _frozen(value):
    """A copy that compares by value for tensors and by identity for everything that could be swapped."""
    if isinstance(value, torch.Tensor):
        grad = None if value.grad is None else (id(value.grad), value.grad.tolist())
        return id(value), value.detach().tolist(), value.requires_grad, grad
    if isinstance(value, dict):
        return type(value), [(key, _frozen(item)) for key, item in value.items()]
    if isinstance(value, (bool, int, float, str, tuple, type(None))):
        return value
    return id(value)


def _model(model):
    return {
        name: (id(module), type(module), [(key, _frozen(value)) for key, value in vars(module).items()])
        for name, module in model.named_modules(remove_duplicate=False)
    }


def _classes(model):
    """Class attributes and functions that an interception might have replaced."""
    kinds = {type(module) for module in model.modules()} | {nn.Module, torch.Tensor}
    names = ("__call__", "_call_impl", "_wrapped_call_impl", "forward", "relu", "relu_", "register_forward_hook")
    replaced = {(kind, name): getattr(kind, name, None) for kind in kinds for name in names}
    functions = {name: getattr(F, name) for name in ("relu", "max_pool2d", "silu", "conv2d", "linear", "dropout")}
    functions |= {f"torch.{name}": getattr(torch, name) for name in ("relu", "relu_", "max_pool2d", "conv2d")}
    return replaced, functions


def _machine():
    hooks = nn.modules.module
    shared = [
        hooks._global_forward_hooks,
        hooks._global_forward_pre_hooks,
        hooks._global_backward_hooks,
        hooks._global_backward_pre_hooks,
        hooks._global_parameter_registration_hooks,
        hooks._global_module_registration_hooks,
    ]
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 (the state that must not change)
    return {
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "function modes": torch._C._len_torch_function_stack(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "global hooks": [list(each) for each in shared],
        "torch rng": torch.get_rng_state().tolist(),
        "numpy rng": (kind, keys.tolist(), rest),
        "python rng": random.getstate(),
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def state(model, *tensors):
    """Everything of DESIGN's list, to be compared before and after."""
    return {
        "model": _model(model),
        "classes": _classes(model),
        "inputs": [(_frozen(tensor), tensor.is_leaf, tensor._backward_hooks) for tensor in tensors],
        **_machine(),
    }


def assert_same(after, before):
    """Compare part by part, so that a failure names the part and not all of it."""
    for part, expected in before.items():
        if part != "model":
            assert after[part] == expected, part
    assert after["model"].keys() == before["model"].keys()
    for name, (identity, kind, attributes) in before["model"].items():
        assert after["model"][name][:2] == (identity, kind), name
        found = dict(after["model"][name][2])
        assert list(found) == [key for key, _ in attributes], f"attributes of {name!r}"
        for key, value in attributes:
            assert found[key] == value, f"{key} of {name!r}"
