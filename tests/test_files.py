"""Files are written whole or not at all, and what a crash leaves has a name that is recognised."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from quill.files import draft_of, is_draft, remove_drafts, remove_folder, write_atomically


def test_a_file_is_on_the_disk_before_it_has_its_name_and_then_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # R13: config.yaml was not forced to disk
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        folder = os.path.samestat(status, os.stat(tmp_path))
        done.append("folder" if folder else f"file of {status.st_size} bytes")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", lambda old, new: (done.append("rename"), replace(old, new)))
    write_atomically(tmp_path / "a", "ü")
    assert done == ["file of 2 bytes", "rename", *(["folder"] if os.name != "nt" else [])]


@pytest.mark.parametrize("fails", ["open", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_no_draft_and_an_error_that_names_the_file(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # R3, R18
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_atomically(tmp_path / "a", "old")
    with monkeypatch.context() as patch:
        if fails == "open":
            patch.setattr("builtins.open", full)
        else:
            patch.setattr(os, fails, full)
        with pytest.raises(OSError, match="No space left on device") as caught:
            write_atomically(tmp_path / "a", "new")
    assert caught.value.filename == str(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize("name", ["config.yaml", "loss.png", "best", "step-000003", ".replaced", "a\nb", "ü"])
def test_every_draft_is_recognised_and_removed(name: str, tmp_path: Path) -> None:  # R3
    file, folder = draft_of(tmp_path / name), draft_of(tmp_path / name)
    file.write_text("half")
    (folder / "below").mkdir(parents=True)
    assert is_draft(file) and is_draft(folder / "below") and not is_draft(tmp_path / name)
    remove_drafts(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_only_looks_like_a_draft_is_not_removed(tmp_path: Path) -> None:
    names = [".mine.draft", "a.0123abcd.draft", ".a.0123abcd.draft.txt", ".a.0123abc.draft", "..0123abcd.draft"]
    for name in names:
        (tmp_path / name).write_text("mine")
    remove_drafts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(names)


def test_what_is_left_of_a_folder_that_was_being_deleted_is_a_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # R2
    (tmp_path / "step-000003").mkdir()

    def killed(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_folder(tmp_path / "step-000003")
    (left,) = tmp_path.iterdir()
    assert is_draft(left)
