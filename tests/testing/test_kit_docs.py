"""The documentation of the kit says what the kit does."""

from __future__ import annotations

import re
from pathlib import Path

import page_of_checks

import attribkit.hookspecs
from attribkit.testing import check_method

ROOT = Path(__file__).parent.parent.parent


def test_the_reference_of_checks_is_up_to_date():
    assert page_of_checks.PAGE.read_text(encoding="utf-8") == page_of_checks.page(), "run `make conformance`"


def test_the_tutorials_method_passes():
    text = (ROOT / "docs" / "write-a-plugin.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    namespace: dict = {}
    for block in blocks:
        if "(ak.Method)" in block or "(ak.InverseMethod)" in block:
            exec(compile(block, "write-a-plugin.md", "exec"), namespace)
    made = [value for name, value in namespace.items() if name[0].isupper() and hasattr(value, "attribute")]
    assert len(made) >= 3
    for method in made:
        check_method(method, examples=3)


def test_every_hook_is_documented_and_tested():
    hooks = [name for name in vars(attribkit.hookspecs) if name.startswith("attribkit_")]
    assert len(hooks) >= 4
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    tests = (ROOT / "tests" / "test_plugins.py").read_text(encoding="utf-8")
    for hook in hooks:
        assert re.search(rf"^### `{hook}\(", page, flags=re.M), f"docs/plugins.md does not describe {hook}"
        assert re.search(rf"def test_{hook}", tests), f"tests/test_plugins.py does not test {hook}"
