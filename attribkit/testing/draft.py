"""A network being drawn, building block by building block.

Whatever is drawn is valid: sizes, groups and windows fit by construction and nothing is rejected. The first choice of
every draw is the simplest, so that examples shrink.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from hypothesis import strategies as st

from attribkit.testing.operations import (
    EXACT_RECTIFIERS,
    GATES,
    KINDS,
    RECTIFIERS,
    Op,
    Shape,
    op,
)

Draw = Callable[[st.SearchStrategy[Any]], Any]

#: Building blocks, the simplest first: shrinking goes that way.
STEPS = (
    "conv",
    "rectifier",
    "conv_rectifier",
    "max_pool",
    "avg_pool",
    "batch_norm",
    "norm",
    "contrast_norm",
    "gate",
    "dropout",
    "residual",
    "concat",
    "squeeze_excite",
    "attention",
)
#: What most of vision models are made of is drawn more often.
_OFTEN = (*STEPS, "conv_rectifier", "conv_rectifier", "conv_rectifier", "max_pool", "max_pool", "residual", "gate")
#: Blocks of several operations, which a network that has many of those already does without.
BLOCKS = ("residual", "concat", "squeeze_excite", "attention")


class Draft:
    """A network being drawn.

    It follows where equal numbers can turn up at several places of a map: ``ties[value]`` is "none"; "exact" where they
    are equal to the last bit however computed (zeros of a ReLU); or "loose" where rounding may part them. A max
    pool is never put on loose ties: which of them it picks would be an accident of the batch size or of the writing.
    """

    def __init__(self, draw: Draw, shape: tuple[int, int, int], levels: bool, without: Collection[str]) -> None:
        self.draw = draw
        self.image = shape
        self.ops: list[Op] = []
        self.shapes: list[Shape] = [shape]
        self.ties = ["exact" if levels else "none"]
        self.blank = [not levels]  # whether the only ties are patches of zeros
        self.without = set(without)
        self.rectifiers = tuple(name for name in RECTIFIERS if name not in self.without)

    def add(self, kind: str, *inputs: int, **args: Any) -> int:
        """Add an operation; return its value."""
        made = op(kind, *inputs, **args)
        self.ops.append(made)
        self.shapes.append(KINDS[kind].shape(made, [self.shapes[i] for i in inputs]))
        ties, blank = self._ties_after(kind, inputs)
        self.ties.append(ties)
        self.blank.append(blank)
        return len(self.ops)

    def _ties_after(self, kind: str, inputs: tuple[int, ...]) -> tuple[str, bool]:
        taken = [self.ties[i] for i in inputs]
        blank = all(self.blank[i] for i in inputs)
        if kind in ("sum", "difference"):
            return ("none", True) if "none" in taken else ("loose" if "loose" in taken else "exact", blank)
        worst = "loose" if "loose" in taken else "exact" if "exact" in taken else "none"
        if worst == "loose" or kind in ("concat", "product", "dropout", "flatten", "mean"):
            return worst, blank
        if kind in EXACT_RECTIFIERS:
            clips = kind in ("relu", "relu6", "hardtanh")
            return ("exact", blank and (worst == "none" or kind != "hardtanh")) if clips else (worst, blank)
        if worst == "none":  # overlapping windows repeat their maximum
            return ("exact", False) if "max_pool" in kind else ("none", True)
        if "max_pool" in kind:
            return "exact", False
        return ("exact", True) if kind in ("conv", "avg_pool") and blank else ("loose", False)

    # -- steps -----------------------------------------------------------------------------------------------------

    def step(self, x: int, steps: Sequence[str]) -> int:
        """Draw one building block on top of value ``x``; return its value."""
        channels, height, width = self.shapes[x]
        often = [each for each in _OFTEN[len(STEPS) :] if each in steps]
        fitting = [each for each in (*steps, *often) if each not in self.without]
        if min(height, width) < 3:
            fitting = [each for each in fitting if each not in ("max_pool", "avg_pool")]
        if self.ties[x] == "loose":
            fitting = [each for each in fitting if each != "max_pool"]
        if height * width * channels > 160:
            fitting = [each for each in fitting if each != "attention"]
        chosen = self.draw(st.sampled_from(fitting))
        made: int = getattr(self, f"_{chosen}")(x)
        return made

    def _conv(self, x: int, *, same: bool = False, channels: int | None = None) -> int:
        now, *sides = self.shapes[x]
        room = min(sides)
        args: dict[str, Any] = {}
        if same:
            kernel = self.draw(st.sampled_from((1, 3, 1, 3, (1, 3), (3, 1))))
            args |= {"kernel": kernel, "padding": _each(lambda k: k // 2, kernel)}
        elif self._seldom():
            kernels = [self.draw(st.sampled_from([k for k in (1, 2, 3, 5) if k <= side + 2])) for side in sides]
            args["kernel"] = tuple(kernels)
            args["padding"] = tuple(self._padding(k - 1, side) for k, side in zip(kernels, sides, strict=True))
            args["stride"] = tuple(self._stride(side) for side in sides)
        else:
            args["kernel"] = kernel = self.draw(st.sampled_from([k for k in (1, 2, 3, 5) if k <= room + 2]))
            if kernel in (2, 3) and room >= 2 * kernel - 1:
                args["dilation"] = self.draw(st.integers(1, 2))
            args["padding"] = self._padding(args.get("dilation", 1) * (kernel - 1), room)
            args["stride"] = self._stride(room)
        channels = channels or self.draw(st.integers(1, 4))
        if now % 2 == 0 and channels % 2 == 0:
            args["groups"] = self.draw(st.integers(1, 2))
        args["bias"] = not self._seldom()
        plain = {"dilation": 1, "stride": 1, "groups": 1, "padding": 0, "bias": True}
        kept = {name: value for name, value in args.items() if plain.get(name) != value}
        return self.add("conv", x, channels=channels, **kept)

    def _seldom(self) -> bool:
        """Draw whether something is to be unusual."""
        return bool(self.draw(st.integers(0, 4)) == 4)

    def _padding(self, reach: int, side: int) -> int:
        least = max(0, -(-(reach + 1 - side) // 2))
        return int(self.draw(st.integers(least, max(least, min(2, reach // 2)))))

    def _stride(self, side: int) -> int:
        """Draw a convolution's stride, which may be longer than its kernel."""
        return int(self.draw(st.sampled_from((1, 2, 1, 2, 3)))) if side >= 3 else 1

    def _linear(self, x: int, features: int) -> int:
        return self.add("linear", x, features=features, **({"bias": False} if self._seldom() else {}))

    def _rectifier(self, x: int) -> int:
        if not self.rectifiers:
            return self._conv(x)
        # ReLU most often, and often the one used before: that is how models are, and what reusing one module takes
        used = [each.kind for each in self.ops if each.kind in self.rectifiers][-1:]
        choices = (*self.rectifiers, *("relu",) * 6, *used * 6)
        return self.add(self.draw(st.sampled_from([each for each in choices if each in self.rectifiers])), x)

    def _conv_rectifier(self, x: int) -> int:
        return self._rectifier(self._conv(x))

    def _max_pool(self, x: int) -> int:
        _, height, width = self.shapes[x]
        if self.draw(st.integers(0, 4)) == 4:
            rows, columns = self.draw(st.integers(1, min(3, height))), self.draw(st.integers(1, min(3, width)))
            return self.add("adaptive_max_pool", x, rows=rows, columns=columns)
        return self.add("max_pool", x, **self._window(min(height, width), dilate=True))

    def _avg_pool(self, x: int) -> int:
        _, height, width = self.shapes[x]
        if self.draw(st.integers(0, 3)) == 3:
            rows, columns = self.draw(st.integers(1, min(3, height))), self.draw(st.integers(1, min(3, width)))
            return self.add("adaptive_avg_pool", x, rows=rows, columns=columns)
        args = self._window(min(height, width), dilate=False)
        if "padding" in args and self.draw(st.booleans()):
            args["include"] = False
        return self.add("avg_pool", x, **args)

    def _window(self, room: int, *, dilate: bool) -> dict[str, Any]:
        if self.draw(st.integers(0, 2)) == 2:
            kernel: Any = self.draw(st.sampled_from(((1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2))))
        else:
            kernel = self.draw(st.integers(2, 3))
        args: dict[str, Any] = {
            "kernel": kernel,
            "stride": _each(lambda k: self.draw(st.sampled_from((k, *range(1, k), k + 1))), kernel),
            "padding": _each(lambda k: self.draw(st.integers(0, k // 2)), kernel),
            "ceil": self.draw(st.booleans()),
        }
        if dilate and isinstance(kernel, int) and room >= 2 * kernel - 1:
            args["dilation"] = self.draw(st.integers(1, 2))
        kept = {name: value for name, value in args.items() if value not in (0, (0, 0)) or name in ("kernel", "stride")}
        return {name: value for name, value in kept.items() if (name, value) != ("dilation", 1)}

    def _batch_norm(self, x: int) -> int:
        return self.add("batch_norm", x)

    def _norm(self, x: int) -> int:
        channels, height, width = self.shapes[x]
        if channels > 2 and self.draw(st.booleans()):  # two values normalised are always -1 and 1
            return self.add("layer_norm", x)
        if height * width < 4:
            return self.add("batch_norm", x)
        groups = 2 if channels % 2 == 0 and self.draw(st.booleans()) else 1
        return self.add("group_norm", x, groups=groups)

    def _contrast_norm(self, x: int) -> int:
        return self.add("contrast_norm", x)

    def _gate(self, x: int) -> int:
        gates = [gate for gate in GATES if gate != "softmax" or self.shapes[x][0] > 1]
        return self.add(self.draw(st.sampled_from(gates)), x)

    def _dropout(self, x: int) -> int:
        return self.add("dropout", x)

    def _branch(self, x: int, channels: int | None) -> int:
        """Draw a branch of one to three operations that keeps the map's size."""
        y = self._conv(x, same=True, channels=None if self.draw(st.booleans()) else channels)
        for _ in range(self.draw(st.integers(0, 2))):
            y = self.step(y, ("rectifier", "batch_norm", "norm", "gate", "contrast_norm"))
        if channels is not None and self.shapes[y][0] != channels:
            y = self._conv(y, same=True, channels=channels)
        return y

    def _residual(self, x: int) -> int:
        body = self._branch(x, self.shapes[x][0])
        made = self.add("difference" if self._seldom() else "sum", body, x)
        return self._rectifier(made) if self.rectifiers and self.draw(st.booleans()) else made

    def _concat(self, x: int) -> int:
        left = self._branch(x, None)
        right = self._branch(x, None) if self.draw(st.booleans()) else x
        return self.add("concat", left, right)

    def _squeeze_excite(self, x: int) -> int:
        channels = self.shapes[x][0]
        squeezed = self.add("adaptive_avg_pool", x, rows=1, columns=1)
        hidden = self.add("conv", squeezed, channels=2, kernel=1)
        if self.rectifiers:
            hidden = self._rectifier(hidden)
        excited = self.add("conv", hidden, channels=channels, kernel=1)
        gate = self.add(self.draw(st.sampled_from(("sigmoid", "hardsigmoid", "gate_of_relu6"))), excited)
        return self.add("product", x, gate)

    def _attention(self, x: int) -> int:
        normed = self.add("layer_norm", x) if self.shapes[x][0] > 2 else x
        return self.add("sum", self.add("attention", normed, fused=self.draw(st.booleans())), x)

    def head(self, x: int, classes: int, split: bool) -> None:
        """Draw the way from a map to class scores; ``split``: straight from three maps, place by place."""
        channels, height, width = self.shapes[x]
        if split:
            last = self.add("conv", x, channels=3, kernel=3, padding=1)
            self.add("linear", self.add("flatten", last), features=classes)
            return
        if channels * height * width > 100:
            x = self.add("adaptive_avg_pool", x, rows=min(height, 3), columns=min(width, 3))
        if self.shapes[x][0] >= 2 and self.draw(st.booleans()):
            flat = self.add("mean", x)
        else:
            flat = self.add("flatten", x)
        if "dropout" not in self.without and self.draw(st.integers(0, 3)) == 3:
            flat = self.add("dropout", flat)
        if self.rectifiers and "rectifier" not in self.without and self.draw(st.integers(0, 3)) == 3:
            flat = self._rectifier(self._linear(flat, 4))
        self._linear(flat, classes)


def _each(function: Callable[[int], Any], sizes: Any) -> Any:
    """Return a function of a size; of one for rows and one for columns, for each."""
    return tuple(map(function, sizes)) if isinstance(sizes, tuple) else function(sizes)
