"""Activations that are computed again in the backward pass instead of being kept."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from quill.model.build import Model
from quill.model.gpt import FeedForward


def checkpoint_blocks(model: Model) -> None:
    """Make each block keep only its input and compute the rest again when gradients are needed.

    Activations then cost one block plus one tensor a block instead of every intermediate of all blocks, for one more
    forward pass (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"). Dropout draws the same numbers
    both times, so the gradients are the same.
    """
    for block in model.blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def forget_activations(model: Model) -> None:
    """Make a classic model's feed-forward networks keep their hidden layer before the activation, and not after it too.

    The backward pass applies the activation once more, which costs next to nothing beside matrix products (Chen et al.
    2016, section 4.1, drop cheap results in the same way). Measured in docs/log.md.
    """
    for module in model.modules():
        if isinstance(module, FeedForward):
            module.forward = functools.partial(feed_forward_in_training, module)


def feed_forward_in_training(module: FeedForward, x_BTD: Tensor) -> Tensor:
    """Return what the module returns; its output projection's input is computed again when gradients are needed."""
    hidden_BTF = module.hidden(x_BTD)
    active_BTF = module.activation(hidden_BTF)
    kept = active_BTF.untyped_storage()._cdata

    def pack(tensor: Tensor) -> Tensor | torch.Size:
        return tensor.shape if tensor.untyped_storage()._cdata == kept else tensor

    def unpack(packed: Tensor | torch.Size) -> Tensor:
        return packed if isinstance(packed, Tensor) else module.activation(hidden_BTF).view(packed)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        output_BTD = module.output(active_BTF)
    return module.output_dropout(output_BTD)
