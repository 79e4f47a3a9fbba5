"""Fixtures for all tests."""

import os
import shutil

import pytest
import torch

BROWSER_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")  # not the session's: there can be one at a time, and no other event loop beside it
def browser():
    """Chromium, headless; without one the tests fail where they must run, and are skipped elsewhere."""
    complain = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        complain("there is no browser: apt-get install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        complain(f"the tests of pages need playwright: {error}")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable, args=BROWSER_FLAGS)
        yield launched
        launched.close()


@pytest.fixture(autouse=True)
def _torchs_modes():
    """No test leaves torch in another mode; those of a generator that ends late would hit any test after it."""
    yield
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert torch._C._is_torch_function_enabled()
    assert torch.get_default_dtype() == torch.float32


@pytest.fixture
def one_thread():
    """Run torch on one thread: on small tensors, and beside other work, several only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def lean_everywhere(monkeypatch):
    """Leave no operation to autograd for its size alone, for tests of steps that are too small to be worth one."""
    monkeypatch.setattr("attribkit.engine.invert.LEAST", 0)
