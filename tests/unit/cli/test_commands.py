"""`vllmjobs` and its commands: each is listed without its module, and loaded when it is called."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from vllmjobs.cli import COMMANDS, main


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_listed_with_the_short_help_that_it_has(name: str) -> None:
    listed = click.Command(name, help=COMMANDS[name].short_help)
    assert main.commands[name].get_short_help_str(200) == listed.get_short_help_str(200)
    assert main.commands[name].name == name


def test_the_help_lists_every_command_as_click_would() -> None:
    group = click.Group("vllmjobs", commands=dict(main.commands))
    expected = group.get_help(click.Context(group)).partition("Commands:\n")[2]
    assert expected
    assert expected in CliRunner().invoke(main, ["--help"]).stdout


def test_the_help_loads_no_command() -> None:
    code = (
        "import sys; from vllmjobs.cli import main; main(['--help'], standalone_mode=False);"
        "print(*sorted(name for name in sys.modules if name.startswith(('vllmjobs', 'msgspec'))))"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.splitlines()[-1] == (
        "vllmjobs vllmjobs.cli vllmjobs.cli.group vllmjobs.environment vllmjobs.environment.problems "
        "vllmjobs.environment.secret_names vllmjobs.environment.secret_shapes vllmjobs.environment.secrets "
        "vllmjobs.terminal vllmjobs.terminal.printing vllmjobs.text vllmjobs.text.visible"
    )


def test_a_command_that_does_not_exist_is_answered_with_the_nearest() -> None:
    done = CliRunner().invoke(main, ["rendr", "prod"])
    assert done.exit_code == 1
    assert "No such command 'rendr'" in done.stderr
    assert "render" in done.stderr
