"""TrainConfig: the recipe of a training run, everything besides the model's shape that decides the result.

Names are nanoGPT's. The defaults train the full-size model on Tiny Shakespeare.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quill.model.config import ModelConfig
from quill.validation import check_fields, require

LARGEST_COUNT = 10**9  # of steps, windows and the like: more is a typing error


@dataclass(frozen=True)
class TrainConfig:
    """The recipe of a training run. An impossible value is a ConfigError that names it."""

    data_order: Literal["random", "shuffled"] = "random"
    """order of the training windows: random, or shuffled (every window once in each epoch)"""
    batch_size: int = 64
    """windows of text in one forward and backward pass (a micro-batch)"""
    gradient_accumulation_steps: int = 1
    """micro-batches added up before each optimizer step"""
    max_iters: int = 5000
    """optimizer steps in the whole run"""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon for the matrices of the blocks, with row-wise Adam for n-gram tables and AdamW for the rest"""
    learning_rate: float = 1e-3
    """highest learning rate, reached after the warm-up"""
    embedding_learning_rate: float | None = None
    """learning rate of embeddings; None means learning_rate"""
    muon_learning_rate: float = 0.02
    """learning rate of the matrices that Muon updates"""
    ngram_learning_rate: float = 0.03
    """learning rate of the n-gram rows used in a step, with Muon"""
    lr_schedule: Literal["cosine", "linear", "wsd"] = "cosine"
    """how learning rates fall: cosine, linear, or wsd (warm-up, constant, then linear at the end)"""
    cooldown: float = 0.4
    """with wsd: share of the run, at its end, in which learning rates fall"""
    min_lr: float | None = None
    """learning rate at the end; None means a tenth of learning_rate for cosine, and 0 for linear and wsd"""
    warmup_iters: int = 100
    """steps of linear warm-up"""
    lr_decay_iters: int | None = None
    """step at which learning rates reach their final value; None means max_iters"""
    weight_decay: float = 0.1
    """weight decay of matrices; none for biases and norms"""
    beta1: float = 0.9
    """AdamW: decay rate of the running mean of gradients"""
    beta2: float = 0.99
    """AdamW: decay rate of the running mean of squared gradients"""
    grad_clip: float = 1.0
    """maximum gradient norm; 0 means no clipping"""
    eval_interval: int = 250
    """steps between evaluations; each also writes a sample and a checkpoint"""
    eval_iters: int = 200
    """largest number of batches in an evaluation; a smaller split is scored whole"""
    patience: int = 0
    """stop after this many evaluations without a lower validation loss; 0 never stops early"""
    seed: int = 1337
    """determines initial weights, batches and dropout"""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("batch_size", "gradient_accumulation_steps", "max_iters", "eval_interval", "eval_iters"):
            value = getattr(self, name)
            require(1 <= value <= LARGEST_COUNT, name, value, f"1 or more, and at most {LARGEST_COUNT}")
        for name in ("warmup_iters", "patience"):
            value = getattr(self, name)
            require(0 <= value <= LARGEST_COUNT, name, value, f"0 or more, and at most {LARGEST_COUNT}")
        require(0 <= self.seed < 2**63, "seed", self.seed, "from 0 to 2**63 - 1")
        for name in (
            "learning_rate", "embedding_learning_rate", "muon_learning_rate", "ngram_learning_rate", "min_lr",
            "weight_decay", "grad_clip",
        ):  # fmt: skip
            value = getattr(self, name)
            require(value is None or 0 <= value < float("inf"), name, value, "a finite number, 0 or more")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "at least 0 and less than 1")
        require(0 < self.cooldown <= 1, "cooldown", self.cooldown, "more than 0 and at most 1")
        floor, decay = self.min_lr, self.lr_decay_iters
        require(
            floor is None or floor <= self.learning_rate, "min_lr", floor, f"at most learning_rate={self.learning_rate}"
        )
        require(
            decay is None or 1 <= decay <= LARGEST_COUNT, "lr_decay_iters", decay,
            f"from 1 to {LARGEST_COUNT}, or None for max_iters",
        )  # fmt: skip


FREE_ON_RESUME = frozenset(
    {
        "max_iters", "patience", "eval_interval", "eval_iters", "learning_rate", "min_lr", "warmup_iters",
        "lr_decay_iters", "weight_decay", "grad_clip",
    }
)  # fmt: skip
"""Fields of the recipe that may change when a run is resumed: its length, its rates, and how it is observed."""


def tokens_per_step(model_config: ModelConfig, config: TrainConfig) -> int:
    """Return how many tokens one optimizer step trains on."""
    return config.batch_size * config.gradient_accumulation_steps * model_config.block_size


def has_ngram_updates(config: TrainConfig) -> bool:
    """Return whether n-gram tables are updated row by row, so that their gradients may be sparse."""
    return config.optimizer == "muon"
