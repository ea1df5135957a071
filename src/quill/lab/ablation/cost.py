"""The loss that parts of a model are worth: of each alone, and of several together.

Losses are compared on the same windows of a text, so their differences are paired; intervals are those of a bootstrap
over the windows. Ablation understates what a part does, because later parts can repair the loss of an earlier one
(McGrath et al. 2023, "The Hydra Effect"; Rushing & Nanda 2024, "Explorations of Self-Repair").

Shapes: N windows, T time, P parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from quill.errors import ConfigError, CorpusError
from quill.lab.ablation.ablating import Method, ablating
from quill.lab.ablation.targets import Head, Target, every_feed_forward, every_head, targets_of
from quill.lab.drawing.costs import draw_before_and_after, draw_costs, interval_text
from quill.lab.drawing.style import CATEGORIES, NEUTRAL
from quill.lab.finding import Finding
from quill.lab.statistics import Interval, paired_difference
from quill.lab.subject import Subject, Text
from quill.lab.windows import losses_per_window, windows_of
from quill.model.build import Model
from quill.tokenizers.base import check_tokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WINDOWS, MOST_BARS = 64, 48
FEWEST = 8
"""A text shorter than this many contexts is cut into this many shorter windows."""


@dataclass(frozen=True)
class Ablation(Finding):
    """The loss of a model without some of its parts, beside that of the whole model."""

    title: str
    targets: list[str]
    method: Method
    intact_N: np.ndarray = field(repr=False)
    """loss of each window in nats per token"""
    ablated_N: np.ndarray = field(repr=False)
    cost: Interval
    """mean loss added, with its interval"""
    seed: int = 0

    explanation = (
        "The loss of each window of a text, with the part ablated and without: points above the diagonal became worse. "
        "The interval is a paired bootstrap over the windows. Later parts can repair what is removed, so a small cost "
        "does not show that the part does little."
    )

    def numbers(self) -> dict[str, Any]:
        return {
            "targets": self.targets, "method": self.method, "seed": self.seed, "windows": len(self.intact_N),
            "loss_intact": self.intact_N.mean(), "loss_ablated": self.ablated_N.mean(), "cost": self.cost,
            "intact_per_window": self.intact_N, "ablated_per_window": self.ablated_N,
        }  # fmt: skip

    def figure(self) -> Figure:
        title = f"{self.title} ({self.method})"
        return draw_before_and_after(self.intact_N, self.ablated_N, self.cost, title, CATEGORIES[0])


@dataclass(frozen=True)
class PartCosts(Finding):
    """The loss that each part of a model is worth, removed alone."""

    targets: list[Target]
    method: Method
    intact_N: np.ndarray = field(repr=False)
    ablated_PN: np.ndarray = field(repr=False)
    costs: list[Interval]
    seed: int = 0

    title = "What each part is worth: loss added when it alone is removed"
    explanation = (
        "Each part is ablated alone, and the loss on the same windows is compared with that of the whole model. Bars "
        "are means in nats per token, lines 95 % intervals of a paired bootstrap over the windows. A bar whose line "
        "crosses 0 is not distinguishable from no effect; later parts can repair what is removed."
    )

    def cost_of(self, target: Target) -> Interval:
        """Return the loss that one of the parts is worth."""
        return self.costs[self.targets.index(target)]

    def numbers(self) -> dict[str, Any]:
        parts = [
            {"target": str(target), "cost": cost, "loss_ablated": loss}
            for target, cost, loss in zip(self.targets, self.costs, self.ablated_PN.mean(1).tolist(), strict=True)
        ]
        windows = len(self.intact_N)
        return {"method": self.method, "seed": self.seed, "windows": windows, "loss_intact": self.intact_N.mean()} | {
            "parts": parts
        }

    def figure(self) -> Figure:
        rows = sorted(zip(self.targets, self.costs, strict=True), key=lambda row: -row[1].mean)[:MOST_BARS]
        colours = [CATEGORIES[0] if isinstance(target, Head) else CATEGORIES[1] for target, _ in rows]
        meaning = {CATEGORIES[0]: "attention head", CATEGORIES[1]: "feed-forward network, or a larger part"}
        more = f"; the {MOST_BARS} largest of {len(self.targets)}" if len(self.targets) > MOST_BARS else ""
        return draw_costs(
            [str(target) for target, _ in rows],
            [cost for _, cost in rows],
            colours,
            title=f"What each part is worth alone, by {self.method} ablation{more}",
            label="loss added when it alone is removed, nats per token",
            legend={colour: meaning[colour] for colour in sorted({*colours})} if len({*colours}) > 1 else None,
        )


@dataclass(frozen=True)
class JointCost(Finding):
    """The loss of removing several parts together, beside the sum of the losses of each alone."""

    targets: list[str]
    method: Method
    single: list[Interval]
    sum_of_single: Interval
    joint: Interval
    difference: Interval
    """joint cost minus the sum: above 0 where parts repair each other's loss"""
    seed: int = 0

    title = "Removed together, and the sum of each removed alone"
    explanation = (
        "If parts worked independently, removing them together would cost the sum of what each costs alone. A larger "
        "joint cost means that they stand in for each other. All are in nats per token on the same windows, with 95 % "
        "intervals of a paired bootstrap."
    )

    def numbers(self) -> dict[str, Any]:
        return {
            "targets": self.targets, "method": self.method, "seed": self.seed, "single": self.single,
            "sum_of_single": self.sum_of_single, "joint": self.joint, "joint_minus_sum": self.difference,
        }  # fmt: skip

    def figure(self) -> Figure:
        return draw_costs(
            [*self.targets, "sum of these", "removed together"],
            [*self.single, self.sum_of_single, self.joint],
            [CATEGORIES[0]] * len(self.targets) + [NEUTRAL, CATEGORIES[3]],
            title=f"{self.title}\ntogether minus sum: {interval_text(self.difference)}",
            label=f"loss added by {self.method} ablation, nats per token",
        )


Targets = str | Target | Iterable[str | Target]


def ablate(
    subject: Subject, targets: Targets, text: Text, *, method: Method = "zero", windows: int = WINDOWS, seed: int = 0
) -> Ablation:
    """Measure the loss of the model without the targets, on windows of a text of any length (or tokens_NT)."""
    tokens_NT = text_windows(subject, text, windows)
    found = targets_of(subject.model.config, targets)
    intact_N = losses_per_window(subject.model, tokens_NT)
    ablated_N = losses_without(subject.model, found, tokens_NT, method, seed)
    cost = paired_difference(ablated_N, intact_N, seed=seed)
    names = [str(target) for target in found]
    title = f"Without {', '.join(names) or 'nothing'}: {cost.mean:+.4f} nats per token"
    return Ablation(title, names, method, intact_N, ablated_N, cost, seed)


def ablate_each(
    subject: Subject,
    text: Text,
    targets: Targets | None = None,
    *,
    method: Method = "zero",
    windows: int = WINDOWS,
    seed: int = 0,
    on_progress: Callable[[float], object] | None = None,
) -> PartCosts:
    """Measure the loss that each part is worth alone; by default every head and every feed-forward network.

    `on_progress` gets the share that is done, and may raise to stop.
    """
    tokens_NT, config = text_windows(subject, text, windows), subject.model.config
    found = every_head(config) + every_feed_forward(config) if targets is None else targets_of(config, targets)
    if not found:
        raise ConfigError("no target is named: name at least one part to ablate")
    intact_N = losses_per_window(subject.model, tokens_NT)
    ablated = []
    for each in found:
        ablated.append(losses_without(subject.model, [each], tokens_NT, method, seed))
        if on_progress is not None:
            on_progress(len(ablated) / len(found))
    ablated_PN = np.stack(ablated)
    costs = [paired_difference(ablated_N, intact_N, seed=seed) for ablated_N in ablated_PN]
    return PartCosts(found, method, intact_N, ablated_PN, costs, seed)


def ablate_together(
    subject: Subject, targets: Targets, text: Text, *, method: Method = "zero", windows: int = WINDOWS, seed: int = 0
) -> JointCost:
    """Measure the loss of removing several parts together against the sum of the losses of each alone."""
    tokens_NT = text_windows(subject, text, windows)
    each = ablate_each(subject, tokens_NT, targets, method=method, seed=seed)
    joint_N = losses_without(subject.model, each.targets, tokens_NT, method, seed) - each.intact_N
    sum_N = (each.ablated_PN - each.intact_N).sum(0)
    zeros_N = np.zeros_like(sum_N)
    return JointCost(
        [str(target) for target in each.targets],
        method,
        each.costs,
        paired_difference(sum_N, zeros_N, seed=seed),
        paired_difference(joint_N, zeros_N, seed=seed),
        paired_difference(joint_N, sum_N, seed=seed),
        seed,
    )


def losses_without(
    model: Model, targets: Iterable[str | Target], tokens_NT: Tensor, method: Method = "zero", seed: int = 0
) -> np.ndarray:
    """Return losses_N of the model without the targets; the windows themselves are the reference."""
    with ablating(model, targets, method, reference_NS=tokens_NT, seed=seed):
        return losses_per_window(model, tokens_NT)


def text_windows(subject: Subject, text: Text, count: int = WINDOWS) -> Tensor:
    """Return tokens_NT: at most `count` windows of a text of any length, or windows that are given as they are.

    A window has as many tokens as the context, and one more to predict. A text shorter than 8 windows is cut into 8
    shorter ones; one too short for these is a CorpusError.
    """
    config = subject.model.config
    if isinstance(text, str):
        text = subject.tokenizer.encode(text)
    array = np.asarray(text.cpu() if isinstance(text, Tensor) else text)
    check_tokens(array.ravel(), config.vocab_size)
    if array.ndim == 2:
        if not 2 <= array.shape[1] <= config.block_size + 1:
            raise ConfigError(f"windows of {array.shape[1]} tokens cannot be used: from 2 to block_size + 1 fit")
        return torch.from_numpy(array.astype(np.int64))
    length = min(config.block_size + 1, len(array) // FEWEST)
    if length < 2:
        raise CorpusError(f"the text has {len(array)} tokens, and at least {2 * FEWEST} are needed to compare losses")
    return windows_of(array, length, count)
