"""Muon: each weight matrix moves by its momentum made orthogonal, and everything else by AdamW.

A gradient of a matrix is mostly a few strong directions. Made orthogonal, the step is as long in every direction, so
that the weak ones are learnt too (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks").

    momentum ← μ momentum + (1 - μ) gradient
    update    = orthogonal factor of (μ momentum + (1 - μ) gradient)          Nesterov's look ahead
    weight   ← (1 - lr · decay) weight - lr √max(1, rows / columns) update

Shapes: N matrices of one shape, R rows, C columns.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

# The best polynomials a + b x² + c x⁴ to apply to x one after another (Amsel et al. 2025, "The Polar Express", section
# 3). More of them bring singular values nearer to 1; after three, runs learn as much as after five.
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
)


def move_by_muon(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momenta: Sequence[Tensor],
    *,
    lr: float | Tensor,
    weight_decay: float,
    momentum: float = 0.95,
) -> None:
    """Move matrices, and their momenta, in place by one step. A rate may lie on the device as a float32 tensor."""
    alike: dict[torch.Size, list[int]] = defaultdict(list)
    for index, weight in enumerate(weights):
        alike[weight.shape].append(index)
    for (rows, columns), indices in alike.items():  # matrices of one shape go through the same few products
        gradients_NRC = torch.stack([gradients[index] for index in indices])
        momenta_NRC = torch.stack([momenta[index] for index in indices]).lerp_(gradients_NRC, 1 - momentum)
        updates_NRC = orthogonalize(gradients_NRC.lerp_(momenta_NRC, momentum))
        kept, length = 1 - lr * weight_decay, lr * math.sqrt(max(1, rows / columns))
        for index, memory, update in zip(indices, momenta_NRC, updates_NRC, strict=True):
            momenta[index].copy_(memory)
            weight = weights[index].mul_(kept)
            if isinstance(length, Tensor):  # as `alpha` it would have to be read from the device
                weight.addcmul_(update, length, value=-1)
            else:
                weight.add_(update, alpha=-length)


def orthogonalize(matrices_NRC: Tensor) -> Tensor:
    """Return about U Vᵀ for each matrix U S Vᵀ: singular values that are not tiny come to lie between 0.15 and 2.

    A polynomial in X Xᵀ applied to X changes its singular values and nothing else (Newton-Schulz iteration). Where a
    matrix is much longer than wide the polynomials are multiplied out among the small X Xᵀ, and applied to X once; not
    so under autocast, for the squares of small singular values are lost in bfloat16 (docs/log.md).
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
    """Return the product P of the polynomials in G = X Xᵀ, so that P X is what they make of X one by one.

    After a step Q = a + b G + c G² the next Gram matrix is Q G Q, for all of these commute.
    """
    product: Tensor | None = None
    for a, b, c in POLAR_EXPRESS:
        step = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        step.diagonal(dim1=-2, dim2=-1).add_(a)
        product = step if product is None else product @ step
        gram = step @ gram @ step
    assert product is not None
    return product
