import io

import numpy as np
import pytest
from PIL import Image

from attribkit.report import figures
from attribkit.report.overlay import overlay
from attribkit.report.palette import signed_colours

SIGNED = {"zero": 0.0, "positive": 1.0, "negative": -1.0}


def pixels(picture, mode="RGB"):
    with Image.open(io.BytesIO(picture.data)) as image:
        assert image.size == (picture.width, picture.height)
        return np.asarray(image.convert("RGBA").convert(mode)).astype(int)


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(size=(3, 40, 60))


# --- scaling


def test_limit_is_a_percentile_of_what_is_not_zero():
    values = np.zeros(100_000)
    values[:1000] = np.linspace(-1, 1, 1000)
    values[0] = -1e6
    assert figures.robust_limit(values) == pytest.approx(0.99, abs=0.02)


@pytest.mark.parametrize("value", [1e-300, 5e-324, 1e300, -3.0])
def test_limit_of_one_value(value):
    assert figures.robust_limit(np.array([[0.0, value]])) == abs(value)


def test_limit_ignores_what_is_not_finite():
    assert figures.robust_limit(np.array([np.nan, np.inf, -np.inf, 2.0, 0.0])) == 2.0
    assert figures.robust_limit(np.array([np.nan])) == 0.0


# --- signed maps


def test_signed_map_has_red_for_and_blue_against_and_a_neutral_zero():
    values = np.zeros((1, 1, 3))
    values[0, 0] = (-1, 0, 1)
    against, zero, towards = pixels(figures.signed_map(values))[0]
    assert against[2] > against[0] + 50
    assert towards[0] > towards[2] + 50
    assert max(zero) - min(zero) <= 3


def test_signed_map_is_symmetric_about_zero(values):
    picture, mirrored = figures.signed_map(values), figures.signed_map(-values)
    assert picture.low == -picture.high
    with Image.open(io.BytesIO(picture.data)) as one, Image.open(io.BytesIO(mirrored.data)) as other:
        levels = np.asarray(one).astype(int) + np.asarray(other).astype(int)
    assert np.all(levels == 254)


def test_signed_map_sums_the_channels():
    values = np.zeros((3, 1, 2))
    values[:, 0, 0] = (5, -4, -1)
    values[0, 0, 1] = 1
    zero, towards = pixels(figures.signed_map(values))[0]
    assert max(zero) - min(zero) <= 3
    assert towards[0] > towards[2] + 50


@pytest.mark.parametrize("sign", SIGNED)
@pytest.mark.parametrize(
    "draw", [figures.signed_map, figures.reconstruction, figures.magnitude_layer], ids=lambda f: f.__name__
)
def test_zero_and_one_signed_maps_are_drawn_and_said(draw, sign):
    values = np.abs(np.random.default_rng(1).normal(size=(3, 30, 30))) * SIGNED[sign]
    picture = draw(values)
    if draw is not figures.magnitude_layer:
        shown = pixels(picture)
        assert shown.mean() > 20
        assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 1
    if sign == "zero":
        assert "every value is zero" in picture.notes
        assert picture.high == 0
    elif draw is figures.signed_map:
        missing = {"positive": "negative", "negative": "positive"}[sign]
        assert picture.notes == (f"no value is {missing}",)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 2), (1, 8, 5), (4, 7, 300), (3, 300, 7)])
@pytest.mark.parametrize("scale", [0.0, 1e-300, 1.0, 1e200])
def test_every_shape_and_scale(shape, scale):
    values = np.random.default_rng(2).normal(size=shape) * scale
    for draw in (figures.signed_map, figures.reconstruction, figures.magnitude_layer):
        picture = draw(values)
        factor = picture.height // shape[1]
        assert (picture.height, picture.width) == (factor * shape[1], factor * shape[2])
        assert factor == 1 or (picture.high == 0 and max(picture.height, picture.width) <= 1600)
        assert pixels(picture).shape[:2] == (picture.height, picture.width)


@pytest.mark.parametrize("draw", [figures.signed_map, figures.reconstruction])
@pytest.mark.parametrize("shape", [(1, 1), (28, 28), (64, 64), (111, 112), (224, 224), (7, 300), (60, 20), (300, 7)])
def test_that_a_map_is_zero_can_be_read_on_it(draw, shape):
    picture = draw(np.zeros((3, *shape)), longest=max(shape))
    shown = pixels(picture).astype(int)
    words = np.abs(shown - shown[0, 0]).max(-1) > 20
    rows, columns = np.flatnonzero(words.any(1)), np.flatnonzero(words.any(0))
    for found, side in ((rows, picture.height), (columns, picture.width)):
        assert 1 <= found[0] <= found[-1] <= side - 2  # nothing of them is cut off
    if shape != (300, 7):  # far too narrow
        assert columns[-1] - columns[0] > 90


def test_values_that_are_not_finite_are_drawn_as_zero_and_counted(values):
    values[0, 0, 0], values[1, 2, 3] = np.nan, -np.inf
    assert "2 values are not finite and drawn as zero" in figures.signed_map(values).notes
    pixels(figures.magnitude_layer(values))


def test_one_outlier_does_not_blank_the_map(values):
    plain = pixels(figures.signed_map(values))
    values[0, 20, 20] = 1e6
    assert np.abs(pixels(figures.signed_map(values)) - plain).mean() < 5


def test_the_levels_of_a_picture_hold_the_values_beyond_its_colours(values):
    values[1, 20, 20], values[2, 3, 4] = 400.0, -90.0
    for draw, heat in ((figures.signed_map, values.sum(axis=0)), (figures.magnitude_layer, figures.magnitude(values))):
        picture = draw(values)
        assert picture.peak == np.abs(heat).max() > 20 * picture.high
        with Image.open(io.BytesIO(picture.data)) as image:
            level = np.asarray(image).astype(int)
        zero, last = (127, 127) if draw is figures.signed_map else (0, 254)
        share = np.abs(level - zero) / last / figures.REACH
        beyond = picture.high * (picture.peak / picture.high) ** ((share - 1) * figures.REACH / (1 - figures.REACH))
        read = np.where(share <= 1, share * picture.high, beyond) * np.where(level < zero, -1, 1)
        step = np.maximum(picture.high / 100, np.abs(heat) * 0.08)
        assert np.all(np.abs(read - heat) <= step)
        assert read[20, 20] == pytest.approx(picture.peak)


def test_the_colours_end_at_the_limit(values):
    picture = figures.signed_map(values)
    shown, heat = pixels(picture), values.sum(axis=0)
    for sign, colour in ((1, 254), (-1, 0)):
        last = signed_colours(255)[colour]
        assert np.all(shown[sign * heat >= picture.high] == last)
        assert not np.any(np.all(shown[np.abs(heat) < 0.9 * picture.high] == last, axis=-1))


@pytest.mark.parametrize("draw", [figures.signed_map, figures.reconstruction, figures.magnitude_layer])
def test_pictures_may_be_made_small(draw):
    values = np.zeros((3, 64, 96))
    values[:, :32] = 2.0
    values[0, 32:, 1::2], values[0, 32:, ::2] = 1.0, -1.0  # averages to zero: but a magnitude never does
    picture = draw(values, longest=24)
    assert (picture.width, picture.height) == (24, 16)
    shown = pixels(picture, "RGBA")
    assert np.ptp(shown[:8], axis=(0, 1)).max() == np.ptp(shown[8:], axis=(0, 1)).max() == 0
    if draw is figures.magnitude_layer:
        assert 0 < shown[12, 12, 3] < shown[2, 2, 3]
    else:
        assert np.ptp(shown[12, 12, :3]) <= 3
    whole = draw(values, longest=96)
    assert (whole.width, whole.height) == (96, 64)


# --- magnitude


def test_magnitude_layer_is_clear_at_zero_and_opaque_where_strong():
    values = np.zeros((3, 4, 4))
    values[1, 2, 3] = -7
    alpha = pixels(figures.magnitude_layer(values), "RGBA")[..., 3]
    assert alpha[2, 3] == 255
    assert alpha.sum() == 255


def test_magnitude_does_not_cancel_between_channels():
    values = np.zeros((3, 1, 2))
    values[:, 0, 0] = (1, -1, 0)
    assert figures.magnitude(values).tolist() == [[2.0, 0.0]]


# --- reconstructions


def test_reconstruction_is_mid_grey_at_zero_and_keeps_colours():
    values = np.zeros((3, 1, 3))
    values[:, 0, 1] = (1, 0, 0)
    values[:, 0, 2] = (0, 0, -1)
    grey, red, yellow = pixels(figures.reconstruction(values))[0]
    assert np.all(np.abs(grey - 128) <= 1)
    assert red[0] == 255
    assert abs(red[1] - 128) <= 1
    assert yellow[2] == 0


def test_reconstruction_of_other_channel_counts_is_grey():
    shown = pixels(figures.reconstruction(np.random.default_rng(0).normal(size=(5, 6, 6))))
    assert np.all(shown[..., 0] == shown[..., 2])


# --- occlusion's maps


def test_score_map_is_dark_where_the_score_fell():
    scores = np.full((3, 4), 5.0)
    scores[1, 2] = -2.0
    picture = figures.score_map(scores, (30, 40))
    shown = pixels(picture).sum(axis=-1)
    assert shown.shape == (30, 40)
    assert shown[15, 25] == shown.min()
    assert shown[5, 5] == shown.max()
    assert (picture.low, picture.high) == (-2.0, 5.0)


def test_a_constant_score_map_is_neither_black_nor_silent():
    picture = figures.score_map(np.full((3, 3), 0.25), (30, 30))
    assert 60 < pixels(picture).mean() < 200
    assert picture.notes == ("the score is 0.25 at every position",)


def test_class_map_has_a_colour_and_a_legend_entry_for_each_class():
    classes = np.array([[7, 7, 2], [7, 7, 0]])
    picture = figures.class_map(classes, (20, 30), ["zero", "one", "two"], first=2)
    assert [(entry.name, entry.count) for entry in picture.legend] == [("two", 1), ("class 7", 4), ("zero", 1)]
    shown = pixels(picture)
    for entry, place in zip(picture.legend, [(5, 25), (5, 5), (15, 25)], strict=True):
        assert "#{:02X}{:02X}{:02X}".format(*shown[place]) == entry.colour


def test_class_map_with_more_classes_than_colours():
    picture = figures.class_map(np.arange(100).reshape(10, 10), (50, 50), first=99)
    assert picture.legend[0].name == "class 99"
    assert picture.legend[-1].name == "93 other classes"
    assert sum(entry.count for entry in picture.legend) == 100
    assert len({entry.colour for entry in picture.legend}) == len(picture.legend) == 8


# --- photographs and overlays


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_photographs_are_made_small(mode):
    picture = figures.photograph(Image.new(mode, (2000, 1000)), longest=400)
    assert (picture.width, picture.height, picture.mime) == (400, 200, "image/jpeg")
    pixels(picture)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_model_view_clips_and_becomes_rgb(channels):
    view = figures.model_view(np.full((channels, 5, 6), 1.5))
    assert view.mode == "RGB"
    assert view.size == (6, 5)
    assert view.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["signed", "magnitude", "score"])
def test_colour_bars(kind):
    bar = pixels(figures.colour_bar(kind))
    assert len(np.unique(bar.reshape(-1, 3), axis=0)) > 150


@pytest.mark.parametrize("scale", [0.0, 1.0])
@pytest.mark.parametrize("size", [(224, 224), (32, 32), (7, 900), (900, 7)])
def test_overlay_shows_the_photograph_and_a_caption(size, scale):
    width, height = size
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))
    data = overlay(photo, np.ones((3, height, width)) * scale, "Gradient: " + "very " * 30 + "w" * 300, "猫.png; zfnet")
    with Image.open(io.BytesIO(data)) as image:
        assert image.width >= 448
        assert image.height <= 2000
        shown = np.asarray(image.convert("RGB")).astype(int)
    factor = max(1, min(-(-448 // width), 1344 // max(size)))
    picture, caption = shown[: height * factor], shown[height * factor :]
    assert picture.std() > 3
    assert caption.min() < 60
    assert caption.max() == 255


def test_overlay_of_a_zero_map_is_the_grey_photograph():
    photo = Image.new("RGB", (448, 100), (200, 20, 20))
    with Image.open(io.BytesIO(overlay(photo, np.zeros((3, 100, 448)), "t", "d"))) as image:
        red, green, blue = image.convert("RGB").getpixel((200, 50))
    assert red == green == blue
    assert red > 20


def test_overlay_marks_the_strong_place():
    values = np.zeros((3, 448, 448))
    values[:, 100:120, 200:220] = 1
    with Image.open(io.BytesIO(overlay(Image.new("RGB", (448, 448), "#808080"), values, "t", "d"))) as image:
        red, _, blue = image.convert("RGB").getpixel((210, 110))
        assert red > blue + 60
        red, _, blue = image.convert("RGB").getpixel((50, 50))
        assert red == blue
