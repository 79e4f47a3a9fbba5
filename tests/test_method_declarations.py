"""What a method says of itself in a wrong way is refused in one line, wherever it is read."""

from __future__ import annotations

import pytest

import attribkit as ak
from attribkit.api import MethodInfo
from attribkit.cli.methods import _details
from attribkit.errors import InputError
from attribkit.method import failures_of, tags_of
from attribkit.registry import MethodEntry, PluginInfo, method_register
from attribkit.testing import check_method, checks_for, parametrize_with_checks


def method(**declared):
    return type("Declared", (ak.Method,), {"name": "declared", "summary": "Declared", **declared})


TAGS = {
    "none": (None, "got None"),
    "a string": ("signed", "got 'signed'"),
    "a number": (3, "got 3"),
    "a set with a number": ({3}, r"got \{3\}"),
    "two lines": ("a\nb", r"got 'a\\nb'"),
}
FAILURES = {
    "a set": ({"check_shape"}, "expected_failures must be a dict of checks to reasons, got {'check_shape'}"),
    "a list": (["check_shape"], r"expected_failures must be a dict of checks to reasons, got \['check_shape'\]"),
    "none": (None, "expected_failures must be a dict of checks to reasons, got None"),
    "no reason": ({"check_shape": ""}, r"expected_failures\['check_shape'\] must be the reason in words, got ''"),
    "blanks": ({"check_shape": "  "}, r"expected_failures\['check_shape'\] must be the reason in words, got ' '"),
    "true": ({"check_shape": True}, r"expected_failures\['check_shape'\] must be the reason in words, got True"),
    "a check": ({len: "x"}, "expected_failures must have names of checks as keys, got <built-in"),
}


def says(words):
    return pytest.raises(InputError, match=f"^method 'declared': {words}[^\n]*$")


@pytest.mark.parametrize(("tags", "words"), TAGS.values(), ids=TAGS)
def test_tags(tags, words):
    faulty = method(tags=tags)
    calls = [
        lambda: tags_of(faulty),
        lambda: tags_of(faulty()),
        lambda: list(checks_for(faulty())),
        lambda: check_method(type("Free", (faulty,), {"attribute": lambda self, model, inputs, target: inputs})),
    ]
    for call in calls:
        with says(f"tags must be a set of strings, {words}"):
            call()


@pytest.mark.parametrize(("failures", "words"), FAILURES.values(), ids=FAILURES)
def test_expected_failures(failures, words):
    faulty = method(expected_failures=failures, attribute=lambda self, model, inputs, target: inputs)
    for call in (
        lambda: failures_of(faulty),
        lambda: check_method(faulty, examples=1),
        lambda: parametrize_with_checks([faulty]),
    ):
        with says(words):
            call()
    if failures is None:
        return
    right = method(attribute=faulty.attribute)
    for call in (
        lambda: check_method(right, examples=1, expected_failures=failures),
        lambda: parametrize_with_checks([right], expected_failures=failures),
        lambda: parametrize_with_checks([right], expected_failures=lambda method: failures),
    ):
        with pytest.raises(InputError, match=f"^{words}"):
            call()


def test_what_is_right_is_taken():
    assert tags_of(method(tags=["signed"])) == tags_of(method(tags=frozenset({"signed"}))) == {"signed"}
    assert failures_of(method(expected_failures={"check_shape": "why"})) == {"check_shape": "why"}


def test_a_method_without_a_name_is_called_by_its_class():
    for name in ("", None):
        with pytest.raises(InputError, match=r"^method 'Declared': tags must"):
            tags_of(method(name=name, tags=None))


def test_where_methods_are_listed(monkeypatch):
    entries: dict[str, MethodEntry] = {}
    method_register(PluginInfo("mine", "mine", "1", "mine"), entries)(method(tags=None))
    (entry,) = entries.values()
    info = MethodInfo("declared", "Declared", "mine", "1", "mine", "", entry)
    with says("tags must be a set of strings"):
        _ = info.tags
    monkeypatch.setattr(ak, "methods", lambda: {"declared": info})
    with says("tags must be a set of strings"):
        _details("declared")


@pytest.mark.parametrize("table", [None, object(), [("rectifier", 1)], {"rectifier": None}])
def test_a_wrong_table_fails_the_checks_in_one_line(table):
    class Faulty(ak.InverseMethod):
        name = "faulty"
        summary = "A property that returns what is no table"

        @property
        def inverse_layers(self):
            return table

    results = check_method(Faulty, examples=1, on_fail=None)
    found = {result.check: result for result in results}
    for name in ("check_declaration", "check_shape"):
        assert found[name].status == "failed"
        assert found[name].message.startswith("InputTypeError: method 'faulty': inverse_layers")
        assert "\n" not in found[name].message


@pytest.mark.parametrize("needs", [None, 3, "input", [3]])
def test_needs(needs):
    class Layer(ak.InverseLayer):
        def carry(self, signal, site):
            return signal

    Layer.needs = needs

    class Faulty(ak.InverseMethod):
        name = "faulty"
        summary = "A layer that needs what cannot be read"
        inverse_layers = {"rectifier": Layer()}

    with pytest.raises(InputError, match=r"^method 'faulty': Layer\(\)\.needs must be a set of names, got "):
        Faulty().table()
