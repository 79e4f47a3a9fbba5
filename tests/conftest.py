"""Fixtures for all tests."""

import pytest
import torch


@pytest.fixture
def one_thread():
    """Run torch on one thread: on small tensors, and beside other work, several only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
