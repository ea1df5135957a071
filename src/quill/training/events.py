"""The events of a training run: plain dictionaries, listed with their fields in docs/architecture.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quill.data.dataset import Dataset
from quill.device import describe_device
from quill.model.build import Model
from quill.training.config import TrainConfig, tokens_per_step
from quill.training.context import RunContext

Event = dict[str, Any]
"""What happened in a run: "event" is its kind, "step" the number of finished optimizer steps."""

Report = Callable[[Event], object]


def describe_start(
    model: Model, config: TrainConfig, context: RunContext, dataset: Dataset, step: int, compiled: bool
) -> Event:
    """Return the `start` event of a run: what is trained, on what, and how."""
    return {
        "event": "start",
        "step": step,
        "max_iters": config.max_iters,
        "parameters": model.count_parameters(),
        "parameters_without_positions": model.count_parameters(positions=False),
        "device": describe_device(context.device),
        "dtype": str(context.dtype).removeprefix("torch."),
        "compile": compiled,
        "dataset": dataset.title or dataset.name,
        "vocab_size": model.config.vocab_size,
        "train_tokens": len(dataset.train),
        "val_tokens": len(dataset.val),
        "tokens_per_step": tokens_per_step(model.config, config),
        "out_dir": str(context.out_dir),
    }
