"""Progress bars: in a terminal and in a notebook, and no IPython where there is none."""

import re
import subprocess
import sys
import types

import pytest

from attribkit import _notebook, progress


class Display:
    """Stands for IPython's display: keeps what is shown, and each later state of it."""

    def __init__(self):
        self.states, self.displays = [], 0

    def display(self, contents, *, raw, display_id):
        assert raw
        assert display_id
        self.displays += 1
        self.states.append(contents)
        return types.SimpleNamespace(update=lambda contents, raw: self.states.append(contents))


@pytest.fixture
def kernel(monkeypatch):
    """A notebook that seems to run."""
    shell = types.SimpleNamespace(kernel=object())
    shown = Display()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    monkeypatch.setattr(progress, "REDRAW_SECONDS", 0.0)
    return shown


def test_a_notebook_is_a_shell_with_a_kernel(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not _notebook.running()
    for shell, wanted in ((None, False), (types.SimpleNamespace(), False), (types.SimpleNamespace(kernel=1), True)):
        monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert _notebook.running() is wanted


def test_a_bar_in_a_notebook_is_one_output_that_changes_and_goes(kernel):
    with progress.shown(True, "outer"):
        for _ in progress.track(range(3), r"\[bold] <b>"):
            pass
    assert kernel.displays == 1
    html = [state["text/html"] for state in kernel.states]
    done = [re.search(r'value="(\d+)" max="3"', state)[1] for state in html[:-1]]
    assert done == ["0", "1", "2", "3"]
    assert all("[bold] &lt;b&gt;" in state for state in html[:-1])
    assert kernel.states[-1] == {"text/html": "", "text/plain": ""}
    assert kernel.states[1]["text/plain"] == "[bold] <b> 1 of 3"


def test_bars_within_bars_and_unknown_totals(kernel):
    with progress.shown(True):
        for _ in progress.track(range(2), "outer"):
            for _ in progress.track(iter("ab"), "inner"):
                pass
    both = [state["text/html"] for state in kernel.states if state["text/html"].count("<progress") == 2]
    assert both
    assert all("inner" in state and "outer" in state for state in both)
    assert kernel.displays == 1


def test_a_bar_is_gone_after_an_error(kernel):
    def fails():
        with progress.shown(True):
            for _ in progress.track(range(2)):
                raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fails()
    assert kernel.states[-1]["text/html"] == ""
    with progress.shown(True):  # and the next loop has its own
        assert list(progress.track([1, 2])) == [1, 2]
    assert kernel.displays == 2


def test_no_bar_without_a_loop(kernel):
    with progress.shown(True):
        pass
    with progress.shown(False):
        assert list(progress.track([1])) == [1]
    assert kernel.states == []


def test_bars_are_not_drawn_more_often_than_can_be_seen(kernel, monkeypatch):
    monkeypatch.setattr(progress, "REDRAW_SECONDS", 3600.0)
    with progress.shown(True):
        assert len(list(progress.track(range(1000)))) == 1000
    assert len(kernel.states) == 2  # the first, and nothing at the end


def test_where_no_notebook_runs_ipython_is_not_imported():
    program = """
import sys, torch, attribkit as ak
from torch import nn
net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()
found = ak.attribute(net, torch.zeros(2, 3, 4, 4), "gradient", batch_size=1, progress=True)
found.show()
ak.inspect(net, torch.zeros(1, 3, 4, 4))._repr_html_()
assert "IPython" not in sys.modules and "ipywidgets" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Attribution(gradient, values (2, 3, 4, 4)")
    assert "gradient rewrites no operation." in done.stdout
