"""Train small models through the project's training loop, in a temporary folder, and measure them on the same windows.

An edit changes a fresh model from outside, before its optimizer is made. The caller keeps the model object.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from quill.data.dataset import Dataset, prepare_dataset
from quill.errors import CorpusError, TrainingError
from quill.experiments.experiment import OnProgress, Settings, ignore
from quill.lab.windows import losses_per_window, windows_of
from quill.model.build import Model
from quill.model.config import ModelConfig
from quill.training.config import TrainConfig, tokens_per_step
from quill.training.context import resolve_context
from quill.training.events import Event
from quill.training.loop import train

Edit = Callable[[Model], object]

FEWEST = 8
"""Windows that a split must have, so that an interval over windows means something."""


def open_text(settings: Settings, block_size: int, on_progress: OnProgress = ignore) -> Dataset:
    """Return the text of an experiment as tokens; CorpusError if it has too few windows of `block_size` tokens."""
    dataset = prepare_dataset(settings.dataset, data_dir=settings.data_dir, on_progress=on_progress)
    title, needed = dataset.title or dataset.name, FEWEST * (block_size + 1)
    if len(dataset.val) < needed:
        raise CorpusError(
            f"{title} is too short for this experiment: its last tenth has {len(dataset.val):,} tokens and "
            f"{FEWEST} windows take {needed:,}, so give a text of at least {10 * needed:,} characters"
        )
    return dataset


def require_training_windows(dataset: Dataset, tokens: int, block_size: int, share: float) -> None:
    """Raise CorpusError unless the part of the training text that an experiment uses has enough windows."""
    needed = FEWEST * (block_size + 1)
    if tokens < needed:
        raise CorpusError(
            f"{dataset.title or dataset.name} is too short for this experiment: it trains on {share:.2g} of the text, "
            f"{tokens:,} tokens, and needs {needed:,}, so give a text of at least {round(needed / share / 0.89):,} "
            "characters"
        )


def validation_windows(dataset: Dataset, block_size: int, count: int) -> Tensor:
    """Return windows_NT of the validation split, with block_size + 1 tokens: all but the first are targets."""
    return windows_of(dataset.val, block_size + 1, count)


def shortened(dataset: Dataset, tokens: int) -> Dataset:
    """Return the dataset with only the first `tokens` tokens to train on, and the same validation split."""
    return replace(dataset, train=dataset.train[:tokens])


@dataclass(frozen=True)
class Trained:
    """A model that was trained, with its losses in evaluation mode on each window."""

    model: Model
    losses_N: np.ndarray
    """on the validation windows at the end, nats per token; infinite if training diverged"""
    diverged: bool
    tokens: int
    """tokens trained on"""
    seconds: float
    curve: Mapping[int, np.ndarray] = field(default_factory=dict)
    """step: losses on the validation windows, at each evaluation"""

    @property
    def loss(self) -> float:
        """The mean loss on the validation windows at the end."""
        return float(self.losses_N.mean())


def train_model(
    config: ModelConfig,
    recipe: TrainConfig,
    dataset: Dataset,
    windows_NT: Tensor,
    *,
    edit: Edit | None = None,
    with_curve: bool = False,
    on_step: Callable[[int], object] = lambda steps: None,
) -> Trained:
    """Train one model on the CPU with a recipe, and return it with its loss on each of the windows.

    `edit` changes the fresh model in place. `on_step` receives the number of new steps, many times. A run whose loss
    is not finite ends early with `diverged`. The curve has a point every `recipe.eval_interval` steps. The global RNG
    state does not change.
    """
    models: list[Model] = []
    curve: dict[int, np.ndarray] = {}
    last = 0

    def initialize(model: Model) -> None:
        models.append(model)
        if edit is not None:
            edit(model)

    def report(event: Event) -> None:
        nonlocal last
        if event["event"] == "step":
            on_step(event["step"] - last)
            last = event["step"]
        elif event["event"] == "evaluation" and with_curve:
            curve[event["step"]] = losses_per_window(models[0], windows_NT)

    # The loop's own evaluation is not used, so it is kept short.
    recipe = replace(
        recipe, eval_iters=1, eval_interval=recipe.eval_interval if with_curve else max(1, recipe.max_iters)
    )
    started, diverged = time.perf_counter(), False
    with tempfile.TemporaryDirectory(prefix="quill-experiment-") as folder, torch.random.fork_rng(devices=[]):
        context = resolve_context(Path(folder) / "run", device="cpu", dtype="float32", log_interval=10)
        try:
            result = train(config, recipe, context, dataset, report=report, initialize=initialize)
        except TrainingError:
            diverged = True
        else:
            if result.reason == "interrupted":
                raise KeyboardInterrupt
    on_step(recipe.max_iters - last)
    model, seconds = models[0], time.perf_counter() - started
    losses_N = np.full(len(windows_NT), np.inf) if diverged else losses_per_window(model, windows_NT)
    diverged = diverged or not np.isfinite(losses_N).all()
    return Trained(model, losses_N, diverged, recipe.max_iters * tokens_per_step(config, recipe), seconds, curve)
