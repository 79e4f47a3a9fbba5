"""The command that a page gives to be copied: a shell makes the same words of it."""

import html
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from cli_helpers import error_of
from hypothesis import given, settings
from hypothesis import strategies as st

from attribkit.cli._group import shell_command

AWKWARD = [
    "plain",
    "",
    "two words",
    "it's",
    'a "quoted" <b>&amp;</b>',
    "$HOME `id` \\ * ? ! ~ # | ; & ( ) { } [ ]",
    "-dash",
    "猫.png",
    "tab\tline\nreturn\rbell\a",
    "\x1b[31mred'\\",
    "no-break\u00a0space \u202eturned",
    "\udcff\udc80 no text",
    "\x01f",
]


def words_of(command):
    """What bash makes of a command line, without running it."""
    script = f"printf '%s\\0' {command}"
    done = subprocess.run(["bash", "-c", script.encode("utf-8", "surrogateescape")], capture_output=True, check=True)
    return done.stdout.decode("utf-8", "surrogateescape").split("\0")[:-1]


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_reads_the_same_words():
    command = shell_command(["attribkit", *AWKWARD])
    assert command.isprintable() or "\u00a0" in command
    assert "\n" not in command
    assert words_of(command) == ["attribkit", *AWKWARD]


@settings(deadline=None)
@given(st.lists(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=8), max_size=5))
def test_words_that_can_be_shown_are_quoted_as_posix_has_it(words):
    assert shlex.split(shell_command(words)) == words


@pytest.mark.parametrize("command", ["explain", "report"])
def test_the_page_gives_the_command_that_made_it(run, picture, command, one_thread):
    name = "it's a $cat\n<b> & 猫.png"
    picture(name)
    explain = ("explain", name, "--model", "tinynets:five", "--method", "gradient", "--out", "my out", "--store")
    result = run(*explain)
    assert result.exit_code == 0, result.output
    words = explain
    if command == "report":
        words = ("report", "my out", "--model", "tinynets:five", "--image", "*cat*", "--out", "page's")
        assert run(*words).exit_code == 0
    page = Path(words[words.index("--out") + 1], "report.html").read_text("utf-8")
    (shown,) = re.findall(r'<code id="command">(.*?)</code>', page)
    assert words_of(html.unescape(shown)) == ["attribkit", *words]
    assert error_of(run("explain", "missing\n.png"))
