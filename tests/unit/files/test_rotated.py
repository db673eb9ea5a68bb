"""A log that is read while it is rotated."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllmjobs.files.rotated import lines


def rotate(log: Path, kept: int = 3) -> None:
    """Begin with a new file, as the supervisor does."""
    for number in range(kept - 1, 0, -1):
        if (old := log.with_name(f"log.{number}")).exists():
            old.rename(log.with_name(f"log.{number + 1}"))
    log.rename(log.with_name("log.1"))
    log.touch()


def add(log: Path, text: str) -> None:
    with log.open("a") as file:
        file.write(text)


def test_a_reader_follows_over_rotations_and_misses_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    add(log, "1\n")
    read = lines(log, 1000)
    assert [next(read), next(read)] == ["1", None]
    add(log, "2\nhal")
    assert [next(read), next(read)] == ["2", None]
    add(log, "f\n3\n")
    rotate(log)
    add(log, "4\n")
    assert [next(read) for _ in range(4)] == ["half", "3", "4", None]
    add(log, "5\n")
    rotate(log)
    add(log, "6\n")
    rotate(log)
    add(log, "7\n")
    assert [next(read) for _ in range(4)] == ["5", "6", "7", None]


def test_a_reader_that_was_left_behind_goes_on_with_what_there_is(tmp_path: Path) -> None:
    log = tmp_path / "log"
    add(log, "1\n")
    read = lines(log, 1000)
    assert [next(read), next(read)] == ["1", None]
    for number in range(2, 7):
        rotate(log)
        add(log, f"{number}\n")
    assert [next(read), next(read)] == ["6", None]


def test_the_last_bytes_may_begin_in_the_file_before(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for number in range(10):
        add(log, f"line {number}\n")
    rotate(log)
    add(log, "line 10\n")
    read = lines(log, 25)
    assert [next(read) for _ in range(3)] == ["line 8", "line 9", "line 10"]
    read = lines(log, 8)
    assert [next(read), next(read)] == ["line 10", None]


def test_a_log_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        next(lines(tmp_path / "log", 10))
