"""Muon: each weight matrix is updated with its orthogonalized momentum.

The gradient of a matrix is dominated by a few directions. An orthogonalized update has the same size in every
direction, so weak directions are learned too (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural
networks").

    momentum ← μ momentum + (1 - μ) gradient
    update    = orthogonal factor of (μ momentum + (1 - μ) gradient)          Nesterov momentum
    weight   ← (1 - lr · decay) weight - lr √max(1, rows / columns) update

Shapes: N matrices of one shape, R rows, C columns.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Coefficients of the optimal polynomials a + b x² + c x⁴ by which x is multiplied one after another (Amsel et al. 2025,
# "The Polar Express", section 3). More of them bring singular values nearer to 1, but five do not lower the loss.
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
)

MOMENTUM = 0.95


def muon_update(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momenta: Sequence[Tensor],
    *,
    lr: float | Tensor,
    weight_decay: float,
    momentum: float = MOMENTUM,
    orthogonalized: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Update matrices and their momenta in place by one step. `lr` may be a float32 tensor on the device.

    `orthogonalized`, if given, computes `orthogonalize` in another way, such as shared out among processes.
    """
    for (rows, columns), indices in by_shape(weights).items():  # matrices of one shape share their matrix products
        gradients_NRC = torch.stack([gradients[index] for index in indices])
        momenta_NRC = torch.stack([momenta[index] for index in indices]).lerp_(gradients_NRC, 1 - momentum)
        updates_NRC = (orthogonalized or orthogonalize)(gradients_NRC.lerp_(momenta_NRC, momentum))
        decay, scale = 1 - lr * weight_decay, lr * math.sqrt(max(1, rows / columns))
        for index, new_momentum, update in zip(indices, momenta_NRC, updates_NRC, strict=True):
            momenta[index].copy_(new_momentum)
            weight = weights[index].mul_(decay)
            if isinstance(scale, Tensor):  # `alpha` would read it from the device
                weight.addcmul_(update, scale, value=-1)
            else:
                weight.add_(update, alpha=-scale)


def scaled_updates(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Return √max(1, rows / columns) times the orthogonal factor of each matrix; those of one shape share products."""
    updates = list(matrices)
    for (rows, columns), indices in by_shape(matrices).items():
        updates_NRC = orthogonalize(torch.stack([matrices[index] for index in indices]))
        for index, update in zip(indices, updates_NRC, strict=True):
            updates[index] = update * math.sqrt(max(1, rows / columns))
    return updates


def by_shape(matrices: Sequence[Tensor]) -> dict[torch.Size, list[int]]:
    """Return the indices of the matrices of each shape."""
    indices: dict[torch.Size, list[int]] = defaultdict(list)
    for index, matrix in enumerate(matrices):
        indices[matrix.shape].append(index)
    return indices


def orthogonalize(matrices_NRC: Tensor) -> Tensor:
    """Return approximately U Vᵀ for each matrix U S Vᵀ: singular values, unless tiny, become 0.15 to 2.

    A polynomial in X Xᵀ applied to X changes only its singular values (Newton-Schulz iteration). If the longer side of
    a matrix is at least twice the shorter one, the product of the polynomials is computed from the smaller matrix X Xᵀ
    and applied to X once. This is not done under autocast, because bfloat16 loses the squares of small singular values
    (docs/log.md).
    """
    tall = matrices_NRC.size(-2) > matrices_NRC.size(-1)
    x = matrices_NRC.mT if tall else matrices_NRC
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) * 1.01 + 1e-7)  # singular values of at most 1
    if x.size(-1) >= 2 * x.size(-2) and not torch.is_autocast_enabled(x.device.type):
        x = _polynomials_of_gram(x @ x.mT) @ x
    else:
        for a, b, c in POLAR_EXPRESS:
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _polynomials_of_gram(gram: Tensor) -> Tensor:
    """Return the product P of the polynomials in G = X Xᵀ: P X equals applying them to X one by one.

    After a factor Q = a + b G + c G² the next Gram matrix is Q G Q, because all of these commute.
    """
    product: Tensor | None = None
    for a, b, c in POLAR_EXPRESS:
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor if product is None else product @ factor
        gram = factor @ gram @ factor
    assert product is not None
    return product
