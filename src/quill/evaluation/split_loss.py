"""The loss of a model over a whole split of the text, with every token but the first scored once.

    loss = - (1/N) Σ ln p(token | the tokens before it in its window)            nats per token
    bits per character = loss · N / (ln 2 · characters)

Windows of `block_size` are consecutive and do not overlap. There is no dropout and no randomness: the result is
reproducible, and does not depend on the batch size. For a mixture of texts, the loss is the mean of the losses of all
texts, weighted by their shares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from quill.data.mixed_tokens import MixedTokens, Tokens, TranslatedTokens
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
    characters: int
    """number of characters that they decode to"""
    whole_split: bool
    """False for an estimate on evenly spaced windows"""
    losses: Mapping[str, float] = field(default_factory=dict)
    """the loss on each text of a mixture, by its path"""


@torch.no_grad()
def evaluate_split(
    model: Model,
    tokens: Tokens,
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
    processes of `group` take the batches in turn, and all of them return the loss that one would compute. Of a mixture,
    each text gets its share of `max_windows`. A split of fewer than two tokens is a CorpusError.
    """
    how = (tokenizer, batch_size, dtype, forward, group)
    if not isinstance(tokens, MixedTokens):
        return _evaluate_text(model, tokens, max_windows, on_progress, *how)
    shares_S = np.array(tokens.counts) / sum(tokens.counts)
    windows = sum(-(-(len(part) - 1) // model.config.block_size) for part in tokens.parts)
    found: list[Evaluation] = []
    for part, share in zip(tokens.parts, shares_S, strict=True):
        most = None if max_windows is None or windows <= max_windows else max(1, round(max_windows * share))
        done = sum(map(len, tokens.parts[: len(found)]))
        found.append(_evaluate_text(model, part, most, _part_of(on_progress, done, len(part), len(tokens)), *how))
    losses_S = np.array([each.loss for each in found])
    density_S = np.array([each.characters / each.tokens for each in found])
    loss = float(shares_S @ losses_S)
    return Evaluation(
        loss=loss,
        bits_per_character=loss / math.log(2) / max(float(shares_S @ density_S), 1e-9),
        tokens=sum(each.tokens for each in found),
        characters=sum(each.characters for each in found),
        whole_split=all(each.whole_split for each in found),
        losses=dict(zip(tokens.names, losses_S.tolist(), strict=True)),
    )


def _part_of(
    on_progress: Callable[[float], None] | None, done: int, length: int, total: int
) -> Callable[[float], None] | None:
    """Return the `on_progress` of one text, from that of all texts."""
    return None if on_progress is None else lambda share: on_progress((done + share * length) / total)


def _evaluate_text(
    model: Model,
    tokens: np.ndarray | TranslatedTokens,
    max_windows: int | None,
    on_progress: Callable[[float], None] | None,
    tokenizer: Tokenizer,
    batch_size: int,
    dtype: torch.dtype,
    forward: Callable[[Tensor], Tensor] | None,
    group: Group,
) -> Evaluation:
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
        characters=characters,
        whole_split=scored == len(tokens) - 1,
    )
