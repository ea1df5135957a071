"""A training state is compared with the run that resumes from it, before anything is changed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quill.checkpoints.run_folder import save_checkpoint
from quill.errors import CheckpointError, ConfigError
from quill.model.build import build_model
from quill.model.config import GPTConfig, ModelConfig, ModernConfig
from quill.tokenizers.char import CharTokenizer
from quill.training.config import TrainConfig
from quill.training.evaluator import overfitting_warning
from quill.training.parameter_groups import build_optimizer
from quill.training.state import Progress, restore_training, training_state

CLASSIC = GPTConfig(vocab_size=3, block_size=4, n_layer=1, n_head=1, n_embd=4, bias=True)
MODERN = ModernConfig(vocab_size=3, block_size=4, n_layer=1, n_head=1, n_embd=4, ngram=2)
CPU = torch.device("cpu")
TEXT = "a" * 64


class Run:
    """A model after a step of training, saved into a folder, and another one into which it is restored."""

    def __init__(self, out: Path, shape: ModelConfig, **recipe: Any) -> None:
        self.out, self.shape = out, shape
        self.recipe = TrainConfig(optimizer="muon" if shape is MODERN else "adamw", **recipe)
        torch.manual_seed(1)
        self.model = build_model(shape)
        self.optimizer = build_optimizer(self.model, self.recipe)
        tokens_BT = torch.tensor([[0, 1, 2, 0]])
        self.model(tokens_BT).square().mean().backward()
        self.optimizer.step()
        self.progress = Progress(step=1, val_loss=1.5, best_val_loss=1.5, best_step=1, evaluated_step=1)

    def state(self, scaler: torch.amp.GradScaler | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
        return training_state(self.optimizer, scaler, self.progress, CPU, self.recipe)

    def save(self, tensors: dict[str, Tensor], metadata: dict[str, Any], step: int = 1) -> None:
        save_checkpoint(
            self.out, self.model, CharTokenizer("abc"), step=step, val_loss=1.5, best=True, text_sha256=TEXT,
            training_tensors=tensors, training_metadata=metadata,
        )  # fmt: skip

    def restore(
        self, recipe: TrainConfig | None = None, text: str = TEXT, scaled: bool = False
    ) -> tuple[Progress, Any]:
        model = build_model(self.shape)
        optimizer = build_optimizer(model, recipe or self.recipe)
        scaler = torch.amp.GradScaler("cpu", enabled=scaled)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        generator = torch.get_rng_state()
        try:
            progress = restore_training(
                self.out, model, CharTokenizer("abc"), optimizer, scaler, CPU, text, recipe or self.recipe
            )
        except (CheckpointError, ConfigError):
            assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
            assert torch.equal(torch.get_rng_state(), generator) and not optimizer.state, "nothing was changed"
            raise
        return progress, (model, optimizer, scaler)


@pytest.mark.parametrize("shape", [CLASSIC, MODERN], ids=["classic", "modern"])
def test_what_was_saved_is_restored(shape: ModelConfig, tmp_path: Path) -> None:
    run = Run(tmp_path, shape)
    run.save(*run.state())
    expected = torch.rand(3)
    progress, (model, optimizer, _) = run.restore()
    assert progress == run.progress and torch.equal(torch.rand(3), expected)
    for (name, p), (_, q) in zip(model.named_parameters(), run.model.named_parameters(), strict=True):
        assert torch.equal(p, q), name
        assert optimizer.state[p].keys() == run.optimizer.state[q].keys()
        assert all(torch.equal(value, run.optimizer.state[q][key]) for key, value in optimizer.state[p].items())


METADATA: dict[str, Callable[[dict], object]] = {
    "no progress": lambda m: m.pop("progress"),
    "progress that is a list": lambda m: m.update(progress=[1]),
    "progress that is null": lambda m: m.update(progress=None),
    "an extra key": lambda m: m.update(color="red"),
    "an extra key in progress": lambda m: m["progress"].update(color="red"),
    "a key too few in progress": lambda m: m["progress"].pop("best_step"),
    "a step of text": lambda m: m["progress"].update(step="1"),
    "a step of half": lambda m: m["progress"].update(step=1.0),
    "a step that is True": lambda m: m["progress"].update(step=True),
    "a negative step": lambda m: m["progress"].update(step=-1),
    "an enormous step": lambda m: m["progress"].update(step=10**400),
    "another step": lambda m: m["progress"].update(step=2),
    "a best step after the last": lambda m: m["progress"].update(best_step=2),
    "a best step of text": lambda m: m["progress"].update(best_step="1"),
    "a negative count": lambda m: m["progress"].update(evaluations_since_best=-1),
    "a loss of text": lambda m: m["progress"].update(best_val_loss="1.5"),
    "an enormous loss": lambda m: m["progress"].update(val_loss=10**400),
    "no scaler": lambda m: m.pop("scaler"),
    "a scaler that is a list": lambda m: m.update(scaler=[]),
    "a scaler of text": lambda m: m.update(scaler={"scale": "1"}),
    "a recipe that is a list": lambda m: m.update(recipe=[]),
}


@pytest.mark.parametrize("change", METADATA.values(), ids=METADATA)
def test_metadata_with_impossible_values_are_refused(change: Callable, tmp_path: Path) -> None:  # R7
    run = Run(tmp_path, CLASSIC)
    tensors, metadata = run.state()
    metadata = json.loads(json.dumps(metadata))
    change(metadata)
    run.save(tensors, metadata)
    with pytest.raises(CheckpointError, match=r"training\.safetensors") as caught:
        run.restore()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


MOMENT = "optimizer.exp_avg.blocks.0.feed_forward.hidden.weight"  # 16 rows, 4 columns
TENSORS: dict[str, Callable[[dict], object]] = {
    "no moment": lambda t: t.pop(MOMENT),
    "no step of a weight": lambda t: t.pop(MOMENT.replace("exp_avg", "step")),
    "a transposed moment": lambda t: t.update({MOMENT: t[MOMENT].T}),
    "a flat moment": lambda t: t.update({MOMENT: t[MOMENT].flatten()}),
    "a scalar moment": lambda t: t.update({MOMENT: torch.tensor(0.0)}),
    "a moment in half precision": lambda t: t.update({MOMENT: t[MOMENT].half()}),
    "a moment in double precision": lambda t: t.update({MOMENT: t[MOMENT].double()}),
    "a moment of whole numbers": lambda t: t.update({MOMENT: t[MOMENT].long()}),
    "no random numbers": lambda t: t.pop("rng.cpu"),
    "random numbers of another length": lambda t: t.update({"rng.cpu": t["rng.cpu"][:-8]}),
    "random numbers of another type": lambda t: t.update({"rng.cpu": t["rng.cpu"].float()}),
    "random numbers that are none": lambda t: t.update({"rng.cpu": torch.full_like(t["rng.cpu"], 255)}),
}


@pytest.mark.parametrize("change", TENSORS.values(), ids=TENSORS)
def test_tensors_of_another_name_type_or_shape_are_refused(change: Callable, tmp_path: Path) -> None:  # R7
    run = Run(tmp_path, CLASSIC)
    tensors, metadata = run.state()
    change(tensors)
    run.save(tensors, metadata)
    with pytest.raises(CheckpointError, match=r"training\.safetensors"):
        run.restore()


def test_row_wise_state_of_another_shape_is_refused(tmp_path: Path) -> None:  # R7
    run = Run(tmp_path, MODERN)
    tensors, metadata = run.state()
    (name,) = [name for name in tensors if "ngram_embedding" in name]
    run.save(tensors | {name: tensors[name].T}, metadata)
    with pytest.raises(CheckpointError, match="ngram_embedding"):
        run.restore()


@pytest.mark.parametrize(
    ("train_losses", "warned"),
    [
        ([2.0, 1.9, 1.8, 1.7], True),
        ([2.0, 2.1, 2.2, 2.3], False),  # it rises as well
        ([2.0, 2.0, 2.0, 2.0], False),  # the learning rate is 0
        ([0.0, 0.0, 0.0, 0.0], False),
        ([2.0, 1.9, None, None], False),
    ],
)
def test_overfitting_is_said_only_where_the_training_loss_fell(train_losses: list, warned: bool) -> None:  # T10
    progress = Progress()
    for train_loss in train_losses:
        progress.record(2.5, train_loss)
    assert (overfitting_warning(progress) is not None) == warned


def test_another_text_is_refused_by_its_sha256(tmp_path: Path) -> None:  # R13, T1
    run = Run(tmp_path, CLASSIC)
    run.save(*run.state())
    with pytest.raises(ConfigError, match=r"the text is not the one that .* was trained on"):
        run.restore(text="b" * 64)
    assert run.restore()[0].step == 1


@pytest.mark.parametrize(
    "changed",
    [{"seed": 5}, {"batch_size": 3}, {"gradient_accumulation_steps": 2}, {"beta1": 0.8}, {"data_order": "shuffled"}],
)
def test_a_recipe_that_was_edited_is_refused(changed: dict, tmp_path: Path) -> None:  # R13
    run = Run(tmp_path, CLASSIC)
    run.save(*run.state())
    (name, value) = *changed, *changed.values()
    with pytest.raises(ConfigError, match=rf"{name}={value!r} is not what .* was trained with \({name}="):
        run.restore(TrainConfig(**changed))
    assert run.restore(TrainConfig(max_iters=9, learning_rate=0.5, eval_interval=7))[0].step == 1


def test_a_weight_without_gradients_is_resumed_too(tmp_path: Path) -> None:
    run = Run(tmp_path, CLASSIC)
    weights = dict(run.model.named_parameters())
    del run.optimizer.state[weights["position_embedding.weight"]]
    run.save(*run.state())
    _, (model, optimizer, _) = run.restore()
    assert not optimizer.state[model.position_embedding.weight]["exp_avg"].any()


def test_float16_training_resumes_its_loss_scale_or_starts_a_new_one(tmp_path: Path) -> None:
    run = Run(tmp_path, CLASSIC)
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    scaler.scale(torch.tensor(1.0))  # a scale exists from the first use on
    run.save(*run.state(scaler))
    assert run.restore(scaled=True)[1][2].state_dict()["scale"] == 512.0
    assert run.restore(scaled=False)[0].step == 1
    other = Run(tmp_path / "unscaled", CLASSIC)
    other.save(*other.state())
    assert other.restore(scaled=True)[0].step == 1
