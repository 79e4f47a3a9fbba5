"""The gradient, guided backprop and the deconvnet worked out explicitly, operation by operation.

Nothing here hooks, intercepts or differentiates a whole network: the network is data, every value is kept on the way
up, and the way back applies each operation's transpose written out. It shares no code with the engine that it judges.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attribkit.targets import Unit
from attribkit.testing.case import Case
from attribkit.testing.net import Net
from attribkit.testing.operations import KINDS, Op

RULES = ("gradient", "guided_backprop", "deconvnet")


def explain(case: Case, rule: str) -> Tensor:
    """Return the map [N, C, H, W] of a case by one of `RULES`.

    Parameters
    ----------
    case
        Network, images and target; how the network is written plays no part.
    rule
        ``"gradient"``, ``"guided_backprop"`` or ``"deconvnet"``.
    """
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")
    model = case.net.build("modules")
    values = forward(case.net, model, case.inputs())
    end = case.value if isinstance(case.target, Unit) else len(case.net.ops)
    return backward(case.net, model, values, end, start(case, values[end], rule), rule)


def forward(net: Net, model: nn.Module, inputs: Tensor) -> list[Tensor]:
    """Return all values of a network: the inputs, then every operation's output."""
    values = [inputs]
    with torch.no_grad():
        for each, function in zip(net.ops, net.functions(model), strict=True):
            values.append(function(*(values[i] for i in each.inputs)))
    return values


def start(case: Case, value: Tensor, rule: str) -> Tensor:
    """Return the signal that a target starts from: 1 at the class or unit, or the unit's own activation."""
    signal = torch.zeros_like(value)
    if not isinstance(case.target, Unit):
        signal[range(len(value)), list(case.target)] = 1.0
        return signal
    unit = case.target
    for sample in range(len(value)):
        feature_map = value[sample, unit.channel].reshape(-1)
        if unit.position == "all":
            places = list(range(len(feature_map)))
        elif unit.position == "max":
            numbers = feature_map.tolist()
            places = [numbers.index(max(numbers))]
        else:
            row, column = unit.position  # type: ignore[misc]
            places = [row * value.shape[-1] + column]
        signal[sample, unit.channel].view(-1)[places] = feature_map[places] if rule == "deconvnet" else 1.0
    return signal


def backward(net: Net, model: nn.Module, values: list[Tensor], end: int, signal: Tensor, rule: str) -> Tensor:
    """Carry a signal from value ``end`` back to the image."""
    signals: dict[int, Tensor] = {end: signal}
    functions = net.functions(model)
    for value in range(end, 0, -1):
        if value not in signals:
            continue
        each = net.ops[value - 1]
        module = getattr(model, f"{each.kind}{value}", None)
        taken = [values[i] for i in each.inputs]
        carried = _carry(each, module, functions[value - 1], taken, signals.pop(value), rule)
        for source, part in zip(each.inputs, carried, strict=True):
            signals[source] = signals[source] + part if source in signals else part
    return signals.get(0, torch.zeros_like(values[0]))


def _carry(
    each: Op, module: nn.Module | None, function: Callable[..., Tensor], taken: list[Tensor], signal: Tensor, rule: str
) -> list[Tensor]:
    x, role = taken[0], KINDS[each.kind].role
    if role == "rectifier" and rule != "gradient":
        signal = signal.clamp(min=0)
        return [signal] if rule == "deconvnet" else _derivative(function, taken, signal)
    if role == "contrast_norm" and rule == "deconvnet":
        return [signal]
    if isinstance(module, nn.Conv2d):
        return [_transposed(module, signal, x)]
    if isinstance(module, nn.Linear):
        return [signal @ module.weight.detach()]
    if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
        scale = module.weight.detach() / (module.running_var + module.eps).sqrt()
        return [signal * scale[:, None, None]]
    if role == "max_pool":
        return [unpool(signal, switches(x, each, signal.shape), x.shape)]
    if role == "sum":
        return [signal, -signal if each.kind == "difference" else signal]
    if role == "concat":
        return list(torch.split(signal, [t.shape[1] for t in taken], dim=1))
    if role == "product":
        return [(signal * other).sum_to_size(own.shape) for own, other in (taken, taken[::-1])]
    if each.kind == "flatten":
        return [signal.reshape(x.shape)]
    return _derivative(function, taken, signal)


def _derivative(function: Callable[..., Tensor], taken: list[Tensor], signal: Tensor) -> list[Tensor]:
    """Return the ordinary derivative of one operation on its own."""
    leaves = [t.detach().clone().requires_grad_() for t in taken]
    with torch.enable_grad():
        result = function(*leaves)
    return list(torch.autograd.grad(result, leaves, signal))


def _transposed(conv: nn.Conv2d, signal: Tensor, x: Tensor) -> Tensor:
    """Return the convolution's transpose applied to a signal: the filters turned round, and no bias."""
    pairs = zip(x.shape[2:], signal.shape[2:], conv.kernel_size, conv.stride, conv.padding, conv.dilation, strict=True)
    left_over = [
        size - ((count - 1) * stride - 2 * int(padding) + dilation * (kernel - 1) + 1)
        for size, count, kernel, stride, padding, dilation in pairs
    ]
    # what the last window did not reach gets nothing; a padding of the signal says the same where torch refuses it
    whole = F.conv_transpose2d(signal, conv.weight.detach(), None, conv.stride, 0, 0, conv.groups, conv.dilation)
    top, left = int(conv.padding[0]), int(conv.padding[1])
    height, width = x.shape[2:]
    whole = F.pad(whole, (0, max(0, left_over[1]), 0, max(0, left_over[0])))
    return whole[:, :, top : top + height, left : left + width]


def windows(each: Op, height: int, width: int, rows: int, columns: int) -> list[list[int]]:
    """Return for each output place, in row order, the flat places of the input that its window holds, in row order."""

    def along(size: int, count: int, axis: int) -> list[list[int]]:
        if each.get("kernel") is None:  # adaptive
            return [list(range(i * size // count, -(-(i + 1) * size // count))) for i in range(count)]
        kernel, stride = each.pair("kernel")[axis], each.pair("stride", 1)[axis]
        padding, dilation = each.pair("padding", 0)[axis], each.pair("dilation", 1)[axis]
        places = [[i * stride - padding + j * dilation for j in range(kernel)] for i in range(count)]
        return [[place for place in window if 0 <= place < size] for window in places]

    down, across = along(height, rows, 0), along(width, columns, 1)
    return [[y * width + x for y in window_y for x in window_x] for window_y in down for window_x in across]


@functools.lru_cache(maxsize=1024)
def _window_index(each: Op, height: int, width: int, rows: int, columns: int) -> Tensor:
    found = windows(each, height, width, rows, columns)
    longest = max(map(len, found))
    return torch.tensor([window + [height * width] * (longest - len(window)) for window in found])


def switches(x: Tensor, each: Op, out_shape: torch.Size) -> Tensor:
    """Return where each window's maximum is, the first on ties: flat places, of the output's shape."""
    height, width = x.shape[-2:]
    index = _window_index(each, height, width, out_shape[-2], out_shape[-1])
    padded = F.pad(x.flatten(2), (0, 1), value=-torch.inf)
    held = padded[:, :, index]
    first = (held == held.amax(-1, keepdim=True)).to(torch.uint8).argmax(-1)
    return index.expand(*first.shape, -1).gather(-1, first[..., None])[..., 0].reshape(out_shape)


def unpool(signal: Tensor, places: Tensor, shape: torch.Size) -> Tensor:
    """Put every value of a signal at its switch; values that share one add, everything else is zero."""
    result = torch.zeros(shape, dtype=signal.dtype)
    for flat, value, place in zip(
        result.view(-1, shape[-2] * shape[-1]),
        signal.reshape(-1, signal.shape[-2] * signal.shape[-1]),
        places.reshape(-1, signal.shape[-2] * signal.shape[-1]),
        strict=True,
    ):
        for one, where in zip(value, place.tolist(), strict=True):
            flat[where] += one
    return result
