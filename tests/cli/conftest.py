import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from attribkit.cli import main


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command line in an empty folder; returns click's result."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        return CliRunner().invoke(main, [str(arg) for arg in args], prog_name="attribkit")

    return run


@pytest.fixture
def picture(tmp_path):
    """Write an image of noise and return its path."""

    def picture(name="cat.png", size=(40, 30), seed=0, brightest=256):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, brightest, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return picture
