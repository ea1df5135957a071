"""The events of a training run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from quill.data.dataset import Dataset
from quill.device import describe_device
from quill.model.build import Model
from quill.training.config import TrainConfig, tokens_per_step
from quill.training.state import Progress

Event = dict[str, Any]

Report = Callable[[Event], object]


def describe_start(
    model: Model,
    config: TrainConfig,
    dataset: Dataset,
    progress: Progress,
    device: torch.device,
    dtype: torch.dtype,
    compiled: bool,
) -> Event:
    """Return the event that opens a run: what is trained, on what, with what."""
    return {
        "event": "start",
        "step": progress.step,
        "max_iters": config.max_iters,
        "parameters": model.count_parameters(),
        "parameters_without_positions": model.count_parameters(positions=False),
        "device": describe_device(device),
        "dtype": str(dtype).removeprefix("torch."),
        "compile": compiled,
        "dataset": dataset.name,
        "vocab_size": model.config.vocab_size,
        "train_tokens": len(dataset.train),
        "val_tokens": len(dataset.val),
        "tokens_per_step": tokens_per_step(model.config, config),
        "out_dir": config.out_dir,
    }
