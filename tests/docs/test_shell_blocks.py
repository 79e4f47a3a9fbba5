"""Every command in the documentation exists, with the options that it is shown with. Nothing is run."""

from __future__ import annotations

import re
import shlex
import sys

import click
import page_blocks
import pytest
from page_blocks import ROOT, Block, blocks_of, pages

from attribkit.cli import main as attribkit

SHELL = ("sh", "")  # in a block without a language, lines that begin like a command of ours are read
NARROW = (click.Choice, click.types.IntParamType, click.types.FloatParamType)
PLACEHOLDER = re.compile(r"…|\.\.\.")


@pytest.fixture(scope="module")
def program():
    """``attribkit`` with the commands of the distributions under plugins/."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "plugins" / "attribkit-quantus" / "src"))
        from attribkit_quantus import attribkit_commands

        group = click.Group("attribkit", params=attribkit.params)
        # with the settings that the program has: click keeps of a command how its help was first asked for
        with click.Context(attribkit, **attribkit.context_settings) as context:
            for name in attribkit.lazy_commands:
                group.add_command(attribkit.get_command(context, name), name)
        attribkit_commands(group)
        yield group
    for name in [name for name in sys.modules if name.partition(".")[0] == "attribkit_quantus"]:
        del sys.modules[name]


def command_lines(block: Block) -> list[tuple[int, str]]:
    """Return the block's lines, each with its number, continued ones joined, without comments."""
    found: list[tuple[int, str]] = []
    pending: tuple[int, str] | None = None
    for number, line in enumerate(block.text.splitlines(), block.line):
        start, text = pending or (number, "")
        text = f"{text} {line.strip()}".strip()
        if text.endswith("\\"):
            pending = start, text[:-1].rstrip()
        else:
            pending = None
            found.append((start, text))
    return found


def calls(line: str) -> list[list[str]]:
    """Return the arguments of each call of attribkit in a line of shell."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    words, parts = list(lexer), [[]]
    for word in words:
        if set(word) <= set("|&;"):
            parts.append([])
        else:
            parts[-1].append(word)
    found = []
    for part in parts:
        while part and (part[0] in ("$", "time") or re.fullmatch(r"[A-Z_]+=.*", part[0])):
            part = part[1:]
        if part[:1] == ["torchrun"] and "-m" in part:
            part = part[part.index("-m") + 1 :]
        elif part[:2] == ["python", "-m"]:
            part = part[2:]
        if part[:1] == ["attribkit"] or (part and part[0].endswith("/bin/attribkit")):
            found.append(part[1:])
    return found


def check(group: click.Group, arguments: list[str]) -> None:
    """Raise `click.UsageError` where a command or an option does not exist or a choice is wrong."""
    arguments = [argument for argument in arguments if not PLACEHOLDER.fullmatch(argument)]
    with click.Context(group, info_name="attribkit", **attribkit.context_settings) as context:
        own = {option for param in group.params for option in param.opts}
        while arguments and arguments[0] in own:
            arguments = arguments[2:] if arguments[0] == "-p" else arguments[1:]
        if not arguments or arguments[0] in ("-h", "--help", "--version"):
            return
        command = group.get_command(context, arguments[0])
        if command is None:
            raise click.UsageError(f"no command {arguments[0]!r}")
        rest = [argument for argument in arguments[1:] if argument not in ("--debug", "--help")]
        with click.Context(command, info_name=arguments[0], parent=context) as inner:
            values, left, _ = command.make_parser(inner).parse_args(rest)
            if left:
                raise click.UsageError(f"{left} is left over")
            for param in command.params:
                for value in _given(values, param):
                    if isinstance(param.type, NARROW):
                        param.type.convert(value, param, inner)


def _given(values: dict, param: click.Parameter) -> list[str]:
    value = values.get(param.name)
    return [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str)]


LINES = [
    pytest.param(text, id=f"{page_blocks.Block(page, '', '', number).place}")
    for page in pages()
    for block in blocks_of(page)
    if block.language in SHELL
    for number, text in command_lines(block)
    if text.startswith(("attribkit ", "torchrun ", "python -m attribkit", "make ")) or block.language == "sh"
]


@pytest.mark.parametrize("line", LINES)
def test_commands_exist(line, program):
    for arguments in calls(line):
        check(program, arguments)
    for target in re.findall(r"\bmake ([a-z][a-z-]*)", line.partition("#")[0]):
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), f"there is no target {target}"


def test_commands_are_found():
    block = Block(
        ROOT / "README.md", "sh", "attribkit explain a.jpg \\\n    --model zfnet  # why\ncd x && attribkit plugins", 3
    )
    assert [number for number, _ in command_lines(block)] == [3, 5]
    assert [call for _, line in command_lines(block) for call in calls(line)] == [
        ["explain", "a.jpg", "--model", "zfnet"],
        ["plugins"],
    ]
    assert calls("OMP_NUM_THREADS=1 torchrun --nproc-per-node 4 -m attribkit train --data D | tee log") == [
        ["train", "--data", "D"]
    ]
    assert len(LINES) > 30


@pytest.mark.parametrize(
    "wrong",
    ["explian a.jpg", "explain a.jpg --modle zfnet", "train --data D --epochs many", "report STORE again --limit"],
)
def test_wrong_commands_are_found(wrong, program):
    with pytest.raises(click.UsageError):
        check(program, wrong.split())
