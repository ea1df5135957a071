"""The character tokenizer: one token for each character of the training text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from quill.errors import TokenizerError
from quill.tokenizers.base import StreamDecoder, check_text, check_tokens

# Slices limit memory: a look-up takes eight bytes for each character.
# Signals are handled between two slices.
_SLICE = 1 << 18

_CODE_POINTS = 0x110000
_ASCII, _CONTINUATION = bytes(range(0x80)), bytes(range(0x80, 0xC0))  # bytes of UTF-8

# Bytes of a file that are not UTF-8 are U+DC80 to U+DCFF in a str (PEP 383). Other lone surrogates have no meaning.
_SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True)
class CharTokenizer:
    """One token for each character; token number i is `characters[i]`."""

    characters: str

    def __post_init__(self) -> None:
        if not self.characters:
            raise TokenizerError("a character vocabulary needs at least one character: the text is empty")
        if len(self.characters) > 65_536:
            raise TokenizerError(
                f"the text has {len(self.characters):,} different characters, and 65,536 is the most a character "
                "vocabulary can hold: use the byte tokenizer (tokenizer=byte)"
            )
        if len(set(self.characters)) != len(self.characters):
            raise TokenizerError("a character vocabulary has a character twice: it was damaged or not made by Quill")
        if stray := _SURROGATE.search(self.characters):
            raise TokenizerError(
                f"{stray[0]!r} is half a character or an invalid byte and cannot be in a character vocabulary: "
                "use the byte tokenizer (tokenizer=byte), which accepts any bytes"
            )

    @classmethod
    def from_text(cls, text: str, *, on_share: Callable[[float], None] = lambda share: None) -> CharTokenizer:
        """Return the tokenizer whose vocabulary is the sorted set of the text's characters.

        `on_share` is called now and then with the share of the text that has been scanned.
        """
        return cls(_characters_of(text, on_share))

    @property
    def kind(self) -> str:
        return "char"

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8 if self.vocab_size <= 256 else np.uint16)

    def encode(self, text: str, *, compact: bool = False) -> np.ndarray:
        check_text(text)
        tokens = np.empty(len(text), self.dtype if compact else np.int64)
        for start in range(0, len(text), _SLICE):
            piece = self._encode_slice(text[start : start + _SLICE])
            if piece is None:
                position, character = self.unknown_characters(text)[0]
                raise TokenizerError(
                    f"character {character!r} at position {position:,} is not among the {self.vocab_size} characters "
                    "of the training text: leave it out, or drop unknown characters (unknown=skip)"
                )
            tokens[start : start + _SLICE] = piece
        return tokens

    def encode_utf8(self, raw: bytes) -> np.ndarray:
        if self.vocab_size < 256:  # then `vocab_size` is free to mark characters that are not ASCII
            marked = bytearray(raw.translate(self._ascii_or_mark, _CONTINUATION))  # a byte for each character
            tokens, others = np.frombuffer(marked, np.uint8), raw.translate(None, _ASCII)
            if 2 * len(others) < len(raw):
                others_N = self._look_up(_code_points(others.decode("utf-8", "surrogateescape")))
                at_N = np.flatnonzero(tokens == self.vocab_size)
                if len(at_N) == len(others_N) and not (others_N == self.vocab_size).any():
                    tokens[at_N] = others_N
                    return tokens
        return self.encode(raw.decode("utf-8", "surrogateescape"), compact=True)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        array = check_tokens(tokens, self.vocab_size)
        slices = (array[start : start + _SLICE] for start in range(0, len(array), _SLICE))
        return "".join(self._codes.take(piece).tobytes().decode("utf-32-le") for piece in slices)

    def count_characters(self, tokens: np.ndarray) -> int:
        return len(tokens)

    def unknown_characters(self, text: str) -> list[tuple[int, str]]:
        return [
            (start + int(i), text[start + int(i)])
            for start, codes in _code_slices(text)
            for i in np.flatnonzero(self._look_up(codes) == self.vocab_size)
        ]

    def drop_unknown(self, text: str) -> str:
        known = set(self.characters)
        return "".join(character for character in text if character in known)

    def extend(self, text: str) -> CharTokenizer:
        new = [character for character in _characters_of(text) if character not in self.characters]
        return CharTokenizer(self.characters + "".join(new)) if new else self

    def stream_decoder(self) -> StreamDecoder:
        return _CharStream(self)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "char", "characters": self.characters}

    @cached_property
    def _codes(self) -> np.ndarray:
        return _code_points(self.characters).astype("<u4")

    @cached_property
    def _token_of_code(self) -> np.ndarray:
        """Return the token of each code point; `vocab_size` if it has none, as all those above the last entry."""
        unsigned = np.uint8 if self.vocab_size < 256 else np.uint16 if self.vocab_size < 65_536 else np.uint32
        table = np.full(int(self._codes.max()) + 2, self.vocab_size, unsigned)
        table[self._codes] = np.arange(self.vocab_size)
        return table

    @cached_property
    def _ascii(self) -> tuple[bytes, bytes]:
        """Return the ASCII characters among at most 256, and the table of their tokens for bytes.translate."""
        known = self._token_of_code[:128] < self.vocab_size
        tokens = np.zeros(256, np.uint8)
        tokens[: len(known)][known] = self._token_of_code[:128][known]
        return np.flatnonzero(known).astype(np.uint8).tobytes(), tokens.tobytes()

    @cached_property
    def _ascii_or_mark(self) -> bytes:
        """Return the token of each byte that is an ASCII character in the vocabulary, else `vocab_size`."""
        table = np.full(256, self.vocab_size, np.uint8)
        table[: len(self._token_of_code[:128])] = self._token_of_code[:128]
        return table.tobytes()

    def _encode_slice(self, text: str) -> np.ndarray | None:
        """Return the tokens of a short text; None if a character has none."""
        if self.vocab_size <= 256 and text.isascii():  # twice as fast
            raw, (known, table) = text.encode("ascii"), self._ascii
            return None if raw.translate(None, known) else np.frombuffer(raw.translate(table), np.uint8)
        piece = self._look_up(_code_points(text))
        return None if piece.max() == self.vocab_size else piece

    def _look_up(self, codes: np.ndarray) -> np.ndarray:
        return self._token_of_code.take(codes, mode="clip")


class _CharStream:
    def __init__(self, tokenizer: CharTokenizer) -> None:
        self._tokenizer = tokenizer

    def feed(self, token: int) -> str:
        return self._tokenizer.decode([token])

    def flush(self) -> str:
        return ""


class CharacterSet:
    """The different characters of a text that comes in pieces."""

    def __init__(self, characters: str = "") -> None:
        self._seen = np.zeros(_CODE_POINTS, bool)
        self._known = b""  # the ASCII characters among them
        self.add(characters)

    def add(self, text: str, raw: bytes = b"") -> None:
        """Add the characters of a text. `raw`, the text in UTF-8, makes this faster if most of them are ASCII."""
        if 0 < len(raw) < 1.5 * len(text):
            text = raw.translate(None, self._known).decode("utf-8", "surrogateescape")
        for start in range(0, len(text), _SLICE):
            piece = text[start : start + _SLICE]
            if not piece.isascii():
                self._see(_code_points(piece))
            elif new := piece.encode("ascii").translate(None, self._known):  # almost always none: six times as fast
                self._see(np.frombuffer(new, np.uint8))

    def _see(self, codes: np.ndarray) -> None:
        self._seen[codes] = True
        self._known = np.flatnonzero(self._seen[:128]).astype(np.uint8).tobytes()

    @property
    def characters(self) -> str:
        """The characters, sorted by code point."""
        return "".join(map(chr, np.flatnonzero(self._seen)))


def _characters_of(text: str, on_share: Callable[[float], None] = lambda share: None) -> str:
    """Return the different characters of a text, sorted by code point."""
    found, step = CharacterSet(), 4 * _SLICE
    for start in range(0, len(text), step):
        found.add(text[start : start + step])
        on_share(start / len(text))
    return found.characters


def _code_slices(text: str) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (position, code points) of one slice of the text after another."""
    for start in range(0, len(text), _SLICE):
        yield start, _code_points(text[start : start + _SLICE])


def _code_points(text: str) -> np.ndarray:
    raw = text.encode("utf-16-le", "surrogatepass")
    if len(raw) == 2 * len(text):  # two bytes for each character are faster than four
        return np.frombuffer(raw, "<u2")
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
