"""The one way to the terminal: whoever wrote it, what is printed is visible, and without secrets.

The lines of a text are ours: what others wrote is put on one line where a line is made of it (`one_line`).
Secrets are taken out first: behind an escape that is spelt out, none would be found.
"""

import re
import sys

import click

from vllmjobs.environment.secrets import without_secrets
from vllmjobs.text.visible import visible, visible_json, visible_lines

_COLOR = re.compile(r"(\x1b\[\d*m)")  # as reports paint, around what they have made visible
# A forge's runner takes a line of a job's log for an order where it begins with `::`, or has `##[` anywhere
# (actions/runner, src/Runner.Common/ActionCommand.cs).
_BEGINS = re.compile(r"^( *):(?=:)", re.MULTILINE)


def readable(text: str) -> str:
    """Return lines for people, without secrets, unseen characters, and what a terminal or a runner obeys."""
    return _BEGINS.sub(r"\1\\x3a", _inert(visible_lines(without_secrets(text))))


def show(text: str, *, err: bool = False, painted: bool = False, encoding: str | None = None) -> None:
    """Print lines for people on stdout, or with `err` on stderr; `?` for what the encoding lacks.

    With `painted`, their colours stay. The `encoding` is the stream's own, unless another reads it.
    """
    pieces = _COLOR.split(text) if painted else [text]
    _write("".join(one if _COLOR.fullmatch(one) else readable(one) for one in pieces), err, encoding)


def tell(text: str) -> None:
    """Print a message on stderr, on one line."""
    show(f"{visible(without_secrets(text))}\n", err=True)


def show_json(text: str) -> None:
    """Print JSON, whose strings hold no secret and have escapes for what is not seen."""
    _write(visible_json(without_secrets(text)).replace("##[", "#\\u0023["), False, None)


def show_orders(text: str) -> None:
    """Print orders to the runner of a forge, in which `%`, newlines and the like are escaped."""
    _write(_inert(visible_lines(without_secrets(text))), False, None)


def show_exact(text: str) -> None:
    """Print what a program reads as it is, such as HCL, or a page that is shipped."""
    click.echo(text, nl=False)


def _write(text: str, err: bool, encoding: str | None) -> None:
    encoding = encoding or (sys.stderr if err else sys.stdout).encoding or "utf-8"
    click.echo(text.encode(encoding, "replace"), nl=False, err=err)


def _inert(text: str) -> str:
    return text.replace("##[", r"#\x23[")
