"""Forward passes over given tokens: logits of a sequence, and the loss over a whole text. Needs PyTorch.

Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from os import PathLike, fspath
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from quill.data.corpus import find_corpus
from quill.engines.request import whole_number
from quill.errors import ConfigError, TokenizerError
from quill.evaluation.split_loss import Evaluation, evaluate_split
from quill.model.build import Model
from quill.model.modes import evaluation_mode
from quill.tokenizers.base import Tokenizer
from quill.validation import show

MOST_NAMED = 10  # characters in a message


def logits_of(model: Model, tokens: Sequence[int] | np.ndarray | Tensor) -> Tensor:
    """Return logits_TV, float32, of one sequence of token ids of shape (T,); ConfigError for anything else."""
    if isinstance(tokens, np.ndarray):
        tokens = tokens.tolist()  # memory-mapped tokens are read-only, which PyTorch warns about
    vocab_size, device = model.config.vocab_size, model.token_embedding.weight.device
    try:
        if isinstance(tokens, list | tuple) and any(isinstance(token, bool | np.bool_) for token in tokens):
            raise TypeError("True and False are not token ids")
        tokens_T = torch.as_tensor(tokens, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"tokens are not whole numbers ({error}): give text or token ids") from None
    whole = not (tokens_T.is_floating_point() or tokens_T.is_complex() or tokens_T.dtype == torch.bool)
    if tokens_T.dim() != 1 or len(tokens_T) == 0 or not whole:
        shape = tuple(tokens_T.shape)
        raise ConfigError(f"tokens of shape {shape} and type {tokens_T.dtype}: give at least one token id, shape (T,)")
    tokens_T = tokens_T.long()
    if tokens_T.min() < 0 or tokens_T.max() >= vocab_size:
        raise ConfigError(f"tokens hold ids outside the vocabulary: they must be from 0 to {vocab_size - 1}")
    with torch.no_grad(), evaluation_mode(model):
        return model(tokens_T[None])[0].float()


def evaluate_text(
    model: Model,
    tokenizer: Tokenizer,
    path: str | PathLike[str] | None,
    text: str | None,
    batch_size: int,
    logits: Callable[[Sequence[int]], np.ndarray] | None,
) -> Evaluation:
    """Return the loss over a whole text, each token but the first scored once.

    `path` is as for `find_corpus`; exactly one of `path` and `text` is given. `logits`, if given, returns logits_TV of
    token ids instead of the model, for weights that are not in PyTorch, such as int8.
    """
    batch_size = whole_number("batch_size", batch_size, least=1)
    if (path is None) == (text is None):
        raise ConfigError("evaluate takes a path or text=…, and exactly one of them")
    if text is None:
        if not isinstance(path, str | PathLike) or not isinstance(fspath(path), str):
            raise ConfigError(f"path={show(path)} cannot be used: path must be text or a Path; give a text as text=…")
        text = find_corpus(path if isinstance(path, str) else Path(path), tokenizer=tokenizer.kind).text
    elif not isinstance(text, str):
        raise ConfigError(f"text={show(text)} cannot be used: text must be a str")
    _require_known(tokenizer, text)
    tokens = tokenizer.encode(text, compact=True)

    def forward(tokens_BT: Tensor) -> Tensor:
        assert logits is not None
        return torch.stack([torch.from_numpy(logits(tokens_T)) for tokens_T in tokens_BT.tolist()])

    own = None if logits is None else forward
    return evaluate_split(model, tokens, tokenizer, batch_size=batch_size, forward=own)


def _require_known(tokenizer: Tokenizer, text: str) -> None:
    """Raise TokenizerError if the vocabulary lacks characters of a text; it names them."""
    unknown = Counter(character for _, character in tokenizer.unknown_characters(text))
    if unknown:
        named = ", ".join(f"{c!r} ({count:,} times)" for c, count in unknown.most_common(MOST_NAMED))
        more = f" and {len(unknown) - MOST_NAMED} more" if len(unknown) > MOST_NAMED else ""
        raise TokenizerError(f"the text has characters that the model's vocabulary lacks: {named}{more}")
