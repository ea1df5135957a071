"""Attention for CPUs: all weights at once for short windows, and tile by tile with dropout."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from quill.acceleration.cpu_dropout import draw_mask
from quill.acceleration.replacement import (
    Replacement,
    Warn,
    no_warning,
    random_tensor,
    replace_modules,
    same_results,
)
from quill.model.build import Model
from quill.model.gpt import Attention
from quill.model.modern import Attention as ModernAttention

SHORT = 256  # tokens; up to here computing all attention weights is faster than the fused call
QUERIES, WEIGHTS = 128, 2**18  # maximum of a tile (but a tile has at least one window)
LONGEST_CHECK = 1024  # tokens; a longer comparison would take noticeable time


def use_cpu_attention(model: Model, warn: Warn = no_warning, check: bool = True) -> None:
    """Replace the attention of either model with one that is faster on a CPU.

    Dropout masks are drawn with `draw_mask`, so they differ from those that PyTorch draws with the same seed.
    """
    block_size = model.config.block_size
    for kind, faster in ((Attention, CPUAttention), (ModernAttention, CPUModernAttention)):
        same = functools.partial(same_attention, block_size=block_size)
        replace_modules(model, Replacement(kind, faster, same), warn, check)


class CPUAttention(Attention):
    """Attention of the classic model, with less memory if there is dropout."""

    def attend(self, q_BHTE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor) -> Tensor:
        """Return heads_BHTE."""
        if self.training and self.dropout > 0:
            return attend_with_dropout(q_BHTE, k_BHSE, v_BHSE, 1 / math.sqrt(q_BHTE.size(-1)), self.dropout)
        return super().attend(q_BHTE, k_BHSE, v_BHSE)


class CPUModernAttention(ModernAttention):
    """Attention of the modern model, with less memory if there is dropout, and faster for short windows."""

    def attend(self, q_BHTE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor) -> Tensor:
        """Return heads_BHTE."""
        if self.training and self.dropout > 0:
            return attend_with_dropout(q_BHTE, k_BHSE, v_BHSE, self.scale, self.dropout)
        if 1 < q_BHTE.size(2) == k_BHSE.size(2) <= SHORT:
            return attend_by_formula(q_BHTE, k_BHSE, v_BHSE, self.scale)
        return super().attend(q_BHTE, k_BHSE, v_BHSE)


def attend_by_formula(q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor, scale: float) -> Tensor:
    """Return heads_BHTE of whole windows: softmax(Q Kᵀ · scale + mask) V."""
    B, H, T, _ = q_BHTE.shape
    q, k, v = (x.flatten(0, 1) for x in (q_BHTE, k_BHTE, v_BHTE))
    mask_TT = torch.full((T, T), -math.inf, dtype=q.dtype, device=q.device).triu_(1)
    weights = torch.baddbmm(mask_TT, q, k.mT, alpha=scale).softmax(-1)
    return torch.bmm(weights.to(v.dtype), v).view(B, H, T, -1)


def attend_with_dropout(q_BHTE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, scale: float, p: float) -> Tensor:
    """Return heads_BHTE with attention weights dropped with probability p."""
    return DropoutAttentionFunction.apply(q_BHTE, k_BHSE, v_BHSE, scale, p)  # type: ignore[no-any-return]


class DropoutAttentionFunction(torch.autograd.Function):
    """Attention with dropout, tile by tile; it stores one byte per attention weight for the backward pass.

        W = softmax(Q Kᵀ · scale + mask)        heads = drop(W) V

    W is recomputed in the backward pass (Dao et al. 2022, "FlashAttention", section 3.1). A tile has some queries of
    some windows, and fits a core's cache. Keys that no query of a tile may attend to are skipped.

    Shapes: N windows × heads of a tile, R queries, S keys that the last of them may attend to.
    """

    @staticmethod
    def forward(ctx: Any, q_BHTE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, scale: float, p: float) -> Tensor:
        B, H, T, E = q_BHTE.shape
        heads_BTHE = v_BHSE.new_empty(B, T, H, E)
        masks, factor = [], 1.0
        with torch.autocast("cpu", enabled=False):
            for windows, queries, S, mask_RS in tiles(q_BHTE, k_BHSE):
                q_NRE = q_BHTE[windows, :, queries].flatten(0, 1)
                k_NSE, v_NSE = k_BHSE[windows, :, :S].flatten(0, 1), v_BHSE[windows, :, :S].flatten(0, 1)
                weights_NRS = torch.baddbmm(mask_RS, q_NRE, k_NSE.mT, alpha=scale).softmax(-1)
                kept_NRS, factor = draw_mask(weights_NRS.shape, p, weights_NRS.device)
                masks.append(kept_NRS)
                heads_NRE = torch.bmm(weights_NRS.mul_(kept_NRS), v_NSE).mul_(factor)
                heads_BTHE[windows, queries] = heads_NRE.unflatten(0, (-1, H)).transpose(1, 2)
        ctx.save_for_backward(q_BHTE, k_BHSE, v_BHSE, *masks)
        ctx.scale, ctx.factor = scale, factor
        return heads_BTHE.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g_BHTE,) = gradients
        q_BHTE, k_BHSE, v_BHSE, *masks = ctx.saved_tensors
        H, scale = q_BHTE.size(1), ctx.scale
        dq_BHTE, dk_BHSE, dv_BHSE = torch.empty_like(q_BHTE), torch.zeros_like(k_BHSE), torch.zeros_like(v_BHSE)
        for (windows, queries, S, mask_RS), kept_NRS in zip(tiles(q_BHTE, k_BHSE), masks, strict=True):
            q_NRE = q_BHTE[windows, :, queries].flatten(0, 1)
            g_NRE = g_BHTE[windows, :, queries].flatten(0, 1) * ctx.factor
            k_NSE, v_NSE = k_BHSE[windows, :, :S].flatten(0, 1), v_BHSE[windows, :, :S].flatten(0, 1)
            weights_NRS = torch.baddbmm(mask_RS, q_NRE, k_NSE.mT, alpha=scale).softmax(-1)
            dv_BHSE[windows, :, :S] += torch.bmm((weights_NRS * kept_NRS).mT, g_NRE).unflatten(0, (-1, H))
            scores_NRS = torch.bmm(g_NRE, v_NSE.mT).mul_(kept_NRS).mul_(weights_NRS)
            scores_NRS.addcmul_(weights_NRS, scores_NRS.sum(-1, keepdim=True), value=-1).mul_(scale)  # through softmax
            dq_BHTE[windows, :, queries] = torch.bmm(scores_NRS, k_NSE).unflatten(0, (-1, H))
            dk_BHSE[windows, :, :S] += torch.bmm(scores_NRS.mT, q_NRE).unflatten(0, (-1, H))
        return dq_BHTE, dk_BHSE, dv_BHSE, None, None


def tiles(q_BHTE: Tensor, k_BHSE: Tensor) -> Iterator[tuple[slice, slice, int, Tensor]]:
    """Yield for each tile its windows, its queries, how many keys the last query may attend to, and mask_RS to add."""
    (B, H, T, _), S = q_BHTE.shape, k_BHSE.size(2)
    size = max(QUERIES, T // 4)
    for start in range(0, T, size):
        queries = slice(start, min(start + size, T))
        visible = S - T + queries.stop
        mask_RS = torch.full((queries.stop - start, visible), -math.inf, dtype=q_BHTE.dtype, device=q_BHTE.device)
        mask_RS.triu_(1 + S - T + start)
        count = max(1, B // 16, WEIGHTS // (H * mask_RS.numel()))  # a few dozen tiles at most
        for first in range(0, B, count):
            yield slice(first, first + count), queries, visible, mask_RS


def same_attention(module: Attention | ModernAttention, faster: CPUAttention, block_size: int) -> bool:
    """Return whether `attend` gives the same results on a window of one head; with dropout, also tile by tile."""
    size = module.query_key_value.in_features // module.n_head

    def attend(each: Attention | ModernAttention, *qkv: Tensor) -> Tensor:
        return each.attend(*qkv)

    def attend_by_tiles(each: Attention | ModernAttention, *qkv: Tensor) -> Tensor:
        if each is module:
            return each.attend(*qkv)
        each.training, each.dropout = True, 1e-9  # takes the path with dropout, and rounds to 0
        try:
            return each.attend(*qkv)
        finally:
            each.training, each.dropout = False, module.dropout

    qkv = random_tensor(3, 1, 1, min(block_size, LONGEST_CHECK), size)
    same = same_results(module, faster, attend, *qkv[..., :SHORT, :])
    return same and (module.dropout == 0 or same_results(module, faster, attend_by_tiles, *qkv))
