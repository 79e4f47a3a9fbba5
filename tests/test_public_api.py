"""The public names: all there, documented, and loaded lazily."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import attribkit

PACKAGE = Path(attribkit.__file__).parent
PINNED = {
    "AttribkitError",
    "Attribution",
    "CoverageWarning",
    "IncrementalWarning",
    "Inspection",
    "InverseLayer",
    "InverseMethod",
    "LoadedModel",
    "Method",
    "MethodInfo",
    "Unit",
    "__version__",
    "attribute",
    "hookimpl",
    "inspect",
    "load_model",
    "methods",
    "open_store",
    "project",
}


def run(code: str) -> str:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_public_names_are_the_pinned_ones():
    assert set(attribkit.__all__) == PINNED
    assert dir(attribkit) == sorted(PINNED)


@pytest.mark.parametrize("name", sorted(PINNED))
def test_each_public_name_loads_and_is_documented(name):
    found = getattr(attribkit, name)
    assert getattr(attribkit, name) is found
    if name not in ("__version__", "hookimpl"):
        assert found.__doc__
        assert found.__doc__.strip()


def test_types_and_names_at_run_time_agree():
    """A type checker reads the imports under TYPE_CHECKING, the program the table: they must say the same."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed.pop("models") == "attribkit"
    assert typed == attribkit._SOURCES


def test_import_is_light():
    heavy = '("torch", "torchvision", "timm", "numpy", "matplotlib", "PIL", "click", "rich", "importlib.metadata")'
    code = f"""
        import sys
        import attribkit
        dir(attribkit), attribkit.__version__
        print([name for name in {heavy} if name in sys.modules])
    """
    assert run(code) == "[]"


@pytest.mark.parametrize("method", ["gradient", "guided_backprop", "deconvnet", "occlusion"])
def test_the_first_call_imports_little_beside_torch(method):
    """Torch would import its compiler, or sympy, for some of what can be asked of it: that takes seconds."""
    code = f"""
        import sys
        import torch
        from torch import nn
        before = set(sys.modules)
        import attribkit as ak
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
        ak.attribute(net, torch.randn(1, 3, 8, 8), "{method}", 1)
        heavy = {{"timm", "torchvision", "matplotlib", "sympy", "torch._dynamo", "torch._inductor"}}
        print(sorted(heavy & (set(sys.modules) - before)))
    """
    assert run(code) == "[]"


def test_hookimpl_and_errors_need_no_torch():
    code = """
        import sys
        import attribkit as ak
        ak.hookimpl, ak.CoverageWarning, ak.AttribkitError
        print("torch" in sys.modules)
    """
    assert run(code) == "False"


def test_the_models_package_is_reached_through_attribkit():
    assert run("import attribkit as ak; print(ak.models.__name__)") == "attribkit.models"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'attribkit' has no attribute 'atribute'"):
        attribkit.atribute  # noqa: B018
    with pytest.raises(ImportError, match="atribute"):
        exec("from attribkit import atribute")


def test_no_submodule_has_the_name_of_a_public_function():
    submodules = {path.stem for path in PACKAGE.iterdir()}
    assert not submodules & set(attribkit.__all__)


def test_the_package_is_marked_as_typed():
    assert (PACKAGE / "py.typed").is_file()
