"""Dropout as a CPU likes it: the same mathematics as the model's own, with masks that both cores draw at once.

Applied from outside to a finished model. PyTorch draws its masks on one core, one float a number; here each 64-bit
random number decides four activations, and a mask takes one byte an activation. Measured in docs/log.md.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from quill.model.build import Model
from quill.model.gpt import Attention
from quill.model.modern import Attention as ModernAttention

CHOICES = 2**16  # of a 16-bit draw; shares are rounded to that many steps


def lighten_dropout(model: Model) -> None:
    """Make all dropout of this model, in training, draw its masks by `drop`. Evaluation is left as it is."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.forward = functools.partial(drop_in_training, module)
        elif isinstance(module, Attention | ModernAttention):
            module.attend = functools.partial(attend_in_training, module, module.attend)


def drop(x: Tensor, share: float) -> Tensor:
    """Return x with this share of its values set to zero at random, and the others scaled up to make good for them.

        y = x · m / (1 - p)        m ~ Bernoulli(1 - p)              Srivastava et al. 2014, section 10

    Numbers come from PyTorch's own generator, so a seed or a restored state repeats them.
    """
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device).random_(-(2**63), None)
    dropped = min(round(share * CHOICES), CHOICES - 1)
    kept = (draws.view(torch.int16)[: x.numel()] >= dropped - CHOICES // 2).view(x.shape)
    return (x * kept).mul_(CHOICES / (CHOICES - dropped))


def drop_in_training(module: nn.Dropout, input: Tensor) -> Tensor:
    """Do what the module does, with our masks."""
    return drop(input, module.p) if module.training and module.p > 0 else input


def attend_in_training(
    attention: Attention | ModernAttention, fused: Callable[..., Tensor], q_BHTE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor
) -> Tensor:
    """Return heads_BHTE by the formula written out, which is what the fused call does on a CPU where weights drop."""
    if not attention.training or attention.dropout == 0:
        return fused(q_BHTE, k_BHSE, v_BHSE)
    T, S = q_BHTE.size(2), k_BHSE.size(2)
    scale = attention.scale if isinstance(attention, ModernAttention) else 1 / math.sqrt(q_BHTE.size(-1))
    scores_BHTS = (q_BHTE @ k_BHSE.mT).mul_(scale)
    scores_BHTS.add_(torch.full((T, S), -math.inf, dtype=scores_BHTS.dtype).triu_(1 + S - T))  # cheaper than a fill
    return drop(scores_BHTS.softmax(-1), attention.dropout) @ v_BHSE
