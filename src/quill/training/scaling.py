"""Scale from outside: what makes a finished model smaller in memory or faster, without a line in the model itself.

Idea: gpt-fast's `apply_tp(model)`. The model's weights keep their names whatever is applied here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from quill.model.build import Model
from quill.model.gpt import FeedForward
from quill.training.config import TrainConfig
from quill.training.cpu import quicken
from quill.training.dropout import lighten_dropout
from quill.training.rows import touch_only_rows_read


def apply_scale(model: Model, config: TrainConfig, device: torch.device) -> None:
    """Do to a finished model what this recipe asks for and this device likes, compilation excepted."""
    if device.type == "cpu" and config.compile is not True:  # a compiler fuses in a way of its own
        quicken(model)
        if config.optimizer == "muon":  # whose tables move row by row
            touch_only_rows_read(model)
        lighten_dropout(model)
        if not config.gradient_checkpointing:  # which forgets them anyway
            forget_activations(model)
    if config.gradient_checkpointing:
        checkpoint_blocks(model)


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


def compile_model(
    model: Model, choice: bool | Literal["auto"], example_BT: Tensor, warn: Callable[[str], None]
) -> Callable[[Tensor], Tensor]:
    """Return what to call for training: the compiled model, or the model itself where compiling does not pay or fails.

    "auto" compiles on CUDA. Compilation is tried at once, forward and backward, on a batch of the shape that training
    will use; if it fails, there is one warning and training goes on in eager mode.
    """
    if choice is False or (choice == "auto" and example_BT.device.type != "cuda"):
        return model
    compiled = torch.compile(model)
    try:
        compiled(example_BT).float().sum().backward()
    except Exception as error:  # a missing C++ compiler, an old GPU, a bug in the compiler: all end here
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        warn(f"going on without torch.compile, which failed ({reason[:160]}); --compile=False does not try it")
        compiled = model
    model.zero_grad(set_to_none=True)
    return compiled
