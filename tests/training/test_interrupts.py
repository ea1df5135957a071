"""A signal stops long phases between batches or micro-batches, and resuming gives the run that was not stopped."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import MakeRecipe

from quill.checkpoints import format, manifest, run_folder
from quill.checkpoints.format import read_tensors
from quill.checkpoints.run_folder import find_checkpoint
from quill.data.dataset import Dataset
from quill.generation.sample import sample_function
from quill.model.config import GPTConfig
from quill.training import evaluator, step
from quill.training.loop import train

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="Windows cannot send itself SIGINT without ending the test run"),
    pytest.mark.usefixtures("signals"),
]


def interrupt_call(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, number: int) -> None:
    """Send this process SIGINT in the call of this number (from 1) of a function that a module uses."""
    original, calls = getattr(module, name), iter(range(1, 10_000))

    def called(*arguments: Any, **options: Any) -> Any:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments, **options)

    monkeypatch.setattr(module, name, called)


def state_of(out_dir: str) -> dict[str, torch.Tensor]:
    folder = find_checkpoint(out_dir, "last")
    return read_tensors(folder / "model.safetensors")[0] | read_tensors(folder / "training.safetensors")[0]


def evaluations_of(events: list[dict]) -> list[tuple]:
    return [(e["step"], e["train_loss"], e["val_loss"], e["best"]) for e in events if e["event"] == "evaluation"]


@pytest.mark.parametrize("call", [1, 2, 5, 7], ids=["first", "first-training", "second", "last"])
def test_an_evaluation_that_was_interrupted_is_made_when_the_run_is_resumed(
    call: int, model_config: GPTConfig, recipe: MakeRecipe, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = recipe("whole"), recipe("parts")
    straight: list[dict] = []
    train(model_config, *whole, dataset, report=straight.append)
    pieces: list[dict] = []
    with monkeypatch.context() as patch:
        interrupt_call(patch, evaluator, "evaluate_split", call)
        first = train(model_config, *parts, dataset, report=pieces.append)
    assert first.reason == "interrupted" and first.step == 4 * ((call - 1) // 2)
    second = train(model_config, *parts, dataset, report=pieces.append, resume=True)
    assert (second.reason, second.step) == ("finished", 12)
    assert evaluations_of(pieces) == evaluations_of(straight)
    ours, theirs = state_of(whole.out_dir), state_of(parts.out_dir)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert find_checkpoint(whole.out_dir, "best").name == find_checkpoint(parts.out_dir, "best").name


def test_a_step_of_many_micro_batches_is_abandoned_between_two_of_them_and_taken_again(
    model_config: GPTConfig, recipe: MakeRecipe, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:  # U22
    whole, parts = (recipe(out, gradient_accumulation_steps=5) for out in ("whole", "parts"))
    train(model_config, *whole, dataset)
    with monkeypatch.context() as patch:
        interrupt_call(patch, step, "cross_entropy", 5 * 6 + 2)  # in the seventh step
        first = train(model_config, *parts, dataset)
    assert (first.reason, first.step) == ("interrupted", 6)
    train(model_config, *parts, dataset, resume=True)
    ours, theirs = state_of(whole.out_dir), state_of(parts.out_dir)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_sample_is_given_up_between_two_pieces(
    model_config: GPTConfig, recipe: MakeRecipe, dataset: Dataset
) -> None:  # U22
    pieces: list[str] = []

    def sample(model: Any) -> Any:
        for piece in "a text that has no end":
            pieces.append(piece)
            if len(pieces) == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield piece

    result = train(model_config, *recipe(), dataset, sample=sample)
    assert (result.reason, result.step, pieces) == ("interrupted", 0, ["a", " ", "t"])


def test_the_sample_of_a_run_comes_in_pieces_and_is_given_up_at_a_signal(
    model_config: GPTConfig, recipe: MakeRecipe, dataset: Dataset
) -> None:  # U22
    """It was generated whole before the first check: a million tokens were deaf for minutes."""
    sample = sample_function(dataset, 100_000, 1337)
    assert sample is not None
    seen: list[str] = []

    def watched(model: Any) -> Iterator[str]:
        pieces = sample(model)
        assert iter(pieces) is pieces  # an iterator, no text that is complete
        for piece in pieces:
            seen.append(piece)
            if len(seen) == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield piece

    result = train(model_config, *recipe(), dataset, sample=watched)
    assert (result.reason, result.step, len(seen)) == ("interrupted", 0, 3)


@pytest.mark.parametrize("save", [1, 2, 3], ids=["first", "second", "last"])
def test_a_save_during_which_a_signal_arrives_is_completed(
    save: int, model_config: GPTConfig, recipe: MakeRecipe, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:  # R16
    """Within a save, the signal comes at its last fsync, when all but the index is written."""
    whole, parts = recipe("whole"), recipe("parts")
    train(model_config, *whole, dataset)
    with monkeypatch.context() as patch:
        interrupt_call(patch, run_folder, "write_index", save)
        first = train(model_config, *parts, dataset)
    assert (first.reason, first.step) == (("interrupted", 4 * save + 1) if save < 3 else ("finished", 12))
    assert find_checkpoint(parts.out_dir, "last").name == f"step-{first.step:06d}"
    if save < 3:
        train(model_config, *parts, dataset, resume=True)
    ours, theirs = state_of(whole.out_dir), state_of(parts.out_dir)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_second_ctrl_c_in_a_save_leaves_the_checkpoints_before_it_and_no_draft(
    model_config: GPTConfig, recipe: MakeRecipe, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:  # R16
    run = recipe("out")

    def interrupt_twice(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    calls = iter([manifest.write_manifest, interrupt_twice])
    monkeypatch.setattr(format, "write_manifest", lambda *arguments: next(calls)(*arguments))
    with pytest.raises(KeyboardInterrupt):
        train(model_config, *run, dataset)
    monkeypatch.undo()
    checkpoints = Path(run.context.out_dir) / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["index.json", "step-000004"]
    assert train(model_config, *run, dataset, resume=True).step == 12
