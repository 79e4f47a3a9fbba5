"""Networks as data: a small printable graph of operations that writes itself as Python code and runs it.

What a failing check prints is the very source that was tested.
"""

from __future__ import annotations

import functools
import linecache
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attribkit.testing.operations import KINDS, OVERWRITABLE, WRITINGS, Op, Shape, module_in_place

# .contiguous(): on the strides that a batch of one has without it, torch's batch norm has a wrong gradient on the CPU
_ATTENTION = '''
class SelfAttention(nn.Module):
    """Every position looks at every other."""

    def __init__(self, channels, fused):
        super().__init__()
        self.fused = fused
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x):
        query, key, value = self.qkv(x.flatten(2).transpose(1, 2)).chunk(3, dim=-1)
        if self.fused:
            mixed = F.scaled_dot_product_attention(query, key, value)
        else:
            mixed = (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(-1) @ value
        return self.out(mixed).transpose(1, 2).contiguous().reshape(x.shape)

'''


@dataclass(frozen=True)
class Net:
    """A network as a graph of operations.

    Attributes
    ----------
    shape : (int, int, int)
        The image: channels, height, width.
    ops : tuple of Op
        The operations in order; the last one's output, [N, classes], is the network's.
    seed : int
        Seed of the weights.
    """

    shape: tuple[int, int, int]
    ops: tuple[Op, ...]
    seed: int = 0

    @functools.cached_property
    def shapes(self) -> list[Shape]:
        """Shapes of all values without the batch dimension: the image, then each operation's output."""
        found: list[Shape] = [self.shape]
        for each in self.ops:
            found.append(KINDS[each.kind].shape(each, [found[i] for i in each.inputs]))
        return found

    @property
    def classes(self) -> int:
        """How many scores the network returns."""
        return self.shapes[-1][0]

    def roles(self) -> set[str]:
        """Return the op kinds in it."""
        return {KINDS[each.kind].role for each in self.ops}

    def source(self, writing: str = "modules") -> str:
        """Return the network as Python code, written in one of `WRITINGS`.

        Raises
        ------
        ValueError
            There is no such writing.
        """
        if writing not in WRITINGS:
            raise ValueError(f"writing must be one of {', '.join(WRITINGS)}, got {writing!r}")
        return _Writer(self, writing).source()

    def build(self, writing: str = "modules", dtype: torch.dtype = torch.float64) -> nn.Module:
        """Return the network as a module in eval mode, its weights drawn from the seed."""
        made: nn.Module = _compiled(self.source(writing))()
        return seed_weights(made.double(), self.seed).to(dtype).eval()

    def module_name(self, value: int, writing: str = "modules") -> str | None:
        """Return the name of the module whose first call makes a value; None where no module's does."""
        return _Writer(self, writing).names.get(value)

    def functions(self, model: nn.Module) -> list[Callable[..., Tensor]]:
        """Return each operation alone as a function of the values it takes; ``model`` is `build`'s, in modules."""
        return [functools.partial(function, model) for function in _functions(self)]

    def __repr__(self) -> str:
        lines = "".join(f"\n    {each!r}," for each in self.ops)
        return f"Net({self.shape}, ({lines}\n), seed={self.seed})"


class _Writer:
    """Writes one network in one way."""

    def __init__(self, net: Net, writing: str) -> None:
        self.net = net
        self.writing = writing
        self.constructors: dict[str, str] = {}
        self.names: dict[int, str] = {}  # value -> the module whose first call makes it
        self.lines: list[str] = []
        shared: dict[str, str] = {}
        uses = [i for each in net.ops for i in each.inputs]
        for value, each in enumerate(net.ops, start=1):
            shapes = [net.shapes[i] for i in each.inputs]
            free = self._may_overwrite(each, uses)
            expression = self._expression(value, each, shapes, free, shared)
            self.lines.append(f"x{value} = {expression}")

    def _may_overwrite(self, each: Op, uses: list[int]) -> bool:
        """Tell whether the first value taken is needed by nothing else, so that it may be overwritten."""
        first = each.inputs[0]
        return first > 0 and uses.count(first) == 1 and self.net.ops[first - 1].kind in OVERWRITABLE

    def _expression(self, value: int, each: Op, shapes: list[Shape], free: bool, shared: dict[str, str]) -> str:
        kind = KINDS[each.kind]
        values = {"x": f"x{each.inputs[0]}", "y": f"x{each.inputs[-1]}", "m": ""}
        constructor = kind.module(each, shapes) if kind.module is not None else None
        as_module = constructor is not None and self.writing in ("modules", "inplace", "reused")
        if constructor is not None and (kind.parameters or as_module or kind.call == "{m}({x})"):
            if self.writing == "inplace" and free:
                constructor = module_in_place(each.kind, constructor) or constructor
            name = f"{each.kind}{value}"
            if self.writing == "reused" and not kind.parameters:
                name = shared.setdefault(constructor, name)
            if name not in self.constructors:
                self.constructors[name] = constructor
                if as_module or "{m}(" in kind.call:
                    self.names[value] = name
            values["m"] = f"self.{name}"
            if as_module and kind.call.startswith(("F.", "torch.")):
                return "{m}({x})".format(**values)
        which = "call"
        if self.writing == "methods" and kind.method:
            which = "method"
        if free and kind.in_place and self.writing in ("inplace", "methods"):
            which = "in_place"
        return kind.text(each, shapes, which).format(**values)

    def source(self) -> str:
        """Return the whole module's code."""
        made = self.constructors.values()
        imports = "import torch\nimport torch.nn.functional as F\n"
        if any("activations." in each for each in made):
            imports += "from timm.layers import activations\n"
        code = f"{imports}from torch import nn\n\n"
        if any(each.startswith("SelfAttention") for each in made):
            code += _ATTENTION
        init = "".join(f"        self.{name} = {made}\n" for name, made in self.constructors.items())
        body = "".join(f"        {line}\n" for line in self.lines)
        return (
            f"{code}\nclass Network(nn.Module):\n    def __init__(self):\n        super().__init__()\n{init}\n"
            f"    def forward(self, x0):\n{body}        return x{len(self.net.ops)}\n"
        )


@functools.lru_cache(maxsize=512)
def _functions(net: Net) -> list[Callable[..., Tensor]]:
    found = []
    for each, line in zip(net.ops, _Writer(net, "modules").lines, strict=True):
        taken = ", ".join(dict.fromkeys(f"x{i}" for i in each.inputs))
        found.append(eval(f"lambda self, {taken}: {line.partition(' = ')[2]}", {"torch": torch, "F": F}))
    return found


@functools.lru_cache(maxsize=512)
def _compiled(source: str) -> type[nn.Module]:
    """Run a network's source; its lines show in tracebacks."""
    name = f"<network {zlib.crc32(source.encode()):08x}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    namespace: dict[str, Any] = {"__name__": "attribkit_test_network"}
    exec(compile(source, name, "exec"), namespace)
    found: type[nn.Module] = namespace["Network"]
    return found


def seed_weights(model: nn.Module, seed: int) -> nn.Module:
    """Draw a model's weights and statistics from a seed, in the order of their names; return the model.

    The strongest weight of every filter is made positive: a rectified signal then finds its way through most networks,
    and few are dead. Biases, means and variances are drawn too, so that none of them is idle.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for name, module in sorted(model.named_modules()):
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                rows = normal(module.weight).flatten(1) * (2 / module.weight[0].numel()) ** 0.5
                strongest = rows.abs().argmax(1, keepdim=True)
                rows.scatter_(1, strongest, rows.gather(1, strongest).abs())
                module.weight.copy_(rows.reshape(module.weight.shape))
                if module.bias is not None:
                    module.bias.copy_(0.2 * normal(module.bias))
            elif isinstance(module, nn.PReLU):
                module.weight.copy_(0.1 + 0.1 * normal(module.weight).abs())
            elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
                scale = 1 + 0.4 * normal(module.weight)
                module.weight.copy_(torch.cat([scale[:1].abs(), scale[1:]]))
                module.bias.copy_(0.2 * normal(module.bias))
                if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
                    module.running_var.copy_(0.5 + normal(module.running_var).abs())
                if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                    module.running_mean.copy_(0.2 * normal(module.running_mean))
            elif next(module.parameters(recurse=False), None) is not None:
                raise TypeError(f"seed_weights() cannot draw weights for {type(module).__name__} ({name!r})")
    return model
