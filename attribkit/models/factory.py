"""Loading ``MODULE:FACTORY``: a model from the user's own code."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from attribkit.errors import ModelError, UnknownNameError, did_you_mean
from attribkit.models.building import LoadedModel, Weights, described, guarded
from attribkit.models.checkpoint import load_weights, read_checkpoint, without_prefixes
from attribkit.registry import one_line

__all__ = ["FACTORY", "load_factory"]

#: What a ``MODULE:FACTORY`` looks like: two dotted names.
FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def load_factory(spec: str, weights: Weights = None) -> LoadedModel:
    """Load ``MODULE:FACTORY``: import MODULE and call FACTORY without arguments. **This runs the module's code.**

    MODULE is searched for in the current directory after the usual places. See `load_model` for preprocessing.
    """
    module_name, _, path = spec.partition(":")
    with _current_directory_importable():
        try:
            factory: Any = importlib.import_module(module_name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a module's import may raise anything, SystemExit too
            raise ModelError(f"model {spec!r}: module {module_name!r} cannot be imported: {one_line(error)}") from error
        for part in path.split("."):
            if not hasattr(factory, part):
                known = [known for known in dir(factory) if not known.startswith("_")]
                raise UnknownNameError(f"model {spec!r}: {module_name} has no {path!r}: {did_you_mean(part, known)}")
            factory = getattr(factory, part)
        if isinstance(factory, nn.Module) or not callable(factory):
            what = f"a {type(factory).__name__}, not a function that returns a torch.nn.Module"
            raise ModelError(f"model {spec!r}: {path} is {what}")
        model = guarded(spec, factory, "call")
    if not isinstance(model, nn.Module):
        raise ModelError(f"model {spec!r}: returned a {type(model).__name__}, not a torch.nn.Module")
    source = f"as {spec} made them"
    if weights is not None and weights != "random":
        state = without_prefixes(read_checkpoint(weights), model)
        load_weights(model, state, checkpoint=os.fspath(weights), name=spec)
        source = Path(weights).name
    given = getattr(model, "pretrained_cfg", None)
    given = given if isinstance(given, Mapping) else {}
    stated = given.get("mean") is not None
    origin = "the model's data config" if stated else "no normalisation, as the model states none"
    return described(spec, model, source, config=_complete_config(given, model), origin=origin)


def _complete_config(given: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Return a data config in which nothing is left to a default that would be ImageNet's."""
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    size = given.get("input_size") or ((convolutions[0].in_channels if convolutions else 3), 224, 224)
    plain = {"input_size": tuple(size), "mean": (0.0,) * size[0], "std": (1.0,) * size[0], "interpolation": "bilinear"}
    return {**plain, **{key: value for key, value in given.items() if value is not None}}


@contextlib.contextmanager
def _current_directory_importable() -> Iterator[None]:
    """Let imports find the current directory, after everything else: a console script does not have it on its path."""
    here = os.getcwd()
    sys.path.append(here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # removed by the imported module
            sys.path.reverse()
            sys.path.remove(here)
            sys.path.reverse()
