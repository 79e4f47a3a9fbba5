"""The palette of signed maps, measured in CIELAB and through the eyes of colour-blind readers.

The colour arithmetic is written out here a second time, the other way round: sRGB to CIELAB by the standards (IEC
61966-2-1, CIE 15), and the dichromat's view after Viénot, Brettel & Mollon (1999).
"""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attribkit.report import figures
from attribkit.report.palette import gradient, hexadecimal, signed_colours

RGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
RGB_TO_LMS = np.array([[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]])
MISSING = {
    "protanopia": np.array([[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]]),
    "deuteranopia": np.array([[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]]),
}


def linear(rgb):
    rgb = np.asarray(rgb, dtype=float) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab_of_linear(rgb):
    xyz = np.clip(rgb, 0, None) @ RGB_TO_XYZ.T / RGB_TO_XYZ.sum(axis=1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def lab(rgb):
    return lab_of_linear(linear(rgb))


def seen_without(kind, rgb):
    """CIELAB of what somebody without one kind of cones sees."""
    lms = linear(rgb) @ RGB_TO_LMS.T
    return lab_of_linear(np.clip(lms @ MISSING[kind].T @ np.linalg.inv(RGB_TO_LMS).T, 0, 1))


def difference(one, other):
    return np.linalg.norm(one - other, axis=-1)


@pytest.fixture(scope="module")
def colours():
    return signed_colours(255)


def test_the_arithmetic_of_this_test():
    assert lab([255, 255, 255]) == pytest.approx([100, 0, 0], abs=0.01)
    assert lab([255, 0, 0]) == pytest.approx([53.24, 80.09, 67.20], abs=0.05)  # published values of sRGB's red
    assert lab([0, 0, 0]) == pytest.approx([0, 0, 0], abs=0.01)
    for kind in MISSING:
        grey = seen_without(kind, [119, 119, 119])
        assert difference(grey, lab([119, 119, 119])) < 1  # greys stay grey
        assert difference(seen_without(kind, [200, 0, 0]), lab([200, 0, 0])) > 20  # red does not stay red


def test_zero_is_neutral_and_the_lightest(colours):
    lightness, a, b = lab(colours[127])
    assert np.hypot(a, b) < 1
    assert lightness > 94
    assert np.all(lab(colours)[:, 0] <= lightness + 1e-9)


def test_lightness_falls_on_both_sides_and_at_the_same_rate(colours):
    lightness = lab(colours)[:, 0]
    negative, positive = lightness[:128][::-1], lightness[127:]
    every = slice(None, None, 4)  # 8 bits for a colour: single steps are rounded by as much as they are long
    assert np.all(np.diff(negative[every]) < 0)
    assert np.all(np.diff(positive[every]) < 0)
    assert np.abs(negative - positive).max() < 0.7
    assert lightness.max() - lightness.min() > 50


def test_equal_steps_of_the_value_are_equal_steps_of_colour(colours):
    measured = lab(colours)
    for half in (measured[:128], measured[127:]):
        steps = difference(half[8::8], half[:-8:8])
        assert steps.std() / steps.mean() < 0.06
        assert np.abs(steps / steps.mean() - 1).max() < 0.15
        assert difference(half[0], half[120]) == pytest.approx(steps.sum(), rel=0.02)  # straight: no detour
    ends = difference(measured[0], measured[127]), difference(measured[254], measured[127])
    assert ends[0] == pytest.approx(ends[1], rel=0.02)


def test_every_colour_can_be_shown(colours):
    """Nothing was clipped: every colour's hue is that of its half, where it has one."""
    _, a, b = np.moveaxis(lab(colours), -1, 0)
    hue, chroma = np.degrees(np.arctan2(b, a)) % 360, np.hypot(a, b)
    for half, wanted in ((slice(0, 107), 284), (slice(148, 255), 38)):
        assert np.all(np.abs(hue[half] - wanted) < 4)
    assert np.abs(chroma[:127][::-1] - chroma[128:]).max() < 1.5


@pytest.mark.parametrize("kind", MISSING)
def test_the_signs_differ_for_colour_blind_readers(colours, kind):
    seen = seen_without(kind, colours)
    for strength in range(32, 128, 8):  # from a quarter of the scale on
        apart = difference(seen[127 - strength], seen[127 + strength])
        assert apart > 20, strength
        assert apart > 0.8 * difference(seen[127 - strength], seen[127])
    b = seen[..., 2]  # what these readers still see of hue: blue against yellow
    assert np.all(b[:107] < 0)
    assert np.all(b[148:] > 0)


def test_maps_and_bars_have_this_palette(colours):
    values = np.linspace(-1, 1, 255)[None, None]
    for picture in (figures.signed_map(values), figures.colour_bar("signed")):
        with Image.open(io.BytesIO(picture.data)) as image:
            shown = np.asarray(image.convert("RGB"))[0]
        assert np.abs(lab(shown) - lab(colours)).max() < 3
    assert hexadecimal(colours[[0, 254]])[1] in gradient(colours)


def test_nothing_is_drawn_in_another_signed_palette():
    """The product, its documentation and the distributions beside it: a sign looks the same wherever it is shown."""
    root = Path(__file__).parents[2]
    others = re.compile(r"(?i)\b(rdbu|rdylbu|coolwarm|seismic|bwr|piyg|prgn|brbg|puor|vanimo|berlin|managua)(_r)?\b")
    files = [path for folder in ("attribkit", "docs", "plugins") for path in (root / folder).rglob("*.py")]
    assert len(files) > 200
    assert not [path.name for path in files if others.search(path.read_text("utf-8"))]
