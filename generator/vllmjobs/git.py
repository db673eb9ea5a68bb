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
        # One process answers for all files: to start one takes as long as to render a job.
        self._objects = subprocess.Popen(
            ["git", "-C", str(self._top), "cat-file", "--batch"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_env(),
        )  # fmt: skip
        self._found = cache(self._blob)  # a base is asked for by each environment that extends it

    def read(self, path: Path) -> bytes:
        """A file of the project as the commit has it; FileNotFoundError where it does not."""
        found = self._found(path)
        if found is None:
            raise FileNotFoundError(2, f"is not in {self.ref}", str(path))
        return found

    def files(self, folder: Path) -> list[Path]:
        """The files right below a folder; none where the commit does not have it."""
        try:
            listed = _git(self._top, "ls-tree", "-z", f"{self._id}:{self._name(folder)}")
        except (GitError, ValueError):  # the latter outside of the repository
            return []
        entries = (entry.partition(b"\t") for entry in listed.split(b"\0") if entry)
        return sorted(folder / os.fsdecode(name) for kind, _, name in entries if b" blob " in kind)

    def _blob(self, path: Path) -> bytes | None:
        try:
            name = os.fsencode(f"{self._id}:{self._name(path)}")
        except ValueError:
            return None
        if b"\n" in name:  # would be two questions
            return None
        asked, answers = self._objects.stdin, self._objects.stdout
        assert asked and answers
        asked.write(name + b"\n")
        asked.flush()
        told = answers.readline().split(
            b" "
        )  # gitformat of `cat-file --batch`: ID TYPE SIZE, or NAME missing
        if len(told) != 3 or not told[2].strip().isdigit():
            return None
        content = answers.read(int(told[2]) + 1)[:-1]
        return content if told[1] == b"blob" else None

    def _name(self, path: Path) -> str:
        return path.resolve().relative_to(self._top.resolve()).as_posix()


def _git(folder: Path, *arguments: str) -> bytes:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, check=False, env=_env()
        )
    except FileNotFoundError as error:
        raise GitError("git is not on PATH") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().removeprefix("fatal: ")
        raise GitError(said or f"{arguments[-1].removesuffix('^{commit}')} is no commit")
    return done.stdout


def _env() -> dict[str, str]:
    """A hook of git's has variables that name another work tree."""
    return {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
