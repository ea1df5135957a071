"""The interface of a tokenizer, and the checks that all tokenizers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from quill.errors import TokenizerError


class StreamDecoder(Protocol):
    """Decodes one token at a time; the pieces joined equal `decode` of all the tokens."""

    def feed(self, token: int) -> str:
        """Return the text that this token completes: whole characters, possibly none."""
        ...

    def flush(self) -> str:
        """Return U+FFFD for an unfinished character, else nothing, and reset the decoder."""
        ...


class Tokenizer(Protocol):
    """Converts text to token ids and back. Token arrays are one-dimensional."""

    @property
    def kind(self) -> str:
        """Return the name that selects this tokenizer: "char" or "byte"."""
        ...

    @property
    def vocab_size(self) -> int:
        """Return the number of tokens; ids run from 0 to vocab_size - 1."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Return the smallest unsigned dtype that holds every id, uint8 or uint16: that of token files."""
        ...

    def encode(self, text: str, *, compact: bool = False) -> np.ndarray:
        """Return the tokens of a text: int64, which PyTorch takes as an index, or with `compact` of `dtype`.

        TokenizerError names the first character that has no token.
        """
        ...

    def encode_utf8(self, raw: bytes) -> np.ndarray:
        """Return the tokens of a text in UTF-8, of `dtype`; bytes that are not UTF-8 are surrogates (PEP 383).

        Faster than `encode` where most characters are ASCII. The array may be read-only. Errors as `encode`.
        """
        ...

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Return the text of tokens; TokenizerError for an id outside the vocabulary."""
        ...

    def count_characters(self, tokens: np.ndarray) -> int:
        """Return the number of characters that the tokens decode to."""
        ...

    def unknown_characters(self, text: str) -> list[tuple[int, str]]:
        """Return (position, character) of each character that `encode` would refuse."""
        ...

    def drop_unknown(self, text: str) -> str:
        """Return the text without the characters that `encode` would refuse."""
        ...

    def extend(self, text: str) -> Tokenizer:
        """Return a tokenizer that also encodes this text: new ids follow the old ones, which stay as they are."""
        ...

    def stream_decoder(self) -> StreamDecoder:
        """Return a decoder that takes one token at a time."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object from which `tokenizer_from_json` builds an equal tokenizer."""
        ...


def check_text(text: object) -> None:
    """Raise TokenizerError unless this is text."""
    if not isinstance(text, str):
        raise TokenizerError(f"only text can be encoded, not {type(text).__name__}")


def check_tokens(tokens: Sequence[int] | np.ndarray, vocab_size: int) -> np.ndarray:
    """Return tokens as an integer array; TokenizerError unless each is from 0 to vocab_size - 1."""
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
            f"{array[position]} at position {position:,} is not a token: the vocabulary has 0 to {vocab_size - 1}"
        )
    return array
