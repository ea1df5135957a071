"""Saving, finding, resuming and cleaning up in the folder of a run."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from quill.checkpoints.format import read_checkpoint
from quill.checkpoints.index import read_index
from quill.checkpoints.run_folder import (
    clean_run_folder,
    find_checkpoint,
    holds_run,
    load_checkpoint,
    newest_run,
    return_to_best,
)
from quill.errors import CheckpointError, QuillError, TrainingError
from quill.model.build import build_model
from quill.model.config import GPTConfig

SMALL = GPTConfig(vocab_size=3, block_size=4, n_layer=1, n_head=1, n_embd=4)
TEXT = "a" * 64


def test_a_model_that_is_not_finite_is_not_saved(run: Path, save_step: Callable[..., Path]) -> None:  # R11
    for number in (float("nan"), float("inf"), -float("inf")):
        model = build_model(SMALL)
        with torch.no_grad():
            next(model.parameters())[0, 0] = number
        state = {"optimizer.exp_avg.x": torch.tensor([0.0, number])}
        for broken in ({"model": model}, {"val_loss": number}, {"training_tensors": state}):
            with pytest.raises(TrainingError, match=r"training diverged at step 9: .* no longer finite"):
                save_step(run, 9, **broken)
    assert [load_checkpoint(run, checkpoint=which).step for which in ("best", "last")] == [3, 6]
    assert sorted(f.name for f in (run / "checkpoints").iterdir()) == ["index.json", "step-000003", "step-000006"]


def test_a_run_can_go_back_to_its_best_checkpoint(run: Path, save_step: Callable[..., Path]) -> None:  # R11
    assert return_to_best(run) == run / "checkpoints" / "step-000003"
    assert [load_checkpoint(run, checkpoint=which).step for which in ("best", "last")] == [3, 3]
    assert sorted(f.name for f in (run / "checkpoints").iterdir()) == ["index.json", "step-000003"]
    save_step(run, 6, best=False)
    assert [load_checkpoint(run, checkpoint=which).step for which in ("best", "last")] == [3, 6]


def test_a_kept_checkpoint_is_not_overwritten(run: Path, save_step: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match="already holds a checkpoint of step 6"):
        save_step(run, 6)
    assert load_checkpoint(run, checkpoint="last").step == 6


def test_the_error_for_a_full_disk_says_how_much_space_is_needed(
    run: Path, monkeypatch: pytest.MonkeyPatch, save_step: Callable[..., Path], refused: Callable[..., str]
) -> None:  # R4, R18
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        line = refused(
            lambda: save_step(run, 9), "No space left on device; a checkpoint takes .* and the disk has .* free"
        )
        assert f"quill train --resume=True --out_dir={run}" in line
        line = refused(lambda: save_step(run.parent / "new", 9), "No space left on device; a checkpoint takes")
        assert "nothing has been saved yet" in line and "--resume" not in line
    assert not holds_run(run.parent / "new")


def test_a_checkpoint_holds_the_sha256_of_its_text(run: Path) -> None:  # R13
    assert load_checkpoint(run).text_sha256 == TEXT


def test_an_unreadable_folder_beside_a_run_is_ignored(run: Path) -> None:  # T9
    closed = run.parent / "closed"
    (closed / "checkpoints").mkdir(parents=True)
    closed.chmod(0)
    try:
        assert newest_run(run.parent) == run
    finally:
        closed.chmod(stat.S_IRWXU)


def test_a_reader_finds_a_checkpoint_while_the_run_saves_others(
    run: Path, monkeypatch: pytest.MonkeyPatch, save_step: Callable[..., Path]
) -> None:  # R6
    """The folder that a reader has found is deleted by the next save before it is opened."""
    from quill.checkpoints import run_folder

    saved = []

    def read(file: Path, device: str) -> object:
        if not saved:
            saved.append(save_step(run, 9))
        return read_checkpoint(file, device)

    monkeypatch.setattr(run_folder, "read_checkpoint", read)
    assert load_checkpoint(run).step == 9
    assert saved


def test_a_folder_with_a_users_own_files_keeps_them(run: Path, save_step: Callable[..., Path]) -> None:
    mine = [run / ".mine.draft", run / "checkpoints" / "notes.txt", run / "checkpoints" / "step-3"]
    mine[0].write_text("x")
    mine[1].write_text("x")
    mine[2].mkdir()
    save_step(run, 9)
    clean_run_folder(run)
    assert all(path.exists() for path in mine)


def test_an_empty_folder_holds_no_run_and_is_not_changed(tmp_path: Path) -> None:
    clean_run_folder(tmp_path)
    assert list(tmp_path.iterdir()) == [] and not holds_run(tmp_path) and read_index(tmp_path) is None
    with pytest.raises(QuillError, match="holds no checkpoint"):
        find_checkpoint(tmp_path)
