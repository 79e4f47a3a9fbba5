"""``attribkit new-plugin NAME``: an installable distribution with a method, ready to be changed."""

from __future__ import annotations

import keyword
import os
import re
import shutil
import tempfile
from pathlib import Path

import click

from attribkit._version import __version__
from attribkit.errors import AttribkitError, InputError

#: What a template becomes; ``src`` stands for the package's folder.
_FILES = {
    "pyproject.toml.j2": "pyproject.toml",
    "README.md.j2": "README.md",
    "src/__init__.py.j2": "src/{module}/__init__.py",
    "src/{kind}.py.j2": "src/{module}/method.py",
    "tests/test_conformance.py.j2": "tests/test_conformance.py",
    "tests/test_plugin.py.j2": "tests/test_plugin.py",
}
_SUMMARIES = {
    "inverse": "Backprop with a rule of its own at every rectifier",
    "perturbation": "What the score loses when parts of the image are set to zero",
    "free": "Input times gradient, for a start",
}


class NewPluginError(AttribkitError, OSError):
    """The distribution cannot be written."""


@click.command("new-plugin")
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(list(_SUMMARIES)),
    default="inverse",
    show_default=True,
    help="A table of inverse layers, a perturbation, or free form.",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=".", help="Where to put its folder.")
def new_plugin(name: str, kind: str, out: Path) -> None:
    """Write an installable plugin with one method, called NAME, and tests that pass as they are.

    NAME is a lower-case identifier that does not end in an underscore; the folder is attribkit-NAME.
    """
    folder = write_plugin(name, kind, out)
    shown = os.path.relpath(folder)
    where = shown if not shown.startswith("..") else str(folder)
    if not os.path.isabs(where):
        where = f".{os.sep}{where}"
    click.echo(f"Written: {where}")
    click.echo(f"Try it:  pip install {where} && attribkit check {name}")


def write_plugin(name: str, kind: str, out: Path) -> Path:
    """Write the distribution and return its folder; it appears whole or not at all.

    Parameters
    ----------
    name
        The method's name.
    kind
        ``"inverse"``, ``"perturbation"`` or ``"free"``.
    out
        The folder to put it in.

    Raises
    ------
    InputError
        The name is no lower-case identifier, ends in an underscore or is a word of Python's, or a method of that name
        is there already.
    NewPluginError
        The folder exists, or cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from attribkit.plugins import manager

    # a distribution's name may not end in a separator, and the class bears the name too: true would make it True
    cls = "".join(part.capitalize() for part in name.split("_"))
    if not re.fullmatch(r"[a-z]([a-z0-9_]*[a-z0-9])?", name) or keyword.iskeyword(name) or keyword.iskeyword(cls):
        rule = "a lower-case identifier such as my_method, not ending in _ and no word of Python's own"
        raise InputError(f"name must be {rule}, got {name!r}")
    taken = manager().methods.get(name)
    if taken is not None:
        raise InputError(
            f"there is a method {name!r} already, of {taken.distribution} {taken.version}: take another name"
        )
    distribution = f"attribkit-{name.replace('_', '-')}"
    folder = out / distribution
    if folder.exists() or folder.is_symlink():
        raise NewPluginError(f"{folder} is there already: move it away or give --out another folder")
    values = {
        "name": name,
        "distribution": distribution,
        "module": f"attribkit_{name}",
        "cls": cls,
        "summary": _SUMMARIES[kind],
        "version": ".".join(__version__.split(".")[:2]),
    }
    templates = Environment(
        loader=PackageLoader("attribkit", "assets/new_plugin"), undefined=StrictUndefined, keep_trailing_newline=True
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".attribkit-", dir=out))
    except OSError as error:
        raise NewPluginError(f"cannot write into {out}: {error.strerror or error}") from error
    try:
        made = staging / distribution
        for source, target in _FILES.items():
            path = made / target.format(module=values["module"])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(templates.get_template(source.format(kind=kind)).render(values), encoding="utf-8")
        made.rename(folder)
    except OSError as error:
        raise NewPluginError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder
