"""The model that an experiment looks into: a trained run, or a small one that is trained first, with its control.

The control has the same weights in random order, tensor by tensor: as large as those of the trained model, and without
what training put into them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quill.data.dataset import prepare_dataset
from quill.experiments.experiment import Settings
from quill.experiments.training import open_text, train_model, validation_windows
from quill.generation.language_model import load
from quill.lab.ablation.ablating import editing_weights
from quill.lab.windows import windows_of
from quill.model.build import Model
from quill.model.config import GPTConfig, ModernConfig
from quill.tokenizers.base import Tokenizer
from quill.training.config import TrainConfig


@dataclass(frozen=True)
class StudySettings(Settings):
    """Which model is looked into, and the size of the one that is trained where no run is named."""

    run: str = ""
    """folder of a run; without one a small classic model is trained"""
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 96
    block_size: int = 64
    batch_size: int = 16
    steps: int = 1500
    learning_rate: float = 3e-3
    windows: int = 64
    """validation windows that losses are measured on"""


@dataclass(frozen=True)
class Studied:
    """A model with its tokenizer, and texts that it was and was not trained on."""

    model: Model
    tokenizer: Tokenizer
    train: np.ndarray
    """token ids of the training split"""
    val: np.ndarray
    windows_NT: Tensor
    """windows of the validation split, block_size + 1 tokens each"""
    recipe: TrainConfig
    """of a small model; also for controls that are trained"""

    def train_windows(self, count: int) -> Tensor:
        """Return windows of the training split, as long as those of the validation split."""
        return windows_of(self.train, self.windows_NT.size(1), count)

    def with_model(self, model: Model) -> Studied:
        """Return the same texts with another model."""
        return Studied(model, self.tokenizer, self.train, self.val, self.windows_NT, self.recipe)


def studied_model(settings: StudySettings, on_share: Callable[[str, float], None]) -> Studied:
    """Return the run's model, or a small one that is trained now; `on_share` gets the share of the training."""
    recipe = TrainConfig(
        batch_size=settings.batch_size, max_iters=settings.steps, learning_rate=settings.learning_rate,
        warmup_iters=min(100, settings.steps // 5), seed=settings.seed,
    )  # fmt: skip
    if settings.run:
        found = load(settings.run, device="cpu")
        dataset = prepare_dataset(settings.dataset, tokenizer=found.tokenizer, data_dir=settings.data_dir)
        windows_NT = validation_windows(dataset, found.config.block_size, settings.windows)
        return Studied(found.model.eval(), found.tokenizer, dataset.train, dataset.val, windows_NT, recipe)
    dataset = open_text(settings, settings.block_size)
    config = GPTConfig(
        vocab_size=dataset.tokenizer.vocab_size, block_size=settings.block_size, n_layer=settings.n_layer,
        n_head=settings.n_head, n_embd=settings.n_embd, dropout=0.0,
    )  # fmt: skip
    windows_NT = validation_windows(dataset, settings.block_size, settings.windows)
    done = 0

    def on_step(steps: int) -> None:
        nonlocal done
        done += steps
        on_share("training a small model", done / settings.steps)

    model = train_model(config, recipe, dataset, windows_NT, on_step=on_step).model
    return Studied(model.eval(), dataset.tokenizer, dataset.train, dataset.val, windows_NT, recipe)


@torch.no_grad()
def shuffled(model: Model, seed: int) -> Model:
    """Return a copy of a model whose weights are in random order, tensor by tensor."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for parameter in other.parameters():
        if parameter.dim() >= 2:
            order = torch.randperm(parameter.numel(), generator=generator)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return other


@contextmanager
def without_ngrams(model: Model) -> Iterator[bool]:
    """Silence a modern model's n-gram tables inside the block, because they communicate too; say whether it has any."""
    config = model.config
    if isinstance(config, ModernConfig) and config.ngram_sizes:
        with editing_weights(model, "ngrams"):
            yield True
    else:
        yield False
