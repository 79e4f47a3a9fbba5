"""A model with another end: a copy of its shell that shares every weight, so that the model itself stays untouched."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

from torch import nn

from attribkit.errors import ModelError
from attribkit_quantus.scoring import class_scores


def ends_in_softmax(model: nn.Module) -> bool:
    """Tell whether the last of the model's modules is an `nn.Softmax`, as Quantus does."""
    return isinstance(list(model.modules())[-1], nn.Softmax)


def with_softmax(model: nn.Module) -> nn.Module:
    """Return the model with a softmax over its class scores; its modules keep their names."""
    shell = _shell(model)
    shell._forward_hooks = OrderedDict(model._forward_hooks)
    shell.register_forward_hook(lambda module, inputs, output: class_scores(output).softmax(-1))
    return shell


def without_softmax(model: nn.Module) -> nn.Module:
    """Return the model without the `nn.Softmax` with which it ends: an identity stands in its place."""
    path = list(dict(model.named_modules()))[-1]
    if not path:
        raise ModelError("the model is an nn.Softmax and nothing else: without it there is nothing to explain")
    shell: Any = _shell(model)
    parent = shell
    *above, last = path.split(".")
    for name in above:
        child = _shell(parent._modules[name])
        parent._modules[name] = child
        parent = child
    parent._modules[last] = nn.Identity()
    return shell  # type: ignore[no-any-return]


def _shell(module: nn.Module) -> nn.Module:
    """Return a copy of one module that shares weights and submodules, with a table of submodules of its own."""
    shell = copy.copy(module)
    shell._modules = dict(module._modules)
    return shell
