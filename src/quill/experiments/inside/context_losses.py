"""The loss over how many tokens may be seen, with the losses of tables of counts, on the same targets.

Shapes: N targets, W context lengths, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from quill.data.dataset import Dataset
from quill.experiments.inside.studied import Studied
from quill.experiments.training import train_model
from quill.lab.windows import token_losses
from quill.model.build import Model


def targets_of(studied: Studied, count: int, longest: int) -> np.ndarray:
    """Return positions_N of the validation split, evenly spaced, each with `longest` tokens before it."""
    return np.unique(np.linspace(longest, len(studied.val) - 1, count).astype(np.int64))


def losses_by_context(model: Model, val: np.ndarray, positions_N: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """Return losses_WN: -ln p of each target when only the last w tokens are given to the model, from position 0."""
    rows = []
    for length in lengths:
        windows_NT = np.asarray(val)[positions_N[:, None] + np.arange(-length, 1)].astype(np.int64)
        rows.append(token_losses(model, torch.from_numpy(windows_NT), batch_size=256)[:, -1])
    return np.stack(rows)


def table_losses(studied: Studied, positions_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (unigram_N, bigram_N): -ln p of each target by counts of the training split, each count raised by 1."""
    V = studied.model.config.vocab_size
    train, val = np.asarray(studied.train, np.int64), np.asarray(studied.val, np.int64)
    counts_V = np.bincount(train, minlength=V) + 1.0
    pairs_VV = np.bincount(train[:-1] * V + train[1:], minlength=V * V).reshape(V, V) + 1.0
    right_N, last_N = val[positions_N], val[positions_N - 1]
    unigram_N = -np.log(counts_V[right_N] / counts_V.sum())
    return unigram_N, -np.log(pairs_VV[last_N, right_N] / pairs_VV[last_N].sum(1))


def train_with_one_token(studied: Studied, dataset: Dataset, steps: int, seed: int) -> Model:
    """Return a model of the same shape that was trained with a context of one token, on as many tokens a step."""
    config = replace(studied.model.config, block_size=1)
    batch = studied.recipe.batch_size * (studied.windows_NT.size(1) - 1)
    recipe = replace(studied.recipe, batch_size=batch, max_iters=steps, warmup_iters=min(50, steps // 4), seed=seed)
    return train_model(config, recipe, dataset, studied.windows_NT[:, :2]).model
