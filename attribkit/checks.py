"""What the front door checks before and around a call; each error is one line that names the input and the rule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from attribkit.engine.tree import paths_of, tensors_of
from attribkit.errors import InputError, InputTypeError, ModelError, UnknownOptionError, did_you_mean
from attribkit.method import Method

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def usable_model(model: Any) -> nn.Module:
    """Return the module to walk: wrappers taken off, what cannot be walked refused.

    Raises
    ------
    InputTypeError
        It is not a torch module.
    ModelError
        It is scripted, quantised, or was created in inference mode.
    """
    if not isinstance(model, nn.Module):
        raise InputTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            break
    paths = paths_of(model)
    for module, path in paths.items():
        fault = _fault(type(module))
        if fault is not None:
            name = f"{path!r} ({type(module).__name__})" if path else type(module).__name__
            raise ModelError(fault.format(name))
    for module, name, tensor in tensors_of(paths):
        path = f"{paths[module]}.{name}" if paths[module] else name
        if torch.nn.parameter.is_lazy(tensor):
            raise ModelError(f"parameter {path!r} is not initialised yet: run the model once before it is explained")
        if tensor.is_inference():
            raise ModelError(f"{path!r} was created in inference mode: load the model outside torch.inference_mode()")
    return cast(nn.Module, model)


#: What torch keeps among its quantised modules and float models are made of: sums and products to be quantised later.
_FLOAT_ALL_THE_SAME = frozenset({"FloatFunctional", "FXFloatFunctional"})


def _fault(cls: type) -> str | None:
    """Return why a module of this class cannot be walked, None where it can."""
    if issubclass(cls, torch.jit.ScriptModule):
        return "model is scripted at {}: its operations cannot be seen; pass the original torch.nn.Module"
    quantised = ".quantized" in cls.__module__ and cls.__module__.startswith("torch.")
    if quantised and cls.__name__ not in _FLOAT_ALL_THE_SAME:
        return "model is quantised at {}: quantised operations have no derivative; pass the float model"
    return None


#: Dtypes of inputs; in them the sum of finite numbers may be infinite, but that of others never finite.
_SUMMED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_inputs(inputs: Any) -> None:
    """Check type, rank, dtype and finiteness.

    Raises
    ------
    InputError
        A rule is broken; the message gives the shape, the dtype or the place of the first value at fault.
    """
    if not isinstance(inputs, Tensor):
        raise InputTypeError(f"inputs must be a float tensor [N, C, H, W], got {type(inputs).__name__}")
    if inputs.ndim != 4:
        hint = "; add the batch dimension with inputs[None]" if inputs.ndim == 3 else ""
        raise InputError(f"inputs must be [N, C, H, W], got {inputs.ndim} dimensions {tuple(inputs.shape)}{hint}")
    if not inputs.is_floating_point():
        raise InputTypeError(f"inputs must have a float dtype, got {inputs.dtype}")
    if inputs.dtype not in _SUMMED:
        raise InputTypeError(f"inputs must be float16, bfloat16, float32 or float64, got {inputs.dtype}")
    if inputs.layout != torch.strided:
        raise InputTypeError(
            f"inputs must be a dense tensor, got one of layout {inputs.layout}: give inputs.to_dense()"
        )
    if inputs.numel() == 0:
        raise InputError(f"inputs is empty: shape {tuple(inputs.shape)}")
    if inputs.is_meta:
        return
    if bool(torch.isfinite(inputs.detach().sum())):
        return  # once over them, as is not true of what follows
    finite = torch.isfinite(inputs)
    if not bool(finite.all()):
        place = tuple(int(i) for i in (~finite).nonzero()[0])
        count = int((~finite).sum())
        raise InputError(
            f"inputs has {count} value{'s' * (count != 1)} that {'are' if count != 1 else 'is'} not finite, "
            f"the first {float(inputs[place])} at [n, c, y, x] = {list(place)}"
        )


def check_options(method: Method, options: dict[str, Any]) -> None:
    """Refuse options the method does not have.

    Raises
    ------
    UnknownOptionError
        The message suggests the nearest names.
    """
    known = type(method).options()
    for name in options:
        if name not in known:
            raise UnknownOptionError(f"method {method.name!r} has no option {name!r}; {did_you_mean(name, known)}")


@contextmanager
def explain_misfits(model: nn.Module, inputs: Tensor) -> Iterator[None]:
    """Where the model's forward fails on a wrong channel count, dtype or device of the inputs, say so instead."""
    try:
        yield
    except Exception as error:
        if getattr(error, "attribkit_origin", None) != "model forward" or not isinstance(error, RuntimeError):
            raise
        _explain_kind(model, inputs, error)
        first = next(((p, m) for p, m in model.named_modules() if isinstance(m, _CONVOLUTIONS)), None)
        if first is None or first[1].in_channels == inputs.shape[1] or not _is_channel_error(error):
            raise
        raise InputError(
            f"inputs has {inputs.shape[1]} channels (shape {tuple(inputs.shape)}), but the model's first convolution "
            f"{first[0]!r} takes {first[1].in_channels}"
        ) from error


#: What torch's errors say of tensors on several devices, or of several dtypes.
_MISFITS = {"device": ("device", "cuda"), "dtype": ("dtype", "scalar type", "Input type")}


def _explain_kind(model: nn.Module, inputs: Tensor, error: RuntimeError) -> None:
    """Raise what says so if the inputs are of another dtype or device than all of the model's parameters."""
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    message = str(error)
    for what, words in _MISFITS.items():
        theirs = sorted({str(getattr(p, what)).removeprefix("torch.") for p in parameters})
        ours = str(getattr(inputs, what)).removeprefix("torch.")
        if theirs and ours not in theirs and any(word in message for word in words):
            to = f"torch.{theirs[0]}" if what == "dtype" else repr(theirs[0])
            raise InputTypeError(
                f"inputs has the {what} {ours}, but the model's parameters have {' and '.join(theirs)}: "
                f"give inputs.to({to})"
            ) from error


def _is_channel_error(error: Exception) -> bool:
    return "channels" in str(error) or "normalized_shape" in str(error)
