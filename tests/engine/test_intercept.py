"""The interceptor hands on what only looks at a tensor, and to whom."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

import attribkit as ak
from attribkit.engine import guard
from attribkit.engine.intercept import only_our_modes
from attribkit.engine.walk import Walk


class Looks(nn.Module):
    """Looks at its input in every way before and after it computes with it."""

    def __init__(self, x=None):
        super().__init__()
        self.seen = []
        self.other = x

    def look(self, x):
        torch._assert(x.ndim > 1, "flat")
        self.seen.append(
            (x.shape, x.dtype, x.device, x.requires_grad, x.is_leaf, x.size(0), x.dim(), x.stride(), x.numel())
        )
        return x.is_floating_point()

    def forward(self, x):
        assert self.look(x)
        y = F.relu(x * 2)
        assert self.look(y)
        if self.other is not None:
            self.look(self.other)
        return y.flatten(1)


class Watching(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__self__.__name__ if func.__name__ == "__get__" else func.__name__)
        return func(*args, **(kwargs or {}))


LOOKS = ["_assert", "ndim", "shape", "dtype", "device", "requires_grad", "is_leaf", "size", "dim", "stride", "numel"]


def test_looks_tell_what_they_tell_otherwise():
    x = torch.ones(2, 3).requires_grad_()
    plain, walked = Looks(), Looks()
    plain(x)
    walk = Walk(walked, lean=True)
    walk.run(x)
    assert walked.seen == plain.seen
    assert [site.op for site in walk.sites if site.kind == "rectifier"] == ["relu()"]
    with pytest.raises(AssertionError, match="flat"):
        Walk(Looks()).run(torch.ones(3))


def test_the_guard_is_spared_them(monkeypatch):
    names = []
    inner = guard.WriteGuard.__torch_function__

    def noted(self, func, types, args=(), kwargs=None):
        names.append(getattr(func, "__name__", ""))
        return inner(self, func, types, args, kwargs)

    monkeypatch.setattr(guard.WriteGuard, "__torch_function__", noted)
    with guard.WriteGuard([]):
        Walk(Looks()).run(torch.ones(2, 3))
    assert names.count("__get__") <= 3  # our own, before the pass
    assert not {"_assert", "size", "dim", "stride", "numel"} & set(names)


def test_the_callers_mode_sees_them_all():
    with Watching() as mode:
        ak.attribute(Looks(), torch.ones(2, 3, 1, 1), "gradient", 1)
        assert not only_our_modes()
    assert only_our_modes()
    assert not [name for name in LOOKS if name not in mode.names]


def test_a_tensor_of_another_kind_answers_itself():
    asked = []

    class Asked(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            asked.append(func)
            return super().__torch_function__(func, types, args, kwargs)

    Walk(Looks(torch.ones(2, 3).as_subclass(Asked))).run(torch.ones(2, 3))
    assert torch.Tensor.ndim.__get__ in asked
    assert torch.Tensor.dim in asked
