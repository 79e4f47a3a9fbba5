"""Photographs: every kind is read right, every bad file is one clear line."""

from __future__ import annotations

import gc
import io
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attribkit.errors import ImageError
from attribkit.images import check_size, find_images, read_image, sample_image_path, to_rgb

RED, BLUE = (200, 10, 30), (20, 40, 220)


def halves(mode: str = "RGB", size: tuple[int, int] = (8, 6)) -> Image.Image:
    """An image that is red on the left and blue on the right."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image if mode == "RGB" else image.convert(mode)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def refusal(path: object) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(path)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


def pixel(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    value = image.getpixel((x, y))
    assert isinstance(value, tuple)
    return value


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "webp", "jp2"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {"irreversible": False} if suffix == "jp2" else {}
    image = read_image(saved(halves(), tmp_path / f"a.{suffix}", **options))
    assert type(image) is Image.Image
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(halves()))


def test_jpeg_is_close(tmp_path: Path) -> None:
    image = read_image(saved(halves(size=(32, 16)), tmp_path / "a.jpg", quality=100, subsampling=0))
    assert np.abs(np.asarray(image, int) - np.asarray(halves(size=(32, 16)), int)).max() <= 4


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    path = saved(halves(), tmp_path / "a.png")
    assert read_image(path.rename(tmp_path / "a.jpg")).size == (8, 6)


def test_grey(tmp_path: Path) -> None:
    image = read_image(saved(Image.new("L", (4, 3), 77), tmp_path / "a.png"))
    assert pixel(image, 1, 1) == (77, 77, 77)


def test_one_bit(tmp_path: Path) -> None:
    image = Image.new("1", (4, 3), 1)
    image.putpixel((0, 0), 0)
    read = read_image(saved(image, tmp_path / "a.png"))
    assert pixel(read, 0, 0) == (0, 0, 0)
    assert pixel(read, 1, 0) == (255, 255, 255)


def test_palette(tmp_path: Path) -> None:
    read = read_image(saved(halves().quantize(2), tmp_path / "a.png"))
    assert np.array_equal(np.asarray(read), np.asarray(halves()))


@pytest.mark.parametrize("transparency", [0, bytes([0, 255])])
def test_palette_with_transparency(tmp_path: Path, transparency: object) -> None:
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([*RED, *BLUE])
    palette.paste(1, (2, 0, 4, 4))
    read = read_image(saved(palette, tmp_path / "a.png", transparency=transparency))
    assert pixel(read, 0, 0) == (255, 255, 255)
    assert pixel(read, 3, 3) == BLUE


def test_rgb_with_a_transparent_colour_is_composited_once(tmp_path: Path) -> None:
    read = read_image(saved(halves(), tmp_path / "a.png", transparency=RED))
    assert pixel(read, 0, 0) == (255, 255, 255)
    assert pixel(read, 7, 0) == BLUE
    assert read.info == {}
    assert np.array_equal(np.asarray(to_rgb(read)), np.asarray(read))


def test_rgba_is_composited_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (3, 2), (0, 0, 0, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    image.putpixel((2, 0), (0, 0, 0, 51))  # a fifth
    read = read_image(saved(image, tmp_path / "a.png"))
    assert pixel(read, 0, 0) == (255, 255, 255)
    assert pixel(read, 1, 0) == (10, 20, 30)
    assert pixel(read, 2, 0) == (204, 204, 204)


def test_la(tmp_path: Path) -> None:
    image = Image.new("LA", (3, 2), (0, 0))
    image.putpixel((1, 0), (90, 255))
    read = read_image(saved(image, tmp_path / "a.png"))
    assert pixel(read, 0, 0) == (255, 255, 255)
    assert pixel(read, 1, 0) == (90, 90, 90)


@pytest.mark.parametrize("mode", ["RGBa", "La", "PA", "HSV", "YCbCr", "RGBX"])
def test_other_modes_convert(mode: str) -> None:
    source = {"RGBa": "RGBA", "La": "LA"}.get(mode, "RGB")
    image = to_rgb((halves().quantize(2) if mode == "PA" else halves(source)).convert(mode))
    assert image.mode == "RGB"
    left, right = pixel(image, 0, 0), pixel(image, 7, 0)
    if mode != "La":
        assert max(abs(a - b) for a, b in zip(left, RED, strict=True)) <= 8
        assert max(abs(a - b) for a, b in zip(right, BLUE, strict=True)) <= 8


def test_cmyk(tmp_path: Path) -> None:
    read = read_image(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), tmp_path / "a.jpg", quality=100))
    assert np.abs(np.asarray(read, int) - np.array([255, 0, 0])).max() <= 4


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_grey_is_scaled_by_its_range(tmp_path: Path, name: str) -> None:
    values = np.array([[0, 257, 1000], [32768, 65535, 128]], np.uint16)
    read = read_image(saved(Image.fromarray(values), tmp_path / name))
    assert np.asarray(read)[..., 0].tolist() == [[0, 1, 4], [128, 255, 0]]
    assert np.ptp(np.asarray(read), axis=-1).max() == 0


def test_32_bit_grey() -> None:
    inside = np.array([[0, 65535], [257, 514]], np.int32)
    assert np.asarray(to_rgb(Image.fromarray(inside)))[..., 0].tolist() == [[0, 255], [1, 2]]
    outside = np.array([[-10, 90], [190, 0]], np.int32)  # no known range: stretched
    assert np.asarray(to_rgb(Image.fromarray(outside)))[..., 0].tolist() == [[0, 128], [255, 13]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0, 1], [0.5, 0.25]], [[0, 255], [128, 64]]),
        ([[0, 255], [7, 100]], [[0, 255], [7, 100]]),
        ([[-1, 1], [0, 0.5]], [[0, 255], [128, 191]]),
        ([[-3, -3], [-3, -3]], [[0, 0], [0, 0]]),
    ],
)
def test_float_grey(values: list[list[float]], expected: list[list[int]]) -> None:
    assert np.asarray(to_rgb(Image.fromarray(np.array(values, np.float32))))[..., 0].tolist() == expected


def test_float_with_nan_names_the_place(tmp_path: Path) -> None:
    values = np.zeros((3, 4), np.float32)
    values[1, 2] = np.nan
    message = refusal(saved(Image.fromarray(values), tmp_path / "a.tif"))
    assert "NaN" in message
    assert "row 1, column 2" in message


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path: Path, orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(halves(size=(8, 6)), tmp_path / "a.png", exif=exif)
    read = read_image(path)
    assert read.size == ((8, 6) if orientation < 5 else (6, 8))
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(read), np.asarray(ImageOps.exif_transpose(image)))
    assert np.array_equal(np.asarray(to_rgb(read)), np.asarray(read))  # not turned twice


def test_rotation_by_hand(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the file's left column is the picture's top row
    read = read_image(saved(halves(size=(8, 6)), tmp_path / "a.png", exif=exif))
    assert pixel(read, 0, 0) == RED
    assert pixel(read, 0, 7) == BLUE


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    for name in ("a.gif", "a.png"):
        read = read_image(saved(frames[0], tmp_path / name, save_all=True, append_images=frames[1:]))
        assert pixel(read, 1, 1) == RED


def test_missing(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.png").endswith(": no such file")


def test_name_with_null_character() -> None:
    with pytest.raises(ImageError, match="no usable file name"):
        read_image("a\0b.png")


def test_directory(tmp_path: Path) -> None:
    assert refusal(tmp_path).endswith("is a directory, not an image file")


def test_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.touch()
    assert "empty (0 bytes)" in refusal(path)


@pytest.mark.parametrize("content", [b"hello", b"\0" * 100, b"Pyramids are not pixmaps", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_no_image(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    assert "is not an image of a kind that can be read (JPEG, PNG" in refusal(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "webp", "tif", "ppm"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated(tmp_path: Path, suffix: str, share: float) -> None:
    rng = np.random.default_rng(0)
    whole = saved(Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)), tmp_path / f"w.{suffix}").read_bytes()
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "damaged or truncated" in refusal(path)


def test_truncated_in_its_header(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(saved(halves(), tmp_path / "w.png").read_bytes()[:20])
    assert "damaged or truncated" in refusal(path)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1)])
def test_too_small(tmp_path: Path, size: tuple[int, int]) -> None:
    message = refusal(saved(Image.new("RGB", size), tmp_path / "a.png"))
    assert f"is {size[0]}×{size[1]} pixels; at least 2×2" in message


def test_too_elongated() -> None:
    check_size((300, 3))
    with pytest.raises(ImageError, match="2×201 pixels; a side may be at most 100 times"):
        check_size((2, 201))


@pytest.mark.parametrize("side", [9_500, 20_000])  # where Pillow warns, and where it refuses
def test_decompression_bomb(tmp_path: Path, side: int) -> None:
    path = saved(Image.new("1", (side, side)), tmp_path / "a.png")
    assert path.stat().st_size < 100_000
    message = refusal(path)  # a warning would be an error here
    assert f"is {side}×{side} pixels; more than 89,478,485 are refused" in message


def test_bomb_limit_is_pillows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(halves(), tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 47)
    assert "is 8×6 pixels; more than 47 are refused" in refusal(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_image(path).size == (8, 6)


def test_no_file_stays_open(tmp_path: Path) -> None:
    good = saved(halves(), tmp_path / "a.png")
    bad = tmp_path / "b.png"
    bad.write_bytes(good.read_bytes()[:60])
    read_image(good)
    refusal(bad)
    gc.collect()  # a file left open would give a ResourceWarning, an error here
    handles = Path("/proc/self/fd")
    if handles.is_dir():
        assert not [link for link in handles.iterdir() if str(link.resolve()).startswith(str(tmp_path))]


def test_threads_read_alike(tmp_path: Path) -> None:
    paths = [saved(Image.new("RGB", (5, 5), (index, 0, 0)), tmp_path / f"{index}.png") for index in range(8)]
    reds: dict[int, int] = {}

    def work(index: int) -> None:
        reds[index] = pixel(read_image(paths[index]), 0, 0)[0]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reds == {index: index for index in range(8)}


def test_find_images(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "sub/c.webp", "sub/deep/d.tif", "note.txt", ".hidden.png", ".git/e.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    expected = [tmp_path / name for name in ("a.png", "b.JPG", "sub/c.webp", "sub/deep/d.tif")]
    assert find_images(tmp_path) == expected
    assert find_images(str(tmp_path)) == expected
    named = tmp_path / "note.txt"
    assert find_images([named, tmp_path / "sub", named, tmp_path / "missing.png"]) == [
        named,
        *expected[2:],
        tmp_path / "missing.png",
    ]


def test_find_images_in_a_directory_without_any(tmp_path: Path) -> None:
    (tmp_path / "note.txt").touch()
    with pytest.raises(ImageError, match=r"holds no image \(\.avif, \.bmp") as caught:
        find_images([tmp_path])
    assert str(tmp_path) in str(caught.value)


def test_find_images_of_nothing() -> None:
    with pytest.raises(ImageError, match="no image was named"):
        find_images([])


def test_sample() -> None:
    path = sample_image_path()
    assert read_image(path).size == (451, 300)
    assert "CC0" in (path.parent / "CREDITS.md").read_text(encoding="utf-8")


def test_images_need_no_torch() -> None:
    code = "import sys, attribkit.images; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_image_given_is_not_changed() -> None:
    buffer = io.BytesIO()
    halves("RGBA").save(buffer, "PNG")
    image = Image.open(buffer)
    before = np.asarray(image).copy()
    to_rgb(image).putpixel((0, 0), (1, 2, 3))
    assert image.mode == "RGBA"
    assert np.array_equal(np.asarray(image), before)
