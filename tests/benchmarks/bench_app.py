"""How long the app takes to answer, from the click in a browser until the map is drawn.

Run ``python tests/benchmarks/bench_app.py [--threads N] [--rounds N]``; it needs chromium. The aim: within 2 seconds on
2 cores for a class map of EfficientNet-Lite0 and for a projection in zfnet-fashion, the first call aside.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
DRAWN = """([selector, before]) => {
  const found = document.querySelector(selector);
  return found && found.src !== before && !document.querySelector('.ak-working, .ak-waiting');
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    command = [sys.executable, "-m", "attribkit", "app", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stdout is not None
        assert "http" in server.stdout.readline()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
            for method in ("gradient", "guided_backprop", "deconvnet", "occlusion"):
                page = browser.new_page()
                page.goto(f"http://127.0.0.1:{port}/?model=timm/tf_efficientnet_lite0&methods={method}")
                page.wait_for_selector(".ak-done", timeout=60_000)
                measure(page, f"class map of EfficientNet-Lite0, {method}", ".ak-card img", ".ak-top button", arguments)
                page.close()
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{port}/?model=zfnet-fashion&picture=fashion-0&tab=units&layer=relu5")
            page.wait_for_selector(".ak-unit", timeout=60_000)
            measure(page, "projection in zfnet-fashion, relu5", ".ak-crop", ".ak-thumbs button", arguments)
            browser.close()
    finally:
        server.terminate()
        server.wait(20)


def measure(page, name: str, picture: str, buttons: str, arguments: argparse.Namespace) -> None:
    """Click on one button after the other, each for the first time, and print how long the picture takes."""
    seconds = []
    for number in range(1, 1 + min(arguments.rounds, page.locator(buttons).count() - 1)):
        before = page.get_attribute(picture, "src")
        button = page.locator(buttons).nth(number)
        start = time.perf_counter()
        button.click()
        page.wait_for_function(DRAWN, arg=[picture, before])
        seconds.append(time.perf_counter() - start)
    load = os.getloadavg()[0]
    spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
    print(
        f"{name}: median {statistics.median(seconds):.2f} s ({spread}; {len(seconds)} clicks, "
        f"{arguments.threads} threads, load {load:.1f})",
        flush=True,
    )


if __name__ == "__main__":
    main()
