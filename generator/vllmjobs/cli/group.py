"""The group of all commands: a command is loaded when it is called, and its errors end it here."""

import errno
import gc
import io
from collections import UserDict
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import click

from vllmjobs.environment.problems import UserError
from vllmjobs.environment.secrets import without_secrets
from vllmjobs.terminal.printing import show, tell
from vllmjobs.text.visible import visible


class Listed(NamedTuple):
    """A command as `vllmjobs --help` lists it, without its module."""

    module: str  # the module of `vllmjobs.cli` that defines it
    short_help: str  # the first sentence of its help


class LoadedWhenCalled(UserDict[str, Any]):
    """Commands by name; a command's module is imported when the command is first asked for."""

    def __init__(self, listed: dict[str, Listed]) -> None:
        super().__init__(listed)
        self.listed = listed

    def __getitem__(self, name: str) -> click.Command:
        if isinstance(listed := self.data[name], Listed):
            module = _loaded(f"vllmjobs.cli.{listed.module}")
            # `import` is a word of Python, so its function is `import_`.
            self.data[name] = getattr(module, name, None) or getattr(module, f"{name}_")
        command: click.Command = self.data[name]
        return command


def _loaded(module: str) -> ModuleType:
    """Import a module without collecting garbage: modules make none, and to look for it takes a tenth."""
    gc.disable()
    try:
        return import_module(module)
    finally:
        gc.freeze()  # what was imported lives on, and later collections pass over it
        gc.enable()


class Commands(click.Group):
    """A group that ends what cannot be done with lines on stderr and exit code 1; 2 means changes here."""

    commands: LoadedWhenCalled

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the command line; see `click.Command.make_context`."""
        with _errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; see `click.Command.invoke`."""
        with _errors():
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without loading them; see `click.Group.format_commands`."""
        listed = self.commands.listed
        limit = formatter.width - 6 - max(map(len, listed))
        commands = (click.Command(name, help=listed[name].short_help) for name in self.list_commands(ctx))
        with formatter.section("Commands"):
            formatter.write_dl([(str(one.name), one.get_short_help_str(limit)) for one in commands])


def _shown(error: click.ClickException) -> str:
    """Return what Click says of an error, with what was typed on one line."""
    shown, message = io.StringIO(), error.format_message()
    error.show(shown)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):  # the message is the help
        return shown.getvalue()
    return shown.getvalue().replace(message, visible(without_secrets(message)))


@contextmanager
def _errors() -> Iterator[None]:
    """End a command that cannot go on: its error on stderr, its exit code."""
    try:
        yield
    except click.ClickException as error:
        show(_shown(error), err=True)
        raise click.exceptions.Exit(1) from error
    except UserError as error:
        show(f"{error}\n", err=True)
        raise click.exceptions.Exit(error.exit_code) from error
    except OSError as error:
        if error.errno == errno.EPIPE:  # `| head` has read enough; Click ends quietly
            raise
        tell(f"{error.filename or 'standard output'}: {error.strerror}")
        raise click.exceptions.Exit(1) from error
