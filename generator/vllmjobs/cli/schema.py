"""`schema`: what an environment may say, for editors and for people."""

import json

import click

from vllmjobs.environment.reference import reference
from vllmjobs.environment.schema import json_schema
from vllmjobs.terminal.printing import show_exact


@click.command()
@click.option("--format", "form", type=click.Choice(["json", "markdown"]), default="json", show_default=True,
              help="Print JSON Schema, or the reference as a page.")  # fmt: skip
def schema(form: str) -> None:
    """Print the JSON Schema of an environment."""
    if form == "markdown":
        text = reference(json_schema(whole=True))
    else:
        text = json.dumps(json_schema(), indent=2) + "\n"
    show_exact(text)
