"""All that changes while a run trains, apart from the weights: enough of it to go on as if nothing had happened.

Optimizer moments, random-number state and counters become named tensors and JSON for a checkpoint, and come back.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quill.checkpoints.format import STATE, WEIGHTS, check_weights, read_tensors
from quill.checkpoints.run_folder import find_checkpoint
from quill.errors import CheckpointError, ConfigError
from quill.model.build import Model
from quill.optim.optimizer import Optimizer, state_keys
from quill.tokenizers.base import Tokenizer
from quill.tokenizers.load import tokenizer_from_json


@dataclass
class Progress:
    """How far a run is. `step` counts finished optimizer steps; the losses are None before the first evaluation."""

    step: int = 0
    val_loss: float | None = None
    best_val_loss: float | None = None
    best_step: int = 0
    evaluations_since_best: int = 0

    def record(self, val_loss: float) -> bool:
        """Note an evaluation at the current step, and say whether it is the best so far."""
        self.val_loss = val_loss
        better = self.best_val_loss is None or val_loss < self.best_val_loss
        if better:
            self.best_val_loss, self.best_step = val_loss, self.step
        self.evaluations_since_best = 0 if better else self.evaluations_since_best + 1
        return better


def training_state(
    optimizer: Optimizer, scaler: torch.amp.GradScaler, progress: Progress, device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and JSON metadata that `restore_training` turns back into the state of a run."""
    tensors = {"rng.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state(device)
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimizer.state[parameter].items():
                tensors[f"optimizer.{key}.{name}"] = value
    return tensors, {"progress": asdict(progress), "scaler": scaler.state_dict()}


def restore_training(
    out_dir: str | Path,
    model: Model,
    tokenizer: Tokenizer,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    device: torch.device,
) -> Progress:
    """Put model, optimizer and random numbers back to the run's last checkpoint, and return how far it was.

    A checkpoint of another model or another text is a ConfigError; one without training state a CheckpointError.
    """
    folder = find_checkpoint(out_dir, "last")
    weights, about = read_tensors(folder / WEIGHTS)
    for key, now in vars(model.config).items():
        if about["model"].get(key) != now:
            raise ConfigError(
                f"{key}={now!r} is not what {out_dir} was trained with ({key}={about['model'].get(key)!r}): "
                f"go on with the same model, or choose another --out_dir"
            )
    if tokenizer_from_json(about["tokenizer"]).to_json() != tokenizer.to_json():
        raise ConfigError(f"the text has other characters than when {out_dir} was trained: choose another --out_dir")
    parameters = dict(model.named_parameters())
    check_weights(weights, {name: tuple(p.shape) for name, p in parameters.items()}, folder / WEIGHTS)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    tensors, metadata = read_tensors(folder / STATE)
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key in state_keys(group["kind"]):
                if (value := tensors.get(f"optimizer.{key}.{name}")) is None:
                    raise CheckpointError(f"{folder / STATE} has no optimizer state of {name}: it cannot be resumed")
                optimizer.state[parameter][key] = value.clone().to(device)
    scaler.load_state_dict(metadata["scaler"])
    torch.set_rng_state(tensors["rng.cpu"])
    if device.type == "cuda" and "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng.cuda"], device)
    return Progress(**metadata["progress"])
