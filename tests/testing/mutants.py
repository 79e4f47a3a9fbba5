"""Faulty methods and faulty engines, each with the name of the check that must catch it."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from right_methods import InputXGradient, RandomMasks
from torch import nn

import attribkit as ak
from attribkit import targets
from attribkit.builtin import occlusion
from attribkit.builtin.deconvnet import Deconvnet
from attribkit.builtin.gradient import Gradient
from attribkit.builtin.guided_backprop import GuidedBackprop
from attribkit.builtin.occlusion import Occlusion
from attribkit.engine import hooks, inverse, layers, splice, state, table, walk


@dataclass(frozen=True)
class Mutant:
    """A faulty method, or a right one on a faulty engine."""

    name: str
    caught_by: str
    make: Callable[[], contextlib.AbstractContextManager[ak.Method]]


MUTANTS: dict[str, Mutant] = {}


def caught_by(check):
    """Register a faulty method's class, or a generator that patches the engine and yields a method."""

    def register(thing):
        if isinstance(thing, type):
            make = contextlib.contextmanager(lambda: (yield thing()))
            name = thing.__name__
        else:
            make, name = contextlib.contextmanager(thing), thing.__name__
        MUTANTS[name] = Mutant(name, check, make)
        return thing

    return register


def gradient_of(target, model, inputs, scale=None):
    x = inputs.detach().requires_grad_()
    scores = target.scores(model, x)
    return torch.autograd.grad((scores if scale is None else scores * scale).sum(), x)[0]


class Plain(ak.Method):
    """The gradient, in free form; the faults below are added to it."""

    name = "plain"
    summary = "The gradient"
    tags = {"deterministic"}

    def attribute(self, model, inputs, target, **options):
        return gradient_of(target, model, inputs)


# -- rectifiers --------------------------------------------------------------------------------------------------------


class _Carry(ak.InverseLayer):
    """An inverse layer from a function."""

    needs = {"input", "output"}
    ordinary = False

    def __init__(self, function, ordinary=False):
        self.function = function
        self.ordinary = ordinary

    def carry(self, signal, site):
        return self.function(signal, site)


def guided_with(function):
    class Faulty(GuidedBackprop):
        inverse_layers = {"rectifier": _Carry(function)}

    return Faulty()


def deconvnet_with(kind, function, ordinary=False):
    class Faulty(Deconvnet):
        inverse_layers = {**Deconvnet.inverse_layers, kind: _Carry(function, ordinary)}

    return Faulty()


@caught_by("check_equals_guided_backprop")
def guided_without_rectification() -> Iterator[ak.Method]:
    yield guided_with(lambda signal, site: site.plain(signal))


@caught_by("check_equals_guided_backprop")
def guided_with_the_mask_of_the_wrong_side() -> Iterator[ak.Method]:
    yield guided_with(lambda signal, site: signal.clamp(min=0) * (site.input < 0))


@caught_by("check_equals_guided_backprop")
def guided_with_a_hard_mask_for_every_rectifier() -> Iterator[ak.Method]:
    yield guided_with(lambda signal, site: signal.clamp(min=0) * (site.input > 0))


@caught_by("check_equals_guided_backprop")
def guided_keeps_the_negative_part() -> Iterator[ak.Method]:
    yield guided_with(lambda signal, site: site.plain(signal.clamp(max=0)))


@caught_by("check_equals_guided_backprop")
class GuidedRectifiesGates(GuidedBackprop):
    inverse_layers = {"rectifier": layers.GatedRectify(), "gate": layers.GatedRectify()}


@caught_by("check_equals_guided_backprop")
class GuidedByTensorHooks(ak.Method):
    """Rectifies what arrives at the value before a ReLU, other branches' gradients included."""

    name = "guided_backprop"
    summary = "Guided backprop by hooks on tensors"

    def attribute(self, model, inputs, target, **options):
        handles = []

        def before(module, args):
            x = args[0].clone() if module.inplace else args[0]
            if x.requires_grad:
                x.register_hook(lambda grad: grad.clamp(min=0))
            return (x,)

        try:
            for module in model.modules():
                if isinstance(module, nn.ReLU):
                    handles.append(module.register_forward_pre_hook(before))
            return gradient_of(target, model, inputs)
        finally:
            for handle in handles:
                handle.remove()


@caught_by("check_writings")
class GuidedForReluModulesOnly(ak.Method):
    """What is written as a function stays untouched, and nobody is told."""

    name = "guided_relu_modules"
    summary = "Guided backprop for modules of class nn.ReLU"
    tags = {"inverse", "deterministic"}

    def attribute(self, model, inputs, target, **options):
        handles = []

        def after(module, args, output):
            output = output.clone()
            if output.requires_grad:
                output.register_hook(lambda grad: grad.clamp(min=0))
            return output

        try:
            for module in model.modules():
                if isinstance(module, nn.ReLU):
                    handles.append(module.register_forward_hook(after))
            return gradient_of(target, model, inputs)
        finally:
            for handle in handles:
                handle.remove()


@caught_by("check_equals_deconvnet")
class DeconvnetWithForwardMask(Deconvnet):
    inverse_layers = {**Deconvnet.inverse_layers, "rectifier": layers.GatedRectify()}


@caught_by("check_equals_deconvnet")
class DeconvnetUnitStartsFromOne(Deconvnet):
    unit_signal = "one"


@caught_by("check_equals_deconvnet")
class DeconvnetThroughContrastNorm(Deconvnet):
    inverse_layers = {"rectifier": layers.Rectify(), "max_pool": layers.Unpool()}


@caught_by("check_equals_deconvnet")
def deconvnet_skips_batch_norm() -> Iterator[ak.Method]:
    yield deconvnet_with("batch_norm", lambda signal, site: signal)


# -- pools -------------------------------------------------------------------------------------------------------------


def _placed(signal, site, switches, *, add=True):
    shape = site.input_shapes[0]
    empty = signal.new_zeros(shape).flatten(-2)
    put = empty.scatter_add if add else empty.scatter
    return put(-1, switches.flatten(-2), signal.flatten(-2)).reshape(shape)


@caught_by("check_switches")
def switches_off_by_one() -> Iterator[ak.Method]:
    def carry(signal, site):
        size = site.input_shapes[0][-2:].numel()
        return _placed(signal, site, (site.switches + 1).clamp(max=size - 1))

    yield deconvnet_with("max_pool", carry, ordinary=True)


@caught_by("check_switches")
def last_maximum_on_ties() -> Iterator[ak.Method]:
    def faulty(operation, function, args, kwargs):
        values, switches, pair = original(operation, function, args, kwargs)
        bound = operation.bind(args, kwargs)
        bound.pop("return_indices", None)
        x = bound.pop("input").detach()
        flipped = getattr(F, operation.name)(x.flip((-1, -2)), **bound, return_indices=True)[1].flip((-1, -2))
        # only where windows lie the same way from both ends
        return values, x[0, 0].numel() - 1 - flipped if flipped.shape == switches.shape else switches, pair

    original = splice.pool_with_switches
    with mock.patch.object(splice, "pool_with_switches", faulty):
        yield Deconvnet()


@caught_by("check_switches")
def signal_spread_over_the_map() -> Iterator[ak.Method]:
    def carry(signal, site):
        return site.plain(signal).mean((-1, -2), keepdim=True).expand(site.input_shapes[0]).clone()

    yield deconvnet_with("max_pool", carry, ordinary=True)


@caught_by("check_stale_switches")
def switches_of_the_first_call() -> Iterator[ak.Method]:
    first = {}

    def carry(signal, site):
        key = (site.name, site.input_shapes, tuple(signal.shape))
        return _placed(signal, site, first.setdefault(key, site.switches))

    yield deconvnet_with("max_pool", carry, ordinary=True)


@caught_by("check_unpool_adds")
def unpooling_overwrites() -> Iterator[ak.Method]:
    yield deconvnet_with(
        "max_pool", lambda signal, site: _placed(signal, site, site.switches, add=False), ordinary=True
    )


@caught_by("check_unpool_is_undone_by_pool")
def unpooling_halves() -> Iterator[ak.Method]:
    yield deconvnet_with("max_pool", lambda signal, site: _placed(signal, site, site.switches) / 2, ordinary=True)


# -- linear operations -------------------------------------------------------------------------------------------------


@caught_by("check_adjointness")
def filters_unflipped() -> Iterator[ak.Method]:
    def carry(signal, site):
        with torch.enable_grad():
            x = site.input.detach().requires_grad_()
            p = site.params
            turned = p["weight"].flip((-1, -2))
            y = F.conv2d(x, turned, None, p["stride"], p["padding"], p["dilation"], p["groups"])
            return torch.autograd.grad(y, x, signal)[0]

    yield deconvnet_with("conv", carry, ordinary=True)


@caught_by("check_equals_deconvnet")
def bias_carried_back() -> Iterator[ak.Method]:
    def carry(signal, site):
        bias = site.params["bias"]
        if bias is None:
            return site.plain(signal)
        return site.plain(signal - bias.reshape(-1, *[1] * (signal.ndim - 2)))

    yield deconvnet_with("conv", carry, ordinary=True)


@caught_by("check_plain_without_rectifiers")
def average_pools_rectified() -> Iterator[ak.Method]:
    yield deconvnet_with("avg_pool", lambda signal, site: site.plain(signal.clamp(min=0)), ordinary=True)


@caught_by("check_equals_autograd")
class GradientOfTheWrongSign(Gradient):
    def attribute(self, model, inputs, target, **options):
        return -super().attribute(model, inputs, target)


@caught_by("check_finite_differences")
class GradientOfHalfTheScore(Gradient):
    def attribute(self, model, inputs, target, **options):
        return super().attribute(model, inputs, target) / 2


# -- batches -----------------------------------------------------------------------------------------------------------


@caught_by("check_batch_independence")
class ScaledByBatchSize(Plain):
    def attribute(self, model, inputs, target, **options):
        return super().attribute(model, inputs, target) / len(inputs)


@caught_by("check_batch_independence")
class ScaledByTheBatchMaximum(Plain):
    def attribute(self, model, inputs, target, **options):
        values = super().attribute(model, inputs, target)
        return values / values.abs().max().clamp(min=1e-12)


@caught_by("check_batch_independence")
class BatchMixed(Plain):
    def attribute(self, model, inputs, target, **options):
        values = super().attribute(model, inputs, target)
        return 0.9 * values + 0.1 * values.mean(0, keepdim=True)


@caught_by("check_batch_permutation")
class WeighedByPlaceInTheBatch(Plain):
    def attribute(self, model, inputs, target, **options):
        places = torch.arange(len(inputs), dtype=inputs.dtype)
        return super().attribute(model, inputs, target) * (1 + 1e-3 * places[:, None, None, None])


@caught_by("check_batch_independence")
class FirstSamplesTargetForAll(Plain):
    def attribute(self, model, inputs, target, **options):
        x = inputs.detach().requires_grad_()
        scores = target.scores(model, x, torch.zeros(len(inputs), dtype=torch.long))
        return torch.autograd.grad(scores.sum(), x)[0]


@caught_by("check_batch_independence")
class OwnNoiseForEverySample(Plain):
    def attribute(self, model, inputs, target, *, seed=0):
        noise = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return gradient_of(target, model, inputs + 0.2 * noise.to(inputs))


# -- targets and inputs ------------------------------------------------------------------------------------------------


@caught_by("check_target_used")
class StrongestClassAlways(Plain):
    def attribute(self, model, inputs, target, **options):
        x = inputs.detach().requires_grad_()
        return torch.autograd.grad(model(x).amax(1).sum(), x)[0]


@caught_by("check_unit_used")
class ClassInPlaceOfUnit(Plain):
    def attribute(self, model, inputs, target, **options):
        if target.layer is None:
            return super().attribute(model, inputs, target)
        x = inputs.detach().requires_grad_()
        return torch.autograd.grad(model(x).amax(1).sum(), x)[0]


class _Rolled(nn.Module):
    """A model whose scores have moved on by a class."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).roll(1, 1)


@caught_by("check_right_class")
class ClassBeforeIt(Plain):
    def attribute(self, model, inputs, target, **options):
        return super().attribute(_Rolled(model) if target.layer is None else model, inputs, target)


@caught_by("check_right_class")
class ClassCountedFromTheEnd(Plain):
    def attribute(self, model, inputs, target, **options):
        if isinstance(target, targets.ClassTarget):
            with torch.no_grad():
                count = model(inputs).shape[1]
            target = replace(target, classes=count - 1 - target.classes)
        return super().attribute(model, inputs, target)


def _with_unit(change):
    class Faulty(Plain):
        tags = {"deterministic", "linear_in_seed"}

        def attribute(self, model, inputs, target, **options):
            if isinstance(target, targets.UnitTarget) and target.layout == "NCHW":
                with torch.no_grad():
                    shape = target.observe(model, inputs.clone()).value.shape
                target = change(target, shape)
            return super().attribute(model, inputs, target)

    return Faulty()


@caught_by("check_right_unit")
def channel_after_it() -> Iterator[ak.Method]:
    yield _with_unit(lambda t, shape: replace(t, unit=replace(t.unit, channel=(t.unit.channel + 1) % shape[1])))


@caught_by("check_right_unit")
def whole_map_in_place_of_unit() -> Iterator[ak.Method]:
    yield _with_unit(lambda t, shape: replace(t, positions=None))


@caught_by("check_right_unit")
def first_position_always() -> Iterator[ak.Method]:
    yield _with_unit(lambda t, shape: t if t.positions is None else replace(t, positions=0 * t.positions))


@caught_by("check_right_unit")
def row_and_column_exchanged() -> Iterator[ak.Method]:
    def exchanged(t, shape):
        if t.positions is None:
            return t
        row, column = t.positions // shape[3], t.positions % shape[3]
        return replace(t, positions=column.clamp(max=shape[2] - 1) * shape[3] + row.clamp(max=shape[3] - 1))

    yield _with_unit(exchanged)


@caught_by("check_right_unit")
def all_positions_taken_for_the_first() -> Iterator[ak.Method]:
    yield _with_unit(
        lambda t, shape: t if t.positions is not None else replace(t, positions=torch.zeros(t.size, dtype=torch.long))
    )


@caught_by("check_current_input")
class RemembersTheFirstMap(Plain):
    def __init__(self):
        self.known = {}

    def attribute(self, model, inputs, target, **options):
        key = (tuple(inputs.shape), str(target.describe()))
        if key not in self.known:
            self.known[key] = super().attribute(model, inputs, target)
        return self.known[key].clone()


# -- what is returned --------------------------------------------------------------------------------------------------


@caught_by("check_shape")
class ChannelsSummed(Plain):
    def attribute(self, model, inputs, target, **options):
        return super().attribute(model, inputs, target).sum(1)


@caught_by("check_shape")
class ReturnsTwoTensors(Plain):
    def attribute(self, model, inputs, target, **options):
        values = super().attribute(model, inputs, target)
        return values, values


@caught_by("check_dtype_and_device")
class ReturnsFloat32(Plain):
    def attribute(self, model, inputs, target, **options):
        return super().attribute(model, inputs, target).float()


@caught_by("check_precision")
class RoundedToFloat32OnTheWay(Plain):
    def attribute(self, model, inputs, target, **options):
        return super().attribute(model, inputs, target).float().to(inputs.dtype)


@caught_by("check_finite")
class DividedByItsLargestValue(Plain):
    def attribute(self, model, inputs, target, **options):
        values = super().attribute(model, inputs, target) * inputs
        return values / values.abs().amax((1, 2, 3), keepdim=True)


# -- seeds and signs ---------------------------------------------------------------------------------------------------


@caught_by("check_signed")
class SignLost(Plain):
    tags = {"signed", "deterministic"}

    def attribute(self, model, inputs, target, **options):
        return super().attribute(model, inputs, target).abs()


@caught_by("check_homogeneity")
class SignalCut(ak.InverseMethod):
    name = "signal_cut"
    summary = "A signal of at most one tenth"
    tags = {"inverse", "homogeneous"}
    inverse_layers = {"rectifier": _Carry(lambda signal, site: site.plain(signal.clamp(-0.1, 0.1)))}


@caught_by("check_additivity")
class GuidedCalledLinear(ak.InverseMethod):
    name = "guided_called_linear"
    summary = "Guided backprop that claims to be linear"
    tags = {"inverse", "linear_in_seed"}
    inverse_layers = {"rectifier": layers.GatedRectify()}


@caught_by("check_receptive_field")
class Blurred(Gradient):
    name = "blurred"

    def attribute(self, model, inputs, target, **options):
        return F.avg_pool2d(super().attribute(model, inputs, target), 3, 1, 1)


@caught_by("check_declaration")
class TagMisspelt(Plain):
    tags = {"determinstic"}


@caught_by("check_declaration")
class KindMisspelt(ak.InverseMethod):
    name = "kind_misspelt"
    summary = "Guided backprop, were it not for a letter"
    inverse_layers = {"rectifer": layers.GatedRectify()}


@caught_by("check_declaration")
class SiteNameAsAString(GuidedBackprop):
    inverse_layers = {**GuidedBackprop.inverse_layers, "features.0": layers.GatedRectify()}


@caught_by("check_declaration")
class UnitSignalMisspelt(Deconvnet):
    unit_signal = "activations"


# -- what is left behind -----------------------------------------------------------------------------------------------


@caught_by("check_model_untouched")
class HookLeft(Plain):
    def attribute(self, model, inputs, target, **options):
        list(model.modules())[-1].register_forward_hook(lambda module, args, output: None)
        return super().attribute(model, inputs, target)


@caught_by("check_model_untouched")
class BackwardFillsGradients(Plain):
    def attribute(self, model, inputs, target, **options):
        x = inputs.detach().clone().requires_grad_()
        target.scores(model, x).sum().backward()
        return x.grad


@caught_by("check_model_untouched")
class ParametersFrozen(Plain):
    def attribute(self, model, inputs, target, **options):
        model.requires_grad_(False)
        return super().attribute(model, inputs, target)


@caught_by("check_model_untouched")
class TrainFlagLeft(Plain):
    def attribute(self, model, inputs, target, **options):
        values = super().attribute(model, inputs, target)
        model.train()
        return values


@caught_by("check_deterministic")
class RunsInTrainMode(Plain):
    def attribute(self, model, inputs, target, **options):
        for module in model.modules():
            module.training = isinstance(module, nn.Dropout)
        try:
            return super().attribute(model, inputs, target)
        finally:
            model.eval()


@caught_by("check_model_untouched")
class InplaceSwitchedOff(Plain):
    def attribute(self, model, inputs, target, **options):
        for module in model.modules():
            if getattr(module, "inplace", False):
                module.inplace = False
        return super().attribute(model, inputs, target)


@caught_by("check_model_untouched")
class ModulesReplaced(Plain):
    def attribute(self, model, inputs, target, **options):
        for name, module in list(model.named_children()):
            if isinstance(module, nn.Flatten):
                setattr(model, name, nn.Flatten())
        return super().attribute(model, inputs, target)


@caught_by("check_inputs_untouched")
class RequiresGradLeft(Plain):
    def attribute(self, model, inputs, target, **options):
        inputs.requires_grad_()
        return torch.autograd.grad(target.scores(model, inputs).sum(), inputs)[0]


@caught_by("check_inputs_untouched")
class InputsScaledInPlace(Plain):
    def attribute(self, model, inputs, target, **options):
        with torch.no_grad():
            inputs.mul_(0.5)
        return super().attribute(model, inputs, target)


@caught_by("check_generators_untouched")
class SeedsTheGlobalGenerator(Plain):
    def attribute(self, model, inputs, target, **options):
        torch.manual_seed(0)
        noise = torch.randn(inputs.shape[1:], dtype=inputs.dtype)
        return gradient_of(target, model, inputs + 0.1 * noise)


@caught_by("check_deterministic")
class NoiseFromTheGlobalGenerator(Plain):
    def attribute(self, model, inputs, target, **options):
        noise = torch.randn(inputs.shape[1:], dtype=inputs.dtype)
        return gradient_of(target, model, inputs + 0.1 * noise)


@caught_by("check_generators_untouched")
class GradModeLeft(Plain):
    def attribute(self, model, inputs, target, **options):
        torch.set_grad_enabled(True)
        values = super().attribute(model, inputs, target)
        torch.set_grad_enabled(False)
        return values


def _leaving(do):
    """Return a method that does something and leaves it at that."""

    class Leaving(Plain):
        def attribute(self, model, inputs, target, **options):
            values = super().attribute(model, inputs, target)
            do()
            return values

    return Leaving()


@caught_by("check_generators_untouched")
def default_dtype_left() -> Iterator[ak.Method]:
    yield _leaving(lambda: torch.set_default_dtype(torch.float64))


@caught_by("check_generators_untouched")
def default_dtype_put_back_to_float32() -> Iterator[ak.Method]:
    yield _leaving(lambda: torch.set_default_dtype(torch.float32))


@caught_by("check_generators_untouched")
def deterministic_mode_left() -> Iterator[ak.Method]:
    yield _leaving(lambda: torch.use_deterministic_algorithms(True))


@caught_by("check_generators_untouched")
def deterministic_mode_switched_off() -> Iterator[ak.Method]:
    yield _leaving(lambda: torch.use_deterministic_algorithms(False))


@caught_by("check_generators_untouched")
def numpy_seeded() -> Iterator[ak.Method]:
    yield _leaving(lambda: np.random.seed(0))  # noqa: NPY002


@caught_by("check_generators_untouched")
def random_seeded() -> Iterator[ak.Method]:
    yield _leaving(lambda: random.seed(0))


@caught_by("check_generators_untouched")
def threads_left() -> Iterator[ak.Method]:
    yield _leaving(lambda: torch.set_num_threads(2))


@caught_by("check_generators_untouched")
def numpy_told_to_raise() -> Iterator[ak.Method]:
    yield _leaving(lambda: np.seterr(all="raise"))


@caught_by("check_fault_leaves_nothing")
class HookLeftAfterAnException(Plain):
    def attribute(self, model, inputs, target, **options):
        handles = [module.register_forward_hook(lambda *call: None) for module in model.modules()]
        values = super().attribute(model, inputs, target)
        for handle in handles:
            handle.remove()
        return values


@caught_by("check_fault_leaves_nothing")
class ExceptionsSwallowed(Plain):
    def attribute(self, model, inputs, target, **options):
        try:
            return super().attribute(model, inputs, target)
        except Exception:
            return torch.zeros_like(inputs)


@caught_by("check_threads")
class StateOnTheMethod(InputXGradient):
    tags = {"thread_safe"}

    def attribute(self, model, inputs, target, **options):
        self.inputs = inputs
        values = gradient_of(target, model, inputs)
        return self.inputs * values


# -- perturbation ------------------------------------------------------------------------------------------------------


@caught_by("check_scores_only")
class RandomMasksWithGradient(RandomMasks):
    def attribute(self, model, inputs, target, *, masks=12, seed=0):
        return super().attribute(model, inputs, target) + 1e-3 * gradient_of(target, model, inputs)


@caught_by("check_equals_brute_force")
def border_windows_dropped() -> Iterator[ak.Method]:
    def faulty(size, window, stride):
        return [start for start in original(size, window, stride) if start == 0 or start + window <= size]

    original = occlusion.starts
    with mock.patch.object(occlusion, "starts", faulty):
        yield Occlusion()


@caught_by("check_equals_brute_force")
class OcclusionSummedNotAveraged(Occlusion):
    def attribute(self, model, inputs, target, *, window=None, stride=None, fill=0.0):
        values, extras = super().attribute(model, inputs, target, window=window, stride=stride, fill=fill)
        ones = torch.ones_like(inputs)
        count = super().attribute(nn.Flatten(), ones, _Sum(len(inputs)), window=window, stride=stride, fill=fill)[0]
        return values * (1 + (count > count.amin()).to(values)), extras


class _Sum:
    """A target that sums all pixels."""

    layer = None

    def __init__(self, size):
        self.size = size

    def kwargs_for(self, index):
        return {}

    def observe(self, model, x, index=None):
        return model(x)

    def read(self, observed, index=None):
        return observed.sum(1)


@caught_by("check_fill_like_the_image")
class OcclusionIgnoresFill(Occlusion):
    def attribute(self, model, inputs, target, *, window=None, stride=None, fill=0.0):
        return super().attribute(model, inputs, target, window=window, stride=stride, fill=0.7)


@caught_by("check_window_of_the_whole_image")
class OcclusionSkipsLargeWindows(Occlusion):
    def attribute(self, model, inputs, target, *, window=None, stride=None, fill=0.0):
        values, extras = super().attribute(model, inputs, target, window=window, stride=stride, fill=fill)
        too_large = window is not None and tuple(window) >= tuple(inputs.shape[-2:])
        return torch.zeros_like(values) if too_large else values, extras


# -- the engine --------------------------------------------------------------------------------------------------------


def _find_unless(skip):
    original = table.Table.find

    def find(self, name, kind, module=None, function=None):
        return None if skip(name, module) else original(self, name, kind, module, function)

    return mock.patch.object(table.Table, "find", find)


@caught_by("check_writings")
def engine_blind_to_functions() -> Iterator[ak.Method]:
    with _find_unless(lambda name, module: module is None):
        yield GuidedBackprop()


@caught_by("check_writings")
def engine_counts_a_reused_module_once() -> Iterator[ak.Method]:
    with _find_unless(lambda name, module: module is not None and name[-2:-1] == "_"):
        yield GuidedBackprop()


@caught_by("check_equals_guided_backprop")
def engine_knows_only_relu() -> Iterator[ak.Method]:
    with _find_unless(lambda name, module: "elu" not in name or "gelu" in name):
        yield GuidedBackprop()


@caught_by("check_writings")
def engine_forgets_in_place_operations() -> Iterator[ak.Method]:
    # what a layer kept is overwritten by the operation that follows
    with (
        mock.patch.object(splice, "is_in_place", return_value=False),
        mock.patch.object(inverse.Kept, "get", lambda self, what: self.tensor),
    ):
        yield guided_with(lambda signal, site: signal.clamp(min=0) * (1 + (site.input < 0)))


@caught_by("check_model_untouched")
def engine_leaves_hooks() -> Iterator[ak.Method]:
    with mock.patch.object(hooks, "_remove", return_value=None):
        yield Gradient()


@caught_by("check_equals_deconvnet")
def engine_starts_beside_the_unit() -> Iterator[ak.Method]:
    original = targets.unit_mask
    with mock.patch.object(targets, "unit_mask", lambda *call: original(*call).roll(1, -1)):
        yield Deconvnet()


@caught_by("check_batch_independence")
def engine_adds_up_the_batch() -> Iterator[ak.Method]:
    original = torch.Tensor.clamp

    def clamp(self, *args, **kwargs):
        found = original(self, *args, **kwargs)
        return found + 0.01 * found.sum(0, keepdim=True)

    with mock.patch.object(torch.Tensor, "clamp", clamp):
        yield GuidedBackprop()


@caught_by("check_threads")
def engine_hooks_act_in_every_thread() -> Iterator[ak.Method]:
    def ungated(original):
        def hook(self, *call):
            self._thread = threading.get_ident()
            return original(self, *call)

        return hook

    with (
        mock.patch.object(walk.Walk, "_enter", ungated(walk.Walk._enter)),
        mock.patch.object(walk.Walk, "_leave", ungated(walk.Walk._leave)),
    ):
        yield GuidedBackprop()


@caught_by("check_front_door")
def front_door_without_eval_mode() -> Iterator[ak.Method]:
    with mock.patch.object(state, "eval_mode", side_effect=lambda model: contextlib.nullcontext()):
        yield Plain()


@caught_by("check_save_and_load")
def saved_in_half_precision() -> Iterator[ak.Method]:
    from attribkit.attribution import Attribution

    original = Attribution.save

    def save(self, path):
        original(replace(self, values=self.values.half().to(self.values.dtype)), path)

    with mock.patch.object(Attribution, "save", save):
        yield Plain()


@caught_by("check_save_and_load")
def what_is_no_number_saved_as_zero() -> Iterator[ak.Method]:
    from attribkit.attribution import Attribution

    class Undefined(Plain):
        def attribute(self, model, inputs, target, **options):
            return super().attribute(model, inputs, target), {"ratio": torch.full((len(inputs),), torch.nan)}

    original = Attribution.save

    def save(self, path):
        original(replace(self, extras={key: value.nan_to_num() for key, value in self.extras.items()}), path)

    with mock.patch.object(Attribution, "save", save):
        yield Undefined()
