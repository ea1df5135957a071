"""How good a model is: its loss over a whole split of the text, every token scored once.

    loss = - (1/N) Σ ln p(token | the tokens before it in its window)            nats per token
    bits per character = loss · N / (ln 2 · characters)

Consecutive windows of `block_size`, no overlap, no dropout, no randomness: two people get the same figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quill.data.windows import evaluation_windows
from quill.evaluation.loss import cross_entropy
from quill.model.build import Model
from quill.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class Evaluation:
    """A loss and what it was measured on."""

    loss: float
    """mean over the scored tokens, in nats per token"""
    bits_per_character: float
    """the same information per character of text, comparable between tokenizers"""
    tokens: int
    """how many tokens were scored"""
    whole_split: bool
    """False for an estimate on evenly spaced windows"""


@torch.no_grad()
def evaluate_split(
    model: Model,
    tokens: np.ndarray,
    tokenizer: Tokenizer,
    *,
    batch_size: int = 64,
    max_windows: int | None = None,
    dtype: torch.dtype = torch.float32,
    forward: Callable[[Tensor], Tensor] | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Evaluation:
    """Score a split with the model as it is, in consecutive windows; with `max_windows`, only so many of them.

    `forward` makes logits_BTV of tokens_BT in the model's stead, for what computes with its weights in another way. The
    model's device and mode are left as they were. A split shorter than two tokens is a CorpusError.
    """
    device = model.token_embedding.weight.device
    was_training = model.training
    model.eval()
    nats = torch.zeros((), dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    scored = characters = 0
    windows = evaluation_windows(
        tokens, block_size=model.config.block_size, batch_size=batch_size, max_windows=max_windows
    )
    for inputs_BT, targets_BT in windows:
        if on_progress is not None:
            on_progress(scored / len(tokens))
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            logits_BTV = (forward or model)(torch.from_numpy(inputs_BT).to(device))
        nats += cross_entropy(logits_BTV, torch.from_numpy(targets_BT).to(device), reduction="sum")
        scored += targets_BT.size
        characters += tokenizer.count_characters(targets_BT.ravel())
    model.train(was_training)
    total = nats.item()
    return Evaluation(
        loss=total / scored,
        bits_per_character=total / math.log(2) / max(1, characters),
        tokens=scored,
        whole_split=scored == len(tokens) - 1,
    )
