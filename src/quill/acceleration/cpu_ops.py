"""A modern model's small operations as a CPU likes them: fewer passes over memory, the same mathematics.

Applied from outside to a finished model. A small model's step is bound by how often its activations are read and
written; each function here does with one or two passes what the model's own readable lines do with five. Measured in
docs/log.md.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from quill.model.build import Model
from quill.model.modern import Attention, ReLUSquared, RMSNorm, Rotary

SHORT = 256  # tokens: up to here writing all attention weights down is quicker than the fused call


def quicken(model: Model) -> None:
    """Make this model's norms, rotations, activations and short attentions quick on a CPU."""
    for module in model.modules():
        if isinstance(module, RMSNorm):
            module.forward = QuickRMSNorm.apply
        elif isinstance(module, ReLUSquared):
            module.forward = QuickReLUSquared.apply
        elif isinstance(module, Rotary):
            module.forward = functools.partial(rotate, module.forward, turns_of(module))
        elif isinstance(module, Attention):
            module.attend = functools.partial(attend, module, module.attend)


class QuickRMSNorm(torch.autograd.Function):
    """y = x / r with r = √(mean(x²) + ε); the gradient is (g - y · mean(g y)) / r."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        # Scaled before it is squared: the sum of squares would overflow float16. All but the norm is one number a row.
        rms = torch.linalg.vector_norm(x, dim=-1, keepdim=True).mul_(x.size(-1) ** -0.5)
        inverse = rms.square_().add_(1e-6).rsqrt_()
        y = x * inverse
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,), (y, inverse) = gradients, ctx.saved_tensors
        mean = torch.linalg.vecdot(gradient, y).unsqueeze(-1).div_(y.size(-1))
        return torch.addcmul(gradient, y, mean, value=-1).mul_(inverse)


class QuickReLUSquared(torch.autograd.Function):
    """y = h² with h = max(0, x), which is all that the gradient 2 g h needs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = x.relu()
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (gradients[0] * positive).mul_(2)


class Turn(torch.autograd.Function):
    """Pairs (x₁, x₂) as complex numbers x₁ + i x₂: turning them is one product, turning back the gradient another."""

    @staticmethod
    def forward(ctx: Any, x_BTHE: Tensor, turns_T1E: Tensor) -> Tensor:
        ctx.save_for_backward(turns_T1E)
        return turn(x_BTHE, turns_T1E)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (turns_T1E,) = ctx.saved_tensors
        return turn(gradients[0], turns_T1E.conj()), None


def turn(x_BTHE: Tensor, turns_T1E: Tensor) -> Tensor:
    """Return the pairs of x_BTHE multiplied by complex numbers, in x's own number format."""
    pairs = torch.view_as_complex(x_BTHE.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns_T1E).flatten(-2).to(x_BTHE.dtype)


def turns_of(rotary: Rotary) -> Tensor:
    """Return the turns of all positions as complex numbers of length 1, shape S1E."""
    return torch.complex(rotary.cosines_SE.float(), rotary.sines_SE.float())[:, None]


def rotate(module: Any, turns_S1E: Tensor, x_BTHE: Tensor, start: int) -> Tensor:
    """Return what the module returns, by the module itself past the trained context."""
    if (end := start + x_BTHE.size(1)) > len(turns_S1E):
        return module(x_BTHE, start)  # type: ignore[no-any-return]
    return Turn.apply(x_BTHE, turns_S1E[start:end])  # type: ignore[no-any-return]


def attend(attention: Attention, fused: Any, q_BHTE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor) -> Tensor:
    """Return heads_BHTE by the formula written out, for whole short windows; else what the model's own call gives."""
    B, H, T, _ = q_BHTE.shape
    if not (1 < T == k_BHSE.size(2) <= SHORT) or (attention.training and attention.dropout > 0):
        return fused(q_BHTE, k_BHSE, v_BHSE)
    q, k, v = (x.flatten(0, 1) for x in (q_BHTE, k_BHSE, v_BHSE))
    mask_TT = torch.full((T, T), -math.inf, dtype=q.dtype, device=q.device).triu_(1)
    weights = torch.baddbmm(mask_TT, q, k.mT, alpha=attention.scale).softmax(-1)
    return torch.bmm(weights.to(v.dtype), v).view(B, H, T, -1)
