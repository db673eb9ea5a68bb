"""Where templates and examples are read from: the project's own folder, then what is shipped."""

from pathlib import Path

from vllmjobs.render.job import TemplateReader

_PACKAGE = Path(__file__).parent


def shipped(folder: str) -> Path:
    """`jobs` or `envs` as shipped: inside the package in a wheel, at the top of a checkout."""
    installed = _PACKAGE / folder
    return installed if installed.is_dir() else _PACKAGE.parents[1] / folder


def template_reader(project: Path) -> TemplateReader:
    """Reads a template by its name; one in the project's `jobs/` wins over the shipped one."""

    def read(name: str) -> tuple[str, str] | None:
        for path in (project / "jobs" / name, shipped("jobs") / name):
            if path.is_file():
                return path.read_text(encoding="utf-8"), str(path)
        return None

    return read
