"""The files of a commit, without touching the work tree."""

import os
import re
import subprocess
from functools import cache
from pathlib import Path

from vllmjobs.environment.problems import UserError


class GitError(UserError):
    """The message of git when it could not read a commit."""


class Commit:
    """A commit of the project's repository, whose files are read without touching the work tree."""

    def __init__(self, ref: str, project: Path) -> None:
        """Find the commit; raises `GitError` where `ref` is none, or `project` is in no repository."""
        self.ref = ref
        self._top = Path(os.fsdecode(_git(project, "rev-parse", "--show-toplevel").removesuffix(b"\n")))
        commit_id = _git(project, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
        self._id = commit_id.decode().strip()
        # One process answers for all files: to start one takes as long as to render a job.
        self._objects = subprocess.Popen(
            ["git", "-C", str(self._top), "cat-file", "--batch", "--follow-symlinks"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_env(),
        )  # fmt: skip
        self._cached_object = cache(self._object)  # a base is asked for by each environment that extends it

    def read(self, path: Path) -> bytes:
        """Return a file of the project as the commit has it; raises FileNotFoundError where it does not."""
        kind, _, content = self._cached_object(path)
        if kind != b"blob":
            raise FileNotFoundError(2, f"is not in {self.ref}", str(path))
        return content

    def has(self, path: Path) -> bool:
        """Tell whether the commit has a file of the project."""
        return self._cached_object(path)[0] == b"blob"

    def files(self, folder: Path) -> list[Path]:
        """Return the files right below a folder; none where the commit does not have it."""
        kind, tree, _ = self._cached_object(folder)
        if kind != b"tree":
            return []
        listed = _git(self._top, "ls-tree", "-z", tree.decode())
        entries = (entry.partition(b"\t") for entry in listed.split(b"\0") if entry)
        return sorted(folder / os.fsdecode(name) for kind, _, name in entries if b" blob " in kind)

    def _object(self, path: Path) -> tuple[bytes, bytes, bytes]:
        """Return kind, ID, content of what a path, with the commit's links, leads to; else an empty kind."""
        nothing = b"", b"", b""
        try:
            name = os.fsencode(f"{self._id}:{self._name(path)}")
        except ValueError:  # outside of the repository
            return nothing
        if b"\n" in name:  # would be two requests
            return nothing
        requests, answers = self._objects.stdin, self._objects.stdout
        assert requests and answers
        requests.write(name + b"\n")
        requests.flush()
        # git-cat-file(1), "BATCH OUTPUT": ID TYPE SIZE and the content; `symlink SIZE` and where it leads, of
        # a link that leads nowhere in the commit; or NAME missing.
        header = answers.readline().split()
        if len(header) < 2 or not header[-1].isdigit():
            return nothing
        content = answers.read(int(header[-1]) + 1)[:-1]
        return (header[1], header[0], content) if len(header) == 3 else nothing

    def _name(self, path: Path) -> str:
        """Return a path below the repository's top; links below it are left for the commit to follow."""
        path = Path(os.path.normpath(Path.cwd() / path))
        top = os.path.realpath(self._top)
        above = next((folder for folder in path.parents if os.path.realpath(folder) == top), None)
        return (path if above else Path(os.path.realpath(path))).relative_to(above or top).as_posix()


def _git(folder: Path, *arguments: str) -> bytes:
    try:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, check=False, env=_env())
    except FileNotFoundError as error:
        raise GitError("git is not on PATH") from error
    if done.returncode:
        message = re.sub(r"^(fatal|error): ", "", done.stderr.decode(errors="replace").strip())
        raise GitError(message or f"{arguments[-1].removesuffix('^{commit}')} is no commit")
    return done.stdout


def _env() -> dict[str, str]:
    """Return the environment without GIT_*: a hook of git's has variables that name another work tree."""
    return {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
