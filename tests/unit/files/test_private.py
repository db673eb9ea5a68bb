"""Folders of one user: what is made, and what is refused because others decide what is in it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from vllmjobs.files.private import FolderError, PrivateFolder, make_folder, replace_file

NOBODY = 65534
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def private(path: Path) -> PrivateFolder:
    return PrivateFolder(path, "choose another")


def test_folders_are_0700_and_files_0600_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder = private(tmp_path / "a" / "b")
        folder.make()
        folder.write("file", "text")
        os.close(folder.append("log"))
        folder.folder("c").make()
    finally:
        os.umask(before)
    made = {path: mode(path) for path in (tmp_path / "a").rglob("*")}
    assert mode(tmp_path / "a") == 0o700
    assert {path.name: bits for path, bits in made.items()} == {
        "b": 0o700, "c": 0o700, "file": 0o600, "log": 0o600,
    }  # fmt: skip
    assert folder.read("file") == b"text"


def test_one_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    (folder / "log").touch(0o644)
    private(folder).make()
    os.close(private(folder).append("log"))
    assert (mode(folder), mode(folder / "log")) == (0o700, 0o600)


@pytest.mark.parametrize("bits", [0o770, 0o702, 0o1777])
def test_one_that_others_may_write_to_is_refused_with_owner_mode_and_way_out(
    tmp_path: Path, bits: int
) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(bits)
    with pytest.raises(FolderError) as refused:
        private(folder).make()
    said = str(refused.value)
    assert f"is a folder of root (mode {bits:04o}): others may write to it" in said or os.geteuid() != 0
    assert said.endswith(f"then chmod 700 {folder}, or choose another")
    assert mode(folder) == bits


@AS_ROOT
def test_one_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    os.chown(folder, NOBODY, -1)
    for act in (
        private(folder).make,
        lambda: private(folder).write("a", "b"),
        lambda: private(folder).read("a"),
        lambda: private(folder).append("a"),
        lambda: make_folder(folder),
    ):
        with pytest.raises(FolderError, match=rf"{folder} is a folder of nobody \(mode 0700\); choose a"):
            act()
    assert list(folder.iterdir()) == []


def test_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir(mode=0o755)
    (tmp_path / "state").symlink_to("victim")
    with pytest.raises(FolderError, match="is a link of"):
        private(tmp_path / "state").make()
    assert list((tmp_path / "victim").iterdir()) == []


@AS_ROOT
def test_a_link_of_another_user_on_the_way_is_refused_and_one_of_our_own_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "link"
    link.symlink_to("elsewhere")
    private(link / "state").make()
    os.chown(link, NOBODY, -1, follow_symlinks=False)
    with pytest.raises(FolderError, match=r"link is a link of nobody .* others may exchange"):
        private(link / "more").make()


def test_a_parent_in_which_anybody_may_rename_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(FolderError, match=r"\(mode 0777\): others may exchange"):
        private(tmp_path / "open" / "state").make()
    (tmp_path / "open").chmod(0o1777)  # as /tmp
    private(tmp_path / "open" / "state").make()


def test_a_file_that_is_a_link_is_replaced_and_never_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = private(tmp_path / "state")
    folder.make()
    for name in ("file", "file.new", "log"):
        (folder.path / name).symlink_to(victim)
    folder.write("file", "text")
    assert (folder.path / "file").read_text() == "text"
    with pytest.raises(OSError, match="log"):
        folder.append("log")
    assert victim.read_text() == "mine"


def test_a_file_of_an_open_folder_keeps_its_mode_and_is_named_when_it_fails(
    tmp_path: Path,
) -> None:
    there, new = tmp_path / "there", tmp_path / "new"
    there.write_text("before")
    there.chmod(0o644)
    for path in (there, new):
        replace_file(path, "after")
        assert path.read_text() == "after"
    assert (mode(there), mode(new)) == (0o644, 0o600)
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_text("mine")
    link.symlink_to(victim)
    replace_file(link, "text")
    assert (victim.read_text(), link.is_symlink()) == ("mine", False)
    with pytest.raises(OSError) as failed:
        replace_file(tmp_path / "nowhere" / "file", "text")
    assert failed.value.filename == str(tmp_path / "nowhere" / "file")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open
    monkeypatch.setattr(os, "open", lambda path, *how, **more: opened(
        "/dev/full" if str(path).endswith(".new") else path, os.O_WRONLY
    ))  # fmt: skip
    monkeypatch.setattr(os, "fchmod", lambda *_: None)
    with pytest.raises(OSError, match="No space left on device") as failed:
        replace_file(tmp_path / "file", "text")
    assert failed.value.filename == str(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
