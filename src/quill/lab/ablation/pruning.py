"""How many heads a model needs: heads are removed in order of importance, and at random.

    importance of head h = mean over windows of |∂L/∂ξ_h| at ξ = 1, where ξ_h multiplies the output of the head

Michel et al. 2019, "Are Sixteen Heads Really Better than One?", section 4.1. Importance is computed on every other
window and the loss on the rest, so the order is not fitted to the text that judges it.

Shapes: N windows, T time, L layers, H heads, K numbers of heads removed, R random orders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from quill.evaluation.loss import cross_entropy
from quill.lab.ablation.cost import WINDOWS, losses_without, text_windows
from quill.lab.ablation.targets import Head, Target
from quill.lab.drawing.curves import Curve, draw_curves
from quill.lab.drawing.style import CATEGORIES, NEUTRAL
from quill.lab.finding import Finding
from quill.lab.hooks import replacing_heads
from quill.lab.statistics import Interval, bootstrap_interval, paired_difference
from quill.lab.subject import Subject, Text
from quill.model.build import Model
from quill.model.modes import evaluation_mode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_POINTS = 13
RANDOM_ORDERS = 3


@dataclass(frozen=True)
class PruningCurve(Finding):
    """The loss over the number of heads removed, the least important first, and in random orders."""

    importance_LH: np.ndarray
    order: list[Head]
    """the heads, the least important first"""
    removed_K: list[int]
    losses_KN: np.ndarray = field(repr=False)
    random_RKN: np.ndarray = field(repr=False)
    by_importance: list[Interval]
    """mean loss with its interval for each number of heads removed"""
    gain: list[Interval]
    """how much lower the loss is than in random order, for each number of heads removed"""
    seed: int = 0

    title = "How many heads can be removed before the loss rises"
    explanation = (
        "Heads are set to 0 one after the other, the least important first. Importance is the mean size of the "
        "loss's gradient with respect to a factor in front of the head (Michel et al. 2019), computed on other windows "
        "than the loss. Random orders are the control: the gap between the curves is what the order knows."
    )

    def numbers(self) -> dict[str, Any]:
        return {
            "seed": self.seed, "windows": self.losses_KN.shape[1], "importance": self.importance_LH,
            "order": [str(head) for head in self.order], "heads_removed": self.removed_K, "loss": self.by_importance,
            "loss_in_random_orders": self.random_RKN.mean(2), "random_minus_importance": self.gain,
        }  # fmt: skip

    def figure(self) -> Figure:
        low_K, high_K = [each.low for each in self.by_importance], [each.high for each in self.by_importance]
        mean_K = [each.mean for each in self.by_importance]
        curves = [
            Curve("least important first, with its 95 % interval", self.removed_K, mean_K, CATEGORIES[0], low_K, high_K)
        ]
        for index, losses_K in enumerate(self.random_RKN.mean(2).tolist()):
            curves.append(Curve("random order" if index == 0 else "", self.removed_K, losses_K, NEUTRAL))
        return draw_curves(curves, title=self.title, x="heads removed", y="loss, nats per token")


def prune_heads(
    subject: Subject,
    text: Text,
    *,
    windows: int = WINDOWS,
    random_orders: int = RANDOM_ORDERS,
    points: int = MOST_POINTS,
    seed: int = 0,
) -> PruningCurve:
    """Measure the loss over the number of heads removed, at `points` numbers from none to all."""
    tokens_NT, model = text_windows(subject, text, windows), subject.model
    importance_LH = head_importance(model, tokens_NT[0::2])
    H = importance_LH.shape[1]
    order = [Head(int(i) // H, int(i) % H) for i in np.argsort(importance_LH, axis=None, kind="stable")]
    removed_K = sorted({round(k) for k in np.linspace(0, len(order), min(points, len(order) + 1))})

    def losses(heads: Sequence[Target]) -> np.ndarray:
        return np.stack([losses_without(model, heads[:k], tokens_NT[1::2]) for k in removed_K])

    generator = np.random.default_rng(seed)
    losses_KN = losses(order)
    shuffled = [[order[i] for i in generator.permutation(len(order))] for _ in range(random_orders)]
    random_RKN = np.stack([losses(heads) for heads in shuffled])
    by_importance = [bootstrap_interval(losses_N, seed=seed) for losses_N in losses_KN]
    pairs = zip(random_RKN.mean(0), losses_KN, strict=True)
    gain = [paired_difference(random_N, losses_N, seed=seed) for random_N, losses_N in pairs]
    return PruningCurve(importance_LH, order, removed_K, losses_KN, random_RKN, by_importance, gain, seed)


def head_importance(model: Model, tokens_NT: Tensor, *, batch_size: int = 8) -> np.ndarray:
    """Return importance_LH: the mean over windows of |∂L/∂ξ|, in nats per token. No gradient of a weight changes."""
    config, device = model.config, model.token_embedding.weight.device
    total_LH = torch.zeros(config.n_layer, config.n_head, dtype=torch.float64)
    for tokens_BT in tokens_NT.to(device).split(batch_size):
        xi_LBH = torch.ones(config.n_layer, len(tokens_BT), config.n_head, device=device, requires_grad=True)
        with ExitStack() as stack, evaluation_mode(model), torch.enable_grad():
            for layer in range(config.n_layer):
                stack.enter_context(replacing_heads(model, layer, multiplied_by(xi_LBH[layer])))
            losses = cross_entropy(model(tokens_BT[:, :-1]), tokens_BT[:, 1:], reduction="sum")
            # A window depends on its own factors only, so one gradient of the sum holds those of all windows.
            (gradient_LBH,) = torch.autograd.grad(losses / (tokens_BT.size(1) - 1), xi_LBH)
        total_LH += gradient_LBH.abs().sum(1).double().cpu()
    return (total_LH / len(tokens_NT)).numpy()


def multiplied_by(xi_BH: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function that multiplies each head of each window by its factor."""
    return lambda heads_BHTE: heads_BHTE * xi_BH[:, :, None, None]
