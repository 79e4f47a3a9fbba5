"""Serving the page on this machine."""

from __future__ import annotations

import os
import socket
import tempfile
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from attribkit.errors import AttribkitError, InputError

if TYPE_CHECKING:
    from attribkit.app.shelf import Shelf
    from attribkit.app.top import Mined

MISSING = "the app needs gradio: pip install 'attribkit[app]'"

SESSIONS = 40
"""How many open pages are remembered."""


def require_gradio() -> None:
    """Check that gradio is there, without importing it.

    Raises
    ------
    AttribkitError
        It is not.
    """
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise AttribkitError(MISSING)


def check_address(host: str, port: int | None) -> None:
    """Check that nothing else listens at an address, before anything slow is done.

    Raises
    ------
    InputError
        It is taken, or none of this machine's.
    """
    if port is None:
        return
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise InputError(f"cannot serve at {host}:{port}: {error.strerror or error}") from error


def serve(
    shelf: Shelf,
    mined: Mined | None = None,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    browser: bool = False,
    debug: bool = False,
    ready: Callable[[str], None] = print,
) -> None:
    """Serve the page until it is interrupted.

    Parameters
    ----------
    shelf, mined
        The models, and what was mined of a data set.
    host
        The address to listen at; by default only this machine can reach it.
    port
        None: the first free one from 7860 on.
    share
        Whether to make a public address, through gradio's servers.
    browser
        Whether to open the page in a browser.
    debug
        Whether tracebacks of unexpected errors go to stderr.
    ready
        Told the page's address once it is served.

    Raises
    ------
    AttribkitError
        gradio is missing.
    InputError
        It cannot listen at that address.
    """
    require_gradio()
    with tempfile.TemporaryDirectory(prefix="attribkit-app-") as folder:
        # before gradio is imported: no analytics, and uploads where they are removed with the server
        os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1", GRADIO_TEMP_DIR=folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # gradio's own
            from attribkit.app.looks import theme
            from attribkit.app.ui import TOGETHER, Page
        from attribkit.app.pages import asset
        from attribkit.app.pictures import MAX_BYTES

        page = Page(shelf, mined, debug)
        page.blocks.queue(default_concurrency_limit=TOGETHER, max_size=64)
        try:
            _, local, public = page.blocks.launch(
                server_name=host,
                server_port=port,
                share=share,
                inbrowser=browser,
                quiet=True,
                prevent_thread_lock=True,
                max_file_size=MAX_BYTES,
                state_session_capacity=SESSIONS,
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                mcp_server=False,
                ssr_mode=False,
                pwa=False,
                theme=theme(),
                css=asset("app.css"),
            )
        except OSError as error:
            where = f"{host}:{port}" if port is not None else host
            raise InputError(f"cannot serve at {where}: {' '.join(str(error).split())}") from error
        try:
            ready(public or local)
            page.blocks.block_thread()
        finally:
            page.blocks.close(verbose=False)
