"""Row-wise Adam, for an embedding table of which each step uses few rows. Only these rows are updated.

    g = gradient of a row in this step                          only rows with g ≠ 0
    v ← β v + (1 - β) mean(g²)        n ← n + 1                 second moment, number of updates
    row ← (1 - lr · decay) row - lr g / √(v / (1 - βⁿ))

An n-gram table has some hundred thousand rows, of which a step uses a few thousand. Most rows belong to rare n-grams
and are used a few times in all. AdamW would keep two numbers for each weight, and decay all of them at every step.
Here a row has one second moment for all its weights, as in Adafactor (Shazeer & Stern 2018, section 3), and a count of
its own updates for bias correction. Measured in docs/log.md.

Shapes: R rows of the table, N rows to update, D width. The state of a row is two columns: second moment and count.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-30  # added to squares of gradients, so that nothing is divided by 0


def rowwise_adam_update(
    table_RD: Tensor,
    gradient_RD: Tensor,
    state_R2: Tensor,
    *,
    lr: float | Tensor,
    weight_decay: float,
    beta: float,
) -> None:
    """Update a table and its state in place. The gradient may be sparse. `lr` may be a tensor on the device."""
    if not gradient_RD.is_sparse:
        rows_RD, new_state_R2 = update_rows(table_RD, gradient_RD, state_R2, lr, weight_decay, beta)
        table_RD.copy_(rows_RD)
        state_R2.copy_(new_state_R2)
        return
    gradient_RD = gradient_RD.coalesce()
    used_N = gradient_RD.indices()[0]
    rows_ND, state_N2 = table_RD.index_select(0, used_N), state_R2.index_select(0, used_N)
    rows_ND, state_N2 = update_rows(rows_ND, gradient_RD.values(), state_N2, lr, weight_decay, beta)
    table_RD.index_copy_(0, used_N, rows_ND)
    state_R2.index_copy_(0, used_N, state_N2)


def update_rows(
    rows_ND: Tensor, gradients_ND: Tensor, state_N2: Tensor, lr: float | Tensor, weight_decay: float, beta: float
) -> tuple[Tensor, Tensor]:
    """Return rows and their state after one step. Rows whose gradient is 0 do not change."""
    second_moment_N1, count_N1 = state_N2.split(1, dim=-1)
    square_N1 = gradients_ND.square().mean(-1, keepdim=True)
    used_N1 = square_N1 > 0
    second_moment_N1 = torch.where(used_N1, torch.lerp(square_N1, second_moment_N1, beta), second_moment_N1)
    count_N1 = count_N1 + used_N1
    rms_N1 = (second_moment_N1 / (1 - beta**count_N1).clamp(min=EPS) + EPS).sqrt()
    decayed_ND = rows_ND * (1 - lr * weight_decay * used_N1) if weight_decay else rows_ND
    return torch.addcmul(decayed_ND, gradients_ND, -lr / rms_N1), torch.cat([second_moment_N1, count_N1], dim=-1)
