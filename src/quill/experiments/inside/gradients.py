"""What the blocks add to the residual stream, beside the direction that lowers the loss; and models with other depth.

Jastrzębski et al. 2018, "Residual Connections Encourage Iterative Inference", section 3: the cosine of a block's
update with -∂L/∂x.

Shapes: N windows, L layers, T time, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quill.evaluation.loss import cross_entropy
from quill.lab.hooks import replacing_input, replacing_output
from quill.model.build import Model
from quill.model.modes import evaluation_mode


def update_cosines(model: Model, tokens_NT: Tensor) -> np.ndarray:
    """Return cosines_LN: the mean over positions of cos(block's output - input, -∂L/∂input), for each window."""
    rows = []
    for tokens_T in tokens_NT:
        inputs: list[Tensor] = []
        outputs: list[Tensor] = []

        def keep_input(x_BTD: Tensor, inputs: list[Tensor] = inputs) -> Tensor:
            inputs.append(x_BTD if x_BTD.requires_grad else x_BTD.detach().requires_grad_())
            return inputs[-1]

        def keep_output(x_BTD: Tensor, outputs: list[Tensor] = outputs) -> Tensor:
            outputs.append(x_BTD)
            return x_BTD

        with ExitStack() as stack, evaluation_mode(model), torch.enable_grad():
            for block in model.blocks:
                stack.enter_context(replacing_input(block, keep_input))
                stack.enter_context(replacing_output(block, keep_output))
            loss = cross_entropy(model(tokens_T[None, :-1]), tokens_T[None, 1:])
            gradients = torch.autograd.grad(loss, inputs)
        with torch.no_grad():
            cosines = [
                torch.cosine_similarity(output - x, -gradient, dim=-1).mean().item()
                for output, x, gradient in zip(outputs, inputs, gradients, strict=True)
            ]
        rows.append(cosines)
    return np.array(rows).T


@contextmanager
def swapping_blocks(model: Model, layer: int) -> Iterator[None]:
    """Exchange a block and the next one inside the block of code."""
    blocks: Any = model.blocks
    blocks[layer], blocks[layer + 1] = blocks[layer + 1], blocks[layer]
    try:
        yield
    finally:
        blocks[layer], blocks[layer + 1] = blocks[layer + 1], blocks[layer]
