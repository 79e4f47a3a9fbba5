"""Compare the shelf's methods with other libraries' at full size and write the figures into docs/plugins.md.

    python plugins/agreement.py [--size 224] [--only cam|captum|lrp|paths]

Needs the distributions with their extra ``test`` (``make shelf``). The weights are random, the image is noise: neither
matters to whether two programs compute the same. Every figure is the largest difference between two maps over the
largest value of the map compared with. Takes about a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

import attribkit as ak
from attribkit.errors import MethodError

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "plugins.md"
#: Model, layer, layer of Score-CAM (one forward pass for each of its channels), the reshape function they need there.
CAM_MODELS = (
    ("resnet18", "layer4", "layer1", None),
    ("resnet50", "layer4", "relu", None),
    ("vgg16", "features", "features.4", None),
    ("densenet121", "features.denseblock4", "features.pool0", None),
    ("convnext_tiny", "stages.3", "stages.0", None),
    ("swin_tiny_patch4_window7_224", "layers.3", "layers.0", "channels last"),
    ("vit_tiny_patch16_224", "blocks.11.norm1", "blocks.11.norm1", "tokens"),
)
#: Model and the layer of Grad-CAM, for images of `CAPTUM_SIZE` pixels a side: some of Captum's run the model 200 times.
CAPTUM_MODELS = (
    ("squeezenet1_1", "features.12.expand3x3"),
    ("resnet18", "layer4.1.conv2"),
    ("tf_efficientnet_lite0", "conv_head"),
)
CAPTUM_SIZE = 48
LRP_MODELS = ("vgg11_bn", "resnet18", "resnet50", "densenet121")


def model_of(name: str, size: int) -> nn.Module:
    """Return a model with random weights and batch norms that do something."""
    from zennit_maps import with_statistics

    torch.manual_seed(0)
    if hasattr(torchvision.models, name) and not name.startswith("convnext"):
        made = getattr(torchvision.models, name)(weights=None)
    else:
        made = timm.create_model(name, **({"img_size": size} if name.startswith(("vit", "swin")) else {}))
    return with_statistics(made)


def image(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return one image of noise."""
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest expected value."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def cam(size: int) -> Iterator[str]:
    """Yield the table of class activation maps."""
    import gradcam_maps

    names = ("grad_cam", "grad_cam_plus_plus", "layer_cam", "score_cam")
    yield from head("model", "layer", *names, "layer of score_cam")
    for name, layer, narrow, reshape in CAM_MODELS:
        model, x = model_of(name, size), image(size)
        helper = {None: None, "tokens": gradcam_maps.tokens_to_maps(1), "channels last": gradcam_maps.channels_first}
        cells = []
        for method in names:
            place = narrow if method == "score_cam" else layer
            for k in range(10):  # random weights: the map of a class may be empty, which would prove nothing
                found = ak.attribute(model, x, method, k, layer=place).heatmap()
                if found.abs().max() > 0:
                    break
            else:
                raise SystemExit(f"{name}: no class has a map by {method}")
            theirs = gradcam_maps.gradcam_map(method, model, place, x, [k], helper[reshape])
            cells.append(number(difference(found, theirs)))
        yield row(name, f"`{layer}`", *cells, f"`{narrow}`")


def lrp(size: int) -> Iterator[str]:
    """Yield the table of relevance propagation."""
    from zennit_maps import NAMES, zennit_map

    yield from head("model", "composite", "float64", "float32", "Zennit's own float32", "its merged eps left in")
    for name in LRP_MODELS:
        for method in NAMES:
            maps: dict[str, Tensor] = {}
            for dtype in (torch.float64, torch.float32):
                model, x, classes = model_of(name, size).to(dtype), image(size, dtype), torch.tensor([3])
                kind = str(dtype).removeprefix("torch.")
                maps[f"ours {kind}"] = ak.attribute(model, x, method, classes).values
                maps[f"zennit {kind}"] = zennit_map(model, x, classes, method)
                if dtype == torch.float64:
                    maps["raw"] = zennit_map(model, x, classes, method, exact=False)
            yield row(
                name,
                f"`{method}`",
                number(difference(maps["ours float64"], maps["zennit float64"])),
                number(difference(maps["ours float32"], maps["zennit float32"])),
                number(difference(maps["zennit float32"], maps["zennit float64"])),
                number(difference(maps["raw"], maps["zennit float64"])),
            )


def paths(size: int) -> Iterator[str]:
    """Yield the table of integrated gradients."""
    import captum.attr

    yield from head("model", "rule", "20 steps, float64")
    model, x = model_of("resnet18", size).double(), image(size, torch.float64)
    for rule, theirs in (("gauss_legendre", "gausslegendre"), ("riemann_middle", "riemann_middle")):
        found = ak.attribute(model, x, "integrated_gradients", 3, steps=20, rule=rule).values
        oracle = captum.attr.IntegratedGradients(model)
        expected = oracle.attribute(x, target=3, n_steps=20, method=theirs, internal_batch_size=10)
        yield row("resnet18", f"`{rule}`", number(difference(found, expected)))


def captum(size: int) -> Iterator[str]:
    """Yield the table of Captum's algorithms through attribkit and called directly; ``size`` is `CAPTUM_SIZE`."""
    import captum_calls

    yield from head("method", *(name for name, _ in CAPTUM_MODELS))
    x, classes = image(CAPTUM_SIZE, torch.float64).repeat(2, 1, 1, 1), torch.tensor([3, 5])
    x[1] = x[1].flip(1)
    options = {"shapley_value_sampling": {"n_samples": 2}}  # by default it runs the model 800 times
    calls = {**captum_calls.DIRECT, "shapley_value_sampling": captum_calls.sampled(2)}
    for name, call in calls.items():
        cells = []
        for model_name, layer in CAPTUM_MODELS:
            model = model_of(model_name, CAPTUM_SIZE).double()
            own = {"layer": layer} if name == "guided_grad_cam" else options.get(name, {})
            try:
                found = ak.attribute(model, x, f"captum.{name}", classes, **own).values
            except MethodError:
                cells.append("not finite")
                continue
            try:
                expected = call(model, x, classes, layer)
            except RuntimeError:
                cells.append("Captum refuses")
                continue
            both_zero = not bool(found.any()) and not bool(expected.any())
            cells.append("both zero" if both_zero else number(difference(found, expected)))
        yield row(f"`captum.{name}`", *cells)


def head(*cells: str) -> Iterator[str]:
    """Yield a table's head."""
    yield row(*cells)
    yield row(*["---"] * len(cells))


def row(*cells: str) -> str:
    """Return a table's row."""
    line = f"| {' | '.join(cells)} |"
    print(line, flush=True)
    return line


def number(value: float) -> str:
    """Return a difference as it is printed."""
    return f"{value:.0e}"


def write(name: str, lines: list[str]) -> None:
    """Put a table between its markers in the page."""
    from attribkit.attribution import write_atomically

    text = PAGE.read_text(encoding="utf-8")
    begin, end = (f"<!-- {name}: {mark} -->" for mark in ("begin", "end"))
    before, rest = text.split(begin)
    _, after = rest.split(end)
    written = f"{before}{begin}\n" + "\n".join(lines) + f"\n{end}{after}"
    write_atomically(PAGE, written.encode())


TABLES: dict[str, Callable[[int], Iterator[str]]] = {"paths": paths, "captum": captum, "cam": cam, "lrp": lrp}


def main(arguments: list[str] | None = None) -> Any:
    """Make the tables and write each as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--only", choices=list(TABLES))
    options = parser.parse_args(arguments)
    for plugin in ("cam", "captum", "lrp"):
        sys.path.insert(0, str(HERE / f"attribkit-{plugin}" / "tests"))
    for name, table in TABLES.items():
        if options.only in (None, name):
            print(f"\n{name}", flush=True)
            write(name, list(table(options.size)))


if __name__ == "__main__":
    main()
