"""Rows of n-gram tables: a row that was read moves, at a length that its own past gradients give it; all others stay.

    g = the sum of the gradients of a row's readings in this step             rows with g ≠ 0, no others
    s ← β s + (1 - β) mean(g²)        n ← n + 1
    row ← (1 - lr · decay) row - lr g / √(s / (1 - βⁿ))

A step reads a few thousand of some hundred thousand rows, and most rows are of rare runs that are read a few times in
all. AdamW would remember two numbers for each weight and, to forget them evenly, touch all of them at every step. Here
a row has one average s, of whole rows as in Adafactor (Shazeer & Stern 2018, section 3), and the number n of steps that
read it, by which time goes on for it alone. What it is worth: docs/log.md.

Shapes: R rows of the table, N rows that were read, D width. What is remembered has two columns, s and n.
"""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-30  # beside the square of a gradient: nothing is divided by 0


def move_rows(
    table_RD: Tensor,
    gradient_RD: Tensor,
    state_R2: Tensor,
    *,
    lr: float | Tensor,
    weight_decay: float,
    beta: float,
) -> None:
    """Move a table's rows, and what is remembered of each, in place by one step.

    The gradient may be sparse, and a rate may lie on the device.
    """
    if not gradient_RD.is_sparse:
        rows_RD, states_R2 = moved(table_RD, gradient_RD, state_R2, lr, weight_decay, beta)
        table_RD.copy_(rows_RD)
        state_R2.copy_(states_R2)
        return
    gradient_RD = gradient_RD.coalesce()
    read_N = gradient_RD.indices()[0]
    before_ND, state_N2 = table_RD.index_select(0, read_N), state_R2.index_select(0, read_N)
    rows_ND, state_N2 = moved(before_ND, gradient_RD.values(), state_N2, lr, weight_decay, beta)
    table_RD.index_copy_(0, read_N, rows_ND)
    state_R2.index_copy_(0, read_N, state_N2)


def moved(
    rows_ND: Tensor, gradients_ND: Tensor, state_N2: Tensor, lr: float | Tensor, weight_decay: float, beta: float
) -> tuple[Tensor, Tensor]:
    """Return rows, and what is remembered of them, after a step. A row whose gradient is 0 comes back as it was."""
    square_N1, (average_N1, count_N1) = gradients_ND.square().mean(-1, keepdim=True), state_N2.split(1, dim=-1)
    read_N1 = square_N1 > 0
    average_N1 = torch.where(read_N1, torch.lerp(square_N1, average_N1, beta), average_N1)
    count_N1 = count_N1 + read_N1
    length_N1 = (average_N1 / (1 - beta**count_N1).clamp(min=TINY) + TINY).sqrt()
    kept_ND = rows_ND * (1 - lr * weight_decay * read_N1) if weight_decay else rows_ND
    return torch.addcmul(kept_ND, gradients_ND, -lr / length_N1), torch.cat([average_N1, count_N1], dim=-1)
