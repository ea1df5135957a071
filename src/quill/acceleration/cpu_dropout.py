"""Dropout for CPUs: the same mathematics as PyTorch's, with masks that are drawn by all threads and take a byte each.

PyTorch draws its masks on one core, a float32 for each activation. Here a random number of 64 bits decides four
activations. Measured in docs/log.md.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from quill.acceleration.replacement import Replacement, as_subclass, replace_modules
from quill.model.build import Model

LEVELS = 2**16  # values of a 16-bit draw; probabilities are rounded to multiples of 1 / LEVELS


def use_fast_dropout(model: Model) -> None:
    """Make dropout of activations draw its masks with `drop`. Dropout of attention weights: cpu_attention.py."""
    replace_modules(model, Replacement(nn.Dropout, functools.partial(as_subclass, kind=FastDropout)))


class FastDropout(nn.Dropout):
    """Dropout with the masks of `drop`."""

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

    Draws come from PyTorch's global generator: a seed or a restored state repeats them.
    """
    count = math.prod(shape)
    draws = torch.empty((count + 3) // 4, dtype=torch.int64, device=device).random_(-(2**63), None)
    dropped = min(round(p * LEVELS), LEVELS - 1)
    kept = draws.view(torch.int16)[:count] >= dropped - LEVELS // 2
    return kept.view(*shape), LEVELS / (LEVELS - dropped)
