"""How much each prediction depends on each token before it, measured by replacing that token.

    I[t, s] = mean over replacements r of KL(p_t ‖ p_t with token s replaced by r)        in nats

p_t is the distribution of the token after t. Unlike attention weights this is the effect on the output, by whatever way
it comes: attention, n-gram tables, or the token's own residual stream (the diagonal).

Shapes: T time (the prediction), S time (the token replaced), R replacements, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from quill.errors import ConfigError
from quill.lab.drawing.maps import draw_map
from quill.lab.finding import Finding
from quill.lab.subject import Subject, Text, inference, labels_of, tokens_of
from quill.model.build import Model
from quill.tokenizers.base import check_tokens
from quill.validation import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_LOGITS = 1 << 22
"""Logits computed at once."""


@dataclass(frozen=True)
class Influence(Finding):
    """The effect of each token on each prediction."""

    labels: list[str]
    influence_TS: np.ndarray
    """nats; 0 above the diagonal"""
    draws: int
    seed: int = 0

    title = "How much each prediction changes when a token is replaced"
    explanation = (
        "Each token in turn is replaced by other tokens drawn at random. The colour is how far the prediction after "
        "each later token moves: a Kullback-Leibler divergence in nats, averaged over the draws. The diagonal is the "
        "effect of a token on the prediction right after it, and all that is left where tokens do not communicate."
    )

    def by_distance(self) -> np.ndarray:
        """Return the mean influence for each distance t - s, from 0."""
        return np.array([np.diagonal(self.influence_TS, -d).mean() for d in range(len(self.labels))])

    def share_from_others(self) -> float:
        """Return the share of all influence that comes from earlier tokens than the one right before a prediction."""
        total = self.influence_TS.sum()
        return float(np.tril(self.influence_TS, -1).sum() / total) if total > 0 else 0.0

    def numbers(self) -> dict[str, Any]:
        return {
            "tokens": self.labels, "draws": self.draws, "seed": self.seed, "influence": self.influence_TS,
            "by_distance": self.by_distance(), "share_from_others": self.share_from_others(),
        }  # fmt: skip

    def figure(self) -> Figure:
        share = f"{100 * self.share_from_others():.0f} % of the influence comes from tokens before the last"
        return draw_map(self.influence_TS, self.labels, f"{self.title}\n{share}", value="divergence in nats")


def influence(
    subject: Subject, text: Text, *, draws: int = 8, reference: Text | None = None, seed: int = 0
) -> Influence:
    """Measure the influence of each token of a text on each prediction.

    Replacements are drawn from the vocabulary, all tokens equally likely, or with the frequencies of the tokens of a
    reference text. A token is never replaced by itself.
    """
    require(type(draws) is int and 1 <= draws <= 4096, "draws", draws, "from 1 to 4096")
    tokens_T = tokens_of(subject, text)
    if tokens_T.dim() != 1:
        raise ConfigError(f"tokens of shape {tuple(tokens_T.shape)} cannot be used: give one text")
    replacements_RS = draw_replacements(tokens_T.cpu().numpy(), frequencies_of(subject, reference), draws, seed)
    total_TS = np.zeros((len(tokens_T), len(tokens_T)))
    for replacements_S in torch.from_numpy(replacements_RS).to(tokens_T.device):
        total_TS += divergences(subject.model, tokens_T, replacements_S)
    return Influence(labels_of(subject, tokens_T), total_TS / draws, draws, seed)


def divergences(model: Model, tokens_T: Tensor, replacements_S: Tensor) -> np.ndarray:
    """Return KL(p_t ‖ p_t with token s replaced) as a matrix with rows t and columns s; 0 where s > t."""
    T, V = len(tokens_T), model.config.vocab_size
    found_ST = []
    with inference(model):
        for first in range(0, T, rows := max(1, MOST_LOGITS // (T * V))):
            columns = torch.arange(first, min(first + rows, T), device=tokens_T.device)
            texts_BT = tokens_T.repeat(1 + len(columns), 1)  # the first row is the text as it is
            texts_BT[torch.arange(1, 1 + len(columns)), columns] = replacements_S[columns]
            log_p_BTV = model(texts_BT).double().log_softmax(-1)
            divergence_BT = (log_p_BTV[0].exp() * (log_p_BTV[0] - log_p_BTV[1:])).sum(-1).clamp_min(0)
            found_ST.append(divergence_BT.cpu())
    return np.tril(torch.cat(found_ST).T.numpy())


def frequencies_of(subject: Subject, reference: Text | None) -> np.ndarray:
    """Return the frequency of each token in a text of any length; without one, all are equally likely."""
    size = subject.model.config.vocab_size
    if reference is None:
        return np.full(size, 1 / size)
    tokens = subject.tokenizer.encode(reference) if isinstance(reference, str) else np.asarray(reference).ravel()
    counts_V = np.bincount(check_tokens(tokens, size).astype(np.int64), minlength=size)
    if np.count_nonzero(counts_V) < 2:
        raise ConfigError("the reference text has fewer than two different tokens: nothing could replace them")
    return counts_V / counts_V.sum()


def draw_replacements(tokens_S: np.ndarray, frequencies_V: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Return replacements_RS, each drawn by frequency from the tokens that differ from the one it replaces."""
    generator = np.random.default_rng(seed)
    if len(frequencies_V) < 2:
        raise ConfigError("the vocabulary has a single token: nothing could replace it")
    weights_SV = np.tile(frequencies_V, (len(tokens_S), 1))
    weights_SV[np.arange(len(tokens_S)), tokens_S] = 0
    cumulative_SV = weights_SV.cumsum(1)
    points_RS1 = generator.random((draws, len(tokens_S), 1)) * cumulative_SV[:, -1:]
    return (cumulative_SV <= points_RS1).sum(-1).clip(max=len(frequencies_V) - 1)
