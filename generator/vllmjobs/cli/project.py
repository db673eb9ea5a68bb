"""`init` and `import`: what a project is made of."""

from pathlib import Path

import click

from vllmjobs.cli.common import PROJECT, Selection
from vllmjobs.environment.load import MAX_BYTES
from vllmjobs.importing.imported import imported
from vllmjobs.project.shipped import shipped
from vllmjobs.terminal.printing import show_exact, tell


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--templates", "with_templates", is_flag=True,
              help="Also write the job templates, so that you can change them.")  # fmt: skip
def init(directory: Path, with_templates: bool) -> None:
    """Write a project to start from."""
    folders = ("envs", "jobs") if with_templates else ("envs",)
    sources = [source for folder in folders for source in sorted(shipped(folder).iterdir())]
    sources = [source for source in sources if source.name != "every-key.yaml"]  # to read, not to run
    targets = [directory / source.parent.name / source.name for source in sources]
    if there := [str(target) for target in targets if target.exists()]:
        raise click.ClickException(f"{', '.join(there)} would be overwritten; name an empty folder")
    for folder in folders:
        (directory / folder).mkdir(parents=True, exist_ok=True)
    for source, target in zip(sources, targets, strict=True):
        target.write_bytes(source.read_bytes())
        tell(f"wrote {target}")
    tell(f"next: {Selection('dev', project=directory).command('render')}")


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@click.option(
    "--as", "name", required=True, metavar="NAME", help="Name of the new environment; - prints it instead."
)
@click.option("--force", is_flag=True, help="Overwrite envs/NAME.yaml.")
@PROJECT
def import_(file: Path, name: str, force: bool, project: Path) -> None:
    """Write an environment from balanced-vllm-docker.

    FILE is its .env, or an older instances.config, and becomes envs/NAME.yaml of the project; - is stdin.
    What is not carried over, or not as it stood, is named on stderr. Secrets are never copied: the
    environment refers to where they are to be stored.
    """
    printed = name == "-"
    envs = project / "envs"
    base = "base.yaml" if (envs / "base.yaml").is_file() else None
    try:
        with click.open_file(str(file), "rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except RuntimeError as error:  # a closed stdin
        raise click.ClickException(f"{file} cannot be read: {error}") from error
    if len(raw) > MAX_BYTES:
        most = f"{MAX_BYTES // 2**20} MiB"
        raise click.ClickException(f"{file} is larger than {most}; name the .env file itself")
    text = raw.decode(errors="surrogateescape")
    found = imported(text, str(file), "imported" if printed else name, base)
    path = envs / f"{name}.yaml"
    if path.exists() and not (printed or force):
        raise click.ClickException(f"{path} exists; --force overwrites it")
    for note in found.notes:
        tell(str(note))
    if printed:
        show_exact(found.text)
        return
    envs.mkdir(parents=True, exist_ok=True)
    path.write_text(found.text, encoding="utf-8")
    tell(f"wrote {path}")
    tell(f"next: {Selection(name, project=project).command('check')}")
