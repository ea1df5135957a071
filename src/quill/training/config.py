"""How a run trains, as frozen data: everything but the model's shape that decides the result.

The names are nanoGPT's, and the defaults train the founding model on Tiny Shakespeare.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quill.model.config import ModelConfig
from quill.validation import check_fields, require


@dataclass(frozen=True)
class TrainConfig:
    """The recipe of a training run. An impossible value is a ConfigError that names it."""

    dataset: str = "shakespeare"
    """what to train on: shakespeare, tinystories, pydoc, or the path of your own text"""
    tokenizer: Literal["char", "byte"] = "char"
    """how text becomes tokens: char (its own characters) or byte (any text, any language)"""
    data_dir: str = "data"
    """folder for prepared token files"""
    out_dir: str = "out"
    """folder of this run: configuration, metrics, samples, checkpoints"""
    windows: Literal["random", "shuffled"] = "random"
    """which parts of the text a step reads: random ones, or shuffled, every part once before any part again"""
    batch_size: int = 64
    """windows of text in one forward and backward pass (a micro-batch)"""
    gradient_accumulation_steps: int = 1
    """micro-batches added up before each optimizer step"""
    max_iters: int = 5000
    """optimizer steps in the whole run"""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon for the matrices inside the blocks, steps by rows for n-gram tables, and AdamW for the rest"""
    learning_rate: float = 1e-3
    """highest learning rate, reached after the warm-up"""
    embedding_learning_rate: float | None = None
    """the same for embeddings; None means learning_rate"""
    muon_learning_rate: float = 0.02
    """the same for the matrices that Muon moves"""
    ngram_learning_rate: float = 0.03
    """the same for n-gram tables beside Muon: how far each number of a row moves that was read"""
    lr_schedule: Literal["cosine", "linear", "wsd"] = "cosine"
    """how learning rates fall: cosine, linear, or wsd (warm up, stay, and fall linearly at the end)"""
    cooldown: float = 0.4
    """wsd: the share of the run, at its end, in which learning rates fall"""
    min_lr: float | None = None
    """learning rate at the end; None means a tenth of learning_rate for cosine, and 0 for linear and wsd"""
    warmup_iters: int = 100
    """steps of linear warm-up"""
    lr_decay_iters: int | None = None
    """step at which learning rates reach their end; None means max_iters"""
    weight_decay: float = 0.1
    """decay of matrices (biases and norms never decay)"""
    beta1: float = 0.9
    """AdamW: memory of the gradient's mean"""
    beta2: float = 0.99
    """AdamW: memory of the gradient's square"""
    grad_clip: float = 1.0
    """longest gradient allowed; 0 never clips"""
    eval_interval: int = 250
    """steps between evaluations; each also writes a sample and a checkpoint"""
    eval_iters: int = 200
    """batches of one evaluation at most; a split that is smaller is scored whole"""
    log_interval: int = 10
    """steps between lines of metrics"""
    patience: int = 0
    """stop after this many evaluations without a better validation loss; 0 never stops early"""
    sample_tokens: int = 200
    """length of the sample written at each evaluation; 0 writes none"""
    seed: int = 1337
    """decides initial weights, batches and dropout"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps"""
    dtype: Literal["auto", "fastest", "float32", "bfloat16", "float16"] = "auto"
    """arithmetic: auto is bfloat16 (or float16) on CUDA and float32 elsewhere; fastest also takes bfloat16 on CPUs
    that multiply it"""
    compile: bool | Literal["auto"] = "auto"
    """torch.compile: True pays on long runs; auto compiles on CUDA where steps cannot be recorded as a graph (float16,
    gradient checkpointing, a text too large for the GPU). Failing costs one warning"""
    gradient_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, about a third more time"""
    tensorboard: bool = False
    """also write TensorBoard event files into out_dir"""

    def __post_init__(self) -> None:
        check_fields(self)
        at_least_one = (
            "batch_size", "gradient_accumulation_steps", "max_iters", "eval_interval", "eval_iters", "log_interval",
        )  # fmt: skip
        for name in at_least_one:
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("warmup_iters", "patience", "sample_tokens", "seed"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
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
        require(decay is None or decay >= 1, "lr_decay_iters", decay, "1 or more, or None for max_iters")
        for name in ("dataset", "data_dir", "out_dir", "device"):
            require(bool(getattr(self, name).strip()), name, getattr(self, name), "a name or a path, not empty")


def tokens_per_step(model_config: ModelConfig, config: TrainConfig) -> int:
    """Return how many tokens an optimizer step learns from."""
    return config.batch_size * config.gradient_accumulation_steps * model_config.block_size


def acceleration_of(config: TrainConfig) -> dict[str, bool]:
    """Return what `apply_acceleration` takes beside the model and its device."""
    return {
        "compiled": config.compile is True,
        "gradient_checkpointing": config.gradient_checkpointing,
        "sparse_gradients": config.optimizer == "muon",  # its n-gram tables are updated row by row
    }
