"""Build a tokenizer from its name and a text, or from the JSON object in a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quill.errors import TokenizerError
from quill.tokenizers.base import Tokenizer
from quill.tokenizers.byte import ByteTokenizer
from quill.tokenizers.char import CharTokenizer
from quill.validation import show

KINDS = ("char", "byte")


def build_tokenizer(
    tokenizer: str | Tokenizer, text: str, *, on_share: Callable[[float], None] = lambda share: None
) -> Tokenizer:
    """Return the tokenizer of this name for this text; a tokenizer is returned as it is. Else TokenizerError.

    `on_share` is called now and then with the share of the text that has been scanned.
    """
    check_tokenizer(tokenizer)
    if not isinstance(tokenizer, str):
        return tokenizer
    return ByteTokenizer() if tokenizer == "byte" else CharTokenizer.from_text(text, on_share=on_share)


def check_tokenizer(tokenizer: object) -> None:
    """Raise TokenizerError unless this is the name of a tokenizer, or a tokenizer that `tokenizer_from_json` knows."""
    if isinstance(tokenizer, str):
        if tokenizer not in KINDS:
            raise TokenizerError(f"tokenizer={show(tokenizer)} does not exist: use {' or '.join(map(repr, KINDS))}")
    elif not isinstance(tokenizer, CharTokenizer | ByteTokenizer):
        raise TokenizerError(
            f"tokenizer={type(tokenizer).__name__} object cannot be used: use {', '.join(map(repr, KINDS))}, "
            "or a CharTokenizer or ByteTokenizer"
        )


def tokenizer_from_json(data: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer that `to_json` described; TokenizerError for any other value."""
    match data:
        case {"kind": "char", "characters": str(characters)}:
            return CharTokenizer(characters)
        case {"kind": "byte"}:
            return ByteTokenizer()
    raise TokenizerError(f"{show(data)} describes no tokenizer: kind must be one of {KINDS}")
