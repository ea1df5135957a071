"""Several heads learn different things: what each looks at, what it is worth, and which can go.

Voita et al. 2019, "Analyzing Multi-Head Self-Attention"; Michel et al. 2019, "Are Sixteen Heads Really Better than
One?". Ablation understates a head, because later parts repair its loss (McGrath et al. 2023, "The Hydra Effect").
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quill.experiments.experiment import Experiment, OnProgress, Result
from quill.experiments.inside.pruning import gradient_importance, pruning_curve
from quill.experiments.inside.studied import Studied, StudySettings, shuffled, studied_model
from quill.experiments.verdict import Effect, effect
from quill.lab.ablation.ablating import METHODS
from quill.lab.ablation.cost import JointCost, PartCosts, ablate_each, ablate_together
from quill.lab.ablation.targets import every_head
from quill.lab.roles.classify import HeadRoles, head_roles
from quill.lab.windows import losses_per_window

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = (
    "Heads learn different things: they look at different places, some are worth far more than others, and gradients "
    "tell which can go."
)
STRENGTH = 0.1
"""How much stronger the roles of trained heads must be than those of shuffled weights."""
WORTH = 0.005
"""Nats that the most valuable head must be worth beyond the median one."""


@dataclass(frozen=True)
class HeadsSettings(StudySettings):
    """Sizes of the heads experiment."""

    role_windows: int = 16
    orders: int = 8
    """random orders of pruning"""


@dataclass(frozen=True)
class Measured:
    """Everything that the experiment measures."""

    roles: HeadRoles
    control: HeadRoles
    """of the model with shuffled weights"""
    costs: dict[str, PartCosts]
    """by method of ablation"""
    importance_LH: np.ndarray
    counts: list[int]
    """numbers of removed heads"""
    by_gradient_KN: np.ndarray
    by_chance_RKN: np.ndarray
    joint: JointCost
    """of the less important half of the heads"""
    intact_N: np.ndarray


def run(settings: HeadsSettings, on_progress: OnProgress) -> Result:
    """Measure the heads of a trained model and of the same weights in random order."""
    studied = studied_model(settings, lambda what, share: on_progress(what, 0.5 * share))
    return result_of(settings, measure(settings, studied, on_progress))


def measure(settings: HeadsSettings, studied: Studied, on_progress: OnProgress) -> Measured:
    """Return roles, costs of ablation and pruning curves."""
    model, windows_NT, heads = studied.model, studied.windows_NT, every_head(studied.model.config)
    on_progress("importance by gradients", 0.5)
    importance_LH = gradient_importance(model, studied.train_windows(len(windows_NT)))
    order = [heads[index] for index in np.argsort(importance_LH.ravel(), kind="stable")]
    costs = {}
    for number, method in enumerate(METHODS):
        on_progress(f"ablation: {method}", 0.52 + 0.08 * number)
        costs[method] = ablate_each(studied, windows_NT, heads, method=method, seed=settings.seed)
    counts = sorted({round(count) for count in np.linspace(0, len(heads), min(len(heads), 12) + 1)})
    generator, by_chance = np.random.default_rng(settings.seed), []
    for number in range(settings.orders):
        on_progress("removing heads", 0.76 + 0.16 * number / settings.orders)
        by_chance.append(
            pruning_curve(model, [heads[i] for i in generator.permutation(len(heads))], counts, windows_NT)
        )
    on_progress("roles", 0.92)
    text, count = windows_NT[: settings.role_windows], settings.role_windows
    return Measured(
        head_roles(studied, text, windows=count, costs=costs["mean"], seed=settings.seed),
        head_roles(studied.with_model(shuffled(model, settings.seed)), text, windows=count, seed=settings.seed),
        costs,
        importance_LH,
        counts,
        pruning_curve(model, order, counts, windows_NT),
        np.stack(by_chance),
        ablate_together(studied, order[: max(2, len(heads) // 2)], windows_NT, method="mean", seed=settings.seed),
        losses_per_window(model, windows_NT),
    )


def result_of(settings: HeadsSettings, found: Measured) -> Result:
    """Return the result of these measurements."""
    counted, chance = (Counter(role for row in each.roles for role in row) for each in (found.roles, found.control))
    named = ", ".join(f"{count} {role}" for role, count in counted.most_common())
    half = int(np.argmin(np.abs(np.array(found.counts) - found.counts[-1] / 2)))
    mean = found.costs["mean"]
    joint, total = found.joint.joint, found.joint.sum_of_single
    methods = ", ".join(f"{name} {max(c.mean for c in each.costs):.3f}" for name, each in found.costs.items())
    return Result(
        name="heads",
        title="What each attention head looks at, and what it is worth",
        claim=CLAIM,
        measure=(
            f"Roles by where {found.importance_LH.size} heads attend ({named}); the loss added when a head is ablated"
            f" on {len(found.intact_N)} validation windows (largest by method: {methods} nats); and the loss when heads"
            " are removed in the order of |∂L/∂ξ| or in random order. The most valuable head is chosen on one half of"
            " the windows and measured on the other."
        ),
        control=(
            f"With the same weights in random order {sum(n for r, n in chance.items() if r != 'none')} of"
            f" {found.importance_LH.size} heads have a role. The less important half of the heads costs"
            f" {joint.mean:.3f} nats together, and {total.mean:.3f} as the sum of each alone."
        ),
        opposite=(
            "Heads would look like those of shuffled weights, be worth about the same, or be removed in random order as"
            " cheaply as by gradient."
        ),
        effects=(
            effect(
                "strength of a head's role above that of shuffled weights",
                (found.roles.strength_LH - found.control.strength_LH).ravel(), STRENGTH, "strength",
            ),
            effect("the most valuable head above the median one", best_above_median(mean), WORTH),
            effect(
                f"loss without {found.counts[half]} heads: random order above that of gradients",
                found.by_chance_RKN[:, half] - found.by_gradient_KN[half], 0.0,
            ),
        ),
        controls=(
            Effect("less important half: joint cost above the sum", found.joint.difference, 0.0),
        ),
        figures=figures_of(found),
        settings=settings,
        draw=draw,
    )  # fmt: skip


def best_above_median(costs: PartCosts) -> np.ndarray:
    """Return gains_N: the cost of the best head minus the median cost, each half of the windows by the other's best."""
    cost_PN = costs.ablated_PN - costs.intact_N
    gains_N = np.zeros(cost_PN.shape[1])
    halves = np.arange(cost_PN.shape[1]) % 2
    for half in (0, 1):
        mine, other = halves == half, halves != half
        best = int(cost_PN[:, other].mean(1).argmax())
        middle = np.argsort(cost_PN[:, other].mean(1))[len(cost_PN) // 2]
        gains_N[mine] = cost_PN[best, mine] - cost_PN[middle, mine]
    return gains_N


def figures_of(found: Measured) -> dict[str, Any]:
    """Return everything that was measured."""
    return {
        "roles": found.roles.roles,
        "strength_LH": found.roles.strength_LH,
        "offset_LH": found.roles.offset_LH,
        "cost_LH": found.roles.cost_LH,
        "control_roles": found.control.roles,
        "control_strength_LH": found.control.strength_LH,
        "costs": {method: [cost for cost in each.costs] for method, each in found.costs.items()},
        "importance_LH": found.importance_LH,
        "removed": found.counts,
        "loss_intact": float(found.intact_N.mean()),
        "loss_by_gradient_K": found.by_gradient_KN.mean(1),
        "loss_by_chance_RK": found.by_chance_RKN.mean(2),
        "joint": {
            "together": found.joint.joint,
            "sum": found.joint.sum_of_single,
            "difference": found.joint.difference,
        },
    }


def draw(result: Result) -> Figure:
    """Return the picture of a result."""
    from quill.experiments.inside.heads_figure import draw_heads

    return draw_heads(result)


EXPERIMENT = Experiment(
    "heads",
    CLAIM,
    run,
    HeadsSettings(),
    HeadsSettings(n_layer=3, n_embd=64, steps=300, windows=24, role_windows=6, orders=3),
)
