"""The loss of a model over a whole split of the text, with every token but the first scored once.

    loss = - (1/N) Σ ln p(token | the tokens before it in its window)            nats per token
    bits per character = loss · N / (ln 2 · characters)

Windows of `block_size` are consecutive and do not overlap. There is no dropout and no randomness: the result is
reproducible, and does not depend on the batch size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quill.data.windows import evaluation_windows
from quill.distributed.group import ALONE, Group
from quill.evaluation.loss import cross_entropy
from quill.model.build import Model
from quill.model.modes import evaluation_mode
from quill.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class Evaluation:
    """A loss, and what it was measured on."""

    loss: float
    """mean over the scored tokens, in nats per token"""
    bits_per_character: float
    """the same per character of text, which is comparable between tokenizers"""
    tokens: int
    """number of scored tokens"""
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
    group: Group = ALONE,
) -> Evaluation:
    """Return the loss of a model over a split, or over `max_windows` evenly spaced windows of it.

    `forward`, if given, is called instead of the model: tokens_BT in, logits_BTV out. `on_progress` is called before
    each batch with the completed share, and may raise to stop the evaluation. The model's mode does not change. The
    processes of `group` take the batches in turn, and all of them return the loss that one would compute. A split of
    fewer than two tokens is a CorpusError.
    """
    device = model.token_embedding.weight.device
    nats = torch.zeros((), dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    scored = characters = 0
    total = len(tokens) - 1 if max_windows is None else min(len(tokens) - 1, max_windows * model.config.block_size)
    windows = evaluation_windows(
        tokens, block_size=model.config.block_size, batch_size=batch_size, max_windows=max_windows
    )
    with evaluation_mode(model):
        sums: list[Tensor] = []
        for number, (inputs_BT, targets_BT) in enumerate(windows):
            if on_progress is not None:
                on_progress(scored / total)
            if number % group.ranks.world_size == group.ranks.rank:
                with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                    logits_BTV = (forward or model)(torch.from_numpy(inputs_BT).to(device))
                sums.append(cross_entropy(logits_BTV, torch.from_numpy(targets_BT).to(device), reduction="sum"))
            else:
                sums.append(torch.zeros((), device=device))  # another process computes it
            scored += targets_BT.size
            characters += tokenizer.count_characters(targets_BT.ravel())
    for each in sums if group.alone else group.sum(torch.stack(sums)):
        nats += each  # in the order of the batches, so that the sum has the same bits
    sum_of_nats = nats.item()
    return Evaluation(
        loss=sum_of_nats / scored,
        bits_per_character=sum_of_nats / math.log(2) / max(1, characters),
        tokens=scored,
        whole_split=scored == len(tokens) - 1,
    )
