"""A log that is rotated as logrotate does: log.jsonl is the newest, log.jsonl.1 the one before it."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO


def lines(path: Path, longest: int) -> Iterator[str | None]:
    """Yield the lines of a log's last `longest` bytes; None at its end, again and again.

    It goes on over rotations, also over several between two lines. Raises `FileNotFoundError` where there is
    no log.
    """
    file = _begin(path, longest)
    try:
        while True:
            yield from _of(file)
            newer = _after(path, os.fstat(file.fileno()).st_ino)
            if newer is None:
                yield None
            else:
                yield from _of(file)  # what was written before it was rotated
                file.close()
                file = newer.open("rb")
    finally:
        file.close()


def _begin(path: Path, longest: int) -> BinaryIO:
    """Open the log, or the one before it where that has some of the last `longest` bytes."""
    before, left = path.with_name(f"{path.name}.1"), longest - path.stat().st_size
    file = before.open("rb") if left > 0 and before.exists() else path.open("rb")
    wanted = left if file.name == str(before) else longest
    if os.fstat(file.fileno()).st_size > wanted:
        file.seek(-wanted, os.SEEK_END)
        file.readline()
    return file


def _of(file: BinaryIO) -> Iterator[str]:
    """Yield the whole lines from here on; the rest of one that is not yet whole stays unread."""
    while (line := file.readline()).endswith(b"\n"):
        yield line[:-1].decode(errors="replace")
    file.seek(-len(line), os.SEEK_CUR)


def _after(path: Path, inode: int) -> Path | None:
    """Return the log that came after the one of this inode; None where it is the newest."""
    newer, number = path, 0
    with suppress(FileNotFoundError):
        while (found := newer).stat().st_ino != inode:
            number += 1
            newer = path.with_name(f"{path.name}.{number}")
            if newer.stat().st_ino == inode:
                return found
        return None
    return path if number else None  # it was rotated away: the newest is what there is
