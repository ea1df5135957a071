"""Make a tokenizer from its kind and a text, or from the JSON object in a checkpoint."""

from __future__ import annotations

import json
from typing import Any

from quill.errors import TokenizerError
from quill.tokenizers.base import Tokenizer
from quill.tokenizers.byte import ByteTokenizer
from quill.tokenizers.char import CharTokenizer

KINDS = ("char", "byte")


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
