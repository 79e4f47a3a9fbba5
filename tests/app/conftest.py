"""The app's server as a subprocess, and a real browser to look at it."""

import os
import socket
import subprocess
import sys
import threading

import pytest
from app_helpers import Viewer


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A folder that `attribkit features` wrote of zfnet-fashion, and one with a checkpoint for it."""
    import torch

    import attribkit
    from attribkit.datasets import open_images
    from attribkit.features import gallery

    images, mined = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("mined")
    source = open_images("fashion-sample")
    for index in range(12):
        source.load(index).save(images / f"{index:02d}.png")
    loaded = attribkit.load_model("zfnet-fashion")
    gallery(loaded, str(images), ["relu5"], mined, channels=[0, 1], batch_size=12)
    checkpoints = tmp_path_factory.mktemp("checkpoints")
    state = {name: value + 0.01 * torch.ones_like(value) for name, value in loaded.model.state_dict().items()}
    torch.save(state, checkpoints / "shifted.pt")
    (checkpoints / "notes.txt").write_text("no checkpoint")
    return {"features": mined, "checkpoints": checkpoints}


@pytest.fixture(scope="session")
def server(folders):
    """The app's address; it is served by a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "attribkit", "app", "--port", str(port), "--debug"]
    command += ["--features", str(folders["features"]), "--checkpoints", str(folders["checkpoints"])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    lines = []
    ready = threading.Event()

    def read():
        for line in process.stdout:
            lines.append(line)
            if "attribkit app: http" in line:
                ready.set()
        ready.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert ready.wait(120), "the app did not start in two minutes"
        assert process.poll() is None, "".join(lines)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)
        reader.join(20)
        process.stdout.close()


@pytest.fixture
def visit(browser, server):
    """Open the app as another user: with a context of its own; each page is checked when the test ends."""
    viewers = []

    def visit(query="", *, width=1280, dark=False, address=None):
        context = browser.new_context(
            viewport={"width": width, "height": 844 if width < 600 else 800},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
            accept_downloads=True,
        )
        viewer = Viewer(context, server)
        viewers.append(viewer)
        viewer.open(address or f"{server}/?{query}")
        return viewer

    yield visit
    for viewer in viewers:
        viewer.close()
