"""The command line: ``attribkit COMMAND``, one module a command.

Nothing here imports torch, numpy, timm or matplotlib; the commands that need them import them when they run.
"""

from __future__ import annotations

import click

from attribkit._version import __version__
from attribkit.cli._group import LazyGroup

_COMMANDS = {
    "explain": "attribkit.cli.explain:explain",
    "demo": "attribkit.cli.demo:demo",
    "app": "attribkit.cli.app:app",
    "methods": "attribkit.cli.methods:methods",
    "inspect": "attribkit.cli.inspect_:inspect_",
    "features": "attribkit.cli.features:features",
    "plugins": "attribkit.cli.plugins:plugins",
    "train": "attribkit.cli.train:train",
    "accuracy": "attribkit.cli.accuracy:accuracy",
    "ablation": "attribkit.cli.ablation:ablation",
    "probe": "attribkit.cli.probe:probe",
    "evolution": "attribkit.cli.evolution:evolution",
    "invariance": "attribkit.cli.invariance:invariance",
    "occlusion-study": "attribkit.cli.occlusion_study:occlusion_study",
    "correspondence": "attribkit.cli.correspondence:correspondence",
    "diagnose": "attribkit.cli.diagnose:diagnose",
    "check": "attribkit.cli.check:check",
    "new-plugin": "attribkit.cli.new_plugin:new_plugin",
    "report": "attribkit.cli.report_store:report",
}


@click.group(
    cls=LazyGroup,
    lazy_commands=_COMMANDS,
    epilog="--debug and -p no:NAME may also stand after the command.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, package_name="attribkit", prog_name="attribkit")
def main() -> None:
    """Ask any torch vision model why: attribution maps for a photograph, by several methods, on one page."""
