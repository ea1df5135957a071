"""Batches for the training step: cut from the text by the CPU, or by a GPU out of its own memory.

Both give the same windows, the pure function of (tokens, seed, step) in data/windows.py.
Shapes: B windows of a whole step, all micro-batches in one; T time; N tokens of the text.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from quill.data.dataset import Dataset
from quill.data.windows import DataOrder, sample_batch, window_starts
from quill.device import available_memory
from quill.model.config import ModelConfig
from quill.training.config import TrainConfig

LARGEST_SHARE = 0.25  # of a device's free memory that the text may take


def fetch_batch(
    dataset: Dataset, model_config: ModelConfig, config: TrainConfig, step: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the inputs_BT and targets_BT of one optimizer step, all its micro-batches in one.

    They depend on the dataset, the seed and the step alone: a resumed run needs no memory of what came before.
    """
    inputs_BT, targets_BT = sample_batch(
        dataset.train,
        batch_size=config.batch_size * config.gradient_accumulation_steps,
        block_size=model_config.block_size,
        seed=config.seed,
        step=step,
        data_order=config.windows,
    )
    return torch.from_numpy(inputs_BT).to(device), torch.from_numpy(targets_BT).to(device)


class DeviceBatches:
    """The training text in a device's memory: a step needs only to know where its windows begin.

    `aim` says so, and `cut` reads it from `starts_B`, which always lies at one place: a step recorded once finds the
    windows of every later step there.
    """

    def __init__(self, dataset: Dataset, model_config: ModelConfig, config: TrainConfig, device: torch.device):
        self.count, self.seed = len(dataset.train), config.seed
        self.data_order: DataOrder = config.windows
        self.block_size = model_config.block_size
        self.tokens_N = torch.from_numpy(np.asarray(dataset.train).astype(stored_dtype(dataset))).to(device)
        self.offsets_T = torch.arange(self.block_size + 1, device=device)
        windows = config.batch_size * config.gradient_accumulation_steps
        self.starts_B = torch.zeros(windows, dtype=torch.int64, device=device)

    def aim(self, step: int) -> None:
        """Let the next `cut` give the batch of this step."""
        sizes = {"batch_size": len(self.starts_B), "block_size": self.block_size}
        starts_B = torch.from_numpy(
            window_starts(self.count, **sizes, seed=self.seed, step=step, data_order=self.data_order)
        )
        if self.starts_B.is_cuda:
            starts_B = starts_B.pin_memory()  # or the copy would wait for all work before it; each step pins its own
        self.starts_B.copy_(starts_B, non_blocking=True)

    def cut(self) -> tuple[Tensor, Tensor]:
        """Return inputs_BT and targets_BT, int64, computed on the device alone."""
        windows_BT = self.tokens_N[self.starts_B[:, None] + self.offsets_T].long()
        return windows_BT[:, :-1].contiguous(), windows_BT[:, 1:].contiguous()


def stored_dtype(dataset: Dataset) -> np.dtype:
    """Return how tokens lie on a device: a byte each where that is enough, or four (PyTorch knows uint16 only half)."""
    return np.dtype(np.uint8 if dataset.tokenizer.dtype == np.uint8 else np.int32)


def text_fits(dataset: Dataset, device: torch.device) -> bool:
    """Say whether the training text may lie in this device's memory and leave enough for the model."""
    return len(dataset.train) * stored_dtype(dataset).itemsize <= LARGEST_SHARE * available_memory(device)
