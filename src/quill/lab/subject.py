"""What the instruments look at: a model with its tokenizer, and a text that fits the model.

Shapes: B batch, T time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from quill.errors import ConfigError, TokenizerError
from quill.model.build import Model
from quill.model.config import ModelConfig
from quill.model.modes import evaluation_mode
from quill.tokenizers.base import Tokenizer
from quill.validation import require, show

Text = str | Sequence[int] | np.ndarray | Tensor
"""A text, token ids of shape (T,), or a batch of token ids of shape (B, T)."""


class Subject(Protocol):
    """A model and its tokenizer. What `quill.load` returns is one."""

    @property
    def model(self) -> Model:
        """The PyTorch model."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with."""
        ...


@dataclass(frozen=True)
class ModelAndTokenizer:
    """A subject that is made of its two parts."""

    model: Model
    tokenizer: Tokenizer


def tokens_of(subject: Subject, text: Text) -> Tensor:
    """Return the token ids of a text, on the model's device: shape (T,), or (B, T) for a batch of ids.

    ConfigError for an empty or too long text and for ids outside the vocabulary; TokenizerError for a character that
    the vocabulary lacks.
    """
    config, device = subject.model.config, subject.model.token_embedding.weight.device
    if isinstance(text, str):
        if text == "":
            raise ConfigError("the text is empty: give at least one character to look at")
        if unknown := subject.tokenizer.unknown_characters(text):
            position, character = unknown[0]
            raise TokenizerError(
                f"character {character!r} at position {position:,} is not in the model's vocabulary: leave it out"
            )
        text = subject.tokenizer.encode(text)
    try:
        array = np.asarray(text.cpu() if isinstance(text, Tensor) else text)
    except ValueError:  # rows of different lengths
        raise ConfigError("the texts of a batch differ in length: give token ids of shape (B, T)") from None
    if array.dtype.kind not in "iu" or array.ndim not in (1, 2) or array.size == 0:
        raise ConfigError(
            f"tokens of shape {array.shape} and type {array.dtype} cannot be used: give text, or whole numbers of "
            "shape (T,) or (B, T)"
        )
    if array.shape[-1] > config.block_size:
        raise ConfigError(
            f"the text has {array.shape[-1]:,} tokens, and the model's context is block_size={config.block_size}: "
            "give a shorter text"
        )
    if array.min() < 0 or array.max() >= config.vocab_size:
        raise ConfigError(f"tokens hold ids outside the vocabulary: they must be from 0 to {config.vocab_size - 1}")
    return torch.from_numpy(array.astype(np.int64)).to(device)


def check_layer(config: ModelConfig, layer: int) -> int:
    """Return the index of a layer; a ConfigError says which there are."""
    good = type(layer) is int and 0 <= layer < config.n_layer
    require(good, "layer", layer, f"from 0 to {config.n_layer - 1}, the layers of the model")
    return layer


def check_head(config: ModelConfig, layer: int, head: int) -> tuple[int, int]:
    """Return (layer, head); a ConfigError says which there are."""
    check_layer(config, layer)
    good = type(head) is int and 0 <= head < config.n_head
    require(good, "head", head, f"from 0 to {config.n_head - 1}, the heads of a layer")
    return layer, head


def check_position(position: int, length: int) -> int:
    """Return a position from 0 to length - 1; a negative one counts from the end, as in a list."""
    good = type(position) is int and -length <= position < length
    require(good, "position", position, f"from 0 to {length - 1}: the text has {length} tokens")
    return position % length


def check_token(subject: Subject, token: int | str) -> int:
    """Return the id of a token, given by its id or as the text of a single token."""
    if isinstance(token, str):
        ids = subject.tokenizer.encode(token).tolist()
        require(len(ids) == 1, "token", token, "the text of a single token, or its id")
        return int(ids[0])
    size = subject.model.config.vocab_size
    require(type(token) is int and 0 <= token < size, "token", token, f"from 0 to {size - 1}, or a character")
    return token


def labels_of(subject: Subject, tokens_T: Tensor | np.ndarray | Sequence[int]) -> list[str]:
    """Return the text of each token by itself."""
    return [subject.tokenizer.decode([int(token)]) for token in tokens_T]


@contextmanager
def inference(model: Model) -> Iterator[None]:
    """Compute without gradients and without dropout inside the block."""
    with torch.no_grad(), evaluation_mode(model):
        yield


def attention_of(model: Model, layer: int) -> torch.nn.Module:
    """Return the attention of a layer; ConfigError for a block of another kind that has none."""
    attention = getattr(model.blocks[layer], "attention", None)
    if attention is None or not hasattr(attention, "attend"):
        raise ConfigError(f"block {layer} is {show(type(model.blocks[layer]).__name__)}, which has no attention heads")
    return attention
