"""Which algorithms are taken: read from the source, and the same as inspection of the imported package finds."""

import inspect
import subprocess
import sys

import captum.attr
import pytest
from attribkit_captum import found
from attribkit_captum.known import KNOWN, known
from attribkit_captum.options import OWN, options_of

import attribkit as ak


def test_reading_the_source_finds_what_inspecting_the_package_finds():
    from captum.attr import Attribution
    from captum.attr._utils.attribution import InternalAttribution

    expected = set()
    for name, thing in vars(captum.attr).items():
        if not inspect.isclass(thing) or not issubclass(thing, Attribution) or issubclass(thing, InternalAttribution):
            continue
        if not hasattr(thing, "attribute") or list(inspect.signature(thing.attribute).parameters)[1] != "inputs":
            continue
        needed = {
            each.name
            for function in (thing.__init__, thing.attribute)
            for each in inspect.signature(function).parameters.values()
            if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD
        }
        if needed - {"self"} <= found.FILLED:
            expected.add(name)
    assert set(found.algorithms()) == expected
    assert len(expected) >= 18
    assert not {name for name in expected if name.startswith(("Layer", "Neuron", "LLM", "DataLoader", "Internal"))}


@pytest.mark.parametrize(
    ("name", "snake"),
    [
        ("Saliency", "saliency"),
        ("DeepLiftShap", "deep_lift_shap"),
        ("InputXGradient", "input_x_gradient"),
        ("LRP", "lrp"),
        ("GuidedGradCam", "guided_grad_cam"),
        ("ShapleyValueSampling", "shapley_value_sampling"),
        ("HTTPThing2Do", "http_thing2_do"),
    ],
)
def test_snake_case(name, snake):
    assert found.snake_case(name) == snake


def test_the_methods_are_registered_with_captums_own_options():
    methods = {name: info for name, info in ak.methods().items() if name.startswith("captum.")}
    assert set(methods) == {f"captum.{found.snake_case(name)}" for name in found.algorithms()}
    for name in found.algorithms():
        info = methods[f"captum.{found.snake_case(name)}"]
        loaded, algorithm = info.load(), getattr(captum.attr, name)
        assert (info.distribution, loaded.name, loaded.algorithm) == ("attribkit-captum", info.name, algorithm)
        assert info.summary == loaded.summary
        assert info.source == loaded.source != ""
        captums = options_of(algorithm)
        assert not set(captums) & OWN
        assert {key: info.options[key] for key in captums if key != "attribution_method"} == {
            key: value for key, value in captums.items() if key != "attribution_method"
        }
        own = set(info.options) - set(captums)
        assert own <= {"seed", "default_rule", "attribution_options"}
        for option in info.options:
            assert option in loaded.__doc__


def test_listing_the_methods_imports_neither_torch_nor_captum():
    code = (
        "import sys; from attribkit.plugins import manager\n"
        "assert 'captum.saliency' in manager().methods\n"
        "assert not {'torch', 'captum'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def another_captum(tmp_path, monkeypatch):
    """Write the source of a Captum of the future and have the plugin look there."""
    root = tmp_path / "captum"
    (root / "attr" / "_core").mkdir(parents=True)
    (root / "attr" / "_utils").mkdir()
    (root / "attr" / "_utils" / "attribution.py").write_text(
        "class Attribution:\n    pass\n\n\nclass InternalAttribution(Attribution):\n    pass\n"
    )
    monkeypatch.setattr(found, "_root", lambda: root)
    found.algorithms.cache_clear()

    def write(exports, core):
        (root / "attr" / "__init__.py").write_text(f"from captum.attr._core.new import {exports}\n")
        (root / "attr" / "_core" / "new.py").write_text(core)
        return found.algorithms()

    yield write
    found.algorithms.cache_clear()


IMPORTS = "from captum.attr._utils.attribution import Attribution, InternalAttribution\n\n\n"


def test_a_new_release_brings_its_own(another_captum):
    core = IMPORTS + (
        "class Base(Attribution):\n    def __init__(self, forward_func):\n        ...\n\n\n"
        'class BrandNew(Base):\n    r"""\n    Looks twice. Then again.\n\n    More.\n    """\n\n'
        "    def attribute(self, inputs, baselines, target=None):\n        ...\n\n\n"
        "class NeuronNew(InternalAttribution, BrandNew):\n    pass\n\n\n"
        "class NeedsMore(Base):\n    def attribute(self, inputs, dictionary, target=None):\n        ...\n\n\n"
        "class OfText(Base):\n    def attribute(self, inp, target=None):\n        ...\n\n\n"
        "class Helper:\n    pass\n"
    )
    algorithms = another_captum("BrandNew, NeuronNew, NeedsMore, OfText, Helper", core)
    assert list(algorithms) == ["BrandNew"]
    facts = known("BrandNew", algorithms["BrandNew"].sentence)
    assert (facts.summary, facts.source) == ("Looks twice", "captum.attr.BrandNew")
    assert facts.random
    assert facts.rewrites
    assert not facts.together


def test_a_module_written_in_another_style_is_read_whole(another_captum):
    core = IMPORTS + (
        "class Odd(\n    Attribution,  # the base: it\n):\n"
        "    def __init__(self, model): ...\n    def attribute(self, inputs, target=None): ...\n"
    )
    assert list(another_captum("Odd", core)) == ["Odd"]


def test_a_missing_captum_is_said(monkeypatch):
    monkeypatch.setattr(found.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install captum"):
        found._root()


def test_what_is_known_is_of_algorithms_that_exist():
    assert set(KNOWN) <= set(found.algorithms())
