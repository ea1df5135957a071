"""Remove heads one after the other, in the order of their gradients and in random order.

    importance of head h = mean over windows of |∂L / ∂ξ_h|, where head h's output is multiplied by ξ_h = 1

Michel et al. 2019, "Are Sixteen Heads Really Better than One?", section 4.1.

Shapes: N windows, L layers, H heads, K numbers of removed heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor

from quill.evaluation.loss import cross_entropy
from quill.lab.ablation.cost import losses_without
from quill.lab.ablation.targets import Target
from quill.lab.hooks import replacing_heads
from quill.model.build import Model
from quill.model.modes import evaluation_mode


def gradient_importance(model: Model, tokens_NT: Tensor) -> np.ndarray:
    """Return importance_LH: the mean over windows of |∂L/∂ξ|, in nats."""
    config, total_LH = model.config, np.zeros((model.config.n_layer, model.config.n_head))
    for tokens_T in tokens_NT:
        gates_LH = torch.ones(config.n_layer, config.n_head, requires_grad=True)
        with ExitStack() as stack, evaluation_mode(model):
            for layer in range(config.n_layer):
                gate_H11 = gates_LH[layer][:, None, None]
                stack.enter_context(replacing_heads(model, layer, lambda heads, gate=gate_H11: heads * gate))
            loss = cross_entropy(model(tokens_T[None, :-1]), tokens_T[None, 1:])
        (gradient_LH,) = torch.autograd.grad(loss, gates_LH)
        total_LH += gradient_LH.abs().double().numpy()
    return total_LH / len(tokens_NT)


def pruning_curve(model: Model, order: Sequence[Target], counts: Sequence[int], tokens_NT: Tensor) -> np.ndarray:
    """Return losses_KN: the loss of each window without the first k heads of an order."""
    return np.stack([losses_without(model, order[:count], tokens_NT) for count in counts])
