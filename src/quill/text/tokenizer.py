"""Text to tokens and back: one token a character, or one token a byte.

The first step on the way text → tokens → model → training → generation → people. A character tokenizer learns its
vocabulary from a corpus and knows nothing else; a byte tokenizer has 256 tokens and takes any text in any language.
Both work by table lookup on whole arrays, and both serialise to a small JSON object that travels inside checkpoints.

Reference: Karpathy, "The Unreasonable Effectiveness of Recurrent Neural Networks" (2015), for characters;
Xue et al., "ByT5: Towards a token-free future with pre-trained byte-to-byte models" (arXiv 2105.13626), for bytes.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from quill.errors import TokenizerError

KINDS = ("char", "byte")

# Code points take four bytes a character: slices that stay in the processor's cache are three times as fast as a whole.
_SLICE = 1 << 16

# Undecodable bytes of a file live in a str as U+DC80 to U+DCFF (PEP 383); other lone surrogates stand for nothing.
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SURROGATE_OF_NO_BYTE = re.compile(r"[\ud800-\udc7f\udd00-\udfff]")


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


@dataclass(frozen=True)
class CharTokenizer:
    """One token a character; token number i is `characters[i]`."""

    characters: str

    def __post_init__(self) -> None:
        if not self.characters:
            raise TokenizerError("a character vocabulary needs at least one character: the text is empty")
        if len(self.characters) > 65_536:
            raise TokenizerError(
                f"the text has {len(self.characters):,} different characters, and 65,536 is the most a character "
                "vocabulary can hold: use --tokenizer=byte"
            )
        if len(set(self.characters)) != len(self.characters):
            raise TokenizerError("a character vocabulary has a character twice: it was damaged or not made by Quill")
        if stray := _SURROGATE.search(self.characters):
            raise TokenizerError(
                f"{stray[0]!r} is half a character or an invalid byte and cannot be in a character vocabulary: "
                "use --tokenizer=byte, which accepts any bytes"
            )

    @classmethod
    def from_text(cls, text: str) -> CharTokenizer:
        """Return the tokenizer whose vocabulary is the sorted set of the text's characters."""
        return cls("".join(sorted(set(text))))

    @property
    def kind(self) -> str:
        return "char"

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8 if self.vocab_size <= 256 else np.uint16)

    def encode(self, text: str) -> np.ndarray:
        tokens = np.empty(len(text), self.dtype)
        for start in range(0, len(text), _SLICE):
            piece = self._look_up(text[start : start + _SLICE])
            if piece.min() < 0:
                position, character = self.unknown_characters(text)[0]
                raise TokenizerError(
                    f"character {character!r} at position {position:,} is not among the {self.vocab_size} characters "
                    "of the training text: leave it out, or drop such characters with --unknown=skip"
                )
            tokens[start : start + _SLICE] = piece
        return tokens

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        array = _checked(tokens, self.vocab_size)
        slices = (array[start : start + _SLICE] for start in range(0, len(array), _SLICE))
        return "".join(self._codes.take(piece).tobytes().decode("utf-32-le") for piece in slices)

    def count_characters(self, tokens: np.ndarray) -> int:
        return len(tokens)

    def unknown_characters(self, text: str) -> list[tuple[int, str]]:
        return [(int(i), text[i]) for i in np.flatnonzero(self._look_up(text) < 0)]

    def drop_unknown(self, text: str) -> str:
        known = set(self.characters)
        return "".join(character for character in text if character in known)

    def stream_decoder(self) -> StreamDecoder:
        return _CharStream(self)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "char", "characters": self.characters}

    @cached_property
    def _codes(self) -> np.ndarray:
        return _code_points(self.characters)

    @cached_property
    def _token_of_code(self) -> np.ndarray:
        """Token of each code point, -1 where there is none; the last entry answers for all code points beyond."""
        table = np.full(int(self._codes.max()) + 2, -1, np.int32)
        table[self._codes] = np.arange(self.vocab_size)
        return table

    def _look_up(self, text: str) -> np.ndarray:
        return self._token_of_code.take(_code_points(text), mode="clip")


@dataclass(frozen=True)
class ByteTokenizer:
    """One token a byte of the text's UTF-8: any language, 256 tokens, nothing to learn.

    Text that holds invalid bytes as PEP 383 surrogates ("surrogateescape") is encoded to the very bytes it was read
    from. Decoding never fails on a sequence that is not UTF-8: it shows U+FFFD there.
    """

    @property
    def kind(self) -> str:
        return "byte"

    @property
    def vocab_size(self) -> int:
        return 256

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8)

    def encode(self, text: str) -> np.ndarray:
        try:
            raw = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"{text[error.start]!r} at position {error.start:,} is half a character (a lone surrogate) and has no "
                "bytes: leave it out, or drop such characters with --unknown=skip"
            ) from error
        return np.frombuffer(raw, np.uint8).copy()  # an array over bytes is read-only, which torch warns about

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        return _checked(tokens, 256).astype(np.uint8).tobytes().decode("utf-8", "replace")

    def count_characters(self, tokens: np.ndarray) -> int:
        # In UTF-8 each character has exactly one byte that does not look like 10xxxxxx.
        return int(np.count_nonzero((np.asarray(tokens) & 0xC0) != 0x80))

    def unknown_characters(self, text: str) -> list[tuple[int, str]]:
        return [(match.start(), match[0]) for match in _SURROGATE_OF_NO_BYTE.finditer(text)]

    def drop_unknown(self, text: str) -> str:
        return _SURROGATE_OF_NO_BYTE.sub("", text)

    def stream_decoder(self) -> StreamDecoder:
        return _ByteStream()

    def to_json(self) -> dict[str, Any]:
        return {"kind": "byte"}


class _CharStream:
    def __init__(self, tokenizer: CharTokenizer) -> None:
        self._tokenizer = tokenizer

    def feed(self, token: int) -> str:
        return self._tokenizer.decode([token])

    def flush(self) -> str:
        return ""


class _ByteStream:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        return self._decoder.decode(_checked([token], 256).astype(np.uint8).tobytes())

    def flush(self) -> str:
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


def build_tokenizer(kind: str, text: str) -> Tokenizer:
    """Return a tokenizer of this kind for this text; TokenizerError for a kind that does not exist."""
    check_kind(kind)
    return ByteTokenizer() if kind == "byte" else CharTokenizer.from_text(text)


def check_kind(kind: str) -> None:
    """Raise TokenizerError for a kind of tokenizer that does not exist."""
    if kind not in KINDS:
        raise TokenizerError(f"tokenizer={kind!r} does not exist: use {' or '.join(map(repr, KINDS))}")


def tokenizer_from_json(data: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer that `to_json` described; TokenizerError if this is no such description."""
    match data:
        case {"kind": "char", "characters": str(characters)}:
            return CharTokenizer(characters)
        case {"kind": "byte"}:
            return ByteTokenizer()
    raise TokenizerError(f"{json.dumps(data, default=repr)[:60]} describes no tokenizer: kind must be one of {KINDS}")


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


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
