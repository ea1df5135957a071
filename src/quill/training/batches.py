"""Batches for the training step: cut by the CPU, or by a GPU from tokens in its own memory.

Both give the same windows: a pure function of (tokens, seed, step), in data/windows.py. The batch of a step is the same
for any number of processes, which divide it among them.

Shapes: B windows of a whole step, all micro-batches together; T time; N tokens of the split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quill.data.mixed_tokens import Tokens
from quill.data.windows import DataOrder, batch_starts, sample_batch
from quill.device import available_memory
from quill.distributed.environment import ONE_PROCESS, Ranks, part_of
from quill.model.config import ModelConfig
from quill.training.config import TrainConfig

LARGEST_SHARE = 0.25  # of a device's free memory that the tokens may take


@dataclass(frozen=True)
class BatchPlan:
    """Everything that decides the windows of every step, besides the tokens."""

    batch_size: int
    """windows of a whole step"""
    block_size: int
    seed: int
    data_order: DataOrder


def plan_batches(model_config: ModelConfig, config: TrainConfig) -> BatchPlan:
    """Return the plan of a recipe; a batch has the windows of all micro-batches of an optimizer step."""
    windows = config.batch_size * config.gradient_accumulation_steps
    return BatchPlan(windows, model_config.block_size, config.seed, config.data_order)


class HostBatches:
    """Batches cut from memory-mapped tokens by the CPU. Each of several processes cuts its part of every batch."""

    def __init__(self, tokens: Tokens, plan: BatchPlan, device: torch.device, ranks: Ranks = ONE_PROCESS):
        self.tokens, self.plan, self.device = tokens, plan, device
        self.part = part_of(plan.batch_size, ranks)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Return inputs_BT and targets_BT of this step, int64, on the device. It does not depend on earlier calls."""
        inputs_BT, targets_BT = sample_batch(self.tokens, step=step, part=self.part, **vars(self.plan))
        return torch.from_numpy(inputs_BT).to(self.device), torch.from_numpy(targets_BT).to(self.device)


class DeviceBatches:
    """The training tokens in a device's memory: a step needs only the starts of its windows.

    `set_step` writes them to `starts_B`, and `cut` reads them from there. `starts_B` has a fixed address, so a captured
    step can be replayed for every later step.
    """

    def __init__(self, tokens: Tokens, plan: BatchPlan, device: torch.device):
        self.tokens, self.plan = tokens, plan
        self.tokens_N = torch.from_numpy(np.asarray(tokens).astype(stored_dtype(tokens))).to(device)
        self.offsets_T = torch.arange(plan.block_size + 1, device=device)
        self.starts_B = torch.zeros(plan.batch_size, dtype=torch.int64, device=device)

    def set_step(self, step: int) -> None:
        """Make the next `cut` return the batch of this step."""
        starts_B = torch.from_numpy(batch_starts(self.tokens, step=step, **vars(self.plan)))
        if self.starts_B.is_cuda:
            starts_B = (
                starts_B.pin_memory()
            )  # or the copy would wait for all earlier work; each step needs its own buffer
        self.starts_B.copy_(starts_B, non_blocking=True)

    def cut(self) -> tuple[Tensor, Tensor]:
        """Return inputs_BT and targets_BT, int64, computed on the device alone."""
        windows_BT = self.tokens_N[self.starts_B[:, None] + self.offsets_T].long()
        return windows_BT[:, :-1].contiguous(), windows_BT[:, 1:].contiguous()


def stored_dtype(tokens: Tokens) -> np.dtype:
    """Return the dtype of tokens on a device: uint8 if they fit, else int32 (PyTorch lacks operations for uint16)."""
    return np.dtype(np.uint8 if tokens.dtype == np.uint8 else np.int32)


def text_fits(tokens: Tokens, device: torch.device) -> bool:
    """Return whether the training tokens fit into this device's memory and leave enough for the model."""
    return len(tokens) * stored_dtype(tokens).itemsize <= LARGEST_SHARE * available_memory(device)
