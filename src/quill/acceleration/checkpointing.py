"""Activations that are recomputed in the backward pass instead of being stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from quill.acceleration.replacement import (
    Replacement,
    Warn,
    no_warning,
    random_tensor,
    replace_modules,
    same_results,
)
from quill.model.build import Model
from quill.model.gpt import FeedForward


def checkpoint_blocks(model: Model) -> None:
    """Make each block store only its input, and recompute its activations in the backward pass.

    Memory is then needed for the activations of one block and the inputs of the others, at the cost of one more forward
    pass (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"). Dropout draws the same numbers both times,
    so gradients are the same.
    """
    for index, block in enumerate(model.blocks):
        if not isinstance(block, CheckpointedBlock):
            model.blocks[index] = CheckpointedBlock(block)


class CheckpointedBlock(nn.Module):
    """A block that is recomputed in the backward pass. Parameters and submodules keep their names."""

    block: nn.Module

    def __init__(self, block: nn.Module):
        super().__init__()
        # This shares the block's dictionaries of parameters and submodules: replacing one here replaces it there.
        self.__dict__.update(vars(block), block=block)

    def forward(self, *inputs: Any) -> Tensor:
        self.block.training = self.training  # the block is not a submodule, so that names stay
        return checkpoint(self.block.forward, *inputs, use_reentrant=False)  # type: ignore[no-any-return]


def recompute_activations(model: Model, warn: Warn = no_warning, check: bool = True) -> None:
    """Make a classic model's feed-forward networks store their hidden layer only before the activation function.

    The backward pass applies the activation function again, which is cheap compared with matrix products (Chen et al.
    2016, section 4.1). Measured in docs/log.md.
    """
    replace_modules(model, Replacement(FeedForward, RecomputedFeedForward, same_feed_forward), warn, check)


class RecomputedFeedForward(FeedForward):
    """A feed-forward network that recomputes the input of its output projection in the backward pass."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        hidden_BTF = self.hidden(x_BTD)
        active_BTF = self.activation(hidden_BTF)
        active = active_BTF.untyped_storage()._cdata

        def pack(tensor: Tensor) -> Tensor | torch.Size:
            return tensor.shape if tensor.untyped_storage()._cdata == active else tensor

        def unpack(packed: Tensor | torch.Size) -> Tensor:
            return packed if isinstance(packed, Tensor) else self.activation(hidden_BTF).view(packed)

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            output_BTD = self.output(active_BTF)
        return self.output_dropout(output_BTD)


def same_feed_forward(module: FeedForward, recomputed: RecomputedFeedForward) -> bool:
    """Return whether both modules give the same results on a few vectors."""
    weight = module.hidden.weight
    x_BTD = random_tensor(1, 4, weight.size(-1)).to(weight)
    return same_results(module, recomputed, lambda each, x: each(x), x_BTD)
