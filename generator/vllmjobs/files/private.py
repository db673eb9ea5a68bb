"""Folders of one user: 0700 with files of 0600, made so or refused, and opened without following links.

Whoever may write to such a folder decides what its owner runs and overwrites. So a folder that belongs to
another user, or that others may write to, is refused; one that others may only read is closed to them.
"""

import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vllmjobs.environment.problems import UserError

FOLDER, FILE = 0o700, 0o600
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class FolderError(UserError):
    """A folder or file that is refused: its owner, its mode and the way out, in one line."""


class PrivateFolder:
    """A folder that is nobody else's. Its methods raise `FolderError`, or `OSError` with the file's name."""

    def __init__(self, path: Path, way_out: str) -> None:
        """Take the folder at `path`, which need not be there; `way_out` follows a refusal."""
        self.path, self._way_out = path, way_out

    def make(self) -> None:
        """Make the folder, or close one of this user to others."""
        _look_at_parents(self.path, self._way_out)
        for missing in [path for path in reversed((self.path, *self.path.parents)) if not path.exists()]:
            with suppress(FileExistsError):
                missing.mkdir(FOLDER)
        with self._opened() as folder:
            os.fchmod(folder, FOLDER)

    def folder(self, name: str) -> "PrivateFolder":
        """Return the folder of that name in this one."""
        return PrivateFolder(self.path / name, self._way_out)

    def write(self, name: str, text: str) -> None:
        """Write a file whole, in the place of what has its name, also of a link."""
        with self._opened() as folder:
            replace_file(self.path / name, text, folder)

    def read(self, name: str) -> bytes:
        """Return the content of a file; raises `FileNotFoundError` where there is no folder or no file."""
        with self._opened() as folder, os.fdopen(self._open(name, os.O_RDONLY, folder), "rb") as file:
            return file.read()

    def append(self, name: str) -> int:
        """Open a file to write at its end; return the descriptor."""
        with self._opened() as folder:
            return self._open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, folder)

    def _open(self, name: str, flags: int, folder: int) -> int:
        path = self.path / name
        try:
            file = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, FILE, dir_fd=folder)
        except OSError as error:
            raise type(error)(error.errno, error.strerror, str(path)) from error
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            os.close(file)
            raise FolderError(f"{path} {_described(found)}; remove it")
        os.fchmod(file, FILE)
        return file

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """Open the folder itself, and look at what was opened."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            folder = os.open(self.path, flags)
        except NotADirectoryError as error:
            found = os.lstat(self.path)
            raise FolderError(f"{self.path} {_described(found)}; {self._way_out}") from error
        try:
            found = os.fstat(folder)
            if found.st_uid != os.geteuid():
                raise FolderError(f"{self.path} {_described(found)}; {self._way_out}")
            if found.st_mode & _OTHERS_WRITE:
                mend = f"see what is in it, then chmod 700 {self.path}, or {self._way_out}"
                raise FolderError(f"{self.path} {_described(found)}: others may write to it; {mend}")
            yield folder
        finally:
            os.close(folder)


def replace_file(path: Path, text: str, folder: int | None = None) -> None:
    """Write a file whole, in the place of what has its name: a link is replaced, and not followed.

    A file that was there keeps its mode; a new one has 0600. `folder` is the opened folder of `path`. Raises
    `OSError` with the file's name, and leaves what was there.
    """
    name, new = (
        (path, path.with_name(f"{path.name}.new")) if folder is None else (path.name, f"{path.name}.new")
    )
    try:
        with suppress(FileNotFoundError):
            os.unlink(new, dir_fd=folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(new, flags, FILE, dir_fd=folder), "w", encoding="utf-8") as file:
            with suppress(FileNotFoundError):
                before = os.stat(name, dir_fd=folder, follow_symlinks=False)
                is_plain = folder is None and stat.S_ISREG(before.st_mode)
                os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode) if is_plain else FILE)
            file.write(text)
        os.replace(new, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError as error:
        with suppress(OSError):
            os.unlink(new, dir_fd=folder)
        raise type(error)(error.errno, error.strerror, str(path)) from error


def make_folder(path: Path) -> None:
    """Make a folder for files that a person asked for, with its parents; those that are there stay.

    Raises `FolderError` for one of another user, who could exchange what is written there.
    """
    for missing in [one for one in reversed((path, *path.absolute().parents)) if not one.exists()]:
        missing.mkdir(FOLDER, exist_ok=True)
    found = path.stat()
    if found.st_uid not in (0, os.geteuid()):
        raise FolderError(f"{path} {_described(found)}; choose a folder of yours")


def _look_at_parents(path: Path, way_out: str) -> None:
    """Refuse a path on which another user may exchange a folder: by a link of theirs, or by a new name."""
    for parent in reversed(path.absolute().parents):
        try:
            found = os.lstat(parent)
        except FileNotFoundError:
            return
        is_link = stat.S_ISLNK(found.st_mode)
        is_open = bool(found.st_mode & stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX
        if (is_link and found.st_uid not in (0, os.geteuid())) or (is_open and not is_link):
            raise FolderError(f"{parent} {_described(found)}: others may exchange {path}; {way_out}")


def _described(found: os.stat_result) -> str:
    """Return what a file is, and whose: `is a link of nobody (mode 0777)`."""
    kinds = {stat.S_IFLNK: "link", stat.S_IFDIR: "folder", stat.S_IFREG: "file"}
    kind = kinds.get(stat.S_IFMT(found.st_mode), "special file")
    try:
        owner = pwd.getpwuid(found.st_uid).pw_name
    except KeyError:
        owner = f"user {found.st_uid}"
    return f"is a {kind} of {owner} (mode {stat.S_IMODE(found.st_mode):04o})"
