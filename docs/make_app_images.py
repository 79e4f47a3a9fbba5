"""Make the pictures of docs/app.md: screenshots of the app itself, in chromium.

Run ``python docs/make_app_images.py``; it needs the extras ``imagenet`` and ``test``, and chromium.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

OUT = Path(__file__).parent / "images"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
MOST = 300_000
"""Bytes that a picture may take."""


@contextmanager
def served() -> Iterator[str]:
    """Serve the app in a process of its own; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "attribkit", "app", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})
    try:
        assert server.stdout is not None
        assert "http" in server.stdout.readline()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


def maps(page: Any) -> None:
    """Wait for all maps."""
    page.wait_for_selector(".ak-done")
    page.wait_for_function("() => !document.querySelector('.ak-working, .ak-waiting')")


def feature(page: Any) -> None:
    """Wait for a feature map's projection."""
    page.wait_for_selector(".ak-unit .ak-field")


def occlusion(page: Any) -> None:
    """Point at the middle of the occlusion's map."""
    page.wait_for_selector(".ak-hover")
    box = page.locator(".ak-hover svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.42, box["y"] + box["height"] * 0.72)
    page.wait_for_selector("text=the model would say")


SHOTS: dict[str, tuple[str, int, int, bool, Callable[[Any], None]]] = {
    "app-maps": ("model=timm/tf_efficientnet_lite0", 1280, 900, False, maps),
    "app-features": ("model=zfnet-fashion&picture=fashion-0&tab=units&layer=relu3", 1280, 1000, False, feature),
    "app-narrow": ("model=timm/tf_efficientnet_lite0&tab=occlusion", 390, 844, True, occlusion),
}
"""Name: the view, width, height, whether dark, and what to do before the picture is taken."""


def main() -> None:
    with served() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for name, (query, width, height, dark, ready) in SHOTS.items():
            context = browser.new_context(
                viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
            )
            page = context.new_page()
            page.set_default_timeout(120_000)
            page.goto(f"{address}/?{query}")
            ready(page)
            page.wait_for_timeout(500)
            path = OUT / f"{name}.png"
            save(page.screenshot(), path)
            print(f"made {path.name}, {path.stat().st_size // 1000} kB")
            context.close()
        browser.close()


def save(screenshot: bytes, path: Path) -> None:
    """Write a screenshot as a PNG of at most 256 colours: a third of its size, and nearly the same to the eye."""
    picture = Image.open(io.BytesIO(screenshot)).convert("RGB")
    reduced = picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    file = io.BytesIO()
    reduced.save(file, "PNG", optimize=True)
    if file.tell() > MOST:
        raise SystemExit(f"{path.name} would take {file.tell()} bytes; at most {MOST}")
    path.write_bytes(file.getvalue())


if __name__ == "__main__":
    main()
