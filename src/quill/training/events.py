"""The events of a training run, plain dictionaries that docs/architecture.md lists with their fields, and its result.

PyTorch is not imported here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quill.device import describe_device
from quill.training.config import TrainConfig, tokens_per_step

if TYPE_CHECKING:
    from quill.data.mixed_dataset import AnyDataset
    from quill.model.build import Model
    from quill.training.context import RunContext

Event = dict[str, Any]
"""What happened in a run: "event" is its kind, "step" the number of finished optimizer steps."""

Report = Callable[[Event], object]


@dataclass(frozen=True)
class TrainResult:
    """How a training run ended."""

    reason: str
    """finished, interrupted, patience, or what `stop` returned, such as time"""
    step: int
    """finished optimizer steps"""
    val_loss: float | None
    """validation loss at the last evaluation, in nats per token"""
    best_val_loss: float | None
    best_step: int
    checkpoint: Path | None
    """folder of the last checkpoint"""


def describe_start(
    model: Model, config: TrainConfig, context: RunContext, dataset: AnyDataset, step: int, compiled: bool
) -> Event:
    """Return the `start` event of a run: what is trained, on what, and how."""
    processes = context.group.ranks.world_size
    return {
        "event": "start",
        "step": step,
        "max_iters": config.max_iters,
        "parameters": model.count_parameters(),
        "parameters_without_positions": model.count_parameters(positions=False),
        "device": describe_device(context.device) + (f" in each of {processes} processes" if processes > 1 else ""),
        "dtype": str(context.dtype).removeprefix("torch."),
        "compile": compiled,
        "dataset": dataset.title or dataset.name,
        "vocab_size": model.config.vocab_size,
        "train_tokens": len(dataset.train),
        "val_tokens": len(dataset.val),
        "tokens_per_step": tokens_per_step(model.config, config),
        "out_dir": str(context.out_dir),
    }
