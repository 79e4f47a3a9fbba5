"""What an inverse layer's `carry` may return."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import attribkit as ak
from attribkit.errors import MethodError

pytestmark = pytest.mark.usefixtures("one_thread")
X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4)).eval()


def method_of(kind, carry):
    class Carried(ak.InverseLayer):
        needs = {"input"}

        def __repr__(self):
            return "Carried()"

    Carried.carry = lambda self, signal, site: carry(signal, site)

    class Carrying(ak.InverseMethod):
        name = "carrying"
        summary = "Whatever a function carries"
        inverse_layers = {kind: Carried()}

    return Carrying


WRONG = {
    "bool": (lambda signal, site: signal > 0, r"returned a tensor of torch\.bool, but a signal has a floating dtype"),
    "int": (lambda signal, site: signal.long(), r"returned a tensor of torch\.int64, but a signal has a floating"),
    "complex": (lambda signal, site: signal * 1j, r"returned a tensor of torch\.complex64, but a signal has"),
    "shape": (lambda signal, site: signal[0], r"returned \(3, 6, 6\), but the site's input has shape \(2, 3, 6, 6\)"),
    "number": (lambda signal, site: 0.0, "returned float, but the site's input has shape"),
    "nothing": (lambda signal, site: None, "returned nothing"),
    "two": (lambda signal, site: (signal, signal), "returned 2 signals for 1 tensor inputs"),
}


@pytest.mark.parametrize(("carry", "words"), WRONG.values(), ids=WRONG)
def test_what_is_no_signal_is_refused(carry, words):
    method = method_of("rectifier", carry)
    with pytest.raises(MethodError, match=rf"^Carried\(\)\.carry at site '1'( \(rectifier\))? {words}") as caught:
        ak.attribute(net(), X, method, target=1)
    assert "\n" not in str(caught.value)
    with pytest.raises(MethodError, match=words):
        ak.project(net(), X, "1", [0, 1], method)


def test_no_signal_at_all_is_a_signal():
    assert not ak.attribute(net(), X, method_of("rectifier", lambda signal, site: (None,)), target=1).values.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_floating_dtype_is_cast(dtype):
    model = net()
    found = ak.attribute(model, X, method_of("rectifier", lambda signal, site: signal.to(dtype)), target=1)
    plain = ak.attribute(model, X, method_of("rectifier", lambda signal, site: signal), target=1)
    assert found.values.dtype == X.dtype
    torch.testing.assert_close(found.values, plain.values, rtol=0, atol=0.02)


def test_under_autocast_a_signal_passes_from_one_dtype_to_the_other():
    """A convolution's input is single, its output half: handing the signal on as it is stays right."""
    model, dtypes = net(), []

    def straight(signal, site):
        dtypes.append((signal.dtype, site.input.dtype))
        return signal

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ak.attribute(model, X, method_of("conv", straight), target=1)
    assert dtypes == [(torch.bfloat16, torch.float32)]
    assert found.values.dtype == torch.float32
    assert found.values.any()
