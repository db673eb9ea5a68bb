"""Files as a commit has them, without touching the work tree."""

import os
import subprocess
from functools import cache
from pathlib import Path

from vllmjobs.environment.problems import UserError


class GitError(UserError):
    """What git said when it could not read a commit."""


class Commit:
    """A commit of the project's repository."""

    def __init__(self, ref: str, project: Path) -> None:
        """Raises `GitError` where `ref` is no commit, or `project` in no repository."""
        self.ref = ref
        self._top = Path(os.fsdecode(_git(project, "rev-parse", "--show-toplevel").removesuffix(b"\n")))
        found = _git(project, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
        self._id = found.decode().strip()
        self.read = cache(self._read)  # a base is read for each environment that extends it

    def _read(self, path: Path) -> bytes:
        """A file of the project as the commit has it; FileNotFoundError where it does not."""
        try:
            return _git(self._top, "cat-file", "blob", f"{self._id}:{self._name(path)}")
        except (GitError, ValueError) as error:  # the latter outside of the repository
            raise FileNotFoundError(2, f"is not in {self.ref}", str(path)) from error

    def files(self, folder: Path) -> list[Path]:
        """The files right below a folder; none where the commit does not have it."""
        try:
            listed = _git(self._top, "ls-tree", "-z", f"{self._id}:{self._name(folder)}")
        except (GitError, ValueError):
            return []
        entries = (entry.partition(b"\t") for entry in listed.split(b"\0") if entry)
        return sorted(folder / os.fsdecode(name) for kind, _, name in entries if b" blob " in kind)

    def _name(self, path: Path) -> str:
        return path.resolve().relative_to(self._top.resolve()).as_posix()


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
