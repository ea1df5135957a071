"""The byte tokenizer: one token for each byte of the UTF-8 text."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quill.errors import TokenizerError
from quill.tokenizers.base import StreamDecoder, check_text, check_tokens

_SURROGATE_OF_NO_BYTE = re.compile(r"[\ud800-\udc7f\udd00-\udfff]")


@dataclass(frozen=True)
class ByteTokenizer:
    """One token for each byte of the text in UTF-8: 256 tokens, any language, no training.

    Invalid bytes, which a str holds as PEP 383 surrogates ("surrogateescape"), become the tokens of these bytes.
    Decoding never fails: bytes that are not UTF-8 become U+FFFD.
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

    def encode(self, text: str, *, compact: bool = False) -> np.ndarray:
        check_text(text)
        try:
            raw = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"{text[error.start]!r} at position {error.start:,} is half a character (a lone surrogate) and has no "
                "bytes: leave it out, or drop unknown characters (unknown=skip)"
            ) from error
        # Always a copy: an array over bytes is read-only, which PyTorch warns about.
        return np.frombuffer(raw, np.uint8).astype(self.dtype if compact else np.int64)

    def encode_utf8(self, raw: bytes) -> np.ndarray:
        return np.frombuffer(raw, np.uint8)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        return check_tokens(tokens, 256).astype(np.uint8).tobytes().decode("utf-8", "replace")

    def count_characters(self, tokens: np.ndarray) -> int:
        # In UTF-8 each character has exactly one byte that is not of the form 10xxxxxx.
        return int(np.count_nonzero((np.asarray(tokens) & 0xC0) != 0x80))

    def unknown_characters(self, text: str) -> list[tuple[int, str]]:
        return [(match.start(), match[0]) for match in _SURROGATE_OF_NO_BYTE.finditer(text)]

    def drop_unknown(self, text: str) -> str:
        return _SURROGATE_OF_NO_BYTE.sub("", text)

    def extend(self, text: str) -> ByteTokenizer:
        return self  # each byte has its token already

    def stream_decoder(self) -> StreamDecoder:
        return _ByteStream()

    def to_json(self) -> dict[str, Any]:
        return {"kind": "byte"}


class _ByteStream:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        return self._decoder.decode(check_tokens([token], 256).astype(np.uint8).tobytes())

    def flush(self) -> str:
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
