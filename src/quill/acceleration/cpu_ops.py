"""Small operations of a modern model, fused for CPUs: the same formulas in fewer passes over memory.

A training step of a small model is limited by memory traffic for its activations. Each operation here takes one or two
passes; the model's own code takes about five. Measured in docs/log.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quill.acceleration.replacement import (
    Replacement,
    Warn,
    as_subclass,
    no_warning,
    random_tensor,
    replace_modules,
    same_results,
)
from quill.model.build import Model
from quill.model.modern import ReLUSquared, RMSNorm, Rotary


def use_fused_cpu_ops(model: Model, warn: Warn = no_warning, check: bool = True) -> None:
    """Replace the norms, activations and rotations of a modern model with fused ones; a classic model has none."""
    for replacement in (
        Replacement(RMSNorm, FusedRMSNorm, same_on_vectors),
        Replacement(ReLUSquared, FusedReLUSquared, same_on_vectors),
        Replacement(Rotary, FusedRotary.of, same_rotations),
    ):
        replace_modules(model, replacement, warn, check)


class FusedRMSNorm(RMSNorm):
    """RMSNorm in two passes."""

    def forward(self, x: Tensor) -> Tensor:
        return RMSNormFunction.apply(x)  # type: ignore[no-any-return]


class FusedReLUSquared(ReLUSquared):
    """ReLU² that keeps one tensor for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return ReLUSquaredFunction.apply(x)  # type: ignore[no-any-return]


class FusedRotary(Rotary):
    """Rotary positions as complex numbers: a rotation is one product. Beyond the trained context it is not fused."""

    factors_S1E2: Tensor
    """cos and sin of all angles, as pairs of real numbers: `.to(dtype)` would discard imaginary parts"""

    @classmethod
    def of(cls, rotary: Rotary) -> FusedRotary:
        """Return the fused version of a module."""
        fused = as_subclass(rotary, cls)
        factors_S1E2 = torch.stack([rotary.cosines_SE.float(), rotary.sines_SE.float()], dim=-1)[:, None]
        fused.register_buffer("factors_S1E2", factors_S1E2, persistent=False)
        return fused

    def forward(self, x_BTHE: Tensor, start: int) -> Tensor:
        end = start + x_BTHE.size(1)
        if end > len(self.factors_S1E2):
            return super().forward(x_BTHE, start)
        factors_T1E = torch.view_as_complex(self.factors_S1E2[start:end].float())
        return RotaryFunction.apply(x_BTHE, factors_T1E)  # type: ignore[no-any-return]


class RMSNormFunction(torch.autograd.Function):
    """y = x / r with r = √(mean(x²) + ε); the gradient is (g - y · mean(g y)) / r."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        # The norm is scaled before it is squared: a sum of squares would overflow float16.
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


class ReLUSquaredFunction(torch.autograd.Function):
    """y = h² with h = max(0, x); the gradient is 2 g h, so only h is stored."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = x.relu()
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (gradients[0] * positive).mul_(2)


class RotaryFunction(torch.autograd.Function):
    """Pairs (x₁, x₂) as complex numbers x₁ + i x₂, times cos + i sin. The gradient is multiplied by cos - i sin."""

    @staticmethod
    def forward(ctx: Any, x_BTHE: Tensor, factors_T1E: Tensor) -> Tensor:
        ctx.save_for_backward(factors_T1E)
        return multiply_pairs(x_BTHE, factors_T1E)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (factors_T1E,) = ctx.saved_tensors
        return multiply_pairs(gradients[0], factors_T1E.conj()), None


def multiply_pairs(x_BTHE: Tensor, factors_T1E: Tensor) -> Tensor:
    """Return the pairs of x_BTHE multiplied by complex numbers, in x's own number format."""
    pairs = torch.view_as_complex(x_BTHE.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * factors_T1E).flatten(-2).to(x_BTHE.dtype)


def same_on_vectors(module: RMSNorm | ReLUSquared, fused: RMSNorm | ReLUSquared) -> bool:
    """Return whether both give the same results on vectors of several sizes: ε matters only for small ones."""
    sizes = torch.tensor([1e-3, 1e-2, 1.0, 10.0])[:, None, None]
    return same_results(module, fused, lambda module, x: module(x), sizes * random_tensor(4, 2, 16))


def same_rotations(rotary: Rotary, fused: FusedRotary) -> bool:
    """Return whether both give the same results at all positions of the context, from its start and its middle."""
    (S, _, E, _) = fused.factors_S1E2.shape
    x_BTHE, half = random_tensor(1, S, 1, 2 * E), S // 2
    return all(
        same_results(rotary, fused, lambda module, x, start=start: module(x, start), x_BTHE[:, start:])
        for start in (0, half)
    )
