"""Loading plugins: each on its own, failures kept and told of, names in conflict refused, nothing imported early."""

from __future__ import annotations

import importlib.metadata
import inspect
import re
import subprocess
import sys
import textwrap
import threading
import warnings
from pathlib import Path

import pluggy
import pytest

import attribkit.hookspecs
from attribkit import plugins
from attribkit.errors import InputTypeError, PluginError, PluginWarning, UnknownNameError
from attribkit.plugins import PluginManager

ROOT = Path(__file__).parent.parent

METHOD = """
    from attribkit.hookspecs import hookimpl
    from attribkit.method import Method

    class Mine(Method):
        name = "{name}"
        summary = "A method"

        def attribute(self, model, inputs, target, **options):
            return inputs

    @hookimpl
    def attribkit_methods(register):
        register(Mine)
"""
LAZY = """
    from attribkit.hookspecs import hookimpl

    @hookimpl
    def attribkit_methods(register):
        register("{name}", "{target}", summary="A method")
"""


class Site:
    """A folder of distributions, each with one module and one entry point, as an installer would leave them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, name: str, code: str, *, distribution: str = "", version: str = "1.0", value: str = "") -> str:
        """Write a plugin; return its module's name."""
        module = f"plugin_of_{name}"
        distribution = distribution or f"attribkit-{name}"
        (self.folder / f"{module}.py").write_text(textwrap.dedent(code))
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[attribkit]\n{name} = {value or module}\n")
        return module

    def entry_points(self) -> list[importlib.metadata.EntryPoint]:
        """Return the entry points of everything in the folder, by name."""
        found = importlib.metadata.distributions(path=[str(self.folder)])
        return sorted((point for each in found for point in each.entry_points), key=lambda point: point.name)

    def load(self, blocked: tuple[str, ...] = ()) -> PluginManager:
        return PluginManager(self.entry_points(), blocked)


@pytest.fixture
def site(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    folder.mkdir()
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(folder))
    yield Site(folder)
    for name in set(sys.modules) - before:
        if name.startswith("plugin_of_"):
            del sys.modules[name]


@pytest.fixture
def process_wide(monkeypatch):
    """Let a test load the process-wide manager anew, and put nothing of it in the way of other tests."""
    monkeypatch.delenv(plugins.DISABLE_VARIABLE, raising=False)
    plugins.reset()
    yield
    plugins.reset()


def only(manager: PluginManager) -> plugins.PluginInfo:
    """Return the one plugin that is not built in."""
    (info,) = (info for info in manager.plugins if info.name != "builtin")
    return info


def warned(manager: PluginManager) -> list[str]:
    """Return the messages of the PluginWarnings that the manager's report gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        manager.report()
    assert {warning.category for warning in caught} <= {PluginWarning}
    return [str(warning.message) for warning in caught]


# The built-in plugin


def test_builtins_go_through_the_hooks():
    manager = PluginManager([])
    assert list(manager.methods) == ["gradient", "guided_backprop", "deconvnet", "occlusion"]
    assert list(manager.models) == ["zfnet", "timm", "torchvision", "run"]
    (info,) = manager.plugins
    assert (info.name, info.distribution, info.version) == ("builtin", "attribkit", attribkit.__version__)
    assert info.state == "active"
    assert info.provides == {
        "methods": ["deconvnet", "gradient", "guided_backprop", "occlusion"],
        "models": ["run", "timm", "torchvision", "zfnet"],
    }
    assert manager.methods["gradient"].distribution == "attribkit"
    assert warned(manager) == []


@pytest.mark.parametrize("name", ["gradient", "guided_backprop", "deconvnet", "occlusion"])
def test_builtin_methods_load_as_registered(name):
    from attribkit.method import Method

    entry = PluginManager([]).method(name)
    assert issubclass(entry.load(), Method)
    assert entry.load() is entry.load()


@pytest.mark.parametrize("prefix", ["zfnet", "timm", "torchvision", "run"])
def test_builtin_loaders_load(prefix):
    assert callable(PluginManager([]).model(prefix).load())


def test_nothing_heavy_is_imported():
    code = """
        import sys
        from attribkit import plugins
        manager = plugins.manager()
        manager.method("deconvnet"), manager.model("timm")
        heavy = ("torch", "numpy", "timm", "torchvision", "matplotlib", "click")
        print([name for name in heavy if name in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# The hooks, each with a plugin that uses it


def test_attribkit_methods_takes_a_class(site):
    site.add("mine", METHOD.format(name="mine"), version="1.2.3")
    manager = site.load()
    entry = manager.method("mine")
    assert entry.load().__name__ == "Mine"
    assert entry.summary == "A method"
    assert (entry.distribution, entry.version, entry.plugin.name) == ("attribkit-mine", "1.2.3", "mine")
    info = only(manager)
    assert (info.state, info.provides, info.hooks) == ("active", {"methods": ["mine"]}, ["attribkit_methods"])
    assert warned(manager) == []


def test_attribkit_methods_takes_a_name_and_imports_on_load(site):
    site.add("lazy", LAZY.format(name="toolbox.mine", target="plugin_of_mine:Mine"))
    target = site.add("mine", METHOD.format(name="toolbox.mine"))
    manager = PluginManager([point for point in site.entry_points() if point.name == "lazy"])
    assert target not in sys.modules
    assert manager.method("toolbox.mine").load() is sys.modules[target].Mine


def test_attribkit_models(site):
    code = """
        from attribkit.hookspecs import hookimpl

        def load(name, weights=None):
            return name, weights

        @hookimpl
        def attribkit_models(register):
            register("zoo", load)
            register("lazy-zoo", f"{__name__}:load")
    """
    site.add("zoo", code)
    manager = site.load()
    assert manager.model("zoo").load()("lion", weights="w") == ("lion", "w")
    assert manager.model("lazy-zoo").load() is manager.model("zoo").load()
    assert only(manager).provides == {"models": ["lazy-zoo", "zoo"]}


OPERATIONS = """
    from attribkit.hookspecs import hookimpl

    @hookimpl
    def attribkit_inverse_layers(register):
        import torch
        register("{kind}", torch.nn.Bilinear)
        register("other_kind", torch.special.erf)
"""


def test_attribkit_inverse_layers_is_called_on_first_use(site):
    import torch

    site.add("ops", OPERATIONS.format(kind="bilinear"))
    manager = site.load()
    info = only(manager)
    assert (info.hooks, info.provides) == (["attribkit_inverse_layers"], {})
    expected = [("bilinear", torch.nn.Bilinear, info), ("other_kind", torch.special.erf, info)]
    assert [tuple(entry) for entry in manager.operations] == expected
    assert manager.operations == manager.operations
    assert info.provides == {"inverse_layers": ["bilinear", "other_kind"]}


def test_an_operation_of_two_kinds_is_left_out(site):
    import torch

    site.add("a", OPERATIONS.format(kind="one"))
    site.add("b", OPERATIONS.format(kind="two"))
    manager = site.load()
    with pytest.warns(PluginWarning, match=r"'Bilinear' is provided by attribkit-a 1\.0 .* and attribkit-b 1\.0"):
        found = manager.operations
    assert [(entry.kind, entry.operation, entry.plugin.name) for entry in found] == [
        ("other_kind", torch.special.erf, "a")  # both say the same: kept once
    ]


COMMAND = """
    import click
    from attribkit.hookspecs import hookimpl

    @hookimpl
    def attribkit_commands(cli):
        @cli.command()
        def {command}():
            "Say so."

        {after}
"""


def test_attribkit_commands(site):
    import click

    site.add("shop", COMMAND.format(command="sell", after=""))
    manager = site.load()
    cli = click.Group("attribkit")
    manager.add_commands(cli)
    assert list(cli.commands) == ["sell"]
    assert only(manager).provides == {"commands": ["sell"]}


def test_a_command_hook_that_fails_midway_adds_nothing(site):
    import click

    site.add("shop", COMMAND.format(command="sell", after="raise SystemExit('closed')"))
    site.add("works", COMMAND.format(command="buy", after=""))
    manager = site.load()
    cli = click.Group("attribkit")
    with pytest.warns(PluginWarning, match=r"skipped attribkit_commands of plugin 'shop' .*: SystemExit: closed"):
        manager.add_commands(cli)
    assert list(cli.commands) == ["buy"]


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("cli.add_command(print, 'say')", "command 'say' must be a click.Command, got builtin_function_or_method <"),
        ("cli.commands['say'] = None", "command 'say' must be a click.Command, got NoneType None"),
        ("cli.commands['say'] = click.Command", "command 'say' must be a click.Command, got type <class"),
        ("cli.commands['say'] = 'two\\nlines'", r"command 'say' must be a click.Command, got str 'two\nlines'"),
        ("cli.commands[3] = click.Command('say')", "a command's name must be a string that is not empty, got 3"),
        ("cli.commands[''] = click.Command('say')", "a command's name must be a string that is not empty, got ''"),
        ("cli.commands = None", "cli.commands must stay a dict, it is NoneType"),
    ],
)
def test_what_is_no_command_is_skipped_and_told_of(site, statement, reason):
    import click
    from click.testing import CliRunner

    site.add("shop", COMMAND.format(command="sell", after=statement))
    site.add("works", COMMAND.format(command="buy", after=""))
    manager = site.load()
    cli = click.Group("attribkit")
    with pytest.warns(PluginWarning, match=rf"skipped attribkit_commands of plugin 'shop' .*: {re.escape(reason)}"):
        manager.add_commands(cli)
    assert list(cli.commands) == ["buy"]
    info = next(info for info in manager.plugins if info.name == "shop")
    assert (info.state, info.provides) == ("failed", {})
    assert "\n" not in info.reason
    shown = CliRunner().invoke(cli, ["--help"])
    assert (shown.exit_code, shown.exception) == (0, None)


def test_a_command_does_not_replace_another(site):
    import click

    site.add("a", COMMAND.format(command="explain", after=""))
    site.add("b", COMMAND.format(command="sell", after=""))
    site.add("c", COMMAND.format(command="sell", after=""))
    manager = site.load()
    cli = click.Group("attribkit")
    own = cli.command("explain")(lambda: None)
    with pytest.warns(PluginWarning) as caught:
        manager.add_commands(cli)
    assert cli.commands["explain"] is own
    assert [str(warning.message).split(": ", 1)[1] for warning in caught] == [
        f"command 'explain' is already provided by attribkit {attribkit.__version__}",
        "command 'sell' is already provided by attribkit-b 1.0 (plugin 'b')",
    ]


def specified_hooks() -> list[str]:
    manager = pluggy.PluginManager("attribkit")
    manager.add_hookspecs(attribkit.hookspecs)
    return sorted(vars(manager.hook))


@pytest.mark.parametrize("hook", specified_hooks())
def test_each_hook_has_a_test_and_is_documented(hook):
    assert any(name == f"test_{hook}" or name.startswith(f"test_{hook}_") for name in globals())
    documentation = (ROOT / "docs" / "plugins.md").read_text()
    signature = ", ".join(inspect.signature(getattr(attribkit.hookspecs, hook)).parameters)
    assert re.search(rf"^### `{hook}\({signature}\)`$", documentation, re.M), (
        f"docs/plugins.md has no section on {hook}"
    )


def test_the_documented_plugin_works(site):
    documentation = (ROOT / "docs" / "plugins.md").read_text()
    (code,) = re.findall(r"^```python\n# attribkit_ixg\.py\n(.*?)^```$", documentation, re.M | re.S)
    assert len(code.splitlines()) <= 25
    site.add("ixg", code)
    manager = site.load()
    assert only(manager).reason == ""
    assert issubclass(manager.method("input_x_gradient").load(), attribkit.Method)


# Broken and unfitting plugins

BROKEN = {
    "import error": ("import no_such_module", "raised ModuleNotFoundError: No module named 'no_such_module'"),
    "exit": ("raise SystemExit('bye')", "loading 'plugin_of_broken' raised SystemExit: bye"),
    "syntax": ("def f(:", "raised SyntaxError"),
    "no hooks": (
        "def attribkit_methods(register): pass",
        "plugin_of_broken has no function marked @",
    ),
    "misspelt hook": (
        """
        from attribkit.hookspecs import hookimpl
        @hookimpl
        def attribkit_method(register): pass
        """,
        "attribkit_method: there is no hook 'attribkit_method', did you mean 'attribkit_methods'",
    ),
    "wrong argument": (
        """
        from attribkit.hookspecs import hookimpl
        @hookimpl
        def attribkit_models(register): register("zoo", print)
        @hookimpl
        def attribkit_methods(regster): pass
        """,
        r"\{'regster'\} are declared in the hookimpl but can not be found in the hookspec",
    ),
    "hook raises": (
        """
        from attribkit.hookspecs import hookimpl
        @hookimpl
        def attribkit_methods(register):
            register("fine", "module:Class", summary="Fine")
            raise RuntimeError("two\\nlines")
        """,
        "attribkit_methods: RuntimeError: two lines",
    ),
    "bad requires": (
        """
        from attribkit.hookspecs import hookimpl
        requires_attribkit = "about 1"
        """,
        "requires_attribkit must be a version specifier such as '>=0.1,<1', got 'about 1'",
    ),
    "requires no string": ("requires_attribkit = 1", "must be a version specifier such as '>=0.1,<1', got 1"),
}


@pytest.mark.parametrize(("code", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_skipped_and_told_of_once(site, code, reason):
    site.add("broken", code)
    site.add("works", METHOD.format(name="works"))
    manager = site.load()
    info = next(info for info in manager.plugins if info.name == "broken")
    assert info.state == "failed"
    assert re.search(reason, info.reason)
    assert "\n" not in info.reason
    assert info.provides == {}
    assert list(manager.methods) == ["gradient", "guided_backprop", "deconvnet", "occlusion", "works"]
    assert list(manager.models) == ["zfnet", "timm", "torchvision", "run"]  # also of a plugin refused for another hook
    (message,) = warned(manager)
    assert "plugin 'broken' of attribkit-broken 1.0: " in message
    assert re.search(reason.removeprefix("attribkit_methods: "), message)
    assert warned(manager) == []


REGISTRATIONS = {
    "method instance": ("methods", "register(object())", "expected a Method class or a name .*, got object <object"),
    "method no subclass": ("methods", "register(int)", "got int, which is no subclass of attribkit.Method"),
    "method None": ("methods", "register(None)", "got NoneType None"),
    "method no target": ("methods", "register('m')", r"register\('m'\): a name needs a target 'module:Class'"),
    "method no summary": ("methods", "register('m', 'a:B')", r"summary must be one line of text, got None"),
    "method long summary": (
        "methods",
        r"register('m', 'a:B', summary='x\ny')",
        r"one line of text, got 'x\\ny'",
    ),
    "method bad target": ("methods", "register('m', 'a.B', summary='s')", "must read 'module:object', got 'a.B'"),
    "method class target": (
        "methods",
        "register('m', int, summary='s')",
        "must read 'module:object', got <class",
    ),
    "method upper case": ("methods", "register('Mine', 'a:B', summary='s')", "lower-case identifiers .*, got 'Mine'"),
    "method hyphen": ("methods", "register('a-b', 'a:B', summary='s')", "lower-case identifiers .*, got 'a-b'"),
    "method empty": ("methods", "register('', 'a:B', summary='s')", "lower-case identifiers joined by dots, got ''"),
    "method dots": ("methods", "register('a..b', 'a:B', summary='s')", "joined by dots, got 'a..b'"),
    "method twice": (
        "methods",
        "register('m', 'a:B', summary='s'), register('m', 'a:C', summary='s')",
        "method 'm' is registered twice",
    ),
    "no arguments": ("methods", "register()", "TypeError: .* missing 1 required positional argument"),
    "prefix slash": ("models", "register('a/b', print)", "model prefix must be .*, got 'a/b'"),
    "prefix no string": ("models", "register(3, print)", "model prefix must be .*, got 3"),
    "loader no callable": ("models", "register('zoo', 3)", "a loader is a callable or 'module:loader', got int 3"),
    "loader bad target": ("models", "register('zoo', 'load')", "must read 'module:object', got 'load'"),
    "loader twice": (
        "models",
        "register('zoo', print), register('zoo', print)",
        "prefix 'zoo' is registered twice",
    ),
}


@pytest.mark.parametrize(("hook", "statement", "reason"), REGISTRATIONS.values(), ids=REGISTRATIONS)
def test_a_wrong_registration_takes_back_the_hook(site, hook, statement, reason):
    code = f"""
        from attribkit.hookspecs import hookimpl

        @hookimpl
        def attribkit_{hook}(register):
            register("before", "a:B"{", summary='s'" if hook == "methods" else ""})
            {statement}
    """
    site.add("wrong", code)
    manager = site.load()
    info = only(manager)
    assert info.state == "failed"
    assert info.reason.startswith(f"attribkit_{hook}: ")
    assert re.search(reason, info.reason)
    assert "before" not in {**manager.methods, **manager.models}
    assert len(warned(manager)) == 1


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("register('Kind', print)", "op kind must be a lower-case identifier, got 'Kind'"),
        ("register('kind', int)", "expected a torch.nn.Module class or a function, got int"),
        ("register('kind', 'm:C')", "expected a torch.nn.Module class or a function, got str 'm:C'"),
        ("register('kind', erf), register('kin', erf)", "special_erf is registered twice"),
        ("register('kind', print)", "no call of print would be seen: register a torch.nn.Module class, a function of"),
        ("register('kind', lambda x: x)", "<lambda> would be seen"),
        ("register('kind', own)", "no call of own would be seen"),
        ("register('kind', Square.apply)", "no call of Square.apply would be seen"),
        ("register('kind', torch.nn.ReLU())", "no call of ReLU ReLU() would be seen"),
        ("register('kind', torch.nn.ReLU().forward)", "no call of ReLU.forward would be seen"),
        ("register('kind', torch.vmap(erf))", "would be seen"),
        ("register('kind', functools.partial(erf))", "no call of partial functools.partial(<built-in"),
        ("register('kind', torch.nn.functional.tanh)", "no call of tanh would be seen"),
        ("raise SystemExit", "SystemExit"),
    ],
)
def test_a_wrong_operation_takes_back_the_hook(site, statement, reason):
    code = f"""
        from attribkit.hookspecs import hookimpl

        import functools
        import torch
        from torch.special import erf

        def own(x):
            return x * x

        class Square(torch.autograd.Function):
            pass

        @hookimpl
        def attribkit_inverse_layers(register):
            register("before", torch.special.erfc)
            {statement}
    """
    site.add("wrong", code)
    manager = site.load()
    with pytest.warns(PluginWarning, match=re.escape(reason)):
        assert manager.operations == []
    assert re.search(re.escape(reason), only(manager).reason)
    assert manager.operations == []


def test_what_can_be_registered_is_met_in_a_model(site):
    """Whatever is taken as an operation is found where a model calls it."""
    import torch
    from torch import nn
    from torch.overrides import wrap_torch_function

    from attribkit.engine.ops import Vocabulary
    from attribkit.engine.walk import Walk

    @wrap_torch_function(lambda x: (x,))
    def wrapped(x):
        return x * x

    library = torch.library.Library("attribkit_tests", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x + x, "CompositeImplicitAutograd")
    twice = torch.ops.attribkit_tests.twice

    class Model(nn.Module):
        def forward(self, x):
            x = wrapped(twice(torch.special.erf(x)))
            return torch.nn.functional.fold(twice.default(x).erfc(), (2, 2), (1, 1)).flatten(1)

    taken = [torch.special.erf, wrapped, twice, torch.Tensor.erfc, nn.functional.fold]
    taken += [torch._C._nn.silu_, torch.relu_, nn.functional.max_pool2d, nn.Identity]
    code = """
        from attribkit.hookspecs import hookimpl

        @hookimpl
        def attribkit_inverse_layers(register):
            for number, operation in enumerate(taken):
                register(f"kind{number}", operation)
    """
    module = site.add("ops", code)
    manager = site.load()
    sys.modules[module].taken = taken
    assert [entry.operation for entry in manager.operations] == taken
    for overload in (False, True):
        operations = [(entry.kind, entry.operation) for entry in manager.operations]
        operations[2] = ("kind2", twice.default if overload else twice)
        walk = Walk(Model(), vocabulary=Vocabulary(operations))
        walk.run(torch.rand(1, 3, 4))
        met = [(each.kind, each.name) for each in walk.sites if each.kind.startswith("kind")]
        expected = ["special_erf", "twice", "wrapped", "twice_1", "erfc", "fold"]
        assert [name for _, name in met] == expected
        assert [kind for kind, _ in met] == ["kind0", "kind2", "kind1", "kind2", "kind3", "kind4"]


def test_a_class_without_a_name_or_summary_is_refused(site):
    code = METHOD.format(name="mine").replace('summary = "A method"', "summary = 3")
    site.add("mine", code)
    assert "summary must be one line of text, got 3" in only(site.load()).reason


def test_the_other_hooks_of_a_plugin_stay(site):
    code = """
        from attribkit.hookspecs import hookimpl

        @hookimpl
        def attribkit_methods(register):
            raise ValueError("no")

        @hookimpl
        def attribkit_models(register):
            register("zoo", print)
    """
    site.add("half", code)
    manager = site.load()
    assert only(manager).state == "failed"
    assert only(manager).provides == {"models": ["zoo"]}
    assert manager.model("zoo").load() is print


def test_an_optional_hook_may_be_unknown(site):
    code = """
        from attribkit.hookspecs import hookimpl

        @hookimpl
        def attribkit_models(register):
            register("zoo", print)

        @hookimpl(optionalhook=True)
        def attribkit_later(register):
            raise ValueError
    """
    site.add("new", code)
    manager = site.load()
    assert only(manager).state == "active"
    assert warned(manager) == []


def test_keyboard_interrupt_is_not_swallowed(site):
    site.add("stop", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        site.load()


def test_an_entry_point_must_name_a_module(site):
    site.add("thing", "class Thing: pass", value="plugin_of_thing:Thing")
    assert "must name a module, 'plugin_of_thing:Thing' is a type" in only(site.load()).reason


def test_one_module_is_one_plugin(site):
    site.add("mine", METHOD.format(name="mine"))
    site.add("again", "", value="plugin_of_mine")
    manager = site.load()
    states = {info.name: (info.state, info.reason) for info in manager.plugins}
    assert states["again"] == ("active", "")
    assert states["mine"] == ("failed", "its module 'plugin_of_mine' is already loaded as plugin 'again'")
    assert manager.method("mine").plugin.name == "again"  # the first stays registered


@pytest.mark.parametrize(
    ("required", "state"),
    [(">=0.1,<1", "active"), ("~=0.1", "active"), (">=99", "incompatible"), ("==0.0.1", "incompatible")],
)
def test_requires_attribkit(site, required, state):
    site.add("mine", METHOD.format(name="mine") + f"\n    requires_attribkit = '{required}'\n")
    manager = site.load()
    info = only(manager)
    assert info.state == state
    assert ("mine" in manager.methods) == (state == "active")
    if state == "incompatible":
        assert info.reason == f"requires attribkit {required}, this is {attribkit.__version__}"
        assert len(warned(manager)) == 1


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("no_such_module:Class", "no_such_module:Class: ModuleNotFoundError: No module named 'no_such_module'"),
        ("plugin_of_mine:Absent", "AttributeError: module 'plugin_of_mine' has no attribute 'Absent'"),
        ("plugin_of_mine:attribkit_methods", "got attribkit_methods, which is no subclass of attribkit.Method"),
        ("plugin_of_mine:Mine", "plugin_of_mine:Mine: its name is 'other', but it is registered with 'mine'"),
        ("plugin_of_mine:Mine.name", "got str 'other', which is no subclass"),
        ("plugin_of_exit:Class", "plugin_of_exit:Class: SystemExit: bye"),
    ],
)
def test_a_lazy_method_that_does_not_hold_names_plugin_and_target(site, target, reason):
    site.add("lazy", LAZY.format(name="mine", target=target))
    (site.folder / "plugin_of_exit.py").write_text("raise SystemExit('bye')")
    (site.folder / "plugin_of_mine.py").write_text(textwrap.dedent(METHOD.format(name="other")))
    entry = site.load().method("mine")
    for _ in range(2):  # a failure is not remembered as a success
        with pytest.raises(PluginError) as caught:
            entry.load()
        assert str(caught.value).startswith("method 'mine' of attribkit-lazy 1.0 (plugin 'lazy') cannot be used: ")
        assert reason in str(caught.value)


def test_a_lazy_method_with_another_summary(site):
    site.add("lazy", LAZY.format(name="mine", target="plugin_of_mine:Mine").replace("A method", "Another"))
    (site.folder / "plugin_of_mine.py").write_text(textwrap.dedent(METHOD.format(name="mine")))
    with pytest.raises(PluginError, match="its summary is 'A method', but it is registered with 'Another'"):
        site.load().method("mine").load()


def test_a_lazy_loader_that_cannot_be_called(site):
    code = """
        from attribkit.hookspecs import hookimpl

        @hookimpl
        def attribkit_models(register):
            register("zoo", f"{__name__}:__doc__")
    """
    site.add("zoo", code)
    with pytest.raises(PluginError, match=r"model prefix 'zoo' of attribkit-zoo 1\.0 .* must be callable, got None"):
        site.load().model("zoo").load()


# Names


def test_two_methods_of_one_name(site):
    site.add("a", METHOD.format(name="same"), version="1.1")
    site.add("b", LAZY.format(name="same", target="x:Y"), version="2.2")
    site.add("c", METHOD.format(name="fine"))
    manager = site.load()
    assert "same" not in manager.methods
    assert manager.method("fine").load().name == "fine"
    expected = (
        "method 'same' is provided by attribkit-a 1.1 (plugin 'a') and attribkit-b 2.2 (plugin 'b'); "
        "none is used: block or uninstall all but one"
    )
    with pytest.raises(PluginError, match=re.escape(expected)):
        manager.method("same")
    assert [str(conflict) for conflict in manager.conflicts] == [expected]
    assert [(info.state, info.provides) for info in manager.conflicts[0].plugins] == [
        ("active", {"methods": ["same"]}),
        ("active", {"methods": ["same"]}),
    ]
    assert warned(manager) == [expected]
    assert site.load(blocked=("a",)).method("same").distribution == "attribkit-b"


def test_a_method_named_as_a_builtin_one(site):
    site.add("mine", METHOD.format(name="gradient"))
    manager = site.load()
    with pytest.raises(PluginError, match=r"by attribkit \S+ \(plugin 'builtin'\) and attribkit-mine 1\.0"):
        manager.method("gradient")
    assert manager.method("deconvnet")


def test_two_model_prefixes_of_one_name(site):
    code = LAZY.replace("methods", "models").replace(', summary="A method"', "")
    site.add("mine", code.format(name="timm", target="x:y"))
    manager = site.load()
    assert "timm" not in manager.models
    with pytest.raises(PluginError, match=r"model prefix 'timm' is provided by attribkit .* and attribkit-mine 1\.0"):
        manager.model("timm")
    assert manager.model("zfnet")


def test_unknown_names(site):
    site.add("broken", "import no_such_module")
    manager = site.load()
    with pytest.raises(UnknownNameError, match="unknown method 'deconvnt': did you mean 'deconvnet'"):
        manager.method("deconvnt")
    with pytest.raises(UnknownNameError, match=r"skipped plugins: broken; see `attribkit plugins`"):
        manager.method("mine")
    with pytest.raises(UnknownNameError, match="unknown model prefix 'tim': did you mean 'timm'"):
        manager.model("tim")
    with pytest.raises(InputTypeError, match="a method is named by a string, got int"):
        manager.method(3)


# Blocking

LEAVES_A_MARK = "import pathlib; pathlib.Path(__file__).with_name('imported').touch()"


@pytest.mark.parametrize("name", ["mine", "attribkit-mine", "Attribkit_Mine"])
def test_a_blocked_plugin_is_not_imported(site, name):
    site.add("mine", LEAVES_A_MARK)
    info = only(site.load(blocked=(name,)))
    assert (info.state, info.reason, info.module) == ("blocked", f"blocked by the name {name!r}", "plugin_of_mine")
    assert not (site.folder / "imported").exists()
    site.load()
    assert (site.folder / "imported").exists()


def test_blocking_what_is_not_there_is_told(site):
    site.add("mine", METHOD.format(name="mine"))
    manager = site.load(blocked=("mein",))
    assert warned(manager) == ["no plugin to block is named 'mein': did you mean 'mine'?"]


def test_the_builtin_plugin_can_be_blocked():
    manager = PluginManager([], blocked=["builtin"])
    assert manager.methods == {}
    with pytest.raises(UnknownNameError, match="unknown method 'gradient': there are none"):
        manager.method("gradient")


# The process-wide manager


@pytest.mark.usefixtures("process_wide")
def test_installed_plugins_are_found_and_loaded_once(site):
    site.add("mine", METHOD.format(name="mine"))
    manager = plugins.manager()
    assert manager.method("mine").distribution == "attribkit-mine"
    assert plugins.manager() is manager


@pytest.mark.usefixtures("process_wide")
def test_blocked_by_variable_and_by_call(site, monkeypatch):
    for name in "abc":
        site.add(name, LEAVES_A_MARK if name != "c" else METHOD.format(name="c"))
    monkeypatch.setenv("ATTRIBKIT_DISABLE_PLUGINS", " a ,,")
    plugins.block(["b"])
    manager = plugins.manager()
    states = {info.name: info.state for info in manager.plugins if info.name in "abc"}
    assert states == {"a": "blocked", "b": "blocked", "c": "active"}
    assert not (site.folder / "imported").exists()
    with pytest.raises(PluginError, match="cannot block 'c', 'd': the plugins are loaded already"):
        plugins.block("c, d")
    plugins.reset()
    plugins.block("b,c")
    assert {info.name: info.state for info in plugins.manager().plugins if info.name in "abc"} == {
        "a": "blocked",
        "b": "blocked",
        "c": "blocked",
    }


@pytest.mark.usefixtures("process_wide")
def test_warned_once_and_loaded_even_where_warnings_are_errors(site):
    site.add("broken", "import no_such_module")
    with pytest.raises(PluginWarning, match="skipped plugin 'broken'"):  # the tests run with warnings as errors
        plugins.manager()
    assert "gradient" in plugins.manager().methods


@pytest.mark.usefixtures("process_wide")
def test_a_plugin_must_not_use_the_registry_while_it_is_loaded(site):
    site.add("early", "from attribkit import plugins\nplugins.manager()")
    with pytest.warns(PluginWarning, match="a plugin must not use them when it is imported"):
        manager = plugins.manager()
    assert next(info for info in manager.plugins if info.name == "early").state == "failed"


@pytest.mark.usefixtures("process_wide")
def test_threads_load_once(site):
    site.add("slow", f"import time\ntime.sleep(0.05)\n{textwrap.dedent(METHOD.format(name='slow'))}")
    barrier = threading.Barrier(8)
    found = []

    def ask():
        barrier.wait()
        found.append((plugins.manager(), "slow" in plugins.manager().methods))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(manager) for manager, _ in found}) == 1
    assert all(complete for _, complete in found)


@pytest.mark.usefixtures("process_wide")
def test_unreadable_entry_points_do_not_hide_the_others(site):
    site.add("mine", METHOD.format(name="mine"))
    site.add("garbled", "")
    (info,) = site.folder.glob("attribkit_garbled*")
    (info / "entry_points.txt").write_text("[attribkit]\nthis line has no equals sign\n")
    with pytest.warns(PluginWarning, match="plugin 'attribkit-garbled' .* its entry points cannot be read"):
        manager = plugins.manager()
    assert "mine" in manager.methods


def test_a_plugin_without_metadata_works(site):
    site.add("bare", METHOD.format(name="bare"))
    (info,) = site.folder.glob("attribkit_bare*")
    (info / "METADATA").unlink()
    assert (only(site.load()).distribution, only(site.load()).version) == ("unknown", "unknown")
    point = importlib.metadata.EntryPoint("bare", "plugin_of_bare", "attribkit")
    assert PluginManager([point]).method("bare").distribution == "unknown"


def test_an_interrupted_collection_is_repeated(site):
    code = """
        from attribkit.hookspecs import hookimpl
        calls = []

        @hookimpl
        def attribkit_inverse_layers(register):
            calls.append(1)
            if len(calls) == 1:
                raise KeyboardInterrupt
            import torch
            register("kind", torch.special.erf)
    """
    site.add("ops", code)
    manager = site.load()
    with pytest.raises(KeyboardInterrupt):
        manager.operations  # noqa: B018
    assert [entry.kind for entry in manager.operations] == ["kind"]
