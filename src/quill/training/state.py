"""The state of a run besides its weights, with which resuming is bit-identical to a run that never stopped.

Optimizer moments, RNG state and counters are converted to named tensors and JSON for a checkpoint, and back. The
contents of a file are checked by name, type and shape before any of them is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from quill.checkpoints.format import check_weights, name_in_format, read_checkpoint, read_tensors
from quill.checkpoints.manifest import STATE, WEIGHTS
from quill.checkpoints.run_folder import find_checkpoint
from quill.checkpoints.schema import FINITE, MOST_STEPS, OBJECT, STEP, check_record, optional, whole
from quill.distributed.group import Group
from quill.errors import CheckpointError, ConfigError
from quill.model.build import Model
from quill.optim.optimizer import Optimizer, key_in_format, state_keys, state_shape
from quill.tokenizers.base import Tokenizer
from quill.training.config import FREE_ON_RESUME, TrainConfig
from quill.validation import show


@dataclass
class Progress:
    """Counters and losses of a run. `step` counts finished optimizer steps; losses are None before an evaluation."""

    step: int = 0
    val_loss: float | None = None
    best_val_loss: float | None = None
    best_step: int = 0
    evaluations_since_best: int = 0
    evaluated_step: int | None = None
    """step of the last evaluation that was completed"""
    train_loss: float | None = None
    """training loss of that evaluation"""
    best_train_loss: float | None = None
    """training loss at `best_step`"""

    def record(self, val_loss: float, train_loss: float | None = None) -> bool:
        """Record an evaluation at the current step, and return whether its validation loss is the best so far."""
        self.val_loss, self.train_loss, self.evaluated_step = val_loss, train_loss, self.step
        better = self.best_val_loss is None or val_loss < self.best_val_loss
        if better:
            self.best_val_loss, self.best_step, self.best_train_loss = val_loss, self.step, train_loss
        self.evaluations_since_best = 0 if better else self.evaluations_since_best + 1
        return better

    @property
    def overfits(self) -> bool:
        """Whether the training loss fell since the best evaluation, and the validation loss did not."""
        if self.train_loss is None or self.best_train_loss is None:
            return False
        return self.evaluations_since_best > 0 and self.train_loss < self.best_train_loss


PROGRESS = {
    "step": STEP,
    "val_loss": optional(FINITE),
    "best_val_loss": optional(FINITE),
    "best_step": STEP,
    "evaluations_since_best": STEP,
    "evaluated_step": optional(STEP),
    "train_loss": optional(FINITE),
    "best_train_loss": optional(FINITE),
}

SCALER = {
    "scale": FINITE,
    "growth_factor": FINITE,
    "backoff_factor": FINITE,
    "growth_interval": whole(1, MOST_STEPS),
    "_growth_tracker": STEP,
}


def own_state(tensor: Tensor, weight: Tensor) -> Tensor:
    """Return a tensor of a weight's state, where this process has all of it."""
    return tensor


def training_state(
    optimizer: Optimizer,
    scaler: GradScaler,
    progress: Progress,
    device: torch.device,
    config: TrainConfig | None = None,
    whole: Callable[[Tensor, Tensor], Tensor] = own_state,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and JSON metadata from which `restore_training` restores the state of a run.

    `whole` returns all rows of a part of a weight's state, of which this process may have only some.
    """
    tensors = {"rng.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state(device)
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            state = optimizer.state.get(parameter, {})
            for key in state_keys(group["kind"]):  # a weight without any gradient so far has no state yet
                value = whole(state[key], parameter) if key in state else torch.zeros(state_shape(key, parameter))
                tensors[f"optimizer.{key}.{name}"] = value
    recipe = asdict(config) if config else {}
    return tensors, {"progress": asdict(progress), "scaler": scaler.state_dict(), "recipe": recipe}


def restore_training(
    out_dir: str | Path,
    model: Model,
    tokenizer: Tokenizer,
    optimizer: Optimizer,
    scaler: GradScaler,
    device: torch.device,
    text_sha256: str | None = None,
    config: TrainConfig | None = None,
) -> Progress:
    """Restore model, optimizer and RNG state from the run's last checkpoint, and return its progress.

    A checkpoint of another model, text or recipe is a ConfigError; one with an incomplete training state is a
    CheckpointError. In both cases nothing is changed.
    """
    folder = find_checkpoint(out_dir, "last")
    checkpoint = read_checkpoint(folder / WEIGHTS)
    for key, now in vars(model.config).items():
        before = getattr(checkpoint.config, key, None)
        if before != now:
            raise ConfigError(
                f"{key}={now!r} is not what {out_dir} was trained with ({key}={before!r}): "
                f"resume with the same model, or choose another out_dir"
            )
    if checkpoint.tokenizer.to_json() != tokenizer.to_json():
        raise ConfigError(f"the text has other characters than when {out_dir} was trained: choose another out_dir")
    require_same_text(checkpoint.text_sha256, text_sha256, out_dir)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    check_weights({name: array.shape for name, array in checkpoint.weights.items()}, shapes, folder / WEIGHTS)
    file = folder / STATE
    tensors, metadata = read_tensors(file)
    progress = _read_progress(metadata, checkpoint.step, file)
    if config is not None:
        _require_same_recipe(metadata.get("recipe", {}), asdict(config), out_dir)
    moments: dict[tuple[torch.nn.Parameter, str], Tensor] = {}
    groups = optimizer.param_groups if progress.step else []  # before the first step there is no state
    for group in groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key in state_keys(group["kind"]):
                format = checkpoint.metadata["format"]
                stored = f"optimizer.{key_in_format(key, format)}.{name_in_format(name, format)}"
                value = _expect(tensors, stored, parameter.dtype, state_shape(key, parameter), file)
                moments[parameter, key] = value.clone().to(device)
    scaling = check_record(metadata["scaler"], SCALER, file) if metadata["scaler"] else {}
    _restore_random_numbers(tensors, device, file)
    if scaler.is_enabled() and scaling:
        scaler.load_state_dict(scaling)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(checkpoint.weights[name]))
    for (parameter, key), value in moments.items():
        optimizer.state[parameter][key] = value
    return progress


def share_training(
    group: Group, model: Model, optimizer: Optimizer, scaler: GradScaler, progress: Progress
) -> Progress:
    """Give all processes the weights, optimizer state, loss scale and progress of rank 0; return the progress."""
    if group.alone:
        return progress
    shared = group.share({"progress": asdict(progress), "scaler": scaler.state_dict()})
    progress = Progress(**shared["progress"])
    if scaler.is_enabled():
        scaler.load_state_dict(shared["scaler"])
    group.overwrite(model.parameters())
    for each in optimizer.param_groups if progress.step else []:
        for weight in each["params"]:
            state = optimizer.state_of(weight, each["kind"])
            group.overwrite(state[key] for key in state_keys(each["kind"]))
    return progress


def require_same_text(before: str | None, now: str | None, out_dir: str | Path) -> None:
    """Raise ConfigError if both SHA-256s are known and differ: a run is resumed on the same text."""
    if before is not None and now is not None and before != now:
        raise ConfigError(
            f"the text is not the one that {out_dir} was trained on (SHA-256 {now[:12]}…, then {before[:12]}…): "
            f"resume with the same text, or choose another out_dir"
        )


def _require_same_recipe(before: dict[str, Any], now: dict[str, Any], out_dir: str | Path) -> None:
    """Raise ConfigError if a setting that cannot change in a run differs from that of its last checkpoint."""
    for name in sorted((before.keys() & now.keys()) - FREE_ON_RESUME):
        if before[name] != now[name]:
            raise ConfigError(
                f"{name}={show(now[name])} is not what {out_dir} was trained with ({name}={show(before[name])}): "
                f"it cannot change in a run; put it back in config.yaml, or start another run"
            )


def _read_progress(metadata: dict[str, Any], step: int, file: Path) -> Progress:
    check_record({"recipe": {}} | metadata, {"progress": OBJECT, "scaler": OBJECT, "recipe": OBJECT}, file)
    stored = metadata["progress"]
    if "evaluated_step" not in stored:  # earlier versions completed every evaluation that they began
        stored = {"evaluated_step": stored.get("step"), "train_loss": None, "best_train_loss": None} | stored
    progress = Progress(**check_record(stored, PROGRESS, file))
    if progress.step != step or progress.best_step > step:
        raise CheckpointError(
            f"{file} is damaged: it is of step {progress.step} with its best at {progress.best_step}, "
            f"and the weights are of step {step}"
        )
    return progress


def _expect(tensors: dict[str, Tensor], name: str, dtype: torch.dtype, shape: tuple[int, ...], file: Path) -> Tensor:
    """Return a tensor of the file; CheckpointError if it is missing, or of another type or shape."""
    value = tensors.get(name)
    if value is None:
        raise CheckpointError(f"{file} has no {name}: the run cannot be resumed from it")
    if value.dtype != dtype or tuple(value.shape) != shape:
        raise CheckpointError(
            f"{file} is damaged: {name} is {value.dtype} of shape {tuple(value.shape)}, expected {dtype} of {shape}"
        )
    return value


def _restore_random_numbers(tensors: dict[str, Tensor], device: torch.device, file: Path) -> None:
    now = torch.get_rng_state()
    state = _expect(tensors, "rng.cpu", now.dtype, tuple(now.shape), file)
    try:
        if device.type == "cuda" and "rng.cuda" in tensors:
            on_device = torch.cuda.get_rng_state(device)
            on_device = _expect(tensors, "rng.cuda", on_device.dtype, tuple(on_device.shape), file)
            torch.cuda.set_rng_state(on_device, device)
        torch.set_rng_state(state)
    except RuntimeError as error:
        raise CheckpointError(f"{file} is damaged: its random-number state is not one ({error})") from error
