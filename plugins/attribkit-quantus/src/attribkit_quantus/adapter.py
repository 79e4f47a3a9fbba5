"""`explain_func`: attribkit's methods where Quantus asks for a function that explains."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import attribkit as ak
from attribkit.errors import InputError, InputTypeError
from attribkit_quantus.shadow import ends_in_softmax, with_softmax, without_softmax

#: What Quantus's own `explain` takes, or its users put beside it, and that says nothing about a map of attribkit's.
_WITHOUT_MEANING = frozenset({"device", "xai_lib", "img_size", "nr_channels", "nr_samples"})


def explain_func(model: nn.Module, inputs: Any, targets: Any, **kwargs: Any) -> npt.NDArray[Any]:
    """Explain a batch by one of attribkit's methods, as Quantus calls it.

    Parameters
    ----------
    model
        The network. It stays where it is, and as it is.
    inputs
        Float array [N, C, H, W]; it is taken to the model's device and dtype.
    targets
        The class of each sample, ints [N], or one int for all.
    method : str, `attribkit.Method` class or instance
        Which method; without it, the default of `attribkit.attribute`.
    softmax : bool, optional
        True: the classes' probabilities are explained; False: what goes into a softmax with which the model ends.
        Default: the model's output as it is.
    channel_first : bool, optional
        False: the inputs are [N, H, W, C], and so is the map.
    reduce_axes : sequence of int, keepdims : bool
        Axes over which the map is summed (none), and whether they stay with length 1 (True).
    abs, normalise : bool
        Whether to take absolute values, and to divide each sample's map by its largest absolute value; with
        ``normalise_func`` and ``normalise_func_kwargs``, what that function returns for the map.
    xai_lib_kwargs : dict
        Options of the method too.
    device, xai_lib, img_size, nr_channels, nr_samples
        Accepted, because Quantus and its examples pass them, and without effect.
    **kwargs
        The method's own options, which go before all of the above, and the keywords of `attribkit.attribute`.

    Returns
    -------
    numpy.ndarray
        The method's values, of the inputs' shape.

    Raises
    ------
    attribkit.AttribkitError
        An argument breaks a rule, or an option is not known; the message names it and the nearest names.
    """
    options = dict(kwargs)
    own = _own_options(options.get("method"))
    extra = options.pop("xai_lib_kwargs", None) or {}
    for name in set(extra) & set(options):
        raise InputError(f"explain_func: {name!r} is given twice, the second time in xai_lib_kwargs")
    options.update(extra)

    def take(name: str, default: Any = None) -> Any:
        return default if name in own else options.pop(name, default)

    for name in _WITHOUT_MEANING:
        take(name)
    softmax, last = take("softmax"), take("channel_first") is False
    axes, keep = take("reduce_axes", ()), take("keepdims", True)
    absolute, normalise = take("abs", False), take("normalise", False)
    function, arguments = take("normalise_func"), take("normalise_func_kwargs")
    for name in ("target", "inputs", "progress"):
        if name in options:
            raise InputError(f"explain_func takes no {name!r}: Quantus gives model, inputs and targets")

    array = _array(inputs)
    explained, place = _shadowed(model, softmax), _home(model)
    # contiguous: a convolution's last digits depend on how its input lies in memory
    x = torch.as_tensor(np.ascontiguousarray(np.moveaxis(array, -1, 1)) if last else array)
    x = x.to(device=place.device, dtype=place.dtype if place.is_floating_point() else x.dtype)
    found = ak.attribute(explained, x, target=_targets(targets, len(array)), **options)
    values = found.values.cpu()
    maps = (values if values.dtype in (torch.float32, torch.float64) else values.float()).numpy()
    if last:
        maps = np.moveaxis(maps, 1, -1)
    if axes:
        maps = _reduced(maps, axes, keep)
    if normalise:
        maps = function(maps, **(arguments or {})) if function is not None else _normalised(maps)
    return np.ascontiguousarray(np.abs(maps) if absolute else maps)


def _own_options(method: Any) -> set[str]:
    """Return the names of a method's options; none for what is no method, which `attribkit.attribute` refuses."""
    if isinstance(method, str):
        known = ak.methods()
        return set(known[method].options) if method in known else set()
    kind = method if isinstance(method, type) else type(method)
    return set(kind.options()) if issubclass(kind, ak.Method) else set()


def _array(inputs: Any) -> npt.NDArray[Any]:
    array = inputs.detach().cpu().numpy() if isinstance(inputs, torch.Tensor) else np.asarray(inputs)
    if not np.issubdtype(array.dtype, np.floating):
        raise InputTypeError(f"explain_func: inputs must be floats [N, C, H, W], got {array.dtype} {array.shape}")
    if array.ndim != 4:
        raise InputError(f"explain_func: inputs must be images [N, C, H, W], got the shape {array.shape}")
    if array.dtype.itemsize > 8:  # torch knows no longer floats
        array = array.astype(np.float64)
    return np.ascontiguousarray(array)


def _targets(targets: Any, count: int) -> torch.Tensor:
    array = targets.detach().cpu().numpy() if isinstance(targets, torch.Tensor) else np.asarray(targets)
    if not np.issubdtype(array.dtype, np.integer):
        raise InputTypeError(f"explain_func: targets must be ints, one class a sample, got {array.dtype}")
    if array.ndim and array.shape != (count,):
        raise InputError(f"explain_func: targets must be one int or [{count}], one a sample, got {array.shape}")
    return torch.as_tensor(np.broadcast_to(array.astype(np.int64), (count,)).copy())


def _home(model: nn.Module) -> torch.Tensor:
    """Return a tensor of the device and dtype that the model's inputs need: its first floating weight or buffer."""
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    floats = [tensor for tensor in tensors if tensor.is_floating_point()]
    return next(iter(floats or tensors), torch.empty(0, dtype=torch.int64))


def _shadowed(model: nn.Module, softmax: bool | None) -> nn.Module:
    if softmax is None or not isinstance(model, nn.Module) or bool(softmax) == ends_in_softmax(model):
        return model
    return with_softmax(model) if softmax else without_softmax(model)


def _reduced(maps: npt.NDArray[Any], axes: Any, keep: bool) -> npt.NDArray[Any]:
    chosen = tuple(axes) if not isinstance(axes, int) else (axes,)
    if any(axis % maps.ndim == 0 for axis in chosen):
        raise InputError(f"explain_func: reduce_axes {chosen} holds the axis of the samples")
    summed: npt.NDArray[Any] = maps.sum(axis=chosen, keepdims=keep)
    return summed


def _normalised(maps: npt.NDArray[Any]) -> npt.NDArray[Any]:
    largest = np.abs(maps).max(axis=tuple(range(1, maps.ndim)), keepdims=True)
    scaled: npt.NDArray[Any] = np.divide(maps, largest, out=np.zeros_like(maps), where=largest > 0)
    return scaled
