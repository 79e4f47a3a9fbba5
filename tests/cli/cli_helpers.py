"""What the command line's tests share."""


def error_of(result, code=1):
    """Return the one line that a failed command wrote to stderr."""
    assert result.exit_code == code, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("attribkit: error: ")
    return lines[0].removeprefix("attribkit: error: ")
