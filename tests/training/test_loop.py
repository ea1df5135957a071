"""Training gives the same result however it is interrupted, resumed or split into micro-batches."""

import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import MakeRecipe as Recipe
from torch import Tensor

from quill.acceleration.checkpointing import checkpoint_blocks
from quill.acceleration.compile import compile_model
from quill.checkpoints.format import read_tensors
from quill.checkpoints.run_folder import find_checkpoint, load_checkpoint
from quill.data.dataset import Dataset, prepare_dataset
from quill.errors import ConfigError, TrainingError
from quill.evaluation.loss import cross_entropy
from quill.model.build import Model, build_model
from quill.model.config import GPTConfig, ModernConfig
from quill.model.gpt import GPT
from quill.training import evaluator, step
from quill.training.loop import train
from quill.training.parameter_groups import build_optimizer

TEXT = "the quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs.\n" * 40


class Diary(list):
    """Remembers every event that a run reports."""

    def __call__(self, event: dict) -> None:
        self.append(event)

    def all(self, kind: str) -> list[dict]:
        return [event for event in self if event["event"] == kind]


def modern(shape: GPTConfig) -> ModernConfig:
    """Return a modern model of the same size."""
    c = shape
    return ModernConfig(
        c.vocab_size, block_size=c.block_size, n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd, dropout=c.dropout
    )


def saved_state(out_dir: str) -> dict[str, Tensor]:
    """Return every tensor that a run's last checkpoint holds, weights and optimizer and random numbers."""
    folder = find_checkpoint(out_dir, "last")
    return read_tensors(folder / "model.safetensors")[0] | read_tensors(folder / "training.safetensors")[0]


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, different


# The core suite has each of the three choices twice, the long tests the other combinations.
@pytest.mark.parametrize(
    ("kind", "accumulation", "stop_at"),  # step 4 is at an evaluation, step 7 between two
    [
        ("classic", 1, 4), ("classic", 2, 7), ("modern", 1, 7), ("modern", 2, 4),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (("classic", 1, 7), ("classic", 2, 4), ("modern", 1, 4), ("modern", 2, 7))
        ),
    ],
)  # fmt: skip
def test_a_resumed_run_equals_one_that_never_stopped(
    stop_at: int, accumulation: int, kind: str, model_config: GPTConfig, recipe: Recipe, dataset: Dataset
) -> None:
    shape = model_config if kind == "classic" else modern(model_config)
    changes = {} if kind == "classic" else {"optimizer": "muon", "embedding_learning_rate": 0.05, "lr_schedule": "wsd"}
    whole, parts = (recipe(o, gradient_accumulation_steps=accumulation, **changes) for o in ("whole", "parts"))
    straight, first, second = Diary(), Diary(), Diary()
    train(shape, *whole, dataset, report=straight)
    steps = iter(range(1, 100))
    result = train(shape, *parts, dataset, report=first, stop=lambda: "interrupted" if next(steps) == stop_at else None)
    assert (result.reason, result.step) == ("interrupted", stop_at)
    torch.manual_seed(999)  # whatever happened in between must not matter
    train(shape, *parts, dataset, report=second, resume=True)
    assert_same(saved_state(whole.out_dir), saved_state(parts.out_dir))
    assert [e["val_loss"] for e in straight.all("evaluation")] == [
        e["val_loss"] for e in first.all("evaluation") + second.all("evaluation")
    ]
    assert find_checkpoint(whole.out_dir, "best").name == find_checkpoint(parts.out_dir, "best").name


@pytest.mark.parametrize("steps", [5, 11], ids=["fewer", "more"])
def test_replanning_equals_resuming_with_as_many_steps(
    steps: int, model_config: GPTConfig, recipe: Recipe, dataset: Dataset
) -> None:
    planned, stopped = recipe("planned"), recipe("stopped")
    told, count = Diary(), iter(range(1, 100))
    result = train(
        model_config, *planned, dataset, report=told, plan=lambda step: steps if step >= 4 else planned.config.max_iters
    )
    assert (result.reason, result.step) == ("finished", steps)
    assert told.all("plan") == [{"event": "plan", "step": 4, "max_iters": steps}]
    train(model_config, *stopped, dataset, stop=lambda: "interrupted" if next(count) == 4 else None)
    train(model_config, replace(stopped.config, max_iters=steps), stopped.context, dataset, resume=True)
    assert_same(saved_state(planned.out_dir), saved_state(stopped.out_dir))


def test_a_plan_whose_time_is_over_takes_one_more_step_at_the_end_of_its_schedule(
    model_config: GPTConfig, recipe: Recipe, dataset: Dataset
) -> None:
    told = Diary()
    result = train(model_config, *recipe(log_interval=4), dataset, report=told, plan=lambda step: 0 if step else 8)
    assert (result.reason, result.step) == ("finished", 5)
    assert told.all("step")[-1]["learning_rate"] < 0.5 * told.all("step")[-2]["learning_rate"]


def test_the_same_seed_gives_the_same_run_and_another_one_does_not(
    model_config: GPTConfig, recipe: Recipe, dataset: Dataset
) -> None:
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(model_config, *recipe(out, seed=seed), dataset)
    a, b, c = (saved_state(recipe(out).out_dir) for out in "abc")
    assert_same(a, b)
    assert not torch.equal(a["token_embedding.weight"], c["token_embedding.weight"])


def test_accumulated_gradients_equal_the_large_batch(model_config: GPTConfig, recipe: Recipe, dataset: Dataset) -> None:
    still = replace(model_config, dropout=0.0)  # dropout draws different numbers for differently shaped batches
    train(still, *recipe("large", batch_size=12, max_iters=6), dataset)
    train(still, *recipe("small", batch_size=4, gradient_accumulation_steps=3, max_iters=6), dataset)
    large, small = saved_state(recipe("large").out_dir), saved_state(recipe("small").out_dir)
    for name in (n for n in large if not n.startswith(("rng", "optimizer"))):
        torch.testing.assert_close(large[name], small[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["classic", "modern"])
def test_checkpointing_changes_memory_and_not_gradients(kind: str, model_config: GPTConfig) -> None:
    shape = model_config if kind == "classic" else modern(model_config)
    tokens_BT = torch.randint(model_config.vocab_size, (4, 16), generator=torch.Generator().manual_seed(0))
    gradients, kept = [], []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = build_model(shape).train()
        assert shape.dropout > 0
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.3)
        if checkpointed:
            checkpoint_blocks(model)
        held: dict[int, int] = {}

        def note(tensor: Tensor, held: dict[int, int] = held) -> Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = cross_entropy(model(tokens_BT), tokens_BT)
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        kept.append(sum(size for pointer, size in held.items() if pointer not in weights))
    assert_same(*gradients)
    assert kept[1] < kept[0] / 2


def test_weight_decay_is_for_matrices_only(model_config: GPTConfig, recipe: Recipe) -> None:
    model = GPT(replace(model_config, bias=True))
    decayed, others = build_optimizer(model, recipe(weight_decay=0.3).config).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert all(p.dim() >= 2 for p in decayed["params"]) and all(p.dim() < 2 for p in others["params"])
    assert sorted(decayed["names"] + others["names"]) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("kind", ["classic", "modern"])
def test_a_run_learns(kind: str, model_config: GPTConfig, recipe: Recipe, dataset: Dataset) -> None:
    shape, changes = replace(model_config, dropout=0.0), {"max_iters": 150, "eval_interval": 50}
    if kind == "modern":
        shape = modern(shape)
        changes |= {"optimizer": "muon", "lr_schedule": "linear", "embedding_learning_rate": 0.03, "max_iters": 100}
    diary = Diary()
    result = train(shape, *recipe(**changes), dataset, report=diary)
    first, *_, last = diary.all("evaluation")
    assert abs(first["val_loss"] - math.log(model_config.vocab_size)) < 0.1
    assert last["val_loss"] < 1.2 < first["val_loss"]
    assert first["whole_split"] is False and first["val_tokens"] == 2 * 4 * 16
    assert result.reason == "finished" and result.best_val_loss == min(e["val_loss"] for e in diary.all("evaluation"))


def test_events_report_the_whole_run(model_config: GPTConfig, recipe: Recipe, dataset: Dataset) -> None:
    diary = Diary()
    train(model_config, *recipe(), dataset, report=diary, sample=lambda model: "once upon a time")
    assert [e["step"] for e in diary.all("step")] == [3, 4, 7, 8, 11, 12]
    assert [e["step"] for e in diary.all("evaluation")] == [0, 4, 8, 12] == [e["step"] for e in diary.all("sample")]
    assert diary[0]["event"] == "start" and diary[0]["tokens_per_step"] == 4 * 16
    assert diary[-1]["event"] == "end" and diary[-1]["reason"] == "finished"
    assert json.loads(json.dumps(diary, allow_nan=False)) == diary


def test_generating_a_sample_changes_no_result(model_config: GPTConfig, recipe: Recipe, dataset: Dataset) -> None:
    from quill.generation.language_model import LanguageModel

    def write(model: Model) -> str:
        return LanguageModel(model, dataset.tokenizer).generate("the", max_new_tokens=5, seed=0)

    train(model_config, *recipe("silent"), dataset)
    train(model_config, *recipe("writing"), dataset, sample=write)
    assert_same(saved_state(recipe("silent").out_dir), saved_state(recipe("writing").out_dir))


def test_a_loss_that_is_nan_stops_the_run_and_keeps_earlier_checkpoints(
    model_config: GPTConfig, recipe: Recipe, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(1000))

    def break_at_tenth(logits_BTV: Tensor, targets_BT: Tensor, reduction: str = "mean") -> Tensor:
        loss = cross_entropy(logits_BTV, targets_BT, reduction)
        return loss * math.nan if next(calls) == 9 else loss

    monkeypatch.setattr(step, "cross_entropy", break_at_tenth)
    config = recipe(max_iters=50)
    with pytest.raises(TrainingError, match=r"step 9: loss nan, .* learning rate .*lower learning_rate"):
        train(model_config, *config, dataset)
    for which in ("best", "last"):
        kept = load_checkpoint(config.out_dir, checkpoint=which)
        assert kept.step in (4, 8) and all(p.isfinite().all() for p in kept.model.parameters())


def test_a_learning_rate_far_too_high_is_an_error_and_ruins_no_checkpoint(
    model_config: GPTConfig, recipe: Recipe, dataset: Dataset
) -> None:
    config = recipe(learning_rate=1e30, warmup_iters=0, grad_clip=0.0, max_iters=50)
    with pytest.raises(TrainingError, match="at step"):
        train(model_config, *config, dataset)
    assert not (Path(config.out_dir) / "best").exists()


def score(monkeypatch: pytest.MonkeyPatch, dataset: Dataset, val: list[float], train: list[float]) -> None:
    """Let evaluations find these losses of the two splits, one after another."""
    found = {len(dataset.val): iter(val), len(dataset.train): iter(train)}
    evaluate_split = evaluator.evaluate_split

    def scored(model: Any, tokens: Any, *rest: Any, **options: Any) -> Any:
        return replace(evaluate_split(model, tokens, *rest, **options), loss=next(found[len(tokens)]))

    monkeypatch.setattr(evaluator, "evaluate_split", scored)


def test_overfitting_is_not_reported_for_a_run_whose_training_loss_rises(
    model_config: GPTConfig, recipe: Recipe, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:  # T10
    diary = Diary()
    score(monkeypatch, dataset, val=[3.0, 2.0, 2.5, 2.5, 2.3, 2.1], train=[3.0, 2.0, 2.1, 2.2, 2.3, 2.4])
    train(model_config, *recipe(max_iters=100, patience=3), dataset, report=diary)
    assert not diary.all("warning")


def test_patience_stops_a_run_that_no_longer_improves(
    model_config: GPTConfig, recipe: Recipe, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    diary = Diary()
    score(monkeypatch, dataset, val=[3.0, 2.0, 2.5, 2.5, 2.3, 2.1], train=[3.0, 2.0, 1.9, 1.8, 1.7, 1.6])
    result = train(model_config, *recipe(max_iters=100, patience=3), dataset, report=diary)
    assert [e["val_loss"] for e in diary.all("evaluation")] == [3.0, 2.0, 2.5, 2.5, 2.3]
    assert (result.reason, result.best_step, result.best_val_loss) == ("patience", 4, 2.0)
    (warning,) = diary.all("warning")
    assert "more dropout" in warning["message"] and "step 4" in warning["message"]
    assert find_checkpoint(recipe().out_dir, "best").name == "step-000004"
    assert find_checkpoint(recipe().out_dir, "last").name == "step-000016"


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send itself SIGINT without ending the test runner")
@pytest.mark.usefixtures("signals")
def test_ctrl_c_saves_the_run_and_a_later_one_is_not_ignored(
    model_config: GPTConfig, recipe: Recipe, dataset: Dataset
) -> None:
    def press_at_fourth(event: dict) -> None:
        if event["event"] == "step" and event["step"] == 4:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    result = train(model_config, *recipe(), dataset, report=press_at_fourth)
    assert (result.reason, result.step) == ("interrupted", 4)
    assert find_checkpoint(recipe().out_dir, "last").name == "step-000004"
    assert signal.getsignal(signal.SIGINT) is before

    def press_twice(event: dict) -> None:
        if event["event"] == "step":
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(model_config, *recipe("twice"), dataset, report=press_twice)


def test_a_folder_that_holds_a_run_is_not_trained_over(
    model_config: GPTConfig, recipe: Recipe, dataset: Dataset
) -> None:
    train(model_config, *recipe(), dataset)
    before = saved_state(recipe().out_dir)
    with pytest.raises(ConfigError, match="already holds a run"):
        train(model_config, *recipe(), dataset)
    assert_same(before, saved_state(recipe().out_dir))


def test_a_run_of_another_shape_or_text_is_not_resumed(
    model_config: GPTConfig, recipe: Recipe, dataset: Dataset, tmp_path: Path
) -> None:
    train(model_config, *recipe(), dataset)
    with pytest.raises(ConfigError, match=r"n_layer=3 is not what .* \(n_layer=2\)"):
        train(replace(model_config, n_layer=3), *recipe(max_iters=20), dataset, resume=True)
    (tmp_path / "other.txt").write_text(TEXT.replace("q", "Q"), encoding="utf-8")
    other = prepare_dataset(str(tmp_path / "other.txt"), data_dir=tmp_path)
    assert other.tokenizer.vocab_size == model_config.vocab_size
    with pytest.raises(ConfigError, match="other characters"):
        train(model_config, *recipe(max_iters=20), other, resume=True)


def test_a_failed_compilation_gives_one_warning(model_config: GPTConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: GPT) -> Callable[[Tensor], Tensor]:
        def fail(tokens_BT: Tensor) -> Tensor:
            raise RuntimeError("no C++ compiler\nand much more")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    warnings: list[str] = []
    model, tokens_BT = GPT(model_config), torch.zeros(1, 4, dtype=torch.long)
    assert compile_model(model, True, tokens_BT, warnings.append) is model
    assert len(warnings) == 1 and "no C++ compiler" in warnings[0] and "\n" not in warnings[0]
    assert compile_model(model, "auto", tokens_BT, warnings.append) is model, "on the CPU auto does not compile"
    assert len(warnings) == 1


def test_training_in_bfloat16_keeps_weights_in_float32(
    model_config: GPTConfig, recipe: Recipe, dataset: Dataset
) -> None:
    diary = Diary()
    train(model_config, *recipe(dtype="bfloat16"), dataset, report=diary)
    assert diary[0]["dtype"] == "bfloat16"
    assert load_checkpoint(recipe().out_dir).model.head.weight.dtype == torch.float32
