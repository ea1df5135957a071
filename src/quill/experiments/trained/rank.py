"""How alike all positions of a window become with depth, before training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from quill.experiments import edits
from quill.lab.subject import inference
from quill.model.build import Model
from quill.model.config import GPTConfig
from quill.model.gpt import GPT

VARIANTS: dict[str, tuple[Callable[[Model], None], ...]] = {
    "attention": (edits.without_feed_forward, edits.without_residuals, edits.without_norms),
    "attention, feed-forward": (edits.without_residuals, edits.without_norms),
    "attention, residual connections": (edits.without_feed_forward, edits.without_norms),
    "whole GPT": (),
}


def rank_residuals(config: GPTConfig, tokens_BT: Tensor, *, seed: int) -> dict[str, np.ndarray]:
    """Return for each variant, by layer, the share of the residual stream that differs between positions.

    The share is ‖X - 1 x̄ᵀ‖ / ‖X‖ of the stream X of a window (Frobenius norms, x̄ its mean over positions), averaged
    over windows: 0 if all positions are the same, and about 1 for unrelated ones. Dong et al. 2021, section 2, use
    another norm. The first value is that of the embedding. Weights are drawn so that signals keep their size.
    """
    shares = {}
    for name, silence in VARIANTS.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = GPT(config)
        for edit in silence:
            edit(model)
        edits.with_unit_scale(model, seed)
        shares[name] = np.array([differing_share(x_BTD) for x_BTD in streams(model, tokens_BT)])
    return shares


def streams(model: GPT, tokens_BT: Tensor) -> list[Tensor]:
    """Return the residual stream of a classic model before its first block and after each."""
    found: list[Tensor] = []

    def keep_input(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0])

    def keep_output(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.append(output)

    handles = [model.blocks[0].register_forward_pre_hook(keep_input)]
    handles += [block.register_forward_hook(keep_output) for block in model.blocks]
    try:
        with inference(model):
            model(tokens_BT)
    finally:
        for handle in handles:
            handle.remove()
    return found


def differing_share(x_BTD: Tensor) -> float:
    """Return ‖X - 1 x̄ᵀ‖ / ‖X‖, averaged over windows; 0 for a stream of zeros."""
    x_BTD = x_BTD.double()
    differing_B = (x_BTD - x_BTD.mean(1, keepdim=True)).flatten(1).norm(dim=1)
    return float((differing_B / x_BTD.flatten(1).norm(dim=1).clamp_min(1e-300)).mean())
