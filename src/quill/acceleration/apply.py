"""Scale from outside: what makes a finished model smaller in memory or faster, without a line in the model itself.

Idea: gpt-fast's `apply_tp(model)`. The model's weights keep their names whatever is applied here.
"""

from __future__ import annotations

import torch

from quill.acceleration.checkpointing import checkpoint_blocks, forget_activations
from quill.acceleration.cpu_dropout import lighten_dropout
from quill.acceleration.cpu_ops import quicken
from quill.acceleration.sparse_embedding import touch_only_rows_read
from quill.model.build import Model


def apply_acceleration(
    model: Model, device: torch.device, *, compiled: bool, gradient_checkpointing: bool, sparse_gradients: bool
) -> None:
    """Apply every optimization of eager mode to a finished model, in this order; without it results are the same.

    `compiled` says that torch.compile will follow. `sparse_gradients` is for optimizers that update n-gram rows.
    """
    if device.type == "cpu" and not compiled:  # a compiler fuses in a way of its own
        quicken(model)
        if sparse_gradients:
            touch_only_rows_read(model)
        lighten_dropout(model)
        if not gradient_checkpointing:  # which forgets them anyway
            forget_activations(model)
    if gradient_checkpointing:
        checkpoint_blocks(model)
