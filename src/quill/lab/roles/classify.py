"""The role of every head: the score that stands out most against uniform attention, or none.

    strength = (score - uniform) / (1 - uniform)          0 for uniform attention, 1 if all attention lies there

A head has the role of its largest strength, if that is at least 0.3. A fixed offset (2 or more tokens back) and classes
of characters are roles too. Induction is measured on random tokens that are repeated, each window with another period,
so a head that looks back a fixed distance does not pass for one. All scores are about where a head attends, not about
what it does with what it finds: ablation and patching show that.

Shapes: N windows, L layers, H heads, T queries, S keys, D distances.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from quill.lab.ablation.cost import PartCosts, text_windows
from quill.lab.ablation.targets import Head
from quill.lab.drawing.roles import draw_roles
from quill.lab.finding import Finding
from quill.lab.roles.patterns import (
    CLASSES,
    POSITIONAL,
    Score,
    class_pattern,
    induction_pattern,
    mass_by_offset,
    mean_distance,
)
from quill.lab.subject import Subject, Text, labels_of
from quill.lab.trace import trace
from quill.model.config import ModelConfig
from quill.validation import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THRESHOLD = 0.3
WINDOWS = 16
LONGEST = 256
"""Windows are cut to this many tokens: attention is quadratic in length."""
FEWEST_QUERIES = 8
"""An offset that fewer queries of a window have is not considered."""


@dataclass(frozen=True)
class HeadRoles(Finding):
    """What each head attends to, and the role that follows."""

    roles: list[list[str]]
    """for each layer, the role of each head"""
    strength_LH: np.ndarray
    """strength of the role, or the largest that falls short of one"""
    scores: dict[str, np.ndarray] = field(repr=False)
    """for each role, scores_LH"""
    uniform: dict[str, float | np.ndarray] = field(repr=False)
    """for each role, the score of uniform attention"""
    offset_LH: np.ndarray
    """the fixed offset, 2 or more, with the most attention"""
    distance_LH: np.ndarray
    """mean distance to the tokens attended to"""
    uniform_distance: float
    threshold: float = THRESHOLD
    seed: int = 0
    cost_LH: np.ndarray | None = field(default=None, repr=False)
    """loss that each head is worth, if it was measured"""

    title = "What each attention head looks at"
    explanation = (
        "Each head is scored by how much of its attention lies where a head of each role would look, compared with a "
        "head that attends to all tokens equally (strength 0; all attention there is 1). The strongest role is named "
        "if its strength reaches the threshold, else none. Induction is measured on repeated random tokens. Attention "
        "shows where a head looks, not that the model needs it: the size of a square is the loss that it is worth."
    )

    def role_of(self, layer: int, head: int) -> str:
        """Return the role of a head."""
        return self.roles[layer][head]

    def heads_with(self, role: str) -> list[Head]:
        """Return the heads that have a role."""
        return [Head(*at) for at, each in np.ndenumerate(np.array(self.roles)) if each == role]

    def strengths(self) -> dict[str, np.ndarray]:
        """Return the strength of each role for each head."""
        return {name: strength(score_LH, self.uniform[name]) for name, score_LH in self.scores.items()}

    def numbers(self) -> dict[str, Any]:
        return {
            "roles": self.roles, "strength": self.strength_LH, "threshold": self.threshold, "seed": self.seed,
            "scores": self.scores, "uniform": self.uniform, "offset": self.offset_LH,
            "mean_distance": self.distance_LH, "mean_distance_of_uniform": self.uniform_distance,
            "loss_added_by_ablation": self.cost_LH,
        }  # fmt: skip

    def figure(self) -> Figure:
        names = [
            [f"{offset} back" if role == "fixed offset" else role for role, offset in zip(*rows, strict=True)]
            for rows in zip(self.roles, self.offset_LH.tolist(), strict=True)
        ]
        return draw_roles(self.roles, names, self.strength_LH, self.cost_LH, title=self.title)


def head_roles(
    subject: Subject,
    text: Text,
    *,
    windows: int = WINDOWS,
    threshold: float = THRESHOLD,
    costs: PartCosts | None = None,
    seed: int = 0,
) -> HeadRoles:
    """Score every head on windows of a text and on repeated random tokens, and name its role.

    `costs`, from `ablate_each`, adds what each head is worth to the picture.
    """
    require(0 < threshold <= 1, "threshold", threshold, "more than 0 and at most 1")
    config = subject.model.config
    scores = {name: Score(np.zeros((config.n_layer, config.n_head))) for name in [*POSITIONAL, *CLASSES, "induction"]}
    tokens_NT = text_windows(subject, text, windows)[:, : min(config.block_size, LONGEST)].numpy()
    offsets, distances = [], []
    for tokens_T in tokens_NT:
        weights_LHTS, labels = attention_of_text(subject, tokens_T), labels_of(subject, tokens_T)
        for name, pattern in POSITIONAL.items():
            scores[name].add(weights_LHTS, pattern(tokens_T))
        for name, member in CLASSES.items():
            scores[name].add(weights_LHTS, class_pattern(labels, member))
        offsets.append(mass_by_offset(weights_LHTS))
        distances.append(mean_distance(weights_LHTS))
    for tokens_T, period in repeated_tokens(config, windows, seed):
        second = np.arange(len(tokens_T)) >= period
        scores["induction"].add(attention_of_text(subject, tokens_T), induction_pattern(tokens_T), second)
    found = {name: score.mean_LH for name, score in scores.items()}
    uniform: dict[str, float | np.ndarray] = {name: score.uniform for name, score in scores.items()}
    length = tokens_NT.shape[1]
    offset_LH, found["fixed offset"], uniform["fixed offset"] = best_offset(np.mean(offsets, 0))
    roles, strength_LH = classify(found, uniform, threshold)
    return HeadRoles(
        roles, strength_LH, found, uniform, offset_LH, np.mean(distances, 0), (length - 1) / 4, threshold, seed,
        None if costs is None else costs_of_heads(config, costs),
    )  # fmt: skip


def classify(
    scores: dict[str, np.ndarray], uniform: Mapping[str, float | np.ndarray], threshold: float = THRESHOLD
) -> tuple[list[list[str]], np.ndarray]:
    """Return the role of each head by layer, and strength_LH of the strongest one."""
    names = list(scores)
    strengths_RLH = np.stack([strength(scores[name], uniform[name]) for name in names])
    best_LH, strength_LH = strengths_RLH.argmax(0), strengths_RLH.max(0)
    roles = [
        [names[best] if value >= threshold else "none" for best, value in zip(*rows, strict=True)]
        for rows in zip(best_LH.tolist(), strength_LH.tolist(), strict=True)
    ]
    return roles, strength_LH


def strength(score_LH: np.ndarray, uniform: float | np.ndarray) -> np.ndarray:
    """Return how far scores are from that of uniform attention (0) to the largest possible one (1)."""
    return np.nan_to_num((score_LH - uniform) / (1 - uniform), nan=0.0)


def best_offset(mass_LHD: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the fixed offset of 2 or more with the largest strength, its score, and that of uniform attention.

    All are of shape (L, H).
    """
    T = mass_LHD.shape[-1]
    offsets_D = np.arange(2, max(3, T - FEWEST_QUERIES))
    offsets_D = offsets_D[offsets_D < T]
    if len(offsets_D) == 0:
        return np.full(mass_LHD.shape[:2], 2), np.zeros(mass_LHD.shape[:2]), np.zeros(mass_LHD.shape[:2])
    uniform_D = np.array([np.mean(1 / np.arange(d + 1, T + 1)) for d in offsets_D])
    best_LH = strength(mass_LHD[..., offsets_D], uniform_D).argmax(-1)
    score_LH = np.take_along_axis(mass_LHD[..., offsets_D], best_LH[..., None], -1)[..., 0]
    return offsets_D[best_LH], score_LH, uniform_D[best_LH]


def repeated_tokens(config: ModelConfig, count: int, seed: int = 0) -> list[tuple[np.ndarray, int]]:
    """Return texts of random tokens, each repeated once, with their periods.

    The tokens of a period differ from one another, so there is one place that an induction head can attend to. The
    period varies from half to the whole of what fits the context and the vocabulary.
    """
    generator = np.random.default_rng(seed)
    longest = min(config.block_size // 2, config.vocab_size, LONGEST // 2)
    texts = []
    for _ in range(count if longest >= 2 else 0):
        period = int(generator.integers(max(2, longest // 2), longest + 1))
        tokens = generator.permutation(config.vocab_size)[:period]
        texts.append((np.tile(tokens, 2), period))
    return texts


def attention_of_text(subject: Subject, tokens_T: np.ndarray) -> np.ndarray:
    """Return weights_LHTS of a text."""
    found = trace(subject, tokens_T, "*.weights_*")
    return np.stack([found[f"blocks.{layer}.attention.weights_HTS"] for layer in range(subject.model.config.n_layer)])


def costs_of_heads(config: ModelConfig, costs: PartCosts) -> np.ndarray:
    """Return cost_LH in nats per token; not a number where a head was not measured."""
    cost_LH = np.full((config.n_layer, config.n_head), np.nan)
    for target, cost in zip(costs.targets, costs.costs, strict=True):
        if isinstance(target, Head):
            cost_LH[target.layer, target.head] = cost.mean
    return cost_LH
