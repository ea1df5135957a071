"""Dropout for CPUs: the formula of PyTorch's, with masks of one byte per activation that all threads draw.

PyTorch draws its masks on one core, one float32 per activation. Here one 64-bit random number is used for four
activations. Measured in docs/log.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from quill.acceleration.replacement import Replacement, replace_modules
from quill.model.build import Model

LEVELS = 2**16  # values of a 16-bit draw; probabilities are rounded to multiples of 1 / LEVELS


def use_fast_dropout(model: Model) -> None:
    """Replace dropout of activations with `FastDropout`. Dropout of attention weights is in cpu_attention.py."""
    replace_modules(model, Replacement(nn.Dropout, FastDropout))


class FastDropout(nn.Dropout):
    """Dropout with masks drawn by `draw_mask`."""

    def forward(self, input: Tensor) -> Tensor:
        return drop(input, self.p) if self.training and self.p > 0 else input


def drop(x: Tensor, p: float) -> Tensor:
    """Return x with each value set to 0 with probability p, and the others scaled so that the mean stays.

    y = x · m / (1 - p)        m ~ Bernoulli(1 - p)              Srivastava et al. 2014, section 10
    """
    kept, factor = draw_mask(x.shape, p, x.device)
    return (x * kept).mul_(factor)


def draw_mask(shape: Sequence[int], p: float, device: torch.device) -> tuple[Tensor, float]:
    """Return a boolean mask that is False with probability p, and the factor 1 / (1 - p) after rounding.

    Random numbers come from PyTorch's global generator, so a seed or a restored state reproduces them.
    """
    count = math.prod(shape)
    draws = torch.empty((count + 3) // 4, dtype=torch.int64, device=device).random_(-(2**63), None)
    dropped = min(round(p * LEVELS), LEVELS - 1)
    kept = draws.view(torch.int16)[:count] >= dropped - LEVELS // 2
    return kept.view(*shape), LEVELS / (LEVELS - dropped)
