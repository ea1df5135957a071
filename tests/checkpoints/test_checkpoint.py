"""A checkpoint is whole, safe and says what it is; anything else is refused in one line."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from quill.checkpoints.format import read_tensors
from quill.checkpoints.manifest import read_manifest
from quill.checkpoints.run_folder import find_checkpoint, load_checkpoint, newest_run, save_checkpoint
from quill.data.dataset import Dataset
from quill.errors import CheckpointError
from quill.model.config import GPTConfig
from quill.model.gpt import GPT


@pytest.fixture
def save(model_config: GPTConfig, dataset: Dataset, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that saves a model of this step into out, and remembers the model."""
    torch.manual_seed(0)

    def save(step: int = 1, best: bool = True, out: str = "out") -> Path:
        save.model = GPT(model_config)  # type: ignore[attr-defined]
        return save_checkpoint(
            tmp_path / out, save.model, dataset.tokenizer, step=step, val_loss=2.5, best=best,  # type: ignore[attr-defined]
            training_tensors={"rng.cpu": torch.get_rng_state()}, training_metadata={"note": "ü"},
        )  # fmt: skip

    return save


def test_a_loaded_checkpoint_equals_the_saved_one(save: Callable[..., Path], dataset: Dataset, tmp_path: Path) -> None:
    folder = save(step=7)
    for path in (tmp_path / "out", folder, folder / "model.safetensors"):
        found = load_checkpoint(path)
        assert (found.step, found.val_loss, found.path) == (7, 2.5, folder)
        assert found.tokenizer.to_json() == dataset.tokenizer.to_json()
        assert not found.model.training
        for (name, a), (_, b) in zip(
            found.model.named_parameters(), save.model.named_parameters(), strict=True  # type: ignore[attr-defined]
        ):  # fmt: skip
            assert torch.equal(a, b), name


def test_the_weights_file_alone_is_enough_to_load_a_model(save: Callable[..., Path], tmp_path: Path) -> None:
    alone = tmp_path / "elsewhere.safetensors"
    alone.write_bytes((save() / "model.safetensors").read_bytes())
    assert load_checkpoint(alone).step == 1


def test_loading_draws_no_random_numbers(save: Callable[..., Path]) -> None:
    folder = save()
    before = torch.get_rng_state()
    load_checkpoint(folder)
    assert torch.equal(before, torch.get_rng_state())


def test_only_the_best_and_the_last_checkpoint_are_kept(save: Callable[..., Path], tmp_path: Path) -> None:
    for step, best in ((1, True), (2, True), (3, False), (4, False)):
        save(step, best)
    kept = sorted(f.name for f in (tmp_path / "out" / "checkpoints").iterdir())
    assert kept == ["index.json", "step-000002", "step-000004"]
    assert find_checkpoint(tmp_path / "out", "best").name == "step-000002"
    assert find_checkpoint(tmp_path / "out", "last").name == "step-000004"


def test_a_run_without_an_evaluation_has_a_last_checkpoint(save: Callable[..., Path], tmp_path: Path) -> None:
    save(3, best=False)
    assert find_checkpoint(tmp_path / "out", "best").name == "step-000003"


@pytest.mark.parametrize("fails_at", ["write", "rename"])
def test_a_failed_save_leaves_the_old_checkpoint_and_no_temporary_files(
    fails_at: str, save: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(1)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync" if fails_at == "write" else "replace", full)
        with pytest.raises(CheckpointError, match=r"No space left on device; .*--resume=True"):
            save(2)
    assert load_checkpoint(tmp_path / "out").step == 1
    assert sorted(f.name for f in (tmp_path / "out" / "checkpoints").iterdir()) == ["index.json", "step-000001"]
    save(2)
    assert load_checkpoint(tmp_path / "out").step == 2


def test_a_change_of_any_byte_of_a_weights_file_is_an_error(save: Callable[..., Path]) -> None:
    file = save() / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1  # one bit of one weight: a valid file with another model in it
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="was altered"):
        load_checkpoint(file.parent)


@pytest.mark.parametrize("keep", [0, 4, 100, -1], ids=["empty", "in the length", "in the header", "in the weights"])
def test_a_truncated_file_is_refused(save: Callable[..., Path], keep: int) -> None:
    file = save() / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="truncated or not a safetensors file") as caught:
        load_checkpoint(file.parent)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_checkpoint_are_refused_with_their_kind(save: Callable[..., Path], tmp_path: Path) -> None:
    folder = save()
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="was not written by Quill"):
        load_checkpoint(tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "nothing.safetensors")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        find_checkpoint(tmp_path / "empty")
    tensors, metadata = read_tensors(folder / "model.safetensors")
    for wrong in ({"format": 99}, {"architecture": "rnn"}, {"model": {"n_layer": 2}}, {"tokenizer": {"kind": "?"}}):
        data = safetensors.torch.save(tensors, {"quill": json.dumps(metadata | wrong)})
        (tmp_path / "wrong.safetensors").write_bytes(data)
        with pytest.raises(CheckpointError, match=r"wrong\.safetensors"):
            load_checkpoint(tmp_path / "wrong.safetensors")
    other_shape = json.dumps(metadata | {"model": metadata["model"] | {"block_size": 8}})
    (tmp_path / "shape.safetensors").write_bytes(safetensors.torch.save(tensors, {"quill": other_shape}))
    with pytest.raises(CheckpointError, match=r"position_embedding\.weight"):
        load_checkpoint(tmp_path / "shape.safetensors")


def test_the_manifest_names_every_file(save: Callable[..., Path]) -> None:
    folder = save()
    files = {file.name for file in folder.iterdir()}
    assert files == {"model.safetensors", "training.safetensors", "manifest.json"}
    assert set(read_manifest(folder)) == files - {"manifest.json"}
    (folder / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(folder)


def test_the_newest_run_is_the_one_saved_last(save: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="quill train"):
        newest_run(tmp_path)
    for age, out in ((200, "first"), (100, "second")):
        save(out=out)
        moment = 1_700_000_000 - age
        os.utime(tmp_path / out / "last", (moment, moment))
    assert newest_run(tmp_path) == tmp_path / "second"
    assert newest_run(tmp_path / "first") == tmp_path / "first"
