"""Windows of a text, and the loss on each of them.

Shapes: N windows, T time, B batch, V vocabulary.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from quill.errors import CorpusError
from quill.evaluation.loss import cross_entropy
from quill.lab.subject import inference
from quill.model.build import Model


class Tokens(Protocol):
    """An array of tokens, or what can be sliced like one."""

    def __len__(self) -> int:
        """Return the number of tokens."""
        ...

    def __getitem__(self, key: slice, /) -> Any:
        """Return some of the tokens as an array."""
        ...


def windows_of(tokens: Tokens, length: int, count: int) -> Tensor:
    """Return tokens_NT, int64: at most `count` windows of `length` tokens, evenly spaced, without overlap.

    A text shorter than one window is a CorpusError.
    """
    available = len(tokens) // length
    if available == 0:
        raise CorpusError(f"the text has {len(tokens):,} tokens, and a window takes {length}: give a longer text")
    chosen = np.unique(np.linspace(0, available - 1, min(count, available)).round().astype(np.int64))
    return torch.from_numpy(np.stack([tokens[i * length : (i + 1) * length] for i in chosen]).astype(np.int64))


def token_losses(model: Model, tokens_NT: Tensor, *, batch_size: int = 16) -> np.ndarray:
    """Return losses_NT with T - 1 columns: -ln p of each token but the first of its window, in nats."""
    losses = []
    with inference(model):
        for tokens_BT in tokens_NT.to(model.token_embedding.weight.device).split(batch_size):
            logits_BTV = model(tokens_BT[:, :-1])
            losses.append(cross_entropy(logits_BTV, tokens_BT[:, 1:], reduction="none").view(len(tokens_BT), -1).cpu())
    return torch.cat(losses).double().numpy()


def losses_per_window(model: Model, tokens_NT: Tensor, *, batch_size: int = 16) -> np.ndarray:
    """Return losses_N: the mean loss of each window, in nats per token."""
    return token_losses(model, tokens_NT, batch_size=batch_size).mean(1)
