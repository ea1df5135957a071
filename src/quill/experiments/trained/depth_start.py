"""A deep model before training: the size of the residual stream and of the gradient in each layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quill.evaluation.loss import cross_entropy
from quill.experiments import edits
from quill.experiments.trained.rank import streams
from quill.model.config import GPTConfig
from quill.model.gpt import GPT


@dataclass(frozen=True)
class Start:
    """What a model of one depth looks like before training."""

    depth: int
    norm: str
    scaled: bool
    """whether weights that end a branch are multiplied by 1 / √(2 n_layer)"""
    gradient_norm_L: np.ndarray
    """norm of the gradient of all weights of a block"""
    rms_L: np.ndarray
    """root mean square of the residual stream, before the first block and after each"""

    @property
    def gradient_ratio(self) -> float:
        """The largest gradient norm of a block over the smallest; infinite if one is not finite."""
        if not np.isfinite(self.gradient_norm_L).all():
            return float("inf")
        return float(self.gradient_norm_L.max() / max(self.gradient_norm_L.min(), 1e-30))


def edit_start(model: GPT, norm: edits.Norm, scaled: bool, seed: int) -> None:
    """Make a fresh model one of this norm, with weights that keep the size of signals."""
    edits.with_unit_scale(model, seed)
    if scaled:
        edits.with_depth_scaling(model)
    edits.with_norm(model, norm)


def measure_start(config: GPTConfig, windows_NT: Tensor, norm: edits.Norm, scaled: bool, seed: int) -> Start:
    """Return gradient norms and sizes of the residual stream of an untrained model on these windows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT(config)
    edit_start(model, norm, scaled, seed)
    loss = cross_entropy(model(windows_NT[:, :-1]), windows_NT[:, 1:])
    loss.backward()
    norms = []
    for block in model.blocks:
        gradients = [p.grad.double().norm() ** 2 for p in block.parameters() if p.grad is not None]
        norms.append(float(torch.stack(gradients).sum().sqrt()))
    sizes = [float(x_BTD.double().square().mean().sqrt()) for x_BTD in streams(model, windows_NT[:, :-1])]
    return Start(config.n_layer, norm, scaled, np.array(norms), np.array(sizes))
