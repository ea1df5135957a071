"""Apply all optimizations of speed and memory to a finished model. The model files contain none of them.

`print(model)` shows what was replaced. Parameters keep their names. Results are the same up to rounding, except that
dropout masks are drawn differently. Idea: gpt-fast's `apply_tp(model)`.
"""

from __future__ import annotations

import torch

from quill.acceleration.checkpointing import checkpoint_blocks, recompute_activations
from quill.acceleration.cpu_attention import use_cpu_attention
from quill.acceleration.cpu_dropout import use_fast_dropout
from quill.acceleration.cpu_ops import use_fused_cpu_ops
from quill.acceleration.replacement import Warn, no_warning
from quill.acceleration.sparse_embedding import use_sparse_gradients
from quill.model.build import Model


def apply_acceleration(
    model: Model,
    device: torch.device,
    *,
    compiled: bool,
    gradient_checkpointing: bool,
    sparse_gradients: bool,
    warn: Warn = no_warning,
    check: bool = True,
) -> None:
    """Apply every optimization of eager mode to a finished model, in this order.

    `compiled` says that torch.compile will follow. `sparse_gradients` is for an optimizer that updates rows of n-gram
    tables. If a class of the model was edited, and its faster version computes something else, its modules are kept and
    `warn` is called with one line. `check=False` skips that comparison, for models of fake tensors.
    """
    if device.type == "cpu" and not compiled:  # a compiler fuses operations itself
        use_fused_cpu_ops(model, warn, check)
        use_cpu_attention(model, warn, check)
        use_fast_dropout(model)
        if sparse_gradients:
            use_sparse_gradients(model)
        if not gradient_checkpointing:  # which recomputes these activations anyway
            recompute_activations(model, warn, check)
    if gradient_checkpointing:
        checkpoint_blocks(model)
