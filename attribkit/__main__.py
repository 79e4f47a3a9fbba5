"""``python -m attribkit`` is the command line."""

from attribkit.cli import main

if __name__ == "__main__":
    main(prog_name="attribkit")
