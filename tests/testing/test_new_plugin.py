"""What new-plugin writes, really installed; and broken, duplicate and blocked plugins, really installed too."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

import attribkit as ak
from attribkit.cli import main
from attribkit.cli.new_plugin import write_plugin
from attribkit.errors import InputError

MODEL = """
import torch


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 7, 4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(4),
                               torch.nn.Flatten(), torch.nn.Linear(64, 5))
"""
KINDS = ("inverse", "perturbation", "free")


class Place:
    """A folder outside the repository that distributions are installed into, and commands run from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.site = folder / "site"
        self.work = folder / "work"
        self.work.mkdir()

    def install(self, *distributions: Path) -> None:
        flags = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--no-input"]
        command = [sys.executable, "-m", "pip", "install", *flags, "--target", str(self.site), *map(str, distributions)]
        done = subprocess.run(command, cwd=self.work, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def run(self, *command, code=0, **env):
        path = os.pathsep.join([str(self.site), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        done = subprocess.run(
            [sys.executable, "-m", *map(str, command)],
            cwd=self.work,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **env},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("outside"))
    made = [write_plugin(f"demo_{kind}", kind, place.work) for kind in KINDS]
    broken = write_plugin("broken", "free", place.work)
    (broken / "src/attribkit_broken/__init__.py").write_text("import no_such_module\n")
    one, other = (write_plugin("twin", "free", place.work / folder) for folder in ("one", "other"))
    rename(other, "attribkit-twin", "attribkit-other-twin", "attribkit_twin", "attribkit_other_twin")
    unfit = write_plugin("unfit", "free", place.work)
    module = unfit / "src/attribkit_unfit/__init__.py"
    module.write_text(module.read_text().replace('">=0.1,<1"', '">=99"'))
    place.install(*made, broken, one, other, unfit)
    return place


def rename(folder: Path, *pairs: str) -> None:
    """Give a distribution another name and module."""
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_file():
                path.write_text(path.read_text().replace(old, new))
            if path.name == old:
                path.rename(path.with_name(new))


@pytest.mark.parametrize("kind", KINDS)
def test_its_tests_pass_as_generated(place, kind):
    folder = place.work / f"attribkit-demo-{kind}"
    done = place.run("pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", folder, "--rootdir", folder)
    assert " passed" in done.stdout
    assert "failed" not in done.stdout


def test_check_and_explain(place):
    done = place.run("attribkit", "check", "demo_free", "--examples", 2)
    assert "checks passed" in done.stdout
    (place.work / "demo.py").write_text(MODEL)
    Image.new("RGB", (40, 30), (200, 80, 20)).save(place.work / "photograph.png")
    explain = ("explain", "photograph.png", "--model", "demo:model", "--method", "demo_free", "--out", "out")
    place.run("attribkit", *explain)
    assert (place.work / "out" / "photograph.demo_free.png").exists()
    assert (place.work / "out" / "report.html").exists()


def row(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.split()[:1] == [name])


def test_each_plugin_is_listed_with_its_state(place):
    shown = place.run("attribkit", "plugins").stdout
    assert "active" in row(shown, "demo_inverse")
    assert "attribkit-demo-inverse" in row(shown, "demo_inverse")
    assert "failed" in row(shown, "broken")
    assert "ModuleNotFoundError" in row(shown, "broken")
    assert "incompatible" in row(shown, "unfit")
    assert "requires attribkit >=99" in row(shown, "unfit")


def test_a_broken_plugin_stops_nothing(place):
    done = place.run("attribkit", "methods")
    assert "deconvnet" in done.stdout
    assert "broken" in done.stderr


def test_two_methods_of_one_name_are_refused_by_both_distributions_names(place):
    done = place.run("attribkit", "check", "twin", "--examples", 1, code=1)
    assert "attribkit-twin" in done.stderr
    assert "attribkit-other-twin" in done.stderr
    assert "Traceback" not in done.stderr
    blocked = place.run("attribkit", "-p", "no:attribkit-other-twin", "methods").stdout
    assert "attribkit-twin" in row(blocked, "twin")


def test_a_blocked_plugin_is_not_imported(place):
    shown = place.run("attribkit", "-p", "no:broken", "plugins")
    assert "blocked" in row(shown.stdout, "broken")
    assert "no_such_module" not in shown.stdout + shown.stderr
    by_variable = place.run("attribkit", "methods", ATTRIBKIT_DISABLE_PLUGINS="demo_free,broken").stdout
    assert "demo_free" not in by_variable
    assert "demo_inverse" in by_variable


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *args: CliRunner().invoke(main, ["new-plugin", *map(str, args)], prog_name="attribkit")


def test_command_says_what_to_do_next(command, tmp_path):
    done = command("my_demo")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "Written: ./attribkit-my-demo",
        "Try it:  pip install ./attribkit-my-demo && attribkit check my_demo",
    ]
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert files == [
        "attribkit-my-demo/README.md",
        "attribkit-my-demo/pyproject.toml",
        "attribkit-my-demo/src/attribkit_my_demo/__init__.py",
        "attribkit-my-demo/src/attribkit_my_demo/method.py",
        "attribkit-my-demo/tests/test_conformance.py",
        "attribkit-my-demo/tests/test_plugin.py",
    ]
    lines = (tmp_path / "attribkit-my-demo/src/attribkit_my_demo/method.py").read_text().splitlines()
    assert len(lines) <= 30


@pytest.mark.parametrize(
    "name",
    [
        "Demo",
        "my-demo",
        "1st",
        "",
        "lambda",
        "../up",
        "a.b",
        "true",
        "none",
        "false",
        "foo_",
        "foo__",
        "true_",
        "_",
        "a\n",
    ],
)
def test_names_that_are_refused(command, tmp_path, name):
    done = command(name)
    assert done.exit_code == 1
    assert "lower-case identifier" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["match", "case", "type", "a", "x1", "a_1", "a__b", "nones", "positive_part", "method"]
)
def test_names_that_are_taken_make_valid_distributions(name, kind, tmp_path):
    folder = write_plugin(name, kind, tmp_path)
    assert re.fullmatch(r"attribkit-[a-z0-9-]*[a-z0-9]", folder.name)
    for path in folder.rglob("*.py"):
        compile(path.read_text(), str(path), "exec")
    code = (folder / f"src/attribkit_{name}/method.py").read_text()
    namespace: dict = {}
    exec(code, namespace)
    made = {each.name for each in namespace.values() if isinstance(each, type) and issubclass(each, ak.Method)}
    assert made == {name}


def test_a_taken_name_is_refused(command, tmp_path):
    done = command("deconvnet")
    assert done.exit_code == 1
    assert "there is a method 'deconvnet' already, of attribkit" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(command, tmp_path):
    (tmp_path / "attribkit-demo").mkdir()
    done = command("demo")
    assert done.exit_code == 1
    assert "is there already" in done.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["attribkit-demo"]


def test_a_fault_midway_leaves_nothing(tmp_path, monkeypatch):
    def fail(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="No space left"):
        write_plugin("demo", "free", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_kind_is_wrong_usage(command):
    assert command("demo", "--kind", "magic").exit_code == 2
    with pytest.raises(InputError, match="lower-case identifier"):
        write_plugin("Demo", "free", Path())
