"""AdamW with the two groups that every GPT uses: matrices decay, biases and norms do not.

Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2.
"""

from __future__ import annotations

import torch
from torch import nn

from quill.training.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW over the model's weights; each group also carries the `names` of its weights, in order.

    Weights with two or more dimensions (matrices and embeddings) decay: only there does a smaller weight mean a
    simpler function. A shared weight is updated once.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"names": [name for name, p in named if decays(p)], "weight_decay": config.weight_decay},
        {"names": [name for name, p in named if not decays(p)], "weight_decay": 0.0},
    ]
    weights = dict(named)
    for group in groups:
        group["params"] = [weights[name] for name in group["names"]]
    # One fused kernel a step instead of a dozen operations a weight; PyTorch has it for these devices.
    fused = next(iter(weights.values())).device.type in ("cpu", "cuda", "mps")
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=fused)


def decays(parameter: nn.Parameter) -> bool:
    """Say whether weight decay applies: to matrices, not to biases and norms."""
    return parameter.dim() >= 2


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Use this learning rate, for every group, from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
