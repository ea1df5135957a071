"""Dropout as a CPU likes it: the same mathematics as the model's own, with masks that both cores draw at once.

Applied from outside to a finished model. PyTorch draws its masks on one core, one float a number; here each 64-bit
random number decides four activations, and a mask takes one byte an activation. Measured in docs/log.md.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from quill.model.build import Model
from quill.model.gpt import Attention
from quill.model.modern import Attention as ModernAttention

QUERIES, WEIGHTS = 128, 2**18  # most in a tile of attention (of weights more, if a single text has more)
CHOICES = 2**16  # of a 16-bit draw; shares are rounded to that many steps


def lighten_dropout(model: Model) -> None:
    """Make all dropout of this model, in training, draw its masks by `drop`. Evaluation is left as it is."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.forward = functools.partial(drop_in_training, module)
        elif isinstance(module, Attention | ModernAttention):
            module.attend = functools.partial(attend_in_training, module, module.attend)


def drop(x: Tensor, share: float) -> Tensor:
    """Return x with this share of its values set to zero at random, and the others scaled up to make good for them.

    y = x · m / (1 - p)        m ~ Bernoulli(1 - p)              Srivastava et al. 2014, section 10
    """
    kept, factor = draw(x.shape, share, x.device)
    return (x * kept).mul_(factor)


def draw(shape: Sequence[int], share: float, device: torch.device) -> tuple[Tensor, float]:
    """Return what is kept when this share is dropped, as true and false, and the factor that makes good for the rest.

    Numbers come from PyTorch's own generator, so a seed or a restored state repeats them.
    """
    count = math.prod(shape)
    draws = torch.empty((count + 3) // 4, dtype=torch.int64, device=device).random_(-(2**63), None)
    dropped = min(round(share * CHOICES), CHOICES - 1)
    kept = draws.view(torch.int16)[:count] >= dropped - CHOICES // 2
    return kept.view(*shape), CHOICES / (CHOICES - dropped)


def drop_in_training(module: nn.Dropout, input: Tensor) -> Tensor:
    """Do what the module does, with our masks."""
    return drop(input, module.p) if module.training and module.p > 0 else input


def attend_in_training(
    attention: Attention | ModernAttention, fused: Callable[..., Tensor], q_BHTE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor
) -> Tensor:
    """Return heads_BHTE as the module's own call does, in little memory where attention weights are to be dropped."""
    if not attention.training or attention.dropout == 0:
        return fused(q_BHTE, k_BHSE, v_BHSE)
    scale = attention.scale if isinstance(attention, ModernAttention) else 1 / math.sqrt(q_BHTE.size(-1))
    return DroppingAttention.apply(q_BHTE, k_BHSE, v_BHSE, scale, attention.dropout)  # type: ignore[no-any-return]


class DroppingAttention(torch.autograd.Function):
    """Attention with dropped weights that keeps one byte a weight for the backward pass, and works tile by tile.

        W = softmax(Q Kᵀ · scale + mask)        heads = drop(W) V

    W is computed again in the backward pass (Dao et al. 2022, "FlashAttention", section 3.1). A tile is what some
    queries of some texts see, small enough for a core's cache; what no query of a tile may see is not computed.

    Shapes: N texts × heads of a tile, R queries, S keys that the last of them sees.
    """

    @staticmethod
    def forward(ctx: Any, q_BHTE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, scale: float, share: float) -> Tensor:
        B, H, T, E = q_BHTE.shape
        heads_BTHE = v_BHSE.new_empty(B, T, H, E)
        kept, factor = [], 1.0
        with torch.autocast("cpu", enabled=False):
            for texts, rows, seen, mask_RS in tiles(q_BHTE, k_BHSE):
                q_NRE = q_BHTE[texts, :, rows].flatten(0, 1)
                k_NSE, v_NSE = k_BHSE[texts, :, :seen].flatten(0, 1), v_BHSE[texts, :, :seen].flatten(0, 1)
                weights_NRS = torch.baddbmm(mask_RS, q_NRE, k_NSE.mT, alpha=scale).softmax(-1)
                kept_NRS, factor = draw(weights_NRS.shape, share, weights_NRS.device)
                kept.append(kept_NRS)
                heads_NRE = torch.bmm(weights_NRS.mul_(kept_NRS), v_NSE).mul_(factor)
                heads_BTHE[texts, rows] = heads_NRE.unflatten(0, (-1, H)).transpose(1, 2)
        ctx.save_for_backward(q_BHTE, k_BHSE, v_BHSE, *kept)
        ctx.scale, ctx.factor = scale, factor
        return heads_BTHE.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g_BHTE,) = gradients
        q_BHTE, k_BHSE, v_BHSE, *kept = ctx.saved_tensors
        H, scale = q_BHTE.size(1), ctx.scale
        dq_BHTE, dk_BHSE, dv_BHSE = torch.empty_like(q_BHTE), torch.zeros_like(k_BHSE), torch.zeros_like(v_BHSE)
        for (texts, rows, seen, mask_RS), kept_NRS in zip(tiles(q_BHTE, k_BHSE), kept, strict=True):
            q_NRE, g_NRE = q_BHTE[texts, :, rows].flatten(0, 1), g_BHTE[texts, :, rows].flatten(0, 1) * ctx.factor
            k_NSE, v_NSE = k_BHSE[texts, :, :seen].flatten(0, 1), v_BHSE[texts, :, :seen].flatten(0, 1)
            weights_NRS = torch.baddbmm(mask_RS, q_NRE, k_NSE.mT, alpha=scale).softmax(-1)
            dv_BHSE[texts, :, :seen] += torch.bmm((weights_NRS * kept_NRS).mT, g_NRE).unflatten(0, (-1, H))
            scores_NRS = torch.bmm(g_NRE, v_NSE.mT).mul_(kept_NRS).mul_(weights_NRS)
            scores_NRS.addcmul_(weights_NRS, scores_NRS.sum(-1, keepdim=True), value=-1).mul_(scale)  # through softmax
            dq_BHTE[texts, :, rows] = torch.bmm(scores_NRS, k_NSE).unflatten(0, (-1, H))
            dk_BHSE[texts, :, :seen] += torch.bmm(scores_NRS.mT, q_NRE).unflatten(0, (-1, H))
        return dq_BHTE, dk_BHSE, dv_BHSE, None, None


def tiles(q_BHTE: Tensor, k_BHSE: Tensor) -> Iterator[tuple[slice, slice, int, Tensor]]:
    """Yield for each tile its texts, its queries, how many keys the last of these sees, and its mask_RS to add."""
    (B, H, T, _), S = q_BHTE.shape, k_BHSE.size(2)
    queries = max(QUERIES, T // 4)
    for start in range(0, T, queries):
        rows = slice(start, min(start + queries, T))
        seen = S - T + rows.stop
        mask_RS = torch.full((rows.stop - start, seen), -math.inf, dtype=q_BHTE.dtype, device=q_BHTE.device)
        mask_RS.triu_(1 + S - T + start)
        texts = max(1, B // 16, WEIGHTS // (H * mask_RS.numel()))  # some dozen tiles at most
        for first in range(0, B, texts):
            yield slice(first, first + texts), rows, seen, mask_RS
