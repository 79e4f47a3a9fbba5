"""Many units of one layer carried back after one forward pass: on rectangles where that is known, else by autograd."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attribkit.engine import coverage
from attribkit.engine.invert import Inverted, leaf, up
from attribkit.engine.patches import Axis, Patch
from attribkit.engine.table import Table
from attribkit.engine.tape import Tape, Unknown, read
from attribkit.errors import ModelError
from attribkit.targets import PendingTarget, Unit, UnitTarget

#: How many elements the largest patch of a batch may have: more at once is no faster, and falls out of the caches.
_ELEMENTS = 1 << 24


def project_units(
    model: nn.Module,
    inputs: Tensor,
    layer: str,
    channels: Sequence[int],
    position: object,
    table: Table,
    *,
    unit_signal: str = "one",
    layout: str | None = None,
    chunk: int = 16,
) -> tuple[Inverted, tuple[Unit, ...]]:
    """Carry many units of one layer back after one forward pass.

    Parameters
    ----------
    model, inputs, table, unit_signal
        As for `attribkit.engine.invert.invert`.
    layer, channels, position, layout
        The units: see `attribkit.Unit`.
    chunk
        How many units autograd carries at once (memory grows with it), where the signals are not rectangles.
    """
    units = [Unit(layer, channel, position, layout) for channel in channels]  # type: ignore[arg-type]
    x = leaf(inputs)
    walk, _ = up(model, x, table, layer)
    captured = walk.catch(layer)
    coverage.note(walk.sites, walk.rewritten, complete=walk.complete)
    targets = [PendingTarget(unit, len(inputs)).resolve(captured, model) for unit in units]
    scores = torch.stack([target.read(captured).detach() for target in targets], 1)
    if not captured.value.requires_grad:
        raise ModelError(f"layer {layer!r} does not depend on the inputs")
    values = None
    singles = [t for t in targets if isinstance(t, UnitTarget) and t.positions is not None and t.layout == "NCHW"]
    if walk.plain_graph and len(singles) == len(targets):
        chosen = torch.tensor([t.unit.channel for t in singles], device=x.device)[:, None].expand(-1, len(x))
        places = torch.stack([t.positions for t in singles])  # type: ignore[misc]
        values = _on_rectangles(captured.value, x, chosen, places, scores.T if unit_signal == "activation" else None)
    if values is None:
        starts = [target.start(captured, None, unit_signal)[1] for target in targets]
        try:
            values = _by_autograd(captured.value, x, starts, chunk, batched=table.all_batched())
        except RuntimeError as error:
            if type(error) is not RuntimeError:  # not torch's own
                raise
            # the model may write over what autograd keeps; a lean pass, as `invert` makes it, keeps no activations
            x = leaf(inputs)
            again, _ = up(model, x, table, layer, lean=True)
            values = _by_autograd(again.catch(layer).value, x, starts, chunk, batched=False)
    return Inverted(values, scores, None), tuple(target.describe() for target in targets)


def project_rows(
    model: nn.Module,
    inputs: Tensor,
    layer: str,
    channels: Tensor,
    positions: Tensor,
    table: Table,
    *,
    unit_signal: str = "one",
) -> Tensor | None:
    """Carry one unit of each sample back, on rectangles: [N, C, H, W]; None where that is not known to be right.

    Parameters
    ----------
    model, inputs, layer, table, unit_signal
        As for `project_units`; the layer's output must be [N, channels, rows, columns].
    channels, positions
        Each sample's unit: LongTensors [N], the position counted row by row.
    """
    x = leaf(inputs)
    walk, _ = up(model, x, table, layer)
    value = walk.catch(layer).value
    coverage.note(walk.sites, walk.rewritten, complete=walk.complete)
    if value.ndim != 4 or not value.requires_grad or not walk.plain_graph:
        return None
    activations = None
    if unit_signal == "activation":
        rows = torch.arange(len(value), device=value.device)
        activations = value.detach().flatten(2)[rows, channels, positions][None]
    found = _on_rectangles(value, x, channels[None], positions[None], activations)
    return None if found is None else found[:, 0]


# -- on rectangles -----------------------------------------------------------------------------------------------------


def _on_rectangles(
    value: Tensor, x: Tensor, channels: Tensor, positions: Tensor, activations: Tensor | None
) -> Tensor | None:
    """Return the maps [N, K, C, H, W] of K units a sample, None where the way back holds something that is not known.

    Parameters
    ----------
    value, x
        The layer's output, [N, channels, rows, columns], and the leaf.
    channels, positions
        The units, LongTensors [K, N]; positions are counted row by row.
    activations
        [K, N]: what the signals start as; None: 1.
    """
    if value.ndim != 4 or x.ndim != 4:
        return None
    try:
        return _on_tape(read(value, x), x, value, channels, positions, activations)
    except Unknown:
        return None


def _on_tape(
    tape: Tape, x: Tensor, value: Tensor, channels: Tensor, positions: Tensor, activations: Tensor | None
) -> Tensor:
    """Do the same along a way back that is known."""
    out = x.new_zeros((len(x), len(channels), *x.shape[1:]))
    # units near the border have smaller rectangles: with their like they need not be carried in larger ones
    height, width = value.shape[2:]
    apart = (positions // width * 2 + 1 - height).abs() / height + (positions % width * 2 + 1 - width).abs() / width
    order = apart.sum(1).argsort(stable=True).tolist()
    with torch.no_grad():
        # the first unit alone shows how large the patches become
        first, count = 0, 1
        while first < len(order):
            part = order[first : first + count]
            signals = None if activations is None else activations[part]
            out[:, part], largest = _carry_patch(tape, x, value, channels[part], positions[part], signals)
            first += count
            count = max(1, _ELEMENTS // largest) if count == 1 else count
    return out


def _carry_patch(
    tape: Tape, x: Tensor, value: Tensor, channels: Tensor, positions: Tensor, activations: Tensor | None
) -> tuple[Tensor, int]:
    """Return the maps of some units [N, K, C, H, W] and the most elements that were carried at once."""
    samples, height, width = len(value), value.shape[2], value.shape[3]
    count = positions.numel()
    seed = value.new_zeros((count, value.shape[1], 1, 1))
    start = value.new_ones(()) if activations is None else activations.reshape(-1, 1)
    seed[:, :, 0, 0].scatter_(1, channels.reshape(-1, 1).to(value.device), start.expand(count, 1))
    places = positions.flatten().tolist()
    rows = Axis(tuple(place // width for place in places), 1, height)
    columns = Axis(tuple(place % width for place in places), 1, width)
    patch, largest = tape.back(Patch(seed, rows, columns))
    out = x.new_zeros((samples, len(channels), *x.shape[1:]))
    if patch is None:
        return out, largest
    down = patch.rows.overlaps((0,) * len(places), patch.rows.size)
    across = patch.columns.overlaps((0,) * len(places), patch.columns.size)
    for j, found in enumerate(patch.values):
        out[j % samples, j // samples, :, down[j][1], across[j][1]] = found[:, down[j][0], across[j][0]]
    return out, largest


# -- by autograd -------------------------------------------------------------------------------------------------------


def _by_autograd(origin: Tensor, x: Tensor, signals: list[Tensor], chunk: int, *, batched: bool) -> Tensor:
    """Return the maps [N, K, C, H, W] of K signals, so many at once, or one after the other."""
    maps: list[Tensor] = []
    batched = batched and len(signals) > 1
    for start in range(0, len(signals), chunk):
        found, batched = _carry_many(origin, x, torch.stack(signals[start : start + chunk]), batched)
        maps.append(found)
    return torch.cat(maps).transpose(0, 1).contiguous()


def _carry_many(origin: Tensor, x: Tensor, signals: Tensor, batched: bool) -> tuple[Tensor, bool]:
    """Return the maps [K, N, C, H, W] of K signals, and whether they could be carried at once."""

    def back(signal: Tensor) -> Tensor:
        (values,) = torch.autograd.grad(origin, x, signal, retain_graph=True, allow_unused=True)
        return torch.zeros_like(x) if values is None else values

    if batched:
        try:
            # torch.func's vmap, not `is_grads_batched`: that one lacks batching rules for many view operations
            with quiet_vmap():
                return torch.func.vmap(back)(signals).detach(), True
        except RuntimeError:
            pass  # the model has a derivative that takes one signal at a time; a fault of its own shows again below
    return torch.stack([back(signal) for signal in signals]).detach(), False


@contextmanager
def quiet_vmap() -> Iterator[None]:
    """Keep vmap from warning that an operation without a batching rule is slow: it is as fast as one by one."""
    functorch: Any = torch._C._functorch
    functorch._set_vmap_fallback_warning_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_warning_enabled(True)  # torch's default; it cannot be asked
