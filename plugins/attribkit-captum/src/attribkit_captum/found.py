"""Which algorithms the installed Captum has, read from its source: importing it would import torch.

An algorithm is taken if

- ``captum.attr`` exports it and it descends from Captum's ``Attribution``;
- it explains the input: none of Captum's ``InternalAttribution`` (the Layer… and Neuron… classes, InternalInfluence);
- its ``attribute`` takes ``inputs`` (the classes for language models and data loaders take something else);
- whatever it cannot do without, this plugin can give it: see `FILLED`.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

EXPORTS = "captum.attr"
BASE = ("captum.attr._utils.attribution", "Attribution")
INTERNAL = ("captum.attr._utils.attribution", "InternalAttribution")

#: What of a module's source matters: imports from Captum, heads and docstrings of classes, heads of two methods. To
#: parse whole modules would take a quarter of a second, and every command would wait for it.
_HEADS = re.compile(
    r"""^from\ captum[\w.]*\ import\ (?:\([^)]*\)|.*)$
    |^(?P<name>class\ \w+[^:]*):.*\n(?:\ {4}[rR]?"{3}(?P<words>[\s\S]*?)(?:\n\n|"{3}))?
    |^\ {4}def\ (?:__init__|attribute)\([\s\S]*?:[ ]*(?:\#.*)?\n""",
    re.MULTILINE | re.VERBOSE,
)

#: The parameters without a default of Captum's that this plugin has a value for.
FILLED = frozenset(
    {"forward_func", "model", "attribution_method", "layer", "inputs", "baselines", "sliding_window_shapes"}
)


@dataclass(frozen=True)
class Algorithm:
    """A class of Captum's as its source describes it.

    Attributes
    ----------
    name : str
        The class's name.
    sentence : str
        The first sentence of its docstring.
    """

    name: str
    sentence: str


def snake_case(name: str) -> str:
    """Return a class's name as a method's: ``InputXGradient`` is ``input_x_gradient``, ``LRP`` is ``lrp``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


@functools.lru_cache(maxsize=1)
def algorithms() -> dict[str, Algorithm]:
    """Return the algorithms that take images, by class name; raise ImportError where there is no Captum."""
    source = _Source(_root())
    found = {}
    for name, place in source.names(EXPORTS).items():
        chain = source.chain(place)
        places = [where for where, _ in chain]
        if BASE not in places[1:] or INTERNAL in places:
            continue
        if _takes_images([node for _, node in chain]):
            found[name] = Algorithm(name, first_sentence(ast.get_docstring(chain[0][1]) or ""))
    return dict(sorted(found.items(), key=lambda pair: snake_case(pair[0])))


def first_sentence(text: str) -> str:
    """Return the first sentence of a docstring on one line, without its full stop."""
    paragraph = " ".join(text.strip().partition("\n\n")[0].split())
    return re.split(r"(?<=[a-z)])\. |\.$", paragraph, maxsplit=1)[0]


def _root() -> Path:
    """Return Captum's folder; looking for a submodule would import the package, this does not."""
    spec = importlib.util.find_spec("captum")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("Captum is not installed: pip install captum")
    return Path(spec.submodule_search_locations[0])


def _takes_images(chain: list[ast.ClassDef]) -> bool:
    """Tell whether a class, the first of its chain of bases, can be called with images alone."""
    made, called = (_function(chain, name) for name in ("__init__", "attribute"))
    if made is None or called is None or [each.arg for each in called.args.args][1:2] != ["inputs"]:
        return False
    return _required(made) | _required(called) <= FILLED


def _function(chain: list[ast.ClassDef], name: str) -> ast.FunctionDef | None:
    for node in chain:
        own = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == name]
        if own:
            return own[-1]  # those before are overloads for type checkers
    return None


def _required(function: ast.FunctionDef) -> set[str]:
    """Return the parameters without a default, ``self`` aside."""
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    needed = positional[1 : len(positional) - len(arguments.defaults)]
    named = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return {each.arg for each in needed} | {each.arg for each, default in named if default is None}


def _heads(source: str) -> ast.Module:
    """Return the syntax tree of what matters in a module's source; of all of it where the style is another."""
    parts = []
    for match in _HEADS.finditer(source):
        if match["name"]:
            parts.append(f"{match['name']}:\n    {match['words'] or ''!r}")
        elif match.group().startswith("from"):
            parts.append(match.group())
        else:
            parts.append(f"{match.group()}        ...")
    try:
        return ast.parse("\n".join(parts))
    except SyntaxError:
        return ast.parse(source)


class _Source:
    """The modules of a package as syntax trees, each read when it is first needed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._trees: dict[str, ast.Module] = {}
        self._names: dict[str, dict[str, tuple[str, str]]] = {}

    def tree(self, module: str) -> ast.Module:
        if module not in self._trees:
            path = self.root.parent.joinpath(*module.split("."))
            path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            self._trees[module] = _heads(path.read_text(encoding="utf-8"))
        return self._trees[module]

    def names(self, module: str) -> dict[str, tuple[str, str]]:
        """Return what a module imports from the package: its own name to (module, name there)."""
        package = self.root.name
        if module in self._names:
            return self._names[module]
        self._names[module] = {
            alias.asname or alias.name: (node.module, alias.name)
            for node in self.tree(module).body
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == package
            for alias in node.names
        }
        return self._names[module]

    def chain(self, place: tuple[str, str]) -> list[tuple[tuple[str, str], ast.ClassDef]]:
        """Return a class and its bases inside the package, each with its place, the class itself first."""
        module, name = place
        own = [node for node in self.tree(module).body if isinstance(node, ast.ClassDef) and node.name == name]
        if not own:
            further = self.names(module).get(name)
            return self.chain(further) if further else []
        found = [(place, own[0])]
        for base in own[0].bases:
            base = base.value if isinstance(base, ast.Subscript) else base
            if isinstance(base, ast.Name):
                at = self.names(module).get(base.id, (module, base.id))
                found += [pair for pair in self.chain(at) if pair not in found]
        return found
