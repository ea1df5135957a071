"""The residual stream as a sum of parts, and what each part adds to the logits.

The last residual stream is a sum: the embeddings, and what every head and every feed-forward network wrote. The final
norm divides the sum by one number for each position. With that number held fixed, norm and head are linear, so the
logits before the cap are a sum over the same parts, too.

    logits = cap( Σ_parts norm(part) · W_headᵀ + constants )

Shapes: P parts, T time, D width, V vocabulary, H heads, E size of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from quill.errors import ConfigError
from quill.lab.subject import Subject, Text, check_position, inference
from quill.lab.trace import Trace, trace
from quill.model.build import Model

NEEDED = ["embedding_*", "*.input_*", "*.attention.heads_*", "*.output_*", "final_norm_*", "logits_*"]


@dataclass(frozen=True)
class ResidualParts:
    """The parts whose sum is the last residual stream of a text."""

    names: list[str]
    """embedding, "head 0.3" (layer.head), "bias 0" (of an attention output), "feed_forward 0", or "block 0" (whole)"""
    parts_PTD: np.ndarray
    trace: Trace

    def total_TD(self) -> np.ndarray:
        """Return the sum of the parts: what enters the final norm."""
        return self.parts_PTD.sum(0)


def residual_parts(subject: Subject, text: Text, position: int | None = None) -> ResidualParts:
    """Return the parts of the last residual stream of one text: at every position, or at `position` with T = 1.

    The modern model adds x₀, the normalised embedding, to each block's input; that belongs to the part "embedding".
    """
    model: Any = subject.model
    found = trace(subject, text, NEEDED)
    if found.tokens.ndim != 1:
        raise ConfigError("the parts are of one text: give text, or token ids of shape (T,)")
    where = slice(None)
    if position is not None:
        at = check_position(position, len(found.tokens))
        where = slice(at, at + 1)
    n_layer = model.config.n_layer
    skips = getattr(model, "embedding_skip", torch.zeros(n_layer)).detach().double().sum().item()
    names, parts = ["embedding"], [found["embedding_TD"][where] * np.float32(1 + skips)]
    for layer, block in enumerate(model.blocks):
        of = f"blocks.{layer}."
        if not {f"{of}attention.heads_HTE", f"{of}feed_forward.output_TD"} <= set(found):
            names.append(f"block {layer}")
            parts.append(found[f"{of}output_TD"][where] - found[f"{of}input_TD"][where])
            continue
        written_HTD, bias_D = head_outputs(block.attention, found[f"{of}attention.heads_HTE"][:, where])
        names += [f"head {layer}.{head}" for head in range(len(written_HTD))]
        parts += list(written_HTD)
        if bias_D is not None:
            names.append(f"bias {layer}")
            parts.append(np.broadcast_to(bias_D, written_HTD.shape[1:]))
        names.append(f"feed_forward {layer}")
        parts.append(found[f"{of}feed_forward.output_TD"][where])
    return ResidualParts(names, np.stack(parts), found)


def head_outputs(attention: Any, heads_HTE: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return written_HTD, what each head adds to the residual stream, and the bias that belongs to none of them."""
    H, _, E = heads_HTE.shape
    weight_HED = attention.output.weight.detach().float().cpu().view(-1, H, E).permute(1, 2, 0)
    written_HTD = (torch.tensor(heads_HTE) @ weight_HED).numpy()  # a large trace is read-only
    bias = attention.output.bias
    return written_HTD, None if bias is None else bias.detach().float().cpu().numpy()


class Unembedding:
    """The way from the last residual stream to the logits, as a linear map for each position of one text.

    The divisor of the final norm is that of `total_TD`, the sum of all parts.
    """

    def __init__(self, model: Model, total_TD: np.ndarray):
        norm: Any = model.final_norm
        weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
        self.centred = isinstance(norm, torch.nn.LayerNorm)  # RMSNorm subtracts no mean
        centred_TD = self._centre(total_TD.astype(np.float64))
        eps = norm.eps if self.centred else 1e-6
        self._divisor_T = np.sqrt((centred_TD**2).mean(-1) + eps)
        self._gain_D = np.ones(total_TD.shape[-1]) if weight is None else weight.detach().double().cpu().numpy()
        # PyTorch multiplies, not numpy, whose threads spin for a while after a product and slow PyTorch's next ones.
        self._head_VD = model.head.weight.detach().double().cpu()
        of_head = model.head.bias
        self.constant_V = np.zeros(len(self._head_VD)) if of_head is None else of_head.detach().double().cpu().numpy()
        """what the biases of norm and head add to the logits of every position"""
        if bias is not None:
            self.constant_V = self.constant_V + (self._head_VD @ bias.detach().double().cpu()).numpy()
        self.cap = float(getattr(model.config, "logit_softcap", 0.0))

    def logits_of(self, part_TD: np.ndarray, position: int | None = None) -> np.ndarray:
        """Return logits_TV (or logits_V of one position) that a part adds, before the cap and without the constants."""
        where = slice(None) if position is None else slice(position, position + 1)
        normed_TD = self._centre(part_TD[where]) / self._divisor_T[where, None] * self._gain_D
        logits_TV = F.linear(torch.from_numpy(normed_TD), self._head_VD).numpy()
        return logits_TV if position is None else logits_TV[0]

    def capped(self, logits: np.ndarray) -> np.ndarray:
        """Return the model's logits: cap · tanh(logits / cap), or as they are where there is no cap."""
        return self.cap * np.tanh(logits / self.cap) if self.cap else logits

    def _centre(self, x: np.ndarray) -> np.ndarray:
        return x - x.mean(-1, keepdims=True) if self.centred else x


def unembed(model: Model, x_BTD: Tensor) -> Tensor:
    """Return logits_BTV of a residual stream, by the model's own final norm, head and cap."""
    with inference(model):
        return differentiable_unembed(model, x_BTD)


def differentiable_unembed(model: Model, x_BTD: Tensor) -> Tensor:
    """Return logits_BTV of a residual stream, with gradients where they are on."""
    logits_BTV = model.head(model.final_norm(x_BTD))
    cap = float(getattr(model.config, "logit_softcap", 0.0))
    return cap * torch.tanh(logits_BTV / cap) if cap else logits_BTV
