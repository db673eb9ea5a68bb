"""The reference of the commands: the help of each, as a terminal shows it."""

from pathlib import Path

from click import Command
from click.testing import CliRunner

from generation.page import with_part
from vllmjobs.cli import main

PAGE = "docs/commands.md"


def files(root: Path) -> dict[str, str]:
    """Return the page of the commands, with the help of all of them."""
    helps = [
        _help("vllmjobs", main),
        *(_help(f"vllmjobs {name}", main, name) for name in sorted(main.commands)),
    ]
    return {PAGE: with_part(root / PAGE, "commands", f"```console\n{''.join(helps)}```")}


def _help(words: str, command: Command, *arguments: str) -> str:
    done = CliRunner().invoke(command, [*arguments, "--help"], prog_name="vllmjobs", terminal_width=78)
    return f"$ {words} --help\n{done.output}"
