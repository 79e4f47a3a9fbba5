import pytest
import torch
from nets import idx_folder


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Small tensors; see the fixture."""


@pytest.fixture
def data(tmp_path):
    """A small idx data set of three classes."""
    return idx_folder(tmp_path / "data")


@pytest.fixture(autouse=True)
def _rng_untouched():
    """Training must leave torch's generator as it was."""
    before = torch.random.get_rng_state()
    yield
    assert torch.equal(before, torch.random.get_rng_state())
