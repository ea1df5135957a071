"""A run is replaced by another one or stays whole, wherever the process that replaces it is killed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import quill
from quill.checkpoints.lock import lock_run
from quill.files import remove_drafts
from quill.runs.replacing import bring_back, move_aside, settle


class Killed(BaseException):
    """Stands for SIGKILL."""


def dying(change: Callable, points: Iterator[int], number: int) -> Callable:
    """Return a change of the file system that is not made any more if it is the one of this number."""

    def changed(*arguments, **options):
        if next(points) == number:
            raise Killed
        return change(*arguments, **options)

    return changed


@pytest.fixture
def killed_at_each_point(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], Iterator[int]]:
    """Call a function again and again, and end it at its first, second, … change of the file system."""

    def each(work: Callable[[], None]) -> Iterator[int]:
        finished, number = False, 0
        while not finished:
            number += 1
            points = iter(range(1, 1000))
            with monkeypatch.context() as patch:
                for name in ("replace", "rename", "mkdir", "unlink", "remove", "rmdir"):
                    patch.setattr(os, name, dying(getattr(os, name), points, number))
                try:
                    work()
                    finished = True
                except Killed:
                    pass
            yield number

    return each


@pytest.fixture
def out(trained, tmp_path: Path) -> Path:
    """A finished run, with a file of the user's beside it."""
    shutil.copytree(trained.out, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine", encoding="utf-8")
    return tmp_path / "out"


def begin_another(out: Path, saved: bool) -> None:
    """Write what another run leaves in this folder before and after its first save."""
    for name in ("config.yaml", "metrics.jsonl", "samples.txt"):
        (out / name).write_text("of the new run", encoding="utf-8")
    folder = out / "checkpoints" / "step-000001"
    folder.mkdir(parents=True)
    for name in ("model.safetensors", *(["training.safetensors", "manifest.json"] if saved else [])):
        (folder / name).write_text("of the new run", encoding="utf-8")


def test_a_run_that_is_moved_aside_is_restored_whole_after_a_crash_at_any_point(
    out, files_below, killed_at_each_point
):  # R15, T6
    before, points = files_below(out), 0
    for _ in killed_at_each_point(lambda: move_aside(out)):
        points += 1
        with lock_run(out):
            settle(out)
        assert files_below(out) == before
    assert points > 8


def test_after_a_crash_before_the_first_save_of_a_new_run_the_earlier_run_is_resumed(out, files_below):  # R15
    """A killed process is in test_run.py."""
    before = files_below(out)
    move_aside(out)
    begin_another(out, saved=False)
    run = quill.run(out_dir=str(out), resume=True, max_iters=6, progress=False)
    assert run.step == 6 and run.settings["n_embd"] == 8
    after = files_below(out)
    assert after["config.yaml"] == before["config.yaml"] and set(after) == set(before)


def test_restoring_a_run_survives_a_crash_at_any_point(out, files_below, killed_at_each_point):  # R15, T6
    before, points = files_below(out), 0

    def go_back():
        settle(out)
        move_aside(out)
        begin_another(out, saved=False)
        settle(out)

    for _ in killed_at_each_point(go_back):
        points += 1
        bring_back(out)
        assert files_below(out) == before
    assert points > 20


def test_a_replaced_run_is_deleted_once_the_new_one_has_saved_and_is_never_restored_in_part(
    out, files_below, killed_at_each_point
):  # R15, T6
    move_aside(out)
    begin_another(out, saved=True)
    new = {name: data for name, data in files_below(out).items() if not name.startswith(".")}
    template = shutil.copytree(out, out.with_name("template"))
    for _ in killed_at_each_point(lambda: settle(out)):
        bring_back(out)
        assert {name: data for name, data in files_below(out).items() if ".draft/" not in name} == new
        remove_drafts(out)
        assert files_below(out) == new
        shutil.rmtree(out)
        shutil.copytree(template, out)
