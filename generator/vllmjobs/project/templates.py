"""The templates of a project, its own folder's and then the shipped ones, and the jobs made of them."""

import os
import stat
import weakref
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Literal

import jinja2
import jinja2.bccache
from jinja2.loaders import split_template_path

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
        below = Path(*split_template_path(name))  # raises TemplateNotFound for a name with `..` in it
        own, common = project / "jobs" / below, shipped("jobs") / below
        if files is not None:
            with suppress(FileNotFoundError):
                return _text(files(own), own), str(own)
        elif os.path.lexists(own):  # a broken link is an error, and no reason to take the next
            if not own.resolve().is_relative_to(project.resolve() / "jobs"):
                raise RenderError(f"{own} is a link that leads out of jobs/; put the file itself there")
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
    """Return the user's cache of compiled templates: to compile takes a sixth of a cold start.

    What it holds is run, so there is none in a folder that somebody else owns, or may write to or look into.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "vllmjobs", "sandboxed")
    try:
        folder = folder.expanduser()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, RuntimeError):  # the latter for a user without a home
        return None
    if _is_ours(os.fstat(opened)):
        return _OwnFolder(opened)
    os.close(opened)
    return None


def _is_ours(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & 0o077


class _OwnFolder(jinja2.BytecodeCache):
    """A cache in an open folder, of files that only their owner has access to; a full disk keeps nothing."""

    def __init__(self, folder: int) -> None:
        self._folder = folder
        weakref.finalize(self, os.close, folder)

    def load_bytecode(self, bucket: jinja2.bccache.Bucket) -> None:
        """Load a template as it was compiled before, if it was; see `jinja2.BytecodeCache`."""
        with suppress(OSError), self._open(bucket.key, os.O_RDONLY | os.O_NONBLOCK, "rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode) and _is_ours(status):
                bucket.load_bytecode(file)

    def dump_bytecode(self, bucket: jinja2.bccache.Bucket) -> None:
        """Keep a compiled template: whole, or not at all; see `jinja2.BytecodeCache`."""
        name = f"{bucket.key}.{os.getpid()}"
        try:
            with self._open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, "wb") as file:
                bucket.write_bytecode(file)
            os.replace(name, bucket.key, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except OSError:
            with suppress(OSError):
                os.unlink(name, dir_fd=self._folder)

    def _open(self, name: str, flags: int, mode: Literal["rb", "wb"]) -> BinaryIO:
        opened = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._folder)
        return os.fdopen(opened, mode)
