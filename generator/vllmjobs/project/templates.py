"""The templates of a project, its own folder's and then the shipped ones, and the jobs made of them."""

import os
from contextlib import suppress
from pathlib import Path

import jinja2
import jinja2.bccache

from vllmjobs.environment.load import Files
from vllmjobs.environment.model import Environment
from vllmjobs.project.shipped import shipped
from vllmjobs.render.job import RenderError, Templates, jobs, render


def templates(project: Path, files: Files | None = None) -> Templates:
    """Return the templates; one in the project's `jobs/` wins over the shipped one of that name.

    `files` reads the project's from elsewhere, such as a commit; it raises FileNotFoundError for what is not
    there.
    """

    def read(name: str) -> tuple[str, str] | None:
        own, common = project / "jobs" / name, shipped("jobs") / name
        if files is not None:
            with suppress(FileNotFoundError):
                return _text(files(own), own), str(own)
        elif os.path.lexists(own):  # a broken link is an error, and no reason to take the next
            return _text(own.read_bytes(), own), str(own)
        return (_text(common.read_bytes(), common), str(common)) if common.exists() else None

    return Templates(read, _compiled())


def rendered(environment: Environment, templates: Templates, only: str | None = None) -> dict[str, str]:
    """Return every job of an environment as HCL, by its name for `render --job`; or `only` that one."""
    return {name: render(environment, name, templates) for name in ([only] if only else jobs(environment))}


def _text(raw: bytes, path: Path) -> str:
    try:
        return raw.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise RenderError(f"{path}: byte {error.start} is not valid UTF-8; save the file as UTF-8") from error


def _compiled() -> jinja2.BytecodeCache | None:
    """Return the user's cache of compiled templates: to compile takes a sixth of a cold start."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "vllmjobs", "templates")
    try:
        folder = folder.expanduser()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError):  # the latter for a user without a home
        return None
    return _BestEffort(str(folder))


class _BestEffort(jinja2.FileSystemBytecodeCache):
    """A cache that does without a disk: a full or read-only one is no reason not to render."""

    def dump_bytecode(self, bucket: jinja2.bccache.Bucket) -> None:
        with suppress(OSError):
            super().dump_bytecode(bucket)
