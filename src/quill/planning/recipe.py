"""The recipe for a run of a given time: minutes, length of the text and speed of the machine in, settings out.

Plain arithmetic. Speed is measured in steps of the PROBE, the smallest model of the ladder. The rules were tuned on
slices of training splits only, as docs/log.md describes:

- The more steps the machine can take, the deeper and wider the model, and the longer its context. Short runs rely on
  n-gram tables: for them, covering much of the text is worth more than depth and width.
- With few epochs, tables for n-grams of up to six characters give the lowest loss. `ngram_dropout` is set so that an
  entry trains about once per text position, however many epochs: rare n-grams would be memorised otherwise. With more
  epochs (fewer for larger models) only bigrams have a table, and all weights decay.
- A step has 2,048 tokens: fewer leave processors idle, more leave too few steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

TOKENS_PER_STEP = 2048
HEAD_SIZE = 32


@dataclass(frozen=True)
class Size:
    """A model size for runs in which the machine can take up to `probe_steps` steps of the smallest size.

    Up to `few_epochs` epochs, tables of long n-grams give a lower loss than weight decay.
    """

    probe_steps: float
    n_layer: int
    n_embd: int
    block_size: int
    few_epochs: float

    def settings(self) -> dict[str, Any]:
        """Return the settings of this size."""
        return {
            "n_layer": self.n_layer,
            "n_head": self.n_embd // HEAD_SIZE,
            "n_embd": self.n_embd,
            "block_size": self.block_size,
            "batch_size": TOKENS_PER_STEP // self.block_size,
        }


LADDER = (
    Size(800, n_layer=1, n_embd=96, block_size=128, few_epochs=8),
    Size(1_500, n_layer=2, n_embd=128, block_size=128, few_epochs=8),
    Size(18_000, n_layer=3, n_embd=128, block_size=512, few_epochs=8),
    Size(200_000, n_layer=4, n_embd=192, block_size=512, few_epochs=2),
    Size(math.inf, n_layer=6, n_embd=256, block_size=512, few_epochs=2),
)
PROBE = LADDER[0]
RECIPE: dict[str, Any] = {
    "architecture": "modern", "optimizer": "muon", "learning_rate": 0.01, "embedding_learning_rate": 0.01,
    "muon_learning_rate": 0.02, "beta2": 0.95, "grad_clip": 0.0, "lr_schedule": "linear",
    "warmup_iters": 0, "dropout": 0.0, "dtype": "fastest", "eval_iters": 16, "data_order": "shuffled",
}  # fmt: skip


def choose_size(probe_steps: float, train_tokens: int, val_tokens: int | None = None) -> Size:
    """Return the size for a machine that can take this many steps of the probe.

    A context is at most an eighth of the training split, and shorter than the validation split.
    """
    size = next(each for each in LADDER if probe_steps <= each.probe_steps)
    longest = max(8.0, train_tokens / 8)
    if val_tokens is not None:
        longest = max(1.0, min(longest, val_tokens - 1))
    return replace(size, block_size=min(size.block_size, 2 ** int(math.log2(longest))))


def choose_recipe(probe_steps: float, train_tokens: int, val_tokens: int | None = None) -> dict[str, Any]:
    """Return the settings of model and training, without the number of steps."""
    size = choose_size(probe_steps, train_tokens, val_tokens)
    return RECIPE | size.settings() | regularization(size, epochs_of(size, probe_steps, train_tokens))


def regularization(size: Size, epochs: float) -> dict[str, float]:
    """Return n-gram tables and weight decay for a run of this many epochs (below 1: a part of the text)."""
    if epochs <= size.few_epochs:
        return {"ngram": 6, "ngram_dropout": round(max(0.1, 1 - 0.9 / epochs), 2), "weight_decay": 0.0}
    decay = round(min(0.6, 0.1 * math.log2(1 + epochs)), 2)
    return {"ngram": 2, "ngram_dropout": 0.6, "weight_decay": decay}


def epochs_of(size: Size, probe_steps: float, train_tokens: int) -> float:
    """Return about how many epochs such a run has; a step's time is proportional to the matrices of the blocks."""
    cost = (size.n_layer * size.n_embd**2) / (PROBE.n_layer * PROBE.n_embd**2)
    return probe_steps / cost * TOKENS_PER_STEP / train_tokens
