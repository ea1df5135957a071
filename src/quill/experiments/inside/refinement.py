"""Depth is repeated refinement: each block brings the prediction nearer to the final one.

nostalgebraist 2020 (logit lens), Belrose et al. 2023 (tuned lens), Jastrzębski et al. 2018 (updates along the
gradient), Veit et al. 2016, "Residual Networks Behave Like Ensembles" (layers dropped and exchanged).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quill.experiments.experiment import Experiment, OnProgress, Result
from quill.experiments.inside.gradients import swapping_blocks, update_cosines
from quill.experiments.inside.studied import Studied, StudySettings, shuffled, studied_model
from quill.experiments.verdict import effect
from quill.lab.ablation.cost import losses_without
from quill.lab.ablation.targets import WholeBlock
from quill.lab.logit_lens import Translator, lens
from quill.lab.statistics import Interval, bootstrap_interval, paired_difference
from quill.lab.tuned_lens import train_tuned_lens
from quill.lab.windows import losses_per_window

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = (
    "Depth is repeated refinement: every block brings the prediction nearer to the final one and lowers its loss, by "
    "updates along the direction that lowers the loss."
)
MARGIN = 0.005
"""Nats by which each block must lower the loss and the divergence."""
COSINE = 0.01
"""Least mean cosine of updates with the direction of lower loss."""


@dataclass(frozen=True)
class RefinementSettings(StudySettings):
    """Sizes of the refinement experiment."""

    lens_steps: int = 300
    """training steps of the tuned lens"""
    lens_windows: int = 256
    """windows of the training split that it is trained on"""


@dataclass(frozen=True)
class Layers:
    """What a lens reads after the embedding and after each block, for each window."""

    kl_RN: np.ndarray
    loss_RN: np.ndarray
    rank_RN: np.ndarray


@dataclass(frozen=True)
class Measured:
    """Everything that the experiment measures."""

    logit: Layers
    tuned: Layers
    control: Layers
    """of shuffled weights, by the logit lens"""
    cosines_LN: np.ndarray
    control_cosines_LN: np.ndarray
    dropped: list[Interval]
    """loss added without each block"""
    swapped: list[Interval]
    """loss added when a block and the next one are exchanged"""


def run(settings: RefinementSettings, on_progress: OnProgress) -> Result:
    """Read every layer of a trained model and of the same weights in random order."""
    studied = studied_model(settings, lambda what, share: on_progress(what, 0.5 * share))
    return result_of(settings, measure(settings, studied, on_progress))


def measure(settings: RefinementSettings, studied: Studied, on_progress: OnProgress) -> Measured:
    """Return what each layer predicts, the direction of its updates, and the cost of dropping and swapping layers."""
    model, windows_NT = studied.model, studied.windows_NT
    inputs_NT = studied.train_windows(settings.lens_windows)[:, :-1]
    tuned = train_tuned_lens(
        studied, inputs_NT, steps=settings.lens_steps, seed=settings.seed,
        on_progress=lambda share: on_progress("training the tuned lens", 0.5 + 0.3 * share),
    )  # fmt: skip
    on_progress("reading every layer", 0.8)
    control = studied.with_model(shuffled(model, settings.seed))
    intact_N, layers = losses_per_window(model, windows_NT), model.config.n_layer
    dropped_LN = [losses_without(model, [WholeBlock(layer)], windows_NT) for layer in range(layers)]
    swapped_LN = []
    for layer in range(layers - 1):
        with swapping_blocks(model, layer):
            swapped_LN.append(losses_per_window(model, windows_NT))
    return Measured(
        read_layers(studied),
        read_layers(studied, tuned),
        read_layers(control),
        update_cosines(model, windows_NT),
        update_cosines(control.model, windows_NT),
        [paired_difference(each_N, intact_N, seed=settings.seed) for each_N in dropped_LN],
        [paired_difference(each_N, intact_N, seed=settings.seed) for each_N in swapped_LN],
    )


def read_layers(studied: Studied, tuned: Translator | None = None) -> Layers:
    """Return the means over positions of what a lens reads, for each window."""
    block_size = studied.model.config.block_size
    found = [lens(studied, window_T[:block_size], tuned=tuned) for window_T in studied.windows_NT]
    return Layers(
        np.stack([each.kl_RT.mean(1) for each in found], 1),
        np.stack([each.loss_RT.mean(1) for each in found], 1),
        np.stack([each.rank_RT.mean(1) for each in found], 1),
    )


def result_of(settings: RefinementSettings, found: Measured) -> Result:
    """Return the result of these measurements."""
    tuned, control = found.tuned, found.control
    blocks = range(len(tuned.loss_RN) - 1)
    places = ", ".join(f"{interval.mean:+.3f}" for interval in found.dropped)
    swaps = ", ".join(f"{interval.mean:+.3f}" for interval in found.swapped)
    nearer = [
        effect(f"block {b} brings the tuned lens nearer to the end", tuned.kl_RN[b] - tuned.kl_RN[b + 1], MARGIN)
        for b in blocks
    ]
    better = [
        effect(f"block {b} lowers the tuned lens's loss", tuned.loss_RN[b] - tuned.loss_RN[b + 1], MARGIN)
        for b in blocks
    ]
    return Result(
        name="refinement",
        title="Depth is refinement: what each layer predicts",
        claim=CLAIM,
        measure=(
            f"After each block the residual stream is read by the logit lens and by a tuned lens, on"
            f" {tuned.loss_RN.shape[1]} validation windows. Updates are what a block adds; their cosine is taken with"
            f" -∂L/∂x of its input. Without a block the loss rises by {places} nats; with a block and the next"
            f" exchanged by {swaps or 'nothing, there is one block'}."
        ),
        control=(
            "The same weights in random order: the loss goes from"
            f" {control.loss_RN[0].mean():.2f} to {control.loss_RN[-1].mean():.2f} over the layers, where the trained"
            f" model's goes from {found.logit.loss_RN[0].mean():.2f} to {found.logit.loss_RN[-1].mean():.2f}; the mean"
            f" cosine is {found.control_cosines_LN.mean():+.3f}, and {found.cosines_LN.mean():+.3f} when trained."
        ),
        opposite="A block would leave the prediction as far from the final one, or its update would raise the loss.",
        effects=(
            *nearer,
            *better,
            effect("mean cosine of updates with -∂L/∂x", found.cosines_LN.mean(0), COSINE, "cosine"),
        ),
        controls=(
            effect("shuffled weights: loss before the first block above the last",
                   control.loss_RN[0] - control.loss_RN[-1], 0.0),
            effect("shuffled weights: mean cosine", found.control_cosines_LN.mean(0), COSINE, "cosine"),
        ),
        figures={
            name: {"kl": intervals(each.kl_RN), "loss": intervals(each.loss_RN), "rank": intervals(each.rank_RN)}
            for name, each in (("logit lens", found.logit), ("tuned lens", tuned), ("shuffled weights", control))
        }
        | {
            "cosines": intervals(found.cosines_LN),
            "control_cosines": intervals(found.control_cosines_LN),
            "dropped": found.dropped,
            "swapped": found.swapped,
        },
        settings=settings,
        draw=draw,
    )  # fmt: skip


def intervals(values_RN: np.ndarray) -> list[Interval]:
    """Return the mean of each row with its interval."""
    return [bootstrap_interval(values_N) for values_N in values_RN]


def draw(result: Result) -> Figure:
    """Return the picture of a result."""
    from quill.experiments.inside.refinement_figure import draw_refinement

    return draw_refinement(result)


EXPERIMENT = Experiment(
    "refinement",
    CLAIM,
    run,
    RefinementSettings(),
    RefinementSettings(n_layer=3, n_embd=64, steps=300, windows=24, lens_steps=60, lens_windows=64),
)
