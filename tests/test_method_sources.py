"""Where a method was published: stated by its class, registered lazily, shown without importing the class."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
from click.testing import CliRunner

import attribkit as ak
from attribkit.cli import main
from attribkit.errors import PluginError
from attribkit.plugins import PluginManager
from attribkit.registry import MethodEntry, PluginInfo, method_register


class Sourced(ak.Method):
    name = "sourced"
    summary = "Nothing"
    source = "Somebody, Something, 2020, §1"


class Plain(ak.Method):
    name = "plain"
    summary = "Nothing"


def registered(*arguments, **named):
    entries: dict[str, MethodEntry] = {}
    method_register(PluginInfo("mine", "mine", "1", "mine"), entries)(*arguments, **named)
    (entry,) = entries.values()
    return entry


def test_a_class_states_its_source():
    assert registered(Sourced).source == "Somebody, Something, 2020, §1"
    assert registered(Plain).source == ""


@pytest.mark.parametrize("source", [None, Sourced.source])
def test_a_lazily_registered_method_may_state_its_source(source):
    entry = registered("sourced", f"{__name__}:Sourced", summary="Nothing", source=source)
    assert entry.source == (source or "")
    assert entry.load() is Sourced  # one that is left out contradicts nothing


def test_a_registered_source_must_be_the_classs():
    entry = registered("plain", f"{__name__}:Plain", summary="Nothing", source="Elsewhere")
    with pytest.raises(PluginError, match="its source is '', but it is registered with 'Elsewhere'"):
        entry.load()


@pytest.mark.parametrize("source", ["two\nlines", "  ", 7])
def test_a_source_is_one_line(source):
    with pytest.raises(PluginError, match="source must be one line of text"):
        registered("plain", f"{__name__}:Plain", summary="Nothing", source=source)


def test_a_class_is_registered_with_nothing_beside_it():
    with pytest.raises(PluginError, match="a class states its own name and summary"):
        registered(Sourced, source="Elsewhere")


def test_the_built_in_methods_state_theirs_as_registered():
    entries = PluginManager(entry_points=list[EntryPoint]()).methods
    assert set(entries) == {"gradient", "guided_backprop", "deconvnet", "occlusion"}
    for name, entry in entries.items():
        assert entry.source
        assert entry.load().source == entry.source == ak.methods()[name].source


def test_sources_are_known_without_torch():
    code = (
        "import sys; from attribkit.plugins import PluginManager\n"
        "assert all(entry.source for entry in PluginManager(entry_points=[]).methods.values())\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_methods_says_more_of_those_named():
    result = CliRunner().invoke(main, ["methods", "occlusion", "gradient"])
    assert result.exit_code == 0
    assert "source: Zeiler & Fergus" in result.stdout
    assert "    window = None\n" in result.stdout
    assert "    score = 'logit'\n" in result.stdout
    assert "claims: deterministic, inverse, linear_in_seed, signed" in result.stdout
    assert result.stdout.index("occlusion\n") < result.stdout.index("gradient\n")


def test_a_wrong_name_prints_nothing_but_the_nearest():
    result = CliRunner().invoke(main, ["methods", "gradient", "oclusion"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "did you mean 'occlusion'?" in result.stderr
