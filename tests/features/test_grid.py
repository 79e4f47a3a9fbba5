"""Projections of mined activations, and how they are drawn."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from test_mining import Noise, preprocess, small_zfnet

import attribkit as ak
from attribkit.features.crops import Crops, project_mined
from attribkit.features.fields import receptive_fields
from attribkit.features.galleries import figure, file_names
from attribkit.features.grid import ContactSheet, sprite, tile_size, tiles_of
from attribkit.features.mining import mine
from attribkit.models.building import LoadedModel

SOURCE = Noise(24)


@pytest.fixture
def loaded(one_thread):
    return LoadedModel("small", small_zfnet(), preprocess, lambda x: (x + 2) / 4, None, (1, 64, 64))


def cut(image, box):
    top, left, bottom, right = box
    return image[..., top:bottom, left:right]


@pytest.mark.parametrize(
    ("layer", "method"),
    [
        *((layer, method) for layer in ("pool1", "conv3", "fc6") for method in ("deconvnet", "gradient")),
        ("pool5", "guided_backprop"),
        ("conv3", "occlusion"),
    ],
)
def test_each_crop_is_the_projection_of_that_unit_alone(loaded, layer, method):
    mined = mine(loaded, SOURCE, [layer], channels=[1, 3, 4]).layers[layer]
    fields = receptive_fields(loaded.model, (1, 64, 64), [layer])[layer]
    crops = project_mined(loaded, SOURCE, mined, fields, [0, 2], method)
    assert crops.channels == (1, 4)
    compared = 0
    for row, index in enumerate((0, 2)):
        for hit in list(mined.hits(index))[::4]:
            x = preprocess(SOURCE.load(hit.image))[None]
            unit = ak.Unit(layer, hit.channel, hit.position)
            whole = ak.attribute(loaded.model, x, method=method, target=unit).values[0]
            box = fields.box(hit.position, hit.channel)
            assert tuple(crops.boxes[row, hit.rank].tolist()) == box
            outer = fields.box(hit.position, clipped=False)
            top, left = (o if s < 64 else 0 for o, s in zip(outer[:2], fields.size, strict=True))
            inside = (box[0] - top, box[1] - left, box[2] - top, box[3] - left)
            got = cut(crops.projections[row, hit.rank], inside)
            # occlusion takes differences of scores, the others have no such rounding
            scale = max(float(whole.abs().max()), abs(hit.value) if method == "occlusion" else 0.0)
            torch.testing.assert_close(got, cut(whole, box), rtol=1e-4, atol=2e-6 * scale)
            shown = (cut(x[0], box) + 2) / 4 * 255
            assert (cut(crops.patches[row, hit.rank], inside).float() - shown).abs().max() <= 0.5001
            blank = crops.patches[row, hit.rank].clone()
            blank[..., inside[0] : inside[2], inside[1] : inside[3]] = 128
            if fields.stride is not None:  # what lies beyond the image
                beyond = np.ones(blank.shape[1:], dtype=bool)
                beyond[max(-top, 0) : 64 - top, max(-left, 0) : 64 - left] = False
                assert (blank[:, torch.from_numpy(beyond)] == 128).all()
            compared += 1
    assert compared == 6


def test_projections_are_drawn_around_grey():
    projections = torch.zeros(1, 9, 1, 50, 50)
    projections[0, 0, 0, 10:30, 10:30] = 2.0
    projections[0, 1, 0, 10:30, 10:30] = -1.0
    crops = Crops((7,), projections, torch.full((1, 9, 1, 50, 50), 128, dtype=torch.uint8), torch.zeros(1, 9, 4))
    tiles = [np.asarray(tile)[:, :, 0] for tile, _ in tiles_of(crops, 0)]
    assert tiles[0].shape == (48, 48)
    assert tiles[0][20, 20] == 255
    assert tiles[1][20, 20] == 64  # one scale for the nine
    assert (tiles[2] == 128).all()
    assert tiles[0][0, 0] == 128


def test_sprites_and_sheets_hold_every_tile():
    generator = torch.Generator().manual_seed(0)
    for size, expected in ((7, (42, 42, True)), (50, (48, 48, False)), (300, (112, 112, False))):
        assert tile_size(size, size) == expected
    crops = Crops(
        (3, 5),
        torch.randn(2, 9, 3, 7, 7, generator=generator),
        torch.randint(0, 256, (2, 9, 3, 7, 7), dtype=torch.uint8, generator=generator),
        torch.zeros(2, 9, 4),
    )
    drawn = sprite(crops)
    picture = np.asarray(Image.open(io.BytesIO(drawn.data)))
    assert drawn.suffix == ".png"
    assert picture.shape == (2 * 42, 18 * 42, 3)
    small = picture[3::6, 3::6].reshape(2, 7, 18, 7, 3)
    for row in range(2):
        for rank in range(9):
            assert (small[row, :, 9 + rank] == crops.patches[row, rank].permute(1, 2, 0).numpy()).all()
    sheet = ContactSheet(2, 9)
    sheet.add(crops)
    assert np.asarray(sheet.picture("layer", "details")).std() > 10


def test_file_names_are_safe_and_unique():
    names = file_names(["a/b", "a_b", "A_b", "index", "", "../x", "layer1.0.relu_1"])
    assert len({name.lower() for name in names.values()}) == len(names)
    assert all(name.lower() not in ("index", "features") and "/" not in name for name in names.values())
    assert names["layer1.0.relu_1"] == "layer1.0.relu_1"


def test_figure(loaded, tmp_path):
    path = figure(tmp_path / "pool1.png", loaded, SOURCE, "pool1", maps=3)
    with Image.open(path) as picture:
        assert picture.width >= 500
        assert np.asarray(picture).std() > 10


def test_crops_come_back_from_their_file_only_under_their_label(tmp_path):
    crops = Crops(
        (3,),
        torch.rand(1, 9, 1, 5, 5),
        torch.zeros(1, 9, 1, 5, 5, dtype=torch.uint8),
        torch.zeros(1, 9, 4, dtype=torch.int32),
    )
    path = tmp_path / "crops.safetensors"
    crops.save(path, "this run")
    again = Crops.load(path, "this run")
    assert again.channels == (3,)
    assert torch.equal(again.projections, crops.projections)
    assert Crops.load(path, "another run") is None
    path.write_bytes(path.read_bytes()[:100])
    assert Crops.load(path, "this run") is None
    assert Crops.load(tmp_path / "missing") is None
