"""What every tokenizer can do, and the check of token ids that they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from quill.errors import TokenizerError


class StreamDecoder(Protocol):
    """Turns tokens into text one at a time; joined pieces equal `decode` of all the tokens."""

    def feed(self, token: int) -> str:
        """Return the text that is complete now: possibly none, never part of a character."""
        ...

    def flush(self) -> str:
        """Return what is left of an unfinished character (as U+FFFD) and start afresh."""
        ...


class Tokenizer(Protocol):
    """What every tokenizer can do. Token arrays are one-dimensional, of `dtype`."""

    @property
    def kind(self) -> str:
        """Its name in `--tokenizer=`: "char" or "byte"."""
        ...

    @property
    def vocab_size(self) -> int:
        """How many tokens there are; they are numbered from 0."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """The smallest unsigned integer that holds every token: uint8 or uint16."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """Return the tokens of a text; TokenizerError names the first character that has none."""
        ...

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Return the text of tokens; TokenizerError for a number that is no token."""
        ...

    def count_characters(self, tokens: np.ndarray) -> int:
        """Return how many characters the tokens stand for."""
        ...

    def unknown_characters(self, text: str) -> list[tuple[int, str]]:
        """Return (position, character) for each character that `encode` would refuse."""
        ...

    def drop_unknown(self, text: str) -> str:
        """Return the text without the characters that `encode` would refuse."""
        ...

    def stream_decoder(self) -> StreamDecoder:
        """Return a decoder that takes one token at a time."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object from which `tokenizer_from_json` builds an equal tokenizer."""
        ...


def _checked(tokens: Sequence[int] | np.ndarray, vocab_size: int) -> np.ndarray:
    """Return tokens as an integer array with every value inside the vocabulary, or raise TokenizerError."""
    array = np.asarray(tokens)
    if not array.size:
        return np.zeros(0, np.uint8)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TokenizerError(
            f"tokens must be a one-dimensional sequence of whole numbers, not {array.dtype} of shape {array.shape}"
        )
    if array.min() < 0 or array.max() >= vocab_size:
        position = int(np.flatnonzero((array < 0) | (array >= vocab_size))[0])
        raise TokenizerError(
            f"{array[position]} at position {position:,} is no token: the vocabulary has 0 to {vocab_size - 1}"
        )
    return array
