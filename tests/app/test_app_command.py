"""``attribkit app`` on the command line, and what it refuses."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from attribkit.app import serving
from attribkit.cli import main


def run(*args):
    return CliRunner().invoke(main, ["app", *map(str, args)], prog_name="attribkit")


def test_help_imports_neither_torch_nor_gradio():
    code = (
        "import sys; from click.testing import CliRunner; from attribkit.cli import main; import attribkit.app;"
        "r = CliRunner().invoke(main, sys.argv[1:]); assert r.exit_code == 0, r.output;"
        "print([m for m in ('torch', 'gradio', 'timm', 'numpy') if m in sys.modules])"
    )
    for args in (["--help"], ["app", "--help"]):
        found = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
        assert found.stdout.strip() == "[]", found.stdout


def test_a_missing_gradio_is_one_line_that_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = run()
    assert result.exit_code == 1
    assert result.stderr == "attribkit: error: the app needs gradio: pip install 'attribkit[app]'\n"


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--weights", "w.pt"], 2, "--weights needs --model"),
        (["--model", "timm/resnet81"], 1, "unknown model 'timm/resnet81'"),
        (["--features", "nowhere"], 1, "features.json cannot be read"),
        (["--checkpoints", "nowhere"], 1, "no folder"),
        (["--port", "99999"], 2, "99999"),
        (["--device", "cuda:99"], 1, "cuda:99"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_is_served(monkeypatch, tmp_path, args, code, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(serving, "serve", lambda *_, **__: pytest.fail("it was served"))
    result = run(*args)
    assert result.exit_code == code
    assert words in result.stderr
    assert "Traceback" not in result.output


def test_only_this_machine_is_served_and_nothing_public_unless_asked(monkeypatch):
    asked = {}
    monkeypatch.setattr(serving, "serve", lambda shelf, mined, **more: asked.update(more, shelf=shelf, mined=mined))
    monkeypatch.setenv("GRADIO_SHARE", "True")
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    assert run("--model", "zfnet-fashion").exit_code == 0
    assert (asked["host"], asked["share"], asked["browser"], asked["mined"]) == ("127.0.0.1", False, False, None)
    assert asked["shelf"].choices[0] == "zfnet-fashion"
    assert run("--model", "zfnet-fashion", "--host", "0.0.0.0", "--share").exit_code == 0
    assert (asked["host"], asked["share"]) == ("0.0.0.0", True)


def test_a_taken_port_is_said_in_one_line(server):
    port = server.rpartition(":")[2]
    command = [sys.executable, "-m", "attribkit", "app", "--model", "zfnet-fashion", "--port", port]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert f"cannot serve at 127.0.0.1:{port}" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_page_that_the_server_has_forgotten_is_told_so():
    code = (
        "import os; os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False';"
        "from attribkit.app.ui import Page; from attribkit.app.shelf import Shelf; from attribkit.app import actions;"
        "page = Page(Shelf(['zfnet-fashion']));"
        "print(page._at_once(actions.methods_chosen)(None, ['gradient'])[page.parts['notice']])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "reload it, and its address restores the view" in found.stdout


def test_what_a_stream_sends_last_changes_nothing():
    """Gradio sends it once more when the stream has ended, when a later action may have changed the page."""
    code = (
        "import os; os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False';"
        "import gradio as gr; from attribkit.app.ui import Page; from attribkit.app.shelf import Shelf;"
        "page = Page(Shelf(['zfnet-fashion']));"
        "sent = list(page._streamed(lambda session: iter([{'maps': 'drawn'}]))(object()));"
        "assert sent[0] == {page.parts['maps']: 'drawn'}, sent;"
        "assert list(sent[-1].values()) == [gr.skip()], sent"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
