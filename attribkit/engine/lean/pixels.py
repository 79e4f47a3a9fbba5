"""Maps that lie pixel by pixel (channels last) from one convolution to the next.

Torch convolves each channel for itself faster in that order, and a model that is written without a word about it gets
its maps channel by channel. So they lie pixel by pixel between operations whose results are the same in either order,
sums found out with noise. Whatever else gets hold of such maps finds them as torch would have laid them out, and so
does everybody once the forward pass has ended.
"""

from __future__ import annotations

import contextlib
import functools
import math
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.weak import TensorWeakRef, WeakIdKeyDictionary

from attribkit.engine.intercept import only_our_modes
from attribkit.engine.known import is_compiled, is_known
from attribkit.engine.layers import OF_THE_ENGINE
from attribkit.engine.lean.leads import Leads
from attribkit.engine.lean.shortcuts import MOST, Settings, has_vectors, is_exact, torchs_back, torchs_up
from attribkit.engine.lean.standin import is_in_order, is_plain
from attribkit.engine.lean.step import Step
from attribkit.engine.lean.trials import noise, trial_of
from attribkit.engine.lean.weighted import SCALED, BatchNorm
from attribkit.engine.ops import functions_named
from attribkit.engine.splice import is_transformed

if TYPE_CHECKING:
    from torch import nn

    from attribkit.engine.lean.convolutions import Convolution
    from attribkit.engine.splice import FunctionCall
    from attribkit.engine.table import Table

#: Bytes of the larger of a convolution's input and output below which either order takes no time to speak of.
LARGE_ENOUGH = 1 << 22

#: For inputs of how many sizes a model's convolutions are tried: with images of ever other sizes it would not end.
SIZES = 4

#: What part of the bytes that torch would have laid out anew may be laid out anew all the same.
WORTH = 1 / 4

_ORDER = torch.channels_last
#: By model: the layers at which passes ended in which too much had to be laid out anew; None: to their end.
_in_vain = WeakIdKeyDictionary()
#: By model: the inputs of the first convolution in question that there have been.
_starts = WeakIdKeyDictionary()
#: By model: see `Leads`.
_leads = WeakIdKeyDictionary()


@functools.cache
def sums() -> frozenset[Any]:
    """Return the functions that add two tensors, by an operator or not, in place or not."""
    return frozenset(functions_named("add add_"))


def pixels_up(x: Tensor, weight: Tensor, settings: Settings) -> Tensor:
    """Convolve an input pixel by pixel."""
    return torchs_up(by_pixels(x), by_pixels(weight), settings)


def pixels_back(signal: Tensor, weight: Tensor, settings: Settings) -> Tensor:
    """Carry a signal back pixel by pixel."""
    return torchs_back(by_pixels(signal), by_pixels(weight), settings, _ORDER)


def by_pixels(tensor: Tensor) -> Tensor:
    """Return a tensor pixel by pixel, itself where it lies so."""
    return tensor.contiguous(memory_format=_ORDER)


class PixelConvolution(Step):
    """A convolution of maps that lie pixel by pixel: each channel for itself, 1×1, or one that comes before these.

    Parameters
    ----------
    weight
        [O, C / groups, kernel height, kernel width].
    settings
        Of the convolution.
    starts
        Whether its input lies channel by channel; the signal then leaves it so.
    """

    def __init__(self, weight: Tensor, settings: Settings, *, starts: bool) -> None:
        self.kept = (weight,)
        self.settings = settings
        self.starts = starts

    def run(self, call: FunctionCall) -> Tensor:
        """Run the operation."""
        return pixels_up(call.args[0], self.kept[0], self.settings)

    def back(self, signal: Tensor, kept: tuple[Tensor, ...], alone: bool = False) -> Tensor:
        """Convolve with the transposed weights."""
        if not is_plain(signal):
            return torchs_back(signal, kept[0], self.settings)
        found = pixels_back(signal, kept[0], self.settings)
        return found.contiguous() if self.starts else found


class Pixels:
    """The maps of one forward pass that lie pixel by pixel although torch would have laid them out otherwise.

    Parameters
    ----------
    model
        The model.
    modules
        All of its modules.
    table
        What is attached to it.
    end
        The layer at which the pass ends, None for its own end.

    Attributes
    ----------
    any : bool
        Whether there have been any yet.
    told : callable, or None
        Called with each map that is laid out as torch would have before the pass ends.
    """

    def __init__(self, model: nn.Module, modules: Iterable[nn.Module], table: Table, end: str | None) -> None:
        self.any = False
        self.told: Callable[[Tensor], None] | None = None
        self._model = weakref.ref(model)
        self._end = end
        self._possible = (
            only_our_modes()
            and not self._is_in_vain()
            and all(type(layer) in OF_THE_ENGINE for layer in table.layers())
            and is_exact()
            and has_vectors()
            and is_known(modules)
            and not any(map(is_compiled, modules))
        )
        self._maps: dict[int, TensorWeakRef] = {}
        self._leads = Leads(_leads.setdefault(model, {}))  # type: ignore[no-untyped-call]
        self._start: torch.Size | None = None  # the input of the first convolution in question
        self._was_met = False  # whether there has been such a pass before
        self._will_be_met = False  # whether the next one is to know of this one
        self._saved = 0  # bytes that torch would have laid out anew
        self._spent = 0  # bytes that are laid out anew on behalf of this

    def holds(self, tensor: Any) -> bool:
        """Tell whether a tensor is one of these maps."""
        ref = self._maps.get(id(tensor))
        return ref is not None and ref() is tensor

    # -- steps -----------------------------------------------------------------------------------------------------

    def convolution(self, step: Convolution, x: Tensor) -> Step | None:
        """Return the step to take in place of a convolution's; None where torch's order is as good, or the result's.

        Its input is laid out anew in the latter case.
        """
        (weight,) = step.kept
        settings = self._settings(step, x, weight)
        if settings is None:
            return None
        starts = not self.holds(x)
        size = torch.Size((len(x), len(weight), *settings.windows(weight.shape[2:])))
        moved = (x.numel() + size.numel()) * x.element_size()
        larger = max(x.numel(), size.numel()) * x.element_size()
        if larger < LARGE_ENOUGH or moved > MOST or size.numel() < SCALED or math.prod(size[2:]) == 1:
            return None
        gains = self._gains(step, weight, starts=starts)
        if gains:
            is_first = self._is_first(x.shape)
            if self._will_be_met:
                self._leads.arrives(x)
            if is_first:
                return None
        elif not starts or not self._leads_on(step, x, weight, size):
            return None
        for torchs, way, maps in ((torchs_up, pixels_up, x.shape), (torchs_back, pixels_back, size)):
            if trial_of(torchs, (way,), settings, maps, weight.shape, library=True).tried() is None:
                return None
        if gains:  # what comes before looks after itself
            self._saved += moved
            self._spent += x.numel() * x.element_size() if starts else 0
        return PixelConvolution(weight, settings, starts=starts)

    def _gains(self, step: Convolution, weight: Tensor, *, starts: bool) -> bool:
        """Tell whether a convolution itself is faster, or as fast where its input lies pixel by pixel as it is."""
        if step.groups == len(weight) > 1:
            return True
        pointwise = step.groups == 1 and weight.shape[2:] == (1, 1) and step.stride == [1, 1] and step.padding == [0, 0]
        return pointwise and not starts

    def _leads_on(self, step: Convolution, x: Tensor, weight: Tensor, size: torch.Size) -> bool:
        """Tell whether a convolution comes before such maps, and its input takes less to lay out than its output."""
        if step.groups > 1 or step.shortcut is not None or x.numel() >= size.numel():
            return False
        return self._leads.begins(x, weight)

    def _is_first(self, size: torch.Size) -> bool:
        """Tell whether this is the model's first pass on an input of its size: trials would take twice as long."""
        model = self._model()
        if self._start is None:
            known = _starts.setdefault(model, set())  # type: ignore[no-untyped-call]
            self._start, self._was_met = size, size in known
            if len(known) < SIZES:
                known.add(size)
            self._will_be_met = size in known
        return not self._was_met

    def _settings(self, step: Convolution, x: Tensor, weight: Tensor) -> Settings | None:
        """Return the settings of a convolution that may be taken pixel by pixel, None for others."""
        if not self._possible or x.ndim != 4 or x.device.type != "cpu" or x.dtype != torch.float32:
            return None
        if step.bias is not None or step.dilation != [1, 1] or not is_in_order(weight):
            return None
        held = self.holds(x)
        if not held and not is_in_order(x):  # somebody else has laid it out
            return None
        channels = x.shape[1]
        if channels == 1 or x.shape[2] * x.shape[3] == 1 or len(weight) == 1:  # either order is both
            return None
        if step.groups not in (1, channels):
            return None
        (down, right), (above, left), (height, width) = step.stride, step.padding, x.shape[2:]
        return Settings((down, right), (above, left), (height, width), step.groups)

    def follow(self, step: Step, x: Tensor, output: Tensor) -> None:
        """Take note of a step's output."""
        self._leads.follow(step, x, output)
        if step.by_pixels:
            self.note(output)

    def takes(self, step: Step, x: Tensor) -> bool:
        """Tell whether a step other than a convolution's takes these maps as they are."""
        return not isinstance(step, BatchNorm) or _is_same_norm(x.shape, torch.get_num_threads())

    # -- maps ------------------------------------------------------------------------------------------------------

    def meets(self, function: Any, args: Any, kwargs: Any) -> bool:
        """Lay out what a function is about to be given as it would be; tell whether it is a sum that need not be."""
        both = function in sums() and not kwargs and len(args) == 2 and all(map(self.holds, args))
        if both and args[0].shape == args[1].shape:  # else the way back adds up what was repeated, in another order
            return True
        self.restore_in(args, kwargs)
        return False

    def note(self, tensor: Any) -> None:
        """Note that a tensor may be such maps."""
        if isinstance(tensor, Tensor) and tensor.ndim == 4 and not tensor.is_contiguous():
            self.any = True
            self._maps[id(tensor)] = TensorWeakRef(tensor)

    def restore_in(self, *trees: Any) -> None:
        """Lay out these maps among arguments as torch would have."""
        if self._maps:
            for leaf in tree_leaves(trees):
                if isinstance(leaf, Tensor):
                    self.restore(leaf)

    def restore(self, tensor: Tensor) -> None:
        """Lay out a tensor as torch would have if it is one of these maps: its values stay, and so does its place."""
        if self.holds(tensor):
            del self._maps[id(tensor)]
            if not self._leads.ends(tensor):
                self._spent += tensor.numel() * tensor.element_size()
            # what the model has entered meanwhile would make another tensor of it
            with torch._C.DisableTorchFunction(), torch.inference_mode(False), _untransformed():
                tensor.data = tensor.detach().contiguous()
            if self.told is not None:
                self.told(tensor)

    def close(self) -> None:
        """Restore what is left at the end of the pass; note if it has not been worth it."""
        self.told = None
        for ref in list(self._maps.values()):
            tensor = ref()
            if tensor is not None:
                self.restore(tensor)
        self._maps.clear()
        self._leads.close()
        if self._spent > WORTH * self._saved > 0:
            self._give_up(self._end)

    @property
    def in_vain(self) -> bool:
        """Whether passes like this one are to go without some such maps from now on, which this one had."""
        return self.any and (self._is_in_vain() or self._leads.any_in_vain)

    def _is_in_vain(self) -> bool:
        return not _in_vain.get(self._model(), set()).isdisjoint({None, self._end})  # type: ignore[no-untyped-call]

    def give_up(self) -> None:
        """Have the model's next passes go without such maps."""
        self._give_up(None)

    def _give_up(self, end: str | None) -> None:
        model = self._model()
        if model is not None:
            _in_vain.setdefault(model, set()).add(end)  # type: ignore[no-untyped-call]


def _untransformed() -> contextlib.AbstractContextManager[Any]:
    """Return a context without the function transforms of torch.func that are under way."""
    if not is_transformed():
        return contextlib.nullcontext()
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    return temporarily_clear_interpreter_stack()


@functools.lru_cache(maxsize=256)
def _is_same_norm(shape: torch.Size, threads: int) -> bool:
    """Tell whether torch's batch norm gives the same bits in either order."""
    generator = torch.Generator().manual_seed(0)  # not the caller's
    x = noise(shape, generator)
    mean, variance, weight, bias = (noise(shape[1:2], generator) for _ in range(4))
    statistics = (mean, variance + 1, weight, bias)
    torchs, ours = (F.batch_norm(maps, *statistics) for maps in (x, by_pixels(x)))
    return torch.equal(torchs, ours)
