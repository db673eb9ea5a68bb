"""Files as a commit has them, without touching the work tree."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from vllmjobs.environment.problems import UserError


class GitError(UserError):
    """What git said when it could not read a commit."""


def files_at(ref: str, project: Path) -> Callable[[Path], bytes]:
    """A reader of the project's files as commit `ref` has them.

    It raises FileNotFoundError for a file that the commit does not have. Raises `GitError` where `ref` is no
    commit, or `project` in no repository.
    """
    top = Path(os.fsdecode(_git(project, "rev-parse", "--show-toplevel").removesuffix(b"\n")))
    commit = _git(project, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")

    def read(path: Path) -> bytes:
        try:
            name = path.resolve().relative_to(top.resolve()).as_posix()
            return _git(top, "cat-file", "blob", f"{commit.decode().strip()}:{name}")
        except (GitError, ValueError) as error:  # the latter outside of the repository
            raise FileNotFoundError(2, f"is not in {ref}", str(path)) from error

    return read


def _git(folder: Path, *arguments: str) -> bytes:
    # A hook of git's has variables that name another work tree.
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, check=False, env=env
        )
    except FileNotFoundError as error:
        raise GitError("git is not on PATH") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().removeprefix("fatal: ")
        raise GitError(said or f"{arguments[-1].removesuffix('^{commit}')} is no commit")
    return done.stdout
