"""Make the pictures of the README and the documentation: ``make images``.

The sample photograph, explained by EfficientNet-Lite0 (extra ``imagenet``): gradient, guided backprop and occlusion of
the most probable class, and the deconvnet's projection of the most active unit of one layer.
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

import attribkit as ak
from attribkit.images import read_image, sample_image_path
from attribkit.report import figures

OUT = Path(__file__).parent / "images"
SIDE = 224
GAP = 12
CAPTION = 26
LAYER = "blocks.3"


def picture(data: bytes) -> Image.Image:
    """Decode a PNG."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def strongest_channel(model: torch.nn.Module, x: torch.Tensor, layer: str) -> int:
    """Return the channel of ``layer`` with the highest activation, by one pass over all of its units."""
    channels = ak.inspect(model, x).shapes[layer][1]
    return int(ak.project(model, x, layer, range(channels), method="gradient").scores[0].argmax())


def over(view: Image.Image, values: torch.Tensor) -> Image.Image:
    """Lay a map's magnitude over the photograph, without the caption that a file of its own has."""
    heat = figures.magnitude_layer(values.numpy())
    layer = Image.open(io.BytesIO(heat.data)).convert("RGBA").resize(view.size, Image.Resampling.NEAREST)
    grey = view.convert("L").point([round(0.75 * level) for level in range(256)]).convert("RGB")
    grey.paste(layer, mask=layer.getchannel("A"))
    return grey


def demo() -> Image.Image:
    """Compose the strip of the README."""
    loaded = ak.load_model("timm/tf_efficientnet_lite0")
    x = loaded.preprocess(read_image(sample_image_path()))[None]
    view = figures.model_view(loaded.denormalize(x)[0].numpy())
    channel = strongest_channel(loaded.model, x, LAYER)
    guided = ak.attribute(loaded.model, x, "guided_backprop")
    unit = ak.attribute(loaded.model, x, "deconvnet", ak.Unit(LAYER, channel))
    panels = [
        ("the photograph", view),
        ("gradient", over(view, ak.attribute(loaded.model, x, "gradient").values[0])),
        ("guided backprop", picture(figures.reconstruction(guided.values[0].numpy()).data)),
        (f"deconvnet, a unit of {LAYER}", picture(figures.reconstruction(unit.values[0].numpy()).data)),
        ("occlusion", over(view, ak.attribute(loaded.model, x, "occlusion", window=32, stride=8).values[0])),
    ]
    strip = Image.new("RGB", (len(panels) * (SIDE + GAP) - GAP, SIDE + CAPTION), "white")
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(14)
    for i, (caption, panel) in enumerate(panels):
        left = i * (SIDE + GAP)
        strip.paste(panel.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, 0))
        draw.text((left, SIDE + 6), caption, fill="#333333", font=font)
    return strip


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    demo().save(OUT / "demo.png", optimize=True)
    print(f"made {OUT.name}/demo.png")
